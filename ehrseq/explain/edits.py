"""Edit and rescore: what the model would say of another history. Model sensitivity, not effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from ehrseq.errors import ForecastError
from ehrseq.explain.names import display_name
from ehrseq.figures import COLOURS, drawable, plain, style
from ehrseq.task.history import visible
from ehrseq.timeline.schema import TIME, as_instant
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.vocabulary import model_events

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL = "model sensitivity, not effect"
Without = str | tuple[str, str | date | datetime]
WHAT_IF_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64, "patient": pl.String, "prediction_time": TIME, "outcome": pl.String,
    "horizon_days": pl.Float64,
    "probability": pl.Float64,  # as issued
    "edited": pl.Float64,  # of the edited history; null where it would not be forecast
    "difference": pl.Float64,  # edited - probability
    "reason": pl.String,  # why the edited history would not be forecast, as in `skipped`
    "edits": pl.String,
    "meaning": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class WhatIf:
    """The forecast of a patient as issued, and of an edited history: model sensitivity, not effect.

    `table` has one row an outcome and horizon, as `WHAT_IF_SCHEMA`. A model that has learned that people on a drug are
    ill forecasts less risk without the drug; that says nothing of what stopping it would do.
    """

    table: pl.DataFrame

    def plot(self) -> Figure:
        """Both forecasts of each outcome at its longest horizon, side by side."""
        from matplotlib.figure import Figure

        rows = self.table.filter(pl.col("horizon_days") == pl.col("horizon_days").max().over("outcome"))
        with style():
            figure = Figure(figsize=(6, 1.6 + 0.5 * rows.height), layout="constrained")
            axes = figure.subplots()
            for i, row in enumerate(rows.iter_rows(named=True)):
                issued, edited = 100 * row["probability"], row["edited"]
                axes.plot([issued], [i], "o", color=COLOURS[6])
                axes.annotate(f"issued {issued:.1f}%", (issued, i), (0, 7), textcoords="offset points", ha="center")
                if edited is None:
                    axes.annotate(
                        f"edited: {drawable(row['reason'].replace('_', ' '), 30)}",
                        (issued, i),
                        (0, -15),
                        textcoords="offset points",
                        ha="center",
                    )
                    continue
                axes.annotate("", (100 * edited, i), (issued, i), arrowprops={"arrowstyle": "->", "color": COLOURS[1]})
                axes.annotate(f"edited {100 * edited:.1f}%", (100 * edited, i), (0, -15), textcoords="offset points",
                              ha="center", color=COLOURS[1])  # fmt: skip
            years = rows["horizon_days"] / 365.25
            axes.set_yticks(
                range(rows.height),
                [
                    f"{drawable(o.replace('_', ' '), 24)}\nby {y:.3g} years"
                    for o, y in zip(rows["outcome"], years, strict=True)
                ],
            )
            axes.set_ylim(rows.height - 0.4, -0.6)
            axes.margins(x=0.25)
            axes.set_xlim(left=0)
            axes.set_xlabel("forecast cumulative incidence (%)")
            axes.set_title(f"{drawable(rows['edits'][0], 70)}\n{LABEL}", fontsize=9)
        return figure


def edit_history(
    timelines: Timelines, at: datetime, without: Sequence[Without], values: Mapping[str, float]
) -> Timelines:
    """The timelines of one subject with events left out and values replaced, among those visible at `at`.

    `without` names codes (all their events) or (code, date or time) of the events to leave out; `values` gives a code's
    last value another number, in its unit. Raises ForecastError for what is not there to be edited.
    """
    events = timelines.events.with_row_index("row")
    seen = model_events(events).filter(visible(pl.col("known_time"), at).fill_null(True))
    gone: set[int] = set()
    for what in without:
        gone.update(_found(seen, what))
    events = events.filter(~pl.col("row").is_in(sorted(gone)))
    for code, value in values.items():
        events = _with_value(events, seen.filter(~pl.col("row").is_in(sorted(gone))), code, value)
    return replace(timelines, events=events.drop("row"))


def _found(seen: pl.DataFrame, what: Without) -> list[int]:
    code, moment = (what, None) if isinstance(what, str) else what
    rows = _of_code(seen, code)
    if moment is not None:
        day = len(moment) == 10 if isinstance(moment, str) else not isinstance(moment, datetime)
        when = as_instant(moment)
        rows = rows.filter(pl.col("time").dt.date() == when.date() if day else pl.col("time") == when)
    if not rows.height:
        raise ForecastError(
            "an event of this code at this time among what is visible", "none", "see explain() for what can be edited"
        )
    return rows["row"].to_list()


def _of_code(seen: pl.DataFrame, code: str) -> pl.DataFrame:
    rows = seen.filter(code=code)
    if not rows.height:
        # no near match is named: it would tell what is on the patient's record
        hint = "see explain() for what can be edited" if seen.height else "nothing is visible"
        raise ForecastError("a code among the events visible at the prediction time", f"'{plain(code, 40)}'", hint)
    return rows


def _with_value(events: pl.DataFrame, seen: pl.DataFrame, code: str, value: float) -> pl.DataFrame:
    rows = _of_code(seen, code).filter(pl.col("numeric_value").is_not_null())
    if not rows.height:
        raise ForecastError(f"a numeric value of '{plain(code, 40)}'", "none that is visible", "leave it out instead")
    last = rows.sort("known_time", "time", nulls_last=False).tail(1)
    same = [pl.col(c).eq_missing(last[c][0]) for c in ("time", "known_time", "unit", "code")]
    chosen = (
        pl.all_horizontal(*same) & pl.col("numeric_value").is_not_null()
    )  # repeats at one moment are one to the model
    return events.with_columns(
        numeric_value=pl.when(chosen).then(pl.lit(value, pl.Float32)).otherwise("numeric_value"),
        value_modifier=pl.when(~chosen).then("value_modifier"),
    )


def describe_edits(without: Sequence[Without], values: Mapping[str, float], names: dict[str, str]) -> str:
    """The edits in words.

    >>> describe_edits(["SNOMED//1"], {"LOINC//4548-4": 7.0}, {"LOINC//4548-4": "haemoglobin A1c"})
    'without SNOMED 1; with haemoglobin A1c 7'
    """
    parts = []
    for what in without:
        code, moment = (what, None) if isinstance(what, str) else what
        parts.append(f"without {display_name(code, names)}" + (f" of {moment}" if moment is not None else ""))
    return "; ".join([*parts, *(f"with {display_name(code, names)} {value:g}" for code, value in values.items())])


def what_if_table(issued: pl.DataFrame, edited: pl.DataFrame, skipped: pl.DataFrame, edits: str) -> pl.DataFrame:
    """`WHAT_IF_SCHEMA` from two risk tables and why outcomes of the edited history were skipped."""
    key = ["subject_id", "prediction_time", "outcome", "horizon_days"]
    by_outcome = skipped.filter(pl.col("outcome").is_not_null()).select("outcome", "reason")
    whole = skipped.filter(pl.col("outcome").is_null())["reason"]
    return (
        issued.join(edited.select(*key, edited="probability"), on=key, how="left", maintain_order="left")
        .join(by_outcome, on="outcome", how="left", maintain_order="left")
        .with_columns(
            difference=pl.col("edited") - pl.col("probability"),
            reason=pl.when(pl.col("edited").is_null()).then(
                pl.coalesce("reason", pl.lit(whole[0] if len(whole) else None, pl.String))
            ),
            edits=pl.lit(edits),
            meaning=pl.lit(LABEL),
        )
        .select(pl.col(c).cast(t) for c, t in WHAT_IF_SCHEMA.items())
    )  # fmt: skip
