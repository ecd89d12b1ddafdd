"""Forecasts of a whole population: in pieces, on all cores, in memory that does not grow with the population.

The timelines are read a piece (some thousand subjects) at a time. Each piece's forecast goes to a folder of its own
beside the output, which gets its name only once it is whole; so that after an interruption whole pieces are kept, and
the rest is made again. At the end the pieces are joined, in their order, and the output folder gets its name. Pieces
depend on the data alone: how many processes there are changes no byte.

Run as a module, this is one of the processes (see `ehrseq.timeline.pool`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from ehrseq import __version__
from ehrseq.errors import ForecastError, NoPredictionTimeError, TimelineError
from ehrseq.fhir.source import state_on_disk
from ehrseq.forecast.drift import drift_of
from ehrseq.forecast.files import FORMATS, JOINS, check_format
from ehrseq.forecast.screen import none_of
from ehrseq.forecast.stored import StoredForecast
from ehrseq.forecast.table import FORMAT_VERSION, KIND, Forecast
from ehrseq.model.profile import Observed
from ehrseq.storage import (
    DIGEST,
    MANIFEST,
    ResumableFolder,
    check_target,
    read_json,
    read_manifest,
    sha256_file,
    write_json,
    write_manifest,
)
from ehrseq.task.query import resolve_prediction_times
from ehrseq.timeline import meds
from ehrseq.timeline.build import paths_of
from ehrseq.timeline.ingest import ingest
from ehrseq.timeline.pieces import Folder, Piece
from ehrseq.timeline.pool import Pool
from ehrseq.timeline.schema import EVENT_SCHEMA, as_instant
from ehrseq.timeline.store import Timelines, as_timelines

if TYPE_CHECKING:
    from ehrseq.estimator import ProgressionModel

FACTS = "facts.json"  # of a piece: counts and what drift is told from
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

    check_format(file_format)
    check_target(out, KIND)
    workers = workers or os.cpu_count() or 1
    given = load_model(model) if isinstance(model, str | Path) else model
    facts = given.forecast_facts(branch)
    if isinstance(at, str | date) and at != "task":
        as_instant(at)
    with ResumableFolder(Path(out), KIND, "score") as scratch, _one_thread():
        folder, loaded = Path(str(model)), given
        if not isinstance(model, str | Path):  # the other processes read it, and this one must have the very same
            folder = scratch.folder / "model"
            given.save(folder)
            loaded = load_model(folder)
        data = _timelines(source, scratch.folder, workers, progress)
        timelines = Folder(data)
        how = {
            "model": str(folder), "timelines": str(data), "branch": branch, "format": file_format,
            **_prediction_times(at, given, timelines, scratch.folder),
        }  # fmt: skip
        parts = _parts(scratch.folder, how, folder, timelines)
        pieces = timelines.pieces()
        folders = [parts / f"{number:06d}" for number in range(len(pieces))]
        with Pool(workers, scratch.lock, do, "ehrseq.batch") as pool:
            pool.loaded |= {"model": loaded, "timelines": timelines}
            _run(pool, how, pieces, folders, progress)
        result = _join(scratch.folder / "forecast", folders, file_format, facts, loaded)
        scratch.publish(scratch.folder / "forecast")
    return replace(result, folder=Path(out))


# -- before


def _timelines(source: Any, scratch: Path, workers: int, progress: bool) -> Path:
    """The folder of the timelines: the source itself, or one that is made of it in the scratch folder."""
    made = scratch / "timelines"
    if not isinstance(source, str | Path):
        as_timelines(source).save(made)
        return made
    folder = Path(source)
    if meds.is_ours(folder):
        read_manifest(folder, meds.KIND, meds.FORMAT_VERSION, TimelineError)
        return folder
    if any((folder / "data").rglob("*.parquet")):
        return folder
    found = paths_of(folder)
    state = [[str(path), *state_on_disk(path)] for path, _ in found] if isinstance(found, list) else None
    note = scratch / "source.json"
    if not (note.is_file() and made.is_dir() and read_json(note) == state):
        ingest(folder, made, workers=workers, progress=progress)
        write_json(note, state)
    return made


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
    table = resolve_prediction_times(Timelines(nothing, timelines.subjects()), at, model.task_)
    table.write_parquet(scratch / "times.parquet")
    return {"at": None, "times": str(scratch / "times.parquet")}


def _parts(scratch: Path, how: dict[str, Any], model: Path, timelines: Folder) -> Path:
    """The folder of the parts; emptied where they are of another model, of other data or of other questions."""
    facts = {
        "version": __version__,
        "model": read_json(model / MANIFEST).get(DIGEST),
        "timelines": timelines.fingerprint(),
        "branch": how["branch"],
        "format": how["format"],
        "at": how["at"],
        "times": how["times"] and sha256_file(Path(how["times"])),
    }
    parts, note = scratch / "parts", scratch / "run.json"
    if not (note.is_file() and read_json(note) == facts):
        shutil.rmtree(parts, ignore_errors=True)
        write_json(note, facts)
    parts.mkdir(exist_ok=True)
    return parts


# -- the pieces


def _run(pool: Pool, how: dict[str, Any], pieces: list[Piece], folders: list[Path], progress: bool) -> None:
    jobs = [
        {**how, "piece": piece.to_dict(), "folder": str(folder)}
        for piece, folder in zip(pieces, folders, strict=True)
        if not folder.is_dir()
    ]
    everyone = sum(piece.size for piece in pieces)
    left = sum(job["piece"]["size"] for job in jobs)
    with subjects_bar(everyone, everyone - left, progress) as advance:
        for _ in pool.run(jobs, advance):
            pass


def do(job: dict[str, Any], loaded: dict[str, Any], advance: Advance | None) -> None:
    """Forecast one piece and write it; its folder appears when it is whole."""
    if "model" not in loaded:
        import torch

        from ehrseq.estimator import load_model

        torch.set_num_threads(1)  # one process a core
        loaded |= {"model": load_model(job["model"]), "timelines": Folder(job["timelines"])}
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
    write_json(growing / FACTS, {"counts": counts_of(forecast), "observed": observed})
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
    told = [read_json(folder / FACTS) for folder in folders]
    totals, skipped = Counter[str](), Counter[str]()
    for part in told:
        skipped.update(part["counts"].pop("skipped"))
        totals.update(part["counts"])
    counts = {**totals, "skipped": dict(sorted(skipped.items()))}
    names = sorted(p.name for p in folders[0].iterdir() if p.name != FACTS) if folders else []
    for name in names:
        join = JOINS.get(name) or JOINS[Path(name).suffix]
        join([folder / name for folder in folders], out / name)
    if not totals["risk"] and not totals["labs"]:
        if not skipped:
            raise NoPredictionTimeError(
                "at least one prediction time", "none", "check what `at`, or the task's rule, selects"
            )
        raise none_of(totals["skipped_prediction_times"], skipped)
    drift = drift_of(model.fitted_.profile, Observed.sum(part["observed"] for part in told))
    write_json(out / "drift.json", drift)
    write_manifest(out, KIND, FORMAT_VERSION, format=file_format, counts=counts, **facts)
    return StoredForecast(out, counts, drift)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch's in this process, too: the others have as many, and sums must not depend on it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
