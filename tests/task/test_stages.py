from __future__ import annotations

import pytest

from ehrseq.errors import TaskError
from ehrseq.task.outcome import occurrences, off_scale
from ehrseq.task.stages import GFR, HBA1C, stages_of
from ehrseq.timeline.units import NGSP_FROM_IFCC

# KDIGO 2024, table 6: whole numbers as they are reported
G_CATEGORIES = {"G1": (90, 130), "G2": (60, 89), "G3a": (45, 59), "G3b": (30, 44), "G4": (15, 29), "G5": (1, 14)}


def stage_of(stages, value):
    """Every stage a value is in."""
    found = []
    for name in stages.names:
        low, high = stages.bounds(f"{name} only")
        if (low is None or value >= low) and (high is None or value < high):
            found.append(name)
    return found


def test_each_value_is_in_one_stage():
    for name, (first, last) in G_CATEGORIES.items():
        for value in (first, last):
            assert stage_of(GFR, value) == [name]
    assert [stage_of(HBA1C, v) for v in (5.6, 5.7, 6.4, 6.5, 14)] == [
        ["normal"], ["prediabetes"], ["prediabetes"], ["diabetes"], ["diabetes"],
    ]  # fmt: skip


def test_the_bands_of_hba1c_are_the_same_in_mmol_per_mol():
    # ADA: prediabetes is 39-47 mmol/mol, diabetes 48 or more
    slope, offset = NGSP_FROM_IFCC
    for number in range(20, 120):
        expected = "normal" if number < 39 else "prediabetes" if number < 48 else "diabetes"
        assert stage_of(HBA1C, slope * number + offset) == [expected], number


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("G3b", (None, 45)), ("G3b or worse", (None, 45)), ("G3b or better", (30, None)), ("G3b only", (30, 45)),
        ("G5", (None, 15)), ("G5 only", (None, 15)), ("G1 only", (90, None)), ("G1 or better", (90, None)),
    ],
)  # fmt: skip
def test_worse_and_better(text, bounds):
    assert GFR.bounds(text) == bounds


def test_higher_hba1c_is_worse():
    assert HBA1C.bounds("prediabetes") == (5.7, None)
    assert HBA1C.bounds("normal only") == HBA1C.bounds("normal or better") == (None, 5.7)


@pytest.mark.parametrize(
    ("stages", "text", "message"),
    [
        (GFR, "G3", "found 'G3'; did you mean 'G3b'|'G3a'"),
        (GFR, "g3b", "did you mean 'G3b'"),
        (HBA1C, "pre-diabetes", "did you mean 'prediabetes'"),
        (HBA1C, "normal", "not everyone is in .* write 'normal only'"),
        (GFR, "G5 or better", "write 'G5 only'"),
    ],
)
def test_bad_stages(stages, text, message):
    with pytest.raises(TaskError, match=message):
        stages.bounds(text)


def test_which_measures_have_stages():
    assert stages_of("egfr_ckdepi2021") is stages_of("LOINC//98979-8") is GFR
    assert stages_of("hba1c") is stages_of("LOINC//59261-8") is HBA1C
    assert stages_of("bmi") is stages_of("LOINC//2345-7") is stages_of("urn:lab//X") is None


@pytest.mark.parametrize("measure", ["hba1c", "LOINC//4548-4"])
def test_hba1c_counts_in_either_unit_and_never_without(make_timelines, make_task, measure):
    values = {
        1: (6.5, "%", None), 2: (6.4, "%", None), 3: (48, "mmol/mol", None), 4: (47, "mmol/mol", None),
        5: (42, None, None), 6: (6.6, None, None), 7: (6.5, "%", ">"), 8: (6.5, "%", "<"),
    }  # fmt: skip
    events = [
        (n, 5, "LOINC//4548-4", {"numeric_value": float(v), "unit": unit, "value_modifier": modifier})
        for n, (v, unit, modifier) in values.items()
    ]
    timelines = make_timelines(events, {n: {} for n in values})
    task = make_task({"diabetes": {"measure": measure, "stage": "diabetes"}})
    assert occurrences(timelines, task)["subject_id"].to_list() == [1, 3, 7]
    assert off_scale(timelines, task) == (() if measure == "hba1c" else ((measure, 2),))


def test_hba1c_has_all_its_codes(make_timelines, make_task):
    codes = ("LOINC//4548-4", "LOINC//17856-6", "LOINC//59261-8", "LOINC//718-7")
    events = [(n, 5, code, {"numeric_value": 50.0, "unit": "mmol/mol"}) for n, code in enumerate(codes, 1)]
    timelines = make_timelines(events, {n: {} for n in range(1, 5)})
    task = make_task({"diabetes": {"measure": "hba1c", "stage": "diabetes"}})
    assert occurrences(timelines, task)["subject_id"].to_list() == [1, 2, 3]


def test_a_stage_of_the_filtration_rate_is_its_bounds(make_timelines, make_task):
    events = [
        (n, 5, "LOINC//98979-8", {"numeric_value": v, "unit": "mL/min/1.73m2"}) for n, v in enumerate((45.0, 44.9), 1)
    ]
    timelines = make_timelines(events, {1: {}, 2: {}})
    task = make_task({"g3b": {"measure": "LOINC//98979-8", "stage": "G3b or worse"}})
    assert occurrences(timelines, task)["subject_id"].to_list() == [2]
