"""A small cohort with back-dated events, ties, values and static facts, made from a seed."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl

from ehrseq.config import BoostedConfig, ModelConfig, NetworkConfig, TrainingConfig
from ehrseq.task.definition import Task
from ehrseq.timeline.schema import normalise_events
from ehrseq.timeline.store import Timelines

ORIGIN = datetime(2010, 1, 1)
TASK = Task.from_dict(
    {
        "horizons": ["1y", "3y"],
        "outcomes": {
            "illness": {"codes": ["SNOMED//1"], "competing": ["death"]},
            "death": {"codes": ["MEDS_DEATH"]},
        },
        "prediction_times": {"rule": "landmarks", "after_start": ["2y"]},
    }
)
CONFIG = ModelConfig(
    NetworkConfig(width=16, layers=2, heads=2, intervals=4, min_subjects=3, max_events=40),
    TrainingConfig(max_epochs=2, landmarks_per_subject=3, tuning_landmarks_per_subject=3, members=1),
    BoostedConfig(landmarks_per_subject=3, max_trees=15, min_rows_per_leaf=20),
)


def day(number: float) -> datetime:
    return ORIGIN + timedelta(days=float(number))


def cohort(n: int = 240, seed: int = 0) -> Timelines:
    """`n` subjects followed for up to eight years."""
    rng = np.random.default_rng(seed)
    rows, subjects = [], []
    for i in range(1, n + 1):
        sex = str(rng.choice(["female", "male"]))
        birth = day(-365.25 * rng.uniform(30, 80))
        end = rng.uniform(900, 2900)
        died = end if rng.random() < 0.3 else None
        rows.append((i, None, f"SEX//{sex}", None, None, None))
        rows.append((i, birth, "MEDS_BIRTH", None, None, birth))
        for _ in range(rng.integers(3, 25)):
            when = round(rng.uniform(-300, end), 1)
            delay = float(rng.choice([0, 0, 0, 30, 400]))
            code = str(rng.choice(["LOINC//a", "LOINC//b", "RXNORM//x", "ICD10CM//y", "ICD10CM//z"]))
            value = float(rng.normal(5, 2)) if code.startswith("LOINC") else None
            rows.append((i, day(when), code, value, "u" if value else None, day(when + delay)))
        if rng.random() < 0.4:
            when = rng.uniform(100, end)
            rows.append((i, day(when), "SNOMED//1", None, None, day(min(when + 20, end))))
        if died is not None:
            rows.append((i, day(died), "MEDS_DEATH", None, None, day(died)))
        subjects.append((i, f"p{i}", birth, sex, None if died is None else day(died), day(0), day(end)))
    columns = ["subject_id", "time", "code", "numeric_value", "unit", "known_time"]
    events = pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None)
    table = pl.DataFrame(
        subjects,
        schema=["subject_id", "patient", "birth_time", "sex", "death_time", "follow_up_start", "follow_up_end"],
        orient="row",
        infer_schema_length=None,
    )
    return Timelines.from_events(events, table)


def append(timelines: Timelines, rows: list[tuple[int, datetime, str, float | None, datetime]]) -> Timelines:
    """The same timelines with more events (subject, time, code, value, known_time); subjects stay as they are."""
    more = normalise_events(
        pl.DataFrame(
            rows, schema=["subject_id", "time", "code", "numeric_value", "known_time"], orient="row",
            schema_overrides={"numeric_value": pl.Float64},
        )
    )  # fmt: skip
    events = normalise_events(pl.concat([timelines.events, more]))
    return Timelines(events=events, subjects=timelines.subjects, splits=timelines.splits)
