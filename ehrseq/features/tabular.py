"""What is visible at a prediction time as one wide row: what tabular models read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrseq.features.summary import DAY
from ehrseq.task.history import visible

Index = NDArray[np.int64]
Float = NDArray[np.float64]
YEAR = 365.25 * DAY  # microseconds
RECENT = int(2 * YEAR)
STATIC = np.iinfo(np.int64).min
UNIT = 2**16  # a value of one spread as a whole number
HOURS = 24 * 365.25  # a year
TOGETHER = 1024  # queries times codes told at once: what is made of them stays in the processor's cache
APART = 32  # scaled values are within 5 of 0: so far apart, the groups of a running minimum never mix
OVERALL = ("age", "years_observed", "events", "recent_events", "moments", "years_since_last", "years_since_first")
EVENT = ("count", "recent_count", "years_since_last", "years_since_first")
VALUE = ("last", "mean", "minimum", "maximum", "deviation", "slope", "change")


@dataclass(frozen=True)
class History:
    """Flat events of S subjects, sorted by subject and then `known_time` (microseconds; STATIC for static facts).

    Subject s owns rows `offset[s]:offset[s + 1]`; `code` (N,) is 0 to n_codes - 1, or negative for a code that is not
    summarised; `value` (N,) scaled, NaN where there is none; `birth` and `enrolled` (S,) microseconds, the latter
    beyond every prediction time where nothing says when observation began. `static` and `valued` (n_codes,) say of
    which codes only presence is told, and of which also values.
    """

    offset: Index
    known_time: Index
    code: Index
    value: NDArray[np.float32]
    birth: Index
    enrolled: Index
    static: NDArray[np.bool_]
    valued: NDArray[np.bool_]


class Tabulator:
    """Rows of features for any (subject, prediction time), from running sums made once.

    Whatever the number of events, a query costs one search a code: a feature is a running sum, minimum or maximum as
    it stood at the last event visible to the query.

    >>> history = History(np.array([0, 2]), np.array([0, DAY * 365]), np.array([0, 0]),
    ...                   np.array([1.0, 2.0], np.float32), np.array([0]), np.array([0]), np.array([False]),
    ...                   np.array([True]))
    >>> table = Tabulator(history)
    >>> row = table.rows(np.array([0]), np.array([DAY * 365 - 1]))[0]  # only the first value is visible
    >>> row[table.names.index("0:last")], row[table.names.index("0:count")]
    (np.float32(1.0), np.float32(1.0))
    """

    def __init__(self, history: History) -> None:
        self.history = history
        known, code = history.known_time, history.code
        self.moments = np.unique(known)
        self.owner = np.repeat(np.arange(len(history.birth)), np.diff(history.offset))
        kept = code >= 0
        self.static, self.dynamic = np.flatnonzero(history.static).tolist(), np.flatnonzero(~history.static).tolist()
        self.valued = np.flatnonzero(history.valued & ~history.static).tolist()
        self.dated = _Running(self, np.flatnonzero(known != STATIC), by_code=False)
        self.by_code = _Running(self, np.flatnonzero(kept), by_code=True)
        self.by_value = _Running(self, np.flatnonzero(kept & ~np.isnan(history.value)), by_code=True)

    @property
    def names(self) -> list[str]:
        """The name of each column: `overall:NAME`, or the number of the code and what is told of it."""
        return (
            [f"overall:{name}" for name in OVERALL]
            + [f"{c}:{name}" for c in self.dynamic for name in EVENT]
            + [f"{c}:{name}" for c in self.valued for name in VALUE]
            + [f"{c}:present" for c in self.static]
        )

    def rows(self, subject: Index, time: Index) -> NDArray[np.float32]:
        """(Q, F) float32 for subjects (row numbers) and times (microseconds); NaN where there is nothing to tell.

        Ages and times in years, values in spreads of their code, slopes in spreads a year (drawn to 0 where the
        values span little time).
        """
        age = (time - self.history.birth[subject]) / YEAR
        enrolled = self.history.enrolled[subject]
        begun = visible(enrolled, time)
        observed = np.where(begun, (time - np.where(begun, enrolled, time)) / YEAR, np.nan)
        parts = [np.column_stack([age, observed, self._overall(subject, time)])]
        # codes some at a time: one by one they cost as much for a few queries as for many
        step = max(1, TOGETHER // max(len(subject), 1))
        for told, codes in ((self._events, self.dynamic), (self._values, self.valued), (self._present, self.static)):
            for first in range(0, len(codes), step):
                of_each = told(subject[:, None], time[:, None], np.array(codes[first : first + step]))
                parts.append(of_each.reshape(len(subject), -1))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _overall(self, subject: Index, time: Index) -> Float:
        none = np.zeros(1, np.int64)
        counts = self._counts(self.dated, subject[:, None], time[:, None], none)[:, 0]
        at = self.dated.last(subject, time, none)
        moments = np.where(at >= 0, self.dated.moments[at], 0)
        return np.column_stack([counts[:, :2], moments, counts[:, 2:]])

    def _events(self, subject: Index, time: Index, codes: Index) -> Float:
        return self._counts(self.by_code, subject, time, codes)

    def _present(self, subject: Index, time: Index, codes: Index) -> Float:
        return (self.by_code.last(subject, time, codes) >= 0).astype(np.float64)

    def _counts(self, run: _Running, subject: Index, time: Index, codes: Index) -> Float:
        """(Q, C, 4) for subjects and times (Q, 1) and codes (C,)."""
        at, before = run.last(subject, time, codes), run.last(subject, time - RECENT, codes)
        count, earlier = (np.where(i >= 0, i - run.start[i] + 1.0, 0) for i in (at, before))
        dated = (at >= 0) & (at >= run.dated[at])  # dateless facts come first, and have no "since"
        since = [np.where(dated, (time - np.where(dated, run.known[i], 0)) / YEAR, np.nan) for i in (at, run.dated[at])]
        return np.stack([count, count - earlier, *since], axis=-1)

    def _values(self, subject: Index, time: Index, codes: Index) -> Float:
        """(Q, C, 7) for subjects and times (Q, 1) and codes (C,)."""
        run = self.by_value
        at = run.last(subject, time, codes)
        first = run.start[at]
        n = np.where(at >= 0, at - first + 1.0, 1)
        value, hour, square, hour_square, product = (
            (running[at + 1] - running[first]).astype(np.float64)
            for running in (run.value, run.hour, run.square, run.hour_square, run.product)
        )
        mean = value / n
        # a prior of one year squared: two values a week apart tell nothing of a trend
        slope = (n * product - hour * value) / (n * hour_square - hour**2 + n * HOURS**2) * HOURS
        deviation = np.sqrt(np.maximum(n * square - value**2, 0)) / n
        last = run.last_value[at]
        out = np.stack([last, mean, run.minimum[at], run.maximum[at], deviation, slope, last - mean], axis=-1) / UNIT
        out[at < 0] = np.nan
        return out


class _Running:
    """Running sums over some events in the order of (subject, code, known_time); a group is a subject's code.

    Sums are of whole numbers (values in units of 1 / UNIT, times in hours since the group's first), so that a
    difference of two of them is exact: what a subject's features are must not depend, not even in the last bit, on who
    else is in the table or on what happens later. There is always a row to look at, even without events, so that
    arrays can be indexed with -1 for "none".
    """

    def __init__(self, table: Tabulator, rows: Index, *, by_code: bool) -> None:
        h = table.history
        self.table, self.codes = table, len(h.static) if by_code else 1
        code = h.code[rows] if by_code else np.zeros(len(rows), np.int64)
        group = table.owner[rows] * self.codes + code
        order = np.argsort(group, kind="stable")
        rows, self.group = rows[order], group[order]
        self.known = h.known_time[rows]
        self.stride = len(table.moments) + 1
        self.key = self.group * self.stride + np.searchsorted(table.moments, self.known)
        new = np.append(True, self.group[1:] != self.group[:-1])[: len(rows)]
        number = np.cumsum(new) - 1
        self.start = np.flatnonzero(new)[number]
        static = self.known == STATIC
        # the first dated row of each row's group, beyond its end where there is none
        self.dated = self.start + np.bincount(number[static], minlength=len(rows))[number]
        steps = np.cumsum(np.append(True, self.key[1:] != self.key[:-1])[: len(rows)])
        self.moments = steps - steps[self.start] + 1
        value = np.rint(np.nan_to_num(h.value[rows].astype(np.float64)) * UNIT).astype(np.int64)
        origin = self.known[np.minimum(self.dated, max(len(rows) - 1, 0))]
        hours = np.where(static, 0, self.known - np.where(static, 0, origin)) // (DAY // 24)
        sums = (value, hours, value**2, hours**2, value * hours)
        self.value, self.hour, self.square, self.hour_square, self.product = (np.append(0, np.cumsum(x)) for x in sums)
        self.last_value = value
        apart = APART * UNIT * number
        self.minimum = np.minimum.accumulate(value - apart) + apart
        self.maximum = np.maximum.accumulate(value + apart) - apart
        self.known = np.append(self.known, 0)  # what `dated` points at where a group has no date
        if not len(rows):
            for name in ("known", "start", "dated", "moments", "last_value", "minimum", "maximum"):
                setattr(self, name, np.zeros(1, np.int64))

    def last(self, subject: Index, time: Index, code: Index) -> Index:
        """The last row of each subject's code that is visible at `time` (inclusive), -1 for none."""
        group = subject * self.codes + code
        asked = group * self.stride + np.searchsorted(self.table.moments, time, side="right")
        at = np.searchsorted(self.key, asked) - 1
        found = (at >= 0) & (self.group[np.maximum(at, 0)] == group) if len(self.group) else at >= 0
        return np.where(found, at, -1)
