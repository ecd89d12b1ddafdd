"""One lenient typed view of the resources that events are made from, over FHIR DSTU2, STU3, R4, R4B and R5.

Fields of all versions stand side by side; fields that are not listed are never built. The version of a record is
never asked for: where versions name the same thing differently the later code reads the one that is there
(`encounter`, `context`).
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import field

from ehrseq.fhir.datatypes import (
    Clinical,
    CodeableReference,
    Coding,
    Concept,
    Element,
    Extension,
    Identifier,
    Period,
    Present,
    Quantity,
    Range,
    Ratio,
    Reference,
    Resource,
    ResourceMeta,
    Timing,
)
from ehrseq.fhir.resource_care import CARE_TYPES, Code
from ehrseq.fhir.resource_findings import FINDING_TYPES


class PatientLink(Element):
    """Another record of the same person, and which of the two replaces the other."""

    other: Reference | None = None
    type: str | None = None


class Patient(Resource, kw_only=True):
    """Who: names by which records refer to the person, sex, birth, death; race and ethnicity as extensions."""

    resource_type: Literal["Patient"]
    link: list[PatientLink] | None = None
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
    """A visit or a stay: its class, its types, from when until when."""

    resource_type: Literal["Encounter"]
    class_: EncounterClass | list[EncounterClass] | str | None = field(default=None, name="class")
    type: list[Concept] | None = None
    period: Period | None = None
    actual_period: Period | None = None  # R5


class Condition(Clinical, kw_only=True):
    """A diagnosis: when it began and ended, and when it was recorded."""

    resource_type: Literal["Condition"]
    verification_status: Concept | str | None = None
    code: Concept | None = None
    onset_date_time: str | None = None
    onset_period: Period | None = None
    abatement_date_time: str | None = None
    abatement_period: Period | None = None
    recorded_date: str | None = None
    asserted_date: str | None = None  # STU3
    date_recorded: str | None = None  # DSTU2


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


class RelatedObservation(Element):
    """Another Observation, and how it belongs to this one (STU3)."""

    type: str | None = None
    target: Reference | None = None


class Observation(Measured, kw_only=True):
    """A measurement, a finding, or a panel of components; when it was taken and when it was issued."""

    resource_type: Literal["Observation"]
    effective_date_time: str | None = None
    effective_period: Period | None = None
    effective_instant: str | None = None
    effective_timing: Timing | None = None
    issued: str | None = None
    component: list[Measured] | None = None
    derived_from: list[Reference] | None = None
    has_member: list[Reference] | None = None
    related: list[RelatedObservation] | None = None  # STU3
    extension: list[Extension] | None = None


class MedicationUse(Clinical):
    """What the five ways of recording a medication share; the medication is a concept or a reference."""

    medication: CodeableReference | None = None  # R5
    medication_codeable_concept: Concept | None = None
    medication_reference: Reference | None = None


class MedicationRequest(MedicationUse, kw_only=True):
    """A prescription, and when it was written."""

    resource_type: Literal["MedicationRequest"]
    intent: str | None = None
    do_not_perform: bool | None = None
    authored_on: str | None = None


class MedicationOrder(MedicationUse, kw_only=True):
    """DSTU2's MedicationRequest."""

    resource_type: Literal["MedicationOrder"]
    date_written: str | None = None


class Dosage(Element):
    """How much was given."""

    dose: Quantity | None = None
    quantity: Quantity | None = None  # DSTU2


class MedicationAdministration(MedicationUse, kw_only=True):
    """A dose that was given, and when."""

    resource_type: Literal["MedicationAdministration"]
    not_given: bool | None = None  # STU3
    was_not_given: bool | None = None  # DSTU2
    effective_date_time: str | None = None
    effective_period: Period | None = None
    effective_time_date_time: str | None = None  # DSTU2
    effective_time_period: Period | None = None  # DSTU2
    occurrence_date_time: str | None = None  # R5, which also writes it with one r
    occurrence_period: Period | None = None
    occurence_date_time: str | None = None
    occurence_period: Period | None = None
    recorded: str | None = None  # R5
    dosage: Dosage | None = None


class MedicationDispense(MedicationUse, kw_only=True):
    """What a pharmacy handed over, and when."""

    resource_type: Literal["MedicationDispense"]
    not_done: bool | None = None  # STU3
    when_prepared: str | None = None
    when_handed_over: str | None = None


class MedicationStatement(MedicationUse, kw_only=True):
    """What somebody says was taken, when, and when that was said."""

    resource_type: Literal["MedicationStatement", "MedicationUsage"]
    taken: str | None = None  # STU3: y, n, unk, na
    was_not_taken: bool | None = None  # DSTU2
    effective_date_time: str | None = None
    effective_period: Period | None = None
    date_asserted: str | None = None


class MedicationUsage(MedicationStatement, kw_only=True):
    """The MedicationStatement of R5's ballots."""

    resource_type: Literal["MedicationUsage"]


class Ingredient(Element):
    """What a medication consists of: a substance, or another medication."""

    item_codeable_concept: Concept | None = None
    item_reference: Reference | None = None
    item: CodeableReference | None = None  # DSTU2 (a reference), R5


class Product(Element):
    """Of a DSTU2 Medication, the part that has its ingredients."""

    ingredient: list[Ingredient] | None = None


class Medication(Resource, kw_only=True):
    """What others refer to: a drug by its code, else by its ingredients; never an event itself."""

    resource_type: Literal["Medication"]
    code: Concept | None = None
    ingredient: list[Ingredient] | None = None
    product: Product | None = None  # DSTU2


class Procedure(Clinical, kw_only=True):
    """What was done to a patient, and when."""

    resource_type: Literal["Procedure"]
    not_done: bool | None = None  # STU3
    not_performed: bool | None = None  # DSTU2
    code: Concept | None = None
    performed_date_time: str | None = None
    performed_period: Period | None = None
    occurrence_date_time: str | None = None  # R5
    occurrence_period: Period | None = None  # R5
    recorded: str | None = None  # R5


class Immunization(Clinical, kw_only=True):
    """A vaccine that was given, and when."""

    resource_type: Literal["Immunization"]
    not_given: bool | None = None  # STU3
    was_not_given: bool | None = None  # DSTU2
    vaccine_code: Concept | None = None
    occurrence_date_time: str | None = None
    date: str | None = None  # STU3
    recorded: str | None = None


class AllergyIntolerance(Clinical, kw_only=True):
    """What a patient does not tolerate, since when, and when it was recorded."""

    resource_type: Literal["AllergyIntolerance"]
    verification_status: Concept | str | None = None
    code: Concept | None = None
    substance: Concept | None = None  # DSTU2
    onset: str | None = None  # DSTU2
    onset_date_time: str | None = None
    onset_period: Period | None = None
    recorded_date: str | None = None
    asserted_date: str | None = None  # STU3


class DiagnosticReport(Clinical, kw_only=True):
    """A report: what it is, which results belong to it, its coded conclusions, and when it was issued."""

    resource_type: Literal["DiagnosticReport"]
    code: Concept | None = None
    effective_date_time: str | None = None
    effective_period: Period | None = None
    issued: str | None = None
    result: list[Reference] | None = None
    conclusion_code: list[Code] | None = None
    coded_diagnosis: list[Code] | None = None  # DSTU2, STU3


class ResearchSubject(Clinical, kw_only=True):
    """A patient's part in a study: gives the observation period."""

    resource_type: Literal["ResearchSubject"]
    individual: Reference | None = None  # R4, STU3; `subject` in R5
    period: Period | None = None


class EpisodeOfCare(Clinical, kw_only=True):
    """The time under somebody's care: gives the observation period."""

    resource_type: Literal["EpisodeOfCare"]
    period: Period | None = None


class Coverage(Clinical, kw_only=True):
    """The time of an insurance: gives the observation period of the beneficiary."""

    resource_type: Literal["Coverage"]
    subject: Reference | None = field(default=None, name="beneficiary")
    period: Period | None = None


class EntryRequest(Element):
    """What a bundle's entry asked a server for; DELETE marks a deletion."""

    method: str | None = None
    url: str | None = None


class EntryResponse(Element):
    """What the server answered: when the record was last changed."""

    last_modified: str | None = None


class BundleEntry(Element):
    """One record of a bundle, still undecoded, with its name in the bundle."""

    full_url: str | None = None
    resource: msgspec.Raw = msgspec.Raw()  # empty where there is none
    request: EntryRequest | None = None
    response: EntryResponse | None = None


class Bundle(Element, kw_only=True):
    """Records that came in one document."""

    resource_type: Literal["Bundle"]
    meta: ResourceMeta | None = None
    timestamp: str | None = None
    entry: list[BundleEntry] | None = None


class Head(Element, kw_only=True):
    """Any resource, of which only the type is wanted."""

    resource_type: str
    contained: list[msgspec.Raw] | None = None


CORE_TYPES: tuple[type[Resource], ...] = (
    Patient,
    Encounter,
    Condition,
    Observation,
    MedicationRequest,
    MedicationOrder,
    MedicationAdministration,
    MedicationDispense,
    MedicationStatement,
    MedicationUsage,
    Medication,
    Procedure,
    Immunization,
    AllergyIntolerance,
    DiagnosticReport,
    ResearchSubject,
    EpisodeOfCare,
    Coverage,
)
READ_TYPES = {cls.__name__: cls for cls in CORE_TYPES + CARE_TYPES + FINDING_TYPES}
DECODERS = {name: msgspec.json.Decoder(cls) for name, cls in READ_TYPES.items()}
HEAD_DECODER = msgspec.json.Decoder(Head)
BUNDLE_DECODER = msgspec.json.Decoder(Bundle)
