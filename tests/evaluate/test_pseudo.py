from __future__ import annotations

import numpy as np
import pytest
from lifelines import AalenJohansenFitter

from ehrseq.evaluate.metrics import weighted_mean
from ehrseq.evaluate.pseudo import aalen_johansen_pseudo_values, weighted_pseudo_values
from ehrseq.survival import aalen_johansen


def sample(n, seed, ties):
    random = np.random.default_rng(seed)
    days = random.integers(1, 12, n).astype(float) if ties else random.exponential(5, n)
    return days, random.choice([0, 1, 2], n, p=[0.4, 0.4, 0.2])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("at", [0.5, 3.0, 7.0, 100.0])
@pytest.mark.parametrize("n", [2, 3, 40])
def test_one_pass_is_the_jackknife(n, at, ties):
    for seed in range(5):
        days, cause = sample(n, seed, ties)
        whole = aalen_johansen(days, cause, at=[at])[0][0]
        expected = []
        for i in range(n):
            kept = np.arange(n) != i
            expected.append(n * whole - (n - 1) * aalen_johansen(days[kept], cause[kept], at=[at])[0][0])
        np.testing.assert_allclose(aalen_johansen_pseudo_values(days, cause, at), expected, atol=1e-10)


def test_the_jackknife_of_lifelines():
    days, cause = sample(25, 3, ties=False)

    def incidence(rows):
        fitter = AalenJohansenFitter(calculate_variance=False).fit(days[rows], cause[rows], event_of_interest=1)
        curve = fitter.cumulative_density_.iloc[:, 0]
        return float(curve[curve.index <= 5.0].iloc[-1])

    everyone = np.arange(25)
    whole = incidence(everyone)
    expected = [25 * whole - 24 * incidence(np.delete(everyone, i)) for i in everyone]
    np.testing.assert_allclose(aalen_johansen_pseudo_values(days, cause, 5.0), expected, atol=1e-6)


def test_without_censoring_they_are_the_indicator():
    random = np.random.default_rng(1)
    days, cause = random.exponential(5, 60), random.choice([1, 2], 60)
    got = aalen_johansen_pseudo_values(days, cause, 4.0)
    np.testing.assert_allclose(got, (cause == 1) & (days <= 4), atol=1e-10)


def test_the_weighted_ones_are_the_jackknife_of_the_weighted_rate():
    random = np.random.default_rng(2)
    case, weights = random.random(30) < 0.3, random.gamma(1.0, 1.0, 30) * (random.random(30) < 0.8)
    whole = float(weighted_mean(case, weights))
    expected = [30 * whole - 29 * float(weighted_mean(np.delete(case, i), np.delete(weights, i))) for i in range(30)]
    np.testing.assert_allclose(weighted_pseudo_values(case, weights), expected, atol=1e-12)
