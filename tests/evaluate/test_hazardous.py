"""Brier score, its integral and the concordance with competing risks beside those of hazardous."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hazardous.metrics import (
    brier_score_incidence,
    concordance_index_incidence,
    integrated_brier_score_incidence,
)

from ehrseq.evaluate.concordance import concordance
from ehrseq.evaluate.metrics import brier, censoring_weights, state_at
from ehrseq.survival import kaplan_meier_censoring

TIMES = np.array([200.0, 500.0, 900.0, 1400.0])


@pytest.fixture(scope="module")
def sample():
    """Two causes and censoring, no ties; every chance of being observed is above the clipping of both."""
    random = np.random.default_rng(3)
    n = 600
    score = random.normal(size=n)
    times = np.stack([random.uniform(300, 3000, n), random.exponential(1500 * np.exp(-score)),
                      random.exponential(2500, n)])  # fmt: skip
    own, other = np.exp(score) / 1500, 1 / 2500
    incidence = (own / (own + other))[:, None] * -np.expm1(-(own + other)[:, None] * TIMES)
    return times.min(0), times.argmin(0), incidence


def briers(days, cause, incidence):
    """Ours, and ours times the mean weight: hazardous divides by the number of rows, we by the sum of weights."""
    # hazardous takes G at the row's own time, we just before it; without ties both are the same
    own = kaplan_meier_censoring(days, cause, at=days)
    hajek, divided = [], []
    for t, p in zip(TIMES, incidence.T, strict=True):
        state = state_at(days, cause, t)
        weights = censoring_weights(state, own, kaplan_meier_censoring(days, cause, at=[t])[0])
        hajek.append(float(brier(p, state.case, weights)))
        divided.append(hajek[-1] * weights.sum() / len(days))
    return np.array(hajek), np.array(divided)


def test_the_brier_score_and_its_integral(sample):
    days, cause, incidence = sample
    truth = pd.DataFrame({"event": cause, "duration": days})
    _, divided = briers(days, cause, incidence)
    expected = brier_score_incidence(truth, truth, incidence, TIMES, event_of_interest=1)
    np.testing.assert_allclose(divided, expected, atol=1e-6)
    integrated = integrated_brier_score_incidence(truth, truth, incidence, TIMES, event_of_interest=1)
    assert np.trapezoid(divided, TIMES) / (TIMES[-1] - TIMES[0]) == pytest.approx(integrated, abs=1e-6)


def test_wolbers_concordance(sample):
    days, cause, incidence = sample
    before = kaplan_meier_censoring(days, cause, at=days)
    after = kaplan_meier_censoring(days, cause, at=days, limit="right")
    truth = pd.DataFrame({"event": cause, "duration": days})
    for t, p in zip(TIMES, incidence.T, strict=True):
        expected = concordance_index_incidence(
            truth, incidence, y_train=truth, time_grid=TIMES, taus=[t], event_of_interest=1
        )[0]
        got = float(concordance(p, days, cause, t, before, after, np.ones(len(days))))
        assert got == pytest.approx(expected, abs=1e-6)
