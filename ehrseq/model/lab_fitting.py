"""Fitting the lab forecasts, after the hazards and without touching them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ehrseq.config import LabConfig, ModelConfig
from ehrseq.errors import TrainingError
from ehrseq.features.labs import LEVEL, LabEvents, LabScale, lab_values
from ehrseq.features.summary import DAY
from ehrseq.features.tabular import YEAR
from ehrseq.frames import at_once
from ehrseq.model.cox import CoxHazard
from ehrseq.model.fitted import linear_features
from ehrseq.model.heads import base_log_hazard, exposure_and_interval
from ehrseq.model.lab_baselines import LabBaselines
from ehrseq.model.lab_network import LabNetwork, pinball_loss
from ehrseq.model.labs import ENOUGH, LEVELS, Labs, measuring_features, window_of
from ehrseq.model.landmarks import draw_landmarks
from ehrseq.model.sample import Part
from ehrseq.task.definition import Task
from ehrseq.tokens.vocabulary import Vocabulary

Index = NDArray[np.int64]
Float = NDArray[np.float64]
SMALLEST_GAP = 1e-3  # of a spread, between neighbouring quantiles
FEWEST_STEPS = 24  # of the optimiser in a pass over a small data set
FOREVER = np.array([0.0, 1e6])  # one interval of days that holds everything


@dataclass(frozen=True)
class Landmarks:
    """Prediction times of a split, and what was measured after them.

    row, time, end, weight (L,) of each landmark and context (L, F); query, lab, days, value (n,) of each value that
    followed, the first in each interval of time ahead.
    """

    events: LabEvents
    row: Index
    time: Index
    end: Index
    weight: Float
    died: NDArray[np.bool_]
    context: Float
    query: Index
    lab: Index
    days: Float
    value: Float

    @classmethod
    def draw(
        cls, part: Part, events: LabEvents, vocabulary: Vocabulary, edges: Float, per_subject: int,
        rng: np.random.Generator,
    ) -> Landmarks:  # fmt: skip
        """Uniform over each subject's follow-up, which death ends."""
        end = part.lived_until
        row, time, weight = draw_landmarks(part.start, end, per_subject, rng)
        context = linear_features(part.encoded, vocabulary, row, time)
        followed = events.following(row, time, end[row], edges)
        return cls(events, row, time, end[row], weight, part.died[row], context, *followed)

    def own(self, labs: Labs) -> Float:
        """(n, own) features of each value's lab at its landmark."""
        return labs.features(self.events, self.row[self.query], self.time[self.query], self.lab, self.days)


def fit_labs(
    parts: dict[str, Part], events: dict[str, pl.DataFrame], vocabulary: Vocabulary, edges: Float, task: Task,
    config: ModelConfig,
) -> Labs | None:  # fmt: skip
    """The labs of the task, fitted on the split `train` and corrected on `tuning`; None where there are none."""
    settings = config.labs
    if not task.labs or not settings.members:
        return None
    least = config.network.min_subjects
    scales, withheld = choose_labs(events["train"], task.labs, least)
    # a forecast for a horizon belongs to the window that ends with it, in leap years and long months too
    windows = np.append(0.0, np.maximum.accumulate([h.longest_days for h in task.horizons]))

    def draw(name: str, per_subject: int) -> Landmarks:
        rng = np.random.default_rng([config.seed, 4 + (name == "tuning")])
        of = LabEvents.of(events[name], parts[name].encoded.subject_id, scales)
        return Landmarks.draw(parts[name], of, vocabulary, edges, per_subject, rng)

    training = draw("train", settings.landmarks_per_subject)
    few = _labs_with_few_later(training, len(scales), least)
    if few.any():
        withheld |= {scales[i].code: "few_values_after_a_prediction_time" for i in np.flatnonzero(few)}
        scales = tuple(s for s, bad in zip(scales, few, strict=True) if not bad)
        training = draw("train", settings.landmarks_per_subject)
    labs = Labs(
        scales=scales, withheld=withheld, span=task.max_horizon_days, windows=windows,
        supported=_supported(training, len(scales), edges, least), networks=[],
        correction=np.zeros((len(scales), len(windows), len(LEVELS))), edges=edges, measuring=[],
        dying=_fit_dying(training, edges),
        baselines=_fit_baselines(parts["train"], events["train"], training, scales, windows, task.max_horizon_days),
    )  # fmt: skip
    if scales:
        own = training.own(labs)
        for member in range(settings.members):
            labs.networks.append(_fit_network(training, own, len(scales), settings, config.seed + 1000 * member))
        labs.measuring.extend(_fit_measuring(training, labs))
        labs.correction[:] = fit_correction(draw("tuning", 1), labs, config.seed)
    return labs


def choose_labs(
    events: pl.DataFrame, codes: tuple[str, ...], min_subjects: int
) -> tuple[tuple[LabScale, ...], dict[str, str]]:
    """The scale of each code in its most usual unit, and why the others have none.

    A code's numbers in other units are left out, never mixed.
    """
    values = at_once(lab_values(events.filter(pl.col("code").is_in(codes))))
    usual = (
        values.group_by("code", "unit").agg(n=pl.col("subject_id").n_unique())
        .filter(pl.col("n") >= min_subjects)
        .sort("n", "unit", descending=[True, False]).unique("code", keep="first", maintain_order=True)
    )  # fmt: skip
    units = dict(usual.select("code", "unit").iter_rows())
    scales = []
    for code in codes:
        if code in units:
            own = values.filter(pl.col("code") == code, pl.col("unit") == units[code]).sort("subject_id", "number")
            scales.append(LabScale.fit(code, units[code], own["subject_id"].to_numpy(), own["number"].to_numpy()))
    return tuple(scales), {c: "few_training_subjects_with_a_number" for c in codes if c not in units}


def _fit_baselines(
    part: Part, events: pl.DataFrame, drawn: Landmarks, scales: tuple[LabScale, ...], windows: Float, span: float
) -> LabBaselines | None:  # fmt: skip
    if not scales:
        return None
    values = at_once(lab_values(events))
    plain = []
    for scale in scales:
        own = values.filter(pl.col("code") == scale.code, pl.col("unit") == scale.unit).sort("subject_id", "number")
        who, number = own["subject_id"].to_numpy(), own["number"].to_numpy()
        plain.append(LabScale.fit(scale.code, scale.unit, who, number, plain=True))
    read = LabEvents.of(events, part.encoded.subject_id, tuple(plain))
    query, lab, days, value = read.following(drawn.row, drawn.time, drawn.end, windows)
    row = (query, lab, window_of(days, windows), value)
    age = (drawn.time - part.encoded.birth[drawn.row]) / YEAR
    return LabBaselines.fit(read, drawn.row, drawn.time, age, row, len(windows) - 1, LEVELS, span)


def _labs_with_few_later(drawn: Landmarks, n_labs: int, min_subjects: int) -> NDArray[np.bool_]:
    """(labs,) whether fewer than `min_subjects` subjects have a value after a landmark."""
    who = np.unique(np.column_stack([drawn.lab, drawn.row[drawn.query]]), axis=0)
    return np.bincount(who[:, 0], minlength=n_labs) < min_subjects


def _supported(drawn: Landmarks, n_labs: int, edges: Float, min_subjects: int) -> Float:
    """(labs,) the end, in days ahead, of the last interval with at least `min_subjects` values."""
    n = len(edges) - 1
    cell = drawn.lab * n + np.searchsorted(edges[1:], drawn.days, side="left")
    enough = np.bincount(cell, minlength=n_labs * n).reshape(n_labs, n) >= min_subjects
    return np.asarray((edges[1:] * enough).max(axis=1))


def _fit_network(drawn: Landmarks, own: Float, n_labs: int, settings: LabConfig, seed: int) -> LabNetwork:
    """One network on the pinball loss, a fixed number of passes: nothing is held back for stopping."""
    shift = drawn.value - own[:, LEVEL]
    n = len(shift)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's, where it is trained, and no GPU's
        network = LabNetwork(n_labs, own.shape[1], drawn.context.shape[1], settings.hidden, LEVELS)
        for lab in range(n_labs):
            start = np.quantile(shift[drawn.lab == lab], LEVELS)
            network.middle[lab] = float(start[LEVELS.index(0.5)])
            network.gap[lab] = torch.from_numpy(np.log(np.maximum(np.diff(start), SMALLEST_GAP)))
        both = [(x.mean(0), x.std(0)) for x in (own, drawn.context)]
        network.centre.copy_(torch.from_numpy(np.concatenate([mean for mean, _ in both])))
        spread = np.concatenate([deviation for _, deviation in both])
        network.scale.copy_(torch.from_numpy(np.where(spread > 1e-6, spread, 1.0)))
        inputs = [torch.from_numpy(x.astype(np.float32)) for x in (own, drawn.context, shift)]
        query, lab_of = torch.from_numpy(drawn.query), torch.from_numpy(drawn.lab)
        rows = min(n, settings.rows_per_pass)
        size = int(np.clip(rows / FEWEST_STEPS, 16, settings.batch_rows))
        per_pass = -(-rows // size)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        steps = settings.passes * per_pass

        def rate(step: int) -> float:
            return min(1.0, 10 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        levels = torch.tensor(LEVELS)
        for _ in range(settings.passes):
            for some in torch.split(torch.randperm(n)[:rows], size):
                quantiles = network(inputs[0][some], inputs[1][query[some]], lab_of[some])
                loss = pinball_loss(quantiles, levels, inputs[2][some]).mean()
                if not torch.isfinite(loss):
                    raise TrainingError("the loss of the lab forecasts is not finite: look for impossible values")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return network.eval()


def _fit_dying(drawn: Landmarks, edges: Float) -> CoxHazard:
    """The hazard of death after a landmark."""
    days = (drawn.end - drawn.time) / DAY
    return _fit_hazard(drawn, drawn.context, days, drawn.died, edges)


def _fit_measuring(drawn: Landmarks, labs: Labs) -> list[CoxHazard]:
    """The hazard of the next value of each lab, which death and the end of follow-up censor."""
    query, lab, days, _ = drawn.events.following(drawn.row, drawn.time, drawn.end, FOREVER)
    out = []
    for i in range(len(labs.scales)):
        mine = lab == i
        until, happened = (drawn.end - drawn.time) / DAY, np.zeros(len(drawn.row), bool)
        until[query[mine]], happened[query[mine]] = days[mine], True
        own = drawn.events.features(drawn.row, drawn.time, np.full(len(drawn.row), i), labs.span)
        out.append(_fit_hazard(drawn, measuring_features(own, drawn.context), until, happened, labs.edges))
    return out


def _fit_hazard(
    drawn: Landmarks, features: Float, days: Float, happened: NDArray[np.bool_], edges: Float
) -> CoxHazard:  # fmt: skip
    exposure, interval = exposure_and_interval(np.maximum(days, 0), edges)
    inside = happened & (interval < len(edges) - 1)
    weight = drawn.weight / drawn.weight.mean() * len(np.unique(drawn.row)) / len(drawn.row)
    base = base_log_hazard(exposure, np.where(inside, interval, 0), inside, weight)
    return CoxHazard.fit(features, exposure, np.where(inside, interval, -1), weight, base)


def fit_correction(drawn: Landmarks, labs: Labs, seed: int = 0) -> Float:
    """(labs, W + 1, Q): how far each interval between two quantiles is widened, or narrowed, from held-back people.

    Conformalised quantile regression (Romano, Patterson and Candes 2019, NeurIPS 32) for each pair of levels that lie
    evenly about the median. One landmark a subject, and of each subject one value, drawn at random, for each lab and
    window: the rank counts people. Where a window has fewer than ENOUGH, the lab's in all windows stand in; failing
    that, all labs'.
    """
    own = drawn.own(labs)
    fitted = labs.shifts(own, drawn.context, drawn.query, drawn.lab)
    window = labs.window(own, drawn.days)
    out = np.zeros_like(labs.correction)
    mixed = np.random.default_rng(seed).permutation(len(drawn.value))

    def of(here: NDArray[np.bool_]) -> Index:
        """One row of each subject among these."""
        rows = mixed[here[mixed]]
        return rows[np.unique(drawn.query[rows], return_index=True)[1]]

    def widened(rows: Index, otherwise: Float) -> Float:
        return widening(fitted[rows], drawn.value[rows]) if len(rows) >= ENOUGH else otherwise

    everyone = widened(of(np.ones(len(mixed), bool)), np.zeros(len(LEVELS)))
    for lab in range(out.shape[0]):
        mine = drawn.lab == lab
        whole = widened(of(mine), everyone)
        for w in range(out.shape[1]):
            out[lab, w] = widened(of(mine & (window == w)), whole)
    return out


def widening(quantiles: Float, value: Float) -> Float:
    """(Q,) what is added to each quantile (n, Q), in units of their range, so that each pair covers what it says.

    A pair's width is set by the ceil((n + 1) c)-th smallest distance of a value from the pair, c its coverage; a value
    inside has a negative one. All 0 where there are fewer than ENOUGH values.

    >>> low_and_high = np.tile(np.linspace(-1.0, 1.0, len(LEVELS)), (199, 1))
    >>> added = widening(low_and_high, np.linspace(-2.0, 2.0, 199))
    >>> [round(float(x), 2) for x in (added[0], added[LEVELS.index(0.5)], added[-1])]
    [-0.41, 0.0, 0.41]
    """
    n = len(value)
    out = np.zeros(len(LEVELS))
    if n < ENOUGH:
        return out
    width = quantiles[:, -1] - quantiles[:, 0]
    for low in range(LEVELS.index(0.5)):
        high = len(LEVELS) - 1 - low
        outside = np.maximum(quantiles[:, low] - value, value - quantiles[:, high]) / width
        rank = int(np.ceil((n + 1) * (LEVELS[high] - LEVELS[low]) - 1e-9))
        out[high] = np.sort(outside)[min(rank, n) - 1]
        out[low] = -out[high]
    return out
