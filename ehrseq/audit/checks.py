"""Audits without a fit: who is judged, from when, and whether the guards hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl

from ehrseq.audit.material import KEY, Audit, Material, NotPossible
from ehrseq.errors import EvaluationError
from ehrseq.evaluate.design import Design, check_known, check_no_overlap
from ehrseq.task.history import visible
from ehrseq.task.outcome import occurrences
from ehrseq.timeline.schema import DEATH_CODE, TIME, normalise_events
from ehrseq.timeline.store import Timelines

GAPS = (0, 30, 90)
# Most subjects that a check looks at.
MOST = 4000
# How far a forecast may move for rounding alone.
ROUNDING = 1e-6
_T = pl.col("prediction_time")


def new_onsets_only(m: Material) -> Audit:
    """Without those who had had the outcome before, whether or not it was known."""
    before = (
        occurrences(m.unseen, m.task)
        .drop_nulls("occurred_time")
        .group_by("subject_id", "outcome")
        .agg(_first=pl.col("occurred_time").min())
    )
    marked = m.labels.join(before, on=["subject_id", "outcome"], how="left", maintain_order="left")
    earlier = pl.col("at_risk") & (pl.col("_first") <= _T).fill_null(False)
    left_out = marked.select(earlier.sum()).item()
    risks = {m.judged: m.forecasts()}
    rows, _ = m.judge(risks, m.labels.filter(~marked.select(earlier).to_series()))
    if not left_out:
        return Audit(
            "New onsets only",
            "Nobody at risk had had the outcome before: every event judged is a first one, and nobody had to be left"
            " out.", rows=tuple(rows),
        )  # fmt: skip
    rows = [{**row, "model": f"{m.judged}, new onsets"} for row in rows]
    whole, _ = m.judge(risks, m.labels)
    return Audit(
        "New onsets only",
        f"{left_out} prediction times at risk were left out, where the outcome had occurred before and was not yet"
        " known, or may come again.", rows=(*whole, *rows),
    )  # fmt: skip


def gaps_before(m: Material) -> Audit:
    """Forecasts of what happens from some days after the prediction time on, to those still free of it then."""
    possible = [days for days in GAPS if days < m.horizon.days]
    main = m.forecasts()
    rows = []
    for days in possible:
        risks, labels = {m.judged: main}, m.labels.filter("at_risk")
        if days:
            risks = {m.judged: after_gap(main, m.forecasts(horizons=(f"{days}d",)), days)}
            labels = labels.filter(pl.col("days") > days).with_columns(pl.col("days") - days)
        found, _ = m.judge(risks, labels, days=m.horizon.days - days)
        rows += [{**row, "model": f"{row['model']}, gap of {days} days"} for row in found]
    return Audit(
        "Gap between what is known and what is forecast",
        f"The same forecasts, made into the chance of the outcome by {m.horizon.label} for whoever is free of it and"
        f" observed {', '.join(str(d) for d in possible)} days after the prediction time, and judged on them from then"
        " on. An AUC that falls with the gap comes from events that were being worked up already.",
        rows=tuple(rows),
    )  # fmt: skip


def after_gap(main: pl.DataFrame, early: pl.DataFrame, days: int) -> pl.DataFrame:
    """The chance of the outcome from `days` on by the horizon, given neither it nor a competing event before.

    >>> key = {"subject_id": [1], "prediction_time": [0], "outcome": ["a"]}
    >>> main = pl.DataFrame({**key, "horizon_days": [365.0], "probability": [0.3], "competing": [0.2]})
    >>> early = pl.DataFrame({**key, "horizon_days": [30.0], "probability": [0.1], "competing": [0.1]})
    >>> after_gap(main, early, 30).select("horizon_days", pl.col("probability").round(3)).row(0)
    (335.0, 0.25)
    """
    keys = [*KEY, "outcome"]
    soon = early.select(*keys, _own="probability", _other="competing")
    joined = main.join(soon, on=keys, how="inner", maintain_order="left")
    left = (1 - pl.col("_own") - pl.col("_other")).clip(1e-12)
    return joined.select(
        *keys, pl.col("horizon_days") - days, ((pl.col("probability") - pl.col("_own")) / left).clip(0, 1)
    )


def leaked_split(m: Material) -> Audit:
    """Four leaks that must be refused."""
    trained = m.members("train")
    if not len(trained):
        raise NotPossible("none of the training subjects are in these timelines")
    judged = m.labels.select(KEY).unique(maintain_order=True)
    one = pl.DataFrame({"subject_id": trained[:1], "prediction_time": judged["prediction_time"][:1]})
    late = m.unseen.events.filter(pl.col("known_time").is_not_null()).head(1000)
    moments = late.select("known_time", prediction_time=pl.col("known_time").min() - pl.duration(days=1))
    tried: dict[str, Callable[[], object]] = {
        "to judge the model on subjects it was fitted on": lambda: m.model.evaluate(
            m.timelines.select(trained), m.task, n_bootstrap=0
        ),
        "a split with one training subject among those judged": lambda: Design(
            "leaked", pl.DataFrame({"subject_id": trained}), pl.concat([judged, one])
        ).checked(),
        "predictions whose training subjects are judged": lambda: check_no_overlap(
            trained, pl.concat([judged["subject_id"], trained[-1:]])
        ),
        "features known only after the prediction time": lambda: check_known(moments),
    }
    fate = {what: _refused(attempt) for what, attempt in tried.items()}
    let_in = [what for what, refused in fate.items() if not refused]
    statement = f"Tried and refused: {'; '.join(w for w, refused in fate.items() if refused) or 'nothing'}."
    if let_in:
        statement += f" Not refused: {'; '.join(let_in)}."
    return Audit("Leaked split", statement, passed=not let_in)


def future_events(m: Material) -> Audit:
    """A forecast must not move when events after the prediction time are added, nor when they are taken away."""
    queries = m.labels.filter("at_risk").select(KEY).unique("subject_id", keep="first", maintain_order=True).head(MOST)
    if not queries.height:
        raise NotPossible("nobody is at risk")
    few = m.timelines.select(queries["subject_id"])
    cut = truncated(few, queries)
    tables = [
        m.model.forecast(t, queries, horizons=(m.horizon.label,), lab_levels=()).risk
        for t in (cut, few, extended(few, queries))
    ]
    keys = [*KEY, "outcome", "horizon_days"]
    moved, same = 0.0, True
    for other in tables[1:]:
        both = tables[0].join(other.select(*keys, _other="probability"), on=keys)
        same &= both.height == tables[0].height == other.height
        largest = both.select((pl.col("probability") - pl.col("_other")).abs().max()).item()
        moved = max(moved, float(largest or 0.0))
    passed = same and moved <= ROUNDING
    statement = (
        f"{queries.height} subjects forecast three times: from what was known at the prediction time, from the whole"
        f" timeline, and from one with later copies of their events and a death added. The largest change of a"
        f" forecast is {moved:.1g}" + (", that is none but rounding." if passed else ".")
    )
    if not same:
        statement += " Not the same forecasts were made."
    return Audit("Appended future events", statement, passed=passed)


def truncated(timelines: Timelines, queries: pl.DataFrame) -> Timelines:
    """What was known at each subject's prediction time; follow-up ends there."""
    at = queries.select(KEY)
    known = pl.col("known_time").is_null() | visible(pl.col("known_time"), _T)
    events = timelines.events.join(at, on="subject_id", maintain_order="left").filter(known).drop("prediction_time")
    alive = pl.when(pl.col("death_time") <= _T).then("death_time")
    subjects = timelines.subjects.join(at, on="subject_id", maintain_order="left").with_columns(
        follow_up_end=pl.min_horizontal("follow_up_end", _T), death_time=alive
    )
    return replace(timelines, events=events, subjects=subjects.drop("prediction_time"))


def extended(timelines: Timelines, queries: pl.DataFrame) -> Timelines:
    """Each subject's dated events once more, from the day after the prediction time on, and a death then."""
    at = queries.select(KEY)
    dated = timelines.events.join(at, on="subject_id").filter(
        pl.col("known_time").is_not_null() & pl.col("time").is_not_null()
    )
    first = pl.min_horizontal("time", "known_time").min().over("subject_id")
    shift = _T + pl.duration(days=1) - first
    later = dated.with_columns((pl.col(c) + shift).cast(TIME) for c in ("time", "known_time"))
    death = at.select("subject_id", time=_T + pl.duration(days=1), code=pl.lit(DEATH_CODE)).with_columns(
        known_time=pl.col("time")
    )
    columns = list(timelines.events.columns)
    more = pl.concat([later.select(columns), normalise_events(death).select(columns)])
    return replace(timelines, events=normalise_events(pl.concat([timelines.events, more])))


def seen_in_training(m: Material) -> Audit:
    """Subjects that the model was fitted on are flagged, and how much better it looks on them."""
    trained = pl.concat([m.members("train"), m.members("tuning")])
    if not len(trained):
        raise NotPossible("none of the subjects that the model was fitted on are in these timelines")
    some = m.members("train").sort().head(MOST)
    timelines = m.timelines.select(some)
    labels = m.labels_of(timelines)
    at = labels.select(KEY).unique(maintain_order=True)
    forecast = m.model.forecast(timelines, at, horizons=(m.horizon.label,), lab_levels=())
    flagged = forecast.seen["subject_id"].is_in(some.implode()).sum()
    scored = forecast.risk["subject_id"].n_unique()
    at = m.labels.select(KEY).unique(maintain_order=True)
    others = m.model.forecast(m.unseen, at, horizons=(m.horizon.label,), lab_levels=())
    false_flags = others.seen.height
    passed = flagged == scored == forecast.seen.height and not false_flags
    rows = []
    for name, risk, truth in (("fitted on", forecast.risk, labels), ("not seen", others.risk, m.labels)):
        found, _ = m.judge({f"{m.judged}, subjects {name}": risk}, truth, weights="marginal")
        rows += found
    return Audit(
        "Subjects seen in training",
        f"{len(trained)} of {len(m.timelines)} subjects were seen in training and are left out of every other figure."
        f" Of {scored} of them that were forecast for this audit {flagged} are flagged, of {len(m.unseen)} others"
        f" {false_flags}. The figures by whether the model was fitted on them show what judging on training subjects"
        " would have hidden.", passed=passed, rows=tuple(rows),
    )  # fmt: skip


def _refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except EvaluationError:
        return True
    return False
