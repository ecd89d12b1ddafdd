"""Who is in the study: labels at the task's prediction times, who was left out and why, and events by horizon."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from ehrseq.survival import aalen_johansen
from ehrseq.task.definition import Task
from ehrseq.task.describe import describe
from ehrseq.task.label import REASONS, known_at_risk, label
from ehrseq.task.outcome import all_occurrences, occurrences, off_scale, unmatched_of_task
from ehrseq.task.split import split_subjects
from ehrseq.task.stays import unended
from ehrseq.task.times import prediction_times, table_times
from ehrseq.timeline.store import Timelines

__all__ = ["Cohort", "build_cohort", "known_at_risk", "label", "prediction_times"]

_T = pl.col("prediction_time")


@dataclass(frozen=True, repr=False)
class Cohort:
    """The labels of a task and how they came about.

    - `rows`: `subject_id`, `prediction_time`, `landmark`, `split` and the columns of `label`; one row per prediction
      time and outcome, those not at risk included.
    - `attrition`: `outcome`, `landmark`, `step`, `prediction_times`, `subjects`. The steps are `considered`, each
      reason of `REASONS` that occurs, and `at_risk`; the last ones sum to the first. Before them, with null outcome:
      `all_subjects`, `no_prediction_time` and, where they occur, `unknown_patient` (rows of the task's table about
      nobody in the timelines; no subjects) and `no_split` (subjects the dataset's split does not name; kept).
    - `events`: `outcome`, `landmark`, `horizon`, `at_risk`, `events`, `competing`, `censored` (each by the horizon),
      `event_free`, and the cumulative `incidence` of the outcome and of its competitors (`competing_incidence`) by
      the horizon, of Aalen and Johansen: the censored leave those at risk. Null where nobody is followed as long.
    - `outcomes`: `outcome` and `definition`, in words.
    - `unmatched_codes`: codes and prefixes of the task that match no event.
    - `outside_follow_up`: `outcome` and `occurrences` that do not count, being after the end of follow-up.
    - `followed_to_last_contact`: subjects whose follow-up ends with their last record, for want of anything better.
    - `off_scale`: lab codes, and how many of their numbers do not count, being in a unit that does not convert.
    - `stays_without_end`: stays of the task, and how many of their encounters have no discharge on record.
    """

    rows: pl.DataFrame
    attrition: pl.DataFrame
    events: pl.DataFrame
    outcomes: pl.DataFrame
    unmatched_codes: tuple[str, ...]
    outside_follow_up: pl.DataFrame
    followed_to_last_contact: int = 0
    stays_without_end: tuple[tuple[str, int], ...] = ()
    off_scale: tuple[tuple[str, int], ...] = ()

    def summary(self) -> str:
        """Attrition, events and remarks as text."""
        return "\n".join(
            [
                "What is to be forecast",
                _show(self.outcomes),
                "",
                "Who is at risk",
                _show(self.attrition),
                "",
                "What happens by each horizon (cumulative incidence of Aalen and Johansen among those at risk)",
                _show(self.events),
                *self.remarks(),
            ]
        )

    __repr__ = summary

    def remarks(self) -> list[str]:
        """What deserves a look before fitting, one line each."""
        lines = [f"No event has the code {code}." for code in self.unmatched_codes]
        lines += [
            f"Occurrences of {name} after the end of follow-up, which do not count: {count:,}."
            for name, count in self.outside_follow_up.iter_rows()
        ]
        lines += [
            f"Numbers of {code} that do not count, their unit being none that converts: {count:,}."
            for code, count in self.off_scale
        ]
        if self.followed_to_last_contact:
            lines.append(
                f"Follow-up of {self.followed_to_last_contact:,} subjects ends with their last record (last_contact): "
                "whoever is at risk has a later record, so the risk of anything that is itself a record (an admission, "
                "a diagnosis) comes out too high; give a data cut when reading the export."
            )
        lines += [
            f"Encounters of {name} without a recorded discharge, which count as still running: {count:,}."
            for name, count in self.stays_without_end
        ]
        by_outcome = self.rows.group_by("outcome", maintain_order=True).agg(
            at_risk=pl.col("at_risk").sum(),
            present=(pl.col("reason") == "already_present").sum(),
            events=(pl.col("cause") == 1).sum(),
        )
        for name, at_risk, present, events in by_outcome.iter_rows():
            if at_risk == 0 and present > 0:
                lines.append(
                    f"Nobody is at risk of {name}: it is present at every prediction time that could count; "
                    "set incident = false if it can happen again."
                )
            elif at_risk == 0:
                lines.append(f"Nobody is at risk of {name}.")
            elif events == 0:
                lines.append(f"{name} never happens after a prediction time.")
        return lines


def build_cohort(timelines: Timelines, task: Task, seed: int = 0) -> Cohort:
    """The cohort of a task: labels, attrition, events by horizon and codes that matched nothing.

    `seed` is that of the split (see `split_subjects`): give the one that `fit` is given, to see its split.

    >>> from datetime import datetime
    >>> from ehrseq.timeline.schema import normalise_events
    >>> task = Task.from_dict({"horizons": ["1y"], "outcomes": {"mi": {"codes": ["SNOMED//22298006"]}},
    ...                        "prediction_times": {"rule": "landmarks", "after_start": ["30d"]}})
    >>> events = normalise_events({"subject_id": [1], "time": [datetime(2020, 5, 1)], "code": ["SNOMED//22298006"]})
    >>> subjects = pl.DataFrame({"subject_id": [1], "patient": ["a"], "birth_time": datetime(1950, 1, 1),
    ...     "death_time": None, "follow_up_start": datetime(2020, 1, 1), "follow_up_end": datetime(2022, 1, 1)})
    >>> build_cohort(Timelines(events, subjects), task).events.select("landmark", "horizon", "at_risk", "events").rows()
    [('30d', '1y', 1, 1)]
    """
    queries = prediction_times(timelines, task)
    splits = split_subjects(timelines, seed=seed)
    found = occurrences(timelines, task)
    rows = label(
        queries.join(splits, on="subject_id", how="left", maintain_order="left"), found, timelines.subjects, task
    )
    return Cohort(
        rows=rows,
        attrition=_attrition(timelines, task, rows, splits),
        events=_events(rows, task),
        outcomes=pl.DataFrame(
            [(o.name, describe(o, task)) for o in task.outcomes], ["outcome", "definition"], orient="row"
        ),
        unmatched_codes=unmatched_of_task(timelines, task),
        outside_follow_up=_outside(timelines, task, found),
        followed_to_last_contact=_followed_to_last_contact(timelines),
        off_scale=off_scale(timelines, task),
        stays_without_end=tuple((s.name, n) for s in task.stays if (n := unended(timelines, s))),
    )


def _attrition(timelines: Timelines, task: Task, rows: pl.DataFrame, splits: pl.DataFrame) -> pl.DataFrame:
    reached = rows["subject_id"].n_unique()
    no_split = splits.filter(pl.col("split").is_null()).height
    steps: list[tuple[str, int, int]] = [
        ("all_subjects", rows.n_unique(["subject_id", "prediction_time", "landmark"]), len(timelines)),
        ("no_prediction_time", 0, len(timelines) - reached),
    ]
    if task.prediction_times.rule == "table":
        unknown = table_times(timelines, task.prediction_times)["subject_id"].null_count()
        steps += [("unknown_patient", unknown, 0)] * (unknown > 0)
    if no_split:
        of_them = rows.filter(pl.col("split").is_null() & (pl.col("outcome") == task.outcomes[0].name)).height
        steps.append(("no_split", of_them, no_split))
    general = pl.DataFrame(steps, schema=["step", "prediction_times", "subjects"], orient="row")
    counts = (pl.len().alias("prediction_times"), pl.col("subject_id").n_unique().alias("subjects"))
    considered = rows.group_by("outcome", "landmark").agg(*counts).with_columns(step=pl.lit("considered"))
    fate = pl.col("reason").fill_null("at_risk").alias("step")
    fates = rows.group_by("outcome", "landmark", fate).agg(*counts)
    order = {"considered": 0, **{reason: i for i, reason in enumerate(REASONS, 1)}, "at_risk": len(REASONS) + 1}
    detail = _in_order(
        pl.concat([considered, fates], how="diagonal"),
        task,
        pl.col("step").replace_strict(order, return_dtype=pl.Int64),
    )
    columns = ("outcome", "landmark", "step", "prediction_times", "subjects")
    return pl.concat([general, detail], how="diagonal_relaxed").select(columns)


def _events(rows: pl.DataFrame, task: Task) -> pl.DataFrame:
    at_risk = rows.filter("at_risk")
    tables = []
    for order, horizon in enumerate(task.horizons):
        span = horizon.days_after(_T)
        ended = pl.col("days") <= span
        causes = {"events": 1, "competing": 2, "censored": 0}
        tables.append(
            at_risk.group_by("outcome", "landmark").agg(
                pl.lit(horizon.label).alias("horizon"),
                pl.lit(order).alias("_order"),
                pl.len().alias("at_risk"),
                *((ended & (pl.col("cause") == cause)).sum().alias(name) for name, cause in causes.items()),
                (~ended).sum().alias("event_free"),
                (pl.col("days") / span).alias("_share"),
                pl.col("cause").alias("_cause"),
            )
        )
    table = _in_order(pl.concat(tables), task, pl.col("_order"))
    curves = [_incidence(*row) for row in table.select("_share", "_cause").iter_rows()]
    names = {"incidence": pl.Float64, "competing_incidence": pl.Float64}
    return table.drop("_order", "_share", "_cause").hstack(pl.DataFrame(curves, names, orient="row"))


def _incidence(share: list[float], cause: list[int]) -> tuple[float | None, float | None]:
    """Cumulative incidence of the outcome and of its competitors, with time as a share of each row's horizon.

    A horizon of a year has 365 or 366 days, by where it starts; so each row is measured by its own.

    >>> _incidence([0.5, 0.7, 1.5], [1, 0, 1]), _incidence([0.5, 0.7], [1, 0])
    ((0.3333333333333333, 0.0), (None, None))
    """
    last = max(share, default=0.0)
    if last < 1 and any(s == last and c == 0 for s, c in zip(share, cause, strict=True)):
        return None, None
    outcome, competing = aalen_johansen(share, cause, at=[1.0])
    return float(outcome[0]), float(competing[0])


def _in_order(table: pl.DataFrame, task: Task, last: pl.Expr) -> pl.DataFrame:
    """Sorted as the task lists outcomes and landmarks, then by `last`."""
    names = [o.name for o in task.outcomes]
    spans = [h.label for h in task.prediction_times.after_start]
    outcome = pl.col("outcome").replace_strict(names, range(len(names)), return_dtype=pl.Int64)
    landmark = pl.col("landmark").replace_strict(spans, range(len(spans)), default=None, return_dtype=pl.Int64)
    return table.sort(outcome, landmark, last)


def _outside(timelines: Timelines, task: Task, counted: pl.DataFrame) -> pl.DataFrame:
    """`outcome` and `occurrences`: those that happen after the end of follow-up; changes from baseline have none."""
    names = [o.name for o in task.outcomes]
    happened = pl.col("outcome").is_in(names) & pl.col("part").is_null()
    total = all_occurrences(timelines, task).filter(happened).group_by("outcome").len("all")
    inside = counted.filter(happened).group_by("outcome").len("inside")
    return (
        total.join(inside, on="outcome", how="left")
        .select("outcome", occurrences=pl.col("all").cast(pl.Int64) - pl.col("inside").fill_null(0).cast(pl.Int64))
        .filter(pl.col("occurrences") > 0)
        .sort("outcome")
    )


def _followed_to_last_contact(timelines: Timelines) -> int:
    if "follow_up_rule" not in timelines.subjects.columns:
        return 0
    return timelines.subjects.filter(pl.col("follow_up_rule") == "last_contact").height


def _show(table: pl.DataFrame) -> str:
    """A table as aligned text, however long: plain columns, integers with separators, null as a dash."""
    return "\n".join(_lines(table))


def _lines(table: pl.DataFrame) -> Iterator[str]:
    cells = [[_cell(value) for value in row] for row in (table.columns, *table.iter_rows())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = [dtype == pl.String for dtype in table.dtypes]
    for row in cells:
        padded = (c.ljust(w) if left else c.rjust(w) for c, w, left in zip(row, widths, text, strict=True))
        yield "  ".join(padded).rstrip()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
