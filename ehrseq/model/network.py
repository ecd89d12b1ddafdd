"""The sequence network: events and queries in, query representations and log hazards out. No I/O, no training."""

from __future__ import annotations

import numpy as np
import torch
from numpy import float64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import dropout, scaled_dot_product_attention, silu

from ehrseq.config import NetworkConfig
from ehrseq.model.heads import HazardHead
from ehrseq.tokens.batch import FEATURES, Batch, summary_width
from ehrseq.tokens.vocabulary import Vocabulary

EPS = float(torch.finfo(torch.float32).eps)  # as an RMSNorm has by default
# in bfloat16 torch would take cuDNN's, which compiles a kernel for every new shape, and each batch has another
ON_GPU = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention of (B, heads, R, d) queries over (B, heads, T, d) keys and values, bias (B, 1, R, T) added."""
    if query.is_cuda:
        with sdpa_kernel(ON_GPU):
            return scaled_dot_product_attention(query, key, value, bias)
    return scaled_dot_product_attention(query, key, value, bias)


class Dropout(nn.Module):
    """As `torch.nn.Dropout`, in 256ths: one random number for eight elements.

    On a CPU, torch draws a number for each, which was a seventh of a training step.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        dropped = min(round(256 * self.p), 255)
        if not self.training or not dropped:
            return x
        if x.device.type != "cpu":
            return dropout(x, self.p)
        n = x.numel()
        words = torch.empty(n // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
        # numpy compares bytes ten times as fast as torch
        factor = (words.numpy().view(np.uint8)[:n] >= dropped).astype(np.float32)
        factor *= np.float32(256 / (256 - dropped))
        return x * torch.from_numpy(factor).view(x.shape)


def _norm(width: int, gated: bool) -> nn.Module:
    """LayerNorm has kernels of its own on a CPU, forward and backward; torch makes an RMSNorm of a dozen steps."""
    return nn.RMSNorm(width) if gated else nn.LayerNorm(width, EPS, bias=False)


class Block(nn.Module):
    """Pre-norm attention and perceptron; rows may be fewer than columns, so that the last block serves queries only."""

    def __init__(self, width: int, heads: int, dropout: float, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        self.gated = gated
        hidden = 16 * round(width * 8 / 3 / 16) if gated else 4 * width
        self.attention_norm = _norm(width, gated)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = _norm(width, gated)
        if gated:
            self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        else:
            self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, first_row: int) -> Tensor:
        """x (B, T, width), bias (B, 1, T - first_row, T) -> (B, T - first_row, width)."""
        normed = self.attention_norm(x)
        key, value = self.key_value(normed).chunk(2, dim=-1)
        attended = attend(self._split(self.query(normed[:, first_row:])), self._split(key), self._split(value), bias)
        x = x[:, first_row:] + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        out: Tensor = x + self.dropout(self.mlp(x))
        return out

    def mlp(self, x: Tensor) -> Tensor:
        """What the second half adds to x (..., width), before dropout."""
        normed = self.mlp_norm(x)
        if self.gated:
            gate, up = self.gate_up(normed).chunk(2, dim=-1)
            hidden = silu(gate) * up
        else:
            hidden = self.up(normed).relu_()
        out: Tensor = self.down(hidden)
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


SOFT = 0.3  # how loud times speak beside codes and values: at full spread they crowd them out (worse on NAFLD)
FAR = 4.0  # spreads from the mean beyond which a time is held, so that nothing extrapolates without bound


class Standardised(nn.Module):
    """A linear layer on features brought to mean 0 and spread 1 as in the training data."""

    centre: Tensor
    spread: Tensor

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.linear = nn.Linear(features, width)
        nn.init.normal_(self.linear.weight, std=0.1)  # as the embeddings, which they are added to

    def scaled(self, x: Tensor) -> Tensor:
        """The standardised features, same shape, within FAR of the mean."""
        return ((x - self.centre) / self.spread).clamp(-FAR, FAR)

    def set_scale(self, rows: Tensor) -> None:
        """Take mean and spread from rows (n, features); a constant feature keeps its scale."""
        spread = rows.std(0, correction=0)
        self.centre.copy_(rows.mean(0))
        self.spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., features) -> (..., width)."""
        out: Tensor = self.linear(SOFT * self.scaled(x))
        return out


class ProgressionNetwork(nn.Module):
    """One token an event, one query token a prediction time; hazards are read at the queries.

    An event's embedding is the sum of its code and its known ancestors, its coded value, its numeric value interpolated
    between quantile knots, and its times. The query's embedding is the sum of its times and of the summary of what is
    visible.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        config: NetworkConfig,
        n_hazards: int,
        edges: NDArray[float64],
        n_auxiliary: int = 0,
    ) -> None:
        super().__init__()
        width = config.width
        self.code = nn.Embedding(vocabulary.n_codes, width, padding_idx=0)
        self.coded_value = nn.Embedding(vocabulary.n_coded_values, width, padding_idx=0)
        self.knot = nn.Embedding(vocabulary.n_knots + 1, width, padding_idx=0)
        self.event_times = Standardised(FEATURES, width)
        self.query_times = Standardised(FEATURES, width)
        self.summary = nn.Sequential(
            Dropout(config.summary_dropout),
            nn.Linear(summary_width(len(vocabulary.summary_codes)), width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.dropout, config.gated) for _ in range(config.layers)
        )
        self.norm = _norm(width, config.gated)
        self.head = HazardHead(width, FEATURES, n_hazards, edges)
        self.auxiliary = HazardHead(width, FEATURES, n_auxiliary, edges) if n_auxiliary else None
        self.dropout = Dropout(config.dropout)
        for table in (self.code, self.coded_value, self.knot):
            nn.init.normal_(table.weight, std=0.1)
            with torch.no_grad():
                table.weight[0] = 0

    def forward(self, batch: Batch, events: Tensor | None = None) -> Tensor:
        """Log hazards per day, (B, K, H, I), at the batch's queries; `events` as in `represent`."""
        out: Tensor = self.head(self.represent(batch, events), self.query_times.scaled(batch.query_features))
        return out

    def all_hazards(self, batch: Batch) -> list[Tensor]:
        """Log hazards of the outcomes, (B, K, H, I), and of the auxiliary codes where it has any, (B, K, A, I)."""
        represented, times = self.represent(batch), self.query_times.scaled(batch.query_features)
        heads = [self.head] if self.auxiliary is None else [self.head, self.auxiliary]
        return [head(represented, times) for head in heads]

    def represent(self, batch: Batch, events: Tensor | None = None) -> Tensor:
        """What the network makes of the history at each query, (B, K, width): what every head reads.

        `events` (B, E, width) stand in for the embeddings of the batch's events.
        """
        n_events = batch.code.shape[1]
        events = self.embed_events(batch) if events is None else events
        x = torch.cat([events, self.embed_queries(batch)], dim=1)
        x = self.dropout(x)
        bias = torch.zeros_like(batch.mask, dtype=x.dtype).masked_fill_(~batch.mask, -torch.inf).unsqueeze(1)
        for i, block in enumerate(self.blocks):
            first_row = n_events if i == len(self.blocks) - 1 else 0
            x = block(x, bias[:, :, first_row:], first_row)
        out: Tensor = self.norm(x)
        return out

    def embed_events(self, batch: Batch) -> Tensor:
        """(B, E, width)."""
        below, above = self.knot(batch.knot), self.knot(batch.knot + (batch.knot > 0))
        value = below + batch.fraction.unsqueeze(-1) * (above - below)
        code, times = self.code(batch.code), self.event_times(batch.event_features)
        if batch.ancestors.shape[-1]:
            code = code + self.code(batch.ancestors).sum(-2)
        out: Tensor = code + self.coded_value(batch.coded_value) + value + times
        return out

    def embed_queries(self, batch: Batch) -> Tensor:
        """(B, K, width)."""
        out: Tensor = self.query_times(batch.query_features) + self.summary(batch.summary)
        return out
