"""Change from baseline: what a subject's next fall or rise is, at whatever prediction time it is asked.

The baseline belongs to the prediction time, so the label does too. But it changes only where a value becomes known or
leaves the lookback window: between two such moments every prediction time has the same baseline and the same next
event. `change_periods` works these periods out once for all subjects; a label is then one lookup in a sorted table.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from ehrseq.task.outcome_definition import Baseline, Outcome, amount
from ehrseq.task.predicate import beyond, confirmed

PAIRS = 4_000_000  # periods times values looked at in one go: bounds memory
ROUNDING = 1e-6  # of the baseline
PERIOD_COLUMNS = ("subject_id", "from_time", "until_time", "present", "time", "occurred_time", "known_time")


def change_periods(values: pl.DataFrame, outcome: Outcome) -> pl.DataFrame:
    """The periods of constant baseline, each with the change that comes next.

    Takes measurements: `subject_id`, `time`, `known_time`, `numeric_value`, `value_modifier`, `occurred_time` (end of
    the clinical interval) and `counts` (whether the value meets the outcome's bounds). Returns `subject_id`,
    `from_time` (inclusive), `until_time` (exclusive), `present` (the last value known is already past
    the bound, which only a mean allows), and `occurred_time`, `known_time` and `time` (the one of the two that
    `event_time` chooses) of the first value, known after the prediction time, that is past the bound; null where
    there is none. A moment in no period has no baseline.
    """
    if outcome.baseline is None or outcome.change is None:
        raise ValueError("an outcome that is no change from baseline")
    values = values.filter(pl.col("time").is_not_null()).with_columns(
        pl.col("numeric_value").cast(pl.Float64), exact=pl.col("value_modifier").fill_null("") == ""
    )
    values = values.sort("subject_id", "known_time", "time", "numeric_value")
    periods = _baselines(values, outcome.baseline)
    (size, share), upper = amount(outcome.change), outcome.fall is not None
    if share:
        periods = periods.filter(pl.col("baseline") > 0)  # a share of nothing is nothing
    limit = _limit(-size if upper else size, share=share)
    periods = periods.with_columns(limit=limit.cast(pl.Float32)).with_row_index("period")
    last = pl.col("last").cast(pl.Float32)
    present = last <= pl.col("limit") if upper else last >= pl.col("limit")
    candidates = values.filter("counts").select(
        "subject_id", "time", "known_time", "occurred_time", "numeric_value", "value_modifier"
    )
    candidates = _reachable(candidates, periods, upper)
    found = pl.concat([_next_changes(part, candidates, outcome) for part in _parts(periods, candidates)])
    first = found.group_by("period").agg(pl.col("occurred_time", "known_time").min())
    chosen = "known_time" if outcome.event_time == "known" else "occurred_time"
    return (
        periods.join(first, on="period", how="left", maintain_order="left")
        .with_columns(present=present, time=pl.col(chosen))
        .select(PERIOD_COLUMNS)
    )


def _reachable(values: pl.DataFrame, periods: pl.DataFrame, upper: bool) -> pl.DataFrame:
    """The values that are past the limit of some period of their subject: most are past none."""
    limit = pl.col("limit")
    extreme = periods.group_by("subject_id").agg(limit.max() if upper else limit.min())
    known = values.join(extreme, on="subject_id", maintain_order="left")
    return known.filter(beyond(limit, upper=upper, inclusive=True)).drop("limit")


def _limit(change: float, *, share: bool) -> pl.Expr:
    """The value that a fall (below zero) or a rise must reach, from the column `baseline`."""
    baseline = pl.col("baseline")
    limit = baseline * (1 + change) if share else baseline + change
    # values have seven digits: 0.54 is a fall by 40% from 0.9, although not to the last bit
    return limit + (ROUNDING if change < 0 else -ROUNDING) * baseline.abs()


def _baselines(values: pl.DataFrame, baseline: Baseline) -> pl.DataFrame:
    """`subject_id`, `from_time`, `until_time`, `baseline` and `last` (value known) of each period that has a baseline.

    `values` are sorted by subject and `known_time`. Every value begins a period, also one that is not `exact`: the
    next change is another one once it is known.
    """
    time = pl.when("exact").then("time")
    latest = time.cum_max().over("subject_id")
    is_latest = pl.col("exact") & (pl.col("time") == latest)
    known = values.with_columns(
        latest_time=latest.forward_fill().over("subject_id"),
        last=pl.when(is_latest).then("numeric_value").forward_fill().over("subject_id"),
    )
    known = known.group_by("subject_id", "known_time", maintain_order=True).agg(pl.col("latest_time", "last").last())
    # when the latest value has left the window, so has every other
    empty = baseline.within.after(pl.col("latest_time"))
    if baseline.value == "last":
        periods = known.select(
            "subject_id", from_time="known_time", until_time=_following("known_time"), baseline="last", last="last",
            empty=empty,
        )  # fmt: skip
    else:
        periods = _means(values, baseline).join_asof(
            known.select("subject_id", "known_time", "last", empty=empty),
            left_on="from_time", right_on="known_time", by="subject_id", check_sortedness=False,
        )  # fmt: skip
    return (
        periods.with_columns(until_time=pl.min_horizontal("until_time", "empty"))
        .filter((pl.col("until_time") > pl.col("from_time")) & pl.col("baseline").is_not_null())
        .select("subject_id", "from_time", "until_time", "baseline", "last")
        .sort("subject_id", "from_time")
    )


def _means(values: pl.DataFrame, baseline: Baseline) -> pl.DataFrame:
    """The mean of the values in the window, from each moment at which one comes or goes."""
    leaves = baseline.within.after(pl.col("time"))
    inside = values.filter(pl.col("exact") & (leaves > pl.col("known_time")))
    one = pl.lit(1, pl.Int32)
    steps = pl.concat(
        [
            # also one that is never in the window: the next change is another one once it is known
            values.select("subject_id", from_time="known_time", value=pl.lit(0.0), count=pl.lit(0, pl.Int32)),
            inside.select("subject_id", from_time="known_time", value="numeric_value", count=one),
            inside.select("subject_id", from_time=leaves, value=-pl.col("numeric_value"), count=-one),
        ]
    )
    steps = steps.sort("subject_id", "from_time", "count", "value")
    sums = steps.with_columns(pl.col("value", "count").cum_sum().over("subject_id"))
    return (
        sums.group_by("subject_id", "from_time", maintain_order=True)
        .agg(pl.col("value", "count").last())
        .with_columns(until_time=_following("from_time"))
        .filter(pl.col("count") > 0)
        .select("subject_id", "from_time", "until_time", baseline=pl.col("value") / pl.col("count"))
        .sort("from_time")
    )


def _following(column: str) -> pl.Expr:
    return pl.col(column).shift(-1).over("subject_id")


def _parts(periods: pl.DataFrame, values: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The periods, each of which stands alone, in parts of about PAIRS pairs of a period and a value."""
    counts = values.group_by("subject_id").agg(_values=pl.len())
    sized = periods.join(counts, on="subject_id", how="left", maintain_order="left")
    sized = sized.with_columns(_part=pl.col("_values").fill_null(0).cast(pl.Int64).cum_sum() // PAIRS)
    for _, part in sized.group_by("_part", maintain_order=True):
        yield part.drop("_part", "_values")
    if not periods.height:
        yield periods


def _next_changes(periods: pl.DataFrame, values: pl.DataFrame, outcome: Outcome) -> pl.DataFrame:
    """`period`, `occurred_time`, `known_time` of the values known after a period begins that are past its limit."""
    pairs = periods.select("period", "subject_id", "from_time", "limit").join(values, on="subject_id")
    past = beyond(pl.col("limit"), upper=outcome.fall is not None, inclusive=True)
    pairs = pairs.filter((pl.col("known_time") > pl.col("from_time")) & past)
    if outcome.confirm is not None:
        # a chain of its own for each period
        chains = confirmed(pairs.drop("subject_id").rename({"period": "subject_id"}), outcome.confirm)
        pairs = chains.rename({"subject_id": "period"})
    return pairs.select("period", pl.min_horizontal("occurred_time", "known_time"), "known_time")
