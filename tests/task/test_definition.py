import copy
import dataclasses
import json
import re
import tomllib
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrseq.errors import TaskError
from ehrseq.task.definition import Confirm, Horizon, Outcome, PredictionTimes, Task
from ehrseq.task.label import REASONS, SCORING_REASONS

TASK = {
    "horizons": ["5y", "48h", "1y"],
    "outcomes": {
        "t2d": {"codes": ["SNOMED//44054006", "ICD10CM//E11*"], "competing": ["death"], "event_time": "occurred"},
        "ckd": {"measure": "LOINC//48642-3", "below": 45, "confirm": {"times": 2, "apart": "90d"}},
        "readmission": {"codes": ["ENCOUNTER//inpatient/admission"], "incident": False},
    },
    "labs": {"codes": ["LOINC//2160-0"]},
    "prediction_times": {"rule": "landmarks", "after_start": ["0d", "2y"]},
}


def changed(path, value):
    table = copy.deepcopy(TASK)
    place = table
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return table


def exact(label, *start):
    return pl.select(Horizon(label).after(pl.lit(datetime(*start)))).item()


@pytest.mark.parametrize(
    ("label", "start", "end"),
    [
        ("48h", (2007, 3, 1, 5), (2007, 3, 3, 5)),
        ("30d", (2008, 2, 1), (2008, 3, 2)),
        ("2w", (2008, 2, 20), (2008, 3, 5)),
        ("1m", (2008, 1, 31), (2008, 2, 29)),
        ("13m", (2007, 1, 31), (2008, 2, 29)),
        ("1y", (2004, 2, 29), (2005, 2, 28)),
        ("4y", (2004, 2, 29), (2008, 2, 29)),
        ("5y", (2005, 1, 1, 23, 59, 59, 999999), (2010, 1, 1, 23, 59, 59, 999999)),
    ],
)
def test_horizon_is_exact_in_the_calendar(label, start, end):
    assert exact(label, *start) == datetime(*end)


def test_five_years_from_2005_are_1826_days():
    days = pl.select(Horizon("5y").days_after(pl.lit(datetime(2005, 1, 1)))).item()
    assert days == 1826.0
    assert Horizon("5y").days == 1826.25


@pytest.mark.parametrize("label", ["", "5", "y", "5 y", "-1y", "1.5y", "5Y", "1y6m", "٥y", 5, None])
def test_horizon_refuses_other_spans(label):
    with pytest.raises(TaskError, match="expected a span such as"):
        Horizon(label)


def test_from_dict_reads_every_key():
    task = Task.from_dict(TASK)
    assert [h.label for h in task.horizons] == ["48h", "1y", "5y"]
    assert task.max_horizon_days == 1826.25
    assert task.outcome("t2d") == Outcome(
        "t2d", codes=("SNOMED//44054006", "ICD10CM//E11*"), competing=("death",), event_time="occurred"
    )
    assert task.outcome("ckd") == Outcome(
        "ckd", measure="LOINC//48642-3", below=45.0, confirm=Confirm(2, Horizon("90d"))
    )
    assert task.outcome("ckd").patterns == ("LOINC//48642-3",)
    assert not task.outcome("readmission").incident
    assert task.prediction_times == PredictionTimes("landmarks", after_start=(Horizon("0d"), Horizon("2y")))
    assert task.labs == ("LOINC//2160-0",)


def test_competing_death_adds_the_outcome_death_once():
    task = Task.from_dict(TASK)
    assert task.outcomes[-1] == Outcome("death", codes=("MEDS_DEATH",))
    own = Task.from_dict(changed(("outcomes", "death"), {"codes": ["MY//death"]}))
    assert own.outcome("death").codes == ("MY//death",)
    assert [o.name for o in own.outcomes].count("death") == 1


@pytest.mark.parametrize(
    "times",
    [
        {"rule": "landmarks", "after_start": ["2y"]},
        {"rule": "every_encounter"},
        {"rule": "after:ENCOUNTER//inpatient/discharge"},
        {"rule": "table", "table": "/somewhere/times.csv"},
        {"rule": "table", "times": [{"patient": "a", "time": "2020-01-01"}]},
    ],
)
def test_to_dict_round_trips_through_json(times):
    task = Task.from_dict(changed(("prediction_times",), times))
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


@given(
    st.lists(st.sampled_from(["1h", "2d", "3w", "4m", "5y", "48h"]), min_size=1, unique_by=lambda s: Horizon(s).days),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.booleans(),
)
def test_any_task_round_trips(horizons, below, incident):
    task = Task.from_dict({
        "horizons": horizons,
        "outcomes": {"a": {"codes": ["X//1*"], "below": below, "incident": incident}},
        "prediction_times": {"rule": "every_encounter"},
    })  # fmt: skip
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert [h.days for h in task.horizons] == sorted(h.days for h in task.horizons)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("horizon",), ["1y"], "found 'horizon'; did you mean 'horizons'?"),
        (("outcomes", "t2d", "code"), ["X//1"], "found 'code'; did you mean 'codes'?"),
        (("outcomes", "ckd", "confirm", "time"), 2, "found 'time'; did you mean 'times'?"),
        (("prediction_times", "after"), ["1y"], "did you mean 'after_start'?"),
        (("labs", "code"), ["X//1"], "did you mean 'codes'?"),
        (("horizons",), [], "expected at least one horizon"),
        (("horizons",), ["0d"], "expected at least one horizon, each above zero"),
        (("horizons",), "1y", "expected a list of strings for horizons"),
        (("horizons",), ["24h", "1d"], "each of horizons once"),
        (("horizons",), ["1 year"], "expected a span such as"),
        (("outcomes",), {}, "expected at least one outcome"),
        (("outcomes",), [], "expected a table for outcomes"),
        (("outcomes", "t2d"), "SNOMED//1", "expected a table for outcome 't2d'"),
        (("outcomes", "two words"), {"codes": ["X//1"]}, "expected an outcome name"),
        (
            ("outcomes", "t2d", "codes"),
            [],
            "expected one of codes, measure, any_of, all_of, .* in outcome 't2d'; found none",
        ),
        (("outcomes", "t2d", "codes"), ["*"], "expected a code such as"),
        (("outcomes", "t2d", "codes"), ["ICD10CM//E*1"], "only at its end"),
        (("outcomes", "t2d", "codes"), [""], "expected a code such as"),
        (("outcomes", "t2d", "codes"), [44054006], "expected a list of strings for codes of outcome 't2d'"),
        (("outcomes", "t2d", "measure"), "LOINC//1", "found codes and measure"),
        (("outcomes", "t2d", "competing"), ["dead"], "did you mean|known:"),
        (("outcomes", "t2d", "competing"), ["ckdd"], "found 'ckdd'; did you mean 'ckd'?"),
        (("outcomes", "t2d", "competing"), ["t2d"], "found the outcome itself"),
        (("outcomes", "t2d", "event_time"), "recorded", "expected event_time 'known' or 'occurred'"),
        (("outcomes", "t2d", "incident"), "yes", "expected true or false for incident"),
        (("outcomes", "ckd", "measure"), "egfr", "a derived measure .* known: bmi, egfr_ckdepi2021"),
        (("outcomes", "ckd", "descendants"), True, "descendants = true beside codes"),
        (("outcomes", "ckd", "measure"), "LOINC//48642*", "one exact lab code"),
        (
            ("outcomes", "ckd", "below"),
            None,
            "expected below, above, at_most, at_least, stage, fall or rise beside measure",
        ),
        (("outcomes", "ckd", "below"), "45", "expected a number for below"),
        (("outcomes", "ckd", "below"), float("nan"), "expected a finite bound"),
        (("outcomes", "ckd", "above"), 45, "expected above < below"),
        (("outcomes", "ckd", "confirm"), {"times": 2}, "no apart"),
        (("outcomes", "ckd", "confirm", "times"), 1, "expected confirm.times from 2"),
        (("outcomes", "ckd", "confirm", "apart"), "0d", "expected confirm.apart above zero"),
        (("labs", "codes"), ["LOINC//2160*"], "expected exact codes in labs"),
        (("labs", "codes"), ["LOINC//1", "LOINC//1"], "each of labs once"),
        (("prediction_times",), {}, "expected a rule"),
        (("prediction_times", "rule"), "landmark", "did you mean 'landmarks'?"),
        (("prediction_times", "after_start"), [], "expected after_start with prediction_times rule 'landmarks'"),
        (("prediction_times", "after_start"), ["12m", "1y"], "each of prediction_times.after_start once"),
        (("prediction_times", "rule"), "every_encounter", "expected no after_start"),
        (("prediction_times",), {"rule": "after:"}, "expected code with prediction_times rule 'after'"),
        (("prediction_times",), {"rule": "after"}, "expected code with prediction_times rule 'after'"),
        (("prediction_times",), {"rule": "table"}, "expected table or times"),
        (("prediction_times",), {"rule": "table", "times": "2020-01-01"}, "expected a list for prediction_times.times"),
        (("prediction_times",), {"rule": "table", "times": [{"patient": "a"}]}, "expected patient and time"),
        (
            ("prediction_times",),
            {"rule": "table", "table": "t.csv", "times": [{"patient": "a", "time": "2020-01-01"}]},
            "expected either table or times",
        ),
    ],
)
def test_bad_tasks_are_one_clear_line(path, value, message):
    with pytest.raises(TaskError, match=message) as caught:
        Task.from_dict(changed(path, value))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("expected ")


@pytest.mark.parametrize("key", ["horizons", "outcomes", "prediction_times"])
def test_missing_keys_are_named(key):
    table = {k: v for k, v in TASK.items() if k != key}
    with pytest.raises(TaskError, match=f"expected the key '{key}'"):
        Task.from_dict(table)


def test_unknown_outcome_name_has_a_hint():
    with pytest.raises(TaskError, match="did you mean 't2d'"):
        Task.from_dict(TASK).outcome("td2")


def test_from_toml(tmp_path):
    path = tmp_path / "task.toml"
    path.write_text(
        'horizons = ["1y"]\n[outcomes.mi]\ncodes = ["SNOMED//22298006"]\n'
        '[prediction_times]\nrule = "table"\ntable = "times.csv"\n'
    )
    task = Task.from_toml(path)
    assert task.prediction_times.table == str(tmp_path / "times.csv")
    dated = tmp_path / "dated.toml"
    dated.write_text(
        'horizons = ["1y"]\n[outcomes.mi]\ncodes = ["SNOMED//22298006"]\n[prediction_times]\nrule = "table"\n'
        'times = [{ patient = "a", time = 2020-01-01 }, { patient = "b", time = 2020-01-01T08:00:00Z }]\n'
    )
    assert Task.from_toml(dated).prediction_times.times == (("a", "2020-01-01"), ("b", "2020-01-01T08:00:00+00:00"))


def test_from_toml_on_bad_files(tmp_path):
    with pytest.raises(TaskError, match="expected a readable task file; found FileNotFoundError"):
        Task.from_toml(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("horizons = [\n\noutcomes")
    with pytest.raises(TaskError, match=r"a syntax error \(at line 3"):
        Task.from_toml(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(TaskError, match="UTF-8"):
        Task.from_toml(broken)


def test_the_reference_page_shows_a_valid_task_and_every_key_and_reason():
    page = (Path(__file__).parents[2] / "docs" / "task.md").read_text(encoding="utf-8")
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert [o.name for o in Task.from_dict(tomllib.loads(example[1])).outcomes] == [
        "t2d", "ckd3b", "readmission", "death",
    ]  # fmt: skip
    keys = [f.name for f in dataclasses.fields(Outcome) if f.name != "name"]
    for word in [*keys, *REASONS, *SCORING_REASONS]:
        assert f"`{word}`" in page, word
