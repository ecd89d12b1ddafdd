"""What the training population looked like, in aggregates, and the same counts of a population that is scored.

Both are taken at one moment a subject: of training subjects the end of their follow-up, of the others their last
prediction time; from what was known by then. Events are counted by how long a record had been running when they became
known: right after enrolment they are more frequent, and a record that is cut earlier has more of that.
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
TENTHS = np.linspace(0.1, 0.9, 9)
TAILS = (0.01, 0.99)
POINTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of a follow-up, at which training subjects are asked for their age
_T = pl.col("prediction_time")


@dataclass(frozen=True)
class Rate:
    """Events of a code, or of all codes of a system (`SYSTEM//*`), in each band of the records, and how much more the
    counts of subjects vary than chance alone would make them (1: no more)."""

    events: tuple[float, ...]
    dispersion: float


@dataclass(frozen=True)
class ValueProfile:
    """The last value of each subject: shares between `edges`, and outside `low` to `high`."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    low: float
    high: float
    outside: float
    subjects: int


@dataclass(frozen=True)
class Profile:
    """Aggregates of the training subjects; nothing is told of a code that fewer than `minimum` of them have.

    `years` of records in each band; `rates` by code or system; `values` by code and unit; `other_units`, the share of a
    code's numbers in none of these units; `unknown`, the share of events that the vocabulary does not understand; ages
    over the whole follow-up, as `fit` draws its landmarks, and shares of the sexes.
    """

    subjects: int
    minimum: int
    years: tuple[float, ...]
    rates: dict[str, Rate]
    values: dict[tuple[str, str], ValueProfile]
    other_units: dict[str, float]
    unknown: float
    age_edges: tuple[float, ...]
    age_shares: tuple[float, ...]
    sex: dict[str, float]

    @classmethod
    def fit(cls, timelines: Timelines, vocabulary: Vocabulary, minimum: int) -> Profile:
        """From the training subjects."""
        seen = _Seen(timelines, timelines.subjects.select("subject_id", prediction_time="follow_up_end").drop_nulls())
        values = {
            (str(code), str(unit)): _value_profile(rows["value"].to_numpy())
            for (code, unit), rows in seen.last_values(vocabulary).group_by("code", "unit")
            if rows.height >= minimum
        }
        known = seen.understood(vocabulary).to_numpy()
        numbers, others = Counter[str](), Counter[str]()
        for code, unit, n in seen.numbers().select("code", "unit", "events").iter_rows():
            numbers[code] += n
            others[code] += n * ((code, unit) not in values)
        ages, weight = _ages_over_follow_up(timelines.subjects)
        edges = _weighted_quantiles(ages, weight, TENTHS)
        sexes = seen.sexes()
        return cls(
            subjects=seen.subjects.height, minimum=minimum, years=tuple(seen.years.sum(0).tolist()),
            rates=seen.rates(minimum), values=dict(sorted(values.items())),
            other_units={c: others[c] / numbers[c] for c in sorted({c for c, _ in values})},
            unknown=float(1 - known.mean()) if len(known) else 0.0,
            age_edges=tuple(edges.tolist()), age_shares=tuple(_shares(ages, edges, weight).tolist()),
            sex={k: n / seen.subjects.height for k, n in sexes.items() if n >= minimum},
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {name: getattr(self, name) for name in ("subjects", "minimum", "other_units", "unknown", "sex")}
        return plain | {
            "bands": list(BANDS), "years": list(self.years), "age_edges": list(self.age_edges),
            "age_shares": list(self.age_shares),
            "rates": {key: [list(r.events), r.dispersion] for key, r in self.rates.items()},
            "values": [
                {"code": c, "unit": u, **{k: list(x) if isinstance(x, tuple) else x for k, x in vars(v).items()}}
                for (c, u), v in self.values.items()
            ],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Profile:
        """What `to_dict` wrote; KeyError, TypeError, ValueError where it is none."""
        if tuple(content["bands"]) != BANDS:
            raise ValueError("other bands")
        values = {}
        for row in content["values"]:
            facts: dict[str, Any] = {
                k: tuple(x) if isinstance(x, list) else x for k, x in row.items() if k not in ("code", "unit")
            }
            values[row["code"], row["unit"]] = ValueProfile(**facts)
        plain: dict[str, Any] = {
            name: content[name] for name in ("subjects", "minimum", "other_units", "unknown", "sex")
        }
        plain |= {name: tuple(content[name]) for name in ("years", "age_edges", "age_shares")}
        return cls(
            **plain, values=values, rates={k: Rate(tuple(e), float(d)) for k, (e, d) in content["rates"].items()},
        )  # fmt: skip


@dataclass
class Observed:
    """Counts of a population that is scored, or of a part of it: they add up.

    Keys are those of the profile they are taken for; `numbers` and `unknown` count by code (and unit) what the profile
    does not have.
    """

    subjects: int = 0
    years: list[float] = field(default_factory=lambda: [0.0] * len(BANDS))
    events: Counter[str] = field(default_factory=Counter)
    known: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    unknown_subjects: Counter[str] = field(default_factory=Counter)
    values: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    outside: Counter[tuple[str, str]] = field(default_factory=Counter)
    numbers: Counter[tuple[str, str]] = field(default_factory=Counter)
    ages: list[int] = field(default_factory=list)
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
        other = seen.events.filter(~known).group_by("code").agg(n=pl.len(), s=pl.col("subject_id").n_unique())
        found = cls(
            subjects=seen.subjects.height, years=seen.years.sum(0).tolist(), known=int(known.sum()),
            events=Counter({k: n for k, n in seen.counts().iter_rows() if k in profile.rates}),
            unknown=Counter(dict(other.select("code", "n").iter_rows())),
            unknown_subjects=Counter(dict(other.select("code", "s").iter_rows())),
            numbers=Counter({(c, u): n for c, u, n in seen.numbers().select("code", "unit", "events").iter_rows()
                             if c in profile.other_units}),
            sex=seen.sexes(),
        )  # fmt: skip
        ages = seen.ages()
        found.ages = _bins(ages[~np.isnan(ages)], np.array(profile.age_edges)).tolist()
        for (code, unit), rows in seen.last_values(vocabulary).group_by("code", "unit"):
            key = (str(code), str(unit))
            if key in profile.values:
                value, scale = rows["value"].to_numpy(), profile.values[key]
                found.values[key] = _bins(value, np.array(scale.edges)).tolist()
                found.outside[key] = int(((value < scale.low) | (value > scale.high)).sum())
        return found

    def add(self, other: Observed) -> None:
        """Count the people of another part too."""
        self.subjects += other.subjects
        self.known += other.known
        self.years = [a + b for a, b in zip(self.years, other.years, strict=True)]
        # a part in which nobody was asked about has no bins
        self.ages = [a + b for a, b in zip_longest(self.ages, other.ages, fillvalue=0)]
        for name in ("events", "unknown", "unknown_subjects", "outside", "numbers", "sex"):
            getattr(self, name).update(getattr(other, name))
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
            facts |= {name: {(c, u): n for c, u, n in part[name]} for name in _PAIRED}
            total.add(cls(**facts))
        return total


_PAIRED = ("values", "outside", "numbers")


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

    def counts(self) -> pl.DataFrame:
        """`key` and its number of events."""
        found = [self.events.select(key=pl.col(name)).group_by("key").len("n") for name in ("code", "_system")]
        return pl.concat(found).sort("key")

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
        """Numbers by `code` and `unit`."""
        return self._numeric().group_by("code", "unit").agg(events=pl.len()).sort("code", "unit")

    def last_values(self, vocabulary: Vocabulary) -> pl.DataFrame:
        """The last `value` of each subject, `code` and `unit` of the vocabulary."""
        scales = pl.DataFrame(
            [(s.code, s.unit) for s in vocabulary.scales], {"code": pl.String, "unit": pl.String}, orient="row"
        )
        rows = self._numeric().join(scales, on=["code", "unit"], how="semi")
        ordered = rows.sort("subject_id", "code", "unit", "time", "known_time", "value")
        return ordered.group_by("subject_id", "code", "unit", maintain_order=True).agg(pl.col("value").last())

    def ages(self) -> Float:
        """In years; NaN without a birth date."""
        age = (_T - pl.col("birth_time")).dt.total_microseconds() / YEAR
        return self.subjects.select(age.fill_null(np.nan)).to_series().to_numpy()

    def sexes(self) -> Counter[str]:
        """How many of each."""
        return Counter(dict(self.subjects["sex"].fill_null("unknown").value_counts().sort("sex").iter_rows()))


def _ages_over_follow_up(subjects: pl.DataFrame) -> tuple[Float, Float]:
    """Ages at some points of each follow-up, and the length of the follow-up as their weight."""
    whole = subjects.drop_nulls(["birth_time", "follow_up_start", "follow_up_end"])
    birth, start, end = (
        whole[c].dt.epoch("us").to_numpy() / YEAR for c in ("birth_time", "follow_up_start", "follow_up_end")
    )
    ages = np.concatenate([start + point * (end - start) - birth for point in POINTS])
    return ages, np.tile(np.maximum(end - start, 1e-6), len(POINTS))


def _value_profile(value: Float) -> ValueProfile:
    edges = np.unique(np.quantile(value, TENTHS))
    low, high = np.quantile(value, TAILS)
    outside = float(((value < low) | (value > high)).mean())
    shares = _shares(value, edges, np.ones(len(value)))
    return ValueProfile(tuple(edges.tolist()), tuple(shares.tolist()), float(low), float(high), outside, len(value))


def _bins(value: Float, edges: Float) -> NDArray[np.int64]:
    """How many values are in each of the len(edges) + 1 bins; one at an edge is in the bin below.

    >>> _bins(np.array([1.0, 2.0, 3.0]), np.array([2.0])).tolist()
    [2, 1]
    """
    return np.bincount(np.searchsorted(edges, value, side="left"), minlength=len(edges) + 1).astype(np.int64)


def _shares(value: Float, edges: Float, weight: Float) -> Float:
    found = np.bincount(np.searchsorted(edges, value, side="left"), weight, minlength=len(edges) + 1)
    return np.asarray(found / max(weight.sum(), 1e-12))


def _weighted_quantiles(value: Float, weight: Float, levels: Float) -> Float:
    """Distinct quantiles of weighted values."""
    if not len(value):
        return np.zeros(0)
    order = np.argsort(value)
    cumulative = np.cumsum(weight[order]) / weight.sum()
    at = np.minimum(np.searchsorted(cumulative, levels), len(value) - 1)
    return np.unique(value[order][at])


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
