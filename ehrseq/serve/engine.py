"""One worker that answers: requests that wait together are scored in one call, in a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl

from ehrseq.errors import UserError
from ehrseq.estimator import ProgressionModel
from ehrseq.serve.answer import INCLUDES, Ask, Part, Reply, answer, read
from ehrseq.serve.metrics import Metrics
from ehrseq.serve.problems import Problem
from ehrseq.serve.render import as_json
from ehrseq.serve.settings import Settings
from ehrseq.timeline.schema import BIRTH_CODE

LOG = logging.getLogger("ehrseq.serve")
UNEXPECTED = (Exception, pl.exceptions.PanicException)  # a panic of polars is no Exception
BUSY = {"Retry-After": "1"}
# what the first answer would wait for otherwise: libraries that load on first use
WARM_UP = (
    b'[{"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1960-01-01"}, {"resourceType": '
    b'"Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"}, "subject": {"reference": "Patient/p"}, '
    b'"period": {"start": "2020-01-01", "end": "2020-01-01"}}]'
)


def warm(model: ProgressionModel) -> None:
    """Answer once with all that can be asked for, about someone with a code that the model knows."""
    with contextlib.suppress(Problem, UserError):
        part = read(Ask(WARM_UP, include=frozenset(INCLUDES)))
        known = [code for code in model.fitted_.vocabulary.codes if code != BIRTH_CODE]
        events = part.timelines.events
        code = pl.when(pl.col("code") == BIRTH_CODE).then("code").otherwise(pl.lit(known[0] if known else ""))
        part.timelines = replace(part.timelines, events=events.with_columns(code=code))
        [reply] = answer(model, [part])
        if isinstance(reply, Reply):
            as_json(reply, WARM_UP, INCLUDES)


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request, how its reply becomes bytes, and where they go."""

    ask: Ask
    render: Callable[[Reply], bytes]
    future: asyncio.Future[bytes]
    done: Callable[[], None]
    """Called once, when nothing of the request is held any more."""


class Engine:
    """Answers requests with one model. `start` and `stop` belong to a running event loop."""

    def __init__(self, model: ProgressionModel, settings: Settings, metrics: Metrics) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics
        self.ready = False
        self._queue: deque[Waiting] = deque()
        self._came = asyncio.Event()
        self._pace = 0.0  # seconds that a request took of late
        self._unanswered = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forecast")
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Warm the model and begin to answer."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, warm, self.model)
        self._worker = loop.create_task(self._work())
        self.ready = True

    async def stop(self) -> None:
        """Answer no more; what waits is told so."""
        self.ready = False
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        while self._queue:
            waiting = self._queue.popleft()
            _settle(waiting.future, Problem(503, "the service stops; ask again", BUSY))
            waiting.done()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def check(self) -> None:
        """Raise Problem where no request can be taken: 503 before the start, 429 where too many wait."""
        if not self.ready:
            raise Problem(503, "the model is not ready yet; ask again", BUSY)
        # whoever would wait for longer than an answer may take is told so at once
        late = self._unanswered * self._pace > self.settings.answer_seconds
        if late or self._unanswered >= self.settings.waiting:
            raise Problem(429, "too many requests wait for an answer; ask again", BUSY)

    async def ask(self, ask: Ask, render: Callable[[Reply], bytes], done: Callable[[], None]) -> bytes:
        """The rendered reply; `done` is called when the request is held no more, which may be after a timeout.

        Raises Problem: 429 where too many wait, 503 where it takes too long, 422.
        """
        try:
            self.check()
        except Problem:
            done()
            raise
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting = Waiting(ask, render, future, done)
        self._unanswered += 1
        self.metrics.waiting.set(self._unanswered)
        try:
            self._queue.append(waiting)
            self._came.set()
            async with asyncio.timeout(self.settings.answer_seconds):
                return await future
        except TimeoutError:
            raise Problem(503, f"no answer within {self.settings.answer_seconds:g} s; ask again", BUSY) from None
        finally:
            if waiting in self._queue:  # given up before its turn; what is being scored is done with after that
                self._queue.remove(waiting)
                done()
            self._unanswered -= 1
            self.metrics.waiting.set(self._unanswered)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                await self._came.wait()
                await asyncio.sleep(self.settings.batch_seconds)  # who came meanwhile has waited for others already
            batch = [self._queue.popleft() for _ in range(min(self.settings.batch, len(self._queue)))]
            if not self._queue:
                self._came.clear()
            if batch:
                await self._settle_all(batch, loop)
            del batch  # nothing is held while the next ones are waited for

    async def _settle_all(self, batch: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        self.metrics.batch.observe(len(batch))
        begun = loop.time()
        try:
            results = await loop.run_in_executor(self._thread, _tried, partial(self._answer, batch))
        finally:
            for waiting in batch:
                waiting.done()
        each = (loop.time() - begun) / len(batch)
        self._pace = each if not self._pace else (2 * self._pace + each) / 3
        if isinstance(results, Problem):  # whatever happens, the next ones are answered
            results = [results] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            _settle(waiting.future, result)

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
