"""Records inside of records: what a report, a list or a plan holds itself instead of referring to it."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from ehrseq.fhir.datatypes import Element, Reference, ResourceMeta
from ehrseq.fhir.resource import DECODERS

# these stand for themselves nowhere: their container refers to them, or they are about another than its patient
PARTS = frozenset(
    ("Patient", "Medication", "Device", "BiologicallyDerivedProduct", "Coverage", "EpisodeOfCare", "ResearchSubject")
)
IN_ERROR = "entered-in-error"
ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Container(Element):
    """What contained records need of a container of a type that is not read. Other types have other things there."""

    id: Any = None
    meta: ResourceMeta | None = None
    status: Any = None
    subject: Any = None
    patient: Any = None
    encounter: Any = None
    context: Any = None
    contained: list[msgspec.Raw] | None = None


class _Head(Element):
    resource_type: str = ""


_CONTAINER = msgspec.json.Decoder(Container)
_HEAD = msgspec.json.Decoder(_Head)


def holds_records(contained: list[msgspec.Raw] | None) -> bool:
    """Whether any contained resource is a record of its own.

    >>> holds_records([msgspec.Raw(b'{"resourceType": "Medication"}')]), holds_records(None)
    (False, False)
    """
    return any(_kind(raw) for raw in contained or ())


def contained_records(outer: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Type and resource of what a record contains, of the types that can give events; None for what cannot be read.

    They are called after their container (`name`, `#`, their own id), and are about its patient and in its encounter
    where they say nothing else; where it is an error, so are they.

    >>> outer = container(b'''{"resourceType": "List", "subject": {"reference": "Patient/p"}, "contained": [
    ...     {"resourceType": "Observation", "id": "o"}, {"resourceType": "Organization", "id": "x"}]}''')
    >>> [(kind, found.id, found.subject.reference) for kind, found in contained_records(outer, "List-l")]
    [('Observation', 'List-l#o', 'Patient/p')]
    """
    for number, raw in enumerate(outer.contained or ()):
        kind = _kind(raw)
        if not kind:
            continue
        try:
            resource: Any = DECODERS[kind].decode(raw)
        except ERRORS:
            yield kind, None
            continue
        resource.id = f"{name}#{resource.id or number}"
        if resource.subject is None and resource.patient is None:
            resource.subject = _reference(outer, "subject") or _reference(outer, "patient")
        if resource.encounter is None and resource.context is None:
            resource.encounter = _reference(outer, "encounter") or _reference(outer, "context")
        resource.meta = outer.meta  # of several versions of the container the newest one's count
        if getattr(outer, "status", None) == IN_ERROR:
            for status in ("status", "verification_status", "lifecycle_status"):
                if hasattr(resource, status):
                    setattr(resource, status, IN_ERROR)
        yield kind, resource


def container(raw: bytes) -> Container:
    """A record of a type that is not read; without an id of its own, it is called after a hash of its bytes."""
    try:
        found = _CONTAINER.decode(raw)
    except ERRORS:
        found = Container()
    if not isinstance(found.id, str):
        found.id = "hash-" + blake2b(raw, digest_size=16).hexdigest()
    return found


def _kind(raw: msgspec.Raw) -> str:
    """The type of a contained resource that is a record of its own; empty for others."""
    try:
        kind = _HEAD.decode(raw).resource_type
    except ERRORS:
        return ""
    return kind if kind in DECODERS and kind not in PARTS else ""


def _reference(outer: Any, name: str) -> Reference | None:
    written = getattr(outer, name, None)
    if isinstance(written, Reference):
        return written
    first = written[0] if isinstance(written, list) and written else written
    target = first.get("reference") if isinstance(first, dict) else None
    return Reference(target) if isinstance(target, str) else None
