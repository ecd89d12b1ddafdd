"""Level and slope of log hazards, set after fitting.

The members of an ensemble are averaged as log hazards, networks are fitted under dropout, trees are stopped early: each
leaves the number of expected events a little off, or the differences between people too large or too small. Both are
mended on the cause-specific log hazards, so that incidences still add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from ehrseq.model.landmarks import Targets

Float = NDArray[np.float64]
Index = NDArray[np.int64]
LEVEL_PRIOR = 100  # landmarks with an event that draw an interval's level to the hazard's
WORTH_IT = 2.0  # events' worth of log-likelihood that a slope must gain (what two free parameters gain by chance)
SLOPES = (0.5, 2.0)


@dataclass(frozen=True)
class Outcomes:
    """What happened to Q queries: exposure (Q, H, I) days, event interval (Q, H) or -1, weight (Q,) of mean 1."""

    exposure: Float
    interval: Index
    weight: Float
    landmarks_per_subject: int

    @classmethod
    def of(cls, target: Targets, edges: Float, landmarks_per_subject: int) -> Outcomes:
        """The targets on the intervals of `edges`."""
        pairs = [target.person_intervals(h, edges) for h in range(target.days.shape[1])]
        weight = target.weight / max(float(target.weight.mean()), 1e-12)
        exposure, interval = (np.stack(column, axis=1) for column in zip(*pairs, strict=True))
        return cls(exposure, interval, weight, landmarks_per_subject)

    def loss(self, log_hazard: Float, hazard: int) -> float:
        """Negative log-likelihood of one hazard, (Q, I) log hazards per day, in units of subjects."""
        interval = self.interval[:, hazard]
        happened = np.flatnonzero(interval >= 0)
        expected = (np.exp(log_hazard) * self.exposure[:, hazard]).sum(1) @ self.weight
        observed = log_hazard[happened, interval[happened]] @ self.weight[happened]
        return float(expected - observed) / self.landmarks_per_subject

    def counts(self, log_hazard: Float) -> tuple[Float, Float]:
        """Observed and expected events, each (H, I), for log hazards (Q, H, I)."""
        expected = np.einsum("q,qhi,qhi->hi", self.weight, np.exp(log_hazard), self.exposure)
        observed = np.zeros_like(expected)
        for h in range(len(observed)):
            happened = np.flatnonzero(self.interval[:, h] >= 0)
            np.add.at(observed[h], self.interval[happened, h], self.weight[happened])
        return observed, expected


@dataclass(frozen=True)
class Adjustment:
    """log hazard -> slope (H,) * log hazard + shift (H, I)."""

    slope: Float
    shift: Float

    def apply(self, log_hazard: Float) -> Float:
        """(..., H, I) to the same shape."""
        return np.asarray(self.slope[:, None] * log_hazard + self.shift)

    def then(self, later: Adjustment) -> Adjustment:
        """Both, one after the other."""
        return Adjustment(later.slope * self.slope, later.slope[:, None] * self.shift + later.shift)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"slope": self.slope.tolist(), "shift": self.shift.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Adjustment:
        """What `to_dict` wrote."""
        return cls(np.asarray(content["slope"], dtype=np.float64), np.asarray(content["shift"], dtype=np.float64))

    @classmethod
    def none(cls, n_hazards: int, n_intervals: int) -> Adjustment:
        """One that changes nothing."""
        return cls(np.ones(n_hazards), np.zeros((n_hazards, n_intervals)))


def fit_level(samples: Sequence[tuple[Float, Outcomes]], prior_events: float = 0.0) -> Adjustment:
    """Expected events equal to the observed ones over all samples of (log hazards (Q, H, I), outcomes).

    The shift of a hazard is its maximum-likelihood intercept (drawn to none by `prior_events` subjects with an event),
    and that of each interval, drawn to the former.
    """
    pairs = [(np.array(o.counts(log_hazard)), o) for log_hazard, o in samples]
    # in units of landmarks: the samples' subjects count alike, however many landmarks each has in a sample
    observed, expected = np.sum([counts / o.landmarks_per_subject for counts, o in pairs], axis=0)
    prior = LEVEL_PRIOR / max(o.landmarks_per_subject for _, o in pairs)
    some = observed.sum(1, keepdims=True) > 0
    some = some | (prior_events > 0)
    seen, awaited = (x.sum(1, keepdims=True) + prior_events for x in (observed, expected))
    level = np.where(some, seen, 1) / np.where(some, awaited, 1)
    shift = np.log(level) + np.where(some, np.log((observed + prior) / (level * expected + prior)), 0)
    return Adjustment(np.ones(len(shift)), shift)


def fit_slope(log_hazard: Float, outcomes: Outcomes) -> Adjustment:
    """Slope and intercept of each log hazard on held-back people, (Q, H, I), where they are worth it; else nothing."""
    n_hazards, n_intervals = log_hazard.shape[1:]
    slope, shift = np.ones(n_hazards), np.zeros((n_hazards, n_intervals))
    for h in range(n_hazards):
        own = log_hazard[:, h]
        happened = outcomes.interval[:, h] >= 0
        if not happened.any():
            continue
        centre = np.average(own, axis=0, weights=outcomes.weight)
        events = float(outcomes.weight[happened].sum())

        def steeper(b: float, own: Float = own, centre: Float = centre, h: int = h, events: float = events) -> Float:
            bent = centre + b * (own - centre)
            expected = (np.exp(bent) * outcomes.exposure[:, h]).sum(1) @ outcomes.weight
            return np.asarray(bent + np.log(events / expected))

        found = minimize_scalar(
            lambda b, h=h, steeper=steeper: outcomes.loss(steeper(b), h), bounds=SLOPES, method="bounded",
            options={"xatol": 1e-3},
        )  # fmt: skip
        if outcomes.loss(own, h) - found.fun > WORTH_IT:
            slope[h] = found.x
            shift[h] = (steeper(found.x) - found.x * own)[0]
    return Adjustment(slope, shift)


def blend_weight(transformer: Float, boosted: Float, outcomes: Outcomes) -> Float:
    """(H,) weight of the boosted log hazards in the hybrid: between a quarter and three quarters.

    .25 + .5 w, with w in [0, 1] the weight of least tuning loss: one split's best weight is uncertain, and both
    branches together have been better than either.
    """
    grid = np.linspace(0, 1, 21)
    out = np.empty(transformer.shape[1])
    for h in range(len(out)):
        if not (outcomes.interval[:, h] >= 0).any():
            out[h] = 0.5  # without an event, the branch that forecasts less would win
            continue
        losses = [outcomes.loss((1 - w) * transformer[:, h] + w * boosted[:, h], h) for w in grid]
        out[h] = 0.25 + 0.5 * grid[int(np.argmin(losses))]
    return out
