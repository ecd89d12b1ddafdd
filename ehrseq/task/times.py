"""When forecasts are made: the prediction times of a task."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrseq.errors import TaskError, UserError
from ehrseq.task.definition import Horizon, PredictionTimes, Task
from ehrseq.task.predicate import event_matches
from ehrseq.task.stays import stays
from ehrseq.timeline.schema import TIME, as_instant, instants
from ehrseq.timeline.store import Timelines

_COLUMNS = ("subject_id", "prediction_time", "landmark")


def prediction_times(timelines: Timelines, task: Task) -> pl.DataFrame:
    """`subject_id`, `prediction_time` and `landmark`, each pair once, sorted by subject and time.

    - landmarks: `follow_up_start` plus each span of `after_start`, for every subject with follow-up, whether or not
      still followed then. Spans in days or more mean the last microsecond of that day; hours are exact. `landmark`
      is the span as written; it is null under the other rules.
    - every_encounter: each encounter's end, when its discharge becomes known (`ENCOUNTER//.../discharge`): the first
      moment at which all that the encounter taught is known.
    - after: when each matching event becomes known.
    - admission, discharge: when each stay of that name begins, or ends.
    - table: the rows whose patient is one of the subjects' `patient`, or their `subject_id` as text.

    >>> from datetime import datetime
    >>> subjects = pl.DataFrame({"subject_id": [1], "follow_up_start": [datetime(2005, 1, 1)]})
    >>> task = Task.from_dict({"horizons": ["1y"], "outcomes": {"mi": {"codes": ["SNOMED//22298006"]}},
    ...                        "prediction_times": {"rule": "landmarks", "after_start": ["2y"]}})
    >>> prediction_times(Timelines(pl.DataFrame(), subjects), task).row(0)
    (1, datetime.datetime(2007, 1, 1, 23, 59, 59, 999999), '2y')
    """
    times = task.prediction_times
    if times.rule == "landmarks":
        found = _landmarks(timelines.subjects, times.after_start)
    elif times.rule == "table":
        found = table_times(timelines, times).drop_nulls("subject_id")
    elif times.stay is not None:
        edge = "begin" if times.rule == "admission" else "end"
        found = stays(timelines, task.stay(times.stay)).select("subject_id", prediction_time=edge).drop_nulls()
    else:
        encounter_end = pl.col("code").str.starts_with("ENCOUNTER//") & pl.col("code").str.ends_with("/discharge")
        matches = encounter_end if times.code is None else event_matches([times.code])
        known = pl.col("known_time").is_not_null()
        found = timelines.events.filter(matches & known).select("subject_id", prediction_time="known_time")
    if "landmark" not in found.columns:
        found = found.with_columns(landmark=pl.lit(None, dtype=pl.String))
    return found.select(_COLUMNS).unique().sort("subject_id", "prediction_time", "landmark")


def table_times(timelines: Timelines, times: PredictionTimes) -> pl.DataFrame:
    """The rows of the task's table with `subject_id` (null for a patient the timelines do not have)."""
    subjects = timelines.subjects
    names = pl.concat(
        [
            subjects.select("subject_id", patient=pl.col("patient").cast(pl.String)),
            subjects.select("subject_id", patient=pl.col("subject_id").cast(pl.String)),
        ]
    )
    # a patient's own name goes before a subject id that happens to read the same
    names = names.drop_nulls().unique("patient", keep="first", maintain_order=True)
    return _read_table(times).join(names, on="patient", how="left", maintain_order="left")


def _landmarks(subjects: pl.DataFrame, spans: tuple[Horizon, ...]) -> pl.DataFrame:
    followed = subjects.select("subject_id", pl.col("follow_up_start").cast(TIME)).drop_nulls()
    start = pl.col("follow_up_start")
    day_end = pl.duration(days=1) - pl.duration(microseconds=1)
    return pl.concat(
        followed.select(
            "subject_id",
            prediction_time=span.after(start) if span.unit == "h" else span.after(start).dt.truncate("1d") + day_end,
            landmark=pl.lit(span.label),
        )
        for span in spans
    )


def _read_table(times: PredictionTimes) -> pl.DataFrame:
    """`patient` and `prediction_time` as the task gives them."""
    if times.table is None:
        frame = pl.DataFrame(times.times, schema={"patient": pl.String, "time": pl.String}, orient="row")
    else:
        frame = _read_file(Path(times.table))
    missing = [c for c in ("patient", "time") if c not in frame.columns]
    if missing:
        raise TaskError(
            "columns patient and time in the table of prediction times", f"no {missing[0]}", "rename the columns"
        )
    frame = frame.select(pl.col("patient").cast(pl.String), "time")
    if frame.null_count().sum_horizontal().item():
        raise TaskError("patient and time in each row of the table of prediction times", "empty cells", "fill them")
    if frame.schema["time"] == pl.String:
        instant = pl.Series("prediction_time", [_instant(text) for text in frame["time"]], dtype=TIME)
    elif frame.schema["time"].is_temporal():
        instant = instants(frame["time"], end_of_day=True).rename("prediction_time")
    else:
        raise TaskError("dates or times in column time", f"type {frame.schema['time']}", "convert the column")
    return frame.select("patient", instant)


def _read_file(path: Path) -> pl.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path)
        return pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TaskError(
            "a readable CSV or Parquet table of prediction times", type(error).__name__, "check prediction_times.table"
        ) from None


def _instant(text: str) -> object:
    try:
        return as_instant(text)
    except UserError:
        raise TaskError(
            "prediction times like 2020-01-31 or 2020-01-31T12:00:00", "other text", "write them as ISO 8601"
        ) from None
