"""Who answers which request, and when: requests that wait together are scored in one call by whoever is idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ehrseq.errors import WorkerError
from ehrseq.serve.answer import Ask
from ehrseq.serve.metrics import Metrics
from ehrseq.serve.problems import Problem
from ehrseq.serve.scoring import UNEXPECTED, Answered, Refused, Result, Scorer, refused
from ehrseq.serve.settings import Settings

LOG = logging.getLogger("ehrseq.serve")
BUSY = {"Retry-After": "1"}
LOOK_SECONDS = 1.0  # how often an idle scorer is looked at
PATIENCE = 6  # failures, after which the time between two tries to start one, 1 s, 3 s, 7 s, ..., grows no more


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request, and where its answer goes."""

    ask: Ask
    future: asyncio.Future[bytes]
    done: Callable[[], None]
    """Called once, when nothing of the request is held any more."""
    since: float
    """When it came, by the loop's clock."""


class Engine:
    """Answers requests with scorers of one model. `start` and `stop` belong to a running event loop."""

    def __init__(self, scorers: Sequence[Scorer], settings: Settings, metrics: Metrics) -> None:
        self.scorers, self.settings, self.metrics = scorers, settings, metrics
        self._queue: deque[Waiting] = deque()
        self._came = asyncio.Event()
        self._pace = 0.0  # seconds of a scorer that a request took of late
        self._unanswered = 0
        self._idle = self._live = 0  # scorers
        self._threads = ThreadPoolExecutor(len(scorers), thread_name_prefix="forecast")
        self._serving: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether there is anybody to answer."""
        return self._live > 0

    async def start(self) -> None:
        """Begin to answer, once all scorers can. Raises WorkerError where one cannot."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, scorer.start) for scorer in self.scorers))
        self._live = len(self.scorers)
        self._serving = [loop.create_task(self._serve(scorer)) for scorer in self.scorers]

    async def stop(self) -> None:
        """Answer no more; what waits is told so."""
        self._live = 0
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        while self._queue:
            waiting = self._queue.popleft()
            _settle(waiting.future, Refused(503, "the service stops; ask again", BUSY))
            waiting.done()
        for scorer in self.scorers:
            scorer.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def check(self) -> None:
        """Raise Problem where no request can be taken: 503 where nobody can answer, 429 where too many wait."""
        if not self.ready:
            raise Problem(503, "the model is not ready yet; ask again", BUSY)
        # whoever would wait for longer than an answer may take is told so at once
        late = self._unanswered * self._pace / self._live > self.settings.answer_seconds
        if late or self._unanswered >= self.settings.waiting:
            raise Problem(429, "too many requests wait for an answer; ask again", BUSY)

    async def ask(self, ask: Ask, done: Callable[[], None]) -> bytes:
        """The answer; `done` is called when the request is held no more, which may be after a timeout.

        Raises Problem: 429 where too many wait, 503 where it takes too long or the scorer ends, 422.
        """
        try:
            self.check()
        except Problem:
            done()
            raise
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        waiting = Waiting(ask, future, done, loop.time())
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

    async def _serve(self, scorer: Scorer) -> None:
        """Have one scorer answer; where it ends it is started again, ever later if it ends without having answered."""
        failures = 0
        while True:
            while batch := await self._share(scorer):
                if await self._settle_all(scorer, batch):
                    failures = 0
                del batch  # nothing is held while the next ones are waited for
            self._live -= 1
            LOG.error("a worker ended; another is started")
            while not scorer.alive():
                await asyncio.sleep(2**failures - 1)
                failures = min(PATIENCE, failures + 1)
                try:
                    await asyncio.get_running_loop().run_in_executor(self._threads, scorer.start)
                except WorkerError as error:
                    LOG.error("no worker could be started: %s", error)
                except UNEXPECTED as error:
                    LOG.error("no worker could be started: %s", type(error).__name__)
            self._live += 1

    async def _share(self, scorer: Scorer) -> list[Waiting]:
        """What an idle scorer is to answer next, when there is anything: as much as the other idle ones; none if it
        ended. The last idle one leaves a request alone for `batch_seconds` to a second one, or to a scorer that is
        done meanwhile: two together cost little more than one, and scorers at work slow each other down."""
        self._idle += 1
        clock = asyncio.get_running_loop().time
        try:
            while scorer.alive():
                alone = len(self._queue) == 1 and self._idle == 1 < self._live
                left = self._queue[0].since + self.settings.batch_seconds - clock() if alone else 0.0
                if self._queue and left <= 0:
                    share = min(self.settings.batch, -(-len(self._queue) // self._idle))
                    if self._pace:  # who would take too long together is answered in smaller numbers
                        share = min(share, max(1, int(self.settings.answer_seconds / self._pace)))
                    return [self._queue.popleft() for _ in range(share)]
                self._came.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left if alone else LOOK_SECONDS):
                        await self._came.wait()
            return []
        finally:
            self._idle -= 1

    async def _settle_all(self, scorer: Scorer, batch: list[Waiting]) -> bool:
        """Have a scorer answer these; whether it did."""
        self.metrics.batch.observe(len(batch))
        loop = asyncio.get_running_loop()
        begun, asks = loop.time(), [waiting.ask for waiting in batch]
        results: Sequence[Result] = [Refused(503, "the service stops; ask again", BUSY)] * len(batch)
        ended = False
        try:
            results = await loop.run_in_executor(self._threads, scorer.score, asks)
        except WorkerError as error:
            ended = True
            LOG.error("no answer: %s", error)
            results = [Refused(503, "the process that was to answer ended; ask again", BUSY)] * len(batch)
        except UNEXPECTED as error:  # whatever happens, the next ones are answered
            results = [refused(error)] * len(batch)
        finally:  # and when the service stops
            for waiting, result in zip(batch, results, strict=True):
                waiting.done()
                _settle(waiting.future, result)
        each = (loop.time() - begun) / len(batch)
        if ended:  # perhaps for taking too long: fewer at once, and sooner a 429
            self._pace = max(self._pace, 2 * each)
        else:
            self._pace = each if not self._pace else (2 * self._pace + each) / 3
        for result in results:
            if isinstance(result, Answered):
                self.metrics.count(result.counts)
        for fault in {result.fault for result in results} - {""}:
            LOG.error("an unexpected %s while answering", fault)
        return not ended


def _settle(future: asyncio.Future[bytes], result: Result) -> None:
    if future.done():
        return
    if isinstance(result, Answered):
        future.set_result(result.content)
    else:
        future.set_exception(Problem(result.status, result.text, result.headers))
