"""Why each resource type that gives no events gives none: a timeline has no use for it."""

from __future__ import annotations

from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.resource import READ_TYPES

# What other records refer to: things, people and places, definitions of products
_REFERENCE_DATA = (
    "Organization Practitioner PractitionerRole Location DeviceDefinition DeviceMetric DeviceComponent "
    "HealthcareService Endpoint OrganizationAffiliation RelatedPerson Person Group "
    "MedicationKnowledge Substance SubstanceDefinition SubstanceSpecification SubstanceNucleicAcid SubstancePolymer "
    "SubstanceProtein SubstanceReferenceInformation SubstanceSourceMaterial ResearchStudy BodyStructure BodySite "
    "InsurancePlan InsuranceProduct CatalogEntry NutritionProduct FormularyItem InventoryItem "
    "PackagedProductDefinition AdministrableProductDefinition ManufacturedItemDefinition "
    "MedicinalProductDefinition RegulatedAuthorization "
    "ClinicalUseDefinition Ingredient MedicinalProduct MedicinalProductAuthorization MedicinalProductContraindication "
    "MedicinalProductIndication MedicinalProductIngredient MedicinalProductInteraction MedicinalProductManufactured "
    "MedicinalProductPackaged MedicinalProductPharmaceutical MedicinalProductUndesirableEffect"
)
# Money: what was asked and paid, not what was done
_FINANCIAL = (
    "ClaimResponse CoverageEligibilityRequest CoverageEligibilityResponse Account Invoice ChargeItemDefinition "
    "PaymentNotice PaymentReconciliation EnrollmentRequest EnrollmentResponse EligibilityRequest EligibilityResponse "
    "Contract"
)
# Who cares and may see what, appointments, messages, errands: nothing that befell the patient's health
_ADMINISTRATIVE = (
    "CareTeam Permission Appointment AppointmentResponse Schedule Slot Task Communication "
    "CommunicationRequest SupplyRequest Transport InventoryReport Order OrderResponse "
    "ProcessRequest ProcessResponse"
)
# Said again of records that are there themselves
_RESTATED = (
    "List DocumentManifest ImmunizationEvaluation GenomicStudy ImagingSelection ImagingManifest ImagingObjectSelection "
    "EncounterHistory MeasureReport"
)
# What might be done one day
_PLANNED = "ImmunizationRecommendation RequestGroup RequestOrchestration GuidanceResponse"
_INFRASTRUCTURE = (
    "OperationOutcome Parameters Binary Provenance AuditEvent MessageHeader Subscription SubscriptionStatus "
    "SubscriptionTopic StructureDefinition StructureMap ValueSet CodeSystem ConceptMap NamingSystem "
    "SearchParameter OperationDefinition CapabilityStatement Conformance CompartmentDefinition GraphDefinition "
    "ImplementationGuide MessageDefinition TerminologyCapabilities ExampleScenario TestScript TestReport TestPlan "
    "Library Measure PlanDefinition ActivityDefinition Questionnaire EventDefinition "
    "ObservationDefinition SpecimenDefinition ConditionDefinition ResearchDefinition ResearchElementDefinition "
    "Evidence EvidenceReport EvidenceVariable EffectEvidenceSynthesis RiskEvidenceSynthesis Citation "
    "ArtifactAssessment ActorDefinition Requirements VerificationResult Linkage Basic DataElement ExpansionProfile "
    "ServiceDefinition"
)
_REASONS = {
    name: reason
    for names, reason in (
        (_REFERENCE_DATA, Reason.REFERENCE_DATA),
        (_FINANCIAL, Reason.FINANCIAL),
        (_ADMINISTRATIVE, Reason.ADMINISTRATIVE),
        (_RESTATED, Reason.RESTATED),
        (_PLANNED, Reason.PLANNED),
        (_INFRASTRUCTURE, Reason.INFRASTRUCTURE),
    )
    for name in names.split()
}


def known_type(name: str) -> str:
    """A resource type's name; empty for what no version of FHIR has, which is a record's content and may be anything.

    >>> known_type("Invoice"), known_type("Patient"), known_type("Jane Doe")
    ('Invoice', 'Patient', '')
    """
    return name if name in _REASONS or name in READ_TYPES or name == "Bundle" else ""


def reason_for_type(name: str) -> Reason:
    """Why a resource type that is not read is skipped.

    >>> reason_for_type("Invoice").label, reason_for_type("Appointment").label, reason_for_type("Horoscope").label
    ('financial', 'administrative', 'type_not_read')
    """
    return _REASONS.get(name, Reason.TYPE_NOT_READ)
