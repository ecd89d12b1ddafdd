"""Out-of-fold forecasts on the NAFLD cohort: five folds by subject, through the public API.

    python benchmarks/nafld.py --data FOLDER_WITH_nafld_fhir --out RESULTS [--folds 0 1 2 3 4] [--members 3]

Writes RESULTS/hybrid.parquet, transformer.parquet, boosted.parquet and age_sex.parquet (patient, landmark_days,
outcome, horizon_days, probability; years 1 to 8, everyone at risk at 2 and 5 years, predicted by the model that neither
trained nor tuned on them), RESULTS/likelihood.parquet (patient, branch, loss: the censored negative log-likelihood of
all hazards at eight landmarks drawn over each of these people's follow-up, of mean weight 1; printed as paired
differences) and RESULTS/timing.json. Fold f tests on hash buckets [20f, 20f + 20), tunes on the ten before, trains on
the rest; the bucket is int(sha256(upstream id)[:8], 16) % 100. The default configuration was chosen
on one split and nothing else: training on buckets 0-89 and tuning on 90-99 at first, training on 0-79, tuning on 80-89
and judging by the likelihood on 90-99 later. Those buckets are test subjects of the last fold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

import ehrseq as es
from ehrseq.model.adjustment import Outcomes
from ehrseq.model.sample import Labeller, Part
from ehrseq.task.outcome import occurrences

LANDMARK_DAYS = {"2y": 730, "5y": 1826}
YEARS = [f"{year}y" for year in range(1, 9)]
LANDMARKS = 8  # a subject, of the likelihood
REPLICATES = 400


def buckets(subjects: pl.DataFrame) -> pl.DataFrame:
    """`subject_id` and hash bucket 0-99 of the upstream id."""
    ids = subjects["patient"].str.extract(r"(\d+)$")
    bucket = [int(hashlib.sha256(i.encode()).hexdigest()[:8], 16) % 100 for i in ids]
    return subjects.select("subject_id").with_columns(bucket=pl.Series(bucket))


def fold_splits(bucket: pl.DataFrame, fold: int) -> pl.DataFrame:
    """The split table of one fold."""
    offset = (pl.col("bucket") - (20 * fold - 10)) % 100  # 0-9 tuning, 10-29 test
    split = pl.when(offset < 10).then(pl.lit("tuning")).when(offset < 30).then(pl.lit("held_out"))
    return bucket.select("subject_id", split=split.otherwise(pl.lit("train")))


def likelihood(model: es.ProgressionModel, test: es.Timelines, seed: int) -> pl.DataFrame:
    """Each test subject's loss by every branch: the branches see the same landmarks."""
    fitted = model.fitted_
    part = Part.prepare(test, fitted.vocabulary, "held_out")
    happened = occurrences(test, model.task_)
    labeller = Labeller(happened, test.subjects, model.task_, fitted.hazards, np.zeros(0, np.int64))
    drawn = part.draw(np.random.default_rng([seed, 5]), LANDMARKS, labeller)
    after = Outcomes.of(drawn.target, fitted.edges, LANDMARKS)
    q, h = np.nonzero(after.interval >= 0)
    raw = fitted.raw(part.encoded, drawn.row, drawn.time, max_events=model.config.network.max_events)
    tables = []
    for branch in fitted.branches:
        log_hazard = fitted.combine(raw, branch).mean(0)
        loss = (np.exp(log_hazard) * after.exposure).sum((1, 2))
        np.subtract.at(loss, q, log_hazard[q, h, after.interval[q, h]])
        mean = np.bincount(drawn.row, loss * after.weight, len(part.start)) / LANDMARKS
        tables.append(pl.DataFrame({"patient": part.subjects["patient"], "branch": branch, "loss": mean}))
    return pl.concat(tables)


def differences(losses: pl.DataFrame) -> Iterator[str]:
    """How much lower the loss of each other branch is than that of boosting, with its 95% interval over people."""
    wide = losses.pivot("branch", index="patient", values="loss")
    rng = np.random.default_rng(0)
    for branch in (name for name in wide.columns if name not in ("patient", "boosted")):
        less = (wide["boosted"] - wide[branch]).to_numpy() * 1e3
        means = [less[rng.integers(len(less), size=len(less))].mean() for _ in range(REPLICATES)]
        low, high = np.quantile(means, [0.025, 0.975])
        yield f"{branch}: loss {less.mean():.2f}e-3 ({low:.2f} to {high:.2f}) below boosting's, {len(less)} people"


def out_of_fold(timelines: es.Timelines, task: es.Task, fold: int, config: es.ModelConfig) -> dict[str, pl.DataFrame]:
    """Fit on one fold, forecast its test subjects at the task's landmarks, and their losses."""
    splits = fold_splits(buckets(timelines.subjects), fold)
    model = es.ProgressionModel(config).fit(timelines.with_splits(splits), task, workers=1)
    test = timelines.select(splits.filter(pl.col("split") == "held_out")["subject_id"])
    cohort = es.build_cohort(test, task).rows.filter("at_risk")
    asked = cohort.select("subject_id", "prediction_time", "outcome", "landmark")
    tables = {"likelihood": likelihood(model, test, config.seed)}
    for name in (*model.fitted_.branches, "age_sex"):
        risk = model.forecast(test, at="task", horizons=YEARS, branch=name).risk
        tables[name] = risk.join(asked, on=["subject_id", "prediction_time", "outcome"]).select(
            "patient",
            pl.col("landmark").replace_strict(LANDMARK_DAYS, return_dtype=pl.Int64).alias("landmark_days"),
            "outcome", "horizon_days", "probability",
        )  # fmt: skip
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--members", type=int, default=es.TrainingConfig().members)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    task = es.Task.from_toml(Path(__file__).parents[1] / "examples" / "nafld.toml")
    timelines = es.read_fhir(options.data / "nafld_fhir")
    config = es.ModelConfig(seed=options.seed)
    config = replace(config, training=replace(config.training, members=options.members))
    parts: dict[str, list[pl.DataFrame]] = {}
    seconds = {}
    for fold in options.folds:
        start = time.process_time()
        for name, table in out_of_fold(timelines, task, fold, config).items():
            parts.setdefault(name, []).append(table)
        seconds[fold] = round(time.process_time() - start, 1)
        print(f"fold {fold}: {seconds[fold]} CPU seconds", flush=True)
        for name, tables in parts.items():  # after each fold: a run that is cut short keeps what it has
            pl.concat(tables).write_parquet(options.out / f"{name}.parquet")
    for line in differences(pl.concat(parts["likelihood"])):
        print(line)
    (options.out / "timing.json").write_text(json.dumps({"cpu_seconds": seconds, "config": config.to_dict()}, indent=1))


if __name__ == "__main__":
    main()
