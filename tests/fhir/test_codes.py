from __future__ import annotations

from pathlib import Path

import pytest

from ehrseq.fhir.codes import (
    DIAGNOSIS_ORDER,
    MEASUREMENT_ORDER,
    MEDICATION_ORDER,
    SYSTEMS,
    event_code,
    preferred_code,
    system_name,
)

MIMIC = "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-"


def test_system_table_has_canonical_keys() -> None:
    assert all(key == key.lower().rstrip("/") for key in SYSTEMS)
    assert all("//" not in name and name == name.upper() for name in SYSTEMS.values())


@pytest.mark.parametrize(
    ("coding", "code"),
    [
        (("http://snomed.info/sct/", "44054006"), "SNOMED//44054006"),
        (("http://hl7.org/fhir/sid/icd-10-cm", "E11.9"), "ICD10CM//E11.9"),
        (("http://hl7.org/fhir/sid/icd-10-cm", "e119"), "ICD10CM//E11.9"),
        (("http://hl7.org/fhir/sid/icd-10", "I10"), "ICD10//I10"),
        ((MIMIC + "diagnosis-icd9", "V462"), "ICD9CM//V46.2"),
        ((MIMIC + "diagnosis-icd9", "E8497"), "ICD9CM//E849.7"),
        ((MIMIC + "diagnosis-icd9", "4019"), "ICD9CM//401.9"),
        ((MIMIC + "diagnosis-icd10", "A419"), "ICD10CM//A41.9"),
        ((MIMIC + "procedure-icd9", "5491"), "ICD9PROC//54.91"),
        ((MIMIC + "procedure-icd10", "07B74ZX"), "ICD10PCS//07B74ZX"),
        ((MIMIC + "d-items", "225755"), "MIMIC_D_ITEMS//225755"),
        (("https://example.org/Labs", "Na "), "https://example.org/Labs//Na"),
        ((None, "X"), "UNKNOWN//X"),
        (("http://loinc.org", None), None),
        (("http://loinc.org", " "), None),
        (("http://terminology.hl7.org/CodeSystem/data-absent-reason", "unknown"), None),
        (("http://terminology.hl7.org/CodeSystem/v3-NullFlavor", "UNK"), None),
    ],
)
def test_event_codes(coding: tuple[str | None, str | None], code: str | None) -> None:
    assert event_code(coding) == code


def test_a_systems_name_does_not_depend_on_case() -> None:
    assert system_name("HTTP://LOINC.ORG") == "LOINC"


def test_preference_then_named_then_order_in_the_record() -> None:
    local, loinc, snomed = (
        ("urn:local", "7"),
        ("http://loinc.org", "718-7"),
        ("http://snomed.info/sct", "38082009"),
    )
    assert preferred_code([local, snomed, loinc], MEASUREMENT_ORDER) == "LOINC//718-7"
    assert preferred_code([local, loinc, snomed], DIAGNOSIS_ORDER) == "SNOMED//38082009"
    assert preferred_code([local, loinc], MEDICATION_ORDER) == "LOINC//718-7"
    assert preferred_code([local, ("urn:other", "8")], MEDICATION_ORDER) == "urn:local//7"
    assert preferred_code([(None, None)], MEDICATION_ORDER) is None
    assert preferred_code([], MEDICATION_ORDER) is None


def test_the_docs_list_every_system() -> None:
    page = (Path(__file__).parents[2] / "docs" / "timeline.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for uri, name in SYSTEMS.items():
        assert any(f"`{uri}`" in row and row.endswith(f"| `{name}` |") for row in rows)
