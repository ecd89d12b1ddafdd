from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrseq.errors import TimelineError
from ehrseq.timeline.schema import (
    EVENT_SCHEMA,
    as_instant,
    conform,
    normalise_events,
    normalise_splits,
    sort_events,
)

BASE = {"subject_id": [1, 1], "time": [datetime(2020, 1, 2), None], "code": ["B//2", "A//1"]}


def test_absent_columns_are_null_and_others_left_out():
    events = normalise_events({**BASE, "ward": ["x", "y"]})
    assert dict(events.schema) == EVENT_SCHEMA
    assert events["unit"].null_count() == 2


def test_static_events_come_first_and_are_known_always():
    events = normalise_events({**BASE, "known_time": [datetime(2020, 2, 1), datetime(2020, 3, 1)]})
    assert events["code"].to_list() == ["A//1", "B//2"]
    assert events["known_time"].to_list() == [None, datetime(2020, 2, 1)]


@pytest.mark.parametrize("known", [None, datetime(2019, 1, 1)])
def test_nothing_is_known_before_it_happens(known):
    events = normalise_events({**BASE, "known_time": [known, None]})
    assert events["known_time"].to_list() == [None, datetime(2020, 1, 2)]


def test_a_date_stands_for_its_whole_day():
    event = normalise_events({"subject_id": [1], "time": [date(2020, 1, 2)], "code": ["A//1"]}).row(0, named=True)
    assert event["time"] == datetime(2020, 1, 2)
    assert event["known_time"] == datetime(2020, 1, 2, 23, 59, 59, 999999)


def test_zones_become_utc_and_finer_or_coarser_clocks_microseconds():
    zone = timezone(timedelta(hours=2))
    for kind in ("ms", "us", "ns"):
        times = pl.Series([datetime(2020, 1, 2, 1, tzinfo=zone)]).cast(pl.Datetime(kind, "UTC"))
        times = times.dt.convert_time_zone("Europe/Berlin")
        events = normalise_events({"subject_id": [1], "time": times, "code": ["A//1"]})
        assert events["time"].to_list() == [datetime(2020, 1, 1, 23)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": None}, "found no column code"),
        ({"subject_id": ["1", "2"]}, "expected integers in column subject_id"),
        ({"time": ["2020-01-01", None]}, "expected datetimes in column time; found type String"),
        ({"known_time": [3, 4]}, "expected datetimes in column known_time"),
        ({"code": [1, 2]}, "expected text in column code"),
        ({"code": ["A//1", None]}, "expected a code on every event; found 1 events without"),
        ({"subject_id": [None, 1]}, "expected a subject_id on every event; found 1 events without"),
        ({"time": ["secret", "2020"]}, "expected datetimes in column time"),
        ({"numeric_value": ["secret", "1"]}, "in column numeric_value of the event table"),
        ({"utc_offset": [1_000_000, 0]}, "in column utc_offset of the event table"),
    ],
)
def test_what_cannot_be_a_timeline_is_named_in_one_line(change, message):
    columns = {name: values for name, values in {**BASE, **change}.items() if values is not None}
    with pytest.raises(TimelineError, match=message) as caught:
        normalise_events(columns)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_order_of_rows_does_not_matter_even_where_only_the_last_columns_differ():
    rows = {
        "subject_id": [1] * 6,
        "time": [datetime(2020, 1, 1)] * 6,
        "code": ["A//1"] * 6,
        "unit": ["mg", "g", None, "mg", "g", None],
        "value_modifier": ["<", "<", "<", ">", ">", ">"],
        "time_precision": ["second", "day", "day", "second", "day", "second"],
        "utc_offset": [60, 0, 0, 60, -60, 60],
    }
    events = normalise_events(rows)
    for seed in range(10):
        assert_frame_equal(sort_events(events.sample(fraction=1.0, shuffle=True, seed=seed)), events)


def test_an_empty_frame_is_an_empty_timeline():
    for columns in ({"subject_id": [], "time": [], "code": []}, pl.DataFrame(schema=EVENT_SCHEMA)):
        assert dict(normalise_events(columns).schema) == EVENT_SCHEMA


def test_conform_keeps_an_empty_frame_empty():
    assert conform(pl.DataFrame(), EVENT_SCHEMA, "event").shape == (0, len(EVENT_SCHEMA))


def test_a_subject_has_one_split():
    frame = {"subject_id": [2, 1, 1, 3], "split": ["train", "tuning", "tuning", None]}
    assert normalise_splits(frame).rows() == [(1, "tuning"), (2, "train")]
    with pytest.raises(TimelineError, match="subjects in two splits"):
        normalise_splits({"subject_id": [1, 1], "split": ["train", "tuning"]})


@pytest.mark.parametrize(
    ("moment", "instant"),
    [
        (date(2020, 2, 29), datetime(2020, 2, 29, 23, 59, 59, 999999)),
        ("2020-02-29", datetime(2020, 2, 29, 23, 59, 59, 999999)),
        (datetime(2020, 2, 29), datetime(2020, 2, 29)),
        ("2020-02-29T10:00", datetime(2020, 2, 29, 10)),
        ("2020-02-29T10:00:00Z", datetime(2020, 2, 29, 10)),
        (datetime(2020, 2, 29, tzinfo=UTC), datetime(2020, 2, 29)),
    ],
)
def test_as_instant(moment, instant):
    assert as_instant(moment) == instant


@pytest.mark.parametrize("text", ["yesterday", "2020-02-30", "2020", ""])
def test_as_instant_refuses_other_text(text):
    with pytest.raises(TimelineError, match="expected a date like 2020-01-31"):
        as_instant(text)
