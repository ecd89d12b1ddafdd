"""Linking some shards of a source: subjects, medications, encounter times, birth and death. All vectorised.

Works on whole columns, of records and of events, each event with the number of its record. A record's `reason` says why
it gives no event (0: it does). What it costs to link some shards depends on their rows, hardly on what else there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrseq.fhir.chunk import Chunk
from ehrseq.fhir.clock import MINUTE, NO_OFFSET, NO_TIME, UNTOLD
from ehrseq.fhir.columns import EventColumns, series
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.references import A_RESULT, AN_ENCOUNTER, UNKNOWN
from ehrseq.fhir.rows import (
    ABATEMENT,
    DECEASED,
    ENCOUNTER,
    REPORT,
    STATIC,
    TIME_SOURCES,
    TYPE_NUMBER,
)
from ehrseq.frames import at_once, places
from ehrseq.timeline.duplicates import SEED
from ehrseq.timeline.meds import SHARDS
from ehrseq.timeline.parts import Part, nothing, parts_of, resolve_medications, texts_of, together
from ehrseq.timeline.survey import DAY, OPEN, Survey

Ints = npt.NDArray[Any]
# Reasons that stand for one event of a record, not for the record: the first that applies to its events counts.
_EVENT_REASONS = (
    Reason.INVALID_TIME,
    Reason.NO_TIME,
    Reason.ENCOUNTER_OPEN,
    Reason.UNKNOWN_MEDICATION,
    Reason.NO_CODE,
    Reason.BEFORE_BIRTH,
    Reason.AFTER_DEATH,
)


@dataclass(frozen=True)
class Linked:
    """Events that stay, and every record with its final reason."""

    events: EventColumns  # codes numbered as in the survey
    ids: pl.Series  # of each record
    kind: Ints
    file: Ints  # as numbered in the survey
    reason: Ints
    patient: Ints  # of each record: index into the patients, negative where there is none
    encounter: pl.Series  # of each record: the id of its encounter, null where unknown
    texts: pl.Series  # by the numbers in the events
    patients: pl.DataFrame  # columns of PATIENTS, sorted by subject; deaths of day precision end with the local day
    left_out: dict[str, int]  # events of records that kept others, by reason


def link(chunks: Sequence[Chunk], survey: Survey, first: int = 0, last: int = SHARDS) -> Linked:
    """Link what the chunks hold for the subjects of some shards (`first` up to, not including, `last`)."""
    parts = [part for number, chunk in enumerate(chunks) for part in parts_of(chunk, number, survey, first, last)]
    return link_parts(parts, survey, first, last)


def link_parts(parts: list[Part], survey: Survey, first: int, last: int) -> Linked:
    """The same of what was cut out of all chunks, in their order; the parts are used up."""
    patients = survey.patients_of(first, last)
    parts = parts or [nothing()]
    texts = texts_of(parts)
    events = EventColumns.of(resolve_medications(parts, survey))
    kind, file, reason, why_none, subject = (
        together(parts, name) for name in ("kind", "file", "reason", "why_none", "subject")
    )
    ids = series([part.ids for part in parts])
    encounter, encounter_id, reported = _stays(parts, survey)
    del parts
    patient = _index(patients["subject_id"].to_numpy(), subject)
    patient = np.where(patient >= 0, patient, -why_none.astype(np.int64))
    _settle_subjects(reason, patient, kind)
    events = events.keep(reason[events.record] == 0)
    birth = patients["birth"].to_numpy()[patient[events.record]]
    events, still_open = _date(events, birth, encounter, kind, survey.spans, reported)
    event_reason = _event_reasons(events, still_open, kind, patient, patients)
    left_out = _settle_events(reason, events, event_reason, len(kind))
    events = _start_at_birth(events.keep(event_reason == 0), patient, patients)
    events, patients = _end_deaths_locally(events, patient, patients)
    return Linked(
        events=events,
        ids=ids,
        kind=kind,
        file=file,
        reason=reason,
        patient=patient,
        encounter=encounter_id,
        texts=texts,
        patients=patients,
        left_out=left_out,
    )


def _stays(parts: list[Part], survey: Survey) -> tuple[Ints, pl.Series, npt.NDArray[np.bool_]]:
    """Of each record: its encounter's number in the survey (-1: unknown), that one's id, and whether it is none but
    the report whose result the record is."""
    targets, points = series([part.stays for part in parts]), np.concatenate([part.points_at for part in parts])
    before = np.cumsum([0] + [len(part.stays) for part in parts])
    stay = np.concatenate([part.stay + n for part, n in zip(parts, before.tolist(), strict=False)])
    keys, ids = at_once(targets.to_frame("target").lazy().select(_KEY, _ID))
    number = np.where(points == UNKNOWN, -1, survey.find_encounter(keys.to_numpy()))
    is_one = (number >= 0) & (points == AN_ENCOUNTER)
    ids = ids.scatter(places(np.flatnonzero(~is_one)), None)
    return number[stay], ids[places(stay)], (points == A_RESULT)[stay]


_KEY, _ID = pl.col("target").hash(SEED).alias("key"), pl.col("target").str.slice(len("Encounter/"))


def _index(names: Ints, wanted: Ints) -> Ints:
    """The index of each wanted number among sorted ones, -1 where it is not there."""
    if not len(names):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    return np.where(names[at] == wanted, at, -1)


def _settle_subjects(reason: Ints, patient: Ints, kind: Ints) -> None:
    """Give records without a known patient their reason, unless they have one."""
    facts = ~np.isin(kind, [TYPE_NUMBER["Medication"], TYPE_NUMBER["ResearchSubject"]])
    lost = (reason == 0) & (patient < 0) & facts
    reason[lost] = -patient[lost]


def _date(
    events: EventColumns,
    birth: Ints,
    encounter: Ints,
    kind: Ints,
    spans: dict[str, Ints],
    reported: npt.NDArray[np.bool_],
) -> tuple[EventColumns, npt.NDArray[np.bool_]]:
    """Give undated events their encounter's (or report's) start, and every event the moment since when it was known.

    Of what was recorded at no time, or before the day of birth (as on 1900-01-01), nobody can tell since when that was.
    Also returns which events are not known yet, since that moment is the end of an encounter that has none.
    """
    of_event = encounter[events.record]
    linked = of_event >= 0
    where = np.where(linked, of_event, 0)
    if not len(spans["start"]):
        spans = {name: np.array([NO_TIME if name != "offset" else NO_OFFSET]) for name in spans}
    dateless = (events.start == NO_TIME) & ~np.isin(events.source, [STATIC, ABATEMENT])
    # an encounter does not date itself: its end would become its start
    other = kind[events.record] != TYPE_NUMBER["Encounter"]
    borrowed = linked & dateless & other & (spans["start"][where] != NO_TIME)

    def fill(column: Ints, name: str) -> Ints:
        filled: Ints = np.where(borrowed, spans[name][where], column).astype(column.dtype)
        return filled

    shift = np.where(events.offset == NO_OFFSET, 0, events.offset).astype(np.int64) * MINUTE
    unborn = (events.start != NO_TIME) & (events.end + shift < birth)  # is left out for that
    early = (events.known == UNTOLD) | ((events.known != NO_TIME) & (events.known + DAY < birth))
    untold = early & ((events.known == UNTOLD) | ~unborn)
    known = np.where(events.known == NO_TIME, events.end, events.known)
    # what was diagnosed in an encounter is on record for certain once the encounter is over
    coded_late = np.isin(kind[events.record], [TYPE_NUMBER["Condition"], TYPE_NUMBER["AllergyIntolerance"]])
    coded_late &= linked & (events.known == NO_TIME)
    late = np.where(borrowed | coded_late, spans["known"][where], NO_TIME)
    from_report = borrowed & reported[events.record]
    if from_report.any():
        untold |= from_report & (late + DAY < birth)
    start, end, recorded = fill(events.start, "start"), fill(events.end, "end"), np.maximum(known, late)
    # what is recorded before it happens is known once it has: a year, once that is over
    recorded = np.where(recorded < start, end, recorded)
    known = np.where(start == NO_TIME, NO_TIME, recorded)
    # that an illness is over tells that there was one: it is not known before the diagnosis of the same record is
    abatement = np.flatnonzero(events.source == ABATEMENT)
    if len(abatement):
        diagnosed, of_record = np.full(len(kind), NO_TIME), events.record[abatement]
        of_abatement = events.source == ABATEMENT
        np.maximum.at(diagnosed, events.record, np.where(of_abatement, NO_TIME, recorded))
        known[abatement] = np.maximum(known[abatement], diagnosed[of_record])
        untold[abatement] |= np.isin(of_record, events.record[untold | (early & ~of_abatement)])
    events = replace(
        events,
        start=np.where(untold, NO_TIME, start),
        unreadable=events.unreadable | untold,
        end=end,
        known=known,
        precision=fill(events.precision, "precision"),
        offset=fill(events.offset, "offset"),
        source=np.where(borrowed, np.where(from_report, REPORT, ENCOUNTER), events.source).astype(np.uint8),
    )
    return events, known == OPEN


def _event_reasons(
    events: EventColumns,
    still_open: npt.NDArray[np.bool_],
    kind: Ints,
    patient: Ints,
    patients: pl.DataFrame,
) -> Ints:
    """Why each event cannot stay; 0 where it can."""
    reason = np.zeros(len(events.code), np.uint8)
    who = patient[events.record]
    # a written date is local: days of birth and death are compared by the clock on the wall
    shift = np.where(events.offset == NO_OFFSET, 0, events.offset).astype(np.int64) * MINUTE
    dated = events.start != NO_TIME
    death = patients["death"].to_numpy()[who]
    birth = patients["birth"].to_numpy()[who]
    local_death = death + np.where(patients["death_is_date"].to_numpy()[who], 0, shift)
    reason[dated & (death != NO_TIME) & (events.start + shift > local_death)] = Reason.AFTER_DEATH
    reason[dated & (birth != NO_TIME) & (events.end + shift < birth)] = Reason.BEFORE_BIRTH
    reason[still_open] = Reason.ENCOUNTER_OPEN
    part = kind[events.record] == TYPE_NUMBER["Observation"]  # of a panel: a value without a code
    reason[events.code == 0] = np.where(part, Reason.NO_CODE, Reason.UNKNOWN_MEDICATION)[events.code == 0]
    missing = ~dated & (events.source != STATIC)
    reason[missing] = Reason.NO_TIME
    reason[missing & events.unreadable] = Reason.INVALID_TIME
    return reason


def _settle_events(reason: Ints, events: EventColumns, event_reason: Ints, size: int) -> dict[str, int]:
    """Give records none of whose events stay their reason; count the lost events of the others."""
    kept = np.bincount(events.record[event_reason == 0], minlength=size) > 0
    left_out = {}
    for why in reversed(_EVENT_REASONS):
        hit = events.record[event_reason == why]
        alone = ~kept[hit]
        reason[hit[alone]] = why
        if count := int((~alone).sum()):
            left_out[why.label] = count
    return left_out


def _start_at_birth(events: EventColumns, patient: Ints, patients: pl.DataFrame) -> EventColumns:
    """Move the start of an interval that began before birth to the birth."""
    birth = patients["birth"].to_numpy()[patient[events.record]]
    before = (birth != NO_TIME) & (events.start != NO_TIME) & (events.start < birth) & (events.precision < 4)
    if not before.any():
        return events
    start = np.where(before, birth, events.start)
    known = np.where(events.known < start, events.end, events.known)
    return replace(events, start=start, known=np.where(before, known, events.known))


def _end_deaths_locally(
    events: EventColumns, patient: Ints, patients: pl.DataFrame
) -> tuple[EventColumns, pl.DataFrame]:
    """Let a day of death end where the subject's records were written: at the westernmost of their offsets, else UTC.

    Only deaths: for other dates an offset taken from the whole record would let a later record move an earlier
    event's known time.
    """
    by_day = patients["death_is_date"].to_numpy() & (patients["death"].to_numpy() != NO_TIME)
    if not by_day.any():
        return events, patients
    who = patient[events.record]
    written = np.flatnonzero((events.offset != NO_OFFSET) & by_day[who])
    west = np.full(len(patients), np.iinfo(np.int16).max, np.int64)
    np.minimum.at(west, who[written], events.offset[written].astype(west.dtype))  # ten times as fast as of two types
    west[west == np.iinfo(np.int16).max] = 0
    later = np.where(by_day, -west * MINUTE, 0)
    shift = np.where(events.source == DECEASED, later[who], 0)
    death = pl.Series("death", patients["death"].to_numpy() + later)
    return replace(events, end=events.end + shift, known=events.known + shift), patients.with_columns(death)


def source_names() -> list[str | None]:
    """Names of the time sources by number; none for static facts."""
    return [name or None for name in TIME_SOURCES]
