"""Records inside of records: what a report, a list or a plan holds itself instead of referring to it."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import field

from ehrseq.fhir.datatypes import Element, Reference, ResourceMeta
from ehrseq.fhir.resource import DECODERS

MARK = b'"contained"'  # without these bytes nothing is contained
# these stand for themselves nowhere: their container refers to them, or they are about another than its patient
PARTS = (
    "Patient",
    "Medication",
    "Device",
    "BiologicallyDerivedProduct",
    "Coverage",
    "EpisodeOfCare",
    "ResearchSubject",
)


class _Container(Element):
    """A field of one name may hold other things in other types."""

    id: Any = None
    meta: ResourceMeta | None = None
    status: Any = None
    subject: Any = None
    patient: Any = None
    encounter: Any = None
    context: Any = None
    contained: list[msgspec.Raw] = field(default_factory=list)


class _Head(Element):
    resource_type: str = ""


_CONTAINER = msgspec.json.Decoder(_Container)
_HEAD = msgspec.json.Decoder(_Head)
IN_ERROR = "entered-in-error"
ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def contained_records(raw: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """Type and resource of what a record contains, of the types that can give events; None for what cannot be read.

    They are called after their container (`name`, `#`, their own id), and are about its patient and in its encounter
    where they say nothing else; where it is an error, so are they.

    >>> raw = b'''{"resourceType": "DiagnosticReport", "subject": {"reference": "Patient/p"}, "contained": [
    ...     {"resourceType": "Observation", "id": "o"}, {"resourceType": "Organization", "id": "x"}]}'''
    >>> [(kind, found.id, found.subject.reference) for kind, found in contained_records(raw, "DiagnosticReport-r")]
    [('Observation', 'DiagnosticReport-r#o', 'Patient/p')]
    """
    try:
        outer = _CONTAINER.decode(raw)
    except ERRORS:  # what it is itself says whether it can be read
        return
    subject = _reference(outer.subject) or _reference(outer.patient)
    encounter = _reference(outer.encounter) or _reference(outer.context)
    for number, inner in enumerate(outer.contained):
        kind = _type_of(inner)
        if kind in PARTS or kind not in DECODERS:
            continue
        try:
            resource: Any = DECODERS[kind].decode(inner)
        except ERRORS:
            yield kind, None
            continue
        resource.id = f"{name}#{resource.id or number}"
        if resource.subject is None and resource.patient is None:
            resource.subject = subject
        if resource.encounter is None and resource.context is None:
            resource.encounter = encounter
        resource.meta = outer.meta  # of several versions of the container the newest one's count
        if outer.status == IN_ERROR:
            for name_of_status in ("status", "verification_status", "lifecycle_status"):
                if hasattr(resource, name_of_status):
                    setattr(resource, name_of_status, IN_ERROR)
        yield kind, resource


def container_id(raw: bytes) -> str:
    """The id of a record of a type that is not read; without one, a hash of its bytes."""
    try:
        found = _CONTAINER.decode(raw).id
    except ERRORS:
        found = None
    return found if isinstance(found, str) else "hash-" + blake2b(raw, digest_size=16).hexdigest()


def _type_of(raw: msgspec.Raw) -> str:
    try:
        return _HEAD.decode(raw).resource_type
    except ERRORS:
        return ""


def _reference(written: Any) -> Reference | None:
    first = written[0] if isinstance(written, list) and written else written
    target = first.get("reference") if isinstance(first, dict) else None
    return Reference(target) if isinstance(target, str) else None
