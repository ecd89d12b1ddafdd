"""Networks fitted without outcomes: when each code is next known of teaches them to read a history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ehrseq.config import ModelConfig
from ehrseq.model.fitted import Fitted
from ehrseq.model.plan import Plan, Report, data_hash
from ehrseq.model.together import fit_networks
from ehrseq.timeline.store import Timelines


def pretrain(
    timelines: Timelines, splits: pl.DataFrame, config: ModelConfig, report: Report | None = None,
    checkpoint: str | Path | None = None, workers: int | None = None,
) -> Fitted:  # fmt: skip
    """Networks that forecast the codes of the `train` split; `tuning` stops early. No outcome, no label, no hybrid."""
    plan = Plan.without_task(timelines, splits, config)
    networks, history = fit_networks(plan, timelines, splits, report, checkpoint, workers)
    return Fitted(
        vocabulary=plan.vocabulary.without_rare(timelines.events["code"]), edges=plan.edges, hazards=[],
        auxiliary=plan.auxiliary, networks=networks, boosted=[], cox=[], adjustments={}, blend=np.zeros(0),
        baselines={}, supported_days={}, events={}, history=history, data_hash=data_hash(plan.parts["train"].encoded),
    )  # fmt: skip
