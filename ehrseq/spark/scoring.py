"""Forecasts on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from ehrseq.errors import UserError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.forecast.labs import STANDARD, quantile_columns
from ehrseq.forecast.table import LAB_SCHEMA, RISK_SCHEMA, SEEN_SCHEMA, SKIPPED_SCHEMA, Forecast
from ehrseq.spark import stages
from ehrseq.spark.engine import Engine
from ehrseq.spark.reading import SparkTimelines, collected, frame_from, table_of
from ehrseq.spark.stages import LABS, RISK, SEEN, SKIPPED
from ehrseq.spark.wire import PIECES, folder_bytes
from ehrseq.timeline.schema import as_instant


@dataclass(frozen=True, eq=False)
class SparkForecast:
    """A forecast on a cluster: the tables of `Forecast` as DataFrames, made when they are looked at."""

    engine: Engine
    pieces: Any
    metadata: Mapping[str, Any]

    @cached_property
    def risk(self) -> Any:
        """One row a subject, prediction time, outcome and horizon, in no order."""
        return table_of(self.engine, self.pieces, RISK, RISK_SCHEMA)

    @cached_property
    def skipped(self) -> Any:
        """Who was not scored for which outcome (null: for all), and why."""
        return table_of(self.engine, self.pieces, SKIPPED, SKIPPED_SCHEMA)

    @cached_property
    def seen(self) -> Any:
        """Scored subjects whom the model was fitted on."""
        return table_of(self.engine, self.pieces, SEEN, SEEN_SCHEMA)

    @cached_property
    def labs(self) -> Any:
        """Quantiles of the labs of the task."""
        return table_of(self.engine, self.pieces, LABS, _LABS)

    def collect(self) -> Forecast:
        """The same as a `Forecast` in this process, as if read from a folder."""
        found = collected(self.engine, self.pieces)
        schemas: dict[str, dict[str, Any]] = {
            RISK: RISK_SCHEMA,
            SKIPPED: SKIPPED_SCHEMA,
            SEEN: SEEN_SCHEMA,
            LABS: _LABS,
        }
        tables = {kind: frame_from(found.get(kind, []), schema) for kind, schema in schemas.items()}
        keys = ["subject_id", "prediction_time"]
        return Forecast(
            tables[RISK].sort(*keys, "outcome", "horizon_days"),
            tables[SKIPPED].sort(*keys, "outcome", nulls_last=False),
            dict(self.metadata),
            seen=tables[SEEN].unique().sort("subject_id"),
            labs=tables[LABS].sort(*keys, "code", "horizon_days"),
        )

    def unpersist(self) -> None:
        """Let go of what the workers keep on their disks."""
        self.pieces.unpersist()


_LABS = LAB_SCHEMA | dict.fromkeys(quantile_columns(STANDARD), pl.Float64)


def score(
    timelines: SparkTimelines, model: ProgressionModel | str | Path, *, at: Any = None, branch: str | None = None
) -> SparkForecast:
    """Forecasts of everyone, as `ProgressionModel.forecast` makes them, by the cluster that holds the timelines.

    `model` is a model or its folder (read here, sent to the workers). `at` is a date or time for everyone, "task" for
    the task's own prediction times, or None for each subject's end of follow-up. Raises UserError for another `at`, and
    for "task" where the task has a table of times, ForecastError for a branch that was not fitted; where nobody can be
    scored, all are in `skipped`.
    """
    if not (at is None or isinstance(at, str | date)):
        raise UserError("a date, a time, 'task' or nothing for `at`", type(at).__name__, "score a table locally")
    if isinstance(at, str) and at != "task":
        at = as_instant(at)
    with TemporaryDirectory() as scratch:
        if not isinstance(model, str | Path):
            model.save(Path(scratch, "model"))
        folder = Path(model) if isinstance(model, str | Path) else Path(scratch, "model")
        loaded = load_model(folder)
        content = folder_bytes(folder)
    if at == "task" and (loaded.times_withheld_ or loaded.task_.prediction_times.rule == "table"):
        raise UserError("a rule of prediction times for at='task'", "a task with a table of them", "score it locally")
    engine = timelines.engine
    # a model that was never saved has no folder that a forecast could name
    facts = (loaded if isinstance(model, str | Path) else model).forecast_facts(branch)
    stage = partial(stages.score_shards, shared=engine.share(content), at=at, branch=branch)
    wanted = engine.map(timelines.pieces, stages.subject_pieces, PIECES)
    return SparkForecast(engine, engine.keep(engine.map(engine.by_shard(wanted), stage, PIECES)), facts)
