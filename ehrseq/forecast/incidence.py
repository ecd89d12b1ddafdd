"""Piecewise-constant cause-specific hazards to cumulative incidence, in closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehrseq.errors import ForecastError

FloatArray = NDArray[np.float64]


def cumulative_incidence(
    outcome_hazard: FloatArray, competing_hazard: FloatArray, edges: FloatArray, horizons: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Probability of the outcome, of a competing event first, and of neither, by each horizon.

    With l_kb the hazard of cause k in interval b, L_b the sum over both causes, H_b the cumulative
    hazard at the start of b and D_b the part of b inside (0, t],

        F_k(t) = sum_b (l_kb / L_b) exp(-H_b) (1 - exp(-L_b D_b)),   0 where L_b is 0.

    The last interval's hazard holds beyond the last edge.

    Parameters
    ----------
    outcome_hazard, competing_hazard
        shape (n, B), per day, finite and not negative
    edges
        shape (B + 1,), days, rising from 0
    horizons
        shape (H,), or (n, H) for horizons that differ by row (calendar years), days, not negative

    Returns
    -------
    outcome, competing, event_free
        each of shape (n, H), in [0, 1], adding up to 1; the first two never fall with the horizon

    Raises
    ------
    ForecastError
        for shapes, hazards, edges or horizons that break the above

    >>> hazard = np.full((1, 2), 0.001)
    >>> outcome, competing, event_free = cumulative_incidence(hazard, 3 * hazard, [0, 30, 365], [100.0])
    >>> [round(float(p[0, 0]), 6) for p in (outcome, competing, event_free)]
    [0.08242, 0.24726, 0.67032]
    """
    outcome_hazard = np.asarray(outcome_hazard, dtype=np.float64)
    competing_hazard = np.asarray(competing_hazard, dtype=np.float64)
    edges = np.asarray(edges, dtype=np.float64)
    horizons = np.asarray(horizons, dtype=np.float64)
    _check(outcome_hazard, competing_hazard, edges, horizons)
    total = outcome_hazard + competing_hazard
    share = np.divide(outcome_hazard, total, out=np.zeros_like(total), where=total > 0)
    shape = (len(total), horizons.shape[-1])
    outcome, competing, event_free = np.zeros(shape), np.zeros(shape), np.ones(shape)
    widths = np.append(np.diff(edges)[:-1], np.inf)
    # One interval at a time: the (n, H, B) product would be ten times the result.
    with np.errstate(over="ignore"):
        for b, width in enumerate(widths):
            overlap = np.minimum(np.maximum(horizons - edges[b], 0.0), width)  # np.clip takes thrice as long for a few
            cumulative = total[:, b, None] * overlap
            ended = event_free * -np.expm1(-cumulative)
            own = share[:, b, None] * ended
            outcome += own
            # ended minus the outcome's part, so that the two add up whatever the rounding of the share
            competing += ended - own
            event_free *= np.exp(-cumulative)
    return np.minimum(outcome, 1.0), np.minimum(competing, 1.0), event_free


def _check(outcome: FloatArray, competing: FloatArray, edges: FloatArray, horizons: FloatArray) -> None:
    if outcome.ndim != 2 or outcome.shape != competing.shape or edges.shape != (outcome.shape[1] + 1,):
        raise ForecastError(
            "outcome and competing hazards of one shape (n, B) with B + 1 edges",
            f"shapes {outcome.shape}, {competing.shape} and {edges.shape}",
            "pass the hazards of one model with its own edges",
        )
    if len(edges) < 2 or edges[0] != 0 or not (np.diff(edges) > 0).all() or not np.isfinite(edges).all():
        raise ForecastError("edges in days rising from 0", "other edges", "pass the model's own edges")
    hazards = outcome + competing
    if not np.isfinite(hazards).all() or (outcome < 0).any() or (competing < 0).any():
        raise ForecastError(
            "hazards that are finite and not negative",
            "others among them",
            "check the model's output for NaN",
        )
    if horizons.ndim not in (1, 2) or (horizons.ndim == 2 and len(horizons) != len(outcome)):
        raise ForecastError(
            "horizons of shape (H,) or (n, H)",
            f"shape {horizons.shape}",
            "pass one row of horizons, or one a forecast",
        )
    if not np.isfinite(horizons).all() or (horizons < 0).any():
        raise ForecastError(
            "horizons in days, finite and not negative", "others among them", "check the horizons of the task"
        )
