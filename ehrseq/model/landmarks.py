"""Prediction times for training: uniform over each subject's whole follow-up, event-free tails included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.model.heads import HazardName, exposure_and_interval
from ehrseq.task.cohort import label
from ehrseq.task.definition import Task

Float = NDArray[np.float64]
Index = NDArray[np.int64]
MICROSECONDS_PER_YEAR = 86_400_000_000 * 365.25


def draw_landmarks(start: Index, end: Index, per_subject: int, rng: np.random.Generator) -> tuple[Index, Index, Float]:
    """Row, time and weight of stratified uniform prediction times between `start` and `end` (microseconds, (S,)).

    Each stratum of a subject's follow-up gets one draw; the weight is the length that a draw stands for, in
    years. Unweighted draws would over-represent the short follow-up of those who die early.

    >>> row, time, weight = draw_landmarks(np.array([0]), np.array([100]), 2, np.random.default_rng(0))
    >>> row.tolist(), bool(time[0] < 50 <= time[1])
    ([0, 0], True)
    """
    length = np.maximum(end - start, 0)
    position = (np.arange(per_subject) + rng.uniform(size=(len(start), per_subject))) / per_subject
    time = (start[:, None] + position * length[:, None]).astype(np.int64)
    weight = np.repeat(length / per_subject / MICROSECONDS_PER_YEAR, per_subject)
    return np.repeat(np.arange(len(start)), per_subject), time.ravel(), weight


@dataclass(frozen=True)
class Targets:
    """What happened after each of Q queries, for H hazards over I intervals.

    exposure (Q, H, I) days at risk, all zero where the subject is not at risk of the hazard's outcome; event
    (Q, H) interval index of the event, -1 for none; weight (Q,) years of follow-up that the query stands for.
    """

    exposure: NDArray[np.float32]
    event: Index
    weight: Float


def targets(
    subject_id: Index,
    time: Index,
    weight: Float,
    *,
    occurrences: pl.DataFrame,
    subjects: pl.DataFrame,
    task: Task,
    hazards: list[HazardName],
    edges: Float,
) -> Targets:
    """Exposure and events after each query, from the task's labels."""
    queries = pl.DataFrame({"subject_id": subject_id, "prediction_time": time}).with_columns(
        pl.col("prediction_time").cast(pl.Datetime("us"))
    )
    labels = label(queries, occurrences, subjects, task)
    n_outcomes = len(task.outcomes)
    at_risk = labels["at_risk"].to_numpy().reshape(-1, n_outcomes)
    days = np.nan_to_num(labels["days"].cast(pl.Float64).to_numpy()).reshape(-1, n_outcomes)
    cause = labels["cause"].fill_null(0).to_numpy().reshape(-1, n_outcomes)
    column = {outcome.name: i for i, outcome in enumerate(task.outcomes)}
    exposure = np.zeros((len(time), len(hazards), len(edges) - 1), np.float32)
    event = np.full((len(time), len(hazards)), -1, np.int64)
    for h, hazard in enumerate(hazards):
        k = column[hazard.outcome]
        spent, interval = exposure_and_interval(np.where(at_risk[:, k], days[:, k], 0.0), edges)
        exposure[:, h] = spent
        happened = at_risk[:, k] & (cause[:, k] == (2 if hazard.competing else 1)) & (interval < len(edges) - 1)
        event[:, h] = np.where(happened, interval, -1)
    return Targets(exposure, event, weight)
