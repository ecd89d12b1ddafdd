"""The view (see `resource`) of plans, orders, documents, specimens, devices, and supplies."""

from __future__ import annotations

from typing import Literal

from ehrseq.fhir.datatypes import (
    Clinical,
    CodeableReference,
    Coding,
    Concept,
    Element,
    Period,
    Quantity,
    Reference,
    Resource,
    Timing,
)


class Code(Element):
    """A code that is a Coding, a CodeableConcept or a CodeableReference, by version and type."""

    system: str | None = None
    code: str | None = None
    coding: list[Coding] | None = None
    concept: Concept | None = None


# -- plans and orders


class ActivityDetail(Element):
    """What a planned activity is, and whether it is to happen."""

    code: Concept | None = None
    status: str | None = None
    prohibited: bool | None = None  # DSTU2, STU3
    do_not_perform: bool | None = None


class Activity(Element):
    """One thing that a care plan asks for."""

    detail: ActivityDetail | None = None


class CarePlan(Clinical, kw_only=True):
    """What is planned for a patient, from when until when."""

    resource_type: Literal["CarePlan"]
    intent: str | None = None
    category: list[Concept] | None = None
    period: Period | None = None
    created: str | None = None
    activity: list[Activity] | None = None


class Order(Clinical, kw_only=True):
    """What all orders share."""

    intent: str | None = None
    do_not_perform: bool | None = None
    authored_on: str | None = None
    occurrence_date_time: str | None = None
    occurrence_period: Period | None = None


class ServiceRequest(Order, kw_only=True):
    """An order of an examination, a procedure or a service."""

    resource_type: Literal["ServiceRequest"]
    code: Code | None = None


class ProcedureRequest(Order, kw_only=True):
    """An order of a procedure (DSTU2, STU3)."""

    resource_type: Literal["ProcedureRequest"]
    code: Concept | None = None
    ordered_on: str | None = None  # DSTU2


class ReferralRequest(Order, kw_only=True):
    """A referral to somebody else (DSTU2, STU3)."""

    resource_type: Literal["ReferralRequest"]
    service_requested: list[Concept] | None = None
    type: Concept | None = None
    date: str | None = None  # DSTU2
    date_sent: str | None = None  # DSTU2


class DiagnosticOrderItem(Element):
    """One examination of a DSTU2 order."""

    code: Concept | None = None


class DiagnosticOrderEvent(Element):
    """When something became of a DSTU2 order."""

    date_time: str | None = None


class DiagnosticOrder(Order, kw_only=True):
    """DSTU2's order of examinations."""

    resource_type: Literal["DiagnosticOrder"]
    item: list[DiagnosticOrderItem] | None = None
    event: list[DiagnosticOrderEvent] | None = None


class DeviceRequest(Order, kw_only=True):
    """An order of a device, by its code or by reference."""

    resource_type: Literal["DeviceRequest", "DeviceUseRequest"]
    code: CodeableReference | None = None  # R5
    code_codeable_concept: Concept | None = None
    code_reference: Reference | None = None


class DeviceUseRequest(DeviceRequest, kw_only=True):
    """DSTU2's DeviceRequest."""

    resource_type: Literal["DeviceUseRequest"]
    device: Reference | None = None
    ordered_on: str | None = None


class OralDiet(Element):
    """A diet that is ordered."""

    type: list[Concept] | None = None


class Supplement(Element):
    """A food supplement that is ordered."""

    type: Code | None = None


class EnteralFormula(Element):
    """A tube feed that is ordered."""

    base_formula_type: Code | None = None


class NutritionOrder(Order, kw_only=True):
    """An order of food, and when it was written."""

    resource_type: Literal["NutritionOrder"]
    date_time: str | None = None
    oral_diet: OralDiet | None = None
    supplement: list[Supplement] | None = None
    enteral_formula: EnteralFormula | None = None


class LensSpecification(Element):
    """One lens of a prescription of glasses."""

    product: Code | None = None


class VisionPrescription(Clinical, kw_only=True):
    """A prescription of glasses or contact lenses."""

    resource_type: Literal["VisionPrescription"]
    date_written: str | None = None
    lens_specification: list[LensSpecification] | None = None


class GoalTarget(Element):
    """What a goal is measured by."""

    measure: Concept | None = None


class Goal(Clinical, kw_only=True):
    """What is to be reached, and since when."""

    resource_type: Literal["Goal"]
    lifecycle_status: str | None = None
    description: Concept | str | None = None
    target: list[GoalTarget] | None = None
    start_date: str | None = None
    status_date: str | None = None


class Provision(Element):
    """Whether a consent permits or denies."""

    type: str | None = None


class Consent(Clinical, kw_only=True):
    """What a patient agreed to or refused, about treatment or about data."""

    resource_type: Literal["Consent"]
    scope: Concept | None = None
    category: list[Concept] | None = None
    date_time: str | None = None
    date: str | None = None  # R5
    decision: str | None = None  # R5
    provision: Provision | list[Provision] | None = None


# -- documents, images, specimens


class DocumentContext(Element):
    """Where a document belongs: an object with encounters (STU3, R4), or a list of references (R5)."""

    encounter: Reference | list[Reference] | None = None
    period: Period | None = None
    reference: str | None = None


class DocumentReference(Resource, kw_only=True):
    """That a document exists, of which type, and since when; never its text."""

    resource_type: Literal["DocumentReference"]
    subject: Reference | None = None
    patient: Reference | None = None
    encounter: Reference | None = None
    context: DocumentContext | list[Reference] | None = None
    status: str | None = None
    doc_status: str | Concept | None = None
    modifier_extension: list[Element] | None = None
    type: Concept | None = None
    category: list[Concept] | None = None
    date: str | None = None
    indexed: str | None = None  # DSTU2, STU3
    created: str | None = None

    def __post_init__(self) -> None:
        """Find the encounter where this version keeps it."""
        context, self.context = self.context, None
        if isinstance(context, DocumentContext):
            of = context.encounter
            context = of if isinstance(of, list) else [of] if of is not None else []
        for reference in context or ():
            if self.encounter is None and "Encounter/" in (reference.reference or ""):
                self.encounter = reference


class Composition(Resource, kw_only=True):
    """That a clinical document was written, of which type, and when; never its text."""

    resource_type: Literal["Composition"]
    subject: Reference | list[Reference] | None = None
    patient: Reference | None = None
    encounter: Reference | None = None
    context: Reference | None = None
    status: str | None = None
    modifier_extension: list[Element] | None = None
    type: Concept | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        """Take the first subject of R5's list."""
        if isinstance(self.subject, list):
            self.subject = self.subject[0] if self.subject else None


class Series(Element):
    """One series of images: its modality, body site and time."""

    modality: Code | None = None
    body_site: Code | None = None
    started: str | None = None


class ImagingStudy(Clinical, kw_only=True):
    """An examination by images: modalities, sites, procedures, and when it started."""

    resource_type: Literal["ImagingStudy"]
    started: str | None = None
    modality: list[Code] | None = None
    modality_list: list[Code] | None = None  # STU3, DSTU2
    number_of_series: int | None = None
    procedure_code: list[Concept] | None = None
    series: list[Series] | None = None


class Media(Clinical, kw_only=True):
    """A picture, film or sound recording: its kind and time, never its content."""

    resource_type: Literal["Media"]
    type: Concept | str | None = None
    modality: Concept | None = None
    body_site: Concept | None = None
    created_date_time: str | None = None
    created_period: Period | None = None
    occurrence_date_time: str | None = None  # STU3
    occurrence_period: Period | None = None  # STU3
    issued: str | None = None


class Collection(Element):
    """When a specimen was taken, and from where."""

    collected_date_time: str | None = None
    collected_period: Period | None = None
    body_site: Code | None = None


class Specimen(Clinical, kw_only=True):
    """A specimen: its type, when it was taken and received."""

    resource_type: Literal["Specimen"]
    type: Concept | None = None
    received_time: str | None = None
    collection: Collection | None = None


# -- devices and supplies


class Device(Clinical, kw_only=True):
    """What others refer to; never an event itself."""

    resource_type: Literal["Device"]
    type: Concept | list[Concept] | None = None


class DeviceUseStatement(Clinical, kw_only=True):
    """That a device was used, and when."""

    resource_type: Literal["DeviceUseStatement", "DeviceUsage"]
    device: CodeableReference | None = None
    timing_date_time: str | None = None
    timing_period: Period | None = None
    timing_timing: Timing | None = None
    when_used: Period | None = None  # DSTU2, STU3
    recorded_on: str | None = None
    date_asserted: str | None = None  # R5


class DeviceUsage(DeviceUseStatement, kw_only=True):
    """R5's DeviceUseStatement."""

    resource_type: Literal["DeviceUsage"]


class DeviceDispense(Clinical, kw_only=True):
    """A device that was handed over (R5)."""

    resource_type: Literal["DeviceDispense"]
    device: CodeableReference | None = None
    when_handed_over: str | None = None
    prepared_date: str | None = None


class DeviceAssociation(Clinical, kw_only=True):
    """A device that is on or in a patient, and since when (R5)."""

    resource_type: Literal["DeviceAssociation"]
    status: Concept | str | None = None  # type: ignore[assignment]
    device: Reference | None = None
    period: Period | None = None


class BiologicallyDerivedProduct(Clinical, kw_only=True):
    """Blood, tissue, ...: what a dispense refers to; never an event itself."""

    resource_type: Literal["BiologicallyDerivedProduct"]
    product_code: Concept | None = None


class BiologicallyDerivedProductDispense(Clinical, kw_only=True):
    """Blood or tissue that was handed over, and how much (R5)."""

    resource_type: Literal["BiologicallyDerivedProductDispense"]
    product: Reference | None = None
    quantity: Quantity | None = None
    prepared_date: str | None = None
    when_handed_over: str | None = None


class SuppliedItem(Element):
    """What was delivered, and how much."""

    item_codeable_concept: Concept | None = None
    item_reference: Reference | None = None
    quantity: Quantity | None = None


class SupplyDelivery(Clinical, kw_only=True):
    """A delivery, and when."""

    resource_type: Literal["SupplyDelivery"]
    supplied_item: SuppliedItem | list[SuppliedItem] | None = None
    occurrence_date_time: str | None = None
    occurrence_period: Period | None = None


class ConsumedItem(Element):
    """One thing eaten or drunk, or left."""

    nutrition_product: CodeableReference | None = None
    not_consumed: bool | None = None


class NutritionIntake(Clinical, kw_only=True):
    """What was eaten and drunk, and when (R5)."""

    resource_type: Literal["NutritionIntake"]
    occurrence_date_time: str | None = None
    occurrence_period: Period | None = None
    recorded: str | None = None
    consumed_item: list[ConsumedItem] | None = None


CARE_TYPES: tuple[type[Resource], ...] = (
    CarePlan,
    ServiceRequest,
    ProcedureRequest,
    ReferralRequest,
    DiagnosticOrder,
    DeviceRequest,
    DeviceUseRequest,
    NutritionOrder,
    VisionPrescription,
    Goal,
    DocumentReference,
    Composition,
    ImagingStudy,
    Media,
    Specimen,
    Device,
    DeviceUseStatement,
    DeviceUsage,
    DeviceDispense,
    DeviceAssociation,
    BiologicallyDerivedProduct,
    BiologicallyDerivedProductDispense,
    SupplyDelivery,
    NutritionIntake,
    Consent,
)
