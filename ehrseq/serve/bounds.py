"""How much a caller may send: the body's size, its packing, its depth, and how often."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from ehrseq.fhir.documents import is_deeper
from ehrseq.serve.problems import Problem
from ehrseq.serve.settings import Settings

JSON_TYPES = ("application/json", "application/fhir+json", "application/json+fhir")
CALLERS = 10_000  # whose rates are kept
PIECE = 1 << 16
BRACKETS = 12  # of a record, on the average of a document; FHIR has about 8
REPEATS = 10  # records of one Patient
_RECORD = re.compile(rb'"resourceType"|[\[,]\s*(?:\{\s*\}|\[|\d|[ntf])')  # or an item that is none
_PATIENT = re.compile(rb'"resourceType"\s*:\s*"Patient"')


class Held:
    """How many bytes of bodies are held; more than allowed are refused."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0

    @contextmanager
    def room(self) -> Iterator[Callable[[int], None]]:
        """Take room by calling with a number of bytes; it is given back at the end."""
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            if self.now + size > self.most:
                raise Problem(429, "too much is waiting for an answer; ask again", {"Retry-After": "1"})
            self.now += size
            mine += size

        try:
            yield take
        finally:
            self.now -= mine


def check_type(content_type: str | None) -> None:
    """Raise Problem 415 unless a body is said to be JSON in UTF-8."""
    kind, *parameters = (content_type or "").lower().split(";")
    sets = [p.partition("=")[2].strip(' "') for p in parameters if p.strip().startswith("charset")]
    if kind.strip() not in JSON_TYPES or any(s not in ("utf-8", "utf8", "us-ascii") for s in sets):
        raise Problem(415, "expected JSON in UTF-8 (application/json or application/fhir+json); found another type")


async def read_body(
    pieces: AsyncIterator[bytes], encoding: str | None, length: str | None, settings: Settings,
    take: Callable[[int], None],
) -> bytes:  # fmt: skip
    """A whole body, unpacked, within the limits of size and time; `take` is told of every byte that is kept."""
    kind = (encoding or "identity").strip().lower()
    if kind not in ("identity", "gzip"):
        raise Problem(415, "expected no content encoding, or gzip; found another")
    if length is not None and length.isdecimal() and int(length) > settings.body_bytes:
        raise _too_large(settings)
    unpack = Inflater(settings.body_bytes) if kind == "gzip" else None
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for piece in pieces:
                for part in [piece] if unpack is None else unpack.feed(piece):
                    if unpack is not None:
                        await asyncio.sleep(0)  # others get on while a piece that holds much is unpacked
                    if len(body) + len(part) > settings.body_bytes:
                        raise _too_large(settings)
                    take(len(part))
                    body += part
    except TimeoutError:
        raise Problem(
            408, f"expected the whole body within {settings.body_seconds:g} s", {"Connection": "close"}
        ) from None
    if unpack is not None and not unpack.complete:
        raise Problem(400, "expected a whole gzip stream and nothing after it; found another body")
    return bytes(body)


class Inflater:
    """Unpacks gzip a little at a time, so that what expands too far is refused before it takes memory."""

    def __init__(self, most: int) -> None:
        self._most, self._stream = most, zlib.decompressobj(wbits=31)

    @property
    def complete(self) -> bool:
        """Whether the stream ended, and nothing came after it."""
        return self._stream.eof and not self._stream.unused_data

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The unpacked parts of a piece, each no more than PIECE bytes."""
        if self._stream.eof and piece:
            raise Problem(400, "expected a whole gzip stream and nothing after it; found another body")
        waiting = piece
        while waiting and not self._stream.eof:
            try:
                part = self._stream.decompress(waiting, PIECE)
            except zlib.error:
                raise Problem(400, "expected gzip as the content encoding says; found another body") from None
            waiting = self._stream.unconsumed_tail
            if part:
                yield part


def check_shape(body: bytes, settings: Settings) -> None:
    """Refuse a document that would take long to read for its size, before it is read.

    Raises Problem: 400 where it is nested deeper than FHIR needs, 413 where it has more records than allowed or more
    brackets than these could have, 422 where it has far more Patients than allowed (one may come more than once).
    """
    if (
        body.count(b"{") + body.count(b"[") > BRACKETS * settings.records
        or len(_RECORD.findall(body)) > settings.records
    ):
        raise Problem(413, f"expected at most {settings.records:,} records; found more; send fewer at once")
    if is_deeper(body, settings.depth):
        raise Problem(400, f"expected JSON of at most {settings.depth} brackets within brackets; found more")
    if len(_PATIENT.findall(body)) > REPEATS * settings.patients:
        raise Problem(422, f"expected at most {settings.patients} patients; found far more; send fewer at once")


def _too_large(settings: Settings) -> Problem:
    return Problem(
        413, f"expected at most {settings.body_bytes:,} bytes, unpacked; found more; send fewer patients at once",
        {"Connection": "close"},
    )  # fmt: skip


class Rates:
    """How often each caller may ask: a bucket that fills evenly."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._most = per_minute / 60, max(1.0, per_minute / 10)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, caller: str) -> None:
        """Count a request; raises Problem 429 where there were too many."""
        if not self._per_second:
            return
        now = self._clock()
        left, then = self._buckets.pop(caller, (self._most, now))
        left = min(self._most, left + (now - then) * self._per_second)
        allowed = left >= 1
        self._buckets[caller] = (left - 1 if allowed else left, now)
        if len(self._buckets) > CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait = int((1 - left) / self._per_second) + 1
            raise Problem(429, "too many requests; ask again later", {"Retry-After": str(wait)})
