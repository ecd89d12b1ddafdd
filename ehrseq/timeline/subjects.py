"""The subject table where only events are at hand: birth, death, sex and follow-up read from the events."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import polars as pl

from ehrseq.errors import TimelineError
from ehrseq.frames import to_polars
from ehrseq.timeline.follow_up import follow_up, in_life
from ehrseq.timeline.schema import (
    BIRTH_CODE,
    DEATH_CODE,
    SUBJECT_SCHEMA,
    conform,
    instants,
    stand_for_none,
    warn_of_none,
)

SEXES = {
    "f": "female",
    "female": "female",
    "m": "male",
    "male": "male",
    "other": "other",
    "unknown": "unknown",
}
FOLLOW_UP = ("follow_up_start", "follow_up_end", "follow_up_rule", "observation_start")
TIMES = ("birth_time", "death_time", "follow_up_start", "follow_up_end", "observation_start")


def derive_subjects(
    events: pl.DataFrame, subjects: Any = None, data_cut: str | date | datetime | None = None
) -> pl.DataFrame:
    """The subject table (`SUBJECT_SCHEMA`, sorted by `subject_id`) of a normalised event frame.

    Birth and death come from `MEDS_BIRTH` and `MEDS_DEATH`; sex, race and ethnicity from codes such as
    `SEX//female`, `GENDER//F` or `RACE//white` that are static or dated at birth; follow-up from `follow_up`;
    `patient` is the subject id as text. `subjects` (optional: `subject_id` and any columns of the table) goes
    before what the events say and may hold subjects without events; its `follow_up_start` and `follow_up_end`
    count as observation periods.

    >>> from ehrseq.timeline.schema import normalise_events
    >>> events = normalise_events({"subject_id": [7], "time": [None], "code": ["GENDER//F"]})
    >>> derive_subjects(events).select("subject_id", "patient", "sex").row(0)
    (7, '7', 'female')
    """
    given = None if subjects is None else normalise_subjects(subjects)
    periods = None
    if given is not None:
        periods = given.select("subject_id", start="follow_up_start", end="follow_up_end")
    ids = [events.select("subject_id")] + ([] if given is None else [given.select("subject_id")])
    table = (
        pl.concat(ids)
        .unique()
        .sort("subject_id")
        .join(_birth_and_death(events), on="subject_id", how="left")
        .join(_static_facts(events), on="subject_id", how="left")
        .with_columns(patient=pl.col("subject_id").cast(pl.String))
    )
    if given is not None:
        table = table.join(given.drop(FOLLOW_UP), on="subject_id", how="left", suffix="_given").with_columns(
            pl.coalesce(f"{c}_given", c).alias(c) for c in SUBJECT_SCHEMA if c not in ("subject_id", *FOLLOW_UP)
        )
    if periods is not None:
        periods = in_life(periods, table)
    table = table.join(follow_up(events, periods, data_cut), on="subject_id", how="left")
    return normalise_subjects(table)


def normalise_subjects(frame: Any) -> pl.DataFrame:
    """A subject table in the contract's columns, types and order; columns that are absent are null.

    A birth given as a date is the day's first microsecond; a death or an end of follow-up its last. Years
    that stand for none (before 1800 or from 2500 on) become null, with a DataWarning.
    """
    given = to_polars(frame)
    if "subject_id" not in given.columns or not given.schema["subject_id"].is_integer():
        raise TimelineError(
            "a subject table with an integer column subject_id",
            "none",
            "number the subjects as in the events",
        )
    given = given.with_columns(
        instants(given[column], end_of_day=column not in ("birth_time", "follow_up_start", "observation_start"))
        for column in TIMES
        if column in given.columns and isinstance(given.schema[column], pl.Date | pl.Datetime)
    )
    table = conform(given, SUBJECT_SCHEMA, "subject")
    if table["subject_id"].null_count() or table["subject_id"].is_duplicated().any():
        raise TimelineError("one row for each subject", "subjects without id or with several rows", "merge the rows")
    for column in TIMES:
        none = stand_for_none(table[column])
        if count := int(none.sum()):
            warn_of_none(f"values of {column}", count, "they are taken as unknown")
            table = table.with_columns(pl.when(~none).then(pl.col(column)))
    return table.sort("subject_id")


def _birth_and_death(events: pl.DataFrame) -> pl.DataFrame:
    """`subject_id`, `birth_time`, `death_time`: the earliest of each."""
    code = pl.col("code")
    # a death dated by the day (or worse) counts from the end of its day, as its known_time does
    imprecise = pl.col("time_precision").cast(pl.String).is_in(["year", "month", "day"]).fill_null(False)
    death = pl.when(imprecise).then("known_time").otherwise("time")
    return (
        events.lazy()
        .filter(code.str.starts_with(BIRTH_CODE) | code.str.starts_with(DEATH_CODE))
        .group_by("subject_id")
        .agg(
            birth_time=pl.col("time").filter(code.str.starts_with(BIRTH_CODE)).min(),
            death_time=death.filter(code.str.starts_with(DEATH_CODE)).min(),
        )
        .collect()
    )


def _static_facts(events: pl.DataFrame) -> pl.DataFrame:
    """`subject_id`, `sex`, `race`, `ethnicity` from the first static (or birth-time) code of each kind."""
    pattern = r"(?i)^(sex|gender|race|ethnicity)/+(.+)$"
    codes = (
        events.select(pl.col("code").unique())
        .with_columns(
            kind=pl.col("code").str.extract(pattern, 1).str.to_lowercase().replace("gender", "sex"),
            value=pl.col("code").str.extract(pattern, 2),
        )
        .drop_nulls()
        .with_columns(
            value=pl.when(pl.col("kind") == "sex")
            .then(pl.col("value").str.to_lowercase().replace_strict(SEXES, default=None))
            .otherwise("value")
        )
        .drop_nulls()
    )
    birth = pl.col("time").filter(pl.col("code").str.starts_with(BIRTH_CODE)).min().over("subject_id")
    facts = (
        events.lazy()
        .select("subject_id", "time", "code")
        .filter(pl.col("code").is_in(codes["code"].implode()) | pl.col("code").str.starts_with(BIRTH_CODE))
        .filter(pl.col("time").is_null() | (pl.col("time") <= birth))
        .join(codes.lazy(), on="code")
        .sort("subject_id", "time", "code", nulls_last=False)
    )
    value = pl.col("value")
    return (
        facts.group_by("subject_id")
        .agg(value.filter(pl.col("kind") == kind).first().alias(kind) for kind in ("sex", "race", "ethnicity"))
        .collect()
    )
