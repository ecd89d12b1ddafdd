"""What a pure function says of a record: a list of facts, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import msgspec

from ehrseq.fhir.codes import CodingPreference, event_code, preferred_code
from ehrseq.fhir.datatypes import Coding, Concept
from ehrseq.fhir.dating import Moment
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.values import NAN


class Scheme(NamedTuple):
    """How a concept becomes an event's code: its kind in `CodingPreference`, and what stands before the code."""

    kind: str
    prefix: str = ""
    procedure: bool = False


class Fact(NamedTuple):
    """One event to be: a concept (or a code as it stands), when, and its value."""

    scheme: Scheme
    concept: Concept | str
    moment: Moment
    number: float = NAN
    text: str | None = None
    modifier: str | None = None
    unit: str | None = None
    device: str | None = None  # instead of a concept: the reference to the record that has it


Said = list[Fact] | Reason
PLAIN = Scheme("measurement")
ORDER = Scheme("procedure", "ORDER//")  # to order something is not to have had it


def concept_of(item: Any) -> Concept | None:
    """The CodeableConcept in a code of any version: a Coding, a CodeableConcept or a CodeableReference.

    >>> from ehrseq.fhir.datatypes import CodeableReference
    >>> concept_of(CodeableReference(concept=Concept(text="x"))).text, concept_of(Coding(code="7")).coding[0].code
    ('x', '7')
    """
    if item is None or isinstance(item, Concept):
        return item
    if (inner := getattr(item, "concept", None)) is not None:
        return concept_of(inner)
    if codings := getattr(item, "coding", None):
        return Concept(coding=codings)
    if getattr(item, "code", None):
        return Concept(coding=[Coding(item.system, item.code)])
    return None


def code_of(item: Any, kind: str = "measurement") -> str | None:
    """The preferred `SYSTEM//code` of a coded item; None where it has none. Never its text.

    >>> code_of(Coding("http://loinc.org", "LA9633-4")), code_of(Concept(text="Jane Doe's answer"))
    ('LOINC//LA9633-4', None)
    """
    concept = concept_of(item)
    if concept is None or not concept.coding:
        return None
    codings = [(c.system, c.code) for c in concept.coding]
    return event_code(codings[0]) if len(codings) == 1 else preferred_code(codings, CodingPreference().order(kind))


def preview(read: Callable[[Any], Said], text: str) -> list[tuple[Any, ...]] | str:
    """What a function says of a record in JSON, for a reader: (code, time, known[, value]), or the reason.

    The value is a number where there is one, else text, else the modifier; it is left out where there is none.
    """
    said = read(msgspec.json.decode(text, type=get_type_hints(read)["r"]))
    if isinstance(said, Reason):
        return said.label
    rows: list[tuple[Any, ...]] = []
    for fact in said:
        code = fact.concept if isinstance(fact.concept, str) else code_of(fact.concept, fact.scheme.kind)
        values = [v for v in (fact.number, fact.text, fact.modifier) if v is not None and v == v]
        rows.append((f"{fact.scheme.prefix}{code}", *fact.moment[:2], *values))
    return rows
