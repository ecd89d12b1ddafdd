"""The export read back through ingest and cohort: whom the truth covers is exactly who is at risk."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrseq.synthetic import simulate, write_simulation
from ehrseq.task.cohort import build_cohort
from ehrseq.task.definition import Task
from ehrseq.timeline.build import read_fhir

KEY = ["patient", "prediction_time", "outcome"]


def test_cohort_and_truth_agree(tmp_path: Path) -> None:
    out = write_simulation(tmp_path / "sim", 400, seed=12)
    timelines = read_fhir(out / "export")
    cohort = build_cohort(timelines, Task.from_toml(out / "task.toml"))
    at_risk = cohort.rows.filter("at_risk").join(timelines.subjects.select("subject_id", "patient"), on="subject_id")
    truth = pl.read_parquet(out / "truth.parquet").filter(horizon="5y")
    assert at_risk.height > 1000
    assert at_risk.select(KEY).sort(KEY).equals(truth.select(KEY).sort(KEY))

    # and what the cohort sees happen is what happened while the subject was watched
    lives = simulate(400, seed=12).lives
    for outcome, column in {
        "diabetes": "known_diabetes",
        "heart_failure": "known_heart_failure",
        "death": "death",
    }.items():
        rows = at_risk.filter(outcome=outcome).join(lives, on="patient")
        happened = (pl.col(column) <= pl.col("end")).fill_null(False)
        assert rows.select(((pl.col("cause") == 1) == happened).all()).item()
        died_first = (pl.col("death") <= pl.col("end")).fill_null(False) & ~happened
        assert rows.select(((pl.col("cause") == 2) == died_first).all()).item()
    assert timelines.quarantine.is_empty()
