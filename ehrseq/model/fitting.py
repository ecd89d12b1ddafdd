"""From timelines and a task to fitted networks and baselines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ehrseq.config import ModelConfig
from ehrseq.errors import TaskError, TimelineError
from ehrseq.model.baselines import HazardBaseline
from ehrseq.model.heads import HazardName, base_log_hazard, hazard_names, interval_edges
from ehrseq.model.inference import TOKENS_PER_BATCH, predict_hazards
from ehrseq.model.landmarks import Targets, draw_landmarks, targets
from ehrseq.model.module import LandmarkBatches, ProgressionModule, train
from ehrseq.model.network import ProgressionNetwork
from ehrseq.task.definition import Task
from ehrseq.task.outcome import occurrences
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.batch import Batches
from ehrseq.tokens.encode import STATIC, EncodedTimelines, encode
from ehrseq.tokens.vocabulary import Vocabulary

Index = NDArray[np.int64]
Float = NDArray[np.float64]
Report = Callable[[int, float], None]
BASELINE_LANDMARKS = 8
LEVEL_PRIOR = 100
MIN_BATCHES = 24  # an epoch of a small data set still takes this many optimiser steps


@dataclass(frozen=True)
class Fitted:
    """Everything that `fit` learned."""

    vocabulary: Vocabulary
    edges: Float
    hazards: list[HazardName]
    networks: list[ProgressionNetwork]
    baselines: dict[str, dict[str, HazardBaseline]]
    supported_days: dict[str, float]
    events: dict[str, int]
    history: list[list[float]]
    data_hash: str


@dataclass(frozen=True)
class _Part:
    """The subjects of one split that can teach: birth known, some follow-up."""

    encoded: EncodedTimelines
    subjects: pl.DataFrame
    start: Index
    end: Index

    def draw(
        self, rng: np.random.Generator, *, per_subject: int, label: Callable[[Index, Index, Float], Targets]
    ) -> tuple[Index, Index, Targets]:
        row, time, weight = draw_landmarks(self.start, self.end, per_subject, rng)
        return row, time, label(self.encoded.subject_id[row], time, weight)


def fit_model(
    timelines: Timelines, task: Task, splits: pl.DataFrame, config: ModelConfig, report: Report | None = None
) -> Fitted:
    """Fit vocabulary, baselines and networks on the `train` split, stopping early on `tuning`."""
    parts = {name: timelines.select(_members(splits, name)) for name in ("train", "tuning")}
    vocabulary = Vocabulary.fit(parts["train"].events, config.network)
    if not vocabulary.codes:
        raise TimelineError(
            f"codes that at least {config.network.min_subjects} training subjects have",
            "none",
            "fit on more subjects, or lower min_subjects",
        )
    train_part, tuning_part = (_prepare(parts[name], vocabulary, name) for name in ("train", "tuning"))
    happened = occurrences(timelines, task)
    events = _count_events(happened, train_part.subjects, task)
    learnable = [outcome for outcome in task.outcomes if events[outcome.name]]
    if not learnable:
        raise TaskError(
            "at least one outcome that occurs among the training subjects", "none", "check the task's codes"
        )
    hazards = hazard_names(learnable)
    edges = interval_edges(task.max_horizon_days + 2, config.network.intervals)
    label = partial(targets, occurrences=happened, subjects=timelines.subjects, task=task, hazards=hazards, edges=edges)
    rng = np.random.default_rng([config.seed, 1])
    sample = train_part.draw(rng, per_subject=BASELINE_LANDMARKS, label=label)
    networks, history = [], []
    for member in range(config.training.members):
        network, losses = _fit_member(
            train_part, tuning_part, label, vocabulary, hazards, edges, sample, config, member, report
        )
        networks.append(network)
        history.append(losses)
    _set_level(networks, [train_part, tuning_part], label, len(vocabulary.summary_codes), config)
    return Fitted(
        vocabulary, edges, hazards, networks,
        _fit_baselines(train_part, sample, hazards, edges),
        _supported_days(sample[2], hazards, edges), events, history, _data_hash(train_part.encoded),
    )  # fmt: skip


def _members(splits: pl.DataFrame, name: str) -> pl.Series:
    ids = splits.filter(pl.col("split") == name)["subject_id"]
    if not len(ids):
        raise TimelineError(f"subjects in the split '{name}'", "none", "give more subjects or another split table")
    return ids


def _prepare(timelines: Timelines, vocabulary: Vocabulary, name: str) -> _Part:
    usable = timelines.subjects.filter(
        pl.col("birth_time").is_not_null() & (pl.col("follow_up_end") > pl.col("follow_up_start"))
    ).sort("subject_id")
    if not usable.height:
        raise TimelineError(
            f"subjects with a birth date and follow-up in the split '{name}'", "none", "check `ehrseq cohort`"
        )
    encoded = encode(timelines.events, usable, vocabulary)
    start, end = (usable[c].dt.epoch("us").to_numpy() for c in ("follow_up_start", "follow_up_end"))
    return _Part(encoded, usable, start, end)


def _count_events(happened: pl.DataFrame, subjects: pl.DataFrame, task: Task) -> dict[str, int]:
    counts = (
        happened.join(subjects.select("subject_id"), on="subject_id", how="semi")
        .group_by("outcome")
        .agg(pl.col("subject_id").n_unique())
    )
    found = dict(counts.iter_rows())
    return {outcome.name: int(found.get(outcome.name, 0)) for outcome in task.outcomes}


def _fit_member(
    training: _Part, tuning: _Part, label: Callable[[Index, Index, Float], Targets], vocabulary: Vocabulary,
    hazards: list[HazardName], edges: Float, sample: tuple[Index, Index, Targets], config: ModelConfig, member: int,
    report: Report | None,
) -> tuple[ProgressionNetwork, list[float]]:  # fmt: skip
    settings, seed = config.training, config.seed + 1000 * member
    n_summary = len(vocabulary.summary_codes)
    tokens = len(training.encoded.code) + len(training.start) * settings.landmarks_per_subject
    tokens_per_batch = int(np.clip(tokens / MIN_BATCHES, 256, settings.tokens_per_batch))
    passes = []
    for part, per_subject, redraw in (
        (training, settings.landmarks_per_subject, True),
        (tuning, settings.tuning_landmarks_per_subject, False),
    ):
        draw = partial(part.draw, per_subject=per_subject, label=label)
        batches = Batches(part.encoded, n_summary, config.network.max_events)
        passes.append(LandmarkBatches(batches, draw, tokens_per_batch, seed, redraw=redraw))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ProgressionNetwork(vocabulary, config.network, len(hazards), edges)
        _set_base_rates(network, sample[2], edges)
        _set_scales(network, passes[0].batches, sample)
        years = float((training.end - training.start).sum()) / (86_400_000_000 * 365.25)
        n_batches = max(1.0, tokens / tokens_per_batch)
        module = ProgressionModule(network, settings, years / n_batches, n_batches)
        train(module, passes[0], passes[1], report)
    return network, module.history


def _set_level(
    networks: list[ProgressionNetwork], parts: list[_Part], label: Callable[[Index, Index, Float], Targets],
    n_summary: int, config: ModelConfig,
) -> None:  # fmt: skip
    """Set the level of each log hazard: expected events equal observed ones in the training and tuning follow-up.

    Dropout makes the network noisy while it is fitted, and the mean of exp(score + noise) is above exp(score): with
    the noise gone, the fitted network forecasts too little. The shift is the maximum-likelihood intercept of the
    members' average, and of each of its intervals, drawn to the former by LEVEL_PRIOR landmarks with an event.
    """
    observed = np.zeros(tuple(networks[0].head.base.shape))
    expected = np.zeros_like(observed)
    weight, landmarks = 0.0, 0
    for part in parts:
        rng = np.random.default_rng([config.seed, 2])
        row, time, target = part.draw(rng, per_subject=BASELINE_LANDMARKS, label=label)
        hazards = predict_hazards(
            networks, part.encoded, row, time, max_events=config.network.max_events, n_summary_codes=n_summary
        )
        hazard = np.exp(np.log(hazards).mean(0))
        expected += np.einsum("q,qhi,qhi->hi", target.weight, hazard, target.exposure)
        for h in range(len(observed)):
            happened = target.event[:, h] >= 0
            interval = target.event[happened, h]
            observed[h] += np.bincount(interval, target.weight[happened], minlength=observed.shape[1])
        weight, landmarks = weight + target.weight.sum(), landmarks + len(row)
    some = observed.sum(1, keepdims=True) > 0
    level = np.where(some, observed.sum(1, keepdims=True), 1) / np.where(some, expected.sum(1, keepdims=True), 1)
    prior = LEVEL_PRIOR * weight / max(landmarks, 1)
    shift = np.log(level) + np.where(some, np.log((observed + prior) / (level * expected + prior)), 0)
    for network in networks:
        network.head.base += torch.from_numpy(shift).float()


def _set_scales(network: ProgressionNetwork, batches: Batches, sample: tuple[Index, Index, Targets]) -> None:
    """Standardise times as the training data have them; static tokens have none."""
    dynamic = batches.encoded.known_time != STATIC
    network.event_times.set_scale(torch.from_numpy(batches.features[dynamic]))
    rows = [b.query_features[b.query >= 0] for b in batches.over(sample[0], sample[1], TOKENS_PER_BATCH)]
    network.query_times.set_scale(torch.cat(rows))


def _set_base_rates(network: ProgressionNetwork, sample: Targets, edges: Float) -> None:
    n = len(edges) - 1
    for h in range(sample.exposure.shape[1]):
        interval = np.where(sample.event[:, h] < 0, n, sample.event[:, h])
        base = base_log_hazard(
            sample.exposure[:, h].astype(np.float64), interval, sample.event[:, h] >= 0, sample.weight
        )
        network.head.base[h] = torch.from_numpy(base)


def _fit_baselines(
    part: _Part, sample: tuple[Index, Index, Targets], hazards: list[HazardName], edges: Float
) -> dict[str, dict[str, HazardBaseline]]:
    """Per kind and outcome; rows are the landmarks at which the subject is at risk."""
    row, time, target = sample
    age = (time - part.encoded.birth[row]) / (86_400_000_000 * 365.25)
    sex = np.asarray(part.subjects["sex"].to_list(), dtype=object)[row]
    out: dict[str, dict[str, HazardBaseline]] = {"age_sex": {}, "null": {}}
    for name in dict.fromkeys(h.outcome for h in hazards):
        own = hazards.index(HazardName(name))
        other = hazards.index(HazardName(name, True)) if HazardName(name, True) in hazards else own
        exposure = target.exposure[:, own]
        days = np.minimum(exposure.sum(1).astype(np.float64), edges[-1])  # float32 sums may end a hair beyond
        cause = np.where(target.event[:, own] >= 0, 1, 0)
        if other != own:
            cause = np.where(target.event[:, other] >= 0, 2, cause)
        keep = days > 0
        for kind, fitted in out.items():
            fitted[name] = HazardBaseline.fit(
                "age_sex" if kind == "age_sex" else "null", edges, age[keep], sex[keep].tolist(), days[keep],
                cause[keep], target.weight[keep],
            )  # fmt: skip
    return out


def _supported_days(target: Targets, hazards: list[HazardName], edges: Float) -> dict[str, float]:
    """How far ahead at least 1% of the training landmarks at risk were still observed, per outcome."""
    supported = {}
    for h, hazard in enumerate(hazards):
        if hazard.competing:
            continue
        days = target.exposure[:, h].sum(1)
        days = days[days > 0]
        supported[hazard.outcome] = float(min(np.quantile(days, 0.99), edges[-1])) if len(days) else 0.0
    return supported


def _data_hash(encoded: EncodedTimelines) -> str:
    digest = hashlib.sha256()
    for column in (encoded.subject_id, encoded.known_time, encoded.code, encoded.value):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
