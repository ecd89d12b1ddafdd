"""Timelines on a cluster: the stages of ingest strung together, on any engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import polars as pl

from ehrseq.errors import UserError
from ehrseq.fhir import reader
from ehrseq.fhir.chunk import Chunk
from ehrseq.fhir.codes import CodingPreference
from ehrseq.fhir.ledger import ledger_frame
from ehrseq.fhir.source import STANDARD_INPUT, state_on_disk
from ehrseq.spark import stages
from ehrseq.spark.engine import Engine, Spark
from ehrseq.spark.stages import EVENTS, FACTS, SUBJECTS, UNITS, Place, Shared
from ehrseq.spark.wire import CHUNKS, PIECES, TASKS, arrow_schema, folder_bytes, frame_of, write_folder
from ehrseq.timeline.build import (
    check_patients,
    facts,
    microseconds,
    paths_of,
    quarantined,
    settled_counts,
    source_frame,
)
from ehrseq.timeline.duplicates import repeated
from ehrseq.timeline.ingest import tasks_of
from ehrseq.timeline.schema import EVENT_SCHEMA, SUBJECT_SCHEMA, as_instant, sort_events
from ehrseq.timeline.store import Timelines
from ehrseq.timeline.survey import survey
from ehrseq.timeline.units import merge_units


@dataclass(frozen=True, eq=False)
class SparkTimelines:
    """The timelines of an export on a cluster.

    `pieces` has everything in a row a shard and table; `events` and `subjects` are DataFrames in the columns of
    `Timelines` (times are `TIMESTAMP_NTZ`, in UTC), made when they are looked at. `records` is what the reading alone
    settled of the ledger.
    """

    engine: Engine
    pieces: Any
    kept: tuple[Any, ...] = ()
    records: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def events(self) -> Any:
        """One row an event; rows are in no order."""
        return table_of(self.engine, self.pieces, EVENTS, EVENT_SCHEMA)

    @cached_property
    def subjects(self) -> Any:
        """One row a subject; rows are in no order."""
        return table_of(self.engine, self.pieces, SUBJECTS, SUBJECT_SCHEMA)

    def collect(self) -> Timelines:
        """The same as `Timelines` in this process, with the ledger where they come from FHIR."""
        found = collected(self.engine, self.pieces)
        counts, left_out = Counter(self.records.get("counts", ())), Counter[str]()
        for content in found.get(FACTS, []):
            told = msgspec.json.decode(content)
            counts.update({(file, kind, reason): n for file, kind, reason, n in told["counts"]})
            left_out.update(told["left_out"])
        events = frame_from(found.get(EVENTS, []), EVENT_SCHEMA)
        timelines = Timelines(
            events=sort_events(events), subjects=frame_from(found.get(SUBJECTS, []), SUBJECT_SCHEMA).sort("subject_id")
        )
        if not self.records:
            return timelines
        return replace(
            timelines,
            ledger=ledger_frame(counts),
            quarantine=self.records["quarantine"],
            sources=self.records["sources"],
            units=merge_units([frame_of(content) for content in found.get(UNITS, [])]),
            metadata=facts(self.records["data_cut"], left_out),
        )

    def unpersist(self) -> None:
        """Let go of what the workers keep on their disks."""
        for rows in self.kept:
            rows.unpersist()


def read_fhir(
    spark: Any,
    path: str | Path,
    *,
    data_cut: str | date | datetime | None = None,
    coding: CodingPreference | None = None,
    partitions: int | None = None,
) -> SparkTimelines:
    """The timelines of a FHIR export, read and linked by a Spark cluster; the same as those of `ehrseq.read_fhir`.

    Parameters
    ----------
    spark
        A `SparkSession` (classic, 3.5); its workers have ehrseq installed.
    path, data_cut, coding
        As in `ehrseq.read_fhir`, but a path only: one that the driver and every worker see under the same name.
    partitions
        Into how many partitions the shards of subjects are shuffled (default: twice the cores of the cluster).

    Raises SourceError where there is nothing to read, or no Patient in it.
    """
    return read_on(Spark(spark, partitions), path, data_cut=data_cut, coding=coding)


def read_on(
    engine: Engine,
    path: str | Path,
    *,
    data_cut: str | date | datetime | None = None,
    coding: CodingPreference | None = None,
) -> SparkTimelines:
    """The same on an engine."""
    found = paths_of(Path(path))
    if not isinstance(found, list) or any(file == STANDARD_INPUT for file, _ in found):
        raise UserError("a file or folder that every worker can read", "something else", "give a path")
    how = {"coding": asdict(coding or CodingPreference()), "full": reader.FULL, "strict": False}
    jobs = [
        how | {"task": task, "states": [state_on_disk(Path(file)) for file, _ in task["files"]]}
        for task in tasks_of(found)
    ]
    rows = [{"task": n, "job": msgspec.json.encode(job).decode()} for n, job in enumerate(jobs)]
    chunks = engine.keep(engine.map(engine.table(rows, TASKS), stages.read_tasks, CHUNKS))
    cut = None if data_cut is None else as_instant(data_cut)
    known, numbers, records = _survey(engine, chunks, cut)
    split = partial(stages.split_chunks, shared=known, numbers=numbers)
    parts = engine.by_shard(engine.map(chunks, split, PIECES))
    pieces = engine.keep(engine.map(parts, partial(stages.link_shards, shared=known), PIECES))
    return SparkTimelines(engine, pieces, (chunks, pieces), records)


def _survey(engine: Engine, chunks: Any, cut: datetime | None) -> tuple[Shared, dict[Place, int], dict[str, Any]]:
    """What concerns all chunks, looked at here; the chunks' numbers in it; and what it settles of the ledger."""
    with TemporaryDirectory() as scratch:

        def loaded(rows: Any, name: str) -> Iterator[tuple[Place, Chunk]]:
            for row in engine.rows(rows):
                place = row["task"], row["part"]
                yield place, Chunk.load(write_folder(row["content"], Path(scratch, name, f"{place[0]}-{place[1]}")))

        heads = dict(loaded(engine.map(chunks, stages.heads, CHUNKS), "heads"))
        places = sorted(heads, key=lambda p: (heads[p].files, heads[p].piece, heads[p].part))
        suspects: dict[Place, list[int]] = {}
        for which, row in (pair for found in repeated([heads[p] for p in places]) for pair in found.T.tolist()):
            suspects.setdefault(places[which], []).append(row)
        if suspects:
            wanted = partial(stages.evidence, suspects=suspects)
            heads |= dict(loaded(engine.map(chunks, wanted, CHUNKS), "evidence"))
        ordered = [heads[p] for p in places]
        known = survey(ordered, microseconds(cut))
        check_patients(known, ordered)
        known.save(Path(scratch, "survey"))
        records = {
            "counts": settled_counts(ordered, known),
            "quarantine": quarantined(ordered, known),
            "sources": source_frame(known),
            "data_cut": cut,
        }
        content = folder_bytes(Path(scratch, "survey"))
    return engine.share(content), {place: n for n, place in enumerate(places)}, records


def from_tables(events: Any, subjects: Any, *, partitions: int | None = None) -> SparkTimelines:
    """Timelines from two DataFrames in the columns of `SparkTimelines`, as an earlier run may have stored them.

    Columns of `events` beyond `subject_id`, `time` and `code` may be missing; `subjects` has a row for each subject
    (scoring stops with a TimelineError where someone with events has none, and where someone has two).
    """
    engine = Spark(events.sparkSession, partitions)
    tables = {EVENTS: events, SUBJECTS: subjects}
    packed = [engine.map(rows, partial(stages.pack, kind=kind), PIECES) for kind, rows in tables.items()]
    return SparkTimelines(engine, packed[0].union(packed[1]))


def table_of(engine: Engine, pieces: Any, kind: str, schema: Mapping[str, Any]) -> Any:
    """The rows of one kind of table, from all pieces."""
    return engine.map(pieces, partial(stages.unpack, kind=kind, schema=schema), arrow_schema(schema))


def collected(engine: Engine, pieces: Any) -> dict[str, list[bytes]]:
    """The contents of all pieces by their kind."""
    found: dict[str, list[bytes]] = {}
    for row in engine.rows(pieces):
        found.setdefault(row["kind"], []).append(row["content"])
    return found


def frame_from(contents: list[bytes], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Contents of one kind as one frame."""
    frames = [
        frame_of(content).select(pl.col(name).cast(kind) for name, kind in schema.items()) for content in contents
    ]
    return pl.concat([pl.DataFrame(schema=schema), *frames])
