"""The columns that the one decode pass fills: plain integer arrays, with text and times numbered by first appearance.

A time, code, unit or reference is written many times; each is kept once, in a `Pool`, and parsed or looked up once.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import Struct
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehrseq.fhir.clock import NO_DATE, NO_TIME, UNTOLD, Instants, parse_column
from ehrseq.fhir.codes import CodingPreference
from ehrseq.fhir.columns import EVENT, RECORD, Gathered, buffers
from ehrseq.fhir.resource import READ_TYPES

Key = TypeVar("Key", bound=Hashable)
FLUSH_EVENTS = 1 << 16
_EVENT = Struct("=iiiiBdiii")
PACKED = np.dtype(
    [
        ("record", "=i4"),
        ("code", "=i4"),
        ("time", "=i4"),
        ("known", "=i4"),
        ("source", "u1"),
        ("number", "=f8"),
        ("text", "=i4"),
        ("modifier", "=i4"),
        ("unit", "=i4"),
    ]
)

TIME_SOURCES = (
    "", "effective", "issued", "onset", "abatement", "recorded", "period", "authored", "handed_over", "prepared",
    "asserted", "performed", "occurrence", "birth_date", "deceased", "encounter",
    "billed", "collected", "created", "identified", "received", "started", "used", "report",
)  # fmt: skip
(
    STATIC, EFFECTIVE, ISSUED, ONSET, ABATEMENT, RECORDED, PERIOD, AUTHORED, HANDED_OVER, PREPARED,
    ASSERTED, PERFORMED, OCCURRENCE, BIRTH_DATE, DECEASED, ENCOUNTER,
    BILLED, COLLECTED, CREATED, IDENTIFIED, RECEIVED, STARTED, USED, REPORT,
) = range(len(TIME_SOURCES))  # fmt: skip

TYPES = tuple(READ_TYPES)
TYPE_NUMBER = {name: number for number, name in enumerate(TYPES)}


class Pool(dict[Key, int], Generic[Key]):
    """Numbers things by first appearance: `pool[thing]` gives a thing's number, a new one if need be.

    >>> pool = Pool([None])
    >>> pool["a"], pool["b"], pool["a"], pool[None]
    (1, 2, 1, 0)
    """

    def __init__(self, first: list[Key]) -> None:
        super().__init__((thing, number) for number, thing in enumerate(first))

    def __missing__(self, thing: Key) -> int:
        number = self[thing] = len(self)
        return number


class ReferencePool(Pool[str | None]):
    """References by number of first appearance; inside a bundle, what its entries are called stands for them.

    A bundle's own names come first, and end with it: the same `urn:uuid:` may mean another thing in another bundle.

    >>> pool = ReferencePool()
    >>> with pool.scope({"urn:uuid:1": "Patient/a"}):
    ...     pool["urn:uuid:1"], pool["Patient/a"]
    (1, 1)
    >>> pool["urn:uuid:1"], pool.names
    (2, [None, 'Patient/a', 'urn:uuid:1'])
    """

    def __init__(self) -> None:
        super().__init__([None])
        self.names: list[str | None] = [None]  # by number
        self._scope: dict[str, str] = {}

    def __missing__(self, thing: str | None) -> int:
        target = self._scope.get(thing or "")
        if target is not None and target != thing:
            number = self[thing] = self[target]
            return number
        number = self[thing] = len(self.names)
        self.names.append(thing)
        return number

    def in_scope(self, written: str) -> str:
        """What a reference stands for in the bundle being read, without giving it a number."""
        return self._scope.get(written, written)

    @contextmanager
    def scope(self, names: dict[str, str]) -> Iterator[None]:
        """Let `names` (as written -> `Type/id`) stand for what they name, for a while."""
        # a name already known from outside keeps its number, but means something else in here
        outside = {name: self.pop(name) for name in names if name in self and names[name] != name}
        before, self._scope = self._scope, names
        try:
            yield
        finally:
            self._scope = before
            for name, target in names.items():
                if name != target:
                    self.pop(name, None)
            self.update(outside)


@dataclass
class PatientFacts:
    """What a Patient record says beyond its events."""

    record: int
    id: str
    sex: str | None
    race: str | None
    ethnicity: str | None
    birth: str | None
    death: str | None
    identifiers: list[str]
    deceased: bool = False  # whether the record says that there was a death, dated or not


@dataclass
class MedicationFacts:
    """A Medication record: its code's number (0: none) and what it is made of."""

    record: int
    id: str
    code: int
    ingredient_codes: list[int]
    ingredient_references: list[str]
    kind: str = "Medication"  # or Device, DeviceOrdered, DeviceSupplied, of which others speak in the same way


class Rows:
    """Everything that reading fills. Events go in through `add`, records through the lists of the same name."""

    def __init__(self, coding: CodingPreference | None = None) -> None:
        self.coding = coding or CodingPreference()
        self.times: Pool[str | None] = Pool([None])  # of the current stretch only
        self.dates = Gathered()  # more of them, each as often as it comes: -1 - the index is its number
        self.texts: Pool[str | None] = Pool([None])  # values, modifiers, units
        self.codes: Pool[str | None] = Pool([None])
        self.references = ReferencePool()
        self.record_id = Gathered()
        self.record_subject = array("I")  # much faster to fill than one of "i"
        self.record_encounter = array("I")
        self.record_reason = array("B")
        self.record_kind = array("B")
        self.record_file = array("i")
        self.record_updated = array("i")
        self.record_version = array("q")
        self.records = 0
        self.event_stretches: list[npt.NDArray[np.void]] = []  # rows of EVENT; `record` is the row of the record
        self.record_stretches: list[npt.NDArray[np.void]] = []  # rows of RECORD
        self.id_stretches: list[pa.LargeStringArray] = []
        self.patients: list[PatientFacts] = []
        self.encounters: list[tuple[int, str, str | None, str | None]] = []  # record, id, start, end
        self.medications: list[MedicationFacts] = []
        self.results: list[tuple[int, str, str, str]] = []  # report's record, its result's Type/id, time, known
        # record, reference, start, end
        self.research_subjects: list[tuple[int, int, str | None, str | None]] = []
        self.full_urls: dict[str, str] = {}  # of bundle entries -> Type/id, empty where it is not one thing
        self.links: list[tuple[int, str, str, str]] = []  # of patients: record, replaced-by or replaces, own, other
        self.counts: Counter[tuple[int, str, int]] = Counter()  # fates settled while reading
        self.quarantine: list[tuple[int, int, int, int]] = []  # file, member, line, reason
        self._events = bytearray()
        self.append = self._events.extend  # many events at once, each packed as PACKED
        self.add = _adder(self._events)

    def add_record(self, name: str, kind: int, file: int, reason: int, updated: str | None) -> None:
        """A record that has no events and names nobody: a deletion."""
        self.record_id.extend([name])
        self.record_subject.append(0)
        self.record_encounter.append(0)
        self.record_reason.append(reason)
        self.record_kind.append(kind)
        self.record_file.append(file)
        self.record_updated.append(self.times[updated] if updated else -1)
        self.record_version.append(-1)
        self.records += 1

    def flush(self) -> None:
        """Turn what has been gathered into numpy columns, once it is long enough."""
        if len(self._events) >= FLUSH_EVENTS * _EVENT.size:
            self.finish([])

    def finish(self, written: list[str | None]) -> Instants:
        """The same of what there is, and the times of some texts: all are parsed at once."""
        first = len(self.dates)  # of the times that are numbered by first appearance
        self.dates.extend([time or "" for time in (*self.times, *written)])
        dates = self.dates.take()
        instants = parse_column(dates)
        packed = np.frombuffer(bytes(self._events), PACKED)
        time, known = (np.where(n < 0, -1 - n, first + n) for n in (packed["time"], packed["known"]))
        events = np.empty(len(packed), EVENT)
        for name in ("record", "code", "source", "number", "text", "modifier", "unit"):
            events[name] = packed[name]
        for name in ("start", "end", "precision", "offset"):
            events[name] = getattr(instants, name)[time]
        events["known"] = instants.end[known]
        events["unreadable"] = (packed["time"] != 0) & (events["precision"] == 0)
        # where what says since when it was known is no time, it is not since it happened: nobody can tell
        length = np.diff(buffers(dates)[0])
        for at in np.flatnonzero((events["known"] == NO_TIME) & (length[known] > 0)).tolist():
            if not dates[known[at]].as_py().startswith(NO_DATE):
                events["known"][at] = UNTOLD
        self.event_stretches.append(events)
        records = np.empty(len(self.record_id), RECORD)
        for name in ("subject", "encounter", "reason", "kind", "file", "version"):
            records[name] = getattr(self, f"record_{name}")
        records["updated"] = _last_updated(instants.end[first:], np.array(self.record_updated))
        self.record_stretches.append(records)
        self.id_stretches.append(self.record_id.take())
        own = first + len(self.times)
        self.times = Pool([None])
        self._events.clear()
        for column in (
            self.record_subject,
            self.record_encounter,
            self.record_reason,
            self.record_kind,
            self.record_file,
            self.record_updated,
            self.record_version,
        ):
            del column[:]
        return instants[own:]


def _last_updated(instants: npt.NDArray[np.int64], number: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """When records were last updated; -1 stands for a deletion without a time, which is the last word."""
    updated: npt.NDArray[np.int64] = np.where(number < 0, np.iinfo(np.int64).max, instants[np.maximum(number, 0)])
    return updated


def _adder(buffer: bytearray) -> Callable[..., None]:
    """A function that appends one event to a buffer; packing it whole is twice as fast as filling nine columns."""
    extend, pack = buffer.extend, _EVENT.pack

    def add(
        record: int,
        code: int,
        time: int,
        known: int,
        source: int,
        number: float = np.nan,
        text: int = 0,
        modifier: int = 0,
        unit: int = 0,
    ) -> None:
        """Append an event; `time`, `known`, `text`, ... are numbers in the pools (0: none)."""
        extend(pack(record, code, time, known, source, number, text, modifier, unit))

    return add
