"""Checking prediction and label tables, and lining them up row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import EvaluationError
from ehrseq.frames import to_polars

FloatArray = NDArray[np.float64]

TIME = pl.Datetime("us")
KEY = ("subject_id", "prediction_time", "outcome")
RISK_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "prediction_time": TIME,
    "outcome": pl.String,
    "horizon_days": pl.Float64,
    "probability": pl.Float64,
}
LABEL_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "prediction_time": TIME,
    "landmark": pl.String,
    "outcome": pl.String,
    "at_risk": pl.Boolean,
    "days": pl.Float64,
    "cause": pl.Int8,
}
# Room for probabilities kept as 32-bit floats.
ROUNDING = 1e-6


def validate_risk(risk: Any) -> None:
    """Refuse a risk table that cannot be judged, with one line that says why.

    Read are `subject_id`, `prediction_time`, `outcome`, `horizon_days` and `probability`; `competing` and
    `event_free` are checked where they are there. Any other column is ignored, so that another vendor's
    forecasts can be judged.

    Raises
    ------
    EvaluationError
        for missing columns, missing values, probabilities outside [0, 1] or that do not add up, horizons
        that are not above 0, two rows of one forecast, or a probability that falls as the horizon grows

    >>> validate_risk({"subject_id": [1], "probability": [0.2]})
    Traceback (most recent call last):
    ehrseq.errors.EvaluationError: expected the columns subject_id, prediction_time, outcome, horizon_days, \
probability; found no prediction_time, outcome, horizon_days; add them to the risk table
    """
    frame = _typed(to_polars(risk), RISK_SCHEMA, "risk table")
    _refuse_missing(frame, list(RISK_SCHEMA), "risk table")
    parts = [c for c in ("competing", "event_free") if c in frame.columns and frame[c].dtype.is_numeric()]
    for column in ("probability", *parts):
        values = frame[column].cast(pl.Float64)
        _refuse(
            frame.filter(~values.is_between(0, 1) | values.is_nan()),
            f"{column} between 0 and 1",
            "rows outside",
            "check the model that wrote them",
        )
    if len(parts) == 2:
        total = pl.sum_horizontal("probability", *parts).cast(pl.Float64)
        complete = pl.all_horizontal(pl.col(p).is_not_null() for p in parts)
        _refuse(
            frame.filter(complete & ((total - 1).abs() > 100 * ROUNDING)),
            "probability, competing and event_free adding up to 1",
            "rows that do not",
            "check the model that wrote them",
        )
    _refuse(
        frame.filter(~(pl.col("horizon_days").is_finite() & (pl.col("horizon_days") > 0))),
        "horizon_days above 0",
        "other rows",
        "give horizons in days from the prediction time",
    )
    _refuse(
        frame.filter(frame.select(*KEY, "horizon_days").is_duplicated()),
        "one row for each subject, prediction time, outcome and horizon",
        "rows that repeat one",
        "remove the duplicates",
    )
    falls = pl.col("probability").diff().over(KEY, order_by="horizon_days") < -ROUNDING
    _refuse(
        frame.filter(falls),
        "probabilities that do not fall as the horizon grows",
        "rows below a shorter horizon's",
        "check the model that wrote them",
    )


def validate_labels(labels: Any) -> None:
    """Refuse a label table that cannot be used.

    Columns: `subject_id`, `prediction_time`, `landmark` (a name or null), `outcome`, `at_risk`, `days` (to the
    first of outcome, competing event and censoring) and `cause` (0 censored, 1 outcome, 2 competing first).

    Raises
    ------
    EvaluationError
        for missing columns or values, times below 0, other causes, or two labels of one row
    """
    frame = _typed(to_polars(labels), LABEL_SCHEMA, "label table")
    _refuse_missing(frame, [*KEY, "at_risk"], "label table")
    at_risk = frame.filter("at_risk")
    _refuse_missing(at_risk, ["days", "cause"], "label table")
    _refuse(
        at_risk.filter(~(pl.col("days").is_finite() & (pl.col("days") >= 0)) | ~pl.col("cause").is_in([0, 1, 2])),
        "days not below 0 and causes 0, 1 or 2 for rows at risk",
        "other rows",
        "rebuild the labels",
    )
    _refuse(
        frame.filter(frame.select(*KEY, "landmark").is_duplicated()),
        "one label for each subject, prediction time, landmark and outcome",
        "rows that repeat one",
        "remove the duplicates",
    )


@dataclass(frozen=True)
class Aligned:
    """Labels at risk (n rows) beside the forecasts of every model at every horizon.

    `probability` maps a model to (n, H), NaN where it has no forecast; `horizon_days` (n, H) is each row's
    exact horizon (the nominal one where no model has a forecast).
    """

    labels: pl.DataFrame
    probability: dict[str, FloatArray]
    horizon_days: FloatArray


def align(risks: Mapping[str, Any], labels: Any, horizons: Mapping[str, float]) -> Aligned:
    """Line up validated tables: each model's forecast of each label at risk, by nominal horizon.

    Where models disagree on a row's exact horizon, the first model's counts.
    """
    if not horizons or not all(np.isfinite(days) and days > 0 for days in horizons.values()):
        raise EvaluationError("horizons in days above 0", "none or others", "pass e.g. {'1y': 365.25}")
    frame = _typed(to_polars(labels), LABEL_SCHEMA, "label table").filter("at_risk").with_row_index("row")
    nominal = np.array(list(horizons.values()), dtype=np.float64)
    exact = np.full((len(frame), len(nominal)), np.nan)
    probability = {}
    for model, risk in risks.items():
        found = _matched(_typed(to_polars(risk), RISK_SCHEMA, "risk table"), nominal).join(
            frame.select("row", *KEY), on=list(KEY), how="inner"
        )
        row, column = found["row"].to_numpy(), found["horizon"].to_numpy()
        table = np.full(exact.shape, np.nan)
        table[row, column] = found["probability"].to_numpy()
        own = np.full(exact.shape, np.nan)
        own[row, column] = found["horizon_days"].to_numpy()
        exact = np.where(np.isnan(exact), own, exact)
        probability[model] = table
    return Aligned(frame.drop("row"), probability, np.where(np.isnan(exact), nominal, exact))


def count_unmatched(risks: Mapping[str, Any], labels: Any) -> dict[str, int]:
    """How many rows of each model's table are about a subject and prediction time without any label.

    Raises EvaluationError where that is all of a table: the times, or the ids, are of another kind.
    """
    keys = _typed(to_polars(labels), LABEL_SCHEMA, "label table").select("subject_id", "prediction_time").unique()
    unmatched = {}
    for model, risk in risks.items():
        frame = _typed(to_polars(risk), RISK_SCHEMA, "risk table")
        unmatched[model] = frame.join(keys, on=["subject_id", "prediction_time"], how="anti").height
        if frame.height and keys.height and unmatched[model] == frame.height:
            known = frame.join(keys, on="subject_id", how="semi").height
            raise EvaluationError(
                "forecasts at the prediction times of the labels",
                "none: every time differs" if known else "none: every subject_id differs",
                "give the prediction times (UTC, a date means its end) and ids that the labels have",
            )
    return unmatched


def _matched(risk: pl.DataFrame, nominal: FloatArray) -> pl.DataFrame:
    """Adds `horizon`, the position of the nearest nominal horizon (calendar years have 365 or 366 days)."""
    days = risk["horizon_days"].to_numpy()
    distance = np.abs(days[:, None] - nominal)
    nearest = distance.argmin(1)
    # 1.5 days for calendar years, less for hours and weeks, a thousandth for decades; months have 28 to 31 days
    room = np.maximum(np.minimum(1.5, 0.005 * nominal), 0.001 * nominal)
    months = nominal / (365.25 / 12)
    whole = (np.abs(months - months.round()) < 1e-6) & (months > 0.5) & (months.round() % 12 != 0)
    room = np.where(whole, np.maximum(room, 2.5), room)
    off = distance[np.arange(len(days)), nearest] > room[nearest]
    if off.any():
        raise EvaluationError(
            f"horizons near {', '.join(f'{d:g}' for d in nominal)} days",
            f"{off.sum()} of {len(off)} rows at other horizons",
            "pass those horizons too, or leave these rows out",
        )
    matched = risk.with_columns(horizon=pl.Series(nearest, dtype=pl.Int64))
    _refuse(
        matched.filter(matched.select(*KEY, "horizon").is_duplicated()),
        "one row for each nominal horizon",
        "rows that share one",
        "pass horizons that are further apart, or remove rows",
    )
    return matched


def _typed(frame: pl.DataFrame, schema: Mapping[str, Any], what: str) -> pl.DataFrame:
    """The frame with the schema's columns in its types; UTC without a zone, a date standing for its end."""
    missing = [name for name in schema if name not in frame.columns]
    if missing:
        raise EvaluationError(f"the columns {', '.join(schema)}", f"no {', '.join(missing)}", f"add them to the {what}")
    kind = frame.schema["prediction_time"]
    time = pl.col("prediction_time")
    if kind == pl.Date:
        time = time.cast(TIME) + pl.duration(days=1) - pl.duration(microseconds=1)
    elif isinstance(kind, pl.Datetime) and kind.time_zone:
        time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    others = [pl.col(name).cast(dtype) for name, dtype in schema.items() if name != "prediction_time"]
    try:
        return frame.with_columns(time.cast(TIME), *others)
    except pl.exceptions.PolarsError:
        # the polars message quotes the values
        wanted = ", ".join(f"{name} {dtype}" for name, dtype in schema.items())
        raise EvaluationError(f"column types {wanted}", "values of other types", f"convert the {what}") from None


def _refuse_missing(frame: pl.DataFrame, columns: list[str], what: str) -> None:
    empty = [name for name in columns if frame[name].null_count()]
    if empty:
        raise EvaluationError(
            "a value in every row", f"missing {', '.join(empty)}", f"fill them or drop those rows of the {what}"
        )


def _refuse(rows: pl.DataFrame, expected: str, found: str, next_step: str) -> None:
    if len(rows):
        raise EvaluationError(expected, f"{len(rows)} {found}", next_step)
