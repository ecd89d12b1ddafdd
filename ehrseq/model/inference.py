"""Log hazards of fitted networks at prediction times."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ehrseq.model.ensemble import Ensemble
from ehrseq.tokens.batch import Batches
from ehrseq.tokens.encode import EncodedTimelines

TOKENS_PER_BATCH = 2048  # what a layer makes of them stays in the processor's cache: a fifth faster than 8192 on CPU


def predict_log_hazards(
    ensemble: Ensemble,
    encoded: EncodedTimelines,
    subject: NDArray[np.int64],
    time: NDArray[np.int64],
    *,
    max_events: int,
    n_summary_codes: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> NDArray[np.float64]:
    """Log hazards per day, (members, n, H, I), at n queries: rows of `encoded` and microseconds.

    The answer for a query does not depend on the other queries, on the packing or on the padding beyond float32
    rounding.
    """
    batches = Batches(encoded, n_summary_codes, max_events)
    out = np.zeros((ensemble.members, len(subject), *ensemble.head.shape))
    with torch.inference_mode():
        for batch in batches.over(subject, time, max(1, tokens_per_batch // ensemble.members)):
            query = batch.query.numpy()
            asked = query >= 0
            out[:, query[asked]] = ensemble.log_hazards(batch).numpy()[:, asked]
    return out
