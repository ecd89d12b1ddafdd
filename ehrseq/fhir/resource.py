"""One lenient typed view of the resources that events are made from, over FHIR R4 and STU3.

Fields of both versions stand side by side; fields that are not listed are never built. Where versions name the same
thing differently, one attribute reads both (`subject` is `patient` in an Immunization) or the later code reads the
one that is there (`encounter`, `context`).
"""

# ruff: noqa: D101 - the classes are FHIR's own; its specification describes them

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field


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


class Period(Element):
    start: str | None = None
    end: str | None = None


class Timing(Element):
    event: list[str] | None = None


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


class Resource(Element):
    """What every resource has."""

    id: Annotated[str, Meta(min_length=1)] | None = None
    meta: ResourceMeta | None = None


class Clinical(Resource):
    """What every resource that gives events has (some under another name, see the class)."""

    subject: Reference | None = None
    encounter: Reference | None = None
    context: Reference | None = None
    status: str | None = None
    modifier_extension: list[Present] | None = None


class Extension(Element):
    url: str | None = None
    extension: list[Extension] | None = None
    value_coding: Coding | None = None
    value_codeable_concept: Concept | None = None


class Patient(Resource, kw_only=True):
    resource_type: Literal["Patient"]
    identifier: list[Identifier] | None = None
    gender: str | None = None
    birth_date: str | None = None
    deceased_date_time: str | None = None
    deceased_boolean: bool | None = None
    extension: list[Extension] | None = None


class EncounterClass(Element):
    """A Coding (R4, STU3) or a CodeableConcept (R5)."""

    code: str | None = None
    coding: list[Coding] | None = None


class Encounter(Clinical, kw_only=True):
    resource_type: Literal["Encounter"]
    class_: EncounterClass | list[EncounterClass] | str | None = field(default=None, name="class")
    type: list[Concept] | None = None
    period: Period | None = None


class Condition(Clinical, kw_only=True):
    resource_type: Literal["Condition"]
    verification_status: Concept | str | None = None
    code: Concept | None = None
    onset_date_time: str | None = None
    onset_period: Period | None = None
    abatement_date_time: str | None = None
    abatement_period: Period | None = None
    recorded_date: str | None = None
    asserted_date: str | None = None  # STU3


class Measured(Clinical):
    """A code and a value of any kind: an Observation or one of its components (which leave the rest empty)."""

    code: Concept | None = None

    value_quantity: Quantity | None = None
    value_codeable_concept: Concept | None = None
    value_string: str | None = None
    value_boolean: bool | None = None
    value_integer: int | None = None
    value_range: Range | None = None
    value_ratio: Ratio | None = None
    value_sampled_data: Present | None = None
    value_attachment: Present | None = None
    value_time: str | None = None
    value_date_time: str | None = None
    value_period: Period | None = None
    data_absent_reason: Concept | None = None


class Observation(Measured, kw_only=True):
    resource_type: Literal["Observation"]
    effective_date_time: str | None = None
    effective_period: Period | None = None
    effective_instant: str | None = None
    effective_timing: Timing | None = None
    issued: str | None = None
    component: list[Measured] | None = None


class MedicationUse(Clinical):
    """What the five ways of recording a medication share; the medication is a concept or a reference."""

    medication_codeable_concept: Concept | None = None
    medication_reference: Reference | None = None
    contained: list[msgspec.Raw] = []


class MedicationRequest(MedicationUse, kw_only=True):
    resource_type: Literal["MedicationRequest"]
    intent: str | None = None
    do_not_perform: bool | None = None
    authored_on: str | None = None


class MedicationOrder(MedicationUse, kw_only=True):
    """DSTU2's MedicationRequest."""

    resource_type: Literal["MedicationOrder"]
    subject: Reference | None = field(default=None, name="patient")
    date_written: str | None = None


class Dosage(Element):
    dose: Quantity | None = None


class MedicationAdministration(MedicationUse, kw_only=True):
    resource_type: Literal["MedicationAdministration"]
    not_given: bool | None = None  # STU3
    effective_date_time: str | None = None
    effective_period: Period | None = None
    dosage: Dosage | None = None


class MedicationDispense(MedicationUse, kw_only=True):
    resource_type: Literal["MedicationDispense"]
    not_done: bool | None = None  # STU3
    when_prepared: str | None = None
    when_handed_over: str | None = None


class MedicationStatement(MedicationUse, kw_only=True):
    resource_type: Literal["MedicationStatement"]
    taken: str | None = None  # STU3: y, n, unk, na
    effective_date_time: str | None = None
    effective_period: Period | None = None
    date_asserted: str | None = None


class Ingredient(Element):
    item_codeable_concept: Concept | None = None
    item_reference: Reference | None = None


class Medication(Resource, kw_only=True):
    resource_type: Literal["Medication"]
    code: Concept | None = None
    ingredient: list[Ingredient] | None = None
    contained: list[msgspec.Raw] = []


class Procedure(Clinical, kw_only=True):
    resource_type: Literal["Procedure"]
    not_done: bool | None = None  # STU3
    code: Concept | None = None
    performed_date_time: str | None = None
    performed_period: Period | None = None


class Immunization(Clinical, kw_only=True):
    resource_type: Literal["Immunization"]
    subject: Reference | None = field(default=None, name="patient")
    not_given: bool | None = None  # STU3
    vaccine_code: Concept | None = None
    occurrence_date_time: str | None = None
    date: str | None = None  # STU3
    recorded: str | None = None


class AllergyIntolerance(Clinical, kw_only=True):
    resource_type: Literal["AllergyIntolerance"]
    subject: Reference | None = field(default=None, name="patient")
    verification_status: Concept | str | None = None
    code: Concept | None = None
    onset_date_time: str | None = None
    onset_period: Period | None = None
    recorded_date: str | None = None
    asserted_date: str | None = None  # STU3


class DiagnosticReport(Clinical, kw_only=True):
    resource_type: Literal["DiagnosticReport"]
    code: Concept | None = None
    effective_date_time: str | None = None
    effective_period: Period | None = None
    issued: str | None = None


class ResearchSubject(Resource, kw_only=True):
    resource_type: Literal["ResearchSubject"]
    individual: Reference | None = None
    subject: Reference | None = None  # R5
    status: str | None = None
    period: Period | None = None


class BundleEntry(Element):
    full_url: str | None = None
    resource: msgspec.Raw = msgspec.Raw()  # empty where there is none


class Bundle(Element, kw_only=True):
    resource_type: Literal["Bundle"]
    entry: list[BundleEntry] | None = None


class Head(Element, kw_only=True):
    """Any resource, of which only the type is wanted."""

    resource_type: str


READ_TYPES: dict[str, type[Resource]] = {
    cls.__name__: cls
    for cls in (
        Patient,
        Encounter,
        Condition,
        Observation,
        MedicationRequest,
        MedicationOrder,
        MedicationAdministration,
        MedicationDispense,
        MedicationStatement,
        Medication,
        Procedure,
        Immunization,
        AllergyIntolerance,
        DiagnosticReport,
        ResearchSubject,
    )
}
DECODERS = {name: msgspec.json.Decoder(cls) for name, cls in READ_TYPES.items()}
HEAD_DECODER = msgspec.json.Decoder(Head)
BUNDLE_DECODER = msgspec.json.Decoder(Bundle)
