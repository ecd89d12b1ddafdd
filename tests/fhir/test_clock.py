from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrseq.fhir.clock import NO_OFFSET, NO_TIME, PRECISIONS, Instants, _parse_any, _real, moments, parse_times

EPOCH = datetime(1970, 1, 1)


def microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("written", "start", "end", "precision", "offset"),
    [
        ("1947", datetime(1947, 1, 1), datetime(1948, 1, 1), "year", None),
        ("2000-02", datetime(2000, 2, 1), datetime(2000, 3, 1), "month", None),
        ("2000-12-31", datetime(2000, 12, 31), datetime(2001, 1, 1), "day", None),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1), datetime(2017, 1, 1, 0, 0, 0, 1), "second", 0),
        ("2000-12-31T23:59Z", datetime(2000, 12, 31, 23, 59), datetime(2001, 1, 1), "minute", 0),
    ],
)
def test_imprecise_times_stand_for_intervals(
    written: str, start: datetime, end: datetime, precision: str, offset: int | None
) -> None:
    parsed = parse_times([written])
    assert parsed.start[0] == microseconds(start)
    assert parsed.end[0] == microseconds(end) - 1
    assert PRECISIONS[parsed.precision[0]] == precision
    assert parsed.offset[0] == (NO_OFFSET if offset is None else offset)


@given(st.datetimes(datetime(1800, 1, 1), datetime(2300, 1, 1)), st.integers(-14 * 60, 14 * 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_exact_times_agree_with_the_standard_library(moment: datetime, minutes: int, fraction: bool) -> None:
    moment = moment if fraction else moment.replace(microsecond=0)
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    parsed = parse_times([aware.isoformat()])
    expected = microseconds(aware.astimezone(UTC).replace(tzinfo=None))
    assert (parsed.start[0], parsed.end[0]) == (expected, expected)
    assert PRECISIONS[parsed.precision[0]] == "second"
    assert parsed.offset[0] == minutes


@pytest.mark.parametrize(
    "written",
    [
        "",
        "soon",
        "2020-13",
        "2021-02-29",
        "2020-01-01T25:00:00Z",
        "20",
        "2020-1-1",
        "2020-01-0\u0661",
        "2020-01-01T0\u0661:00:00Z",
        "2020-01-01T01:00:00.\u0661Z",
        "\u00e4" * 10,
        None,
    ],
)
def test_what_is_no_time_is_none(written: str | None) -> None:
    parsed = parse_times([written, "2020"])
    assert parsed.start[0] == NO_TIME
    assert parsed.end[0] == NO_TIME
    assert parsed.precision[0] == 0
    assert parsed.precision[1] > 0


def test_nothing_to_parse() -> None:
    assert len(parse_times([]).start) == 0
    assert moments(np.array([], np.int64)).len() == 0


@pytest.mark.parametrize(
    ("written", "is_time"),
    [("1799-12-31", False), ("1800-01-01", True), ("2499-12-31T23:59:59Z", True), ("2500-01-01", False),
     ("9999-12-31T23:59:59-12:00", False), ("0001-01-01", False), ("0000-01-01", False), ("9999", False),
     ("2020-01-01T00:00:00+14:00", True), ("2020-01-01T00:00:00+99:00", False), ("2020-01-01T00:00:00+13:60", False)],
)  # fmt: skip
def test_dates_that_stand_for_none_and_zones_that_are_none_are_no_times(written: str, is_time: bool) -> None:
    parsed = parse_times([written])
    assert (parsed.start[0] != NO_TIME, parsed.end[0] != NO_TIME, parsed.precision[0] > 0) == (is_time,) * 3


WRITTEN = (
    "2148-09-12T08:13:00-04:00", "2020-02-29T23:59:60Z", "2020-02-30", "2019-02-28T24:00:00+14:00", "0000-01-01",
    "0001-01-01T00:00:00.123Z", "9999-12-31T23:59:59.999+00:00", "1900-02-29", "2020-13-01", "2020-1",
    "2020-10-10T10:10:10.5Z", "2020-10-10t10:10:10z", "2020-10-10T10:10:10-99:99", "2016-02-29",
    "2020-10-10T10:10:10+14:00", "2020-10-10T10:10:10+14:01", "1800-01-01T00:00:00.123Z",
    "2499-12-31T23:59:59.999+00:00",
)  # fmt: skip


def test_common_layouts_are_parsed_as_any_other() -> None:
    rng = random.Random(5)
    texts = []
    for _ in range(20_000):
        letters = list(rng.choice(WRITTEN))
        for _ in range(rng.choice([0, 0, 1, 2])):
            letters[rng.randrange(len(letters))] = rng.choice("0123456789-:+TZ.é ")
        texts.append("".join(letters))
    names, quick, any_other = ("start", "end", "precision", "offset"), parse_times(texts), _parse_any(pl.Series(texts))
    slow = _real(Instants(*(getattr(any_other, name).copy() for name in names)))
    for name in names:
        np.testing.assert_array_equal(getattr(quick, name), getattr(slow, name))
    assert 5_000 < (quick.precision > 0).sum() < 19_000
