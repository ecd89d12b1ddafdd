"""Fitting the networks of an ensemble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ehrseq.config import ModelConfig
from ehrseq.model.checkpoint import Checkpoint
from ehrseq.model.heads import HazardHead, base_log_hazard
from ehrseq.model.module import LandmarkBatches, ProgressionModule, train, world_size
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.sample import Labeller, Part, Sample
from ehrseq.model.threads import one_thread
from ehrseq.tokens.batch import Batches
from ehrseq.tokens.encode import STATIC
from ehrseq.tokens.vocabulary import Vocabulary

Float = NDArray[np.float64]
Report = Callable[[int, float], None]
MIN_BATCHES = 24  # an epoch of a small data set still takes this many optimiser steps
SCALE_TOKENS = 8192
NARROW = 128  # what narrower networks gain by several threads is little, and costs twice the CPU time
ADAPTING = 0.5  # of the learning rate, for networks that were pretrained


def fit_member(
    training: Part, tuning: Part, labeller: Labeller, vocabulary: Vocabulary, edges: Float, sample: Sample,
    config: ModelConfig, member: int, report: Report | None = None, checkpoint: Checkpoint | None = None,
    origin: ProgressionNetwork | None = None,
) -> tuple[ProgressionNetwork, list[float]]:  # fmt: skip
    """One network and its tuning loss by epoch; `sample` gives base rates and scales (auxiliary targets last).

    With an `origin` the network starts as that one, but for the hazards of the outcomes.
    """
    settings, seed = config.training, config.seed + 1000 * member
    if origin is not None:
        settings = replace(settings, learning_rate=ADAPTING * settings.learning_rate)
    n_summary = len(vocabulary.summary_codes)
    tokens = len(training.encoded.code) + len(training.start) * settings.landmarks_per_subject
    tokens_per_batch = int(np.clip(tokens / MIN_BATCHES, 256, settings.tokens_per_batch))
    passes = []
    for part, per_subject, redraw in (
        (training, settings.landmarks_per_subject, True),
        (tuning, settings.tuning_landmarks_per_subject, False),
    ):
        draw = partial(part.draw, per_subject=per_subject, labeller=labeller, auxiliary=True)
        batches = Batches(part.encoded, n_summary, config.network.max_events)
        passes.append(LandmarkBatches(batches, draw, tokens_per_batch, seed, redraw=redraw))
    gpus = range(torch.cuda.device_count())  # there too the caller's random numbers stay as they are
    with torch.random.fork_rng(gpus), one_thread(config.network.width < NARROW):
        torch.manual_seed(seed)
        n_hazards, n_auxiliary = len(labeller.hazards), len(labeller.auxiliary)
        network = ProgressionNetwork(vocabulary, config.network, n_hazards, edges, n_auxiliary)
        _set_base_rates(network.head, sample, edges, 0)
        if network.auxiliary is not None:
            _set_base_rates(network.auxiliary, sample, edges, n_hazards)
        if origin is None:
            _set_scales(network, passes[0].batches, sample)
        else:
            _go_on_from(network, origin)
        n_batches = max(1.0, tokens / tokens_per_batch)
        module = ProgressionModule(network, settings, training.years / n_batches, n_batches)
        if world_size() > 1:  # each process has random numbers of its own: what several began is begun anew
            checkpoint = None
        start = None if checkpoint is None else checkpoint.load(member)
        keep = None if checkpoint is None else partial(checkpoint.save, member)
        train(module, passes[0], passes[1], report, start, keep)
    return network, module.history


def _go_on_from(network: ProgressionNetwork, origin: ProgressionNetwork) -> None:
    """Take over everything but the hazards of outcomes and the base rates, which belong to other intervals."""
    keep = {
        name: tensor
        for name, tensor in origin.state_dict().items()
        if not name.startswith("head.") and name not in ("auxiliary.base", "auxiliary.terms", "auxiliary.offset")
    }
    mine = network.state_dict()
    network.load_state_dict(mine | {k: t for k, t in keep.items() if k in mine and t.shape == mine[k].shape})


def _set_scales(network: ProgressionNetwork, batches: Batches, sample: Sample) -> None:
    """Standardise times as the training data have them; static tokens have none."""
    dynamic = batches.encoded.known_time != STATIC
    network.event_times.set_scale(torch.from_numpy(batches.features[dynamic]))
    rows = [b.query_features[b.query >= 0] for b in batches.over(sample.row, sample.time, SCALE_TOKENS)]
    network.query_times.set_scale(torch.cat(rows))


def _set_base_rates(head: HazardHead, sample: Sample, edges: Float, first: int) -> None:
    for h in range(len(head.base)):
        exposure, interval = sample.target.person_intervals(first + h, edges)
        happened = interval >= 0
        base = base_log_hazard(exposure, np.where(happened, interval, 0), happened, sample.target.weight)
        head.base[h] = torch.from_numpy(base)
