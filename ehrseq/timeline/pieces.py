"""A timelines folder in pieces of some thousand subjects: what is read at once, whatever the size of the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ehrseq.errors import TimelineError
from ehrseq.fhir.source import state_on_disk
from ehrseq.storage import DIGEST, MANIFEST, read_json
from ehrseq.timeline import meds
from ehrseq.timeline.schema import EVENT_SCHEMA, SUBJECT_SCHEMA, conform, normalise_events, sort_events
from ehrseq.timeline.store import Timelines
from ehrseq.timeline.subjects import derive_subjects

SUBJECTS, EVENTS = 2048, 200_000  # of a piece, at most (but for a single subject)
WIDEST = (-(2**63), 2**63 - 1)


@dataclass(frozen=True)
class Piece:
    """The subjects in some files of events whose ids are between `low` and `high`; `size` is how many.

    `shards` are the numbers of these files in a dataset of ours, and empty in another MEDS dataset.
    """

    files: tuple[str, ...]
    shards: tuple[int, ...]
    low: int
    high: int
    size: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Piece:
        """What `to_dict` wrote."""
        facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**facts)


@dataclass(frozen=True)
class Group:
    """Files that hold all events of some subjects: their ids, sorted, and the number of events."""

    files: tuple[str, ...]
    shards: tuple[int, ...]
    ids: NDArray[np.int64]
    events: int

    @property
    def weight(self) -> float:
        """How many pieces it makes."""
        return max(len(self.ids) / SUBJECTS, self.events / EVENTS)


class Folder:
    """A timelines folder, or another MEDS dataset, that is read in pieces. Its hashes are not checked here."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.ours = meds.is_ours(self.folder)
        self._people: tuple[tuple[int, ...], pl.DataFrame] | None = None
        self.metadata: dict[str, Any] = {}
        if self.ours:
            manifest = read_json(self.folder / MANIFEST, TimelineError)
            self.metadata = dict(manifest.get("metadata", {}))
        if (self.folder / meds.CODES).is_file():
            self.metadata["codes"] = meds.read_table(self.folder / meds.CODES, meds.TABLE_SCHEMAS[meds.CODES])

    def fingerprint(self) -> str:
        """The same only for the same events and subjects."""
        if self.ours:
            return str(read_json(self.folder / MANIFEST, TimelineError)[DIGEST])
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        facts = [(p.relative_to(self.folder).as_posix(), state_on_disk(p)) for p in files]
        return sha256(json.dumps(facts).encode()).hexdigest()

    def subject_ids(self) -> NDArray[np.int64]:
        """The ids of all subjects of a dataset of ours, sorted: eight bytes a subject."""
        ids = pq.read_table(self.folder / meds.SUBJECTS, columns=["subject_id"])["subject_id"].to_numpy()
        return np.sort(ids).astype(np.int64)

    def names(self) -> pl.DataFrame:
        """`subject_id` and `patient` of everyone, sorted; of another MEDS dataset read from the column of ids alone."""
        if self.ours:
            return meds.read_table(
                self.folder / meds.SUBJECTS, {c: SUBJECT_SCHEMA[c] for c in ("subject_id", "patient")}
            )
        ids = pl.concat(self._ids(path).unique() for path in self._foreign_files()).unique().sort()
        return pl.DataFrame({"subject_id": ids}).with_columns(patient=pl.col("subject_id").cast(pl.String))

    def _foreign_files(self) -> list[Path]:
        return sorted((self.folder / "data").rglob("*.parquet"))

    def _ids(self, path: Path) -> pl.Series:
        """The subject of each event of a file."""
        return meds.read_table(path, {"subject_id": pl.Int64})["subject_id"]

    def pieces(self) -> list[Piece]:
        """What to read at once: whole small files together, or parts of a large one. The same for the same folder."""
        out: list[Piece] = []
        held: list[Group] = []

        def flush() -> None:
            if held:
                files, shards = (tuple(x for g in held for x in getattr(g, n)) for n in ("files", "shards"))
                out.append(Piece(files, shards, *WIDEST, sum(len(g.ids) for g in held)))
                held.clear()

        for group in self._groups():
            if held and sum(g.weight for g in held) + group.weight > 1:
                flush()
            if group.weight <= 1:
                held.append(group)
                continue
            parts = np.split(group.ids, cuts(self._events_of(group)))
            out += [Piece(group.files, group.shards, int(ids[0]), int(ids[-1]), len(ids)) for ids in parts]
        flush()
        return [piece for piece in out if piece.size]

    def _groups(self) -> Iterator[Group]:
        if self.ours:
            ids = self.subject_ids()
            shard = meds.shards_of(ids)
            for number in range(meds.SHARDS):
                name = f"data/{number}.parquet"
                events = pq.read_metadata(self.folder / name).num_rows
                yield Group((name,), (number,), ids[shard == number], events)
            return
        found = []
        for path in self._foreign_files():
            column = self._ids(path)
            found.append(Group((path.relative_to(self.folder).as_posix(),), (), column.unique().sort().to_numpy(),
                               len(column)))  # fmt: skip
        ids = np.concatenate([g.ids for g in found])
        if len(np.unique(ids)) == len(ids):
            yield from found
        else:  # a subject in several files: no file can be read alone
            names = tuple(name for g in found for name in g.files)
            yield Group(names, (), np.unique(ids), sum(g.events for g in found))

    def _events_of(self, group: Group) -> NDArray[np.int64]:
        """How many events each subject of a group has."""
        counts = np.zeros(len(group.ids), np.int64)
        for name in group.files:
            ids, n = np.unique(self._ids(self.folder / name).to_numpy(), return_counts=True)
            counts[np.searchsorted(group.ids, ids)] += n
        return counts

    def read(self, piece: Piece) -> Timelines:
        """The timelines of a piece's subjects, as `Timelines.load` has them."""
        inside = pl.col("subject_id").is_between(piece.low, piece.high)
        parts = []
        for path in (self.folder / name for name in piece.files):
            groups = meds.groups_with(path, piece.low, piece.high)
            rows = meds.read_columns(path, EVENT_SCHEMA, groups)
            parts.append(conform(rows, EVENT_SCHEMA, "event") if self.ours else normalise_events(rows))
        events = pl.concat(part.filter(inside) for part in parts)
        if not self.ours:
            events = sort_events(events)
            return Timelines(events, derive_subjects(events), metadata=self.metadata)
        # each shard is in canonical order: only the subjects need bringing together
        events = events.sort("subject_id", maintain_order=True)
        return Timelines(events, self._of_shards(piece.shards).filter(inside), metadata=self.metadata)

    def _of_shards(self, shards: tuple[int, ...]) -> pl.DataFrame:
        """The subjects of some shards; those of the last ones asked for are kept, as pieces of a shard follow."""
        if self._people is None or self._people[0] != shards:
            path = self.folder / meds.SUBJECTS
            with pq.ParquetFile(path) as file:
                groups = range(file.num_row_groups)
            parts = (meds.read_table(path, SUBJECT_SCHEMA, [group]) for group in groups)
            self._people = shards, pl.concat(p.filter(pl.Series(_in_shards(p["subject_id"], shards))) for p in parts)
        return self._people[1]


def cuts(events: NDArray[np.int64]) -> list[int]:
    """Where to cut subjects with so many events each into pieces, each as large as it may be.

    >>> cuts(np.array([150_000, 60_000, 1, 500_000, 3]))
    [1, 3, 4]
    """
    total = np.cumsum(events)
    found: list[int] = []
    start = 0
    while True:
        before = total[start - 1] if start else 0
        fits = int(np.searchsorted(total, before + EVENTS, side="right"))
        start = max(min(fits, start + SUBJECTS), start + 1)
        if start >= len(events):
            return found
        found.append(start)


def _in_shards(ids: pl.Series, shards: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.isin(meds.shard_of(ids), shards)
