"""Occlusion: what a forecast becomes when something is taken out of the history that it was made from.

Each edited history is a subject of its own in one batch of timelines, forecast by the model's own path: nothing is
approximated, and whatever answers (hybrid with its calibration, boosted, transformer, Cox, age and sex) is explained
alike. Only what was visible at the prediction time is there to be taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl

from ehrseq.errors import ForecastError, nearest
from ehrseq.task.history import visible
from ehrseq.timeline.schema import TIME
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.vocabulary import CODED_TEXT, DEMOGRAPHICS, model_events

Score = Callable[[Timelines, pl.DataFrame], pl.DataFrame]
"""From timelines and rows of `subject_id, patient, prediction_time, outcome` to those rows with `horizon`,
`horizon_days` and `probability`, one a horizon."""

KINDS = ("event", "code", "window")
RECENT_EVENTS = 50
# by when an event became known, in days before the prediction time
WINDOW_ENDS = (90, 365, 1826)
WINDOWS = ("last 90 days", "90 days to 1 year", "1 to 5 years", "over 5 years")
ROWS_AT_ONCE = 400_000  # event rows of edited histories that are in memory together
WHOLE = -1  # the item of the copy from which nothing is taken
QUERY = ("subject_id", "prediction_time")
TOKEN = ("query", "time", "known_time", "code", "text_value", "unit")  # what the model reads as one event

CONTRIBUTION_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "patient": pl.String,
    "prediction_time": TIME,
    "outcome": pl.String,
    "horizon": pl.String,
    "horizon_days": pl.Float64,
    "kind": pl.String,  # event, code (all events of a code, or a demographic fact) or window
    "code": pl.String,  # null for a window
    "window": pl.String,  # null but for a window
    "time": TIME,  # of the event, or of the last one of the code; null for a window
    "known_time": TIME,  # the same, and for a window the latest in it
    "value": pl.Float64,  # of the event, or the last one of the code
    "unit": pl.String,
    "text_value": pl.String,  # a coded value, such as SNOMED//8517006
    "events": pl.Int64,  # how many were taken out
    "events_left": pl.Int64,  # how many dated events the model was left with
    "probability": pl.Float64,  # as issued
    "without": pl.Float64,  # of the history without it
    "contribution": pl.Float64,  # probability - without
}
SCOPE_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64, "patient": pl.String, "prediction_time": TIME,
    "events": pl.Int64,  # visible at the prediction time
    "one_by_one": pl.Int64,  # of these, the most recent, that were taken out one at a time
}  # fmt: skip


def check_kinds(kinds: Sequence[str], recent_events: int) -> None:
    """Raise ForecastError unless these are ways of taking out, and the number is one of events."""
    for kind in kinds:
        if kind not in KINDS:
            raise ForecastError(f"kinds among {', '.join(KINDS)}", f"'{kind}'", nearest(kind, KINDS))
    if recent_events < 1 or not kinds:
        raise ForecastError("at least one kind and one event", "none", "ask for more")


def occlude(
    timelines: Timelines, scored: pl.DataFrame, score: Score, *, kinds: Sequence[str] = KINDS,
    recent_events: int = RECENT_EVENTS, demographics: Sequence[str] = DEMOGRAPHICS,
) -> tuple[pl.DataFrame, pl.DataFrame]:  # fmt: skip
    """The contributions and the scope of each forecast, as `CONTRIBUTION_SCHEMA` and `SCOPE_SCHEMA`.

    `scored` has the rows that were forecast: `subject_id`, `patient`, `prediction_time`, `outcome`. Events are taken
    out one by one for the `recent_events` that became known last, codes and windows for all of the history;
    `demographics` are columns of the subject table that the model reads, taken out like a code.
    """
    check_kinds(kinds, recent_events)
    queries = scored.select(*QUERY, "patient").unique(QUERY, maintain_order=True).with_row_index("query")
    queries = queries.with_columns(pl.col("query").cast(pl.Int64))
    history = visible_history(timelines, queries)
    items = _items(history, queries, timelines.subjects, kinds, recent_events, demographics)
    history = _with_items(history, items)
    tables = [pl.DataFrame(schema=CONTRIBUTION_SCHEMA)]
    for part in _parts(queries, history, items):
        asked = scored.join(part.select(*QUERY, "query"), on=QUERY, maintain_order="left")
        mine = items.join(part.select("query"), on="query", how="semi", maintain_order="left")
        tables.append(_contributions(timelines, part, asked, history, mine, score))
    order = ["subject_id", "prediction_time", "outcome", "horizon_days", "kind"]
    table = pl.concat(tables).sort(
        *order, pl.col("contribution").abs(), "known_time", "code", "window", "text_value",
        descending=[False] * 5 + [True] * 2 + [False] * 3, nulls_last=True,
    )  # fmt: skip
    counts = history.group_by("query").agg(
        events=pl.col("token").n_unique(), one_by_one=pl.col("event").drop_nulls().n_unique()
    )
    one_by_one = pl.col("one_by_one") if "event" in kinds else pl.lit(0)
    scope = (
        queries.join(counts, on="query", how="left", maintain_order="left")
        .with_columns(pl.col("events").fill_null(0), one_by_one=pl.min_horizontal("events", one_by_one.fill_null(0)))
        .select(pl.col(c).cast(t) for c, t in SCOPE_SCHEMA.items())
    )
    return table, scope


def visible_history(timelines: Timelines, queries: pl.DataFrame) -> pl.DataFrame:
    """The events that the model may read at each query (`query`, `subject_id`, `prediction_time`), a row an event.

    `token` numbers what the model reads as one event: repeats of a code at one moment are one.
    """
    events = model_events(timelines.events).select(
        "subject_id", "time", "known_time", "code", "numeric_value", "unit",
        text_value=pl.when(pl.col("text_value").str.contains(CODED_TEXT)).then("text_value"),
    )  # fmt: skip
    joined = events.join(queries.select(*QUERY, "query"), on="subject_id")
    seen = visible(pl.col("known_time"), pl.col("prediction_time")).fill_null(True)  # dateless: always
    history = joined.filter(seen).sort("query", "known_time", "time", "code", nulls_last=False, maintain_order=True)
    return history.with_columns(token=pl.struct(TOKEN).rank("dense").cast(pl.Int64))


def _items(
    history: pl.DataFrame, queries: pl.DataFrame, subjects: pl.DataFrame, kinds: Sequence[str], recent: int,
    demographics: Sequence[str],
) -> pl.DataFrame:  # fmt: skip
    """What is to be taken out, a row each with its number `item`: `query`, `kind`, its key, and what it was."""
    last = [pl.col(c).last() for c in ("time", "known_time", "text_value")]
    numbers = [
        pl.col("numeric_value").cast(pl.Float64).drop_nulls().last().alias("value"),
        pl.col("unit").filter(pl.col("numeric_value").is_not_null()).last(),
    ]
    parts = []
    if "event" in kinds:
        one = history.group_by("query", "token", maintain_order=True).agg(
            pl.col("code").last(), *last, pl.col("unit").last(), events=pl.len(),
            value=pl.col("numeric_value").cast(pl.Float64).mean(),
        )  # fmt: skip
        parts.append(one.group_by("query", maintain_order=True).tail(recent).with_columns(kind=pl.lit("event")))
    if "code" in kinds:
        code = history.group_by("query", "code", maintain_order=True).agg(*last, *numbers, events=pl.len())
        parts.append(code.with_columns(kind=pl.lit("code")))
        for column in (c for c in demographics if c in subjects.columns):
            known = queries.join(subjects.select("subject_id", column), on="subject_id", maintain_order="left")
            fact = known.filter(pl.col(column).is_not_null()).select(
                "query", code=f"{column.upper()}//" + pl.col(column)
            )
            parts.append(fact.with_columns(kind=pl.lit("code"), demographic=pl.lit(column), events=pl.lit(0)))
    if "window" in kinds:
        window = history.with_columns(window=_window()).filter(pl.col("window").is_not_null())
        found = window.group_by("query", "window", maintain_order=True).agg(pl.col("known_time").max(), events=pl.len())
        parts.append(found.with_columns(kind=pl.lit("window")))
    told = ("kind", "code", "window", "time", "known_time", "value", "unit", "text_value", "events")
    empty = {"query": pl.Int64, "token": pl.Int64, "demographic": pl.String} | {c: CONTRIBUTION_SCHEMA[c] for c in told}
    typed = [part.with_columns(pl.col("events").cast(pl.Int64)) for part in parts]
    table = pl.concat([pl.DataFrame(schema=empty), *typed], how="diagonal")
    return table.with_row_index("item").with_columns(pl.col("item").cast(pl.Int64))


def _window() -> pl.Expr:
    """The window of an event by when it became known; null for a dateless fact."""
    days = (pl.col("prediction_time") - pl.col("known_time")).dt.total_microseconds() / 86_400_000_000
    window = pl.when(days.is_not_null()).then(pl.lit(WINDOWS[-1]))
    inside = [pl.when(days < end).then(pl.lit(name)) for end, name in zip(WINDOW_ENDS, WINDOWS, strict=False)]
    return pl.coalesce(*inside, window)


def _with_items(history: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """The history with the item that takes each event out, by kind: columns `event`, `by_code`, `by_window`."""
    history = history.with_columns(window=_window())
    for kind, name, key in (
        ("event", "event", "token"),
        ("code", "by_code", "code"),
        ("window", "by_window", "window"),
    ):
        chosen = items.filter(kind=kind).select("query", key, pl.col("item").alias(name))
        history = history.join(chosen, on=["query", key], how="left", maintain_order="left")
    return history


def _parts(queries: pl.DataFrame, history: pl.DataFrame, items: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Queries in parts whose edited histories are in memory together."""
    sizes = [table.group_by("query").len(name) for table, name in ((history, "events"), (items, "copies"))]
    rows = queries
    for size in sizes:
        rows = rows.join(size, on="query", how="left", maintain_order="left")
    cost = (pl.col("events").fill_null(0) + 1) * (pl.col("copies").fill_null(0) + 1)
    part = (cost.cast(pl.Int64).cum_sum() // ROWS_AT_ONCE).alias("part")
    yield from rows.with_columns(part).select(*queries.columns, "part").partition_by("part", maintain_order=True)


def _contributions(
    timelines: Timelines, queries: pl.DataFrame, scored: pl.DataFrame, history: pl.DataFrame, items: pl.DataFrame,
    score: Score,
) -> pl.DataFrame:  # fmt: skip
    whole = queries.select("query", item=pl.lit(WHOLE, pl.Int64))
    copies = pl.concat([whole, items.select("query", "item", "demographic")], how="diagonal").with_row_index("copy")
    copies = copies.with_columns(pl.col("copy").cast(pl.Int64))
    kept = copies.join(history, on="query").filter(
        pl.all_horizontal(
            pl.col(c).is_null() | (pl.col(c) != pl.col("item")) for c in ("event", "by_code", "by_window")
        )
    )
    risk = score_copies(timelines.subjects, copies, kept, scored, score)
    dated = kept.filter(pl.col("known_time").is_not_null()).group_by("copy").agg(events_left=pl.col("token").n_unique())
    copies = copies.join(dated, on="copy", how="left").with_columns(pl.col("events_left").fill_null(0))
    risk = risk.join(copies, left_on="subject_id", right_on="copy").select(
        "query", "item", "events_left", "outcome", "horizon", "horizon_days", "probability"
    )
    key = ["query", "outcome", "horizon"]
    issued = risk.filter(pl.col("item") == WHOLE).select(*key, "probability")
    return (
        risk.filter(pl.col("item") != WHOLE)
        .rename({"probability": "without"})
        .join(issued, on=key)
        .join(items, on=["query", "item"])
        .join(queries.select("query", *QUERY, "patient"), on="query")
        .with_columns(contribution=pl.col("probability") - pl.col("without"))
        .select(pl.col(c).cast(t) for c, t in CONTRIBUTION_SCHEMA.items())
    )


def score_copies(
    subjects: pl.DataFrame, copies: pl.DataFrame, events: pl.DataFrame, scored: pl.DataFrame, score: Score
) -> pl.DataFrame:
    """Forecasts of edited histories: each `copy` of a `query` with its rows of `events` as a subject of its own.

    A demographic column named in `copies` is unknown of that copy. `scored` has the rows to be forecast, with `query`.
    """
    rows = copies.select("copy", "query").join(scored, on="query").sort("copy", maintain_order=True)
    people = copies.join(scored.select("query", "subject_id").unique(), on="query").join(subjects, on="subject_id")
    for column in (c for c in DEMOGRAPHICS if c in subjects.columns and "demographic" in copies.columns):
        hidden = (pl.col("demographic") == column).fill_null(False)
        people = people.with_columns(pl.when(~hidden).then(column).alias(column))
    made = Timelines(
        events=events.select(pl.col("copy").alias("subject_id"), *TOKEN[1:], "numeric_value"),
        subjects=people.select(pl.col("copy").alias("subject_id"), *(c for c in subjects.columns if c != "subject_id")),
    )
    return score(made, rows.select(pl.col("copy").alias("subject_id"), "patient", "prediction_time", "outcome"))
