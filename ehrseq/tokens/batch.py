"""From tokens and prediction times to padded batches whose attention mask is the visibility rule.

A *query* is a prediction time of one subject; it becomes a token that sees the events visible at its time, and
itself. An event sees the events known no later than itself, so that nothing reaches a query through an
intermediate event. Nothing sees a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehrseq.features.summary import OVERALL, PER_CODE, summarise
from ehrseq.task.history import visible
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, STATIC, EncodedTimelines

NEVER = np.iinfo(np.int64).max  # the known_time of padding
FEATURES = 6
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One padded batch: B sequences of E events and K queries, T = E + K.

    code, coded_value, knot (B, E) int64; ancestors (B, E, P) int64, 0 for none; fraction (B, E); event_features
    (B, E, 6); query_features (B, K, 6); summary (B, K, S); mask (B, T, T) bool, True where the row may read the column;
    query (B, K) int64 row in the query table, -1 for padding.
    """

    code: Tensor
    coded_value: Tensor
    knot: Tensor
    fraction: Tensor
    event_features: Tensor
    query_features: Tensor
    summary: Tensor
    mask: Tensor
    query: Tensor
    ancestors: Tensor


@dataclass(frozen=True)
class Sequences:
    """Which tokens and queries go together: subject, end (n,) and length (n,) of the history, query (n, K)."""

    subject: Index
    end: Index
    length: Index
    query: Index


def summary_width(n_summary_codes: int) -> int:
    """Columns of the per-query summary."""
    return PER_CODE * n_summary_codes + OVERALL


def visible_end(encoded: EncodedTimelines, subject: Index, time: Index) -> Index:
    """For each query, one past the last token row visible to it (tokens are sorted by known_time)."""
    rows = np.repeat(np.arange(len(encoded.subject_id)), np.diff(encoded.offset))
    is_query = np.append(np.zeros(len(rows), np.int8), np.ones(len(subject), np.int8))
    # An event known at the query's very time sorts before it: visible() is inclusive.
    order = np.lexsort((is_query, np.append(encoded.known_time, time), np.append(rows, subject)))
    before = np.empty(len(order), np.int64)
    before[order] = np.cumsum(is_query[order] == 0)
    return before[len(rows) :]


def plan_sequences(encoded: EncodedTimelines, subject: Index, time: Index, max_events: int) -> Sequences:
    """One sequence a subject with all its queries; a query with more than `max_events` of history has its own."""
    end = visible_end(encoded, subject, time)
    history = end - encoded.offset[subject]
    own = history > max_events
    group = np.where(own, len(encoded.subject_id) + np.arange(len(subject)), subject)
    order = np.argsort(group, kind="stable")
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    query = np.full((len(first), size.max(initial=0)), -1, np.int64)
    slot = np.arange(len(order)) - np.repeat(first, size)
    query[np.repeat(np.arange(len(first)), size), slot] = order
    ends = np.maximum.reduceat(end[order], first) if len(first) else first
    who = subject[order[first]]
    return Sequences(who, ends, np.minimum(ends - encoded.offset[who], max_events), query)


class Batches:
    """Batches over the queries of encoded timelines.

    `token_features` are computed once; each call of `over` packs sequences of similar length together. With a
    random generator the packing and the order are shuffled.
    """

    def __init__(self, encoded: EncodedTimelines, n_summary_codes: int, max_events: int) -> None:
        self.encoded = encoded
        self.n_summary_codes = n_summary_codes
        self.max_events = max_events
        self.features, self.first_known = token_features(encoded)
        rows = np.repeat(np.arange(len(encoded.subject_id)), np.diff(encoded.offset))
        static = encoded.known_time == STATIC
        self.n_static = np.bincount(rows[static], minlength=len(encoded.subject_id))

    def over(
        self, subject: Index, time: Index, tokens_per_batch: int, rng: np.random.Generator | None = None,
        share: tuple[int, int] = (0, 1), *, even: bool = False,
    ) -> Iterator[Batch]:  # fmt: skip
        """Batches that hold every query once; `subject` are rows of the encoded timelines.

        With a `share` (i, n), the i-th of n processes gets every n-th; `even` leaves out the last few, so that all get
        equally many.
        """
        sequences = plan_sequences(self.encoded, subject, time, self.max_events)
        packed = pack(sequences, tokens_per_batch, rng)
        mine, world = share
        for rows in packed[mine : len(packed) - len(packed) % world if even else None : world]:
            yield self.collate(sequences, rows, subject, time)

    def token_rows(self, sequences: Sequences, rows: Index) -> tuple[Index, NDArray[np.bool_]]:
        """The rows of the encoded timelines that some sequences read (B, E), and which are not padding."""
        who, length = sequences.subject[rows], sequences.length[rows]
        step = np.arange(int(length.max(initial=0)))
        # Static tokens always stay; of the rest, the most recent.
        index = np.where(
            step < self.n_static[who][:, None],
            self.encoded.offset[who][:, None] + step,
            (sequences.end[rows] - length)[:, None] + step,
        )
        real = step < length[:, None]
        return np.where(real, index, 0), real

    def collate(self, sequences: Sequences, rows: Index, subject: Index, time: Index) -> Batch:
        """One padded batch from some sequences."""
        encoded = self.encoded
        query = sequences.query[rows]
        query = query[:, : max(1, int((query >= 0).sum(1).max(initial=0)))]
        index, real = self.token_rows(sequences, rows)

        def take(column: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.where(real, column[index], 0))

        asked = query >= 0
        q = np.where(asked, query, 0)
        at = time[q]
        known = np.where(real, encoded.known_time[index], NEVER)
        summary = np.zeros((*query.shape, summary_width(self.n_summary_codes)), np.float32)
        summary[asked] = summarise(
            encoded.offset, encoded.known_time, encoded.summary_code, encoded.value,
            subject[query[asked]], time[query[asked]], self.n_summary_codes,
        )  # fmt: skip
        return Batch(
            code=take(encoded.code),
            coded_value=take(encoded.coded_value),
            knot=take(encoded.knot),
            fraction=take(encoded.fraction),
            event_features=torch.from_numpy(np.where(real[..., None], self.features[index], 0)),
            query_features=torch.from_numpy(self.query_features(subject[q], at, known)),
            summary=torch.from_numpy(summary),
            mask=torch.from_numpy(attention_mask(known, at)),
            query=torch.from_numpy(query),
            ancestors=torch.from_numpy(np.where(real[..., None], encoded.ancestors[encoded.lineage[index]], 0)),
        )

    def query_features(self, subject: Index, at: Index, known: Index) -> NDArray[np.float32]:
        """Age, time since the last visible event, years and log time since the first, for (B, K) queries."""
        seen = visible(known[:, None, :], at[:, :, None]) & (known[:, None, :] != STATIC)
        last = np.where(seen, known[:, None, :], STATIC).max(-1, initial=STATIC)
        first = self.first_known[subject]
        out = np.zeros((*at.shape, FEATURES), np.float32)
        out[..., 0] = _years(at - self.encoded.birth[subject])
        none = last == STATIC
        out[..., 1] = _log_hours(np.where(none, 0, at - np.where(none, at, last)))
        span = at - np.where(none, at, first)
        out[..., 2], out[..., 3] = _years(span), _log_hours(span)
        out[..., 4] = none
        return out


def token_features(encoded: EncodedTimelines) -> tuple[NDArray[np.float32], Index]:
    """(N, 6) age, gap since the previous moment of knowledge, span since the first in years and logged, static flag,
    delay until known; and when each subject's first fact was known.

    Events known at the same moment have the same gap: ties do not see each other's order.
    """
    rows = np.repeat(np.arange(len(encoded.subject_id)), np.diff(encoded.offset))
    known, dynamic = encoded.known_time, encoded.known_time != STATIC
    first = np.full(len(encoded.subject_id), NEVER)
    np.minimum.at(first, rows[dynamic], known[dynamic])
    new = np.ones(len(known), bool)
    new[1:] = (rows[1:] != rows[:-1]) | (known[1:] != known[:-1])
    position = np.maximum.accumulate(np.where(new, np.arange(len(known)), 0)) if len(known) else rows
    previous = np.maximum(position - 1, 0)
    has_previous = dynamic & (position > 0) & (rows[previous] == rows) & (known[previous] != STATIC)
    out = np.zeros((len(known), FEATURES), np.float32)
    gap = np.where(has_previous, known, 0) - np.where(has_previous, known[previous], 0)
    clean = np.where(dynamic, known, 0)
    when = np.where(encoded.time == STATIC, clean, encoded.time)
    out[:, 0] = np.where(dynamic, _years(when - encoded.birth[rows]), 0)
    out[:, 1] = np.where(has_previous, _log_hours(gap), 0)
    span = np.where(dynamic, clean - np.where(dynamic, first[rows], 0), 0)
    out[:, 2], out[:, 3] = _years(span), _log_hours(span)
    out[:, 4] = ~dynamic
    out[:, 5] = np.where(dynamic, _log_hours(clean - np.where(dynamic, when, 0)), 0)
    return out, first


def attention_mask(known: Index, at: Index) -> NDArray[np.bool_]:
    """(B, T, T) mask from event known_time (B, E) and prediction times (B, K).

    >>> attention_mask(np.array([[1, 2]]), np.array([[1]]))[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    n_events, n_queries = known.shape[1], at.shape[1]
    moment = np.concatenate([known, at], axis=1)
    mask = np.zeros((len(known), n_events + n_queries, n_events + n_queries), bool)
    mask[:, :, :n_events] = visible(known[:, None, :], moment[:, :, None]) & (known != NEVER)[:, None, :]
    everything = np.arange(n_events + n_queries)
    mask[:, everything, everything] = True
    return mask


def pack(sequences: Sequences, tokens_per_batch: int, rng: np.random.Generator | None) -> list[Index]:
    """Rows of sequences batch by batch: similar lengths together, at most `tokens_per_batch` padded tokens."""
    n_queries = (sequences.query >= 0).sum(1)
    length = sequences.length + n_queries
    noise = rng.uniform(0.9, 1.1, len(length)) if rng is not None else np.ones(len(length))
    order = np.argsort(length * noise, kind="stable")
    batches, start, longest = [], 0, 0
    for i, row in enumerate(order):
        longest = max(longest, int(length[row]))
        if i > start and longest * (i - start + 1) > tokens_per_batch:
            batches.append(order[start:i])
            start, longest = i, int(length[row])
    if start < len(order):
        batches.append(order[start:])
    if rng is not None:
        rng.shuffle(batches)
    return batches


def _years(microseconds: Index) -> NDArray[np.float64]:
    return microseconds / (MICROSECONDS_PER_DAY * 365.25)


def _log_hours(microseconds: Index) -> NDArray[np.float64]:
    """Log of one plus the hours of a gap: minutes and decades both stay apart."""
    return np.log1p(np.maximum(microseconds, 0) / (MICROSECONDS_PER_DAY / 24))
