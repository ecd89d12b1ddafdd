"""The prediction times a user asks for."""

from __future__ import annotations

from datetime import date
from typing import Any

import polars as pl

from ehrseq.errors import ForecastError
from ehrseq.frames import to_polars
from ehrseq.task.definition import Task
from ehrseq.task.times import prediction_times
from ehrseq.timeline.schema import TIME, as_instant, instants
from ehrseq.timeline.store import Timelines


def resolve_prediction_times(timelines: Timelines, at: Any, task: Task) -> pl.DataFrame:
    """`subject_id`, `prediction_time`: what `at` means for these subjects, each pair once.

    `at` is None (each subject's end of follow-up), "task" (the task's own prediction times), a date (its last
    microsecond), a datetime, or a frame with `prediction_time` and `patient` or `subject_id`. Raises ForecastError.
    """
    subjects = timelines.subjects
    if at is None:
        queries = subjects.select("subject_id", prediction_time="follow_up_end").drop_nulls()
        if not queries.height and subjects.height:
            raise ForecastError("subjects with some follow-up", "none", "give a prediction time with `at`")
    elif isinstance(at, str) and at == "task":
        queries = prediction_times(timelines, task)
    elif isinstance(at, str | date):
        queries = subjects.select("subject_id").with_columns(prediction_time=pl.lit(as_instant(at), TIME))
    else:
        queries = _from_frame(timelines, to_polars(at))
    return (
        queries.select("subject_id", pl.col("prediction_time").cast(TIME))
        .unique(maintain_order=True)
        .sort("subject_id", "prediction_time")
    )


def _from_frame(timelines: Timelines, frame: pl.DataFrame) -> pl.DataFrame:
    if "prediction_time" not in frame.columns or not {"patient", "subject_id"} & set(frame.columns):
        raise ForecastError(
            "a frame with prediction_time and patient (or subject_id)",
            f"columns {', '.join(frame.columns)}",
            "rename the columns",
        )
    if "subject_id" not in frame.columns:
        frame = frame.with_columns(subject_id=timelines.subject_ids(frame["patient"].to_list()))
    frame = frame.with_columns(instants(frame["prediction_time"], end_of_day=True).alias("prediction_time"))
    strangers = frame.join(timelines.subjects, on="subject_id", how="anti").height
    if strangers or frame["prediction_time"].null_count():
        raise ForecastError(
            "subjects of the timelines, each with a prediction time",
            f"{strangers} other subjects, {frame['prediction_time'].null_count()} without a time",
            "drop these rows",
        )
    return frame
