"""Fitting the network: batches of landmarks, loss, optimiser, early stopping. No files."""

from __future__ import annotations

import logging
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from ehrseq.config import TrainingConfig
from ehrseq.errors import TrainingError
from ehrseq.model.checkpoint import KeepState, State, under
from ehrseq.model.landmarks import Targets
from ehrseq.model.loss import negative_log_likelihood
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.sample import Sample
from ehrseq.tokens.batch import Batch, Batches

TERMINATED = 143  # the shells' status of what SIGTERM ended
DIRECT_RATE = 5.0  # the direct time terms are few and well scaled, and must settle within some hundred steps
Draw = Callable[[np.random.Generator], Sample]


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of tokens with its targets: days at risk and event (B, K, H), weight (B, K)."""

    inputs: Batch
    days: Tensor
    event: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> TrainingBatch:
        """The same batch on another device."""
        inputs = Batch(**{f.name: getattr(self.inputs, f.name).to(device) for f in fields(Batch)})
        return TrainingBatch(inputs, self.days.to(device), self.event.to(device), self.weight.to(device))


class LandmarkBatches:
    """Training batches over landmarks; with `redraw`, every pass draws new ones."""

    def __init__(self, batches: Batches, draw: Draw, tokens_per_batch: int, seed: int, *, redraw: bool) -> None:
        self.batches = batches
        self.draw = draw
        self.tokens_per_batch = tokens_per_batch
        self.rng = np.random.default_rng(seed)
        self.fixed = None if redraw else draw(self.rng)

    def __iter__(self) -> Iterator[TrainingBatch]:
        """One pass over the subjects; processes that train together share it, and take equally many steps."""
        sample = self.fixed or self.draw(self.rng)
        shuffle = None if self.fixed else self.rng
        share = (int(os.environ.get("RANK", "0")), world_size())
        for batch in self.batches.over(
            sample.row, sample.time, self.tokens_per_batch, shuffle, share, even=self.fixed is None
        ):
            yield with_targets(batch, sample.target)


def world_size() -> int:
    """How many processes train together, as `torchrun` says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def with_targets(batch: Batch, target: Targets) -> TrainingBatch:
    """Attach days, events and weights; padded queries have weight 0."""
    query = batch.query.numpy()
    real = query >= 0
    q = np.where(real, query, 0)
    weight = torch.from_numpy(np.where(real, target.weight[q], 0.0).astype(np.float32))
    return TrainingBatch(batch, torch.from_numpy(target.days[q]), torch.from_numpy(target.event[q]), weight)


class ProgressionModule(lightning.LightningModule):
    """The training plan of one network.

    `weight_per_batch` is a constant, the expected weight of a batch: normalising by a batch's own sum of weights
    would give the subjects of light batches more say.
    """

    def __init__(
        self, network: ProgressionNetwork, config: TrainingConfig, weight_per_batch: float, batches_per_epoch: float
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.weight_per_batch = weight_per_batch
        self.batches_per_epoch = batches_per_epoch
        self.history: list[float] = []
        self.best_loss = float("inf")
        self.best_weights: dict[str, Tensor] = {}
        self.report: Callable[[int, float], None] | None = None
        self._sums: list[Tensor] = []
        n = 0 if network.auxiliary is None else len(network.auxiliary.base)
        self.auxiliary_weight = config.auxiliary_weight * (1 / n if len(network.head.base) and n else 1.0)

    def losses(self, batch: TrainingBatch) -> Tensor:
        """Weighted sums over the batch's queries, (3,): negative log-likelihood of the outcomes' hazards, of the
        auxiliary ones, and weight."""
        edges, first, sums = self.network.head.edges, 0, []
        for log_hazard in self.network.all_hazards(batch.inputs):
            mine = slice(first, first + log_hazard.shape[2])
            nll = negative_log_likelihood(log_hazard, batch.days[..., mine], batch.event[..., mine], edges)
            sums.append((nll.sum(-1) * batch.weight).sum())
            first = mine.stop
        outcomes, *auxiliary = sums
        return torch.stack([outcomes, *(auxiliary or [torch.zeros_like(outcomes)]), batch.weight.sum()])

    def training_step(self, batch: TrainingBatch, _: int) -> Tensor:
        """One optimiser step's loss."""
        outcomes, auxiliary, _ = self.losses(batch)
        total: Tensor = (outcomes + self.auxiliary_weight * auxiliary) / self.weight_per_batch
        if not torch.isfinite(total):
            raise TrainingError("the loss is not finite: look for impossible values or times in the timelines")
        return total

    def validation_step(self, batch: TrainingBatch, _: int) -> None:
        """Collect the tuning likelihood."""
        self._sums.append(self.losses(batch).double())

    def on_validation_epoch_end(self) -> None:
        """Keep the best weights."""
        sums = torch.stack(self._sums).sum(0) if self._sums else torch.zeros(3, dtype=torch.float64, device=self.device)
        self._sums.clear()
        if world_size() > 1:
            torch.distributed.all_reduce(sums)
        outcomes, auxiliary, weight = sums.tolist()
        # without outcomes (pretraining) the auxiliary hazards are what is learned
        mean = (outcomes if len(self.network.head.base) else auxiliary) / max(weight, 1e-12)
        self.history.append(mean)
        self.log("tuning_loss", mean)
        if self.report is not None:
            self.report(len(self.history), mean)
        if mean < self.best_loss:
            self.best_loss = mean
            self.best_weights = {k: v.detach().clone() for k, v in self.network.state_dict().items()}

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and cosine decay over the longest training allowed."""
        c = self.config
        heads = [h for h in (self.network.head, self.network.auxiliary) if h is not None]
        direct = [h.direct.weight for h in heads]
        others = [p for p in self.network.parameters() if not any(p is d for d in direct)]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": c.weight_decay},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
                {"params": direct, "weight_decay": 0.0, "lr": DIRECT_RATE * c.learning_rate},
            ],
            lr=c.learning_rate,
            betas=(0.9, 0.98),
            # one pass over many small parameters; Lightning refuses it beside bfloat16 on a GPU
            fused=not torch.cuda.is_available(),
        )
        steps = max(1.0, c.max_epochs * self.batches_per_epoch / world_size())

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / c.warmup_steps) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: TrainingBatch, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; it is a frozen dataclass."""
        return batch.to(device)


def train(
    module: ProgressionModule,
    training: LandmarkBatches,
    tuning: LandmarkBatches,
    report: Callable[[int, float], None] | None = None,
    start: State | None = None,
    keep: Callable[[State], None] | None = None,
) -> None:
    """Fit until the tuning likelihood stops improving; the network ends with its best weights.

    `report(epoch, tuning_loss)` is called after each epoch, and `keep` with the state then; training that goes on from
    such a `start` gives the weights that it would have given.
    """
    module.report = report
    if start is not None:
        module.history, module.best_loss = list(start.facts["history"]), start.facts["best_loss"]
        module.best_weights = under("best.", start.tensors)
    left = module.config.max_epochs - len(module.history)
    if left > 0 and not (start is not None and start.facts["stopped"]):
        _run(module, training, tuning, left, keep, start)
    module.network.load_state_dict(module.best_weights)
    module.network.eval()


def _run(
    module: ProgressionModule, training: LandmarkBatches, tuning: LandmarkBatches, epochs: int,
    keep: Callable[[State], None] | None, start: State | None,
) -> None:  # fmt: skip
    # by default it would decide after `KeepState` has kept the count of epochs waited
    stop = lightning.callbacks.EarlyStopping(
        "tuning_loss", patience=module.config.patience, mode="min", check_on_train_epoch_end=False
    )
    interrupt = signal.getsignal(signal.SIGINT)
    with _quiet():
        on_gpu = torch.cuda.is_available()
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cuda" if on_gpu else "cpu",  # "auto" takes Apple's, which has no double precision
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            num_nodes=max(1, world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
            strategy="ddp" if world_size() > 1 else "auto",
            precision="bf16-mixed" if on_gpu and module.config.bfloat16 else "32-true",  # slower on a CPU
            gradient_clip_val=module.config.gradient_clip,
            callbacks=[stop] if keep is None else [stop, KeepState(module, training.rng, stop, keep, start)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(module, training, tuning)
        except SIGTERMException:  # it exits with the status of success
            raise SystemExit(TERMINATED) from None
        except SystemExit as ended:
            if not isinstance(ended.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, interrupt)  # lightning exits with 1, and stays deaf to the next one
            raise KeyboardInterrupt from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notices and advertisements off: a library prints nothing unasked."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for notice in (".*isinstance.treespec, LeafSpec.*", "GPU available but not used.*"):
                warnings.filterwarnings("ignore", message=notice)
            yield
    finally:
        logger.setLevel(level)
