"""The commonest shapes of the commonest records, read by column; anything unusual goes to the type's own function.

A *plain* record has one concept, an ordinary status, and one value at most. It gives exactly one event, the same that
the type's own function gives (a test compares the two). Every field is taken, numbered and packed for a whole batch:
the interpreter's steps for one record after the other are most of what reading it costs.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ehrseq.fhir.clock import given
from ehrseq.fhir.columns import Gathered, whole
from ehrseq.fhir.concepts import BAD_STATUS, EVENTS, CodePool, concept_code
from ehrseq.fhir.dating import POLICY, dated
from ehrseq.fhir.resource import READ_TYPES
from ehrseq.fhir.rows import ENCOUNTER, PACKED, Pool, Rows
from ehrseq.fhir.statuses import DISPENSE_STATUS, EVENT_STATUS, ORDER_INTENT, ORDER_STATUS, RESULT_STATUS, USE_STATUS
from ehrseq.fhir.values import LARGEST, NAN, read_value

Column = Callable[[list[Any]], list[Any]]
Emit = Callable[[Any, int], int]
Numbers = npt.NDArray[Any] | Sequence[int] | int


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


def _medicated(
    odd: Column, time: Column, period: Column = _none, quantity: Column = _none, known: Column = _none
) -> Shape:
    return Shape(
        odd,
        lambda batch: [r.medication_codeable_concept for r in batch],
        time,
        period,
        known,
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
    "MedicationStatement": _medicated(
        lambda batch: [
            r.status in USE_STATUS or r.modifier_extension or r.medication or r.taken == "n" or r.was_not_taken
            for r in batch
        ],
        lambda batch: [r.effective_date_time for r in batch],
        lambda batch: [r.effective_period for r in batch],
        known=lambda batch: [r.date_asserted for r in batch],
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
            or c.body_site is not None or not (d := c.collected_date_time) or d < "0002" or d > "9" for r in batch
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
    shape = SHAPES[kind]
    odd, concept_, quantity_, reference_ = shape.odd, shape.concept, shape.quantity, shape.reference
    when = _dater(kind, rows.dates)
    references = rows.references
    # of a code that stands alone and makes nothing special: the system that it had last, and its number. Hashing
    # systems is dear
    ordinary: dict[str | None, tuple[str | None, int]] = {}

    def number_of(system: str | None, code: str | None) -> int:
        """The number of a coding that stands alone; 0 where it makes its record not plain."""
        number = pool[system, code]
        if special is not None and special.get(number, True):
            return 0
        ordinary[code] = system, number
        return number

    def read(batch: list[Any], start: int) -> array[int]:
        reasons = array("B", [EVENTS]) * len(batch)
        codes: list[int] = []  # 0: not plain
        put, known_code = codes.append, ordinary.get
        for strange, concept, reference in zip(odd(batch), concept_(batch), reference_(batch), strict=False):
            code = 0
            if strange:
                pass
            elif concept is not None:
                codings = concept.coding
                if codings and len(codings) == 1:
                    coding = codings[0]
                    system, code = known_code(coding.code, _UNKNOWN)
                    if not code or system != coding.system:
                        code = number_of(coding.system, coding.code)
                elif codings:
                    code = concept_code(concept, pool)
                    if special is not None and special.get(code, True):
                        code = 0
            elif reference and reference[0] != "#":
                code = -1 - references[reference]
            if not code:
                at = len(codes)
                reasons[at] = emit(batch[at], start + at)
            put(code)
        packed = np.zeros(len(batch), PACKED)
        for at in () if quantity_ is _none else _say(packed, batch, codes, shape, rows.texts):
            if codes[at]:
                codes[at], reasons[at] = 0, emit(batch[at], start + at)
        packed["record"] = np.arange(start, start + len(batch))
        packed["code"] = array("i", codes)
        packed["time"], packed["known"], packed["source"] = when(batch)
        if quantity_ is _none:
            packed["number"] = NAN
        rows.append((whole(packed)[packed["code"] != 0] if 0 in codes else packed).tobytes())
        return reasons

    return read


_UNKNOWN = (None, 0)


def _dater(kind: str, dates: Gathered) -> Callable[[list[Any]], tuple[Numbers, Numbers, Numbers]]:
    """A function that numbers when records of a type were, when they were known, and what says so."""
    shape, policy = SHAPES[kind], POLICY[kind]
    dated_by = policy.time[0][1]
    of_time = [field for field, _ in policy.fields_of(READ_TYPES[kind])[0]]

    def numbered(written: list[Any]) -> tuple[Numbers, bool]:
        """Numbers of times, and whether one may only stand for none (0001, 9999).

        Most records have a time of their own: to look for it among others is dear.
        """
        if not any(written):
            return 0, False
        first = -1 - len(dates)
        numbers = np.arange(first, first - len(written), -1)
        if not all(written):
            written = [time or "" for time in written]
            numbers = np.where([bool(time) for time in written], numbers, 0)
        text, letters = dates.extend(written)
        same = letters[0]
        firsts = text[::same] if same and letters.count(same) == len(letters) else [time[:1] for time in written]
        return numbers, "0" in firsts or "9" in firsts

    def when(batch: list[Any]) -> tuple[Numbers, Numbers, Numbers]:
        times, knowns = shape.time(batch), shape.known(batch)
        sources = array("B", [dated_by]) * len(batch)
        if not all(times):
            if not any(times) and not any(knowns) and not any(any(map(field, batch)) for field in of_time):
                return 0, 0, ENCOUNTER  # as `dated` says of each
            for at, time, period in zip(count(), times, shape.period(batch), strict=False):
                if time:
                    continue
                if period is not None and (time := period.start or period.end):
                    times[at] = time
                    if policy.result and not knowns[at]:
                        knowns[at] = period.end
                else:
                    times[at], knowns[at], sources[at] = dated(batch[at], policy)
        (first, doubt), (second, more) = numbered(times), numbered(knowns)
        if not doubt and not more:
            return first, second, sources
        for at, (time, known) in enumerate(zip(times, knowns, strict=True)):
            if time != given(time) or known != given(known):
                times[at], knowns[at], sources[at] = dated(batch[at], policy)
        return numbered(times)[0], numbered(knowns)[0], sources

    return when


def _say(
    packed: npt.NDArray[np.void], batch: list[Any], codes: list[int], shape: Shape, texts: Pool[str | None]
) -> list[int]:
    """Put down the values of those that have a code; the places of those that are not plain."""
    quantities = shape.quantity(batch)
    numbers = [NAN if q is None else q.value for q in quantities]
    units = [0 if q is None else texts[q.code or q.unit] for q in quantities]
    modifiers = [0 if q is None or q.comparator is None else texts[q.comparator] for q in quantities]
    unusual: list[int] = []
    try:
        amounts = array("d", numbers)
    except TypeError:  # one is text, or missing
        unusual = [at for at, number in enumerate(numbers) if type(number) is not float]
        amounts = array("d", [number if type(number) is float else NAN for number in numbers])
    unusual += np.flatnonzero(np.abs(np.array(amounts)) > LARGEST).tolist()
    if shape.has_values and None in quantities:
        for at, quantity in enumerate(quantities):
            if quantity is None and codes[at]:
                amounts[at], word, why, unit = read_value(batch[at])
                packed["text"][at], modifiers[at], units[at] = texts[word], texts[why], texts[unit]
    packed["number"] = amounts
    packed["modifier"], packed["unit"] = array("I", modifiers), array("I", units)
    return unusual
