"""A fitted model as a folder of JSON and safetensors: no code, no pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ehrseq.errors import ArtifactError
from ehrseq.storage import atomic_folder, read_json, read_manifest, write_json, write_manifest

KIND, FORMAT_VERSION = "model", 1
TRAINED_ON_SCHEMA: dict[str, Any] = {"hashed_id": pl.String, "split": pl.String}
JSON_PARTS = ("config", "task", "vocabulary", "baselines", "training")


@dataclass(frozen=True)
class Artifact:
    """What a model folder holds: JSON parts by name, weights by member, hashed ids and facts."""

    parts: dict[str, Any]
    weights: list[dict[str, Tensor]]
    trained_on: pl.DataFrame
    card: str
    facts: dict[str, Any]


def save_artifact(folder: str | Path, artifact: Artifact) -> None:
    """Write a model folder atomically, its manifest last."""
    with atomic_folder(folder, KIND) as scratch:
        for name in JSON_PARTS:
            write_json(scratch / f"{name}.json", artifact.parts[name], sort_keys=False)  # outcomes have an order
        flat = {f"{m}.{k}": t.contiguous() for m, w in enumerate(artifact.weights) for k, t in w.items()}
        # `save_file` would make the file readable by its owner alone, unlike its neighbours
        (scratch / "weights.safetensors").write_bytes(save(flat))
        artifact.trained_on.write_parquet(scratch / "trained_on.parquet")
        (scratch / "model_card.md").write_text(artifact.card, encoding="utf-8")
        libraries = {name: version(name) for name in ("ehrseq", "torch", "polars", "numpy")}
        write_manifest(scratch, KIND, FORMAT_VERSION, libraries=libraries, **artifact.facts)


def load_artifact(folder: str | Path) -> Artifact:
    """Read a model folder: format known, hashes equal, every part readable."""
    folder = Path(folder)
    manifest = read_manifest(folder, KIND, FORMAT_VERSION)
    parts = {name: read_json(folder / f"{name}.json") for name in JSON_PARTS}
    try:
        flat = load_file(folder / "weights.safetensors")
        trained_on = pl.read_parquet(folder / "trained_on.parquet")
        trained_on = trained_on.select(pl.col(name).cast(kind) for name, kind in TRAINED_ON_SCHEMA.items())
        card = (folder / "model_card.md").read_text(encoding="utf-8")
        weights: dict[int, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            member, _, name = key.partition(".")
            weights.setdefault(int(member), {})[name] = tensor
    except (OSError, ValueError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise ArtifactError("a whole model folder", type(error).__name__, "copy it again") from None
    facts = {k: v for k, v in manifest.items() if k not in ("kind", "format_version", "files", "libraries")}
    return Artifact(parts, [weights[m] for m in sorted(weights)], trained_on, card, facts)


def load_weights(network: Any, weights: Mapping[str, Tensor]) -> None:
    """Load strictly: every name and shape must fit."""
    try:
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError:
        raise ArtifactError(
            "weights that fit the configuration and vocabulary", "other names or shapes", "copy the folder again"
        ) from None


def hashed_ids(subject_ids: NDArray[np.int64], key: str) -> list[str]:
    """Keyed hashes of subject ids: who was trained on can be checked, not listed.

    >>> len(hashed_ids(np.array([7]), "k")[0])
    16
    """
    secret = key.encode()[:64]
    return [hashlib.blake2b(str(i).encode(), digest_size=8, key=secret).hexdigest() for i in subject_ids.tolist()]
