"""The timeline's column contract: names, types and units, and what is checked of a frame handed in.

An *event* is one coded fact at a time. `time` is when it happened clinically, `known_time` the earliest
moment by which it was certainly known; both are UTC without a time zone, in microseconds. Static facts (sex,
race) have neither and are always visible. A date stands for the whole day: `time` is its first microsecond
and `known_time` its last.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrseq.errors import DataWarning, TimelineError
from ehrseq.fhir.clock import FIRST_YEAR, LAST_YEAR
from ehrseq.frames import places, to_polars

TIME = pl.Datetime("us")

EVENT_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "time": TIME,
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "value_modifier": pl.String,  # a comparator (<, <=, >=, >, ad) or the reason a value is absent
    "unit": pl.String,
    "known_time": TIME,
    "time_source": pl.Categorical,
    "time_precision": pl.Categorical,  # year, month, day, minute, second
    "utc_offset": pl.Int16,  # minutes, as written in the record
    "encounter_id": pl.String,
    "resource_type": pl.String,
    "resource_id": pl.String,
    "other_codes": pl.List(pl.String),  # further codings of the same concept, sorted; null where there is only one
    "unit_recorded": pl.String,  # the unit as written, where `unit` is another; null where it is not
}

SUBJECT_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "patient": pl.String,  # the FHIR logical id (or identifier): how a user names the subject
    "birth_time": TIME,
    "sex": pl.String,
    "race": pl.String,
    "ethnicity": pl.String,
    "death_time": TIME,  # last microsecond of the day for a day-precision death
    "follow_up_start": TIME,
    "follow_up_end": TIME,
    "follow_up_rule": pl.String,  # observation_period, data_cut, last_contact or last_contact_undated_death
    "observation_start": TIME,  # of the observation periods in the data; null where there are none
}

SPLIT_SCHEMA: dict[str, Any] = {"subject_id": pl.Int64, "split": pl.String}
SPLITS = ("train", "tuning", "held_out")

CODE_SCHEMA: dict[str, Any] = {
    "code": pl.String,
    "description": pl.String,
    "parent_codes": pl.List(pl.String),
}

REQUIRED_EVENT_COLUMNS = ("subject_id", "time", "code")
BIRTH_CODE = "MEDS_BIRTH"
DEATH_CODE = "MEDS_DEATH"


def validate_events(frame: pl.DataFrame) -> None:
    """Raise TimelineError where an event frame cannot be a timeline; changes nothing."""
    missing = [c for c in REQUIRED_EVENT_COLUMNS if c not in frame.columns]
    if missing:
        raise TimelineError(
            f"an event frame with columns {', '.join(REQUIRED_EVENT_COLUMNS)}",
            f"no column {', '.join(missing)}",
            "rename or add the columns (see the timeline contract in the docs)",
        )
    for column, wanted, fits, next_step in (
        ("subject_id", "integers", _is_integer, "number the subjects with integers"),
        ("time", "datetimes", _is_time, "convert it to datetimes"),
        ("known_time", "datetimes", _is_time, "convert it to datetimes"),
        ("code", "text", _is_text, "write codes as SYSTEM//value"),
    ):
        # a column of nothing but nulls has whatever type its library gave it
        if column in frame.columns and not fits(frame.schema[column]) and frame[column].null_count() < frame.height:
            raise TimelineError(f"{wanted} in column {column}", f"type {frame.schema[column]}", next_step)
    for column in ("subject_id", "code"):
        nulls = frame[column].null_count()
        if nulls:
            raise TimelineError(f"a {column} on every event", f"{nulls} events without", "drop or fill them")


def normalise_events(frame: Any) -> pl.DataFrame:
    """An event frame (polars, pandas, Arrow) in the contract's columns, types and order.

    Columns that are absent are filled with nulls and other columns are left out; `known_time` defaults to
    `time` and is never before it; times with a zone become UTC; an event dated by the day alone (a `Date`
    column) is known at the end of that day; a static event has no `known_time`; rows are sorted by subject,
    time (static first) and code. Events dated in years that stand for none (before 1800 or from 2500 on) are left out,
    with a DataWarning.

    >>> normalise_events({"subject_id": [1], "time": [None], "code": ["SEX//female"]}).columns[:3]
    ['subject_id', 'time', 'code']
    """
    given = to_polars(frame)
    validate_events(given)
    known = given["known_time" if "known_time" in given.columns else "time"].rename("known_time")
    events = conform(
        given.with_columns(instants(given["time"]), instants(known, end_of_day=True)), EVENT_SCHEMA, "event"
    )
    none = stand_for_none(events["time"]) | stand_for_none(events["known_time"])
    if count := int(none.sum()):
        warn_of_none("events", count, "they are left out")
        events = events.filter(~none)
    # max_horizontal passes over nulls: a fact without a known time is known when it happens
    known_time = pl.when(pl.col("time").is_not_null()).then(pl.max_horizontal("known_time", "time"))
    return sort_events(events.with_columns(_distinct_codes(events), known_time=known_time))


def stand_for_none(times: pl.Series) -> pl.Series:
    """Whether each time lies in a year that systems write where they have no date.

    >>> stand_for_none(pl.Series([datetime(9999, 12, 31), datetime(2020, 1, 1), None])).to_list()
    [True, False, False]
    """
    return ((times < datetime(FIRST_YEAR, 1, 1)) | (times >= datetime(LAST_YEAR + 1, 1, 1))).fill_null(False)


def warn_of_none(what: str, count: int, done: str) -> None:
    """A DataWarning of dates that stand for none."""
    warnings.warn(
        f"expected dates from {FIRST_YEAR} to {LAST_YEAR}, found {count:,} {what} with others: {done}; set them to "
        "null where they stand for none",
        DataWarning,
        stacklevel=3,
    )


def normalise_splits(frame: Any) -> pl.DataFrame:
    """A split table in the contract's columns and order: one row for each subject that has a split.

    >>> normalise_splits({"subject_id": [2, 1], "split": ["train", None]}).rows()
    [(2, 'train')]
    """
    table = conform(to_polars(frame), SPLIT_SCHEMA, "split").drop_nulls().unique()
    if table["subject_id"].is_duplicated().any():
        raise TimelineError("one split for each subject", "subjects in two splits", "keep one row for each subject")
    return table.sort("subject_id")


def conform(frame: pl.DataFrame, schema: Mapping[str, Any], name: str) -> pl.DataFrame:
    """The columns of `schema` in its order and types: absent ones null, others left out.

    A column that cannot be converted is a TimelineError that names the column and never a value.

    >>> conform(pl.DataFrame({"split": ["train"]}), SPLIT_SCHEMA, "split").rows()
    [(None, 'train')]
    """
    columns = []
    for column, kind in schema.items():
        if column not in frame.columns:
            columns.append(pl.Series(column, [None], dtype=kind).new_from_index(0, frame.height))
            continue
        given = frame[column]
        try:
            columns.append(instants(given) if kind == TIME else given.cast(kind))
        except pl.exceptions.PolarsError:
            raise TimelineError(
                f"values of type {kind} in column {column} of the {name} table",
                f"values of type {frame.schema[column]} that do not convert",
                "convert the column",
            ) from None
    return pl.DataFrame(columns)


def instants(series: pl.Series, end_of_day: bool = False) -> pl.Series:
    """Times as UTC without a zone, in microseconds; a `Date` becomes its day's first (or last) microsecond.

    >>> instants(pl.Series("t", [date(2020, 1, 1)]), end_of_day=True).item()
    datetime.datetime(2020, 1, 1, 23, 59, 59, 999999)
    """
    kind = series.dtype
    if kind.is_numeric() or kind == pl.Boolean:  # years, seconds, days?
        if not series.cast(pl.Float64).fill_nan(None).is_null().all():
            raise TimelineError(f"times in column {series.name}", "numbers", "convert it to datetimes")
        return pl.Series(series.name, [None], TIME).new_from_index(0, len(series))
    if kind == pl.Date:
        shift = pl.duration(days=1, microseconds=-1) if end_of_day else pl.duration()
        return pl.select(pl.lit(_held(series)) + shift).to_series().rename(series.name)
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return _held(series)


def _held(series: pl.Series) -> pl.Series:
    held = series.cast(TIME, strict=False)  # strict, polars panics where it would print a year that it cannot
    if held.null_count() > series.null_count():
        raise TimelineError(f"times in column {series.name}", "years beyond 292,000", "set them to null")
    return held


def as_instant(moment: str | date | datetime) -> datetime:
    """One moment as UTC without a zone; a date (also "2020-01-31") is the last microsecond of its day.

    >>> as_instant("2020-01-31")
    datetime.datetime(2020, 1, 31, 23, 59, 59, 999999)
    >>> as_instant("2020-01-31T12:00:00+02:00")
    datetime.datetime(2020, 1, 31, 10, 0)
    """
    if not isinstance(moment, str | date) or moment != moment:  # pandas' NaT passes for a datetime
        raise TimelineError("a date or a time", type(moment).__name__, "leave it out, or give one")
    if isinstance(moment, str):
        try:
            moment = date.fromisoformat(moment) if len(moment) <= 10 else datetime.fromisoformat(moment)
        except ValueError:
            raise TimelineError(
                "a date like 2020-01-31 or a time like 2020-01-31T12:00:00",
                "other text",
                "write it as ISO 8601",
            ) from None
    if isinstance(moment, datetime):  # year 1 in UTC may be before year 1
        if moment.tzinfo is not None and FIRST_YEAR <= moment.year <= LAST_YEAR:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
    else:
        moment = datetime.combine(moment, time.max)
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise TimelineError(f"a moment from {FIRST_YEAR} to {LAST_YEAR}", "another year", "give the one that is meant")
    return moment


def sort_events(events: pl.DataFrame) -> pl.DataFrame:
    """Events in the one canonical order, which does not depend on the order of the input."""
    return events[event_order(events)]


def in_order(events: pl.DataFrame, order: npt.NDArray[Any]) -> pl.DataFrame:
    """The rows in an order, a column after the other: `events` is used up, so that it is not held twice.

    >>> in_order(pl.DataFrame({"a": [7, 8]}), np.array([1, 0]))["a"].to_list()
    [8, 7]
    """
    rows = places(order)
    return pl.DataFrame([events.drop_in_place(name)[rows] for name in events.columns])


def event_order(events: pl.DataFrame, keys: Sequence[npt.NDArray[Any]] | None = None) -> npt.NDArray[Any]:
    """The rows in the order of `sort_events`.

    `keys` are numbers in the order of subject, time, known time and code, where they are at hand. (Subjects may stand
    in another order than by their ids.)
    """
    if keys is None:
        keys = _keys(events)
    order = np.lexsort(list(reversed(keys)))
    again = np.zeros(len(order), bool)
    if len(order):
        again[1:] = np.logical_and.reduce([(key := each[order])[1:] == key[:-1] for each in keys])
    # few columns tell most events apart: only those that they do not are compared by more
    rest = [name for name in events.columns if name not in (*REQUIRED_EVENT_COLUMNS, "known_time", *_TELLING)]
    for columns in (_TELLING, rest):
        again = _untie(events, order, again, columns)
    return order


_TELLING = ("numeric_value", "text_value", "resource_type", "resource_id")


def _keys(events: pl.DataFrame) -> list[npt.NDArray[Any]]:
    """Numbers in the order of subjects, times (none comes first) and codes."""
    first = np.iinfo(np.int64).min
    return [
        events["subject_id"].to_numpy(),
        *(events[name].cast(pl.Int64).fill_null(first).to_numpy() for name in ("time", "known_time")),
        events["code"].rank("dense").to_numpy(),
    ]


def _untie(
    events: pl.DataFrame, order: npt.NDArray[Any], again: npt.NDArray[np.bool_], columns: Iterable[str]
) -> npt.NDArray[np.bool_]:
    """Put rows that are the same so far (`again`: as the one before) in the order of some columns, in place; which are
    the same still."""
    tied = again | np.append(again[1:], False)[: len(again)]
    # a column of nulls orders nothing, and a column of lists is dear to sort by
    names = [name for name in columns if events[name].null_count() < events.height]
    if not tied.any() or not names:
        return again
    still = np.zeros(len(order), bool)
    ties = events.select(names)[order[tied]].with_columns(
        _row=pl.Series(order[tied]), _group=pl.Series(np.cumsum(~again[tied]))
    )
    ties = ties.sort("_group", *names, nulls_last=False)
    order[tied] = ties["_row"].to_numpy()
    same = (ties[name].eq_missing(ties[name].shift(1)) for name in ("_group", *names))
    still[tied] = pl.select(pl.all_horizontal(same)).to_series().to_numpy()
    return still


def _distinct_codes(events: pl.DataFrame) -> pl.Series:
    """The column `other_codes`, each list sorted, without repeats or nulls; null where nothing is left."""
    codes = events["other_codes"]
    if codes.null_count() == events.height:
        return codes
    codes = codes.list.drop_nulls().list.unique().list.sort()
    return pl.select(pl.when(codes.list.len() > 0).then(codes)).to_series().rename("other_codes")


def _is_integer(kind: pl.DataType) -> bool:
    return kind.is_integer()


def _is_time(kind: pl.DataType) -> bool:
    return isinstance(kind, pl.Datetime | pl.Date)


def _is_text(kind: pl.DataType) -> bool:
    return kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum)
