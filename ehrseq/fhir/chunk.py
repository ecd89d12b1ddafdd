"""What one stretch of a source becomes: tables that stand for themselves, on disk or in memory, sorted by partition.

A chunk numbers its own texts, codes and references; whatever needs a look outside of it (other files' patients,
encounters, medications, duplicates) is settled later, from small tables. Records and events (`fhir/columns.py`) lie in
*partitions*: one for each shard of subjects, by the patient they name, and a last one for those whose patient the chunk
cannot tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ehrseq.fhir.clock import MINUTE, NO_OFFSET, NO_TIME, PRECISIONS, Instants
from ehrseq.fhir.columns import EVENT, REFERENCE, Columns, joined, series, strings, take
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.references import UNKNOWN, named_target, points_at, subject_number
from ehrseq.fhir.rows import Rows

COLUMNS = "columns.bin"
ShardOf = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint64]]
PATIENTS: dict[str, Any] = {
    "record": pl.Int64, "patient": pl.String, "subject_id": pl.Int64, "sex": pl.String, "race": pl.String,
    "ethnicity": pl.String, "birth": pl.Int64, "death": pl.Int64, "death_is_date": pl.Boolean,
    "undated_death": pl.Boolean,
}  # fmt: skip
ENCOUNTERS: dict[str, Any] = {
    "record": pl.Int64, "target": pl.String, "start": pl.Int64, "start_end": pl.Int64, "start_precision": pl.UInt8,
    "start_offset": pl.Int16, "end_start": pl.Int64, "end": pl.Int64, "end_precision": pl.UInt8,
    "end_offset": pl.Int16,
}  # fmt: skip
MEDICATIONS: dict[str, Any] = {
    "record": pl.Int64, "target": pl.String, "code": pl.String, "ingredient_codes": pl.List(pl.String),
    "ingredient_references": pl.List(pl.String),
}  # fmt: skip
IDENTIFIERS: dict[str, Any] = {"record": pl.Int64, "identifier": pl.String, "target": pl.String}
LINKS: dict[str, Any] = {"record": pl.Int64, "type": pl.String, "own": pl.String, "other": pl.String}
PERIODS: dict[str, Any] = {
    "record": pl.Int64, "reference": pl.Int64, "start": pl.Int64, "end": pl.Int64, "fault": pl.UInt8,
}  # fmt: skip


@dataclass
class Chunk:
    """The tables of a chunk (see `pack`), and its plain facts."""

    tables: dict[str, pl.DataFrame]
    _columns: Columns | Path  # or the file that they are in
    record_bounds: list[int]  # where each partition starts, and the end
    event_bounds: list[int]
    files: list[str]  # paths by the number that records carry
    counts: list[tuple[int, str, int, int]]  # file, type, reason, count: fates settled while reading
    quarantine: list[tuple[int, int, int, int]]  # file, member, line, reason
    piece: int = 0  # of a file that was read in pieces
    part: int = 0  # of what a task gave
    lines: int = 0  # in this piece, so that the lines of later pieces can be counted on
    generation: int = 0  # how many updates came before it was read
    folder: Path | None = field(default=None, compare=False)

    def save(self, folder: Path) -> None:
        """Write the chunk; equal chunks give equal bytes."""
        folder.mkdir(parents=True)
        self.columns.save(folder / COLUMNS)
        for name, table in self.tables.items():
            if table.height or name not in _EMPTY:
                table.write_ipc(folder / f"{name}.arrow", compression="uncompressed")
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tables", "_columns", "folder")}
        (folder / "chunk.json").write_text(json.dumps(facts, separators=(",", ":")), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Chunk:
        """A chunk that `save` wrote; its columns stay on disk until they are looked at."""
        facts = json.loads((folder / "chunk.json").read_text(encoding="utf-8"))
        for name in ("counts", "quarantine"):
            facts[name] = [tuple(entry) for entry in facts[name]]
        return cls(tables=_OnDisk(folder), _columns=folder / COLUMNS, folder=folder, **facts)

    @property
    def columns(self) -> Columns:
        """Its long columns. Those on disk are opened anew each time: what was looked at counts as memory until then."""
        return Columns.open(self._columns) if isinstance(self._columns, Path) else self._columns

    def release(self) -> None:
        """Close the tables that were opened."""
        if isinstance(self.tables, _OnDisk):
            self.tables.clear()

    def unresolved(self) -> dict[int, str]:
        """Its references that cannot be told from what is written, by number."""
        columns = self.columns
        numbers = np.flatnonzero(columns.references["points_at"] == UNKNOWN)[1:]  # number 0 stands for none
        if not len(numbers):
            return {}
        return dict(zip(numbers.tolist(), take(columns.names, numbers).to_pylist(), strict=True))


class _OnDisk(dict[str, pl.DataFrame]):
    """The tables of a folder, each opened when first wanted."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> pl.DataFrame:
        path = self.folder / f"{name}.arrow"
        table = open_table(path) if path.is_file() else _EMPTY[name]
        self[name] = table
        return table


def open_table(path: Path) -> pl.DataFrame:
    """A table whose bytes stay on disk until they are looked at."""
    with pa.memory_map(str(path)) as file:
        table = pl.from_arrow(pa.ipc.open_file(file).read_all(), rechunk=False)
    return table if isinstance(table, pl.DataFrame) else table.to_frame()


def pack(rows: Rows, files: list[str], shards: int, shard_of: ShardOf) -> Chunk:
    """Everything that `rows` gathered, as a chunk.

    Tables: `codes` by number, and what other records refer to: `patients`, `identifiers`, `links`, `encounters`,
    `medications`, `periods`, `names` (of bundle entries).
    """
    spans = [(e[0], f"Encounter/{e[1]}", *e[2:]) for e in rows.encounters] + rows.results
    parsed = _Parsed(rows, spans)
    records, events = _together(rows.record_stretches), _together(rows.event_stretches)
    references, names = _references(rows.references.names)
    home = references["subject_id"]
    partition = np.where(home == 0, shards, shard_of(home)).astype(np.uint8)[records["subject"]]
    order = np.argsort(partition, kind="stable")
    new_row = np.empty(len(order), np.int32)
    new_row[order] = np.arange(len(order), dtype=np.int32)
    of_event = partition[events["record"]]
    event_order = np.argsort(of_event, kind="stable")
    events = events.take(event_order)
    events["record"] = new_row[events["record"]]
    bounds = np.arange(shards + 2)
    return Chunk(
        tables={
            "codes": pl.DataFrame({"code": pl.Series(list(rows.codes), dtype=pl.String)}),
            **_referred_to(rows, spans, parsed, new_row.astype(np.int64)),
        },
        _columns=Columns(
            records=records.take(order),
            events=events,
            references=references,
            ids=take(pa.concat_arrays(rows.id_stretches), order),
            names=names,
            texts=strings([text or "" for text in rows.texts]),
        ),
        record_bounds=np.searchsorted(partition[order], bounds).tolist(),
        event_bounds=np.searchsorted(of_event[event_order], bounds).tolist(),
        files=files,
        counts=sorted((f, t, int(r), n) for (f, t, r), n in rows.counts.items()),
        quarantine=[(f, m, line, int(r)) for f, m, line, r in rows.quarantine],
    )


def _together(stretches: list[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    """The stretches as one; the list is emptied, so that they are not held twice."""
    together = stretches[0] if len(stretches) == 1 else joined(stretches)
    stretches.clear()
    return together


def _references(written: list[str | None]) -> tuple[npt.NDArray[np.void], pa.LargeStringArray]:
    targets = [None if name is None else named_target(name) for name in written]
    references = np.empty(len(targets), REFERENCE)
    references["points_at"] = [points_at(target) for target in targets]
    references["subject_id"] = [
        subject_number(target) if target is not None and target.startswith("Patient/") else 0 for target in targets
    ]
    return references, strings([target or name or "" for name, target in zip(written, targets, strict=True)])


def _referred_to(
    rows: Rows, spans: list[_Span], parsed: _Parsed, new_row: npt.NDArray[np.int64]
) -> dict[str, pl.DataFrame]:
    """The tables of what other records refer to."""
    codes = list(rows.codes)
    tables = {
        "patients": _patients(rows, parsed),
        "identifiers": _table(
            "identifiers", [(p.record, i, f"Patient/{p.id}") for p in rows.patients for i in p.identifiers]
        ),
        "links": _table("links", rows.links),
        "encounters": _encounters(spans, parsed),
        "medications": _table(
            "medications",
            [
                (m.record, f"{m.kind}/{m.id}", codes[m.code], [codes[c] for c in m.ingredient_codes],
                 m.ingredient_references)
                for m in rows.medications
            ],
        ),
        "periods": _periods(rows, parsed),
    }  # fmt: skip
    for name, table in tables.items():
        if table.height:
            tables[name] = table.replace_column(0, pl.Series("record", new_row[table["record"].to_numpy()]))
    return tables | {"names": _table("names", list(rows.full_urls.items()))}


def _table(name: str, rows: list[Any]) -> pl.DataFrame:
    """The table of that name from its rows."""
    return pl.DataFrame(rows, _EMPTY[name].schema, orient="row") if rows else _EMPTY[name]


def _frame(schema: dict[str, Any], *columns: Any) -> pl.DataFrame:
    """A table of columns in the order of its schema; polars takes longer where it is left to look for their types."""
    named = zip(schema.items(), columns, strict=True)
    return pl.DataFrame([pl.Series(name, column, kind) for (name, kind), column in named])


_Span = tuple[int, str, str | None, str | None]  # record, target, start, end


class _Parsed:
    """The times in the tables of what is referred to, parsed at once with the last of the events'."""

    def __init__(self, rows: Rows, spans: list[_Span]) -> None:
        columns = {
            "birth": [p.birth for p in rows.patients],
            "death": [p.death for p in rows.patients],
            "start": [e[2] for e in spans],
            "end": [e[3] for e in spans],
            "period_start": [r[2] for r in rows.research_subjects],
            "period_end": [r[3] for r in rows.research_subjects],
        }
        self._instants = rows.finish([written for column in columns.values() for written in column])
        self._slices: dict[str, slice] = {}
        at = 0
        for name, column in columns.items():
            self._slices[name] = slice(at, at + len(column))
            at += len(column)

    def __getitem__(self, name: str) -> Instants:
        return self._instants[self._slices[name]]


def _patients(rows: Rows, parsed: _Parsed) -> pl.DataFrame:
    """One row a Patient record. Birth is the start of its interval, death the end, in microseconds (`NO_TIME`: none);
    `death_is_date` says that it has no clock time, `undated_death` that there is no (readable) date of death, and yet
    the record says that there was one."""
    patients = rows.patients
    birth, death = parsed["birth"], parsed["death"]
    # a death before birth (as on 1900-01-01), by the clock on the wall, is one without a date
    local = death.end + np.where(death.offset == NO_OFFSET, 0, death.offset).astype(np.int64) * MINUTE
    early = (death.end != NO_TIME) & (birth.start != NO_TIME) & (local < birth.start)
    died = np.where(early, NO_TIME, death.end)
    return _frame(
        PATIENTS,
        [p.record for p in patients],
        [p.id for p in patients],
        [subject_number(f"Patient/{p.id}") for p in patients],
        [p.sex for p in patients],
        [p.race for p in patients],
        [p.ethnicity for p in patients],
        birth.start,
        died,
        death.precision <= PRECISIONS.index("day"),
        (died == NO_TIME) & np.array([p.deceased for p in patients], bool),
    )


def _encounters(found: list[_Span], parsed: _Parsed) -> pl.DataFrame:
    """What gives undated records their time: encounters, and reports for their results."""
    if not found:
        return _EMPTY["encounters"]
    start, end = parsed["start"], parsed["end"]
    return _frame(
        ENCOUNTERS,
        [e[0] for e in found],
        [e[1] for e in found],
        *(start.start, start.end, start.precision, start.offset),
        *(end.start, end.end, end.precision, end.offset),
    )


def _periods(rows: Rows, parsed: _Parsed) -> pl.DataFrame:
    """Observation periods; `fault` is the reason why one cannot be used (0: it can)."""
    found = rows.research_subjects
    if not found:
        return _EMPTY["periods"]
    start, end = parsed["period_start"].start, parsed["period_end"].end
    none = np.array([not r[2] and not r[3] for r in found], bool)
    unreadable = np.array([bool(r[2]) for r in found], bool) & (start == NO_TIME)
    unreadable |= np.array([bool(r[3]) for r in found], bool) & (end == NO_TIME)
    return pl.DataFrame(
        {
            "record": [r[0] for r in found],
            "reference": [r[1] for r in found],
            "start": start,
            "end": end,
            "fault": np.select([none, unreadable], [Reason.NO_TIME, Reason.INVALID_TIME], 0).astype(np.uint8),
        },
        PERIODS,
    )


def content(chunk: Chunk, suspects: npt.NDArray[np.int64]) -> pl.Series:
    """What each of some records says, as text that does not depend on how things were numbered or where they stood."""
    wanted = pl.DataFrame({"row": suspects}, {"row": pl.Int64})
    columns, codes = chunk.columns, chunk.tables["codes"]["code"]
    references, texts = _with_none(columns.names), _with_none(columns.texts)
    rows = columns.events[np.isin(columns.events["record"], suspects)]
    events = pl.DataFrame({name: np.ascontiguousarray(rows[name]) for name in EVENT.names or ()})
    code = events["code"].to_numpy()
    said = [
        events.select(
            pl.col("record").cast(pl.Int64).alias("row"),
            line=pl.struct(
                codes.gather(np.maximum(code, 0)).alias("code"),
                references.gather(np.maximum(-1 - code, 0)).alias("medication"),
                *("start", "end", "known", "precision", "offset", "source", "number"),
                *(texts.gather(events[name]).alias(name) for name in ("text", "modifier", "unit")),
            ).struct.json_encode(),
        )
    ]
    for name in ("patients", "identifiers", "links", "encounters", "medications", "periods"):
        table = chunk.tables[name].filter(pl.col("record").is_in(pl.Series(suspects).implode()))
        if table.height:
            if name == "periods":
                table = table.with_columns(reference=references.gather(table["reference"]))
            said.append(
                table.select(
                    pl.col("record").alias("row"), line=name + pl.struct(pl.exclude("record")).struct.json_encode()
                )
            )
    records = columns.records[suspects]
    said.append(
        wanted.with_columns(
            line=pl.struct(
                s=references.gather(records["subject"].copy()), e=references.gather(records["encounter"].copy())
            ).struct.json_encode()
        )
    )
    lines = pl.concat(said).group_by("row").agg(pl.col("line").sort().str.join("\n"))
    return wanted.join(lines, on="row", how="left", maintain_order="left")["line"]


def _with_none(items: pa.LargeStringArray) -> pl.Series:
    """Strings by number, of which the first stands for none."""
    return pl.concat([pl.Series([None], dtype=pl.String), series([items[1:]])])


_EMPTY = {
    "patients": pl.DataFrame(schema=PATIENTS),
    "encounters": pl.DataFrame(schema=ENCOUNTERS),
    "medications": pl.DataFrame(schema=MEDICATIONS),
    "identifiers": pl.DataFrame(schema=IDENTIFIERS),
    "links": pl.DataFrame(schema=LINKS),
    "periods": pl.DataFrame(schema=PERIODS),
    "names": pl.DataFrame(schema={"name": pl.String, "target": pl.String}),
}
LAST_WORD = np.iinfo(np.int64).max  # when a deletion without a time happened
DELETED = int(Reason.DELETED)
