"""Plans and orders, documents, images, specimens, directives: one pure function for each resource type.

Each says of a record which facts it holds, or why none (see `facts`). A plan, an order, a document is an event under
a prefix of its own: to order a colonoscopy is not to have had one.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ehrseq.fhir.clock import given
from ehrseq.fhir.concepts import BAD_STATUS, coded_pairs, status_code
from ehrseq.fhir.datatypes import Concept
from ehrseq.fhir.dating import POLICY, dated
from ehrseq.fhir.facts import ORDER, PLAIN, Fact, Said, Scheme, code_of, concept_of
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.resource_care import (
    CarePlan,
    Composition,
    Consent,
    DiagnosticOrder,
    DocumentReference,
    Goal,
    ImagingStudy,
    Media,
    NutritionOrder,
    Order,
    ProcedureRequest,
    ReferralRequest,
    ServiceRequest,
    Specimen,
    VisionPrescription,
)
from ehrseq.fhir.rows import AUTHORED
from ehrseq.fhir.statuses import (
    DOCUMENT_STATUS,
    EVENT_STATUS,
    GOAL_STATUS,
    ORDER_STATUS,
    PLAN_INTENT,
    order_fault,
)

CARE_PLAN = Scheme("procedure", "CAREPLAN//")
GOAL = Scheme("procedure", "GOAL//")
DOCUMENT = Scheme("measurement", "DOCUMENT//")
IMAGING = Scheme("procedure", "IMAGING//")
SPECIMEN = Scheme("procedure", "SPECIMEN//")
CONSENT = Scheme("procedure", "CONSENT//")
DIRECTIVES = {"adr", "treatment", "acd", "dnr", "hcd", "polst"}  # scopes and categories of consents about treatment


def care_plan(r: CarePlan) -> Said:
    """The plan's categories, and what it plans (whatever became of it), when it starts.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(care_plan, '''{"resourceType": "CarePlan", "status": "completed", "intent": "plan",
    ...     "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "698360004"}]}],
    ...     "activity": [{"detail": {"code": {"coding": [{"system": "http://snomed.info/sct", "code": "229065009"}]}}}],
    ...     "period": {"start": "2013-02", "end": "2014"}}''')
    [('CAREPLAN//SNOMED//698360004', '2013-02', None), ('CAREPLAN//SNOMED//229065009', '2013-02', None)]
    """
    reason = ORDER_STATUS.get(r.status) or PLAN_INTENT.get(r.intent)
    if reason is not None:
        return reason
    when = dated(r, POLICY["CarePlan"])
    details = [a.detail for a in r.activity or () if a.detail is not None]
    planned = [d.code for d in details if not (d.prohibited or d.do_not_perform or d.status == "entered-in-error")]
    return [Fact(CARE_PLAN, concept, when) for concept in [*(r.category or ()), *planned] if concept is not None]


def service_request(r: ServiceRequest) -> Said:
    """What was ordered, when the order was written.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(service_request, '''{"resourceType": "ServiceRequest", "status": "revoked", "intent": "order",
    ...     "code": {"coding": [{"system": "http://loinc.org", "code": "58410-2"}]}, "authoredOn": "2020-03-01"}''')
    [('ORDER//LOINC//58410-2', '2020-03-01', None)]
    """
    return _order(r, "ServiceRequest", [r.code])


def procedure_request(r: ProcedureRequest) -> Said:
    """The order of a procedure or examination in DSTU2 and STU3.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(procedure_request, '{"resourceType": "ProcedureRequest", "intent": "proposal"}')
    'planned'
    """
    return _order(r, "ProcedureRequest", [r.code])


def referral_request(r: ReferralRequest) -> Said:
    """The services that a referral asks for, in DSTU2 and STU3; failing that, its type.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(referral_request, '''{"resourceType": "ReferralRequest", "status": "active", "date": "2014-02-14",
    ...     "type": {"coding": [{"system": "http://snomed.info/sct", "code": "274410002"}]}}''')
    [('ORDER//SNOMED//274410002', '2014-02-14', None)]
    """
    return _order(r, "ReferralRequest", r.service_requested or [r.type])


def diagnostic_order(r: DiagnosticOrder) -> Said:
    """The examinations that an order of DSTU2 asks for, at its first event.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(diagnostic_order, '''{"resourceType": "DiagnosticOrder", "status": "completed",
    ...     "item": [{"code": {"coding": [{"system": "http://loinc.org", "code": "2951-2"}]}}],
    ...     "event": [{"dateTime": "2013-05-03"}, {"dateTime": "2013-05-02"}]}''')
    [('ORDER//LOINC//2951-2', '2013-05-02', None)]
    """
    when = min((time for e in r.event or () if (time := given(e.date_time))), default=None)
    said = _order(r, "DiagnosticOrder", [item.code for item in r.item or ()])
    if isinstance(said, Reason) or when is None:
        return said
    return [fact._replace(moment=(when, None, AUTHORED)) for fact in said]


def nutrition_order(r: NutritionOrder) -> Said:
    """Diets, supplements and formulas ordered.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(nutrition_order, '''{"resourceType": "NutritionOrder", "status": "active", "dateTime": "2014-09-17",
    ...     "oralDiet": {"type": [{"coding": [{"system": "http://snomed.info/sct", "code": "386619000"}]}]}}''')
    [('ORDER//SNOMED//386619000', '2014-09-17', None)]
    """
    wanted: list[Any] = list(r.oral_diet.type or ()) if r.oral_diet else []
    wanted += [s.type for s in r.supplement or ()]
    wanted += [r.enteral_formula.base_formula_type] if r.enteral_formula else []
    return _order(r, "NutritionOrder", wanted)


def vision_prescription(r: VisionPrescription) -> Said:
    """The kinds of lenses prescribed.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(vision_prescription, '''{"resourceType": "VisionPrescription", "status": "active",
    ...     "dateWritten": "2014-06-15", "lensSpecification": [{"product": {"coding": [{"code": "lens"}]}},
    ...     {"product": {"coding": [{"code": "lens"}]}}]}''')
    [('ORDER//UNKNOWN//lens', '2014-06-15', None)]
    """
    if (reason := ORDER_STATUS.get(r.status)) is not None:
        return reason
    when = dated(r, POLICY["VisionPrescription"])
    lenses = {code_of(lens.product): concept_of(lens.product) for lens in r.lens_specification or ()}
    return [Fact(ORDER, concept, when) for concept in lenses.values() if concept is not None]


def goal(r: Goal) -> Said:
    """A goal that was agreed on, else the measures it is about; whether it was reached is known to observations.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(goal, '''{"resourceType": "Goal", "lifecycleStatus": "active", "startDate": "2015-04-05",
    ...     "description": {"coding": [{"system": "http://snomed.info/sct", "code": "289169006"}]}}''')
    [('GOAL//SNOMED//289169006', '2015-04-05', None)]
    """
    if (reason := GOAL_STATUS.get(r.lifecycle_status or r.status)) is not None:
        return reason
    if isinstance(r.description, Concept) and r.description.coding:  # text in DSTU2
        aims: list[Concept | None] = [r.description]
    else:
        aims = [target.measure for target in r.target or ()]
    when = dated(r, POLICY["Goal"])
    return [Fact(GOAL, concept, when) for concept in aims if concept is not None]


def document_reference(r: DocumentReference) -> Said:
    """That a document of this type exists; never its text.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(document_reference, '''{"resourceType": "DocumentReference", "status": "superseded",
    ...     "type": {"coding": [{"system": "http://loinc.org", "code": "34117-2"}]},
    ...     "date": "2013-07-01T23:11:33+10:00"}''')
    [('DOCUMENT//LOINC//34117-2', '2013-07-01T23:11:33+10:00', None)]
    """
    if (reason := DOCUMENT_STATUS.get(r.status) or DOCUMENT_STATUS.get(status_code(r.doc_status))) is not None:
        return reason
    return _document(r, POLICY["DocumentReference"], [r.type, *(r.category or ())])


def composition(r: Composition) -> Said:
    """That a document of this type was composed; its entries are records of their own.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(composition, '''{"resourceType": "Composition", "status": "final", "date": "2013-02-01",
    ...     "type": {"coding": [{"system": "http://loinc.org", "code": "28655-9"}]}}''')
    [('DOCUMENT//LOINC//28655-9', '2013-02-01', None)]
    """
    if (reason := DOCUMENT_STATUS.get(r.status)) is not None:
        return reason
    return _document(r, POLICY["Composition"], [r.type])


def imaging_study(r: ImagingStudy) -> Said:
    """For each modality and body site the number of series (the value; the site is its text); and what was done.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(imaging_study, '''{"resourceType": "ImagingStudy", "status": "available", "started": "2010-12-20",
    ...     "series": [{"modality": {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"}},
    ...                {"modality": {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"}}]}''')
    [('IMAGING//DCM//CT', '2010-12-20', None, 2.0)]
    """
    if (reason := DOCUMENT_STATUS.get(r.status)) is not None:
        return reason
    when = dated(r, POLICY["ImagingStudy"])
    facts = [Fact(IMAGING, concept, when) for concept in r.procedure_code or ()]
    if r.series:
        sites = Counter((code_of(s.modality, "procedure"), code_of(s.body_site, "diagnosis")) for s in r.series)
        for (modality, site), series in sorted(sites.items(), key=str):
            if modality:
                facts.append(Fact(PLAIN, "IMAGING//" + modality, when, float(series), site, unit="{series}"))
        return facts
    modalities = r.modality or r.modality_list or []
    count = float(r.number_of_series) if r.number_of_series is not None and len(modalities) == 1 else float("nan")
    unit = "{series}" if count == count else None
    concepts = [concept for item in modalities if (concept := concept_of(item)) is not None]
    return facts + [Fact(IMAGING, concept, when, count, unit=unit) for concept in concepts]


def media(r: Media) -> Said:
    """That a picture or recording of this modality (failing that, type) was made; never its content.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(media, '''{"resourceType": "Media", "status": "completed", "createdDateTime": "2017-12-17",
    ...     "modality": {"coding": [{"system": "http://snomed.info/sct", "code": "39714003"}]}}''')
    [('IMAGING//SNOMED//39714003', '2017-12-17', None)]
    """
    if (reason := EVENT_STATUS.get(r.status)) is not None:
        return reason
    concept = r.modality or (r.type if isinstance(r.type, Concept) else None)
    if concept is None:
        return Reason.NO_CODE
    return [Fact(IMAGING, concept, dated(r, POLICY["Media"]), text=code_of(r.body_site, "diagnosis"))]


def specimen(r: Specimen) -> Said:
    """That a specimen of this type was taken; where from is its text. One lost since was taken all the same.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(specimen, '''{"resourceType": "Specimen", "status": "unavailable",
    ...     "type": {"coding": [{"system": "http://snomed.info/sct", "code": "119364003"}]},
    ...     "collection": {"collectedDateTime": "2015-08-16T06:40:17Z"}, "receivedTime": "2015-08-18"}''')
    [('SPECIMEN//SNOMED//119364003', '2015-08-16T06:40:17Z', None)]
    """
    if (reason := BAD_STATUS.get(r.status)) is not None:
        return reason
    if r.type is None:
        return Reason.NO_CODE
    policy = POLICY["Specimen"]
    when = dated(r.collection, policy) if r.collection is not None else dated(r, policy)
    if not given(when[0]) and given((received := dated(r, policy))[0]):
        when = received
    site = code_of(r.collection.body_site, "diagnosis") if r.collection is not None else None
    return [Fact(SPECIMEN, r.type, when, text=site)]


def consent(r: Consent) -> Said:
    """A directive about treatment, such as not to resuscitate; whether it permits or denies is its text.

    Who may see the patient's data, and who may do research with them, befalls nobody's health.

    >>> from ehrseq.fhir.facts import preview
    >>> text = '''{"resourceType": "Consent", "status": "active", "dateTime": "2015-11-18", "category": [{"coding": [
    ...     {"system": "http://terminology.hl7.org/CodeSystem/consentcategorycodes", "code": "dnr"}]}]}'''
    >>> preview(consent, text)
    [('CONSENT//http://terminology.hl7.org/CodeSystem/consentcategorycodes//dnr', '2015-11-18', None)]
    >>> preview(consent, text.replace("dnr", "research"))
    'administrative'
    """
    reason = ORDER_STATUS.get(r.status) or (Reason.NOT_DONE if r.status == "rejected" else None)
    if reason is not None:
        return reason
    about = [code for concept in [r.scope, *(r.category or ())] for _, code in coded_pairs(concept)]
    if not DIRECTIVES.intersection(about):
        return Reason.ADMINISTRATIVE
    provisions = r.provision if isinstance(r.provision, list) else [r.provision] if r.provision is not None else []
    says = r.decision or next((p.type for p in provisions if p.type), None)
    return [Fact(CONSENT, concept, dated(r, POLICY["Consent"]), text=says) for concept in r.category or ()]


def _order(r: Order, kind: str, wanted: list[Any]) -> Said:
    if (reason := order_fault(r)) is not None:
        return reason
    when = dated(r, POLICY[kind])
    concepts = [concept_of(item) for item in wanted]
    return [Fact(ORDER, concept, when) for concept in concepts if concept is not None]


def _document(r: Any, policy: Any, concepts: list[Concept | None]) -> Said:
    """The first concept that has a code."""
    concept = next((c for c in concepts if code_of(c)), None)
    return Reason.NO_CODE if concept is None else [Fact(DOCUMENT, concept, dated(r, policy))]
