"""CDS Hooks: discovery, the card, and requests that are none."""

from __future__ import annotations

import copy
from collections import defaultdict
from datetime import UTC, datetime

import pytest

from ehrseq.serve.hooks import PREFETCH, escaped
from tests.serve.conftest import outcome_text

PATH = "/cds-services/ehrseq-forecast"
KEYS = {"Condition": "conditions", "Observation": "observations", "MedicationRequest": "medications",
        "Procedure": "procedures", "Encounter": "encounters"}  # fmt: skip


@pytest.fixture
def request_of(simulated):
    def make(which=0):
        who, bundle = list(simulated.bundles.items())[which]
        parts = defaultdict(list)
        for entry in copy.deepcopy(bundle["entry"]):
            parts[entry["resource"]["resourceType"]].append(entry)
        patient = parts.pop("Patient")[0]["resource"]
        found = {
            KEYS[k]: {"resourceType": "Bundle", "type": "searchset", "entry": v} for k, v in parts.items() if k in KEYS
        }
        return {"hook": "patient-view", "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
                "context": {"userId": "Practitioner/1", "patientId": who},
                "prefetch": {"patient": patient, "procedures": None, **found}}  # fmt: skip

    return make


def test_discovery(client):
    [service] = client.get("/cds-services").json()["services"]
    assert service["hook"] == "patient-view"
    assert {"id", "title", "description", "hook", "prefetch"} <= set(service)
    assert service["prefetch"]["patient"] == "Patient/{{context.patientId}}"
    assert all("{{context.patientId}}" in template for template in service["prefetch"].values())


def test_a_card_has_the_forecast_and_its_reasons(client, request_of):
    reply = client.post(PATH, json=request_of())
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    [card] = reply.json()["cards"]
    assert len(card["summary"]) <= 140
    assert card["summary"].startswith("Risk by 5y: ")
    assert card["indicator"] == "info"
    assert card["source"]["label"].startswith("ehrseq")
    assert "| outcome | 1y | 3y | 5y |" in card["detail"]
    assert "percentage points" in card["detail"]
    assert "not the effect of a disease" in card["detail"]


def test_the_risks_are_those_of_the_moment_of_the_request(client, request_of, simulated):
    [card] = client.post(PATH, json=request_of()).json()["cards"]
    without = {**simulated.some(1)[0]}
    without["entry"] = [e for e in without["entry"] if e["resource"]["resourceType"] in (*KEYS, "Patient")]
    answer = client.post("/forecast?at=now", json=without).json()
    death = next(r for r in answer["forecasts"][0]["risk"] if r["outcome"] == "death" and r["horizon"] == "5y")
    assert f"death {100 * death['probability']:.0f}%" in card["summary"]


def test_nobody_to_forecast_for_gives_no_card(client, simulated, request_of):
    request = request_of()
    request["prefetch"]["patient"]["deceasedDateTime"] = "2001-01-01"
    reply = client.post(PATH, json=request)
    assert reply.status_code == 200
    assert reply.json() == {"cards": []}


def test_a_first_page_alone_is_told(client, request_of):
    request = request_of()
    request["prefetch"]["observations"]["link"] = [{"relation": "next", "url": "https://x.org/2"}]
    [card] = client.post(PATH, json=request).json()["cards"]
    assert "Only a first page came of: observations" in card["detail"]


NOT_COME = {"absent": ..., "null": None, "an outcome": {"resourceType": "OperationOutcome", "issue": []},
            "another resource": {"resourceType": "Group"}}  # fmt: skip
BROKEN = {"no object": 7, "no kind": {"entry": []}, "entries of another kind": {"resourceType": "Bundle", "entry": {}}}


def with_key(request, key, value):
    request["prefetch"].pop(key, None)
    if value is not ...:
        request["prefetch"][key] = value
    return request


@pytest.mark.parametrize("why", NOT_COME)
@pytest.mark.parametrize("key", PREFETCH)
def test_what_did_not_come_is_no_empty_history(client, request_of, key, why):
    reply = client.post(PATH, json=with_key(request_of(), key, NOT_COME[why]))
    if key in ("patient", "conditions", "observations"):
        assert reply.status_code == 412
        assert f"of: {key}; found" in outcome_text(reply)
        return
    [card] = reply.json()["cards"]
    [told] = [line for line in card["detail"].splitlines() if line.startswith("Nothing came of: ")]
    assert key in told


@pytest.mark.parametrize("why", BROKEN)
@pytest.mark.parametrize("key", [*PREFETCH, "more"])
def test_what_cannot_be_read_is_refused(client, request_of, key, why):
    reply = client.post(PATH, json=with_key(request_of(), key, BROKEN[why]))
    assert reply.status_code == 412
    assert (key if key in PREFETCH else "not asked for") in outcome_text(reply)


def test_all_that_is_missing_is_named_at_once(client, request_of):
    request = with_key(with_key(request_of(), "conditions", None), "observations", 7)
    assert "of: conditions, observations; found" in outcome_text(client.post(PATH, json=request))


def test_a_search_without_results_came(client, request_of):
    request = request_of()
    for key in PREFETCH.keys() - {"patient", "observations"}:
        request["prefetch"][key] = {"resourceType": "Bundle", "type": "searchset"}
    [card] = client.post(PATH, json=request).json()["cards"]
    assert "Nothing came of" not in card["detail"]


@pytest.mark.parametrize("link", [{}, 7, [7], [{"relation": 7}], None])
def test_links_of_another_kind_hide_no_records(client, request_of, link):
    plain, linked = request_of(), request_of()
    linked["prefetch"]["observations"]["link"] = link
    details = [client.post(PATH, json=r).json()["cards"][0]["summary"] for r in (plain, linked)]
    assert details[0] == details[1]


def test_records_that_cannot_be_read_are_told_on_the_card(client, request_of):
    request = request_of()
    request["prefetch"]["observations"]["entry"].append({"resource": {"resourceType": "Observation", "status": 7}})
    [card] = client.post(PATH, json=request).json()["cards"]
    assert "Records that could not be read: 1." in card["detail"]


def test_the_card_says_when_it_was_made_and_how_old_the_record_is(client, request_of):
    request = request_of()
    dates = [e["resource"]["effectiveDateTime"][:10] for e in request["prefetch"]["observations"]["entry"]]
    request["prefetch"] = {k: v for k, v in request["prefetch"].items() if k in ("patient", "observations")}
    request["prefetch"]["conditions"] = {"resourceType": "Bundle"}
    [card] = client.post(PATH, json=request).json()["cards"]
    today = datetime.now(UTC)
    assert f"on record on {today:%Y-%m-%d}" in card["detail"]
    assert f"Latest entry: {max(dates)}." in card["detail"]


def test_the_latest_are_asked_for_first():
    assert all("&_sort=-" in asked for name, asked in PREFETCH.items() if name != "patient")


def test_hostile_names_stay_text(client, request_of):
    request = request_of()
    for entry in request["prefetch"]["observations"]["entry"]:
        for coding in entry["resource"].get("code", {}).get("coding", ()):
            coding["display"] = "[x](javascript:alert(1)) <script>"
    [card] = client.post(PATH, json=request).json()["cards"]
    assert "[x](" not in card["detail"]
    assert "<script>" not in card["detail"].replace("\\<", "")


def test_markdown_is_escaped():
    assert escaped("a|b\n# c") == "a\\|b \\# c"


VIEW = {"hook": "patient-view", "hookInstance": "x", "context": {"patientId": "p"}}
BAD = {
    "no JSON": ("x", 400),
    "a list": ([], 400),
    "no hook": ({"hookInstance": "x", "context": {"patientId": "p"}}, 400),
    "other hook": ({"hook": "order-sign", "hookInstance": "x", "context": {"patientId": "p"}}, 400),
    "no context": ({"hook": "patient-view", "hookInstance": "x"}, 400),
    "no prefetch": (VIEW, 412),
    "null": ({**VIEW, "prefetch": {"patient": None}}, 412),
    "an outcome": ({**VIEW, "prefetch": {"patient": {"resourceType": "OperationOutcome"}}}, 412),
    "a text": ({**VIEW, "prefetch": {"patient": "x"}}, 412),
}


@pytest.mark.parametrize("name", BAD)
def test_requests_that_are_none(client, name):
    body, status = BAD[name]
    reply = client.post(PATH, json=body)
    assert reply.status_code == status
    outcome_text(reply)


def test_the_records_of_another_are_refused(client, request_of):
    request = request_of()
    request["context"]["patientId"] = "another"
    reply = client.post(PATH, json=request)
    assert reply.status_code == 422
    assert "the patient in the context" in outcome_text(reply)


def test_two_patients_are_refused(client, request_of):
    request = request_of()
    request["prefetch"]["more"] = request_of(1)["prefetch"]["patient"]
    assert client.post(PATH, json=request).status_code == 422


def test_an_unknown_service(client, request_of):
    reply = client.post("/cds-services/other", json=request_of())
    assert reply.status_code == 404
    outcome_text(reply)


def test_prefetch_asks_for_what_a_model_reads():
    assert set(PREFETCH) == {
        "patient",
        "conditions",
        "observations",
        "medications",
        "procedures",
        "immunizations",
        "encounters",
    }
