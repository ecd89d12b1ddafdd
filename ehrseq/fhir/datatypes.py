"""FHIR's data types and what all resources share, as far as timelines need them: lenient, over DSTU2 to R5."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct


class Element(Struct, rename="camel", gc=False):
    """Base of everything decoded. Resources hold no cycles, so the collector need not track them."""


class Present(Element):
    """Something of which only its being there matters."""


class Identifier(Element):
    """A name that a system gave: by which a reference may find its patient."""

    system: str | None = None
    value: str | None = None


class Reference(Element):
    """Where another record is: by its address, or by an identifier."""

    reference: str | None = None
    identifier: Identifier | None = None


class Coding(Element):
    """A code of a system."""

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
    """From when until when; either end may be open."""

    start: str | None = None
    end: str | None = None


class Repeat(Element):
    """Of a repeated timing, the span within which it repeats."""

    bounds_period: Period | None = None


class Timing(Element):
    """When something happened that happened more than once."""

    event: list[str] | None = None
    repeat: Repeat | None = None


class Quantity(Element):
    """A number with its unit and, where it is not exact, its comparator; a string where it is no number."""

    value: float | str | None = None
    comparator: str | None = None
    unit: str | None = None
    code: str | None = None


class Range(Element):
    """A lower and an upper bound, either of which may be missing."""

    low: Quantity | None = None
    high: Quantity | None = None


class Ratio(Element):
    """One quantity over another, such as a titre."""

    numerator: Quantity | None = None
    denominator: Quantity | None = None


class ResourceMeta(Element):
    """When a record was last updated, and the number of its version."""

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
    """A field that a profile adds: race, ethnicity, genes; or what a group of such fields holds."""

    url: str | None = None
    extension: list[Extension] | None = None
    value_coding: Coding | None = None
    value_codeable_concept: Concept | None = None
