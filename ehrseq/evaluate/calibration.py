"""How far forecasts are from what is observed, over the whole range of forecasts.

A smooth curve of the observed incidence given the forecast is a least-squares regression of pseudo-values on a
restricted cubic spline of the forecast with 4 knots, so that a perfect forecast lies within what it can fit (compare
Gerds, Andersen and Kattan 2014; Austin, Putter, Giardiello and van Klaveren 2022). ICI, E50 and E90 are the mean, the
median and the 90th percentile of its distance from the diagonal (Austin and Steyerberg 2019). Weights have shape (n,)
or (n, R), one column a bootstrap replicate; measures are then a number or (R,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

KNOTS = (0.05, 0.35, 0.65, 0.95)


def slope(probability: ArrayLike, pseudo: ArrayLike, weights: ArrayLike) -> FloatArray:
    """Least-squares slope of pseudo-values on the forecast; 1 is ideal, below 1 the forecasts spread too far.

    NaN where all forecasts are equal.

    >>> round(float(slope([0.1, 0.2, 0.3], [0.0, 0.2, 0.4], np.ones(3))), 9)
    2.0
    """
    p, y, w = (np.asarray(a, dtype=np.float64) for a in (probability, pseudo, weights))
    total = w.sum(0)
    centre, level = p.mean(), y.mean()
    p, y = p - centre, y - level  # so that the sums below lose no digits
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_p, mean_y = (p @ w) / total, (y @ w) / total
        variance = (p * p) @ w / total - mean_p**2
        covariance = (p * y) @ w / total - mean_p * mean_y
        flat = variance <= 1e-14 * max(centre**2, 1e-300)
        return np.asarray(np.where(flat, np.nan, covariance / np.where(flat, 1.0, variance)))


@dataclass(frozen=True)
class Smoother:
    """The spline basis of one set of forecasts, ready for many weightings of it."""

    basis: FloatArray
    knots: FloatArray
    to_orthogonal: FloatArray

    @classmethod
    def of(cls, probability: ArrayLike) -> Smoother:
        """The basis of forecasts (n,): constant, line and spline, as far as the forecasts differ."""
        p = np.asarray(probability, dtype=np.float64)
        knots = np.unique(np.quantile(p, KNOTS))
        raw = _raw_basis(p, knots)
        # orthogonal columns keep the normal equations well conditioned
        orthogonal, triangle = np.linalg.qr(raw)
        kept = np.abs(np.diag(triangle)) > 1e-9 * np.sqrt(len(p))
        kept = np.logical_and.accumulate(kept)
        size = int(kept.sum())
        inverse = np.linalg.inv(triangle[:size, :size])
        return cls(orthogonal[:, :size], knots, inverse)

    def coefficients(self, pseudo: ArrayLike, weights: ArrayLike) -> FloatArray:
        """Weighted least squares: (columns,) or (columns, R); NaN where a replicate leaves them undefined."""
        w = np.asarray(weights, dtype=np.float64)
        flat = w.reshape(len(w), -1)
        b, y = self.basis, np.asarray(pseudo, dtype=np.float64)
        size = b.shape[1]
        products = (b[:, :, None] * b[:, None, :]).reshape(len(b), -1)
        normal = (products.T @ flat).T.reshape(-1, size, size)
        right = ((b * y[:, None]).T @ flat).T
        found = np.full((flat.shape[1], size), np.nan)
        sound = np.linalg.cond(normal) < 1e12
        found[sound] = np.linalg.solve(normal[sound], right[sound][..., None])[..., 0]
        return np.asarray(found[0] if w.ndim == 1 else found.T)

    def fitted(self, coefficients: FloatArray) -> FloatArray:
        """The curve at each row's own forecast, within [0, 1]: (n,) or (n, R)."""
        return np.asarray(np.clip(self.basis @ coefficients, 0.0, 1.0))

    def at(self, probability: ArrayLike, coefficients: FloatArray) -> FloatArray:
        """The curve at other forecasts, (m,) or (m, R)."""
        raw = _raw_basis(np.asarray(probability, dtype=np.float64), self.knots)
        size = self.basis.shape[1]
        return np.asarray(np.clip(raw[:, :size] @ self.to_orthogonal @ coefficients, 0.0, 1.0))


def calibration_error(
    probability: ArrayLike, smooth: ArrayLike, weights: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """ICI, E50 and E90: weighted mean, median and 90th percentile of |smooth - forecast|.

    `smooth` has the shape of `weights`. A percentile is the smallest distance with at least that part of the weight
    at or below it.

    >>> ici, e50, e90 = calibration_error([0.1, 0.2, 0.3], np.array([0.1, 0.25, 0.5]), np.ones(3))
    >>> [round(float(v), 4) for v in (ici, e50, e90)]
    [0.0833, 0.05, 0.2]
    """
    w = np.asarray(weights, dtype=np.float64)
    distance = np.abs(np.asarray(smooth, dtype=np.float64).reshape(len(w), -1) - np.asarray(probability)[:, None])
    flat = w.reshape(len(w), -1)
    total = flat.sum(0)
    mean = (distance * flat).sum(0) / total
    order = np.argsort(distance, axis=0)
    reached = np.cumsum(np.take_along_axis(flat, order, axis=0), axis=0) / total
    results = [mean]
    for part in (0.5, 0.9):
        place = (reached >= part - 1e-12).argmax(0)
        row = np.take_along_axis(order, place[None], axis=0)
        results.append(np.take_along_axis(distance, row, axis=0)[0])
    ici, e50, e90 = (r.reshape(w.shape[1:]) for r in results)
    return ici, e50, e90


def _raw_basis(x: FloatArray, knots: FloatArray) -> FloatArray:
    """Constant, line, and restricted cubic terms (Harrell 2015, section 2.4.5): linear beyond the outer knots."""
    columns = [np.ones_like(x), x]
    if len(knots) > 2:
        *inner, before, last = knots

        def cubic(knot: float) -> FloatArray:
            return np.asarray(np.maximum(x - knot, 0.0) ** 3)

        for knot in inner:
            term = cubic(knot) - cubic(before) * (last - knot) / (last - before)
            term += cubic(last) * (before - knot) / (last - before)
            columns.append(term / (last - knots[0]) ** 2)
    return np.stack(columns, axis=1)
