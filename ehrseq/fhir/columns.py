"""The long columns of a chunk, and the one file that holds them.

Records and events lie row by row, so that a partition is one stretch of the file: linking a few shards touches their
rows and nothing else, however many times the file is opened.
"""

from __future__ import annotations

import mmap
from array import array
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ehrseq.frames import places

RECORD = np.dtype(
    [
        ("subject", "<i4"),  # number of the reference
        ("encounter", "<i4"),  # number of the reference
        ("reason", "u1"),
        ("kind", "u1"),  # index into TYPES
        ("file", "<i4"),
        ("updated", "<i8"),
        ("version", "<i8"),  # meta.versionId where it is a number, else -1
    ]
)
EVENT = np.dtype(
    [
        ("record", "<i4"),  # row in the chunk
        ("code", "<i4"),  # negative: -1 - the number of the reference to a Medication
        ("start", "<i8"),  # times in microseconds
        ("end", "<i8"),
        ("known", "<i8"),
        ("precision", "u1"),
        ("offset", "<i2"),
        ("unreadable", "?"),  # a time was written but is none
        ("source", "u1"),
        ("number", "<f8"),
        ("text", "<i4"),  # numbers of texts
        ("modifier", "<i4"),
        ("unit", "<i4"),
    ]
)
REFERENCE = np.dtype([("subject_id", "<i8"), ("points_at", "u1")])  # as `references.points_at` says
_FIXED = {"records": RECORD, "events": EVENT, "references": REFERENCE}
_STRINGS = ("ids", "names", "texts")
_ALIGNED = 8


@dataclass(frozen=True)
class Columns:
    """Rows of RECORD and EVENT by partition; REFERENCE and texts by number."""

    records: npt.NDArray[np.void]
    events: npt.NDArray[np.void]
    references: npt.NDArray[np.void]
    ids: pa.LargeStringArray  # of records
    names: pa.LargeStringArray  # of references: `Type/id`, or as written where it points at nothing
    texts: pa.LargeStringArray

    def save(self, path: Path) -> None:
        """Write everything; equal columns give equal bytes."""
        parts: list[Any] = [np.ascontiguousarray(getattr(self, name)) for name in _FIXED]
        for name in _STRINGS:
            parts += buffers(getattr(self, name))
        with path.open("wb") as file:
            file.write(np.array([part.nbytes for part in parts], "<i8").tobytes())
            for part in parts:
                file.write(part.data)
                file.write(bytes(-part.nbytes % _ALIGNED))

    @classmethod
    def open(cls, path: Path) -> Columns:
        """What `save` wrote. Its bytes stay on disk until they are looked at, and count as memory from then on."""
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sizes = np.frombuffer(content, "<i8", len(_FIXED) + 2 * len(_STRINGS)).tolist()
        at = 8 * len(sizes)
        parts = []
        for size in sizes:
            parts.append((at, size))
            at += size + -size % _ALIGNED
        found: dict[str, Any] = {
            name: np.frombuffer(content, kind, size // kind.itemsize, at)
            for (name, kind), (at, size) in zip(_FIXED.items(), parts, strict=False)
        }
        whole = pa.py_buffer(content)
        for name, offsets, text in zip(_STRINGS, parts[len(_FIXED) :: 2], parts[len(_FIXED) + 1 :: 2], strict=True):
            count = offsets[1] // 8 - 1
            found[name] = pa.LargeStringArray.from_buffers(count, whole.slice(*offsets), whole.slice(*text))
        return cls(**found)


def whole(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The same rows without their fields, one by one of which numpy would copy them (ten times slower)."""
    return rows.view(f"V{rows.dtype.itemsize}")


def copied(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The rows in memory of their own."""
    return whole(rows).copy().view(rows.dtype)


def joined(stretches: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The arrays, of rows or of numbers, one after the other."""
    if stretches[0].dtype.names is None:
        return np.concatenate(stretches)
    return np.concatenate([whole(rows) for rows in stretches]).view(stretches[0].dtype)


def buffers(strings: pa.LargeStringArray) -> list[npt.NDArray[Any]]:
    """Where each string starts, from 0, and all of them put together."""
    _, offsets, text = strings.buffers()
    bounds = np.frombuffer(offsets, "<i8", len(strings) + 1, 8 * strings.offset) if offsets else np.zeros(1, "<i8")
    content = np.frombuffer(text, "u1") if text else np.zeros(0, "u1")
    return [bounds - bounds[0], content[bounds[0] : bounds[-1]]]


class Gathered:
    """Strings that come a batch at a time, put together at once: as objects of their own they would lie scattered among
    whatever is decoded and let go in the meantime, and slow that down.

    >>> column = Gathered()
    >>> column.extend(["a", "", "\u00e9"])
    ('a\u00e9', [1, 0, 1])
    >>> column.take().to_pylist(), len(column)
    (['a', '', '\u00e9'], 0)
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._sizes = array("I")

    def __len__(self) -> int:
        return len(self._sizes)

    def extend(self, items: list[str]) -> tuple[str, list[int]]:
        """Add strings; all of them put together, and how many letters each has."""
        text, letters = "".join(items), list(map(len, items))
        self._sizes.extend(array("I", letters if text.isascii() else list(map(len, map(str.encode, items)))))
        self._texts.append(text)
        return text, letters

    def take(self) -> pa.LargeStringArray:
        """All strings, which are then no longer here."""
        size, text = len(self._sizes), pa.py_buffer("".join(self._texts).encode())
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._sizes, dtype=np.int64)])
        self._texts.clear()
        del self._sizes[:]
        return pa.LargeStringArray.from_buffers(size, pa.py_buffer(bounds), text)


def strings(items: pl.Series | list[str]) -> pa.LargeStringArray:
    """Texts as one array."""
    # not `pa.array`, which imports pandas to see whether it was given some of its own
    return pl.Series(items, dtype=pl.String).to_arrow(compat_level=pl.CompatLevel.oldest())


def take(items: pa.LargeStringArray, numbers: npt.NDArray[Any]) -> pa.LargeStringArray:
    """Some of the strings, in memory of their own."""
    wanted = np.ascontiguousarray(numbers, np.int64)
    return items.take(pa.Array.from_buffers(pa.int64(), len(wanted), [None, pa.py_buffer(wanted)]))


def stretch(items: pa.LargeStringArray, low: int, high: int) -> pa.LargeStringArray:
    """The strings from one number up to another, in memory of their own."""
    bounds, text = buffers(items[low:high])
    return pa.LargeStringArray.from_buffers(high - low, pa.py_buffer(bounds), pa.py_buffer(text.copy()))


def series(parts: list[pa.LargeStringArray]) -> pl.Series:
    """Strings as a Series, one array after the other."""
    return pl.Series(pa.chunked_array(parts, pa.large_string()), dtype=pl.String).rechunk()


def nullable(numbers: npt.NDArray[Any], none: int | np.signedinteger[Any]) -> pl.Series:
    """Numbers as a Series, null where they are `none`.

    >>> nullable(np.array([7, -1]), -1).to_list()
    [7, None]
    """
    series = pl.Series(numbers)
    at = np.flatnonzero(numbers == none)
    return series.scatter(places(at), None) if len(at) else series


@dataclass(frozen=True)
class EventColumns:
    """Events column by column, as linking works on them. The fields of EVENT."""

    record: npt.NDArray[np.int64]
    code: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    known: npt.NDArray[np.int64]
    precision: npt.NDArray[np.uint8]
    offset: npt.NDArray[np.int16]
    unreadable: npt.NDArray[np.bool_]
    source: npt.NDArray[np.uint8]
    number: npt.NDArray[np.float64]
    text: npt.NDArray[np.int32]
    modifier: npt.NDArray[np.int32]
    unit: npt.NDArray[np.int32]

    @classmethod
    def of(cls, rows: npt.NDArray[np.void]) -> EventColumns:
        """The columns of rows."""
        return cls(**{f.name: np.ascontiguousarray(rows[f.name]) for f in fields(cls)})

    def keep(self, which: npt.NDArray[np.bool_]) -> EventColumns:
        """Some of the events."""
        if which.all():
            return self
        return EventColumns(**{f.name: getattr(self, f.name)[which] for f in fields(self)})
