"""From paths to the probability of any outcome, found on them by the code that finds it on real timelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from ehrseq.errors import ForecastError
from ehrseq.forecast.paths import END_CODE, KEY, PATH_SCHEMA, PathSource, visible_history
from ehrseq.task.definition import MICROSECONDS_A_DAY, Horizon, Task
from ehrseq.task.label import label
from ehrseq.task.outcome import occurrences
from ehrseq.timeline.schema import DEATH_CODE, normalise_events
from ehrseq.timeline.store import Timelines

ROWS = 2_000_000  # events looked at together
COMPOUND = "compound"


def path_incidence(
    source: PathSource, paths: pl.DataFrame, outcome: str | Mapping[str, Any] | pl.Expr, horizons: Sequence[str] | None
) -> pl.DataFrame:
    """The share of paths on which an outcome has happened by each horizon; see `Forecast.path_incidence`."""
    missing = [c for c in PATH_SCHEMA if c not in paths.columns]
    if missing or not paths.height:
        raise ForecastError("a frame of paths as forecast.paths gives it", "another frame", "pass that frame")
    if isinstance(outcome, pl.Expr):
        name, first = COMPOUND, _by_predicate(paths, outcome)
    else:
        name, task = _task_with(source.task, outcome)
        known = set(source.fitted.paths.codes) if source.fitted.paths is not None else set()
        _check_codes(task, name, known, paths)
        first = pl.concat([_by_definition(source, some, task, name) for some in _parts(source, paths)])
    ends = paths.filter(pl.col("code").is_in([END_CODE, DEATH_CODE])).group_by(*KEY, "patient").agg(end=pl.col("time").max())
    asked = [Horizon(h) for h in horizons] if horizons is not None else [*source.task.horizons]
    tables = []
    for horizon in asked:
        days = horizon.days_after(pl.col("prediction_time"))
        rows = first.with_columns(horizon_days=days, happened=(pl.col("days") <= days).fill_null(False))
        tables.append(rows)
    reach = ends.select(*KEY, reach=(pl.col("end") - pl.col("prediction_time")).dt.total_microseconds() / MICROSECONDS_A_DAY)
    p = pl.col("probability")
    return (
        pl.concat(tables)
        .join(reach, on=KEY)
        .group_by(*KEY, "patient", "horizon_days")
        .agg(probability=pl.col("happened").mean(), paths=pl.len(), reach=pl.col("reach").first())
        .with_columns(outcome=pl.lit(name), standard_error=(p * (1 - p) / pl.col("paths")).sqrt())
        .select("subject_id", "patient", "prediction_time", "outcome", "horizon_days", "probability", "standard_error", "paths")
        .sort(*KEY, "horizon_days")
    )


def _by_predicate(paths: pl.DataFrame, predicate: pl.Expr) -> pl.DataFrame:
    raise NotImplementedError
