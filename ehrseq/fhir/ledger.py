"""What became of every record: one fate each, with a reason from one fixed list.

A *record* is one resource of the input, one bundle (a container of others), one unreadable line, or one file that
holds no FHIR. Fates: `events` (at least one event came of it), `skipped`, `quarantined` (it could not be read). The
counts add up to the input exactly.
"""

from __future__ import annotations

from collections import Counter
from enum import IntEnum, unique

import polars as pl

LEDGER_SCHEMA = {
    "file_number": pl.Int32,
    "resource_type": pl.String,  # empty where it is not known
    "fate": pl.String,
    "reason": pl.String,  # empty for events
    "count": pl.Int64,
}
QUARANTINE_SCHEMA = {
    "file_number": pl.Int32,
    "member": pl.Int32,  # of an archive, from 1 in the order in which they are stored; 0 where the file is none
    "line": pl.Int64,  # of the file or member, from 1; in a document or bundle: the entry's number
    "reason": pl.String,
}
SOURCE_SCHEMA = {"file_number": pl.Int32, "path": pl.String}


@unique
class Reason(IntEnum):
    """Why a record gave no event. `docs/timeline.md` says what each means."""

    EVENTS = 0  # it did
    # the record itself
    ENTERED_IN_ERROR = 1
    NOT_DONE = 2
    PLANNED = 3
    REFUTED = 4
    MODIFIER_EXTENSION = 5
    NO_CODE = 6
    # after linking
    DUPLICATE = 7
    NO_SUBJECT = 8
    NOT_A_PATIENT = 9
    UNKNOWN_SUBJECT = 10
    UNKNOWN_MEDICATION = 11
    NO_TIME = 12
    INVALID_TIME = 13
    BEFORE_BIRTH = 14
    AFTER_DEATH = 15
    NO_FACTS = 16
    ENCOUNTER_OPEN = 29
    # the kind of record
    CONTAINER = 17
    REFERENCE_DATA = 18
    FOLLOW_UP = 19
    FINANCIAL = 20
    INFRASTRUCTURE = 21
    TYPE_NOT_READ = 22
    NOT_FHIR = 23
    DELETED = 24
    MERGED = 40  # a patient merged into another
    RESTATED = 41
    ADMINISTRATIVE = 42
    # quarantined
    MALFORMED_JSON = 64
    INVALID_FIELD = 65
    NO_RESOURCE_TYPE = 66
    TRUNCATED_FILE = 67
    DAMAGED_FILE = 68
    TOO_DEEP = 69
    TOO_LARGE = 70
    EXPANDS_TOO_FAR = 71
    TOO_MANY_MEMBERS = 72
    NESTED_ARCHIVE = 73
    UNSUPPORTED_ARCHIVE = 74

    @property
    def label(self) -> str:
        """The reason as the ledger writes it.

        >>> Reason.NOT_A_PATIENT.label, Reason.EVENTS.label
        ('not_a_patient', '')
        """
        return self.name.lower() if self else ""

    @property
    def fate(self) -> str:
        """`events`, `skipped` or `quarantined`."""
        if not self:
            return "events"
        return "quarantined" if self >= Reason.MALFORMED_JSON else "skipped"


def ledger_frame(counts: Counter[tuple[int, str, int]]) -> pl.DataFrame:
    """The ledger of counts per (file number, resource type, reason number), sorted.

    >>> ledger_frame(Counter({(0, "Claim", Reason.FINANCIAL): 2})).row(0)
    (0, 'Claim', 'skipped', 'financial', 2)
    """
    rows = [(f, t, Reason(r).fate, Reason(r).label, n) for (f, t, r), n in counts.items() if n]
    return pl.DataFrame(sorted(rows), LEDGER_SCHEMA, orient="row")


def quarantine_frame(entries: list[tuple[int, int, int, int]]) -> pl.DataFrame:
    """One row for each quarantined record from (file number, member, line, reason number), sorted."""
    rows = sorted((f, member, line, Reason(r).label) for f, member, line, r in entries)
    return pl.DataFrame(rows, QUARANTINE_SCHEMA, orient="row")
