"""The state of each outcome at each prediction time: what is known of it by then, and what comes next."""

from __future__ import annotations

import polars as pl

from ehrseq.task.composite import changes
from ehrseq.task.definition import Outcome, Task
from ehrseq.task.history import visible
from ehrseq.task.outcome import inside, periods_of

_T = pl.col("prediction_time")


def column(kind: str, name: str, task: Task) -> pl.Expr:
    """One of the columns that `with_states` adds."""
    return pl.col(f"_{kind}_{task.outcomes.index(task.outcome(name))}")


def with_states(frame: pl.DataFrame, occurrences: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Queries, sorted by `prediction_time`, with columns for each outcome (number i of the task).

    What can be told at the prediction time: `_known_i` (it has happened, known by then), `_recent_i` (and within the
    washout), `_no_baseline_i` (there is nothing to count a change from), `_outside_i` (not in the stay that `during`
    names). What only labels may use: `_occurred_i` (it has happened by then, known or not; with a washout, within
    it) and `_next_i` (when it happens next, strictly later).
    """
    names = {o.name: o for o in task.outcomes}
    for number, outcome in enumerate(task.outcomes):
        found = occurrences.filter(pl.col("outcome") == outcome.name)
        if changing := changes(outcome, names):
            found = found.filter(pl.col("part").is_null())
        frame = _next(_known(frame, found, outcome, number), found, number)
        frame = frame.with_columns(pl.lit(False).alias(f"_no_baseline_{number}"))
        for part in range(len(changing)):
            periods = occurrences.filter((pl.col("outcome") == periods_of(outcome.name)) & (pl.col("part") == part))
            frame = _change(frame, periods, number)
        frame = _outside(frame, occurrences, outcome, number)
    return frame


def _known(frame: pl.DataFrame, found: pl.DataFrame, outcome: Outcome, number: int) -> pl.DataFrame:
    earliest = found.group_by("subject_id").agg(
        pl.col("known_time").min().alias("_first_known"), pl.col("occurred_time").min().alias("_first_occurred")
    )
    frame = frame.join(earliest, on="subject_id", how="left", maintain_order="left")
    known, occurred, recent = visible(pl.col("_first_known"), _T), pl.col("_first_occurred") <= _T, pl.lit(False)
    if outcome.washout is not None:
        begins = outcome.washout.before(_T)
        # the latest of those known by then, and the latest of all
        latest = found.sort("known_time").select(
            "subject_id", _when="known_time", _latest=pl.col("time").cum_max().over("subject_id")
        )
        frame = _latest(frame, latest, "_when").drop("_when")
        times = found.sort("time").select("subject_id", _last="time")
        frame = _latest(frame, times, "_last")
        recent, occurred = pl.col("_latest") > begins, pl.col("_last") > begins
    states = {"known": known, "occurred": occurred, "recent": recent}
    frame = frame.with_columns(test.fill_null(False).alias(f"_{kind}_{number}") for kind, test in states.items())
    return frame.drop("_first_known", "_first_occurred", "_latest", "_last", strict=False)


def _next(frame: pl.DataFrame, found: pl.DataFrame, number: int) -> pl.DataFrame:
    name = f"_next_{number}"
    following = found.select("subject_id", pl.col("time").alias(name)).sort(name)
    return frame.join_asof(
        following, left_on="prediction_time", right_on=name, strategy="forward", allow_exact_matches=False,
        coalesce=False, by="subject_id", check_sortedness=False,
    )  # fmt: skip


def _change(frame: pl.DataFrame, periods: pl.DataFrame, number: int) -> pl.DataFrame:
    """The period of constant baseline that the prediction time falls in, and the change that comes next in it."""
    known, missing, occurred, following = (f"_{k}_{number}" for k in ("known", "no_baseline", "occurred", "next"))
    table = periods.sort("from_time").select(
        "subject_id", _from="from_time", _until="until_time", _present="present", _time="time",
        _when="occurred_time",
    )  # fmt: skip
    frame = _latest(frame, table, "_from")
    within = (pl.col("_until") > _T).fill_null(False)
    later = within & (pl.col("_time") > _T)
    return frame.with_columns(
        (pl.col(missing) | ~within).alias(missing),
        (pl.col(known) | (within & pl.col("_present").fill_null(False))).alias(known),
        (pl.col(occurred) | (within & (pl.col("_when") <= _T)).fill_null(False)).alias(occurred),
        pl.min_horizontal(following, pl.when(later).then("_time")).alias(following),
    ).drop("_from", "_until", "_present", "_time", "_when")


def _outside(frame: pl.DataFrame, occurrences: pl.DataFrame, outcome: Outcome, number: int) -> pl.DataFrame:
    name = f"_outside_{number}"
    if outcome.during is None:
        return frame.with_columns(pl.lit(False).alias(name))
    spans = occurrences.filter(pl.col("outcome") == inside(outcome.during)).sort("from_time")
    spans = spans.select("subject_id", _from="from_time", _until="until_time")
    frame = _latest(frame, spans, "_from")
    within = pl.col("_from").is_not_null() & (pl.col("_until").is_null() | (pl.col("_until") > _T))
    return frame.with_columns((~within).alias(name)).drop("_from", "_until")


def _latest(frame: pl.DataFrame, table: pl.DataFrame, when: str) -> pl.DataFrame:
    """The latest row of a table, sorted by its column `when`, by the prediction time."""
    return frame.join_asof(
        table, left_on="prediction_time", right_on=when, by="subject_id", coalesce=False, check_sortedness=False
    )
