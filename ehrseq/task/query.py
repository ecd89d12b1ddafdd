"""The prediction times a user asks for."""

from __future__ import annotations

from datetime import date
from typing import Any

import polars as pl

from ehrseq.errors import ForecastError, NoPredictionTimeError
from ehrseq.frames import at_once, to_polars
from ehrseq.task.definition import Task
from ehrseq.task.times import prediction_times
from ehrseq.timeline.schema import TIME, as_instant, instants
from ehrseq.timeline.store import Timelines


def resolve_prediction_times(timelines: Timelines, at: Any, task: Task) -> pl.DataFrame:
    """`subject_id`, `prediction_time`: what `at` means for these subjects, each pair once.

    `at` is None (each subject's end of follow-up), "task" (the task's own prediction times), a date (its last
    microsecond), a datetime, or a frame with `prediction_time` and `patient` or `subject_id`. A pandas column of
    `datetime64` has times, so that its midnight is the start of a day; objects of `datetime.date` and texts like
    2020-01-31 are whole days. Raises ForecastError, and TimelineError for a text that is no date and for unknown
    patients.

    >>> task = Task.from_dict({"horizons": ["1y"], "outcomes": {"death": {"codes": ["MEDS_DEATH"]}},
    ...                        "prediction_times": {"rule": "every_encounter"}})
    >>> timelines = Timelines.from_events({"subject_id": [7], "time": [date(2020, 1, 1)], "code": ["LOINC//718-7"]})
    >>> resolve_prediction_times(timelines, "2021-05-06", task).row(0)
    (7, datetime.datetime(2021, 5, 6, 23, 59, 59, 999999))
    """
    subjects = timelines.subjects
    if at is None:
        queries = subjects.select("subject_id", prediction_time="follow_up_end").drop_nulls()
        if not queries.height and subjects.height:
            raise NoPredictionTimeError("subjects with some follow-up", "none", "give a prediction time with `at`")
    elif isinstance(at, str) and at == "task":
        queries = prediction_times(timelines, task)
    elif isinstance(at, str | date):
        queries = subjects.select("subject_id").with_columns(prediction_time=pl.lit(as_instant(at), TIME))
    else:
        queries = _from_frame(timelines, to_polars(at))
    if not queries.height:
        raise NoPredictionTimeError(
            "at least one prediction time", "none", "check what `at`, or the task's rule, selects"
        )
    times = queries.lazy().select("subject_id", pl.col("prediction_time").cast(TIME))
    return at_once(times.unique(maintain_order=True).sort("subject_id", "prediction_time"))


def _from_frame(timelines: Timelines, frame: pl.DataFrame) -> pl.DataFrame:
    if "prediction_time" not in frame.columns or not {"patient", "subject_id"} & set(frame.columns):
        raise ForecastError(
            "a frame with prediction_time and patient (or subject_id)",
            f"columns {', '.join(frame.columns)}",
            "rename the columns",
        )
    name = "subject_id" if "subject_id" in frame.columns else "patient"
    missing = sum(frame[c].null_count() for c in (name, "prediction_time"))
    if missing:
        raise ForecastError(
            f"{name} and prediction_time in every row", f"{missing} missing values", "drop or fill these rows"
        )
    if name == "patient":
        ids = timelines.subject_ids(frame["patient"].cast(pl.String).to_list())
    else:
        ids = _integers(frame["subject_id"])
    queries = pl.DataFrame({"subject_id": ids, "prediction_time": _times(frame["prediction_time"])})
    strangers = len(ids) - int(ids.is_in(timelines.subjects["subject_id"].implode()).sum())
    if strangers:
        raise ForecastError("subjects of the timelines", f"{strangers} rows about others", "drop these rows")
    return queries


def _integers(ids: pl.Series) -> pl.Series:
    if not ids.dtype.is_integer():
        raise ForecastError(
            "integers in subject_id", f"the type {ids.dtype}", "give the FHIR id in a column named patient"
        )
    return ids.cast(pl.Int64)


def _times(times: pl.Series) -> pl.Series:
    """Prediction times as UTC without a zone, from dates (their end), datetimes or ISO 8601 text."""
    if times.dtype == pl.String:
        return pl.Series([as_instant(text) for text in times.to_list()], dtype=TIME)
    if not times.dtype.is_temporal():
        raise ForecastError("dates or times in prediction_time", f"the type {times.dtype}", "convert the column")
    return instants(times, end_of_day=True)
