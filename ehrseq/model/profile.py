"""What the training population looked like, in aggregates, and the same counts of a population that is scored.

Both are taken at one moment a subject: of training subjects the end of their follow-up, of the others their last
prediction time; from what was known by then. Events are counted by how long a record had been running when they became
known: right after enrolment they are more frequent, and a record that is cut earlier has more of that. Ages are taken
at the start of follow-up as well, which no prediction time changes. Everyone asked about counts, also who is not scored
(the dead): they are among the training subjects, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.task.history import visible
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY
from ehrseq.tokens.vocabulary import Vocabulary, model_events

Float = NDArray[np.float64]
YEAR = 365.25 * MICROSECONDS_PER_DAY
BANDS = (0.0, 1.0, 5.0)  # years of a record at which a band of it begins
VERSION = 2  # of what `to_dict` writes
TAIL, WIDEST_TAIL = 0.01, 0.05  # share of the subjects beyond each end; the widest where 1% are too few to tell of
_T = pl.col("prediction_time")


@dataclass(frozen=True)
class Rate:
    """Events of a code, or of all codes of a system (`SYSTEM//*`), in each band of the records, and how much more the
    counts of subjects vary than chance alone would make them (1: no more)."""

    events: tuple[float, ...]
    dispersion: float


@dataclass(frozen=True)
class Spread:
    """One number of each of some subjects: the share of them in each bin between `edges` (without edges: all in one).

    Every bin has at least `minimum` subjects, and every edge is the mean of as many neighbours: none is one person's.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    subjects: int


@dataclass(frozen=True)
class ValueProfile:
    """The last value of each subject, and the share `outside` of `low` to `high`, None where these are too few."""

    spread: Spread
    low: float | None
    high: float | None
    outside: float


@dataclass(frozen=True)
class Profile:
    """Aggregates of the training subjects; nothing is told of a code that fewer than `minimum` of them have.

    `years` of records in each band; `rates` by code or system; `values` by code and unit; `other_units`, the share of a
    code's numbers in none of these units; `unknown`, the share of events that the vocabulary does not understand;
    `ages` in years at the `start` and the `end` of follow-up, and shares of the sexes.
    """

    subjects: int
    minimum: int
    years: tuple[float, ...]
    rates: dict[str, Rate]
    values: dict[tuple[str, str], ValueProfile]
    other_units: dict[str, float]
    unknown: float
    ages: dict[str, Spread]
    sex: dict[str, float]

    @classmethod
    def fit(cls, timelines: Timelines, vocabulary: Vocabulary, minimum: int) -> Profile:
        """From the training subjects."""
        seen = _Seen(timelines, timelines.subjects.select("subject_id", prediction_time="follow_up_end").drop_nulls())
        values = {
            (str(code), str(unit)): _value_profile(rows["value"].to_numpy(), minimum)
            for (code, unit), rows in seen.last_values(vocabulary).group_by("code", "unit")
            if rows.height >= minimum
        }
        known = seen.understood(vocabulary).to_numpy()
        numbers, others = Counter[str](), Counter[str]()
        for code, unit, n in seen.numbers().group_by("code", "unit").agg(pl.col("events").sum()).iter_rows():
            numbers[code] += n
            others[code] += n * ((code, unit) not in values)
        sexes = seen.sexes()
        return cls(
            subjects=seen.subjects.height, minimum=minimum, years=tuple(seen.years.sum(0).tolist()),
            rates=seen.rates(minimum), values=dict(sorted(values.items())),
            other_units={c: others[c] / numbers[c] for c in sorted({c for c, _ in values})},
            unknown=float(1 - known.mean()) if len(known) else 0.0,
            ages={name: _spread(age, minimum) for name, age in seen.ages().items()},
            sex={k: n / seen.subjects.height for k, n in sexes.items() if n >= minimum},
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {
            "version": VERSION, "bands": list(BANDS), "years": list(self.years),
            "ages": {name: _as_lists(spread) for name, spread in self.ages.items()},
            "rates": {key: [list(r.events), r.dispersion] for key, r in self.rates.items()},
            "values": [
                {"code": c, "unit": u, **vars(v), "spread": _as_lists(v.spread)} for (c, u), v in self.values.items()
            ],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Profile | None:
        """What `to_dict` wrote, None of an earlier version; KeyError, TypeError, ValueError where it is none."""
        if content.get("version", 1) < VERSION:
            return None
        if tuple(content["bands"]) != BANDS:
            raise ValueError("other bands")
        plain: dict[str, Any] = {name: content[name] for name in _PLAIN}
        values = {}
        for row in content["values"]:
            facts = {k: x for k, x in row.items() if k not in ("code", "unit", "spread")}
            values[row["code"], row["unit"]] = ValueProfile(_spread_of(row["spread"]), **facts)
        return cls(
            **plain, values=values, years=tuple(content["years"]),
            ages={name: _spread_of(spread) for name, spread in content["ages"].items()},
            rates={k: Rate(tuple(e), float(d)) for k, (e, d) in content["rates"].items()},
        )  # fmt: skip


_PLAIN = ("subjects", "minimum", "other_units", "unknown", "sex")


@dataclass
class Observed:
    """Counts of a population that is scored, or of a part of it: they add up.

    Keys are those of the profile they are taken for: of `events`, of the `people` who have some, and of the `squares`
    of each one's number, in the bands that training has years in. `numbers` and their `unit_people` count by code and
    unit, `measured` people with a number of the code, `other_unit_people` those with one in a unit that the profile
    does not have. `unknown` and `unknown_subjects` count by code what the vocabulary does not understand,
    `unknown_people` those who have any such event. Ages are bins: at the start, and the end of what is seen.
    """

    subjects: int = 0
    years: list[float] = field(default_factory=lambda: [0.0] * len(BANDS))
    events: Counter[str] = field(default_factory=Counter)
    people: Counter[str] = field(default_factory=Counter)
    squares: Counter[str] = field(default_factory=Counter)
    known: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    unknown_subjects: Counter[str] = field(default_factory=Counter)
    unknown_people: int = 0
    values: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    outside: Counter[tuple[str, str]] = field(default_factory=Counter)
    numbers: Counter[tuple[str, str]] = field(default_factory=Counter)
    unit_people: Counter[tuple[str, str]] = field(default_factory=Counter)
    measured: Counter[str] = field(default_factory=Counter)
    other_unit_people: Counter[str] = field(default_factory=Counter)
    start_ages: list[int] = field(default_factory=list)
    end_ages: list[int] = field(default_factory=list)
    sex: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, profile: Profile | None, vocabulary: Vocabulary, timelines: Timelines, asked: pl.DataFrame) -> Observed:
        """Of the subjects asked about (`subject_id`, `prediction_time`), at the last prediction time of each.

        `vocabulary` has the parents of codes that these timelines bring. Nothing is counted without a profile.
        """
        if profile is None or not asked.height:
            return cls()
        seen = _Seen(timelines, asked.group_by("subject_id").agg(_T.max()))
        known = seen.understood(vocabulary)
        other = seen.events.filter(~known)
        codes = other.group_by("code").agg(n=pl.len(), s=pl.col("subject_id").n_unique())
        found = cls(
            subjects=seen.subjects.height, years=seen.years.sum(0).tolist(), known=int(known.sum()),
            unknown=Counter(dict(codes.select("code", "n").iter_rows())),
            unknown_subjects=Counter(dict(codes.select("code", "s").iter_rows())),
            unknown_people=other["subject_id"].n_unique(), sex=seen.sexes(),
        )  # fmt: skip
        for key, events, people, squares in seen.counts([b for b, y in enumerate(profile.years) if y > 0]).iter_rows():
            if key in profile.rates:
                found.events[key], found.people[key], found.squares[key] = events, people, squares
        found._count_values(profile, vocabulary, seen)
        ages = {name: _bins(age, np.array(profile.ages[name].edges)).tolist() for name, age in seen.ages().items()}
        found.start_ages, found.end_ages = ages["start"], ages["end"]
        return found

    def _count_values(self, profile: Profile, vocabulary: Vocabulary, seen: _Seen) -> None:
        numbers = seen.numbers().filter(pl.col("code").is_in(list(profile.other_units)))
        counts = numbers.group_by("code", "unit").agg(pl.col("events").sum(), people=pl.len())
        for code, unit, events, people in counts.iter_rows():
            self.numbers[code, unit], self.unit_people[code, unit] = events, people
        read = pl.DataFrame(list(profile.values), {"code": pl.String, "unit": pl.String}, orient="row")
        other = numbers.join(read, on=["code", "unit"], how="anti")
        for rows, found in ((numbers, self.measured), (other, self.other_unit_people)):
            found.update(dict(rows.group_by("code").agg(pl.col("subject_id").n_unique()).iter_rows()))
        for (code, unit), rows in seen.last_values(vocabulary).group_by("code", "unit"):
            key = (str(code), str(unit))
            if key in profile.values:
                value, scale = rows["value"].to_numpy(), profile.values[key]
                self.values[key] = _bins(value, np.array(scale.spread.edges)).tolist()
                if scale.low is not None and scale.high is not None:
                    self.outside[key] = int(((value < scale.low) | (value > scale.high)).sum())

    def add(self, other: Observed) -> None:
        """Count the people of another part too."""
        self.subjects += other.subjects
        self.known += other.known
        self.unknown_people += other.unknown_people
        self.years = [a + b for a, b in zip(self.years, other.years, strict=True)]
        # a part in which nobody was asked about has no bins
        self.start_ages = [a + b for a, b in zip_longest(self.start_ages, other.start_ages, fillvalue=0)]
        self.end_ages = [a + b for a, b in zip_longest(self.end_ages, other.end_ages, fillvalue=0)]
        for name, counts in vars(other).items():
            if isinstance(counts, Counter):
                getattr(self, name).update(counts)
        for key, bins in other.values.items():
            self.values[key] = [a + b for a, b in zip(self.values.get(key, [0] * len(bins)), bins, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        paired = {name: [[*k, n] for k, n in sorted(getattr(self, name).items())] for name in _PAIRED}
        return {**vars(self), **paired}

    @classmethod
    def sum(cls, parts: Iterable[dict[str, Any]]) -> Observed:
        """All parts together, from what `to_dict` wrote of each."""
        total = cls()
        for part in parts:
            facts: dict[str, Any] = {k: Counter(x) if isinstance(x, dict) else x for k, x in part.items()}
            facts |= {name: Counter({(c, u): n for c, u, n in part[name]}) for name in _PAIRED}
            facts["values"] = dict(facts["values"])
            total.add(cls(**facts))
        return total


_PAIRED = ("values", "outside", "numbers", "unit_people")


class _Seen:
    """What was known of some subjects at one moment each: `asked` has `subject_id` and `prediction_time`."""

    def __init__(self, timelines: Timelines, asked: pl.DataFrame) -> None:
        columns = ["subject_id", "code", "known_time", "time", "numeric_value", "unit"]
        events = model_events(timelines.events).filter(pl.col("known_time").is_not_null()).select(columns)
        events = events.join(asked, on="subject_id").filter(visible(pl.col("known_time"), _T))
        begun = events.group_by("subject_id").agg(_first=pl.col("known_time").min())
        people = timelines.subjects.join(asked, on="subject_id").join(begun, on="subject_id", how="left")
        if "sex" not in people.columns:
            people = people.with_columns(sex=pl.lit(None, pl.String))
        start = pl.min_horizontal("_first", "observation_start")
        # nothing is recorded of anyone after the end of follow-up
        end = pl.min_horizontal(_T, "follow_up_end")
        years = ((end - start).dt.total_microseconds() / YEAR).clip(lower_bound=0).fill_null(0)
        self.subjects = people.with_columns(_start=start, _years=years).sort("subject_id")
        total = self.subjects["_years"].to_numpy()
        ends = [*BANDS[1:], np.inf]
        bands = [np.clip(total, low, high) - low for low, high in zip(BANDS, ends, strict=True)]
        self.years: Float = np.column_stack([np.maximum(b, 0) for b in bands])
        row = self.subjects.select("subject_id", "_start").with_row_index("_row")
        into = (pl.col("known_time") - pl.col("_start")).dt.total_microseconds() / YEAR
        band = sum((into >= low).cast(pl.Int8) for low in BANDS[1:])
        self.events = events.join(row, on="subject_id").with_columns(
            _band=band, _system=pl.col("code").str.extract(r"^((?:\w+://)?.*?)(?://|$)") + "//*"
        )

    def _by_key(self) -> pl.DataFrame:
        """Events of each subject, code or system, and band."""
        keyed = [self.events.select("_row", "_band", key=pl.col(name)) for name in ("code", "_system")]
        return pl.concat(keyed).group_by("_row", "key", "_band").agg(n=pl.len().cast(pl.Float64))

    def counts(self, bands: list[int]) -> pl.DataFrame:
        """`key`, its number of events in some bands, how many have one, and the squares of each one's number."""
        within = self._by_key().filter(pl.col("_band").is_in(bands))
        n = pl.col("n")
        found = within.group_by("_row", "key").agg(n.sum().cast(pl.Int64)).group_by("key")
        return found.agg(n.sum(), people=pl.len(), squares=(n * n).sum()).sort("key")

    def rates(self, minimum: int) -> dict[str, Rate]:
        """The rate of each key that enough subjects have."""
        cells = self._by_key()
        enough = cells.group_by("key").agg(s=pl.col("_row").n_unique()).filter(pl.col("s") >= minimum)
        years, squares = self.years.sum(0), self.years.T @ self.years
        out = {}
        for (key,), rows in sorted(cells.join(enough, on="key").group_by("key"), key=lambda item: str(item[0][0])):
            band, n, who = (rows[c].to_numpy() for c in ("_band", "n", "_row"))
            counted = np.bincount(band, n, minlength=len(BANDS)).astype(np.float64)
            events = _blurred(counted, np.bincount(band, minlength=len(BANDS)), years, minimum)
            rate = np.divide(events, years, out=np.zeros(len(years)), where=years > 0)
            people, number = np.unique(who, return_inverse=True)
            x, e = np.bincount(number, n), self.years[people] @ rate
            # over everybody: those without the code differ from their expectation by all of it
            spread = rate @ squares @ rate + (x * (x - 2 * e)).sum()
            out[str(key)] = Rate(tuple(events.tolist()), float(max(1.0, spread / max(events.sum(), 1e-9))))
        return out

    def understood(self, vocabulary: Vocabulary) -> pl.Series:
        """Which events the vocabulary has, or backs off to an ancestor for."""
        codes = vocabulary.understood(self.events["code"])
        return self.events["code"].is_in(pl.Series(codes, dtype=pl.String).implode())

    def _numeric(self) -> pl.DataFrame:
        rows = self.events.filter(pl.col("numeric_value").is_finite())
        return rows.select(
            "subject_id", "code", "time", "known_time", unit=pl.col("unit").fill_null(""),
            value=pl.col("numeric_value").cast(pl.Float64),
        )  # fmt: skip

    def numbers(self) -> pl.DataFrame:
        """How many numbers (`events`) each subject has by `code` and `unit`."""
        return self._numeric().group_by("subject_id", "code", "unit").agg(events=pl.len())

    def last_values(self, vocabulary: Vocabulary) -> pl.DataFrame:
        """The last `value` of each subject, `code` and `unit` of the vocabulary."""
        scales = pl.DataFrame(
            [(s.code, s.unit) for s in vocabulary.scales], {"code": pl.String, "unit": pl.String}, orient="row"
        )
        rows = self._numeric().join(scales, on=["code", "unit"], how="semi")
        ordered = rows.sort("subject_id", "code", "unit", "time", "known_time", "value")
        return ordered.group_by("subject_id", "code", "unit", maintain_order=True).agg(pl.col("value").last())

    def ages(self) -> dict[str, Float]:
        """In years, at the `start` of follow-up and the `end` of what is seen of it; of those who have one by then."""
        begun = self.subjects.filter(visible(pl.col("follow_up_start"), _T)).drop_nulls("birth_time")
        ends = {"start": pl.col("follow_up_start"), "end": pl.min_horizontal(_T, "follow_up_end")}
        age = {name: (end - pl.col("birth_time")).dt.total_microseconds() / YEAR for name, end in ends.items()}
        return {name: begun.select(years).to_series().to_numpy() for name, years in age.items()}

    def sexes(self) -> Counter[str]:
        """How many of each."""
        return Counter(dict(self.subjects["sex"].fill_null("unknown").value_counts().sort("sex").iter_rows()))


def _value_profile(value: Float, minimum: int) -> ValueProfile:
    spread, ordered = _spread(value, minimum), np.sort(value)
    share = max(TAIL, minimum / len(value))
    if share > WIDEST_TAIL or not spread.edges:
        return ValueProfile(spread, None, None, 0.0)
    low, high = (_around(ordered, level, minimum) for level in (share, 1 - share))
    return ValueProfile(spread, low, high, float(((value < low) | (value > high)).mean()))


def _spread(value: Float, minimum: int) -> Spread:
    """Tenths, or as many equal parts as leave `minimum` values in each.

    >>> made = _spread(np.arange(40.0), 10)
    >>> made.edges, made.shares
    ((9.5, 19.5, 29.5), (0.25, 0.25, 0.25, 0.25))
    >>> _spread(np.arange(19.0), 10)
    Spread(edges=(), shares=(1.0,), subjects=19)
    """
    ordered, edges, below = np.sort(value), list[float](), 0
    parts = min(10, len(value) // minimum)
    for level in np.arange(1, parts) / max(parts, 1):
        edge = _around(ordered, level, minimum)
        n = int(np.searchsorted(ordered, edge, side="right"))
        if n - below >= minimum and len(value) - n >= minimum:
            edges.append(edge)
            below = n
    shares = _bins(value, np.array(edges)) / max(len(value), 1)
    return Spread(tuple(edges), tuple(shares.tolist()), len(value))


def _around(ordered: Float, level: float, n: int) -> float:
    """The mean of the `n` values around a quantile."""
    first = min(max(round(level * len(ordered) - n / 2), 0), max(len(ordered) - n, 0))
    return float(ordered[first : first + n].mean())


def _as_lists(spread: Spread) -> dict[str, Any]:
    return {"edges": list(spread.edges), "shares": list(spread.shares), "subjects": spread.subjects}


def _spread_of(content: dict[str, Any]) -> Spread:
    return Spread(tuple(content["edges"]), tuple(content["shares"]), int(content["subjects"]))


def _bins(value: Float, edges: Float) -> NDArray[np.int64]:
    """How many values are in each of the len(edges) + 1 bins; one at an edge is in the bin below.

    >>> _bins(np.array([1.0, 2.0, 3.0]), np.array([2.0])).tolist()
    [2, 1]
    """
    return np.bincount(np.searchsorted(edges, value, side="left"), minlength=len(edges) + 1).astype(np.int64)


def _blurred(events: Float, people: NDArray[np.int64], years: Float, minimum: int) -> Float:
    """Events by band, those of bands that fewer than `minimum` people have shared out among these (and as many others
    as it takes) by their years: a few people's events are not told apart.

    >>> _blurred(np.array([2.0, 30.0, 40.0]), np.array([2, 15, 20]), np.array([1.0, 3.0, 4.0]), 10).tolist()
    [8.0, 24.0, 40.0]
    """
    order = np.argsort(people, kind="stable")
    order = order[people[order] > 0]
    n, few = 0, int((people[order] < minimum).sum())
    if few:
        n = next(k for k in range(few, len(order) + 1) if people[order[:k]].sum() >= minimum or k == len(order))
    pool = order[:n]
    out = events.astype(np.float64)
    if n and years[pool].sum() > 0:
        out[pool] = events[pool].sum() * years[pool] / years[pool].sum()
    return out
