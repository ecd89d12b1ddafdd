"""From a resource's concepts, statuses and dates to what an event needs of them."""

from __future__ import annotations

from typing import Any

from ehrseq.fhir.codes import SEPARATOR, Coding, ranked_codes
from ehrseq.fhir.datatypes import Concept
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.rows import Rows

EVENTS = Reason.EVENTS  # a member of an enumeration is slow to look up, once a record
Statuses = dict[str | None, Reason]
"""Why records of some status give no event."""
BAD_STATUS: Statuses = {
    "entered-in-error": Reason.ENTERED_IN_ERROR,
    "not-done": Reason.NOT_DONE,
    "cancelled": Reason.NOT_DONE,
}
VERIFICATION = {"refuted": Reason.REFUTED, "entered-in-error": Reason.ENTERED_IN_ERROR}
REMEMBERED = 1 << 15  # concepts from earlier stretches


class CodePool(dict[Any, int]):
    """The number of a concept's codes among those of `rows`; 0 where it has none.

    Keys are tuples of (system, code): one coding's, or several codings' one after the other. A name holds the
    preferred code and then the others, with `SEPARATOR` between them: concepts that differ in any code differ in
    number, and an event needs to carry no more than that number. `kind` is a field of `CodingPreference`.
    """

    def __init__(self, rows: Rows, kind: str, prefix: str = "", procedure: bool = False) -> None:
        super().__init__()
        self.names, self.coding = rows.codes, rows.coding
        self.order, self.prefix, self.procedure = self.coding.order(kind), prefix, procedure
        # the next stretch of a source has much the same concepts
        self.named = self.coding.named.setdefault((kind, prefix, procedure), {})

    def __missing__(self, key: Any) -> int:
        name = self.named.get(key)
        if name is None:
            codings: list[Coding] = list(zip(key[::2], key[1::2], strict=True))
            codes = ranked_codes(codings, self.order, self.procedure, self.coding.concept_map)
            name = SEPARATOR.join(self.prefix + code for code in codes)
            if len(self.named) < REMEMBERED:
                self.named[key] = name
        number = self[key] = self.names[name] if name else 0
        return number


def concept_code(concept: Concept | None, pool: CodePool) -> int:
    """The number of a concept's event code; 0 where it has none."""
    if concept is None or not concept.coding:
        return 0
    codings = concept.coding
    if len(codings) == 1:
        coding = codings[0]
        return pool[coding.system, coding.code]
    return pool[tuple(part for coding in codings for part in (coding.system, coding.code))]


def coded_pairs(concept: Concept | None) -> list[Coding]:
    """(system, code) of each coding of a concept."""
    return [(c.system, c.code) for c in concept.coding or ()] if concept is not None else []


def refutation(status: Concept | str | None) -> Reason | None:
    """Why a Condition or an allergy does not count, from its verification status (a code in STU3)."""
    if status is None:
        return None
    if isinstance(status, str):
        return VERIFICATION.get(status)
    return next((VERIFICATION[c.code] for c in status.coding or () if c.code in VERIFICATION), None)


def status_code(status: Concept | str | None) -> str | None:
    """The code of a status that is a concept in some versions."""
    if isinstance(status, Concept):
        return next((c.code for c in status.coding or () if c.code), None)
    return status
