"""Stays in hospital: when each begins and ends, and deaths that end one. Encounters that overlap or touch are one."""

from __future__ import annotations

import polars as pl

from ehrseq.task.definition import Stay
from ehrseq.task.predicate import event_matches
from ehrseq.timeline.store import Timelines

_KEYS = ["subject_id", "encounter_id"]


def stays(timelines: Timelines, stay: Stay) -> pl.DataFrame:
    """`subject_id`, `begin` and `end` of each stay, by when its admission and its discharge were known, sorted.

    Whether somebody is in a stay at a moment depends on nothing that is known later: an encounter without a known
    discharge is still running (`end` is null). Where the end of an encounter is recorded twice the first counts, a
    discharge without an admission does not.

    >>> from datetime import datetime
    >>> from ehrseq.timeline.schema import normalise_events
    >>> code = "ENCOUNTER//{}/{}".format
    >>> events = normalise_events({
    ...     "subject_id": [1] * 4, "time": [datetime(2020, 1, d) for d in (1, 2, 2, 9)],
    ...     "code": [code("emergency", "admission"), code("emergency", "discharge"), code("inpatient", "admission"),
    ...              code("inpatient", "discharge")], "encounter_id": ["a", "a", "b", "b"]})
    >>> stays(Timelines(events, pl.DataFrame()), Stay("hospital", classes=("emergency", "inpatient"))).row(0)
    (1, datetime.datetime(2020, 1, 1, 0, 0), datetime.datetime(2020, 1, 9, 0, 0))
    """
    admitted, discharged = (_known(timelines, codes) for codes in (stay.admissions, stay.discharges))
    named = pl.col("encounter_id").is_not_null()
    encounters = admitted.filter(named).join(discharged, on=_KEYS, how="left", suffix="_end")
    encounters = encounters.filter((pl.col("known_end") > pl.col("known")) | pl.col("known_end").is_null())
    steps = pl.concat(
        [
            _step(encounters, "known", 1),
            _step(encounters.drop_nulls("known_end"), "known_end", -1),
            _step(admitted.filter(~named), "known", 1),
            _step(discharged.filter(~named), "known", -1),
        ]
    )
    level = pl.col("step").cum_sum().over("subject_id")
    # a discharge of nobody does not put the next admission at zero
    reflected = pl.col("level") - pl.min_horizontal(pl.col("level").cum_min().over("subject_id"), 0)
    inside = (
        steps.group_by("subject_id", "when")
        .agg(pl.col("step").sum())
        .sort("subject_id", "when")
        .with_columns(level=level)
        .select("subject_id", "when", inside=reflected > 0)
    )
    before = pl.col("inside").shift(1, fill_value=False).over("subject_id")
    changes = inside.filter(pl.col("inside") != before)
    return (
        changes.select("subject_id", "inside", begin="when", end=pl.col("when").shift(-1).over("subject_id"))
        .filter("inside")
        .drop("inside")
    )


def unended(timelines: Timelines, stay: Stay) -> int:
    """How many admissions of subjects who have not died have no discharge on record."""
    living = timelines.subjects.filter(pl.col("death_time").is_null()).select("subject_id")
    admitted, discharged = (_known(timelines, codes) for codes in (stay.admissions, stay.discharges))
    named = admitted.filter(pl.col("encounter_id").is_not_null()).join(living, on="subject_id", how="semi")
    return named.join(discharged, on=_KEYS, how="anti").height


def deaths_at_discharge(deaths: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Deaths with those that have a date only, and on that day the end of an encounter, moved to just before it.

    Whoever leaves hospital and dies on one day died there, unless a clock says otherwise: else no death in hospital
    would come before its own discharge. A death at the very moment of the discharge comes before it too. For labels
    alone: who was known to be dead at a prediction time does not change.
    """
    ends = events.filter(pl.col("code").str.starts_with("ENCOUNTER//") & pl.col("code").str.ends_with("/discharge"))
    ends = ends.select("subject_id", _end=pl.max_horizontal("known_time", "time")).drop_nulls()
    day = pl.duration(hours=25)  # and the hour by which clocks are put forward: the zone of a date is often a guess
    same_day = (pl.col("_end") <= pl.col("time")) & (pl.col("time") - day < pl.col("_end"))
    last = (
        deaths.select("subject_id", "time", "by_day")
        .join(ends, on="subject_id")
        .filter((pl.col("by_day").fill_null(False) & same_day) | (pl.col("_end") == pl.col("time")))
        .group_by("subject_id")
        .agg(_last=pl.col("_end").max() - pl.duration(microseconds=1))
    )
    moved = [pl.coalesce("_last", name).alias(name) for name in ("time", "known_time")]
    return deaths.join(last, on="subject_id", how="left", maintain_order="left").with_columns(moved).drop("_last")


def _known(timelines: Timelines, codes: tuple[str, ...]) -> pl.DataFrame:
    """`subject_id`, `encounter_id` and `known` of the events with one of the codes, one row an encounter."""
    found = (
        timelines.events.filter(event_matches(codes))
        .select(*_KEYS, known=pl.max_horizontal("known_time", "time"))
        .drop_nulls("known")
    )
    named = pl.col("encounter_id").is_not_null()
    first = found.filter(named).group_by(_KEYS).agg(pl.col("known").min())
    return pl.concat([first, found.filter(~named)])


def _step(frame: pl.DataFrame, column: str, step: int) -> pl.DataFrame:
    return frame.select("subject_id", when=column, step=pl.lit(step, pl.Int32))
