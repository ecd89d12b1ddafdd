"""The events of each resource type, R4 and STU3 side by side, seen through `read_fhir`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from ehrseq.timeline.build import read_fhir

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
PATIENT = {"resourceType": "Patient", "id": "p"}
ME = {"reference": "Patient/p"}
DAY = "2020-03-01"
LAST = datetime(2020, 3, 1, 23, 59, 59, 999999)


def concept(code: str, system: str = SNOMED) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def events(*resources: dict[str, Any]) -> list[dict[str, Any]]:
    frame = read_fhir([PATIENT, *resources]).events
    return [row for row in frame.iter_rows(named=True) if row["resource_type"] != "Patient"]


def codes(*resources: dict[str, Any]) -> list[str]:
    return [row["code"] for row in events(*resources)]


def fate(resource: dict[str, Any]) -> tuple[str, str]:
    ledger = read_fhir([PATIENT, resource]).ledger
    assert ledger is not None
    (row,) = [r for r in ledger.iter_rows(named=True) if r["resource_type"] == resource["resourceType"]]
    assert row["count"] == 1
    return row["fate"], row["reason"]


def make(kind: str, **fields: Any) -> dict[str, Any]:
    who = "patient" if kind in ("Immunization", "AllergyIntolerance", "MedicationOrder") else "subject"
    return {"resourceType": kind, "id": "x", who: ME} | fields


CODED = {
    "Condition": make("Condition", code=concept("1"), onsetDateTime=DAY),
    "Observation": make("Observation", status="final", code=concept("1"), effectiveDateTime=DAY),
    "MedicationRequest": make("MedicationRequest", medicationCodeableConcept=concept("1"), authoredOn=DAY),
    "MedicationOrder": make("MedicationOrder", medicationCodeableConcept=concept("1"), dateWritten=DAY),
    "MedicationAdministration": make(
        "MedicationAdministration", medicationCodeableConcept=concept("1"), effectiveDateTime=DAY
    ),
    "MedicationDispense": make("MedicationDispense", medicationCodeableConcept=concept("1"), whenHandedOver=DAY),
    "MedicationStatement": make("MedicationStatement", medicationCodeableConcept=concept("1"), effectiveDateTime=DAY),
    "Procedure": make("Procedure", status="completed", code=concept("1"), performedDateTime=DAY),
    "Immunization": make("Immunization", vaccineCode=concept("1"), occurrenceDateTime=DAY),
    "AllergyIntolerance": make("AllergyIntolerance", code=concept("1"), onsetDateTime=DAY),
    "DiagnosticReport": make("DiagnosticReport", status="final", code=concept("1"), effectiveDateTime=DAY),
}


@pytest.mark.parametrize("kind", CODED)
def test_a_dated_record_is_an_event_known_at_the_days_end(kind: str) -> None:
    (row,) = events(CODED[kind])
    assert row["code"] == ("ALLERGY//SNOMED//1" if kind == "AllergyIntolerance" else "SNOMED//1")
    assert row["time"] == datetime(2020, 3, 1)
    assert row["known_time"] == LAST
    assert (row["time_precision"], row["utc_offset"]) == ("day", None)
    assert (row["resource_type"], row["resource_id"], row["encounter_id"]) == (kind, "x", None)


@pytest.mark.parametrize("kind", CODED)
def test_why_a_record_gives_no_event(kind: str) -> None:
    good = CODED[kind]
    undated = {k: v for k, v in good.items() if not k.endswith(("DateTime", "On", "Over", "Written"))}
    text_only = {k: {"text": "words"} if isinstance(v, dict) and "coding" in v else v for k, v in good.items()}
    anonymous = {k: v for k, v in good.items() if v != ME}
    date = next(k for k in good if k not in undated)
    assert fate(good) == ("events", "")
    assert fate(undated) == ("skipped", "no_time")
    assert fate(good | {date: "last year"}) == ("skipped", "invalid_time")
    assert fate(text_only) == ("skipped", "no_code")
    assert fate(anonymous) == ("skipped", "no_subject")
    assert fate(good | {"modifierExtension": [{"url": "x"}]}) == ("skipped", "modifier_extension")
    if kind not in ("Condition", "AllergyIntolerance"):
        assert fate(good | {"status": "entered-in-error"}) == ("skipped", "entered_in_error")
    who = next(k for k, v in good.items() if v == ME)
    for reference in ("Patient/q", "#p", "urn:uuid:1", "Patient?identifier=a|b"):
        assert fate(good | {who: {"reference": reference}}) == ("skipped", "unknown_subject")
    assert fate(good | {who: {"reference": "Group/g"}}) == ("skipped", "not_a_patient")


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("Observation", {"status": "cancelled"}, "not_done"),
        ("Observation", {"status": "registered"}, "not_done"),
        ("MedicationRequest", {"status": "draft"}, "planned"),
        ("MedicationRequest", {"intent": "plan"}, "planned"),
        ("MedicationRequest", {"doNotPerform": True}, "not_done"),
        ("MedicationAdministration", {"status": "not-done"}, "not_done"),
        ("MedicationAdministration", {"notGiven": True}, "not_done"),
        ("MedicationDispense", {"status": "declined"}, "not_done"),
        ("MedicationDispense", {"notDone": True}, "not_done"),
        ("MedicationStatement", {"status": "not-taken"}, "not_done"),
        ("MedicationStatement", {"status": "intended"}, "planned"),
        ("MedicationStatement", {"taken": "n"}, "not_done"),
        ("Procedure", {"status": "not-done"}, "not_done"),
        ("Procedure", {"status": "preparation"}, "planned"),
        ("Procedure", {"notDone": True}, "not_done"),
        ("Immunization", {"status": "not-done"}, "not_done"),
        ("Immunization", {"notGiven": True}, "not_done"),
        ("Condition", {"verificationStatus": concept("refuted")}, "refuted"),
        ("Condition", {"verificationStatus": "refuted"}, "refuted"),
        ("Condition", {"verificationStatus": concept("entered-in-error")}, "entered_in_error"),
        ("AllergyIntolerance", {"verificationStatus": "entered-in-error"}, "entered_in_error"),
    ],
)
def test_statuses_that_mean_it_did_not_happen(kind: str, fields: dict[str, Any], reason: str) -> None:
    assert fate(CODED[kind] | fields) == ("skipped", reason)


def test_an_order_withdrawn_later_was_given_all_the_same() -> None:
    assert fate(CODED["MedicationRequest"] | {"status": "cancelled"}) == ("events", "")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"code": "IMP"}, "inpatient"),
        ({"code": "ACUTE"}, "inpatient"),
        ({"code": "EMER"}, "emergency"),
        ({"code": "AMB"}, "ambulatory"),
        ("outpatient", "ambulatory"),
        ([{"coding": [{"code": "IMP"}]}], "inpatient"),
        ({"code": "Night Clinic"}, "night_clinic"),
        (None, "unknown"),
    ],
)
def test_encounters_have_a_start_and_an_end(value: Any, name: str) -> None:
    encounter = make(
        "Encounter",
        **{"class": value},
        type=[concept("185347001")],
        period={"start": "2020-03-01T10:00:00Z", "end": "2020-03-02T10:00:00Z"},
    )
    rows = events(encounter)
    assert [(r["code"], r["time"].day) for r in rows] == [
        (f"ENCOUNTER//{name}/admission", 1),
        ("SNOMED//185347001", 1),
        (f"ENCOUNTER//{name}/discharge", 2),
    ]
    assert all(r["known_time"] == r["time"] and r["encounter_id"] == "x" for r in rows)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "planned"}, "planned"),
        ({"status": "cancelled"}, "not_done"),
        ({"status": "entered-in-error"}, "entered_in_error"),
        ({"period": {}}, "no_time"),
    ],
)
def test_encounters_that_were_none(fields: dict[str, Any], reason: str) -> None:
    assert fate(make("Encounter", period={"start": DAY}) | fields) == ("skipped", reason)


def test_a_panel_gives_its_parts_and_not_itself() -> None:
    panel = make(
        "Observation",
        status="final",
        code=concept("85354-9", LOINC),
        effectiveDateTime=DAY,
        component=[
            {"code": concept("8480-6", LOINC), "valueQuantity": {"value": 120, "code": "mm[Hg]"}},
            {"code": concept("8462-4", LOINC), "dataAbsentReason": concept("unknown")},
            {"code": {"text": "no code"}, "valueString": "x"},
        ],
    )
    rows = events(panel)
    found = [(r["code"], r["numeric_value"], r["value_modifier"], r["unit"]) for r in rows]
    assert found == [
        ("LOINC//8462-4", None, "unknown", None),
        ("LOINC//8480-6", 120.0, None, "mm[Hg]"),
    ]
    assert read_fhir([PATIENT, panel]).metadata["events_left_out"] == {"no_code": 1}
    assert fate(panel | {"code": {}, "component": panel["component"][2:]}) == ("skipped", "no_code")
    assert "LOINC//85354-9" in codes(panel | {"valueString": "high"})
    assert codes(panel | {"component": []}) == ["LOINC//85354-9"]


def test_an_end_of_illness_is_an_event_of_its_own() -> None:
    rows = events(CODED["Condition"] | {"abatementDateTime": "2020-05", "recordedDate": "2020-03-02"})
    assert [(r["code"], r["time"].month, r["known_time"].month) for r in rows] == [
        ("SNOMED//1", 3, 3),
        ("ABATEMENT//SNOMED//1", 5, 5),
    ]


def test_a_dose_is_a_value() -> None:
    given = CODED["MedicationAdministration"] | {"dosage": {"dose": {"value": 2.5, "unit": "g"}}}
    (row,) = events(given)
    assert (row["numeric_value"], row["unit"]) == (2.5, "g")
    (row,) = events(given | {"dosage": {"dose": {"value": "<3", "unit": "g"}}})
    assert (row["numeric_value"], row["value_modifier"]) == (3, "<")
    (row,) = events(given | {"dosage": {"dose": {"value": "one puff"}}})
    assert (row["numeric_value"], row["text_value"]) == (None, "one puff")


@pytest.mark.filterwarnings("error")
def test_a_number_too_large_for_the_column_is_kept_as_text() -> None:
    (row,) = events(CODED["Observation"] | {"valueQuantity": {"value": 1e39}})
    assert (row["numeric_value"], row["text_value"]) == (None, "1e+39")


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("Procedure", "performed"),
        ("MedicationAdministration", "effective"),
        ("MedicationStatement", "effective"),
    ],
)
def test_the_end_of_a_period_says_nothing_at_its_start(kind: str, field: str) -> None:
    dateless = {k: v for k, v in CODED[kind].items() if not k.endswith("DateTime")}
    start, end = "2020-03-01T10:00:00Z", "2020-03-07T10:00:00Z"
    closed, running = (events(dateless | {f"{field}Period": p}) for p in ({"start": start, "end": end},
                                                                          {"start": start}))  # fmt: skip
    assert closed == running
    assert closed[0]["time"] == closed[0]["known_time"] == datetime(2020, 3, 1, 10)
    (ended,) = events(dateless | {f"{field}Period": {"end": end}})
    assert ended["time"] == ended["known_time"] == datetime(2020, 3, 7, 10)


@pytest.mark.parametrize("kind", ["Observation", "DiagnosticReport"])
def test_a_result_over_a_period_exists_at_its_end(kind: str) -> None:
    dateless = {k: v for k, v in CODED[kind].items() if not k.endswith("DateTime")}
    (row,) = events(dateless | {"effectivePeriod": {"start": "2020-03-01", "end": "2020-03-07T10:00:00Z"}})
    assert (row["time"], row["known_time"]) == (datetime(2020, 3, 1), datetime(2020, 3, 7, 10))


def medication_request(**fields: Any) -> dict[str, Any]:
    return make("MedicationRequest", authoredOn=DAY, **fields)


def test_medications_by_reference() -> None:
    water = {"resourceType": "Medication", "id": "w", "code": concept("water", RXNORM)}
    mixture = {
        "resourceType": "Medication",
        "id": "mix",
        "ingredient": [
            {"itemCodeableConcept": concept("salt", RXNORM)},
            {"itemReference": {"reference": "http://x.org/fhir/Medication/w"}},
        ],
    }
    request = medication_request(medicationReference={"reference": "Medication/mix"})
    assert codes(request, mixture, water) == ["RXNORM//salt", "RXNORM//water"]
    assert codes(mixture, water, request) == ["RXNORM//salt", "RXNORM//water"]
    assert fate(request) == ("skipped", "unknown_medication")
    given = make(
        "MedicationAdministration",
        effectiveDateTime=DAY,
        medicationReference={"reference": "Medication/mix"},
        dosage={"dose": {"value": 1, "unit": "L"}},
    )
    assert [(r["numeric_value"], r["unit"]) for r in events(mixture, water, given)] == [(None, None)] * 2
    endless = mixture | {"ingredient": [{"itemReference": {"reference": "Medication/mix"}}]}
    assert codes(request, endless) == []


def test_contained_medications() -> None:
    drug = {"resourceType": "Medication", "id": "m", "code": concept("7980", RXNORM)}
    request = medication_request(contained=[drug], medicationReference={"reference": "#m"})
    assert codes(request) == ["RXNORM//7980"]
    mixture = {"resourceType": "Medication", "id": "a", "ingredient": [{"itemReference": {"reference": "#m"}}]}
    request = medication_request(contained=[drug, mixture], medicationReference={"reference": "#a"})
    assert codes(request) == ["RXNORM//7980"]
    whole = mixture | {"id": "whole", "contained": [drug]}
    request = medication_request(medicationReference={"reference": "Medication/whole"})
    assert codes(request, whole) == ["RXNORM//7980"]
    assert fate(medication_request(medicationReference={"reference": "#z"})) == ("skipped", "no_code")


def test_race_and_ethnicity_of_us_core() -> None:
    def extension(name: str, *found: str) -> dict[str, Any]:
        parts = [{"url": "ombCategory", "valueCoding": {"code": code}} for code in found]
        return {"url": f"http://hl7.org/fhir/us/core/StructureDefinition/us-core-{name}", "extension": parts}

    person = PATIENT | {
        "gender": "male",
        "extension": [extension("race", "2106-3", "2028-9"), extension("ethnicity", "2186-5"), {"url": "x"}],
    }
    timelines = read_fhir([person])
    assert timelines.events["code"].to_list() == [
        "ETHNICITY//not_hispanic", "RACE//asian", "RACE//white", "SEX//male",
    ]  # fmt: skip
    assert timelines.events["time"].null_count() == timelines.events["known_time"].null_count() == 4
    assert timelines.subjects.row(0, named=True)["race"] == "asian;white"


ODD: list[Any] = [
    None,
    "",
    "x",
    3,
    1e300,
    True,
    [],
    [None],
    ["x"],
    {},
    {"coding": [{}]},
    {"coding": "x"},
    {"reference": ""},
]


@pytest.mark.parametrize("kind", CODED)
def test_no_odd_field_breaks_reading(kind: str) -> None:
    good = CODED[kind] | {"component": [{"code": concept("2")}], "meta": {"lastUpdated": DAY}, "class": {"code": "IMP"}}
    records = [good | {field: odd, "id": f"{field}-{i}"} for field in good for i, odd in enumerate(ODD)]
    records += [{k: v for k, v in good.items() if k != field} for field in good if field != "resourceType"]
    timelines = read_fhir([PATIENT, *records])
    assert timelines.ledger is not None
    assert timelines.ledger["count"].sum() == len(records) + 1
    assert timelines.events.filter(timelines.events["resource_id"] == "meta-3").is_empty()  # 3 is no Meta
    assert timelines.events.height > 0


def test_members_of_a_group_take_its_time_where_they_have_none() -> None:
    member = make("Observation", code=concept("718-7", LOINC)) | {"id": "m"}
    group = make("Observation", code=concept("58410-2", LOINC), effectiveDateTime=DAY, issued="2020-03-03")
    related = [{"type": "has-member", "target": {"reference": "Observation/m"}}]
    of_stu3, group = group | {"related": related}, group | {"hasMember": [{"reference": "Observation/m"}]}
    for panel in (group, of_stu3):
        timelines = read_fhir([PATIENT, member, panel])
        row = timelines.events.filter(resource_id="m").row(0, named=True)
        alike = timelines.events.filter(resource_id="x").row(0, named=True)
        assert (row["time_source"], row["time"], row["known_time"]) == ("report", alike["time"], alike["known_time"])


@pytest.mark.parametrize("field", ["conclusionCode", "codedDiagnosis"])
def test_a_reports_coded_conclusions(field: str) -> None:
    report = {
        "resourceType": "DiagnosticReport", "status": "final", "subject": {"reference": "Patient/p"},
        "effectiveDateTime": "2020-01-02", "issued": "2020-01-05T08:00:00Z", "code": {"text": "histology"},
        field: [{"coding": [{"system": "http://snomed.info/sct", "code": "188340000"}]}, {"text": "malignant"}],
    }  # fmt: skip
    events = read_fhir([PATIENT, report]).events.filter(resource_type="DiagnosticReport")
    assert events.select("code", "time", "known_time").rows() == [
        ("CONCLUSION//SNOMED//188340000", datetime(2020, 1, 2), datetime(2020, 1, 5, 8))
    ]


def test_an_order_without_a_date_had_been_given_by_the_time_it_was_meant_for() -> None:
    order = {
        "resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": {"reference": "Patient/p"},
        "code": {"coding": [{"system": "http://loinc.org", "code": "24627-2"}]},
    }  # fmt: skip
    for meant, source in (({"occurrenceDateTime": "2020-05-08"}, "occurrence"),
                          ({"occurrencePeriod": {"start": "2020-05-08", "end": "2020-09"}}, "occurrence"),
                          ({"authoredOn": "2020-05-08", "occurrenceDateTime": "2021"}, "authored")):  # fmt: skip
        row = read_fhir([PATIENT, order | meant]).events.row(-1, named=True)
        assert (row["time"], row["known_time"]) == (datetime(2020, 5, 8), datetime(2020, 5, 8, 23, 59, 59, 999999))
        assert row["time_source"] == source
