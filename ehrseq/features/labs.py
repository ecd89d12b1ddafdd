"""The measured values of some labs: a subject's own level and course at a prediction time, and what is measured after.

Values are on the lab's own scale: 0 is the mean of the training subjects, 1 their spread (of logarithms where these are
less skewed). A lab is a code in one unit: numbers in another unit are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.features.summary import DAY
from ehrseq.frames import at_once, microseconds, place_among
from ehrseq.task.history import visible

Index = NDArray[np.int64]
Float = NDArray[np.float64]
NAMES = (
    "level", "seen", "count", "last", "recency", "span", "recent", "half", "slope", "deviation",
)  # fmt: skip
LEVEL, SEEN, LAST = NAMES.index("level"), NAMES.index("seen"), NAMES.index("last")
PAIRS = 4_000_000  # of a query and an event held at once
OUTLYING = 6  # interquartile ranges beyond the quartiles where values are held: impossible ones must not decide
# values that so few people have in the middle of their own may be impossible: a share, and a number at least
USUAL, FEWEST = 0.005, 3
MIDDLE = 3  # values that a person's middle takes
IMPOSSIBLE = 30  # interquartile ranges beyond which they are, however many people have them
UNIT = "\n"  # between a code and a unit
TINY = 1e-300  # so that a logarithm is finite
ONE_VALUE = 1e-9  # a spread below it is that of a constant


@dataclass(frozen=True)
class LabScale:
    """How numbers of one code in one unit become values of mean 0 and spread 1.

    `low` and `high` (of logarithms where `logged`) hold impossible values: such as lie far beyond the quartiles, and
    beyond what all but a few people have in the middle of their own values; `prior` is how many values of a subject the
    population's mean counts for; `within` the spread of a subject's values about their mean.
    """

    code: str
    unit: str
    logged: bool
    centre: float
    spread: float
    low: float
    high: float
    prior: float
    within: float

    def scaled(self, number: Float) -> Float:
        """Numbers in the lab's unit on its scale; the impossible are held at the bounds."""
        plain = np.log(np.maximum(number, TINY)) if self.logged else number
        return np.asarray((np.clip(plain, self.low, self.high) - self.centre) / self.spread)

    def number(self, scaled: Float) -> Float:
        """Values of the lab's scale as numbers in its unit.

        >>> scale = LabScale("a", "mg/dL", True, 2.0, 0.5, -9.0, 9.0, 1.0, 0.5)
        >>> scale.number(scale.scaled(np.array([5.0]))).round(6).tolist()
        [5.0]
        """
        plain = self.centre + self.spread * scaled
        return np.asarray(np.exp(plain) if self.logged else plain)

    @classmethod
    def fit(cls, code: str, unit: str, subject: Index, number: Float, *, plain: bool = False) -> LabScale:
        """From the numbers of the training subjects (N,) and whose they are; `plain` takes no logarithms."""
        logarithm = np.log(np.maximum(number, TINY))
        positive = not plain and np.quantile(number, 0.01) > 0
        logged = bool(positive and _skewness(logarithm) < _skewness(number))
        x = logarithm if logged else number
        lower, upper = np.quantile(x, [0.25, 0.75])
        room = OUTLYING * (upper - lower)
        low, high = (lower - room, upper + room) if room else (x.min(), x.max())
        _, who, count = np.unique(subject, return_inverse=True, return_counts=True)
        # what is far from all others may be impossible, unless some people have it all the time: only their own values
        # reach as far, and what is said of everybody is not moved
        reach = _usual(who, x, lower - IMPOSSIBLE * (upper - lower), upper + IMPOSSIBLE * (upper - lower))
        held = min(low, reach[0]), max(high, reach[1])
        x = np.clip(x, low, high)
        mean = np.bincount(who, x) / count
        spread = float((upper - lower) / 1.349) or float(x.std())
        if spread < ONE_VALUE * max(1.0, abs(float(x.mean()))):
            spread = 1.0  # a constant: its values are all 0
        squares = float(((x - mean[who]) ** 2).sum()) / max(len(x) - len(mean), 1) / spread**2
        between = max(float(mean.var()) / spread**2 - squares * float((1 / count).mean()), 0.01)
        within = max(squares, 1e-4)
        return cls(
            code, unit, logged, float(mean.mean()), spread, float(held[0]), float(held[1]),
            float(np.clip(within / between, 0.05, 50)), float(np.sqrt(within)),
        )  # fmt: skip


def _usual(who: Index, x: Float, least: float, greatest: float) -> tuple[float, float]:
    """Between which values all but a few people have the middle of their own, of those who have three at least.

    Of an even number the one nearer to the middle of all counts. Middles beyond `least` and `greatest` do not count.

    >>> _usual(np.repeat(np.arange(8), 3), np.repeat([1.0, 2, 3, 4, 9, 9, 9, 99], 3), 0, 50)
    (3.0, 9.0)
    """
    order, count = np.lexsort((x, who)), np.bincount(who)
    first, some = (np.cumsum(count) - count)[count >= MIDDLE], count[count >= MIDDLE]
    below, above = (x[order[first + place]] for place in ((some - 1) // 2, some // 2))
    low, high = np.sort(above[above >= least]), np.sort(below[below <= greatest])
    few = max(FEWEST, round(USUAL * len(some))) - 1
    return float(low[few]) if few < len(low) else np.inf, float(high[-1 - few]) if few < len(high) else -np.inf


def _skewness(x: Float) -> float:
    """0 where symmetric, up to 1; by quantiles, so that the impossible does not decide."""
    low, middle, high = np.quantile(x, [0.05, 0.5, 0.95])
    return float(abs(high + low - 2 * middle) / (high - low)) if high > low else 0.0


@dataclass(frozen=True)
class LabEvents:
    """Measured values of S subjects, sorted by subject, lab and clinical time.

    lab (N,) number of the scale; value (N,) on its scale; time, known_time (N,) microseconds; subject s owns rows
    `offset[s]:offset[s + 1]`, and `group` (S * labs + 1,) does so for each subject and lab.
    """

    scales: tuple[LabScale, ...]
    lab: Index
    value: Float
    time: Index
    known_time: Index
    offset: Index
    group: Index

    @classmethod
    def of(cls, events: pl.DataFrame, subject_id: Index, scales: tuple[LabScale, ...]) -> LabEvents:
        """The values of the subjects in `subject_id` (sorted), one a moment: repeated ones become their mean."""
        n = len(scales)
        same = ["subject_id", "lab", "time", "known_time"]
        rows = at_once(
            lab_values(events)
            .filter(pl.col("subject_id").is_in(pl.Series(subject_id).implode()))
            .with_columns(place_among(pl.col("code") + UNIT + pl.col("unit"), _known(scales), "lab"))
            .filter(pl.col("lab") >= 0)
            # numbers too, so that a mean does not depend on the order of events, not even in its last bit
            .sort(*same, "number")
            .group_by(same, maintain_order=True)
            .agg(pl.col("number").mean())
        )
        lab, number = rows["lab"].to_numpy(), rows["number"].to_numpy()
        value = np.zeros(len(number))
        for i, scale in enumerate(scales):
            value[lab == i] = scale.scaled(number[lab == i])
        who = np.searchsorted(subject_id, rows["subject_id"].to_numpy())
        group = np.searchsorted(who * n + lab, np.arange(len(subject_id) * n + 1))
        return cls(
            scales, lab, value, microseconds(rows["time"]), microseconds(rows["known_time"]),
            np.searchsorted(who, np.arange(len(subject_id) + 1)).astype(np.int64), group.astype(np.int64),
        )  # fmt: skip

    def features(self, subject: Index, time: Index, lab: Index, span: float) -> Float:
        """(R, F) what is visible of a lab to each of R queries, columns `NAMES`; times in parts of `span` days.

        `level` is the mean of the subject's own values drawn to the population's; `last`, `recent` and `half` (means
        that fade within an eighth and a half of `span`) are differences from it. All 0 where nothing was measured.
        """
        out = np.zeros((len(subject), len(NAMES)))
        key = subject * len(self.scales) + lab
        start, length = self.group[key], self.group[key + 1] - self.group[key]
        for first, last in _chunks(length):
            some = slice(first, last)
            out[some] = self._features(time[some], lab[some], start[some], length[some], span)
        return out

    def _features(self, time: Index, lab: Index, start: Index, length: Index, span: float) -> Float:
        row, event = _expand(start, length)
        seen = visible(self.known_time[event], time[row])
        row, event = row[seen], event[seen]
        n_rows = len(time)
        ago = (time[row] - self.time[event]) / DAY / span
        value = self.value[event]
        prior = np.array([s.prior for s in self.scales])[lab]
        within = np.array([s.within for s in self.scales])[lab]

        def total(x: Float) -> Float:
            return np.bincount(row, x, minlength=n_rows).astype(np.float64)

        n = total(np.ones(len(row)))
        some = n > 0
        mean = total(value) / np.maximum(n, 1)
        level = n * mean / (n + prior)
        last = np.zeros(n_rows, np.int64)
        last[row] = np.arange(len(row))  # rows are in the order of time: the last one stays
        oldest, newest = np.full(n_rows, -np.inf), np.full(n_rows, np.inf)
        np.maximum.at(oldest, row, ago)
        np.minimum.at(newest, row, ago)
        out = np.zeros((n_rows, len(NAMES)))
        out[:, 0], out[:, 1], out[:, 2] = level, some, np.log1p(n)
        if len(row):
            out[:, 3] = value[last] - level
        out[some, 4], out[some, 5] = np.log(newest[some] + 1e-4), np.log(oldest[some] + 1e-4)
        for column, fade in ((6, 8.0), (7, 2.0)):
            weight = np.exp(-fade * ago)
            out[:, column] = total(weight * (value - level[row])) / (total(weight) + prior)
        middle = total(ago) / np.maximum(n, 1)
        square = total((ago - middle[row]) ** 2)
        out[:, 8] = -total((ago - middle[row]) * (value - mean[row])) / (square + 0.02 * prior)
        deviation = total((value - mean[row]) ** 2)
        out[:, 9] = np.log((deviation + 3 * within**2) / (np.maximum(n - 1, 0) + 3) / within**2)
        out[~some] = 0
        return out

    def following(self, subject: Index, time: Index, end: Index, edges: Float) -> tuple[Index, Index, Float, Float]:
        """The first value of each lab in each interval of `edges` (days) after each query: (query, lab, days, value).

        `end` (Q,) is the end of what may be looked at: a value counts where it is known by then.
        """
        found = []
        start, length = self.offset[subject], self.offset[subject + 1] - self.offset[subject]
        for first, last in _chunks(length):
            query, event = _expand(start[first:last], length[first:last])
            query += first
            days = (self.time[event] - time[query]) / DAY
            later = (self.time[event] > time[query]) & visible(self.known_time[event], end[query]) & (days <= edges[-1])
            query, event, days = query[later], event[later], days[later]
            interval = np.searchsorted(edges[1:], days, side="left")
            cell = (query * len(self.scales) + self.lab[event]) * len(edges) + interval
            new = np.append(True, cell[1:] != cell[:-1])[: len(cell)]  # in the order of time within a query and lab
            found.append((query[new], self.lab[event[new]], days[new], self.value[event[new]]))
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        return columns[0], columns[1], columns[2], columns[3]


@lru_cache(maxsize=16)
def _known(scales: tuple[LabScale, ...]) -> pl.Enum:
    return pl.Enum([f"{s.code}{UNIT}{s.unit}" for s in scales])


def lab_values(events: pl.DataFrame) -> pl.LazyFrame:
    """`subject_id, code, unit, time, known_time, number` of the events that have a time and a finite number.

    >>> from datetime import datetime
    >>> day = datetime(2020, 1, 1)
    >>> events = pl.DataFrame({"subject_id": [1, 1], "code": ["a", "b"], "unit": ["g", None], "time": [day, day],
    ...                        "known_time": [day, day], "numeric_value": [2.0, float("inf")]})
    >>> lab_values(events).collect()["code"].to_list()
    ['a']
    """
    read = events.lazy().select("subject_id", "code", "unit", "time", "known_time", "numeric_value")
    return read.filter(pl.col("numeric_value").is_finite() & pl.col("time").is_not_null()).select(
        "subject_id", "code", pl.col("unit").fill_null(""), "time", "known_time",
        number=pl.col("numeric_value").cast(pl.Float64),
    )  # fmt: skip


def _expand(start: Index, length: Index) -> tuple[Index, Index]:
    """Row of the query and of the event for each pair."""
    row = np.repeat(np.arange(len(start)), length)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(length) - length - start, length)


def _chunks(length: Index) -> Any:
    """Bounds of runs of queries with at most PAIRS events together (or one query)."""
    first, total = 0, np.cumsum(length)
    while first < len(length):
        before = total[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(total, before + PAIRS, side="right")))
        yield first, last
        first = last
    if not len(length):
        yield 0, 0
