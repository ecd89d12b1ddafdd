"""From a FHIR source to timelines: read, link, date, sort, follow up, and account for every record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrseq.errors import SourceError
from ehrseq.fhir.chunk import Chunk, pack
from ehrseq.fhir.clock import NO_OFFSET, NO_TIME, PRECISIONS, moments
from ehrseq.fhir.codes import CodingPreference
from ehrseq.fhir.columns import nullable
from ehrseq.fhir.ledger import SOURCE_SCHEMA, ledger_frame, quarantine_frame
from ehrseq.fhir.reader import MEMORY, Reader, uncollected
from ehrseq.fhir.references import subject_number as subject_number
from ehrseq.fhir.rows import TYPES, Rows
from ehrseq.fhir.source import Progress, find_files, size_on_disk
from ehrseq.frames import at_once, places
from ehrseq.timeline.follow_up import contacts_of, follow_up_steps, in_life
from ehrseq.timeline.link import Linked, link, source_names
from ehrseq.timeline.meds import SHARDS, shard_of, shards_of
from ehrseq.timeline.schema import DEATH_CODE, EVENT_SCHEMA, SUBJECT_SCHEMA, TIME, as_instant, event_order, in_order
from ehrseq.timeline.store import Timelines
from ehrseq.timeline.survey import Survey, survey
from ehrseq.timeline.units import normalise_units

Source = str | Path | Iterable[Any]
Counts = Counter[tuple[int, str, int]]
Ints = npt.NDArray[Any]


def read_fhir(
    source: Source,
    *,
    data_cut: str | date | datetime | None = None,
    coding: CodingPreference | None = None,
    progress: bool = False,
) -> Timelines:
    """Timelines of a FHIR export, in memory (see `ingest` for exports that do not fit).

    Parameters
    ----------
    source
        A file or folder (searched through), or several: NDJSON, JSON resources and bundles, each plain, compressed or
        in an archive, DSTU2 to R5. Or resources in memory: dicts, or objects of `fhir.resources`.
    data_cut
        The moment up to which the export is complete (a date: the end of that day); it ends everyone's follow-up who
        has no observation period in the data.
    coding
        Which coding of a concept names its events; the default is described in `docs/timeline.md`.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Timelines
        with `ledger` (what became of every record), `quarantine` (what could not be read) and `sources`; they do not
        depend on the order of files or records

    Raises
    ------
    SourceError
        where there is nothing to read, or no Patient in it

    >>> timelines = read_fhir([
    ...     {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1970"},
    ...     {"resourceType": "Observation", "status": "final", "subject": {"reference": "Patient/p"},
    ...      "code": {"coding": [{"system": "http://loinc.org", "code": "718-7"}]},
    ...      "effectiveDateTime": "2020-02", "valueQuantity": {"value": 13.1, "code": "g/dL"}}])
    >>> timelines.events.select("time", "code", "numeric_value").row(-1)
    (datetime.datetime(2020, 2, 1, 0, 0), 'LOINC//718-7', 13.10...)
    """
    return _timelines(_read(source, coding, progress), data_cut)


def read_fhir_json(
    document: bytes, *, data_cut: datetime | None = None, coding: CodingPreference | None = None
) -> Timelines:
    """Timelines of one JSON document: a resource, a Bundle, or a list of them. As `read_fhir`, but for its source.

    Raises SourceError where the document is no JSON, or has no Patient.

    >>> read_fhir_json(b'[{"resourceType": "Patient", "id": "p", "birthDate": "1970"}]')
    Timelines(1 subjects, 1 events)
    """
    maker = ChunkMaker([str(MEMORY)], coding)
    with uncollected():
        if not maker.reader.document(document):
            raise SourceError(
                "a FHIR resource, a Bundle or a list of them, as JSON", "text that is not", "check that it is complete"
            )
        maker.reader.flush()
    return _timelines(maker.finish(), data_cut)


def _timelines(chunks: list[Chunk], data_cut: str | date | datetime | None) -> Timelines:
    """The timelines of all that was read."""
    cut = None if data_cut is None else as_instant(data_cut)
    known = survey(chunks, microseconds(cut))
    check_patients(known, chunks)
    part = assemble(chunks, known)
    return Timelines(
        events=part.events,
        subjects=subject_frame(part.patients, part.contacts, known),
        ledger=ledger_frame(part.counts + settled_counts(chunks, known)),
        quarantine=quarantined(chunks, known),
        sources=source_frame(known),
        units=part.units,
        metadata=facts(cut, part.left_out),
    )


@dataclass(frozen=True)
class Assembled:
    """The timelines of some shards."""

    events: pl.DataFrame
    patients: pl.DataFrame  # columns of PATIENTS, one row a subject
    contacts: pl.DataFrame  # as `follow_up.contacts` has it
    units: pl.DataFrame
    counts: Counts  # records that are read by file number, type and reason
    left_out: Counter[str]  # events of records that kept others, by reason
    codes: Ints  # how many events have each code, by its number in the survey


def assemble(
    chunks: Sequence[Chunk], known: Survey, first: int = 0, last: int = SHARDS, by_shard: bool = False
) -> Assembled:
    """The timelines of some shards (`first` up to, not including, `last`), where wanted one shard after the other."""
    return assembled(link(chunks, known, first, last), known, by_shard)


def assembled(linked: Linked, known: Survey, by_shard: bool = False) -> Assembled:
    """The timelines of what was linked."""
    patients, counts, left_out = linked.patients, _record_counts(linked), Counter(linked.left_out)
    start, known_time = _times(linked, known)
    keys = (
        _places(patients["subject_id"], by_shard)[linked.patient[linked.events.record]],
        start,
        known_time,
        known.code_order[linked.events.code],
    )
    events = event_frame(linked, known, start, known_time)
    flags = _flags(linked, known)
    codes = np.bincount(linked.events.code, minlength=len(known.codes))
    del linked, start, known_time
    contacts = contacts_of(events.lazy().select("subject_id", "time", "known_time").with_columns(flags))
    events, units = normalise_units(events)
    events = in_order(events, event_order(events, keys))
    return Assembled(
        events=events,
        patients=patients,
        contacts=contacts,
        units=units,
        counts=counts,
        left_out=left_out,
        codes=codes,
    )


def check_patients(known: Survey, chunks: Sequence[Chunk]) -> None:
    """Raise SourceError where a source has no Patient."""
    if len(known.subjects):
        return
    records = sum(chunk.record_bounds[-1] + sum(n for *_, n in chunk.counts) for chunk in chunks)
    raise SourceError(
        "a source with Patient resources",
        f"{records:,} records and no readable Patient",
        "add the patients' file, or check that this is a FHIR export",
    )


def _times(linked: Linked, known: Survey) -> tuple[Ints, Ints]:
    """When the events were, and since when that is known, in microseconds."""
    e = linked.events
    # a death of day precision is over at the end of that day: nothing of the day comes after it
    is_death = (known.split_codes[0] == DEATH_CODE).fill_null(False).to_numpy()[e.code]
    time = np.where(is_death, e.end, e.start)
    return time, np.where(e.start == NO_TIME, NO_TIME, np.maximum(e.known, time))


def _places(subjects: pl.Series, by_shard: bool) -> Ints:
    """Of each of the sorted subjects its place among them, or `by_shard` if all are taken shard by shard."""
    place = np.arange(len(subjects)).astype(np.min_scalar_type(len(subjects)))  # short numbers are sorted much faster
    if by_shard:
        place[np.argsort(shard_of(subjects), kind="stable")] = place.copy()
    return place


def event_frame(linked: Linked, known: Survey, time: Ints, known_time: Ints) -> pl.DataFrame:
    """The events in the contract's columns, in no order."""
    e = linked.events
    record, number = places(e.record), places(e.code)
    code, other_codes = known.split_codes
    columns: dict[str, pl.Series] = {
        "subject_id": linked.patients["subject_id"][places(linked.patient[e.record])],
        "time": moments(time),
        "code": code[number],
        "numeric_value": _single_precision(e.number),
        "text_value": linked.texts[places(e.text)],
        "value_modifier": linked.texts[places(e.modifier)],
        "unit": linked.texts[places(e.unit)],
        "known_time": moments(known_time),
        "time_source": _names(source_names(), e.source),
        "time_precision": _names([p or None for p in PRECISIONS], e.precision),
        "utc_offset": nullable(e.offset, NO_OFFSET),
        "encounter_id": linked.encounter[record],
        "resource_type": _names(list(TYPES), linked.kind[e.record], pl.String),
        "resource_id": linked.ids[record],
        "other_codes": other_codes[number],
        "unit_recorded": pl.Series([None], dtype=pl.String).new_from_index(0, len(e.code)),
    }
    return pl.DataFrame([columns[name].cast(kind).alias(name) for name, kind in EVENT_SCHEMA.items()])


def _flags(linked: Linked, known: Survey) -> list[pl.Series]:
    """The columns `is_contact` and `by_day` of `contacts_of`, from the numbers of codes instead of their names."""
    e, (is_life, is_death) = linked.events, known.life_codes
    is_date = (e.precision > 0) & (e.precision <= PRECISIONS.index("day"))
    return [
        pl.Series("is_contact", ~is_life[e.code] & (e.start != NO_TIME)),
        pl.Series("by_day", is_death[e.code] & is_date),
    ]


def _names(names: list[str | None] | list[str], numbers: Ints, kind: Any = pl.Categorical) -> pl.Series:
    return pl.Series(names, dtype=kind)[places(numbers)]


def _single_precision(numbers: Any) -> pl.Series:
    """Numbers as float32; null where there is none, or one too large."""
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float32)
    return pl.Series(np.where(np.isfinite(narrow), narrow, np.float32("nan")), nan_to_null=True)


def microseconds(moment: datetime | None) -> int:
    """A moment in microseconds since 1970; NO_TIME for none."""
    return int(NO_TIME) if moment is None else int(np.datetime64(moment, "us").astype(np.int64))


def subject_frame(patients: pl.DataFrame, contacts: pl.DataFrame, known: Survey) -> pl.DataFrame:
    """The subjects with their follow-up, sorted."""
    periods, data_cut = known.periods, known.data_cut
    table = patients.hstack([moments(patients[name].to_numpy()).alias(f"{name}_time") for name in ("birth", "death")])
    cut = pl.Series([data_cut]).cast(TIME).item() if data_cut != NO_TIME else None
    undated = patients["subject_id"].filter(patients["undated_death"])
    if periods.height:
        periods = periods.with_columns(moments(periods[name].to_numpy()).alias(name) for name in ("start", "end"))
        periods = in_life(periods, table)
    watched = follow_up_steps(contacts, periods if periods.height else None, cut, undated if len(undated) else None)
    return at_once(
        table.lazy()
        .join(watched, on="subject_id", how="left")
        .select(pl.col(name).cast(kind) for name, kind in SUBJECT_SCHEMA.items())
        .sort("subject_id")
    )


def _record_counts(linked: Linked) -> Counts:
    counts = Counts()
    keys = (linked.file.astype(np.int64) << 16) + (linked.kind.astype(np.int64) << 8) + linked.reason
    for key, count in pl.Series(keys).value_counts().iter_rows():
        counts[key >> 16, TYPES[key >> 8 & 255], key & 255] += count
    return counts


def settled_counts(chunks: Sequence[Chunk], known: Survey) -> Counts:
    """Counts of what was settled while reading, by file number, type and reason."""
    counts = Counts()
    for chunk, numbers in zip(chunks, known.file_numbers, strict=True):
        for file, kind, reason, count in chunk.counts:
            counts[numbers[file], kind, reason] += count
    return counts


def quarantined(chunks: Sequence[Chunk], known: Survey) -> pl.DataFrame:
    """One row for each record that could not be read."""
    return quarantine_frame(
        [
            (numbers[file], member, line + before if line else 0, reason)
            for chunk, numbers, before in zip(chunks, known.file_numbers, known.lines_before, strict=True)
            for file, member, line, reason in chunk.quarantine
        ]
    )


def source_frame(known: Survey) -> pl.DataFrame:
    """The paths by file number."""
    return pl.DataFrame(list(enumerate(known.files)), SOURCE_SCHEMA, orient="row")


def facts(cut: datetime | None, left_out: Mapping[str, int]) -> dict[str, Any]:
    """The metadata of timelines made from FHIR."""
    return {
        "source": "FHIR",
        "data_cut": None if cut is None else cut.isoformat(),
        "events_left_out": dict(sorted(left_out.items())),
    }


class ChunkMaker:
    """Turns what a reader gathers into chunks, one whenever it has enough."""

    def __init__(
        self,
        files: list[str],
        coding: CodingPreference | None = None,
        folder: Path | None = None,
        generation: int = 0,
        piece: int = 0,
        full: int | None = None,
        strict: bool = False,
    ) -> None:
        self.files, self.folder, self.generation, self.piece = files, folder, generation, piece
        self.lines = 0  # of the piece
        self.chunks: list[Chunk] = []
        self.made = 0
        self.reader = Reader(coding, on_full=self.take, full=full, strict=strict)

    def take(self, rows: Rows) -> None:
        """Make a chunk of what was gathered so far."""
        chunk = pack(rows, self.files, SHARDS, shards_of)
        chunk.generation, chunk.piece, chunk.part, chunk.lines = self.generation, self.piece, self.made, self.lines
        if self.folder is None:
            self.chunks.append(chunk)
        else:
            chunk.save(self.folder / f"{self.made:06d}")
        self.made += 1

    def finish(self) -> list[Chunk]:
        """Make a chunk of the rest; all chunks, unless they went to a folder."""
        self.take(self.reader.finish())
        return self.chunks


def _read(source: Source, coding: CodingPreference | None, progress: bool) -> list[Chunk]:
    """Read a whole source into memory."""
    found = paths_of(source)
    if not isinstance(found, list):
        maker = ChunkMaker([str(MEMORY)], coding)
        maker.reader.read_objects(found)
        return maker.finish()
    paths, named = [path for path, _ in found], [asked_for for _, asked_for in found]
    maker = ChunkMaker([str(path) for path in paths], coding)
    with bar(sum(size_on_disk(path) for path in paths), progress) as advance, uncollected():
        for number, path in enumerate(paths):
            maker.reader.read_file(path, number, advance, named[number])
    return maker.finish()


def paths_of(source: Source) -> list[tuple[Path, bool]] | Iterator[Any]:
    """The files of a source in order, and whether each was asked for by name; or its resources in memory."""
    if isinstance(source, Mapping):
        source = [source]
    if not isinstance(source, str | Path):
        items = iter(source)
        first = next(items, None)
        if first is None:
            raise SourceError("a FHIR source", "an empty list", "pass a path or FHIR resources")
        if not isinstance(first, str | Path):
            return _chain(first, items)
        source = [first, *items]
    asked_for = [source] if isinstance(source, str | Path) else source
    named = {Path(path) for path in asked_for if isinstance(path, str | Path)}
    return [(path, path in named) for path in find_files(asked_for)]


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


@contextmanager
def bar(size: int, show: bool) -> Iterator[Progress | None]:
    """A progress bar over the files' bytes on disk, with rate and time left; the files themselves are not named."""
    if not show:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("reading FHIR"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, transient=True) as shown:
        task = shown.add_task("reading FHIR", total=size)
        yield lambda amount: shown.advance(task, amount)
