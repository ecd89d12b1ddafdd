"""Forecasts against the true incidence of simulated people: is the level right, and who is ranked above whom?

    python benchmarks/known_truth.py [--subjects 1000 5000 20000] [--seeds 0] [--people 3000] [--traps all]
        [--members 3] [--out F]

Each run simulates an export, fits the default model on it, and forecasts `--people` others, of another seed, at the
landmarks. `--traps` names what is switched on: `all` (informative visits, censoring that depends on covariates,
back-dated and discharge diagnoses, medication, competing death), or `informative_visits`, `covariate_censoring` or
`back_dated_diagnoses` alone of these three. The truth is not used in fitting. Per outcome and landmark at each horizon:

- `ratio`: mean forecast over mean truth;
- `error`: mean absolute difference between mean forecast and mean truth, over tenths of the forecast;
- `auc`: the expected AUC, in which everybody is a case by the true probability; `share` is (AUC - .5) over that of the
  oracle, the best forecast that the record allows (oracle.py);
- `naive` and `aalen_johansen`: what these say of all people, over the mean truth; naive is 1 - Kaplan-Meier, to which a
  death is a censoring.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from oracle import oracle

import ehrseq as es
from ehrseq.survival import aalen_johansen
from ehrseq.synthetic import SimulationConfig, simulate

KEY = ["patient", "landmark", "outcome", "horizon"]
TRAPS = ("informative_visits", "covariate_censoring", "back_dated_diagnoses")
OTHERS = 1000  # added to the seed
GROUPS = 10


def configured(traps: str) -> SimulationConfig:
    """The simulator with all traps, or one of three."""
    config = SimulationConfig()
    return config if traps == "all" else replace(config, **{trap: trap == traps for trap in TRAPS})


def expected_auc(score: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """The AUC where each person is a case with probability `truth`, and a control otherwise; ties count by half."""
    order = np.argsort(score, kind="stable")
    _, group = np.unique(score[order], return_inverse=True)
    cases, controls = np.bincount(group, truth[order]), np.bincount(group, 1 - truth[order])
    below = np.cumsum(controls) - controls
    # a pair of the same person is no pair
    own = (truth * (1 - truth)).sum()
    return float(((cases * (below + controls / 2)).sum() - own / 2) / (cases.sum() * controls.sum() - own))


def error(forecast: NDArray[np.float64], truth: NDArray[np.float64], tenth: NDArray[np.int64]) -> float:
    """Mean absolute difference of the means of each tenth."""
    counts = np.bincount(tenth)
    return float(np.abs(np.bincount(tenth, forecast - truth)).sum() / counts.sum())


def cells(table: pl.DataFrame, branches: list[str]) -> Iterator[dict[str, object]]:
    """What is found of each outcome, landmark and horizon; the last four where the columns for them are there."""
    for key, cell in table.group_by("outcome", "landmark", "horizon", maintain_order=True):
        truth = cell["truth"].to_numpy()
        facts = beside(cell, truth) if "oracle" in cell.columns else {}
        for branch in branches:
            forecast = cell[branch].to_numpy()
            auc = expected_auc(forecast, truth)
            tenth = np.argsort(np.argsort(forecast, kind="stable")) * GROUPS // len(forecast)
            yield {
                "branch": branch,
                **dict(zip(("outcome", "landmark", "horizon"), key, strict=True)),
                "truth": truth.mean(),
                "ratio": forecast.mean() / truth.mean(),
                "error": error(forecast, truth, tenth),
                "auc": auc,
                **({"share": (auc - 0.5) / (facts["oracle"] - 0.5)} | facts if facts else {}),
            }


def beside(cell: pl.DataFrame, truth: NDArray[np.float64]) -> dict[str, float]:
    """The oracle's AUC, and the marginal estimates over the mean truth."""
    days, kind, at = cell["followed"].to_numpy(), cell["kind"].to_numpy(), cell["horizon_days"].median()
    naive, correct = (aalen_johansen(days, k, at=[at])[0].item() for k in (np.where(kind == 1, 1, 0), kind))
    best = expected_auc(cell["oracle"].to_numpy(), truth)
    return {"oracle": best, "naive": naive / truth.mean(), "aalen_johansen": correct / truth.mean()}


def followed(lives: pl.DataFrame, outcomes: list[str]) -> pl.DataFrame:
    """Last day, and what ended it (0 censoring, 1 the outcome, 2 death), of each patient and outcome."""
    parts = []
    for outcome in outcomes:
        event = pl.col("death" if outcome == "death" else f"known_{outcome}")
        until = pl.min_horizontal("end", event)  # follow-up ends with death
        kind = pl.when(event <= until).then(1).when(pl.col("death") <= until).then(2).otherwise(0)
        parts.append(lives.select("patient", outcome=pl.lit(outcome), until=until, kind=kind))
    return pl.concat(parts)


def compare(folder: Path, subjects: int, seed: int, people: int, traps: str, members: int | None) -> pl.DataFrame:
    """One row a branch, outcome, landmark and horizon."""
    config = configured(traps)
    es.write_simulation(folder / "fit", subjects, seed=seed, config=config)
    es.write_simulation(folder / "others", people, seed=seed + OTHERS, config=config)
    began = time.process_time()
    fitting = es.ModelConfig()
    if members is not None:
        fitting = replace(fitting, training=replace(fitting.training, members=members))
    export, task = folder / "fit" / "export", folder / "fit" / "task.toml"
    model = es.ProgressionModel(fitting, seed=seed).fit(es.read_fhir(export), task, workers=1)
    seconds = time.process_time() - began
    simulation = simulate(people, seed=seed + OTHERS, config=config)
    table = oracle(simulation, simulation.truth, config, particles=1000, seed=seed).rename({"probability": "truth"})
    lives = followed(simulation.lives, table["outcome"].unique().to_list())
    table = table.join(lives, on=["patient", "outcome"]).with_columns(
        followed=(pl.col("until") - pl.col("prediction_time").dt.date()).dt.total_days()
    )
    others = es.read_fhir(folder / "others" / "export")
    branches = list(model.fitted_.branches)
    for branch in branches:
        risk = model.forecast(others, at="task", branch=branch, lab_levels=()).risk
        keys = ["patient", "prediction_time", "outcome", "horizon_days"]
        table = table.join(risk.select(*keys, pl.col("probability").alias(branch)), on=keys, how="left")
    if table.select(branches).null_count().sum_horizontal().item():
        raise SystemExit("some true risks have no forecast")
    found = pl.DataFrame(list(cells(table, branches)))
    facts = {"subjects": subjects, "seed": seed, "traps": traps, "fit_cpu_seconds": round(seconds)}
    return found.with_columns(pl.lit(value).alias(name) for name, value in facts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--people", type=int, default=3000)
    parser.add_argument("--traps", nargs="+", choices=["all", *TRAPS], default=["all"])
    parser.add_argument("--members", type=int, help="networks, if not as many as by default")
    parser.add_argument("--out", type=Path, help="write known_truth.csv here")
    options = parser.parse_args()
    tables = []
    for traps in options.traps:
        for subjects in options.subjects:
            for seed in options.seeds:
                with tempfile.TemporaryDirectory() as scratch:
                    tables.append(compare(Path(scratch), subjects, seed, options.people, traps, options.members))
                numbers = pl.col("ratio", "error", "auc", "oracle", "share", "naive", "aalen_johansen")
                by_outcome = (
                    tables[-1].group_by("branch", "outcome", "horizon", maintain_order=True).agg(numbers.mean())
                )
                overall = tables[-1].group_by("branch", maintain_order=True).agg(
                    numbers.mean(), pl.col("error").max().alias("worst error"), pl.col("ratio").min().alias("least"),
                    pl.col("ratio").max().alias("most"),
                )  # fmt: skip
                with pl.Config(
                    tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, float_precision=4, tbl_hide_dataframe_shape=True
                ):
                    print(traps, subjects, "subjects, seed", seed, tables[-1]["fit_cpu_seconds"][0], "CPU s to fit")
                    print(by_outcome, overall, sep="\n", flush=True)
                if options.out:
                    options.out.mkdir(parents=True, exist_ok=True)
                    pl.concat(tables).write_csv(options.out / "known_truth.csv")


if __name__ == "__main__":
    main()
