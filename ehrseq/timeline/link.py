"""Linking some shards of a source: subjects, medications, encounter times, birth and death. All vectorised.

Works on whole columns: `records` are the rows of `RecordColumns`, `events` those of `EventColumns`, each event with
the number of its record. A record's `reason` says why it gives no event (0: it does).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrseq.fhir.chunk import PATIENTS, Chunk
from ehrseq.fhir.clock import NO_OFFSET, NO_TIME
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.references import DATED_BY_OTHERS, subject_number
from ehrseq.fhir.rows import (
    ABATEMENT,
    DECEASED,
    ENCOUNTER,
    REPORT,
    STATIC,
    TIME_SOURCES,
    TYPE_NUMBER,
    EventColumns,
    RecordColumns,
    concatenate,
)
from ehrseq.timeline.meds import SHARDS, shards_of
from ehrseq.timeline.survey import OPEN, Survey

Ints = npt.NDArray[Any]
MINUTE = 60_000_000
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
    records: RecordColumns  # `file` as numbered in the survey
    patient: Ints  # of each record: index into the patients, negative where there is none
    encounter: pl.Series  # of each record: the id of its encounter, null where unknown
    texts: pl.Series  # by the numbers in the events
    patients: pl.DataFrame  # columns of PATIENTS, sorted by subject; deaths of day precision end with the local day
    left_out: dict[str, int]  # events of records that kept others, by reason


@dataclass(frozen=True)
class _Part:
    """What one chunk has for the shards."""

    records: RecordColumns
    events: EventColumns
    subject: npt.NDArray[np.int64]  # of each record; 0: none
    why_none: npt.NDArray[np.uint8]
    encounter: pl.Series  # of each record: `Encounter/id`
    texts: pl.Series


def link(chunks: Sequence[Chunk], survey: Survey, first: int = 0, last: int = SHARDS) -> Linked:
    """Link what the chunks hold for the subjects of some shards (`first` up to, not including, `last`)."""
    patients = _patients(chunks, survey, first, last)
    parts: list[_Part] = []
    for number, chunk in enumerate(chunks):
        parts += _parts(chunk, number, survey, first, last)
        chunk.release()
    records, events = _join(parts)
    subject = np.concatenate([part.subject for part in parts])
    why_none = np.concatenate([part.why_none for part in parts])
    targets = pl.concat([part.encounter for part in parts])
    encounter = survey.find_encounter(targets)
    patient = _index(patients["subject_id"].to_numpy(), subject)
    patient = np.where(patient >= 0, patient, -why_none.astype(np.int64))
    reason = records.reason.copy()
    _settle_subjects(reason, patient, records)
    events = _keep(events, reason[events.record] == 0)
    reported = _is_report(targets).fill_null(False).to_numpy()
    events, still_open = _date(events, encounter, records, survey.spans, reported)
    event_reason = _event_reasons(events, still_open, records, patient, patients)
    left_out = _settle_events(reason, events, event_reason, len(records.id))
    events = _start_at_birth(_keep(events, event_reason == 0), patient, patients)
    events, patients = _end_deaths_locally(events, patient, patients)
    return Linked(
        events=events,
        records=replace(records, reason=reason),
        patient=patient,
        encounter=_encounter_ids(targets, encounter >= 0),
        texts=pl.concat([part.texts for part in parts]),
        patients=patients,
        left_out=left_out,
    )


def _patients(chunks: Sequence[Chunk], survey: Survey, first: int, last: int) -> pl.DataFrame:
    """The patients of some shards, one row each."""
    tables = []
    for chunk, (dropped, _) in zip(chunks, survey.dropped, strict=True):
        table = chunk.tables["patients"]
        shard = shards_of(table["subject_id"].to_numpy())
        here = (shard >= first) & (shard < last) & ~np.isin(table["record"].to_numpy(), dropped)
        tables.append(table.filter(pl.Series(here)))
    return pl.concat(tables).sort("subject_id") if tables else pl.DataFrame(schema=PATIENTS)


def _parts(chunk: Chunk, number: int, survey: Survey, first: int, last: int) -> Iterator[_Part]:
    """What a chunk has for some shards, partition by partition."""
    references = chunk.tables["references"]
    subject = references["subject_id"].to_numpy().copy()
    names_other = _names_no_patient(references)
    for at, target in survey.resolved[number].items():
        subject[at] = subject_number(target) if target.startswith("Patient/") else 0
        names_other[at] = not target.startswith("Patient/")
    partition = shards_of(subject)
    subject = survey.find_subject(subject)
    home = np.where(subject == 0, 0, shards_of(subject)).astype(np.int64)
    wanted = (home >= first) & (home < last)
    # a partition holds its own shard's records, but for those whose patient was found or merged later
    elsewhere = set(partition[wanted & (home != partition)].tolist()) - set(range(first, last))
    why = np.where(names_other, Reason.NOT_A_PATIENT, Reason.UNKNOWN_SUBJECT).astype(np.uint8)
    why[0] = Reason.NO_SUBJECT
    whole = bool(wanted.all())
    for low, high in [(first, last), *((p, p + 1) for p in sorted(elsewhere)), (SHARDS, SHARDS + 1)]:
        rows = chunk.record_bounds[low], chunk.record_bounds[high]
        if rows[0] == rows[1]:
            continue
        records = chunk.record_columns(*rows)
        events = chunk.event_columns(chunk.event_bounds[low], chunk.event_bounds[high])
        events = replace(events, record=events.record - rows[0])
        reason = records.reason.copy()
        dropped, reasons = survey.dropped[number]
        inside = slice(*np.searchsorted(dropped, rows))
        reason[dropped[inside] - rows[0]] = reasons[inside]
        records = replace(records, reason=reason, file=np.array(survey.file_numbers[number], np.int32)[records.file])
        if not whole:
            records, events = _select(records, events, wanted[records.subject])
        if len(records.id):
            events = _resolve_medications(events, chunk, number, survey)
            yield _Part(
                records=records,
                subject=subject[records.subject],
                why_none=why[records.subject],
                encounter=_encounter_targets(records.encounter, references, survey.resolved[number]),
                **_used_texts(events, chunk.tables["texts"]["text"]),
            )


def _names_no_patient(references: pl.DataFrame) -> npt.NDArray[np.bool_]:
    names = references["target"].is_not_null() & ~references["target"].str.starts_with("Patient/")
    return names.fill_null(False).to_numpy().copy()


def _select(
    records: RecordColumns, events: EventColumns, keep: npt.NDArray[np.bool_]
) -> tuple[RecordColumns, EventColumns]:
    """Some records, with their events numbered anew."""
    if keep.all():
        return records, events
    events = _keep(events, keep[events.record])
    new = np.cumsum(keep) - 1
    columns = {f.name: getattr(records, f.name) for f in fields(RecordColumns)}
    return (
        RecordColumns(**{n: c.filter(pl.Series(keep)) if n == "id" else c[keep] for n, c in columns.items()}),
        replace(events, record=new[events.record]),
    )


def _encounter_targets(numbers: Ints, references: pl.DataFrame, resolved: dict[int, str]) -> pl.Series:
    """Of each record: `Encounter/id`, null where it names none."""
    targets = references["target"]
    if resolved:
        targets = targets.scatter(list(resolved), list(resolved.values()))
    return targets.gather(numbers)


def _used_texts(events: EventColumns, texts: pl.Series) -> dict[str, Any]:
    """Events with texts numbered among those that they use, and these texts."""
    numbers = (events.text, events.modifier, events.unit)
    used = np.zeros(len(texts), bool)
    used[0] = True
    for column in numbers:
        used[column] = True
    new = (np.cumsum(used) - 1).astype(np.int32)
    text, modifier, unit = (new[column] for column in numbers)
    return {
        "events": replace(events, text=text, modifier=modifier, unit=unit),
        "texts": texts.filter(pl.Series(used)),
    }


def _encounter_ids(targets: pl.Series, found: npt.NDArray[np.bool_]) -> pl.Series:
    is_one = pl.Series(found) & targets.str.starts_with("Encounter/")
    return pl.select(pl.when(is_one).then(targets.str.slice(len("Encounter/")))).to_series()


def _join(parts: list[_Part]) -> tuple[RecordColumns, EventColumns]:
    """All parts as one, records and texts numbered through."""
    records = texts = 0
    shifted = []
    for part in parts:
        e = part.events
        shifted.append(
            replace(e, record=e.record + records, text=e.text + texts, modifier=e.modifier + texts, unit=e.unit + texts)
        )
        records += len(part.records.id)
        texts += len(part.texts)
    return concatenate([part.records for part in parts], RecordColumns), concatenate(shifted, EventColumns)


def _index(names: Ints, wanted: Ints) -> Ints:
    """The index of each wanted number among sorted ones, -1 where it is not there."""
    if not len(names):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    return np.where(names[at] == wanted, at, -1)


def _settle_subjects(reason: Ints, patient: Ints, records: RecordColumns) -> None:
    """Give records without a known patient their reason, unless they have one."""
    facts = ~np.isin(records.kind, [TYPE_NUMBER["Medication"], TYPE_NUMBER["ResearchSubject"]])
    lost = (reason == 0) & (patient < 0) & facts
    reason[lost] = -patient[lost]


def _resolve_medications(events: EventColumns, chunk: Chunk, number: int, survey: Survey) -> EventColumns:
    """Codes as the survey numbers them; a reference to a Medication gives none (0), one, or several events."""
    of_code = survey.code_numbers[number]
    pending = np.flatnonzero(events.code < 0)
    code = of_code[np.maximum(events.code, 0)]
    if not len(pending):
        return replace(events, code=code)
    used, which = np.unique(-1 - events.code[pending], return_inverse=True)
    targets = _encounter_targets(used, chunk.tables["references"], survey.resolved[number])
    found = [survey.medications.get(target or "") or [0] for target in targets]
    repeats = np.ones(len(code), np.int64)
    repeats[pending] = np.array([len(f) for f in found])[which]
    is_reference = np.repeat(events.code < 0, repeats)
    events = EventColumns(
        **{f.name: np.repeat(code if f.name == "code" else getattr(events, f.name), repeats) for f in fields(events)}
    )
    # the dose of a mixture is nobody's dose
    mixed = is_reference & (np.repeat(repeats, repeats) > 1)
    events.number[mixed] = np.nan
    events.text[mixed] = events.modifier[mixed] = events.unit[mixed] = 0
    events.code[is_reference] = [c for n in which.tolist() for c in found[n]]
    return events


def _keep(events: EventColumns, keep: npt.NDArray[np.bool_]) -> EventColumns:
    if keep.all():
        return events
    return EventColumns(**{f.name: getattr(events, f.name)[keep] for f in fields(events)})


def _is_report(targets: pl.Series) -> pl.Series:
    """Whether a record takes its time from one that names it, such as a report: then its target is its own name."""
    return targets.str.contains(DATED_BY_OTHERS)


def _date(
    events: EventColumns,
    encounter: Ints,
    records: RecordColumns,
    spans: dict[str, Ints],
    reported: npt.NDArray[np.bool_],
) -> tuple[EventColumns, npt.NDArray[np.bool_]]:
    """Give undated events their encounter's (or report's) start, and every event the moment since when it was known.

    Also returns which events are not known yet, since that moment is the end of an encounter that has none.
    """
    of_event = encounter[events.record]
    linked = of_event >= 0
    where = np.where(linked, of_event, 0)
    if not len(spans["start"]):
        spans = {name: np.array([NO_TIME if name != "offset" else NO_OFFSET]) for name in spans}
    dateless = (events.start == NO_TIME) & ~np.isin(events.source, [STATIC, ABATEMENT])
    borrowed = linked & dateless & (spans["start"][where] != NO_TIME)

    def fill(column: Ints, name: str) -> Ints:
        filled: Ints = np.where(borrowed, spans[name][where], column).astype(column.dtype)
        return filled

    known = np.where(events.known == NO_TIME, events.end, events.known)
    # what was diagnosed in an encounter is on record for certain once the encounter is over
    coded_late = np.isin(records.kind[events.record], [TYPE_NUMBER["Condition"], TYPE_NUMBER["AllergyIntolerance"]])
    coded_late &= linked & (events.known == NO_TIME)
    late = np.where(borrowed | coded_late, spans["known"][where], NO_TIME)
    start = fill(events.start, "start")
    known = np.where(start == NO_TIME, NO_TIME, np.maximum(np.maximum(known, late), start))
    # that an illness is over tells that there was one: it is not known before the diagnosis of the same record is
    abatement = np.flatnonzero(events.source == ABATEMENT)
    if len(abatement):
        diagnosed = np.full(len(records.id), NO_TIME)
        np.maximum.at(diagnosed, events.record, np.where(events.source == ABATEMENT, NO_TIME, known))
        known[abatement] = np.maximum(known[abatement], diagnosed[events.record[abatement]])
    events = replace(
        events,
        start=start,
        end=fill(events.end, "end"),
        known=known,
        precision=fill(events.precision, "precision"),
        offset=fill(events.offset, "offset"),
        source=np.where(borrowed, np.where(reported[events.record], REPORT, ENCOUNTER), events.source).astype(np.uint8),
    )
    return events, known == OPEN


def _event_reasons(
    events: EventColumns,
    still_open: npt.NDArray[np.bool_],
    records: RecordColumns,
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
    part = records.kind[events.record] == TYPE_NUMBER["Observation"]  # of a panel: a value without a code
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
    return replace(events, start=start, known=np.where(before, np.maximum(events.known, start), events.known))


def _end_deaths_locally(
    events: EventColumns, patient: Ints, patients: pl.DataFrame
) -> tuple[EventColumns, pl.DataFrame]:
    """Let a day of death end where the subject's records were written: at the westernmost of their offsets, else UTC.

    Only deaths: for other dates an offset taken from the whole record would let a later record move an earlier
    event's known time.
    """
    who = patient[events.record]
    written = events.offset != NO_OFFSET
    west = np.full(len(patients), np.iinfo(np.int16).max, np.int64)
    np.minimum.at(west, who[written], events.offset[written])
    west[west == np.iinfo(np.int16).max] = 0
    by_day = patients["death_is_date"].to_numpy() & (patients["death"].to_numpy() != NO_TIME)
    later = np.where(by_day, -west * MINUTE, 0)
    shift = np.where(events.source == DECEASED, later[who], 0)
    death = pl.Series("death", patients["death"].to_numpy() + later)
    return replace(events, end=events.end + shift, known=events.known + shift), patients.with_columns(death)


def source_names() -> list[str | None]:
    """Names of the time sources by number; none for static facts."""
    return [name or None for name in TIME_SOURCES]
