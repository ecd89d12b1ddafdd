"""One history read once, and many continuations of it: keys and values kept while events are added one moment a step.

Nothing that is known already can see what becomes known later, so the keys and values of a history stay as they are
whatever is sampled after it: they are computed once a subject and shared by its paths, which keep only their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ehrseq.model.network import Block, ProgressionNetwork
from ehrseq.tokens.batch import Batch

GROWTH = 32  # slots by which the room for a path's own events grows


class Cache:
    """Keys and values of S histories, shared by P paths of each, and of the events that each path has added.

    `batch` holds the histories (its queries are not read). A path keeps its latest `limit` events.
    """

    def __init__(self, network: ProgressionNetwork, batch: Batch, n_paths: int, limit: int) -> None:
        self.network = network
        self.limit = limit
        n_events = batch.code.shape[1]
        mask = batch.mask[:, :n_events, :n_events]
        x = network.embed_events(batch)
        bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill_(~mask, -torch.inf).unsqueeze(1)
        self.history: list[tuple[Tensor, Tensor]] = []
        for block in self._blocks():
            key, value = block.key_value(block.attention_norm(x)).chunk(2, dim=-1)
            self.history.append((_heads(key, block.heads), _heads(value, block.heads)))
            x = block(x, bias, 0)
        real = batch.code > 0
        self.history_bias = torch.zeros_like(real, dtype=x.dtype).masked_fill_(~real, -torch.inf)[:, None, None]
        self.count = torch.zeros(len(real), n_paths, dtype=torch.int64)
        self.own = [self._room(0, key) for key, _ in self.history], [self._room(0, value) for _, value in self.history]

    def advance(self, events: Tensor, n_new: Tensor, query: Tensor) -> Tensor:
        """What the network makes of each path at its query, (S, P, width), after adding a moment's events.

        `events` (S, P, n, width) embeddings, of which a path's first `n_new` (S, P) are real; `query` (S, P, width).
        """
        n = events.shape[2]
        self._make_room(int((self.count + n_new).max()))
        room = self.own[0][0].shape[3] - 1
        place = torch.arange(n)
        real = place < n_new[..., None]
        slot = torch.where(real, (self.count[..., None] + place) % self.limit, room)  # the last slot is never read
        self.count = self.count + n_new
        unseen = torch.arange(room + 1) >= self.count.clamp(max=room)[..., None]
        own_bias = torch.zeros_like(unseen, dtype=query.dtype).masked_fill_(unseen, -torch.inf)[:, :, None, None]
        # a real event finds itself among its path's events; the query, and what only pads, sees itself here
        alone = torch.cat([~real, torch.ones(*real.shape[:2], 1, dtype=torch.bool)], dim=2)
        self_bias = torch.zeros_like(alone, dtype=query.dtype).masked_fill_(~alone, -torch.inf)
        x = torch.cat([events, query.unsqueeze(2)], dim=2)
        blocks = self._blocks()
        for i, block in enumerate(blocks):
            first = n if i == len(blocks) - 1 else 0  # of the last block only the query is read
            x = self._through(i, block, x, slot, first, own_bias, self_bias[:, :, first:])
        out: Tensor = self.network.norm(x)[:, :, 0]
        return out

    def keep(self, subject: Tensor, path: Tensor) -> None:
        """Keep the subjects (S',) and of each the paths (S', P')."""
        rows = subject[:, None]
        self.history = [(key[subject], value[subject]) for key, value in self.history]
        self.history_bias = self.history_bias[subject]
        self.count = self.count[rows, path]
        self.own = [own[rows, path] for own in self.own[0]], [own[rows, path] for own in self.own[1]]

    def _through(
        self, i: int, block: Block, x: Tensor, slot: Tensor, first: int, own_bias: Tensor, self_bias: Tensor
    ) -> Tensor:
        normed = block.attention_norm(x)
        key, value = (_path_heads(part, block.heads) for part in block.key_value(normed).chunk(2, dim=-1))
        n = slot.shape[2]
        index = slot[:, :, None, :, None].expand(-1, -1, block.heads, -1, key.shape[-1])
        for own, new in ((self.own[0][i], key), (self.own[1][i], value)):
            own.scatter_(3, index, new[..., :n, :])
        query = _path_heads(block.query(normed[:, :, first:]), block.heads) * key.shape[-1] ** -0.5
        seen = self._attend(i, query, key[..., first:, :], value[..., first:, :], own_bias, self_bias)
        x = x[:, :, first:] + block.out(seen.transpose(2, 3).flatten(3))
        return x + block.mlp(x)

    def _attend(self, i: int, query: Tensor, key: Tensor, value: Tensor, own_bias: Tensor, self_bias: Tensor) -> Tensor:
        """(S, P, heads, n, d): attention over the history, the path's own events, and the token itself."""
        s, p, heads, n, d = query.shape
        past_key, past_value = self.history[i]
        flat = query.transpose(1, 2).reshape(s, heads, p * n, d)  # one product a subject, whatever its paths
        past = (flat @ past_key.transpose(-1, -2) + self.history_bias).view(s, heads, p, n, -1).transpose(1, 2)
        own = query @ self.own[0][i].transpose(-1, -2) + own_bias
        alone = (query * key).sum(-1, keepdim=True) + self_bias[:, :, None, :, None]
        length = past.shape[-1]
        weight = torch.cat([past, own, alone], dim=-1).softmax(-1)
        flat = weight[..., :length].transpose(1, 2).reshape(s, heads, p * n, length) @ past_value
        out: Tensor = flat.view(s, heads, p, n, d).transpose(1, 2)
        return out + weight[..., length:-1] @ self.own[1][i] + weight[..., -1:] * value

    def _blocks(self) -> list[Block]:
        return [block for block in self.network.blocks if isinstance(block, Block)]

    def _room(self, slots: int, like: Tensor) -> Tensor:
        s, heads, _, d = like.shape
        return like.new_zeros(s, self.count.shape[1], heads, slots + 1, d)

    def _make_room(self, needed: int) -> None:
        room = self.own[0][0].shape[3] - 1
        if min(needed, self.limit) <= room:
            return
        slots = min(self.limit, max(needed, room + GROWTH))
        for own in self.own:
            for i, old in enumerate(own):
                new = self._room(slots, self.history[i][0])
                new[:, :, :, :room] = old[:, :, :, :room]
                own[i] = new


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _path_heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:3], heads, -1).transpose(2, 3)
