"""The time policy: which fields of a record say when its fact happened and since when it was known.

One table, `POLICY`, and one function that reads it, `dated`. `time` is the first field of the list that is there, a
period counting from its start (or, where that is open, from its end). Dates that stand for none (0001-01-01) are passed
over. `known` is the first of its own list, else,
once dates are parsed, the end of the interval that the date of `time` stands for. A period's end comes later than its
start, and says nothing of what was known then; only a *result* of a period (a measurement, an assessment, a bill) is
there at its end. Without any date, `timeline.link` takes the linked Encounter's start and end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from ehrseq.fhir.clock import given
from ehrseq.fhir.rows import (
    ASSERTED,
    AUTHORED,
    BILLED,
    COLLECTED,
    CREATED,
    EFFECTIVE,
    ENCOUNTER,
    HANDED_OVER,
    IDENTIFIED,
    ISSUED,
    OCCURRENCE,
    ONSET,
    PERFORMED,
    PERIOD,
    PREPARED,
    RECEIVED,
    RECORDED,
    STARTED,
    USED,
)

Moment = tuple[str | None, str | None, int]
"""(when it happened, when it was known, number of the time's source); dates as written"""


Fields = tuple[tuple[tuple[Callable[[Any], Any], int], ...], tuple[Callable[[Any], Any], ...]]
"""What reads the fields of `time`, each with its source, and those of `known`"""


@dataclass(frozen=True, eq=False)
class Policy:
    """Attributes of the record, first to last; those of `time` with the source that they stand for."""

    time: tuple[tuple[str, int], ...]
    known: tuple[str, ...] = ()
    result: bool = False  # whether it sums up a period, and so is there at the period's end
    of_type: dict[type, Fields] = field(default_factory=dict, repr=False)  # asked of nearly every record

    def fields_of(self, kind: type) -> Fields:
        """The fields that records of a type have."""
        return self.of_type.get(kind) or self._look_at(kind)

    def _look_at(self, kind: type) -> Fields:
        times = tuple((attrgetter(name), source) for name, source in self.time if hasattr(kind, name))
        self.of_type[kind] = times, tuple(attrgetter(name) for name in self.known if hasattr(kind, name))
        return self.of_type[kind]


def _same(source: int, *names: str) -> tuple[tuple[str, int], ...]:
    return tuple((name, source) for name in names)


_EFFECTIVE = _same(EFFECTIVE, "effective_date_time", "effective_period", "effective_instant", "effective_timing")
_RECORDED = ("recorded_date", "asserted_date", "date_recorded")
_ONSET = _same(ONSET, "onset_date_time", "onset_period", "onset") + _same(RECORDED, *_RECORDED)
_OCCURRENCE = _same(OCCURRENCE, "occurrence_date_time", "occurrence_period")
# an order without a date had been given by the time for which it was meant
_ORDERED = Policy(_same(AUTHORED, "authored_on", "ordered_on", "date", "date_sent") + _OCCURRENCE)
_USED = _same(USED, "timing_date_time", "timing_period", "timing_timing", "when_used")

POLICY: dict[str, Policy] = {
    "Observation": Policy((*_EFFECTIVE, ("issued", ISSUED)), ("issued",), result=True),
    "Observation (genomic)": Policy((("issued", ISSUED), *_EFFECTIVE), ("issued",), result=True),
    "DiagnosticReport": Policy((*_EFFECTIVE[:2], ("issued", ISSUED)), ("issued",), result=True),
    "Condition": Policy(_ONSET, _RECORDED),
    "AllergyIntolerance": Policy(_ONSET, _RECORDED),
    "MedicationRequest": Policy(_same(AUTHORED, "authored_on")),
    "MedicationOrder": Policy(_same(AUTHORED, "date_written")),
    "MedicationAdministration": Policy(
        _same(
            EFFECTIVE, "effective_date_time", "effective_period", "effective_time_date_time", "effective_time_period",
            "occurrence_date_time", "occurrence_period", "occurence_date_time", "occurence_period",
        ),
        ("recorded",),
    ),
    "MedicationDispense": Policy((("when_handed_over", HANDED_OVER), ("when_prepared", PREPARED))),
    "MedicationStatement": Policy((*_EFFECTIVE[:2], ("date_asserted", ASSERTED)), ("date_asserted",)),
    "Procedure": Policy((*_same(PERFORMED, "performed_date_time", "performed_period"), *_OCCURRENCE), ("recorded",)),
    "Immunization": Policy(
        (*_same(OCCURRENCE, "occurrence_date_time", "date"), ("recorded", RECORDED)), ("recorded",)
    ),
    "CarePlan": Policy((("period", PERIOD), ("created", CREATED)), ("created",)),
    "ServiceRequest": _ORDERED,
    "ProcedureRequest": _ORDERED,
    "ReferralRequest": _ORDERED,
    "DiagnosticOrder": _ORDERED,
    "DeviceRequest": _ORDERED,
    "NutritionOrder": Policy(_same(AUTHORED, "date_time")),
    "VisionPrescription": Policy(_same(AUTHORED, "date_written")),
    "Goal": Policy((("start_date", STARTED), ("status_date", STARTED))),
    "DocumentReference": Policy(_same(CREATED, "date", "indexed", "created")),
    "Composition": Policy(_same(CREATED, "date")),
    "ImagingStudy": Policy(_same(STARTED, "started")),
    "Media": Policy(
        (*_same(CREATED, "created_date_time", "created_period"), *_OCCURRENCE, ("issued", ISSUED)), ("issued",)
    ),
    "Specimen": Policy(
        (*_same(COLLECTED, "collected_date_time", "collected_period"), ("received_time", RECEIVED)),
    ),
    "DeviceUseStatement": Policy(
        (*_USED, ("recorded_on", RECORDED), ("date_asserted", ASSERTED)), ("recorded_on", "date_asserted")
    ),
    "DeviceDispense": Policy((("when_handed_over", HANDED_OVER), ("prepared_date", PREPARED))),
    "DeviceAssociation": Policy(_same(PERIOD, "period")),
    "BiologicallyDerivedProductDispense": Policy((("when_handed_over", HANDED_OVER), ("prepared_date", PREPARED))),
    "Consent": Policy(_same(CREATED, "date_time", "date")),
    "SupplyDelivery": Policy(_OCCURRENCE),
    "NutritionIntake": Policy(_OCCURRENCE, ("recorded",)),
    "FamilyMemberHistory": Policy(_same(RECORDED, "date")),
    "Flag": Policy(_same(PERIOD, "period")),
    "RiskAssessment": Policy((*_OCCURRENCE, ("date", OCCURRENCE)), result=True),
    "AdverseEvent": Policy(
        (*_OCCURRENCE, ("date", OCCURRENCE), ("detected", IDENTIFIED), ("recorded_date", RECORDED)),
        ("recorded_date", "detected"),
    ),
    "DetectedIssue": Policy(_same(IDENTIFIED, "identified_date_time", "identified_period", "date"), result=True),
    "ClinicalImpression": Policy((*_EFFECTIVE[:2], ("date", RECORDED)), ("date",), result=True),
    "QuestionnaireResponse": Policy(_same(AUTHORED, "authored")),
    "Claim": Policy((("billable_period", BILLED), ("created", CREATED)), ("created",), result=True),
    "ExplanationOfBenefit": Policy((("billable_period", BILLED), ("created", CREATED)), ("created",), result=True),
    "ChargeItem": Policy(
        (*_OCCURRENCE, ("occurrence_timing", OCCURRENCE), ("entered_date", CREATED)), ("entered_date",), result=True
    ),
    # no version of FHIR gives them a date
    "MolecularSequence": Policy(()),
}  # fmt: skip


def dated(record: Any, policy: Policy) -> Moment:
    """When the fact of a record happened, when it was known, and what says so.

    Attributes that the record's type does not have count as absent.

    >>> from ehrseq.fhir.resource import Observation, Period, Procedure
    >>> stay = Period(start="2020-01-02", end="2020-02")
    >>> dated(Procedure(resource_type="Procedure", performed_period=stay), POLICY["Procedure"])[:2]
    ('2020-01-02', None)
    >>> dated(Observation(resource_type="Observation", effective_period=stay), POLICY["Observation"])[:2]
    ('2020-01-02', '2020-02')
    """
    times, others = policy.fields_of(type(record))
    nothing: Moment = (None, None, ENCOUNTER)
    for first, source in times:
        written = first(record)
        if written is None:
            continue
        time, until = (written, None) if type(written) is str else _interval(written)
        if time:
            for other in others:
                if known := given(other(record)):
                    break
            else:
                known = until if policy.result else None
            if given(time):
                return time, known, source
            if nothing[0] is None:
                nothing = time, known, source
    if nothing[0] is None and others:  # an encounter may say when it was; what the record says of `known` still holds
        return None, next((known for other in others if (known := given(other(record)))), None), ENCOUNTER
    return nothing


def _interval(written: Any) -> tuple[str | None, str | None]:
    """Start and end of a Period or of a Timing's events or bounds."""
    if (events := getattr(written, "event", None)) is not None:
        told = [time for time in events if given(time)]
        if told or not getattr(written, "repeat", None):
            told = told or events
            return (min(told), given(max(told))) if told else (None, None)
    if (repeat := getattr(written, "repeat", None)) is not None:
        written = repeat.bounds_period
    start, end = getattr(written, "start", None), getattr(written, "end", None)
    return given(start) or given(end) or start or end, given(end)


def policy_table() -> str:
    """The table of the documentation: `docs/timeline.md` holds exactly this.

    >>> [line for line in policy_table().splitlines() if "| Goal" in line]
    ['| Goal | `startDate`, `statusDate` |  |']
    """
    rows = ["| type | `time`: the first of | `known_time`: the first of |", "|---|---|---|"]
    for kind, policy in POLICY.items():
        time = ", ".join(_field(name) for name, _ in policy.time) or "none"
        known = ", ".join([_field(name) for name in policy.known] + ["the period's end"] * policy.result)
        rows.append(f"| {kind} | {time} | {known} |")
    return "\n".join(rows)


def _field(name: str) -> str:
    return "`" + re.sub("_([a-z])", lambda m: m[1].upper(), name) + "`"
