"""Who can be scored for what, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import ForecastError
from ehrseq.forecast.table import SKIPPED_SCHEMA
from ehrseq.frames import at_once
from ehrseq.task.definition import Task
from ehrseq.task.history import visible
from ehrseq.task.label import known_at_risk
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.vocabulary import is_model_event

WHOLE_SUBJECT = ("no_birth_date", "before_birth", "dead", "no_history", "unknown_codes")


def screen(
    timelines: Timelines, queries: pl.DataFrame, task: Task, codes: Sequence[str], outcomes: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows (query and outcome) that can be scored, and the `skipped` table of those that cannot, with the reason.

    `codes` are those the model knows, `outcomes` those it was fitted for.
    """
    unknown = pl.Series(np.repeat(unknown_history(timelines, queries, codes), len(task.outcomes)))
    people = timelines.subjects.lazy().select("subject_id", "patient")
    reason = (
        pl.when(pl.col("reason").is_not_null())
        .then("reason")
        .when(pl.col("_unknown"))
        .then(pl.lit("unknown_codes"))
        .when(~pl.col("outcome").is_in(outcomes))
        .then(pl.lit("no_training_events"))
    )
    rows = at_once(
        known_at_risk(queries, timelines, task).lazy()
        .with_columns(_unknown=unknown)
        .with_columns(reason=reason)
        .join(people, on="subject_id", how="left", maintain_order="left")
    )  # fmt: skip
    skipped = at_once(
        rows.lazy()
        .filter(pl.col("reason").is_not_null())
        .with_columns(outcome=pl.when(~pl.col("reason").is_in(WHOLE_SUBJECT)).then("outcome"))
        .select(pl.col(c).cast(t) for c, t in SKIPPED_SCHEMA.items())
        .unique(maintain_order=True)
        .sort("subject_id", "prediction_time", "outcome", nulls_last=False)
    )
    scored = rows.lazy().filter(pl.col("reason").is_null()).drop("reason", "at_risk", "_unknown")
    return at_once(scored), skipped


def nobody_scored(skipped: pl.DataFrame) -> ForecastError:
    """The error that says why nobody can be scored."""
    queries = skipped.select("subject_id", "prediction_time").n_unique()
    return none_of(queries, dict(skipped["reason"].value_counts().iter_rows()))


def none_of(queries: int, reasons: Mapping[str, int]) -> ForecastError:
    """The same from how many were asked about, and how often each reason was given."""
    most = min(reasons, key=lambda reason: (-reasons[reason], reason))
    return ForecastError(
        "a subject with usable history at the prediction time",
        f"none of {queries} (most often: {most})",
        "choose a later prediction time, or check that the export and the model speak of the same codes",
    )


def unknown_history(timelines: Timelines, queries: pl.DataFrame, codes: Sequence[str]) -> NDArray[np.bool_]:
    """Whether a query has visible, dated events, and none of them has a code that is known to the model."""
    dated = timelines.events.lazy().select("subject_id", "code", "known_time").filter(is_model_event())
    known = pl.col("code").is_in(codes)
    first = (
        dated.filter(pl.col("known_time").is_not_null())
        .group_by("subject_id")
        .agg(any=pl.col("known_time").min(), known=pl.col("known_time").filter(known).min())
    )
    asked = queries.lazy().select("subject_id", "prediction_time")
    joined = asked.join(first, on="subject_id", how="left", maintain_order="left")
    seen = {c: visible(pl.col(c), pl.col("prediction_time")).fill_null(False) for c in ("any", "known")}
    return at_once(joined.select(seen["any"] & ~seen["known"])).to_series().to_numpy()
