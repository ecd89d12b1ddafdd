"""From timelines and a task to everything that `fit` learns."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sklearn.ensemble  # noqa: F401  # only libraries that are loaded can be held to one thread
from numpy.typing import NDArray

from ehrseq.config import BoostedConfig, ModelConfig
from ehrseq.features.tabular import Tabulator
from ehrseq.model.adjustment import Adjustment, Outcomes, blend_weight, fit_level, fit_slope
from ehrseq.model.baselines import HazardBaseline
from ehrseq.model.boosted import BoostedHazard, Cuts, age_and_times, periods, person_periods
from ehrseq.model.cox import CoxHazard
from ehrseq.model.fitted import HYBRID, Fitted, linear_features
from ehrseq.model.heads import HazardName, base_log_hazard
from ehrseq.model.lab_fitting import fit_labs
from ehrseq.model.landmarks import Targets
from ehrseq.model.members import NARROW
from ehrseq.model.path_fitting import fit_paths
from ehrseq.model.plan import Plan, Report, data_hash, members
from ehrseq.model.profile import Profile
from ehrseq.model.sample import Labeller, Part, Sample, history_of
from ehrseq.model.threads import one_thread
from ehrseq.model.together import MANY, fit_networks
from ehrseq.task.definition import Task
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.vocabulary import Vocabulary

Float = NDArray[np.float64]
LEVEL_LANDMARKS = {"train": 3, "tuning": 8}


def fit_model(
    timelines: Timelines, task: Task, splits: pl.DataFrame, config: ModelConfig, report: Report | None = None,
    checkpoint: str | Path | None = None, start: Fitted | None = None, *, happened: pl.DataFrame | None = None,
    workers: int | None = None,
) -> Fitted:  # fmt: skip
    """Fit on the `train` split; `tuning` stops early, blends and adjusts. Other subjects are not looked at.

    `checkpoint` is a folder that keeps the state of the networks' training after each epoch. With `start`, the
    vocabulary is that of an earlier model, and the networks go on from its own. `happened` replaces what happened to
    the subjects (a table like that of `occurrences`): audits learn it from timelines that do not show it. `workers` is
    as in `fit_networks`.
    """
    wide = config.has_networks and config.network.width >= NARROW
    with one_thread(not wide and len(timelines) < MANY):
        plan = Plan.of(timelines, task, splits, config, start, happened)
        beside: dict[str, Any] = {"boosted": [], "cox": [], "labs": None}
        networks, history = fit_networks(
            plan, timelines, splits, report, checkpoint, 1 if happened is not None else workers,
            meanwhile=_fit_beside(plan, timelines, splits, beside),
        )  # fmt: skip
        hazards, outcomes = plan.labeller.hazards, plan.outcomes
        train = plan.parts["train"]
        fitted = Fitted(
            plan.vocabulary, plan.edges, hazards, plan.auxiliary, networks, beside["boosted"], beside["cox"], {},
            np.zeros(len(hazards)), _fit_baselines(train, outcomes, hazards, plan.edges),
            _supported_days(outcomes.target, hazards, plan.edges), plan.events, history,
            data_hash(train.encoded) if start is None else start.data_hash, labs=beside["labs"],
            profile=Profile.fit(
                timelines.select(members(splits, "train")), plan.vocabulary, config.network.min_subjects
            ),
        )  # fmt: skip
        if networks:
            most = config.network.max_events
            paths = fit_paths(networks[0], train, plan.labeller, task, plan.vocabulary, most, config.seed)
            fitted = replace(fitted, paths=paths)
        fitted = _adjust(fitted, plan.parts, plan.labeller, config)
        return replace(fitted, vocabulary=plan.vocabulary.without_rare(timelines.events["code"]))


def _fit_beside(plan: Plan, timelines: Timelines, splits: pl.DataFrame, found: dict[str, Any]) -> Iterator[None]:
    """Put what is fitted without the networks into `found`, step by step: boosted or linear hazards, and labs."""
    parts, config = plan.parts, plan.config
    if config.model in ("boosted", "hybrid"):
        found["boosted"] = yield from _fit_boosted(
            parts, plan.labeller, plan.vocabulary, plan.edges, plan.outcomes, config
        )
    if config.model == "cox":
        found["cox"] = _fit_cox(parts["train"], plan.vocabulary, plan.edges, plan.outcomes)
    if plan.task is not None and plan.task.labs:
        frames = {name: timelines.select(members(splits, name)).events for name in parts}
        found["labs"] = fit_labs(parts, frames, plan.vocabulary, plan.edges, plan.task, config)
    yield


def _fit_boosted(
    parts: dict[str, Part], labeller: Labeller, vocabulary: Vocabulary, edges: Float, sample: Sample,
    config: ModelConfig,
) -> Generator[None, None, list[BoostedHazard]]:  # fmt: skip
    """One boosted hazard for each of the task's, the mean of several members; yields whenever one of one is fitted.

    Members differ in their prediction times, of training (the first has `sample`) and of tuning, and in the features
    that each split may choose from; they share where features are cut, and the linear models.
    """
    settings, names = config.boosted, ("train", "tuning")
    period = periods(len(edges) - 1, settings.periods)
    tables = [Tabulator(history_of(parts[name].encoded, vocabulary)) for name in names]
    found: list[list[BoostedHazard]] = [[] for _ in labeller.hazards]
    shared: tuple[Cuts, list[CoxHazard]] | None = None
    for member in range(settings.members):
        rng = np.random.default_rng([config.seed, 3, member])
        if member:
            sample = parts["train"].draw(rng, settings.landmarks_per_subject, labeller)
        drawn = [sample, parts["tuning"].draw(rng, settings.landmarks_per_subject, labeller)]
        rows = [table.rows(one.row, one.time) for table, one in zip(tables, drawn, strict=True)]
        times = [age_and_times(each) for each in rows]
        share = min(1.0, settings.event_free_rows / len(sample.row))
        keep = [(rng.random(len(sample.row)) < share) / share, np.ones(len(drawn[1].row))]
        weight = [o.target.weight / o.target.weight.mean() / settings.landmarks_per_subject for o in drawn]
        shared = shared or (
            _fit_cuts(rows[0], settings),
            [_fit_linear(times[0], sample.target, h, edges, weight[0]) for h in range(len(found))],
        )
        cuts, linear = shared
        for h, hazard in enumerate(linear):
            sets = [
                person_periods(
                    rows[i], *drawn[i].target.person_intervals(h, edges), weight[i], hazard.log_hazard(times[i]),
                    period, keep[i],
                )
                for i in range(len(names))
            ]  # fmt: skip
            seed = (config.seed + 1000 * member) % 2**32
            found[h].append(BoostedHazard.fit(sets[0], sets[1], cuts, hazard, period, settings, seed))
            yield
        del rows, sets  # else those of two members would be held at once
    return [BoostedHazard.mean(each) for each in found]


def _fit_cuts(rows: NDArray[np.float32], settings: BoostedConfig) -> Cuts:
    """Where features (n, F), and the period after them, are cut."""
    period = (np.arange(len(rows)) % settings.periods).astype(np.float32)
    return Cuts.fit(np.column_stack([rows, period]), settings.bins)


def _fit_linear(features: Float, target: Targets, hazard: int, edges: Float, weight: Float) -> CoxHazard:
    """The linear model of one hazard."""
    exposure, interval = target.person_intervals(hazard, edges)
    happened = interval >= 0
    base = base_log_hazard(exposure, np.where(happened, interval, 0), happened, weight)
    return CoxHazard.fit(features, exposure, interval, weight, base)


def _fit_cox(part: Part, vocabulary: Vocabulary, edges: Float, sample: Sample) -> list[CoxHazard]:
    """One linear hazard for each of the task's."""
    features = linear_features(part.encoded, vocabulary, sample.row, sample.time)
    weight = sample.target.weight / sample.target.weight.mean() * len(part.start) / len(sample.row)
    return [_fit_linear(features, sample.target, h, edges, weight) for h in range(sample.target.days.shape[1])]


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
