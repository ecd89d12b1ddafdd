"""Processes that score for the service, each a plain `python -m ehrseq.serve.worker` with a copy of the model.

Nothing is forked and nothing pickled; a worker ends by itself when the service does. What it prints goes nowhere: the
messages of libraries may quote a record.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ehrseq.errors import WorkerError
from ehrseq.serve.answer import Ask
from ehrseq.serve.scoring import Result
from ehrseq.serve.worker import Begin, receive, send
from ehrseq.timeline.pool import environment

START_SECONDS = 120.0  # in which a worker has to be ready


class Process:
    """A `Scorer` that is a process: started by `start`, again too, and ended when it answers too late."""

    def __init__(self, folder: Path, folder_hash: str | None, threads: int, answer_seconds: float) -> None:
        """`answer_seconds`: in which requests that it is given together have to be answered; nobody waits longer."""
        self._begin = Begin(str(folder.absolute()), folder_hash, threads)
        self._answer_seconds = answer_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._used = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The number of the process, where there is one."""
        process = self._process
        return None if process is None else process.pid

    def alive(self) -> bool:
        """Whether the process runs."""
        process = self._process
        return process is not None and process.poll() is None

    def start(self) -> None:
        """Start the process, unless it runs, and wait until its model is warm. Raises WorkerError where it is not."""
        with self._used:
            if self.alive():
                return
            self._end()
            with self._within(START_SECONDS):
                self._process = self._opened()
                asks, answers = self._pipes()
                send(asks, self._begin)
                asks.flush()
                told = receive(answers, str)
            if told:
                self._end()
                raise WorkerError("a worker that can begin", f"one that was refused: {told}", "put the folder right")

    def score(self, asks: Sequence[Ask]) -> list[Result]:
        """Of each request the answer, or what it is refused with. Raises WorkerError where the process ended."""
        with self._used, self._within(self._answer_seconds):
            to, answers = self._pipes()
            send(to, len(asks))
            for ask in asks:
                send(to, ask)
            to.flush()
            return [receive(answers, Result) for _ in asks]

    def close(self) -> None:
        """End the process for good, whatever it is doing."""
        self._closed = True
        self._kill()
        with self._used:
            self._end()

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """End the process after a time. Whatever goes wrong, the process is gone then: what it has not sent yet would
        answer the next one. WorkerError where it is the process that went wrong."""
        late = threading.Timer(seconds, self._kill)
        late.daemon = True
        late.start()
        try:
            yield
        except BaseException as error:
            status = self._end()
            if not isinstance(error, (OSError, EOFError, ValueError)):  # ValueError: no message, or a closed pipe
                raise
            found = type(error).__name__ if status is None else f"exit status {status}"
            if late.finished.is_set():
                found = f"none after {seconds:g} s"
            raise WorkerError("a worker that answers", f"one that ended ({found})", "ask again") from None
        finally:
            late.cancel()

    def _opened(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise EOFError("closed")
        # in a group of its own: an interrupt at the terminal lets the service end, which then ends it
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ehrseq.serve.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=environment(self._begin.threads), process_group=0,
        )  # fmt: skip

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """To and from the process."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EOFError("no process")
        return process.stdin, process.stdout

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()

    def _end(self) -> int | None:
        """End the process and forget it; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a request that the process did not live to read
                    pipe.close()
        return status


def start_all(workers: Sequence[Process]) -> None:
    """Start processes, all at the same time. Raises WorkerError where one cannot begin."""
    with ThreadPoolExecutor(len(workers)) as threads:
        try:
            list(threads.map(Process.start, workers))
        except BaseException:  # an interrupt too: the threads wait for their processes
            for worker in workers:
                worker.close()
            raise
