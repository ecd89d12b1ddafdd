"""What a lab forecast is compared with: the last value carried forward, and a straight line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.config import from_mapping
from ehrseq.features.labs import LAST, LEVEL, NAMES, LabEvents, LabScale

Index = NDArray[np.int64]
Float = NDArray[np.float64]
TERMS = 5
KINDS = ("linear", "carried_forward")


@dataclass(frozen=True)
class LabBaselines:
    """By kind, a line of what is known of a lab, in its unit, and the quantiles of what the line left over.

    `scales` are without logarithms. coefficients (labs, W, 5) of 1, the last value, the mean, the mean drawn to the
    population's, and age; rest (labs, W, Q); W windows of time ahead.
    """

    scales: tuple[LabScale, ...]
    coefficients: dict[str, Float]
    rest: dict[str, Float]

    @classmethod
    def fit(
        cls, events: LabEvents, subject: Index, time: Index, age: Float, row: tuple[Index, Index, Index, Float],
        n_windows: int, levels: tuple[float, ...], span: float,
    ) -> LabBaselines:  # fmt: skip
        """From landmarks (subject, time, age) and the values after them: `row` is query, lab, window and value."""
        query, lab, window, value = row
        features = _terms(events, subject[query], time[query], lab, age[query], span)
        centre, spread = (np.array([getattr(s, name) for s in events.scales]) for name in ("centre", "spread"))
        number = centre[lab] + spread[lab] * value
        shape = (len(events.scales), n_windows)
        coefficients = {kind: np.tile(np.eye(TERMS)[1], (*shape, 1)) for kind in KINDS}
        rest = {kind: np.zeros((*shape, len(levels))) for kind in KINDS}
        for i in range(shape[0]):
            for w in range(n_windows):
                here = (lab == i) & (window == w)
                if here.sum() < 2 * TERMS:
                    here = lab == i
                x, y = features[here], number[here]
                coefficients["linear"][i, w] = np.linalg.lstsq(x, y)[0]
                for kind in KINDS:
                    rest[kind][i, w] = np.quantile(y - x @ coefficients[kind][i, w], levels)
        return cls(events.scales, coefficients, rest)

    def quantiles(
        self, kind: str, events: pl.DataFrame, subject_id: Index, subject: Index, time: Index, lab: Index, age: Float,
        window: Index, span: float,
    ) -> Float:  # fmt: skip
        """(n, Q) in each lab's unit, for n rows of subject (of `subject_id`), time, lab, age and window."""
        read = LabEvents.of(events, subject_id, self.scales)
        features = _terms(read, subject, time, lab, age, span)
        middle = (features * self.coefficients[kind][lab, window]).sum(1)
        return np.asarray(middle[:, None] + self.rest[kind][lab, window])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        arrays = {name: {k: a.tolist() for k, a in getattr(self, name).items()} for name in ("coefficients", "rest")}
        return {"scales": [asdict(s) for s in self.scales], **arrays}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> LabBaselines:
        """What `to_dict` wrote."""
        scales = tuple(from_mapping(LabScale, s) for s in content["scales"])
        coefficients, rest = (
            {k: np.asarray(a, dtype=np.float64) for k, a in content[name].items()} for name in ("coefficients", "rest")
        )
        return cls(scales, coefficients, rest)


def _terms(events: LabEvents, subject: Index, time: Index, lab: Index, age: Float, span: float) -> Float:
    """(n, 5), in each lab's unit."""
    own = events.features(subject, time, lab, span)
    prior, centre, spread = (
        np.array([getattr(s, name) for s in events.scales])[lab] for name in ("prior", "centre", "spread")
    )
    n = np.expm1(own[:, NAMES.index("count")])
    mean = own[:, LEVEL] * (1 + prior / np.maximum(n, 1))
    values = np.column_stack([own[:, LEVEL] + own[:, LAST], mean, own[:, LEVEL]])
    return np.column_stack([np.ones(len(lab)), centre[:, None] + spread[:, None] * values, age])
