"""Lab forecasts on simulated people that the model has never seen: do the intervals cover what they say?

    python benchmarks/simulated_labs.py [--subjects 4000] [--seeds 0 1] [--out FOLDER]

Each seed simulates an export with every trap on, fits the labs of its task on four fifths of the people, and judges the
rest at the task's prediction times, against the value measured nearest to each horizon. Lab forecasts are the same
whichever kind of model is fitted, so the cheapest is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import polars as pl

import ehrseq as es


def judge(folder: Path, subjects: int, seed: int) -> pl.DataFrame:
    """Coverage of the 90% and 50% intervals and CRPS of every model, by lab and horizon."""
    es.write_simulation(folder, subjects, seed=seed)
    timelines = es.read_fhir(folder / "export")
    model = es.ProgressionModel(es.ModelConfig(model="age_sex", seed=seed)).fit(timelines, folder / "task.toml")
    study = model.evaluate(timelines, n_bootstrap=200).study
    scores = pl.DataFrame(study["labs"], infer_schema_length=None).with_columns(against=pl.lit(None, pl.String))
    gaps = pl.DataFrame(study["lab_differences"], infer_schema_length=None).rename({"difference": "value"})
    both = pl.concat([scores, gaps], how="diagonal")
    kept = both.filter(pl.col("measure").is_in(["crps", "absolute_error", "coverage_90", "coverage_50", "width_90"]))
    keys = ["code", "horizon", "measure", "model", "against"]
    return kept.select(*keys, "n", "value", "lower", "upper").with_columns(seed=pl.lit(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, help="write simulated_labs.csv here")
    options = parser.parse_args()
    tables = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            tables.append(judge(Path(scratch) / "simulation", options.subjects, seed))
        ours = (
            tables[-1]
            .filter(pl.col("model") == "ehrseq", pl.col("against").is_null())
            .sort("measure", "code", "horizon", maintain_order=True)
        )
        with pl.Config(tbl_rows=-1, tbl_cols=-1, float_precision=3, tbl_hide_dataframe_shape=True):
            print(ours, flush=True)
    table = pl.concat(tables)
    covered = table.filter(
        pl.col("model") == "ehrseq", pl.col("against").is_null(), pl.col("measure") == "coverage_90"
    ).drop_nulls("value")
    pooled = (covered["value"] * covered["n"]).sum() / covered["n"].sum()
    print(f"90% intervals: {covered['value'].min():.3f} to {covered['value'].max():.3f}, {pooled:.3f} of all values")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table.write_csv(options.out / "simulated_labs.csv")


if __name__ == "__main__":
    main()
