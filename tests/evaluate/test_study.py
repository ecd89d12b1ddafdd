from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.study import evaluate_study, outcome_definitions, records
from ehrseq.score import evaluate_export
from ehrseq.task.definition import Task
from ehrseq.task.label import label
from ehrseq.task.outcome import occurrences
from ehrseq.task.times import prediction_times
from tests.toy import TASK, append, cohort, day


@pytest.fixture(scope="module")
def timelines():
    return cohort(400, seed=3)


def forecasts(timelines, seed=0):
    """Numbers of the right shape for everyone at every prediction time: another vendor's table."""
    random = np.random.default_rng(seed)
    times = prediction_times(timelines, TASK).select("subject_id", "prediction_time")
    parts = []
    for outcome in ("illness", "death"):
        p = random.beta(2, 8, times.height)
        for days, factor in ((365.0, 0.5), (1096.0, 1.0)):
            parts.append(
                times.with_columns(
                    pl.Series("probability", p * factor), outcome=pl.lit(outcome), horizon_days=pl.lit(days)
                )
            )
    return pl.concat(parts)


def labels_of(timelines):
    return label(prediction_times(timelines, TASK), occurrences(timelines, TASK), timelines.subjects, TASK)


@pytest.fixture(scope="module")
def found(timelines):
    risks = {"vendor": forecasts(timelines), "other": forecasts(timelines, seed=1)}
    groups = timelines.subjects.select("subject_id").with_columns(ward=pl.Series(["a", "b"] * 200))
    return evaluate_study(risks, labels_of(timelines), timelines, TASK, n_bootstrap=120, by=groups)


def test_the_flow_adds_up(timelines, found):
    flow = pl.DataFrame(found.study["cohort"])
    assert flow.row(0, named=True)["subjects"] == 400
    for outcome in ("illness", "death"):
        rows = flow.filter(outcome=outcome)
        total = rows.filter(step="considered")["prediction_times"][0]
        assert rows.filter(pl.col("step") != "considered")["prediction_times"].sum() == total
        at_risk = rows.filter(step="at_risk")["prediction_times"][0]
        assert (found.table.filter(outcome=outcome)["at_risk"] == at_risk).all()


def test_groups_of_the_timelines_and_of_the_user(found):
    assert set(found.groups["attribute"]) == {"sex", "age", "ward"}
    follow_up = pl.DataFrame(found.study["follow_up"])
    whole = follow_up.filter(pl.col("attribute").is_null(), outcome="death").row(0, named=True)
    wards = follow_up.filter(attribute="ward", outcome="death")
    assert wards["subjects"].sum() == whole["subjects"]
    low, high = wards["censored_by_main_horizon"].min(), wards["censored_by_main_horizon"].max()
    assert low <= whole["censored_by_main_horizon"] <= high
    missing = pl.DataFrame(found.study["missing_values"])
    assert set(missing["code"]) == {"LOINC//a", "LOINC//b"}
    assert missing["without_value"].is_between(0, 1).all()


def test_random_forecasts_are_at_chance(found):
    defined = found.table.filter(pl.col("auc").is_not_null())
    assert defined.height >= 4
    assert ((defined["auc_lower"] < 0.5) & (defined["auc_upper"] > 0.5)).mean() >= 0.75
    assert not found.group_tests.filter("flagged")["question"].is_in(["usefulness"]).any()


def test_everything_is_json_without_nan(found):
    assert "NaN" not in found.to_json()
    assert set(found.study) >= {"outcomes", "cohort", "follow_up", "missing_values", "records", "provenance"}


def test_marginal_weights_stand_beside_conditional_ones(found):
    assert set(found.table["weights"]) <= {"conditional", "marginal"}
    if (found.table["weights"] == "conditional").any():
        both = found.table.join(found.sensitivity, on=["model", "outcome", "landmark", "horizon"], nulls_equal=True)
        assert both.height == found.sensitivity.height
        assert (both["auc"] - both["auc_right"]).abs().max() < 0.1


def write(timelines, folder):
    timelines.save(folder / "timelines")
    vendor = forecasts(timelines).join(timelines.subjects.select("subject_id", "patient"), on="subject_id")
    vendor.drop("subject_id").write_csv(folder / "vendor.csv")
    forecasts(timelines, seed=1).write_parquet(folder / "other.parquet")
    (folder / "task.toml").write_text(
        'horizons = ["1y", "3y"]\n[outcomes.illness]\ncodes = ["SNOMED//1"]\ncompeting = ["death"]\n'
        '[outcomes.death]\ncodes = ["MEDS_DEATH"]\n[prediction_times]\nrule = "landmarks"\nafter_start = ["2y"]\n'
    )


def test_a_file_from_another_vendor_without_torch(timelines, tmp_path):
    write(timelines, tmp_path)
    program = """
import sys
from dataclasses import replace
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "pytorch_lightning", "lightning", "torchmetrics"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
sys.argv = ["ehrseq", *sys.argv[1:]]
from ehrseq.cli import main
main()
"""
    arguments = ["evaluate", "vendor.csv", "timelines", "--task", "task.toml", "--out", "report"]
    arguments += ["--against", "other.parquet", "--bootstrap", "20"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.html").is_file()
    assert "vendor" in done.stdout


def test_the_file_is_judged_like_the_table(timelines, tmp_path, found):
    write(timelines, tmp_path)
    result = evaluate_export(
        tmp_path / "vendor.csv", timelines, task=TASK, n_bootstrap=120, against=[tmp_path / "other.parquet"]
    )
    assert result.table.select("auc", "brier", "observed").equals(found.table.select("auc", "brier", "observed"))
    assert result.facts["vendor_rows"] == forecasts(timelines).height
    assert "seen_in_training" not in result.facts  # a table does not tell
    assert set(result.table["landmark"]) == {"2y"}


def test_a_leaked_split_raises(timelines, tmp_path):
    write(timelines, tmp_path)
    trained = tmp_path / "trained.csv"
    trained.write_text("patient\np1\np2\n")
    with pytest.raises(EvaluationError, match="subjects on both sides"):
        evaluate_export(tmp_path / "vendor.csv", timelines, task=TASK, n_bootstrap=0, trained_on=trained)
    trained.write_text("patient\nelsewhere\n")
    passed = evaluate_export(tmp_path / "vendor.csv", timelines, task=TASK, n_bootstrap=0, trained_on=trained)
    assert passed.facts["seen_in_training"] == 0


def test_codes_and_units_of_few_are_counted_and_not_named(timelines):
    rows = [(1, day(5), "https://local//rare", 1.0, day(5))] * 3
    rows = [(1, day(5 + i), "https://local//one-person", 1.0, day(5 + i)) for i in range(60)] + rows
    rows += [(i, day(6), "https://local//often", 1.0, day(6)) for i in timelines.subjects["subject_id"][:50]]
    units = pl.DataFrame({"code": ["LOINC//a", "LOINC//b"], "unit_recorded": ["of Mr X", "mg"], "events": [3, 70]})
    units = units.with_columns(factor=pl.lit(None, pl.Float64))
    facts = records(replace(append(timelines, rows), units=units), TASK)
    assert [c["code"] for c in facts["codes_of_unknown_systems"]["most_frequent"]] == ["https://local//often"]
    assert facts["codes_of_unknown_systems"]["codes"] == 3
    assert [u["unit_recorded"] for u in facts["units"]["not_converted"]] == ["mg"]
    assert facts["units"]["events_not_converted"] == 73


def test_a_missing_horizon_is_a_marked_cell(timelines):
    risk = forecasts(timelines).filter(pl.col("horizon_days") < 400)
    found = evaluate_study({"vendor": risk}, labels_of(timelines), timelines, TASK, n_bootstrap=20)
    late = found.table.filter(horizon="3y")
    assert late["auc"].null_count() == late.height
    assert late["reason"].str.contains("no row at risk was scored").all()
    assert found.table.filter(horizon="1y")["auc"].null_count() == 0


def test_times_that_do_not_match_are_said(timelines):
    moved = forecasts(timelines).with_columns(pl.col("prediction_time") + pl.duration(days=1))
    with pytest.raises(EvaluationError, match="every time differs"):
        evaluate_study({"vendor": moved}, labels_of(timelines), timelines, TASK, n_bootstrap=0)
    strangers = forecasts(timelines).with_columns(pl.col("subject_id") + 10_000)
    with pytest.raises(EvaluationError, match="every subject_id differs"):
        evaluate_study({"vendor": strangers}, labels_of(timelines), timelines, TASK, n_bootstrap=0)


def test_one_class_alone_is_a_marked_cell(timelines):
    labels = labels_of(timelines).with_columns(
        cause=pl.when(pl.col("outcome") == "illness").then(0).otherwise("cause").cast(pl.Int8)
    )
    found = evaluate_study({"vendor": forecasts(timelines)}, labels, timelines, TASK, n_bootstrap=20)
    empty = found.table.filter(outcome="illness")
    assert empty["auc"].null_count() == empty.height
    assert empty["reason"].str.contains("fewer than 5 events").all()
    assert found.overall.filter(outcome="illness")["concordance"][0] is None
    assert "NaN" not in found.to_json()


def test_outcomes_are_defined_as_the_task_defines_them():
    outcomes = {
        "stage": {"measure": "egfr_ckdepi2021", "stage": "G3b", "confirm": {"times": 2, "apart": "90d"}},
        "high": {"measure": "LOINC//2160-0", "at_least": 2},
        "many": {"codes": [f"SNOMED//{n}" for n in range(40)], "washout": "1y", "incident": False},
        "either": {"any_of": ["stage", "high"]},
    }
    task = Task.from_dict({"horizons": ["1y"], "outcomes": outcomes, "prediction_times": {"rule": "every_encounter"}})
    found = {row["outcome"]: row["found_by"] for row in outcome_definitions(task)}
    assert found["stage"] == "egfr_ckdepi2021 < 45 mL/min/{1.73_m2} (G3b), 2 times at least 90d apart"
    assert found["high"] == "LOINC//2160-0 >= 2 mg/dL"
    assert found["either"] == "any of stage, high"
    assert found["many"] == ", ".join(outcomes["many"]["codes"]) + "; not at risk for 1y after it"
