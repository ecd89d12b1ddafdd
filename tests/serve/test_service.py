"""What the service answers, and that it is what the library answers."""

from __future__ import annotations

import gzip
import json
import threading
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from fhir.resources.R4B.bundle import Bundle

from ehrseq.forecast.fhir import risk_bundle
from ehrseq.serve.render import lab_name
from ehrseq.timeline.build import read_fhir
from tests.serve.conftest import outcome_text

NUMBERS = ("horizon_days", "probability", "competing", "event_free", "lower", "upper")


def table(rows, names):
    return [{name: row[name] for name in names} for row in rows]


def test_risks_and_labs_are_those_of_the_library(client, model, simulated):
    for bundle in simulated.some(4):
        reply = client.post("/forecast", json=bundle)
        assert reply.status_code == 200
        [answered] = reply.json()["forecasts"]
        local = model.forecast(read_fhir([bundle]))
        assert answered["prediction_time"] == local.risk["prediction_time"][0].isoformat() + "Z"
        expected = local.risk.to_dicts()
        assert len(answered["risk"]) == len(expected) > 0
        for row, own in zip(answered["risk"], expected, strict=True):
            assert row["outcome"] == own["outcome"]
            assert [row[n] for n in NUMBERS] == pytest.approx([own[n] for n in NUMBERS], abs=1e-6)
        labs = ("measured", "q05", "q50", "q95")
        assert len(answered["labs"]) == local.labs.height > 0
        for row, own in zip(answered["labs"], local.labs.to_dicts(), strict=True):
            assert [row[n] for n in labs] == pytest.approx([own[n] for n in labs], abs=1e-6)
        assert {row["horizon"] for row in answered["risk"]} == {"1y", "3y", "5y"}


def test_the_task_of_a_fhir_answer_is_that_of_the_library(client, model, simulated):
    [bundle] = simulated.some(1)
    timelines = read_fhir([bundle])
    expected = risk_bundle(model.forecast(timelines))
    for reply in (
        client.post("/forecast?format=fhir", json=bundle),
        client.post("/forecast", json=bundle, headers={"accept": "application/fhir+json"}),
    ):
        assert reply.headers["content-type"] == "application/fhir+json"
        Bundle.model_validate(reply.json())
        assessment, own = (made["entry"][1]["resource"] for made in (reply.json(), expected))
        assert assessment["id"] == own["id"]
        assert assessment["basis"] == own["basis"]
        for row, theirs in zip(assessment["prediction"], own["prediction"], strict=True):
            assert row["probabilityDecimal"] == pytest.approx(theirs["probabilityDecimal"], abs=1e-6)


def test_several_patients_come_as_a_list(client, simulated):
    several = simulated.some(3)
    together = client.post("/forecast", json=[*several, simulated.dead]).json()
    assert len(together["forecasts"]) == 3
    for bundle in several:
        [alone] = client.post("/forecast", json=bundle).json()["forecasts"]
        [same] = [f for f in together["forecasts"] if f["patient"] == alone["patient"]]
        for row, own in zip(same["risk"], alone["risk"], strict=True):
            assert row["probability"] == pytest.approx(own["probability"], abs=1e-6)
    assert [row["reason"] for row in together["skipped"] if row["outcome"] is None] == ["dead"]


def test_a_list_of_resources_is_a_record_too(client, simulated):
    [bundle] = simulated.some(1)
    resources = [entry["resource"] for entry in bundle["entry"]]
    replies = [client.post("/forecast", json=x).json()["forecasts"] for x in (bundle, resources)]
    assert replies[0] == replies[1]


def test_requests_at_once_do_not_meet(client, simulated):
    """Sixteen requests in one call, some about people of the same name: each is answered as if alone."""
    bundles = simulated.some(8)
    renamed = [json.loads(json.dumps(b).replace(who, "same")) for who, b in list(simulated.bundles.items())[:8]]
    answers = [None] * 16

    def ask(i):
        include = {"include": ["why", "curves", "timeline"]} if i % 2 else {}
        answers[i] = client.post("/forecast", json=[*bundles, *renamed][i], params=include).json()
        return answers[i]

    alone = [ask(i) for i in range(16)]

    before = batches(client)
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert batches(client) - before < 16  # they were scored together
    for i, (answer, own) in enumerate(zip(answers, alone, strict=True)):
        assert ("reasons" in answer["forecasts"][0]) == bool(i % 2)
        same(answer, own)


def same(one, other):
    """All of two answers, numbers to 1e-6."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for name in other:
            same(one[name], other[name])
    elif isinstance(other, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            same(mine, theirs)
    elif isinstance(other, float):
        assert one == pytest.approx(other, abs=1e-6)
    else:
        assert one == other


def batches(client):
    text = client.get("/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith("ehrseq_batch_requests_count")).split()[1])


def test_reasons_on_request(client, model, simulated):
    [bundle] = simulated.some(1)
    plain = client.post("/forecast", json=bundle).json()
    assert "reasons" not in plain["forecasts"][0]
    told = client.post("/forecast?include=why", json=bundle).json()
    expected = model.explain(read_fhir([bundle]), kinds=("code",)).reasons(3)
    reasons = told["forecasts"][0]["reasons"]
    assert len(reasons) == expected.height > 0
    for row, own in zip(reasons, expected.iter_rows(named=True), strict=True):
        assert row["code"] == own["code"]
        assert row["contribution"] == pytest.approx(own["contribution"], abs=1e-6)
    assert any("model sensitivity" in note for note in told["notes"])
    # codes are called as the record calls them
    assert not any(row["text"].startswith("LOINC 8480-6") for row in reasons)


def test_curves_and_the_timeline_on_request(client, simulated):
    [bundle] = simulated.some(1)
    answer = client.post("/forecast?include=curves&include=timeline", json=bundle).json()
    [forecast] = answer["forecasts"]
    curves = pl.DataFrame(forecast["curves"])
    assert curves["days"].min() == 0
    last = curves.filter(pl.col("days") == pl.col("days").max()).select("outcome", "probability").rows()
    risks = {r["outcome"]: r["probability"] for r in forecast["risk"]}  # of the longest horizon
    assert dict(last) == pytest.approx(risks, abs=1e-6)
    assert answer["timeline"] == sorted(answer["timeline"], key=lambda e: e["time"])
    assert len(answer["timeline"]) > 5


@pytest.mark.parametrize(
    ("at", "time"), [("2016-03-01", "2016-03-01T23:59:59.999999Z"), ("2016-03-01T12:00:00", "2016-03-01T12:00:00Z")]
)
def test_a_forecast_at_a_time_sees_what_was_known_then(client, simulated, model, at, time):
    [bundle] = simulated.some(1)
    answer = client.post("/forecast", params={"at": at}, json=bundle).json()
    assert answer["forecasts"][0]["prediction_time"] == time
    local = model.forecast(read_fhir([bundle]), at)
    assert [r["probability"] for r in answer["forecasts"][0]["risk"]] == pytest.approx(
        local.risk["probability"].to_list(), abs=1e-6
    )


def test_now_is_the_moment_of_the_request(client, simulated):
    [bundle] = simulated.some(1)
    answer = client.post("/forecast?at=now", json=bundle).json()
    assert answer["forecasts"][0]["prediction_time"] > "2026"


def test_codes_that_the_model_does_not_know_are_named(client, simulated):
    [bundle] = simulated.some(1)
    rare = {"system": "http://snomed.info/sct", "code": "999", "display": "A rare <b>thing</b>"}
    other = {
        "resourceType": "Condition",
        "id": "x",
        "subject": {"reference": f"Patient/{next(iter(simulated.bundles))}"},
        "recordedDate": "2012-01-01",
        "code": {"coding": [rare]},
    }
    answer = client.post("/forecast", json={**bundle, "entry": [*bundle["entry"], {"resource": other}]}).json()
    [unseen] = answer["unseen_codes"]
    assert (unseen["code"], unseen["events"], unseen["name"]) == ("SNOMED//999", 1, "A rare <b>thing</b>")


def test_every_record_is_accounted_for(client, simulated):
    [bundle] = simulated.some(1)
    broken = {"resourceType": "Observation", "status": 7}
    answer = client.post("/forecast", json={**bundle, "entry": [*bundle["entry"], {"resource": broken}]}).json()
    counts = answer["records"]
    assert counts["quarantined"] == {"invalid_field": 1}
    assert sum(n for fate in counts.values() for n in fate.values()) == len(bundle["entry"]) + 2  # and the bundle


def test_gzip_is_unpacked(client, simulated):
    [bundle] = simulated.some(1)
    packed = gzip.compress(json.dumps(bundle).encode())
    headers = {"content-type": "application/fhir+json", "content-encoding": "gzip"}
    assert (
        client.post("/forecast", content=packed, headers=headers).json() == client.post("/forecast", json=bundle).json()
    )


def test_the_model_is_described(client, model):
    facts = client.get("/model").json()
    assert facts["card"] == "# A card"
    assert [o["name"] for o in facts["outcomes"]] == ["diabetes", "heart_failure", "death"]
    assert facts["horizons"] == ["1y", "3y", "5y"]
    assert facts["model_manifest_sha256"] == model.folder_hash_
    assert facts["branch"] == "boosted"


def test_health_readiness_and_metrics(client):
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}
    text = client.get("/metrics").text
    assert 'ehrseq_requests_total{method="GET",route="/ready",status="200"}' in text


def test_the_description_has_examples_that_work(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/forecast",
        "/model",
        "/health",
        "/ready",
        "/cds-services",
        "/cds-services/{service}",
    }
    body = described["paths"]["/forecast"]["post"]["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        assert client.post("/forecast", json=example["value"]).status_code == 200
    hook = described["paths"]["/cds-services/{service}"]["post"]["requestBody"]["content"]["application/json"]
    request = hook["examples"]["patient-view"]["value"]
    assert client.post("/cds-services/ehrseq-forecast", json=request).json()["cards"]


def test_nothing_of_the_record_is_logged(serve, simulated, tmp_path):
    log = tmp_path / "access.ndjson"
    client = serve(access_log=log)
    who, bundle = next(iter(simulated.bundles.items()))
    assert client.post("/forecast?at=2016-01-01", json=bundle).status_code == 200
    assert client.post(f"/cds-services/{who}", json=bundle).status_code == 404
    assert client.get(f"/{who}?name={who}", headers={"user-agent": who}).status_code == 404
    assert client.request(who.upper(), "/model").status_code == 405
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(x["method"], x["route"], x["status"]) for x in lines] == [
        ("POST", "/forecast", 200), ("POST", "/cds-services/{service}", 404), ("GET", "(no route)", 404),
        ("OTHER", "/model", 405),
    ]  # fmt: skip
    assert {tuple(x) for x in lines} == {("time", "method", "route", "status", "ms", "caller")}
    assert who not in log.read_text()
    assert who not in client.get("/metrics").text
    assert log.stat().st_mode & 0o077 == 0


def test_a_refusal_says_nothing_of_the_request(client):
    reply = client.post("/forecast?at=zzcanary&include=zzcanary&format=zzcanary", json={})
    assert reply.status_code == 422
    assert "zzcanary" not in reply.text
    assert outcome_text(reply) == "expected other values of: format, include"


def condition(who, **dates):
    """A heart failure, which no simulated person of `well` has."""
    return {
        "resourceType": "Condition", "id": "new", "subject": {"reference": f"Patient/{who}"},
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "84114007"}]}, **dates,
    }  # fmt: skip


@pytest.fixture(scope="module")
def well(simulated):
    return next((w, b) for w, b in simulated.bundles.items() if "84114007" not in json.dumps(b))


def outcomes_at(client, bundle, *more, at="now"):
    body = {**bundle, "entry": [*bundle["entry"], *({"resource": r} for r in more)]}
    answer = client.post("/forecast", params={"at": at}, json=body).json()
    return {row["outcome"] for row in answer["forecasts"][0]["risk"]}, answer


def test_what_was_recorded_today_is_known_now(client, well):
    """By its day alone: elsewhere it is known when the day is over."""
    who, bundle = well
    today = datetime.now(UTC)
    assert "heart_failure" in outcomes_at(client, bundle)[0]
    for dates in ({"recordedDate": f"{today:%Y-%m-%d}"}, {"onsetDateTime": f"{today:%Y-%m}"}):
        assert "heart_failure" not in outcomes_at(client, bundle, condition(who, **dates))[0]


def test_what_hangs_on_an_encounter_that_goes_on_is_known_now(client, well):
    who, bundle = well
    begun = datetime.now(UTC) - timedelta(days=3)
    encounter = {"resourceType": "Encounter", "id": "open", "status": "in-progress", "class": {"code": "IMP"},
                 "subject": {"reference": f"Patient/{who}"},
                 "period": {"start": f"{begun:%Y-%m-%dT%H:%M:%SZ}"}}  # fmt: skip
    there = {"encounter": {"reference": "Encounter/open"}}
    for dates in ({}, {"onsetDateTime": f"{begun:%Y-%m-%d}"}):
        found, answer = outcomes_at(client, bundle, encounter, condition(who, **there, **dates))
        assert "heart_failure" not in found
        assert "encounter_open" not in json.dumps(answer["records"])


def test_what_is_dated_in_the_future_is_not_known_now(client, well):
    who, bundle = well
    for ahead in (timedelta(minutes=30), timedelta(days=1), timedelta(days=400)):
        later = f"{datetime.now(UTC) + ahead:%Y-%m-%dT%H:%M:%SZ}"
        found, _ = outcomes_at(client, bundle, condition(who, onsetDateTime=later))
        assert "heart_failure" in found


def test_who_died_today_is_dead_now(client, well):
    _, bundle = well
    entries = [{"resource": dict(e["resource"])} for e in bundle["entry"]]
    [patient] = [e["resource"] for e in entries if e["resource"]["resourceType"] == "Patient"]
    patient["deceasedDateTime"] = f"{datetime.now(UTC):%Y-%m-%d}"
    reply = client.post("/forecast?at=now", json={**bundle, "entry": entries})
    assert reply.status_code == 422
    assert "dead" in outcome_text(reply)
    patient["deceasedDateTime"] = f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}"
    assert client.post("/forecast?at=now", json={**bundle, "entry": entries}).status_code == 200


def test_another_moment_does_not_know_what_was_recorded_on_its_day(client, well):
    who, bundle = well
    more = condition(who, recordedDate="2016-03-01")
    assert "heart_failure" in outcomes_at(client, bundle, more, at="2016-03-01T12:00:00")[0]
    assert "heart_failure" not in outcomes_at(client, bundle, more, at="2016-03-01")[0]


def test_a_lab_is_called_by_what_its_unit_belongs_to():
    """A record may call it glucose in mmol/L, where the band is in mg/dL."""
    names = {"LOINC//2345-7": "Glucose [Moles/volume]"}
    assert lab_name({"code": "LOINC//2345-7", "unit": "mg/dL"}, names) == "glucose"
    assert lab_name({"code": "LOINC//2345-7", "unit": "other"}, names) == "Glucose [Moles/volume]"
    assert lab_name({"code": "LOCAL//x", "unit": "mg/dL"}, {}) == "LOCAL x"
