"""Timelines as a MEDS dataset folder: which tables it holds, how they are written and how they are read.

    data/0.parquet ... 63.parquet      events; one subject in one file, contiguous, sorted by time
    metadata/codes.parquet             code, description, parent_codes
    metadata/dataset.json              name, version and the columns beyond MEDS
    metadata/subject_splits.parquet    where splits are known
    subjects.parquet ledger.parquet quarantine.parquet sources.parquet    what MEDS has no place for
    manifest.json                      the hash of every file

Equal content gives equal bytes: rows are in one order, dictionaries are numbered by it, and nothing is
stamped with the time of writing. (The bytes may differ between versions of pyarrow.)
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrseq import __version__
from ehrseq.errors import TimelineError
from ehrseq.storage import MANIFEST, atomic_folder, read_json, read_manifest, write_json, write_manifest
from ehrseq.timeline.schema import (
    CODE_SCHEMA,
    EVENT_SCHEMA,
    SPLIT_SCHEMA,
    SUBJECT_SCHEMA,
    conform,
    event_order,
    in_order,
    normalise_events,
)

KIND = "timelines"
FORMAT_VERSION = 1
SHARDS = 64
MEDS_VERSION = "0.4.1"
DATASET = "metadata/dataset.json"
CODES = "metadata/codes.parquet"
SPLITS_FILE = "metadata/subject_splits.parquet"
SUBJECTS = "subjects.parquet"
RECORD_TABLES = ("ledger", "quarantine", "sources", "units")
TABLE_SCHEMAS: dict[str, dict[str, Any]] = {
    SUBJECTS: SUBJECT_SCHEMA,
    SPLITS_FILE: SPLIT_SCHEMA,
    CODES: CODE_SCHEMA,
}
ROW_GROUP = 1 << 18
DATASET_KEYS = ("dataset_name", "dataset_version", "license", "location_uri", "description_uri")

Dataset = tuple[pl.DataFrame, dict[str, pl.DataFrame], dict[str, Any]]
"""Events in canonical order, the other tables by file name, plain metadata."""


def shard_of(subject_ids: pl.Series) -> npt.NDArray[np.uint64]:
    """The shard (0 to `SHARDS` - 1) of each subject: the splitmix64 hash of its id, so that it never changes.

    >>> shard_of(pl.Series([1, 2, 3])).tolist()
    [1, 14, 45]
    """
    return shards_of(subject_ids.to_numpy())


def shards_of(subject_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """The same for an array."""
    with np.errstate(over="ignore"):
        h = subject_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (h ^ (h >> np.uint64(31))) % np.uint64(SHARDS)


def write_dataset(
    folder: str | Path, events: pl.DataFrame, tables: dict[str, pl.DataFrame], metadata: dict[str, Any]
) -> None:
    """Write a dataset folder whole or not at all.

    `events` is in canonical order; `tables` maps file names (`subjects.parquet`, ...) to frames, in an order of
    their own; `metadata` holds plain JSON values.
    """
    with atomic_folder(folder, "timelines") as scratch:
        (scratch / "data").mkdir()
        (scratch / "metadata").mkdir()
        write_shards(events, scratch / "data")
        write_tables(scratch, tables, metadata, events.height)


def write_tables(folder: Path, tables: dict[str, pl.DataFrame], metadata: dict[str, Any], events: int) -> None:
    """Write everything but the events, which are there; the manifest last."""
    for name, table in tables.items():
        write_table(table, folder / name)
    write_json(folder / DATASET, _dataset_facts(metadata))
    write_manifest(folder, KIND, FORMAT_VERSION, subjects=tables[SUBJECTS].height, events=events, metadata=metadata)


def read_ours(folder: Path) -> Dataset:
    """A folder that `write_dataset` wrote; every file's hash is checked first."""
    manifest = read_manifest(folder, KIND, FORMAT_VERSION, TimelineError)
    names = [name for name in manifest["files"] if name.endswith(".parquet")]
    shards = [name for name in names if name.startswith("data/")]
    if len(shards) != SHARDS or not {SUBJECTS, CODES} <= set(names) or not isinstance(manifest.get("metadata"), dict):
        raise _damaged("manifest.json", "a list without some of the dataset's files")
    events = pl.concat(read_table(folder / name, EVENT_SCHEMA) for name in shards)
    # each shard is in canonical order: only the subjects need bringing together
    events = in_order(events, np.argsort(events["subject_id"].to_numpy(), kind="stable"))
    events = events.with_columns(pl.col("subject_id").set_sorted())
    tables = {name: read_table(folder / name, TABLE_SCHEMAS.get(name)) for name in names if name not in shards}
    return events, tables, manifest["metadata"]


def read_foreign(folder: Path) -> Dataset:
    """Any other MEDS dataset: its events, its code and split tables (where there), its dataset facts."""
    files = sorted((folder / "data").rglob("*.parquet"))
    events = pl.concat(normalise_events(read_columns(file, EVENT_SCHEMA, None)) for file in files)
    events = in_order(events, event_order(events))
    names = [name for name in (CODES, SPLITS_FILE) if (folder / name).is_file()]
    tables = {name: read_table(folder / name, TABLE_SCHEMAS[name]) for name in names}
    facts = read_json(folder / DATASET, TimelineError) if (folder / DATASET).is_file() else {}
    if not isinstance(facts, dict):
        raise _damaged(DATASET, "JSON that is no object")
    return events, tables, {key: facts[key] for key in DATASET_KEYS if isinstance(facts.get(key), str)}


def is_ours(folder: Path) -> bool:
    """Whether a folder is one that `write_dataset` wrote, whole or damaged."""
    return (folder / MANIFEST).is_file() or (folder / SUBJECTS).is_file()


def read_table(path: Path, schema: dict[str, Any] | None, groups: list[int] | None = None) -> pl.DataFrame:
    """A parquet table (or some of its row groups), in the columns and types of `schema` where one is given."""
    frame = read_columns(path, schema, groups)
    return frame if schema is None else conform(frame, schema, path.stem)


def groups_with(path: Path, low: int, high: int) -> list[int]:
    """The row groups of a parquet file that may hold subjects with ids between `low` and `high`."""
    try:
        facts = pq.read_metadata(path)
        return [g for g in range(facts.num_row_groups) if _may_hold(facts.row_group(g), low, high)]
    except (OSError, pa.ArrowException) as error:
        raise _damaged("a parquet table", type(error).__name__) from None


def read_columns(path: Path, schema: dict[str, Any] | None, groups: list[int] | None) -> pl.DataFrame:
    """The columns of a parquet file that are in `schema` (None: all)."""
    try:
        with pq.ParquetFile(path) as file:
            columns = None if schema is None else [c for c in file.schema_arrow.names if c in schema]
            table = file.read(columns) if groups is None else file.read_row_groups(groups, columns)
        # text that is not UTF-8, in values or metadata, must stop here: polars does not expect it
        table.validate(full=True)
        frame = pl.from_arrow(table.replace_schema_metadata(None))
    except (OSError, ValueError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise _damaged("a parquet table", type(error).__name__) from None
    if not isinstance(frame, pl.DataFrame):
        raise _damaged("a parquet table", "a single column")
    return frame


def _may_hold(group: Any, low: int, high: int) -> bool:
    """Whether a row group can have subject ids between two: so where it does not tell."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "subject_id" and column.is_stats_set and column.statistics.has_min_max:
            return bool(column.statistics.min <= high and column.statistics.max >= low)
    return True


def _damaged(expected: str, found: str) -> TimelineError:
    return TimelineError(
        f"{expected} as MEDS describes it",
        found,
        "the folder was changed or cut short: copy or make it again",
    )


def write_shards(events: pl.DataFrame, folder: Path, first: int = 0, last: int = SHARDS) -> None:
    """Write the events of some shards (`first` up to, not including, `last`): each shard's are in canonical order."""
    shard = shards_of(events["subject_id"].to_numpy()).astype(np.uint16)
    if (shard[1:] < shard[:-1]).any():
        order = np.argsort(shard, kind="stable")
        events, shard = events[order], shard[order]
    bounds = np.searchsorted(shard, np.arange(first, last + 1)).tolist()
    for number, (start, stop) in enumerate(pairwise(bounds), first):
        write_table(events[start:stop], folder / f"{number}.parquet")
        pa.default_memory_pool().release_unused()  # a file needs 2 MB of it at a time, and leaves 30 unused


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write a parquet file, one row group at a time (a group's strings stay below Arrow's 2 GiB)."""
    schema = pa.schema([(name, _arrow_type(name, kind)) for name, kind in frame.schema.items()])
    # ids and times are nearly all different: a dictionary of them is built for nothing
    encoded = [name for name in schema.names if name not in ("resource_id", "time", "known_time")]
    ordered = [name for name in ("subject_id", "time", "known_time") if name in schema.names]
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=encoded, write_statistics=ordered or False
    ) as writer:
        for start in range(0, frame.height, ROW_GROUP):
            writer.write_table(_to_arrow(frame[start : start + ROW_GROUP], schema))


def _to_arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    columns = [
        _numbered(series)
        if pa.types.is_dictionary(kind)
        # text by way of `large_string`: Arrow's own way from polars' views takes twice as long
        else series.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(kind)
        for series, kind in zip(frame, schema.types, strict=True)
    ]
    return pa.table(columns, schema=schema)


def _numbered(names: pl.Series) -> pa.DictionaryArray:
    """Categories numbered by first appearance: a polars dictionary lists every one of the process."""
    found = names.to_physical().to_arrow().dictionary_encode()
    first = pl.Series(found.dictionary).cat.to(names.dtype).cast(pl.String)
    return pa.DictionaryArray.from_arrays(found.indices, first.to_arrow().cast(pa.string()))


@cache
def _arrow_type(name: str, kind: pl.DataType) -> pa.DataType:
    """The Arrow type MEDS asks for."""
    if isinstance(kind, pl.Categorical | pl.Enum):
        return pa.dictionary(pa.int32(), pa.string())
    if kind == pl.String:
        return pa.large_string() if name == "text_value" else pa.string()
    if kind == pl.List(pl.String):
        return pa.list_(pa.string())
    arrow: pa.DataType = pl.Series([], dtype=kind).to_arrow().type
    return arrow


def _dataset_facts(metadata: dict[str, Any]) -> dict[str, Any]:
    """The content of `dataset.json`; without `created_at`, which would make equal datasets differ."""
    return {key: metadata[key] for key in DATASET_KEYS if key in metadata} | {
        "etl_name": "ehrseq",
        "etl_version": __version__,
        "meds_version": MEDS_VERSION,
        "raw_source_id_columns": ["encounter_id", "resource_id"],
        "code_modifier_columns": ["unit", "value_modifier"],
        "other_extension_columns": [
            "known_time",
            "time_source",
            "time_precision",
            "utc_offset",
            "resource_type",
            "other_codes",
            "unit_recorded",
        ],
    }
