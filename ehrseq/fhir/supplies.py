"""Devices, blood products, supplies and food: one pure function for each resource type (see `facts`)."""

from __future__ import annotations

from typing import Any

from ehrseq.fhir.concepts import BAD_STATUS, status_code
from ehrseq.fhir.datatypes import Concept
from ehrseq.fhir.dating import POLICY, dated
from ehrseq.fhir.facts import ORDER, Fact, Said, Scheme, concept_of
from ehrseq.fhir.resource_care import (
    BiologicallyDerivedProductDispense,
    Device,
    DeviceAssociation,
    DeviceDispense,
    DeviceRequest,
    DeviceUseRequest,
    DeviceUseStatement,
    NutritionIntake,
    SuppliedItem,
    SupplyDelivery,
)
from ehrseq.fhir.statuses import DISPENSE_STATUS, EVENT_STATUS, PRODUCT_STATUS, USE_STATUS, order_fault
from ehrseq.fhir.values import NOTHING, read_quantity

DEVICE = Scheme("procedure", "DEVICE//")
SUPPLY = Scheme("procedure", "SUPPLY//")
NUTRITION = Scheme("procedure", "NUTRITION//")


def device_request(r: DeviceRequest) -> Said:
    """The device that was ordered, by its code or that of the Device record it names.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(device_request, '''{"resourceType": "DeviceRequest", "intent": "order", "authoredOn": "2013-05",
    ...     "codeCodeableConcept": {"coding": [{"system": "http://snomed.info/sct", "code": "58938008"}]}}''')
    [('ORDER//SNOMED//58938008', '2013-05', None)]
    """
    if (reason := order_fault(r)) is not None:
        return reason
    return _device_facts(ORDER, r.code_codeable_concept or r.code, r.code_reference or r.code, r, "DeviceRequest")


def device_use_request(r: DeviceUseRequest) -> Said:
    """The order of a device in DSTU2.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(device_use_request, '{"resourceType": "DeviceUseRequest", "status": "proposed"}')
    'planned'
    """
    if (reason := order_fault(r)) is not None:
        return reason
    return _device_facts(ORDER, None, r.device, r, "DeviceRequest")


def device_use(r: DeviceUseStatement) -> Said:
    """The use of a device, by the device's code or that of the Device record it names.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(device_use, '''{"resourceType": "DeviceUseStatement", "status": "completed",
    ...     "device": {"concept": {"coding": [{"system": "http://snomed.info/sct", "code": "14106009"}]}},
    ...     "timingPeriod": {"start": "2019-05-01", "end": "2019-06-01"}}''')
    [('DEVICE//SNOMED//14106009', '2019-05-01', None)]
    """
    if (reason := USE_STATUS.get(r.status)) is not None:
        return reason
    return _device_facts(DEVICE, r.device, r.device, r, "DeviceUseStatement")


def device_dispense(r: DeviceDispense) -> Said:
    """A device handed over, in R5.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(device_dispense, '''{"resourceType": "DeviceDispense", "status": "completed",
    ...     "device": {"concept": {"coding": [{"system": "http://snomed.info/sct", "code": "14106009"}]}},
    ...     "whenHandedOver": "2024-05-01"}''')
    [('DEVICE//SNOMED//14106009', '2024-05-01', None)]
    """
    if (reason := DISPENSE_STATUS.get(r.status)) is not None:
        return reason
    return _device_facts(DEVICE, r.device, r.device, r, "DeviceDispense")


def device_association(r: DeviceAssociation) -> Said:
    """A device implanted in or attached to the patient, in R5.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(device_association, '''{"resourceType": "DeviceAssociation", "status": {"coding": [
    ...     {"system": "http://hl7.org/fhir/deviceassociation-status", "code": "entered-in-error"}]}}''')
    'entered_in_error'
    """
    if (reason := BAD_STATUS.get(status_code(r.status))) is not None:
        return reason
    return _device_facts(DEVICE, None, r.device, r, "DeviceAssociation")


def product_dispense(r: BiologicallyDerivedProductDispense) -> Said:
    """Blood or tissue handed over for the patient, in R5; how much is the value.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(product_dispense, '{"resourceType": "BiologicallyDerivedProductDispense", "status": "returned"}')
    'not_done'
    """
    if (reason := PRODUCT_STATUS.get(r.status)) is not None:
        return reason
    number, text, modifier, unit = read_quantity(r.quantity) if r.quantity else NOTHING
    found = _device_facts(SUPPLY, None, r.product, r, "BiologicallyDerivedProductDispense")
    return [fact._replace(number=number, text=text, modifier=modifier, unit=unit) for fact in found]


def nutrition_intake(r: NutritionIntake) -> Said:
    """What was eaten or drunk, in R5.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(nutrition_intake, '''{"resourceType": "NutritionIntake", "status": "completed",
    ...     "occurrenceDateTime": "2024-05-01", "consumedItem": [{"nutritionProduct": {"concept": {"coding": [
    ...     {"system": "http://snomed.info/sct", "code": "226465004"}]}}}]}''')
    [('NUTRITION//SNOMED//226465004', '2024-05-01', None)]
    """
    if (reason := EVENT_STATUS.get(r.status)) is not None:
        return reason
    when = dated(r, POLICY["NutritionIntake"])
    taken = [concept_of(item.nutrition_product) for item in r.consumed_item or () if not item.not_consumed]
    return [Fact(NUTRITION, concept, when) for concept in taken if concept is not None]


def supply_delivery(r: SupplyDelivery) -> Said:
    """What was delivered to a patient; how many is the value.

    >>> from ehrseq.fhir.facts import preview
    >>> preview(supply_delivery, '''{"resourceType": "SupplyDelivery", "status": "completed",
    ...     "suppliedItem": {"itemCodeableConcept": {"coding": [{"system": "http://snomed.info/sct",
    ...     "code": "337388004"}]}, "quantity": {"value": 2}}, "occurrenceDateTime": "2015-01-02"}''')
    [('SUPPLY//SNOMED//337388004', '2015-01-02', None, 2.0)]
    """
    if (reason := EVENT_STATUS.get(r.status)) is not None:
        return reason
    items = [r.supplied_item] if isinstance(r.supplied_item, SuppliedItem) else r.supplied_item or []
    facts: list[Fact] = []
    for item in items:
        found = _device_facts(SUPPLY, item.item_codeable_concept, item.item_reference, r, "SupplyDelivery")
        number, text, modifier, unit = read_quantity(item.quantity) if item.quantity else NOTHING
        facts += [fact._replace(number=number, text=text, modifier=modifier, unit=unit) for fact in found]
    return facts


def device_concept(r: Device) -> Concept | None:
    """The type of a device, to which other records refer.

    >>> device_concept(Device(resource_type="Device", type=[Concept(text="pump")])).text
    'pump'
    """
    if isinstance(r.type, list):
        return next((concept for concept in r.type if concept.coding), r.type[0] if r.type else None)
    return r.type


def _device_facts(scheme: Scheme, item: Any, reference: Any, r: Any, kind: str) -> list[Fact]:
    """One fact of a coded item, else of the Device that a reference names."""
    when = dated(r, POLICY[kind])
    if (concept := concept_of(item)) is not None and concept.coding:
        return [Fact(scheme, concept, when)]
    target = getattr(reference, "reference", None)
    while target is not None and not isinstance(target, str):
        target = target.reference
    return [Fact(scheme, "", when, device=target)] if target else []
