"""What a subject belongs to: sex, age band, race, ethnicity, and whatever a user's table adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ehrseq.errors import EvaluationError
from ehrseq.frames import to_polars
from ehrseq.timeline.schema import TIME
from ehrseq.timeline.store import Timelines

KEY = ("subject_id", "prediction_time")
AGE_BANDS = {50: "under 50", 65: "50 to 64", 80: "65 to 79"}
OLDEST = "80 and over"
MOST_LEVELS = 20


def default_groups(timelines: Timelines, queries: pl.DataFrame) -> pl.DataFrame:
    """`subject_id`, `prediction_time`, `sex`, `age` band at that time, `race`, `ethnicity`; null where unknown.

    A column of which nothing is known is left out.

    >>> from datetime import datetime
    >>> timelines = Timelines.from_events({"subject_id": [1, 1], "time": [datetime(1960, 1, 1), None],
    ...                                    "code": ["MEDS_BIRTH", "SEX//female"]})
    >>> at = pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2015, 1, 1)]})
    >>> default_groups(timelines, at).select("sex", "age").row(0)
    ('female', '50 to 64')
    """
    people = timelines.subjects.select("subject_id", "birth_time", "sex", "race", "ethnicity")
    keys = queries.select("subject_id", pl.col("prediction_time").cast(TIME)).unique(maintain_order=True)
    table = keys.join(people, on="subject_id", how="left", maintain_order="left")
    years = (pl.col("prediction_time") - pl.col("birth_time")).dt.total_days() / 365.25
    bands = (pl.when(years < bound).then(pl.lit(name)) for bound, name in AGE_BANDS.items())
    age = pl.coalesce(*bands, pl.when(years.is_not_null()).then(pl.lit(OLDEST)))
    table = table.select(*KEY, "sex", age.alias("age"), "race", "ethnicity")
    return table.select(c for c in table.columns if c in KEY or table[c].null_count() < table.height)


def read_groups(source: Any, timelines: Timelines | None = None) -> pl.DataFrame:
    """A user's table of groups, as `subject_id` and text columns: CSV, Parquet or a frame, one row a subject.

    It has `subject_id`, or `patient` as the timelines name them (a reference that ends in `Patient/x` too). Rows about
    nobody in the timelines are left out. Raises EvaluationError for a table that cannot be used.

    >>> read_groups({"subject_id": [1, 2], "site": ["north", None]}).rows()
    [(1, 'north'), (2, None)]
    """
    frame = read_table(source, "the table of groups")
    ids = [c for c in ("subject_id", "patient") if c in frame.columns]
    columns = [c for c in frame.columns if c not in (*KEY, "patient")]
    if not ids or not columns:
        raise EvaluationError(
            "a table with subject_id or patient, and columns of groups", "other columns", "rename the columns"
        )
    for column in columns:
        levels = frame[column].n_unique()
        if levels > MOST_LEVELS:
            raise EvaluationError(
                f"at most {MOST_LEVELS} groups in a column", f"{levels} in one column", "put the values into bands"
            )
    table = with_subject_ids(frame, timelines).select("subject_id", *(pl.col(c).cast(pl.String) for c in columns))
    if table["subject_id"].is_duplicated().any():
        raise EvaluationError("one row of groups for each subject", "several", "keep one row for each subject")
    return table


def with_subject_ids(frame: pl.DataFrame, timelines: Timelines | None) -> pl.DataFrame:
    """The frame with `subject_id`, found by `patient` where it has none, without rows about nobody in the timelines."""
    if "subject_id" in frame.columns:
        if not frame["subject_id"].dtype.is_integer():
            raise EvaluationError(
                "integers in subject_id", f"the type {frame['subject_id'].dtype}",
                "give the FHIR id in a column named patient",
            )  # fmt: skip
        known = frame.with_columns(pl.col("subject_id").cast(pl.Int64))
        return known if timelines is None else known.join(timelines.subjects, on="subject_id", how="semi",
                                                          maintain_order="left")  # fmt: skip
    if timelines is None:
        raise EvaluationError("subject_id, or timelines that name the patients", "neither", "give the timelines")
    names = timelines.subjects.select("patient", "subject_id")
    patient = pl.col("patient").cast(pl.String).str.replace(r"^.*Patient/", "")
    return frame.with_columns(patient).join(names, on="patient", how="inner", maintain_order="left")


def read_table(source: Any, what: str) -> pl.DataFrame:
    """A frame, or the table in a CSV or Parquet file. Raises EvaluationError where it cannot be read."""
    if not isinstance(source, str | Path):
        return to_polars(source)
    path = Path(source)
    if not path.is_file():
        raise EvaluationError(f"{what} in a CSV or Parquet file", "no such file", "check the path")
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path)
        # ids are text: as a number 007 would be another patient
        return pl.read_csv(path, infer_schema_length=None, schema_overrides={"patient": pl.String})
    except (OSError, pl.exceptions.PolarsError) as problem:
        # the message of polars quotes the file
        raise EvaluationError(f"{what} in CSV or Parquet", type(problem).__name__, "check the file") from None
