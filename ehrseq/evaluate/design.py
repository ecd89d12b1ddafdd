"""Who trains and who is judged: subject, temporal and site validation, and the guards that refuse a leak.

A guard raises; it never repairs. Forecasts made elsewhere pass the same guards: give whom the model was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time
from typing import Any

import numpy as np
import polars as pl

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.groups import read_groups
from ehrseq.frames import to_polars
from ehrseq.task.history import visible
from ehrseq.timeline.schema import TIME, as_instant
from ehrseq.timeline.store import Timelines

KEY = ("subject_id", "prediction_time")


@dataclass(frozen=True)
class Design:
    """One fit and its judgement.

    `train` are the subjects to fit on (`subject_id`); `test` is what to judge (`subject_id`, `prediction_time`);
    nothing known after `label_cut` (null: no bound) may enter a training label. `checked` makes sure of it.
    """

    name: str
    train: pl.DataFrame
    test: pl.DataFrame
    label_cut: datetime | None = None

    def checked(self) -> Design:
        """The design itself. Raises EvaluationError where a subject trains and is judged, or time runs backwards.

        After a cut in time the same subject may do both: what it is trained on ends before it is judged.
        """
        if not self.train.height or not self.test.height:
            side = "trains" if not self.train.height else "is judged"
            raise EvaluationError("subjects on both sides of the split", f"nobody who {side}", "choose another split")
        if self.label_cut is None:
            check_no_overlap(self.train["subject_id"], self.test["subject_id"])
        elif (self.test["prediction_time"] < self.label_cut).any():
            early = int((self.test["prediction_time"] < self.label_cut).sum())
            raise EvaluationError(
                "prediction times from the cut of the training labels on", f"{early} before it", "judge later times"
            )
        return self


def subject_designs(queries: pl.DataFrame, n_folds: int = 5, seed: int = 0) -> list[Design]:
    """Every subject judged once, by a fit that did not see it. `queries` has `subject_id`, `prediction_time`.

    >>> at = pl.DataFrame({"subject_id": range(10), "prediction_time": [datetime(2020, 1, 1)] * 10})
    >>> [design.test.height for design in subject_designs(at, n_folds=2)]
    [5, 5]
    """
    subjects = queries.select(pl.col("subject_id").unique().sort())
    if not 2 <= n_folds <= subjects.height:
        raise EvaluationError("a number of folds from 2 to that of subjects", str(n_folds), "choose another number")
    fold = np.random.default_rng(seed).permutation(subjects.height) % n_folds
    placed = subjects.with_columns(fold=pl.Series(fold))
    designs = []
    for f in range(n_folds):
        inside = placed.filter(pl.col("fold") == f)
        designs.append(_held_out(f"fold {f + 1} of {n_folds}", queries, subjects, inside))
    return designs


def temporal_design(queries: pl.DataFrame, cut: Any) -> Design:
    """Fit on what was known before the date `cut`, judge prediction times from then on.

    >>> at = pl.DataFrame({"subject_id": [1, 2], "prediction_time": [datetime(2019, 5, 1), datetime(2021, 5, 1)]})
    >>> design = temporal_design(at, "2020-01-01")
    >>> design.train["subject_id"].to_list(), design.test["subject_id"].to_list()
    ([1], [2])
    """
    moment = as_instant(cut)
    if not isinstance(cut, datetime) and not (isinstance(cut, str) and len(cut) > 10):
        moment = datetime.combine(moment.date(), time.min)  # the day itself is judged
    before = pl.col("prediction_time").cast(TIME) < moment
    train = queries.filter(before).select(pl.col("subject_id").unique().sort())
    return Design(f"from {moment:%Y-%m-%d} on", train, queries.filter(~before).select(KEY), moment).checked()


def site_designs(queries: pl.DataFrame, sites: Any, timelines: Timelines | None = None) -> list[Design]:
    """Leave one organisation out. `sites` is a table of `subject_id` (or `patient`) and `site`; others do not count.

    Raises EvaluationError for a subject with two sites (it would train for the site it is judged at), or one site.
    """
    table = to_polars(sites)
    if "site" not in table.columns:
        raise EvaluationError("a table with a column site", "none", "rename the column")
    ids = [c for c in ("subject_id", "patient") if c in table.columns]
    placed = read_groups(table.select(*ids[:1], "site").drop_nulls().unique(), timelines)
    subjects = queries.select(pl.col("subject_id").unique().sort()).join(placed, on="subject_id")
    names = subjects["site"].unique().sort().to_list()
    if len(names) < 2:
        raise EvaluationError("subjects of at least two sites", f"{len(names)}", "use another design")
    known = subjects.select("subject_id")
    return [
        _held_out(f"without site {number} of {len(names)}", queries, known, subjects.filter(pl.col("site") == name))
        for number, name in enumerate(names, 1)
    ]


def check_no_overlap(trained_on: Any, judged: Any) -> None:
    """Refuse a leaked split: EvaluationError where a subject of `judged` is in `trained_on` (ids of one kind).

    >>> check_no_overlap([1, 2], [3])
    >>> check_no_overlap([1, 2], [2, 3])
    Traceback (most recent call last):
    ehrseq.errors.EvaluationError: expected nobody who trained to be judged; found 1 subjects on both sides; \
split by subject, or leave them out
    """
    both = set(pl.Series(trained_on).unique()) & set(pl.Series(judged).unique())
    if both:
        raise EvaluationError(
            "nobody who trained to be judged", f"{len(both)} subjects on both sides",
            "split by subject, or leave them out",
        )  # fmt: skip


def check_known(features: Any) -> None:
    """Refuse features from the future: a frame with `known_time` and `prediction_time` in each row.

    >>> check_known({"known_time": [datetime(2020, 1, 2)], "prediction_time": [datetime(2020, 1, 1)]})
    Traceback (most recent call last):
    ehrseq.errors.EvaluationError: expected features known by the prediction time; found 1 of 1 known only later; \
filter them by known_time
    """
    frame = to_polars(features)
    missing = [c for c in ("known_time", "prediction_time") if c not in frame.columns]
    if missing:
        raise EvaluationError("features with known_time and prediction_time", f"no {missing[0]}", "add the column")
    late = frame.select((~visible(pl.col("known_time"), pl.col("prediction_time"))).sum()).item()
    if late:
        raise EvaluationError(
            "features known by the prediction time", f"{late} of {frame.height} known only later",
            "filter them by known_time",
        )  # fmt: skip


def _held_out(name: str, queries: pl.DataFrame, subjects: pl.DataFrame, inside: pl.DataFrame) -> Design:
    test = queries.select(KEY).join(inside, on="subject_id", how="semi", maintain_order="left")
    return Design(name, subjects.join(inside, on="subject_id", how="anti", maintain_order="left"), test).checked()
