"""A service of a small model on simulated people, answering on a port of this machine."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from ehrseq.config import BoostedConfig, ModelConfig, NetworkConfig, TrainingConfig
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.serve.app import make_app
from ehrseq.serve.settings import Settings
from ehrseq.synthetic import write_simulation
from ehrseq.timeline.build import read_fhir

CONFIG = ModelConfig(
    NetworkConfig(width=16, layers=1, heads=2, intervals=4, min_subjects=3, max_events=60),
    TrainingConfig(landmarks_per_subject=2, tuning_landmarks_per_subject=2, members=1),
    BoostedConfig(landmarks_per_subject=2, max_trees=10, min_rows_per_leaf=20),
    model="boosted",
)
LIMITS = Settings(
    rate=0, body_bytes=1 << 20, held_bytes=8 << 20, body_seconds=2.0, answer_seconds=20.0, waiting=24, patients=5
)


@dataclass
class Simulated:
    """A model folder, and the record of each living person as a Bundle."""

    folder: Path
    bundles: dict[str, dict[str, Any]]
    dead: dict[str, Any]

    def some(self, n: int) -> list[dict[str, Any]]:
        """The bundles of the first people."""
        return list(self.bundles.values())[:n]


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    work = tmp_path_factory.mktemp("served")
    write_simulation(work, 150, seed=1)
    ProgressionModel(CONFIG).fit(read_fhir(work / "export"), work / "task.toml").save(work / "model")
    records = defaultdict(list)
    for file in sorted((work / "export").glob("*.ndjson")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            subject = record.get("subject") or record.get("individual") or {"reference": f"Patient/{record['id']}"}
            records[subject["reference"].removeprefix("Patient/")].append({"resource": record})
    made = {who: {"resourceType": "Bundle", "type": "collection", "entry": e} for who, e in sorted(records.items())}
    dead = {who for who, e in records.items() if any("deceasedDateTime" in x["resource"] for x in e)}
    return Simulated(work / "model", {who: b for who, b in made.items() if who not in dead}, made[min(dead)])


@pytest.fixture(scope="session")
def model(simulated: Simulated) -> ProgressionModel:
    return load_model(simulated.folder)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of an application that answers in a thread."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", access_log=False, ws="none", server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def free_port() -> int:
    """A port that nobody answers at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


Serve = Callable[..., httpx.Client]


@pytest.fixture(scope="session")
def serve(model: ProgressionModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A client of a service with these settings; services of equal settings are one."""
    services: dict[str, Any] = {}
    clients: list[Any] = []

    def start(**changed: Any) -> httpx.Client:
        settings = replace(LIMITS, **changed)
        name = f"{settings} {changed.get('credentials') and id(changed['credentials'])}"  # tokens are not shown
        if name not in services:
            log = settings.access_log or tmp_path_factory.mktemp("log") / "access.ndjson"
            context = running(make_app(model, replace(settings, access_log=log), "# A card"))
            url = context.__enter__()
            services[name] = httpx.Client(base_url=url, trust_env=False, timeout=60)
            clients.append((context, services[name]))
        return services[name]

    yield start
    for context, client in clients:
        client.close()
        context.__exit__(None, None, None)


@pytest.fixture
def client(serve: Serve) -> httpx.Client:
    return serve()


def outcome_text(reply: httpx.Response) -> str:
    """What an OperationOutcome says; fails for any other body."""
    body = reply.json()
    assert body["resourceType"] == "OperationOutcome", body
    assert reply.headers["content-type"] == "application/fhir+json"
    [issue] = body["issue"]
    assert issue["severity"] in ("error", "fatal")
    return issue["diagnostics"]
