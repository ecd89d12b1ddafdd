"""What is known of each code at a moment: how often, when last, which value. Kept up to date along a sampled path."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehrseq.features.summary import DAY, PER_CODE
from ehrseq.task.history import visible
from ehrseq.tokens.encode import STATIC, EncodedTimelines

Float = NDArray[np.float64]
Index = NDArray[np.int64]
YEAR = 365.25 * DAY
PAIRS = 1 << 22  # of a query and an event held at once


@dataclass
class CodeState:
    """Arrays (..., N) over N codes: occurrences, time of the last (microseconds, STATIC for a static fact, 0 for none),
    last value (scaled, 0 for none), and the sum and the number of values."""

    count: Float
    last: Index
    value: Float
    total: Float
    valued: Float

    @classmethod
    def at(cls, encoded: EncodedTimelines, number: Index, n: int, row: Index, time: Index) -> CodeState:
        """The state (Q, n) at Q queries; `number` (tokens,) is the code that a token counts for, negative for none."""
        shape = (len(row), n)
        state = cls(np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape), np.zeros(shape))
        length = encoded.offset[row + 1] - encoded.offset[row]
        # some queries at a time: one subject may have more events than all others together, and most of the queries
        run = np.cumsum(length) // PAIRS
        for some in np.split(np.arange(len(row)), np.flatnonzero(np.diff(run)) + 1) if len(row) else ():
            part = cls(*(getattr(state, f.name)[some[0] : some[-1] + 1] for f in fields(cls)))
            part._fill(encoded, number, row[some], time[some], length[some])
        return state

    def _fill(self, encoded: EncodedTimelines, number: Index, row: Index, time: Index, length: Index) -> None:
        """Set the state, which is that of nothing known, at queries whose subjects have so many events."""
        n = self.count.shape[1]
        query = np.repeat(np.arange(len(row)), length)
        event = np.arange(len(query)) - np.repeat(np.cumsum(length) - length - encoded.offset[row], length)
        kept = visible(encoded.known_time[event], time[query]) & (number[event] >= 0)
        query, event = query[kept], event[kept]
        code = number[event]
        value = encoded.value[event].astype(np.float64)
        valued = ~np.isnan(value)
        # the events of a query come in the order in which they became known: of equal places the last one stays
        self.last[query, code] = encoded.known_time[event]
        self.value[query[valued], code[valued]] = value[valued]
        key = query * n + code
        for array, weight in ((self.count, None), (self.valued, valued), (self.total, np.where(valued, value, 0))):
            array[:] = np.bincount(key, weights=weight, minlength=array.size).reshape(array.shape)

    def add(self, where: NDArray[np.bool_], time: Index, value: Float) -> None:
        """Events of the codes `where` (..., N), known at `time` (...), with `value` (..., N), NaN for none."""
        has = where & ~np.isnan(value)
        self.count += where
        self.last = np.where(where, time[..., None], self.last)
        self.value = np.where(has, value, self.value)
        self.total += np.where(has, value, 0.0)
        self.valued += has

    def take(self, *index: Any) -> CodeState:
        """The state at some rows or of some codes, by advanced indices."""
        return CodeState(*(getattr(self, f.name)[index] for f in fields(self)))

    def years(self, time: Index) -> Float:
        """Years since each code was last seen, (..., N); 0 for static facts and for codes never seen."""
        dated = (self.count > 0) & (self.last != STATIC)
        return np.where(dated, time[..., None] - np.where(dated, self.last, 0), 0) / YEAR

    def summary(self, time: Index, n: int) -> Float:
        """(..., 4 n) of the first n codes: what `ehrseq.features.summary.summarise` gives for them."""
        some = CodeState(*(getattr(self, f.name)[..., :n] for f in fields(self)))
        seen = some.count > 0
        columns = (some.value, np.log1p(some.count), np.where(seen, 1 / (1 + some.years(time)), 0), seen)
        return np.stack(columns, axis=-1).reshape(*some.count.shape[:-1], PER_CODE * n)
