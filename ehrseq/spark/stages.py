"""Ingest and scoring as functions from Arrow batches to Arrow batches: nothing here knows Spark.

    TASKS -> read_tasks -> CHUNKS        some files, or a piece of a large one, become columnar chunks
    CHUNKS -> heads, evidence -> CHUNKS  what the survey of all chunks needs of one
    CHUNKS -> split_chunks -> PIECES     each chunk cut by shards of subjects, with what the survey knows
    PIECES -> link_shards -> PIECES      all that one shard has becomes events and subjects
    PIECES -> score_shards -> PIECES     events and subjects become forecasts
    PIECES -> unpack                     one of the tables, row by row

They are the stages of `ehrseq.ingest` and `ProgressionModel.forecast`; between `split_chunks` and `link_shards` lies
the shuffle by patient (a shard holds whole patients).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from ehrseq.errors import SourceError, TimelineError
from ehrseq.fhir.chunk import Chunk
from ehrseq.fhir.reader import uncollected
from ehrseq.fhir.source import state_on_disk
from ehrseq.spark.wire import (
    CHUNKS,
    PIECES,
    Row,
    arrow_schema,
    batch_of,
    folder_bytes,
    frame_bytes,
    frame_of,
    part_bytes,
    part_of,
    rows_of,
    write_folder,
)
from ehrseq.timeline.build import assembled, subject_frame
from ehrseq.timeline.ingest import read_task
from ehrseq.timeline.link import link_parts
from ehrseq.timeline.meds import SHARDS, shard_of
from ehrseq.timeline.parts import nothing, parts_of
from ehrseq.timeline.schema import EVENT_SCHEMA, SUBJECT_SCHEMA, conform, normalise_events
from ehrseq.timeline.store import Timelines
from ehrseq.timeline.subjects import normalise_subjects
from ehrseq.timeline.survey import Survey

if TYPE_CHECKING:
    from ehrseq.estimator import ProgressionModel

Batches = Iterable[pa.RecordBatch]
Made = Iterator[pa.RecordBatch]
Shared = Callable[[], bytes]  # what is the same for all, fetched where it is needed
Place = tuple[int, int]  # of a chunk: its task, and its part of that
EVENTS, SUBJECTS, FACTS, UNITS, PART = "events", "subjects", "facts", "units", "part"
RISK, LABS, SKIPPED, SEEN = "risk", "labs", "skipped", "seen"
EVENTS_AT_ONCE = 1 << 17  # scored together
ROWS_AT_ONCE = 1 << 16  # in a batch that leaves


def read_tasks(batches: Batches) -> Made:
    """Read the files of each task. SourceError where one is not as it was when the tasks were made, or not there."""
    with TemporaryDirectory() as scratch, uncollected():
        for row in rows_of(batches):
            job = json.loads(row["job"])
            states = [list(state_on_disk(Path(path))) for path, _ in job["task"]["files"]]
            if states != job["states"]:
                raise SourceError(
                    "files that every worker sees under the same path, and that do not change meanwhile",
                    "another file or none", "put the export on storage that driver and workers share",
                )  # fmt: skip
            folder = Path(scratch, str(row["task"]))
            read_task({**job, "folder": str(folder)}, None)
            for part, chunk in enumerate(sorted(folder.iterdir())):
                yield batch_of(CHUNKS, row["task"], part, folder_bytes(chunk))
            shutil.rmtree(folder)


def heads(batches: Batches) -> Made:
    """Chunks without their events and texts: what the survey looks at, but for the content of duplicates."""
    for row, chunk in _chunks(batches):
        yield _trimmed(row, chunk, np.zeros(0, np.int64), texts=False)


def evidence(batches: Batches, suspects: Mapping[Place, list[int]]) -> Made:
    """Chunks with the events of some records: of those that share type and id, content may decide which stays."""
    for row, chunk in _chunks(batches):
        if (place := (row["task"], row["part"])) in suspects:
            yield _trimmed(row, chunk, np.array(suspects[place], np.int64), texts=True)


def split_chunks(batches: Batches, shared: Shared, numbers: Mapping[Place, int]) -> Made:
    """What each chunk has for each shard; `shared` is the survey, `numbers` the chunks' numbers in it."""
    with _survey(shared) as known:
        for row, chunk in _chunks(batches):
            number = numbers[row["task"], row["part"]]
            for shard in range(SHARDS):
                parts = list(parts_of(chunk, number, known, shard, shard + 1))
                # a shard whose patients have no records is linked, too
                parts = parts or ([nothing()] if number == 0 else [])
                for place, part in enumerate(parts, number * (SHARDS + 2)):
                    yield batch_of(PIECES, shard, PART, place, part_bytes(part))


def link_shards(batches: Batches, shared: Shared) -> Made:
    """Events and subjects of each shard; its pieces come together and in order."""
    with _survey(shared) as known, uncollected():
        for shard, pieces in groupby(rows_of(batches), itemgetter("shard")):
            parts = [part_of(piece["content"]) for piece in sorted(pieces, key=itemgetter("place"))]
            made = assembled(link_parts(parts, known, shard, shard + 1), known)
            subjects = subject_frame(made.patients, made.contacts, known)
            counts = [[*key, n] for key, n in sorted(made.counts.items())]
            facts = json.dumps({"counts": counts, "left_out": made.left_out}).encode()
            yield batch_of(PIECES, shard, EVENTS, 0, frame_bytes(made.events))
            yield batch_of(PIECES, shard, SUBJECTS, 0, frame_bytes(subjects))
            yield batch_of(PIECES, shard, UNITS, 0, frame_bytes(made.units))
            yield batch_of(PIECES, shard, FACTS, 0, facts)


def pack(batches: Batches, kind: str) -> Made:
    """Rows of an event or subject table, cut by shard; the inverse of `unpack`. Columns that are absent are null."""
    schema = EVENT_SCHEMA if kind == EVENTS else SUBJECT_SCHEMA
    for place, batch in enumerate(batches):
        frame = conform(pl.DataFrame(pa.Table.from_batches([batch])), schema, kind)
        shards = shard_of(frame["subject_id"])
        for shard in np.unique(shards).tolist():
            yield batch_of(PIECES, shard, kind, place, frame_bytes(frame.filter(pl.Series(shards == shard))))


def unpack(batches: Batches, kind: str, schema: Mapping[str, Any]) -> Made:
    """The rows of one kind of table, in the Arrow types of `arrow_schema`."""
    arrow = arrow_schema(schema)
    for row in rows_of(batches):
        if row["kind"] == kind:
            table = frame_of(row["content"]).select(list(schema)).to_arrow(compat_level=pl.CompatLevel.oldest())
            yield from table.cast(arrow).to_batches(ROWS_AT_ONCE)


def subject_pieces(batches: Batches) -> Made:
    """The pieces that scoring needs."""
    for row in rows_of(batches):
        if row["kind"] in (EVENTS, SUBJECTS):
            yield batch_of(PIECES, *row.values())


def score_shards(batches: Batches, shared: Shared, at: Any, branch: str | None) -> Made:
    """Forecasts of the subjects of each shard, some shards together; `shared` is the model's folder."""
    model = load_model(shared())
    for number, timelines in _timelines_of(batches):
        forecast = model.forecast_part(timelines, at, branch=branch)
        tables = {RISK: forecast.risk, LABS: forecast.labs, SKIPPED: forecast.skipped, SEEN: forecast.seen}
        for kind, table in tables.items():
            yield batch_of(PIECES, number, kind, 0, frame_bytes(table))


@lru_cache(maxsize=1)
def load_model(content: bytes) -> ProgressionModel:
    """A model from the bytes of its folder; a worker that scores again has it at hand."""
    from ehrseq import estimator  # torch

    with TemporaryDirectory() as scratch:
        return estimator.load_model(write_folder(content, Path(scratch, "model")))


def _timelines_of(batches: Batches) -> Iterator[tuple[int, Timelines]]:
    """Timelines of whole shards, until there are enough events; with the number of the first shard."""
    events: list[pl.DataFrame] = []
    subjects: list[pl.DataFrame] = []
    first, held = -1, 0
    for shard, pieces in groupby(rows_of(batches), itemgetter("shard")):
        first = shard if first < 0 else first
        for piece in pieces:
            frame = frame_of(piece["content"])
            (events if piece["kind"] == EVENTS else subjects).append(frame)
            held += frame.height
        if held >= EVENTS_AT_ONCE:
            yield first, _together(events, subjects)
            first, events, subjects, held = -1, [], [], 0
    if events or subjects:
        yield first, _together(events, subjects)


def _together(events: list[pl.DataFrame], subjects: list[pl.DataFrame]) -> Timelines:
    none, nobody = pl.DataFrame(schema=EVENT_SCHEMA), pl.DataFrame(schema=SUBJECT_SCHEMA)
    made = Timelines(
        events=normalise_events(pl.concat(events or [none])),
        subjects=normalise_subjects(pl.concat(subjects or [nobody])),
    )
    lost = made.events.join(made.subjects, on="subject_id", how="anti")["subject_id"].n_unique()
    if lost:
        raise TimelineError(
            "a subject row for everyone who has events", f"{lost} people without one in a part of the tables",
            "add their rows, or derive them with `Timelines.from_events`",
        )  # fmt: skip
    return made


def _chunks(batches: Batches) -> Iterator[tuple[Row, Chunk]]:
    """Each chunk, on disk for as long as it is looked at."""
    for row in rows_of(batches):
        with TemporaryDirectory() as scratch:
            chunk = Chunk.load(write_folder(row["content"], Path(scratch, "chunk")))
            yield row, chunk
            chunk.release()


def _trimmed(row: Row, chunk: Chunk, records: Any, *, texts: bool) -> pa.RecordBatch:
    """A chunk with the events of some records alone, and with its texts or without."""
    columns = chunk.columns
    kept = columns.events.compress(np.isin(columns.events["record"], records))
    columns = replace(columns, events=kept, texts=columns.texts if texts else columns.texts[:0])
    with TemporaryDirectory() as scratch:
        replace(chunk, tables={**_every_table(chunk)}, _columns=columns).save(Path(scratch, "chunk"))
        return batch_of(CHUNKS, row["task"], row["part"], folder_bytes(Path(scratch, "chunk")))


def _every_table(chunk: Chunk) -> dict[str, pl.DataFrame]:
    """The tables that a chunk on disk opens when wanted."""
    names = sorted(path.stem for path in chunk.folder.glob("*.arrow")) if chunk.folder is not None else chunk.tables
    return {name: chunk.tables[name] for name in names}


@contextmanager
def _survey(shared: Shared) -> Iterator[Survey]:
    with TemporaryDirectory() as scratch:
        yield Survey.load(write_folder(shared(), Path(scratch, "survey")))
