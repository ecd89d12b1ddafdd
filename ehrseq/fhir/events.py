"""One function for each resource type: the events of a record, appended to columns.

Each takes a decoded resource and the number of its record, and returns the reason why no event came of it
(`EVENTS` where one did). It never looks at another record: references are resolved later, all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ehrseq.fhir.codes import (
    ALLERGY_ORDER,
    DIAGNOSIS_ORDER,
    MEASUREMENT_ORDER,
    PROCEDURE_ORDER,
    VACCINE_ORDER,
)
from ehrseq.fhir.concepts import BAD_STATUS, EVENTS, CodePool, concept_code, refutation, start_of
from ehrseq.fhir.demographics import us_core
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.medications import MedicationEmitters
from ehrseq.fhir.resource import (
    AllergyIntolerance,
    Condition,
    DiagnosticReport,
    Encounter,
    EncounterClass,
    Immunization,
    Observation,
    Patient,
    Period,
    Procedure,
    ResearchSubject,
)
from ehrseq.fhir.rows import (
    ABATEMENT,
    BIRTH_DATE,
    DECEASED,
    EFFECTIVE,
    ENCOUNTER,
    ISSUED,
    OCCURRENCE,
    ONSET,
    PERFORMED,
    PERIOD,
    RECORDED,
    STATIC,
    PatientFacts,
    Rows,
)
from ehrseq.fhir.values import NOTHING, read_value

BIRTH_CODE = "MEDS_BIRTH"
DEATH_CODE = "MEDS_DEATH"

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
_OBSERVATION_STATUS = BAD_STATUS | {"registered": Reason.NOT_DONE}
_ENCOUNTER_STATUS = BAD_STATUS | {"planned": Reason.PLANNED}
_PROCEDURE_STATUS = BAD_STATUS | {"preparation": Reason.PLANNED}


class Emitters:
    """The functions of this module, bound to the columns they fill and to their code pools."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.birth = rows.codes[BIRTH_CODE]
        self.death = rows.codes[DEATH_CODE]
        self.diagnoses = CodePool(rows.codes, DIAGNOSIS_ORDER)
        self.measurements = CodePool(rows.codes, MEASUREMENT_ORDER)
        medications = MedicationEmitters(rows)
        self.procedures = CodePool(rows.codes, PROCEDURE_ORDER, procedure=True)
        self.vaccines = CodePool(rows.codes, VACCINE_ORDER)
        self.allergies = CodePool(rows.codes, ALLERGY_ORDER, prefix="ALLERGY//")
        self.abatements = CodePool(rows.codes, DIAGNOSIS_ORDER, prefix="ABATEMENT//")
        self.encounter_types = CodePool(rows.codes, PROCEDURE_ORDER)
        self.by_type: dict[str, Callable[[Any, int], int]] = {
            "Patient": self.patient,
            "Encounter": self.encounter,
            "Condition": self.condition,
            "Observation": self.observation,
            "MedicationRequest": medications.medication_request,
            "MedicationOrder": medications.medication_order,
            "MedicationAdministration": medications.medication_administration,
            "MedicationDispense": medications.medication_dispense,
            "MedicationStatement": medications.medication_statement,
            "Medication": medications.medication,
            "Procedure": self.procedure,
            "Immunization": self.immunization,
            "AllergyIntolerance": self.allergy_intolerance,
            "DiagnosticReport": self.diagnostic_report,
            "ResearchSubject": self.research_subject,
        }

    def patient(self, r: Patient, record: int) -> int:
        """Sex, race and ethnicity as static facts; birth; death."""
        rows, add = self.rows, self.rows.add
        race, ethnicity = us_core(r.extension or [])
        static = [f"SEX//{r.gender.lower()}"] if r.gender else []
        static += [f"RACE//{name}" for name in race] + [f"ETHNICITY//{name}" for name in ethnicity]
        for code in static:
            add(record, rows.codes[code], 0, 0, STATIC)
        if r.birth_date:
            add(record, self.birth, rows.times[r.birth_date], 0, BIRTH_DATE)
        if r.deceased_date_time:
            add(record, self.death, rows.times[r.deceased_date_time], 0, DECEASED)
        rows.patients.append(
            PatientFacts(
                record=record,
                id=r.id or "",
                sex=r.gender.lower() if r.gender else None,
                race=";".join(race) or None,
                ethnicity=";".join(ethnicity) or None,
                birth=r.birth_date,
                death=r.deceased_date_time,
                deceased=bool(r.deceased_boolean or r.deceased_date_time),
                identifiers=[f"{i.system or ''}|{i.value}" for i in r.identifier or () if i.value],
            )
        )
        return EVENTS if static or r.birth_date or r.deceased_date_time else Reason.NO_FACTS

    def encounter(self, r: Encounter, record: int) -> int:
        """Admission and discharge, and one event for each type at the start."""
        rows, times = self.rows, self.rows.times
        period = r.period or Period()
        if (reason := _ENCOUNTER_STATUS.get(r.status)) is not None:
            return reason
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        # one that was planned, cancelled or an error dates nothing else either: it is not kept
        rows.encounters.append((record, r.id or "", period.start, period.end))
        if not period.start and not period.end:
            return Reason.NO_TIME
        name = _class_name(r.class_)
        if period.start:
            start = times[period.start]
            rows.add(record, rows.codes[f"ENCOUNTER//{name}/admission"], start, 0, PERIOD)
            for concept in r.type or ():
                if code := concept_code(concept, self.encounter_types):
                    rows.add(record, code, start, 0, PERIOD)
        if period.end:
            rows.add(record, rows.codes[f"ENCOUNTER//{name}/discharge"], times[period.end], 0, PERIOD)
        return EVENTS

    def condition(self, r: Condition, record: int) -> int:
        """The diagnosis at its onset; where dated, its end as a code of its own."""
        rows, times = self.rows, self.rows.times
        if (reason := refutation(r.verification_status)) is not None:
            return reason
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        code = concept_code(r.code, self.diagnoses)
        if not code:
            return Reason.NO_CODE
        recorded = r.recorded_date or r.asserted_date
        if r.onset_date_time:
            rows.add(record, code, times[r.onset_date_time], times[recorded], ONSET)
        elif r.onset_period is not None and r.onset_period.start:
            rows.add(record, code, times[r.onset_period.start], times[recorded], ONSET)
        elif recorded:
            rows.add(record, code, times[recorded], times[recorded], RECORDED)
        else:
            rows.add(record, code, 0, 0, ENCOUNTER)
        abated = r.abatement_date_time or (r.abatement_period and r.abatement_period.end)
        if abated:
            number = times[abated]
            # its own date as `known`: the encounter's end is not its; linking adds when the diagnosis was known
            rows.add(record, concept_code(r.code, self.abatements), number, number, ABATEMENT)
        return EVENTS

    def observation(self, r: Observation, record: int) -> int:
        """The value, and each component's under its own code."""
        rows = self.rows
        if r.status in _OBSERVATION_STATUS:
            return _OBSERVATION_STATUS[r.status]
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        time, known, source = self._effective(r)
        number, text, modifier, unit = read_value(r)
        code = concept_code(r.code, self.measurements)
        texts = rows.texts
        parts = 0
        if r.component:
            for part in r.component:
                part_code = concept_code(part.code, self.measurements)
                value = read_value(part)
                # a value without a code is passed on without one, to be counted among what is left out
                if part_code or value is not NOTHING:
                    parts += part_code > 0
                    amount, words, why, measure = value
                    rows.add(
                        record,
                        part_code,
                        time,
                        known,
                        source,
                        amount,
                        texts[words],
                        texts[why],
                        texts[measure],
                    )
            # a panel's own code says nothing beside its parts, unless it has a value too
            if parts and number != number and text is None and modifier is None:
                return EVENTS
        if code:
            rows.add(record, code, time, known, source, number, texts[text], texts[modifier], texts[unit])
            return EVENTS
        return EVENTS if parts else Reason.NO_CODE

    def diagnostic_report(self, r: DiagnosticReport, record: int) -> int:
        """That the report was made; its results are Observations of their own."""
        if r.status in _OBSERVATION_STATUS:
            return _OBSERVATION_STATUS[r.status]
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        code = concept_code(r.code, self.measurements)
        if not code:
            return Reason.NO_CODE
        times = self.rows.times
        time, period = r.effective_date_time, r.effective_period
        until = r.issued
        if time is None and period is not None:
            time, until = period.start, until or period.end
        if time:
            self.rows.add(record, code, times[time], times[until], EFFECTIVE)
        else:
            self.rows.add(record, code, times[r.issued], times[r.issued], ISSUED if r.issued else ENCOUNTER)
        return EVENTS

    def procedure(self, r: Procedure, record: int) -> int:
        """The procedure at its start."""
        if (reason := _PROCEDURE_STATUS.get(r.status)) is not None:
            return reason
        if r.not_done:
            return Reason.NOT_DONE
        time = start_of(r.performed_date_time, r.performed_period)
        return self._coded(r, record, concept_code(r.code, self.procedures), time, None, PERFORMED)

    def immunization(self, r: Immunization, record: int) -> int:
        """The vaccine given."""
        if (reason := BAD_STATUS.get(r.status)) is not None:
            return reason
        if r.not_given:
            return Reason.NOT_DONE
        code = concept_code(r.vaccine_code, self.vaccines)
        time = r.occurrence_date_time or r.date
        if time or not r.recorded:
            return self._coded(r, record, code, time, r.recorded, OCCURRENCE)
        return self._coded(r, record, code, r.recorded, r.recorded, RECORDED)

    def allergy_intolerance(self, r: AllergyIntolerance, record: int) -> int:
        """The allergy, under `ALLERGY//`: to be allergic to a drug is not to take it."""
        if (reason := refutation(r.verification_status)) is not None:
            return reason
        code = concept_code(r.code, self.allergies)
        recorded = r.recorded_date or r.asserted_date
        onset = r.onset_date_time or (r.onset_period.start if r.onset_period is not None else None)
        if onset:
            return self._coded(r, record, code, onset, recorded, ONSET)
        return self._coded(r, record, code, recorded, recorded, RECORDED)

    def research_subject(self, r: ResearchSubject, record: int) -> int:
        """No event: the observation period."""
        if r.status == "entered-in-error":
            return Reason.ENTERED_IN_ERROR
        person = r.individual or r.subject
        if person is None or person.reference is None:
            return Reason.NO_SUBJECT
        period = r.period or Period()
        self.rows.research_subjects.append((record, self.rows.references[person.reference], period.start, period.end))
        return Reason.FOLLOW_UP

    def _effective(self, r: Observation) -> tuple[int, int, int]:
        """Numbers of an observation's time and of when it was known, and the time's source."""
        times = self.rows.times
        if (when := r.effective_date_time or r.effective_instant) is not None:
            return times[when], times[r.issued], EFFECTIVE
        if (period := r.effective_period) is not None and period.start:
            return times[period.start], times[r.issued or period.end], EFFECTIVE
        if r.effective_timing is not None and r.effective_timing.event:
            moments = r.effective_timing.event
            return times[min(moments)], times[r.issued or max(moments)], EFFECTIVE
        if r.issued:
            return times[r.issued], times[r.issued], ISSUED
        return 0, 0, ENCOUNTER

    def _coded(self, r: Any, record: int, code: int, time: str | None, known: str | None, source: int) -> int:
        """One event without a value."""
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        if not code:
            return Reason.NO_CODE
        times = self.rows.times
        self.rows.add(record, code, times[time], times[known], source if time else ENCOUNTER)
        return EVENTS


def _class_name(value: EncounterClass | list[EncounterClass] | str | None) -> str:
    """The name of an encounter's class, from a Coding (R4, STU3), a code (DSTU2) or concepts (R5)."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, EncounterClass):
        value = value.code or next((c.code for c in value.coding or () if c.code), None)
    if not value:
        return "unknown"
    return ENCOUNTER_CLASSES.get(value.upper(), value.strip().lower().replace(" ", "_"))
