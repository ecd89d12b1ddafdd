"""Networks fitted without outcomes: when each code is next known of teaches them to read a history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from ehrseq.config import ModelConfig
from ehrseq.model.checkpoint import Checkpoint
from ehrseq.model.fitted import Fitted
from ehrseq.model.fitting import auxiliary_codes, code_indices, data_hash, digest, learn_vocabulary, split_parts
from ehrseq.model.heads import event_edges
from ehrseq.model.members import fit_member
from ehrseq.model.sample import Labeller
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY

CODES = 256  # at most so many are learned from: rare ones say little and cost as much as others
FAR_ENOUGH = 0.95  # share of the training follow-up that the hazards reach
Report = Callable[[int, float], None]


def pretrain(
    timelines: Timelines, splits: pl.DataFrame, config: ModelConfig, report: Report | None = None,
    checkpoint: str | Path | None = None,
) -> Fitted:  # fmt: skip
    """Networks that forecast the codes of the `train` split; `tuning` stops early. No outcome, no label, no hybrid."""
    vocabulary = learn_vocabulary(timelines, splits, config)
    parts = split_parts(timelines, splits, vocabulary)
    names = auxiliary_codes(vocabulary, CODES)
    labeller = Labeller(None, timelines.subjects, None, [], code_indices(vocabulary, names))
    rng = np.random.default_rng([config.seed, 1])
    sample = parts["train"].draw(rng, config.training.landmarks_per_subject, labeller, auxiliary=True)
    follow_up = (parts["train"].end - parts["train"].start) / MICROSECONDS_PER_DAY
    days = sample.target.days[sample.target.event].astype(np.float64)
    edges = event_edges(days, float(np.quantile(follow_up, FAR_ENOUGH)), config.network.intervals)
    run = (config.to_dict(), "pretraining", digest(*parts.values(), sample))
    kept = None if checkpoint is None else Checkpoint.open(checkpoint, *run)
    networks, history = [], []
    for member in range(config.training.members):
        network, losses = fit_member(
            parts["train"], parts["tuning"], labeller, vocabulary, edges, sample, config, member, report, kept
        )
        networks.append(network)
        history.append(losses)
    return Fitted(
        vocabulary=vocabulary.without_rare(timelines.events["code"]), edges=edges, hazards=[], auxiliary=names,
        networks=networks, boosted=[], cox=[], adjustments={}, blend=np.zeros(0), baselines={}, supported_days={},
        events={}, history=history, data_hash=data_hash(parts["train"].encoded),
    )  # fmt: skip
