from __future__ import annotations

import numpy as np
import pytest
from formulaic.transforms.cubic_spline import natural_cubic_spline
from sklearn.linear_model import LinearRegression

from ehrseq.evaluate.calibration import KNOTS, Smoother, calibration_error, slope


def sample(n=800, seed=0, truth=lambda p: p):
    random = np.random.default_rng(seed)
    p = random.beta(1, 6, n)
    return p, (random.random(n) < truth(p)).astype(float), random.integers(0, 4, (n, 3)).astype(float)


def test_slope_is_that_of_scikit_learn():
    p, y, counts = sample()
    for column in range(3):
        fitted = LinearRegression().fit(p[:, None], y, sample_weight=counts[:, column])
        assert slope(p, y, counts[:, column]) == pytest.approx(fitted.coef_[0], abs=1e-9)
    np.testing.assert_allclose(slope(p, y, counts), [float(slope(p, y, c)) for c in counts.T], rtol=1e-10)
    assert np.isnan(slope(np.full(9, 0.3), np.arange(9.0), np.ones(9)))


def test_the_smooth_curve_is_a_natural_cubic_spline():
    p, y, counts = sample()
    knots = np.quantile(p, KNOTS)
    basis = np.column_stack(list(natural_cubic_spline(p, knots=knots[1:-1], lower_bound=knots[0],
                            upper_bound=knots[-1], extrapolation="extend").values()))  # fmt: skip
    smoother = Smoother.of(p)
    for column in range(3):
        root = np.sqrt(counts[:, column])
        expected = basis @ np.linalg.lstsq(basis * root[:, None], y * root, rcond=None)[0]
        inside = (p >= knots[0]) & (p <= knots[-1])
        got = smoother.fitted(smoother.coefficients(y, counts[:, column]))
        np.testing.assert_allclose(got[inside], np.clip(expected, 0, 1)[inside], atol=1e-6)
        np.testing.assert_allclose(smoother.at(p, smoother.coefficients(y, counts[:, column])), got, atol=1e-9)
    many = smoother.coefficients(y, counts)
    np.testing.assert_allclose(many[:, 1], smoother.coefficients(y, counts[:, 1]), atol=1e-9)


def test_errors_are_quantiles_of_the_repeated_sample():
    p, y, counts = sample()
    smoother = Smoother.of(p)
    smooth = smoother.fitted(smoother.coefficients(y, counts))
    ici, e50, e90 = calibration_error(p, smooth, counts)
    for column in range(3):
        repeated = np.repeat(np.abs(smooth[:, column] - p), counts[:, column].astype(int))
        assert ici[column] == pytest.approx(repeated.mean(), abs=1e-12)
        assert e50[column] == np.quantile(repeated, 0.5, method="inverted_cdf")
        assert e90[column] == np.quantile(repeated, 0.9, method="inverted_cdf")


def test_a_known_distortion_is_measured():
    p, y, _ = sample(n=60_000, seed=1, truth=lambda p: 0.6 * p)
    smoother = Smoother.of(p)
    ici, e50, e90 = calibration_error(p, smoother.fitted(smoother.coefficients(y, np.ones(len(p)))), np.ones(len(p)))
    assert ici == pytest.approx(0.4 * p.mean(), abs=0.004)
    assert e50 == pytest.approx(0.4 * np.median(p), abs=0.006)
    assert e90 == pytest.approx(0.4 * np.quantile(p, 0.9), abs=0.012)
    assert slope(p, y, np.ones(len(p))) == pytest.approx(0.6, abs=0.03)


def test_forecasts_of_few_values():
    y = np.tile([0.0, 1.0, 0.0, 0.0], 30)
    for p, columns in ((np.full(120, 0.2), 1), (np.tile([0.1, 0.3], 60), 2)):
        smoother = Smoother.of(p)
        assert smoother.basis.shape[1] == columns
        fitted = smoother.fitted(smoother.coefficients(y, np.ones(120)))
        for value in np.unique(p):
            np.testing.assert_allclose(fitted[p == value], y[p == value].mean(), atol=1e-9)
    two = Smoother.of(np.tile([0.1, 0.3], 60))
    assert np.isnan(two.coefficients(y, np.tile([1.0, 0.0], 60))).all()  # a replicate with one of them
