"""The public functions: simulate in memory, or write an export with its truth and task beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from rich.progress import track

from ehrseq.storage import atomic_folder, write_manifest
from ehrseq.synthetic.config import SimulationConfig, validate
from ehrseq.synthetic.course import NEVER, Course, simulate_course
from ehrseq.synthetic.resources import BUILDERS, resources
from ehrseq.synthetic.tables import record_tables
from ehrseq.synthetic.truth import truth_table

BLOCK = 1000  # subjects simulated together: what is in memory at once, and what one random stream covers
EXPORT, TRUTH, TASK = "export", "truth.parquet", "task.toml"


@dataclass(frozen=True)
class Simulation:
    """A simulated export in memory.

    `tables` holds one flat frame a resource type; `truth` the exact forecasts (columns of `TRUTH_SCHEMA`); `lives`,
    one row a subject, what really happened up to the last step whether watched or not: `patient`, `start`, `end`
    (of follow-up), `death` and per disease `onset_*` and `known_*`, as dates, null where it did not happen.
    `truth` and `lives` are no part of the export.
    """

    tables: dict[str, pl.DataFrame]
    truth: pl.DataFrame
    lives: pl.DataFrame

    def resources(self, kind: str) -> Iterator[dict[str, Any]]:
        """The FHIR R4 resources of one type, as dictionaries."""
        return resources(kind, self.tables[kind])


def simulate(n_subjects: int, *, seed: int = 0, config: SimulationConfig | None = None) -> Simulation:
    """Simulate FHIR records of people whose true risks are known.

    The same seed gives the same people; a UserError says what is wrong with the configuration.

    >>> simulation = simulate(20, seed=1)
    >>> sorted(simulation.tables)
    ['Condition', 'Encounter', 'MedicationRequest', 'Observation', 'Patient', 'ResearchSubject']
    >>> next(simulation.resources("Patient"))["id"]
    'sim-0000001'
    """
    config = config or SimulationConfig()
    validate(config, n_subjects, seed)
    blocks = list(_blocks(n_subjects, seed, config))
    return Simulation(
        tables={kind: pl.concat([b.tables[kind] for b in blocks]) for kind in BUILDERS},
        truth=pl.concat([b.truth for b in blocks]),
        lives=pl.concat([b.lives for b in blocks]),
    )


def write_simulation(
    out: str | Path,
    n_subjects: int,
    *,
    seed: int = 0,
    config: SimulationConfig | None = None,
    progress: bool = False,
) -> Path:
    """Write a simulated FHIR R4 export and its truth; returns the folder.

    The folder holds `export/*.ndjson` (hand this to ingest), `truth.parquet`, `task.toml` and a manifest with every
    parameter. It appears whole or not at all, and the same seed gives the same bytes. Memory does not grow with the
    number of subjects but for the truth. An existing folder is replaced only if it is empty or was written by ehrseq.
    """
    config = config or SimulationConfig()
    validate(config, n_subjects, seed)
    encoder = msgspec.json.Encoder()
    truth = []
    with atomic_folder(out, "simulation") as folder:
        (folder / EXPORT).mkdir()
        blocks = track(
            _blocks(n_subjects, seed, config),
            "simulating",
            total=-(-n_subjects // BLOCK),
            disable=not progress,
        )
        for block in blocks:
            truth.append(block.truth)
            for kind in BUILDERS:
                with (folder / EXPORT / f"{kind}.ndjson").open("ab") as file:
                    file.write(encoder.encode_lines(list(block.resources(kind))))
        pl.concat(truth).write_parquet(folder / TRUTH)
        (folder / TASK).write_text(task_toml(config), encoding="utf-8")
        write_manifest(folder, "simulation", 1, subjects=n_subjects, seed=seed, config=config.to_dict())
    return Path(out)


def task_toml(config: SimulationConfig | None = None) -> str:
    """The task file whose outcomes, landmarks and horizons are those of the truth.

    >>> print(task_toml().splitlines()[2])
    horizons = ["1y", "3y", "5y"]
    """
    config = config or SimulationConfig()
    lines = [
        "# The task of a simulated export: its outcomes, landmarks and horizons are those of truth.parquet.",
        "",
        f"horizons = [{_labels(config.horizons)}]",
        "",
    ]
    for disease in config.diseases:
        lines += [
            f"[outcomes.{disease.outcome}]",
            f'codes = ["SNOMED//{disease.code}"]',
            'competing = ["death"]',
            "incident = true",
            "",
        ]
    lines += ["[outcomes.death]", 'codes = ["MEDS_DEATH"]', ""]
    lines += ["[labs]", 'codes = ["LOINC//4548-4", "LOINC//2160-0", "LOINC//8480-6"]', ""]
    lines += ["[prediction_times]", 'rule = "landmarks"', f"after_start = [{_labels(config.landmarks)}]"]
    return "\n".join(lines) + "\n"


def _labels(years: tuple[int, ...]) -> str:
    return ", ".join(f'"{year}y"' for year in years)


def _blocks(n_subjects: int, seed: int, config: SimulationConfig) -> Iterator[Simulation]:
    """The subjects in blocks, each with a random stream of its own."""
    for first in range(0, n_subjects, BLOCK):
        n = min(BLOCK, n_subjects - first)
        rng = np.random.default_rng([seed, first // BLOCK])
        patients = pl.Series([f"sim-{first + i + 1:07d}" for i in range(n)])
        course = simulate_course(n, config, rng)
        yield Simulation(record_tables(course, patients, rng), truth_table(course, patients), _lives(course, patients))


def _lives(course: Course, patients: pl.Series) -> pl.DataFrame:
    days = {"start": course.boundaries[:, 0], "end": course.end, "death": course.death}
    for disease, kernels in enumerate(course.kernels):
        days[f"onset_{kernels.config.outcome}"] = course.onset[disease]
        days[f"known_{kernels.config.outcome}"] = course.known[disease]
    reached = [pl.when(pl.col(c) < NEVER).then(pl.col(c)).cast(pl.Int32).cast(pl.Date).alias(c) for c in days]
    return pl.DataFrame({"patient": patients, **days}).with_columns(reached)
