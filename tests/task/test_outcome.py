from datetime import datetime, timedelta

import pytest

from ehrseq.task.outcome import ALWAYS, deaths, occurrences, unmatched_codes

MI = {"mi": {"codes": ["SNOMED//22298006"]}}
CODE = "SNOMED//22298006"
LAST = timedelta(microseconds=1)


def times(timelines, task, column="time"):
    return occurrences(timelines, task)[column].to_list()


def test_every_occurrence_counts_when_it_is_known(make_timelines, make_task, day):
    timelines = make_timelines([(1, 5, CODE, {"known_time": day(9)}), (1, 7, CODE), (1, 8, "SNOMED//1")])
    found = occurrences(timelines, make_task(MI))
    assert found.select("subject_id", "outcome", "time", "occurred_time", "known_time").rows() == [
        (1, "mi", day(7), day(7), day(7)),
        (1, "mi", day(9), day(5), day(9)),
    ]


@pytest.mark.parametrize(
    ("precision", "end"),
    [("day", datetime(2005, 1, 6)), ("month", datetime(2005, 2, 5)), ("year", datetime(2006, 1, 5)), ("second", None)],
)
def test_occurred_is_the_end_of_an_imprecise_interval(make_timelines, make_task, day, precision, end):
    facts = {"known_time": day(600), "time_precision": precision}
    timelines = make_timelines([(1, 4, CODE, facts)])
    task = make_task({"mi": {"codes": [CODE], "event_time": "occurred"}})
    expected = day(4) if end is None else end - LAST
    row = occurrences(timelines, task).row(0, named=True)
    assert row["time"] == row["occurred_time"] == expected
    assert row["known_time"] == day(600)


def test_occurred_is_never_later_than_known(make_timelines, make_task, day):
    timelines = make_timelines([(1, 4, CODE, {"known_time": day(20), "time_precision": "year"})])
    assert times(timelines, make_task(MI), "occurred_time") == [day(20)]


def test_a_static_event_was_always_there(make_timelines, make_task):
    assert times(make_timelines([(1, None, CODE)]), make_task(MI)) == [ALWAYS]


def test_nothing_counts_after_follow_up(make_timelines, make_task, day):
    timelines = make_timelines([(1, 10, CODE), (1, 20, CODE), (1, 20.1, CODE)], {1: {"follow_up_end": day(20)}})
    assert times(timelines, make_task(MI)) == [day(10), day(20)]
    late = make_timelines([(1, 10, CODE, {"known_time": day(30)})], {1: {"follow_up_end": day(20)}})
    assert times(late, make_task(MI)) == []
    occurred = make_task({"mi": {"codes": [CODE], "event_time": "occurred"}})
    assert times(late, occurred) == [day(10)]


def test_a_day_precision_event_on_the_last_day_counts_at_the_end(make_timelines, make_task, day):
    end = day(20.5)
    facts = {"follow_up_end": end, "death_time": day(21) - LAST}
    timelines = make_timelines([(1, 20, CODE, {"known_time": day(21) - LAST, "time_precision": "day"})], {1: facts})
    task = make_task({**MI, "death": {"codes": ["MEDS_DEATH"]}})
    assert times(timelines, task) == [end, end]
    # the day after is outside, however little
    facts = {"follow_up_end": end, "death_time": day(22) - LAST}
    assert times(make_timelines([], {1: facts}), task) == []


@pytest.mark.parametrize(
    ("precision", "hours", "counts"),
    [
        ("day", 23, True),  # the day of death ends at 5:00 UTC, an hour before that
        ("day", 24, False),  # the day before
        ("minute", 1, False),
        (None, 1, False),
    ],
)
def test_a_day_of_death_that_ends_at_no_midnight_of_utc_counts_too(
    make_timelines, make_task, day, precision, hours, counts
):
    died = day(20) + timedelta(hours=5) - LAST
    end = died - timedelta(hours=hours)
    facts = {"time_precision": precision, "known_time": died}
    death = (1, 20 + 5 / 24, "MEDS_DEATH", facts)
    timelines = make_timelines([death], {1: {"death_time": died, "follow_up_end": end}})
    task = make_task({"death": {"codes": ["MEDS_DEATH"]}})
    assert times(timelines, task) == ([end] if counts else [])
    assert timelines.summary()["deaths_inside_follow_up"] == counts


def test_the_summary_counts_deaths_as_the_task_does(make_timelines, make_task, day):
    dead = {"death_time": day(21) - LAST}
    ends = {1: day(20.5), 2: day(20), 3: day(20) - LAST, 4: day(21), 5: None}
    timelines = make_timelines([], {s: dead | {"follow_up_end": end} for s, end in ends.items()})
    found = occurrences(timelines, make_task({"death": {"codes": ["MEDS_DEATH"]}}))
    assert found["subject_id"].to_list() == [1, 2, 4]
    assert timelines.summary()["deaths_inside_follow_up"] == 3


def test_deaths_come_from_the_subject_table_or_else_from_an_event(make_timelines, day):
    timelines = make_timelines(
        [(1, 5, "MEDS_DEATH"), (2, 6, "MEDS_DEATH"), (2, 8, "MEDS_DEATH"), (4, 3, CODE)],
        {1: {"death_time": day(6) - LAST}, 2: {}, 3: {"death_time": day(9)}, 4: {}},
    )
    rows = deaths(timelines).sort("subject_id").select("subject_id", "time", "known_time").rows()
    assert rows == [(1, day(6) - LAST, day(6) - LAST), (2, day(6), day(6)), (3, day(9), day(9))]


def test_a_death_is_one_occurrence_and_only_inside_follow_up(make_timelines, make_task, day):
    task = make_task({"death": {"codes": ["MEDS_DEATH"]}, "mace": {"codes": [CODE, "MEDS_*"]}})
    timelines = make_timelines(
        [(1, 5, "MEDS_DEATH"), (1, 5, "MEDS_BIRTH"), (1, 2, CODE)],
        {1: {"death_time": day(5)}, 2: {"death_time": day(5), "follow_up_end": day(4)}},
    )
    found = occurrences(timelines, task).select("subject_id", "outcome", "time").rows()
    assert found == [(1, "death", day(5)), (1, "mace", day(2)), (1, "mace", day(5)), (1, "mace", day(5))]


def test_value_outcomes_need_their_value(make_timelines, make_task, day):
    lab = "LOINC//48642-3"
    values = [(0, 50), (10, 40), (20, 44), (120, 41), (130, 60)]
    timelines = make_timelines([(1, d, lab, {"numeric_value": float(v)}) for d, v in values])
    assert times(timelines, make_task({"ckd": {"measure": lab, "below": 45}})) == [day(10), day(20), day(120)]
    confirm = {"measure": lab, "below": 45, "confirm": {"times": 2, "apart": "90d"}}
    assert times(timelines, make_task({"ckd": confirm})) == [day(120)]
    assert times(timelines, make_task({"high": {"codes": ["LOINC//48642*"], "above": 45}})) == [day(0), day(130)]


def test_unmatched_codes(make_timelines, day):
    timelines = make_timelines([(1, 1, "ICD10CM//E11.9")], {1: {"death_time": day(3)}})
    wanted = ["ICD10CM//E11*", "ICD10CM//E11", "SNOMED//1", "MEDS_DEATH", "SNOMED//1"]
    assert unmatched_codes(timelines, wanted) == ("ICD10CM//E11", "SNOMED//1")
    assert unmatched_codes(make_timelines([]), ["MEDS_DEATH"]) == ("MEDS_DEATH",)
