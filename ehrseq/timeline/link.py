"""Linking what was read: duplicates, subjects, medications, encounter times, birth and death. All vectorised.

Works on whole columns: `records` are the rows of `RecordColumns`, `events` those of `EventColumns`, each event with
the number of its record. A record's `reason` says why it gives no event (0: it does).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrseq.fhir.clock import NO_OFFSET, NO_TIME, parse_times
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.references import Resolver, medication_codes
from ehrseq.fhir.rows import (
    ABATEMENT,
    DECEASED,
    ENCOUNTER,
    STATIC,
    TIME_SOURCES,
    TYPE_NUMBER,
    EventColumns,
    RecordColumns,
    Rows,
)

Ints = npt.NDArray[Any]
Stretch = TypeVar("Stretch", EventColumns, RecordColumns)
MINUTE = 60_000_000
OPEN = np.iinfo(np.int64).max  # the end of an encounter that has none
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

    events: EventColumns
    records: RecordColumns
    patients: pl.DataFrame  # as given, with deaths of day precision at the end of the local day
    patient: Ints  # of each record: index into the patients, negative where there is none
    encounter: Ints  # of each record: index into the encounters, -1 where unknown
    left_out: dict[str, int]  # events of records that kept others, by reason


def link(rows: Rows, patients: pl.DataFrame, resolve: Resolver, data_cut: int) -> Linked:
    """Link everything that `rows` holds; `patients` is `patient_table(...)`, `data_cut` in microseconds or NO_TIME."""
    records = concatenate(rows.record_stretches, RecordColumns)
    events = concatenate(rows.event_stretches, EventColumns)
    references = [None if r is None else resolve(r) for r in rows.references]
    reason = records.reason.copy()
    patient_of = _patients_of(references, patients)
    patient = patient_of[records.subject]
    _settle_subjects(reason, patient, records)
    encounter_of = {f"Encounter/{e[1]}": i for i, e in enumerate(rows.encounters)}
    encounter = np.array([encounter_of.get(r or "", -1) for r in references], np.int64)[records.encounter]
    events = _resolve_medications(events, references, medication_codes(rows.medications, resolve))

    _settle_periods(reason, rows, patient_of)
    events = _keep(events, reason[events.record] == 0)
    spans = _encounter_spans(rows, data_cut)
    events, still_open = _date(events, encounter, records, spans)
    event_reason = _event_reasons(events, still_open, records, patient, patients)
    left_out = _settle_events(reason, events, event_reason, len(records.id))
    events = _start_at_birth(_keep(events, event_reason == 0), patient, patients)
    events, patients = _end_deaths_locally(events, patient, patients)
    return Linked(events, replace(records, reason=reason), patients, patient, encounter, left_out)


def concatenate(stretches: list[Stretch], kind: type[Stretch]) -> Stretch:
    """Stretches of columns put one after the other."""
    columns: dict[str, Any] = {}
    for name in (f.name for f in fields(kind)):
        parts = [getattr(stretch, name) for stretch in stretches]
        columns[name] = pl.concat(parts) if isinstance(parts[0], pl.Series) else np.concatenate(parts)
    return kind(**columns)


def settle_duplicates(rows: Rows) -> None:
    """Keep one of the records that share type and id: the last updated, among equals the one with the greater content.

    The others get the reason `duplicate`, and what they said of patients, encounters, ... is forgotten. Which one is
    kept does not depend on the order of reading.
    """
    records = concatenate(rows.record_stretches, RecordColumns)
    key = records.id.hash(seed=7).to_numpy() ^ (records.kind.astype(np.uint64) << np.uint64(56))
    suspects = np.flatnonzero(pl.Series(key).is_duplicated().to_numpy())
    if not len(suspects):
        return
    frame = pl.DataFrame(
        {
            "row": suspects,
            "id": records.id.gather(suspects),
            "kind": records.kind[suspects],
            "updated": records.updated[suspects],
            "content": _content(rows, records, suspects),
            "reason": records.reason[suspects],
        }
    ).sort("updated", "content", "reason", "row", descending=[True, True, False, False])
    losers = frame.filter(~pl.struct("kind", "id").is_first_distinct())["row"].to_numpy()
    start = 0
    for number, stretch in enumerate(rows.record_stretches):
        here = losers[(losers >= start) & (losers < start + len(stretch.id))] - start
        reason = stretch.reason.copy()
        reason[here] = Reason.DUPLICATE
        rows.record_stretches[number] = replace(stretch, reason=reason)
        start += len(stretch.id)
    lost = set(losers.tolist())
    rows.patients = [p for p in rows.patients if p.record not in lost]
    rows.medications = [m for m in rows.medications if m.record not in lost]
    rows.encounters = [e for e in rows.encounters if e[0] not in lost]
    rows.research_subjects = [r for r in rows.research_subjects if r[0] not in lost]


def _content(rows: Rows, records: RecordColumns, suspects: Ints) -> pl.Series:
    """What each suspect says, as text that does not depend on how things were numbered."""
    events = concatenate(rows.event_stretches, EventColumns)
    events = _keep(events, np.isin(events.record, suspects))
    codes, texts, references = list(rows.codes), list(rows.texts), list(rows.references)

    def name(code: int) -> str | None:
        return codes[code] if code >= 0 else references[-1 - code]

    said = [
        (record, f"{name(code)}|{start}|{known}|{number}|{texts[text]}|{texts[modifier]}|{texts[unit]}")
        for record, code, start, known, number, text, modifier, unit in zip(
            events.record.tolist(), events.code.tolist(), events.start.tolist(), events.known.tolist(),
            events.number.tolist(), events.text.tolist(), events.modifier.tolist(), events.unit.tolist(),
            strict=True,
        )
    ]  # fmt: skip
    said += [(p.record, repr(replace(p, record=0))) for p in rows.patients]
    said += [(e[0], repr(e[1:])) for e in rows.encounters]
    said += [
        (m.record, f"{name(m.code)}|{[name(c) for c in m.ingredient_codes]}|{m.ingredient_references}")
        for m in rows.medications
    ]
    said += [(r[0], f"{references[r[1]]}|{r[2:]}") for r in rows.research_subjects]
    said += [(int(row), f"{references[records.subject[row]]}|{references[records.encounter[row]]}") for row in suspects]
    content = (
        pl.DataFrame(said, {"row": pl.Int64, "line": pl.String}, orient="row")
        .group_by("row")
        .agg(pl.col("line").sort().str.join("\n"))
    )
    wanted = pl.DataFrame({"row": suspects}, {"row": pl.Int64})
    return wanted.join(content, on="row", how="left", maintain_order="left")["line"]


def _patients_of(references: list[str | None], patients: pl.DataFrame) -> Ints:
    """Of each reference: the index of its patient, or minus the reason why it has none."""
    index = {f"Patient/{name}": i for i, name in enumerate(patients["patient"])}
    return np.array(
        [
            -int(Reason.NO_SUBJECT) if r is None and number == 0
            else index.get(r or "", -int(Reason.NOT_A_PATIENT if r and not r.startswith("Patient/") else
                                         Reason.UNKNOWN_SUBJECT))
            for number, r in enumerate(references)
        ],
        np.int64,
    )  # fmt: skip


def _settle_subjects(reason: Ints, patient: Ints, records: RecordColumns) -> None:
    """Give records without a known patient their reason, unless they have one."""
    facts = ~np.isin(records.kind, [TYPE_NUMBER["Medication"], TYPE_NUMBER["ResearchSubject"]])
    lost = (reason == 0) & (patient < 0) & facts
    reason[lost] = -patient[lost]


def _settle_periods(reason: Ints, rows: Rows, patient: Ints) -> None:
    """Give observation periods of nobody, and those without readable dates, their reason."""
    starts = parse_times([start for _, _, start, _ in rows.research_subjects]).start
    ends = parse_times([end for _, _, _, end in rows.research_subjects]).end
    for (record, number, *written), start, end in zip(rows.research_subjects, starts, ends, strict=True):
        if patient[number] < 0:
            reason[record] = -patient[number]
        elif not any(written):
            reason[record] = Reason.NO_TIME
        elif (written[0] and start == NO_TIME) or (written[1] and end == NO_TIME):
            reason[record] = Reason.INVALID_TIME


def _resolve_medications(
    events: EventColumns, references: list[str | None], codes: dict[str, list[int]]
) -> EventColumns:
    """Put the codes of Medications in the place of references to them: none (0), one, or several events."""
    pending = np.flatnonzero(events.code < 0)
    if not len(pending):
        return events
    found = [codes.get(r or "") or [0] for r in references]
    sizes = np.array([len(c) for c in found])
    reference = -1 - events.code[pending]
    several = sizes[reference]
    repeats = np.ones(len(events.code), np.int64)
    repeats[pending] = several
    events = EventColumns(**{f.name: np.repeat(getattr(events, f.name), repeats) for f in fields(events)})
    # the dose of a mixture is nobody's dose
    mixed = (events.code < 0) & (np.repeat(repeats, repeats) > 1)
    events.number[mixed] = np.nan
    events.text[mixed] = events.modifier[mixed] = events.unit[mixed] = 0
    events.code[events.code < 0] = [c for r in reference.tolist() for c in found[r]]
    return events


def _keep(events: EventColumns, keep: npt.NDArray[np.bool_]) -> EventColumns:
    if keep.all():
        return events
    return EventColumns(**{f.name: getattr(events, f.name)[keep] for f in fields(events)})


def _encounter_spans(rows: Rows, data_cut: int) -> dict[str, Ints]:
    """Start and end of each encounter; one that has not ended ends at the data cut, and without one never (`OPEN`).

    What other records say of later times is no end: it would let one patient's record move what is known of another.
    """
    start = parse_times([e[2] for e in rows.encounters])
    end = parse_times([e[3] for e in rows.encounters])
    last = OPEN if data_cut == NO_TIME else data_cut
    begun = np.where(start.start == NO_TIME, end.start, start.start)
    known = np.where(end.end == NO_TIME, np.maximum(begun, last), end.end)
    return {
        "start": begun,
        "known": np.where(begun == NO_TIME, NO_TIME, np.maximum(known, begun)),
        "precision": np.where(start.start == NO_TIME, end.precision, start.precision),
        "offset": np.where(start.start == NO_TIME, end.offset, start.offset),
        "end": np.where(start.start == NO_TIME, end.end, start.end),
    }


def _date(
    events: EventColumns, encounter: Ints, records: RecordColumns, spans: dict[str, Ints]
) -> tuple[EventColumns, npt.NDArray[np.bool_]]:
    """Give undated events their encounter's start, and every event the moment from which it was known.

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
        source=np.where(borrowed, ENCOUNTER, events.source).astype(np.uint8),
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
