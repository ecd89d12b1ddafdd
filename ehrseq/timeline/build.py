"""From a FHIR source to timelines: read, link, date, sort, follow up, and account for every record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrseq.errors import SourceError
from ehrseq.fhir.clock import NO_OFFSET, NO_TIME, PRECISIONS, moments, parse_times
from ehrseq.fhir.ledger import (
    SOURCE_SCHEMA,
    Reason,
    ledger_frame,
    quarantine_frame,
)
from ehrseq.fhir.reader import MEMORY, Reader
from ehrseq.fhir.references import Resolver
from ehrseq.fhir.rows import TYPES, PatientFacts, RecordColumns, Rows
from ehrseq.fhir.source import Progress, find_files
from ehrseq.timeline.follow_up import follow_up
from ehrseq.timeline.link import Linked, link, settle_duplicates, source_names
from ehrseq.timeline.schema import DEATH_CODE, EVENT_SCHEMA, SUBJECT_SCHEMA, TIME, as_instant, sort_events
from ehrseq.timeline.store import Timelines

Source = str | Path | Iterable[Any]


def read_fhir(source: Source, *, data_cut: str | date | datetime | None = None, progress: bool = False) -> Timelines:
    """Timelines of a FHIR export.

    Parameters
    ----------
    source
        A file or folder (searched through), or several: NDJSON, JSON resources and bundles, each plain or gzip, R4 or
        STU3. Or resources in memory: dicts, or objects of `fhir.resources`.
    data_cut
        The moment up to which the export is complete (a date: the end of that day); it ends everyone's follow-up who
        has no observation period in the data.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Timelines with `ledger` (what became of every record), `quarantine` (what could not be read) and `sources`. They
    do not depend on the order of files or records.

    Raises SourceError where there is nothing to read, or no Patient in it.

    >>> timelines = read_fhir([
    ...     {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1970"},
    ...     {"resourceType": "Observation", "status": "final", "subject": {"reference": "Patient/p"},
    ...      "code": {"coding": [{"system": "http://loinc.org", "code": "718-7"}]},
    ...      "effectiveDateTime": "2020-02", "valueQuantity": {"value": 13.1, "code": "g/dL"}}])
    >>> timelines.events.select("time", "code", "numeric_value").row(-1)
    (datetime.datetime(2020, 2, 1, 0, 0), 'LOINC//718-7', 13.10...)
    """
    cut = None if data_cut is None else as_instant(data_cut)
    reader = Reader()
    paths = _read(reader, source, progress)
    rows = reader.rows
    rows.flush(force=True)
    settle_duplicates(rows)
    if not rows.patients:
        raise SourceError(
            "a source with Patient resources",
            f"{_records_in(rows):,} records and no readable Patient",
            "add the patients' file, or check that this is a FHIR R4 or STU3 export",
        )
    resolve = Resolver(rows.full_urls, rows.patients)
    patients = patient_table(rows.patients)
    linked = link(rows, patients, resolve, NO_TIME if cut is None else _microseconds(cut))
    events = event_frame(rows, linked, patients)
    periods = _observation_periods(rows, resolve, patients, linked.records)
    return Timelines(
        events=events,
        subjects=_subject_frame(linked.patients, events, periods, cut),
        ledger=_ledger(rows, linked.records),
        quarantine=quarantine_frame(rows.quarantine),
        sources=pl.DataFrame(list(enumerate(map(str, paths))), SOURCE_SCHEMA, orient="row"),
        metadata={
            "source": "FHIR",
            "data_cut": None if cut is None else cut.isoformat(),
            "events_left_out": linked.left_out,
        },
    )


def ingest(
    source: Source,
    out: str | Path,
    *,
    data_cut: str | date | datetime | None = None,
    progress: bool = False,
) -> Timelines:
    """Read a FHIR export (see `read_fhir`) and save its timelines as a MEDS dataset folder."""
    timelines = read_fhir(source, data_cut=data_cut, progress=progress)
    timelines.save(out)
    return timelines


def subject_number(identity: str) -> int:
    """The `subject_id` of a FHIR identity: 63 bits of its hash, never 0.

    >>> subject_number("Patient/p") == subject_number("Patient/p") > 0
    True
    """
    return (int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1) or 1


def patient_table(patients: list[PatientFacts]) -> pl.DataFrame:
    """One row a patient: names, facts, birth and death in microseconds (`NO_TIME`: none).

    Birth is the start of its interval, death the end; `death_is_date` says that it has no clock time, `undated_death`
    that there is no (readable) date of death, and yet the record says that there was one.
    """
    birth = parse_times([p.birth for p in patients])
    death = parse_times([p.death for p in patients])
    return pl.DataFrame(
        {
            "subject_id": [subject_number(f"Patient/{p.id}") for p in patients],
            "patient": [p.id for p in patients],
            "sex": pl.Series([p.sex for p in patients], dtype=pl.String),
            "race": pl.Series([p.race for p in patients], dtype=pl.String),
            "ethnicity": pl.Series([p.ethnicity for p in patients], dtype=pl.String),
            "birth": birth.start,
            "death": death.end,
            "death_is_date": death.precision <= PRECISIONS.index("day"),
            "undated_death": (death.end == NO_TIME) & np.array([p.deceased for p in patients], bool),
        }
    )


def event_frame(rows: Rows, linked: Linked, patients: pl.DataFrame) -> pl.DataFrame:
    """The events in the contract's columns and order."""
    e, records = linked.events, linked.records
    code = pl.Series(list(rows.codes), dtype=pl.String)
    texts = pl.Series(list(rows.texts), dtype=pl.String)
    # a death of day precision is over at the end of that day: nothing of the day comes after it
    is_death = e.code == rows.codes[DEATH_CODE]
    encounters = pl.Series([x[1] for x in rows.encounters] + [None], dtype=pl.String)
    columns: dict[str, pl.Series] = {
        "subject_id": patients["subject_id"].gather(linked.patient[e.record]),
        "time": moments(np.where(is_death, e.end, e.start)),
        "code": code.gather(e.code),
        "numeric_value": pl.Series(e.number.astype(np.float32)).fill_nan(None),
        "text_value": texts.gather(e.text),
        "value_modifier": texts.gather(e.modifier),
        "unit": texts.gather(e.unit),
        "known_time": moments(
            np.where(e.start == NO_TIME, NO_TIME, np.maximum(e.known, np.where(is_death, e.end, e.start)))
        ),
        "time_source": _names(source_names(), e.source),
        "time_precision": _names([p or None for p in PRECISIONS], e.precision),
        "utc_offset": _offsets(e.offset),
        "encounter_id": encounters.gather(linked.encounter[e.record] % len(encounters)),
        "resource_type": _names(list(TYPES), records.kind[e.record], pl.String),
        "resource_id": records.id.gather(e.record),
    }
    frame = pl.DataFrame([columns[name].cast(kind).alias(name) for name, kind in EVENT_SCHEMA.items()])
    return sort_events(frame)


def _names(names: list[str | None] | list[str], numbers: Any, kind: Any = pl.Categorical) -> pl.Series:
    return pl.Series(names, dtype=kind).gather(numbers)


def _offsets(minutes: Any) -> pl.Series:
    series = pl.Series(minutes)
    return series.set(series == NO_OFFSET, None)


def _microseconds(moment: datetime) -> int:
    return int(np.datetime64(moment, "us").astype(np.int64))


def _observation_periods(rows: Rows, resolve: Resolver, patients: pl.DataFrame, records: RecordColumns) -> pl.DataFrame:
    """`subject_id`, `start`, `end` of the observation periods in the data (ResearchSubject)."""
    references: list[str | None] = list(rows.references)
    readable = [r for r in rows.research_subjects if records.reason[r[0]] == Reason.FOLLOW_UP]
    periods = pl.DataFrame(
        {
            "target": [resolve(references[number] or "") for _, number, _, _ in readable],
            "start": moments(parse_times([start for _, _, start, _ in readable]).start),
            "end": moments(parse_times([end for _, _, _, end in readable]).end),
        },
        {"target": pl.String, "start": TIME, "end": TIME},
    )
    names = patients.select("subject_id", target="Patient/" + pl.col("patient"))
    return periods.join(names, on="target").select("subject_id", "start", "end").unique().sort(pl.all())


def _subject_frame(
    patients: pl.DataFrame, events: pl.DataFrame, periods: pl.DataFrame, cut: datetime | None
) -> pl.DataFrame:
    table = patients.with_columns(birth_time=moments(patients["birth"].to_numpy())).with_columns(
        death_time=moments(patients["death"].to_numpy())
    )
    undated = patients.filter("undated_death")["subject_id"]
    watched = follow_up(events, periods if periods.height else None, cut, undated)
    return (
        table.join(watched, on="subject_id", how="left")
        .select(pl.col(name).cast(kind) for name, kind in SUBJECT_SCHEMA.items())
        .sort("subject_id")
    )


def _ledger(rows: Rows, records: RecordColumns) -> pl.DataFrame:
    counts: Counter[tuple[int, str, int]] = Counter(rows.counts)
    keys = (records.file.astype(np.int64) << 16) + (records.kind.astype(np.int64) << 8) + records.reason
    for key, count in zip(*np.unique(keys, return_counts=True), strict=True):
        counts[int(key) >> 16, TYPES[int(key) >> 8 & 255], int(key) & 255] += int(count)
    return ledger_frame(counts)


def _records_in(rows: Rows) -> int:
    return rows.records + sum(rows.counts.values())


def _read(reader: Reader, source: Source, progress: bool) -> list[Path]:
    """Read the whole source; the paths by file number."""
    if isinstance(source, Mapping):
        source = [source]
    if not isinstance(source, str | Path):
        items = iter(source)
        first = next(items, None)
        if first is None:
            raise SourceError("a FHIR source", "an empty list", "pass a path or FHIR resources")
        if not isinstance(first, str | Path):
            reader.read_objects(_chain(first, items))
            return [MEMORY]
        source = [first, *items]
    asked_for = [source] if isinstance(source, str | Path) else source
    named = {Path(path) for path in asked_for if isinstance(path, str | Path)}
    paths = find_files(asked_for)
    with _bar(paths, progress) as advance:
        for number, path in enumerate(paths):
            reader.read_file(path, number, advance, path in named)
    return paths


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


@contextmanager
def _bar(paths: list[Path], show: bool) -> Iterator[Progress | None]:
    """A progress bar over the files' bytes on disk; the files themselves are not named."""
    if not show:
        yield None
        return
    from rich.progress import Progress as Bar

    with Bar(transient=True) as bar:
        task = bar.add_task("reading FHIR", total=sum(path.stat().st_size for path in paths))
        yield lambda size: bar.advance(task, size)
