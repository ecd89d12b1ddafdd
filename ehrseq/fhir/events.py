"""One function for each resource type: the events of a record, appended to columns.

Each takes a decoded resource and the number of its record, and returns the reason why no event came of it
(`EVENTS` where one did). It never looks at another record: references are resolved later, all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ehrseq.fhir import care, findings, supplies
from ehrseq.fhir.clock import NO_DATE, ends_before, stands_for_none
from ehrseq.fhir.concepts import BAD_STATUS, EVENTS, CodePool, Statuses, concept_code, refutation
from ehrseq.fhir.datatypes import Period, Reference
from ehrseq.fhir.dating import POLICY, Moment, dated
from ehrseq.fhir.demographics import us_core
from ehrseq.fhir.encounters import class_name
from ehrseq.fhir.facts import ORDER, Said, Scheme
from ehrseq.fhir.genomics import EXTENSION, finding_kind, genomic_findings, is_present
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.medications import MedicationEmitters
from ehrseq.fhir.plain import SHAPES, plain_reader
from ehrseq.fhir.references import SEQUENCES, named_target
from ehrseq.fhir.resource import (
    AllergyIntolerance,
    Condition,
    Coverage,
    DiagnosticReport,
    Encounter,
    EpisodeOfCare,
    Immunization,
    Observation,
    Patient,
    Procedure,
    ResearchSubject,
)
from ehrseq.fhir.resource_care import BiologicallyDerivedProduct, Device
from ehrseq.fhir.rows import ABATEMENT, BIRTH_DATE, DECEASED, PERIOD, STATIC, MedicationFacts, PatientFacts, Rows
from ehrseq.fhir.sequences import molecular_sequence
from ehrseq.fhir.statuses import EVENT_STATUS, RESULT_STATUS
from ehrseq.fhir.values import NOTHING, read_value

BIRTH_CODE = "MEDS_BIRTH"
DEATH_CODE = "MEDS_DEATH"

_ENCOUNTER_STATUS = BAD_STATUS | {"planned": Reason.PLANNED}
_FOLLOW_UP_STATUS: Statuses = {
    "entered-in-error": Reason.ENTERED_IN_ERROR,
    "cancelled": Reason.NOT_DONE,
    "draft": Reason.PLANNED,
    "planned": Reason.PLANNED,
    "waitlist": Reason.PLANNED,
}
_DEVICE_KINDS = {supplies.DEVICE: "Device", ORDER: "DeviceOrdered", supplies.SUPPLY: "DeviceSupplied"}
# A pure function (see `facts`) for each type that needs nothing but its own record
READERS: dict[str, Callable[[Any], Said]] = {
    "CarePlan": care.care_plan,
    "ServiceRequest": care.service_request,
    "ProcedureRequest": care.procedure_request,
    "ReferralRequest": care.referral_request,
    "DiagnosticOrder": care.diagnostic_order,
    "DeviceRequest": supplies.device_request,
    "DeviceUseRequest": supplies.device_use_request,
    "NutritionOrder": care.nutrition_order,
    "VisionPrescription": care.vision_prescription,
    "Goal": care.goal,
    "DocumentReference": care.document_reference,
    "Composition": care.composition,
    "ImagingStudy": care.imaging_study,
    "Media": care.media,
    "Specimen": care.specimen,
    "DeviceUseStatement": supplies.device_use,
    "DeviceUsage": supplies.device_use,
    "DeviceDispense": supplies.device_dispense,
    "DeviceAssociation": supplies.device_association,
    "BiologicallyDerivedProductDispense": supplies.product_dispense,
    "Consent": care.consent,
    "NutritionIntake": supplies.nutrition_intake,
    "SupplyDelivery": supplies.supply_delivery,
    "FamilyMemberHistory": findings.family_member_history,
    "Flag": findings.flag,
    "RiskAssessment": findings.risk_assessment,
    "AdverseEvent": findings.adverse_event,
    "DetectedIssue": findings.detected_issue,
    "ClinicalImpression": findings.clinical_impression,
    "QuestionnaireResponse": findings.questionnaire_response,
    "Claim": findings.claim,
    "ExplanationOfBenefit": findings.explanation_of_benefit,
    "ChargeItem": findings.charge_item,
    "MolecularSequence": molecular_sequence,
    "Sequence": molecular_sequence,
}


class Emitters:
    """The functions of this module, bound to the columns they fill and to their code pools."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.birth = rows.codes[BIRTH_CODE]
        self.death = rows.codes[DEATH_CODE]
        self.diagnoses = CodePool(rows, "diagnosis")
        self.measurements = CodePool(rows, "measurement")
        medications = MedicationEmitters(rows)
        self.procedures = CodePool(rows, "procedure", procedure=True)
        self.vaccines = CodePool(rows, "vaccine")
        self.allergies = CodePool(rows, "allergy", prefix="ALLERGY//")
        self.abatements = CodePool(rows, "diagnosis", prefix="ABATEMENT//")
        self.encounter_types = CodePool(rows, "procedure")
        core: dict[str, Callable[[Any, int], int]] = {
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
            "EpisodeOfCare": self.period_of_follow_up,
            "Coverage": self.period_of_follow_up,
            "MedicationUsage": medications.medication_statement,
            "Device": self.device,
            "BiologicallyDerivedProduct": self.product,
        }
        self.by_type = core | {kind: self._facts_of(read) for kind, read in READERS.items()}
        self.genomic: dict[int, bool] = {}  # of the number of a code: asked of every Observation, so remembered
        self.pools: dict[Scheme, CodePool] = {}
        pools = {
            "Observation": self.measurements,
            "Condition": self.diagnoses,
            "Procedure": self.procedures,
            "Specimen": self._pool(care.SPECIMEN),
        }
        self.plain = {
            kind: plain_reader(
                kind,
                rows,
                pools.get(kind, medications.codes),
                self.by_type[kind],
                self.genomic if kind == "Observation" else None,
            )
            for kind in SHAPES
        }

    def let_go(self) -> None:
        """Read no more. The functions hold this object, which holds them: all would wait for the garbage collector."""
        self.by_type.clear()
        self.plain.clear()

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
        # no death, where the date only stands for none; one in an impossible year is a death without a date
        death = None if (r.deceased_date_time or "").startswith(NO_DATE) else r.deceased_date_time
        if death:
            add(record, self.death, rows.times[death], 0, DECEASED)
        rows.patients.append(
            PatientFacts(
                record=record,
                id=r.id or "",
                sex=r.gender.lower() if r.gender else None,
                race=";".join(race) or None,
                ethnicity=";".join(ethnicity) or None,
                birth=r.birth_date,
                death=death,
                deceased=bool(r.deceased_boolean or death),
                identifiers=[f"{i.system or ''}|{i.value}" for i in r.identifier or () if i.value],
            )
        )
        return EVENTS if static or r.birth_date or death else Reason.NO_FACTS

    def encounter(self, r: Encounter, record: int) -> int:
        """Admission and discharge, and one event for each type at the start."""
        rows, times = self.rows, self.rows.times
        period = r.period or r.actual_period or Period()
        if (reason := _ENCOUNTER_STATUS.get(r.status)) is not None:
            return reason
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        # one that was planned, cancelled or an error dates nothing else either: it is not kept
        begun, end = (None if stands_for_none(written) else written for written in (period.start, period.end))
        mistaken = begun is not None and end is not None and ends_before(begun, end)
        rows.encounters.append((record, r.id or "", begun, None if mistaken else end))
        if not begun and not end:
            return Reason.NO_TIME
        name = class_name(r.class_)
        if period.start:  # one that stands for none too, so that what is left out for it is counted
            start = times[period.start]
            rows.add(record, rows.codes[f"ENCOUNTER//{name}/admission"], start, 0, PERIOD)
            for concept in r.type or ():
                if code := concept_code(concept, self.encounter_types):
                    rows.add(record, code, start, 0, PERIOD)
        if end:
            # a discharge before admission has no time, and is counted as that
            rows.add(
                record, rows.codes[f"ENCOUNTER//{name}/discharge"], times[NO_DATE[-1] if mistaken else end], 0, PERIOD
            )
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
        time, known, source = dated(r, POLICY["Condition"])
        rows.add(record, code, times[time], times[known], source)
        abated = r.abatement_date_time or (r.abatement_period and r.abatement_period.end)
        if abated:
            number = times[abated]
            # its own date as `known`: the encounter's end is not its; linking adds when the diagnosis was known
            rows.add(record, concept_code(r.code, self.abatements), number, number, ABATEMENT)
        return EVENTS

    def observation(self, r: Observation, record: int) -> int:
        """The value, and each component's under its own code; what a genomic one found besides."""
        rows = self.rows
        if r.status in RESULT_STATUS:
            return RESULT_STATUS[r.status]
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        code = concept_code(r.code, self.measurements)
        genomic = self.genomic.get(code)
        if genomic is None:
            genomic = self.genomic[code] = finding_kind(r.code) is not None
        if r.extension is not None:
            genomic = genomic or _has_genomic_extension(r)
        when = dated(r, POLICY["Observation (genomic)" if genomic else "Observation"])
        time, known, source = rows.times[when[0]], rows.times[when[1]], when[2]
        if when[0] and (r.has_member is not None or r.derived_from is not None or r.related is not None):
            self._date_relatives(r, record, when)
        number, text, modifier, unit = read_value(r)
        texts = rows.texts
        parts = 0
        if r.component and not (genomic and not is_present(r)):
            for part in r.component:
                part_code = concept_code(part.code, self.measurements)
                if part.modifier_extension:
                    continue
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
        if genomic:
            parts += self._add(genomic_findings(r), record)
        # a panel's own code says nothing beside its parts, unless it has a value too
        if parts and number != number and text is None and modifier is None:
            return EVENTS
        if code:
            rows.add(record, code, time, known, source, number, texts[text], texts[modifier], texts[unit])
            return EVENTS
        return EVENTS if parts else Reason.NO_CODE

    def diagnostic_report(self, r: DiagnosticReport, record: int) -> int:
        """That the report was made, and its coded conclusions; its results are Observations of their own."""
        if r.status in RESULT_STATUS:
            return RESULT_STATUS[r.status]
        if r.result and not r.modifier_extension:
            # results without a date of their own take the report's
            self._date_others(r, r.result, ("Observation/",), record, dated(r, POLICY["DiagnosticReport"]))
        reason = self._coded(r, record, concept_code(r.code, self.measurements), "DiagnosticReport")
        if reason in (EVENTS, Reason.NO_CODE) and self._add(findings.conclusions(r), record):
            return EVENTS
        return reason

    def _date_relatives(self, r: Observation, record: int, when: Moment) -> None:
        """Members of a group, and sequences from which a finding is derived, may take the Observation's time."""
        related = [(o.type, o.target) for o in r.related or () if o.target is not None]
        members = [*(r.has_member or ()), *(target for kind, target in related if kind == "has-member")]
        sources = [*(r.derived_from or ()), *(target for kind, target in related if kind == "derived-from")]
        self._date_others(r, members, ("Observation/",), record, when)
        self._date_others(r, sources, SEQUENCES, record, when)

    def _date_others(self, r: Any, others: list[Reference], kinds: tuple[str, ...], record: int, when: Moment) -> None:
        """Keep a time for the records of some types that a record names: those that have none may take it."""
        time, known, _ = when
        if not time:
            return
        inside = f"{kinds[0]}{r.resource_type}-{r.id}"  # as what it contains is called
        in_scope = self.rows.references.in_scope
        names = [
            inside + name if name.startswith("#") else in_scope(name)
            for name in (other.reference for other in others)
            if name
        ]
        targets = [target for target in map(named_target, names) if target and target.startswith(kinds)]
        self.rows.results += [(record, target, time, known or time) for target in targets]

    def procedure(self, r: Procedure, record: int) -> int:
        """The procedure at its start."""
        if (reason := EVENT_STATUS.get(r.status)) is not None:
            return reason
        if r.not_done or r.not_performed:
            return Reason.NOT_DONE
        return self._coded(r, record, concept_code(r.code, self.procedures), "Procedure")

    def immunization(self, r: Immunization, record: int) -> int:
        """The vaccine given."""
        if (reason := BAD_STATUS.get(r.status)) is not None:
            return reason
        if r.not_given or r.was_not_given:
            return Reason.NOT_DONE
        return self._coded(r, record, concept_code(r.vaccine_code, self.vaccines), "Immunization")

    def allergy_intolerance(self, r: AllergyIntolerance, record: int) -> int:
        """The allergy, under `ALLERGY//`: to be allergic to a drug is not to take it."""
        # DSTU2 keeps the verification among the statuses
        if (reason := refutation(r.verification_status) or refutation(r.status)) is not None:
            return reason
        return self._coded(r, record, concept_code(r.code or r.substance, self.allergies), "AllergyIntolerance")

    def device(self, r: Device, record: int) -> int:
        """No event: what uses, orders or delivers it refers to it, as to a Medication."""
        concept = supplies.device_concept(r)
        for scheme, kind in _DEVICE_KINDS.items():
            self.rows.medications.append(
                MedicationFacts(record, r.id or "", concept_code(concept, self._pool(scheme)), [], [], kind)
            )
        return Reason.REFERENCE_DATA

    def product(self, r: BiologicallyDerivedProduct, record: int) -> int:
        """No event: its dispense refers to it."""
        code = concept_code(r.product_code, self._pool(supplies.SUPPLY))
        self.rows.medications.append(MedicationFacts(record, r.id or "", code, [], [], "BiologicallyDerivedProduct"))
        return Reason.REFERENCE_DATA

    def research_subject(self, r: ResearchSubject, record: int) -> int:
        """No event: the observation period."""
        if r.status == "entered-in-error":
            return Reason.ENTERED_IN_ERROR
        person = r.individual or r.subject
        if person is None or person.reference is None:
            return Reason.NO_SUBJECT
        return self._observed(record, person.reference, r.period or Period())

    def period_of_follow_up(self, r: EpisodeOfCare | Coverage, record: int) -> int:
        """No event: when the subject was under care or insured, and so watched."""
        if (reason := _FOLLOW_UP_STATUS.get(r.status)) is not None:
            return reason
        person = r.subject or r.patient
        if person is None or person.reference is None:
            return Reason.NO_SUBJECT
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        return self._observed(record, person.reference, r.period or Period())

    def _observed(self, record: int, reference: str, period: Period) -> int:
        """An observation period; an end such as 9999-12-31 is open."""
        start, end = (None if stands_for_none(written) else written for written in (period.start, period.end))
        self.rows.research_subjects.append((record, self.rows.references[reference], start, end))
        return Reason.FOLLOW_UP

    def _coded(self, r: Any, record: int, code: int, kind: str) -> int:
        """One event without a value."""
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        if not code:
            return Reason.NO_CODE
        times = self.rows.times
        time, known, source = dated(r, POLICY[kind])
        self.rows.add(record, code, times[time], times[known], source)
        return EVENTS

    def _facts_of(self, read: Callable[[Any], Said]) -> Callable[[Any, int], int]:
        """A pure function's facts, put into the columns."""

        def emit(r: Any, record: int) -> int:
            said = read(r)
            if isinstance(said, Reason):
                return said
            if r.modifier_extension:
                return Reason.MODIFIER_EXTENSION
            return EVENTS if self._add(said, record, r) else Reason.NO_CODE

        return emit

    def _add(self, said: Said, record: int, r: Any = None) -> int:
        """Add facts; how many had a code."""
        if isinstance(said, Reason):
            return 0
        rows, count = self.rows, 0
        for fact in said:
            if fact.device is not None:
                code = self._device_code(fact.device, fact.scheme, r)
            elif isinstance(fact.concept, str):
                code = rows.codes[fact.concept]
            else:
                code = concept_code(fact.concept, self._pool(fact.scheme))
            if code:
                count += 1
                time, known, source = fact.moment
                texts = rows.texts
                rows.add(
                    record, code, rows.times[time], rows.times[known], source,
                    fact.number, texts[fact.text], texts[fact.modifier], texts[fact.unit],
                )  # fmt: skip
        return count

    def _pool(self, scheme: Scheme) -> CodePool:
        pool = self.pools.get(scheme)
        if pool is None:
            pool = self.pools[scheme] = CodePool(self.rows, scheme.kind, scheme.prefix, scheme.procedure)
        return pool

    def _device_code(self, reference: str, scheme: Scheme, r: Any) -> int:
        """The code of a device that is referred to: a contained one's, or minus one minus the reference's number."""
        if not reference.startswith("#"):
            target = named_target(self.rows.references.in_scope(reference)) or ""
            if target.startswith("BiologicallyDerivedProduct/"):
                return -1 - self.rows.references[target]
            if not target.startswith("Device/"):
                return 0
            # what is ordered has another code than what is used, so it goes by another name
            return -1 - self.rows.references[f"{_DEVICE_KINDS[scheme]}/{target.removeprefix('Device/')}"]
        for raw in r.contained or ():
            try:
                device = msgspec.json.decode(raw, type=Device)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if device.id == reference[1:]:
                return concept_code(supplies.device_concept(device), self._pool(scheme))
        return 0


def _has_genomic_extension(r: Observation) -> bool:
    return any((e.url or "").startswith(EXTENSION) for e in r.extension or ())
