"""What cannot be used is refused with the right status and an OperationOutcome, and the service goes on."""

from __future__ import annotations

import gzip
import io
import json
import resource
import socket
import time
import tracemalloc
import zipfile
import zlib

import httpx
import pytest

from ehrseq.serve.answer import answer
from ehrseq.serve.bounds import Inflater, Rates
from ehrseq.serve.engine import Engine
from ehrseq.serve.problems import Problem
from tests.serve.conftest import outcome_text

JSON = {"content-type": "application/fhir+json"}
PATIENT = {"resourceType": "Patient", "id": "p", "birthDate": "1960-01-01"}


def bundle(*resources):
    return {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": r} for r in resources]}


def still_answers(client, simulated):
    assert client.post("/forecast", json=simulated.some(1)[0]).status_code == 200


OBSERVATION = {
    "resourceType": "Observation",
    "status": "final",
    "subject": {"reference": "Patient/p"},
    "effectiveDateTime": "2020-01-01",
    "code": {"coding": [{"system": "http://x.org", "code": "1"}]},
}
BAD = {
    "no patient": (bundle(OBSERVATION), 422, "no readable Patient"),
    "empty bundle": ({"resourceType": "Bundle"}, 422, "no readable Patient"),
    "empty list": ([], 422, "no readable Patient"),
    "two patients": (bundle(PATIENT, {**PATIENT, "id": "q"}), 422, "found 2"),
    "too many patients": ([{**PATIENT, "id": str(i)} for i in range(6)], 422, "found 6"),
    "only unknown codes": (bundle(PATIENT, OBSERVATION), 422, "unknown_codes"),
    "nothing but a patient": (bundle(PATIENT), 422, "no_follow_up"),
    "not FHIR": ({"a": 1}, 422, "no readable Patient"),
    "a number": (7, 422, "text that is not"),
    "a text": ("x", 422, "text that is not"),
}


@pytest.mark.parametrize("name", BAD)
def test_records_that_cannot_be_forecast(client, simulated, name):
    body, status, told = BAD[name]
    reply = client.post("/forecast", json=body)
    assert reply.status_code == status
    assert told in outcome_text(reply)
    still_answers(client, simulated)


WRITTEN = {
    "nothing": b"",
    "no JSON": b"{",
    "cut off": json.dumps(bundle(PATIENT, OBSERVATION)).encode()[:-20],
    "NaN": json.dumps(bundle(PATIENT, {**OBSERVATION, "valueQuantity": {"value": float("nan")}})).encode(),
    "infinity": json.dumps(bundle(PATIENT, {**OBSERVATION, "valueQuantity": {"value": float("inf")}})).encode(),
    "no UTF-8": b'{"resourceType": "Patient", "id": "\xff\xfe"}',
    "deep": b"[" * 1000 + b"]" * 1000,
    "deep and open": b'{"a":' * 100_000,
    "deep inside": json.dumps(bundle(PATIENT, OBSERVATION)).encode().replace(b'"1960-01-01"', b"[" * 300 + b"]" * 300),
    "NUL": b"\0" * 100,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_bodies_that_are_no_json_of_use(client, simulated, name):
    reply = client.post("/forecast", content=WRITTEN[name], headers=JSON)
    assert reply.status_code in (400, 422)
    outcome_text(reply)
    still_answers(client, simulated)


def test_numbers_that_are_too_large_are_left_out(client, simulated):
    [record] = simulated.some(1)
    huge = json.dumps(record).replace('"value": ', '"value": 1e999999, "x": ', 1)
    reply = client.post("/forecast", content=huge, headers=JSON)
    assert reply.status_code == 200
    assert reply.json()["records"]["quarantined"] == {"invalid_field": 1}


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/xml", "application/json; charset=utf-16", "application/zip", ""]
)
def test_other_types_of_content(client, simulated, kind):
    headers = {} if kind is None else {"content-type": kind}
    reply = client.post("/forecast", content=b"{}", headers=headers)
    assert reply.status_code == 415
    outcome_text(reply)
    still_answers(client, simulated)


@pytest.mark.parametrize("packing", ["deflate", "br", "zip", "gzip, gzip"])
def test_other_packings(client, packing):
    reply = client.post("/forecast", content=b"{}", headers={**JSON, "content-encoding": packing})
    assert reply.status_code == 415
    outcome_text(reply)


def test_a_zip_archive_is_not_unpacked(client):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", b" " * (100 << 20))
    reply = client.post("/forecast", content=file.getvalue(), headers=JSON)
    assert reply.status_code == 422
    reply = client.post("/forecast", content=file.getvalue(), headers={**JSON, "content-encoding": "gzip"})
    assert reply.status_code == 400


def test_a_gzip_bomb_is_refused_before_it_takes_memory(client, simulated):
    bomb = gzip.compress(b'{"resourceType": "Bundle", "entry": [' + b"{}," * (70 << 20), compresslevel=1)
    sent = bomb[: 800 << 10]
    # what the process took before does not hide what this takes: the peak of its allocations, and not of its pages
    tracemalloc.start()
    try:
        reply = client.post("/forecast", content=sent, headers={**JSON, "content-encoding": "gzip"})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        zlib.decompressobj(wbits=31).decompress(sent)
        unpacked = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reply.status_code == 413
    outcome_text(reply)
    assert peak < 16 << 20
    assert unpacked > 64 << 20  # so that the bound tells one from the other
    still_answers(client, simulated)


ZIPPED = gzip.compress(b"{}", mtime=0)  # without the time, which would be in the test's name


@pytest.mark.parametrize("body", [b"no gzip", ZIPPED[:-4], ZIPPED + b"more", b""])
def test_broken_gzip(client, body):
    reply = client.post("/forecast", content=body, headers={**JSON, "content-encoding": "gzip"})
    assert reply.status_code == 400
    outcome_text(reply)


def test_unpacking_goes_in_small_steps():
    parts = list(Inflater(10).feed(gzip.compress(b"a" * (1 << 20))))
    assert max(map(len, parts)) <= 1 << 16
    assert sum(map(len, parts)) == 1 << 20


@pytest.mark.parametrize("declared", [True, False])
def test_a_hundred_megabytes_of_nesting(client, simulated, declared):
    """With a length it is refused unread; without, as soon as it is more than allowed."""

    def pieces():
        for _ in range(100):
            yield b"[" * (1 << 20)

    headers = {**JSON, "content-length": str(100 << 20)} if declared else JSON
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        reply = client.post("/forecast", content=pieces(), headers=headers)
    except (httpx.WriteError, httpx.RemoteProtocolError):  # it hung up while we were still talking
        pass
    else:
        assert reply.status_code == 413
        outcome_text(reply)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    still_answers(client, simulated)


def test_a_body_that_does_not_come_is_not_waited_for(client, serve):
    impatient = serve(body_seconds=0.3)
    url = impatient.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(b"POST /forecast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: 100\r\n\r\n{")  # fmt: skip
        connection.settimeout(10)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_bodies_together_are_bounded(serve, simulated):
    small = serve(held_bytes=1000)
    reply = small.post("/forecast", json=simulated.some(1)[0])
    assert reply.status_code == 429
    assert reply.headers["retry-after"] == "1"
    assert small.post("/forecast", json=bundle(PATIENT)).status_code == 422  # room was given back


def test_rates_are_kept_by_address(serve):
    slow = serve(rate=30)
    statuses = [slow.get("/model").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    refused = slow.get("/model")
    outcome_text(refused)
    assert 1 <= int(refused.headers["retry-after"]) <= 3
    assert slow.get("/health").status_code == 200  # whoever watches is not refused


def test_a_bucket_fills_again_and_few_are_kept():
    now = 0.0
    rates = Rates(60, lambda: now)
    for _ in range(6):
        rates.check("a")
    with pytest.raises(Problem):
        rates.check("a")
    rates.check("b")
    now = 1.0
    rates.check("a")
    for i in range(20_000):
        rates.check(str(i))
    assert len(rates._buckets) == 10_000


def test_too_many_that_wait_are_refused(serve, simulated, monkeypatch):
    """No error but 429, with the time after which to ask again."""
    import threading

    def slowly(model, parts):
        time.sleep(0.3)
        return answer(model, parts)

    monkeypatch.setattr("ehrseq.serve.scoring.answer", slowly)
    busy = serve(waiting=2, batch=1)
    replies = []
    record = simulated.some(1)[0]
    threads = [threading.Thread(target=lambda: replies.append(busy.post("/forecast", json=record))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [r.status_code for r in replies]
    assert set(statuses) == {200, 429}
    assert all(r.headers["retry-after"] == "1" for r in replies if r.status_code == 429)


def test_an_answer_that_takes_too_long_is_given_up(serve, simulated, monkeypatch):
    monkeypatch.setattr("ehrseq.serve.scoring.answer", lambda model, parts: time.sleep(0.6) or [None] * len(parts))
    reply = serve(answer_seconds=0.2).post("/forecast", json=simulated.some(1)[0])
    assert reply.status_code == 503
    assert "0.2 s" in outcome_text(reply)


@pytest.mark.parametrize("step", ["written", "score"])
def test_a_fault_of_our_own_is_told_without_what_it_is(serve, simulated, monkeypatch, caplog, step):
    def broken(*_):
        raise KeyError("zzcanary")

    monkeypatch.setattr(f"ehrseq.serve.scoring.{step}", broken)
    client = serve(batch=3)
    reply = client.post("/forecast", json=simulated.some(1)[0])
    assert reply.status_code == 500
    outcome_text(reply)
    assert "an unexpected KeyError while answering" in caplog.text
    assert "zzcanary" not in reply.text + caplog.text


def test_a_record_that_breaks_scoring_does_not_spoil_the_others(serve, simulated, monkeypatch):
    import threading

    bad = next(iter(simulated.bundles))

    calls = []

    def picky(model, parts):
        calls.append(len(parts))
        if len(calls) == 1:
            time.sleep(1)  # the others come meanwhile, and are answered together
        if any(bad in part.timelines.subjects["patient"].to_list() for part in parts):
            raise ValueError("zzcanary")
        return answer(model, parts)

    client = serve(batch=8)
    monkeypatch.setattr("ehrseq.serve.scoring.answer", picky)
    replies = [None] * 5
    bodies = [*simulated.some(4), simulated.some(2)[1]]

    def ask(i):
        replies[i] = client.post("/forecast", json=bodies[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in (4, 0, 1, 2, 3)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert [r.status_code for r in replies] == [500, 200, 200, 200, 200]
    assert calls[:2] == [1, 4]
    assert "zzcanary" not in replies[0].text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "169.254.169.254"])
def test_another_host_name_is_refused(client, host):
    reply = client.get("/model", headers={"host": host})
    assert reply.status_code == 421
    outcome_text(reply)


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:9"])
def test_names_of_this_machine_are_answered(client, host):
    assert client.get("/model", headers={"host": host}).status_code == 200


def test_pages_of_others_cannot_read_answers(client):
    reply = client.options("/forecast", headers={"origin": "https://x.org", "access-control-request-method": "POST"})
    assert reply.status_code == 405
    for answered in (reply, client.get("/model", headers={"origin": "https://x.org"})):
        assert not [name for name in answered.headers if name.startswith("access-control")]
        assert answered.headers["cache-control"] == "no-store"
        assert answered.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answered.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("PUT", "/forecast", 405),
        ("GET", "/forecast", 405),
        ("POST", "/", 405),
        ("GET", "/%00", 404),
        ("GET", "/docs", 404),
    ],
)
def test_other_paths_and_methods(client, method, path, status):
    reply = client.request(method, path)
    assert reply.status_code == status
    outcome_text(reply)


def test_what_is_no_http_is_refused(client):
    for raw in (
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(raw)
            connection.settimeout(10)
            assert connection.recv(1000)[9:12] in (b"400", b"414", b"431")
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    "at", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "9999-12-31", "2099-01-01", "2016-13-01", ""]
)
def test_moments_that_are_none_of_a_record(client, simulated, at):
    reply = client.post("/forecast", params={"at": at}, json=simulated.some(1)[0])
    assert reply.status_code == 422
    assert "`at`" in outcome_text(reply)


@pytest.mark.parametrize("error", [ValueError("zzcanary"), ZeroDivisionError(), RecursionError()])
def test_a_fault_in_a_route_is_told_as_fhir_has_it(serve, simulated, monkeypatch, caplog, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("ehrseq.serve.app.Ask", broken)
    reply = serve(batch=3).post("/forecast", json=simulated.some(1)[0])
    assert reply.status_code == 500
    outcome_text(reply)
    assert "zzcanary" not in reply.text + caplog.text


def test_who_hangs_up_is_no_fault_of_ours(serve, tmp_path, caplog):
    log = tmp_path / "access.ndjson"
    url = serve(access_log=log).base_url
    with caplog.at_level("INFO", "ehrseq.serve"), socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(b"POST /forecast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: 100\r\n\r\n{")  # fmt: skip
        time.sleep(0.2)
        connection.close()
        deadline = time.monotonic() + 10
        while not log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert json.loads(log.read_text())["status"] == 499
    assert [record.levelname for record in caplog.records if record.name == "ehrseq.serve"] == ["INFO"]


MANY = {
    "items that are none": (b"[" + b"[]," * 60_000 + b"[]]", 413),
    "records": (b"[" + b",".join([b'{"resourceType":"Basic"}'] * 50_001) + b"]", 413),
    "brackets": (b"[" + b",".join([b'{"a":{"a":{"a":{"a":{"a":"b"}}}}}'] * 125_000) + b"]", 413),
    "patients": (b"[" + b",".join(b'{"resourceType":"Patient","id":"%d"}' % i for i in range(400)) + b"]", 422),
}


@pytest.mark.parametrize("name", MANY)
def test_a_small_body_of_much_work_is_refused_unread(serve, monkeypatch, name):
    body, status = MANY[name]
    client = serve(body_bytes=8 << 20)
    monkeypatch.setattr("ehrseq.serve.scoring.read", lambda ask: pytest.fail("it was read"))
    reply = client.post("/forecast", content=body, headers=JSON)
    assert reply.status_code == status
    assert "at most" in outcome_text(reply)


def test_what_was_given_up_is_not_held(model):
    """Room is given back when a request leaves the queue, or when its scoring is over, and not before."""
    import asyncio
    import threading
    from dataclasses import replace

    from ehrseq.serve.answer import Ask
    from ehrseq.serve.metrics import Metrics
    from ehrseq.serve.scoring import Answered, Here
    from tests.serve.conftest import LIMITS

    async def run():
        scorer, gate = Here(model), threading.Event()
        scorer.score = lambda asks: gate.wait(10) and [Answered(b"x")] * len(asks)
        engine = Engine([scorer], replace(LIMITS, batch=1, answer_seconds=0.2), Metrics())
        await engine.start()
        done = [0, 0, 0]
        asks = [engine.ask(Ask(b"[]"), lambda i=i: done.__setitem__(i, done[i] + 1)) for i in range(3)]
        results = await asyncio.gather(*asks, return_exceptions=True)
        assert [r.status for r in results] == [503, 503, 503]
        assert done == [0, 1, 1]  # the first is still being scored
        assert not engine._queue
        assert engine._unanswered == 0
        gate.set()
        for _ in range(200):
            await asyncio.sleep(0.01)
            if done[0]:
                break
        assert done == [1, 1, 1]
        engine._pace, engine._unanswered = 0.15, 2  # two that wait would take longer than an answer may
        with pytest.raises(Problem) as refused:
            engine.check()
        assert refused.value.status == 429
        engine._unanswered = 1
        engine.check()
        await engine.stop()

    asyncio.run(run())
