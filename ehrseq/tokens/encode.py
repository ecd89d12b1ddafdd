"""Timelines as flat integer and float arrays: one token an event, in the order in which events became known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.features.labs import UNIT
from ehrseq.frames import at_once, microseconds, place_among
from ehrseq.tokens.vocabulary import (
    CODED_TEXT,
    FIRST_CODE,
    UNKNOWN,
    Vocabulary,
    is_model_event,
    static_facts,
)

STATIC = np.iinfo(np.int64).min  # the known_time of static facts, which have none: before everything
UNKNOWN_START = np.iinfo(np.int64).max  # after every prediction time
MICROSECONDS_PER_DAY = 86_400_000_000


@dataclass(frozen=True)
class EncodedTimelines:
    """Tokens of many subjects; subject s owns rows `offset[s]:offset[s + 1]`, sorted by `known_time`.

    subject_id, birth (S,); enrolled (S,) when observation began, UNKNOWN_START where nothing says; offset (S+1,); code,
    coded_value, knot (N,) indices; fraction (N,) weight of the knot above; value (N,) scaled, NaN for none;
    summary_code (N,) -1 for none; time, known_time (N,) microseconds; lineage (N,) row of ancestors (L, P), the indices
    of the codes above it (0 for none).
    """

    subject_id: NDArray[np.int64]
    birth: NDArray[np.int64]
    enrolled: NDArray[np.int64]
    offset: NDArray[np.int64]
    code: NDArray[np.int64]
    coded_value: NDArray[np.int64]
    knot: NDArray[np.int64]
    fraction: NDArray[np.float32]
    value: NDArray[np.float32]
    summary_code: NDArray[np.int64]
    time: NDArray[np.int64]
    known_time: NDArray[np.int64]
    lineage: NDArray[np.int64]
    ancestors: NDArray[np.int64]

    def position(self, subject_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each subject."""
        return np.searchsorted(self.subject_id, subject_ids)


def encode(events: pl.DataFrame, subjects: pl.DataFrame, vocabulary: Vocabulary) -> EncodedTimelines:
    """Tokens of the subjects in `subjects` (all with a birth time), sorted by subject_id.

    Repeated measurements of one code at one moment become one token with their mean. Codes outside the vocabulary
    become the unknown token, beside their known ancestors if they have any; values in a unit the vocabulary does not
    know are left out, never mixed.
    """
    tokens = merged_tokens(events, subjects, vocabulary)
    found = _look_up(tokens, vocabulary)
    enrolled = (
        pl.col("observation_start") if "observation_start" in subjects.columns else pl.lit(None, pl.Datetime("us"))
    )
    times = {"birth": pl.col("birth_time"), "enrolled": enrolled}
    people = at_once(
        subjects.lazy()
        .select("subject_id", **{name: time.dt.epoch("us") for name, time in times.items()})
        .sort("subject_id")
        .with_columns(pl.col("enrolled").fill_null(UNKNOWN_START))
    )
    lineage, ancestors = _lineages(tokens["code"], vocabulary)
    code = found["codes"] + FIRST_CODE
    code[code < FIRST_CODE] = UNKNOWN
    knot, fraction, value = _encode_values(found["scales"], tokens["numeric_value"].to_numpy(), vocabulary)
    subject_id = people["subject_id"].to_numpy()
    counts = np.bincount(np.searchsorted(subject_id, tokens["subject_id"].to_numpy()), minlength=len(subject_id))
    return EncodedTimelines(
        subject_id=subject_id,
        birth=people["birth"].to_numpy(),
        enrolled=people["enrolled"].to_numpy(),
        offset=np.append(0, np.cumsum(counts)).astype(np.int64),
        code=code,
        coded_value=found["coded_values"] + 1,
        knot=knot,
        fraction=fraction,
        value=value,
        summary_code=vocabulary.summary_index[code],
        time=microseconds(tokens["time"]),
        known_time=microseconds(tokens["known_time"]),
        lineage=lineage,
        ancestors=ancestors,
    )


def merged_tokens(events: pl.DataFrame, subjects: pl.DataFrame, vocabulary: Vocabulary) -> pl.DataFrame:
    """The tokens of the subjects, a row each, in the order of `encode`, still with their codes, texts and units."""
    merge = ["subject_id", "known_time", "time", "code", "text_value", "unit"]
    asked = pl.col("subject_id").is_in(subjects["subject_id"].implode())
    read = events.lazy().select(*merge, "numeric_value").filter(is_model_event() & asked)
    if vocabulary.demographics:
        facts = static_facts(subjects, vocabulary.demographics).filter(vocabulary.is_code)
        read = pl.concat([read, facts], how="diagonal_relaxed")
    return at_once(
        read.with_columns(
            pl.when(pl.col("text_value").str.contains(CODED_TEXT)).then("text_value").alias("text_value"),
            pl.col("numeric_value").cast(pl.Float64).fill_nan(None),
        )
        # numbers too, so that a mean does not depend on the order of events, not even in its last bit
        .sort(*merge, "numeric_value")
        .group_by(merge, maintain_order=True)
        .agg(pl.col("numeric_value").mean())
    )


def _look_up(tokens: pl.DataFrame, vocabulary: Vocabulary) -> dict[str, NDArray[np.int64]]:
    """The place of each token's code, coded value and scale among those of the vocabulary, -1 for none."""
    keys = {
        "codes": pl.col("code"),
        "coded_values": pl.col("code") + "=" + pl.col("text_value"),
        "scales": pl.col("code") + UNIT + pl.col("unit").fill_null(""),
    }
    found = at_once(tokens.lazy().select(place_among(key, vocabulary.known[name], name) for name, key in keys.items()))
    return {name: found[name].to_numpy() for name in keys}


def _lineages(codes: pl.Series, vocabulary: Vocabulary) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each code its row in a table of ancestors; row 0 has none."""
    if not vocabulary.parents:
        return np.zeros(len(codes), np.int64), np.zeros((1, 0), np.int64)
    some = codes.unique().sort().to_list()
    above = [[vocabulary.code_index[c] for c in vocabulary.known_ancestors(code)] for code in some]
    table = np.zeros((1 + len(some), max(map(len, above), default=0)), np.int64)
    for row, indices in enumerate(above, 1):
        table[row, : len(indices)] = indices
    rows = codes.replace_strict(some, list(range(1, 1 + len(some))), return_dtype=pl.Int64)
    return rows.to_numpy(), table


def _encode_values(
    which: NDArray[np.int64], number: NDArray[np.float64], vocabulary: Vocabulary
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Row of the knot below, weight of the knot above, and the scaled value, of numbers (NaN for none) and scales."""
    n = len(which)
    knot, fraction = np.zeros(n, np.int64), np.zeros(n, np.float32)
    value = np.full(n, np.nan, np.float32)
    if not vocabulary.scales:
        return knot, fraction, value
    first = 1 + np.cumsum([0, *(len(s.knots) for s in vocabulary.scales)])
    rows = np.flatnonzero((which >= 0) & ~np.isnan(number))
    rows = rows[np.argsort(which[rows], kind="stable")]
    for row in np.split(rows, np.flatnonzero(np.diff(which[rows])) + 1) if len(rows) else ():
        scale, x = vocabulary.scales[which[row[0]]], number[row]
        position = _interpolate(x, np.asarray(scale.knots))
        below = np.minimum(position.astype(np.int64), max(len(scale.knots) - 2, 0))
        knot[row] = first[which[row]] + below
        fraction[row] = position - below
        value[row] = np.clip((x - scale.centre) / scale.spread, -5, 5)
    return knot, fraction, value


def _interpolate(x: NDArray[Any], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Position among the knots, 0 to len(knots) - 1, clamped at the ends.

    >>> _interpolate(np.array([0.0, 1.5, 9.0]), np.array([1.0, 2.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    position: NDArray[np.float64] = np.interp(x, knots, np.arange(len(knots), dtype=np.float64))
    return position
