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

WHOLE_SUBJECT = ("no_birth_date", "before_birth", "implausible_age", "dead", "no_history", "unknown_codes")
_WHOLE = pl.col("reason").is_in(WHOLE_SUBJECT)
_NOBODY = pl.DataFrame(schema=SKIPPED_SCHEMA)
_UNTRAINED = pl.lit("no_training_events")


def screen(
    timelines: Timelines, queries: pl.DataFrame, task: Task, known: pl.Expr, outcomes: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows (query and outcome) that can be scored, and the `skipped` table of those that cannot, with the reason.

    `known` says whether the model knows the `code` of an event, `outcomes` are those it was fitted for.
    """
    unknown = pl.Series(np.repeat(unknown_history(timelines, queries, known), len(task.outcomes)))
    people = timelines.subjects.lazy().select("subject_id", "patient")
    more = pl.when(unknown).then(pl.lit("unknown_codes")).when(~pl.col("outcome").is_in(outcomes)).then(_UNTRAINED)
    rows = at_once(
        known_at_risk(queries, timelines, task).lazy()
        .with_columns(reason=pl.coalesce("reason", more))
        .join(people, on="subject_id", how="left", maintain_order="left")
    )  # fmt: skip
    left_out = rows["reason"].is_not_null()
    if not left_out.any():
        return rows.drop("reason", "at_risk"), _NOBODY
    skipped = at_once(
        rows.lazy()
        .filter(left_out)
        .with_columns(outcome=pl.when(~_WHOLE).then("outcome"))
        .select(*SKIPPED_SCHEMA)
        .unique()
        .sort("subject_id", "prediction_time", "outcome", nulls_last=False)
    )
    return rows.filter(~left_out).drop("reason", "at_risk"), skipped


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


def unknown_history(timelines: Timelines, queries: pl.DataFrame, known: pl.Expr) -> NDArray[np.bool_]:
    """Whether a query has visible, dated events, and none of them has a code that is known to the model."""
    events = timelines.events.lazy().select("subject_id", "code", "known_time")
    when = pl.col("known_time")
    dated = events.filter(is_model_event() & when.is_not_null())
    first = dated.group_by("subject_id").agg(any=when.min(), known=when.filter(known).min())
    asked = queries.lazy().select("subject_id", "prediction_time")
    joined = asked.join(first, on="subject_id", how="left", maintain_order="left")
    seen = {c: visible(pl.col(c), pl.col("prediction_time")).fill_null(False) for c in ("any", "known")}
    return at_once(joined.select(seen["any"] & ~seen["known"])).to_series().to_numpy()
