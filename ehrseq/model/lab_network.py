"""Head C: quantiles of a lab's value at a time ahead. No I/O, no training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

WIDEST = 2.0  # logarithms by which a gap between quantiles may differ from the population's


class LabNetwork(nn.Module):
    """Quantiles of each lab, (n, Q), as shifts from the subject's own level.

    They start as those of the training subjects: `middle` (labs,) the median shift of each lab and `gap`
    (labs, Q - 1) the logarithms of the distances between its neighbouring quantiles. What is read moves the median,
    and stretches or shrinks each distance, so that quantiles never cross. `centre` and `scale` standardise the
    features; the first `own` of them are the lab's own, and also move the median linearly.
    """

    middle: Tensor
    gap: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, n_labs: int, n_own: int, n_context: int, hidden: int, levels: Sequence[float]) -> None:
        super().__init__()
        self.n_own, self.median = n_own, levels.index(0.5)
        self.register_buffer("middle", torch.zeros(n_labs))
        self.register_buffer("gap", torch.zeros(n_labs, len(levels) - 1))
        self.register_buffer("centre", torch.zeros(n_own + n_context))
        self.register_buffer("scale", torch.ones(n_own + n_context))
        self.lab = nn.Embedding(n_labs, hidden)
        self.own = nn.Linear(n_own, hidden)
        self.context = nn.Linear(n_context, hidden, bias=False)
        self.hidden = nn.Linear(hidden, hidden)
        self.direct = nn.Embedding(n_labs, n_own)
        self.out = nn.Linear(hidden, len(levels))
        self.dropout = nn.Dropout(0.1)
        nn.init.normal_(self.lab.weight, std=0.3)
        for parameter in (self.direct.weight, self.out.weight, self.out.bias):
            nn.init.zeros_(parameter)

    def forward(self, own: Tensor, context: Tensor, lab: Tensor) -> Tensor:
        """(n, Q) shifts, rising along Q, from own (n, own) and context (n, context) features and lab (n,)."""
        own = ((own - self.centre[: self.n_own]) / self.scale[: self.n_own]).clamp(-5, 5)
        context = ((context - self.centre[self.n_own :]) / self.scale[self.n_own :]).clamp(-5, 5)
        x = silu(self.own(own) + self.context(self.dropout(context)) + self.lab(lab))
        x = x + silu(self.hidden(self.dropout(x)))
        change = self.out(self.dropout(x))
        middle = self.middle[lab] + change[:, 0] + (self.direct(lab) * own).sum(1)
        gap = torch.exp(self.gap[lab] + WIDEST * torch.tanh(change[:, 1:] / WIDEST))
        below, above = gap[:, : self.median], gap[:, self.median :]
        zero = middle[:, None]
        down = zero - below.flip(1).cumsum(1).flip(1)
        return torch.cat([down, zero, zero + above.cumsum(1)], dim=1)


def pinball_loss(quantiles: Tensor, levels: Tensor, value: Tensor) -> Tensor:
    """(n,) mean pinball loss of quantiles (n, Q) of the levels (Q,) for the values (n,).

    >>> pinball_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([0.25, 0.75]), torch.tensor([2.0])).tolist()
    [0.25]
    """
    above = value[:, None] - quantiles
    return torch.maximum(levels * above, (levels - 1) * above).mean(1)
