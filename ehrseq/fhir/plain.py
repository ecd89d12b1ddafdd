"""The commonest shapes of the commonest records, read in one loop; anything unusual goes to the type's own function.

A *plain* record has one coding, an ordinary status, and one value at most. It gives exactly one event, the same that
the type's own function gives (a test compares the two). Fields are taken a column at a time and the loop calls next to
nothing: calls and generic look-ups are most of what reading such a record costs.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

from ehrseq.fhir.concepts import BAD_STATUS, EVENTS, CodePool
from ehrseq.fhir.dating import POLICY, dated
from ehrseq.fhir.rows import Rows
from ehrseq.fhir.statuses import DISPENSE_STATUS, EVENT_STATUS, ORDER_INTENT, ORDER_STATUS, RESULT_STATUS
from ehrseq.fhir.values import LARGEST, NAN, read_value

Column = Callable[[list[Any]], list[Any]]
Emit = Callable[[Any, int], int]


class Shape(NamedTuple):
    """Columns of a batch of records. What `odd` finds something in is not plain."""

    odd: Column
    concept: Column
    time: Column  # the first field that the time policy asks for
    period: Column  # the second one, a Period
    known: Column  # the only one that it asks for, if any
    quantity: Column
    reference: Column  # of the medication, in the concept's place
    has_values: bool = False  # of other kinds than a quantity


def _none(batch: list[Any]) -> list[None]:
    return [None] * len(batch)


def _medicated(odd: Column, time: Column, period: Column = _none, quantity: Column = _none) -> Shape:
    return Shape(
        odd,
        lambda batch: [r.medication_codeable_concept for r in batch],
        time,
        period,
        _none,
        quantity,
        lambda batch: [None if (m := r.medication_reference) is None else m.reference for r in batch],
    )


SHAPES = {
    "Observation": Shape(
        lambda batch: [
            r.status in RESULT_STATUS or r.modifier_extension or r.component is not None or r.extension is not None
            or r.has_member is not None or r.derived_from is not None or r.related is not None for r in batch
        ],
        lambda batch: [r.code for r in batch],
        lambda batch: [r.effective_date_time for r in batch],
        lambda batch: [r.effective_period for r in batch],
        lambda batch: [r.issued for r in batch],
        lambda batch: [r.value_quantity for r in batch],
        _none,
        has_values=True,
    ),
    "MedicationAdministration": _medicated(
        lambda batch: [
            r.status in BAD_STATUS or r.modifier_extension or r.medication or r.not_given or r.was_not_given
            or r.recorded for r in batch
        ],
        lambda batch: [r.effective_date_time for r in batch],
        lambda batch: [r.effective_period for r in batch],
        lambda batch: [None if (d := r.dosage) is None else d.dose or d.quantity for r in batch],
    ),
    "MedicationRequest": _medicated(
        lambda batch: [
            r.status in ORDER_STATUS or r.intent in ORDER_INTENT or r.modifier_extension or r.medication
            or r.do_not_perform for r in batch
        ],
        lambda batch: [r.authored_on for r in batch],
    ),
    "MedicationDispense": _medicated(
        lambda batch: [
            r.status in DISPENSE_STATUS or r.modifier_extension or r.medication or r.not_done for r in batch
        ],
        lambda batch: [r.when_handed_over for r in batch],
    ),
    "Condition": Shape(
        lambda batch: [
            r.modifier_extension or r.verification_status is not None or r.abatement_date_time or r.abatement_period
            or r.asserted_date or r.date_recorded for r in batch
        ],
        lambda batch: [r.code for r in batch],
        lambda batch: [r.onset_date_time for r in batch],
        lambda batch: [r.onset_period for r in batch],
        lambda batch: [r.recorded_date for r in batch],
        _none,
        _none,
    ),
    "Specimen": Shape(
        lambda batch: [
            r.status in BAD_STATUS or r.modifier_extension or (c := r.collection) is None
            or c.body_site is not None or not c.collected_date_time for r in batch
        ],
        lambda batch: [r.type for r in batch],
        lambda batch: [None if (c := r.collection) is None else c.collected_date_time for r in batch],
        _none,
        _none,
        _none,
        _none,
    ),
    "Procedure": Shape(
        lambda batch: [
            r.status in EVENT_STATUS or r.modifier_extension or r.not_done or r.not_performed for r in batch
        ],
        lambda batch: [r.code for r in batch],
        lambda batch: [r.performed_date_time for r in batch],
        lambda batch: [r.performed_period for r in batch],
        lambda batch: [r.recorded for r in batch],
        _none,
        _none,
    ),
}  # fmt: skip


def plain_reader(
    kind: str, rows: Rows, pool: CodePool, emit: Emit, special: dict[int, bool] | None = None
) -> Callable[[list[Any], int], array[int]]:
    """A function that reads records of one type, numbered from its second argument on: the reason of each.

    `emit` reads what is not plain. `special` says of the number of a code whether it makes a record so; a code that
    is not in it does.
    """
    odd, concept_, time_, period_, known_, quantity_, reference_, has_values = SHAPES[kind]
    policy, alone = POLICY[kind], pool.alone
    dated_by, is_result = policy.time[0][1], policy.result
    texts, references, append, pack = rows.texts, rows.references, rows.append, rows.pack
    dates = rows.dates
    write = dates.append

    def read(batch: list[Any], start: int) -> array[int]:
        reasons = array("B")
        settle = reasons.append
        # one after the other, records have often the same time; to look for it further back is dear
        last_time = last_known = None
        time_number = known_number = 0
        for record, r, strange, concept, time, period, known, quantity, reference in zip(
            count(start), batch, odd(batch), concept_(batch), time_(batch), period_(batch), known_(batch),
            quantity_(batch), reference_(batch), strict=False,
        ):  # fmt: skip
            # what it is
            if strange:
                settle(emit(r, record))
                continue
            if concept is not None:
                codings = concept.coding
                if not codings or len(codings) > 1:
                    settle(emit(r, record))
                    continue
                coding = codings[0]
                known_system, code = alone.get(coding.code, _UNKNOWN)
                if known_system != coding.system or not code:
                    code = pool.of_one(coding.system, coding.code)
                if not code or (special is not None and special.get(code, True)):
                    settle(emit(r, record))
                    continue
            elif reference and reference[0] != "#":
                code = -1 - references[reference]
            else:
                settle(emit(r, record))
                continue
            # when it was
            source = dated_by
            if not time:
                if period is not None and (time := period.start or period.end):
                    known = known or (period.end if is_result else None)
                else:
                    time, known, source = dated(r, policy)
            # its value
            number, text, modifier, unit = NAN, 0, 0, 0
            if quantity is not None:
                number = quantity.value
                if type(number) is not float or not -LARGEST <= number <= LARGEST:
                    settle(emit(r, record))
                    continue
                if quantity.comparator is not None:
                    modifier = texts[quantity.comparator]
                unit = texts[quantity.code or quantity.unit]
            elif has_values:
                number, words, why, measure = read_value(r)
                text, modifier, unit = texts[words], texts[why], texts[measure]
            if time != last_time:
                last_time, time_number = time, 0
                if time:
                    write(time)
                    time_number = -len(dates)
            if not known:
                certain = 0
            elif known == time:
                certain = time_number
            else:
                if known != last_known:
                    write(known)
                    last_known, known_number = known, -len(dates)
                certain = known_number
            append(pack(record, code, time_number, certain, source, number, text, modifier, unit))
            settle(EVENTS)
        return reasons

    return read


_UNKNOWN = (None, 0)
