"""FHIR's data types and what all resources share, as far as timelines need them: lenient, over DSTU2 to R5."""

# ruff: noqa: D101 - the classes are FHIR's own; its specification describes them

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct


class Element(Struct, rename="camel", gc=False):
    """Base of everything decoded. Resources hold no cycles, so the collector need not track them."""


class Present(Element):
    """Something of which only its being there matters."""


class Identifier(Element):
    system: str | None = None
    value: str | None = None


class Reference(Element):
    reference: str | None = None
    identifier: Identifier | None = None


class Coding(Element):
    system: str | None = None
    code: str | None = None


class Concept(Element):
    """A CodeableConcept."""

    coding: list[Coding] | None = None
    text: str | None = None


class CodeableReference(Element):
    """A concept or a reference (R5); or the concept itself or the reference itself, as other versions have it."""

    coding: list[Coding] | None = None
    text: str | None = None
    concept: Concept | None = None
    reference: str | Reference | None = None


class Period(Element):
    start: str | None = None
    end: str | None = None


class Repeat(Element):
    bounds_period: Period | None = None


class Timing(Element):
    event: list[str] | None = None
    repeat: Repeat | None = None


class Quantity(Element):
    value: float | str | None = None
    comparator: str | None = None
    unit: str | None = None
    code: str | None = None


class Range(Element):
    low: Quantity | None = None
    high: Quantity | None = None


class Ratio(Element):
    numerator: Quantity | None = None
    denominator: Quantity | None = None


class ResourceMeta(Element):
    last_updated: str | None = None
    version_id: str | None = None


class Resource(Element):
    """What every resource has."""

    id: Annotated[str, Meta(min_length=1)] | None = None
    meta: ResourceMeta | None = None
    contained: list[Raw] | None = None


class Clinical(Resource):
    """What every resource that gives events has; the subject may be called `patient`."""

    subject: Reference | None = None
    patient: Reference | None = None
    encounter: Reference | None = None
    context: Reference | None = None
    status: str | None = None
    modifier_extension: list[Present] | None = None


class Extension(Element):
    url: str | None = None
    extension: list[Extension] | None = None
    value_coding: Coding | None = None
    value_codeable_concept: Concept | None = None
