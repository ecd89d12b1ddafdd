"""Follow-up: from when until when a subject is known to have been watched.

The end of follow-up is the censoring time, so it must not depend on the outcome. The rule is, in this order:
the end of an observation period in the data, the data cut, the last contact. Deaths (and births and static
facts) are no contact: were they, those who die would be followed to their death and the living only to their
last visit. The one exception is a death without a date: the dead cannot be followed event-free to a data cut, so
such a subject's follow-up ends with the last contact.
"""

from __future__ import annotations

from datetime import date, datetime
from functools import cache
from typing import Any

import polars as pl

from ehrseq.errors import TimelineError
from ehrseq.fhir.clock import LAST_YEAR
from ehrseq.frames import at_once, to_polars
from ehrseq.timeline.schema import BIRTH_CODE, DEATH_CODE, TIME, as_instant, instants

RULES = ("observation_period", "data_cut", "last_contact", "last_contact_undated_death")


def follow_up(
    events: pl.DataFrame,
    observation_periods: Any = None,
    data_cut: str | date | datetime | None = None,
    undated_deaths: pl.Series | None = None,
) -> pl.DataFrame:
    """Start, end and rule of each subject's follow-up, one row a subject, sorted by `subject_id`.

    Parameters
    ----------
    events
        An event frame with `subject_id`, `time`, `known_time` and `code`.
    observation_periods
        A frame with `subject_id`, `start` and `end` (UTC; dates stand for whole days; null = open), any
        number of rows a subject. Several periods count as one from the earliest start to the latest end: gaps
        between them are treated as observed. Where no period has a start, follow-up starts when the first
        contact became known (a back-dated one says nothing of the years before); where one has no end (still
        running), it ends by the next rule, but not before another period's end.
    data_cut
        The moment up to which the export is complete (a date: the end of that day). It ends the follow-up of
        everyone without a period, and of every period that reaches beyond it.
    undated_deaths
        The `subject_id`s of those who died at an unknown time: their follow-up ends no later than their last contact.

    Returns
    -------
    `subject_id`, `follow_up_start`, `follow_up_end`, `follow_up_rule`, `observation_start`. `follow_up_rule` names
    what gave the end: `observation_period`, `data_cut`, `last_contact` (the greatest `known_time`) or
    `last_contact_undated_death`. The three are null where there is neither a contact nor a period, or where the end
    would lie before the start. `observation_start` is the start of the observation periods, whatever becomes of
    their end; null where there are none.

    >>> events = pl.DataFrame(
    ...     {"subject_id": [1, 1], "time": [datetime(2003, 1, 1), datetime(2009, 1, 1)],
    ...      "code": ["LOINC//718-7", "MEDS_DEATH"]}
    ... ).with_columns(known_time=pl.col("time"))
    >>> follow_up(events).row(0)[2:4]
    (datetime.datetime(2003, 1, 1, 0, 0), 'last_contact')
    >>> follow_up(events, data_cut="2005-12-31").row(0)[2:4]
    (datetime.datetime(2005, 12, 31, 23, 59, 59, 999999), 'data_cut')
    """
    return at_once(follow_up_steps(contacts(events), observation_periods, data_cut, undated_deaths))


def follow_up_steps(
    contacts: pl.DataFrame, observation_periods: Any, data_cut: Any, undated_deaths: pl.Series | None
) -> pl.LazyFrame:
    """The same from what `contacts` says of the events, as steps still to be done."""
    cut = pl.lit(None if data_cut is None else as_instant(data_cut), dtype=TIME)
    died = pl.lit(False) if undated_deaths is None else pl.col("subject_id").is_in(undated_deaths.implode())
    if observation_periods is None:
        joined = contacts.lazy().with_columns(pl.lit(None, kind).alias(name) for name, kind in _ENVELOPE.items())
    else:
        periods = _envelopes(observation_periods).lazy()
        joined = contacts.lazy().join(periods, on="subject_id", how="full", coalesce=True)
    usable = pl.col("watched") & (pl.col("follow_up_start") <= pl.col("follow_up_end"))
    return (
        joined.sort("subject_id")
        .with_columns(cut=cut, died=died)
        .select("subject_id", **_measured())
        .select("subject_id", pl.when(usable).then(pl.col(r"^follow_up_.*$")), "observation_start")
    )


def in_life(periods: pl.DataFrame, subjects: pl.DataFrame) -> pl.DataFrame:
    """Observation periods (`subject_id`, `start`, `end`) without what cannot be true of who was born at `birth_time`.

    A start up to a year before birth (a month or a year, a plan that the mother had) is the birth; one longer before
    it (as on 1900-01-01) does not say when it was, nor an end from the year 2500 on (as on 9999-12-31) that there is
    one. A period that ends before birth is somebody else's. Nothing but birth decides, so that nothing that comes
    later changes who is under observation.

    >>> day = [datetime(year, 1, 1) for year in (1900, 1949, 1950, 9999)]
    >>> periods = pl.DataFrame({"subject_id": [1, 1], "start": [day[0]] * 2, "end": [day[3], day[1]]})
    >>> in_life(periods, pl.DataFrame({"subject_id": [1], "birth_time": [day[2]]})).rows()
    [(1, None, None)]
    """
    birth, start, end = pl.col("birth_time"), pl.col("start"), pl.col("end")
    day = _day_of(birth)
    return (
        periods.join(subjects.select("subject_id", "birth_time"), on="subject_id", how="left", maintain_order="left")
        .filter(~before_life())
        .select(
            "subject_id",
            start=pl.when((start >= day) | birth.is_null())
            .then(start)
            .when(start >= birth - pl.duration(days=366))
            .then(birth),
            end=pl.when(end < datetime(LAST_YEAR + 1, 1, 1)).then(end),
        )
    )


def before_life() -> pl.Expr:
    """Whether a period (`start`, `end`) is over before its subject's life begins (`birth_time`)."""
    birth, start, end = pl.col("birth_time"), pl.col("start"), pl.col("end")
    return ((end < _day_of(birth)) | ((start.is_null() | (start < _day_of(birth))) & (end < birth))).fill_null(False)


def _day_of(birth: pl.Expr) -> pl.Expr:
    return birth - pl.duration(days=1)  # the day of birth begins elsewhere at another moment


@cache
def _measured() -> dict[str, pl.Expr]:
    """Start, end and rule, from the columns of `contacts` and `_envelopes`, the data `cut` and who `died` undated."""
    cut, died = pl.col("cut"), pl.col("died")
    has_end = pl.col("period_end").is_not_null() & ~pl.col("open")
    # an open period is still running: it reaches the cut or the last contact, and a closed one beside it
    fallback = pl.coalesce(cut, pl.max_horizontal("last_contact", "period_end"))
    end = pl.when(has_end).then(pl.min_horizontal("period_end", cut)).otherwise(fallback)
    rule = (
        pl.when(has_end & (pl.col("period_end") <= pl.coalesce(cut, "period_end")))
        .then(pl.lit("observation_period"))
        .when(cut.is_not_null())
        .then(pl.lit("data_cut"))
        .otherwise(pl.lit("last_contact"))
    )
    return {
        "follow_up_start": pl.coalesce("period_start", "first_contact"),
        # a null last contact must stay null: min_horizontal would pass over it
        "follow_up_end": pl.when(~died)
        .then(end)
        .when(end <= pl.col("last_contact"))
        .then(end)
        .otherwise("last_contact"),
        "follow_up_rule": pl.when(died).then(pl.lit("last_contact_undated_death")).otherwise(rule),
        "observation_start": pl.col("period_start"),
        "watched": pl.col("first_contact").is_not_null() | pl.col("has_period").is_not_null(),
    }


@cache
def is_contact() -> pl.Expr:
    """Whether an event shows its subject under observation: it has a time, and is neither birth nor death."""
    code = pl.col("code")
    return pl.col("time").is_not_null() & ~code.str.starts_with(BIRTH_CODE) & ~code.str.starts_with(DEATH_CODE)


def within_follow_up(time: pl.Expr, follow_up_end: pl.Expr, by_day: pl.Expr) -> pl.Expr:
    """`time`, moved to the end of follow-up where it is the end of the day on which that lies.

    A death "on the 5th" belongs to a stay that ended on the 5th at 15:00. A time stands for its whole day where it is
    the last microsecond of one in UTC or, `by_day`, where it is known to close a day on some other clock.

    >>> end = pl.lit(datetime(2020, 1, 5, 15))
    >>> closing = pl.lit(datetime(2020, 1, 5, 23, 59, 59, 999999))
    >>> pl.select(within_follow_up(closing, end, pl.lit(False))).item()
    datetime.datetime(2020, 1, 5, 15, 0)
    """
    closes = time == time.dt.truncate("1d").dt.offset_by("1d") - pl.duration(microseconds=1)
    same_day = (follow_up_end <= time) & (time - pl.duration(days=1) < follow_up_end)
    return pl.when((closes | by_day.fill_null(False)) & same_day).then(follow_up_end).otherwise(time)


def deaths_by_day(events: pl.DataFrame) -> pl.DataFrame:
    """`subject_id` and `by_day`: whether the recorded death has a date and no clock time; one row for each death."""
    recorded = events.filter(pl.col("code").str.starts_with(DEATH_CODE))
    return recorded.group_by("subject_id").agg(by_day=is_day().any())


def contacts(events: pl.DataFrame) -> pl.DataFrame:
    """All that follow-up needs to know of the events, one row a subject.

    `first_contact` and `last_contact` by when they were known, `first_time` and `last_time` by when they happened;
    `by_day` as in `deaths_by_day`.
    """
    by_day = is_day() if "time_precision" in events.columns else pl.lit(False)
    died = pl.col("code").str.starts_with(DEATH_CODE)
    return contacts_of(
        events.lazy().select("subject_id", "time", "known_time", is_contact=is_contact(), by_day=died & by_day)
    )


def contacts_of(events: pl.LazyFrame) -> pl.DataFrame:
    """What `contacts` returns, from `subject_id`, `time`, `known_time`, `is_contact` and `by_day` of each event.

    `is_contact` is as the function of that name says, `by_day` whether the event is a death with a date alone.
    """
    shown = pl.when("is_contact")
    return at_once(
        events.select(
            "subject_id",
            "by_day",
            known=shown.then(pl.max_horizontal("known_time", "time")),
            time=shown.then("time"),
        )
        .group_by("subject_id")
        .agg(
            first_contact=pl.col("known").min(),
            last_contact=pl.col("known").max(),
            first_time=pl.col("time").min(),
            last_time=pl.col("time").max(),
            by_day=pl.col("by_day").any(),
        )
    )


@cache
def is_day() -> pl.Expr:
    """Whether the time of an event is a date (or less), without a clock time."""
    return pl.col("time_precision").cast(pl.String).is_in(["year", "month", "day"])


_ENVELOPE = {"period_start": TIME, "period_end": TIME, "open": pl.Boolean(), "has_period": pl.Boolean()}


def _envelopes(observation_periods: Any) -> pl.DataFrame:
    """One period a subject, from the earliest start to the latest end."""
    frame = to_polars(observation_periods)
    missing = [c for c in ("subject_id", "start", "end") if c not in frame.columns]
    if missing:
        raise TimelineError(
            "observation periods with columns subject_id, start, end",
            f"no column {', '.join(missing)}",
            "rename or add the columns",
        )
    return (
        pl.DataFrame(
            [
                frame["subject_id"].cast(pl.Int64),
                instants(frame["start"]),
                instants(frame["end"], end_of_day=True),
            ]
        )
        .filter(pl.col("start").is_not_null() | pl.col("end").is_not_null())
        .group_by("subject_id")
        .agg(
            period_start=pl.col("start").min(),
            period_end=pl.col("end").max(),
            open=pl.col("end").is_null().any(),
            has_period=pl.lit(True),
        )
    )
