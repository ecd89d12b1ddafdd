"""Who is at risk of what, from when, and what then happens: the labels of a task and the count of those left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce
from operator import or_

import numpy as np
import polars as pl

from ehrseq.errors import TaskError
from ehrseq.frames import at_once, places
from ehrseq.task.composite import changes
from ehrseq.task.definition import Outcome, Task
from ehrseq.task.history import visible
from ehrseq.task.outcome import all_occurrences, deaths
from ehrseq.task.span import in_days
from ehrseq.task.state import column, with_states
from ehrseq.timeline.schema import BIRTH_CODE, DEATH_CODE, TIME, instants
from ehrseq.timeline.store import Timelines

REASONS = {
    "no_birth_date": "no birth date, so no age",
    "before_birth": "the prediction time is before birth",
    "implausible_age": "more than 130 years after birth at the prediction time",
    "no_follow_up": "no follow-up is known",
    "before_follow_up": "the prediction time is before follow-up starts",
    "dead": "died by the prediction time",
    "after_follow_up": "follow-up has ended by the prediction time",
    "already_present": "an incident outcome known by the prediction time",
    "competing_present": "an incident competing outcome known by the prediction time",
    "within_washout": "the outcome happened within its washout before the prediction time",
    "no_baseline": "no value is known that a change could be counted from",
    "outside_stay": "not in the stay during which the outcome is looked for",
    "occurred_unknown": "the outcome has occurred by the prediction time but becomes known later",
}
"""Why a subject is not at risk in `label`, in the order in which the reasons are tried."""

SCORING_REASONS = {
    "no_birth_date": "no birth date, so no age",
    "before_birth": "the prediction time is before birth",
    "implausible_age": "more than 130 years after birth at the prediction time",
    "dead": "known to have died by the prediction time",
    "no_history": "not yet under observation, and no event but birth and static facts is known by the prediction time",
    "already_present": "an incident outcome known by the prediction time",
    "competing_present": "an incident competing outcome known by the prediction time",
    "within_washout": "the outcome is known to have happened within its washout before the prediction time",
    "no_baseline": "no value is known that a change could be counted from",
    "outside_stay": "not known to be in the stay during which the outcome is looked for",
}
"""Why `known_at_risk` refuses a forecast, in the order in which the reasons are tried."""

OLDEST = 130  # years: who is older has a wrong date of birth, or is asked about at a wrong time
_T = pl.col("prediction_time")


def label(queries: pl.DataFrame, occurrences: pl.DataFrame, subjects: pl.DataFrame, task: Task) -> pl.DataFrame:
    """What happens first after each prediction time, for each outcome.

    Takes `queries` with `subject_id` and `prediction_time` (a date means the end of that day), the table of
    `ehrseq.task.outcome.occurrences` and the subject table. Returns one row per query and outcome, in the order of
    the queries and within one of `task.outcomes`: the columns of `queries`, then

    - `outcome`
    - `at_risk`, and `reason`: null, or the first of `REASONS` that holds
    - `days` (float64): from the prediction time to the first of the outcome's next occurrence, a competing outcome's
      next occurrence and the end of follow-up; strictly above zero; null where not at risk
    - `cause` (int8): 1 the outcome, 2 a competing outcome, 0 censored; null where not at risk. At equal times the
      outcome goes before its competitors, and both before censoring.

    >>> from datetime import datetime
    >>> task = Task.from_dict({"horizons": ["1y"], "outcomes": {"mi": {"codes": ["SNOMED//22298006"]}},
    ...                        "prediction_times": {"rule": "every_encounter"}})
    >>> day = [datetime(2020, 1, d) for d in range(1, 10)]
    >>> subjects = pl.DataFrame({"subject_id": [1], "birth_time": [datetime(1950, 1, 1)], "death_time": [None],
    ...                          "follow_up_start": day[0], "follow_up_end": day[8]})
    >>> occurrences = pl.DataFrame({"subject_id": [1], "outcome": ["mi"], "time": day[5], "occurred_time": day[5],
    ...                             "known_time": day[5]})
    >>> queries = pl.DataFrame({"subject_id": [1, 1], "prediction_time": [day[2], day[6]]})
    >>> label(queries, occurrences, subjects, task).select("at_risk", "reason", "days", "cause").rows()
    [(True, None, 3.0, 1), (False, 'already_present', None, None)]
    """
    frame = _with_subjects(queries, subjects, "birth_time", "death_time", "follow_up_start", "follow_up_end")
    found = occurrences.lazy()
    frame = _left(frame, _deaths(found, task)).with_columns(_common=_NOT_LABELLED)
    frame = with_states(frame.sort("prediction_time"), found, task, later=True)
    rows = _one_row_an_outcome(queries, frame, task, _label_columns)
    return rows.with_columns(pl.when("at_risk").then(c).alias(c) for c in ("days", "cause"))


def known_at_risk(queries: pl.DataFrame, timelines: Timelines, task: Task) -> pl.DataFrame:
    """Who can be given a forecast, judged by nothing but what is known at the prediction time.

    Follow-up, and events that become known later, play no part, so the answer is the one a user would have got on
    that day. Returns one row per query and outcome, ordered as by `label`: the columns of `queries`, `outcome`,
    `at_risk`, and `reason`: null, or the first of `SCORING_REASONS` that holds.

    >>> from datetime import datetime
    >>> from ehrseq.timeline.schema import normalise_events
    >>> task = Task.from_dict({"horizons": ["1y"], "outcomes": {"mi": {"codes": ["SNOMED//22298006"]}},
    ...                        "prediction_times": {"rule": "every_encounter"}})
    >>> events = normalise_events({"subject_id": [1], "time": [datetime(2020, 1, 5)], "code": ["SNOMED//22298006"]})
    >>> subjects = pl.DataFrame({"subject_id": [1], "birth_time": [datetime(1950, 1, 1)], "death_time": [None]})
    >>> queries = pl.DataFrame({"subject_id": [1, 1], "prediction_time": [datetime(2020, 1, 4), datetime(2020, 1, 5)]})
    >>> known_at_risk(queries, Timelines(events, subjects), task)["reason"].to_list()
    ['no_history', 'already_present']
    """
    died = deaths(timelines)
    frame = _with_subjects(queries, timelines.subjects, "birth_time", "observation_start")
    frame = _left(frame, died.lazy().select("subject_id", _known_death="known_time"))
    history = timelines.events.lazy().select("subject_id", "time", "code", "known_time").filter(_IN_HISTORY)
    first_event = history.group_by("subject_id").agg(_first_event=pl.col("known_time").min())
    frame = _left(frame, first_event).with_columns(_common=_NOT_SCORED)
    found = all_occurrences(timelines, task, died).lazy()
    frame = with_states(frame.sort("prediction_time"), found, task, later=False)
    return _one_row_an_outcome(queries, frame, task, _scoring_columns)


def _deaths(occurrences: pl.LazyFrame, task: Task) -> pl.LazyFrame:
    """When a subject died, by the outcomes that are death: a death on the day of a discharge comes before it."""
    names = [o.name for o in task.outcomes if o.codes == (DEATH_CODE,)]
    found = occurrences.filter(pl.col("outcome").is_in(names))
    return found.group_by("subject_id").agg(_died=pl.col("time").min())


def _label_columns(outcome: Outcome, task: Task) -> dict[str, pl.Expr]:
    late = [test for name in (outcome.name, *outcome.competing) for test in _occurred(name, task)]
    event = column("next", outcome.name, task)
    competing = pl.min_horizontal("_follow_up_end", *(column("next", name, task) for name in outcome.competing))
    first = pl.min_horizontal(event, competing)
    # `competing` is the end of follow-up where no competitor comes before it
    any_competing = reduce(or_, (column("next", name, task) == first for name in outcome.competing), pl.lit(False))
    cause = pl.when(event == first).then(1).when(any_competing).then(2).otherwise(0).cast(pl.Int8)
    days = in_days(first - _T)
    return {
        "reason": _first_reason({**_known_reasons(outcome, task), "occurred_unknown": late}),
        "days": days,
        "cause": cause,
    }


def _scoring_columns(outcome: Outcome, task: Task) -> dict[str, pl.Expr]:
    return {"reason": _first_reason(_known_reasons(outcome, task))}


def _known_reasons(outcome: Outcome, task: Task) -> dict[str, list[pl.Expr]]:
    """The reasons that can be told at the prediction time; a competitor counts where it is incident."""
    names = {o.name: o for o in task.outcomes}
    own, competing = [outcome.name], list(outcome.competing)

    def incident(some: list[str]) -> list[pl.Expr]:
        return [column("known", name, task) for name in some if names[name].incident]

    changing = [name for name in own + competing if changes(names[name], names)]
    return {
        "already_present": incident(own),
        "competing_present": incident(competing),
        "within_washout": [column("recent", outcome.name, task)] if outcome.washout is not None else [],
        "no_baseline": [column("no_baseline", name, task) for name in changing],
        "outside_stay": [column("outside", outcome.name, task)] if outcome.during is not None else [],
    }


def _occurred(name: str, task: Task) -> list[pl.Expr]:
    """Whether an outcome that counts when it occurs, and keeps people out, has occurred by the prediction time."""
    outcome = task.outcome(name)
    names = {o.name: o for o in task.outcomes}
    keeps_out = outcome.incident or outcome.washout is not None or changes(outcome, names)
    if outcome.event_time == "known" or not keeps_out:
        return []
    return [column("occurred", name, task)]


def _first_reason(tests: dict[str, list[pl.Expr]]) -> pl.Expr:
    """The reason that all outcomes share, else the first name one of whose tests holds, else null."""
    return pl.coalesce("_common", *_named({name: reduce(or_, some) for name, some in tests.items() if some}))


def _named(tests: dict[str, pl.Expr]) -> list[pl.Expr]:
    return [pl.when(test).then(pl.lit(name)) for name, test in tests.items()]


_IN_HISTORY = pl.col("time").is_not_null() & ~pl.col("code").str.starts_with(BIRTH_CODE)
_UNBORN = pl.col("_birth_time") - pl.duration(days=1) > _T  # the day of birth begins elsewhere at another moment
_TOO_OLD = _T - pl.col("_birth_time") > pl.duration(days=round(OLDEST * 365.25))
# whatever the outcome
_NOT_LABELLED = pl.coalesce(
    _named(
        {
            "no_birth_date": pl.col("_birth_time").is_null(),
            "before_birth": _UNBORN,
            "implausible_age": _TOO_OLD,
            "no_follow_up": pl.col("_follow_up_start").is_null() | pl.col("_follow_up_end").is_null(),
            "before_follow_up": pl.col("_follow_up_start") > _T,
            "dead": pl.min_horizontal("_death_time", "_died") <= _T,
            "after_follow_up": pl.col("_follow_up_end") <= _T,
        }
    )
)
# where an observation period says since when a subject is observed, no record since then is a history too; how and
# whether the period ends plays no part, since that is not known at a prediction time
_NOT_SCORED = pl.coalesce(
    _named(
        {
            "no_birth_date": pl.col("_birth_time").is_null(),
            "before_birth": _UNBORN,
            "implausible_age": _TOO_OLD,
            "dead": visible(pl.col("_known_death"), _T),
            "no_history": ~visible(pl.min_horizontal("_first_event", "_observation_start"), _T).fill_null(False),
        }
    )
)


def _left(frame: pl.LazyFrame, table: pl.LazyFrame) -> pl.LazyFrame:
    return frame.join(table, on="subject_id", how="left", maintain_order="left")


def _one_row_an_outcome(
    queries: pl.DataFrame, frame: pl.LazyFrame, task: Task, columns: Callable[[Outcome, Task], dict[str, pl.Expr]]
) -> pl.DataFrame:
    """`frame` in the order of its `_row`s, once for each outcome with that outcome's columns."""
    of_each = _of_each(task, columns)
    wide = at_once(frame.sort("_row").select(*queries.columns, *(expr for exprs in of_each.values() for expr in exprs)))
    names = [outcome.name for outcome in task.outcomes]
    row, outcome = np.divmod(np.arange(wide.height * len(names)), len(names))
    at = places(outcome * wide.height + row)
    found = {name: pl.concat([wide[f"_{name}_{i}"] for i in range(len(names))])[at].alias(name) for name in of_each}
    outcomes = pl.Series("outcome", names, pl.String)[places(outcome)]
    return wide[queries.columns][places(row)].hstack(
        [outcomes, found["reason"].is_null().alias("at_risk"), *found.values()]
    )


@lru_cache(maxsize=16)
def _of_each(task: Task, columns: Callable[[Outcome, Task], dict[str, pl.Expr]]) -> dict[str, list[pl.Expr]]:
    """Each of the columns, of one outcome after the other."""
    tables = [columns(outcome, task) for outcome in task.outcomes]
    return {name: [table[name].alias(f"_{name}_{i}") for i, table in enumerate(tables)] for name in tables[0]}


def _with_subjects(queries: pl.DataFrame, subjects: pl.DataFrame, *columns: str) -> pl.LazyFrame:
    """The queries with a row number and times of the subject table (after `_`), in the order of the queries."""
    missing = [c for c in ("subject_id", "prediction_time") if c not in queries.columns]
    if missing:
        raise TaskError("queries with subject_id and prediction_time", f"no {missing[0]}", "add the column")
    times = queries["prediction_time"]
    if times.null_count():
        raise TaskError("a prediction_time in each query", f"{times.null_count()} without", "drop or fill them")
    strangers = len(queries) - int(queries["subject_id"].is_in(subjects["subject_id"].implode()).sum())
    if strangers:
        raise TaskError(
            "queries about subjects of the timelines", f"{strangers} about others", "select the subjects first"
        )
    # older subject tables have no start of observation; without another column everybody would pass for well
    lacking = [c for c in columns if c not in subjects.columns]
    if lacking and lacking != ["observation_start"]:
        raise TaskError("a subject table with all its columns", f"no {lacking[0]}", "take that of the timelines")
    given = [pl.lit(None, TIME) if c in lacking else pl.col(c).cast(TIME) for c in columns]
    table = subjects.lazy().select("subject_id", *(time.alias(f"_{c}") for c, time in zip(columns, given, strict=True)))
    asked = queries.with_columns(instants(times, end_of_day=True)).with_row_index("_row")
    return _left(asked.lazy(), table)
