"""Lab forecasts of the output contract beside the values that were measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.labs import judge_labs
from ehrseq.frames import to_polars
from ehrseq.timeline.schema import TIME
from ehrseq.timeline.store import Timelines

KEY = ("subject_id", "prediction_time", "code", "horizon_days")
QUANTILE = re.compile(r"q(\d\d)")
# A value counts for a horizon if it was measured within this part of it, and within half a year.
TOLERANCE, LONGEST = 0.25, 183.0

LAB_SCHEMA: dict[str, Any] = {
    "model": pl.String, "code": pl.String, "horizon": pl.String, "measure": pl.String,
    **dict.fromkeys(("n", "subjects", "unscored"), pl.Int64),
    **dict.fromkeys(("value", "lower", "upper"), pl.Float64), "reason": pl.String,
}  # fmt: skip
LAB_DIFFERENCE_SCHEMA: dict[str, Any] = {
    "model": pl.String, "against": pl.String, "code": pl.String, "horizon": pl.String, "measure": pl.String,
    **dict.fromkeys(("difference", "lower", "upper"), pl.Float64), "reason": pl.String,
}  # fmt: skip


def judge_lab_tables(
    labs: Mapping[str, Any],
    timelines: Timelines,
    horizons: Mapping[str, float],
    *,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores by model, code and horizon, and paired differences of the first model from each other.

    `labs` maps a model to its table: `subject_id`, `prediction_time`, `code`, `horizon_days` and quantile columns such
    as `q05`, `q25`, `q50`, `q75`, `q95`. Judged are the quantiles that all models have, against the value measured
    nearest to the horizon, at most a quarter of it and half a year away; whoever has none does not count. Where all
    tables have a `unit`, values in another unit do not count.
    Raises EvaluationError for tables that cannot be used.
    """
    frames = {model: _typed(to_polars(table)) for model, table in labs.items()}
    if not frames:
        raise EvaluationError("at least one table of lab forecasts", "none", "pass {name: table}")
    columns = sorted(set.intersection(*({c for c in f.columns if QUANTILE.fullmatch(c)} for f in frames.values())))
    if not columns:
        raise EvaluationError("quantile columns such as q05, q50, q95", "none that all models have", "add them")
    levels = [int(c[1:]) / 100 for c in columns]
    with_unit = [*KEY, "unit"] if all("unit" in f.columns for f in frames.values()) else [*KEY]
    asked = pl.concat([f.select(with_unit) for f in frames.values()]).unique(maintain_order=True)
    nominal = np.array(list(horizons.values()))
    nearest = np.abs(asked["horizon_days"].to_numpy()[:, None] - nominal).argmin(1)
    names = list(horizons)
    asked = asked.with_columns(horizon=pl.Series([names[i] for i in nearest], dtype=pl.String))
    found = measured(asked, timelines.events)
    rows: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    for code, part in found.group_by("code", maintain_order=True):
        quantiles = {
            model: part.select(KEY).join(f, on=list(KEY), how="left", maintain_order="left").select(columns).to_numpy()
            for model, f in frames.items()
        }
        for name in names:
            here = (part["horizon"] == name).to_numpy()
            if here.any():
                scored, paired = judge_labs(
                    {m: q[here] for m, q in quantiles.items()}, levels, part["value"].to_numpy()[here],
                    np.ones(int(here.sum())), part["subject_id"].to_numpy()[here], {name: (0.0, 1.0)},
                    n_bootstrap=n_bootstrap, seed=seed,
                )  # fmt: skip
                rows += [{**row, "code": code[0], "horizon": row["window"]} for row in scored]
                gaps += [{**row, "code": code[0], "horizon": row["window"]} for row in paired]
    return (
        pl.DataFrame([{c: r[c] for c in LAB_SCHEMA} for r in rows], schema=LAB_SCHEMA),
        pl.DataFrame([{c: r[c] for c in LAB_DIFFERENCE_SCHEMA} for r in gaps], schema=LAB_DIFFERENCE_SCHEMA),
    )


def measured(asked: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """The rows of `asked` (its KEY columns) with the `value` measured nearest to the horizon, where there is one.

    Values are in the `unit` of the row where `asked` has that column.

    >>> from datetime import datetime
    >>> events = pl.DataFrame({"subject_id": [1, 1], "code": ["a", "a"], "numeric_value": [5.0, 9.0],
    ...                        "time": [datetime(2020, 12, 1), datetime(2021, 3, 1)]})
    >>> asked = pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2020, 1, 1)], "code": ["a"],
    ...                       "horizon_days": [366.0]})
    >>> measured(asked, events)["value"].to_list()
    [5.0]
    """
    same = ["subject_id", "code", *(c for c in ("unit",) if c in asked.columns)]
    filled = [pl.col(c).fill_null("") for c in same[2:]]
    values = (
        events.with_columns(filled)
        .filter(pl.col("numeric_value").is_not_null() & pl.col("time").is_not_null())
        .group_by(*same, "time")
        .agg(value=pl.col("numeric_value").cast(pl.Float64).mean())
        .filter(pl.col("value").is_finite())
        .sort("time")
    )
    due = pl.col("prediction_time") + pl.duration(microseconds=(pl.col("horizon_days") * 86_400_000_000).cast(pl.Int64))
    wanted = asked.with_row_index("_row").with_columns(*filled, _due=due.cast(TIME)).sort("_due")
    joined = wanted.join_asof(
        values.with_columns(pl.col("time").cast(TIME)), left_on="_due", right_on="time", by=same,
        strategy="nearest", coalesce=False, check_sortedness=False,
    )  # fmt: skip
    away = (pl.col("time") - pl.col("_due")).dt.total_microseconds().abs() / 86_400_000_000
    room = pl.min_horizontal(pl.col("horizon_days") * TOLERANCE, pl.lit(LONGEST))
    near = (away <= room) & (pl.col("time") > pl.col("prediction_time"))
    return joined.filter(near).sort("_row").drop("_row", "_due", "time")


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    missing = [c for c in KEY if c not in frame.columns]
    if missing:
        raise EvaluationError(f"the columns {', '.join(KEY)}", f"no {', '.join(missing)}", "add them to the lab table")
    quantiles = [c for c in frame.columns if QUANTILE.fullmatch(c)]
    try:
        typed = frame.select(
            pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(TIME),
            *(pl.col(c).cast(pl.String) for c in ("code", "unit") if c in frame.columns),
            *(pl.col(c).cast(pl.Float64) for c in ("horizon_days", *quantiles)),
        )  # fmt: skip
    except pl.exceptions.PolarsError:
        raise EvaluationError("numbers, times and codes in a lab table", "other values", "convert it") from None
    if typed.select(KEY).is_duplicated().any():
        raise EvaluationError("one row for each subject, prediction time, code and horizon", "several", "drop them")
    return typed
