"""Which of the records that share type and id stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrseq.fhir.chunk import Chunk, content
from ehrseq.fhir.columns import series, take
from ehrseq.fhir.ledger import Reason

Ints = npt.NDArray[Any]
SEED = 7
RECORDS_AT_ONCE = 1 << 22  # looked at together for duplicates, for which all ids are read
Dropped = list[dict[int, int]]
"""Of each chunk: the records settled before linking, and why."""


def settle_duplicates(chunks: Sequence[Chunk], file_numbers: list[list[int]]) -> Dropped:
    """Keep one of the records that share type and id: the last updated, then the highest version, then the one with
    the greater content, so that the order of reading does not matter.

    The others get the reason `duplicate`; where a deletion is the newest, nothing of the record is left (`deleted`).
    """
    dropped: Dropped = [{} for _ in chunks]
    for places in repeated(chunks):
        _settle(chunks, file_numbers, places, dropped)
    return dropped


def repeated(chunks: Sequence[Chunk]) -> Iterator[Ints]:
    """The places (chunk and row: (2, n)) of records that share type and id with another, some ids at a time."""
    total = sum(chunk.record_bounds[-1] for chunk in chunks)
    parts = total // RECORDS_AT_ONCE + 1
    for part in range(parts):
        keys, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        for chunk in chunks:
            columns = chunk.columns
            key = series([columns.ids]).to_frame().hash_rows(SEED).to_numpy()
            key = key ^ (columns.records["kind"].astype(np.uint64) << np.uint64(56))
            row = np.flatnonzero(key % np.uint64(parts) == part) if parts > 1 else np.arange(len(key))
            keys.append(key[row])
            rows.append(row.astype(np.int32))
        key = np.concatenate(keys)
        ordered = pl.Series(key).sort().to_numpy()  # three times as fast as numpy
        found = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if len(found):  # hardly ever
            suspect = np.flatnonzero(np.isin(key, found))
            starts = np.cumsum([len(each) for each in keys[1:]])
            yield np.stack([np.searchsorted(starts, suspect, side="right"), np.concatenate(rows)[suspect]])


def _settle(chunks: Sequence[Chunk], file_numbers: list[list[int]], places: Ints, dropped: Dropped) -> None:
    """Settle the records at `places` (chunk and row), among them all that share type and id."""
    parts = []
    for number in np.unique(places[0]).tolist():
        rows = places[1][places[0] == number]
        columns = chunks[number].columns
        records = columns.records[rows]
        parts.append(
            pl.DataFrame(
                {
                    "id": series([take(columns.ids, rows)]),
                    **{name: np.ascontiguousarray(records[name]) for name in ("kind", "updated", "version", "reason")},
                    "file": np.array(file_numbers[number])[records["file"]],
                    "chunk": np.full(len(rows), number),
                    "row": rows,
                }
            )
        )
    frame = pl.concat(parts)
    # content decides only where nothing else does: it is dear to compare
    same = ("kind", "id", "updated", "version")
    ties = frame.filter(pl.struct(same).is_duplicated())
    says = [
        pl.DataFrame({"chunk": n, "row": rows, "content": content(chunks[n], rows)})
        for n in ties["chunk"].unique().sort().to_list()
        for rows in [ties.filter(pl.col("chunk") == n)["row"].to_numpy()]
    ]
    said = pl.concat(says) if says else pl.DataFrame(
        schema={"chunk": pl.Int64, "row": pl.Int64, "content": pl.String}
    )  # fmt: skip
    ranked = frame.join(said.cast({"chunk": pl.Int64}), on=["chunk", "row"], how="left").sort(
        "updated", "version", "content", "reason", "file", "chunk", "row",
        descending=[True, True, True, True, False, False, False],
    )  # fmt: skip
    first = pl.struct("kind", "id").is_first_distinct()
    gone = ranked.with_columns(gone=pl.col("reason").first().over("kind", "id") == int(Reason.DELETED))
    for chunk, row, is_gone in gone.filter(~first).select("chunk", "row", "gone").iter_rows():
        dropped[chunk][row] = int(Reason.DELETED if is_gone else Reason.DUPLICATE)
