"""Pseudo-values: what each row adds to the observed incidence, so that censored rows can be regressed on.

The pseudo-value of row i is n F - (n - 1) F(-i), with F the incidence observed in all rows and F(-i) without row i
(Andersen, Klein and Rosthoj 2003). Their mean over rows of one forecast estimates the incidence of that forecast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def aalen_johansen_pseudo_values(days: ArrayLike, cause: ArrayLike, at: float) -> FloatArray:
    """The jackknife of the Aalen-Johansen incidence of the outcome at one time, exact, (n,).

    `cause` is 0 censored, 1 outcome, 2 competing event. Leaving one out changes the numbers at risk before its own
    time and nothing after it, so that one pass gives all n curves.

    >>> aalen_johansen_pseudo_values([1, 2, 3], [1, 0, 1], 2).round(3)
    array([1., 0., 0.])
    """
    time, which = np.asarray(days, dtype=np.float64), np.asarray(cause)
    n = len(time)
    event_days = np.unique(time[(which > 0) & (time <= at)])
    if n < 2 or not len(event_days):
        return np.where((which == 1) & (time <= at), 1.0, 0.0)
    ordered = np.sort(time)
    at_risk = (n - np.searchsorted(ordered, event_days)).astype(np.float64)
    counted = time <= at
    first = np.bincount(np.searchsorted(event_days, time[counted & (which == 1)]), minlength=len(event_days))
    either = np.bincount(np.searchsorted(event_days, time[counted & (which > 0)]), minlength=len(event_days))
    free, incidence = _curves(first, either, at_risk)
    fewer_free, fewer_incidence = _curves(first, either, np.maximum(at_risk - 1, 1))

    before = np.searchsorted(event_days, time)  # event times before the row's own
    survival, total = fewer_free[before], fewer_incidence[before]
    after = np.minimum(before, len(event_days) - 1)
    own = (event_days[after] == time) & (before < len(event_days))
    left = at_risk[after] - 1
    events, outcomes = either[after] - (which > 0), first[after] - (which == 1)
    total = total + np.where(own & (left > 0), survival * outcomes / np.maximum(left, 1), 0.0)
    survival = np.where(own & (left > 0), survival * (1 - events / np.maximum(left, 1)), survival)
    reached = before + own
    remaining = np.divide(
        incidence[-1] - incidence[reached], free[reached], out=np.zeros(n), where=free[reached] > 1e-12
    )
    return np.asarray(n * incidence[-1] - (n - 1) * (total + survival * remaining), dtype=np.float64)


def weighted_pseudo_values(case: ArrayLike, weights: ArrayLike) -> FloatArray:
    """The jackknife of the weighted case rate sum(w y) / sum(w), (n,): for weights from a censoring model.

    >>> weighted_pseudo_values([1, 0, 0], [1.0, 1.0, 2.0])
    array([ 0.75      ,  0.08333333, -0.25      ])
    """
    event, weight = np.asarray(case, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    n, total, cases = len(event), weight.sum(), (weight * event).sum()
    others = total - weight
    without = np.divide(cases - weight * event, others, out=np.zeros(n), where=others > 0)
    return np.asarray(n * cases / total - (n - 1) * without, dtype=np.float64)


def _curves(first: NDArray[np.intp], either: NDArray[np.intp], at_risk: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Event-free probability and incidence after 0, 1, ... event times: (J + 1,) each."""
    free = np.append(1.0, np.cumprod(1 - np.minimum(either / at_risk, 1.0)))
    incidence = np.append(0.0, np.cumsum(free[:-1] * first / at_risk))
    return free, incidence
