"""The view (see `resource`) of assessments, answers, bills and sequences."""

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
    Range,
    Reference,
    Resource,
    Timing,
)
from ehrseq.fhir.resource_care import Code

Decimal = float | str | None


# -- assessments


class FamilyCondition(Element):
    """One illness of a relative."""

    code: Concept | None = None
    modifier_extension: list[Element] | None = None


class FamilyMemberHistory(Clinical, kw_only=True):
    """A relative's illnesses, and when they were recorded."""

    resource_type: Literal["FamilyMemberHistory"]
    relationship: Concept | None = None
    date: str | None = None
    condition: list[FamilyCondition] | None = None


class Flag(Clinical, kw_only=True):
    """A warning on a patient's record, and since when."""

    resource_type: Literal["Flag"]
    code: Concept | None = None
    period: Period | None = None


class Prediction(Element):
    """One outcome of an assessment, with its probability."""

    outcome: Concept | None = None
    probability_decimal: Decimal = None
    probability_range: Range | None = None
    qualitative_risk: Concept | None = None
    relative_risk: Decimal = None


class RiskAssessment(Clinical, kw_only=True):
    """Somebody's forecast for a patient: an event of its own, never its outcome."""

    resource_type: Literal["RiskAssessment"]
    code: Concept | None = None
    occurrence_date_time: str | None = None
    occurrence_period: Period | None = None
    date: str | None = None  # DSTU2
    prediction: list[Prediction] | None = None


class AdverseEvent(Clinical, kw_only=True):
    """Harm that happened, or nearly, and when it was noticed."""

    resource_type: Literal["AdverseEvent"]
    actuality: str | None = None
    event: Concept | None = None  # R4
    code: Concept | None = None  # R5
    type: Concept | None = None  # STU3
    date: str | None = None
    occurrence_date_time: str | None = None  # R5
    occurrence_period: Period | None = None  # R5
    detected: str | None = None
    recorded_date: str | None = None


class DetectedIssue(Clinical, kw_only=True):
    """A problem that was noticed, such as an interaction of drugs."""

    resource_type: Literal["DetectedIssue"]
    code: Concept | None = None
    category: Concept | list[Concept] | None = None  # STU3; R5
    identified_date_time: str | None = None
    identified_period: Period | None = None
    date: str | None = None  # DSTU2, STU3


class Finding(Element):
    """One coded finding of an examination."""

    item_codeable_concept: Concept | None = None
    item: CodeableReference | None = None  # R5; DSTU2


class ClinicalImpression(Clinical, kw_only=True):
    """An assessment of a patient, with its findings."""

    resource_type: Literal["ClinicalImpression"]
    effective_date_time: str | None = None
    effective_period: Period | None = None
    date: str | None = None
    finding: list[Finding] | None = None


class Answer(Element):
    """One answer to a question, of any type; text is not read."""

    value_boolean: bool | None = None
    value_decimal: Decimal = None
    value_integer: int | None = None
    value_date: str | None = None
    value_date_time: str | None = None
    value_time: str | None = None
    value_coding: Coding | None = None
    value_quantity: Quantity | None = None
    item: list[Item] | None = None
    group: list[Item] | None = None  # DSTU2


class Item(Element):
    """A question with its answers, or a group of questions."""

    link_id: str | None = None
    answer: list[Answer] | None = None
    item: list[Item] | None = None
    group: list[Item] | None = None  # DSTU2
    question: list[Item] | None = None  # DSTU2
    modifier_extension: list[Element] | None = None


class QuestionnaireResponse(Clinical, kw_only=True):
    """A filled-in questionnaire, and when it was filled in."""

    resource_type: Literal["QuestionnaireResponse"]
    questionnaire: str | Reference | None = None
    authored: str | None = None
    item: list[Item] | None = None
    group: Item | None = None  # DSTU2


# -- bills


class ClaimDiagnosis(Element):
    """A diagnosis of a bill: its code, or the Condition it refers to."""

    diagnosis_codeable_concept: Concept | None = None
    diagnosis_reference: Reference | None = None
    diagnosis: Coding | None = None  # DSTU2


class ClaimProcedure(Element):
    """A procedure of a bill: its code, or the Procedure it refers to."""

    date: str | None = None
    procedure_codeable_concept: Concept | None = None
    procedure_reference: Reference | None = None


class ClaimItem(Element):
    """A line of a bill: what was done, and when."""

    product_or_service: Concept | None = None
    service: Code | None = None  # STU3; DSTU2
    serviced_date: str | None = None
    serviced_period: Period | None = None
    encounter: list[Reference] | None = None


class Claim(Clinical, kw_only=True):
    """A bill: the diagnoses, procedures and services on it."""

    resource_type: Literal["Claim", "ExplanationOfBenefit"]
    use: str | None = None
    billable_period: Period | None = None
    created: str | None = None
    prescription: Reference | None = None
    diagnosis: list[ClaimDiagnosis] | None = None
    procedure: list[ClaimProcedure] | None = None
    item: list[ClaimItem] | None = None


class ExplanationOfBenefit(Claim, kw_only=True):
    """What an insurer made of a bill; it may name the Claim."""

    resource_type: Literal["ExplanationOfBenefit"]
    claim: Reference | None = None


class ChargeItem(Clinical, kw_only=True):
    """One thing that is charged, and when it was done."""

    resource_type: Literal["ChargeItem"]
    code: Concept | None = None
    service: list[CodeableReference] | None = None
    occurrence_date_time: str | None = None
    occurrence_period: Period | None = None
    occurrence_timing: Timing | None = None
    entered_date: str | None = None


# -- sequences


class ReferenceSequence(Element):
    """The sequence that variants are told against (STU3, R4)."""

    reference_seq_id: Concept | None = None
    strand: str | int | None = None  # watson, crick; 1, -1 in STU3


class SequenceVariant(Element):
    """A variant (STU3, R4), or an edit of a starting sequence (R5)."""

    start: int | None = None
    end: int | None = None
    observed_allele: str | None = None
    reference_allele: str | None = None
    replacement_sequence: str | None = None  # R5
    replaced_sequence: str | None = None  # R5


class StartingSequence(Element):
    """The sequence that edits are told against (R5)."""

    sequence_codeable_concept: Concept | None = None
    strand: str | None = None


class RelativeSequence(Element):
    """A sequence as edits of another (R5)."""

    coordinate_system: Concept | None = None
    starting_sequence: StartingSequence | None = None
    edit: list[SequenceVariant] | None = None


class MolecularSequence(Clinical, kw_only=True):
    """A sequence with the variants found in it."""

    resource_type: Literal["MolecularSequence", "Sequence"]
    coordinate_system: int | None = None
    reference_seq: ReferenceSequence | None = None
    variant: list[SequenceVariant] | None = None
    relative: list[RelativeSequence] | None = None  # R5


class Sequence(MolecularSequence, kw_only=True):
    """STU3's MolecularSequence."""

    resource_type: Literal["Sequence"]


FINDING_TYPES: tuple[type[Resource], ...] = (
    FamilyMemberHistory,
    Flag,
    RiskAssessment,
    AdverseEvent,
    DetectedIssue,
    ClinicalImpression,
    QuestionnaireResponse,
    Claim,
    ExplanationOfBenefit,
    ChargeItem,
    MolecularSequence,
    Sequence,
)
