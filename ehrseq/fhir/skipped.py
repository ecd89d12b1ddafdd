"""Why each resource type that gives no events gives none."""

from __future__ import annotations

from ehrseq.fhir.ledger import Reason

_REFERENCE_DATA = (
    "Organization Practitioner PractitionerRole Location Device DeviceDefinition DeviceMetric Substance "
    "HealthcareService Endpoint OrganizationAffiliation RelatedPerson Person Group MedicationKnowledge "
    "SubstanceDefinition ResearchStudy BodyStructure InsurancePlan CatalogEntry BiologicallyDerivedProduct"
)
_FINANCIAL = (
    "Claim ClaimResponse ExplanationOfBenefit Coverage CoverageEligibilityRequest CoverageEligibilityResponse "
    "Account Invoice ChargeItem ChargeItemDefinition PaymentNotice PaymentReconciliation EnrollmentRequest "
    "EnrollmentResponse EligibilityRequest EligibilityResponse Contract"
)
_INFRASTRUCTURE = (
    "OperationOutcome Parameters Binary Provenance AuditEvent MessageHeader Subscription SubscriptionStatus "
    "SubscriptionTopic StructureDefinition StructureMap ValueSet CodeSystem ConceptMap NamingSystem "
    "SearchParameter OperationDefinition CapabilityStatement Conformance CompartmentDefinition GraphDefinition "
    "ImplementationGuide MessageDefinition TerminologyCapabilities ExampleScenario TestScript TestReport Library "
    "Measure MeasureReport PlanDefinition ActivityDefinition Questionnaire EventDefinition ObservationDefinition "
    "SpecimenDefinition ResearchDefinition ResearchElementDefinition Evidence EvidenceVariable "
    "EffectEvidenceSynthesis RiskEvidenceSynthesis VerificationResult Linkage Schedule Slot Basic List Task "
    "DataElement ExpansionProfile ServiceDefinition"
)
_REASONS = {
    name: reason
    for names, reason in (
        (_REFERENCE_DATA, Reason.REFERENCE_DATA),
        (_FINANCIAL, Reason.FINANCIAL),
        (_INFRASTRUCTURE, Reason.INFRASTRUCTURE),
    )
    for name in names.split()
}


def reason_for_type(name: str) -> Reason:
    """Why a resource type that is not read is skipped.

    >>> reason_for_type("Claim").label, reason_for_type("CarePlan").label
    ('financial', 'type_not_read')
    """
    return _REASONS.get(name, Reason.TYPE_NOT_READ)
