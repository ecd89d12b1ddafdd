"""The value of an Observation or of one of its components, of any kind."""

from __future__ import annotations

import math
import re

from ehrseq.fhir.codes import MEASUREMENT_ORDER, event_code, preferred_code
from ehrseq.fhir.datatypes import Concept, Quantity, Range, Ratio
from ehrseq.fhir.resource import Measured

NAN = math.nan
Value = tuple[float, str | None, str | None, str | None]
"""(number or nan, text, modifier, unit)"""
NOTHING: Value = (NAN, None, None, None)
LARGEST = 3.4028234663852886e38  # that the events' float32 column holds
_COMPARED = re.compile(r"(<=|>=|<|>)\s*(.+)", re.DOTALL)


def read_value(item: Measured) -> Value:
    """Number, text, modifier and unit of a value; a reason for its absence is the modifier.

    >>> import msgspec
    >>> read = lambda text: read_value(msgspec.json.decode(text, type=Measured))
    >>> read('{"valueQuantity": {"value": 6.2, "comparator": "<", "unit": "percent", "code": "%"}}')
    (6.2, None, '<', '%')
    >>> read('{"valueCodeableConcept": {"coding": [{"system": "http://snomed.info/sct", "code": "10828004"}]}}')
    (nan, 'SNOMED//10828004', None, None)
    >>> read('{"dataAbsentReason": {"coding": [{"code": "not-performed"}]}}')
    (nan, None, 'not-performed', None)
    """
    if (quantity := item.value_quantity) is not None:
        return read_quantity(quantity)
    if (text := item.value_string) is not None:
        return as_number(text), text, None, None
    if (when := item.value_date_time) is not None:
        return NAN, when, None, None
    if item.value_codeable_concept is not None:
        return NAN, concept_text(item.value_codeable_concept), None, None
    return _rare_value(item)


def read_quantity(quantity: Quantity) -> Value:
    """The value of a Quantity. A number written as text counts, with its comparator; what is no number stays text.

    >>> read_quantity(Quantity(value="<5", code="mg")), read_quantity(Quantity(value="trace"))
    ((5.0, None, '<', 'mg'), (nan, 'trace', None, None))
    """
    value, unit = quantity.value, quantity.code or quantity.unit
    if type(value) is float and -LARGEST <= value <= LARGEST:
        return value, None, quantity.comparator, unit
    number = as_number(value)
    if value is None or number == number:
        return number, None, quantity.comparator, unit
    text = str(value).strip()
    if (parts := _COMPARED.fullmatch(text)) and (number := as_number(parts[2])) == number:
        return number, None, quantity.comparator or parts[1], unit
    return NAN, text or None, quantity.comparator, unit


def _rare_value(item: Measured) -> Value:
    if item.data_absent_reason is not None:
        return NAN, None, _absence(item.data_absent_reason), None
    if item.value_integer is not None:
        number = as_number(item.value_integer)
        return number, None if number == number else str(item.value_integer), None, None
    if item.value_boolean is not None:
        return NAN, "true" if item.value_boolean else "false", None, None
    if item.value_range is not None:
        return read_range(item.value_range)
    if item.value_ratio is not None:
        return _ratio(item.value_ratio)
    if item.value_time is not None:
        return NAN, item.value_time, None, None
    if item.value_period is not None:
        return NAN, f"{item.value_period.start or ''}/{item.value_period.end or ''}", None, None
    if item.value_sampled_data is not None:
        return NAN, None, "sampled-data", None
    if item.value_attachment is not None:
        return NAN, None, "attachment", None
    return NOTHING


def as_number(text: str | float | None) -> float:
    """A number written as text; nan where it is none, or too large for the column.

    >>> as_number(" 7.5"), as_number("POSITIVE"), as_number("1_000"), as_number("inf")
    (7.5, nan, nan, nan)
    """
    if text is None:
        return NAN
    try:
        number = float(text)
    except (ValueError, OverflowError):
        return NAN
    return number if abs(number) <= LARGEST and "_" not in str(text) else NAN


def concept_text(concept: Concept) -> str | None:
    """A coded value as `SYSTEM//code`; its text where it has no code."""
    codings = [(c.system, c.code) for c in concept.coding or ()]
    code = event_code(codings[0]) if len(codings) == 1 else preferred_code(codings, MEASUREMENT_ORDER)
    return code or concept.text


def _absence(reason: Concept) -> str:
    codes = [c.code for c in reason.coding or () if c.code]
    return codes[0] if codes else "unknown"


def _amount(quantity: Quantity | None) -> tuple[float, str, str | None]:
    if quantity is None:
        return NAN, "", None
    number = as_number(quantity.value)
    return number, "" if math.isnan(number) else f"{number:g}", quantity.code or quantity.unit


def read_range(value: Range) -> Value:
    """Both ends as text, `2..4`; with one end only, a number and the comparator that says which."""
    low, low_text, low_unit = _amount(value.low)
    high, high_text, high_unit = _amount(value.high)
    unit = low_unit or high_unit
    if math.isnan(low) or math.isnan(high):
        return (high, None, "<=", unit) if math.isnan(low) else (low, None, ">=", unit)
    return NAN, f"{low_text}..{high_text}", None, unit


def _ratio(value: Ratio) -> Value:
    """A ratio as a number where it is one, and as written (`1:128` is a titre, not .0078)."""
    above, above_text, above_unit = _amount(value.numerator)
    below, below_text, below_unit = _amount(value.denominator)
    unit = f"{above_unit or '1'}/{below_unit}" if below_unit else above_unit
    number = as_number(above / below) if below else NAN
    return number, f"{above_text}:{below_text}", value.numerator.comparator if value.numerator else None, unit
