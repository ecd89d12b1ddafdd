"""Forecasts as FHIR: valid by two independent readers, exact numbers, whole files or none."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fhir.resources.R4B import get_fhir_model_class
from fhirclient.models.bundle import Bundle as ClientBundle
from fhirclient.models.device import Device as ClientDevice
from fhirclient.models.riskassessment import RiskAssessment as ClientRiskAssessment

import ehrseq
from ehrseq.errors import ForecastError
from ehrseq.estimator import load_model
from ehrseq.fhir.codes import NAMES, system_name
from ehrseq.forecast import fhir
from ehrseq.forecast.fhir import (
    EXTRAPOLATED,
    RECORDS_READ,
    SEEN_IN_TRAINING,
    SYSTEM_URI,
    device,
    outcome_concept,
    risk_assessments,
    risk_bundle,
    write_ndjson,
)
from ehrseq.forecast.table import Forecast, risk_table
from ehrseq.storage import MANIFEST, read_json, sha256_file
from ehrseq.task.definition import Task
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.store import Timelines
from tests.forecast.test_table import HORIZONS, TIMES, hazards, skipped
from tests.toy import cohort

TASK = {
    "outcomes": {
        "t2d": {"codes": ["SNOMED//44054006"]},
        "death": {"codes": ["MEDS_DEATH"]},
    }
}
METADATA = {"model": "hybrid", "task": TASK, "data_hash": "d1", "model_manifest_sha256": "ab" * 32}


def forecast(members=2, **metadata):
    tables = (hazards("t2d", members), hazards("death", members, competing=False))
    left_out = skipped((1, "p1", TIMES[0], None, "no_history"))
    seen = pl.DataFrame({"subject_id": [30]})
    return Forecast(risk_table(tables, HORIZONS), left_out, METADATA | metadata, tables, seen)


def timelines():
    """Records of two of the subjects, one known only after the prediction time, one without a usable id."""
    late = TIMES[1] + timedelta(days=1)
    rows = [
        (30, None, "SEX//female", None, "Patient", "p30"),
        (30, datetime(2011, 1, 1), "LOINC//a", datetime(2011, 1, 2), "Observation", "early"),
        (30, datetime(2011, 6, 1), "LOINC//a", datetime(2011, 6, 2), "Observation", "later"),
        (30, datetime(2011, 6, 1), "LOINC//b", datetime(2011, 6, 2), "Observation", "later"),
        (30, datetime(2011, 6, 1), "LOINC//b", datetime(2011, 6, 2), "Observation", "no id/so named"),
        (30, datetime(2011, 6, 1), "LOINC//b", datetime(2011, 6, 2), None, None),
        (30, datetime(2011, 1, 1), "ICD10CM//y", late, "Condition", "future"),
        (29, datetime(2011, 1, 1), "LOINC//a", datetime(2011, 1, 1), "Observation", "other"),
    ]
    columns = ["subject_id", "time", "code", "known_time", "resource_type", "resource_id"]
    return Timelines.from_events(pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None))


def valid(resource):
    """The resource by its R4B model, which refuses unknown elements and wrong types; again as FHIR wrote it."""
    model = get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    return json.loads(model.model_dump_json())


def test_every_resource_is_valid_r4b_and_says_what_was_forecast():
    made = forecast()
    resources = [device(made.metadata), *risk_assessments(made, timelines=timelines())]
    for resource in resources:
        assert valid(resource) == json.loads(json.dumps(resource))
    of_subject = {r["subject"]["reference"]: r for r in resources[1:]}
    assert len(of_subject) == len(resources) - 1 == 3
    for patient, rows in made.risk.group_by("patient"):
        told = of_subject[f"Patient/{patient[0]}"]
        expected = rows.sort("outcome", "horizon_days").iter_rows(named=True)
        for prediction, row in zip(told["prediction"], expected, strict=True):
            assert prediction["outcome"]["text"] == row["outcome"]
            assert prediction["probabilityDecimal"] == row["probability"]
            ends = prediction["extension"][0]["valueRange"]
            assert (ends["low"]["value"], ends["high"]["value"]) == (row["lower"], row["upper"])
            start, end = (datetime.fromisoformat(t).replace(tzinfo=None) for t in prediction["whenPeriod"].values())
            assert start == row["prediction_time"]
            assert (end - start) / timedelta(days=1) == row["horizon_days"]
            assert (EXTRAPOLATED in [e["url"] for e in prediction["extension"]]) == row["extrapolated"]


def test_fhirclient_reads_them_back(tmp_path):
    made = forecast()
    write_ndjson(made, tmp_path / "forecast.ndjson")
    lines = [json.loads(line) for line in (tmp_path / "forecast.ndjson").read_text().splitlines()]
    software = ClientDevice(lines[0])
    assert [v.value for v in software.version] == [ehrseq.__version__, "ab" * 32]
    read = [ClientRiskAssessment(line) for line in lines[1:]]
    assert {r.performer.reference for r in read} == {f"Device/{software.id}"}
    found = [
        (r.subject.reference, p.outcome.text, p.probabilityDecimal, p.whenPeriod.end.date) for r in read
        for p in r.prediction
    ]  # fmt: skip
    assert [row[:3] for row in found] == [
        (f"Patient/{patient}", outcome, probability)
        for patient, outcome, probability in made.risk.select("patient", "outcome", "probability").iter_rows()
    ]
    assert all(r.occurrenceDateTime.date.utcoffset() == timedelta(0) for r in read)
    assert {row[3].replace(tzinfo=None) for row in found} == {
        at + timedelta(days=days) for at, days in made.risk.select("prediction_time", "horizon_days").iter_rows()
    }


def test_a_bundle_holds_what_it_refers_to():
    bundle = risk_bundle(forecast(), timelines=timelines())
    assert valid(bundle) == json.loads(json.dumps(bundle))
    addresses = [entry["fullUrl"] for entry in bundle["entry"]]
    assert len(set(addresses)) == len(addresses) == 4
    first, *others = (entry.resource for entry in ClientBundle(bundle).entry)
    assert {other.performer.reference for other in others} == {addresses[0]} == {f"urn:uuid:{first.id}"}


def test_outcomes_are_coded_by_the_exact_codes_that_define_them():
    first = next(iter(risk_assessments(forecast())))
    codings = {p["outcome"]["text"]: p["outcome"]["coding"] for p in first["prediction"]}
    assert [(c["system"], c["code"]) for c in codings["t2d"]] == [
        ("urn:ehrseq:outcome", "t2d"),
        ("http://snomed.info/sct", "44054006"),
    ]
    assert [(c["system"], c["code"]) for c in codings["death"]] == [("urn:ehrseq:outcome", "death")]


@pytest.mark.parametrize(
    "more",
    [{"codes": ["SNOMED//22298006", "SNOMED//230690007"]}, {"codes": ["ICD10CM//E11*"]}, {"above": 0.0},
     {"confirm": {"times": 2, "apart": "90d"}}, {"washout": "1y"}, {"descendants": True}],
)  # fmt: skip
def test_what_a_code_does_not_say_alone_has_no_code(more):
    # codings of one concept are translations: each part's risk would be read as that of the whole
    plain = {"codes": ["SNOMED//44054006"], "competing": ["death"], "incident": False}
    found = []
    for definition in (plain, plain | more):
        table = {
            "horizons": ["1y"],
            "outcomes": {"illness": definition},
            "prediction_times": {"rule": "every_encounter"},
        }
        outcomes = Task.from_dict(table).to_dict()["outcomes"]
        found.append([c["system"] for c in outcome_concept("illness", outcomes["illness"])["coding"]])
    assert found == [["urn:ehrseq:outcome", "http://snomed.info/sct"], ["urn:ehrseq:outcome"]]


def test_records_are_looked_up_for_some_queries_at_a_time(monkeypatch):
    whole = list(risk_assessments(forecast(), timelines=timelines()))
    asked = []
    look_up = fhir._records_on_file
    monkeypatch.setattr(fhir, "_records_on_file", lambda q, *rest: (asked.append(q.height), look_up(q, *rest))[1])
    monkeypatch.setattr(fhir, "_QUERIES_AT_ONCE", 2)
    assert list(risk_assessments(forecast(), timelines=timelines())) == whole
    assert asked == [2, 1]


def test_the_uris_are_those_that_ingest_knows():
    assert {name: system_name(uri) for name, uri in SYSTEM_URI.items()} == {name: name for name in SYSTEM_URI}
    assert set(SYSTEM_URI) <= set(NAMES)


def test_the_basis_is_what_was_on_file_by_then():
    made = {r["subject"]["reference"]: r for r in risk_assessments(forecast(), timelines=timelines())}
    references = [b["reference"] for b in made["Patient/p30"]["basis"]]
    assert references == ["Observation/later", "Observation/early", "Patient/p30"]
    assert [b["reference"] for b in made["Patient/p29"]["basis"]] == ["Observation/other"]
    assert "basis" not in made["Patient/p28"]
    cut = {r["subject"]["reference"]: r for r in risk_assessments(forecast(), timelines=timelines(), max_basis=1)}
    assert [b["reference"] for b in cut["Patient/p30"]["basis"]] == ["Observation/later"]
    count = [e["valueInteger"] for e in cut["Patient/p30"]["extension"] if e["url"] == RECORDS_READ]
    assert count == [3]
    assert all("basis" not in r for r in risk_assessments(forecast(), timelines=timelines(), max_basis=0))


def test_a_model_read_from_a_folder_tells_which_one():
    folder = Path(__file__).parents[1] / "data" / "model_version_1"
    made = load_model(folder).forecast(cohort(20), datetime(2013, 1, 1))
    assert device(made.metadata)["identifier"][0]["value"] == sha256_file(folder / MANIFEST)
    # the timelines that it was made from have no source records
    assert {"prediction"} <= set(next(risk_assessments(made)))
    assert all("basis" not in r for r in risk_assessments(made))


def test_who_was_trained_on_is_marked():
    marked = [r["subject"]["reference"] for r in risk_assessments(forecast()) if SEEN_IN_TRAINING in json.dumps(r)]
    assert marked == ["Patient/p30"]


def test_one_member_has_no_range():
    assert "valueRange" not in json.dumps(list(risk_assessments(forecast(members=1))))


def test_ids_hold_for_the_same_question_and_model_only():
    def ids(made, **options):
        return [r["id"] for r in risk_assessments(made, **options)]

    plain = ids(forecast())
    assert len(set(plain)) == 3
    assert ids(forecast(members=1), in_bundle=True) == plain
    assert not set(ids(forecast(model_manifest_sha256="cd" * 32))) & set(plain)
    assert not set(ids(forecast(model="boosted"))) & set(plain)


@pytest.mark.parametrize("bad", [math.nan, 1.1, -0.1, math.inf])
def test_no_probability_is_outside_0_to_1(bad, tmp_path):
    made = forecast()
    risk = made.risk.with_columns(probability=pl.lit(bad))
    with pytest.raises(ForecastError, match="probabilities from 0 to 1") as told:
        write_ndjson(Forecast(risk, made.skipped, made.metadata), tmp_path / "f.ndjson")
    assert "p30" not in str(told.value)
    assert not list(tmp_path.iterdir())  # neither the file nor a scratch file


def test_what_rounding_puts_beyond_1_is_1():
    made = forecast()
    risk = made.risk.with_columns(probability=pl.lit(float(np.nextafter(1.0, 2))))
    first = next(iter(risk_assessments(Forecast(risk, made.skipped, made.metadata))))
    assert {p["probabilityDecimal"] for p in first["prediction"]} == {1.0}


def test_names_stay_as_they_are(tmp_path):
    made = forecast()
    risk = made.risk.with_columns(patient=pl.lit('Zoë "1"'))
    path = tmp_path / "f.ndjson"
    write_ndjson(Forecast(risk, made.skipped, made.metadata), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "Zoë" in lines[1]
    told = json.loads(lines[1])
    assert told["subject"] == {"identifier": {"value": 'Zoë "1"'}, "type": "Patient"}
    valid(told)
    with pytest.raises(ForecastError, match="where no file is yet"):
        write_ndjson(made, path)
    assert path.read_text(encoding="utf-8").splitlines() == lines


def test_the_folder_has_bulk_files_and_loads_as_it_was(tmp_path):
    made = forecast()
    made.save(tmp_path / "out", file_format="fhir")
    files = read_json(tmp_path / "out" / MANIFEST)["files"]
    assert {"Device.ndjson", "RiskAssessment.ndjson", "risk.parquet", "skipped.parquet"} <= set(files)
    lines = (tmp_path / "out" / "RiskAssessment.ndjson").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(risk_assessments(made))
    again = Forecast.load(tmp_path / "out")
    assert again.risk.equals(made.risk)
    assert list(risk_assessments(again)) == list(risk_assessments(made))


def test_a_forecast_read_back_as_a_record_is_no_diagnosis():
    patient = {"resourceType": "Patient", "id": "p30", "birthDate": "1960"}
    told = next(r for r in risk_assessments(forecast()) if r["subject"]["reference"] == "Patient/p30")
    events = read_fhir([patient, told]).events.filter(resource_type="RiskAssessment")
    assert events.height == 2 * len(HORIZONS)
    assert events["code"].str.starts_with("RISK//").all()
    assert events.filter(code="RISK//SNOMED//44054006").height == len(HORIZONS)
