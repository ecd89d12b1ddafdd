"""What was known of each subject at a prediction time, as numbers: for censoring models and subgroups."""

from __future__ import annotations

import polars as pl

from ehrseq.task.history import visible
from ehrseq.timeline.schema import BIRTH_CODE, DEATH_CODE, TIME
from ehrseq.timeline.store import Timelines

KEY = ("subject_id", "prediction_time")
MOST_CODES = 20
DAYS_A_YEAR = 365.25
_T = pl.col("prediction_time")


def covariates(timelines: Timelines, queries: pl.DataFrame) -> pl.DataFrame:
    """One row for each distinct `subject_id` and `prediction_time` of `queries`.

    Columns, null where unknown: `age` and `years_observed` (years), `female` (0, 1), `events` and `events_last_year`
    (logarithms of one plus the count), `years_since_first` and `years_since_last`, and for each of the 20 codes that
    most subjects have the years since it was last recorded (`CODE//years`) and, where it has values, the last one
    (`CODE`). Nothing that became known after the prediction time counts.

    >>> from datetime import datetime
    >>> timelines = Timelines.from_events({"subject_id": [1, 1, 1], "code": ["MEDS_BIRTH", "LOINC//a", "LOINC//a"],
    ...     "time": [datetime(1960, 1, 1), datetime(2009, 1, 1), datetime(2011, 1, 1)],
    ...     "numeric_value": [None, 5.0, 9.0]})
    >>> at = pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2010, 1, 1)]})
    >>> covariates(timelines, at).select(pl.col("age").round(), "LOINC//a").row(0)
    (50.0, 5.0)
    """
    keys = queries.select("subject_id", _T.cast(TIME)).unique(maintain_order=True).sort("prediction_time")
    people = timelines.subjects.select("subject_id", "birth_time", "sex", "follow_up_start")
    table = keys.join(people, on="subject_id", how="left", maintain_order="left").select(
        *KEY,
        age=_years(_T - pl.col("birth_time")),
        years_observed=_years(_T - pl.col("follow_up_start")),
        female=(pl.col("sex") == "female").cast(pl.Float64),
    )
    dated = (
        timelines.events.filter(
            pl.col("known_time").is_not_null() & ~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE]),
        )
        .select("subject_id", "code", "numeric_value", "known_time")
        .sort("known_time")
    )
    table = _volume(table, dated)
    for code in _common(dated):
        table = _with_code(table, dated.filter(pl.col("code") == code), code)
    order = queries.select("subject_id", _T.cast(TIME)).unique(maintain_order=True)
    return order.join(table, on=list(KEY), how="left", maintain_order="left")


def _years(span: pl.Expr) -> pl.Expr:
    return span.dt.total_microseconds() / (DAYS_A_YEAR * 86_400_000_000)


def _volume(table: pl.DataFrame, dated: pl.DataFrame) -> pl.DataFrame:
    """How many events are known, how many became so in the last year, and how long ago the last did."""
    counted = dated.select(
        "subject_id",
        "known_time",
        count=pl.int_range(1, pl.len() + 1).over("subject_id"),
        first=pl.col("known_time").min().over("subject_id"),
    )
    year_before = _T - pl.duration(microseconds=int(DAYS_A_YEAR * 86_400_000_000))
    now = _latest(table, counted)
    before = _latest(table.with_columns(prediction_time=year_before), counted)["count"].fill_null(0)
    count = pl.col("count").fill_null(0)
    return now.with_columns(
        events=count.cast(pl.Float64).log1p(),
        events_last_year=(count - pl.Series(before)).cast(pl.Float64).log1p(),
        years_since_first=_years(_T - pl.col("first")),
        years_since_last=_years(_T - pl.col("known_time")),
    ).drop("count", "first", "known_time")


def _with_code(table: pl.DataFrame, events: pl.DataFrame, code: str) -> pl.DataFrame:
    """How long ago a code was last recorded, and its last value where it has values."""
    recency = _years(_T - pl.col("known_time"))
    table = _latest(table, events.select("subject_id", "known_time")).with_columns(recency.alias(f"{code}//years"))
    table = table.drop("known_time")
    valued = events.filter(pl.col("numeric_value").is_not_null() & pl.col("numeric_value").is_finite())
    if 2 * valued.height <= events.height:
        return table
    latest = _latest(table, valued.select("subject_id", "known_time", pl.col("numeric_value").cast(pl.Float64)))
    return latest.rename({"numeric_value": code}).drop("known_time")


def _latest(table: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """The last row of `events` known by each prediction time; both are sorted by time."""
    joined = table.join_asof(
        events,
        left_on="prediction_time",
        right_on="known_time",
        by="subject_id",
        coalesce=False,
        check_sortedness=False,
    )
    seen = visible(pl.col("known_time"), _T)
    return joined.with_columns(pl.when(seen).then(pl.col(c)) for c in events.columns if c != "subject_id")


def _common(dated: pl.DataFrame) -> list[str]:
    """The codes that most subjects have, by name."""
    people = dated.group_by("code").agg(pl.col("subject_id").n_unique())
    return people.sort("subject_id", "code", descending=[True, False]).head(MOST_CODES)["code"].sort().to_list()
