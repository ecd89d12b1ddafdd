"""Requests that are answered together: read apart, scored in one call, and written as bytes.

This is the same in the service's own process and in its workers (`worker`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import msgspec
import polars as pl

from ehrseq.errors import UserError
from ehrseq.estimator import ProgressionModel
from ehrseq.frames import in_this_thread
from ehrseq.serve.answer import INCLUDES, Ask, Part, Reply, answer, read
from ehrseq.serve.hooks import NO_CARDS, as_cards
from ehrseq.serve.problems import NoForecast, Problem
from ehrseq.serve.render import as_fhir, as_json
from ehrseq.timeline.schema import BIRTH_CODE

UNEXPECTED = (Exception, pl.exceptions.PanicException)  # a panic of polars is no Exception
# what the first answer would wait for otherwise: libraries that load on first use
WARM_UP = (
    b'[{"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1960-01-01"}, {"resourceType": '
    b'"Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"}, "subject": {"reference": "Patient/p"}, '
    b'"period": {"start": "2020-01-01", "end": "2020-01-01"}}]'
)


class Counts(msgspec.Struct, frozen=True):
    """What an answer holds, for the metrics."""

    scored: int = 0
    skipped: dict[str, int] = {}
    unseen: int = 0


class Answered(msgspec.Struct, frozen=True, tag=True):
    """The answer to a request, as it is sent."""

    content: bytes
    counts: Counts = Counts()
    fault: str = ""
    """The type of an error that all together met, and this one alone did not."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """What a request is refused with, as in `Problem`."""

    status: int
    text: str
    headers: dict[str, str] = {}
    fault: str = ""
    """Of a fault of our own the type of the error: its text may quote a record."""


Result = Answered | Refused


class Scorer(Protocol):
    """What answers requests, here or elsewhere; its calls take a while and belong in a thread."""

    def start(self) -> None:
        """Be ready to answer, again where it ended. Raises WorkerError where it cannot."""

    def alive(self) -> bool:
        """Whether it can answer."""

    def score(self, asks: Sequence[Ask]) -> list[Result]:
        """Of each request the answer, or what it is refused with. Raises WorkerError where it ended meanwhile."""

    def close(self) -> None:
        """Answer no more."""


class Here:
    """Scores in the service's own process."""

    def __init__(self, model: ProgressionModel) -> None:
        self.model = model

    def start(self) -> None:
        """Warm the model."""
        warm(self.model)

    def alive(self) -> bool:
        """It lives as long as the service."""
        return True

    def score(self, asks: Sequence[Ask]) -> list[Result]:
        """As the function `score`."""
        return score(self.model, asks)

    def close(self) -> None:
        """There is nothing to end."""


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


def score(model: ProgressionModel, asks: Sequence[Ask]) -> list[Result]:
    """Of each request the answer, or what it is refused with."""
    return in_this_thread(partial(_score, model, asks))


def _score(model: ProgressionModel, asks: Sequence[Ask]) -> list[Result]:
    results: list[Any] = [_tried(partial(read, ask)) for ask in asks]
    parts = [result for result in results if isinstance(result, Part)]
    replies: Any = _tried(partial(answer, model, parts)) if parts else []
    fault = ""
    if isinstance(replies, Refused):  # one of them is the reason: the others need not suffer for it
        fault = replies.fault
        replies = [_tried(partial(_alone, model, part)) for part in parts]
    reply_of_next = iter(replies)
    for i, ask in enumerate(asks):
        if isinstance(results[i], Part):
            results[i] = _tried(partial(written, ask, next(reply_of_next)))
            if fault and isinstance(results[i], Answered):
                results[i] = msgspec.structs.replace(results[i], fault=fault)
    return results


def _alone(model: ProgressionModel, part: Part) -> Reply | NoForecast:
    return answer(model, [part])[0]


def written(ask: Ask, reply: Reply | NoForecast | Refused) -> Result:
    """A reply in the form that was asked for."""
    if isinstance(reply, Refused):
        return reply
    if isinstance(reply, NoForecast):
        return Answered(NO_CARDS) if ask.form == "cards" else refused(reply)
    if ask.form == "cards":
        content = as_cards(reply, ask)
    elif ask.form == "fhir":
        content = as_fhir(reply)
    else:
        content = as_json(reply, ask.document, ask.include)
    return Answered(content, counts_of(reply))


def counts_of(reply: Reply) -> Counts:
    """What a reply holds."""
    skipped = dict(reply.forecast.skipped["reason"].value_counts().iter_rows())
    return Counts(reply.forecast.risk["subject_id"].n_unique(), skipped, int(reply.unseen["events"].sum()))


def _tried(do: Callable[[], Any]) -> Any:
    """What a function gives, or why it is refused."""
    try:
        return do()
    except UNEXPECTED as error:
        return refused(error)


def refused(error: BaseException) -> Refused:
    """What a request is told of an error: of one that is not the caller's nothing, since its text may quote a record.

    >>> refused(KeyError("a name")).text
    'the service met an unexpected condition; report what was asked'
    """
    if isinstance(error, Problem):
        return Refused(error.status, error.text, error.headers)
    if isinstance(error, UserError):
        return Refused(422, str(error))
    text = "the service met an unexpected condition; report what was asked"
    return Refused(500, text, fault=type(error).__name__)
