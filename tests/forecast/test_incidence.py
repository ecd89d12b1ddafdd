from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad

from ehrseq.errors import ForecastError
from ehrseq.forecast.incidence import cumulative_incidence

EDGES = np.array([0.0, 30.0, 90.0, 365.0, 1826.0])


def by_integration(outcome, competing, t):
    """F_k(t) as the integral of hazard times event-free probability, interval by interval."""
    result = np.zeros(2)
    starts = EDGES[:-1]
    ends = np.append(EDGES[1:-1], np.inf)
    before = 0.0
    for b, (start, end) in enumerate(zip(starts, ends, strict=True)):
        stop = min(t, end)
        if stop <= start:
            break
        both = outcome[b] + competing[b]
        for k, hazard in enumerate((outcome[b], competing[b])):
            value, _ = quad(
                lambda u, h=hazard, c=before, s=start, L=both: h * np.exp(-c - L * (u - s)),
                start,
                stop,
                epsabs=1e-13,
                epsrel=1e-12,
            )
            result[k] += value
        before += both * (stop - start)
    return result


def test_matches_numerical_integration():
    rng = np.random.default_rng(1)
    outcome, competing = rng.gamma(1.0, 5e-4, (6, 4)), rng.gamma(1.0, 3e-4, (6, 4))
    horizons = np.array([0.0, 10.0, 30.0, 31.5, 400.0, 1826.0, 4000.0])
    got = cumulative_incidence(outcome, competing, EDGES, horizons)
    expected = np.array([[by_integration(o, c, t) for t in horizons] for o, c in zip(outcome, competing, strict=True)])
    np.testing.assert_allclose(got[0], expected[..., 0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got[1], expected[..., 1], rtol=1e-10, atol=1e-12)


def test_single_cause_is_exponential():
    hazard = np.full((1, 4), 1e-3)
    outcome, competing, free = cumulative_incidence(hazard, 0 * hazard, EDGES, np.array([365.25, 5000.0]))
    np.testing.assert_allclose(outcome[0], 1 - np.exp(-1e-3 * np.array([365.25, 5000.0])), rtol=1e-14)
    np.testing.assert_allclose(free[0], np.exp(-1e-3 * np.array([365.25, 5000.0])), rtol=1e-14)
    assert (competing == 0).all()


def test_horizons_by_row_are_the_rows_of_common_horizons():
    rng = np.random.default_rng(2)
    outcome, competing = rng.gamma(1.0, 1e-3, (3, 4)), rng.gamma(1.0, 1e-3, (3, 4))
    by_row = np.array([[365.0, 1826.0], [366.0, 1827.0], [365.0, 1827.0]])
    got = cumulative_incidence(outcome, competing, EDGES, by_row)
    for i in range(3):
        one = cumulative_incidence(outcome[i : i + 1], competing[i : i + 1], EDGES, by_row[i])
        for a, b in zip(got, one, strict=True):
            np.testing.assert_array_equal(a[i], b[0])


def test_zero_and_huge_hazards():
    zero = np.zeros((1, 4))
    for p, expected in zip(cumulative_incidence(zero, zero, EDGES, [1826.0]), (0.0, 0.0, 1.0), strict=True):
        assert p.item() == expected
    huge = np.full((1, 4), 1e306)
    for p, expected in zip(cumulative_incidence(huge, 3 * huge, EDGES, [1826.0]), (0.25, 0.75, 0.0), strict=True):
        assert p.item() == expected
    tiny = np.full((1, 4), 1e-300)
    assert cumulative_incidence(tiny, zero, EDGES, [1e3])[0].item() == pytest.approx(1e-297, rel=1e-12)


hazards = arrays(np.float64, (3, 4), elements=st.floats(0, 1e9) | st.floats(0, 1e-3))


@settings(max_examples=150, deadline=None)
@given(hazards, hazards, st.lists(st.floats(0, 1e5), min_size=1, max_size=6))
def test_properties(outcome_hazard, competing_hazard, horizons):
    horizons = np.sort(horizons)
    outcome, competing, free = cumulative_incidence(outcome_hazard, competing_hazard, EDGES, horizons)
    for p in (outcome, competing, free):
        assert ((p >= 0) & (p <= 1)).all()
    np.testing.assert_allclose(outcome + competing + free, 1.0, rtol=0, atol=4e-15)
    assert (np.diff(outcome, axis=1) >= -1e-15).all()
    assert (np.diff(competing, axis=1) >= -1e-15).all()
    assert (np.diff(free, axis=1) <= 1e-15).all()


@pytest.mark.parametrize(
    ("outcome", "edges", "horizons", "expected"),
    [
        (np.zeros((2, 3)), EDGES, [1.0], "B \\+ 1 edges"),
        (np.zeros((1, 4)), EDGES + 1, [1.0], "rising from 0"),
        (np.zeros((1, 4)), EDGES * [1, 1, 1, -1, 1], [1.0], "rising from 0"),
        (np.full((1, 4), -1.0), EDGES, [1.0], "finite and not negative"),
        (np.full((1, 4), np.nan), EDGES, [1.0], "finite and not negative"),
        (np.zeros((1, 4)), EDGES, [-1.0], "horizons in days"),
        (np.zeros((1, 4)), EDGES, [[1.0], [2.0]], "\\(H,\\) or \\(n, H\\)"),
    ],
)
def test_refusals(outcome, edges, horizons, expected):
    with pytest.raises(ForecastError, match=expected):
        cumulative_incidence(outcome, np.zeros_like(outcome), edges, np.asarray(horizons))
