"""Outcomes by any coding of a concept, by descendants of a code, and by derived measures."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from ehrseq.errors import TaskError
from ehrseq.task.cohort import build_cohort
from ehrseq.task.definition import Task
from ehrseq.task.outcome import occurrences, unmatched_codes
from ehrseq.task.predicate import event_matches
from ehrseq.timeline.hierarchy import with_code_parents
from ehrseq.timeline.store import Timelines

SNOMED, ICD = "SNOMED//44054006", "ICD10CM//E11.9"
BOTH = {"other_codes": [ICD]}
PARENTS = pl.DataFrame({"code": [SNOMED, "SNOMED//1"], "parent": ["SNOMED//73211009", SNOMED]})


def days(timelines, task):
    return occurrences(timelines, task).select("subject_id", "outcome").rows()


@pytest.mark.parametrize("pattern", [SNOMED, ICD, "ICD10CM//E11*", "SNOMED//4405*"])
def test_any_coding_of_a_concept_makes_an_outcome(make_timelines, make_task, pattern):
    timelines = make_timelines([(1, 5, SNOMED, BOTH), (1, 6, "SNOMED//9", {"other_codes": ["ICD10CM//E1"]})])
    assert days(timelines, make_task({"t2d": {"codes": [pattern]}})) == [(1, "t2d")]


def test_a_concept_that_matches_by_two_codes_happens_once(make_timelines, make_task):
    timelines = make_timelines([(1, 5, SNOMED, BOTH)])
    assert len(days(timelines, make_task({"t2d": {"codes": [SNOMED, ICD, "ICD10CM//E11*"]}}))) == 1


def test_patterns_on_other_codes_are_no_regular_expressions():
    frame = pl.DataFrame({"code": ["X"] * 3, "other_codes": [["A.1"], ["AB1"], []]})
    assert frame.select(event_matches(["A.1"])).to_series().to_list() == [True, False, False]
    assert frame.select(event_matches([])).item() is False
    none = pl.DataFrame({"code": ["X", "Y"], "other_codes": pl.Series([None, None], dtype=pl.List(pl.String))})
    assert none.select(event_matches(["X"])).to_series().to_list() == [True, False]


def test_a_code_found_only_among_other_codes_is_no_unmatched_code(make_timelines, make_task):
    timelines = make_timelines([(1, 5, SNOMED, BOTH)])
    assert unmatched_codes(timelines, [ICD, "ICD10CM//E1*", "ICD10CM//E11"]) == ("ICD10CM//E11",)


def test_prediction_times_follow_any_coding(make_timelines, make_task, day):
    task = make_task({"x": {"codes": ["X"]}}, prediction_times={"rule": f"after:{ICD}"})
    assert build_cohort(make_timelines([(1, 5, SNOMED, BOTH)]), task).rows["prediction_time"].to_list() == [day(5)]


def test_descendants_by_the_dataset_s_own_table(make_timelines, make_task):
    events = [(1, 5, "SNOMED//1"), (2, 5, SNOMED), (3, 5, "SNOMED//7", {"other_codes": ["SNOMED//1"]}), (4, 5, "X")]
    timelines = with_code_parents(make_timelines(events, {n: {} for n in range(1, 5)}), PARENTS)
    parent = {"codes": ["SNOMED//73211009"], "descendants": True}
    assert days(timelines, make_task({"diabetes": parent})) == [(n, "diabetes") for n in (1, 2, 3)]
    assert days(timelines, make_task({"diabetes": parent | {"descendants": False}})) == []
    assert days(timelines, make_task({"diabetes": parent | {"codes": ["SNOMED//7321*"]}})) != []


def test_descendants_by_the_task_s_table_stay_with_the_task(tmp_path, make_timelines, make_task):
    PARENTS.write_csv(tmp_path / "parents.csv")
    (tmp_path / "task.toml").write_text(
        """horizons = ["1y"]\ncode_parents = "parents.csv"
        [outcomes.diabetes]\ncodes = ["SNOMED//73211009"]\ndescendants = true
        [prediction_times]\nrule = "landmarks"\nafter_start = ["1d"]"""
    )
    task = Task.from_toml(tmp_path / "task.toml")
    (tmp_path / "parents.csv").unlink()
    assert task.outcomes[0].descendant_codes == ("SNOMED//1", SNOMED)
    assert Task.from_dict(task.to_dict()) == task
    timelines = make_timelines([(1, 5, SNOMED), (1, 6, "SNOMED//2")])
    assert days(timelines, task) == [(1, "diabetes")]
    more = with_code_parents(timelines, {"code": ["SNOMED//2"], "parent": ["SNOMED//73211009"]})
    assert days(more, task) == [(1, "diabetes")] * 2


def test_descendants_without_any_table_are_refused(make_timelines, make_task):
    task = make_task({"diabetes": {"codes": ["SNOMED//73211009"], "descendants": True}})
    with pytest.raises(TaskError, match="a table of parents"):
        occurrences(make_timelines([(1, 5, SNOMED)]), task)


def test_a_table_that_no_outcome_uses_is_refused(make_task):
    with pytest.raises(TaskError, match="descendants = true in an outcome beside code_parents"):
        make_task({"x": {"codes": ["X"]}}, code_parents="parents.csv")


def test_a_parent_is_matched_by_its_descendants(make_timelines, make_task):
    outcome = {"codes": ["SNOMED//73211009", "SNOMED//8"], "descendants": True}
    timelines = with_code_parents(make_timelines([(1, 500, "SNOMED//1")]), PARENTS)
    assert build_cohort(timelines, make_task({"x": outcome})).unmatched_codes == ("SNOMED//8",)


def creatinine(subject, day, value, **more):
    return subject, day, "LOINC//2160-0", {"numeric_value": float(value), "unit": "mg/dL", **more}


PEOPLE = {n: {"sex": "male"} for n in (1, 2, 3)}
CKD = Path(__file__).parents[2] / "examples" / "ckd.toml"


def test_kidney_disease_is_a_low_filtration_rate_twice(make_timelines, day):
    task = Task.from_toml(CKD)
    events = [
        creatinine(1, 10, 2.0), creatinine(1, 100, 2.0),
        creatinine(2, 10, 2.0), creatinine(2, 99, 2.0), creatinine(2, 400, 1.0),
        creatinine(3, 10, 176.8, unit="umol/L"), creatinine(3, 150, 2.0, known_time=day(160)),
    ]  # fmt: skip
    found = occurrences(make_timelines(events, PEOPLE), task)
    assert found.select("subject_id", "outcome", "time").rows() == [(1, "ckd", day(100)), (3, "ckd", day(160))]
    assert build_cohort(make_timelines(events, PEOPLE), task).unmatched_codes == ("MEDS_DEATH",)


def test_a_measure_that_nothing_gives_is_an_unmatched_code(make_timelines):
    events = [creatinine(1, 10, 2.0, unit="furlong")]
    assert "egfr_ckdepi2021" in build_cohort(make_timelines(events, PEOPLE), Task.from_toml(CKD)).unmatched_codes


def test_a_bound_is_in_the_unit_of_the_analyte(make_timelines, make_task):
    glucose = "LOINC//2345-7"
    task = make_task({"high": {"measure": glucose, "above": 200}})
    value = {
        1: {"numeric_value": 12.0, "unit": "mmol/L"}, 2: {"numeric_value": 10.0, "unit": "mmol/L"},
        3: {"numeric_value": 300.0, "unit": "furlong"}, 4: {"numeric_value": 300.0},
        5: {"numeric_value": 250.0, "unit": "mg/dl"},
    }  # fmt: skip
    timelines = make_timelines([(n, 5, glucose, v) for n, v in value.items()], {n: {} for n in value})
    assert [n for n, _ in days(timelines, task)] == [1, 4, 5]
    assert "Numbers of LOINC//2345-7 that do not count, their unit being none that converts: 1." in (
        build_cohort(timelines, task).remarks()
    )
    unknown = make_task({"high": {"measure": "urn:lab//X", "above": 200}})
    assert days(make_timelines([(1, 5, "urn:lab//X", value[3])]), unknown) == [(1, "high")]


def test_timelines_made_of_an_event_frame_have_derived_measures(day):
    events = {
        "subject_id": [1] * 3,
        "time": [None, day(0), day(9)],
        "code": ["SEX//female", "MEDS_BIRTH", "LOINC//2160-0"],
    }
    timelines = Timelines.from_events({**events, "numeric_value": [None, None, 1.0], "unit": [None, None, "mg/dL"]})
    assert unmatched_codes(timelines, ["bmi", "egfr_ckdepi2021"]) == ("bmi", "egfr_ckdepi2021")
