"""Fitting the networks of an ensemble, in several processes where that is worth it.

Each process settles the same plan from the same timelines, fits some of the networks, and leaves them in a checkpoint;
so how many there are changes nothing in the networks. The timelines reach them in a file without a name, which is gone
with the last process that holds it: no copy of patients' data is left anywhere.

Run as a module, this is one of the processes (see `ehrseq.timeline.pool`).
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import polars as pl
import torch

from ehrseq.config import ModelConfig
from ehrseq.errors import TrainingError
from ehrseq.model.members import NARROW
from ehrseq.model.module import world_size
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.plan import Plan, Report
from ehrseq.task.definition import Task
from ehrseq.timeline.pool import Pool, processes
from ehrseq.timeline.store import Timelines

MUCH = (
    1 << 20
)  # tokens a network reads while it is fitted: half a minute's work, of which starting a process is a fifth
MANY = 100_000  # subjects from which one process has several threads, since more processes would need much memory


def fit_networks(
    plan: Plan, timelines: Timelines, splits: pl.DataFrame, report: Report | None, checkpoint: str | Path | None,
    workers: int | None, meanwhile: Iterable[None] = (),
) -> tuple[list[ProgressionNetwork], list[list[float]]]:  # fmt: skip
    """The networks of a plan, and the tuning loss of each by epoch; none where its model has none.

    At most `workers` processes fit them (None: one a core), this one among them; one alone where there is little to
    do, where there is a GPU, and where several would take much memory. Beside that, the steps of `meanwhile` are done.
    """
    members = range(plan.config.training.members if plan.config.has_networks else 0)
    several = min(processes(workers), len(members)) > 1 and _is_worth_it(plan, timelines)
    with TemporaryDirectory(prefix="ehrseq-") if several and checkpoint is None else nullcontext(checkpoint) as folder:
        kept = None if folder is None or not members else plan.checkpoint(folder)
        if several and folder is not None:
            _fit_together(plan, timelines, splits, report, folder, workers, meanwhile)
            report, meanwhile = None, ()  # what is left is to read what is there
        found = [plan.fit_member(member, report, kept) for member in members]
        for _ in meanwhile:
            pass
    return [network for network, _ in found], [losses for _, losses in found]


def _is_worth_it(plan: Plan, timelines: Timelines) -> bool:
    alone = plan.origin or torch.cuda.is_available() or world_size() > 1 or plan.config.network.width >= NARROW
    return not alone and plan.tokens >= MUCH and len(timelines) < MANY


def _fit_together(
    plan: Plan, timelines: Timelines, splits: pl.DataFrame, report: Report | None, checkpoint: str | Path,
    workers: int | None, meanwhile: Iterable[None],
) -> None:  # fmt: skip
    """Leave every network in the checkpoint."""
    tables = (timelines.events, timelines.subjects, timelines.codes(), splits)
    with TemporaryFile() as file, Pool(workers, file.fileno(), do, __name__, frugal=False) as pool:
        bounds = [0]
        for table in tables:
            table.write_ipc_stream(file)
            bounds.append(file.tell())
        file.flush()
        job = {
            "file": file.fileno(), "bounds": bounds, "task": None if plan.task is None else plan.task.to_dict(),
            "config": plan.config.to_dict(), "checkpoint": str(checkpoint),
        }  # fmt: skip
        pool.loaded["plan"] = plan

        def tell(said: Any) -> None:
            """Of an epoch, here or elsewhere; and what the others have said by now."""
            for epoch, loss in (said, *pool.listen()):
                if report is not None:
                    report(epoch, loss)

        jobs = [{**job, "member": member} for member in range(plan.config.training.members)]
        for failed in pool.run(jobs, tell, meanwhile=meanwhile):
            if failed is not None:
                raise TrainingError(failed)


def do(job: dict[str, Any], loaded: dict[str, Any], advance: Callable[[Any], None] | None) -> str | None:
    """Fit one network and leave it in the checkpoint, or say what went wrong; `loaded` keeps the plan between calls."""
    if "plan" not in loaded:
        loaded["plan"] = _plan(job)
    plan: Plan = loaded["plan"]

    def report(epoch: int, loss: float) -> None:
        if advance is not None:
            advance([epoch, loss])

    try:
        plan.fit_member(job["member"], report, plan.checkpoint(job["checkpoint"]))
    except TrainingError as error:
        return str(error)
    return None


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
