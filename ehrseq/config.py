"""Frozen configuration: every default is here, and every default lands in the artifact."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from operator import index
from typing import Any, TypeVar

from ehrseq.errors import UserError, nearest

T = TypeVar("T")
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": ({}, {}),
    "base": (
        {"width": 512, "layers": 8, "heads": 8, "max_events": 1024},
        {
            "learning_rate": 3e-4,
            "warmup_steps": 500,
            "tokens_per_batch": 16384,
            "max_epochs": 10,
            "members": 1,
            "bfloat16": True,
        },
    ),
    "large": (
        {"width": 1024, "layers": 9, "heads": 16, "max_events": 2048},
        {
            "learning_rate": 2e-4,
            "warmup_steps": 1000,
            "tokens_per_batch": 32768,
            "max_epochs": 10,
            "members": 1,
            "bfloat16": True,
        },
    ),
}
MODELS = ("hybrid", "transformer", "boosted", "cox", "age_sex")


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the sequence network and what it reads.

    `max_events` bounds the history of one forecast: the most recent events are kept. Codes seen in fewer than
    `min_subjects` training subjects are not learned (they identify people). `demographics` are the columns of the
    subject table that are read as static facts: any of `sex`, `race`, `ethnicity`. `gated` takes the layers of earlier
    versions, RMSNorm and SwiGLU for LayerNorm and ReLU: as accurate, and slower to train.

    >>> ModelConfig(network=NetworkConfig(width=32, layers=2)).network.max_events
    512
    """

    width: int = 96
    layers: int = 2
    heads: int = 4
    dropout: float = 0.2
    summary_dropout: float = 0.2
    intervals: int = 10
    value_bins: int = 10
    min_subjects: int = 10
    max_events: int = 512
    summary_codes: int = 64
    demographics: tuple[str, ...] = ("sex",)
    gated: bool = False


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is fitted.

    `landmarks_per_subject` prediction times are drawn anew each epoch, uniformly over the subject's follow-up.
    Training stops after `patience` epochs without a better tuning likelihood, and keeps the best weights. The next
    occurrence of each of the `auxiliary_codes` most frequent codes is learned beside the outcomes, all of them together
    with `auxiliary_weight` times the weight of one outcome. `bfloat16` halves the precision of products on a GPU.

    >>> ModelConfig(training=TrainingConfig(members=1), seed=1).training.max_epochs
    7
    """

    max_epochs: int = 7
    patience: int = 4
    learning_rate: float = 7e-4
    weight_decay: float = 0.05
    warmup_steps: int = 50
    gradient_clip: float = 1.0
    landmarks_per_subject: int = 5
    tuning_landmarks_per_subject: int = 8
    tokens_per_batch: int = 1536
    members: int = 3
    auxiliary_codes: int = 32
    auxiliary_weight: float = 2.0
    bfloat16: bool = False


@dataclass(frozen=True)
class BoostedConfig:
    """The boosted hazards: how trees are grown.

    The log hazards of `members` are averaged, each with `landmarks_per_subject` prediction times of its own; the time
    after them is seen in `periods` coarse steps. All periods with an event are used, and those of about
    `event_free_rows` prediction times without, weighted up. A leaf's value is drawn to 0 by `prior_events` expected
    events. The tuning likelihood chooses the number of trees.
    """

    members: int = 3
    landmarks_per_subject: int = 8
    periods: int = 2
    event_free_rows: int = 25_000
    max_trees: int = 140
    learning_rate: float = 0.07
    leaves: int = 12
    min_rows_per_leaf: int = 200
    prior_events: float = 20.0
    features_per_split: float = 0.5
    bins: int = 127

    def __post_init__(self) -> None:
        if not isinstance(self.members, int) or self.members < 1:
            raise UserError("at least 1 boosted member", f"{self.members}", "for none, choose model='transformer'")


@dataclass(frozen=True)
class LabConfig:
    """The forecasts of the task's labs: how their networks are fitted, after the hazards; `members` 0 fits none.

    `landmarks_per_subject` prediction times are drawn once; each pass goes over at most `rows_per_pass` of the values
    that follow them.
    """

    members: int = 2
    hidden: int = 64
    landmarks_per_subject: int = 4
    passes: int = 4
    rows_per_pass: int = 200_000
    batch_rows: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.01


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a progression model; `model` says which of `MODELS` is fitted."""

    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    boosted: BoostedConfig = BoostedConfig()
    model: str = "hybrid"
    seed: int = 0
    labs: LabConfig = LabConfig()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "seed", index(self.seed))  # one of numpy's is no JSON
        except TypeError:
            raise UserError("a whole number as seed", type(self.seed).__name__, "pass seed=0 or another") from None
        if self.model not in MODELS:
            raise UserError(f"a model: {', '.join(MODELS)}", f"'{self.model}'", nearest(self.model, MODELS))
        width, heads = self.network.width, self.network.heads
        if self.has_networks and (width < 1 or heads < 1 or width % heads):
            raise UserError("a width that the heads share", f"{width} for {heads}", "make it a multiple of the heads")

    @classmethod
    def of_size(cls, size: str, **settings: Any) -> ModelConfig:
        """The settings of one of `SIZES`: `small` is the default; `base` (25 million parameters beside the codes) and
        `large` (113 million) are for GPUs and much data, and have not been tuned.

        >>> ModelConfig.of_size("base", seed=1).network.width
        512
        """
        if size not in SIZES:
            raise UserError(f"a size: {', '.join(SIZES)}", f"'{size}'", nearest(size, SIZES))
        network, training = SIZES[size]
        return cls(NetworkConfig(**network), TrainingConfig(**training), **settings)

    @property
    def has_networks(self) -> bool:
        """Whether networks are fitted."""
        return self.model in ("hybrid", "transformer")

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
        boosted = from_mapping(BoostedConfig, content.pop("boosted", {}))
        labs = from_mapping(LabConfig, content.pop("labs", {}))
        sections = {"network": network, "training": training, "boosted": boosted, "labs": labs}
        return from_mapping(cls, {**content, **sections})


def as_fitted(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model folder, with what earlier versions did where they did not write it down.

    >>> as_fitted({"boosted": {"periods": 4}, "network": {"width": 32}})
    {'boosted': {'members': 1, 'periods': 4}, 'network': {'gated': True, 'width': 32}}
    >>> as_fitted({"boosted": {"members": 3}, "network": {"gated": False}})
    {'boosted': {'members': 3}, 'network': {'gated': False}}
    """
    then: dict[str, dict[str, Any]] = {"boosted": {"members": 1}, "network": {"gated": True}}
    return content | {name: settings | content[name] for name, settings in then.items() if name in content}


def from_mapping(kind: type[T], content: dict[str, Any]) -> T:
    """A frozen dataclass from a mapping; an unknown key is a UserError that names the nearest known one."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise UserError(f"a setting of {kind.__name__}", f"'{key}'", nearest(key, known))
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})  # JSON has lists alone
