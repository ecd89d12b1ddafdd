"""Hazards of scored rows, from a fitted branch or from a baseline."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import ForecastError
from ehrseq.forecast.table import Hazards
from ehrseq.frames import microseconds, places
from ehrseq.model.fitted import Fitted
from ehrseq.model.heads import HazardName
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, EncodedTimelines, encode

Float = NDArray[np.float64]


def check_branch(fitted: Fitted, branch: str | None) -> str:
    """The branch to answer, the best by default; ForecastError for one that was not fitted."""
    known = [*fitted.branches, *fitted.baselines]
    if branch is not None and branch not in known:
        raise ForecastError(f"a fitted branch: {', '.join(known)}", f"'{branch}'", "choose one of these, or fit it")
    return branch or known[0]


def encode_asked(fitted: Fitted, timelines: Timelines, asked: pl.DataFrame) -> EncodedTimelines:
    """The tokens of the subjects (all with a birth time) whom a frame with `subject_id` names."""
    subjects = timelines.subjects.filter(pl.col("subject_id").is_in(asked["subject_id"].implode()))
    return encode(timelines.events, subjects, fitted.vocabulary)


def outcome_hazards(
    fitted: Fitted, timelines: Timelines, scored: pl.DataFrame, branch: str, max_events: int,
    encoded: EncodedTimelines | None = None,
) -> list[Hazards]:  # fmt: skip
    """Hazards of every outcome at the rows of `scored` that ask for it.

    `scored` has `subject_id`, `patient`, `prediction_time` and `outcome`. `encoded` are the tokens of these subjects,
    and maybe of others, where they are at hand.
    """
    subject, time = scored["subject_id"].to_numpy(), microseconds(scored["prediction_time"])
    order = np.lexsort((time, subject))
    new = np.append(True, (np.diff(subject[order]) != 0) | (np.diff(time[order]) != 0))[: len(order)]
    first, query = order[new], np.empty(len(order), np.int64)  # of each query a row, and of each row its query
    query[order] = np.cumsum(new) - 1
    baseline = branch in fitted.baselines
    if not baseline:
        encoded = encode_asked(fitted, timelines, scored) if encoded is None else encoded
        row = encoded.position(subject[first])
        values = np.exp(fitted.log_hazards(encoded, row, time[first], max_events=max_events, branch=branch))
    keyed = scored[["subject_id", "patient", "prediction_time"]]
    out = []
    for name in fitted.outcomes:
        chosen = np.flatnonzero((scored["outcome"] == name).to_numpy())
        rows, which = keyed[places(chosen)], query[chosen]
        if baseline:
            own, other = _baseline(fitted, branch, name, rows, timelines.subjects)
        else:
            own = values[:, which, fitted.hazards.index(HazardName(name))]
            rival = HazardName(name, competing=True)
            other = values[:, which, fitted.hazards.index(rival)] if rival in fitted.hazards else np.zeros_like(own)
        out.append(Hazards(name, rows, own, other, fitted.edges, fitted.supported_days[name]))
    return out


def _baseline(
    fitted: Fitted, kind: str, outcome: str, rows: pl.DataFrame, subjects: pl.DataFrame
) -> tuple[Float, Float]:
    if "sex" not in subjects.columns:
        subjects = subjects.with_columns(sex=pl.lit(None, pl.String))
    known = rows.join(
        subjects.select("subject_id", "birth_time", "sex"), on="subject_id", how="left", maintain_order="left"
    )
    age = (known["prediction_time"] - known["birth_time"]).dt.total_microseconds() / (MICROSECONDS_PER_DAY * 365.25)
    own, other = fitted.baselines[kind][outcome].hazards(age.to_numpy(), known["sex"].to_list())
    return own[None], other[None]
