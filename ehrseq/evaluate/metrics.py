"""Discrimination and accuracy at a horizon under censoring and competing risks.

Cases have the outcome by the horizon; controls are everyone else whose state at the horizon is known,
competing events included (Blanche, Dartigues and Jacqmin-Gadda 2013, definition ii). Inverse probability
of censoring weights make up for the unknown states. Weights have shape (n,) or (n, R), one column a
bootstrap replicate; measures are then a number or (R,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# Weights above 20 would let one subject decide; conditional censoring models are clipped alike.
SMALLEST_G = 0.05


@dataclass(frozen=True)
class State:
    """What is known of each row at its horizon; the four exclude each other. All of shape (n,), boolean.

    Someone censored exactly at the horizon was observed through it (events come before censoring), and is
    event-free.
    """

    case: BoolArray
    competing: BoolArray
    event_free: BoolArray
    censored: BoolArray


def state_at(days: ArrayLike, cause: ArrayLike, horizon: ArrayLike) -> State:
    """Each row's state at `horizon` (days: one number, or one a row for exact calendar years).

    >>> state_at([1, 2, 3, 3], [1, 0, 2, 0], 3).event_free
    array([False, False, False,  True])
    """
    days, cause = np.asarray(days, dtype=np.float64), np.asarray(cause)
    horizon = np.asarray(horizon, dtype=np.float64)
    happened = (days <= horizon) & (cause > 0)
    event_free = ~happened & (days >= horizon)
    return State(
        case=happened & (cause == 1),
        competing=happened & (cause != 1),
        event_free=event_free,
        censored=~happened & ~event_free,
    )


def censoring_weights(state: State, g_event: ArrayLike, g_horizon: ArrayLike) -> FloatArray:
    """Inverse probability of censoring weights: 1/G(T-) after an event, 1/G(t) if event-free at t, else 0.

    `g_event` and `g_horizon` are the probabilities of being still observed at the row's own time and at its
    horizon, (n,) or (n, R) both, or a number for `g_horizon`. They are clipped at .05 from below.

    >>> censoring_weights(state_at([1, 2, 3], [1, 0, 0], 3), [1.0, 1.0, 0.5], 0.5)
    array([1., 0., 2.])
    """
    g_event = np.maximum(np.asarray(g_event, dtype=np.float64), SMALLEST_G)
    g_horizon = np.maximum(np.asarray(g_horizon, dtype=np.float64), SMALLEST_G)
    shape = np.broadcast_shapes(g_event.shape, g_horizon.shape)

    def column(rows: BoolArray) -> BoolArray:
        return rows if len(shape) < 2 else rows[:, None]

    weights = np.where(column(state.case | state.competing), 1.0 / g_event, 1.0 / g_horizon)
    return np.where(column(state.censored), 0.0, weights)


def auc(score: ArrayLike, case: ArrayLike, weights: ArrayLike, strata: ArrayLike | None = None) -> FloatArray:
    """Weighted chance that a case scores above a control; a tie counts half. NaN without a pair.

    With `strata` (n integers, such as the fold that predicted a row) only pairs within one stratum are compared.

    >>> float(auc([0.1, 0.4, 0.4, 0.8], [False, True, False, True], np.ones(4)))
    0.875
    """
    score, case, weights = (
        np.asarray(score),
        np.asarray(case, dtype=bool),
        np.asarray(weights, dtype=np.float64),
    )
    if not len(score):
        return np.full(weights.shape[1:], np.nan)
    stratum = np.zeros(len(score), dtype=np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    level = np.unique(score, return_inverse=True)[1]
    span = level.max() + 1
    key = stratum * span + level
    order = np.flatnonzero(~case)[np.argsort(key[~case], kind="stable")]
    controls = weights.reshape(len(score), -1)[order]
    summed = np.vstack([np.zeros((1, controls.shape[1])), np.cumsum(controls, axis=0)])

    def weight_before(keys: NDArray[np.int64]) -> FloatArray:
        """The weight of the controls whose key is smaller, for each case."""
        return np.asarray(summed[np.searchsorted(key[order], keys)])

    # controls of other strata are no opponents
    first = stratum[case] * span
    below, tied = weight_before(key[case]), weight_before(key[case] + 1)
    own = weights.reshape(len(score), -1)[case]
    won = (own * ((below + tied) / 2 - weight_before(first))).sum(0)
    pairs = (own * (weight_before(first + span) - weight_before(first))).sum(0)
    result = np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0)
    return np.asarray(result.reshape(weights.shape[1:]))


def brier(probability: ArrayLike, case: ArrayLike, weights: ArrayLike) -> FloatArray:
    """Weighted mean squared distance of forecast and case indicator, divided by the sum of weights (Hajek).

    >>> float(brier([0.5, 0.75], [False, True], [1.0, 3.0]))
    0.109375
    """
    return weighted_mean((np.asarray(case, dtype=np.float64) - np.asarray(probability)) ** 2, weights)


def null_brier(case: ArrayLike, weights: ArrayLike) -> FloatArray:
    """Brier score of the best constant forecast, the weighted case rate itself: rate * (1 - rate).

    >>> float(null_brier([False, True], [1.0, 3.0]))
    0.1875
    """
    rate = weighted_mean(np.asarray(case, dtype=np.float64), weights)
    return np.asarray(rate * (1.0 - rate))


def weighted_mean(values: ArrayLike, weights: ArrayLike) -> FloatArray:
    """Mean of (n,) values by weights (n,) or (n, R); NaN where the weights sum to 0.

    >>> float(weighted_mean([1.0, 2.0], [1.0, 3.0]))
    1.75
    """
    values, weights = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    total = np.asarray(weights.sum(0))
    summed = np.asarray(values @ weights)
    return np.asarray(np.divide(summed, total, out=np.full_like(total, np.nan), where=total > 0))
