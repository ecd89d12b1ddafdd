"""Assessments, answers and bills: one pure function for each resource type (see `facts`)."""

from __future__ import annotations

import math
from typing import Any

from ehrseq.fhir.clock import given, later
from ehrseq.fhir.codes import NO_SYSTEM
from ehrseq.fhir.concepts import BAD_STATUS
from ehrseq.fhir.datatypes import Concept, Period
from ehrseq.fhir.dating import POLICY, Moment, dated
from ehrseq.fhir.facts import PLAIN, Fact, Said, Scheme, code_of, concept_of
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.resource import DiagnosticReport
from ehrseq.fhir.resource_findings import (
    AdverseEvent,
    Answer,
    ChargeItem,
    Claim,
    ClinicalImpression,
    DetectedIssue,
    ExplanationOfBenefit,
    FamilyMemberHistory,
    Flag,
    Item,
    QuestionnaireResponse,
    RiskAssessment,
)
from ehrseq.fhir.rows import PERFORMED
from ehrseq.fhir.statuses import BILL_STATUS, BILL_USE, CHARGE_STATUS, EVENT_STATUS, RESULT_STATUS
from ehrseq.fhir.values import NAN, Value, as_number, read_quantity, read_range

DIAGNOSIS = Scheme("diagnosis")
PROCEDURE = Scheme("procedure", procedure=True)
FAMILY = Scheme("diagnosis", "FAMILY//")
FLAG = Scheme("diagnosis", "FLAG//")
RISK = Scheme("diagnosis", "RISK//")
ADVERSE = Scheme("diagnosis", "ADVERSE_EVENT//")
CONCLUSION = Scheme("diagnosis", "CONCLUSION//")
ISSUE = Scheme("diagnosis", "DETECTED_ISSUE//")


def family_member_history(r: FamilyMemberHistory) -> Said:
    """A relative's conditions, under `FAMILY//`, when recorded; the relationship is the text.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(family_member_history, '''{"resourceType": "FamilyMemberHistory", "status": "completed",
    ...     "date": "2011-03-18", "condition": [{"code": {"coding": [{"system": "http://snomed.info/sct",
    ...     "code": "315619001"}]}}], "relationship": {"coding": [{"code": "FTH",
    ...     "system": "http://terminology.hl7.org/CodeSystem/v3-RoleCode"}]}}''')
    [('FAMILY//SNOMED//315619001', '2011-03-18', None, 'ROLECODE//FTH')]
    """
    if (reason := BAD_STATUS.get(r.status)) is not None:
        return reason
    when = dated(r, POLICY["FamilyMemberHistory"])
    relative = code_of(r.relationship)
    known = [c.code for c in r.condition or () if not c.modifier_extension]
    return [Fact(FAMILY, concept, when, text=relative) for concept in known if concept is not None]


def flag(r: Flag) -> Said:
    """A warning on the record, from when it applied.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(flag, '''{"resourceType": "Flag", "status": "inactive", "period": {"start": "2015-01-17"},
    ...     "code": {"coding": [{"system": "http://snomed.info/sct", "code": "390846000"}]}}''')
    [('FLAG//SNOMED//390846000', '2015-01-17', None)]
    """
    if (reason := BAD_STATUS.get(r.status)) is not None:
        return reason
    return [Fact(FLAG, r.code, dated(r, POLICY["Flag"]))] if r.code is not None else Reason.NO_CODE


def risk_assessment(r: RiskAssessment) -> Said:
    """Each predicted outcome with its probability, relative risk or qualitative risk; without any, the assessment.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(risk_assessment, '''{"resourceType": "RiskAssessment", "status": "final",
    ...     "occurrenceDateTime": "2006-01-13", "prediction": [{"probabilityDecimal": 0.2, "outcome": {"coding": [
    ...     {"system": "http://snomed.info/sct", "code": "22298006"}]}}]}''')
    [('RISK//SNOMED//22298006', '2006-01-13', None, 0.2)]
    """
    if (reason := RESULT_STATUS.get(r.status)) is not None:
        return reason
    when = dated(r, POLICY["RiskAssessment"])
    facts = []
    for p in r.prediction or ():
        if p.outcome is None or not code_of(p.outcome):
            continue
        chance, relative = as_number(p.probability_decimal), as_number(p.relative_risk)
        words = code_of(p.qualitative_risk)
        if not math.isnan(chance) or p.probability_range is None:
            unit = "{relative risk}" if math.isnan(chance) and not math.isnan(relative) else None
            facts.append(Fact(RISK, p.outcome, when, relative if math.isnan(chance) else chance, words, unit=unit))
        else:
            number, text, modifier, unit = read_range(p.probability_range)
            facts.append(Fact(RISK, p.outcome, when, number, text or words, modifier, unit))
    if not facts and r.code is not None:
        facts = [Fact(RISK, r.code, when)]
    return facts


def adverse_event(r: AdverseEvent) -> Said:
    """What happened to the patient; what only nearly happened did not.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(adverse_event, '''{"resourceType": "AdverseEvent", "actuality": "actual", "date": "2017-01-29",
    ...     "event": {"coding": [{"system": "http://snomed.info/sct", "code": "304386008"}]}}''')
    [('ADVERSE_EVENT//SNOMED//304386008', '2017-01-29', None)]
    >>> preview(adverse_event, '{"resourceType": "AdverseEvent", "actuality": "potential"}')
    'not_done'
    """
    if (reason := EVENT_STATUS.get(r.status)) is not None:
        return reason
    if r.actuality == "potential":
        return Reason.NOT_DONE
    concept = r.event or r.code or r.type
    return Reason.NO_CODE if concept is None else [Fact(ADVERSE, concept, dated(r, POLICY["AdverseEvent"]))]


def detected_issue(r: DetectedIssue) -> Said:
    """A hazard found in the care itself, such as an interaction of drugs.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(detected_issue, '''{"resourceType": "DetectedIssue", "status": "final",
    ...     "identifiedDateTime": "2014-01-05",
    ...     "code": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "DRG"}]}}''')
    [('DETECTED_ISSUE//ACTCODE//DRG', '2014-01-05', None)]
    """
    if (reason := RESULT_STATUS.get(r.status)) is not None:
        return reason
    category = r.category[0] if isinstance(r.category, list) and r.category else r.category
    concept = r.code or (category if isinstance(category, Concept) else None)
    return Reason.NO_CODE if concept is None else [Fact(ISSUE, concept, dated(r, POLICY["DetectedIssue"]))]


def clinical_impression(r: ClinicalImpression) -> Said:
    """The findings that an assessment came to, as diagnoses.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(clinical_impression, '''{"resourceType": "ClinicalImpression", "status": "completed",
    ...     "date": "2014-12-06", "finding": [{"itemCodeableConcept": {"coding": [
    ...     {"system": "http://hl7.org/fhir/sid/icd-9-cm", "code": "850.0"}]}}]}''')
    [('ICD9CM//850.0', '2014-12-06', '2014-12-06')]
    """
    if (reason := EVENT_STATUS.get(r.status)) is not None:
        return reason
    when = dated(r, POLICY["ClinicalImpression"])
    found = [concept_of(f.item_codeable_concept or f.item) for f in r.finding or ()]
    return [Fact(DIAGNOSIS, concept, when) for concept in found if concept is not None]


def conclusions(r: DiagnosticReport) -> list[Fact]:
    """The coded conclusions of a report, under `CONCLUSION//`: what it found is not yet anybody's diagnosis.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(conclusions, '''{"resourceType": "DiagnosticReport", "issued": "2013-05-15T19:32:52+01:00",
    ...     "conclusionCode": [{"coding": [{"system": "http://snomed.info/sct", "code": "188340000"}]}]}''')
    [('CONCLUSION//SNOMED//188340000', '2013-05-15T19:32:52+01:00', '2013-05-15T19:32:52+01:00')]
    """
    found = [concept_of(code) for code in r.conclusion_code or r.coded_diagnosis or ()]
    return [Fact(CONCLUSION, concept, dated(r, POLICY["DiagnosticReport"])) for concept in found if concept is not None]


def questionnaire_response(r: QuestionnaireResponse) -> Said:
    """Scored and coded answers, each under `QUESTION//<questionnaire>/<linkId>`. Free text is left out, always.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(questionnaire_response, '''{"resourceType": "QuestionnaireResponse", "status": "completed",
    ...     "questionnaire": "http://loinc.org/q/44249-1|2.0", "authored": "2020-03-01", "item": [
    ...     {"linkId": "/44250-9", "answer": [{"valueCoding": {"system": "http://loinc.org", "code": "LA6569-3"}}]},
    ...     {"linkId": "/44261-6", "answer": [{"valueInteger": 12}]},
    ...     {"linkId": "note", "answer": [{"valueString": "my neighbour, Jane Doe, says ..."}]}]}''')
    [('QUESTION//44249-1//44250-9', '2020-03-01', None, 'LOINC//LA6569-3'),
     ('QUESTION//44249-1//44261-6', '2020-03-01', None, 12.0)]
    """
    if (reason := BAD_STATUS.get(r.status)) is not None:
        return reason
    canonical = (
        r.questionnaire if isinstance(r.questionnaire, str) or r.questionnaire is None else (r.questionnaire.reference)
    )
    name = (canonical or "").partition("|")[0].rstrip("/").rsplit("/", 1)[-1].removeprefix("urn:uuid:")
    facts: list[Fact] = []
    when = dated(r, POLICY["QuestionnaireResponse"])
    for item in [*(r.item or ()), *([r.group] if r.group is not None else ())]:
        _answers(item, f"QUESTION//{name or NO_SYSTEM}/", when, facts)
    return facts


def claim(r: Claim) -> Said:
    """Diagnoses and procedures that were billed and are no records of their own.

    A claim that points at a record says again what that record says. One that points at none stands alone, as in
    insurers' data: then its items are events too.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(claim, '''{"resourceType": "Claim", "status": "active", "use": "claim", "created": "2014-08-16",
    ...     "billablePeriod": {"start": "2014-08-01", "end": "2014-08-02"}, "diagnosis": [
    ...     {"diagnosisCodeableConcept": {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "E119"}]}},
    ...     {"diagnosisReference": {"reference": "Condition/1"}}]}''')
    [('ICD10CM//E11.9', '2014-08-01', '2014-08-16')]
    >>> preview(claim, '''{"resourceType": "Claim", "status": "active", "diagnosis": [
    ...     {"diagnosisReference": {"reference": "Condition/1"}}]}''')
    'restated'
    """
    if (reason := BILL_STATUS.get(r.status) or BILL_USE.get(r.use)) is not None:
        return reason
    kind = "Claim"
    when = dated(r, POLICY[kind])
    facts = [
        Fact(DIAGNOSIS, concept, when)
        for d in r.diagnosis or ()
        if (concept := d.diagnosis_codeable_concept or concept_of(d.diagnosis)) is not None
    ]
    for p in r.procedure or ():
        if p.procedure_codeable_concept is not None:
            moment = (p.date, when[1], PERFORMED) if given(p.date) else when
            facts.append(Fact(PROCEDURE, p.procedure_codeable_concept, moment))
    if _points_at_records(r):
        return facts or Reason.RESTATED
    return facts + _items(r, when)


def explanation_of_benefit(r: ExplanationOfBenefit) -> Said:
    """The same for a settled bill; one that names its Claim says again what the Claim says.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(explanation_of_benefit, '''{"resourceType": "ExplanationOfBenefit", "status": "active",
    ...     "created": "2014-08-16", "item": [{"servicedDate": "2014-08-10", "productOrService": {"coding": [
    ...     {"system": "http://www.ama-assn.org/go/cpt", "code": "99213"}]}}]}''')
    [('CPT//99213', '2014-08-10', '2014-08-16')]
    """
    if (reason := BILL_STATUS.get(r.status) or BILL_USE.get(r.use)) is not None:
        return reason
    if r.claim is not None and r.claim.reference:
        return Reason.RESTATED
    return claim(r)


def charge_item(r: ChargeItem) -> Said:
    """A service that was charged and is no record of its own.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(charge_item, '''{"resourceType": "ChargeItem", "status": "billable", "enteredDate": "2017-01-26",
    ...     "code": {"coding": [{"system": "http://www.ama-assn.org/go/cpt", "code": "99213"}]},
    ...     "occurrenceDateTime": "2017-01-25"}''')
    [('CPT//99213', '2017-01-25', '2017-01-26')]
    """
    if (reason := CHARGE_STATUS.get(r.status)) is not None:
        return reason
    if r.service:
        return Reason.RESTATED
    return Reason.NO_CODE if r.code is None else [Fact(PROCEDURE, r.code, dated(r, POLICY["ChargeItem"]))]


def _points_at_records(r: Claim) -> bool:
    parts: list[Any] = [d.diagnosis_reference for d in r.diagnosis or ()]
    parts += [p.procedure_reference for p in r.procedure or ()]
    parts += [reference for item in r.item or () for reference in item.encounter or ()]
    return r.prescription is not None or any(part is not None for part in parts)


def _items(r: Claim, when: Moment) -> list[Fact]:
    """The services billed, each at its own date where it has one."""
    facts = []
    for item in r.item or ():
        concept = item.product_or_service or concept_of(item.service)
        if concept is None:
            continue
        period = item.serviced_period or Period()
        time = given(item.serviced_date) or given(period.start)
        moment = (time, given(r.created) or later(given(period.end), when[1]), PERFORMED) if time else when
        facts.append(Fact(PROCEDURE, concept, moment))
    return facts


def _answers(item: Item, prefix: str, when: Moment, facts: list[Fact]) -> None:
    """Add the answers of an item and of all below it."""
    if item.modifier_extension:
        return
    for answer in item.answer or ():
        number, text, modifier, unit = _answer(answer)
        if item.link_id and not (math.isnan(number) and text is None):
            code = f"{prefix}{item.link_id.strip()}"
            facts.append(Fact(PLAIN, code, when, number, text, modifier, unit))
        for below in [*(answer.item or ()), *(answer.group or ())]:
            _answers(below, prefix, when, facts)
    for below in [*(item.item or ()), *(item.group or ()), *(item.question or ())]:
        _answers(below, prefix, when, facts)


def _answer(answer: Answer) -> Value:
    """The value of an answer; nothing of free text, references and files."""
    if answer.value_integer is not None:
        return as_number(answer.value_integer), None, None, None
    if answer.value_decimal is not None:
        return as_number(answer.value_decimal), None, None, None
    if answer.value_quantity is not None:
        number, _, comparator, unit = read_quantity(answer.value_quantity)
        return number, None, comparator, unit
    if answer.value_boolean is not None:
        return NAN, "true" if answer.value_boolean else "false", None, None
    if answer.value_coding is not None:
        return NAN, code_of(answer.value_coding), None, None
    return NAN, answer.value_date or answer.value_date_time or answer.value_time, None, None
