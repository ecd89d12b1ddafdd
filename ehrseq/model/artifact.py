"""A fitted model as a folder of JSON and safetensors: no code, no pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save
from torch import Tensor

from ehrseq.errors import ArtifactError
from ehrseq.storage import atomic_folder, read_json, read_manifest, write_json, write_manifest

T = TypeVar("T")
KIND, FORMAT_VERSION = "model", 3
TRAINED_ON_SCHEMA: dict[str, Any] = {"hashed_id": pl.String, "split": pl.String}
JSON_PARTS = ("config", "task", "vocabulary", "baselines", "training", "calibration")
SINCE = {"calibration": 2}  # parts that earlier format versions do not have are empty
OPTIONAL_JSON = ("profile",)  # a JSON part alone, where the model has it
OPTIONAL = ("labs", "paths")  # each a JSON part and arrays of the same name, since version 3, where the model has it


@dataclass(frozen=True)
class Artifact:
    """What a model folder holds: JSON parts by name, weights by member, hashed ids and facts.

    `optional` holds the arrays of the parts in OPTIONAL that the model has.
    """

    parts: dict[str, Any]
    weights: list[dict[str, Tensor]]
    boosted: list[dict[str, NDArray[Any]]]
    trained_on: pl.DataFrame
    card: str
    facts: dict[str, Any]
    optional: dict[str, list[dict[str, NDArray[Any]]]] = field(default_factory=dict)


def save_artifact(folder: str | Path, artifact: Artifact) -> None:
    """Write a model folder atomically, its manifest last."""
    with atomic_folder(folder, KIND) as scratch:
        alone = [name for name in OPTIONAL_JSON if name in artifact.parts]
        for name in (*JSON_PARTS, *alone, *artifact.optional):
            write_json(scratch / f"{name}.json", artifact.parts[name], sort_keys=False)  # outcomes have an order
        # `save_file` would make the files readable by their owner alone, unlike their neighbours
        (scratch / "weights.safetensors").write_bytes(
            save(_flat([{k: t.contiguous() for k, t in w.items()} for w in artifact.weights]))
        )
        for name, arrays in {"boosted": artifact.boosted, **artifact.optional}.items():
            (scratch / f"{name}.safetensors").write_bytes(save_arrays(_flat(arrays)))
        artifact.trained_on.write_parquet(scratch / "trained_on.parquet")
        (scratch / "model_card.md").write_text(artifact.card, encoding="utf-8")
        libraries = {name: version(name) for name in ("ehrseq", "torch", "polars", "numpy")}
        write_manifest(scratch, KIND, FORMAT_VERSION, libraries=libraries, **artifact.facts)


def load_artifact(folder: str | Path) -> Artifact:
    """Read a model folder: format known, hashes equal, every part readable."""
    folder = Path(folder)
    manifest = read_manifest(folder, KIND, FORMAT_VERSION)
    version = int(manifest["format_version"])
    parts = {name: read_json(folder / f"{name}.json") if SINCE.get(name, 1) <= version else {} for name in JSON_PARTS}
    present = [name for name in OPTIONAL if f"{name}.json" in manifest["files"]]
    alone = [name for name in OPTIONAL_JSON if f"{name}.json" in manifest["files"]]
    parts |= {name: read_json(folder / f"{name}.json") for name in (*alone, *present)}
    try:
        weights = _nested(load_file(folder / "weights.safetensors"))
        boosted = _nested(load_arrays(folder / "boosted.safetensors")) if version > 1 else []
        optional = {name: _nested(load_arrays(folder / f"{name}.safetensors")) for name in present}
        trained_on = pl.read_parquet(folder / "trained_on.parquet")
        trained_on = trained_on.select(pl.col(name).cast(kind) for name, kind in TRAINED_ON_SCHEMA.items())
        card = (folder / "model_card.md").read_text(encoding="utf-8")
    except (OSError, ValueError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise ArtifactError("a whole model folder", type(error).__name__, "copy it again") from None
    facts = {k: v for k, v in manifest.items() if k not in ("kind", "format_version", "files", "libraries")}
    return Artifact(parts, weights, boosted, trained_on, card, facts, optional)


def _flat(groups: Sequence[Mapping[str, T]]) -> dict[str, T]:
    return {f"{i}.{name}": value for i, group in enumerate(groups) for name, value in group.items()}


def _nested(flat: Mapping[str, T]) -> list[dict[str, T]]:
    """One dictionary a number, from names such as `0.weight`."""
    found: dict[int, dict[str, T]] = {}
    for key, value in flat.items():
        number, _, name = key.partition(".")
        found.setdefault(int(number), {})[name] = value
    return [found[i] for i in sorted(found)]


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
