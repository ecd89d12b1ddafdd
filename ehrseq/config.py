"""Frozen configuration: every default is here, and every default lands in the artifact."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from ehrseq.errors import UserError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the sequence network and what it reads.

    `max_events` bounds the history of one forecast: the most recent events are kept. Codes seen in fewer than
    `min_subjects` training subjects are not learned (they identify people).
    """

    width: int = 64
    layers: int = 3
    heads: int = 4
    dropout: float = 0.2
    summary_dropout: float = 0.2
    intervals: int = 10
    value_bins: int = 10
    min_subjects: int = 10
    max_events: int = 512
    summary_codes: int = 64


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is fitted.

    `landmarks_per_subject` prediction times are drawn anew each epoch, uniformly over the subject's follow-up.
    Training stops after `patience` epochs without a better tuning likelihood, and keeps the best weights.
    """

    max_epochs: int = 10
    patience: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 50
    gradient_clip: float = 1.0
    landmarks_per_subject: int = 5
    tuning_landmarks_per_subject: int = 8
    tokens_per_batch: int = 8192
    members: int = 1


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a progression model."""

    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Every setting, written out."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ModelConfig:
        """A configuration from its dictionary form; unknown keys are refused.

        >>> ModelConfig.from_dict({"network": {"width": 32}}).network.width
        32
        >>> ModelConfig.from_dict({"network": {"widht": 32}})
        Traceback (most recent call last):
        ehrseq.errors.UserError: expected a setting of NetworkConfig; found 'widht'; did you mean 'width'?
        """
        content = dict(content)
        network = from_mapping(NetworkConfig, content.pop("network", {}))
        training = from_mapping(TrainingConfig, content.pop("training", {}))
        return from_mapping(cls, {**content, "network": network, "training": training})


def from_mapping(kind: type[T], content: dict[str, Any]) -> T:
    """A frozen dataclass from a mapping; an unknown key is a UserError that names the nearest known one."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise UserError(f"a setting of {kind.__name__}", f"'{key}'", nearest(key, known))
    return kind(**content)
