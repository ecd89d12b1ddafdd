"""What `at` means: a date, a time, a frame, the task's own times, or each end of follow-up."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pandas as pd
import polars as pl
import pytest

from ehrseq.errors import ForecastError, TaskError, TimelineError, UserError
from ehrseq.task.definition import Task
from ehrseq.task.query import resolve_prediction_times
from ehrseq.timeline.store import Timelines

END_OF_DAY = datetime(2015, 6, 7, 23, 59, 59, 999999)
NOON = datetime(2015, 6, 7, 12)


def task(**prediction_times):
    return Task.from_dict(
        {
            "horizons": ["1y"],
            "outcomes": {"death": {"codes": ["MEDS_DEATH"]}},
            "prediction_times": prediction_times or {"rule": "landmarks", "after_start": ["2y"]},
        }
    )


@pytest.fixture(scope="module")
def timelines():
    events = {"subject_id": [1, 2], "time": [date(2010, 1, 1), date(2011, 1, 1)], "code": ["LOINC//a", "LOINC//a"]}
    subjects = pl.DataFrame(
        {
            "subject_id": [1, 2],
            "patient": ["anna", "7"],
            "follow_up_start": [datetime(2010, 1, 1), None],
            "follow_up_end": [datetime(2014, 1, 1), None],
        },
        schema_overrides={"follow_up_start": pl.Datetime("us"), "follow_up_end": pl.Datetime("us")},
    )
    return Timelines.from_events(events, subjects)


def both(time):
    return [(1, time), (2, time)]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2015-06-07", END_OF_DAY),
        ("20150607", END_OF_DAY),
        (date(2015, 6, 7), END_OF_DAY),
        (NOON, NOON),
        (pd.Timestamp(NOON), NOON),
        ("2015-06-07T12:00:00", NOON),
        ("2015-06-07T14:00:00+02:00", NOON),
        (NOON.replace(tzinfo=UTC), NOON),
        (datetime(2015, 6, 7, 7, tzinfo=timezone(timedelta(hours=-5))), NOON),
    ],
)
def test_one_moment_for_everyone(timelines, at, expected):
    found = resolve_prediction_times(timelines, at, task())
    assert found.rows() == both(expected)
    assert found.schema == {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}


def test_none_is_each_end_of_follow_up(timelines):
    ends = timelines.subjects.select("subject_id", "follow_up_end").drop_nulls().rows()
    assert (1, datetime(2014, 1, 1)) in ends
    assert resolve_prediction_times(timelines, None, task()).rows() == ends


def test_task_is_the_tasks_own_rule(timelines):
    found = resolve_prediction_times(timelines, "task", task()).filter(subject_id=1)
    assert found["prediction_time"].to_list() == [datetime(2012, 1, 1, 23, 59, 59, 999999)]


FRAME = {"patient": ["7", "Patient/anna", "7"], "prediction_time": [date(2015, 6, 7)] * 3}


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame, lambda c: pl.DataFrame(c).lazy(), dict])
@pytest.mark.parametrize("times", ["date", "datetime", "text"])
def test_a_frame_of_patients(timelines, make, times):
    value = {"date": date(2015, 6, 7), "datetime": NOON, "text": "2015-06-07"}[times]
    found = resolve_prediction_times(timelines, make({**FRAME, "prediction_time": [value] * 3}), task())
    assert found.rows() == both(NOON if times == "datetime" else END_OF_DAY)  # the row given twice counts once


@pytest.mark.parametrize("kind", [pl.Int64, pl.Int32, pl.UInt64])
def test_a_frame_of_subject_ids(timelines, kind):
    frame = pl.DataFrame({"subject_id": pl.Series([2, 1], dtype=kind), "prediction_time": [NOON] * 2})
    assert resolve_prediction_times(timelines, frame, task()).rows() == both(NOON)


def test_patients_named_by_numbers(timelines):
    assert resolve_prediction_times(timelines, {"patient": [7], "prediction_time": [NOON]}, task()).rows() == [
        (2, NOON)
    ]


def test_a_pandas_midnight_is_a_time():
    timelines = Timelines.from_events({"subject_id": [1], "time": [date(2010, 1, 1)], "code": ["LOINC//a"]})
    frame = pd.DataFrame({"subject_id": [1], "prediction_time": pd.to_datetime(["2015-06-07"])})
    assert resolve_prediction_times(timelines, frame, task()).rows() == [(1, datetime(2015, 6, 7))]


def test_zones_become_utc(timelines):
    frame = pd.DataFrame({"subject_id": [1], "prediction_time": pd.to_datetime(["2015-06-07T14:00:00+02:00"])})
    assert resolve_prediction_times(timelines, frame, task()).rows() == [(1, NOON)]


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        ("next year", TimelineError, "a date like 2020-01-31"),
        ({"patient": ["anna"]}, ForecastError, "prediction_time and patient"),
        ({"prediction_time": [NOON]}, ForecastError, "prediction_time and patient"),
        ({"patient": ["berta"], "prediction_time": [NOON]}, TimelineError, "1 names that fit no subject"),
        ({"patient": [None], "prediction_time": [NOON]}, ForecastError, "1 missing values"),
        ({"patient": ["anna"], "prediction_time": [None]}, ForecastError, "1 missing values"),
        ({"subject_id": [3], "prediction_time": [NOON]}, ForecastError, "1 rows about others"),
        ({"subject_id": ["1"], "prediction_time": [NOON]}, ForecastError, "integers in subject_id"),
        ({"subject_id": [1], "prediction_time": [2015]}, ForecastError, "dates or times in prediction_time"),
        ({"subject_id": [1], "prediction_time": ["soon"]}, TimelineError, "other text"),
        ({"subject_id": [], "prediction_time": []}, ForecastError, "integers in subject_id"),
        (17, UserError, "a polars or pandas DataFrame"),
    ],
)
def test_what_cannot_be_asked(timelines, at, error, message):
    with pytest.raises(error, match=message) as caught:
        resolve_prediction_times(timelines, at, task())
    assert "berta" not in str(caught.value)


def test_no_prediction_time_at_all(timelines):
    empty = pl.DataFrame(schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})
    nobody = timelines.select([])
    for at, whose in ((empty, timelines), ("2015-06-07", nobody), (None, nobody)):
        with pytest.raises(ForecastError, match="at least one prediction time; found none"):
            resolve_prediction_times(whose, at, task())
    with pytest.raises((ForecastError, TaskError)):
        resolve_prediction_times(timelines, "task", task(rule="after:LOINC//never"))


def test_nobody_followed():
    timelines = Timelines.from_events({"subject_id": [1], "time": [None], "code": ["SEX//male"]})
    with pytest.raises(ForecastError, match="subjects with some follow-up"):
        resolve_prediction_times(timelines, None, task())
