"""The state of each outcome at each prediction time: what is known of it by then, and what comes next."""

from __future__ import annotations

import polars as pl

from ehrseq.task.composite import changes
from ehrseq.task.definition import Horizon, Task
from ehrseq.task.history import visible
from ehrseq.task.outcome import inside, periods_of

_T = pl.col("prediction_time")


def column(kind: str, name: str, task: Task) -> pl.Expr:
    """One of the columns that `with_states` adds."""
    return pl.col(f"_{kind}_{task.outcomes.index(task.outcome(name))}")


def with_states(frame: pl.LazyFrame, occurrences: pl.LazyFrame, task: Task, *, later: bool) -> pl.LazyFrame:
    """Queries, sorted by `prediction_time`, with columns for each outcome (number i of the task).

    What can be told at the prediction time: `_known_i` (it has happened, known by then), and of an outcome that has
    such a thing `_recent_i` (and within the washout), `_no_baseline_i` (there is nothing to count a change from) and
    `_outside_i` (not in the stay that `during` names). What only labels may use, and only comes `later`: `_occurred_i`
    (it has happened by then, known or not; with a washout, within it) and `_next_i` (when it happens next, strictly
    later).
    """
    names = {o.name: o for o in task.outcomes}
    changing = {o.name: changes(o, names) for o in task.outcomes}
    fixed = {name: pl.col("outcome") == name for name in names}
    fixed |= {name: fixed[name] & pl.col("part").is_null() for name, parts in changing.items() if parts}
    frame = _first(frame, occurrences, list(fixed.values()), later=later)
    for number, outcome in enumerate(task.outcomes):
        found = occurrences.filter(fixed[outcome.name])
        if outcome.washout is not None:
            frame = _washed_out(frame, found, outcome.washout, number, later=later)
        if later:
            frame = _next(frame, found, number)
        if changing[outcome.name]:
            frame = frame.with_columns(pl.lit(False).alias(f"_no_baseline_{number}"))
        for part in range(len(changing[outcome.name])):
            periods = occurrences.filter((pl.col("outcome") == periods_of(outcome.name)) & (pl.col("part") == part))
            frame = _change(frame, periods, number, later=later)
        if outcome.during is not None:
            frame = _outside(frame, occurrences.filter(pl.col("outcome") == inside(outcome.during)), number)
    return frame


def _first(frame: pl.LazyFrame, occurrences: pl.LazyFrame, of_outcome: list[pl.Expr], *, later: bool) -> pl.LazyFrame:
    """`_known_i` and `_occurred_i` of outcomes without washouts and changes."""
    kinds = ("known", "occurred") if later else ("known",)
    first = {(kind, n): f"_first_{kind}_{n}" for n in range(len(of_outcome)) for kind in kinds}
    earliest = occurrences.group_by("subject_id").agg(
        pl.when(of_outcome[n]).then(f"{kind}_time").min().alias(name) for (kind, n), name in first.items()
    )
    states = []
    for (kind, n), name in first.items():
        by_then = visible(pl.col(name), _T) if kind == "known" else pl.col(name) <= _T
        states.append(by_then.fill_null(False).alias(f"_{kind}_{n}"))
    joined = frame.join(earliest, on="subject_id", how="left", maintain_order="left")
    return joined.with_columns(states)


def _washed_out(
    frame: pl.LazyFrame, found: pl.LazyFrame, washout: Horizon, number: int, *, later: bool
) -> pl.LazyFrame:
    """Whether the latest of those known by then (and, `later`, the latest of all) is within the washout."""
    begins = washout.before(_T)
    latest = found.sort("known_time").select(
        "subject_id", _when="known_time", _latest=pl.col("time").cum_max().over("subject_id")
    )
    frame = _latest(frame, latest, "_when")
    frame = frame.with_columns((pl.col("_latest") > begins).fill_null(False).alias(f"_recent_{number}"))
    frame = frame.drop("_when", "_latest")
    if not later:
        return frame
    frame = _latest(frame, found.sort("time").select("subject_id", _last="time"), "_last")
    return frame.with_columns((pl.col("_last") > begins).fill_null(False).alias(f"_occurred_{number}")).drop("_last")


def _next(frame: pl.LazyFrame, found: pl.LazyFrame, number: int) -> pl.LazyFrame:
    name = f"_next_{number}"
    following = found.select("subject_id", pl.col("time").alias(name)).sort(name)
    return frame.join_asof(
        following, left_on="prediction_time", right_on=name, strategy="forward", allow_exact_matches=False,
        coalesce=False, by="subject_id", check_sortedness=False,
    )  # fmt: skip


def _change(frame: pl.LazyFrame, periods: pl.LazyFrame, number: int, *, later: bool) -> pl.LazyFrame:
    """The period of constant baseline that the prediction time falls in, and the change that comes next in it."""
    known, missing, occurred, following = (f"_{k}_{number}" for k in ("known", "no_baseline", "occurred", "next"))
    table = periods.sort("from_time").select(
        "subject_id", _from="from_time", _until="until_time", _present="present", _time="time",
        _when="occurred_time",
    )  # fmt: skip
    frame = _latest(frame, table, "_from")
    within = (pl.col("_until") > _T).fill_null(False)
    states = {
        missing: pl.col(missing) | ~within,
        known: pl.col(known) | (within & pl.col("_present").fill_null(False)),
    }
    if later:
        states[occurred] = pl.col(occurred) | (within & (pl.col("_when") <= _T)).fill_null(False)
        states[following] = pl.min_horizontal(following, pl.when(within & (pl.col("_time") > _T)).then("_time"))
    return frame.with_columns(**states).drop("_from", "_until", "_present", "_time", "_when")


def _outside(frame: pl.LazyFrame, spans: pl.LazyFrame, number: int) -> pl.LazyFrame:
    table = spans.sort("from_time").select("subject_id", _from="from_time", _until="until_time")
    frame = _latest(frame, table, "_from")
    within = pl.col("_from").is_not_null() & (pl.col("_until").is_null() | (pl.col("_until") > _T))
    return frame.with_columns((~within).alias(f"_outside_{number}")).drop("_from", "_until")


def _latest(frame: pl.LazyFrame, table: pl.LazyFrame, when: str) -> pl.LazyFrame:
    """The latest row of a table, sorted by its column `when`, by the prediction time."""
    return frame.join_asof(
        table, left_on="prediction_time", right_on=when, by="subject_id", coalesce=False, check_sortedness=False
    )
