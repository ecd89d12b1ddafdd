"""From timelines and a task to everything that `fit` learns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sklearn.ensemble  # noqa: F401  # only libraries that are loaded can be held to one thread
from numpy.typing import NDArray

from ehrseq.config import ModelConfig
from ehrseq.errors import TaskError, TimelineError
from ehrseq.features.tabular import Tabulator
from ehrseq.model.adjustment import Adjustment, Outcomes, blend_weight, fit_level, fit_slope
from ehrseq.model.baselines import HazardBaseline
from ehrseq.model.boosted import BoostedHazard, Cuts, PersonPeriods, age_and_times, periods, person_periods
from ehrseq.model.checkpoint import Checkpoint
from ehrseq.model.cox import CoxHazard
from ehrseq.model.fitted import HYBRID, Fitted, linear_features
from ehrseq.model.heads import HazardName, base_log_hazard, event_edges, hazard_names
from ehrseq.model.lab_fitting import fit_labs
from ehrseq.model.landmarks import Targets
from ehrseq.model.members import NARROW, fit_member
from ehrseq.model.path_fitting import fit_paths
from ehrseq.model.profile import Profile
from ehrseq.model.sample import Labeller, Part, Sample, history_of
from ehrseq.model.threads import one_thread
from ehrseq.task.definition import Task
from ehrseq.task.outcome import occurrences
from ehrseq.timeline.hierarchy import code_parents
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import EncodedTimelines
from ehrseq.tokens.vocabulary import FIRST_CODE, Vocabulary, is_static_fact

Index = NDArray[np.int64]
Float = NDArray[np.float64]
Report = Callable[[int, float], None]
MANY = 100_000  # subjects from which several threads are worth it
LEVEL_LANDMARKS = {"train": 3, "tuning": 8}


def fit_model(
    timelines: Timelines, task: Task, splits: pl.DataFrame, config: ModelConfig, report: Report | None = None,
    checkpoint: str | Path | None = None, start: Fitted | None = None, *, happened: pl.DataFrame | None = None,
) -> Fitted:  # fmt: skip
    """Fit on the `train` split; `tuning` stops early, blends and adjusts. Other subjects are not looked at.

    `checkpoint` is a folder that keeps the state of the networks' training after each epoch. With `start`, the
    vocabulary is that of an earlier model, and the networks go on from its own. `happened` replaces what happened to
    the subjects (a table like that of `occurrences`): audits learn it from timelines that do not show it.
    """
    with one_thread(config.has_networks and config.network.width < NARROW and len(timelines) < MANY):
        return _fit_model(timelines, task, splits, config, report, checkpoint, start, happened)


def _fit_model(
    timelines: Timelines, task: Task, splits: pl.DataFrame, config: ModelConfig, report: Report | None,
    checkpoint: str | Path | None, start: Fitted | None, happened: pl.DataFrame | None,
) -> Fitted:  # fmt: skip
    if start is None:
        vocabulary = learn_vocabulary(timelines, splits, config)
    else:
        vocabulary = start.vocabulary.with_parents(code_parents(timelines))
    parts = split_parts(timelines, splits, vocabulary)
    happened = occurrences(timelines, task) if happened is None else happened
    events = _count_events(happened, parts["train"].subjects, task)
    auxiliary = auxiliary_codes(vocabulary, config.training.auxiliary_codes) if start is None else start.auxiliary
    index = code_indices(vocabulary, auxiliary)
    labeller = Labeller(happened, timelines.subjects, task, hazard_names(task.outcomes), index)
    labeller, sample = _draw_learnable(parts["train"], labeller, task, events, config)
    hazards = labeller.hazards
    events_after = sample.target.select(slice(len(hazards)))
    days = events_after.days[events_after.event].astype(np.float64)
    edges = event_edges(days, task.max_horizon_days + 2, config.network.intervals)
    networks, history, boosted = [], [], []
    if config.has_networks:
        origin = [] if start is None else [network.state_dict() for network in start.networks]
        run = (config.to_dict(), task.to_dict(), digest(*parts.values(), sample, origin))
        kept = None if checkpoint is None else Checkpoint.open(checkpoint, *run)
        for member in range(config.training.members):
            network, losses = fit_member(
                parts["train"], parts["tuning"], labeller, vocabulary, edges, sample, config, member, report, kept,
                None if start is None else start.networks[member % len(start.networks)],
            )  # fmt: skip
            networks.append(network)
            history.append(losses)
    outcomes = Sample(sample.row, sample.time, events_after)
    if config.model in ("boosted", "hybrid"):
        boosted = _fit_boosted(parts, labeller, vocabulary, edges, outcomes, config)
    cox = _fit_cox(parts["train"], vocabulary, edges, outcomes) if config.model == "cox" else []
    fitted = Fitted(
        vocabulary, edges, hazards, auxiliary, networks, boosted, cox, {}, np.zeros(len(hazards)),
        _fit_baselines(parts["train"], outcomes, hazards, edges),
        _supported_days(outcomes.target, hazards, edges), events, history,
        data_hash(parts["train"].encoded) if start is None else start.data_hash,
    )  # fmt: skip
    if networks:
        paths = fit_paths(
            networks[0], parts["train"], labeller, task, vocabulary, config.network.max_events, config.seed
        )
        fitted = replace(fitted, paths=paths)
    fitted = _adjust(fitted, parts, labeller, config)
    recorded = {name: timelines.select(_members(splits, name)) for name in parts}
    if task.labs:
        frames = {name: some.events for name, some in recorded.items()}
        fitted = replace(fitted, labs=fit_labs(parts, frames, vocabulary, edges, task, config))
    fitted = replace(fitted, profile=Profile.fit(recorded["train"], vocabulary, config.network.min_subjects))
    return replace(fitted, vocabulary=vocabulary.without_rare(timelines.events["code"]))


def learn_vocabulary(timelines: Timelines, splits: pl.DataFrame, config: ModelConfig) -> Vocabulary:
    """The codes and values of the training subjects; TimelineError where there are none."""
    train = timelines.select(_members(splits, "train"))
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
    return {
        name: Part.prepare(timelines.select(_members(splits, name)), vocabulary, name) for name in ("train", "tuning")
    }


def auxiliary_codes(vocabulary: Vocabulary, at_most: int) -> tuple[str, ...]:
    """Codes that come again, the most frequent first as far as the vocabulary says."""
    ordered = dict.fromkeys((*vocabulary.summary_codes, *vocabulary.codes))
    return tuple(c for c in ordered if not is_static_fact(c))[:at_most]


def code_indices(vocabulary: Vocabulary, codes: Sequence[str]) -> Index:
    """Where the codes are in the vocabulary."""
    return np.array([FIRST_CODE + vocabulary.codes.index(c) for c in codes], dtype=np.int64)


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


def _fit_boosted(
    parts: dict[str, Part], labeller: Labeller, vocabulary: Vocabulary, edges: Float, sample: Sample,
    config: ModelConfig,
) -> list[BoostedHazard]:  # fmt: skip
    """One boosted hazard for each of the task's."""
    settings = config.boosted
    rng = np.random.default_rng([config.seed, 3])
    tuning = parts["tuning"].draw(rng, settings.landmarks_per_subject, labeller)
    rows = [
        Tabulator(history_of(part.encoded, vocabulary)).rows(drawn.row, drawn.time)
        for part, drawn in ((parts["train"], sample), (parts["tuning"], tuning))
    ]
    period = periods(len(edges) - 1, settings.periods)
    share = min(1.0, settings.event_free_rows / len(sample.row))
    keep = [(rng.random(len(sample.row)) < share) / share, np.ones(len(tuning.row))]
    cuts = Cuts.fit(
        np.column_stack([rows[0], (np.arange(len(rows[0])) % settings.periods).astype(np.float32)]), settings.bins
    )
    out = []
    for h in range(len(labeller.hazards)):
        sets: list[PersonPeriods] = []
        for drawn, features in zip((sample, tuning), rows, strict=True):
            exposure, interval = drawn.target.person_intervals(h, edges)
            weight = drawn.target.weight / drawn.target.weight.mean() / settings.landmarks_per_subject
            if not sets:
                happened = interval >= 0
                base = base_log_hazard(exposure, np.where(happened, interval, 0), happened, weight)
                linear = CoxHazard.fit(age_and_times(features), exposure, interval, weight, base)
            start = linear.log_hazard(age_and_times(features))
            sets.append(person_periods(features, exposure, interval, weight, start, period, keep[len(sets)]))
        out.append(BoostedHazard.fit(sets[0], sets[1], cuts, linear, period, settings, config.seed))
    return out


def _fit_cox(part: Part, vocabulary: Vocabulary, edges: Float, sample: Sample) -> list[CoxHazard]:
    """One linear hazard for each of the task's."""
    features = linear_features(part.encoded, vocabulary, sample.row, sample.time)
    weight = sample.target.weight / sample.target.weight.mean() * len(part.start) / len(sample.row)
    out = []
    for h in range(sample.target.days.shape[1]):
        exposure, interval = sample.target.person_intervals(h, edges)
        happened = interval >= 0
        base = base_log_hazard(exposure, np.where(happened, interval, 0), happened, weight)
        out.append(CoxHazard.fit(features, exposure, interval, weight, base))
    return out


def _adjust(fitted: Fitted, parts: dict[str, Part], labeller: Labeller, config: ModelConfig) -> Fitted:
    """Level, slope and blend from the training and tuning follow-up."""
    raw: dict[str, dict[str, Float]] = {}
    outcomes: dict[str, Outcomes] = {}
    for name, n in LEVEL_LANDMARKS.items():
        drawn = parts[name].draw(np.random.default_rng([config.seed, 2]), n, labeller)
        outcomes[name] = Outcomes.of(drawn.target, fitted.edges, n)
        asked = (parts[name].encoded, drawn.row, drawn.time)
        parts_of = fitted.raw(*asked, max_events=config.network.max_events)
        raw[name] = {branch: members.mean(0, keepdims=True) for branch, members in parts_of.items()}

    def settle(branch: str) -> None:
        """The level on both splits, the slope on the tuning split alone, and the level again.

        A slope comes with the level of the tuning split, which has a tenth of the events.
        """
        n_hazards, n_intervals = len(fitted.hazards), len(fitted.edges) - 1
        fitted.adjustments[branch] = Adjustment.none(n_hazards, n_intervals)
        now = {name: fitted.combine(raw[name], branch)[0] for name in raw}
        level = fit_level([(now[name], outcomes[name]) for name in raw])
        slope = fit_slope(level.apply(now["tuning"]), outcomes["tuning"])
        sloped = level.then(slope)
        again = fit_level([(sloped.apply(now[name]), outcomes[name]) for name in raw])
        fitted.adjustments[branch] = sloped.then(again)

    for branch in raw["tuning"]:
        settle(branch)
    if set(raw["tuning"]) == set(HYBRID):
        both = [fitted.combine(raw["tuning"], branch)[0] for branch in HYBRID]
        fitted.blend[:] = blend_weight(both[0], both[1], outcomes["tuning"])
        settle("hybrid")
    return fitted


def _members(splits: pl.DataFrame, name: str) -> pl.Series:
    ids = splits.filter(pl.col("split") == name)["subject_id"]
    if not len(ids):
        raise TimelineError(f"subjects in the split '{name}'", "none", "give more subjects or another split table")
    return ids


def _count_events(happened: pl.DataFrame, subjects: pl.DataFrame, task: Task) -> dict[str, int]:
    counts = (
        happened.join(subjects.select("subject_id"), on="subject_id", how="semi")
        .group_by("outcome")
        .agg(pl.col("subject_id").n_unique())
    )
    found = dict(counts.iter_rows())
    return {outcome.name: int(found.get(outcome.name, 0)) for outcome in task.outcomes}


def _fit_baselines(
    part: Part, sample: Sample, hazards: list[HazardName], edges: Float
) -> dict[str, dict[str, HazardBaseline]]:
    """Per kind and outcome; rows are the landmarks at which the subject is at risk."""
    row, target = sample.row, sample.target
    age = (sample.time - part.encoded.birth[row]) / (86_400_000_000 * 365.25)
    sex = np.asarray(part.subjects["sex"].to_list(), dtype=object)[row]
    out: dict[str, dict[str, HazardBaseline]] = {"age_sex": {}, "null": {}}
    for name in dict.fromkeys(h.outcome for h in hazards):
        own = hazards.index(HazardName(name))
        other = hazards.index(HazardName(name, True)) if HazardName(name, True) in hazards else own
        days = np.minimum(target.days[:, own].astype(np.float64), edges[-1])
        inside = target.days[:, own] <= edges[-1]
        cause = np.where(target.event[:, own] & inside, 1, 0)
        if other != own:
            cause = np.where(target.event[:, other] & inside, 2, cause)
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
        days = target.days[target.days[:, h] > 0, h]
        supported[hazard.outcome] = float(min(np.quantile(days, 0.99), edges[-1])) if len(days) else 0.0
    return supported


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
