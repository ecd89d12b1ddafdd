"""What is visible at a prediction time, summarised per code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehrseq.task.history import visible

DAY = 86_400_000_000  # microseconds
PER_CODE = 4
OVERALL = 3


def summarise(
    event_offset: NDArray[np.int64],
    known_time: NDArray[np.int64],
    code: NDArray[np.int64],
    value: NDArray[np.float32],
    query_subject: NDArray[np.int64],
    query_time: NDArray[np.int64],
    n_codes: int,
) -> NDArray[np.float32]:
    """Last value, log count, recency and ever-flag of each code, and how dense the record is, at each query.

    Events are flat arrays sorted by subject then `known_time` (int64 microseconds; static facts at the smallest
    int64): subject s owns `event_offset[s]:event_offset[s + 1]`. `code` is 0..n_codes-1, or negative for a code
    that is not summarised; `value` is already scaled, NaN where there is none. Result: (n_queries,
    4 * n_codes + 3) float32; a code never seen is all zeros.

    >>> x = summarise(np.array([0, 2]), np.array([0, DAY]), np.array([0, 0]), np.array([1.0, 2.0], np.float32),
    ...               np.array([0]), np.array([DAY]), 1)
    >>> [round(float(v), 2) for v in x[0]]
    [2.0, 1.1, 1.0, 1.0, 1.1, 1.1, 0.0]
    """
    n_queries = len(query_subject)
    out = np.zeros((n_queries, PER_CODE * n_codes + OVERALL), np.float32)
    start = event_offset[query_subject]
    length = event_offset[query_subject + 1] - start
    query = np.repeat(np.arange(n_queries), length)
    event = np.arange(len(query)) - np.repeat(np.cumsum(length) - length, length) + np.repeat(start, length)
    seen = visible(known_time[event], query_time[query])
    query, event = query[seen], event[seen]
    _density(out[:, PER_CODE * n_codes :], known_time, query, event, query_time)

    kept = code[event] >= 0
    query, event = query[kept], event[kept]
    if not len(query):
        return out
    order = np.argsort(query * n_codes + code[event], kind="stable")
    query, event = query[order], event[order]
    key = query * n_codes + code[event]
    last = np.append(key[1:] != key[:-1], True)
    ends = np.flatnonzero(last)
    count = np.diff(ends, prepend=-1)
    q, e = query[ends], event[ends]
    column = code[e] * PER_CODE
    dynamic = known_time[e] > np.iinfo(np.int64).min
    days = np.where(dynamic, (query_time[q] - np.where(dynamic, known_time[e], query_time[q])) / DAY, 0.0)
    out[q, column] = _carry(value[event], key)[ends]
    out[q, column + 1] = np.log1p(count)
    out[q, column + 2] = 1 / (1 + days / 365.25)
    out[q, column + 3] = 1
    return out


def _carry(values: NDArray[np.float32], key: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values with gaps filled forward within runs of equal key; 0 before the first."""
    position = np.arange(len(values))
    first = np.append(True, key[1:] != key[:-1])
    source = np.maximum.accumulate(np.where(first | ~np.isnan(values), position, 0))
    return np.nan_to_num(values[source])


def _density(
    out: NDArray[np.float32],
    known_time: NDArray[np.int64],
    query: NDArray[np.int64],
    event: NDArray[np.int64],
    query_time: NDArray[np.int64],
) -> None:
    """Log counts of events, and of events in the last year; recency of the last event."""
    dynamic = known_time[event] > np.iinfo(np.int64).min
    query, event = query[dynamic], event[dynamic]
    n = len(query_time)
    days = (query_time[query] - known_time[event]) / DAY
    out[:, 0] = np.log1p(np.bincount(query, minlength=n))
    out[:, 1] = np.log1p(np.bincount(query[days <= 365.25], minlength=n))
    last = np.full(n, np.inf)
    np.minimum.at(last, query, days)
    out[:, 2] = np.log1p(np.where(np.isinf(last), 3652.5, last)) / 8
