"""Lab forecasts: everything that was fitted for them, and the answers it gives. They leave the hazards untouched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ehrseq.config import from_mapping
from ehrseq.features.labs import LEVEL, NAMES, SEEN, LabEvents, LabScale
from ehrseq.features.summary import OVERALL
from ehrseq.model.artifact import load_weights
from ehrseq.model.cox import CoxHazard
from ehrseq.model.lab_baselines import LabBaselines
from ehrseq.model.lab_network import LabNetwork

Index = NDArray[np.int64]
Float = NDArray[np.float64]
# what evaluation compares (.05, .1 to .9, .95) and the quartiles of the output contract
LEVELS = (0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95)
MEASURING = [NAMES.index(name) for name in ("level", "seen", "count", "recency", "span")]
ROWS = 65_536  # answered at once
ENOUGH = 100  # values whose order statistics correct a quantile


@dataclass(frozen=True)
class Labs:
    """What was fitted for the labs of a task.

    `scales` are the labs that can be forecast, `withheld` says why others cannot. Times ahead are in parts of `span`
    days; `windows` (W + 1,) days bound the times ahead that are corrected together, and `supported` (labs,) is how far
    ahead enough values were seen. `correction` (labs, W + 1, Q) is added to the quantiles in units of the distance from
    the first to the last of them; its last window is for labs that the subject never had. `measuring` holds the hazard
    of the next value of each lab and `dying` that of death, on `edges` (I + 1,) days.
    """

    scales: tuple[LabScale, ...]
    withheld: dict[str, str]
    span: float
    windows: Float
    supported: Float
    networks: list[LabNetwork]
    correction: Float
    edges: Float
    measuring: list[CoxHazard]
    dying: CoxHazard
    baselines: LabBaselines | None

    def features(self, events: LabEvents, subject: Index, time: Index, lab: Index, days: Float) -> Float:
        """(n, own) what the networks read of the lab itself and of the time ahead."""
        return with_times(events.features(subject, time, lab, self.span), days, self.span)

    def shifts(self, own: Float, context: Float, query: Index, lab: Index) -> Float:
        """(n, Q) quantiles on the labs' scales as fitted; `context` (queries, F), of which row n reads `query[n]`."""
        out = np.zeros((len(lab), len(LEVELS)))
        with torch.inference_mode():
            for start in range(0, len(lab), ROWS):
                some = slice(start, start + ROWS)
                inputs = (
                    torch.from_numpy(own[some].astype(np.float32)),
                    torch.from_numpy(context[query[some]].astype(np.float32)),
                    torch.from_numpy(lab[some]),
                )
                for network in self.networks:
                    out[some] += network(*inputs).double().numpy() / len(self.networks)
        return out + own[:, LEVEL, None]

    def window(self, own: Float, days: Float) -> Index:
        """(n,) which correction applies."""
        n = len(self.windows) - 1
        return np.where(own[:, SEEN] > 0, window_of(days, self.windows), n)

    def quantiles(self, own: Float, context: Float, query: Index, lab: Index, days: Float) -> Float:
        """(n, Q) corrected quantiles in each lab's unit; NaN further ahead than the training data reach."""
        out = corrected(self.shifts(own, context, query, lab), self.correction[lab, self.window(own, days)])
        for i, scale in enumerate(self.scales):
            out[lab == i] = scale.number(out[lab == i])
        out[days > self.supported[lab]] = np.nan
        return out

    def log_hazards(self, course: Float, context: Float) -> Iterator[Float]:
        """(Q, I) log hazards per day at Q queries: of death, then of the next value of each lab.

        `course` (Q, labs, F) are the labs' own features, without times ahead.
        """
        yield self.dying.log_hazard(context)
        for lab, hazard in enumerate(self.measuring):
            yield hazard.log_hazard(measuring_features(course[:, lab], context))

    def parts(self) -> dict[str, Any]:
        """What is stored as JSON; the networks' weights are arrays, and stored apart."""
        return {
            "scales": [asdict(s) for s in self.scales], "withheld": self.withheld, "levels": list(LEVELS),
            "span": self.span, "windows": self.windows.tolist(), "supported": self.supported.tolist(),
            "correction": self.correction.tolist(), "edges": self.edges.tolist(),
            "measuring": [h.to_dict() for h in self.measuring], "dying": self.dying.to_dict(),
            "baselines": None if self.baselines is None else self.baselines.to_dict(),
        }  # fmt: skip

    def arrays(self) -> list[dict[str, NDArray[Any]]]:
        """The weights of each network."""
        return [{name: w.numpy() for name, w in network.state_dict().items()} for network in self.networks]

    @classmethod
    def from_parts(cls, parts: dict[str, Any], arrays: list[dict[str, NDArray[Any]]]) -> Labs:
        """What `parts` and `arrays` described. KeyError, TypeError, ValueError where they do not fit."""
        if tuple(parts["levels"]) != LEVELS:
            raise ValueError("other quantiles")
        scales = tuple(from_mapping(LabScale, s) for s in parts["scales"])
        networks = []
        for weights in arrays:
            n_own, n_context = weights["own.weight"].shape[1], weights["context.weight"].shape[1]
            network = LabNetwork(len(scales), n_own, n_context, len(weights["own.bias"]), LEVELS)
            load_weights(network, {name: torch.from_numpy(w) for name, w in weights.items()})
            networks.append(network.eval())
        number = {name: np.asarray(parts[name], dtype=np.float64)
                  for name in ("windows", "supported", "correction", "edges")}  # fmt: skip
        return cls(
            scales=scales, withheld=dict(parts["withheld"]), span=float(parts["span"]), networks=networks,
            measuring=[CoxHazard.from_dict(h) for h in parts["measuring"]], dying=CoxHazard.from_dict(parts["dying"]),
            baselines=None if parts["baselines"] is None else LabBaselines.from_dict(parts["baselines"]),
            **number,
        )  # fmt: skip


def with_times(own: Float, days: Float, span: float) -> Float:
    """The lab's features with the time ahead: its logarithm, its root, and itself, in parts of `span` days."""
    part = days / span
    return np.column_stack([own, np.log(part + 1e-3), np.sqrt(part), part])


def window_of(days: Float, windows: Float) -> Index:
    """The window of each time ahead; beyond the last one, the last one.

    >>> window_of(np.array([10.0, 365.0, 4000.0]), np.array([0.0, 365.0, 730.0])).tolist()
    [0, 0, 1]
    """
    return np.searchsorted(windows[1:-1], days, side="left").astype(np.int64)


def corrected(quantiles: Float, correction: Float) -> Float:
    """Quantiles (n, Q) with corrections (n, Q) in units of their own range, in rising order."""
    return np.asarray(np.sort(quantiles + correction * (quantiles[:, -1:] - quantiles[:, :1]), axis=1))


def measuring_features(own: Float, context: Float) -> Float:
    """(Q, F) what says when a lab is measured next: its level and past times, age, and how dense the record is.

    `context` (Q, F) is `ehrseq.model.fitted.linear_features`, which begins with age and its square. Slopes are left
    out: nothing bounds them, and a hazard is exponential in what it reads.
    """
    return np.column_stack([own[:, MEASURING], context[:, :2], context[:, -OVERALL:]])
