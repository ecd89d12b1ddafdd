"""Which events count: by code, by value, and confirmed by earlier ones. Pure expressions and functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from operator import and_, or_

import polars as pl

from ehrseq.task.outcome_definition import Bounds, Confirm


def code_matches(patterns: Sequence[str], code: pl.Expr | None = None) -> pl.Expr:
    """Whether a code (the column `code`) equals one of the patterns, or starts with one that ends in `*`.

    >>> frame = pl.DataFrame({"code": ["ICD10CM//E11.9", "ICD10CM//E11", "SNOMED//44054006", "SNOMED//440540061"]})
    >>> frame.select(code_matches(["ICD10CM//E11*", "SNOMED//44054006"])).to_series().to_list()
    [True, True, True, False]
    """
    exact = [p for p in patterns if not p.endswith("*")]
    code = pl.col("code") if code is None else code
    tests = [code.is_in(exact) if len(exact) > 1 else code == exact[0]] if exact else []
    tests += [code.str.starts_with(p[:-1]) for p in patterns if p.endswith("*")]
    return reduce(or_, tests) if tests else pl.lit(False)


def event_matches(patterns: Sequence[str], others: pl.Series | None = None) -> pl.Expr:
    """Whether the `code` of an event or any of its `other_codes` matches (see `code_matches`).

    `others` are these other codes of all the events, where they are at hand: there may be none to look at.

    >>> others = [["ICD10CM//E11.9"], None, ["ICD10CM//E1", "X//1"]]
    >>> frame = pl.DataFrame({"code": ["SNOMED//44054006", "ICD10CM//E11", "SNOMED//1"], "other_codes": others})
    >>> frame.select(event_matches(["ICD10CM//E11*"])).to_series().to_list()
    [True, True, False]
    """
    return _event_matches(tuple(patterns), others is not None and others.null_count() == len(others))


@lru_cache(maxsize=256)  # for each forecast the same ones of a task
def _event_matches(patterns: tuple[str, ...], by_code: bool) -> pl.Expr:
    if by_code or not patterns:
        return code_matches(patterns)
    others = pl.col("other_codes").list.eval(code_matches(patterns, pl.element())).list.any()
    return code_matches(patterns) | others.fill_null(False)


@lru_cache(maxsize=256)
def value_matches(bounds: Bounds) -> pl.Expr:
    """Whether `numeric_value` is certainly within the bounds, as recorded, without units.

    `value_modifier` counts: `<45` is below 45, `>30` is not certainly below 45. Without bounds every event matches;
    with one, an event without a number does not.

    >>> values, modifiers = [44.9, 45, 45, 30, None], [None, None, "<", ">", None]
    >>> frame = pl.DataFrame({"numeric_value": values, "value_modifier": modifiers})
    >>> frame.select(value_matches(Bounds(below=45)), at_most=value_matches(Bounds(at_most=45))).rows()
    [(True, True), (False, True), (True, True), (False, False), (False, False)]
    """
    tests = [
        beyond(pl.lit(bound, pl.Float32), upper=upper, inclusive=inclusive)
        for bound, upper, inclusive in (
            (bounds.below, True, False),
            (bounds.above, False, False),
            (bounds.at_most, True, True),
            (bounds.at_least, False, True),
        )
        if bound is not None
    ]
    return reduce(and_, tests, pl.lit(True))


def beyond(bound: pl.Expr, *, upper: bool, inclusive: bool) -> pl.Expr:
    """Whether `numeric_value`, with its modifier, is certainly below an upper bound, or above a lower one."""
    # values are float32: 2.67 as float32 lies above 2.67 as float64
    value, limit = pl.col("numeric_value").cast(pl.Float32), bound.cast(pl.Float32)
    modifier = pl.col("value_modifier").fill_null("")
    strict, towards, away = (value < limit, "<", [">", ">="]) if upper else (value > limit, ">", ["<", "<="])
    at_bound = ~modifier.is_in(away) if inclusive else modifier == towards
    return (strict & ~modifier.is_in(away) | (value == limit) & at_bound).fill_null(False)


def confirmed(events: pl.DataFrame, confirm: Confirm) -> pl.DataFrame:
    """The events that confirm: the last of `times` matching events, each at least `apart` after the one before.

    Takes and returns columns `subject_id`, `time` and `known_time` (others pass through). `apart` is counted between
    the clinical times. `known_time` becomes the moment by which the whole chain is known: with results that arrive
    out of order this may be later than the confirming event's own. Every confirming event is returned.

    >>> from datetime import datetime
    >>> days = [datetime(2020, 1, 1), datetime(2020, 2, 1), datetime(2020, 6, 1)]
    >>> frame = pl.DataFrame({"subject_id": [1, 1, 1], "time": days, "known_time": days})
    >>> from ehrseq.task.span import Horizon
    >>> confirmed(frame, Confirm(times=2, apart=Horizon("90d")))["time"].to_list()
    [datetime.datetime(2020, 6, 1, 0, 0)]
    """
    chain = events.filter(pl.col("time").is_not_null()).sort("time", maintain_order=True)
    for _ in range(confirm.times - 1):
        # the earliest moment by which a chain of this length, ending early enough before an event, is known
        earlier = chain.select(
            "subject_id",
            ready=confirm.apart.after(pl.col("time")),
            chain_known=pl.col("known_time").cum_min().over("subject_id"),
        )
        chain = (
            chain.join_asof(
                earlier,
                left_on="time",
                right_on="ready",
                by="subject_id",
                strategy="backward",
                check_sortedness=False,
            )
            .filter(pl.col("chain_known").is_not_null())
            .with_columns(known_time=pl.max_horizontal("known_time", "chain_known"))
            .drop("chain_known", "ready", strict=False)
        )
    return chain
