from __future__ import annotations

import numpy as np
import pytest
from lifelines import AalenJohansenFitter, KaplanMeierFitter

from ehrseq.survival import aalen_johansen, kaplan_meier_censoring


def sample(n=400, seed=0, whole_days=False):
    rng = np.random.default_rng(seed)
    times = np.stack([rng.exponential(900, n), rng.exponential(500, n), rng.exponential(1000, n)])
    days = times.min(0)
    return (np.ceil(days / 60) if whole_days else days), times.argmin(0)


def test_aalen_johansen_matches_lifelines_without_ties():
    days, cause = sample()
    at = np.array([1.0, 50.0, 200.0, 365.25, 700.0])
    for k, got in zip((1, 2), aalen_johansen(days, cause, at=at), strict=True):
        fitted = AalenJohansenFitter(calculate_variance=False).fit(days, cause, event_of_interest=k)
        expected = fitted.cumulative_density_.iloc[:, 0]
        steps = expected.to_numpy()[np.searchsorted(expected.index.to_numpy(), at, side="right") - 1]
        np.testing.assert_allclose(got, steps, atol=1e-12)


def test_without_competitors_it_is_one_minus_kaplan_meier_with_ties():
    days, cause = sample(whole_days=True)
    cause = (cause == 1).astype(int)
    at = np.array([1.0, 3.0, 6.0, 6.5])
    expected = 1 - KaplanMeierFitter().fit(days, cause).predict(at).to_numpy()
    np.testing.assert_allclose(aalen_johansen(days, cause, at=at)[0], expected, atol=1e-12)


def test_by_hand_with_ties():
    # day 1: 6 at risk, an outcome and a competing event; day 2: 4 at risk, an outcome and a censoring;
    # day 3: 2 at risk, a competing event; then one censored
    days, cause = [1, 1, 2, 2, 3, 4], [1, 2, 1, 0, 2, 0]
    outcome, competing = aalen_johansen(days, cause, at=[0.5, 1, 2, 3, 9])
    np.testing.assert_allclose(outcome, [0, 1 / 6, 1 / 6 + 4 / 6 / 4, 1 / 3, 1 / 3])
    np.testing.assert_allclose(competing, [0, 1 / 6, 1 / 6, 1 / 6 + 4 / 6 * 3 / 4 / 2, 1 / 6 + 1 / 4])


def test_complete_follow_up_gives_proportions():
    days, cause = sample()
    cause = np.where(cause == 0, 1, cause)
    outcome, competing = aalen_johansen(days, cause, at=[300.0])
    assert outcome[0] == pytest.approx(((days <= 300) & (cause == 1)).mean(), abs=1e-12)
    assert competing[0] == pytest.approx(((days <= 300) & (cause == 2)).mean(), abs=1e-12)


def test_counts_as_weights_are_repeated_rows_and_a_matrix_is_its_columns():
    days, cause = sample(whole_days=True)
    counts = np.random.default_rng(1).integers(0, 4, (len(days), 3))
    at = [2.0, 5.0, 9.0]
    matrix = aalen_johansen(days, cause, counts, at=at)
    left = kaplan_meier_censoring(days, cause, counts, at=at)
    for r in range(3):
        repeated = np.repeat(days, counts[:, r]), np.repeat(cause, counts[:, r])
        for whole, column in zip(matrix, aalen_johansen(*repeated, at=at), strict=True):
            np.testing.assert_allclose(whole[:, r], column, atol=1e-12)
        np.testing.assert_allclose(left[:, r], kaplan_meier_censoring(*repeated, at=at), atol=1e-12)
        np.testing.assert_allclose(matrix[0][:, r], aalen_johansen(days, cause, counts[:, r], at=at)[0], atol=1e-12)


def test_censoring_curve_matches_lifelines_and_takes_the_left_limit():
    days, cause = sample()
    at = np.sort(days)[[0, 50, 200, 350]]
    fitted = KaplanMeierFitter().fit(days, cause == 0)
    np.testing.assert_allclose(
        kaplan_meier_censoring(days, cause, at=at, limit="right"), fitted.predict(at).to_numpy(), atol=1e-12
    )
    np.testing.assert_allclose(
        kaplan_meier_censoring(days, cause, at=at), fitted.predict(at - 1e-9).to_numpy(), atol=1e-12
    )


def test_censoring_curve_by_hand_with_ties():
    # day 2: two with events leave first, so that one of the two remaining is censored
    days, cause = [1, 2, 2, 2, 3], [0, 1, 2, 0, 1]
    np.testing.assert_allclose(kaplan_meier_censoring(days, cause, at=[1, 2, 3]), [1, 0.8, 0.4])
    np.testing.assert_allclose(kaplan_meier_censoring(days, cause, at=[1, 2, 3], limit="right"), [0.8, 0.4, 0.4])


def test_no_events_and_no_censoring():
    assert aalen_johansen([1, 2], [0, 0], at=[5.0])[0].tolist() == [0.0]
    assert kaplan_meier_censoring([1, 2], [1, 2], at=[5.0]).tolist() == [1.0]
