"""From a FHIR export of any size to a dataset folder, in a fixed amount of memory and on all cores.

Two stages. The first reads the export a task at a time (a few files, or a piece of a large one) and leaves each as
chunks (`fhir/chunk.py`) in a scratch folder beside the dataset; a task's folder gets its name only once it is whole,
so that after an interruption whole tasks are kept and the rest is read again. The second looks at what concerns all
chunks (`survey`), then links, sorts and writes a few shards at a time. Only at the very end does the dataset get its
name. How many workers there are, and how the export is cut, changes nothing in the result.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrseq import __version__
from ehrseq.errors import SourceError, TimelineError, UserError
from ehrseq.fhir import reader
from ehrseq.fhir.chunk import Chunk
from ehrseq.fhir.codes import CodingPreference
from ehrseq.fhir.ledger import Reason, ledger_frame
from ehrseq.fhir.source import STANDARD_INPUT, is_line_file, size_on_disk, state_on_disk
from ehrseq.storage import check_target, read_json, write_json
from ehrseq.timeline import meds
from ehrseq.timeline.build import (
    ChunkMaker,
    Source,
    assemble,
    bar,
    check_patients,
    facts,
    microseconds,
    paths_of,
    quarantined,
    settled_counts,
    source_frame,
    subject_frame,
)
from ehrseq.timeline.pool import Pool
from ehrseq.timeline.schema import CODE_SCHEMA, as_instant, conform
from ehrseq.timeline.store import Timelines, as_text, deaths_inside, summarise
from ehrseq.timeline.survey import Survey, survey
from ehrseq.timeline.units import merge_units

KEPT = "ingest"  # the folder of a dataset that holds the chunks it was made from
FORMAT = 2  # of what is kept
TASK_BYTES = 1 << 26
EXPANSION = 10  # how much longer compressed files are taken to be than they look
ROWS_AT_ONCE = 1 << 17  # records and events that are linked together, by all workers
SMALL = 1 << 24  # bytes of a source that no second process is started for


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


def ingest(
    source: Source,
    out: str | Path,
    *,
    data_cut: str | date | datetime | None = None,
    coding: CodingPreference | None = None,
    update: bool = False,
    strict: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Ingested:
    """Read a FHIR export and write its timelines as a MEDS dataset folder.

    Parameters
    ----------
    source, data_cut, coding
        As in `read_fhir`; the dataset is what `read_fhir(source).save(out)` writes, plus what an update needs.
    out
        The dataset folder. It appears, or is replaced, only when all is done; interrupted, run the same call again.
    update
        Fold the source into the dataset that `out` is: new records, new versions and deletions. The result is what
        reading all sources at once gives. `data_cut` and `coding` stay as they were where they are not given.
    strict
        Stop with a SourceError at the first record that cannot be read.
    workers
        How many processes read (default: one a core); 1 reads in this one.
    progress
        Whether to show a progress bar.

    Raises SourceError where there is nothing to read or no Patient in it, UserError where `out` holds something else,
    TimelineError where there is no dataset to update.
    """
    out = Path(out)
    cut = None if data_cut is None else as_instant(data_cut)
    with _Scratch(out) as scratch:
        kept: list[Chunk] = []
        if update:
            kept, coding, cut = _kept_chunks(out, coding, cut)
        coding = coding or CodingPreference()
        with Pool(workers or os.cpu_count() or 1) as pool:
            chunks = kept + _read(source, scratch, coding, kept, pool, strict, progress)
            chunks.sort(key=lambda c: (c.files, c.generation, c.piece, c.part))
            known = survey(chunks, microseconds(cut))
            check_patients(known, chunks)
            result = _write(chunks, known, cut, scratch, pool, out)
        _keep_chunks(chunks, coding, scratch.dataset / KEPT)
        scratch.publish()
    return result


class _Scratch:
    """The folder beside `out` in which everything is made; the same one after an interruption."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.parent / f".{out.name}.ingest"
        self.tasks = self.folder / "tasks"
        self.dataset = self.folder / "dataset"
        self.retired = out.parent / f".{out.name}.retired"

    def __enter__(self) -> _Scratch:
        if self.retired.exists():
            if self.out.exists():
                shutil.rmtree(self.retired)
            else:  # interrupted between the two steps of `publish`
                os.replace(self.retired, self.out)
        check_target(self.out, "timelines")
        self.tasks.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.dataset, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # an error that the same call would meet again leaves nothing behind; an interruption leaves what is done
        if kind is None or issubclass(kind, UserError):
            shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self) -> None:
        """Give the dataset its name."""
        if self.out.exists():
            os.replace(self.out, self.retired)
        os.replace(self.dataset, self.out)
        shutil.rmtree(self.retired, ignore_errors=True)


# -- the first stage


def _read(
    source: Source,
    scratch: _Scratch,
    coding: CodingPreference,
    kept: list[Chunk],
    pool: Pool,
    strict: bool,
    progress: bool,
) -> list[Chunk]:
    """Read the source into chunks, but for the tasks that an earlier run finished."""
    found = paths_of(source)
    if not isinstance(found, list):
        generation = 1 + max((c.generation for c in kept if c.files == ["(in memory)"]), default=-1)
        maker = ChunkMaker(["(in memory)"], coding, scratch.tasks / "memory", generation)
        shutil.rmtree(scratch.tasks / "memory", ignore_errors=True)
        maker.reader.read_objects(found)
        maker.finish()
        folders = [scratch.tasks / "memory"]
    else:
        tasks = {_fingerprint(task, coding): task for task in _plan(found, kept)}
        for folder in scratch.tasks.iterdir():
            if folder.name not in tasks:
                shutil.rmtree(folder)
        missing = {name: task for name, task in tasks.items() if not (scratch.tasks / name).is_dir()}
        size = sum(task["bytes"] for task in missing.values())
        # another process has another standard input
        small = size < SMALL or any(path == STANDARD_INPUT for path, _ in found)
        with bar(size, progress) as advance:
            jobs = [
                {
                    "do": "read",
                    "task": task,
                    "folder": str(scratch.tasks / name),
                    "coding": asdict(coding),
                    "full": reader.FULL,
                }
                for name, task in missing.items()
            ]
            for _ in pool.run(jobs, advance, small=small):
                pass
        folders = [scratch.tasks / name for name in tasks]
    chunks = [Chunk.load(part) for folder in folders for part in sorted(folder.iterdir())]
    if strict:
        _check_strict(chunks)
    return chunks


def _check_strict(chunks: list[Chunk]) -> None:
    bad = Counter(Reason(reason).label for chunk in chunks for *_, reason in chunk.quarantine)
    if bad:
        reason, count = min(bad.items(), key=lambda item: (-item[1], item[0]))
        raise SourceError(
            "records that can all be read",
            f"{sum(bad.values())} that cannot, {count} of them as {reason}",
            "read without strict, and look at the dataset's quarantine.parquet",
        )


def _plan(found: list[tuple[Path, bool]], kept: list[Chunk]) -> Iterator[dict[str, Any]]:
    """Tasks of about equal size: some files of one folder, or a piece of a large file."""
    read_before: dict[str, int] = {}
    for chunk in kept:
        for name in chunk.files:
            read_before[name] = max(read_before.get(name, -1), chunk.generation)
    held: list[tuple[Path, bool]] = []
    weight = 0

    def task(files: list[tuple[Path, bool]], **more: Any) -> dict[str, Any]:
        return {
            "files": [(str(path), asked_for) for path, asked_for in files],
            "bytes": sum(size_on_disk(path) for path, _ in files),
            "generation": 1 + max(read_before.get(str(path), -1) for path, _ in files),
            "span": None,
            "piece": 0,
        } | more

    for path, asked_for in found:
        size = size_on_disk(path)
        plain = path.name.lower().endswith((".json", ".ndjson", ".jsonl"))
        if held and (path.parent != held[-1][0].parent or weight >= TASK_BYTES):
            yield task(held)
            held, weight = [], 0
        if is_line_file(path) and plain and size > TASK_BYTES:
            if held:
                yield task(held)
                held, weight = [], 0
            for piece, start in enumerate(range(0, size, TASK_BYTES)):
                stop = min(start + TASK_BYTES, size)
                yield task([(path, asked_for)], span=(start, stop), piece=piece, bytes=stop - start)
            continue
        held.append((path, asked_for))
        weight += size if plain else size * EXPANSION
    if held:
        yield task(held)


def _fingerprint(task: dict[str, Any], coding: CodingPreference) -> str:
    """What a task's folder is called: the same only for the same files, unchanged, read in the same way."""
    states = [state_on_disk(Path(path)) for path, _ in task["files"]]
    facts = [FORMAT, __version__, task, states, asdict(coding)]
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def read_task(job: dict[str, Any], advance: Callable[[int], None] | None) -> None:
    """Read the files of a task into chunks; the folder appears when it is whole."""
    task, folder = job["task"], Path(job["folder"])
    growing = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(growing, ignore_errors=True)
    maker = ChunkMaker(
        [path for path, _ in task["files"]],
        _same_coding(json.dumps(job["coding"])),
        growing,
        task["generation"],
        task["piece"],
        job["full"],
    )
    for number, (path, asked_for) in enumerate(task["files"]):
        if task["span"] is None:
            maker.reader.read_file(Path(path), number, advance, asked_for)
        else:
            start, stop = task["span"]
            maker.lines = maker.reader.read_span(Path(path), number, start, stop, advance)
    maker.finish()
    try:
        os.replace(growing, folder)
    except OSError:
        # a worker of an interrupted run may have finished the same task just now: what it made is the same
        if not folder.is_dir():
            raise
        shutil.rmtree(growing)


@lru_cache(maxsize=1)
def _same_coding(plain: str) -> CodingPreference:
    """The coding preference of this process's tasks, which remembers what concepts are called."""
    return as_coding(json.loads(plain))


def as_coding(plain: dict[str, Any]) -> CodingPreference:
    """A coding preference from JSON."""
    concept_map = {code: tuple(others) for code, others in plain["concept_map"].items()}
    orders = {name: tuple(order) for name, order in plain.items() if name != "concept_map"}
    return CodingPreference(**orders, concept_map=concept_map)


# -- the second stage


def _write(
    chunks: list[Chunk], known: Survey, cut: datetime | None, scratch: _Scratch, pool: Pool, out: Path
) -> Ingested:
    """Link and write everything but what an update needs."""
    folder = scratch.dataset
    for name in ("data", "metadata"):
        (folder / name).mkdir(parents=True)
    known.save(scratch.folder / "survey")
    pool.stop()
    pool.loaded |= {"survey": known, "chunks": chunks}
    jobs = [
        {
            "do": "shards",
            "chunks": [str(c.folder) for c in chunks],
            "scratch": str(scratch.folder),
            "first": first,
            "last": last,
        }
        for first, last in _batches(chunks, ROWS_AT_ONCE // pool.workers)
    ]
    parts = sorted(pool.run(jobs, None, small=len(jobs) < 2), key=lambda part: part["first"])
    counts, left_out, codes = settled_counts(chunks, known), Counter[str](), Counter[str]()
    for part in parts:
        counts.update({(file, kind, reason): n for file, kind, reason, n in part["counts"]})
        left_out.update(part["left_out"])
        codes.update(part["codes"])
    read = [{name: pl.read_ipc(scratch.folder / f"{name}-{p['first']}.arrow") for name in _PART_TABLES} for p in parts]
    contacts = pl.concat([tables["contacts"] for tables in read])
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


def _batches(chunks: list[Chunk], rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of shards, each with not many more records and events than so many rows."""
    bounds = np.array([c.record_bounds for c in chunks]) + np.array([c.event_bounds for c in chunks])
    sizes = np.diff(bounds.sum(axis=0))[: meds.SHARDS].tolist()
    first = held = 0
    for shard, size in enumerate(sizes):
        if held and held + size > rows:
            yield first, shard
            first, held = shard, 0
        held += size
    yield first, meds.SHARDS


def write_shards(job: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    """Link and write some shards; `loaded` keeps the survey between calls."""
    scratch, first, last = Path(job["scratch"]), job["first"], job["last"]
    if "survey" not in loaded:
        loaded["survey"] = Survey.load(scratch / "survey")
        loaded["chunks"] = [Chunk.load(Path(folder)) for folder in job["chunks"]]
    part = assemble(loaded["chunks"], loaded["survey"], first, last)
    meds.write_shards(part.events, scratch / "dataset" / "data", first, last)
    for name in _PART_TABLES:
        getattr(part, name).write_ipc(scratch / f"{name}-{first}.arrow")
    return {
        "first": first,
        "counts": [(file, kind, reason, n) for (file, kind, reason), n in part.counts.items()],
        "left_out": dict(part.left_out),
        "codes": dict(part.events["code"].value_counts().iter_rows()),
    }


# -- what an update needs


def _keep_chunks(chunks: list[Chunk], coding: CodingPreference, folder: Path) -> None:
    """Put the chunks into the dataset; their bytes are shared with the scratch folder where the disk can do that."""
    folder.mkdir()
    for number, chunk in enumerate(chunks):
        shutil.copytree(str(chunk.folder), folder / f"{number:06d}", copy_function=_link)
    write_json(folder / "ingest.json", {"format": FORMAT, "chunks": len(chunks), "coding": asdict(coding)})


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _kept_chunks(
    out: Path, coding: CodingPreference | None, cut: datetime | None
) -> tuple[list[Chunk], CodingPreference, datetime | None]:
    """The chunks that a dataset was made from, its coding preference and its data cut."""
    if not (out / KEPT / "ingest.json").is_file():
        raise TimelineError(
            "a dataset made by `ehrseq ingest` to update",
            "one without its ingest folder" if out.is_dir() else "no such folder",
            "ingest all sources together, without --update",
        )
    kept = read_json(out / KEPT / "ingest.json", TimelineError)
    if kept.get("format") != FORMAT:
        raise TimelineError(
            f"a dataset with ingest format {FORMAT}", "another", "ingest all sources together, without --update"
        )
    before = as_coding(kept["coding"])
    if coding is not None and coding != before:
        raise TimelineError(
            "the coding preference that the dataset was made with", "another", "ingest all sources together with it"
        )
    metadata = read_json(out / "manifest.json", TimelineError)["metadata"]
    if cut is None and metadata.get("data_cut"):
        cut = datetime.fromisoformat(metadata["data_cut"])
    folders = [out / KEPT / f"{number:06d}" for number in range(kept["chunks"])]
    return [Chunk.load(folder) for folder in folders], before, cut
