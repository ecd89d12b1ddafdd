"""Anyone's predictions: a risk table from a CSV or Parquet file, with the subjects and times of the timelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from ehrseq.errors import EvaluationError, TimelineError
from ehrseq.evaluate.groups import read_table, with_subject_ids
from ehrseq.evaluate.tables import RISK_SCHEMA, validate_risk
from ehrseq.timeline.schema import TIME, as_instant, instants
from ehrseq.timeline.store import Timelines

COLUMNS = ("patient or subject_id", "prediction_time", "outcome", "horizon_days", "probability")


def read_predictions(source: Any, timelines: Timelines, outcomes: Sequence[str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """A valid risk table from any model's predictions, and what was left out of it.

    `source` is a frame or a CSV or Parquet file with `patient` (as in the data, or a reference that ends in
    `Patient/x`) or `subject_id`; `prediction_time` (ISO 8601; a date means its end); `outcome`, one of `outcomes`;
    `horizon_days`; `probability`. Other columns are ignored.

    Returns the table and the counts `rows`, `rows_of_unknown_subjects` and `rows_of_other_outcomes`.

    Raises
    ------
    EvaluationError
        for missing columns or values, text that is no date, probabilities outside [0, 1], two rows of one forecast,
        or a table with nothing about these subjects and outcomes

    >>> timelines = Timelines.from_events({"subject_id": [7], "time": [None], "code": ["SEX//female"]})
    >>> table, counts = read_predictions({"patient": ["Patient/7", "x"], "prediction_time": ["2020-01-01"] * 2,
    ...     "outcome": ["t2d"] * 2, "horizon_days": [365] * 2, "probability": [0.1, 0.2]}, timelines, ["t2d"])
    >>> table["subject_id"].to_list(), counts["rows_of_unknown_subjects"]
    ([7], 1)
    """
    frame = read_table(source, "a risk table")
    if not {"patient", "subject_id"} & set(frame.columns):
        raise EvaluationError(f"the columns {', '.join(COLUMNS)}", "no patient or subject_id", "add one of them")
    missing = [c for c in RISK_SCHEMA if c != "subject_id" and c not in frame.columns]
    if missing:
        raise EvaluationError(
            f"the columns {', '.join(COLUMNS)}", f"no {', '.join(missing)}", "add them to the risk table"
        )
    rows = frame.height
    who = "subject_id" if "subject_id" in frame.columns else "patient"
    empty = frame[who].null_count()
    if empty:
        raise EvaluationError(f"{who} in every row", f"{empty} rows without", "fill them or drop those rows")
    known = with_subject_ids(frame, timelines)
    if rows and not known.height:
        raise EvaluationError(
            "predictions about subjects of the timelines", f"{rows} rows about others",
            f"check that {who} is named as in the timelines",
        )  # fmt: skip
    asked = known.filter(pl.col("outcome").cast(pl.String).is_in(list(outcomes)))
    if not asked.height:
        raise EvaluationError(
            f"predictions of the outcomes of the task ({', '.join(outcomes)})", "none of these",
            "name the outcomes as the task does",
        )  # fmt: skip
    table = asked.with_columns(_times(asked["prediction_time"]))
    validate_risk(table)
    counts = {
        "rows": rows,
        "rows_of_unknown_subjects": rows - known.height,
        "rows_of_other_outcomes": known.height - asked.height,
    }
    return table.select(pl.col(c).cast(t) for c, t in RISK_SCHEMA.items()), counts


def _times(times: pl.Series) -> pl.Series:
    """Instants in UTC; text is read as ISO 8601, and a date stands for its end."""
    if times.dtype != pl.String:
        if not times.dtype.is_temporal():
            raise EvaluationError("dates or times in prediction_time", f"the type {times.dtype}", "convert the column")
        return instants(times, end_of_day=True)
    try:
        found = {text: as_instant(text) for text in times.drop_nulls().unique().to_list()}
    except TimelineError:
        raise EvaluationError(
            "prediction times like 2020-01-31 or 2020-01-31T08:00:00", "text that is none", "write them as ISO 8601"
        ) from None
    return times.replace_strict(found, default=None, return_dtype=TIME).rename("prediction_time")
