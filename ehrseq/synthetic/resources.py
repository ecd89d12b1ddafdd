"""From flat record tables to FHIR R4 resources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from ehrseq.synthetic.tables import BLOOD_PRESSURE, LABS, SMOKING, SMOKING_STATUS

SNOMED, LOINC, UCUM = "http://snomed.info/sct", "http://loinc.org", "http://unitsofmeasure.org"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"
STUDY = "ehrseq-simulation"

Row = dict[str, Any]


def resources(kind: str, table: pl.DataFrame) -> Iterator[Row]:
    """The FHIR R4 resources of one type, as dictionaries ready for JSON."""
    formatted = table.with_columns(
        pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%SZ"), pl.col(pl.Date).dt.strftime("%Y-%m-%d")
    )
    build = BUILDERS[kind]
    for row in formatted.iter_rows(named=True):
        yield build(row)


def _concept(system: str, code: str, display: str | None = None) -> Row:
    coding = {"system": system, "code": code}
    return {"coding": [coding | {"display": display} if display else coding]}


def _patient(row: Row) -> Row:
    died = {"deceasedDateTime": row["died"]} if row["died"] else {}
    return {
        "resourceType": "Patient", "id": row["id"], "gender": row["gender"], "birthDate": row["birth"], **died
    }  # fmt: skip


def _subject(row: Row) -> Row:
    return {"reference": f"Patient/{row['patient']}"}


def _encounter_link(row: Row) -> Row:
    return {"encounter": {"reference": f"Encounter/{row['encounter']}"}} if row["encounter"] else {}


def _encounter(row: Row) -> Row:
    period = {"start": row["start"]} | ({"end": row["end"]} if row["end"] else {})
    return {
        "resourceType": "Encounter",
        "id": row["id"],
        "status": "finished" if row["end"] else "in-progress",
        "class": {"system": TERMINOLOGY + "v3-ActCode", "code": row["kind"]},
        "subject": _subject(row),
        "period": period,
    }


def _condition(row: Row) -> Row:
    dates = {"onsetDateTime": row["onset"], "recordedDate": row["recorded"]}
    return {
        "resourceType": "Condition",
        "id": row["id"],
        "clinicalStatus": _concept(TERMINOLOGY + "condition-clinical", "active"),
        "verificationStatus": _concept(TERMINOLOGY + "condition-ver-status", "confirmed"),
        "category": [_concept(TERMINOLOGY + "condition-category", row["category"])],
        "code": _concept(SNOMED, row["code"], row["display"]),
        "subject": _subject(row),
        **_encounter_link(row),
        **{name: value for name, value in dates.items() if value},
    }


def _quantity(value: float, unit: str) -> Row:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def _observation(row: Row) -> Row:
    code = row["code"]
    if code == SMOKING:
        display, category = "Tobacco smoking status", "social-history"
        value: Row = {"valueCodeableConcept": _concept(SNOMED, row["concept"], SMOKING_STATUS[row["concept"]])}
    else:
        display, unit, category, _ = LABS[code]
        value = {"valueQuantity": _quantity(row["value"], unit)}
        if code == BLOOD_PRESSURE:
            value = {
                "component": [
                    {"code": _concept(LOINC, "8480-6", "Systolic blood pressure"), **value},
                    {
                        "code": _concept(LOINC, "8462-4", "Diastolic blood pressure"),
                        "valueQuantity": _quantity(row["diastolic"], unit),
                    },
                ]
            }
    return {
        "resourceType": "Observation",
        "id": row["id"],
        "status": "final",
        "category": [_concept(TERMINOLOGY + "observation-category", category)],
        "code": _concept(LOINC, code, display),
        "subject": _subject(row),
        **_encounter_link(row),
        "effectiveDateTime": row["time"],
        **value,
    }


def _medication_request(row: Row) -> Row:
    return {
        "resourceType": "MedicationRequest",
        "id": row["id"],
        "status": "completed",
        "intent": "order",
        "medicationCodeableConcept": _concept(RXNORM, row["code"], row["display"]),
        "subject": _subject(row),
        **_encounter_link(row),
        "authoredOn": row["time"],
    }


def _research_subject(row: Row) -> Row:
    return {
        "resourceType": "ResearchSubject",
        "id": row["id"],
        "status": "off-study",
        "period": {"start": row["start"], "end": row["end"]},
        "study": {"reference": f"ResearchStudy/{STUDY}"},
        "individual": _subject(row),
    }


BUILDERS: dict[str, Callable[[Row], Row]] = {
    "Patient": _patient,
    "ResearchSubject": _research_subject,
    "Encounter": _encounter,
    "Condition": _condition,
    "Observation": _observation,
    "MedicationRequest": _medication_request,
}
