import dataclasses
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrseq.errors import TaskError
from ehrseq.task.label import REASONS, SCORING_REASONS, known_at_risk, label
from ehrseq.task.outcome import occurrences
from ehrseq.task.span import Horizon
from ehrseq.timeline.schema import normalise_events, sort_events
from ehrseq.timeline.store import Timelines

MI, DIABETES, VISIT = "SNOMED//22298006", "SNOMED//73211009", "ENCOUNTER//AMB/admission"
LAST = timedelta(microseconds=1)
OUTCOMES = {
    "mi": {"codes": [MI], "competing": ["death"]},
    "death": {"codes": ["MEDS_DEATH"]},
}


def labels(timelines, task, queries):
    return label(queries, occurrences(timelines, task), timelines.subjects, task)


def of(table, outcome="mi"):
    return table.filter(pl.col("outcome") == outcome).select("reason", "days", "cause").rows()


def test_outcome_competing_and_censoring(make_timelines, make_task, at, day):
    timelines = make_timelines(
        [(1, 300, MI), (1, 400, MI)],
        {1: {"death_time": day(500)}, 2: {"death_time": day(600)}, 3: {}},
    )
    table = labels(timelines, make_task(OUTCOMES), at((1, 100), (2, 100), (3, 100.25)))
    assert of(table) == [(None, 200.0, 1), (None, 500.0, 2), (None, 899.75, 0)]
    assert of(table, "death") == [(None, 400.0, 1), (None, 500.0, 1), (None, 899.75, 0)]
    assert table["outcome"].to_list() == ["mi", "death"] * 3
    assert dict(table.schema) == {
        "subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "outcome": pl.String, "at_risk": pl.Boolean,
        "reason": pl.String, "days": pl.Float64, "cause": pl.Int8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"death_time": 300}, (None, 200.0, 1)),  # outcome and death at once: the outcome
        ({"death_time": 300, "follow_up_end": 300}, (None, 200.0, 1)),
        ({"follow_up_end": 300}, (None, 200.0, 1)),  # outcome at the end of follow-up: the outcome
        ({"follow_up_end": 299}, (None, 199.0, 0)),
        ({"death_time": 299}, (None, 199.0, 2)),
        ({"death_time": 299, "follow_up_end": 299}, (None, 199.0, 2)),  # death at the end of follow-up: death
        ({"death_time": 299, "follow_up_end": 298}, (None, 198.0, 0)),  # a death outside follow-up does not count
    ],
)
def test_ties(make_timelines, make_task, at, day, facts, expected):
    timelines = make_timelines([(1, 300, MI)], {1: {k: day(v) for k, v in facts.items()}})
    assert of(labels(timelines, make_task(OUTCOMES), at((1, 100)))) == [expected]


@pytest.mark.parametrize(
    ("events", "facts", "when", "reason"),
    [
        ([], {"birth_time": None}, 100, "no_birth_date"),
        ([], {"birth_time": 101.001}, 100, "before_birth"),
        ([], {"birth_time": 101}, 100, None),  # the day of birth begins elsewhere at another moment
        ([], {"birth_time": -130 * 366}, 100, "implausible_age"),
        ([], {"follow_up_end": None}, 100, "no_follow_up"),
        ([], {"follow_up_start": None}, 100, "no_follow_up"),
        ([], {"follow_up_start": 101}, 100, "before_follow_up"),
        ([], {"follow_up_start": 100}, 100, None),
        ([], {"death_time": 100}, 100, "dead"),
        ([], {"death_time": 50, "follow_up_end": 40}, 100, "dead"),
        ([], {"death_time": 100.5}, 100, None),
        ([], {"follow_up_end": 100}, 100, "after_follow_up"),
        ([], {"follow_up_end": 100.001}, 100, None),
        ([(1, 100, MI)], {}, 100, "already_present"),
        ([(1, 100.001, MI)], {}, 100, None),
        ([(1, None, MI)], {}, 100, "already_present"),
        ([(1, -5000, MI)], {}, 100, "already_present"),
    ],
)
def test_reasons(make_timelines, make_task, at, day, events, facts, when, reason):
    facts = {k: None if v is None else day(v) for k, v in facts.items()}
    row = labels(make_timelines(events, {1: facts}), make_task(OUTCOMES), at((1, when))).row(0, named=True)
    assert row["reason"] == reason
    assert row["at_risk"] is (reason is None)
    assert (row["days"] is None) is (row["cause"] is None) is (reason is not None)
    assert reason is None or reason in REASONS


def test_an_event_known_later_is_still_to_come(make_timelines, make_task, at, day):
    timelines = make_timelines([(1, 50, MI, {"known_time": day(300)})])
    assert of(labels(timelines, make_task(OUTCOMES), at((1, 100), (1, 300)))) == [
        (None, 200.0, 1),
        ("already_present", None, None),
    ]
    occurred = make_task({"mi": {"codes": [MI], "event_time": "occurred"}})
    assert of(labels(timelines, occurred, at((1, 49), (1, 50), (1, 100), (1, 300)))) == [
        (None, 1.0, 1),
        ("occurred_unknown", None, None),
        ("occurred_unknown", None, None),
        ("already_present", None, None),
    ]


def test_recurrent_outcomes_have_a_next_time(make_timelines, make_task, at):
    timelines = make_timelines([(1, 50, MI), (1, 200, MI), (1, 200, MI), (1, 300, MI)])
    task = make_task({"mi": {"codes": [MI], "incident": False}})
    assert of(labels(timelines, task, at((1, 10), (1, 50), (1, 200), (1, 300)))) == [
        (None, 40.0, 1),
        (None, 150.0, 1),
        (None, 100.0, 1),
        (None, 700.0, 0),
    ]
    occurred = make_task({"mi": {"codes": [MI], "incident": False, "event_time": "occurred"}})
    assert of(labels(timelines, occurred, at((1, 50)))) == [(None, 150.0, 1)]


def test_a_competing_outcome_other_than_death(make_timelines, make_task, at, day):
    events = [(1, 200, DIABETES), (1, 250, DIABETES), (1, 300, MI)]
    incident = {"mi": {"codes": [MI], "competing": ["diabetes"]}, "diabetes": {"codes": [DIABETES]}}
    assert of(labels(make_timelines(events), make_task(incident), at((1, 100), (1, 220)))) == [
        (None, 100.0, 2),
        ("competing_present", None, None),
    ]
    recurrent = {**incident, "diabetes": {"codes": [DIABETES], "incident": False}}
    assert of(labels(make_timelines(events), make_task(recurrent), at((1, 220), (1, 260)))) == [
        (None, 30.0, 2),
        (None, 40.0, 1),
    ]
    occurred = {**incident, "diabetes": {"codes": [DIABETES], "event_time": "occurred"}}
    hidden = make_timelines([(1, 200, DIABETES, {"known_time": day(400)}), (1, 300, MI)])
    assert of(labels(hidden, make_task(occurred), at((1, 220)))) == [("occurred_unknown", None, None)]


def test_a_confirmed_outcome_happens_at_the_confirming_value(make_timelines, make_task, at):
    lab = "LOINC//48642-3"
    values = [(10, 40), (50, 42), (99, 60), (140, 41)]
    timelines = make_timelines([(1, d, lab, {"numeric_value": float(v)}) for d, v in values])
    task = make_task({"mi": {"measure": lab, "below": 45, "confirm": {"times": 2, "apart": "90d"}}})
    assert of(labels(timelines, task, at((1, 60), (1, 140)))) == [(None, 80.0, 1), ("already_present", None, None)]


def test_leap_years_count_their_day(make_timelines, make_task):
    facts = {"follow_up_start": datetime(2004, 2, 28), "follow_up_end": datetime(2004, 3, 1)}
    queries = pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2004, 2, 28)]})
    assert of(labels(make_timelines([], {1: facts}), make_task(OUTCOMES), queries)) == [(None, 2.0, 0)]


def test_dates_mean_the_end_of_the_day_and_extra_columns_pass_through(make_timelines, make_task, day):
    queries = pl.DataFrame({"birth_time": ["x"], "subject_id": [1], "prediction_time": [date(2005, 1, 11)]})
    table = labels(make_timelines([(1, 10, MI)]), make_task(OUTCOMES), queries)
    assert table.columns[:3] == ["birth_time", "subject_id", "prediction_time"]
    assert table.row(0)[:6] == ("x", 1, day(11) - LAST, "mi", False, "already_present")


def test_no_queries_give_no_rows(make_timelines, make_task, at):
    timelines, task = make_timelines([]), make_task(OUTCOMES)
    assert labels(timelines, task, at()).height == 0
    assert known_at_risk(at(), timelines, task).height == 0


def test_bad_queries_are_refused(make_timelines, make_task, at):
    timelines, task = make_timelines([]), make_task(OUTCOMES)
    with pytest.raises(TaskError, match="found 1 about others"):
        labels(timelines, task, at((1, 1), (2, 1)))
    with pytest.raises(TaskError, match="found no prediction_time"):
        labels(timelines, task, pl.DataFrame({"subject_id": [1]}))
    with pytest.raises(TaskError, match="found 1 without"):
        labels(timelines, task, pl.DataFrame({"subject_id": [1], "prediction_time": [None]}))


@pytest.mark.parametrize("lacking", ["birth_time", "death_time", "follow_up_end"])
def test_a_subject_table_without_a_column_is_refused(make_timelines, make_task, at, day, lacking):
    """Else the dead would pass for alive."""
    timelines, task = make_timelines([(1, 1, VISIT)], {1: {"death_time": day(90)}}), make_task(OUTCOMES)
    subjects = timelines.subjects.drop(lacking)
    with pytest.raises(TaskError, match=f"found no {lacking}"):
        label(at((1, 100)), occurrences(timelines, task), subjects, task)
    older = timelines.subjects.drop("observation_start", strict=False)
    assert label(at((1, 100)), occurrences(timelines, task), older, task)["reason"].unique().to_list() == ["dead"]


@pytest.mark.parametrize(
    ("events", "facts", "when", "reason"),
    [
        ([(1, 1, VISIT)], {"birth_time": None}, 100, "no_birth_date"),
        ([(1, 1, VISIT)], {"birth_time": 102}, 100, "before_birth"),
        ([(1, 1, VISIT)], {"birth_time": 101}, 100, None),
        ([(1, 1, VISIT)], {"birth_time": 100 - 47_482}, 100, None),
        ([(1, 1, VISIT)], {"birth_time": 100 - 47_483}, 100, "implausible_age"),
        ([(1, 1, VISIT), (1, 90, "MEDS_DEATH")], {}, 100, "dead"),
        ([(1, 1, VISIT)], {"death_time": 90}, 100, "dead"),
        ([(1, 1, VISIT)], {"death_time": 101}, 100, None),
        ([], {"follow_up_rule": "last_contact"}, 100, "no_history"),
        (
            [(1, -9, "MEDS_BIRTH"), (1, None, "SEX//female"), (1, 101, VISIT)],
            {"follow_up_rule": "last_contact"},
            100,
            "no_history",
        ),
        # an observation period that has begun is a history, one that begins later is not
        ([], {"observation_start": 100, "follow_up_rule": "observation_period"}, 100, None),
        ([], {"observation_start": 101, "follow_up_rule": "observation_period"}, 100, "no_history"),
        ([], {"follow_up_start": 100, "follow_up_rule": "last_contact"}, 100, "no_history"),
        # whatever the rule of its end: how it ends is not known then
        ([], {"observation_start": 100, "follow_up_rule": "data_cut"}, 100, None),
        ([], {"observation_start": 100, "follow_up_rule": None, "follow_up_end": None}, 100, None),
        ([(1, 100, VISIT)], {}, 100, None),
        ([(1, 100, MI)], {}, 100, "already_present"),
        ([(1, 1, VISIT), (1, 101, MI)], {}, 100, None),
        # what ends follow-up, or starts it, is not known then
        ([(1, 1, VISIT)], {"follow_up_end": 50}, 100, None),
        ([(1, 1, VISIT)], {"follow_up_start": 200}, 100, None),
        ([(1, 1, VISIT), (1, 90, MI)], {"follow_up_end": 50}, 100, "already_present"),
    ],
)
def test_scoring_reasons(make_timelines, make_task, at, day, events, facts, when, reason):
    facts = {k: day(v) if isinstance(v, int) else v for k, v in facts.items()}
    row = known_at_risk(at((1, when)), make_timelines(events, {1: facts}), make_task(OUTCOMES)).row(0, named=True)
    assert row["reason"] == reason
    assert row["at_risk"] is (reason is None)
    assert reason is None or reason in SCORING_REASONS


def test_scoring_knows_late_diagnoses_late_and_recurrent_ones_never_bar(make_timelines, make_task, at, day):
    timelines = make_timelines([(1, 1, VISIT), (1, 50, MI, {"known_time": day(300)})])
    for event_time in ("known", "occurred"):
        task = make_task({"mi": {"codes": [MI], "event_time": event_time}})
        found = known_at_risk(at((1, 100), (1, 300)), timelines, task)
        assert found["reason"].to_list() == [None, "already_present"]
    task = make_task({"mi": {"codes": [MI], "incident": False}})
    assert known_at_risk(at((1, 400)), timelines, task)["reason"].to_list() == [None]


# --- properties: small random timelines, whole days from 2005-01-01 ---

RICH = {
    "mi": {"codes": [MI], "competing": ["death", "diabetes"]},
    "diabetes": {"codes": [DIABETES], "event_time": "occurred"},
    "lab": {"measure": "LOINC//1", "below": 45, "confirm": {"times": 2, "apart": "3d"}, "competing": ["death"]},
    "visit": {"codes": ["ENCOUNTER//*"], "incident": False, "competing": ["death"]},
}
EVENT = st.tuples(
    st.integers(1, 3),
    st.integers(0, 25),
    st.sampled_from([MI, DIABETES, VISIT, "LOINC//1", "OTHER//1"]),
    st.integers(0, 9),
    st.sampled_from([40.0, 50.0]),
)
EVENTS = st.lists(EVENT, max_size=14)
QUERIES = st.lists(st.tuples(st.integers(1, 3), st.integers(-2, 30)), min_size=1, max_size=6)
SUBJECT = st.fixed_dictionaries(
    {
        "follow_up_start": st.integers(0, 5),
        "follow_up_end": st.integers(5, 30),
        "death_time": st.none() | st.integers(3, 30),
    }
)
SUBJECTS = st.fixed_dictionaries({1: SUBJECT, 2: SUBJECT, 3: SUBJECT})
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def build(make_timelines, day, events, subjects):
    rows = [(s, t, code, {"known_time": day(t + delay), "numeric_value": v}) for s, t, code, delay, v in events]
    facts = {s: {k: None if v is None else day(v) for k, v in f.items()} for s, f in subjects.items()}
    return make_timelines(rows, facts)


def by_hand(events, facts, subject, when, name):
    """(reason, days, cause) by reading the definitions, one event at a time."""
    start, end, death = facts["follow_up_start"], facts["follow_up_end"], facts["death_time"]
    mine = [(t, t + delay, code, v) for s, t, code, delay, v in events if s == subject]

    def happens(name):
        """(time, known) pairs of an outcome within follow-up."""
        if name == "death":
            pairs = [] if death is None else [(death, death)]
        elif name == "mi":
            pairs = [(k, k) for _, k, code, _ in mine if code == MI]
        elif name == "diabetes":
            pairs = [(t, k) for t, k, code, _ in mine if code == DIABETES]
        elif name == "visit":
            pairs = [(k, k) for _, k, code, _ in mine if code == VISIT]
        else:
            low = [(t, k) for t, k, code, v in mine if code == "LOINC//1" and v < 45]
            pairs = [
                (max(k, k0),) * 2 for t, k in low for k0 in [min((k0 for t0, k0 in low if t0 + 3 <= t), default=None)]
                if k0 is not None
            ]  # fmt: skip
        return [(t, k) for t, k in pairs if t <= end]

    competing = RICH.get(name, {}).get("competing", [])
    if start > when:
        return ("before_follow_up", None, None)
    if death is not None and death <= when:
        return ("dead", None, None)
    if end <= when:
        return ("after_follow_up", None, None)
    if name != "visit" and any(k <= when for _, k in happens(name)):
        return ("already_present", None, None)
    if any(k <= when for c in competing for _, k in happens(c)):
        return ("competing_present", None, None)
    if any(t <= when for c in (name, *competing) if c == "diabetes" for t, _ in happens(c)):
        return ("occurred_unknown", None, None)
    after = [(t, 1) for t, _ in happens(name) if t > when]
    after += [(t, 2) for c in competing for t, _ in happens(c) if t > when]
    time, cause = min([*after, (end, 3)])
    return (None, float(time - when), cause % 3)


@RELAXED
@given(events=EVENTS, subjects=SUBJECTS, queries=QUERIES)
def test_labels_equal_reading_the_events_one_by_one(make_timelines, make_task, at, day, events, subjects, queries):
    timelines, task = build(make_timelines, day, events, subjects), make_task(RICH)
    table = labels(timelines, task, at(*queries))
    expected = [by_hand(events, subjects[s], s, t, o.name) for s, t in queries for o in task.outcomes]
    assert table.select("reason", "days", "cause").rows() == expected
    assert table["subject_id"].to_list() == [s for s, _ in queries for _ in task.outcomes]


@RELAXED
@given(events=EVENTS, subjects=SUBJECTS, queries=QUERIES, order=st.randoms(use_true_random=False))
def test_the_order_of_rows_and_queries_changes_nothing(
    make_timelines, make_task, at, day, events, subjects, queries, order
):
    task = make_task(RICH)
    timelines = build(make_timelines, day, events, subjects)
    shuffled = Timelines(
        timelines.events.sample(fraction=1, shuffle=True, seed=order.randrange(99)), timelines.subjects.reverse()
    )
    moved = order.sample(range(len(queries)), len(queries))
    for check in (labels, lambda tl, task, q: known_at_risk(q, tl, task)):
        first = check(timelines, task, at(*queries).with_row_index("i"))
        second = check(shuffled, task, at(*queries).with_row_index("i")[moved])
        assert second["i"].to_list() == [i for i in moved for _ in task.outcomes]
        assert first.equals(second.sort("i", maintain_order=True))


@RELAXED
@given(events=EVENTS, more=EVENTS, subjects=SUBJECTS, when=st.integers(-2, 30))
def test_scoring_never_sees_what_becomes_known_later(make_timelines, make_task, at, day, events, more, subjects, when):
    task = make_task(RICH)
    before = build(make_timelines, day, events, subjects)
    # back-dated ones included: they happen at any time and become known after the prediction time
    later = [(s, t, code, max(delay, when + 1 - t), v) for s, t, code, delay, v in more]
    other = {s: {**facts, "follow_up_end": facts["follow_up_end"] + 7} for s, facts in subjects.items()}
    after = build(make_timelines, day, [*events, *later], other)
    queries = at((1, when), (2, when), (3, when))
    assert known_at_risk(queries, before, task).equals(known_at_risk(queries, after, task))


@RELAXED
@given(events=EVENTS, subjects=SUBJECTS, when=st.integers(-2, 30))
def test_scoring_on_all_data_equals_scoring_on_what_was_known(
    make_timelines, make_task, at, day, events, subjects, when
):
    task = make_task(RICH)
    timelines = build(make_timelines, day, events, subjects)
    known = dataclasses.replace(timelines, events=timelines.events.filter(pl.col("known_time") <= day(when)))
    queries = at((1, when), (2, when), (3, when))
    assert known_at_risk(queries, timelines, task).equals(known_at_risk(queries, known, task))


@RELAXED
@given(events=EVENTS, subjects=SUBJECTS, when=st.integers(-2, 30), cut=st.integers(0, 25))
def test_labels_up_to_a_cut_use_nothing_after_it(make_timelines, make_task, at, day, events, subjects, when, cut):
    # with follow-up ending at the cut, events known later (in "known" outcomes) cannot matter
    task = make_task({"mi": RICH["mi"] | {"competing": ["death"]}, "lab": RICH["lab"], "visit": RICH["visit"]})
    subjects = {s: {**f, "follow_up_end": min(f["follow_up_end"], cut)} for s, f in subjects.items()}
    timelines = build(make_timelines, day, events, subjects)
    known = dataclasses.replace(timelines, events=timelines.events.filter(pl.col("known_time") <= day(cut)))
    queries = at((1, when), (2, when), (3, when))
    assert labels(timelines, task, queries).equals(labels(known, task, queries))


def test_the_events_of_one_subject_do_not_touch_another(make_timelines, make_task, at, day):
    timelines = make_timelines([(1, 300, MI)], {1: {}, 2: {}})
    alone = make_timelines([], {2: {}})
    task, queries = make_task(OUTCOMES), at((2, 100))
    assert labels(timelines, task, queries).equals(labels(alone, task, queries))
    extra = normalise_events(pl.DataFrame({"subject_id": [9], "time": [day(1)], "code": [MI]}))
    stranger = Timelines(sort_events(pl.concat([alone.events, extra])), alone.subjects)
    assert labels(stranger, task, queries).equals(labels(alone, task, queries))


def test_hours_are_as_long_for_labels_as_for_horizons(make_timelines, make_task, at, day):
    hours = list(range(1, 400))
    spans = [Horizon(f"{n}h") for n in hours]
    ends = {n: {"follow_up_end": day(100) + timedelta(hours=n)} for n in hours}
    timelines = make_timelines([(n, 1, VISIT) for n in hours], ends)
    found = labels(timelines, make_task(OUTCOMES), at(*((n, 100) for n in hours)))
    days = found.group_by("subject_id", maintain_order=True).first()["days"].to_list()
    assert days == [span.days for span in spans]
    start = np.array([day(100)], "M8[us]")
    assert days == [float((span.end_of(start) - start).astype(np.int64)[0] / 86_400_000_000) for span in spans]
