"""Several processes that score: the same answers from each, and a service that outlives any of them."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from ehrseq.errors import UserError, WorkerError
from ehrseq.serve.answer import Ask
from ehrseq.serve.app import make_app
from ehrseq.serve.engine import Engine
from ehrseq.serve.metrics import Metrics
from ehrseq.serve.pool import Process, start_all
from ehrseq.serve.problems import Problem
from ehrseq.serve.scoring import Answered, Counts, Refused, Result
from ehrseq.serve.worker import Begin, load, receive, send
from ehrseq.timeline.build import read_fhir
from tests.serve.conftest import LIMITS, outcome_text, running

NUMBERS = ("probability", "competing", "event_free", "lower", "upper")


@pytest.fixture(scope="module")
def workers(simulated, model):
    made = [Process(simulated.folder, model.folder_hash_, 1, 20.0) for _ in range(2)]
    start_all(made)
    yield made
    for worker in made:
        worker.close()
    assert not any(worker.alive() for worker in made)


@pytest.fixture(scope="module")
def served(model, workers, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "access.ndjson"
    with (
        running(make_app(model, replace(LIMITS, access_log=log, batch=4), "# A card", workers)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield client


def counted(client, name):
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def until(true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def in_threads(do, number):
    results = [None] * number
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, do(i))) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_every_process_answers_the_same_to_the_last_bit(model, workers, simulated, client, served):
    asks = [Ask(httpx.Request("POST", "http://x", json=b).read(), form=form)
            for b in simulated.some(3) for form in ("json", "fhir")]  # fmt: skip
    first, second = ([worker.score([ask])[0] for ask in asks] for worker in workers)
    assert [type(result) for result in first] == [Answered] * 6
    assert first == second
    for ask, bundle in zip(asks[::2], simulated.some(3), strict=True):
        here, there = (c.post("/forecast", content=ask.document, headers={"content-type": "application/json"})
                       for c in (client, served))  # fmt: skip
        assert here.content == there.content == first[asks.index(ask)].content
        local = model.forecast(read_fhir([bundle])).risk.to_dicts()
        for row, own in zip(there.json()["forecasts"][0]["risk"], local, strict=True):
            assert [row[name] for name in NUMBERS] == [own[name] for name in NUMBERS]


def test_all_that_can_be_asked_for_and_refused(served, client, simulated):
    bundle = simulated.some(1)[0]
    for path in ("/forecast?include=why&include=curves&include=timeline&at=2016-01-01", "/forecast?at=1990-01-01"):
        here, there = client.post(path, json=bundle), served.post(path, json=bundle)
        assert (there.status_code, there.content) == (here.status_code, here.content)
    [patient] = [e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == "Patient"]
    nothing = {"resourceType": "Bundle", "type": "searchset"}
    given = {"patient": patient, "observations": bundle, "conditions": nothing}
    hook = {"hook": "patient-view", "hookInstance": "x", "context": {"patientId": patient["id"]}, "prefetch": given}
    cards = [c.post("/cds-services/ehrseq-forecast", json=hook).json()["cards"][0] for c in (served, client)]
    assert "Nothing came of: medications" in cards[0]["detail"]
    assert cards[0]["summary"] == cards[1]["summary"]
    assert served.post("/cds-services/ehrseq-forecast", json=hook | {"context": {"patientId": "x"}}).status_code == 422


def test_both_answer_and_what_they_count_adds_up(served, workers, simulated):
    bundles = simulated.some(12)
    before = counted(served, "ehrseq_patients_scored_total")
    assert {r.status_code for r in in_threads(lambda i: served.post("/forecast", json=bundles[i]), 12)} == {200}
    assert counted(served, "ehrseq_patients_scored_total") == before + 12
    assert counted(served, "ehrseq_waiting") == 0
    used = [cpu_seconds(worker.pid) for worker in workers]
    in_threads(lambda i: served.post("/forecast", json=bundles[i]), 12)
    assert all(cpu_seconds(worker.pid) > before for worker, before in zip(workers, used, strict=True))


def cpu_seconds(pid):
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def test_workers_that_are_killed_or_hang_are_replaced(served, workers, simulated, monkeypatch, caplog):
    """Both are stopped while they answer: one is killed, the other ended for being late; the service goes on."""
    bundles, before = simulated.some(2), [worker.pid for worker in workers]
    monkeypatch.setattr(workers[1], "_answer_seconds", 1.0)
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    replies = []
    threads = [threading.Thread(target=lambda b=b: replies.append(served.post("/forecast", json=b))) for b in bundles]
    for thread in threads:
        thread.start()
    until(lambda: all(worker._used.locked() for worker in workers))
    os.kill(before[0], signal.SIGKILL)
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert [reply.status_code for reply in replies] == [503, 503]
    assert {reply.headers["retry-after"] for reply in replies} == {"1"}
    assert "ended; ask again" in outcome_text(replies[0])
    assert served.get("/ready").status_code == served.post("/forecast", json=bundles[0]).status_code == 503
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    until(lambda: served.get("/ready").status_code == 200)
    assert served.post("/forecast", json=bundles[0]).status_code == 200
    assert "a worker ended" in caplog.text


def test_an_answer_that_was_not_read_is_nobody_elses(workers, simulated, monkeypatch):
    """Whatever goes wrong while answers are read, the process that still holds some of them is gone."""
    asks = [Ask(httpx.Request("POST", "http://x", json=b).read()) for b in simulated.some(3)]

    def fails_at_the_second(*given):
        taken.append(1)
        if len(taken) == 2:
            raise MemoryError
        return receive(*given)

    taken = []
    monkeypatch.setattr("ehrseq.serve.pool.receive", fails_at_the_second)
    with pytest.raises(MemoryError):
        workers[0].score(asks[:2])
    monkeypatch.undo()
    assert not workers[0].alive()
    workers[0].start()
    assert workers[0].score(asks[2:]) == workers[1].score(asks[2:])


def test_one_that_cannot_begin_is_refused_with_what_it_said(simulated):
    worker = Process(simulated.folder, "0" * 64, 1, 1.0)
    with pytest.raises(WorkerError, match="the model that the service began with"):
        start_all([worker])
    assert not worker.alive()


def test_modules_are_not_taken_from_the_current_folder(simulated, model, tmp_path, monkeypatch):
    (tmp_path / "msgspec.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    worker = Process(simulated.folder, model.folder_hash_, 1, 20.0)
    worker.start()
    assert worker.alive()
    worker.close()


def test_one_that_was_closed_does_not_begin_again(simulated, model):
    worker = Process(simulated.folder, model.folder_hash_, 1, 1.0)
    worker.close()
    with pytest.raises(WorkerError):
        worker.start()
    with pytest.raises(WorkerError):
        worker.score([Ask(b"[]")])


def test_another_model_in_the_folder_is_refused(simulated, model):
    assert load(Begin(str(simulated.folder), model.folder_hash_, 1)).folder_hash_ == model.folder_hash_
    with pytest.raises(UserError, match="the model that the service began with"):
        load(Begin(str(simulated.folder), "0" * 64, 1))


def test_what_is_no_frame():
    with pytest.raises(EOFError):
        receive(io.BytesIO(b""), int)
    with pytest.raises(EOFError):
        receive(io.BytesIO((9).to_bytes(8, "big") + b"12345"), str)
    with pytest.raises(EOFError):
        receive(io.BytesIO(b"Warning: "), str)  # what a library prints is no length
    written = io.BytesIO()
    ask = Ask(b"\xff[]", datetime(2020, 1, 2, 3, 4, 5, 6), frozenset(["why"]), 2, "p", True, "cards", ("a",), ("b",))
    for item in (ask, Answered(b"\xff"), Refused(422, "x", {"a": "b"}), 3):
        send(written, item)
    written.seek(0)
    read = [receive(written, kind) for kind in (Ask, Result, Result, int)]
    assert read == [ask, Answered(b"\xff"), Refused(422, "x", {"a": "b"}), 3]


class Stub:
    """A scorer that answers when it is let."""

    def __init__(self):
        self.gate, self.dead, self.starts, self.sizes = threading.Event(), False, 0, []

    def start(self):
        self.starts += 1
        if self.dead:
            raise WorkerError("a", "b", "c")

    def alive(self):
        return not self.dead

    def score(self, asks):
        self.sizes.append(len(asks))
        assert self.gate.wait(10)
        if self.dead:
            raise WorkerError("a", "b", "c")
        return [Answered(b"x", Counts(1, {"dead": 2}, 3)) for _ in asks]

    def close(self):
        self.gate.set()


def driven(test, number, **changed):
    """Run a test with an engine of stubs."""

    async def run():
        stubs = [Stub() for _ in range(number)]
        engine = Engine(stubs, replace(LIMITS, **changed), Metrics())
        await engine.start()
        try:
            await test(engine, stubs)
        finally:
            await engine.stop()

    asyncio.run(run())


def asked(engine, number):
    return [asyncio.ensure_future(engine.ask(Ask(b"[]"), lambda: None)) for _ in range(number)]


def test_what_waits_is_shared_out():
    async def test(engine, stubs):
        first = asked(engine, 6)
        while not all(stub.sizes for stub in stubs):
            await asyncio.sleep(0.01)
        assert [stub.sizes for stub in stubs] == [[2], [2], [2]]
        more = asked(engine, 13)  # all are busy: these gather, and who is free first takes as many as may be
        await asyncio.sleep(0.05)
        stubs[1].gate.set()
        await asyncio.gather(*more)
        assert stubs[1].sizes == [2, 8, 5]
        stubs[0].gate.set()
        stubs[2].gate.set()
        assert await asyncio.gather(*first) == [b"x"] * 6
        assert engine.metrics.registry.get_sample_value("ehrseq_patients_scored_total") == 19
        assert engine.metrics.registry.get_sample_value("ehrseq_events_unseen_total") == 57
        skipped = engine.metrics.registry.get_sample_value("ehrseq_forecasts_skipped_total", {"reason": "dead"})
        assert skipped == 38
        assert engine.metrics.registry.get_sample_value("ehrseq_waiting") == 0

    driven(test, 3, batch=8)


def test_one_request_does_not_wait_for_others_while_somebody_else_is_idle():
    async def test(engine, stubs):
        began = asyncio.get_running_loop().time()
        for stub in stubs:
            stub.gate.set()
        await asyncio.gather(*asked(engine, 1))
        assert asyncio.get_running_loop().time() - began < 0.4

    driven(test, 2, batch_seconds=0.5)


@pytest.mark.parametrize("then", ["a second comes", "time passes", "the other is done"])
def test_one_alone_waits_a_little_while_another_works(then):
    async def test(engine, stubs):
        first = asked(engine, 1)
        await asyncio.sleep(0.05)
        busy, idle = sorted(stubs, key=lambda stub: -len(stub.sizes))
        assert (busy.sizes, idle.sizes) == ([1], [])
        idle.gate.set()
        alone = asked(engine, 1)
        await asyncio.sleep(0.05)
        assert (busy.sizes, idle.sizes) == ([1], [])
        if then == "a second comes":
            await asyncio.gather(*alone, *asked(engine, 1))
            assert (busy.sizes, idle.sizes) == ([1], [2])
        elif then == "time passes":
            await asyncio.gather(*alone)
            assert (busy.sizes, idle.sizes) == ([1], [1])
        busy.gate.set()
        await asyncio.gather(*first, *alone)
        if then == "the other is done":
            assert sum(busy.sizes + idle.sizes) == 2

    driven(test, 2, batch_seconds=0.3 if then == "time passes" else 8)


def test_one_alone_does_not_wait_while_several_are_idle():
    async def test(engine, stubs):
        first = asked(engine, 1)
        await asyncio.sleep(0.05)
        second = asked(engine, 1)
        await asyncio.sleep(0.05)
        assert sorted(len(stub.sizes) for stub in stubs) == [0, 1, 1]
        for stub in stubs:
            stub.gate.set()
        await asyncio.gather(*first, *second)

    driven(test, 3, batch_seconds=8)


def test_one_that_ends_is_replaced_while_others_go_on():
    """Found though it was idle: nobody has to be refused for it."""

    async def test(engine, stubs):
        stubs[1].gate.set()
        stubs[0].dead = True
        while engine._live == 2:
            await asyncio.sleep(0.01)
        assert engine.ready
        assert await asyncio.gather(*asked(engine, 3)) == [b"x"] * 3
        assert stubs[0].sizes == []
        stubs[0].dead = False
        while engine._live == 1:
            await asyncio.sleep(0.01)
        stubs[1].gate.clear()
        more = asked(engine, 4)
        while not stubs[0].sizes:
            await asyncio.sleep(0.01)
        assert stubs[0].sizes == [2]
        for stub in stubs:
            stub.gate.set()
        assert await asyncio.gather(*more) == [b"x"] * 4

    driven(test, 2)


def test_many_that_wait_are_refused_by_the_pace_of_all():
    async def test(engine, _):
        engine._pace, engine._unanswered = 0.15, 3
        engine.check()  # 0.225 s with two of them
        engine._live = 1
        with pytest.raises(Problem) as refused:
            engine.check()
        assert refused.value.status == 429

    driven(test, 2, answer_seconds=0.3)


def test_one_that_cannot_be_started_is_tried_ever_later(monkeypatch):
    waits = []
    sleep, here = asyncio.sleep, threading.get_ident()

    async def slept(seconds):
        own = threading.get_ident() == here  # and not of another test's server
        if own:
            waits.append(seconds)
        await sleep(0 if own else seconds)

    async def test(engine, stubs):
        ask, = asked(engine, 1)  # fmt: skip
        while not stubs[0].sizes:
            await sleep(0.01)
        stubs[0].dead = True
        monkeypatch.setattr("ehrseq.serve.engine.asyncio.sleep", slept)
        stubs[0].gate.set()
        with pytest.raises(Problem) as refused:
            await ask
        assert refused.value.status == 503
        while stubs[0].starts < 10:
            await sleep(0.01)
        assert waits[:9] == [0, 1, 3, 7, 15, 31, 63, 63, 63]
        assert not engine.ready
        with pytest.raises(Problem):
            engine.check()
        stubs[0].dead = False
        while not engine.ready:
            await sleep(0.01)
        assert await asyncio.gather(*asked(engine, 1)) == [b"x"]

    driven(test, 1)


class Late(Stub):
    """One that takes 50 ms a request, and is ended after 300."""

    def score(self, asks):
        self.sizes.append(len(asks))
        time.sleep(min(0.05 * len(asks), 0.3))
        if len(asks) > 6:
            raise WorkerError("a", "b", "c")
        return [Answered(b"x")] * len(asks)


def test_what_takes_too_long_together_is_answered_in_smaller_numbers(monkeypatch):
    monkeypatch.setattr(f"{__name__}.Stub", Late)

    async def test(engine, stubs):
        engine._pace = 0.003
        answered = []
        for _ in range(4):
            answered += await asyncio.gather(*asked(engine, 16), return_exceptions=True)
        assert b"x" in answered
        assert {error.status for error in answered if error != b"x"} <= {429, 503}
        assert max(stubs[0].sizes) == 16
        assert stubs[0].sizes[-1] <= 6

    driven(test, 1, answer_seconds=0.3, batch=16)


def test_any_error_at_the_start_is_tried_again():
    async def test(engine, stubs):
        def start():
            stubs[0].dead = stubs[0].starts < 2
            stubs[0].starts += 1
            if stubs[0].dead:
                raise RuntimeError("can't start new thread")

        stubs[0].dead, stubs[0].start = True, start
        while engine.ready:
            await asyncio.sleep(0.01)
        while not engine.ready:
            await asyncio.sleep(0.01)
        stubs[0].gate.set()
        assert await asyncio.gather(*asked(engine, 1)) == [b"x"]

    driven(test, 1)


def test_who_is_being_answered_when_the_service_stops_is_told_so():
    async def test(engine, stubs):
        waiting, = asked(engine, 1)  # fmt: skip
        while not stubs[0].sizes:
            await asyncio.sleep(0.01)
        await engine.stop()
        with pytest.raises(Problem, match="stops"):
            await waiting

    driven(test, 1)
