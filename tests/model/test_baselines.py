from __future__ import annotations

import json

import numpy as np
import pytest
from lifelines import PiecewiseExponentialFitter

from ehrseq.errors import UserError
from ehrseq.model.baselines import HazardBaseline

EDGES = np.array([0.0, 90.0, 365.0, 1826.0])


def simulate(n, seed, outcome_rate, competing_rate):
    """Exponential causes and uniform censoring; rates per day are functions of (age, sex)."""
    rng = np.random.default_rng(seed)
    age, sex = rng.uniform(30, 85, n), rng.choice(["female", "male"], n)
    times = np.stack(
        [
            rng.uniform(200, 3000, n),
            rng.exponential(1 / outcome_rate(age, sex)),
            rng.exponential(1 / competing_rate(age, sex)),
        ]
    )
    return age, sex.tolist(), times.min(0), times.argmin(0)


def test_null_rates_are_events_over_exposure():
    age, sex, days, cause = simulate(20_000, 1, lambda a, s: 3e-4 + 0 * a, lambda a, s: 1e-4 + 0 * a)
    model = HazardBaseline.fit("null", EDGES, age, sex, days, cause)
    exposure = np.clip(days[:, None] - EDGES[:-1], 0, np.diff(EDGES)).sum(0)
    for k, hazard in enumerate(model.hazards(age[:2], sex[:2])):
        interval = (days[:, None] > EDGES[:-1]) & (days[:, None] <= EDGES[1:])
        events = (interval & (cause == k + 1)[:, None]).sum(0)
        assert hazard.shape == (2, 3)
        # the half event of prior moves a rate by less than half an event of the interval's
        np.testing.assert_allclose(hazard[0], events / exposure, rtol=0.5 / events.min())
        np.testing.assert_array_equal(hazard[0], hazard[1])


def test_null_rates_agree_with_lifelines():
    age, sex, days, cause = simulate(5_000, 2, lambda a, s: 6e-4 + 0 * a, lambda a, s: 2e-4 + 0 * a)
    cut, event = np.minimum(days, EDGES[-1]), (cause == 1) & (days <= EDGES[-1])
    oracle = PiecewiseExponentialFitter(EDGES[1:-1]).fit(cut, event)
    hazard = HazardBaseline.fit("null", EDGES, age, sex, days, cause).hazards(age[:1], sex[:1])[0][0]
    np.testing.assert_allclose(hazard, 1 / oracle.params_.to_numpy(), rtol=5e-3)


def test_age_sex_recovers_known_hazards():
    def outcome(age, sex):
        return 2e-4 * np.exp(0.05 * (age - 60) + 0.5 * (np.asarray(sex) == "male"))

    def competing(age, sex):
        return 1e-4 * np.exp(0.09 * (age - 60))

    age, sex, days, cause = simulate(40_000, 3, outcome, competing)
    model = HazardBaseline.fit("age_sex", EDGES, age, sex, days, cause)
    grid, who = np.array([40.0, 55.0, 65.0, 80.0] * 2), ["male"] * 4 + ["female"] * 4
    got_outcome, got_competing = model.hazards(grid, who)
    truth = outcome(grid, who)[:, None]
    np.testing.assert_allclose(got_outcome[:, 1:], np.repeat(truth, 2, 1), rtol=0.12)
    np.testing.assert_allclose(got_competing[:, 1:], np.repeat(competing(grid, who)[:, None], 2, 1), rtol=0.15)


def test_age_sex_keeps_the_number_of_events():
    age, sex, days, cause = simulate(5_000, 4, lambda a, s: 1e-5 * a, lambda a, s: 5e-6 * a)
    model = HazardBaseline.fit("age_sex", EDGES, age, sex, days, cause)
    exposure = np.clip(days[:, None] - EDGES[:-1], 0, np.diff(EDGES))
    for k, hazard in enumerate(model.hazards(age, sex)):
        # the constant is not penalised, so the Poisson score equation holds for the total
        assert (hazard * exposure).sum() == pytest.approx(((cause == k + 1) & (days <= EDGES[-1])).sum(), rel=1e-5)


def test_constant_weights_change_nothing_and_doubling_rows_equals_weight_two():
    age, sex, days, cause = simulate(800, 5, lambda a, s: 1e-5 * a, lambda a, s: 5e-6 * a)
    first = HazardBaseline.fit("age_sex", EDGES, age, sex, days, cause)
    same = HazardBaseline.fit("age_sex", EDGES, age, sex, days, cause, np.full(800, 7.3))
    np.testing.assert_allclose(first.hazards(age, sex)[0], same.hazards(age, sex)[0], rtol=1e-6)
    weight = np.where(np.arange(800) < 400, 2.0, 0.0)
    half = HazardBaseline.fit("null", EDGES, age[:400], sex[:400], days[:400], cause[:400])
    weighted = HazardBaseline.fit("null", EDGES, age, sex, days, cause, weight)
    np.testing.assert_allclose(half.base_rate, weighted.base_rate, rtol=0.02)


def test_no_events_anywhere_stays_finite():
    n = 50
    age, sex = np.linspace(20, 80, n), [None, "male"] * 25
    for kind in ("null", "age_sex"):
        model = HazardBaseline.fit(kind, EDGES, age, sex, np.full(n, 200.0), np.zeros(n, int))
        outcome, competing = model.hazards(age, sex)
        assert np.isfinite(outcome).all()
        # half an event over everybody's follow-up; nobody reached the last interval
        np.testing.assert_allclose(outcome[:, 2], 0.5 / (n * 200.0))
        assert (competing == 0).all()


def test_interval_without_events_has_a_small_hazard():
    age, sex, days, cause = simulate(3_000, 6, lambda a, s: 1e-5 * a, lambda a, s: 5e-6 * a)
    cause = np.where(days <= EDGES[1], 0, cause)
    outcome, _ = HazardBaseline.fit("age_sex", EDGES, age, sex, days, cause).hazards([60.0], ["male"])
    assert 0 < outcome[0, 0] < outcome[0, 1] / 10


def test_an_event_on_an_edge_belongs_to_the_interval_that_ends_there():
    model = HazardBaseline.fit("null", [0, 10, 20], [50.0] * 100, [None] * 100, [10.0] * 100, [1] * 100)
    first, second = model.base_rate[0]
    assert first == pytest.approx(0.1, rel=1e-9)
    assert second == pytest.approx(0.1, rel=1e-9)  # no follow-up: the pooled rate


def test_unknown_and_unseen_sex_and_equal_ages():
    n = 200
    rng = np.random.default_rng(7)
    days, cause = rng.exponential(500, n), rng.integers(0, 3, n)
    model = HazardBaseline.fit("age_sex", EDGES, np.full(n, 50.0), [None, "male"] * (n // 2), days, cause)
    assert model.sexes == ("male", "unknown")
    assert len(model.knots) == 0
    for hazard in model.hazards([50.0, 90.0, 50.0], [None, "male", "other"]):
        assert np.isfinite(hazard).all()


def test_beyond_the_outer_knots_the_log_hazard_is_a_line():
    age, sex, days, cause = simulate(3_000, 8, lambda a, s: 1e-5 * a, lambda a, s: 5e-6 * a)
    model = HazardBaseline.fit("age_sex", EDGES, age, sex, days, cause)
    log = np.log(model.hazards([90.0, 95.0, 100.0, 105.0], ["male"] * 4)[0][:, 0])
    np.testing.assert_allclose(np.diff(log, 2), 0, atol=1e-9)


@pytest.mark.parametrize("kind", ["null", "age_sex"])
def test_json_round_trip_is_exact(kind):
    age, sex, days, cause = simulate(500, 9, lambda a, s: 1e-5 * a, lambda a, s: 5e-6 * a)
    model = HazardBaseline.fit(kind, EDGES, age, sex, days, cause)
    again = HazardBaseline.from_dict(json.loads(json.dumps(model.to_dict())))
    for a, b in zip(model.hazards(age, sex), again.hazards(age, sex), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.to_dict() == model.to_dict()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "cox"}, "'age_sex' or 'null'"),
        ({"edges": [1, 2]}, "rising from 0"),
        ({"age_years": [np.nan, 50.0]}, "finite age"),
        ({"sex": ["male"]}, "values of sex"),
        ({"days": [0.0, 1.0]}, "above 0"),
        ({"cause": [3, 0]}, "causes 0, 1 or 2"),
        ({"weight": [0.0, 0.0]}, "weights"),
        ({"weight": [1.0]}, "one length"),
    ],
)
def test_refusals(change, expected):
    good = {
        "kind": "age_sex",
        "edges": [0, 10],
        "age_years": [40.0, 50.0],
        "sex": [None, "male"],
        "days": [5.0, 6.0],
        "cause": [1, 0],
        "weight": None,
    }
    with pytest.raises(UserError, match=expected):
        HazardBaseline.fit(**(good | change))
