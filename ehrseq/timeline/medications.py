"""The codes of Medications, looked up for many events at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

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
    def of(cls, medications: dict[str, list[int]]) -> MedicationIndex:
        """Of the numbers of each one's codes. One without a code has the code 0, none."""
        listed = [codes or [0] for codes in medications.values()]
        sizes = np.array([len(codes) for codes in listed], np.int64)
        names = pl.Series(list(medications), dtype=pl.String)
        keys = names.hash(SEED).to_numpy()
        order = np.argsort(keys)
        codes = np.array([code for codes in listed for code in codes] + [0], np.int32)
        return cls(keys[order], names[places(order)], sizes[order], (np.cumsum(sizes) - sizes)[order], codes)

    def find(self, targets: pl.Series) -> tuple[Ints, Ints]:
        """Of each `Medication/id`: how many codes it has, and where they begin in `codes`.

        >>> index = MedicationIndex.of({"Medication/a": [7], "Medication/b": [3, 4], "Medication/c": []})
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
