"""Whether explanations say what the model does: curves, a control with random weights, agreement, planted causes.

Removal curves follow Samek et al., Evaluating the Visualization of What a Deep Neural Network Has Learned (2017, IEEE
Transactions on Neural Networks and Learning Systems 28), and Petsiuk et al., RISE (2018, arXiv:1806.07421); the control
Adebayo et al., Sanity Checks for Saliency Maps (2018, arXiv:1810.03292).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.explain.occlusion import QUERY, ROWS_AT_ONCE, TOKEN, Score, occlude, score_copies, visible_history
from ehrseq.timeline.store import Timelines

Float = NDArray[np.float64]
FORECAST = [*QUERY, "outcome", "horizon"]
ITEM = ["code", "window", "time", "known_time", "unit", "text_value"]
STEPS = 10  # tenths of the ranked events
RANDOM_ORDERS = 3
REPLICATES = 1000
FIRST = 5
FEWEST_PEOPLE = 20  # of one person alone any interval is narrow: fewer than these pass no gate
RANDOMISED = 0.3  # the largest rank correlation with a model of random weights that passes


def removal_curves(
    timelines: Timelines, scored: pl.DataFrame, contributions: pl.DataFrame, score: Score, *, seed: int = 0
) -> pl.DataFrame:
    """Deletion and insertion curves of each forecast: `subject_id, prediction_time, outcome, horizon, order, step,
    deletion, insertion`, the last two forecast risks.

    `scored` are the rows that were forecast, `contributions` what `occlude` gave for them at one horizon. Deletion
    takes out events tenth by tenth, insertion puts them into a history without them, the events that raise the
    forecast most first (`order` explanation: by their own contribution), or in an order drawn at random (`random 0` and
    so on). Events that were not taken out one by one stay where they are.
    """
    queries = scored.select(*QUERY, "patient").unique(QUERY, maintain_order=True).with_row_index("query")
    queries = queries.with_columns(pl.col("query").cast(pl.Int64))
    history = visible_history(timelines, queries)
    ranks = _ranks(history, contributions, seed)
    tables = []
    for part in _parts(queries, history, ranks):
        mine = ranks.join(part.select("query"), on="query", how="semi")
        tables.append(_curves(timelines, part, history, mine, scored, score))
    table = pl.concat(tables).join(contributions.select("horizon").unique(), on="horizon", how="semi")
    own = (pl.col("for") == pl.col("outcome")) | pl.col("for").is_null()
    return (
        table.filter(own).select(*FORECAST, "order", "step", "deletion", "insertion").sort(*FORECAST, "order", "step")
    )


def ranked_events(contributions: pl.DataFrame, *, by_code: bool) -> pl.DataFrame:
    """The events of each forecast with their `rank`, 1 for the one that raises it most by its own contribution.

    `by_code`: those of the code that raises it most come first, and within a code their own contribution decides; of
    several events that tell the same none is missed for alone. `contributions` then has both kinds.
    """
    events = contributions.filter(kind="event").with_columns(of_code=pl.lit(0.0))
    if by_code:
        codes = contributions.filter(kind="code").select(*FORECAST, "code", of_code="contribution")
        events = events.drop("of_code").join(codes, on=[*FORECAST, "code"], maintain_order="left")
    order = ["of_code", "code", "contribution"] if by_code else ["contribution"]
    down = [name != "code" for name in order]
    ranked = events.sort(*FORECAST, *order, descending=[False] * len(FORECAST) + down, maintain_order=True)
    return ranked.with_columns(rank=pl.int_range(1, pl.len() + 1).over(FORECAST).cast(pl.Int64)).drop("of_code")


def _ranks(history: pl.DataFrame, contributions: pl.DataFrame, seed: int) -> pl.DataFrame:
    """`query`, `token`, `order`, `for` (the outcome that an order is for; null: any) and `rank` from 1."""
    tokens = history.select("query", "token", *QUERY, *TOKEN[1:]).unique("token", maintain_order=True)
    events = ranked_events(contributions, by_code=False).select(*QUERY, *TOKEN[1:], "outcome", "rank")
    ranked = tokens.join(events, on=[*QUERY, *TOKEN[1:]], nulls_equal=True).sort("token")
    own = ranked.select("query", "token", pl.lit("explanation").alias("order"), pl.col("outcome").alias("for"), "rank")
    parts = [own]
    one_by_one = ranked.select("query", "token").unique(maintain_order=True)
    rng = np.random.default_rng(seed)
    for i in range(RANDOM_ORDERS):
        drawn = one_by_one.with_columns(draw=pl.Series(rng.random(one_by_one.height)))
        rank = pl.col("draw").rank("ordinal").over("query").cast(pl.Int64)
        parts.append(
            drawn.select(
                "query", "token", pl.lit(f"random {i}").alias("order"), pl.lit(None, pl.String).alias("for"), rank=rank
            )
        )
    return pl.concat(parts)


def _parts(queries: pl.DataFrame, history: pl.DataFrame, ranks: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Queries in parts whose edited histories are in memory together."""
    copies = ranks.group_by("query").agg(copies=2 * (STEPS + 1) * pl.struct("order", "for").n_unique())
    rows = history.group_by("query").len("events").join(copies, on="query")
    cost = (pl.col("events").cast(pl.Int64) * pl.col("copies")).cum_sum() // ROWS_AT_ONCE
    sized = queries.join(rows.with_columns(part=cost).select("query", "part"), on="query", maintain_order="left")
    yield from sized.partition_by("part", maintain_order=True, include_key=False)


def _curves(
    timelines: Timelines, queries: pl.DataFrame, history: pl.DataFrame, ranks: pl.DataFrame, scored: pl.DataFrame,
    score: Score,
) -> pl.DataFrame:  # fmt: skip
    order = ["query", "order", "for"]
    sizes = ranks.group_by(order, maintain_order=True).agg(n=pl.len())
    steps = pl.DataFrame({"step": range(STEPS + 1)}, {"step": pl.Int64})
    kinds = pl.DataFrame({"curve": ["deletion", "insertion"]})
    copies = sizes.join(steps, how="cross").join(kinds, how="cross").with_row_index("copy")
    copies = copies.with_columns(
        pl.col("copy").cast(pl.Int64), first=(pl.col("n") * pl.col("step") / STEPS).round().cast(pl.Int64)
    )
    placed = copies.join(history, on="query").join(ranks, on=[*order, "token"], how="left", nulls_equal=True)
    among = pl.col("rank") <= pl.col("first")
    kept = placed.filter(
        pl.col("rank").is_null() | pl.when(pl.col("curve") == "deletion").then(~among).otherwise(among)
    )
    asked = scored.join(queries.select(*QUERY, "query"), on=QUERY, maintain_order="left")
    risk = score_copies(timelines.subjects, copies.select("copy", "query"), kept, asked, score)
    wide = risk.select(pl.col("subject_id").alias("copy"), "outcome", "horizon", "probability").join(copies, on="copy")
    wide = wide.pivot("curve", index=[*order, "step", "outcome", "horizon"], values="probability")
    return wide.join(queries.select("query", *QUERY), on="query")


def curve_gains(curves: pl.DataFrame) -> pl.DataFrame:
    """How much more than at random the explained order moves the forecast, one row a forecast: `deletion` and
    `insertion`, on the risk scale.

    The mean height of the curve over its steps; of the deletion curve how far it is below the issued forecast, of the
    insertion curve how far above that of the history without the events; minus the mean of the random orders.
    """
    areas = curves.group_by(*FORECAST, "order").agg(
        deletion=pl.col("deletion").sort_by("step").first() - pl.col("deletion").mean(),
        insertion=pl.col("insertion").mean() - pl.col("insertion").sort_by("step").first(),
    )
    explained = pl.col("order") == "explanation"
    return areas.group_by(FORECAST).agg(
        pl.col(c).filter(explained).first() - pl.col(c).filter(~explained).mean() for c in ("deletion", "insertion")
    ).sort(FORECAST)  # fmt: skip


def mean_with_interval(values: pl.Series, people: pl.Series, seed: int = 0) -> dict[str, Any]:
    """Mean, and the 95% percentile interval of a bootstrap over people; None where there is no value.

    >>> found = mean_with_interval(pl.Series([1.0, 1.0, 1.0]), pl.Series([1, 1, 2]))
    >>> found["mean"], found["lower"], found["upper"], found["people"]
    (1.0, 1.0, 1.0, 2)
    """
    table = pl.DataFrame({"person": people, "value": values}).drop_nulls().group_by("person", maintain_order=True)
    sums, counts = (table.agg(e)["value"].to_numpy() for e in (pl.col("value").sum(), pl.col("value").len()))
    if not len(sums):
        return {"mean": None, "lower": None, "upper": None, "people": 0}
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), REPLICATES)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975])
    return {"mean": float(sums.sum() / counts.sum()), "lower": float(low), "upper": float(high), "people": len(sums)}


def rank_agreement(tables: Sequence[pl.DataFrame], kind: str = "code") -> pl.DataFrame:
    """Spearman's correlation of the contributions in each forecast, mean over pairs of tables: `correlation`.

    Forecasts that all the tables have, with at least three things taken out; null where one table holds nothing but
    equal contributions.
    """
    key = [*FORECAST, *ITEM]
    some = [t.filter(kind=kind).select(*key, "contribution").sort(key) for t in tables]
    pairs = []
    for one, other in combinations(some, 2):
        both = one.join(other, on=key, nulls_equal=True, suffix="_other")
        found = both.group_by(FORECAST).agg(
            correlation=pl.corr("contribution", "contribution_other", method="spearman"), things=pl.len()
        )
        pairs.append(found.filter(pl.col("things") >= 3).with_columns(pl.col("correlation").fill_nan(None)))
    return pl.concat(pairs).group_by(FORECAST).agg(pl.col("correlation").mean()).sort(FORECAST)


def precision_first(
    contributions: pl.DataFrame, causes: Mapping[str, Sequence[str]], first: int = FIRST, *, by_code: bool = True
) -> pl.DataFrame:
    """Among the events that raise each forecast most, the share that are causes: `precision`, and `at_random`.

    `causes` names, by outcome, the codes (or `code=coded value`) of its causes. Of forecasts with at least one cause
    in their history: of the `first` events as `ranked_events` has them, or as many as there are causes where these are
    fewer, the share of causes. `at_random` is the share of causes among all events: what a random order would have on
    average.

    >>> from datetime import datetime
    >>> table = pl.DataFrame({"subject_id": 1, "prediction_time": datetime(2020, 1, 1), "outcome": "x", "horizon": "1y",
    ...     "kind": ["event"] * 4 + ["code"] * 2, "code": ["A", "B", "A", "B", "A", "B"], "text_value": None,
    ...     "contribution": [0.1, 0.2, 0.0, 0.0, 0.3, 0.2]})
    >>> precision_first(table, {"x": ["A"]}).select("precision", "at_random", "causes").rows()
    [(1.0, 0.5, 2)]
    """
    events = ranked_events(contributions, by_code=by_code)
    found = []
    for outcome, codes in causes.items():
        coded = pl.col("code") + "=" + pl.col("text_value").cast(pl.String)
        cause = pl.col("code").is_in(list(codes)) | coded.is_in(list(codes)).fill_null(False)
        rows = events.filter(outcome=outcome).with_columns(cause=cause)
        k = pl.min_horizontal(pl.col("cause").sum().over(FORECAST), first)
        rows = rows.with_columns(k=k).filter(pl.col("k") > 0)
        found.append(
            rows.group_by(FORECAST).agg(
                precision=pl.col("cause").filter(pl.col("rank") <= pl.col("k")).mean(),
                at_random=pl.col("cause").mean(), causes=pl.col("cause").sum(), events=pl.len(),
            )
        )  # fmt: skip
    return pl.concat(found).sort(FORECAST)


def measure(
    timelines: Timelines, scored: pl.DataFrame, score: Score, random_scores: Sequence[Score], *,
    demographics: Sequence[str], seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The figures and gates of the forecasts of `scored`, at the one horizon that `score` has; see `figures`.

    `random_scores` are the same model with random weights (`ehrseq.explain.randomise`), several times: how one of them
    happens to lean is alike for everybody.
    """
    contributions, _ = occlude(timelines, scored, score, kinds=("event", "code"), demographics=demographics)
    controls = [occlude(timelines, scored, r, kinds=("code",), demographics=demographics)[0] for r in random_scores]
    gains = curve_gains(removal_curves(timelines, scored, contributions, score, seed=seed))
    agreement = pl.concat([rank_agreement([contributions, control]) for control in controls])
    return figures(gains, agreement, seed)


def figures(gains: pl.DataFrame, agreement: pl.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The figures and gates of one model on people whom it was not fitted on, as JSON values.

    `gains` as `curve_gains` gives them, `agreement` the rank correlation of its contributions with those of the same
    model with random weights. The gates: deletion and insertion move each outcome's forecasts more than a random order
    does, with the interval above 0, and random weights do not give the same ranking; of fewer than 20 people none is
    passed.
    """
    curves = {
        outcome: {c: mean_with_interval(rows[c], rows["subject_id"], seed) for c in ("deletion", "insertion")}
        for (outcome,), rows in gains.group_by("outcome", maintain_order=True)
    }
    control = mean_with_interval(agreement["correlation"], agreement["subject_id"], seed)
    passed = {
        c: bool(curves) and all(_enough(found[c]) and found[c]["lower"] > 0 for found in curves.values())
        for c in ("deletion", "insertion")
    }
    passed["randomised weights"] = _enough(control) and max(-control["lower"], control["upper"]) < RANDOMISED
    return {
        "gates": {name: "passed" if ok else "failed" for name, ok in passed.items()},
        "curves": curves,
        "randomised_weights": control,
        "horizon": gains["horizon"].first(),
        "forecasts": gains.height,
        "seed": seed,
    }


def _enough(found: Mapping[str, Any]) -> bool:
    return bool(found["people"] >= FEWEST_PEOPLE)
