"""Odd but valid shapes among the official R4 examples: what each of them gives."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.store import Timelines


@pytest.fixture(scope="module")
def examples(data_folder: Path) -> Timelines:
    return read_fhir(data_folder / "hl7_r4_examples")


def day(*date: int) -> tuple[datetime, datetime]:
    return datetime(*date), datetime(*date, 23, 59, 59, 999999)  # type: ignore[arg-type]


def at(*date: int) -> tuple[datetime, datetime]:
    return datetime(*date), datetime(*date)  # type: ignore[arg-type]


CT = datetime(2011, 1, 1, 8, 1, 20)
# type, id -> (time, known), events as code: (number, text, modifier, unit)
Value = tuple[float | None, str | None, str | None, str | None]
NONE: Value = (None, None, None, None)
EXPECTED: dict[tuple[str, str], tuple[tuple[datetime, datetime] | None, dict[str, Value]]] = {
    # a cancelled panel, parts without a value, sampled data, dates and booleans as values
    ("Observation", "blood-pressure-cancel"): (None, {}),
    ("Observation", "blood-pressure-dar"): (
        day(2012, 9, 17),
        {"LOINC//8480-6": (107.0, None, None, "mm[Hg]"), "LOINC//8462-4": (None, None, "not-performed", None)},
    ),
    ("Observation", "ekg"): (
        at(2015, 2, 19, 8, 30, 35),
        {f"urn:oid:2.16.840.1.113883.6.24//{n}": (None, None, "sampled-data", None) for n in (131329, 131330, 131389)},
    ),
    ("Observation", "date-lastmp"): (day(2016, 1, 24), {"LOINC//8665-2": (None, "2016-12-30", None, None)}),
    ("Observation", "abdo-tender"): (
        (datetime(2018, 4, 2, 9, 30, 10), datetime(2018, 4, 3, 14, 30, 10)),
        {"SNOMED//43478001": (None, "true", None, None)},
    ),
    # a group of others keeps its own code; its members are records of their own
    ("Observation", "vitals-panel"): (day(1999, 7, 2), {"LOINC//85353-1": NONE}),
    ("Observation", "heart-rate"): (day(1999, 7, 2), {"LOINC//8867-4": (44.0, None, None, "/min")}),
    # a score with its parts
    ("Observation", "glasgow"): (
        at(2014, 12, 11, 4, 44, 16),
        {
            "LOINC//9269-2": (13.0, None, None, "{score}"),
            "LOINC//9267-6": (None, "LOINC//LA6556-0", None, None),
            "LOINC//9268-4": (None, "LOINC//LA6566-9", None, None),
            "LOINC//9270-0": (None, "LOINC//LA6560-2", None, None),
        },
    ),
    # comparators; zones
    ("Observation", "f205"): (
        at(2013, 4, 4, 13, 34),
        {
            "LOINC//48642-3": (60.0, None, None, "mL/min/{1.73_m2}"),
            "LOINC//48643-1": (60.0, None, ">", "mL/min/{1.73_m2}"),
        },
    ),
    ("Observation", "satO2"): (at(2014, 12, 5, 8, 30, 10), {"LOINC//2708-6": (95.0, None, None, "%")}),
    # dates: a year, a period, an age (which is no date), an end
    ("AllergyIntolerance", "example"): (
        (datetime(2004, 1, 1), datetime(2014, 10, 9, 3, 58)),
        {"ALLERGY//SNOMED//227493005": NONE},
    ),
    ("AllergyIntolerance", "nka"): (at(2015, 8, 6, 21, 37, 31), {"ALLERGY//SNOMED//716186003": NONE}),
    ("Condition", "f001"): (
        (datetime(2011, 8, 5), datetime(2011, 10, 5, 23, 59, 59, 999999)),
        {"SNOMED//368009": NONE},
    ),
    ("Condition", "f202"): (day(2012, 12, 1), {"SNOMED//363346000": NONE}),
    ("Condition", "stroke"): (day(2010, 7, 18), {"SNOMED//422504002": NONE}),
    ("Procedure", "f001"): (
        day(2011, 6, 26),
        {"SNOMED//34068001": NONE},
    ),
    ("Procedure", "HCBS"): (day(2018, 4, 5), {"HCPCS//T1019": NONE}),
    # medications: contained, a mixture (whose dose is nobody's), in error
    ("MedicationAdministration", "medadmin0301"): (
        at(2015, 1, 15, 13, 30),
        {"NDC//0069-2587-10": (500.0, None, None, "mg")},
    ),
    ("MedicationAdministration", "medadmin0302"): (
        (datetime(2015, 1, 15, 3, 30), datetime(2015, 1, 15, 3, 30)),
        {"RXNORM//204520": NONE, "RXNORM//313002": NONE},
    ),
    ("MedicationStatement", "example001"): (
        (datetime(2015, 1, 23), datetime(2015, 2, 22, 23, 59, 59, 999999)),
        {"NDC//50580-506-02": NONE},
    ),
    ("Immunization", "notGiven"): (None, {}),
    ("Immunization", "protocol"): (day(2018, 6, 18), {"CVX//104": NONE}),
    # plans, orders, documents
    ("CarePlan", "f203"): (day(2013, 4, 14), {"CAREPLAN//SNOMED//241541005": NONE}),
    ("NutritionOrder", "cardiacdiet"): (
        day(2014, 9, 17),
        {"ORDER//SNOMED//386619000": NONE, "ORDER//SNOMED//226208002": NONE},
    ),
    ("VisionPrescription", "33123"): (day(2014, 6, 15), {
        "ORDER//http://terminology.hl7.org/CodeSystem/ex-visionprescriptionproduct//lens": NONE}),
    ("Composition", "example"): (at(2012, 1, 4, 9, 10, 14), {"DOCUMENT//LOINC//11488-4": NONE}),
    ("DocumentReference", "example"): (at(2005, 12, 23, 22, 43, 41), {"DOCUMENT//LOINC//34108-1": NONE}),
    # images, specimens, family
    ("ImagingStudy", "example"): ((CT, CT), {"IMAGING//DCM//CT": (1.0, "SNOMED//67734004", None, "{series}")}),
    ("Media", "xray"): (day(2016, 3, 15), {"IMAGING//SNOMED//39714003": (None, "SNOMED//85151006", None, None)}),
    ("Specimen", "101"): (
        at(2011, 5, 30, 6, 15),
        {"SPECIMEN//SNOMED//122555007": (None, "SNOMED//49852007", None, None)},
    ),
    ("FamilyMemberHistory", "father"): (
        day(2011, 3, 18),
        {"FAMILY//SNOMED//315619001": (None, "ROLECODE//FTH", None, None)},
    ),
    # warnings, hazards, risks, impressions
    ("Flag", "example"): (day(2015, 1, 17), {"FLAG//http://example.org/local//bigdog": NONE}),
    ("AdverseEvent", "example"): (at(2017, 1, 29, 12, 34, 56), {"ADVERSE_EVENT//SNOMED//304386008": NONE}),
    ("DetectedIssue", "duplicate"): (day(2013, 5, 8), {"DETECTED_ISSUE//ACTCODE//DUPTHPY": NONE}),
    ("ClinicalImpression", "example"): (
        (datetime(2014, 12, 6, 9), datetime(2014, 12, 6, 11, 33)),
        {"http://hl7.org/fhir/sid/icd-9//850.0": NONE},
    ),
    # answers: numbers and codes, no words
    ("QuestionnaireResponse", "gcs"): (
        at(2014, 12, 11, 4, 44, 16),
        {
            "QUESTION//gcs/1.1": (None, "LOINC//LA6560-2", None, None),
            "QUESTION//gcs/1.2": (None, "LOINC//LA6566-9", None, None),
            "QUESTION//gcs/1.3": (None, "LOINC//LA6556-0", None, None),
        },
    ),
    # bills: a preauthorization is a plan
    ("Claim", "100153"): (None, {}),
    ("ChargeItem", "example"): (None, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED, ids="/".join)
def test_an_example(examples: Timelines, name: tuple[str, str]) -> None:
    kind, logical_id = name
    rows = examples.events.filter((pl.col("resource_type") == kind) & (pl.col("resource_id") == logical_id))
    moment, expected = EXPECTED[name]
    got = {
        row["code"]: tuple(row[c] for c in ("numeric_value", "text_value", "value_modifier", "unit"))
        for row in rows.iter_rows(named=True)
    }
    assert got == expected
    assert set(rows.select("time", "known_time").iter_rows()) == ({moment} if expected else set())


def test_no_answer_in_words_is_kept(examples: Timelines) -> None:
    """A QuestionnaireResponse's strings are nowhere: neither as value nor as code."""
    answers = examples.events.filter(pl.col("resource_type") == "QuestionnaireResponse")
    assert answers.height > 10
    coded = r"^([A-Z0-9_]+//|https?://|urn:).+|^true$|^false$|^\d{4}(-\d\d){0,2}"
    assert answers["text_value"].drop_nulls().str.contains(coded).all()


def test_results_without_a_date_take_their_reports(examples: Timelines) -> None:
    """365 results of one cumulative report, none with a date; and the members of a dated group."""
    reported = examples.events.filter((pl.col("time_source") == "report") & (pl.col("resource_type") == "Observation"))
    assert set(reported["resource_id"]) > {f"o{n}" for n in range(14, 23)}
    assert reported["resource_id"].n_unique() >= 365
    assert reported["numeric_value"].is_not_null().sum() > 300


def test_no_type_is_unknown_and_nothing_is_quarantined(examples: Timelines) -> None:
    assert examples.ledger is not None
    assert examples.quarantine is not None
    assert "type_not_read" not in set(examples.ledger["reason"])
    assert examples.quarantine.is_empty()


def test_every_clinical_type_of_the_examples_gives_some_event(examples: Timelines) -> None:
    given: Any = set(examples.events["resource_type"])
    assert given >= {
        "AdverseEvent", "AllergyIntolerance", "CarePlan", "Claim", "ClinicalImpression", "Composition", "Condition",
        "DetectedIssue", "DeviceRequest", "DiagnosticReport", "DocumentReference", "Encounter", "FamilyMemberHistory",
        "Flag", "ImagingStudy", "Immunization", "Media", "MedicationAdministration", "MedicationDispense",
        "MedicationRequest", "MedicationStatement", "NutritionOrder", "Observation", "Patient", "Procedure",
        "QuestionnaireResponse", "RiskAssessment", "ServiceRequest", "Specimen", "VisionPrescription",
    }  # fmt: skip
