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
from ehrseq.task.outcome_definition import Bounds

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


MORE = {
    "stage": {"measure": "egfr_ckdepi2021", "stage": "G3b or worse", "confirm": {"times": 2, "apart": "90d"}},
    "band": {"measure": "hba1c", "at_least": 5.7, "below": 6.5},
    "fall": {"measure": "LOINC//2160-0", "rise": 0.3, "baseline": {"value": "mean", "within": "48h"}, "at_least": 4},
    "any": {"any_of": ["fall", {"codes": ["X//1"]}, {"measure": "hba1c", "stage": "diabetes"}], "competing": ["any2"]},
    "any2": {"any_of": ["stage", "band"], "incident": False, "washout": "30d"},
    "all": {"all_of": ["stage", "band"]},
    "then": {"sequence": ["band", {"codes": ["X//1"], "descendants": True, "descendant_codes": ["X//2"]}],
             "within": "90d"},
    "dies": {"codes": ["MEDS_DEATH"], "during": "hospital"},
    "back": {"admission": "unit", "incident": False, "competing": ["death"]},
}  # fmt: skip
STAYS = {"hospital": ["inpatient"], "unit": {"admission": ["A*"], "discharge": ["B*"]}}


def with_more(outcome=None, **more):
    """A task of every kind of outcome, and one more named x."""
    outcomes = {**copy.deepcopy(MORE), **({} if outcome is None else {"x": outcome})}
    times = {"rule": "discharge:hospital"}
    return {"horizons": ["1y"], "outcomes": outcomes, "stays": STAYS, "prediction_times": times, **more}


def test_every_kind_of_outcome_round_trips():
    task = Task.from_dict(with_more())
    assert [o.name for o in task.outcomes] == [*MORE, "hospital_discharge", "death"]
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert task.outcome("stage").bounds == Bounds(below=45, at_least=None)
    assert task.outcome("dies").competing == ("hospital_discharge",)
    assert task.outcome("then").own_parts[0].patterns == ("X//1", "X//2")
    assert task.outcome("then").as_written().own_parts[0].patterns == ("X//1",)
    assert task.prediction_times == PredictionTimes("discharge", stay="hospital")


KIDNEY = {"measure": "egfr_ckdepi2021"}
CHANGE = {**KIDNEY, "fall": "40%", "baseline": {"within": "1y"}}


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        ({**KIDNEY, "stag": "G3b"}, "found 'stag'; did you mean 'stage'?"),
        ({**KIDNEY, "stage": "G3"}, "a stage of CKD .* found 'G3'; did you mean"),
        ({**KIDNEY, "stage": "G3b", "below": 30}, "either a stage or bounds in outcome 'x'; found both"),
        ({"measure": "bmi", "stage": "G3b"}, "which has no stages"),
        ({"codes": ["X//1"], "stage": "G3b"}, "expected measure beside stage"),
        ({**KIDNEY, "below": 45, "at_most": 45}, "one upper bound in outcome 'x'; found below and at_most"),
        ({**KIDNEY, "above": 45, "at_least": 45}, "one lower bound"),
        ({**KIDNEY, "at_least": 45, "below": 45}, "expected at_least < below"),
        ({**KIDNEY, "at_least": 46, "at_most": 45}, "expected at_least < at_most"),
        ({**KIDNEY, "fall": "40%"}, "expected one of fall and rise, and baseline"),
        ({**CHANGE, "rise": "40%"}, "expected one of fall and rise, and baseline"),
        ({**KIDNEY, "below": 30, "baseline": {"within": "1y"}}, "expected one of fall and rise, and baseline"),
        ({**CHANGE, "fall": "40"}, "a change such as '40%'"),
        ({**CHANGE, "fall": "100%"}, "a change such as '40%'"),
        ({**CHANGE, "fall": 0}, "a change such as '40%'"),
        ({**CHANGE, "fall": True}, "expected a number for fall"),
        ({**CHANGE, "baseline": {"value": "last"}}, "expected within in baseline"),
        ({**CHANGE, "baseline": {"within": "1y", "value": "lats"}}, "did you mean 'last'"),
        ({**CHANGE, "baseline": {"within": "1y", "valu": "last"}}, "did you mean 'value'"),
        ({**CHANGE, "baseline": {"within": "0d"}}, "baseline.within above zero"),
        ({**CHANGE, "incident": False, "washout": "1y"}, "events that do not depend on the prediction time"),
        ({"any_of": ["fall", "band"], "incident": False, "washout": "1y"}, "no washout in outcome 'x'"),
        ({"codes": ["X//1"], "washout": "1y"}, "incident = false beside washout"),
        ({"codes": ["X//1"], "incident": False, "washout": "0d"}, "a washout above zero"),
        ({"codes": ["X//1"], "washout": 30}, "expected a span such as"),
        ({"codes": ["X//1"], "within": "1y"}, "expected sequence beside within"),
        ({"any_of": ["band"]}, "two or more different parts in any_of"),
        ({"all_of": ["band", "band"]}, "two or more different parts in all_of"),
        ({"sequence": ["band"]}, "two or more parts in sequence"),
        ({"any_of": ["band", "stages"]}, "outcomes of the task in outcome 'x'; found 'stages'; did you mean 'stage'"),
        ({"any_of": ["band", "x"]}, "found the outcome itself"),
        ({"any_of": "band"}, "expected a list for any_of"),
        ({"any_of": ["band", 3]}, "expected a table for each of any_of"),
        ({"any_of": ["band", {"code": ["X//1"]}]}, "a part of outcome 'x'; found 'code'; did you mean 'codes'"),
        ({"any_of": ["band", {"codes": ["X//1"], "incident": False}]}, "known keys in a part of outcome 'x'"),
        ({"any_of": ["band", {"any_of": ["stage", "fall"]}]}, "known keys in a part of outcome 'x'; found 'any_of'"),
        ({"any_of": ["band", {}]}, "expected one of codes, measure"),
        ({"any_of": ["band", "stage"], "below": 3}, "no below beside any_of"),
        ({"all_of": ["band", "stage"], "confirm": {"times": 2, "apart": "1d"}}, "no confirm beside all_of"),
        ({"all_of": ["band", "fall"]}, "parts that do not depend on the prediction time in outcome 'x'"),
        ({"sequence": ["any", "band"]}, "parts that do not depend on the prediction time in outcome 'x'"),
        ({"admission": "hospitl"}, "stays of the task; found 'hospitl'; did you mean 'hospital'"),
        ({"codes": ["X//1"], "during": "ward"}, "stays of the task; found 'ward'"),
        ({"admission": "hospital", "discharge": "hospital"}, "found admission and discharge"),
    ],
)
def test_bad_outcomes_are_one_clear_line(outcome, message):
    with pytest.raises(TaskError, match=message) as caught:
        Task.from_dict(with_more(outcome))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stays": {"hospital": []}}, "either classes or both admission and discharge in stays.hospital"),
        ({"stays": {"hospital": {"admission": ["A"]}}}, "either classes or both"),
        ({"stays": {"hospital": {"classes": ["a"], "admission": ["A"], "discharge": ["B"]}}}, "either classes or both"),
        ({"stays": {"hospital": {"clases": ["a"]}}}, "did you mean 'classes'"),
        ({"stays": {"hospital": 3}}, "a list of strings for stays.hospital"),
        ({"stays": {}}, "stays of the task; found 'unit'|'hospital'; add a \\[stays\\] table"),
        ({"prediction_times": {"rule": "admission"}}, "expected stay with prediction_times rule 'admission'"),
        ({"prediction_times": {"rule": "admission:ward"}}, "stays of the task; found 'ward'"),
        ({"prediction_times": {"rule": "landmarks:hospital"}}, "expected prediction_times.rule"),
    ],
)
def test_bad_stays_are_one_clear_line(more, message):
    with pytest.raises(TaskError, match=message):
        Task.from_dict(with_more(**more))


def test_composites_may_not_go_round():
    outcomes = {"a": {"any_of": ["b", "x"]}, "b": {"any_of": ["c", "x"]}, "c": {"any_of": ["b", "x"]},
                "x": {"codes": ["X//1"]}}  # fmt: skip
    with pytest.raises(TaskError, match="composites that are no part of themselves; found 'b' among its own parts"):
        Task.from_dict({"horizons": ["1y"], "outcomes": outcomes, "prediction_times": {"rule": "every_encounter"}})


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").glob("*.toml")), ids=lambda p: p.stem)
def test_the_examples_are_valid(path):
    task = Task.from_toml(path)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


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


@pytest.mark.parametrize("label", ["0d", "48h", "30d", "2w", "1m", "11m", "13m", "1y", "4y", "5y"])
def test_the_end_of_a_horizon_is_the_same_by_array(label):
    every = pl.datetime_range(datetime(1896, 1, 1, 23, 59, 59, 999999), datetime(2030, 1, 1), "23h", eager=True)
    after = pl.select(Horizon(label).after(pl.lit(every))).to_series()
    assert (Horizon(label).end_of(every.to_numpy()) == after.to_numpy()).all()


def test_five_years_from_2005_are_1826_days():
    days = pl.select(Horizon("5y").days_after(pl.lit(datetime(2005, 1, 1)))).item()
    assert days == 1826.0
    assert Horizon("5y").days == 1826.25


@pytest.mark.parametrize("label", ["", "5", "y", "5 y", "-1y", "1.5y", "5Y", "1y6m", "٥y", "1001y", "999999d", 5, None])
def test_horizon_refuses_other_spans(label):
    with pytest.raises(TaskError, match=r"expected a span (such as|of at most)"):
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
    example, *others = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert [tomllib.loads(other) for other in others]
    assert [o.name for o in Task.from_dict(tomllib.loads(example)).outcomes] == [
        "t2d", "ckd3b", "readmission", "death",
    ]  # fmt: skip
    keys = [f.name for f in dataclasses.fields(Outcome) if f.name != "name"]
    for word in [*keys, *REASONS, *SCORING_REASONS]:
        assert f"`{word}`" in page, word
