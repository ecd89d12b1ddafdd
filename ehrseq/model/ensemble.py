"""The networks of an ensemble, evaluated together: the hazards of `ProgressionNetwork`, for inference alone.

One subject's history makes small matrices, so that the number of calls is what a layer costs. Here the weights are
stacked over the M members, and each product is one call for all of them; linear steps that follow one another were
multiplied out before, and no module is called.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, silu

from ehrseq.model.heads import SHAPE_TERMS, HazardHead
from ehrseq.model.network import EPS, FAR, SOFT, Block, ProgressionNetwork, Standardised, attend
from ehrseq.tokens.batch import Batch

ROWS = 128  # whose attention is computed together: early events see few others


class Ensemble:
    """M networks of one shape, as they were when this was made."""

    def __init__(self, networks: Sequence[ProgressionNetwork]) -> None:
        first = networks[0]
        self.members, (self.first_value, self.width) = len(networks), first.code.weight.shape
        self.first_knot = self.first_value + len(first.coded_value.weight)
        with torch.no_grad():
            tables = [torch.cat([n.code.weight, n.coded_value.weight, n.knot.weight]) for n in networks]
            self.event_times = _Times([n.event_times for n in networks])
            self.query_times = _Times([n.query_times for n in networks])
            self.hidden, self.summary = (_Affine([cast(nn.Linear, n.summary[i]) for n in networks]) for i in (1, 3))
            of_each = [cast(Iterable[Block], n.blocks) for n in networks]
            self.blocks = [_Block(blocks) for blocks in zip(*of_each, strict=True)]
            if not self.blocks[0].gated:
                # a LayerNorm takes away the mean of a token: where nothing adds to it, it is an RMSNorm
                tables = [_centred(table) for table in tables]
                for layer in (self.event_times.linear, self.query_times.linear, self.summary):
                    layer.weight, layer.bias = _centred(layer.weight), _centred(layer.bias)
            self.table = torch.cat(tables, dim=1)  # (rows, M * width): one look-up serves all members
            self.head = _Head([n.head for n in networks], [n.norm for n in networks])

    def log_hazards(self, batch: Batch) -> Tensor:
        """Log hazards per day, (M, B, K, H, I), at the batch's queries."""
        shape = (self.members, *batch.query.shape)
        times = self.query_times.scaled(batch.query_features)
        summary = batch.summary.flatten(0, 1).expand(self.members, -1, -1)
        queries = self.query_times.linear(times) + self.summary(silu(self.hidden(summary), inplace=True))
        x = torch.cat([self._events(batch), queries.view(*shape, self.width)], dim=2)
        bias = batch.mask.float().sub_(1).mul_(torch.finfo(torch.float32).max)  # sooner made than with torch.where
        bias = bias.expand(self.members, *bias.shape).flatten(0, 1).unsqueeze(1)
        rows = _together(batch.mask)
        for block in self.blocks[:-1]:
            x = block.after(x, bias, rows)
        n_events, n = batch.code.shape[1], x.shape[2]
        x = self.blocks[-1].after(x, bias, [(n_events, n, n)])
        return self.head.log_hazards(x.flatten(1, 2), times).view(*shape, *self.head.shape)

    def _events(self, batch: Batch) -> Tensor:
        """(M, B, E, width) embedded events."""
        one, knot = torch.ones_like(batch.fraction), batch.knot + self.first_knot
        row = [batch.code, batch.coded_value + self.first_value, knot, knot + (batch.knot > 0)]
        share = [one, one, 1 - batch.fraction, batch.fraction]
        for ancestor in batch.ancestors.unbind(-1):
            row, share = [*row, ancestor], [*share, one]
        rows, shares = (torch.stack(each, dim=-1).flatten(0, 1) for each in (row, share))
        found = embedding_bag(rows, self.table, mode="sum", per_sample_weights=shares)
        x = self.event_times.linear(self.event_times.scaled(batch.event_features))
        x += found.view(-1, self.members, self.width).transpose(0, 1)
        return x.view(self.members, *batch.code.shape, self.width)


class _Affine:
    """The same linear layer of each member: (M, n, in) -> (M, n, out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.weight = _weights(layers)
        self.bias = torch.stack([layer.bias for layer in layers]).unsqueeze(1)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class _Times:
    """`Standardised` of each member: `scaled`, which the head reads too, and then `linear`."""

    def __init__(self, layers: Sequence[Standardised]) -> None:
        self.centre = torch.stack([layer.centre for layer in layers]).unsqueeze(1)
        self.spread = torch.stack([layer.spread for layer in layers]).unsqueeze(1)
        self.linear = _Affine([layer.linear for layer in layers])
        self.linear.weight *= SOFT

    def scaled(self, x: Tensor) -> Tensor:
        """(B, n, features) -> (M, B * n, features)."""
        return ((x.flatten(0, 1) - self.centre) / self.spread).clamp_(-FAR, FAR)


class _Block:
    """`Block` of each member."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.heads = blocks[0].heads
        attention, mlp = ([getattr(b, name) for b in blocks] for name in ("attention_norm", "mlp_norm"))
        self.query = _weights([b.query for b in blocks], attention)
        # apart, as what comes of halves of one product is slow to read
        self.key, self.value = (w.contiguous() for w in _weights([b.key_value for b in blocks], attention).chunk(2, -1))
        self.gated = blocks[0].gated
        self.out, self.down = _weights([b.out for b in blocks]), _weights([b.down for b in blocks])
        if self.gated:
            self.gate, self.up = (w.contiguous() for w in _weights([b.gate_up for b in blocks], mlp).chunk(2, -1))
        else:
            self.up = _weights([b.up for b in blocks], mlp)
            self.out, self.down = _centred(self.out), _centred(self.down)

    def after(self, x: Tensor, bias: Tensor, rows: list[tuple[int, int, int]]) -> Tensor:
        """(M, B, T, width) -> (M, B, R, width) for the rows that are asked for, as (first, end, columns they see)."""
        first, length = rows[0][0], x.shape[2]
        normed = _unit(x.flatten(1, 2))
        key, value = (self._split(torch.bmm(normed, weight), length) for weight in (self.key, self.value))
        if first:
            x = x[:, :, first:]
            normed = normed.view(len(x), -1, length, normed.shape[-1])[:, :, first:].flatten(1, 2)
        query = self._split(torch.bmm(normed, self.query), length - first)
        attended = [
            attend(query[:, :, i - first : j - first], key[:, :, :n], value[:, :, :n], bias[:, :, i:j, :n])
            for i, j, n in rows
        ]
        joined = torch.cat([part.transpose(1, 2) for part in attended], dim=1)
        y = torch.baddbmm(x.flatten(1, 2), joined.reshape(len(x), -1, x.shape[-1]), self.out)
        normed = _unit(y)
        hidden = torch.bmm(normed, self.up)
        hidden = hidden.mul_(silu(torch.bmm(normed, self.gate), inplace=True)) if self.gated else hidden.relu_()
        return torch.baddbmm(y, hidden, self.down).view(x.shape)

    def _split(self, x: Tensor, length: int) -> Tensor:
        """(M, B * length, width) -> (M * B, heads, length, width / heads)."""
        return x.view(-1, length, self.heads, x.shape[-1] // self.heads).transpose(1, 2)


class _Head:
    """The last norm and the `HazardHead` of each member, its terms multiplied out over the intervals."""

    def __init__(self, heads: Sequence[HazardHead], norms: Sequence[nn.Module]) -> None:
        self.shape = tuple(heads[0].base.shape)
        linear, direct = _weights([h.linear for h in heads], norms), _weights([h.direct for h in heads])
        of_each = range(len(heads))
        self.linear, self.direct = (torch.stack([_over(w[i], heads[i]) for i in of_each]) for w in (linear, direct))
        bias = [_over(h.linear.bias, h) + (h.base + h.offset).flatten() for h in heads]
        self.bias = torch.stack(bias).unsqueeze(1)

    def log_hazards(self, x: Tensor, times: Tensor) -> Tensor:
        """(M, n, H * I) from (M, n, width) and the scaled times (M, n, features)."""
        score = torch.baddbmm(torch.bmm(times, self.direct), _unit(x), self.linear)
        return score + self.bias  # which is large: with each product added to it, digits would be lost


def _over(terms: Tensor, head: HazardHead) -> Tensor:
    """(..., H * terms) -> (..., H * I)."""
    shape = terms.view(*terms.shape[:-1], len(head.base), SHAPE_TERMS)
    return torch.matmul(shape, head.terms).flatten(-2)


def _weights(layers: Sequence[nn.Linear], norms: Sequence[nn.Module] | None = None) -> Tensor:
    """(M, in, out) weights of a layer; of one that reads norms, with what `_unit` leaves out of these."""
    weights = torch.stack([layer.weight.T for layer in layers])
    if norms is None:
        return weights
    gain = torch.stack([cast(Tensor, norm.weight) for norm in norms]).mul_(math.sqrt(weights.shape[1]))
    return weights.mul_(gain.unsqueeze(-1))


def _unit(x: Tensor) -> Tensor:
    """Each row at length 1, nearly: an RMSNorm but for its gain and the root of the width."""
    added = torch.tensor(math.sqrt(x.shape[-1] * EPS))
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.hypot_(added)


def _centred(rows: Tensor) -> Tensor:
    """Rows (..., width) less their mean."""
    return rows - rows.mean(-1, keepdim=True)


def _together(mask: Tensor) -> list[tuple[int, int, int]]:
    """The (first, end) of rows that attend together, and the columns that some of them see, of a mask (B, T, T).

    >>> mask = torch.ones(1, 130, 130, dtype=torch.bool).tril()
    >>> _together(mask), _together(mask[:, :90, :90])
    ([(0, 128, 128), (128, 130, 130)], [(0, 90, 90)])
    """
    seen, length = mask.numpy(), mask.shape[1]
    ends = [(i, min(i + ROWS, length)) for i in range(0, length, ROWS)]
    return [(i, j, 1 + int(np.flatnonzero(seen[:, i:j].any(axis=(0, 1)))[-1])) for i, j in ends]
