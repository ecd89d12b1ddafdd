"""One content in DSTU2, STU3, R4 and R5: one meaning. And the statuses that take it away."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ehrseq.fhir.dating import POLICY, policy_table
from ehrseq.fhir.events import READERS
from ehrseq.fhir.resource import READ_TYPES
from ehrseq.fhir.skipped import reason_for_type
from ehrseq.timeline.build import read_fhir

SNOMED = "http://snomed.info/sct"
PATIENT = {"resourceType": "Patient", "id": "p"}
ME = {"reference": "Patient/p"}
DAY = "2020-03-01"
STAY = {"start": "2020-03-01T08:00:00Z", "end": "2020-03-02T08:00:00Z"}
PUMP = {"resourceType": "Device", "id": "d", "type": {"coding": [{"system": SNOMED, "code": "1"}]}}
R5_PUMP = PUMP | {"type": [PUMP["type"]]}
DRUG = {"resourceType": "Medication", "id": "m", "code": PUMP["type"]}


def concept(code: str = "1", system: str = SNOMED) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def events(*resources: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(code, time, known, value) of the events, without what names the record or its version."""
    frame = read_fhir([PATIENT, *resources]).events
    columns = ("code", "time", "known_time", "numeric_value", "text_value", "unit")
    return frame.filter(frame["resource_type"] != "Patient").sort("code").select(columns).rows()


def fate(resource: dict[str, Any], *others: dict[str, Any]) -> tuple[str, str]:
    ledger = read_fhir([PATIENT, *others, resource]).ledger
    assert ledger is not None
    (row,) = [r for r in ledger.iter_rows(named=True) if r["resource_type"] == resource["resourceType"]]
    return row["fate"], row["reason"]


def make(kind: str, **fields: Any) -> dict[str, Any]:
    return {"resourceType": kind, "id": "x", "subject": ME} | fields


def of(kind: str, **fields: Any) -> dict[str, Any]:
    """Of types whose subject is called patient."""
    return {"resourceType": kind, "id": "x", "patient": ME} | fields


SAME: dict[str, list[list[dict[str, Any]]]] = {
    "Encounter": [
        [of("Encounter", **{"class": "inpatient"}, period=STAY)],  # DSTU2
        [make("Encounter", **{"class": {"code": "IMP"}}, period=STAY)],
        [make("Encounter", **{"class": [{"coding": [{"code": "IMP"}]}]}, actualPeriod=STAY)],  # R5
    ],
    "Condition": [
        [of("Condition", code=concept(), verificationStatus="confirmed", onsetDateTime="2019", dateRecorded=DAY)],
        [make("Condition", code=concept(), verificationStatus="confirmed", onsetDateTime="2019", assertedDate=DAY)],
        [make("Condition", code=concept(), verificationStatus=concept("confirmed"), onsetDateTime="2019",
              recordedDate=DAY, clinicalStatus=concept("active"))],
    ],
    "AllergyIntolerance": [
        [of("AllergyIntolerance", substance=concept(), status="confirmed", onset="2019", recordedDate=DAY)],
        [of("AllergyIntolerance", code=concept(), verificationStatus="confirmed", onsetDateTime="2019",
            assertedDate=DAY)],
        [of("AllergyIntolerance", code=concept(), onsetDateTime="2019", recordedDate=DAY)],
    ],
    "Procedure": [
        [make("Procedure", status="completed", code=concept(), performedPeriod=STAY, notPerformed=False)],
        [make("Procedure", status="completed", code=concept(), performedPeriod=STAY)],
        [make("Procedure", status="completed", code=concept(), occurrencePeriod=STAY)],
    ],
    "Observation": [
        [make("Observation", status="final", code=concept(), effectiveDateTime=DAY, valueQuantity={"value": 7},
              comments="words")],
        [make("Observation", status="final", code=concept(), effectiveDateTime=DAY, valueQuantity={"value": 7.0},
              context={"reference": "Encounter/none"})],
    ],
    "Immunization": [
        [of("Immunization", status="completed", vaccineCode=concept(), date=DAY, wasNotGiven=False)],
        [of("Immunization", status="completed", vaccineCode=concept(), date=DAY, notGiven=False)],
        [of("Immunization", status="completed", vaccineCode=concept(), occurrenceDateTime=DAY)],
    ],
    "an order of a medication": [
        [of("MedicationOrder", medicationReference={"reference": "Medication/m"}, dateWritten=DAY), DRUG],
        [make("MedicationRequest", intent="order", medicationReference={"reference": "Medication/m"},
              authoredOn=DAY), DRUG],
        [make("MedicationRequest", intent="order", medicationCodeableConcept=concept(), authoredOn=DAY)],
        [make("MedicationRequest", intent="order", medication={"concept": concept()}, authoredOn=DAY)],
        [make("MedicationRequest", intent="order", medication={"reference": {"reference": "Medication/m"}},
              authoredOn=DAY), DRUG],
    ],
    "a dose": [
        [of("MedicationAdministration", medicationCodeableConcept=concept(), effectiveTimeDateTime=DAY,
            dosage={"quantity": {"value": 5, "unit": "mg"}})],
        [make("MedicationAdministration", medicationCodeableConcept=concept(), effectiveDateTime=DAY,
              dosage={"dose": {"value": 5, "unit": "mg"}})],
        [make("MedicationAdministration", medication={"concept": concept()}, occurenceDateTime=DAY,
              dosage={"dose": {"value": 5, "unit": "mg"}})],
    ],
    "a medication taken": [
        [of("MedicationStatement", medicationCodeableConcept=concept(), wasNotTaken=False, effectiveDateTime=DAY)],
        [make("MedicationStatement", medicationCodeableConcept=concept(), taken="y", effectiveDateTime=DAY)],
        [make("MedicationUsage", medication={"concept": concept()}, effectiveDateTime=DAY)],
    ],
    "a mixture": [
        [of("MedicationOrder", medicationReference={"reference": "Medication/mix"}, dateWritten=DAY), DRUG,
         {"resourceType": "Medication", "id": "mix",
          "product": {"ingredient": [{"item": {"reference": "Medication/m"}}]}}],
        [make("MedicationRequest", medicationReference={"reference": "Medication/mix"}, authoredOn=DAY),
         {"resourceType": "Medication", "id": "mix", "ingredient": [{"itemCodeableConcept": concept()}]}],
        [make("MedicationRequest", medication={"reference": {"reference": "Medication/mix"}}, authoredOn=DAY),
         {"resourceType": "Medication", "id": "mix", "ingredient": [{"item": {"concept": concept()}}]}],
    ],
    "an order": [
        [make("DiagnosticOrder", status="completed", item=[{"code": concept()}],
              event=[{"status": "requested", "dateTime": DAY}])],
        [make("ProcedureRequest", status="completed", code=concept(), orderedOn=DAY)],
        [make("ProcedureRequest", status="completed", intent="order", code=concept(), authoredOn=DAY)],
        [of("ReferralRequest", status="completed", serviceRequested=[concept()], date=DAY)],
        [make("ServiceRequest", status="completed", intent="order", code=concept(), authoredOn=DAY)],
        [make("ServiceRequest", status="completed", intent="order", code={"concept": concept()}, authoredOn=DAY)],
        [make("DeviceUseRequest", status="completed", device={"reference": "Device/d"}, orderedOn=DAY), PUMP],
        [make("DeviceRequest", intent="order", codeReference={"reference": "Device/d"}, authoredOn=DAY), PUMP],
        [make("DeviceRequest", intent="order", code={"reference": {"reference": "Device/d"}}, authoredOn=DAY), R5_PUMP],
    ],
    "use of a device": [
        [make("DeviceUseStatement", device={"reference": "Device/d"}, whenUsed=STAY), PUMP],
        [make("DeviceUseStatement", device={"reference": "Device/d"}, timingPeriod=STAY), PUMP],
        [make("DeviceUseStatement", device={"reference": "#d"}, timingPeriod=STAY, contained=[PUMP])],
        [of("DeviceUsage", device={"concept": concept()}, timingPeriod=STAY)],
        [of("DeviceUsage", device={"reference": {"reference": "Device/d"}}, timingPeriod=STAY), R5_PUMP],
    ],
    "ImagingStudy": [
        [of("ImagingStudy", started=DAY, modalityList=[{"system": SNOMED, "code": "1"}], numberOfSeries=2)],
        [make("ImagingStudy", started=DAY, modality=[{"system": SNOMED, "code": "1"}], numberOfSeries=2)],
        [make("ImagingStudy", started=DAY, modality=[concept()], numberOfSeries=2)],
        [make("ImagingStudy", started=DAY, series=[{"modality": concept()}, {"modality": concept()}])],
    ],
    "QuestionnaireResponse": [
        [make("QuestionnaireResponse", questionnaire={"reference": "Questionnaire/phq9"}, authored=DAY,
              group={"group": [{"question": [{"linkId": "1", "answer": [{"valueInteger": 3}]}]}]})],
        [make("QuestionnaireResponse", questionnaire={"reference": "Questionnaire/phq9"}, authored=DAY,
              item=[{"linkId": "1", "answer": [{"valueInteger": 3}]}])],
        [make("QuestionnaireResponse", questionnaire="http://x.org/Questionnaire/phq9|1", authored=DAY,
              item=[{"linkId": "g", "item": [{"linkId": "1", "answer": [{"valueInteger": 3}]}]}])],
    ],
    "a bill": [
        [of("Claim", created=DAY, diagnosis=[{"diagnosis": {"system": SNOMED, "code": "1"}}])],
        [of("Claim", use="claim", created=DAY, diagnosis=[{"diagnosisCodeableConcept": concept()}])],
        [of("ExplanationOfBenefit", created=DAY, item=[{"service": concept()}])],
        [of("ExplanationOfBenefit", created=DAY, item=[{"productOrService": concept()}])],
    ],
    "DocumentReference": [
        [make("DocumentReference", type=concept(), indexed=DAY)],
        [make("DocumentReference", type=concept(), date=DAY, context={"encounter": [{"reference": "Encounter/e"}]})],
        [make("DocumentReference", type=concept(), date=DAY, context=[{"reference": "Encounter/e"}])],
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_one_content_is_one_meaning(name: str) -> None:
    first, *others = (events(*resources) for resources in SAME[name])
    assert first
    for other in others:
        assert other == first


DATED = make("Goal", description=concept(), startDate=DAY)
NOT_SO = [
    (make("CarePlan", status="draft", category=[concept()]), "planned"),
    (make("CarePlan", intent="proposal", category=[concept()]), "planned"),
    (make("CarePlan", status="entered-in-error", category=[concept()]), "entered_in_error"),
    (make("ServiceRequest", status="draft", code=concept()), "planned"),
    (make("ServiceRequest", intent="plan", code=concept()), "planned"),
    (make("ServiceRequest", doNotPerform=True, code=concept()), "not_done"),
    (make("DeviceRequest", intent="proposal"), "planned"),
    (make("DocumentReference", status="entered-in-error", type=concept()), "entered_in_error"),
    (make("DocumentReference", status="current", docStatus="entered-in-error", type=concept()), "entered_in_error"),
    (make("ImagingStudy", status="cancelled"), "not_done"),
    (make("ImagingStudy", status="registered"), "not_done"),
    (make("Specimen", status="entered-in-error", type=concept()), "entered_in_error"),
    (make("DeviceUseStatement", status="intended"), "planned"),
    (of("DeviceUsage", status="not-done"), "not_done"),
    (of("FamilyMemberHistory", status="entered-in-error"), "entered_in_error"),
    (make("AdverseEvent", actuality="potential", event=concept()), "not_done"),
    (make("Goal", lifecycleStatus="proposed", description=concept()), "planned"),
    (make("Goal", lifecycleStatus="rejected", description=concept()), "not_done"),
    (make("QuestionnaireResponse", status="entered-in-error"), "entered_in_error"),
    (of("Claim", use="preauthorization"), "planned"),
    (of("Claim", status="cancelled"), "not_done"),
    (of("Claim", diagnosis=[{"diagnosisReference": {"reference": "Condition/c"}}]), "restated"),
    (of("ExplanationOfBenefit", claim={"reference": "Claim/c"}), "restated"),
    (make("ChargeItem", service=[{"reference": "Procedure/1"}], code=concept()), "restated"),
    (of("Immunization", wasNotGiven=True, vaccineCode=concept(), date=DAY), "not_done"),
    (make("Procedure", notPerformed=True, code=concept(), performedDateTime=DAY), "not_done"),
    (of("MedicationStatement", wasNotTaken=True, medicationCodeableConcept=concept()), "not_done"),
    (of("MedicationAdministration", wasNotGiven=True, medicationCodeableConcept=concept()), "not_done"),
    (of("AllergyIntolerance", status="refuted", substance=concept(), recordedDate=DAY), "refuted"),
    (make("RiskAssessment", status="registered"), "not_done"),
    (make("SupplyDelivery", status="abandoned"), "not_done"),
    (DATED | {"modifierExtension": [{"url": "x"}]}, "modifier_extension"),
    (DATED | {"description": {"text": "words"}}, "no_code"),
    (DATED | {"startDate": "soon"}, "invalid_time"),
    ({k: v for k, v in DATED.items() if k != "startDate"}, "no_time"),
    (make("MolecularSequence", referenceSeq={"referenceSeqId": concept()}, variant=[{"start": 1}]), "no_code"),
    (make("MolecularSequence", referenceSeq={"referenceSeqId": concept()}, observedSeq="ACGT"), "reference_data"),
    (make("MolecularSequence", referenceSeq={"referenceSeqId": concept()}, coordinateSystem=0,
          variant=[{"start": 1, "observedAllele": "A", "referenceAllele": "C"}]), "no_time"),
    (make("EpisodeOfCare", status="cancelled"), "not_done"),
    (make("EpisodeOfCare", status="active"), "no_time"),
]  # fmt: skip


@pytest.mark.parametrize(("resource", "reason"), NOT_SO)
def test_what_takes_an_event_away(resource: dict[str, Any], reason: str) -> None:
    assert fate(resource) == ("skipped", reason)
    assert events(resource) == []


def test_a_device_and_a_blood_product_by_reference() -> None:
    device = make("Device", type=[concept()]) | {"id": "d"}
    product = {"resourceType": "BiologicallyDerivedProduct", "id": "b", "productCode": concept()}
    attached = make("DeviceAssociation", status=concept("attached"), device={"reference": "Device/d"},
                    period={"start": "2020-03-01", "end": "2021-03-01"})  # fmt: skip
    given = make("BiologicallyDerivedProductDispense", status="issued", patient={"reference": "Patient/p"},
                 product={"reference": "BiologicallyDerivedProduct/b"}, whenHandedOver="2020-03-01",
                 quantity={"value": 2, "unit": "units"})  # fmt: skip
    frame = read_fhir([PATIENT, device, product, attached, given]).events
    found = {row["resource_type"]: row for row in frame.iter_rows(named=True)}
    assert found["DeviceAssociation"]["code"].startswith("DEVICE//")
    assert found["BiologicallyDerivedProductDispense"]["code"].startswith("SUPPLY//")
    assert found["BiologicallyDerivedProductDispense"]["numeric_value"] == 2
    for kind in ("DeviceAssociation", "BiologicallyDerivedProductDispense"):
        assert found[kind]["time"] == datetime(2020, 3, 1)
        assert found[kind]["known_time"] == datetime(2020, 3, 1, 23, 59, 59, 999999)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scope": concept("adr"), "category": [concept("x")], "dateTime": "2020-03-01"}, ("x", None)),
        ({"category": [concept("dnr")], "dateTime": "2020-03-01", "provision": {"type": "deny"}}, ("dnr", "deny")),
        ({"category": [concept("dnr")], "date": "2020-03-01", "decision": "permit"}, ("dnr", "permit")),
        ({"scope": concept("patient-privacy"), "category": [concept("x")], "dateTime": "2020-03-01"}, None),
        ({"category": [concept("dnr")], "dateTime": "2020-03-01", "status": "rejected"}, None),
    ],
)
def test_directives_about_treatment(fields: dict[str, Any], said: tuple[str, str | None] | None) -> None:
    record = {"resourceType": "Consent", "id": "c", "status": "active", "patient": {"reference": "Patient/p"}} | fields
    events = read_fhir([PATIENT, record]).events.filter(resource_type="Consent")
    rows = [(row["code"].rsplit("//", 1)[-1], row["text_value"]) for row in events.iter_rows(named=True)]
    assert rows == ([] if said is None else [said])
    assert events["code"].str.starts_with("CONSENT//").all()


def test_an_unknown_device_is_no_event() -> None:
    used = make("DeviceUseStatement", device={"reference": "Device/lost"}, timingDateTime=DAY)
    assert fate(used) == ("skipped", "unknown_medication")


def test_words_are_no_answers() -> None:
    item = {"linkId": "1", "answer": [{"valueString": "x"}, {"valueCoding": {"display": "y"}}, {"valueUri": "z:z"}]}
    assert fate(make("QuestionnaireResponse", authored=DAY, item=[item])) == ("skipped", "no_code")


def test_follow_up_from_an_episode_of_care_and_a_coverage() -> None:
    seen = make("Observation", status="final", code=concept(), effectiveDateTime="2021-01-01")
    for record in (
        of("EpisodeOfCare", status="finished", period={"start": "2020", "end": "2022"}),
        {"resourceType": "Coverage", "id": "x", "beneficiary": ME, "period": {"start": "2020", "end": "2022"}},
    ):
        row = read_fhir([PATIENT, seen, record]).subjects.row(0, named=True)
        assert (row["follow_up_start"].year, row["follow_up_end"].year) == (2020, 2022)
        assert row["follow_up_rule"] == "observation_period"


def test_a_plans_foreseen_end_is_no_knowledge() -> None:
    plan = make("CarePlan", intent="plan", category=[concept()], period={"start": DAY, "end": "2030"})
    ((_, time, known, *_),) = events(plan)
    assert (time.year, known.year) == (2020, 2020)


def test_the_docs_hold_the_policy() -> None:
    page = (Path(__file__).parents[2] / "docs" / "timeline.md").read_text(encoding="utf-8")
    found = re.search("<!-- policy -->\n(.*?)\n<!-- end of policy -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == policy_table()


def test_the_docs_name_every_type_that_is_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "timeline.md").read_text(encoding="utf-8")
    table = page[page.index("## What each resource type gives") : page.index("### Genomics")]
    assert [name for name in READ_TYPES if name not in table] == []


def test_every_type_has_a_policy_and_none_is_read_and_skipped() -> None:
    alias = {"DeviceUsage": "DeviceUseStatement", "Sequence": "MolecularSequence", "DeviceUseRequest": "DeviceRequest"}
    assert [kind for kind in READERS if alias.get(kind, kind) not in POLICY] == []
    assert [kind for kind in READ_TYPES if reason_for_type(kind).label != "type_not_read"] == []
