"""From FHIR documents to forecasts: each read apart from the others, then all scored in one call.

Requests never meet before scoring: each document is read alone, and its subjects get numbers of their own, so that two
requests about the same person (or two that call different people by the same id) do not see each other's records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import SourceError
from ehrseq.estimator import ProgressionModel
from ehrseq.explain.explanation import Explanation
from ehrseq.forecast.table import Forecast
from ehrseq.frames import at_once, places, replaced
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
    names: pl.DataFrame = field(default_factory=pl.DataFrame)  # subject_id, patient; by number from `first` on
    first: int = 0

    @property
    def numbers(self) -> range:
        """The numbers of its subjects."""
        return range(self.first, self.first + self.names.height)


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
    numbers: list[list[NDArray[np.int64]]] = []
    first = 0
    for part in parts:
        part.first, part.names = first, part.timelines.subjects[["subject_id", "patient"]].sort("subject_id")
        first += part.names.height
        tables = (part.timelines.events, part.timelines.subjects, part.times)
        numbers.append([part.first + place_of(table["subject_id"], part.names["subject_id"]) for table in tables])
    events, subjects, times = (pl.Series("subject_id", np.concatenate(n)) for n in zip(*numbers, strict=True))
    # the documents themselves bring no parents or names of codes, so that there is no other metadata to keep
    timelines = Timelines(
        replaced(pl.concat(part.timelines.events for part in parts), events),
        replaced(
            pl.concat(part.timelines.subjects for part in parts), subjects, subjects.cast(pl.String).alias("patient")
        ),
    )
    return timelines, replaced(pl.concat(part.times for part in parts), times)


def place_of(ids: pl.Series, among: pl.Series) -> NDArray[np.int64]:
    """Where each id is among the sorted others. LookupError where one is not.

    >>> place_of(pl.Series([9, 3, 9]), pl.Series([3, 9])).tolist()
    [1, 0, 1]
    """
    wanted, others = ids.to_numpy(), among.to_numpy()
    place = np.searchsorted(others, wanted)
    if len(wanted) and not (len(others) and np.array_equal(others.take(place, mode="clip"), wanted)):
        raise LookupError("of somebody who is not among them")  # else it would be another's
    return place


def apart(parts: Sequence[Part], table: pl.DataFrame) -> list[pl.DataFrame]:
    """Of a table, sorted by subject, about those of all parts the rows of each, called as they are in the document."""
    if not table.height:
        return [table] * len(parts)
    number = table["subject_id"].to_numpy()
    named = replaced(table, *pl.concat(part.names for part in parts)[places(number)])
    ends = np.searchsorted(number, [part.numbers.stop for part in parts])
    return [named[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def answer(model: ProgressionModel, parts: Sequence[Part]) -> list[Reply | NoForecast]:
    """The forecast of each part, or why there is none."""
    asked = [part for part in parts if part.times.height]
    replies = iter(_replies(model, asked) if asked else ())
    return [next(replies) if part.times.height else _none(_unfollowed(part)) for part in parts]


def _replies(model: ProgressionModel, parts: Sequence[Part]) -> Iterator[Reply | NoForecast]:
    """The same of parts with prediction times."""
    merged, times = together(parts)
    forecast = model.forecast_part(merged, times)
    explanation = _explained(model, parts, merged, times, forecast)
    unseen = _unseen(model, parts, merged)
    told = () if explanation is None else (explanation.contributions, explanation.scope)
    tables = zip(*(apart(parts, t) for t in (forecast.risk, forecast.labs, forecast.skipped, *told)), strict=True)
    for number, (part, (risk, labs, skipped, *why)) in enumerate(zip(parts, tables, strict=True)):
        if part.times.height < len(part.timelines):
            skipped = pl.concat([skipped, _unfollowed(part)])
        if not risk.height and not labs.height:
            yield _none(skipped)
            continue
        seen = model._seen_among(risk, labs)
        own = Forecast(risk, skipped, forecast.metadata, seen=seen, labs=labs, spans=forecast.spans)
        reasons = None
        if explanation is not None and WHY in part.ask.include:
            reasons = replace(explanation, contributions=why[0], scope=why[1])
        curves = _curves(part, forecast) if CURVES in part.ask.include and risk.height else None
        yield Reply(part.timelines, own, unseen[number], reasons, curves)


def _none(skipped: pl.DataFrame) -> NoForecast:
    reasons = ", ".join(skipped["reason"].unique().sort())
    return NoForecast(
        422, f"expected a patient with usable history at the prediction time; found none ({reasons}); send the "
        "patient's records, with codes that the model knows, or another time as `at`",
    )  # fmt: skip


def _unfollowed(part: Part) -> pl.DataFrame:
    """The subjects without a prediction time, as skipped."""
    without = part.timelines.subjects.join(part.times, on="subject_id", how="anti")
    return without.select(
        "subject_id", "patient", pl.lit(None, TIME).alias("prediction_time"),
        pl.lit(None, pl.String).alias("outcome"), pl.lit(NO_FOLLOW_UP).alias("reason"),
    )  # fmt: skip


def _unseen(model: ProgressionModel, parts: Sequence[Part], merged: Timelines) -> list[pl.DataFrame]:
    """The codes of each part that the model does not know."""
    number = np.repeat(np.arange(len(parts)), [part.timelines.events.height for part in parts])
    events = merged.events[["subject_id", "code"]].hstack([pl.Series("part", number)])
    found = model.fitted_.vocabulary.unseen_codes(events, "part")
    ends = np.searchsorted(found.drop_in_place("part").to_numpy(), np.arange(1, len(parts) + 1))
    return [found[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def _explained(
    model: ProgressionModel, parts: Sequence[Part], merged: Timelines, times: pl.DataFrame, forecast: Forecast
) -> Explanation | None:
    """Reasons of those parts that ask for them and have a risk to explain."""
    asking = {number for part in parts if WHY in part.ask.include for number in part.numbers}
    wanted = sorted(asking.intersection(forecast.risk["subject_id"].to_list())) if asking else []
    if not wanted:
        return None
    mine = times.filter(pl.col("subject_id").is_in(wanted))
    return model.explain(merged.select(mine["subject_id"]), mine, kinds=("code",))


def _curves(part: Part, forecast: Forecast) -> pl.DataFrame:
    """The curves of the subjects who have a forecast."""
    scored = set(forecast.risk["subject_id"].to_list())
    return pl.concat(
        forecast.curves(str(number)).with_columns(subject_id=pl.lit(own, pl.Int64), patient=pl.lit(patient))
        for number, (own, patient) in zip(part.numbers, part.names.iter_rows(), strict=True)
        if number in scored
    )
