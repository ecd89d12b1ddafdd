"""Do sampled paths speak of the same risks as the forecast, and does life on them go on as it does?

    python benchmarks/paths.py MODEL TIMELINES [--subjects 200] [--paths 500] [--out FOLDER]

MODEL and TIMELINES are folders; the split of TIMELINES says who is held out. Forecasts at the task's prediction times,
and paths from them to the task's last horizon. Printed per outcome and horizon: the mean forecast and the mean Monte
Carlo incidence, the mean absolute difference, what sampling alone would make it, and the root mean square difference
beyond sampling. Then, per code, events a person-year on the paths and in what really followed (while observed).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import polars as pl

import ehrseq as es

KEY = ["subject_id", "prediction_time"]
YEAR = 365.25 * 86_400_000_000


def agreement(forecast: es.Forecast, paths: pl.DataFrame) -> pl.DataFrame:
    """One row an outcome and horizon."""
    names = forecast.risk["outcome"].unique().sort()
    found = pl.concat([forecast.path_incidence(paths, name) for name in names])
    both = forecast.risk.rename({"probability": "forecast"}).join(found, on=[*KEY, "outcome", "horizon_days"])
    years = (pl.col("horizon_days") / 365.25).round(1).alias("years")
    difference = pl.col("probability") - pl.col("forecast")
    expected = (pl.col("forecast") * (1 - pl.col("forecast")) / pl.col("paths")).sqrt()
    return (
        both.group_by("outcome", years)
        .agg(
            pl.len(),
            pl.col("forecast").mean(),
            monte_carlo=pl.col("probability").mean(),
            mean_absolute_difference=difference.abs().mean(),
            by_sampling=(expected * np.sqrt(2 / np.pi)).mean(),
            beyond_sampling=(difference.pow(2) - expected.pow(2)).mean().clip(0).sqrt(),
        )
        .sort("outcome", "years")
    )


def rates(timelines: es.Timelines, paths: pl.DataFrame) -> pl.DataFrame:
    """Events a person-year of the codes that paths have, on them and in truth, and the mean values."""
    ends = paths.filter(pl.col("code").is_in(["PATH//end", "MEDS_DEATH"]))
    # microseconds of 292,000 years are more than an Int64 holds
    lived = (ends["time"] - ends["prediction_time"]).dt.total_microseconds().cast(pl.Float64).sum() / YEAR
    queries = paths.group_by(KEY).agg(stop=pl.col("time").max())
    who = timelines.subjects.select("subject_id", "follow_up_end", "death_time")
    until = pl.min_horizontal("stop", "follow_up_end", "death_time")
    queries = (
        queries.join(who, on="subject_id").with_columns(until=until).filter(pl.col("until") > pl.col("prediction_time"))
    )
    seen = (queries["until"] - queries["prediction_time"]).dt.total_microseconds().cast(pl.Float64).sum() / YEAR
    known = pl.col("known_time").is_between("prediction_time", "until", closed="right")
    real = queries.join(timelines.events, on="subject_id").filter(known)
    # an event known twice at one moment is one, as a model reads it
    real = real.unique([*KEY, "code", "known_time"])
    tables = [
        frame.group_by("code").agg(
            (pl.len() / years).alias(f"rate_{name}"), pl.col("numeric_value").mean().alias(f"mean_{name}"),
            pl.col("numeric_value").std().alias(f"spread_{name}"),
        )
        for name, frame, years in (("path", paths, lived), ("real", real, seen))
    ]  # fmt: skip
    both = tables[0].join(tables[1], on="code", how="inner")
    return both.with_columns(ratio=pl.col("rate_path") / pl.col("rate_real")).sort("rate_real", descending=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("timelines", type=Path)
    parser.add_argument("--subjects", type=int, default=200, help="prediction times, at random among those held out")
    parser.add_argument("--paths", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write agreement.csv and rates.csv here")
    options = parser.parse_args()
    model, timelines = es.load_model(options.model), es.Timelines.load(options.timelines)
    seen = model.seen_in_training(timelines.subjects["subject_id"].to_numpy())
    unseen = timelines.select(timelines.subjects["subject_id"].filter(~pl.Series(seen)))
    report(model, unseen, options.subjects, options.paths, options.seed, options.out)


def report(
    model: es.ProgressionModel, timelines: es.Timelines, n: int, paths: int, seed: int, out: Path | None
) -> None:
    cohort = es.build_cohort(timelines, model.task_).rows.filter("at_risk").select(KEY).unique().sort(KEY)
    at = cohort.sample(min(n, cohort.height), seed=seed)
    timelines = timelines.select(at["subject_id"].unique())
    forecast = model.forecast(timelines, at)
    begun = time.process_time()
    sampled = forecast.paths(paths, seed=seed)
    spent = time.process_time() - begun
    print(f"{at.height} prediction times, {paths} paths each: {spent:.0f} CPU seconds, {sampled.height / spent:,.0f}/s")
    tables = {"agreement": agreement(forecast, sampled), "rates": rates(timelines, sampled)}
    with pl.Config(tbl_rows=-1, tbl_cols=-1, float_precision=4, tbl_hide_dataframe_shape=True):
        for name, table in tables.items():
            print(table, flush=True)
            if out:
                out.mkdir(parents=True, exist_ok=True)
                table.write_csv(out / f"{name}.csv")


if __name__ == "__main__":
    main()
