"""Work for several processes, which are plain `python -m` of a module that answers jobs (`ehrseq.timeline.worker`).

They take jobs as lines of JSON and answer in the same way. So nothing is forked (polars runs threads), nothing is
pickled, the caller's script is not imported again, and a worker ends by itself when the process that started it does.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ehrseq import errors
from ehrseq.errors import TrainingError, UserError, WorkerError
from ehrseq.fhir.source import Progress
from ehrseq.storage import usable_cores
from ehrseq.timeline import worker
from ehrseq.timeline.worker import Do

Job = dict[str, Any]


# Each process has one thread; those of OpenBLAS would take a third of the time that a process needs to start.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
# Memory that is no longer used goes back sooner than by default: what each process keeps for later would add up.
_FRUGAL = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 22),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 24),
}


class Pool:
    """Runs jobs in `workers` processes, this one among them; in this one alone where there is little to do."""

    def __init__(
        self, workers: int | None, held: int | None = None, do: Do = worker.do, module: str = "ehrseq.timeline.worker",
        *, frugal: bool = True,
    ) -> None:  # fmt: skip
        """`workers` is as in `processes`. `held` is an open file that the processes share: a lock on it lasts until the
        last of them has ended.

        A job is done by `do` here, and by `module` in the other processes, which is to do the same; where they are
        `frugal` they give memory back sooner, which slows down what takes as much again at once.
        """
        workers = processes(workers)
        self.workers = workers if sys.executable else 1  # an embedded interpreter cannot be started again
        self._held = () if held is None else (held,)
        self._do, self._module, self._frugal = do, module, frugal
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._heard: list[Any] = []  # results that `listen` came across
        self._started: list[subprocess.Popen[str]] = []
        self.loaded: dict[str, Any] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the processes, and so give their memory back; the next jobs start new ones."""
        self.loaded = {}
        for process in self._started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # a job that the process did not live to read
                        pipe.close()
        self._started = []

    def run(
        self, jobs: list[Job], advance: Progress | None, small: bool = False,
        meanwhile: Iterable[None] | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        """The results of jobs, in no order. `advance` gets what they report on the way; the steps of `meanwhile` are
        done here, before this process takes jobs itself where there are others. TypeError for jobs that are no JSON and
        are to go elsewhere."""
        if self.workers == 1 or small or len(jobs) < 2:
            for job in jobs:
                yield self._do(job, self.loaded, advance)
            for _ in meanwhile or ():
                pass
            return
        waiting = self._begin(jobs, min(self.workers - 1, len(jobs) - (meanwhile is None)))
        for _ in meanwhile or ():
            for said in self.listen():
                if advance is not None:
                    advance(said)
        done = 0
        while done < len(jobs):
            if self._heard:
                yield self._heard.pop(0)
            elif self._answers.empty() and (own := _next(waiting)) is not None:
                yield self._do(own, self.loaded, advance)
            elif "done" not in (answer := _checked(self._answers.get())):
                if advance is not None:
                    advance(answer["advance"])
                continue
            else:
                yield answer["done"]
            done += 1

    def _begin(self, jobs: list[Job], others: int) -> queue.SimpleQueue[Job]:
        """Have so many other processes take jobs from a queue, which this one may take from as well."""
        lines = [json.dumps(job) for job in jobs]  # before anything has begun
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for line in lines:
            waiting.put(json.loads(line))
        self._answers, self._heard = queue.SimpleQueue(), []
        # this process is one of the workers: it need not import first
        while len(self._started) < others:
            self._started.append(_start(self._module, self.workers, self._held, self._frugal))
        for process in self._started:
            threading.Thread(target=_feed, args=(process, waiting, self._answers), daemon=True).start()
        return waiting

    def listen(self) -> list[Any]:
        """What the other processes have reported by now: for a job of this one that takes long. Raises as `run`."""
        reports = []
        with suppress(queue.Empty):
            while True:
                answer = _checked(self._answers.get_nowait())
                if "done" in answer:
                    self._heard.append(answer["done"])
                else:
                    reports.append(answer["advance"])
        return reports


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """A report or a result; the error, where it is one."""
    if "refused" in answer:
        kind, *told = answer["refused"]
        raise getattr(errors, kind)(*told)
    if "failed" in answer:
        raise TrainingError(answer["failed"])
    if "advance" not in answer and "done" not in answer:
        raise WorkerError(
            "worker processes that finish",
            answer.get("error", "one that ended early"),
            "run again with fewer workers: into the same folder, what is done is kept",
        )
    return answer


def processes(workers: int | None) -> int:
    """How many processes: one a core where nothing is said. UserError below one.

    >>> processes(3)
    3
    """
    if workers is None:
        return usable_cores()
    if workers < 1:
        raise UserError("at least one worker", str(workers), "leave it out for one a core")
    return workers


def _next(waiting: queue.SimpleQueue[Job]) -> Job | None:
    try:
        return waiting.get_nowait()
    except queue.Empty:
        return None


def environment(threads: int, frugal: bool = True) -> dict[str, str]:
    """That of a worker process: this one's modules, so many threads of polars, and if `frugal` memory that goes back.

    The current folder is left out, as by `-P`: it may hold what somebody else wrote.
    """
    package = str(Path(errors.__file__).parents[1])
    modules = os.pathsep.join([*(path for path in sys.path if path), package])
    ours = {"PYTHONPATH": modules, "POLARS_MAX_THREADS": str(threads), worker.PARENT: str(os.getpid())}
    return _ONE_THREAD | (_FRUGAL if frugal else {}) | os.environ | ours


def _start(module: str, workers: int, held: tuple[int, ...], frugal: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(max(1, processes(None) // workers), frugal),
        pass_fds=held,
        process_group=0,  # whoever interrupts at a terminal means this process, which ends the others
    )


def _feed(
    process: subprocess.Popen[str], waiting: queue.SimpleQueue[Job], answers: queue.SimpleQueue[dict[str, Any]]
) -> None:
    """Give a process one job after the other."""
    try:
        while True:
            job = waiting.get_nowait()
            if process.stdin is None or process.stdout is None:
                return
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                answer = json.loads(line)
                answers.put(answer)
                if "advance" not in answer:
                    break
            else:
                answers.put({"ended": True})
                return
    except queue.Empty:
        return
    except Exception:  # whatever it is, somebody waits for an answer
        answers.put({"ended": True})
