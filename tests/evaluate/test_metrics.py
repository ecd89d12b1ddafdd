from __future__ import annotations

import numpy as np
import pytest
from sksurv.metrics import brier_score, cumulative_dynamic_auc
from sksurv.util import Surv

from ehrseq.evaluate.metrics import auc, brier, censoring_weights, null_brier, state_at
from ehrseq.survival import kaplan_meier_censoring


def marginal_weights(days, cause, horizon):
    state = state_at(days, cause, horizon)
    own = kaplan_meier_censoring(days, cause, at=days)
    return state, censoring_weights(state, own, kaplan_meier_censoring(days, cause, at=[horizon])[0])


def sample(n=500, seed=3):
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    event, censored = rng.exponential(1000 * np.exp(-risk)), rng.uniform(0, 3000, n)
    return np.minimum(event, censored), (event <= censored).astype(int), risk


@pytest.mark.parametrize("horizon", [100.0, 365.25, 1000.0])
def test_one_cause_matches_scikit_survival(horizon):
    days, cause, risk = sample()
    observed = Surv.from_arrays(cause == 1, days)
    state, weights = marginal_weights(days, cause, horizon)
    expected = cumulative_dynamic_auc(observed, observed, risk, [horizon])[0][0]
    assert float(auc(risk, state.case, weights)) == pytest.approx(expected, abs=1e-9)
    probability = 1 - np.exp(-horizon / 1000 * np.exp(0.7 * risk))
    # scikit-survival divides by n, we by the sum of the weights
    divided_by_n = brier_score(observed, observed, 1 - probability[:, None], [horizon])[1][0]
    ours = float(brier(probability, state.case, weights))
    assert ours * weights.sum() / len(days) == pytest.approx(divided_by_n, abs=1e-9)
    assert weights.sum() / len(days) == pytest.approx(1, abs=0.02)


def test_states_at_the_horizon_with_ties():
    state = state_at([5, 5, 5, 4, 4, 4, 6, 6], [0, 1, 2, 0, 1, 2, 0, 1], 5)
    assert state.case.tolist() == [False, True, False, False, True, False, False, False]
    assert state.competing.tolist() == [False, False, True, False, False, True, False, False]
    assert state.event_free.tolist() == [True, False, False, False, False, False, True, True]
    assert state.censored.tolist() == [False, False, False, True, False, False, False, False]


def test_each_row_has_its_own_horizon():
    state = state_at([365.5, 365.5], [1, 1], [365.0, 366.0])
    assert state.case.tolist() == [False, True]
    assert state.event_free.tolist() == [True, False]


def test_auc_and_brier_by_hand_with_a_competing_event():
    # horizon 3: case at 1 (G(1-) = 1), censored at 2, competing at 2.5 and event-free 4, 5 (G = 3/4 after one
    # of the four still at risk was censored)
    days, cause = np.array([1, 2, 2.5, 4, 5]), np.array([1, 0, 2, 0, 0])
    state, weights = marginal_weights(days, cause, 3.0)
    np.testing.assert_allclose(weights, [1, 0, 4 / 3, 4 / 3, 4 / 3])
    score = np.array([0.5, 0.9, 0.6, 0.5, 0.1])
    # the case loses to the competing death, ties with one control, wins over the other
    assert float(auc(score, state.case, weights)) == pytest.approx((0 + 0.5 + 1) / 3)
    expected = (0.5**2 + 4 / 3 * (0.6**2 + 0.5**2 + 0.1**2)) / 5
    assert float(brier(score, state.case, weights)) == pytest.approx(expected)
    assert float(null_brier(state.case, weights)) == pytest.approx(0.2 * 0.8)


def by_pairs(score, case, weights, strata):
    won = total = 0.0
    for i in np.flatnonzero(case):
        for j in np.flatnonzero(~case):
            if strata[i] == strata[j]:
                pair = weights[i] * weights[j]
                won += pair * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
                total += pair
    return won / total


def test_auc_with_ties_and_strata_matches_all_pairs():
    rng = np.random.default_rng(5)
    score, case, strata = rng.integers(0, 12, 120) / 12, rng.random(120) < 0.3, rng.integers(0, 4, 120)
    weights = rng.gamma(1.0, 1.0, (120, 3))
    for groups in (strata, np.zeros(120, int)):
        got = auc(score, case, weights, groups)
        expected = [by_pairs(score, case, weights[:, r], groups) for r in range(3)]
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(auc(score, case, weights), auc(score, case, weights, np.zeros(120)), rtol=1e-14)


def test_auc_of_perfect_reversed_and_constant_scores():
    case = np.arange(20) >= 15
    ones = np.ones(20)
    assert float(auc(case.astype(float), case, ones)) == 1.0
    assert float(auc(-case.astype(float), case, ones)) == 0.0
    assert float(auc(ones, case, ones)) == 0.5


def test_undefined_is_nan():
    assert np.isnan(auc([0.1, 0.2], [False, False], [1.0, 1.0]))
    assert np.isnan(auc([], np.zeros(0, bool), []))
    assert np.isnan(brier([0.1], [True], [0.0]))


def test_small_probabilities_of_being_observed_are_clipped():
    state = state_at([1.0, 5.0], [1, 0], 3.0)
    np.testing.assert_allclose(censoring_weights(state, [0.001, 1.0], [0.3, 0.0]), [20.0, 20.0])
