"""The codes of Medications, looked up for many events at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrseq.fhir.chunk import open_table
from ehrseq.frames import places
from ehrseq.timeline.duplicates import SEED

Ints = npt.NDArray[Any]


@dataclass(frozen=True)
class MedicationIndex:
    """Medications by the hash of `Medication/id`; what is found by it is found only where the name is the same."""

    keys: npt.NDArray[np.uint64]  # sorted
    names: pl.Series
    sizes: Ints  # how many codes each has: one at least
    begin: Ints  # where they begin in `codes`
    codes: Ints  # the codes of one after the other; the last is 0, for what is unknown

    @classmethod
    def of(cls, names: pl.Series, code: Ints, made_of: Mapping[int, list[int]]) -> MedicationIndex:
        """Of the number of each one's code (0: it has none); of some (by their place) that of several, or of none."""
        sizes = np.ones(len(names), np.int64)
        for place, codes in made_of.items():
            sizes[place] = max(len(codes), 1)
        begin = np.cumsum(sizes) - sizes
        numbers = np.zeros(int(sizes.sum()) + 1, np.int32)
        numbers[begin] = code
        for place, codes in made_of.items():
            numbers[begin[place] : begin[place] + len(codes)] = codes
        keys = names.hash(SEED).to_numpy()
        order = np.argsort(keys)
        return cls(keys[order], names[places(order)], sizes[order], begin[order], numbers)

    def find(self, targets: pl.Series) -> tuple[Ints, Ints]:
        """Of each `Medication/id`: how many codes it has, and where they begin in `codes`.

        >>> names = pl.Series(["Medication/a", "Medication/b", "Medication/c"])
        >>> index = MedicationIndex.of(names, np.array([7, 0, 0]), {1: [3, 4]})
        >>> sizes, begin = index.find(pl.Series(["Medication/b", "Medication/x"]))
        >>> sizes.tolist(), index.codes[begin].tolist()
        ([2, 1], [3, 0])
        """
        if not len(self.keys):
            return np.ones(len(targets), np.int64), np.zeros(len(targets), np.int64)
        wanted = targets.hash(SEED).to_numpy()
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        known = (self.names[places(at)] == targets).to_numpy()
        return np.where(known, self.sizes[at], 1), np.where(known, self.begin[at], len(self.codes) - 1)

    def save(self, path: Path) -> None:
        """Write it for other processes, to a file and one beside it."""
        columns = {"key": self.keys, "name": self.names, "size": self.sizes, "begin": self.begin}
        pl.DataFrame(columns).write_ipc(path, compression="uncompressed")
        np.save(path.with_suffix(".npy"), self.codes)

    @classmethod
    def load(cls, path: Path) -> MedicationIndex:
        """What `save` wrote; most of it stays on disk until it is looked at."""
        table = open_table(path)
        keys, sizes, begin = (table[name].to_numpy() for name in ("key", "size", "begin"))
        return cls(keys, table["name"], sizes, begin, np.load(path.with_suffix(".npy"), allow_pickle=False))
