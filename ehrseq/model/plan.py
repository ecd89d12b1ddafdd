"""What is settled before anything is fitted: who teaches, what is learned, and where hazards change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.config import ModelConfig
from ehrseq.errors import TaskError, TimelineError
from ehrseq.model.checkpoint import Checkpoint
from ehrseq.model.fitted import Fitted
from ehrseq.model.heads import event_edges, hazard_names
from ehrseq.model.members import fit_member
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.sample import Labeller, Part, Sample, check_ends
from ehrseq.task.definition import Task
from ehrseq.task.outcome import occurrences
from ehrseq.timeline.hierarchy import code_parents
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, EncodedTimelines
from ehrseq.tokens.vocabulary import FIRST_CODE, Vocabulary, is_static_fact

Index = NDArray[np.int64]
Float = NDArray[np.float64]
Report = Callable[[int, float], None]
PRETRAINING_CODES = 256  # at most so many are learned from: rare ones say little and cost as much as others
FAR_ENOUGH = 0.95  # share of the training follow-up that the hazards of pretraining reach


@dataclass(frozen=True)
class Plan:
    """All that the networks, and what is fitted beside them, learn from; the same for the same data and settings.

    `sample` has landmarks of the training subjects, with the auxiliary codes' targets last; `events` how many of these
    subjects had each outcome; `origin` the networks to go on from, if any. Without a task it is one for pretraining.
    """

    parts: dict[str, Part]
    vocabulary: Vocabulary
    auxiliary: tuple[str, ...]
    labeller: Labeller
    sample: Sample
    edges: Float
    events: dict[str, int]
    task: Task | None
    config: ModelConfig
    origin: Sequence[ProgressionNetwork] = ()

    @classmethod
    def of(
        cls, timelines: Timelines, task: Task, splits: pl.DataFrame, config: ModelConfig, start: Fitted | None = None,
        happened: pl.DataFrame | None = None,
    ) -> Plan:  # fmt: skip
        """For the outcomes of a task; `start` and `happened` are as in `fitting.fit_model`."""
        if start is None:
            vocabulary = learn_vocabulary(timelines, splits, config)
            auxiliary = auxiliary_codes(vocabulary, config.training.auxiliary_codes)
        else:
            vocabulary, auxiliary = start.vocabulary.with_parents(code_parents(timelines)), start.auxiliary
        parts = split_parts(timelines, splits, vocabulary)
        happened = occurrences(timelines, task) if happened is None else happened
        events = _count_events(happened, parts["train"].subjects, task)
        index = code_indices(vocabulary, auxiliary)
        labeller = Labeller(happened, timelines.subjects, task, hazard_names(task.outcomes), index)
        labeller, sample = _draw_learnable(parts["train"], labeller, task, events, config)
        after = sample.target.select(slice(len(labeller.hazards)))
        days = after.days[after.event].astype(np.float64)
        edges = event_edges(days, task.max_horizon_days + 2, config.network.intervals)
        origin = () if start is None else start.networks
        return cls(parts, vocabulary, auxiliary, labeller, sample, edges, events, task, config, origin)

    @classmethod
    def without_task(cls, timelines: Timelines, splits: pl.DataFrame, config: ModelConfig) -> Plan:
        """For networks that learn when codes come again, and no outcome."""
        vocabulary = learn_vocabulary(timelines, splits, config)
        parts = split_parts(timelines, splits, vocabulary)
        names = auxiliary_codes(vocabulary, PRETRAINING_CODES)
        labeller = Labeller(None, timelines.subjects, None, [], code_indices(vocabulary, names))
        rng = np.random.default_rng([config.seed, 1])
        sample = parts["train"].draw(rng, config.training.landmarks_per_subject, labeller, auxiliary=True)
        follow_up = (parts["train"].end - parts["train"].start) / MICROSECONDS_PER_DAY
        days = sample.target.days[sample.target.event].astype(np.float64)
        edges = event_edges(days, float(np.quantile(follow_up, FAR_ENOUGH)), config.network.intervals)
        return cls(parts, vocabulary, names, labeller, sample, edges, {}, None, config)

    @property
    def outcomes(self) -> Sample:
        """The sample with the targets of the outcomes alone."""
        return replace(self.sample, target=self.sample.target.select(slice(len(self.labeller.hazards))))

    @property
    def tokens(self) -> int:
        """How many tokens a network reads, at most, until it is fitted."""
        train, settings = self.parts["train"], self.config.training
        return settings.max_epochs * (len(train.encoded.code) + len(train.start) * settings.landmarks_per_subject)

    def checkpoint(self, folder: str | Path) -> Checkpoint:
        """A folder for the state of the networks' training: one of another plan is not read."""
        origin = [network.state_dict() for network in self.origin]
        task = "pretraining" if self.task is None else self.task.to_dict()
        return Checkpoint.open(folder, self.config.to_dict(), task, digest(*self.parts.values(), self.sample, origin))

    def fit_member(
        self, number: int, report: Report | None, kept: Checkpoint | None
    ) -> tuple[ProgressionNetwork, list[float]]:
        """One network and its tuning loss by epoch."""
        origin = self.origin[number % len(self.origin)] if self.origin else None
        return fit_member(
            self.parts["train"], self.parts["tuning"], self.labeller, self.vocabulary, self.edges, self.sample,
            self.config, number, report, kept, origin,
        )  # fmt: skip


def learn_vocabulary(timelines: Timelines, splits: pl.DataFrame, config: ModelConfig) -> Vocabulary:
    """The codes and values of the training subjects; TimelineError where there are none."""
    train = timelines.select(members(splits, "train"))
    vocabulary = Vocabulary.fit(train.events, config.network, train.subjects, code_parents(timelines))
    if not vocabulary.codes:
        raise TimelineError(
            f"codes that at least {config.network.min_subjects} training subjects have",
            "none",
            "fit on more subjects, or lower min_subjects",
        )
    return vocabulary


def split_parts(timelines: Timelines, splits: pl.DataFrame, vocabulary: Vocabulary) -> dict[str, Part]:
    """The training and the tuning subjects."""
    check_ends(timelines)
    return {
        name: Part.prepare(timelines.select(members(splits, name)), vocabulary, name) for name in ("train", "tuning")
    }


def auxiliary_codes(vocabulary: Vocabulary, at_most: int) -> tuple[str, ...]:
    """Codes that come again, the most frequent first as far as the vocabulary says."""
    ordered = dict.fromkeys((*vocabulary.summary_codes, *vocabulary.codes))
    return tuple(c for c in ordered if not is_static_fact(c))[:at_most]


def code_indices(vocabulary: Vocabulary, codes: Sequence[str]) -> Index:
    """Where the codes are in the vocabulary."""
    return np.array([FIRST_CODE + vocabulary.codes.index(c) for c in codes], dtype=np.int64)


def members(splits: pl.DataFrame, name: str) -> pl.Series:
    """The subjects of a split; TimelineError where there are none."""
    ids = splits.filter(pl.col("split") == name)["subject_id"]
    if not len(ids):
        raise TimelineError(f"subjects in the split '{name}'", "none", "give more subjects or another split table")
    return ids


def _draw_learnable(
    part: Part, labeller: Labeller, task: Task, events: dict[str, int], config: ModelConfig
) -> tuple[Labeller, Sample]:
    """Landmarks of the training subjects, and the labeller of the outcomes that happen after one of them.

    Others have nothing to teach, wherever else they occur: their count in `events` becomes 0.
    """

    def draw(labeller: Labeller) -> Sample:
        rng = np.random.default_rng([config.seed, 1])
        return part.draw(rng, config.boosted.landmarks_per_subject, labeller, auxiliary=True)

    sample = draw(labeller)
    for h, hazard in enumerate(labeller.hazards):
        if not hazard.competing and not sample.target.event[:, h].any():
            events[hazard.outcome] = 0
    learnable = [outcome for outcome in task.outcomes if events[outcome.name]]
    if not learnable:
        raise TaskError(
            "at least one outcome that occurs among the training subjects while they are followed", "none",
            "check the task's codes",
        )  # fmt: skip
    if len(learnable) < len(task.outcomes):
        labeller = replace(labeller, hazards=hazard_names(learnable))
        sample = draw(labeller)
    return labeller, sample


def _count_events(happened: pl.DataFrame, subjects: pl.DataFrame, task: Task) -> dict[str, int]:
    counts = (
        happened.join(subjects.select("subject_id"), on="subject_id", how="semi")
        .group_by("outcome")
        .agg(pl.col("subject_id").n_unique())
    )
    found = dict(counts.iter_rows())
    return {outcome.name: int(found.get(outcome.name, 0)) for outcome in task.outcomes}


def data_hash(encoded: EncodedTimelines) -> str:
    """SHA-256 of the encoded timelines."""
    return digest(encoded.subject_id, encoded.known_time, encoded.code, encoded.value)


def digest(*parts: Any) -> str:
    """SHA-256 of all arrays in arrays, tensors, dataclasses, lists and dictionaries of them.

    >>> digest(np.arange(2), [np.zeros(1)]) == digest(np.arange(2), {"x": np.zeros(1)})
    True
    """
    found = hashlib.sha256()
    waiting = list(reversed(parts))
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += reversed(list(part.values()))
        elif isinstance(part, Sequence):
            waiting += reversed(part)
        elif is_dataclass(part):
            waiting += [getattr(part, f.name) for f in reversed(fields(part))]
        elif not isinstance(part, pl.DataFrame):  # a part's subjects: all that is learned from is an array beside them
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()
