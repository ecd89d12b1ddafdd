"""The second stage of ingest: from chunks to the dataset's files, a few shards at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrseq.fhir.chunk import Chunk
from ehrseq.fhir.ledger import ledger_frame
from ehrseq.frames import on_polars_thread
from ehrseq.timeline import meds
from ehrseq.timeline.build import assemble, facts, quarantined, settled_counts, source_frame, subject_frame
from ehrseq.timeline.pool import Pool
from ehrseq.timeline.schema import CODE_SCHEMA, conform
from ehrseq.timeline.store import Timelines, as_text, deaths_inside, summarise
from ehrseq.timeline.survey import Survey
from ehrseq.timeline.units import merge_units

ROWS_AT_ONCE = 4 << 15  # records and events that one process links together; of several, each fewer


@dataclass(frozen=True)
class Ingested:
    """What `ingest` wrote: the folder, and what there is to say of it without reading it again."""

    folder: Path
    subjects: int
    events: int
    facts: dict[str, Any]

    def load(self) -> Timelines:
        """The timelines, in memory."""
        return Timelines.load(self.folder)

    def summary(self) -> dict[str, Any]:
        """Plain numbers about the timelines, as `Timelines.summary`."""
        return self.facts

    def __repr__(self) -> str:
        return f"Ingested({self.subjects:,} subjects, {self.events:,} events)"


def write_dataset(
    chunks: list[Chunk], known: Survey, cut: datetime | None, scratch: Path, pool: Pool, out: Path
) -> Ingested:
    """Link and write everything but what an update needs, into `dataset` in the folder `scratch`; `out` is its name."""
    folder = scratch / "dataset"
    for name in ("data", "metadata"):
        (folder / name).mkdir(parents=True)
    pool.loaded |= {"survey": known, "chunks": chunks}
    # the largest first, so that no process waits long for the last
    batches = sorted(_batches(chunks, 2 * ROWS_AT_ONCE // (pool.workers + 1)), reverse=True)
    jobs = [
        {
            "do": "shards",
            "chunks": [str(c.folder) for c in chunks],
            "scratch": str(scratch),
            "first": first,
            "last": last,
        }
        for _, first, last in batches
    ]
    counts, left_out, code_counts = settled_counts(chunks, known), Counter[str](), np.zeros(len(known.codes), np.int64)
    parts: dict[int, dict[str, pl.DataFrame]] = {}
    for part in pool.run(jobs, None, small=len(jobs) < 2):
        # while the others are busy: what is added up at the end they would have to wait for
        counts.update({(file, kind, reason): n for file, kind, reason, n in part["counts"]})
        left_out.update(part["left_out"])
        numbers, times = np.array(part["codes"], np.int64)
        code_counts[numbers] += times
        first = part["first"]
        parts[first] = {name: pl.read_ipc_stream(scratch / f"{name}-{first}.arrow") for name in _PART_TABLES}
    pool.stop()  # what is left to do needs their memory more than them
    read = [parts[first] for first in sorted(parts)]
    contacts = pl.concat([tables["contacts"] for tables in read])
    codes = _by_name(code_counts, known)
    subjects = subject_frame(pl.concat([tables["patients"] for tables in read]), contacts, known)
    code_table = conform(pl.DataFrame({"code": sorted(codes)}, {"code": pl.String}), CODE_SCHEMA, "code")
    tables = {
        meds.SUBJECTS: subjects,
        meds.CODES: code_table,
        "ledger.parquet": ledger_frame(counts),
        "quarantine.parquet": quarantined(chunks, known),
        "sources.parquet": source_frame(known),
        "units.parquet": merge_units([tables["units"] for tables in read]),
    }
    meds.write_tables(
        folder,
        {name: t if name == meds.CODES or name == meds.SUBJECTS else t.sort(t.columns) for name, t in tables.items()},
        facts(cut, left_out),
        events=codes.total(),
    )
    return Ingested(
        folder=out,
        subjects=subjects.height,
        events=codes.total(),
        facts=summarise(
            subjects,
            dict(codes),
            as_text(contacts["first_time"].min()),  # type: ignore[arg-type]
            as_text(contacts["last_time"].max()),  # type: ignore[arg-type]
            deaths_inside(subjects, contacts),
            None,
            tables["ledger.parquet"],
        ),
    )


_PART_TABLES = ("patients", "contacts", "units")


def _batches(chunks: list[Chunk], rows: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of shards with about so many records and events, at most half a shard more: how many, first, last."""
    bounds = np.array([c.record_bounds for c in chunks]) + np.array([c.event_bounds for c in chunks])
    sizes = np.diff(bounds.sum(axis=0))[: meds.SHARDS].tolist()
    first = held = 0
    for shard, size in enumerate(sizes):
        if held and held + size // 2 > rows:
            yield held, first, shard
            first, held = shard, 0
        held += size
    yield held, first, meds.SHARDS


def _by_name(counts: npt.NDArray[np.int64], known: Survey) -> Counter[str]:
    """How many events have each code, from the counts by number: some numbers differ only in the other codes."""
    names, codes = known.split_codes[0].to_list(), Counter[str]()
    for number in np.flatnonzero(counts).tolist():
        codes[names[number]] += int(counts[number])
    return codes


def write_shards(job: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    """Link and write some shards; `loaded` keeps the survey between calls."""
    return on_polars_thread(partial(_write_shards, job, loaded))  # .97 of the time on any other


def _write_shards(job: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    scratch, first, last = Path(job["scratch"]), job["first"], job["last"]
    if "survey" not in loaded:
        loaded["survey"] = Survey.load(scratch / "survey")
        loaded["chunks"] = [Chunk.load(Path(folder)) for folder in job["chunks"]]
    part = assemble(loaded["chunks"], loaded["survey"], first, last, by_shard=True)
    meds.write_shards(part.events, scratch / "dataset" / "data", first, last)
    for name in _PART_TABLES:
        getattr(part, name).write_ipc_stream(scratch / f"{name}-{first}.arrow")
    there = np.flatnonzero(part.codes)
    return {
        "first": first,
        "counts": [(file, kind, reason, n) for (file, kind, reason), n in part.counts.items()],
        "left_out": dict(part.left_out),
        "codes": [there.tolist(), part.codes[there].tolist()],
    }
