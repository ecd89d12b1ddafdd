from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from ehrseq.fhir.resource import Measured
from ehrseq.fhir.values import read_value

QUANTITY = {"value": 5, "unit": "mg/dL"}


@pytest.mark.parametrize(
    ("fields", "number", "text", "modifier", "unit"),
    [
        ({"valueQuantity": QUANTITY}, 5, None, None, "mg/dL"),
        ({"valueQuantity": {"value": "5.5", "code": "mg"}}, 5.5, None, None, "mg"),
        ({"valueQuantity": {"value": 1, "comparator": "<="}}, 1, None, "<=", None),
        ({"valueQuantity": {"unit": "kg"}}, None, None, None, "kg"),
        ({"valueQuantity": {"value": "<5", "unit": "mg"}}, 5, None, "<", "mg"),
        ({"valueQuantity": {"value": " >= 1e3 "}}, 1000, None, ">=", None),
        ({"valueQuantity": {"value": "<5", "comparator": "<="}}, 5, None, "<=", None),
        ({"valueQuantity": {"value": "trace", "unit": "mg"}}, None, "trace", None, "mg"),
        ({"valueQuantity": {"value": "< trace"}}, None, "< trace", None, None),
        ({"valueQuantity": {"value": ""}}, None, None, None, None),
        ({"valueQuantity": {"value": 1e39, "unit": "mg"}}, None, "1e+39", None, "mg"),
        ({"valueQuantity": {"value": "-1e39"}}, None, "-1e39", None, None),
        ({"valueQuantity": {"value": 3.4e38}}, 3.4e38, None, None, None),
        ({"valueString": "1e39"}, None, "1e39", None, None),
        ({"valueInteger": 10**40}, None, "1" + "0" * 40, None, None),
        ({"valueRatio": {"numerator": {"value": 1e30}, "denominator": {"value": 1e-30}}}, None, "1e+30:1e-30", None,
         None),
        ({"valueString": "NO GROWTH"}, None, "NO GROWTH", None, None),
        ({"valueString": "7"}, 7, "7", None, None),
        ({"valueInteger": 3}, 3, None, None, None),
        ({"valueBoolean": False}, None, "false", None, None),
        ({"valueDateTime": "2020-01"}, None, "2020-01", None, None),
        ({"valueTime": "10:00:00"}, None, "10:00:00", None, None),
        ({"valuePeriod": {"start": "2020"}}, None, "2020/", None, None),
        ({"valueCodeableConcept": {"text": "present"}}, None, "present", None, None),
        (
            {"valueCodeableConcept": {"coding": [{"code": "x"}, {"system": "http://loinc.org", "code": "LA1"}]}},
            None, "LOINC//LA1", None, None,
        ),
        ({"valueRange": {"low": QUANTITY, "high": {"value": 7.5}}}, None, "5..7.5", None, "mg/dL"),
        ({"valueRange": {"low": QUANTITY}}, 5, None, ">=", "mg/dL"),
        ({"valueRange": {"high": QUANTITY}}, 5, None, "<=", "mg/dL"),
        ({"valueRatio": {"numerator": {"value": 1}, "denominator": {"value": 128}}}, 1 / 128, "1:128", None, None),
        (
            {"valueRatio": {"numerator": QUANTITY, "denominator": {"value": 0, "unit": "h"}}},
            None, "5:0", None, "mg/dL/h",
        ),
        ({"valueSampledData": {"origin": {}, "data": "1 2"}}, None, None, "sampled-data", None),
        ({"valueAttachment": {"url": "x"}}, None, None, "attachment", None),
        ({"dataAbsentReason": {"coding": [{"code": "not-performed"}]}}, None, None, "not-performed", None),
        ({"dataAbsentReason": {"text": "lost"}}, None, None, "unknown", None),
        ({}, None, None, None, None),
    ],
)  # fmt: skip
def test_every_kind_of_value(
    fields: dict[str, Any], number: float | None, text: str | None, modifier: str | None, unit: str | None
) -> None:
    found, *rest = read_value(msgspec.json.decode(json.dumps(fields), type=Measured))
    assert rest == [text, modifier, unit]
    assert math.isnan(found) if number is None else found == pytest.approx(number)
