"""Level and slope of a fitted model for another site, with what they give for subjects who did not set them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ehrseq.model.adjustment import Adjustment, Outcomes, fit_level, fit_slope
from ehrseq.model.fitted import Fitted
from ehrseq.model.sample import Labeller, Part
from ehrseq.task.definition import Task
from ehrseq.task.outcome import occurrences
from ehrseq.timeline.store import Timelines

Float = NDArray[np.float64]
LANDMARKS = 8  # a subject
SITE_PRIOR = 5.0  # expected events by which a site's level is drawn to the model's: a small site stays near it


def recalibrate(fitted: Fitted, timelines: Timelines, task: Task, *, max_events: int, seed: int) -> Fitted:
    """The model with level and slope of each branch set on the follow-up of these subjects, and before and after.

    The networks and trees stay as they are. `recalibrated` has a row for each branch and outcome (`round` counts the
    recalibrations): events observed over the follow-up from `LANDMARKS` prediction times a subject (each counts as that
    share of one), events expected before and after, and the negative log-likelihood a subject. "After" is judged by
    halves: each half of the subjects with the level and slope that the other half set.
    """
    part = Part.prepare(timelines, fitted.vocabulary, "the new site")
    none = np.empty(0, dtype=np.int64)
    labeller = Labeller(occurrences(timelines, task), timelines.subjects, task, fitted.hazards, none)
    drawn = part.draw(np.random.default_rng([seed, 4]), LANDMARKS, labeller)
    raw = fitted.raw(part.encoded, drawn.row, drawn.time, max_events=max_events)
    raw = {branch: members.mean(0, keepdims=True) for branch, members in raw.items()}
    halves = np.random.default_rng([seed, 5]).random(len(part.start)) < 0.5
    half = halves[drawn.row]
    everything = Outcomes.of(drawn.target, fitted.edges, LANDMARKS)

    one, other = (_settle(fitted, raw, everything, rows) for rows in (half, ~half))
    rows = []
    made = 1 + max((row["round"] for row in fitted.recalibrated), default=0)
    for branch in fitted.branches:
        before = fitted.combine(raw, branch)[0]
        after = np.where(half[:, None, None], other.combine(raw, branch)[0], one.combine(raw, branch)[0])
        counts = [np.array(everything.counts(log_hazard)).sum(2) / LANDMARKS for log_hazard in (before, after)]
        for h, hazard in enumerate(fitted.hazards):
            if hazard.competing:
                continue
            losses = [everything.loss(log_hazard[:, h], h) / len(part.start) for log_hazard in (before, after)]
            observed, before_, after_ = counts[0][0, h], counts[0][1, h], counts[1][1, h]
            rows.append(
                {
                    "round": made, "branch": branch, "outcome": hazard.outcome, "subjects": len(part.start),
                    "observed": float(observed), "expected_before": float(before_), "expected_after": float(after_),
                    "loss_before": losses[0], "loss_after": losses[1],
                }
            )  # fmt: skip
    whole = _settle(fitted, raw, everything, np.ones(len(half), bool))
    return replace(whole, recalibrated=[*fitted.recalibrated, *rows])


def _settle(fitted: Fitted, raw: dict[str, Float], outcomes: Outcomes, rows: NDArray[np.bool_]) -> Fitted:
    """The model with each part's level and slope set on some rows; the hybrid follows from its parts."""
    mine = Outcomes(outcomes.exposure[rows], outcomes.interval[rows], outcomes.weight[rows], LANDMARKS)
    some = {branch: log_hazard[:, rows] for branch, log_hazard in raw.items()}
    new = replace(fitted, adjustments=dict(fitted.adjustments))
    for branch in (name for name in fitted.branches if name != "hybrid"):  # which is made of two of these
        now = fitted.combine(some, branch)[0]
        slope = fit_slope(now, mine)
        # a slope comes with a level of its own: taken out, so that the prior draws to the model's
        before, after = (mine.counts(log_hazard)[1].sum(1, keepdims=True) for log_hazard in (now, slope.apply(now)))
        changed = np.log(np.where(before > 0, after, 1) / np.where(before > 0, before, 1))
        step = Adjustment(slope.slope, slope.shift - changed)
        level = fit_level([(step.apply(now), mine)], SITE_PRIOR)
        new.adjustments[branch] = fitted.adjustments[branch].then(step).then(level)
    return new
