"""Decision curves with competing risks (Vickers, Cronin, Elkin and Gonen 2008)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def net_benefit(
    probability: ArrayLike, case: ArrayLike, weights: ArrayLike, drawn: ArrayLike, thresholds: Sequence[float]
) -> FloatArray:
    """Net benefit of acting on forecasts at or above each threshold: (K,) or (K, R), per person.

    With f the share of people acted on and F their incidence of the outcome (weighted for censoring; a competing
    event is no outcome), it is f F - f (1 - F) a / (1 - a) at the threshold a. Acting on nobody is worth 0.
    `weights` are the censoring weights times `drawn`, how often each row counts: (n,) or (n, R) both.

    >>> ones = np.ones(4)
    >>> net_benefit([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1], ones, ones, [0.2, 0.5])
    array([0.4375, 0.5   ])
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(case, dtype=np.float64)
    w, counts = np.asarray(weights, dtype=np.float64), np.asarray(drawn, dtype=np.float64)
    level = np.asarray(thresholds, dtype=np.float64)
    acted = (p >= level[:, None]).astype(np.float64)
    share = (acted @ counts) / counts.sum(0)
    known, cases = acted @ w, (acted * y) @ w
    incidence = np.divide(cases, known, out=np.full_like(cases, np.nan), where=known > 0)
    odds = (level / (1 - level)).reshape(-1, *[1] * (w.ndim - 1))
    return np.asarray(np.where(share > 0, share * (incidence - (1 - incidence) * odds), 0.0))


def thresholds_for(largest: float) -> tuple[float, ...]:
    """The thresholds worth showing where forecasts reach `largest`: at least the first five.

    >>> thresholds_for(0.11)
    (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1)
    """
    return tuple(t for i, t in enumerate(THRESHOLDS) if i < 5 or t <= largest)
