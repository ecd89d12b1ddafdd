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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import date, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ehrseq import __version__
from ehrseq.fhir import reader
from ehrseq.fhir.chunk import Chunk
from ehrseq.fhir.codes import CodingPreference
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.reader import Refused, uncollected
from ehrseq.fhir.source import STANDARD_INPUT, is_line_file, size_on_disk, state_on_disk
from ehrseq.storage import ResumableFolder, discard
from ehrseq.timeline.build import (
    ChunkMaker,
    Source,
    bar,
    check_patients,
    microseconds,
    paths_of,
)
from ehrseq.timeline.kept import FORMAT, KEPT, as_coding, keep_chunks, kept_chunks
from ehrseq.timeline.pool import Pool
from ehrseq.timeline.schema import as_instant
from ehrseq.timeline.shards import Ingested, write_dataset
from ehrseq.timeline.survey import Survey, survey

TASK_BYTES = 1 << 26
EXPANSION = 10  # how much longer compressed files are taken to be than they look
LAST = 4  # the last tasks of a folder hold this part of what is left of it, or an eighth of TASK_BYTES
TASKS = "tasks"  # the folder of what was read
SMALL = 1 << 24  # bytes of a source that no second process is started for


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

    Raises
    ------
    SourceError, UserError, TimelineError
        where there is nothing to read or no Patient in it; where `out` holds something else; where there is no dataset
        to update
    """
    out = Path(out)
    cut = None if data_cut is None else as_instant(data_cut)
    with ResumableFolder(out, "timelines", "ingest") as scratch:
        (scratch.folder / TASKS).mkdir(exist_ok=True)
        dataset = scratch.folder / "dataset"
        shutil.rmtree(dataset, ignore_errors=True)
        kept: list[Chunk] = []
        if update:
            kept, coding, cut = kept_chunks(out, coding, cut)
        coding = coding or CodingPreference()
        with Pool(workers, scratch.lock) as pool:
            chunks = kept + _read(source, scratch, coding, kept, pool, strict, progress)
            chunks.sort(key=lambda c: (c.files, c.generation, c.piece, c.part))
            with uncollected():
                known = survey(chunks, microseconds(cut))
                check_patients(known, chunks)
                known.save(scratch.folder / "survey")
                known = Survey.load(scratch.folder / "survey")  # on disk, it is no memory
            result = write_dataset(chunks, known, cut, scratch.folder, pool, out)
        keep_chunks(chunks, coding, dataset / KEPT)
        scratch.publish(dataset)
    return result


# -- the first stage


def _read(
    source: Source,
    scratch: ResumableFolder,
    coding: CodingPreference,
    kept: list[Chunk],
    pool: Pool,
    strict: bool,
    progress: bool,
) -> list[Chunk]:
    """Read the source into chunks, but for the tasks that an earlier run finished."""
    found, done = paths_of(source), scratch.folder / TASKS
    if not isinstance(found, list):
        generation = 1 + max((c.generation for c in kept if c.files == ["(in memory)"]), default=-1)
        maker = ChunkMaker(["(in memory)"], coding, done / "memory", generation, strict=strict)
        shutil.rmtree(done / "memory", ignore_errors=True)
        maker.reader.read_objects(found)
        maker.finish()
        folders = [done / "memory"]
    else:
        tasks = {_fingerprint(task, coding): task for task in _plan(found, kept)}
        for folder in done.iterdir():
            if folder.name not in tasks:
                discard(folder)  # a part of it must not be taken for the whole when it is asked for again
        missing = {name: task for name, task in tasks.items() if not (done / name).is_dir()}
        if strict:  # what an interrupted run has read need not have been strict
            _check_strict(done / name for name in tasks.keys() - missing.keys())
        size = sum(task["bytes"] for task in missing.values())
        # another process has another standard input
        small = size < SMALL or any(path == STANDARD_INPUT for path, _ in found)
        with bar(size, progress) as advance:
            how = {"do": "read", "coding": asdict(coding), "full": reader.FULL, "strict": strict}
            jobs: list[dict[str, Any]] = [
                how | {"task": task, "folder": str(done / name)} for name, task in missing.items()
            ]
            if not strict:  # which stops at the first in the order of the files
                jobs.sort(key=lambda job: -job["task"]["bytes"])  # so that no process waits long for the last
            for refused in pool.run(jobs, advance, small=small):
                if refused is not None:
                    raise Refused(Reason(refused))
        folders = [done / name for name in tasks]
    return [Chunk.load(part) for folder in folders for part in sorted(folder.iterdir())]


def _check_strict(folders: Iterable[Path]) -> None:
    for part in (part for folder in folders for part in folder.iterdir()):
        for *_, reason in Chunk.load(part).quarantine:
            raise Refused(Reason(reason))


def _plan(found: list[tuple[Path, bool]], kept: list[Chunk]) -> Iterator[dict[str, Any]]:
    """Tasks of at most some TASK_BYTES, the last ones less: some files of one folder, or a piece of a large file."""
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

    weights = [_weight(path) for path, _ in found]
    # of each folder what is in no task yet: another folder beside it is another export's, and changes nothing in it
    left = Counter[Path]()
    for (path, _), size in zip(found, weights, strict=True):
        left[path.parent] += size
    small = {folder for folder, size in left.items() if size <= SMALL}

    def limit(folder: Path) -> int:
        """How large the next task may be: the last ones are small, so that processes end at about the same time."""
        return TASK_BYTES if folder in small else min(TASK_BYTES, max(left[folder] // LAST, TASK_BYTES // 8))

    for (path, asked_for), size in zip(found, weights, strict=True):
        if held and (path.parent != held[-1][0].parent or weight >= limit(path.parent)):
            yield task(held)
            left[held[-1][0].parent] -= weight
            held, weight = [], 0
        if is_line_file(path) and _is_plain(path) and size > limit(path.parent):
            if held:
                yield task(held)
                left[path.parent] -= weight
                held, weight = [], 0
            start = piece = 0
            while start < size:
                stop = min(start + limit(path.parent), size)
                yield task([(path, asked_for)], span=(start, stop), piece=piece, bytes=stop - start)
                left[path.parent] -= stop - start
                start, piece = stop, piece + 1
            continue
        held.append((path, asked_for))
        weight += size
    if held:
        yield task(held)


def _is_plain(path: Path) -> bool:
    return path.name.lower().endswith((".json", ".ndjson", ".jsonl"))


def _weight(path: Path) -> int:
    """The bytes of a file; of a compressed one, about as many as it stands for."""
    size = size_on_disk(path)
    return size if _is_plain(path) else size * EXPANSION


def tasks_of(found: list[tuple[Path, bool]]) -> list[dict[str, Any]]:
    """The tasks of an export's files (see `paths_of`), for whoever else runs `read_task`."""
    return list(_plan(found, []))


def _fingerprint(task: dict[str, Any], coding: CodingPreference) -> str:
    """What a task's folder is called: the same only for the same files, unchanged, read in the same way."""
    states = [state_on_disk(Path(path)) for path, _ in task["files"]]
    facts = [FORMAT, __version__, task, states, asdict(coding)]
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def read_task(job: dict[str, Any], advance: Callable[[int], None] | None) -> int | None:
    """Read the files of a task into chunks; the folder appears when it is whole.

    Where all must be readable and one record is not, there is no folder, and the answer is the number of its reason.
    """
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
        job["strict"],
    )
    try:
        for number, (path, asked_for) in enumerate(task["files"]):
            if task["span"] is None:
                maker.reader.read_file(Path(path), number, advance, asked_for)
            else:
                start, stop = task["span"]
                maker.lines = maker.reader.read_span(Path(path), number, start, stop, advance)
    except Refused as refused:
        shutil.rmtree(growing, ignore_errors=True)
        return int(refused.reason)
    maker.finish()
    try:
        os.replace(growing, folder)
    except OSError:
        # a worker of an interrupted run may have finished the same task just now: what it made is the same
        if not folder.is_dir():
            raise
        shutil.rmtree(growing)
    return None


@lru_cache(maxsize=1)
def _same_coding(plain: str) -> CodingPreference:
    """The coding preference of this process's tasks, which remembers what concepts are called."""
    return as_coding(json.loads(plain))
