"""Prediction times for training: uniform over each subject's whole follow-up, event-free tails included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.model.heads import HazardName, exposure_and_interval
from ehrseq.task.cohort import label
from ehrseq.task.definition import Task
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, EncodedTimelines

Float = NDArray[np.float64]
Index = NDArray[np.int64]
MICROSECONDS_PER_YEAR = MICROSECONDS_PER_DAY * 365.25


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
    """What happened after each of Q queries, for H hazards.

    days (Q, H) at risk until the event, a competitor or the end of follow-up, 0 where the subject is not at risk of
    the hazard's outcome; event (Q, H) whether it was the hazard's event that ended them; weight (Q,) years of
    follow-up that the query stands for.
    """

    days: NDArray[np.float32]
    event: NDArray[np.bool_]
    weight: Float

    def select(self, hazards: slice) -> Targets:
        """The targets of some hazards."""
        return Targets(self.days[:, hazards], self.event[:, hazards], self.weight)

    def person_intervals(self, hazard: int, edges: Float) -> tuple[Float, Index]:
        """Days at risk in each interval (Q, I) of one hazard, and the interval of its event (Q,), -1 for none."""
        exposure, interval = exposure_and_interval(self.days[:, hazard].astype(np.float64), edges)
        happened = self.event[:, hazard] & (interval < len(edges) - 1)
        return exposure, np.where(happened, interval, -1)


def targets(
    subject_id: Index,
    time: Index,
    weight: Float,
    *,
    occurrences: pl.DataFrame,
    subjects: pl.DataFrame,
    task: Task,
    hazards: list[HazardName],
) -> Targets:
    """Days at risk and events after each query, from the task's labels."""
    queries = pl.DataFrame({"subject_id": subject_id, "prediction_time": time}).with_columns(
        pl.col("prediction_time").cast(pl.Datetime("us"))
    )
    labels = label(queries, occurrences, subjects, task)
    n_outcomes = len(task.outcomes)
    at_risk = labels["at_risk"].to_numpy().reshape(-1, n_outcomes)
    days = np.nan_to_num(labels["days"].cast(pl.Float64).to_numpy()).reshape(-1, n_outcomes)
    cause = labels["cause"].fill_null(0).to_numpy().reshape(-1, n_outcomes)
    column = {outcome.name: i for i, outcome in enumerate(task.outcomes)}
    k = np.array([column[h.outcome] for h in hazards], dtype=np.int64)
    number = np.array([2 if h.competing else 1 for h in hazards])
    spent = np.where(at_risk[:, k], days[:, k], 0.0).astype(np.float32)
    return Targets(spent, at_risk[:, k] & (cause[:, k] == number), weight)


def next_known(encoded: EncodedTimelines, code: Index, row: Index, time: Index, end: Index) -> Targets:
    """When each of C codes is next known of after each query: auxiliary outcomes that need no label.

    `code` (C,) indices of the vocabulary; `row` (Q,) of the encoded timelines, `time` and `end` (Q,) of the query and
    of its follow-up in microseconds. Every query has weight 1.
    """
    moments = np.unique(encoded.known_time)
    rank = np.searchsorted(moments, encoded.known_time)
    # one integer orders (subject, moment), so that one search a code finds the next event of every query
    stride = len(moments) + 1
    owner = np.repeat(np.arange(len(encoded.subject_id)), np.diff(encoded.offset))
    key = owner * stride + rank
    asked = row * stride + np.searchsorted(moments, time, side="right")
    days = np.zeros((len(row), len(code)), np.float32)
    event = np.zeros((len(row), len(code)), bool)
    left = np.maximum(end - time, 0)
    for c, one in enumerate(code):
        mine = np.flatnonzero(encoded.code == one)
        if not len(mine):  # a small split may have none of a code
            days[:, c] = left / MICROSECONDS_PER_DAY
            continue
        at = np.searchsorted(key[mine], asked)
        found = at < len(mine)
        following = mine[np.minimum(at, len(mine) - 1)]
        gap = encoded.known_time[following] - time
        event[:, c] = found & (owner[following] == row) & (gap <= left)
        days[:, c] = np.where(event[:, c], gap, left) / MICROSECONDS_PER_DAY
    return Targets(days, event, np.ones(len(row)))
