"""Composites: any of, all of, a sequence; and washout, which looks back from the prediction time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrseq.task.cohort import build_cohort
from ehrseq.task.describe import describe
from ehrseq.task.label import known_at_risk, label
from ehrseq.task.outcome import occurrences

A, B, C = {"codes": ["A"]}, {"codes": ["B"]}, {"codes": ["C"]}
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def days(timelines, task, day, outcome="x"):
    found = occurrences(timelines, task)
    rows = found.filter(found["outcome"] == outcome).select("subject_id", "time").rows()
    return [(subject, (when - day(0)).total_seconds() / 86400) for subject, when in rows]


def reasons(timelines, task, queries, outcome="x"):
    table = label(queries, occurrences(timelines, task), timelines.subjects, task)
    return table.filter(table["outcome"] == outcome).select("reason", "days", "cause").rows()


EVENTS = [(1, 10, "A"), (1, 30, "B"), (1, 50, "A"), (1, 60, "B"), (2, 5, "B"), (2, 40, "A"), (3, 7, "A")]
PEOPLE = {1: {}, 2: {}, 3: {}}


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ({"any_of": [A, B]}, [(1, 10), (1, 30), (1, 50), (1, 60), (2, 5), (2, 40), (3, 7)]),
        ({"all_of": [A, B]}, [(1, 30), (2, 40)]),
        ({"sequence": [A, B]}, [(1, 30), (1, 60)]),
        ({"sequence": [A, B], "within": "20d"}, [(1, 30), (1, 60)]),
        ({"sequence": [A, B], "within": "19d"}, [(1, 60)]),
        ({"sequence": [A, A], "within": "40d"}, [(1, 50)]),
        ({"sequence": [B, A]}, [(1, 50), (2, 40)]),
        ({"sequence": [A, B, A, B], "within": "20d"}, [(1, 60)]),
        ({"all_of": [A, B, C]}, []),
    ],
)
def test_composites_by_hand(make_timelines, make_task, day, outcome, expected):
    assert days(make_timelines(EVENTS, PEOPLE), make_task({"x": outcome}), day) == expected


def test_parts_by_name_and_composites_of_composites(make_timelines, make_task, day):
    task = make_task(
        {
            "x": {"any_of": ["both", C]},
            "both": {"all_of": ["a", "b"]},
            "a": {**A, "incident": False, "competing": ["death"]},
            "b": B,
        }
    )
    timelines = make_timelines([*EVENTS, (3, 20, "C")], PEOPLE)
    assert days(timelines, task, day) == [(1, 30), (2, 40), (3, 20)]
    assert build_cohort(timelines, task).unmatched_codes == ("MEDS_DEATH",)


def test_a_composite_is_known_when_all_it_takes_is_known(make_timelines, make_task, at, day):
    timelines = make_timelines([(1, 10, "A", {"known_time": day(90)}), (1, 30, "B")])
    for outcome in ({"all_of": [A, B]}, {"sequence": [A, B]}):
        assert days(timelines, make_task({"x": outcome}), day) == [(1, 90)]
        assert days(timelines, make_task({"x": {**outcome, "event_time": "occurred"}}), day) == [(1, 30)]
        known = known_at_risk(at((1, 89), (1, 90)), timelines, make_task({"x": outcome}))
        assert known["reason"].to_list() == [None, "already_present"]


def test_a_sequence_is_known_by_the_first_of_those_that_begin_it(make_timelines, make_task, day):
    timelines = make_timelines(
        [(1, 5, "A", {"known_time": day(9)}), (1, 8, "A", {"known_time": day(90)}), (1, 10, "B")]
    )
    assert days(timelines, make_task({"x": {"sequence": [A, B]}}), day) == [(1, 10)]
    assert days(timelines, make_task({"x": {"sequence": [A, B], "within": "2d"}}), day) == [(1, 90)]


def test_what_happens_on_one_day_is_no_sequence(make_timelines, make_task, day):
    facts = {"time_precision": "day", "known_time": day(11)}
    timelines = make_timelines([(1, 10, "A", facts), (1, 10, "B", facts)])
    assert days(timelines, make_task({"x": {"sequence": [A, B]}}), day) == []
    assert len(days(timelines, make_task({"x": {"all_of": [A, B]}}), day)) == 1


def test_what_was_always_there_comes_first_but_is_near_nothing(make_timelines, make_task, day):
    timelines = make_timelines([(1, None, "A"), (1, 10, "B")])
    assert days(timelines, make_task({"x": {"sequence": [A, B]}}), day) == [(1, 10)]
    assert days(timelines, make_task({"x": {"sequence": [A, B], "within": "9y"}}), day) == []


@RELAXED
@given(
    events=st.lists(
        st.tuples(st.sampled_from("ABC"), st.integers(0, 20), st.integers(0, 9)), max_size=10
    ),
    within=st.none() | st.integers(1, 8),
)  # fmt: skip
def test_composites_equal_reading_the_events_one_by_one(make_timelines, make_task, day, events, within):
    timelines = make_timelines([(1, t, code, {"known_time": day(t + d)}) for code, t, d in events])
    span = {} if within is None else {"within": f"{within}d"}
    task = make_task({"x": {"sequence": [A, B, C], **span}, "all": {"all_of": [A, B, C]}})
    of = {name: [(t, t + d) for code, t, d in events if code == name] for name in "ABC"}
    chain = of["A"]
    for name in "BC":
        chain = [
            (t, max(k, min(earlier)))
            for t, k in of[name]
            if (earlier := [k0 for t0, k0 in chain if t0 < t and (within is None or t - t0 <= within)])
        ]
    assert sorted(days(timelines, task, day)) == sorted((1, k) for _, k in chain)
    expected = [(1, max(min(k for _, k in found) for found in of.values()))] if all(of.values()) else []
    assert days(timelines, task, day, "all") == expected


# --- washout ---


def test_washout_keeps_out_who_had_it_lately(make_timelines, make_task, at):
    timelines = make_timelines([(1, 50, "A"), (1, 100, "A"), (1, 300, "A")])
    task = make_task({"x": {**A, "incident": False, "washout": "30d"}})
    assert reasons(timelines, task, at((1, 49), (1, 50), (1, 79.9), (1, 80), (1, 120), (1, 150))) == [
        (None, 1.0, 1),
        ("within_washout", None, None),
        ("within_washout", None, None),
        (None, 20.0, 1),
        ("within_washout", None, None),
        (None, 150.0, 1),
    ]
    scored = known_at_risk(at((1, 50), (1, 80)), timelines, task)
    assert scored["reason"].to_list() == ["within_washout", None]


def test_washout_goes_by_what_is_known(make_timelines, make_task, at, day):
    timelines = make_timelines([(1, 1, "Z"), (1, 50, "A", {"known_time": day(70)})])
    known = make_task({"x": {**A, "incident": False, "washout": "30d"}})
    assert [r for r, _, _ in reasons(timelines, known, at((1, 60), (1, 70), (1, 99), (1, 100)))] == [
        None, "within_washout", "within_washout", None,
    ]  # fmt: skip
    occurred = make_task({"x": {**A, "incident": False, "washout": "30d", "event_time": "occurred"}})
    assert [r for r, _, _ in reasons(timelines, occurred, at((1, 60), (1, 70), (1, 80)))] == [
        "occurred_unknown", "within_washout", None,
    ]  # fmt: skip
    assert known_at_risk(at((1, 60), (1, 79)), timelines, occurred)["reason"].to_list() == [None, "within_washout"]


def test_washout_looks_at_the_latest_that_is_known_not_at_the_last_to_become_known(make_timelines, make_task, at, day):
    events = [(1, 50, "A", {"known_time": day(55)}), (1, 10, "A", {"known_time": day(60)})]
    task = make_task({"x": {**A, "incident": False, "washout": "30d", "event_time": "occurred"}})
    assert reasons(make_timelines(events), task, at((1, 70)))[0][0] == "within_washout"


def test_a_composite_may_have_a_washout(make_timelines, make_task, at):
    timelines = make_timelines(EVENTS, PEOPLE)
    task = make_task({"x": {"any_of": [A, B], "incident": False, "washout": "15d"}})
    assert [r for r, _, _ in reasons(timelines, task, at((1, 44), (1, 45), (2, 20), (3, 7)))] == [
        "within_washout", None, None, "within_washout",
    ]  # fmt: skip


def test_outcomes_in_words(make_task):
    task = make_task(
        {
            "x": {"sequence": ["y", {**B, "confirm": {"times": 2, "apart": "7d"}}], "within": "90d"},
            "y": {"codes": list("ABCDEF"), "incident": False, "washout": "1y", "event_time": "occurred"},
            "z": {"any_of": ["y", {"measure": "LOINC//2160-0", "rise": 0.3, "baseline": {"within": "48h"}}]},
        }
    )
    assert [describe(o, task) for o in task.outcomes] == [
        "y, then (B, 2 times at least 7d apart) within 90d; at risk until known",
        "A, B, C, D and 2 more; may happen again; not at risk for 1y after it; happens when it occurred",
        "any of y, (LOINC//2160-0 rises by at least 0.3 mg/dL from the last value of 48h); at risk until known",
    ]
