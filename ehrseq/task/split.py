"""Splitting subjects into train, tuning and held-out: the dataset's own split, or a stable seeded hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import polars as pl

from ehrseq.errors import TaskError, TimelineError
from ehrseq.timeline.store import Timelines

SPLITS = ("train", "tuning", "held_out")


def split_subjects(
    timelines: Timelines, *, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> pl.DataFrame:
    """`subject_id` and `split` (train, tuning, held_out), one row a subject, in the order of `timelines.subjects`.

    Where the dataset has a split table, that is the split, and `fractions` and `seed` play no part; subjects it does
    not name get a null split and belong to none. Otherwise a subject's split depends on its id and the seed only: not
    on the other subjects, their number or their order.

    >>> subjects = pl.DataFrame({"subject_id": range(4)})
    >>> split_subjects(Timelines(pl.DataFrame(), subjects))["split"].to_list()
    ['tuning', 'held_out', 'tuning', 'train']
    """
    ids = timelines.subjects.select("subject_id")
    if timelines.splits is not None:
        _validate_splits(timelines.splits)
        return ids.join(
            timelines.splits.select("subject_id", "split"), on="subject_id", how="left", maintain_order="left"
        )
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise TaskError("three fractions that sum to 1", "others", "give those of train, tuning and held_out")
    train, tuning, _ = fractions
    place = [_uniform(seed, subject) for subject in ids["subject_id"]]
    bounds = ((train, SPLITS[0]), (train + tuning, SPLITS[1]))
    names = [next((name for bound, name in bounds if u < bound), SPLITS[2]) for u in place]
    return ids.with_columns(split=pl.Series(names, dtype=pl.String))


def _uniform(seed: int, subject_id: int) -> float:
    """A number in [0, 1) from the seed and the subject alone, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{subject_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _validate_splits(splits: pl.DataFrame) -> None:
    if splits["subject_id"].is_duplicated().any():
        raise TimelineError("each subject in one split", "subjects in several", "correct the dataset's split table")
    if not splits["split"].drop_nulls().is_in(list(SPLITS)).all():
        raise TimelineError(
            f"splits named {', '.join(SPLITS)}", "other names", "rename the splits in the dataset's split table"
        )
