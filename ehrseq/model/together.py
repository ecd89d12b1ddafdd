"""Fitting the networks of an ensemble, in several processes where that is worth it.

Each process settles the same plan from the same timelines, fits some of the networks, and leaves them in a checkpoint;
so how many there are changes nothing in the networks. The timelines reach them in a file without a name, which is gone
with the last process that holds it: no copy of patients' data is left anywhere.

Run as a module, this is one of the processes (see `ehrseq.timeline.pool`).
"""

from __future__ import annotations

import io
import json
import mmap
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import polars as pl
import torch

from ehrseq.config import ModelConfig
from ehrseq.model.members import NARROW
from ehrseq.model.module import world_size
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.plan import Plan, Report
from ehrseq.task.definition import Task
from ehrseq.timeline.pool import Pool, processes
from ehrseq.timeline.schema import CODE_SCHEMA, conform
from ehrseq.timeline.store import Timelines

MUCH = 1 << 20  # tokens that a network reads while it is fitted: some 30 seconds, a fifth of which starting takes
# from which one process fits alone, since more would need much memory; of many subjects, with several threads
MANY = 100_000  # subjects
MANY_EVENTS = 10_000_000


def fit_networks(
    plan: Plan, timelines: Timelines, splits: pl.DataFrame, report: Report | None, checkpoint: str | Path | None,
    workers: int | None, meanwhile: Iterable[None] = (),
) -> tuple[list[ProgressionNetwork], list[list[float]]]:  # fmt: skip
    """The networks of a plan, and the tuning loss of each by epoch; none where its model has none.

    At most `workers` processes fit them (None: one a core), this one among them; one alone where there is little to
    do, where there is a GPU, where several would take much memory, and where there is no temporary folder to hand the
    timelines over in. Beside that, the steps of `meanwhile` are done.
    """
    members = range(plan.config.training.members if plan.config.has_networks else 0)
    several = min(processes(workers), len(members)) > 1 and _is_worth_it(plan, timelines)
    with ExitStack() as stack:
        folder, job = checkpoint, None
        if several:
            with suppress(OSError):  # no room
                job = _job(plan, timelines, splits, stack.enter_context(TemporaryFile(prefix="ehrseq-")))
                if folder is None and job is not None:
                    folder = stack.enter_context(TemporaryDirectory(prefix="ehrseq-"))
        kept = None if folder is None or not members else plan.checkpoint(folder)
        if job is not None and kept is not None:
            jobs = [{**job, "checkpoint": str(kept.folder), "key": kept.key, "member": member} for member in members]
            _fit_together(plan, jobs, report, workers, meanwhile)
            meanwhile = ()
        # what others have fitted is only read
        found = [plan.fit_member(member, report, kept) for member in members]
        for _ in meanwhile:
            pass
    return [network for network, _ in found], [losses for _, losses in found]


def _is_worth_it(plan: Plan, timelines: Timelines) -> bool:
    if torch.cuda.is_available() or world_size() > 1 or torch.get_default_dtype() != torch.float32:
        return False
    alone = plan.origin or plan.config.network.width >= NARROW
    is_much = len(timelines) >= MANY or timelines.events.height >= MANY_EVENTS
    return not alone and not is_much and plan.tokens >= MUCH


def _job(plan: Plan, timelines: Timelines, splits: pl.DataFrame, file: IO[bytes]) -> dict[str, Any] | None:
    """What the other processes settle the plan by, None where its settings are no JSON; the timelines go into the file.

    OSError where there is no room for them; then they take none.
    """
    settings = {"task": None if plan.task is None else plan.task.to_dict(), "config": plan.config.to_dict()}
    try:
        json.dumps(settings)
    except TypeError:
        return None
    taught = timelines.select(splits.filter(pl.col("split").is_in(["train", "tuning"]))["subject_id"])
    codes = conform(timelines.metadata.get("codes", pl.DataFrame()), CODE_SCHEMA, "code")
    bounds = [0]
    try:
        for table in (taught.events, taught.subjects, codes, splits):
            table.write_ipc_stream(file)
            bounds.append(file.tell())
        file.flush()
    except OSError:
        with suppress(OSError):  # what could not be written is tried again on closing
            file.close()
        raise
    return {"file": file.fileno(), "bounds": bounds, **settings}


def _fit_together(
    plan: Plan, jobs: list[dict[str, Any]], report: Report | None, workers: int | None, meanwhile: Iterable[None]
) -> None:
    """Leave every network in the checkpoint."""
    with Pool(workers, jobs[0]["file"], do, __name__, frugal=False) as pool:
        pool.loaded["plan"] = plan

        def tell(said: Any) -> None:
            """Of an epoch, here or elsewhere; and what the others have said by now."""
            for epoch, loss in (said, *pool.listen()):
                if report is not None:
                    report(epoch, loss)

        for _ in pool.run(jobs, tell, meanwhile=meanwhile):
            pass


def do(job: dict[str, Any], loaded: dict[str, Any], advance: Callable[[Any], None] | None) -> None:
    """Fit one network and leave it in the checkpoint; `loaded` keeps the plan between calls."""
    if "plan" not in loaded:
        loaded["plan"] = _plan(job)
    plan: Plan = loaded["plan"]

    def report(epoch: int, loss: float) -> None:
        if advance is not None:
            advance([epoch, loss])

    kept = plan.checkpoint(job["checkpoint"])
    if kept.key != job["key"]:
        raise RuntimeError("another plan: the network would be fitted for nothing")
    plan.fit_member(job["member"], report, kept)


def _plan(job: dict[str, Any]) -> Plan:
    """The plan of the process that gave the job."""
    with mmap.mmap(job["file"], 0, access=mmap.ACCESS_READ) as content:
        events, subjects, codes, splits = (
            pl.read_ipc_stream(io.BytesIO(content[start:stop])) for start, stop in pairwise(job["bounds"])
        )
    timelines = Timelines(events, subjects, metadata={"codes": codes})
    config = ModelConfig.from_dict(job["config"])
    if job["task"] is None:
        return Plan.without_task(timelines, splits, config)
    return Plan.of(timelines, Task.from_dict(job["task"]), splits, config)


if __name__ == "__main__":
    from ehrseq.timeline.worker import main

    main(do)
