"""The events of the ways of recording a medication, and what a Medication is made of."""

from __future__ import annotations

import msgspec

from ehrseq.fhir.concepts import BAD_STATUS, EVENTS, CodePool, concept_code
from ehrseq.fhir.datatypes import CodeableReference, Reference
from ehrseq.fhir.dating import POLICY, dated
from ehrseq.fhir.facts import concept_of
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.resource import (
    Medication,
    MedicationAdministration,
    MedicationDispense,
    MedicationOrder,
    MedicationRequest,
    MedicationStatement,
    MedicationUse,
)
from ehrseq.fhir.rows import MedicationFacts, Rows
from ehrseq.fhir.statuses import DISPENSE_STATUS, ORDER_INTENT, ORDER_STATUS, USE_STATUS
from ehrseq.fhir.values import NOTHING, Value, read_quantity

_DEPTH = 3  # of medications made of medications


class MedicationEmitters:
    """The functions of `events` for medications."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.codes = CodePool(rows, "medication")

    def medication_request(self, r: MedicationRequest, record: int) -> int:
        """The order, when it was written."""
        reason = ORDER_STATUS.get(r.status) or ORDER_INTENT.get(r.intent)
        if reason is not None:
            return reason
        if r.do_not_perform:
            return Reason.NOT_DONE
        return self._medication_use(r, record, "MedicationRequest")

    def medication_order(self, r: MedicationOrder, record: int) -> int:
        """The order of DSTU2, when it was written."""
        if (reason := ORDER_STATUS.get(r.status)) is not None:
            return reason
        return self._medication_use(r, record, "MedicationOrder")

    def medication_administration(self, r: MedicationAdministration, record: int) -> int:
        """A dose given; its amount is the value."""
        if (reason := BAD_STATUS.get(r.status)) is not None:
            return reason
        if r.not_given or r.was_not_given:
            return Reason.NOT_DONE
        dose = (r.dosage.dose or r.dosage.quantity) if r.dosage is not None else None
        if dose is None:
            return self._medication_use(r, record, "MedicationAdministration")
        return self._medication_use(r, record, "MedicationAdministration", read_quantity(dose))

    def medication_dispense(self, r: MedicationDispense, record: int) -> int:
        """A medication handed over or, failing that, prepared."""
        if (reason := DISPENSE_STATUS.get(r.status)) is not None:
            return reason
        if r.not_done:
            return Reason.NOT_DONE
        return self._medication_use(r, record, "MedicationDispense")

    def medication_statement(self, r: MedicationStatement, record: int) -> int:
        """A medication somebody says is taken."""
        if (reason := USE_STATUS.get(r.status)) is not None:
            return reason
        if r.taken == "n" or r.was_not_taken:
            return Reason.NOT_DONE
        return self._medication_use(r, record, "MedicationStatement")

    def medication(self, r: Medication, record: int) -> int:
        """No event: other records refer to it."""
        facts = self._facts(r, record)
        inner = [reference for reference in facts.ingredient_references if reference.startswith("#")]
        if inner:
            contained = self._contained(r.contained)
            for reference in inner:
                facts.ingredient_references.remove(reference)
                found = self._contained_codes(contained.get(reference[1:]), contained, _DEPTH)
                facts.ingredient_codes += [code for code in found if code > 0]
        self.rows.medications.append(facts)
        return Reason.REFERENCE_DATA

    def _medication_use(
        self,
        r: MedicationUse,
        record: int,
        kind: str,
        value: Value = NOTHING,
    ) -> int:
        if r.modifier_extension:
            return Reason.MODIFIER_EXTENSION
        rows, texts = self.rows, self.rows.texts
        number, text, modifier, unit = value
        time, known, source = dated(r, POLICY[kind])
        happened, certain = rows.times[time], rows.times[known]
        concept = r.medication_codeable_concept
        if concept is None and r.medication is not None:
            concept = concept_of(r.medication)
        if concept is not None:
            code = concept_code(concept, self.codes)
            if not code:
                return Reason.NO_CODE
            rows.add(record, code, happened, certain, source, number, texts[text], texts[modifier], texts[unit])
            return EVENTS
        codes = self._referenced_codes(r)
        if len(codes) > 1:
            number, text, modifier, unit = NOTHING  # the dose of a mixture is nobody's dose
        for code in codes:
            rows.add(record, code, happened, certain, source, number, texts[text], texts[modifier], texts[unit])
        return EVENTS if codes else Reason.NO_CODE

    def _referenced_codes(self, r: MedicationUse) -> list[int]:
        """Code numbers of a referenced medication; a reference to another record as a negative number."""
        reference = _target(r.medication_reference) or _target(r.medication)
        if reference is None:
            return []
        if not reference.startswith("#"):
            return [-1 - self.rows.references[reference]]
        contained = self._contained(r.contained)
        return self._contained_codes(contained.get(reference[1:]), contained, _DEPTH)

    def _contained_codes(
        self, medication: MedicationFacts | None, others: dict[str, MedicationFacts], depth: int
    ) -> list[int]:
        if medication is None or not depth:
            return []
        if medication.code:
            return [medication.code]
        codes = list(medication.ingredient_codes)
        for reference in medication.ingredient_references:
            if reference.startswith("#"):
                codes += self._contained_codes(others.get(reference[1:]), others, depth - 1)
            else:
                codes.append(-1 - self.rows.references[reference])
        return list(dict.fromkeys(codes))

    def _contained(self, resources: list[msgspec.Raw] | None) -> dict[str, MedicationFacts]:
        return {m.id or "": self._facts(m) for m in contained_medications(resources)}

    def _facts(self, r: Medication, record: int = -1) -> MedicationFacts:
        items = r.ingredient or (r.product.ingredient if r.product is not None else None) or []
        codes = [concept_code(item.item_codeable_concept or concept_of(item.item), self.codes) for item in items]
        references = [_target(item.item_reference) or _target(item.item) for item in items]
        return MedicationFacts(
            record,
            r.id or "",
            concept_code(r.code, self.codes),
            [code for code in codes if code],
            [reference for reference in references if reference],
        )


def _target(reference: Reference | CodeableReference | None) -> str | None:
    """Where a reference of any version leads, as written."""
    written = reference.reference if reference is not None else None
    return written.reference if isinstance(written, Reference) else written or None


def contained_medications(contained: list[msgspec.Raw] | None) -> list[Medication]:
    """The Medications among contained resources; others, and unreadable ones, are passed over."""
    found = []
    for raw in contained or ():
        try:
            found.append(msgspec.json.decode(raw, type=Medication))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found
