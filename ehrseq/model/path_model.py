"""Head B: when something is next known of a subject, which codes, and with which values.

Codes come in moments: a visit brings several at once. Hazards of single codes would send them one by one, and each
would reset the time since the last visit, so that a path had too few of all. Hence the next *moment* has a hazard, and
its codes are drawn together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehrseq.model.code_state import CodeState
from ehrseq.tokens.vocabulary import Vocabulary

Float = NDArray[np.float64]
Index = NDArray[np.int64]
Emitted = dict[str, list[tuple[str, float]]]
VALUE_TERMS = 7
ARRAYS = (
    "edges", "hazard", "marks", "own", "chain", "coefficient", "residual", "share", "bounds", "level", "moment_level",
)  # fmt: skip


@dataclass(frozen=True)
class PathModel:
    """What a path is made of besides the hazards of outcomes: C codes, in moments with a hazard on B intervals.

    `scales` (C,): which of the vocabulary's value scales a code's numbers are on, -1 for none. `emitted`: of each
    outcome that is drawn as an event, its codes with weights. F features describe a path at a moment: the network's
    representation, the query's times, which of the codes are known just now, and 1.

    edges (B + 1,) days; hazard (F, B): log hazard of the next moment. marks (F + 2, C), own (3, C), chain (C, C):
    logits of the codes at the moment, from the features and the log of the wait and its square; from how often and
    how long ago the code was; from the codes before it. coefficient (7, C), residual (2, K, C): mean and quantiles of
    a value without and with an earlier one; share (C,) of events with a value; bounds (2, C) of values.
    level, moment_level (H, I): what sets the first network's log hazards right at any time, and at moments.
    """

    codes: tuple[str, ...]
    scales: tuple[int, ...]
    emitted: Emitted
    edges: Float
    hazard: Float
    marks: Float
    own: Float
    chain: Float
    coefficient: Float
    residual: Float
    share: Float
    bounds: Float
    level: Float
    moment_level: Float

    def log_hazard(self, features: Float) -> Float:
        """(..., B) log hazard per day of the next moment, from features (..., F)."""
        return np.asarray(features @ self.hazard)

    def draw_codes(self, features: Float, wait: Float, state: CodeState, time: Index, uniform: Float) -> Any:
        """(..., C) which codes the moment at `time` has, `wait` (...) days after the features; none is possible."""
        logit = mark_terms(features, wait) @ self.marks + (own_terms(state, time) * self.own).sum(-2)
        drawn = np.zeros(uniform.shape, dtype=bool)
        threshold = np.log(uniform) - np.log1p(-uniform)
        for c in range(len(self.codes)):
            drawn[..., c] = logit[..., c] + drawn[..., :c] @ self.chain[:c, c] > threshold[..., c]
        return drawn

    def draw_values(self, state: CodeState, time: Index, uniform: Float) -> Float:
        """(..., C) a scaled value of each code measured at `time`, NaN where it comes without one."""
        earlier = (state.valued > 0).astype(np.int64)
        mean = (value_terms(state, time) * self.coefficient).sum(-2)
        n = self.residual.shape[1]
        place = np.clip(uniform / np.maximum(self.share, 1e-12), 0, 1) * (n - 1)
        below = np.minimum(place.astype(np.int64), n - 2)
        code = np.arange(len(self.codes))
        low, high = self.residual[earlier, below, code], self.residual[earlier, below + 1, code]
        value = np.clip(mean + low + (place - below) * (high - low), self.bounds[0], self.bounds[1])
        return np.where(uniform < self.share, value, np.nan)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    def to_dict(self) -> dict[str, Any]:
        """The rest, as JSON values."""
        emitted = {name: [[code, weight] for code, weight in codes] for name, codes in self.emitted.items()}
        return {"codes": list(self.codes), "scales": list(self.scales), "emitted": emitted}

    @classmethod
    def from_parts(cls, content: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> PathModel:
        """What `to_dict` and `arrays` gave."""
        emitted = {name: [(str(c), float(w)) for c, w in codes] for name, codes in content["emitted"].items()}
        own = {name: np.asarray(arrays[name], dtype=np.float64) for name in ARRAYS}
        return cls(tuple(content["codes"]), tuple(int(s) for s in content["scales"]), emitted, **own)


def tracked_codes(vocabulary: Vocabulary, codes: tuple[str, ...]) -> tuple[str, ...]:
    """The codes of the summary, then the others of `codes`."""
    return (*vocabulary.summary_codes, *(c for c in codes if c not in vocabulary.summary_codes))


def features_of(represented: Float, times: Float, state: CodeState, time: Index) -> Float:
    """(..., F) from the representation (..., width), the scaled times (..., 6) and the state of the C codes."""
    days = state.years(time) * 365.25
    just_now = np.where(state.count > 0, np.exp(-days), 0.0)
    return np.concatenate([represented, times, just_now, np.ones((*time.shape, 1))], axis=-1)


def mark_terms(features: Float, wait: Float) -> Float:
    """(..., F + 2): the features, and the log of the wait in days with its square."""
    u = np.log1p(wait)[..., None] / 4
    return np.concatenate([features, u, u**2], axis=-1)


def own_terms(state: CodeState, time: Index) -> Float:
    """(..., 3, C) of each code: whether it was ever seen, log of how often, and how recently."""
    seen = state.count > 0
    recency = np.where(seen, 1 / (1 + state.years(time)), 0)
    return np.stack([seen, np.log1p(state.count), recency], axis=-2).astype(np.float64)


def value_terms(state: CodeState, time: Index) -> Float:
    """(..., 7, C): 1; of codes with an earlier value: 1, the last value and the level (the mean, drawn to the code's
    middle by one value's weight), and the same three less with the years since."""
    has = (state.valued > 0).astype(np.float64)
    level = state.total / (state.valued + 1)
    since = np.log1p(state.years(time)) * has
    return np.stack([np.ones_like(has), has, state.value, level, since, since * state.value, since * level], axis=-2)
