"""The censored likelihood of piecewise-exponential hazards."""

from __future__ import annotations

import torch
from torch import Tensor


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
