"""When outcomes happen: every known occurrence of each outcome of a task, within follow-up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import polars as pl

from ehrseq.errors import TaskError
from ehrseq.frames import at_once
from ehrseq.task.change import change_periods
from ehrseq.task.composite import all_of, changes, resolve, sequence
from ehrseq.task.definition import DERIVED_MEASURES, Outcome, Task
from ehrseq.task.outcome_definition import Bounds
from ehrseq.task.predicate import code_matches, confirmed, event_matches, value_matches
from ehrseq.task.stays import deaths_at_discharge, stays
from ehrseq.timeline.analytes import ANALYTES
from ehrseq.timeline.follow_up import is_day, within_follow_up
from ehrseq.timeline.hierarchy import code_parents
from ehrseq.timeline.measures import derive_measure
from ehrseq.timeline.schema import DEATH_CODE, TIME
from ehrseq.timeline.store import Timelines
from ehrseq.timeline.units import normalise_units

ALWAYS = datetime(1, 1, 1)  # the time of a static fact, which is known from the beginning

_INPUT = (
    "subject_id", "time", "code", "numeric_value", "value_modifier", "known_time", "time_precision",
    "unit", "text_value", "other_codes", "unit_recorded",
)  # fmt: skip
_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64, "outcome": pl.String, "time": TIME, "occurred_time": TIME, "known_time": TIME,
    "from_time": TIME, "until_time": TIME, "present": pl.Boolean, "part": pl.Int32, "by_day": pl.Boolean,
    "is_period": pl.Boolean,
}  # fmt: skip
_OF_PERIODS = ("from_time", "until_time", "present", "part")
_PRECISION_SPAN = {"year": "1y", "month": "1mo", "day": "1d"}


def occurrences(timelines: Timelines, task: Task) -> pl.DataFrame:
    """Every occurrence of each outcome inside follow-up.

    Returns `subject_id`, `outcome`, `time`, `occurred_time` and `known_time` (all naive UTC), sorted by subject,
    outcome and time. `occurred_time` is the end of the clinical interval (a day-precision date: the day's last
    microsecond), `known_time` the moment by which it is known, and `time` the one of the two that the outcome's
    `event_time` chooses. A static event has the time 0001-01-01: it is known from the beginning.

    What happens after `follow_up_end` does not count. An occurrence dated to the day on which follow-up ends counts
    at that end: a death "on the 5th" belongs to a stay that ended on the 5th at 15:00, and comes before its discharge.

    Some rows count only for prediction times from `from_time` until before `until_time`, which are null elsewhere.
    A change from baseline has one row for each period of constant baseline that a change follows (`part`: which of a
    composite's changes). Under `periods_of(outcome)` are all such periods, those without a change (no times) too, and
    whether the change is `present` already; under `inside(stay)` are the stays that an outcome's `during` names.

    >>> from ehrseq.timeline.schema import normalise_events
    >>> day = datetime(2020, 1, 2)
    >>> events = normalise_events({"subject_id": [1], "time": [day], "code": ["SNOMED//22298006"]})
    >>> subjects = pl.DataFrame({"subject_id": [1], "follow_up_end": [datetime(2021, 1, 1)], "death_time": [None]})
    >>> task = Task.from_dict({"horizons": ["1y"], "outcomes": {"mi": {"codes": ["SNOMED//22298006"]}},
    ...                        "prediction_times": {"rule": "every_encounter"}})
    >>> occurrences(Timelines(events, subjects), task).select("outcome", "time").row(0)
    ('mi', datetime.datetime(2020, 1, 2, 0, 0))
    """
    died = deaths_at_discharge(deaths(timelines), timelines.events)
    found = _every_occurrence(timelines, task, died)
    ends = timelines.subjects.select("subject_id", pl.col("follow_up_end").cast(TIME))
    end = pl.col("follow_up_end")
    names = ("time", "occurred_time", "known_time")
    within = [within_follow_up(pl.col(c), end, pl.col("by_day")).alias(c) for c in names]
    counts = pl.col("time") <= end
    return (
        found.join(ends, on="subject_id", how="left")
        .with_columns(within)
        # a period without a change, or with one that does not count, still has its baseline
        .with_columns(pl.when(counts | ~pl.col("is_period")).then(c).alias(c) for c in names)
        .filter(counts | pl.col("is_period"))
        .drop("follow_up_end", "by_day", "is_period")
        .sort("subject_id", "outcome", "time", "known_time", "occurred_time", "from_time", "part")
    )


def all_occurrences(timelines: Timelines, task: Task, died: pl.DataFrame | None = None) -> pl.DataFrame:
    """As `occurrences`, but regardless of follow-up, unsorted, and with two more columns.

    `by_day`: a death that has no clock time; `is_period`: the rows of `periods_of` and `inside`. `died` is what
    `deaths` gives, where it is at hand.
    """
    return _every_occurrence(timelines, task, deaths(timelines) if died is None else died)


def periods_of(outcome: str) -> str:
    """The name under which the periods of constant baseline of an outcome stand; no outcome can have it."""
    return f"{outcome}:periods"


def inside(stay: str) -> str:
    """The name under which the stays of that name stand; no outcome can have it."""
    return f"{stay}:stay"


def _every_occurrence(timelines: Timelines, task: Task, died: pl.DataFrame) -> pl.DataFrame:
    task = with_dataset_descendants(timelines, task)
    patterns = [p for o in task.definitions for p in o.patterns]
    matches = event_matches(patterns, timelines.events["other_codes"])
    events = at_once(timelines.events.lazy().select(_INPUT).filter(matches & ~_is_death()))
    if any(o.measure is not None or o.bounds != Bounds() for o in task.definitions):
        events, _ = normalise_units(events)
    derived = [
        derive_measure(name, timelines.events, timelines.subjects)
        for name in dict.fromkeys(o.measure for o in task.definitions)
        if name in DERIVED_MEASURES
    ]
    parts = [events.lazy().with_columns(_known_time()), *(table.lazy() for table in (died, *derived))]
    events = at_once(pl.concat(parts, how="diagonal_relaxed").with_columns(occurred_time=_occurred_time()))
    asked = dict.fromkeys(s for o in task.outcomes for s in (o.admission, o.discharge, o.during) if s is not None)
    spans = {name: stays(timelines, task.stay(name)) for name in asked}
    fixed = pl.concat(_fixed(events, spans, outcome, task) for outcome in task.outcomes)
    fixed = fixed.with_columns(pl.lit(None, _SCHEMA[name]).alias(name) for name in _OF_PERIODS)
    periods = [table for outcome in task.outcomes for table in _periods(events, outcome, task)]
    stays_of = dict.fromkeys(o.during for o in task.outcomes if o.during is not None)
    periods += [_span_rows(spans[name], inside(name)) for name in stays_of]
    return at_once(pl.concat([fixed.select(*_SCHEMA), *periods], how="diagonal"))


def _fixed(events: pl.DataFrame, spans: Mapping[str, pl.DataFrame], outcome: Outcome, task: Task) -> pl.LazyFrame:
    """The occurrences of one outcome that do not depend on the prediction time."""
    return _happenings(events, spans, outcome, {o.name: o for o in task.outcomes}).select(
        "subject_id", "occurred_time", "known_time", "by_day", outcome=pl.lit(outcome.name),
        time="known_time" if outcome.event_time == "known" else "occurred_time", is_period=pl.lit(False),
    )  # fmt: skip


def _periods(events: pl.DataFrame, outcome: Outcome, task: Task) -> Iterator[pl.LazyFrame]:
    """The periods of constant baseline of one outcome, and the changes that follow them."""
    for number, change in enumerate(changes(outcome, {o.name: o for o in task.outcomes})):
        values = _matching(events, replace(change, confirm=None), bounded=False).with_columns(
            counts=value_matches(change.bounds)
        )
        periods = change_periods(at_once(values), replace(change, event_time=outcome.event_time)).lazy()
        periods = periods.with_columns(part=pl.lit(number, pl.Int32))
        yield periods.with_columns(outcome=pl.lit(periods_of(outcome.name)), is_period=pl.lit(True))
        yield periods.drop_nulls("time").with_columns(outcome=pl.lit(outcome.name), is_period=pl.lit(False))


def _happenings(
    events: pl.DataFrame, spans: Mapping[str, pl.DataFrame], outcome: Outcome, names: Mapping[str, Outcome]
) -> pl.LazyFrame:
    """`subject_id`, `occurred_time`, `known_time` and `by_day` of what does not depend on the prediction time."""
    columns = ("subject_id", "occurred_time", "known_time", "by_day")
    stay, edge = (outcome.discharge, "end") if outcome.admission is None else (outcome.admission, "begin")
    if stay is not None:
        moments = spans[stay].lazy().drop_nulls(edge)
        return moments.select("subject_id", occurred_time=edge, known_time=edge, by_day=pl.lit(None, pl.Boolean))
    if outcome.is_change:
        return pl.LazyFrame(schema={name: _SCHEMA[name] for name in columns})
    if not outcome.parts:
        return _matching(events, outcome).select(columns)
    parts = [_happenings(events, spans, part, names) for part in resolve(outcome, names)]
    if outcome.any_of:
        return pl.concat(parts)
    happened = [at_once(part) for part in parts]
    return (all_of(happened) if outcome.all_of else sequence(happened, outcome.within)).lazy()


def _span_rows(table: pl.DataFrame, name: str) -> pl.LazyFrame:
    return table.lazy().select(
        "subject_id", outcome=pl.lit(name), from_time="begin", until_time="end", is_period=pl.lit(True)
    )


def with_dataset_descendants(timelines: Timelines, task: Task) -> Task:
    """The task with the descendants that the dataset's own table of codes (`parent_codes`) gives besides.

    Raises TaskError where an outcome asks for descendants and neither the task nor the dataset knows any parent.
    """
    asking = [o for o in task.definitions if o.descendants]
    if not asking:
        return task
    parents = code_parents(timelines)
    if not parents.height and not all(o.descendant_codes for o in asking):
        raise TaskError(
            "a table of parents where an outcome has descendants = true",
            "neither code_parents in the task nor parent_codes in the dataset",
            "add code_parents to the task file",
        )
    return task.with_descendants(parents)


def deaths(timelines: Timelines) -> pl.DataFrame:
    """One MEDS_DEATH event for each subject who died: at `subjects.death_time`, else at the first death event.

    `known_time` is that of the first death event where there is one, never before the death.
    """
    events = timelines.events.lazy().filter(_is_death())
    recorded = events.group_by("subject_id").agg(recorded=_known_time().min(), by_day=is_day().any())
    stated = timelines.subjects.lazy().select("subject_id", pl.col("death_time").cast(TIME))
    time = pl.coalesce("death_time", "recorded")
    found = stated.join(recorded, on="subject_id", how="full", coalesce=True).filter(time.is_not_null())
    return at_once(
        found.select(
            "subject_id",
            time=time,
            code=pl.lit(DEATH_CODE),
            known_time=pl.max_horizontal("recorded", time),
            by_day="by_day",
        )
    )


def unmatched_codes(timelines: Timelines, patterns: Iterable[str]) -> tuple[str, ...]:
    """The codes, prefixes and derived measures that match no event, in the order given."""
    codes = pl.concat(
        [timelines.events.select("code"), timelines.events.select(code=pl.col("other_codes").explode()).drop_nulls()]
    ).unique()
    if timelines.subjects["death_time"].is_not_null().any():
        codes = pl.concat([codes, pl.DataFrame({"code": [DEATH_CODE]})])
    distinct = list(dict.fromkeys(patterns))
    if not distinct:
        return ()
    found = codes.select(code_matches([p]).any().alias(str(i)) for i, p in enumerate(distinct)).row(0)
    return tuple(
        p
        for p, hit in zip(distinct, found, strict=True)
        if not (hit or (p in DERIVED_MEASURES and derive_measure(p, timelines.events, timelines.subjects).height))
    )


def unmatched_of_task(timelines: Timelines, task: Task) -> tuple[str, ...]:
    """The codes of a task, as written, that match no event; a parent is matched by its descendants."""
    prediction = task.prediction_times.code
    plain = [p for o in task.definitions if not o.descendants for p in o.patterns]
    of_stays = [code for stay in task.stays for code in (*stay.admissions, *stay.discharges)]
    wanted = [*plain, *task.labs, *of_stays, *([] if prediction is None else [prediction])]
    unmatched = list(unmatched_codes(timelines, wanted))
    parents = code_parents(timelines)
    for outcome in task.definitions:
        for code in outcome.codes if outcome.descendants else ():
            one = replace(outcome, codes=(code,), descendant_codes=())
            family = (*one.with_descendants(parents).patterns, *outcome.descendant_codes)
            if len(unmatched_codes(timelines, family)) == len(set(family)):
                unmatched.append(code)
    return tuple(dict.fromkeys(unmatched))


def off_scale(timelines: Timelines, task: Task) -> tuple[tuple[str, int], ...]:
    """Lab codes of the task with numbers that do not count, as their unit does not convert, and how many."""
    measures = {o.measure: o for o in task.definitions if o.measure in ANALYTES}
    events = timelines.events.select(_INPUT).filter(event_matches([m for m in measures if m is not None]))
    events, _ = normalise_units(events.filter(pl.col("numeric_value").is_not_null()))
    counts = {
        code: events.filter(event_matches(outcome.patterns) & ~_on_scale(outcome)).height
        for code, outcome in measures.items()
        if code is not None
    }
    return tuple((code, count) for code, count in counts.items() if count)


def _matching(events: pl.DataFrame, outcome: Outcome, *, bounded: bool = True) -> pl.LazyFrame:
    """The events that count for codes or a measure; without its bounds, those with a number on their scale."""
    counts = value_matches(outcome.bounds) if bounded else pl.col("numeric_value").is_not_null()
    matches = event_matches(outcome.patterns, events["other_codes"])
    matching = events.lazy().filter(matches & counts & _on_scale(outcome))
    return matching if outcome.confirm is None else confirmed(at_once(matching), outcome.confirm).lazy()


def _on_scale(outcome: Outcome) -> pl.Expr:
    """Whether a number is on the scale of the bounds: in the analyte's unit, or in none where that can be told."""
    if (analyte := ANALYTES.get(outcome.measure or "")) is None:
        return pl.lit(True)
    converted = (pl.col("unit") == analyte.unit).fill_null(False)
    needs_unit = outcome.stages is not None and outcome.stages.needs_unit
    return converted if needs_unit else converted | pl.col("unit").is_null()


@cache
def _occurred_time() -> pl.Expr:
    """The last microsecond of the clinical interval that `time` begins; never later than known.

    An imprecise date may outlast the record of it.
    """
    time, precision = pl.col("time"), pl.col("time_precision").cast(pl.String)
    next_one = [pl.when(precision == name).then(time.dt.offset_by(span)) for name, span in _PRECISION_SPAN.items()]
    end = pl.coalesce(pl.coalesce(next_one) - timedelta(microseconds=1), time, pl.lit(ALWAYS, TIME))
    return pl.min_horizontal(end, "known_time")


@cache
def _known_time() -> pl.Expr:
    return pl.coalesce("known_time", "time", pl.lit(ALWAYS, dtype=TIME)).alias("known_time")


@cache
def _is_death() -> pl.Expr:
    return pl.col("code").str.starts_with(DEATH_CODE)
