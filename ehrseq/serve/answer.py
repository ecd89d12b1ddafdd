"""From FHIR documents to forecasts: each read apart from the others, then all scored in one call.

Requests never meet before scoring: each document is read alone, and its subjects get numbers of their own, so that two
requests about the same person (or two that call different people by the same id) do not see each other's records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import polars as pl

from ehrseq.errors import SourceError
from ehrseq.estimator import ProgressionModel
from ehrseq.explain.explanation import Explanation
from ehrseq.forecast.table import LAB_SCHEMA, RISK_SCHEMA, SKIPPED_SCHEMA, Forecast
from ehrseq.frames import at_once
from ehrseq.serve.problems import NoForecast, Problem
from ehrseq.timeline.build import read_fhir_json
from ehrseq.timeline.schema import DEATH_CODE, TIME, sort_events
from ehrseq.timeline.store import Timelines

WHY, CURVES, TIMELINE = INCLUDES = ("why", "curves", "timeline")
NO_FOLLOW_UP = "no_follow_up"  # no contact on record, so that there is no latest record to forecast at


@dataclass(frozen=True)
class Ask:
    """A document, and what is asked of it: all that a process needs to answer, in plain fields."""

    document: bytes
    at: datetime | None = None
    """The prediction time, UTC without a zone; None: each subject's end of follow-up."""
    include: frozenset[str] = frozenset()
    patients: int = 1
    """How many patients it may have."""
    patient: str | None = None
    """The one patient it must be about."""
    live: bool = False
    """Whether `at` is the moment of the request: then all that came with it is known by then."""
    form: Literal["json", "fhir", "cards"] = "json"
    """How the reply is written."""
    incomplete: tuple[str, ...] = ()
    """Of a hook: the keys of which only a first page came."""
    missing: tuple[str, ...] = ()
    """Of a hook: the keys, of lesser weight, of which nothing came."""


@dataclass(frozen=True)
class Reply:
    """The forecast of one document; subjects and patients are called as in it."""

    timelines: Timelines
    forecast: Forecast
    unseen: pl.DataFrame
    explanation: Explanation | None = None
    curves: pl.DataFrame | None = None
    """As `Forecast.curves`, of all subjects, with `subject_id` and `patient`."""


@dataclass
class Part:
    """A document that was read, and the numbers of its subjects in the call that scores all."""

    ask: Ask
    timelines: Timelines
    times: pl.DataFrame  # subject_id, prediction_time
    keys: pl.DataFrame = field(default_factory=pl.DataFrame)  # number, subject_id, patient

    def own(self, table: pl.DataFrame) -> pl.DataFrame:
        """The rows of a table about these subjects, called as they are in the document."""
        if not table.height:
            return table
        own = self.keys.lazy().select(subject_id="number", _id="own_id", _patient="own_patient")
        mine = table.lazy().join(own, on="subject_id", how="inner", maintain_order="left")
        return at_once(mine.with_columns(subject_id="_id", patient="_patient").drop("_id", "_patient"))


def read(ask: Ask) -> Part:
    """Read one document. Raises Problem where it has no patient, too many, or another one."""
    try:
        # an encounter that has not ended is known of up to now
        timelines = read_fhir_json(ask.document, data_cut=ask.at if ask.live else None)
    except SourceError as error:
        raise Problem(422, str(error)) from None
    if ask.live and ask.at is not None:
        timelines = received(timelines, ask.at)
    if len(timelines) > ask.patients:
        wanted = "one patient" if ask.patients == 1 else f"at most {ask.patients} patients"
        raise Problem(422, f"expected {wanted}; found {len(timelines)}; send a list of Bundles, or fewer at once")
    if ask.patient is not None and timelines.subjects["patient"].to_list() != [ask.patient]:
        raise Problem(422, "expected records of the patient in the context; found those of another; check the prefetch")
    at = pl.col("follow_up_end") if ask.at is None else pl.lit(ask.at, TIME)
    times = timelines.subjects.lazy().select("subject_id", prediction_time=at).drop_nulls()
    return Part(ask, timelines, at_once(times))


def received(timelines: Timelines, at: datetime) -> Timelines:
    """Timelines of a record that came at `at`: what it holds up to then is known then.

    Elsewhere, what is dated by its day alone is not known before the day ends, lest a forecast read what was only
    recorded after it. But what has been received is on record. What is dated after `at` stays unknown.
    """
    moment = pl.lit(at, TIME)
    # a day (month, year) of death stands at its end
    length = {"day": "-1d", "month": "-1mo", "year": "-1y"}
    after = pl.col("time") + pl.duration(microseconds=1)
    begun: Any = pl.when(False).then(after)
    for precision, back in length.items():
        begun = begun.when(pl.col("time_precision").cast(pl.String) == precision).then(after.dt.offset_by(back))
    dead = pl.col("code").str.starts_with(DEATH_CODE) & (begun.otherwise("time") <= moment)
    events = timelines.events.with_columns(time=pl.when(dead).then(pl.min_horizontal("time", moment)).otherwise("time"))
    known = pl.when(pl.col("time") <= moment).then(pl.min_horizontal("known_time", moment)).otherwise("known_time")
    died = (
        events.filter(pl.col("code").str.starts_with(DEATH_CODE)).group_by("subject_id").agg(_died=pl.col("time").min())
    )
    subjects = timelines.subjects.join(died, on="subject_id", how="left", maintain_order="left")
    subjects = subjects.with_columns(death_time=pl.min_horizontal("death_time", "_died")).drop("_died")
    return replace(timelines, events=sort_events(events.with_columns(known_time=known)), subjects=subjects)


def together(parts: Sequence[Part]) -> tuple[Timelines, pl.DataFrame]:
    """The timelines of all parts in one, with subjects numbered through (0, 1, ...), and the prediction times."""
    events, subjects, times = [], [], []
    first = 0
    for part in parts:
        names = part.timelines.subjects.select(own_id="subject_id", own_patient="patient").sort("own_id")
        part.keys = names.with_columns(number=pl.int_range(first, first + names.height, dtype=pl.Int64))
        first += names.height
        numbered = pl.col("subject_id").replace_strict(part.keys["own_id"], part.keys["number"], return_dtype=pl.Int64)
        events.append(part.timelines.events.with_columns(numbered))
        subjects.append(
            part.timelines.subjects.with_columns(numbered).with_columns(patient=pl.col("subject_id").cast(pl.String))
        )
        times.append(part.times.with_columns(numbered))
    # the documents themselves bring no parents or names of codes, so that there is no other metadata to keep
    return Timelines(pl.concat(events), pl.concat(subjects)), pl.concat(times)


def answer(model: ProgressionModel, parts: Sequence[Part]) -> list[Reply | NoForecast]:
    """The forecast of each part, or why there is none."""
    asked = [part for part in parts if part.times.height]
    merged, times = together(asked) if asked else (None, pl.DataFrame())
    forecast: Forecast | None = None
    skipped = pl.DataFrame(schema=SKIPPED_SCHEMA)
    if merged is not None:
        forecast = model.forecast_part(merged, times)
        skipped = forecast.skipped
    explanation = None if forecast is None else _explained(model, asked, merged, times, forecast)
    return [_reply(model, part, forecast, skipped, explanation) for part in parts]


def _explained(
    model: ProgressionModel, parts: Sequence[Part], merged: Any, times: pl.DataFrame, forecast: Forecast
) -> Explanation | None:
    """Reasons of those parts that ask for them and have a risk to explain."""
    numbers = [part.keys["number"] for part in parts if WHY in part.ask.include]
    if not numbers:
        return None
    wanted = (
        forecast.risk.select("subject_id").unique().filter(pl.col("subject_id").is_in(pl.concat(numbers).implode()))
    )
    if not wanted.height:
        return None
    mine = times.join(wanted, on="subject_id", how="semi")
    return model.explain(merged.select(mine["subject_id"]), mine, kinds=("code",))


def _reply(
    model: ProgressionModel, part: Part, forecast: Forecast | None, skipped: pl.DataFrame,
    explanation: Explanation | None,
) -> Reply | NoForecast:  # fmt: skip
    people = part.timelines.subjects
    empty = part.keys.is_empty()
    own_skipped = skipped.clear() if empty else part.own(skipped)
    if part.times.height < people.height:
        without = people.join(part.times, on="subject_id", how="anti")
        unfollowed = without.select(
            "subject_id", "patient", pl.lit(None, TIME).alias("prediction_time"),
            pl.lit(None, pl.String).alias("outcome"), pl.lit(NO_FOLLOW_UP).alias("reason"),
        )  # fmt: skip
        own_skipped = pl.concat([own_skipped, unfollowed])
    metadata = {"model": model._branch(None), "task": {}, "labs_withheld": {}}
    if forecast is None or empty:
        risk, labs = pl.DataFrame(schema=RISK_SCHEMA), pl.DataFrame(schema=LAB_SCHEMA)
    else:
        risk, labs, metadata = part.own(forecast.risk), part.own(forecast.labs), forecast.metadata
    if not risk.height and not labs.height:
        reasons = ", ".join(own_skipped["reason"].unique().sort())
        return NoForecast(
            422, f"expected a patient with usable history at the prediction time; found none ({reasons}); send the "
            "patient's records, with codes that the model knows, or another time as `at`",
        )  # fmt: skip
    spans = () if forecast is None else forecast.spans
    own = Forecast(risk, own_skipped, metadata, seen=model._seen_among(risk, labs), labs=labs, spans=spans)
    curves = None
    if CURVES in part.ask.include and forecast is not None and risk.height:
        curves = _curves(part, forecast)
    if explanation is not None and WHY in part.ask.include:
        contributions, scope = part.own(explanation.contributions), part.own(explanation.scope)
        explanation = replace(explanation, contributions=contributions, scope=scope)
    else:
        explanation = None
    return Reply(part.timelines, own, model.unseen_codes(part.timelines), explanation, curves)


def _curves(part: Part, forecast: Forecast) -> pl.DataFrame:
    """The curves of the subjects who have a forecast."""
    numbers = part.keys["number"].filter(part.keys["number"].is_in(forecast.risk["subject_id"].implode()))
    tables = [
        forecast.curves(str(n)).with_columns(subject_id=pl.lit(n, pl.Int64), patient=pl.lit(str(n))) for n in numbers
    ]
    return part.own(pl.concat(tables))
