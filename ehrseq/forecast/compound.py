"""From paths to the probability of any outcome, found on them by the code that finds it on real timelines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from ehrseq.errors import ForecastError
from ehrseq.forecast.paths import END_CODE, KEY, PATH_SCHEMA, PathSource, visible_history
from ehrseq.model.path_fitting import event_patterns
from ehrseq.task.composite import resolve
from ehrseq.task.definition import Horizon, Outcome, Task
from ehrseq.task.label import label
from ehrseq.task.outcome import occurrences, unmatched_codes
from ehrseq.task.span import in_days
from ehrseq.timeline.schema import DEATH_CODE, EVENT_SCHEMA, conform
from ehrseq.timeline.store import Timelines

EVENTS = 2_000_000  # looked at together
COMPOUND = "compound"  # the name of an outcome that the task does not have
PATH = (*KEY, "path")


def path_incidence(
    source: PathSource, paths: pl.DataFrame, outcome: str | Mapping[str, Any] | pl.Expr, horizons: Sequence[str] | None
) -> pl.DataFrame:
    """The share of paths on which an outcome has happened by each horizon; see `Forecast.path_incidence`."""
    missing = [c for c in PATH_SCHEMA if c not in paths.columns]
    if missing or not paths.height:
        raise ForecastError("a frame of paths as forecast.paths gives it", "another frame", "pass that frame")
    if isinstance(outcome, pl.Expr):
        name, first = COMPOUND, _where(paths, outcome)
    else:
        task, name = _task_with(source.task, outcome)
        _check_codes(task, task.outcome(name), source)
        first = pl.concat([first_on_paths(source.timelines, part, task, name) for part in _parts(source, paths)])
    return shares(first, name, _spans(paths, source.task, horizons))


def shares(first: pl.DataFrame, name: str, spans: Sequence[Horizon]) -> pl.DataFrame:
    """Incidence by horizon from the `days` until the outcome on each path, null where it never happens there.

    >>> from datetime import datetime
    >>> first = pl.DataFrame({"subject_id": 1, "patient": "a", "prediction_time": datetime(2020, 1, 1),
    ...                       "path": [0, 1, 2, 3], "days": [10.0, 400.0, None, None]})
    >>> shares(first, "fall", [Horizon("1y")]).select("probability", "standard_error", "paths").row(0)
    (0.25, 0.21650635094610965, 4)
    """
    p = pl.col("probability")
    tables = [
        first.with_columns(horizon_days=span.days_after(pl.col("prediction_time")).cast(pl.Float64)) for span in spans
    ]
    return (
        pl.concat(tables)
        .with_columns(happened=(pl.col("days") <= pl.col("horizon_days")).fill_null(False))
        .group_by(*KEY, "patient", "horizon_days")
        .agg(probability=pl.col("happened").mean(), paths=pl.len())
        .with_columns(outcome=pl.lit(name), standard_error=(p * (1 - p) / pl.col("paths")).sqrt())
        .select(
            "subject_id", "patient", "prediction_time", "outcome", "horizon_days", "probability", "standard_error",
            "paths",
        )
        .sort(*KEY, "horizon_days")
    )  # fmt: skip


def first_on_paths(timelines: Timelines, paths: pl.DataFrame, task: Task, name: str) -> pl.DataFrame:
    """`subject_id, patient, prediction_time, path, days` of the paths at risk: days to the outcome, null for never.

    Each path becomes a subject of its own, with the history visible at its prediction time and the sampled events after
    it, followed until its end.
    """
    each = paths.group_by(*PATH, "patient").agg(
        end=pl.col("time").max(), died=(pl.col("code") == DEATH_CODE).any()
    ).sort(*PATH).with_row_index("number")  # fmt: skip
    each = each.with_columns(pl.col("number").cast(pl.Int64))
    history = visible_history(timelines, each.select(*KEY, "number"))
    sampled = paths.filter(pl.col("code") != END_CODE).join(each.select(*PATH, "number"), on=PATH)
    sampled = sampled.with_columns(known_time="time").drop(*KEY, "patient", "path")
    both = [frame.drop("subject_id", strict=False).rename({"number": "subject_id"}) for frame in (history, sampled)]
    events = pl.concat([conform(frame, EVENT_SCHEMA, "event") for frame in both])
    subjects = each.join(timelines.subjects, on="subject_id", how="left", maintain_order="left").with_columns(
        subject_id="number",
        death_time=pl.when("died").then("end"),
        follow_up_start="prediction_time",
        follow_up_end="end",
    )
    made = Timelines(events=events, subjects=subjects.select(timelines.subjects.columns), metadata=timelines.metadata)
    queries = each.select("number", *KEY, "patient", "path").rename({"subject_id": "real", "number": "subject_id"})
    found = label(queries, occurrences(made, task), made.subjects, task).filter(outcome=name)
    return found.filter("at_risk").select(
        pl.col("real").alias("subject_id"), "patient", "prediction_time", "path",
        days=pl.when(pl.col("cause") == 1).then("days"),
    )  # fmt: skip


def _where(paths: pl.DataFrame, predicate: pl.Expr) -> pl.DataFrame:
    """Days to the first row of each path at which the predicate holds."""
    try:
        marked = paths.with_columns(_holds=predicate.fill_null(False).cast(pl.Boolean))
    except pl.exceptions.PolarsError as error:
        raise ForecastError(
            "a predicate on the columns of the paths", type(error).__name__, f"use {', '.join(PATH_SCHEMA)}"
        ) from None
    first = pl.col("time").filter(pl.col("_holds") & (pl.col("code") != END_CODE)).min()
    return (
        marked.group_by(*PATH, "patient")
        .agg(first=first)
        .with_columns(days=in_days(pl.col("first") - pl.col("prediction_time")))
        .drop("first")
    )


def _task_with(task: Task, outcome: str | Mapping[str, Any]) -> tuple[Task, str]:
    """The task, with the outcome among its own, and the outcome's name."""
    if isinstance(outcome, str):
        return task, task.outcome(outcome).name
    if not isinstance(outcome, Mapping):
        raise ForecastError(
            "a name of an outcome, a definition in the keys of a task file, or a polars predicate",
            type(outcome).__name__, "e.g. {'any_of': ['diabetes', 'death']}",
        )  # fmt: skip
    table = task.to_dict()
    # a table of prediction times plays no part, and may name patients that are not here
    times = {"rule": "every_encounter"}
    name = COMPOUND if COMPOUND not in table["outcomes"] else COMPOUND + "_of_paths"
    return Task.from_dict({**table, "prediction_times": times, "outcomes": {**table["outcomes"], name: outcome}}), name


def _check_codes(task: Task, outcome: Outcome, source: PathSource) -> None:
    """ForecastError for a definition none of whose codes a path can have."""
    if source.fitted.paths is None:
        return
    if outcome.parts:
        for part in resolve(outcome, {o.name: o for o in task.outcomes}):
            _check_codes(task, part, source)
        return
    possible = {*source.fitted.paths.codes, *(c for codes in source.fitted.paths.emitted.values() for c, _ in codes)}
    some = pl.DataFrame({"subject_id": 0, "code": sorted(possible)}).pipe(conform, EVENT_SCHEMA, "event")
    events = pl.concat([source.timelines.events.filter(pl.col("code").is_in(sorted(possible))), some])
    patterns = event_patterns(outcome, task) or outcome.patterns
    if len(unmatched_codes(Timelines(events=events, subjects=source.timelines.subjects), patterns)) == len(patterns):
        raise ForecastError(
            "an outcome of codes that paths have (the model's most frequent, and those of its task)",
            f"one of others: {', '.join(patterns[:3])}",
            "name the code in an outcome or lab of the task, and fit again",
        )  # fmt: skip


def _spans(paths: pl.DataFrame, task: Task, horizons: Sequence[str] | None) -> list[Horizon]:
    """The horizons asked for; ForecastError for one beyond the end of the paths. By default, the task's before it."""
    spans = [Horizon(h) for h in horizons] if horizons is not None else list(task.horizons)
    ends = paths.filter(pl.col("code") == END_CODE)
    at, end = pl.col("prediction_time"), pl.col("time")
    within = [bool(ends.select((span.after(at) <= end).all()).item()) for span in spans]
    if (horizons is not None and not all(within)) or not any(within):
        raise ForecastError(
            "horizons within that of the paths", f"'{spans[within.index(False)].label}'", "sample with a later `until`"
        )
    return [span for span, fits in zip(spans, within, strict=True) if fits]


def _parts(source: PathSource, paths: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The paths, some prediction times after the other, so that history and paths are about EVENTS events."""
    held = source.timelines.events.group_by("subject_id").len("_held")
    sizes = paths.group_by(KEY).agg(_rows=pl.len(), _paths=pl.col("path").n_unique()).sort(KEY)
    sizes = sizes.join(held, on="subject_id", how="left", maintain_order="left")
    weight = pl.col("_rows") + pl.col("_paths") * pl.col("_held").fill_null(0)
    sizes = sizes.with_columns(_part=weight.cast(pl.Int64).cum_sum() // EVENTS)
    for _, part in sizes.group_by("_part", maintain_order=True):
        yield paths.join(part.select(KEY), on=KEY, how="semi")
