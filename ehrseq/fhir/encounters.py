"""The classes of encounters, in one set of names for all versions."""

from __future__ import annotations

from ehrseq.fhir.resource import EncounterClass

# Encounter class codes of HL7 v3 (R4, STU3) and of DSTU2 -> one name
ENCOUNTER_CLASSES = {
    "IMP": "inpatient",
    "ACUTE": "inpatient",
    "NONAC": "inpatient",
    "INPATIENT": "inpatient",
    "EMER": "emergency",
    "EMERGENCY": "emergency",
    "AMB": "ambulatory",
    "AMBULATORY": "ambulatory",
    "OUTPATIENT": "ambulatory",
    "OBSENC": "observation",
    "SS": "short_stay",
    "DAYTIME": "short_stay",
    "HH": "home",
    "HOME": "home",
    "VR": "virtual",
    "VIRTUAL": "virtual",
    "FLD": "field",
    "FIELD": "field",
    "PRENC": "pre_admission",
    "WELLNESS": "wellness",
    "URGENTCARE": "urgent_care",
}


def class_name(value: EncounterClass | list[EncounterClass] | str | None) -> str:
    """The name of an encounter's class, from a Coding (R4, STU3), a code (DSTU2) or concepts (R5).

    >>> class_name("inpatient"), class_name(EncounterClass(code="AMB")), class_name(None)
    ('inpatient', 'ambulatory', 'unknown')
    """
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, EncounterClass):
        value = value.code or next((c.code for c in value.coding or () if c.code), None)
    if not value:
        return "unknown"
    return ENCOUNTER_CLASSES.get(value.upper(), value.strip().lower().replace(" ", "_"))
