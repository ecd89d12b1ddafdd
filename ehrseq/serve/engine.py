"""One worker that answers: requests that wait together are scored in one call, in a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from ehrseq.errors import UserError
from ehrseq.estimator import ProgressionModel
from ehrseq.serve.answer import Ask, Part, Reply, answer, read
from ehrseq.serve.metrics import Metrics
from ehrseq.serve.problems import Problem
from ehrseq.serve.settings import Settings

LOG = logging.getLogger("ehrseq.serve")
UNEXPECTED = (Exception, pl.exceptions.PanicException)  # a panic of polars is no Exception
BUSY = {"Retry-After": "1"}
# what the first answer would wait for otherwise: libraries that load on first use
WARM_UP = (
    b'[{"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1960-01-01"}, {"resourceType": '
    b'"Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"}, "subject": {"reference": "Patient/p"}, '
    b'"period": {"start": "2020-01-01", "end": "2020-01-01"}}]'
)


@dataclass(frozen=True)
class Waiting:
    """A request, how its reply becomes bytes, and where they go."""

    ask: Ask
    render: Callable[[Reply], bytes]
    future: asyncio.Future[bytes]


class Engine:
    """Answers requests with one model. `start` and `stop` belong to a running event loop."""

    def __init__(self, model: ProgressionModel, settings: Settings, metrics: Metrics) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics
        self.ready = False
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._unanswered = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forecast")
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Warm the model and begin to answer."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._warm)
        self._worker = loop.create_task(self._work())
        self.ready = True

    async def stop(self) -> None:
        """Answer no more; what waits is told so."""
        self.ready = False
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        while not self._queue.empty():
            _settle(self._queue.get_nowait().future, Problem(503, "the service stops; ask again", BUSY))
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def ask(self, ask: Ask, render: Callable[[Reply], bytes]) -> bytes:
        """The rendered reply. Raises Problem: 429 where too many wait, 503 where it takes too long, 422."""
        if not self.ready:
            raise Problem(503, "the model is not ready yet; ask again", BUSY)
        if self._unanswered >= self.settings.waiting:
            raise Problem(429, "too many requests wait for an answer; ask again", BUSY)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._unanswered += 1
        self.metrics.waiting.set(self._unanswered)
        try:
            self._queue.put_nowait(Waiting(ask, render, future))
            async with asyncio.timeout(self.settings.answer_seconds):
                return await future
        except TimeoutError:
            raise Problem(503, f"no answer within {self.settings.answer_seconds:g} s; ask again", BUSY) from None
        finally:
            self._unanswered -= 1
            self.metrics.waiting.set(self._unanswered)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            await asyncio.sleep(self.settings.batch_seconds)
            while len(batch) < self.settings.batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # whoever gave up is not answered
            batch = [waiting for waiting in batch if not waiting.future.done()]
            if not batch:
                continue
            self.metrics.batch.observe(len(batch))
            results = await loop.run_in_executor(self._thread, _tried, partial(self._answer, batch))
            if isinstance(results, Problem):  # whatever happens, the next ones are answered
                results = [results] * len(batch)
            for waiting, result in zip(batch, results, strict=True):
                _settle(waiting.future, result)

    def _warm(self) -> None:
        with contextlib.suppress(Problem, UserError):
            answer(self.model, [read(Ask(WARM_UP))])

    def _answer(self, batch: Sequence[Waiting]) -> list[Any]:
        """Of each request the bytes, or what to refuse it with."""
        results: list[Any] = [_tried(partial(read, waiting.ask)) for waiting in batch]
        parts = [result for result in results if isinstance(result, Part)]
        replies = _tried(partial(answer, self.model, parts)) if parts else []
        if isinstance(replies, Problem):  # one of them is the reason: the others need not suffer for it
            replies = [_tried(partial(self._alone, part)) for part in parts]
        waiting_replies = iter(replies)
        for i, waiting in enumerate(batch):
            if isinstance(results[i], Part):
                results[i] = self._rendered(waiting, next(waiting_replies))
        return results

    def _alone(self, part: Part) -> Any:
        return answer(self.model, [part])[0]

    def _rendered(self, waiting: Waiting, reply: Any) -> Any:
        if not isinstance(reply, Reply):
            return _as_problem(reply)
        self.metrics.count(reply)
        return _tried(partial(waiting.render, reply))


def _tried(do: Callable[[], Any]) -> Any:
    """What a function gives, or the Problem that it is."""
    try:
        return do()
    except UNEXPECTED as error:
        return _as_problem(error)


def _as_problem(error: BaseException) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, UserError):
        return Problem(422, str(error))
    # neither its text nor its trace is logged: they may quote a record
    LOG.error("an unexpected %s while answering", type(error).__name__)
    return Problem(500, "the service met an unexpected condition; report what was asked")


def _settle(future: asyncio.Future[bytes], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, bytes):
        future.set_result(result)
    else:
        future.set_exception(result)
