"""The censored likelihood of piecewise-exponential hazards."""

from __future__ import annotations

import torch
from torch import Tensor


def negative_log_likelihood(log_hazard: Tensor, days: Tensor, event: Tensor, edges: Tensor) -> Tensor:
    """Negative log-likelihood of right-censored times under piecewise-exponential hazards, (...).

    log_hazard (..., I) per day; days (...) from the query to the end of its time at risk, 0 where not at risk; event
    (...) bool; edges (I + 1,) in days. The sum of hazard * days at risk over the intervals, less the log hazard at the
    event: a censored subject still owes its cumulative hazard. An event on an edge belongs to the interval that ends
    there; beyond the last edge nothing counts. Source: Friedman (1982), Annals of Statistics 10(1), 101-113.

    >>> rate, edges = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.0, 1.0, 3.0])
    >>> days, event = torch.tensor([2.0, 2.0, 9.0]), torch.tensor([False, True, True])
    >>> found = negative_log_likelihood(rate.expand(3, 2), days, event, edges)
    >>> [round(x, 4) for x in found.tolist()]  # 0.5 + 0.25; the same less log(0.25); 0.5 + 2 * 0.25
    [0.75, 2.1363, 1.0]
    """
    exposure = torch.minimum((days.unsqueeze(-1) - edges[:-1]).clamp_(min=0), edges[1:] - edges[:-1])
    last = log_hazard.shape[-1] - 1
    interval = torch.bucketize(days.contiguous(), edges[1:])  # of the event: no mask over all intervals
    inside = event & (days > 0) & (interval <= last)
    at_event = log_hazard.gather(-1, interval.clamp_(max=last).unsqueeze(-1)).squeeze(-1)
    return (log_hazard.exp() * exposure).sum(-1) - at_event * inside
