"""What travels between stages: everything as bytes in Arrow tables of a few plain columns."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from ehrseq.fhir.columns import buffers
from ehrseq.timeline.parts import Part

TASKS = pa.schema([("task", pa.int32()), ("job", pa.string())])
CHUNKS = pa.schema([("task", pa.int32()), ("part", pa.int32()), ("content", pa.binary())])
# of one shard of subjects: `kind` says what the content is, `place` its order among those of its shard
PIECES = pa.schema([("shard", pa.int32()), ("kind", pa.string()), ("place", pa.int64()), ("content", pa.binary())])
Row = dict[str, Any]


def rows_of(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    """The rows of batches, one by one."""
    for batch in batches:
        yield from batch.to_pylist()


def batch_of(schema: pa.Schema, *row: Any) -> pa.RecordBatch:
    """A batch of one row.

    >>> batch_of(TASKS, 1, "{}").to_pylist()
    [{'task': 1, 'job': '{}'}]
    """
    return pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True))], schema=schema)


def folder_bytes(folder: Path) -> bytes:
    """The files of a folder; equal folders give equal bytes."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return msgspec.msgpack.encode(files)


def write_folder(content: bytes, folder: Path) -> Path:
    """Write what `folder_bytes` read; returns the folder, which must be new."""
    folder.mkdir(parents=True)
    for name, data in msgspec.msgpack.decode(content, type=dict[str, bytes]).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def part_bytes(part: Part) -> bytes:
    """A part as arrays; texts as where each starts, and all put together."""
    arrays: dict[str, Any] = {}
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(value, pa.LargeStringArray):
            arrays[f"{f.name}/starts"], arrays[f"{f.name}/text"] = buffers(value)
        else:
            arrays[f"{f.name}/"] = np.ascontiguousarray(value)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def part_of(content: bytes) -> Part:
    """What `part_bytes` wrote."""
    found: dict[str, Any] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for f in fields(Part):
            if f"{f.name}/" in arrays:
                found[f.name] = arrays[f"{f.name}/"]
                continue
            starts = np.ascontiguousarray(arrays[f"{f.name}/starts"], np.int64)
            buffers = pa.py_buffer(starts), pa.py_buffer(arrays[f"{f.name}/text"])
            found[f.name] = pa.LargeStringArray.from_buffers(len(starts) - 1, *buffers)
    return Part(**found)


def frame_bytes(frame: pl.DataFrame) -> bytes:
    """A frame as an Arrow file; dictionaries as text."""
    file = io.BytesIO()
    plain = frame.with_columns(pl.col(pl.Categorical).cast(pl.String))
    plain.write_ipc(file, compression="zstd", compat_level=pl.CompatLevel.oldest())
    return file.getvalue()


def frame_of(content: bytes) -> pl.DataFrame:
    """What `frame_bytes` wrote."""
    return pl.read_ipc(io.BytesIO(content))


def arrow_schema(schema: Mapping[str, Any]) -> pa.Schema:
    """The Arrow types in which a table leaves for Spark: text with short offsets, times without a zone.

    >>> arrow_schema({"code": pl.String, "time": pl.Datetime("us"), "source": pl.Categorical}).types
    [DataType(string), TimestampType(timestamp[us]), DataType(string)]
    """
    return pa.schema([(name, _arrow_type(kind)) for name, kind in schema.items()])


def _arrow_type(kind: Any) -> pa.DataType:
    if kind in (pl.String, pl.Categorical):
        return pa.string()
    if kind == pl.List(pl.String):
        return pa.list_(pa.string())
    return pl.Series([], dtype=kind).to_arrow(compat_level=pl.CompatLevel.oldest()).type
