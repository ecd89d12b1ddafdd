"""What the chunks hold for some shards: their stretches of records and events, cut out and put together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ehrseq.fhir.chunk import Chunk
from ehrseq.fhir.columns import EVENT, Columns, copied, joined, series, stretch, strings, take, whole
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.references import A_PATIENT, UNKNOWN, points_at, subject_number
from ehrseq.timeline.meds import SHARDS, shards_of
from ehrseq.timeline.survey import Survey

Ints = npt.NDArray[Any]


@dataclass
class Part:
    """What one chunk has for some shards, in memory of its own: nothing here is looked at before all are together."""

    ids: pa.LargeStringArray  # of each record, as are the arrays up to `stay`
    kind: npt.NDArray[np.uint8]
    file: Ints
    reason: Ints
    subject: npt.NDArray[np.int64]  # 0: none
    why_none: npt.NDArray[np.uint8]
    stay: Ints  # index into the next two
    stays: pa.LargeStringArray  # `Encounter/id`, or the name of a result that its report dates
    points_at: npt.NDArray[np.uint8]
    # codes as the survey numbers them; one below 0 is no longer -1 - the number of a reference, but -1 - an index into
    # `medications`
    events: npt.NDArray[np.void]
    medications: pa.LargeStringArray  # `Medication/id`
    texts: pa.LargeStringArray


def parts_of(chunk: Chunk, number: int, survey: Survey, first: int, last: int) -> Iterator[Part]:
    """What a chunk has for some shards, partition by partition."""
    columns, resolved = chunk.columns, survey.resolved[number]
    if not resolved and not len(survey.merged):
        # every record lies in its own shard's partition; those of nobody are counted with the first shard
        for low, high in [(first, last)] + [(SHARDS, SHARDS + 1)] * (first == 0):
            yield from _part(chunk, columns, number, survey, columns.references["subject_id"], (low, high), None)
        return
    subject = columns.references["subject_id"].copy()
    for at, target in resolved.items():
        subject[at] = subject_number(target) if target.startswith("Patient/") else 0
    partition = shards_of(subject)
    subject = survey.find_subject(subject)
    home = np.where(subject == 0, 0, shards_of(subject)).astype(np.int64)
    wanted = (home >= first) & (home < last)
    # a partition holds its own shard's records, but for those whose patient was found or merged later
    elsewhere = set(partition[wanted & (home != partition)].tolist()) - set(range(first, last))
    for low, high in [(first, last), *((p, p + 1) for p in sorted(elsewhere)), (SHARDS, SHARDS + 1)]:
        yield from _part(chunk, columns, number, survey, subject, (low, high), wanted)


def _part(
    chunk: Chunk,
    columns: Columns,
    number: int,
    survey: Survey,
    subject: npt.NDArray[np.int64],
    partitions: tuple[int, int],
    wanted: npt.NDArray[np.bool_] | None,
) -> Iterator[Part]:
    """The records of some partitions whose subject's reference is wanted (None: all); nothing where there are none."""
    low, high = (chunk.record_bounds[p] for p in partitions)
    if low == high:
        return
    records = copied(columns.records[low:high])
    events = copied(columns.events[slice(*(chunk.event_bounds[p] for p in partitions))])
    events["record"] -= low
    reason = records["reason"].copy()
    dropped, reasons = survey.dropped[number]
    inside = slice(*np.searchsorted(dropped, (low, high)))
    reason[dropped[inside] - low] = reasons[inside]
    ids = stretch(columns.ids, low, high)
    if wanted is not None and not (keep := wanted[records["subject"]]).all():
        records, reason, ids = records.compress(keep), reason[keep], take(ids, np.flatnonzero(keep))
        events = events.compress(keep[events["record"]])
        events["record"] = (np.cumsum(keep) - 1)[events["record"]]
    if not len(records):
        return
    resolved, points = survey.resolved[number], columns.references["points_at"]
    if resolved:
        points = points.copy()
        points[list(resolved)] = [points_at(target) for target in resolved.values()]
    aims = points[records["subject"]]
    why_none = np.where((aims == UNKNOWN) | (aims == A_PATIENT), Reason.UNKNOWN_SUBJECT, Reason.NOT_A_PATIENT)
    why_none[records["subject"] == 0] = Reason.NO_SUBJECT
    stays, stay = _used(records["encounter"], len(subject))
    medications = _named_medications(events, columns, number, survey)
    used = np.zeros(len(columns.texts), bool)
    used[0] = True
    for name in _TEXTS:
        used[events[name]] = True
    place = np.cumsum(used, dtype=np.int32) - 1
    for name in _TEXTS:
        events[name] = place[events[name]]
    yield Part(
        ids=ids,
        kind=records["kind"].copy(),
        file=np.array(survey.file_numbers[number], np.int32)[records["file"]],
        reason=reason,
        subject=subject[records["subject"]],
        why_none=why_none.astype(np.uint8),
        stay=stay,
        stays=_names(stays, columns, resolved),
        points_at=points[stays],
        events=events,
        medications=medications,
        texts=take(columns.texts, np.flatnonzero(used)),
    )


_TEXTS = ("text", "modifier", "unit")


def _used(numbers: Ints, size: int) -> tuple[Ints, Ints]:
    """The numbers (below `size`) that occur, sorted, and the place of each among them (`np.unique`, sooner)."""
    is_used = np.zeros(size, bool)
    is_used[numbers] = True
    place = np.cumsum(is_used, dtype=np.int32) - 1
    return np.flatnonzero(is_used), place[numbers]


def _names(numbers: Ints, columns: Columns, resolved: dict[int, str]) -> pa.LargeStringArray:
    """References by number: `Type/id`, or as written where that is unknown."""
    names = take(columns.names, numbers)
    if resolved.keys().isdisjoint(numbers.tolist()):
        return names
    return strings([resolved.get(n, name) for n, name in zip(numbers.tolist(), names.to_pylist(), strict=True)])


def _named_medications(
    events: npt.NDArray[np.void], columns: Columns, number: int, survey: Survey
) -> pa.LargeStringArray:
    """Number the codes of events as the survey does; the names of the Medications that some refer to in their place."""
    written = events["code"]
    pending = np.flatnonzero(written < 0)
    code = survey.code_numbers[number][np.maximum(written, 0)]
    if not len(pending):
        events["code"] = code
        return strings([])
    used, which = _used(-1 - written[pending], len(columns.names))
    code[pending] = -1 - which
    events["code"] = code
    return _names(used, columns, survey.resolved[number])


def resolve_medications(parts: list[Part], survey: Survey) -> npt.NDArray[np.void]:
    """The events of all parts, with codes alone: a reference to a Medication gives none (0), one, or several events."""
    before = np.cumsum([0] + [len(part.medications) for part in parts])
    shift = np.repeat(before[:-1], [len(part.events) for part in parts])
    index = survey.medications
    size, begin = index.find(series([part.medications for part in parts]))
    events = together(parts, "events")
    code = events["code"].copy()
    pending = np.flatnonzero(code < 0)
    which = shift[pending] - 1 - code[pending]
    if (size == 1).all():
        code[pending] = index.codes[begin[which]]
        events["code"] = code
        return events
    repeats = np.ones(len(code), np.int64)
    repeats[pending] = size[which]
    is_reference = np.repeat(code < 0, repeats)
    events = np.repeat(whole(events), repeats).view(EVENT)
    events["code"] = np.repeat(code, repeats)
    # the dose of a mixture is nobody's dose
    mixed = is_reference & (np.repeat(repeats, repeats) > 1)
    events["number"][mixed] = np.nan
    for name in _TEXTS:
        events[name][mixed] = 0
    # the codes of one Medication lie one after the other: of each event the place of its own
    begin, many = begin[which], size[which]
    place = np.arange(many.sum()) + np.repeat(begin - (np.cumsum(many) - many), many)
    events["code"][is_reference] = index.codes[place]
    return events


def texts_of(parts: list[Part]) -> pl.Series:
    """The texts of all parts, of which the first of each stands for none; records and texts of events numbered
    through."""
    records, texts, firsts = 0, 0, []
    for part in parts:
        part.events["record"] += records
        for name in _TEXTS:
            part.events[name] += texts
        firsts.append(texts)
        records += len(part.kind)
        texts += len(part.texts)
    return series([part.texts for part in parts]).scatter(firsts, None)


def together(parts: list[Part], name: str) -> npt.NDArray[Any]:
    """The arrays of this name one after the other; the parts let go of them."""
    arrays = [getattr(part, name) for part in parts]
    for part in parts:
        delattr(part, name)
    return joined(arrays)


def nothing() -> Part:
    """The part that holds no records."""
    none, byte, text = np.zeros(0, np.int64), np.zeros(0, np.uint8), strings([])
    return Part(text, byte, none, byte, none, byte, none, text, byte, np.zeros(0, EVENT), text, strings([""]))
