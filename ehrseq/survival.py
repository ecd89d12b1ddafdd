"""Non-parametric curves under competing risks and censoring, for one sample or many bootstrap replicates.

Conventions: `days` has shape (n,); `cause` is 0 censored, 1 outcome, 2 competing event first;
`weights` has shape (n,) or (n, R), one column a replicate, and results have a trailing R axis exactly when
`weights` has. At equal times events come before censoring: someone censored at an instant was at risk in it.
An outcome and a competing event of different subjects at one time are simultaneous, which gives the same
curve as outcome first; within one subject the label has already decided (outcome first).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def aalen_johansen(
    days: ArrayLike, cause: ArrayLike, weights: ArrayLike | None = None, *, at: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Cumulative incidence of the outcome and of competing events, by Aalen and Johansen (1978).

    `at` has shape (H,), days; the results (H,) or (H, R). Beyond the last observation the curves stay flat:
    whether a time is inside the follow-up is the caller's question.

    >>> outcome, competing = aalen_johansen([1, 2, 2, 3], [1, 2, 0, 1], at=[1, 2, 3])
    >>> outcome.round(3), competing.round(3)
    (array([0.25, 0.25, 0.75]), array([0.  , 0.25, 0.25]))
    """
    days, cause, matrix = _prepared(days, cause, weights)
    event_days, group = np.unique(days[cause > 0], return_inverse=True)
    first = _summed(matrix[cause > 0] * (cause[cause > 0] == 1)[:, None], group, len(event_days))
    either = _summed(matrix[cause > 0], group, len(event_days))
    at_risk = _at_risk(days, matrix, event_days)
    step_first = _ratio(first, at_risk)
    step_either = _ratio(either, at_risk)
    free = np.cumprod(1.0 - step_either, axis=0)
    free_before = np.vstack([np.ones((1, matrix.shape[1])), free[:-1]]) if len(free) else free
    outcome = _steps(event_days, np.cumsum(free_before * step_first, axis=0), at, start=0.0)
    competing = _steps(event_days, np.cumsum(free_before * (step_either - step_first), axis=0), at, start=0.0)
    return _shaped(outcome, weights), _shaped(competing, weights)


def kaplan_meier_censoring(
    days: ArrayLike,
    cause: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    at: ArrayLike,
    limit: Literal["left", "right"] = "left",
) -> FloatArray:
    """Probability G of not being censored: P(C >= t) for the left limit G(t-), P(C > t) for the right one.

    Marginal Kaplan-Meier with censoring as the event. At equal times events come first, so that those with
    an event at t are no longer at risk of censoring at t. `at` has shape (H,); the result (H,) or (H, R).

    >>> kaplan_meier_censoring([1, 2, 2, 3], [1, 2, 0, 0], at=[2, 2.5])
    array([1. , 0.5])
    """
    days, cause, matrix = _prepared(days, cause, weights)
    censored_days, group = np.unique(days[cause == 0], return_inverse=True)
    censored = _summed(matrix[cause == 0], group, len(censored_days))
    at_risk = _at_risk(days, matrix, censored_days, side="right") + censored
    curve = np.asarray(np.cumprod(1.0 - _ratio(censored, at_risk), axis=0), dtype=np.float64)
    return _shaped(_steps(censored_days, curve, at, start=1.0, limit=limit), weights)


def _prepared(
    days: ArrayLike, cause: ArrayLike, weights: ArrayLike | None
) -> tuple[FloatArray, NDArray[Any], FloatArray]:
    """Sorted by time, with the weights as a matrix (n, R)."""
    time, which = np.asarray(days, dtype=np.float64), np.asarray(cause)
    matrix = np.ones(len(time)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(time, kind="stable")
    return time[order], which[order], matrix.reshape(len(time), -1)[order]


def _summed(values: FloatArray, group: NDArray[np.intp], groups: int) -> FloatArray:
    """Column sums over consecutive rows of one group: (rows, R) to (groups, R)."""
    if not groups:
        return np.zeros((0, values.shape[1]))
    return np.add.reduceat(values, np.searchsorted(group, np.arange(groups)), axis=0)


def _at_risk(
    days: FloatArray, matrix: FloatArray, times: FloatArray, side: Literal["left", "right"] = "left"
) -> FloatArray:
    """Weight still under observation at each time: of those with days >= t, or days > t for `right`."""
    remaining = np.vstack([np.cumsum(matrix[::-1], axis=0)[::-1], np.zeros((1, matrix.shape[1]))])
    return remaining[np.searchsorted(days, times, side=side)]


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    # A replicate may have drawn nobody who was at risk late: its curve stays flat there.
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _steps(
    times: FloatArray,
    values: FloatArray,
    at: ArrayLike,
    *,
    start: float,
    limit: Literal["left", "right"] = "right",
) -> FloatArray:
    """A step function's values (or left limits) at the times asked for: (H, R)."""
    curve = np.vstack([np.full((1, values.shape[1]), start), values])
    return curve[np.searchsorted(times, np.asarray(at, dtype=np.float64), side=limit)]


def _shaped(values: FloatArray, weights: ArrayLike | None) -> FloatArray:
    return values if weights is not None and np.ndim(weights) == 2 else values[:, 0]
