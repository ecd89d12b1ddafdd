from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.censoring import ConditionalCensoring, fit_censoring
from ehrseq.evaluate.metrics import censoring_weights, state_at, weighted_mean
from ehrseq.survival import aalen_johansen, kaplan_meier_censoring


def sample(n=4000, seed=0):
    """The sick are censored early: marginal weights see too little of them. True incidence by 5 in closed form."""
    random = np.random.default_rng(seed)
    x = random.normal(size=n)
    hazard, competing = 0.04 * np.exp(1.2 * x), 0.03 * np.exp(0.5 * x)
    event, other = random.exponential(1 / hazard), random.exponential(1 / competing)
    censored = random.exponential(1 / (0.12 * np.exp(1.2 * x)))
    days = np.minimum(np.minimum(event, other), censored)
    cause = np.select([event == days, other == days], [1, 2], 0)
    total = hazard + competing
    truth = hazard / total * -np.expm1(-total * 5)
    g = np.exp(-0.12 * np.exp(1.2 * x) * 5)
    return days, cause, x, truth, g


@pytest.mark.parametrize("ties", [False, True])
def test_rows_that_are_all_alike_give_the_kaplan_meier_curve(ties):
    days, cause, *_ = sample(500)
    days = np.ceil(days * 4) if ties else days
    model = fit_censoring(days, cause, np.zeros((500, 1)), np.arange(500))
    for after, limit in ((False, "left"), (True, "right")):
        at = np.minimum(days, np.quantile(days, 0.99))
        expected = kaplan_meier_censoring(days, cause, at=at, limit=limit)
        np.testing.assert_allclose(model.until(at, after=after), expected, atol=1e-12)


def test_the_chance_of_being_observed_is_recovered():
    days, cause, x, _, g = sample()
    model = fit_censoring(
        days, cause, np.column_stack([x, np.random.default_rng(1).normal(size=len(x))]), np.arange(4000)
    )
    got = model.until(np.full(4000, 5.0))
    assert np.corrcoef(got, g)[0, 1] > 0.95
    assert abs(got - g).mean() < 0.07


def test_conditional_weights_give_the_incidence_where_marginal_ones_do_not():
    gaps = []
    for seed in range(3):
        days, cause, x, truth, _ = sample(seed=seed)
        state = state_at(days, cause, 5.0)
        model = fit_censoring(days, cause, x[:, None], np.arange(4000))
        own, horizon = model.until(days), model.until(np.full(4000, 5.0))
        conditional = weighted_mean(state.case, censoring_weights(state, own, horizon))
        gaps.append((float(conditional) - truth.mean(), aalen_johansen(days, cause, at=[5.0])[0][0] - truth.mean()))
    conditional, marginal = np.mean(gaps, axis=0)
    assert abs(conditional) < 0.012
    assert marginal < -0.03


def test_a_subject_does_not_choose_its_own_weight():
    days, cause, x, *_ = sample(600)
    first = fit_censoring(days, cause, x[:, None], np.arange(600)).ratio
    flipped = cause.copy()
    flipped[7] = 1 - min(cause[7], 1)
    second = fit_censoring(days, flipped, x[:, None], np.arange(600)).ratio
    # up to the common level of an interval
    np.testing.assert_allclose(first[7] / second[7], np.median(first / second, axis=0), rtol=0.2)
    assert not np.allclose(first, second)


def test_times_beside_rows():
    days, cause, x, *_ = sample(300)
    model = fit_censoring(days, cause, x[:, None], np.arange(300))
    table = model.until(np.tile([1.0, 5.0], (300, 1)))
    np.testing.assert_allclose(table[:, 1], model.until(np.full(300, 5.0)))
    assert (np.diff(table, axis=1) <= 0).all()
    some = np.array([4, 9])
    np.testing.assert_allclose(model.until(np.full((2, 1), 5.0), rows=some)[:, 0], table[some, 1])
    with pytest.raises(EvaluationError, match="time for each row"):
        model.until([1.0, 2.0])


def test_covariates_that_cannot_be_used():
    good = pl.DataFrame({"subject_id": [1], "prediction_time": [dt.datetime(2020, 1, 1)], "age": [50.0]})
    ConditionalCensoring(good)
    for bad in (good.drop("age"), good.drop("subject_id"), good.with_columns(age=pl.lit("x"))):
        with pytest.raises(EvaluationError, match="numeric columns"):
            ConditionalCensoring(bad)
    with pytest.raises(EvaluationError, match="several"):
        ConditionalCensoring(pl.concat([good, good]))
