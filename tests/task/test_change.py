"""Change from baseline: by hand, against a reading of the definition value by value, and against what comes later."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrseq.task import change
from ehrseq.task.cohort import build_cohort
from ehrseq.task.label import known_at_risk, label
from ehrseq.task.outcome import occurrences, periods_of
from ehrseq.timeline.store import Timelines

LAB, MI = "LOINC//1", "SNOMED//22298006"
FALL = {"measure": LAB, "fall": "40%", "baseline": {"within": "50d"}}
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def value(subject, when, number, **more):
    return subject, when, LAB, {"numeric_value": float(number), **more}


def labels(timelines, task, queries, outcome="fall"):
    table = label(queries, occurrences(timelines, task), timelines.subjects, task)
    return table.filter(pl.col("outcome") == outcome).select("reason", "days", "cause").rows()


def test_the_baseline_is_the_prediction_time_s_own(make_timelines, make_task, at):
    timelines = make_timelines([value(1, 0, 100), value(1, 20, 80), value(1, 30, 60), value(1, 40, 48)])
    task = make_task({"fall": FALL})
    assert labels(timelines, task, at((1, -1), (1, 0), (1, 20), (1, 30), (1, 40))) == [
        ("before_follow_up", None, None),
        (None, 30.0, 1),  # from 100: 60 is a fall by 40%, the bound included
        (None, 20.0, 1),  # from 80: 48
        (None, 970.0, 0),  # from 60: never
        (None, 960.0, 0),
    ]


def test_whoever_has_no_value_in_the_window_has_no_baseline(make_timelines, make_task, at):
    timelines = make_timelines([value(1, 10, 100), value(1, 300, 50)])
    task = make_task({"fall": FALL, "other": {"codes": [MI], "competing": ["fall"]}})
    found = labels(timelines, task, at((1, 9), (1, 10), (1, 59.9), (1, 60), (1, 299)))
    assert [reason for reason, _, _ in found] == ["no_baseline", None, None, "no_baseline", "no_baseline"]
    assert found[1] == (None, 290.0, 1)
    competing = labels(timelines, task, at((1, 10), (1, 60)), "other")
    assert competing == [(None, 290.0, 2), ("no_baseline", None, None)]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ({"fall": 25, "baseline": {"within": "1y"}}, 30.0),  # 75 is low enough
        ({"fall": "26%", "baseline": {"within": "1y"}}, 40.0),
        ({"rise": "10%", "baseline": {"within": "1y"}}, 20.0),
        ({"rise": 11, "baseline": {"within": "1y"}}, None),
        ({"fall": 10, "below": 72, "baseline": {"within": "1y"}}, 40.0),  # both must hold
        ({"fall": 25, "baseline": {"within": "1y"}, "confirm": {"times": 2, "apart": "15d"}}, 45.0),
    ],
)
def test_changes_by_hand(make_timelines, make_task, at, outcome, expected):
    numbers = [(0, 100), (20, 110), (30, 75), (40, 70), (45, 71)]
    timelines = make_timelines([value(1, when, number) for when, number in numbers])
    task = make_task({"fall": {"measure": LAB, **outcome}})
    assert labels(timelines, task, at((1, 0)))[0] == (None, *((1000.0, 0) if expected is None else (expected, 1)))


def test_a_mean_may_be_undercut_already(make_timelines, make_task, at):
    timelines = make_timelines([value(1, when, number) for when, number in ((0, 100), (1, 100), (2, 40), (3, 30))])
    mean = {**FALL, "baseline": {"within": "1y", "value": "mean"}}
    assert labels(timelines, make_task({"fall": mean}), at((1, 1), (1, 2), (1, 3))) == [
        (None, 1.0, 1),
        ("already_present", None, None),  # 40 is more than 40% below the mean of 80
        ("already_present", None, None),
    ]
    again = make_task({"fall": {**mean, "incident": False}})
    assert labels(timelines, again, at((1, 2))) == [(None, 1.0, 1)]


def test_inexact_numbers_are_no_baseline_but_may_be_a_change(make_timelines, make_task, at):
    less = {"value_modifier": "<"}
    timelines = make_timelines([value(1, 0, 100), value(1, 10, 60, **less), value(1, 11, 70, **less)])
    task = make_task({"fall": FALL})
    assert labels(timelines, task, at((1, 0), (1, 10), (1, 55))) == [
        (None, 10.0, 1),
        (None, 990.0, 0),  # it is known now, so it comes no more; the baseline is still 100
        ("no_baseline", None, None),
    ]


def test_a_share_of_nothing_is_no_baseline(make_timelines, make_task, at):
    timelines = make_timelines([value(1, 0, -1), value(1, 10, -5)])
    assert labels(timelines, make_task({"fall": FALL}), at((1, 5)))[0][0] == "no_baseline"
    absolute = make_task({"fall": {**FALL, "fall": 2}})
    assert labels(timelines, absolute, at((1, 5))) == [(None, 5.0, 1)]


def test_a_fall_that_is_exact_in_decimals_counts(make_timelines, make_task, at):
    timelines = make_timelines([value(1, 0, 0.9), value(1, 10, 0.54)])
    assert labels(timelines, make_task({"fall": FALL}), at((1, 5))) == [(None, 5.0, 1)]


def test_a_back_dated_fall_is_still_to_come_and_no_baseline_before_it_is_known(make_timelines, make_task, at, day):
    timelines = make_timelines([value(1, 0, 100), value(1, 5, 50, known_time=day(30)), value(1, 40, 29)])
    assert labels(timelines, make_task({"fall": FALL}), at((1, 10), (1, 30))) == [(None, 20.0, 1), (None, 10.0, 1)]
    occurred = make_task({"fall": {**FALL, "event_time": "occurred"}})
    assert labels(timelines, occurred, at((1, 4), (1, 10), (1, 30))) == [
        (None, 1.0, 1),
        ("occurred_unknown", None, None),
        (None, 10.0, 1),
    ]


def test_a_fall_that_left_the_window_before_it_was_known_comes_no_more_once_it_is(make_timelines, make_task, at, day):
    early = [value(1, 0, 20, known_time=day(5)), value(1, 0, 20, known_time=day(6)), value(1, 1, 50)]
    task = make_task({"fall": {**FALL, "baseline": {"within": "5d", "value": "mean"}}})
    assert labels(make_timelines(early), task, at((1, 4), (1, 5))) == [(None, 1.0, 1), (None, 1.0, 1)]


def test_the_last_value_is_the_last_that_was_measured(make_timelines, make_task, at, day):
    events = [value(1, 10, 100), value(1, 5, 50, known_time=day(15)), value(1, 30, 60)]
    assert labels(make_timelines(events), make_task({"fall": FALL}), at((1, 20))) == [(None, 10.0, 1)]


def test_any_of_with_a_change(make_timelines, make_task, at, day):
    events = [value(1, 0, 100), value(1, 20, 50), (1, 10, MI), value(2, 0, 100), value(2, 20, 50), (3, 10, MI)]
    timelines = make_timelines(events, {1: {}, 2: {}, 3: {}})
    task = make_task({"fall": FALL, "both": {"any_of": ["fall", {"codes": [MI]}, {**FALL, "fall": "45%"}]}})
    assert labels(timelines, task, at((1, 5), (1, 10), (2, 5), (3, 5)), "both") == [
        (None, 5.0, 1),
        ("already_present", None, None),
        (None, 15.0, 1),
        ("no_baseline", None, None),
    ]
    found = occurrences(timelines, task)
    subjects = found.filter(pl.col("outcome") == "both").group_by("outcome").agg(pl.col("subject_id").n_unique())
    assert subjects["subject_id"].to_list() == [3]  # whoever counts subjects with the outcome counts them all


def test_a_change_after_follow_up_does_not_count(make_timelines, make_task, at, day):
    timelines = make_timelines([value(1, 0, 100), value(1, 30, 50)], {1: {"follow_up_end": day(29)}})
    task = make_task({"fall": FALL})
    assert labels(timelines, task, at((1, 5))) == [(None, 24.0, 0)]
    assert build_cohort(timelines, task).remarks()[0].startswith("Nobody is at risk of fall")


# --- against a reading of the definition, value by value ---

VALUE = st.tuples(st.integers(1, 2), st.integers(0, 40), st.integers(0, 12), st.sampled_from([20, 30, 50, 60, 80, 100]))
VALUES = st.lists(VALUE, max_size=12)
TIMES = st.lists(st.tuples(st.sampled_from([1, 1, 1, 2]), st.integers(0, 45)), min_size=4, max_size=12)
KIND = st.fixed_dictionaries(
    {
        "change": st.sampled_from([("fall", "40%"), ("fall", 30), ("rise", "50%"), ("rise", 20)]),
        "window": st.sampled_from([5, 15, 100]),
        "mean": st.booleans(),
        "apart": st.none() | st.sampled_from([1, 4]),
        "event_time": st.sampled_from(["known", "occurred"]),
    }
)


def task_of(kind, make_task):
    name, size = kind["change"]
    baseline = {"within": f"{kind['window']}d", "value": "mean" if kind["mean"] else "last"}
    outcome = {"measure": LAB, name: size, "baseline": baseline, "event_time": kind["event_time"]}
    if kind["apart"] is not None:
        outcome["confirm"] = {"times": 2, "apart": f"{kind['apart']}d"}
    return make_task({"fall": outcome})


def by_hand(values, kind, subject, when, end=1000):
    mine = [(t, t + delay, v) for s, t, delay, v in values if s == subject]
    window = [(t, k, v) for t, k, v in mine if k <= when < t + kind["window"]]
    if not window:
        return ("no_baseline", None, None)
    last = max(window)[2]
    baseline = sum(v for _, _, v in window) / len(window) if kind["mean"] else last
    name, size = kind["change"]
    step = baseline * float(size[:-1]) / 100 if isinstance(size, str) else size

    def past(v):
        return v <= baseline - step + 1e-4 if name == "fall" else v >= baseline + step - 1e-4

    if past(last):
        return ("already_present", None, None)
    found = [(t, k) for t, k, v in mine if k > when and past(v)]
    if kind["apart"] is not None:
        found = [
            (t, max(k, min(earlier)))
            for t, k in found
            if (earlier := [k0 for t0, k0 in found if t0 + kind["apart"] <= t])
        ]
    times = [t if kind["event_time"] == "occurred" else k for t, k in found]
    if kind["event_time"] == "occurred" and any(t <= when for t in times):
        return ("occurred_unknown", None, None)
    first = min([t for t in times if t <= end], default=None)
    return (None, float(end - when), 0) if first is None else (None, float(first - when), 1)


def build(make_timelines, day, values):
    return make_timelines([value(s, t, v, known_time=day(t + d)) for s, t, d, v in values], {1: {}, 2: {}})


@settings(RELAXED, max_examples=200)
@given(values=VALUES, kind=KIND, queries=TIMES)
def test_labels_equal_reading_the_values_one_by_one(make_timelines, make_task, at, day, values, kind, queries):
    timelines, task = build(make_timelines, day, values), task_of(kind, make_task)
    assert labels(timelines, task, at(*queries)) == [by_hand(values, kind, s, t) for s, t in queries]


@RELAXED
@given(values=VALUES, kind=KIND, queries=TIMES)
def test_periods_in_small_parts_are_the_same(make_timelines, make_task, at, day, values, kind, queries):
    timelines, task = build(make_timelines, day, values), task_of(kind, make_task)
    whole = occurrences(timelines, task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(change, "PAIRS", 5)
        assert occurrences(timelines, task).equals(whole)
    alone = Timelines(timelines.events.filter(pl.col("subject_id") == 1), timelines.subjects.head(1))
    assert occurrences(alone, task).equals(whole.filter(pl.col("subject_id") == 1))


@RELAXED
@given(values=VALUES, more=VALUES, kind=KIND, when=st.integers(0, 60))
def test_what_becomes_known_later_changes_neither_baseline_nor_risk(
    make_timelines, make_task, at, day, values, more, kind, when
):
    kind = {**kind, "event_time": "known"}
    task, queries = task_of(kind, make_task), at((1, when), (2, when))
    later = [(s, t, max(delay, when + 1 - t), v) for s, t, delay, v in more]
    before, after = build(make_timelines, day, values), build(make_timelines, day, [*values, *later])
    known = dataclasses.replace(after, events=after.events.filter(pl.col("known_time") <= day(when)))
    for table in (before, known):
        assert known_at_risk(queries, after, task).equals(known_at_risk(queries, table, task))
        first, second = (labels(t, task, queries) for t in (after, table))
        assert [reason for reason, _, _ in first] == [reason for reason, _, _ in second]


def test_labels_at_any_times_come_fast(make_timelines, make_task, day):
    rng = np.random.default_rng(0)
    n, per = 2000, 40
    frame = {
        "subject_id": np.repeat(np.arange(n), per),
        "time": np.datetime64(day(0), "us") + np.sort(rng.integers(0, 86_400_000_000 * 1000, n * per)),
        "code": np.full(n * per, LAB),
        "numeric_value": rng.normal(90, 25, n * per),
    }
    timelines = Timelines.from_events(frame)
    task = make_task({"fall": {**FALL, "baseline": {"within": "1y", "value": "mean"}}})
    found = occurrences(timelines, task)
    assert found.filter(pl.col("outcome") == periods_of("fall")).height > n * per
    rows = rng.integers(0, n, 100_000)
    queries = pl.DataFrame({"subject_id": rows, "prediction_time": np.datetime64(day(500), "us") + rows})
    queries = queries.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    start = time.process_time()
    assert label(queries, found, timelines.subjects, task).height == 100_000
    assert time.process_time() - start < 5  # a tenth of a second or so: no work a value at a time
