"""Concordance with competing risks (Wolbers, Blanche, Koller, Witteman and Gerds 2014)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehrseq.evaluate.metrics import SMALLEST_G

FloatArray = NDArray[np.float64]

# cases x rows of one block of pairs
BLOCK = 2_000_000

Later = Callable[[NDArray[np.intp]], FloatArray]


def concordance(
    score: ArrayLike,
    days: ArrayLike,
    cause: ArrayLike,
    until: ArrayLike,
    g_before: ArrayLike,
    g_after: ArrayLike | Later,
    drawn: ArrayLike,
) -> FloatArray:
    """Chance that of two people the one with the outcome first, by `until`, scores higher; a tie counts half.

    A pair counts where one has the outcome at T <= `until` and the other is event-free after T, or had a competing
    event at any time (and so never has the outcome). It is weighted by the inverse of the chance that both were
    observed: of the case just before T, and of the other at T, or just before its own competing event. NaN without a
    pair.

    Parameters
    ----------
    score
        (n,), or (M, n) for several models that share their pairs
    days, cause
        (n,): the time and what ended it (0 censored, 1 outcome, 2 competing event)
    until
        the time, (n,) or a number, by which the outcome of a case is counted
    g_before
        (n,): chance that a row is observed until just before its own time
    g_after
        the chance G(T) of being observed at a case's time: (n,), the same for everybody and read at the case's row,
        or a function from m rows of cases to (m, n), that of every row at those cases' times
    drawn
        (n,) or (n, R): how often each row counts

    >>> g = np.ones(4)
    >>> float(concordance([0.9, 0.1, 0.4, 0.4], [1, 2, 3, 4], [1, 2, 1, 0], 10, g, g, np.ones(4)))
    0.9
    """
    given = np.asarray(score, dtype=np.float64)
    scores = given.reshape(-1, given.shape[-1])
    t, which = np.asarray(days, dtype=np.float64), np.asarray(cause)
    counts = np.asarray(drawn, dtype=np.float64)
    flat = counts.reshape(len(t), -1)
    own = 1 / np.maximum(np.asarray(g_before, dtype=np.float64), SMALLEST_G)
    cases = np.flatnonzero((which == 1) & (t <= np.asarray(until)))
    won, pairs = np.zeros((len(scores), flat.shape[1])), np.zeros(flat.shape[1])
    step = max(1, BLOCK // max(len(t), 1))
    for start in range(0, len(cases), step):
        i = cases[start : start + step]
        later = t > t[i, None]
        g = g_after(i) if callable(g_after) else np.asarray(g_after, dtype=np.float64)[i, None]
        weight = np.where(later, 1 / np.maximum(g, SMALLEST_G), np.where(which == 2, own, 0.0)) * own[i, None]
        pairs += (flat[i] * (weight @ flat)).sum(0)
        for model, s in enumerate(scores):
            higher = (s[i, None] > s) + 0.5 * (s[i, None] == s)
            won[model] += (flat[i] * ((weight * higher) @ flat)).sum(0)
    result = np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0)
    return np.asarray(result.reshape(given.shape[:-1] + counts.shape[1:]))
