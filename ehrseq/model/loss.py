"""The censored likelihood of piecewise-exponential hazards."""

from __future__ import annotations

import torch
from torch import Tensor


def exposure_and_event(days: Tensor, event: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Days at risk in each interval, and 1 in the interval of the event: both (..., I).

    days (...) from the query to the end of its time at risk, 0 where not at risk; event (...) bool; edges (I + 1,). An
    event on an edge belongs to the interval that ends there; beyond the last edge nothing counts.

    >>> e, k = exposure_and_event(torch.tensor([1.5, 9.0]), torch.tensor([True, True]), torch.tensor([0.0, 1.0, 3.0]))
    >>> e.tolist(), k.tolist()
    ([[1.0, 0.5], [1.0, 2.0]], [[0.0, 1.0], [0.0, 0.0]])
    """
    days = days.unsqueeze(-1)
    exposure = torch.minimum((days - edges[:-1]).clamp_(min=0), edges[1:] - edges[:-1])
    inside = (days > edges[:-1]) & (days <= edges[1:]) & event.unsqueeze(-1)
    return exposure, inside.to(days.dtype)


def poisson_negative_log_likelihood(log_hazard: Tensor, exposure: Tensor, event: Tensor) -> Tensor:
    """Negative log-likelihood of right-censored times under piecewise-exponential hazards.

    log_hazard (..., I) per day; exposure (..., I) days at risk in each interval; event (..., I) 1 in the interval
    where the event happened, else 0. Result (...): sum of hazard * exposure - event * log hazard. A censored
    subject still owes its cumulative hazard. Source: Friedman (1982), Annals of Statistics 10(1), 101-113.

    >>> rate, t = 0.5, 2.0
    >>> x = poisson_negative_log_likelihood(torch.tensor([rate]).log(), torch.tensor([t]), torch.tensor([1.0]))
    >>> round(float(x), 4)  # rate * t - log(rate)
    1.6931
    """
    return (torch.exp(log_hazard) * exposure - event * log_hazard).sum(-1)
