"""Whether explanations say what the model does: planted causes, agreement over seeds, removal curves, random weights.

    python benchmarks/faithfulness.py planted|default --out FOLDER [--subjects 4000]
    python benchmarks/faithfulness.py seeds --out FOLDER [--subjects 2000]
    python benchmarks/faithfulness.py curves --model MODEL --timelines TIMELINES --out FOLDER

`planted`, `default`: a simulated export, a small hybrid (SMALL below) fitted on it, and precision@5
among people it was not fitted on who have a planted cause on record: of the five events that raise a five-year forecast
most (or as many as there are causes in the history, where these are fewer; by code, then by event), the share that are
causes. In
`planted` nothing but the planted cause, age and sex changes the rate of onset and everybody comes equally often, so an
event that is no planted cause is a mistake. In `default` (the frozen simulator) severity causes onset too and shows in
laboratory values: precision is given for the planted cause alone, which is then not the only right answer, and for all
that the simulator ties to onset (planted cause, the disease's laboratory values, the treatment that they start).
`at_random` is what a random order gives on average. `seeds`: boosted hazards of 100 trees with five seeds on one split
of a default simulation, Spearman's correlation of the contributions of codes. `curves`: the figures of
`ProgressionModel.check_faithfulness`. Each writes FOLDER/STAGE.json. Run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import ehrseq as es
from ehrseq.config import BoostedConfig
from ehrseq.explain.faithfulness import mean_with_interval, precision_first, rank_agreement
from ehrseq.synthetic.config import DIABETES, HEART_FAILURE
from ehrseq.task.split import split_subjects

PLANTED = {"diabetes": ["RXNORM//312615"], "heart_failure": ["LOINC//72166-2=SNOMED//449868002"]}
TIED = {
    "diabetes": [*PLANTED["diabetes"], "LOINC//4548-4", "LOINC//39156-5", "RXNORM//860975"],
    "heart_failure": [
        *PLANTED["heart_failure"], "LOINC//8480-6", "LOINC//8462-4", "LOINC//2160-0", "LOINC//33762-6",
        "RXNORM//314076",
    ],
}  # fmt: skip
DECOY = "SNOMED//367498001"
# without severity the rates of onset are raised, so that as many fall ill as by default
ONLY_PLANTED = es.SimulationConfig(
    diabetes=replace(DIABETES, onset_per_level=0.0, onset=0.02),
    heart_failure=replace(HEART_FAILURE, onset_per_level=0.0, onset=0.012),
    informative_visits=False,
)
SMALL = es.ModelConfig(
    es.NetworkConfig(width=32, layers=2, heads=2),
    es.TrainingConfig(members=1, max_epochs=8, learning_rate=2e-3, auxiliary_codes=0),
    BoostedConfig(max_trees=100, landmarks_per_subject=4),
)


def simulated(folder: Path, subjects: int, config: es.SimulationConfig) -> tuple[es.Timelines, es.Task]:
    """Timelines and task of a simulation, kept in the folder (as is the model) for another run."""
    if not (folder / "task.toml").exists():
        es.write_simulation(folder, subjects, seed=11, config=config)
    if not (folder / "timelines").exists():
        es.read_fhir(folder / "export").save(folder / "timelines")
    return es.Timelines.load(folder / "timelines"), es.Task.from_toml(folder / "task.toml")


def unseen(model: es.ProgressionModel, timelines: es.Timelines, people: int) -> es.Timelines:
    ids = timelines.subjects["subject_id"]
    ids = ids.filter(~pl.Series(model.seen_in_training(ids.to_numpy()))).sort()
    return timelines.select(ids.sample(min(people, len(ids)), seed=0))


def precision(folder: Path, subjects: int, config: es.SimulationConfig, people: int) -> dict[str, Any]:
    timelines, task = simulated(folder, subjects, config)
    start = time.process_time()
    if not (folder / "model").exists():
        es.ProgressionModel(SMALL).fit(timelines, task, workers=1).save(folder / "model")
    fitted = time.process_time() - start
    model = es.load_model(folder / "model")
    coded = pl.concat_str("code", "text_value", separator="=", ignore_nulls=True)
    causes = coded.is_in([c for codes in PLANTED.values() for c in codes])
    caused = timelines.events.filter(causes)["subject_id"].unique()
    some = unseen(model, timelines.select(caused), people)
    table = model.explain(some, "task", horizon="5y", recent_events=200, kinds=["event", "code"]).contributions
    found: dict[str, Any] = {"subjects": subjects, "fit_cpu_seconds": round(fitted, 1), "explained": len(some)}
    for name, causes in (("planted", PLANTED), ("tied", TIED)):
        scores, single = (precision_first(table, causes, by_code=by_code) for by_code in (True, False))
        for outcome in causes:
            rows, alone = (t.filter(outcome=outcome) for t in (scores, single))
            found[f"{name} {outcome}"] = {
                "precision": mean_with_interval(rows["precision"], rows["subject_id"]),
                "precision_by_single_events": mean_with_interval(alone["precision"], alone["subject_id"]),
                "at_random": mean_with_interval(rows["at_random"], rows["subject_id"]),
                "forecasts": rows.height, "causes": rows["causes"].mean(), "events": rows["events"].mean(),
            }  # fmt: skip
    codes = table.filter(kind="code").group_by("outcome", "code").agg(pl.col("contribution").abs().mean(), n=pl.len())
    found["mean_absolute_by_code"] = codes.sort("outcome", "contribution", descending=[False, True]).rows()
    return found


def seeds(folder: Path, subjects: int, people: int) -> dict[str, Any]:
    timelines, task = simulated(folder, subjects, es.SimulationConfig())
    timelines = timelines.with_splits(split_subjects(timelines, seed=0))  # the same for every seed
    tables = []
    for seed in range(5):
        config = es.ModelConfig(model="boosted", seed=seed, boosted=BoostedConfig(max_trees=100))
        model = es.ProgressionModel(config).fit(timelines, task)
        some = unseen(model, timelines, people)
        tables.append(model.explain(some, "task", horizon="5y", kinds=["code"]).contributions)
    agreement = rank_agreement(tables)
    by_outcome = {
        outcome: mean_with_interval(rows["correlation"], rows["subject_id"])
        for (outcome,), rows in agreement.group_by("outcome", maintain_order=True)
    }
    means = [
        t.group_by("outcome", "code").agg(pl.col("contribution").abs().mean()).sort("outcome", "code") for t in tables
    ]
    ranks = np.stack([m.select(pl.col("contribution").rank().over("outcome")).to_series().to_numpy() for m in means])
    return {
        "subjects": subjects,
        "forecasts": agreement.height,
        "in_each_forecast": by_outcome,
        "of_the_cohort": float(np.corrcoef(ranks)[np.triu_indices(5, 1)].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["planted", "default", "seeds", "curves"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=4000)
    parser.add_argument("--people", type=int, default=300, help="how many are explained")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--timelines", type=Path)
    options = parser.parse_args()
    folder = options.out / f"simulated_{options.stage}"
    if options.stage in ("planted", "default"):
        config = ONLY_PLANTED if options.stage == "planted" else es.SimulationConfig()
        found = precision(folder, options.subjects, config, options.people)
    elif options.stage == "seeds":
        found = seeds(folder, options.subjects, options.people)
    else:
        model = es.load_model(options.model)
        found = model.check_faithfulness(es.Timelines.load(options.timelines), n=options.people)
        model.save(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.stage}.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
