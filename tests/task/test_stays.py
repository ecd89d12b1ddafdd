"""Stays in hospital: readmission, death in hospital, transfer; discharge competes, and the future is not told."""

from __future__ import annotations

import dataclasses
import gzip
import json
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrseq.task.cohort import build_cohort
from ehrseq.task.definition import Stay, Task
from ehrseq.task.label import known_at_risk, label
from ehrseq.task.outcome import occurrences
from ehrseq.task.stays import stays, unended
from ehrseq.task.times import prediction_times

EXAMPLES = Path(__file__).parents[2] / "examples"
HOSPITAL = Stay("hospital", classes=("inpatient", "emergency"))
LAST = timedelta(microseconds=1)
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)


def encounter(subject, name, begin, end, kind="inpatient"):
    """The events of one encounter; without an end where that is None."""
    facts = {"encounter_id": name}
    edges = [(begin, "admission"), (end, "discharge")]
    return [(subject, when, f"ENCOUNTER//{kind}/{edge}", facts) for when, edge in edges if when is not None]


def spans(timelines, stay, day):
    def number(when):
        return None if when is None else (when - day(0)).total_seconds() / 86400

    return [(s, number(b), number(e)) for s, b, e in stays(timelines, stay).iter_rows()]


@pytest.mark.parametrize(
    ("encounters", "expected"),
    [
        ([("a", 1, 5)], [(1, 1, 5)]),
        ([("a", 1, 5), ("b", 7, 9)], [(1, 1, 5), (1, 7, 9)]),
        ([("a", 1, 5), ("b", 5, 9)], [(1, 1, 9)]),  # they touch
        ([("a", 1, 9), ("b", 3, 5)], [(1, 1, 9)]),  # one within the other
        ([("a", 1, 5), ("b", 3, 9)], [(1, 1, 9)]),
        ([("a", 1, None)], [(1, 1, None)]),
        ([("a", 1, None), ("b", 3, 5)], [(1, 1, None)]),
        ([("a", 1, 1)], []),
        ([("a", 5, 1)], []),
        ([("a", None, 5), ("b", 7, 9)], [(1, 7, 9)]),  # a discharge without an admission
        ([(None, None, 5), (None, 7, 9)], [(1, 7, 9)]),
        ([(None, 1, 5), (None, 7, 9)], [(1, 1, 5), (1, 7, 9)]),
    ],
)
def test_stays_by_hand(make_timelines, day, encounters, expected):
    events = [event for name, begin, end in encounters for event in encounter(1, name, begin, end)]
    assert spans(make_timelines(events), HOSPITAL, day) == expected


def test_stays_by_codes_and_by_class(make_timelines, day):
    events = [*encounter(1, "a", 1, 2, "emergency"), *encounter(1, "b", 2, 8), *encounter(1, "c", 20, 21, "ambulatory")]
    events += [(1, 30, "ICU_IN//x"), (1, 33, "ICU_OUT//y")]
    timelines = make_timelines(events)
    assert spans(timelines, HOSPITAL, day) == [(1, 1, 8)]
    assert spans(timelines, Stay("icu", admission=("ICU_IN*",), discharge=("ICU_OUT*",)), day) == [(1, 30, 33)]


def test_encounters_without_an_end_are_counted_but_for_the_dead(make_timelines, make_task, day):
    events = [*encounter(1, "a", 1, None), *encounter(2, "b", 1, None), *encounter(3, "c", 1, 2)]
    timelines = make_timelines(events, {1: {}, 2: {"death_time": day(9)}, 3: {}})
    assert unended(timelines, HOSPITAL) == 1
    task = make_task({"x": {"discharge": "hospital"}}, stays={"hospital": ["inpatient"]})
    assert "Encounters of hospital without a recorded discharge, which count as still running: 1." in (
        build_cohort(timelines, task).remarks()
    )


def outcomes(timelines, task, queries, name):
    table = label(queries, occurrences(timelines, task), timelines.subjects, task)
    return table.filter(pl.col("outcome") == name).select("reason", "days", "cause").rows()


STAYS = {"hospital": ["inpatient", "emergency"]}
DEATH = {"hospital_death": {"codes": ["MEDS_DEATH"], "during": "hospital"}}
READMISSION = {"readmission": {"admission": "hospital", "incident": False, "competing": ["death"]}}


def test_readmission_is_the_next_stay_and_no_transfer(make_timelines, make_task, day):
    events = [*encounter(1, "a", 1, 2, "emergency"), *encounter(1, "b", 2, 8), *encounter(1, "c", 20, 25),
              *encounter(2, "d", 3, 4)]  # fmt: skip
    timelines = make_timelines(events, {1: {}, 2: {"death_time": day(10)}})
    task = make_task(READMISSION, stays=STAYS, prediction_times={"rule": "discharge:hospital"})
    queries = prediction_times(timelines, task)
    assert [(s, (t - day(0)).days) for s, t in queries.select("subject_id", "prediction_time").rows()] == [
        (1, 8), (1, 25), (2, 4),
    ]  # fmt: skip
    found = outcomes(timelines, task, queries, "readmission")
    assert found == [(None, 12.0, 1), (None, 975.0, 0), (None, 6.0, 2)]
    # during a stay the next one is a readmission too
    assert outcomes(timelines, task, queries.head(1).with_columns(prediction_time=day(3)), "readmission") == [
        (None, 17.0, 1)
    ]


def test_discharge_competes_with_death_in_hospital(make_timelines, make_task, at, day):
    events = [event for s in (1, 2, 3) for event in encounter(s, f"e{s}", 10, 20)]
    facts = {1: {"death_time": day(15)}, 2: {"death_time": day(25)}, 3: {}}
    timelines = make_timelines(events, facts)
    task = make_task(DEATH, stays=STAYS, prediction_times={"rule": "admission:hospital"})
    assert [o.name for o in task.outcomes] == ["hospital_death", "hospital_discharge", "death"]
    queries = prediction_times(timelines, task)
    assert outcomes(timelines, task, queries, "hospital_death") == [(None, 5.0, 1), (None, 10.0, 2), (None, 10.0, 2)]
    assert outcomes(timelines, task, queries, "hospital_discharge") == [
        (None, 5.0, 2), (None, 10.0, 1), (None, 10.0, 1),
    ]  # fmt: skip


def test_nobody_outside_a_stay_is_at_risk_in_hospital(make_timelines, make_task, at, day):
    timelines = make_timelines(encounter(1, "a", 10, 20), {1: {"death_time": day(25)}})
    task = make_task(DEATH, stays=STAYS)
    queries = at((1, 9), (1, 10), (1, 19), (1, 20), (1, 21))
    expected = ["outside_stay", None, None, "outside_stay", "outside_stay"]
    assert [reason for reason, _, _ in outcomes(timelines, task, queries, "hospital_death")] == expected
    scored = known_at_risk(queries, timelines, task).filter(pl.col("outcome") == "hospital_death")
    assert scored["reason"].to_list() == ["no_history", *expected[1:]]


def test_the_task_s_own_discharge_competes(make_task):
    task = make_task({**DEATH, "home": {"discharge": "hospital", "incident": False}}, stays=STAYS)
    assert [o.name for o in task.outcomes] == ["hospital_death", "home"]
    assert task.outcome("hospital_death").competing == ("home",)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_transfer_during_a_stay(make_timelines, make_task, day):
    events = [*encounter(1, "a", 1, 9), *encounter(1, "icu", 4, 6, "icu"), *encounter(1, "b", 20, 30)]
    timelines = make_timelines(events)
    transfer = {"codes": ["ENCOUNTER//icu/admission"], "incident": False, "during": "hospital"}
    task = make_task({"transfer": transfer}, stays=STAYS, prediction_times={"rule": "admission:hospital"})
    queries = prediction_times(timelines, task)
    assert outcomes(timelines, task, queries, "transfer") == [(None, 3.0, 1), (None, 10.0, 2)]


@pytest.mark.parametrize(
    ("hours", "facts", "cause"),
    [
        (15, {"time_precision": "day"}, 1),  # the day of death is the day of the discharge
        (0, {"time_precision": "day"}, 1),
        (-2, {"time_precision": "day"}, 2),  # discharged the day before
        (15, {"time_precision": "second"}, 2),  # at the end of that day by the clock
    ],
)
def test_a_death_on_the_day_of_the_discharge_is_one_in_hospital(make_timelines, make_task, day, hours, facts, cause):
    died, discharged = day(20) - LAST, 19 + hours / 24
    death = (1, 20, "MEDS_DEATH", {"known_time": died, **facts})
    timelines = make_timelines([*encounter(1, "a", 10, discharged), death], {1: {"death_time": died}})
    task = make_task({**DEATH, **READMISSION}, stays=STAYS, prediction_times={"rule": "admission:hospital"})
    queries = prediction_times(timelines, task)
    assert outcomes(timelines, task, queries, "hospital_death")[0][2] == cause
    assert outcomes(timelines, task, queries, "hospital_discharge")[0][2] == 3 - cause
    # no readmission of the dead: labels leave this discharge out, a scorer cannot know
    at_discharge = queries.with_columns(prediction_time=day(discharged))
    (reason, _, _) = outcomes(timelines, task, at_discharge, "readmission")[0]
    assert reason == ("dead" if cause == 1 else None)
    scored = known_at_risk(at_discharge, timelines, task).filter(pl.col("outcome") == "readmission")
    assert scored["reason"].to_list() == [None]


def test_a_death_at_the_moment_of_the_discharge_comes_before_it(make_timelines, make_task, day):
    timelines = make_timelines(encounter(1, "a", 10, 20), {1: {"death_time": day(20)}})
    task = make_task(DEATH, stays=STAYS, prediction_times={"rule": "admission:hospital"})
    queries = prediction_times(timelines, task)
    assert outcomes(timelines, task, queries, "hospital_death")[0][2] == 1
    assert outcomes(timelines, task, queries, "hospital_discharge")[0][2] == 2


ENCOUNTERS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 20), st.none() | st.integers(0, 20)), max_size=6
)


@RELAXED
@given(encounters=ENCOUNTERS, when=st.integers(0, 25))
def test_who_is_in_a_stay_depends_on_nothing_known_later(make_timelines, make_task, at, day, encounters, when):
    events = [e for name, begin, end in encounters for e in encounter(1, name, begin, end)]
    timelines = make_timelines([(1, -1, "X//1"), *events])
    known = dataclasses.replace(timelines, events=timelines.events.filter(pl.col("known_time") <= day(when)))
    task, queries = make_task(DEATH, stays=STAYS), at((1, when))
    assert known_at_risk(queries, timelines, task).equals(known_at_risk(queries, known, task))


@RELAXED
@given(encounters=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=6))
def test_stays_equal_reading_the_encounters_one_by_one(make_timelines, day, encounters):
    events = [e for i, (begin, long) in enumerate(encounters) for e in encounter(1, str(i), begin, begin + long)]
    inside = {hour for begin, long in encounters for hour in range(begin, begin + long)}
    found = spans(make_timelines(events), HOSPITAL, day)
    assert {hour for _, begin, end in found for hour in range(int(begin), int(end))} == inside
    assert all(end < following for (_, _, end), (_, following, _) in pairwise(found))


# --- a real hospital: deaths in it are those whose discharge says so, which no part of ehrseq reads ---


def test_deaths_in_hospital_are_those_that_discharges_state(data_folder):
    from ehrseq.timeline.build import read_fhir

    folder = data_folder / "mimic_iv_fhir_demo"
    names = ("MimicPatient", "MimicEncounter", "MimicEncounterED", "MimicEncounterICU")
    records = [
        json.loads(line)
        for name in names
        for line in gzip.decompress((folder / f"{name}.ndjson.gz").read_bytes()).splitlines()
    ]
    stated = {
        r["subject"]["reference"].removeprefix("Patient/")
        for r in records
        if "DIED" in json.dumps(r.get("hospitalization", {}).get("dischargeDisposition", {}))
    }
    timelines = read_fhir(records)
    rows = build_cohort(timelines, Task.from_toml(EXAMPLES / "hospital.toml")).rows
    died = rows.filter((pl.col("outcome") == "hospital_death") & (pl.col("cause") == 1))
    named = died.join(timelines.subjects.select("subject_id", "patient"), on="subject_id")
    assert len(stated) == 15
    assert set(named["patient"]) == stated
    assert died["subject_id"].is_unique().all()
