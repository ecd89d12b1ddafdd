"""Everything that `fit` learned, and the log hazards of its branches."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehrseq.config import NetworkConfig
from ehrseq.features.summary import summarise
from ehrseq.features.tabular import Tabulator
from ehrseq.model.adjustment import Adjustment
from ehrseq.model.artifact import Artifact, load_weights
from ehrseq.model.baselines import HazardBaseline
from ehrseq.model.boosted import BoostedHazard, BoostedHazards
from ehrseq.model.cox import CoxHazard
from ehrseq.model.ensemble import Ensemble
from ehrseq.model.heads import HazardName
from ehrseq.model.inference import predict_log_hazards
from ehrseq.model.labs import Labs
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.path_model import PathModel
from ehrseq.model.profile import Profile
from ehrseq.model.sample import history_of
from ehrseq.model.trees import Trees
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, EncodedTimelines
from ehrseq.tokens.vocabulary import Vocabulary

Index = NDArray[np.int64]
Float = NDArray[np.float64]
HYBRID = ("transformer", "boosted")


@dataclass(frozen=True)
class Fitted:
    """Everything that `fit` learned.

    A branch is a way from history to log hazards: `transformer` (the networks), `boosted`, `cox`, and `hybrid`, which
    blends the first two with weight `blend` (H,) on the boosted. `adjustments` sets level and slope of each.
    `recalibrated` has what setting them again for another site gave. `data_hash` is that of the data first fitted on.
    `labs` are None where the task names none, and in folders of format versions before 3, which have no `paths` either.
    `profile` is what the training subjects looked like, for drift; folders written before there was one have none.
    """

    vocabulary: Vocabulary
    edges: Float
    hazards: list[HazardName]
    auxiliary: tuple[str, ...]
    networks: list[ProgressionNetwork]
    boosted: list[BoostedHazard]
    cox: list[CoxHazard]
    adjustments: dict[str, Adjustment]
    blend: Float
    baselines: dict[str, dict[str, HazardBaseline]]
    supported_days: dict[str, float]
    events: dict[str, int]
    history: list[list[float]]
    data_hash: str
    recalibrated: list[dict[str, Any]] = field(default_factory=list)
    paths: PathModel | None = None  # of the first network; none without one
    labs: Labs | None = None
    profile: Profile | None = None

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that can answer, the best first."""
        return tuple(name for name in ("hybrid", *HYBRID, "cox") if name in self.adjustments)

    @property
    def outcomes(self) -> list[str]:
        """The outcomes that can be forecast."""
        return [h.outcome for h in self.hazards if not h.competing]

    @cached_property
    def _ensemble(self) -> Ensemble:
        return Ensemble(self.networks)

    @cached_property
    def _boosted(self) -> BoostedHazards:
        return BoostedHazards(self.boosted)

    def raw(
        self, encoded: EncodedTimelines, row: Index, time: Index, *, max_events: int, branch: str | None = None
    ) -> dict[str, Float]:
        """(M, Q, H, I) log hazards per day at Q queries, as they were fitted, of all parts or those of one branch."""
        wanted = HYBRID if branch == "hybrid" else (*HYBRID, "cox") if branch is None else (branch,)
        out: dict[str, Float] = {}
        if "transformer" in wanted and self.networks:
            out["transformer"] = predict_log_hazards(
                self._ensemble, encoded, row, time, max_events=max_events,
                n_summary_codes=len(self.vocabulary.summary_codes),
            )  # fmt: skip
        if "boosted" in wanted and self.boosted:
            rows = Tabulator(history_of(encoded, self.vocabulary)).rows(row, time)
            out["boosted"] = self._boosted.log_hazard(rows)[None]
        if "cox" in wanted and self.cox:
            features = linear_features(encoded, self.vocabulary, row, time)
            out["cox"] = np.stack([hazard.log_hazard(features) for hazard in self.cox], axis=1)[None]
        return out

    def combine(self, raw: dict[str, Float], branch: str) -> Float:
        """Adjusted log hazards of a branch from those of its parts, (M, Q, H, I)."""
        if branch != "hybrid":
            return self.adjustments[branch].apply(raw[branch])
        transformer, boosted = (self.adjustments[name].apply(raw[name]) for name in HYBRID)
        blend = self.blend[:, None]
        return self.adjustments["hybrid"].apply((1 - blend) * transformer + blend * boosted)

    def log_hazards(self, encoded: EncodedTimelines, row: Index, time: Index, *, max_events: int, branch: str) -> Float:
        """(M, Q, H, I) adjusted log hazards per day of a branch's members at Q queries."""
        return self.combine(self.raw(encoded, row, time, max_events=max_events, branch=branch), branch)

    def parts(self) -> dict[str, Any]:
        """The parts of a model folder that are JSON; networks and trees are arrays, and stored apart."""
        return {
            "vocabulary": self.vocabulary.to_dict(),
            "baselines": {k: {o: b.to_dict() for o, b in v.items()} for k, v in self.baselines.items()},
            "training": {
                "edges": self.edges.tolist(), "hazards": [[h.outcome, h.competing] for h in self.hazards],
                "auxiliary": list(self.auxiliary), "supported_days": self.supported_days, "events": self.events,
                "history": self.history,
            },
            "calibration": {
                "adjustments": {name: a.to_dict() for name, a in self.adjustments.items()},
                "blend": self.blend.tolist(), "cox": [c.to_dict() for c in self.cox],
                "recalibrated": self.recalibrated,
                "boosted": [{"linear": b.linear.to_dict(), "period": b.period.tolist()} for b in self.boosted],
            },
            **({} if self.paths is None else {"paths": self.paths.to_dict()}),
            **({} if self.labs is None else {"labs": self.labs.parts()}),
            **({} if self.profile is None else {"profile": self.profile.to_dict()}),
        }  # fmt: skip

    @classmethod
    def from_parts(cls, artifact: Artifact, config: NetworkConfig) -> Fitted:
        """What `parts` and the arrays beside it described. KeyError, TypeError, ValueError where they do not fit."""
        parts = artifact.parts
        training, settings = parts["training"], parts["calibration"]
        hazards = [HazardName(str(o), bool(c)) for o, c in training["hazards"]]
        edges = np.asarray(training["edges"], dtype=np.float64)
        adjustments = {name: Adjustment.from_dict(a) for name, a in settings.get("adjustments", {}).items()}
        if not settings:  # format version 1: one branch, its level set in the network itself
            adjustments = {"transformer": Adjustment.none(len(hazards), len(edges) - 1)}
        boosted = [
            BoostedHazard(CoxHazard.from_dict(b["linear"]), Trees.from_arrays(trees), np.asarray(b["period"]))
            for b, trees in zip(settings.get("boosted", []), artifact.boosted, strict=True)
        ]
        vocabulary = Vocabulary.from_dict(parts["vocabulary"])
        auxiliary = tuple(training.get("auxiliary", ()))
        networks = []
        for weights in artifact.weights:
            network = ProgressionNetwork(vocabulary, config, len(hazards), edges, len(auxiliary))
            load_weights(network, weights)
            networks.append(network.eval())
        return cls(
            vocabulary=vocabulary, edges=edges, hazards=hazards, auxiliary=auxiliary, networks=networks,
            boosted=boosted, cox=[CoxHazard.from_dict(c) for c in settings.get("cox", [])], adjustments=adjustments,
            blend=np.asarray(settings.get("blend", np.zeros(len(hazards))), dtype=np.float64),
            baselines={
                k: {o: HazardBaseline.from_dict(b) for o, b in v.items()} for k, v in parts["baselines"].items()
            },
            supported_days=training["supported_days"], events=training["events"], history=training["history"],
            data_hash=str(artifact.facts["data_hash"]), recalibrated=list(settings.get("recalibrated", [])),
            paths=PathModel.from_parts(parts["paths"], artifact.optional["paths"][0]) if "paths" in parts else None,
            labs=Labs.from_parts(parts["labs"], artifact.optional["labs"]) if "labs" in parts else None,
            profile=Profile.from_dict(parts["profile"]) if "profile" in parts else None,
        )  # fmt: skip


def linear_features(encoded: EncodedTimelines, vocabulary: Vocabulary, row: Index, time: Index) -> Float:
    """(Q, F) what the linear model reads: the summary of each code, and age with its square."""
    n = len(vocabulary.summary_codes)
    summary = summarise(
        encoded.offset, encoded.known_time, encoded.summary_code, encoded.value, row, time, n
    ).astype(np.float64)  # fmt: skip
    age = (time - encoded.birth[row]) / (MICROSECONDS_PER_DAY * 365.25 * 10)  # decades, so that the square is tame
    return np.column_stack([age, age**2, summary])
