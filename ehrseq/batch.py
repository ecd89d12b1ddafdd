"""Forecasts of a whole population: in pieces, on all cores, in memory that does not grow with the population.

The timelines are read a piece (some thousand subjects) at a time. Each piece's forecast goes to a folder of its own
beside the output, which gets its name only once it is whole; so that after an interruption whole pieces are kept, and
the rest is made again. At the end the pieces are joined, in their order, and the output folder gets its name. Pieces
depend on the data alone: how many processes there are changes no byte.

Run as a module, this is one of the processes (see `ehrseq.timeline.pool`).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from ehrseq import __version__
from ehrseq.errors import ArtifactError, ForecastError, NoPredictionTimeError, TimelineError
from ehrseq.fhir.source import state_on_disk
from ehrseq.forecast.drift import drift_of
from ehrseq.forecast.files import FORMATS, JOINS, check_format
from ehrseq.forecast.screen import none_of
from ehrseq.forecast.stored import StoredForecast
from ehrseq.forecast.table import FORMAT_VERSION, KIND, Forecast
from ehrseq.model.profile import Observed
from ehrseq.storage import (
    ResumableFolder,
    check_target,
    discard,
    read_json,
    read_manifest,
    read_note,
    sha256_file,
    write_json,
    write_manifest,
)
from ehrseq.task.query import resolve_prediction_times
from ehrseq.timeline import meds
from ehrseq.timeline.build import paths_of
from ehrseq.timeline.ingest import ingest
from ehrseq.timeline.pieces import Folder, Piece
from ehrseq.timeline.pool import Pool, processes
from ehrseq.timeline.schema import EVENT_SCHEMA, as_instant
from ehrseq.timeline.store import Timelines, as_timelines

if TYPE_CHECKING:
    from ehrseq.estimator import ProgressionModel

FACTS = "facts.json"  # of a piece: its other files, counts and what drift is told from
Advance = Callable[[int], None]


def score_population(
    source: Any,
    model: ProgressionModel | str | Path,
    out: str | Path,
    *,
    at: Any = None,
    branch: str | None = None,
    file_format: str = "parquet",
    workers: int | None = None,
    progress: bool = False,
) -> StoredForecast:
    """Forecast everyone in a FHIR export or timelines and write the forecast folder `out`; see `score_export`."""
    from ehrseq.estimator import load_model
    from ehrseq.model.threads import one_thread

    check_format(file_format)
    check_target(out, KIND)
    workers = processes(workers)
    given = load_model(model) if isinstance(model, str | Path) else model
    facts = given.forecast_facts(branch)
    if isinstance(at, str | date) and at != "task":
        as_instant(at)
    # the other processes have one thread each, and sums must not depend on it
    with ResumableFolder(Path(out), KIND, "score") as scratch, one_thread():
        folder, loaded = Path(str(model)), given
        if not isinstance(model, str | Path):  # the other processes read it, and this one must have the very same
            folder = scratch.folder / "model"
            given.save(folder)
            loaded = load_model(folder)
        model_hash, loaded.folder_hash_ = loaded.folder_hash_, given.folder_hash_
        data = _timelines(source, scratch.folder, workers, progress)
        timelines = Folder(data)
        how = {
            "model": str(folder), "model_hash": model_hash, "told_hash": given.folder_hash_, "timelines": str(data),
            "branch": branch, "format": file_format,
            **_prediction_times(at, given, timelines, scratch.folder),
        }  # fmt: skip
        fingerprint = timelines.fingerprint()
        parts = _parts(scratch.folder, how, fingerprint)
        pieces = timelines.pieces()
        folders = [parts / f"{number:06d}" for number in range(len(pieces))]
        discards, scratch.discards = scratch.discards, False  # from here on there is work to lose
        with Pool(workers, scratch.lock, do, "ehrseq.batch") as pool:
            pool.loaded |= {"model": loaded, "timelines": timelines}
            _run(pool, how, pieces, folders, progress)
        scratch.discards = discards
        if timelines.fingerprint() != fingerprint:
            raise TimelineError("timelines that stay as they are while they are scored", "a change", "score them again")
        result = _join(scratch.folder / "forecast", folders, file_format, facts, loaded)
        scratch.publish(scratch.folder / "forecast")
    return replace(result, folder=Path(out))


# -- before


def _timelines(source: Any, scratch: Path, workers: int, progress: bool) -> Path:
    """The folder of the timelines: the source itself, or one that is made of it in the scratch folder."""
    if not isinstance(source, str | Path):
        as_timelines(source).save(scratch / "timelines")
        return scratch / "timelines"
    folder = Path(source)
    if meds.is_ours(folder):
        read_manifest(folder, meds.KIND, meds.FORMAT_VERSION, TimelineError)
        return folder
    if any((folder / "data").rglob("*.parquet")):
        return folder
    found = paths_of(folder)
    state = [[str(path), *state_on_disk(path)] for path, _ in found] if isinstance(found, list) else None
    # its name says what it was made of: no other note could tell of another one
    made = scratch / f"timelines-{sha256(json.dumps([__version__, state]).encode()).hexdigest()[:32]}"
    if state is None or not _is_whole(made):
        discard(made)
        # under one name whatever the source, so that what an interrupted one has read is found again
        ingest(folder, scratch / "ingested", workers=workers, progress=progress)
        os.replace(scratch / "ingested", made)
    # of another source, or of an earlier state of this one
    for other in (*scratch.glob("timelines-*"), scratch / "ingested"):
        if other != made:
            discard(other)
    return made


def _is_whole(dataset: Path) -> bool:
    try:
        read_manifest(dataset, meds.KIND, meds.FORMAT_VERSION)
    except ArtifactError:
        return False
    return True


def _prediction_times(at: Any, model: ProgressionModel, timelines: Folder, scratch: Path) -> dict[str, str | None]:
    """`at` for each process: as text, or as the file of a table of prediction times."""
    if at is None or (isinstance(at, str | date) and at != "task"):
        return {"at": at if at is None or isinstance(at, str) else at.isoformat(), "times": None}
    if isinstance(at, str):
        if model.times_withheld_:
            raise ForecastError(
                "prediction times", "a model whose table of them was withheld (it names patients)", "give them as `at`"
            )
        if model.task_.prediction_times.rule != "table":
            return {"at": "task", "times": None}
    # who is named is looked up once, among everyone
    nothing = pl.DataFrame(schema=EVENT_SCHEMA)
    table = resolve_prediction_times(Timelines(nothing, timelines.names()), at, model.task_)
    table.write_parquet(scratch / "times.parquet")
    return {"at": None, "times": str(scratch / "times.parquet")}


def _parts(scratch: Path, how: dict[str, Any], fingerprint: str) -> Path:
    """The folder of the parts; emptied where they are of another model, of other data or of other questions."""
    facts = {
        "version": __version__,
        "timelines": fingerprint,
        "times": how["times"] and sha256_file(Path(how["times"])),
        **{name: how[name] for name in ("model_hash", "told_hash", "branch", "format", "at")},
    }
    parts, note = scratch / "parts", scratch / "run.json"
    if read_note(note) != facts:
        note.unlink(missing_ok=True)  # first: it must not speak of parts that are half removed
        discard(parts)
        write_json(note, facts)
    parts.mkdir(exist_ok=True)
    return parts


# -- the pieces


def _run(pool: Pool, how: dict[str, Any], pieces: list[Piece], folders: list[Path], progress: bool) -> None:
    jobs = [
        {**how, "piece": piece.to_dict(), "folder": str(folder)}
        for piece, folder in zip(pieces, folders, strict=True)
        if not _is_done(folder)
    ]
    everyone = sum(piece.size for piece in pieces)
    left = sum(job["piece"]["size"] for job in jobs)
    with subjects_bar(everyone, everyone - left, progress) as advance:
        for _ in pool.run(jobs, advance):
            pass


def _is_done(folder: Path) -> bool:
    """Whether a piece's folder has all that was written to it."""
    facts = read_note(folder / FACTS)
    return facts is not None and facts["files"] == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in folder.iterdir() if p.name != FACTS}


def do(job: dict[str, Any], loaded: dict[str, Any], advance: Advance | None) -> None:
    """Forecast one piece and write it; its folder appears when it is whole."""
    if "model" not in loaded:
        import torch

        from ehrseq.estimator import load_model

        torch.set_num_threads(1)  # one process a core
        found = load_model(job["model"])
        if found.folder_hash_ != job["model_hash"]:
            raise ArtifactError("the model that scoring began with", "another in its folder", "score again")
        found.folder_hash_ = job["told_hash"]
        loaded |= {"model": found, "timelines": Folder(job["timelines"])}
    model, piece = loaded["model"], Piece.from_dict(job["piece"])
    timelines = loaded["timelines"].read(piece)
    at = job["at"]
    if job["times"] is not None:
        mine = pl.col("subject_id").is_in(timelines.subjects["subject_id"].implode())
        at = pl.scan_parquet(job["times"]).filter(mine).collect()
    forecast = model.forecast_part(timelines, at, branch=job["branch"])
    folder = Path(job["folder"])
    growing = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir()
    FORMATS[job["format"]](forecast, growing)
    observed = model.observed(timelines, forecast).to_dict()
    facts = {"files": _sizes(growing), "counts": counts_of(forecast), "observed": observed}
    write_json(growing / FACTS, facts)
    discard(folder)  # what is there is not whole
    os.replace(growing, folder)
    if advance is not None:
        advance(piece.size)
    del timelines, forecast
    _give_back()


def _give_back() -> None:
    """Return freed memory to the system: what allocators keep grows with every piece (1.6 times by the hundredth)."""
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)


def counts_of(forecast: Forecast) -> dict[str, Any]:
    """Plain numbers that add up over parts of a population."""
    scored = forecast.risk.select("subject_id", "prediction_time").unique()
    return {
        "prediction_times": scored.height,
        "subjects": scored["subject_id"].n_unique(),
        "risk": forecast.risk.height,
        "labs": forecast.labs.height,
        "seen_in_training": forecast.seen.height,
        "skipped_prediction_times": forecast.skipped.select("subject_id", "prediction_time").n_unique(),
        "skipped": dict(forecast.skipped["reason"].value_counts().sort("reason").iter_rows()),
    }


# -- after


def _join(
    out: Path, folders: list[Path], file_format: str, facts: dict[str, Any], model: ProgressionModel
) -> StoredForecast:
    """The forecast folder from its parts."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    totals, skipped = Counter[str](), Counter[str]()
    observed = Observed.sum(_told(folders, totals, skipped))
    counts = {**totals, "skipped": dict(sorted(skipped.items()))}
    names = {tuple(sorted(_sizes(folder))) for folder in folders}
    if len(names) > 1:
        raise ForecastError("the same files in all parts", "others in some", "score again")
    for name in (name for group in names for name in group):
        join = JOINS.get(name) or JOINS[Path(name).suffix]
        join([folder / name for folder in folders], out / name)
    if not totals["risk"] and not totals["labs"]:
        if not skipped:
            raise NoPredictionTimeError(
                "at least one prediction time", "none", "check what `at`, or the task's rule, selects"
            )
        raise none_of(totals["skipped_prediction_times"], skipped)
    drift = drift_of(model.fitted_.profile, observed)
    write_json(out / "drift.json", drift)
    write_manifest(out, KIND, FORMAT_VERSION, format=file_format, counts=counts, **facts)
    return StoredForecast(out, counts, drift)


def _told(folders: Iterable[Path], totals: Counter[str], skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """What each part says for drift, one at a time; its counts are added to the others."""
    for folder in folders:
        part = read_json(folder / FACTS)
        skipped.update(part["counts"].pop("skipped"))
        totals.update(part["counts"])
        yield part["observed"]


@contextmanager
def subjects_bar(everyone: int, done: int, show: bool) -> Iterator[Advance | None]:
    """A progress bar over subjects, with rate and time left."""
    if not show:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Subjects a second."""

        def render(self, task: Any) -> Text:
            """As text."""
            return Text("" if task.speed is None else f"{task.speed:,.0f} a second")

    with Progress(
        TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("subjects"), Rate(), TimeRemainingColumn(),
        transient=True,
    ) as shown:  # fmt: skip
        task = shown.add_task("scoring", total=everyone, completed=done)
        yield lambda n: shown.advance(task, n)


if __name__ == "__main__":
    from ehrseq.timeline.worker import main

    main(do)
