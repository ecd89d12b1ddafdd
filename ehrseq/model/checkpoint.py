"""The state of a training run after each epoch, so that an interrupted fit goes on to the same model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as lightning
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ehrseq.storage import MANIFEST, check_target, write_manifest

if TYPE_CHECKING:
    from ehrseq.model.module import ProgressionModule

KIND = "training"


@dataclass(frozen=True)
class State:
    """Tensors and facts of one member after an epoch."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A folder with one file a member. `key` names the run: a file of another run is not read.

    Each file is replaced as a whole; a damaged one is no state, and that member begins anew.
    """

    folder: Path
    key: str

    @classmethod
    def open(cls, folder: str | Path, *facts: Any) -> Checkpoint:
        """The checkpoint at `folder`, made where there is none, of the run that `facts` describe."""
        folder = Path(folder)
        check_target(folder, KIND)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            write_manifest(folder, KIND, 1)
        made_with = [version(name) for name in ("ehrseq", "torch", "pytorch-lightning", "numpy")]
        run = json.dumps([*facts, made_with], sort_keys=True, default=str)
        return cls(folder, hashlib.sha256(run.encode()).hexdigest())

    def save(self, member: int, state: State) -> None:
        """Replace the state of a member."""
        facts = {"key": self.key, "facts": json.dumps(state.facts)}
        content = save({k: t.contiguous() for k, t in state.tensors.items()}, metadata=facts)
        scratch = self._path(member).with_suffix(".new")
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self._path(member))

    def load(self, member: int) -> State | None:
        """The state of a member; None where there is none of this run."""
        try:
            with safe_open(self._path(member), "pt") as file:
                metadata: Mapping[str, str] = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return None
                names = list(file.keys())
                return State({name: file.get_tensor(name) for name in names}, json.loads(metadata["facts"]))
        except (OSError, SafetensorError, ValueError, KeyError):
            return None

    def _path(self, member: int) -> Path:
        return self.folder / f"member-{member}.safetensors"


class KeepState(lightning.Callback):
    """Keeps the state of training after each epoch, and starts from the one that was kept."""

    def __init__(
        self, module: ProgressionModule, landmarks: np.random.Generator, stop: lightning.callbacks.EarlyStopping,
        keep: Callable[[State], None], start: State | None,
    ) -> None:  # fmt: skip
        self.module = module
        self.landmarks = landmarks
        self.stop = stop
        self.keep = keep
        self.start = start
        if start is not None:  # before the trainer asks for a batch
            landmarks.bit_generator.state = start.facts["landmarks"]

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Everything that the next epoch depends on is as it was."""
        if self.start is None:
            return
        tensors, facts = self.start.tensors, self.start.facts
        self.module.network.load_state_dict(under("network.", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("optimizer.", tensors).items():
            number, kind = name.split(".", 1)
            moments.setdefault(int(number), {})[kind] = tensor
        trainer.optimizers[0].load_state_dict({"state": moments, "param_groups": facts["groups"]})
        trainer.lr_scheduler_configs[0].scheduler.__dict__.update(facts["schedule"])
        self.stop.wait_count, self.stop.best_score = facts["waited"], tensors["stop.best"]
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"])

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """After validation, and after the decision whether to stop."""
        module, optimizer = self.module, trainer.optimizers[0].state_dict()
        schedule = trainer.lr_scheduler_configs[0].scheduler.state_dict()
        tensors = {f"network.{k}": t.detach() for k, t in module.network.state_dict().items()}
        tensors |= {f"best.{k}": t for k, t in module.best_weights.items()}
        tensors |= {f"optimizer.{i}.{k}": t for i, row in optimizer["state"].items() for k, t in row.items()}
        tensors |= {"rng.cpu": torch.get_rng_state(), "stop.best": self.stop.best_score}
        if module.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        facts = {
            "history": module.history, "best_loss": module.best_loss, "waited": self.stop.wait_count,
            "stopped": self.stop.wait_count >= self.stop.patience, "groups": optimizer["param_groups"],
            "schedule": {k: schedule[k] for k in ("last_epoch", "_step_count", "_last_lr")},
            "landmarks": self.landmarks.bit_generator.state,
        }  # fmt: skip
        self.keep(State({k: t.cpu() for k, t in tensors.items()}, facts))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
