"""Head A: cause-specific piecewise-exponential hazards."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

UNIFORM = 0.25  # of the edges' quantiles: what is not of the events
FINEST = 1e-4  # of the longest time: no interval is for what happens sooner
SHAPE_TERMS = 3  # a score, and its linear and quadratic change with log time


@dataclass(frozen=True)
class HazardName:
    """One hazard: of an outcome, or of its competitors coming first."""

    outcome: str
    competing: bool = False


def interval_edges(max_days: float, n_intervals: int) -> NDArray[np.float64]:
    """(n_intervals + 1,) edges in days from 0 to `max_days`, finer early.

    >>> interval_edges(100.0, 4).round(1).tolist()
    [0.0, 12.5, 35.4, 65.0, 100.0]
    """
    return max_days * (np.arange(n_intervals + 1) / n_intervals) ** 1.5


def event_edges(days: NDArray[np.float64], max_days: float, n_intervals: int) -> NDArray[np.float64]:
    """(n_intervals + 1,) edges from 0 to `max_days` at quantiles of the times (n,) from prediction to event.

    So the scale is that of what happens, hours or decades. The times are mixed with those of `interval_edges`, a
    quarter: intervals that stay apart where times tie, and reach where nothing happened.

    >>> event_edges(np.array([1.0, 2.0, 3.0, 4.0]), 100.0, 4).round(1).tolist()
    [0.0, 1.3, 2.6, 3.8, 100.0]
    """
    inside = np.maximum(days[(days > 0) & (days < max_days)], FINEST * max_days)
    if not len(inside):
        return interval_edges(max_days, n_intervals)
    # a tie counts as if spread back to the time before it
    times, count = np.unique(inside, return_counts=True)
    at = np.union1d(times, interval_edges(max_days, 100))
    reached = (1 - UNIFORM) * np.interp(at, np.append(0, times), np.append(0, count.cumsum() / len(inside)))
    reached += UNIFORM * (at / max_days) ** (2 / 3)
    return np.asarray(np.interp(np.arange(n_intervals + 1) / n_intervals, reached, at))


class HazardHead(nn.Module):
    """Log hazards per day, (..., H, I), from features (..., width) and the query's own times (..., n_times).

    log hazard = base rate of the interval + score + linear and quadratic terms in log time. The base rates are
    set from the training data, so that an untrained head already forecasts the average. Age and time since the
    first record also enter directly: what they do is near linear, and through the network it is learned slowly.
    """

    base: Tensor
    edges: Tensor
    terms: Tensor

    def __init__(self, width: int, n_times: int, n_hazards: int, edges: NDArray[np.float64]) -> None:
        super().__init__()
        middle = np.log((edges[1:] + edges[:-1]) / 2)
        span = max(float(middle[-1] - middle[0]), 1e-9)
        u = 2 * (middle - middle[0]) / span - 1
        self.register_buffer("terms", torch.tensor(np.stack([np.ones_like(u), u, u**2]), dtype=torch.float32))
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float32), persistent=False)
        self.register_buffer("base", torch.zeros(n_hazards, len(u)))
        self.offset = nn.Parameter(torch.zeros(n_hazards, len(u)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element")  # pretraining has no outcomes
            self.linear = nn.Linear(width, n_hazards * SHAPE_TERMS)
            self.direct = nn.Linear(n_times, n_hazards * SHAPE_TERMS, bias=False)
        for parameter in (self.linear.weight, self.linear.bias, self.direct.weight):
            with torch.no_grad():
                parameter.zero_()

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """Log hazards (..., H, I) from features (..., width) and times (..., n_times)."""
        terms = self.linear(x) + self.direct(times)
        shape = terms.view(*terms.shape[:-1], -1, SHAPE_TERMS)
        log_hazard: Tensor = self.base + self.offset + shape @ self.terms
        return log_hazard


def exposure_and_interval(
    days: NDArray[np.float64], edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Time at risk in each interval (n, I), and the interval of the end (n,), I when beyond the last edge.

    >>> e, k = exposure_and_interval(np.array([1.5, 9.0]), np.array([0.0, 1.0, 3.0]))
    >>> e.tolist(), k.tolist()
    ([[1.0, 0.5], [1.0, 2.0]], [1, 2])
    """
    exposure = np.clip(days[:, None] - edges[None, :-1], 0, np.diff(edges))
    return exposure, np.searchsorted(edges[1:], days, side="left").astype(np.int64)


def base_log_hazard(
    exposure: NDArray[np.float64], interval: NDArray[np.int64], event: NDArray[np.bool_], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(I,) log of the weighted rate per day in each interval, shrunk to the overall rate where events are few."""
    n = exposure.shape[1]
    at_risk = weight @ exposure
    inside = event & (interval < n)
    events = np.bincount(interval[inside], weights=weight[inside], minlength=n)
    mean_weight = weight.mean() if len(weight) and weight.mean() > 0 else 1.0
    overall = (events.sum() + 0.5 * mean_weight) / max(at_risk.sum(), 1e-9)
    prior = 10 * mean_weight
    out: NDArray[np.float64] = np.log((events + prior) / (at_risk + prior / overall))
    return out


def hazard_names(outcomes: Any) -> list[HazardName]:
    """The hazards of a task's outcomes: each outcome, then its competitors coming first where it has any."""
    names = []
    for outcome in outcomes:
        names.append(HazardName(outcome.name))
        if outcome.competing:
            names.append(HazardName(outcome.name, competing=True))
    return names
