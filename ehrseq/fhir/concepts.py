"""From a resource's concepts, statuses and dates to what an event needs of them."""

from __future__ import annotations

from typing import Any

from ehrseq.fhir.codes import Coding, event_code, preferred_code
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.resource import Concept, Period
from ehrseq.fhir.rows import Pool

EVENTS = Reason.EVENTS  # a member of an enumeration is slow to look up, once a record
Statuses = dict[str | None, Reason]
"""Why records of some status give no event."""
BAD_STATUS: Statuses = {
    "entered-in-error": Reason.ENTERED_IN_ERROR,
    "not-done": Reason.NOT_DONE,
    "cancelled": Reason.NOT_DONE,
}
VERIFICATION = {"refuted": Reason.REFUTED, "entered-in-error": Reason.ENTERED_IN_ERROR}


class CodePool(dict[Any, int]):
    """The number of a concept's event code in `names`; 0 where it has none.

    Keys are tuples of (system, code): one coding's, or several codings' one after the other.
    """

    def __init__(
        self, names: Pool[str | None], order: tuple[str, ...], prefix: str = "", procedure: bool = False
    ) -> None:
        super().__init__()
        self.names, self.order, self.prefix, self.procedure = names, order, prefix, procedure

    def __missing__(self, key: Any) -> int:
        if len(key) == 2:
            code = event_code(key, self.procedure)
        else:
            codings: list[Coding] = list(zip(key[::2], key[1::2], strict=True))
            code = preferred_code(codings, self.order, self.procedure)
        number = self[key] = 0 if code is None else self.names[self.prefix + code]
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


def start_of(when: str | None, period: Period | None) -> str | None:
    """A date, or where a period starts: its end comes later, and must not decorate what was known at its start."""
    return when if when or period is None else period.start or period.end


def refutation(status: Concept | str | None) -> Reason | None:
    """Why a Condition or an allergy does not count, from its verification status (a code in STU3)."""
    if status is None:
        return None
    if isinstance(status, str):
        return VERIFICATION.get(status)
    return next((VERIFICATION[c.code] for c in status.coding or () if c.code in VERIFICATION), None)
