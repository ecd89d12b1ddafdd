"""Level, slope and blend are found again where they were put."""

from __future__ import annotations

import numpy as np
import pytest

from ehrseq.model.adjustment import Adjustment, Outcomes, blend_weight, fit_level, fit_slope
from ehrseq.model.heads import exposure_and_interval, interval_edges

EDGES = interval_edges(1500.0, 4)
N = 20_000


@pytest.fixture(scope="module")
def truth():
    """True log hazards (N, 1, 4), constant over time, and what happened."""
    rng = np.random.default_rng(0)
    log_hazard = rng.normal(-7, 0.8, N)
    time, censored = rng.exponential(np.exp(-log_hazard)), rng.uniform(100, 2000, N)
    exposure, interval = exposure_and_interval(np.minimum(time, censored), EDGES)
    interval = np.where((time <= censored) & (interval < 4), interval, -1)
    return np.repeat(log_hazard[:, None, None], 4, axis=2), Outcomes(
        exposure[:, None], interval[:, None], np.ones(N), 1
    )


def test_level_makes_expected_events_equal_the_observed(truth):
    log_hazard, outcomes = truth
    adjusted = fit_level([(log_hazard - 0.5, outcomes)]).apply(log_hazard - 0.5)
    observed, expected = outcomes.counts(adjusted)
    assert expected.sum() == pytest.approx(observed.sum(), rel=0.01)


@pytest.mark.parametrize("slope", [0.6, 1.6])
def test_a_wrong_slope_is_put_right(truth, slope):
    log_hazard, outcomes = truth
    wrong = -7 + slope * (log_hazard + 7)
    found = fit_slope(wrong, outcomes)
    assert found.slope[0] == pytest.approx(1 / slope, rel=0.1)
    assert outcomes.loss(found.apply(wrong)[:, 0], 0) < outcomes.loss(wrong[:, 0], 0)


def test_what_is_right_is_left_alone(truth):
    log_hazard, outcomes = truth
    found = fit_slope(log_hazard, outcomes)
    assert found.slope[0] == pytest.approx(1, abs=0.1)


def test_two_adjustments_make_one():
    x = np.random.default_rng(1).normal(size=(5, 2, 4))
    a = Adjustment(np.array([0.5, 2.0]), np.ones((2, 4)))
    b = Adjustment(np.array([3.0, 1.0]), np.full((2, 4), -2.0))
    np.testing.assert_allclose(a.then(b).apply(x), b.apply(a.apply(x)))
    assert np.array_equal(Adjustment.from_dict(a.to_dict()).apply(x), a.apply(x))


def test_the_better_branch_gets_more_weight(truth):
    log_hazard, outcomes = truth
    noise = np.random.default_rng(2).normal(0, 1, N)[:, None, None]
    assert blend_weight(log_hazard, log_hazard + noise, outcomes)[0] == pytest.approx(0.25, abs=0.05)
    assert blend_weight(log_hazard + noise, log_hazard, outcomes)[0] == pytest.approx(0.75, abs=0.05)
