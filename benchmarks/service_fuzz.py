"""Broken requests by the thousand: the service must never answer 5xx, nor anything that it does not describe.

    python benchmarks/service_fuzz.py MODEL [--examples 500] [--records 5000] [--seed 0] [--data DATA] [--workers 1]

Two kinds: requests that schemathesis makes from the OpenAPI document, in and out of its schemas, each answer held
against that document (status, type of content, schema); and patients' bundles with the mutated records and bytes of
`fuzz.py`. The service of the model folder MODEL runs in this process, with several workers it scores in others. Prints
one JSON object: how many answers had each status. Fails at the first 5xx.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ehrseq.estimator import load_model
from ehrseq.fhir.documents import is_deeper
from ehrseq.serve.app import make_app
from ehrseq.serve.pool import Process
from ehrseq.serve.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
import fuzz

CHECKS = [schemathesis.checks.not_a_server_error, content_type_conformance, response_schema_conformance,
          status_code_conformance]  # fmt: skip
OPERATIONS = (("/forecast", "POST"), ("/cds-services/{service}", "POST"), ("/model", "GET"), ("/cds-services", "GET"))
HEADERS = {"content-type": "application/fhir+json"}


def described_requests(url: str, examples: int, seed: int) -> Counter[str]:
    """Requests made from the OpenAPI document of the service; how many answers of each status there were."""
    schema = schemathesis.openapi.from_dict(httpx.get(f"{url}/openapi.json", trust_env=False).json())
    counts: Counter[str] = Counter()
    for path, method in OPERATIONS:
        for mode in schemathesis.GenerationMode:
            strategy = schema[path][method].as_strategy(generation_mode=mode)
            known = path.endswith("{service}") and mode is schemathesis.GenerationMode.POSITIVE
            try:
                asker(strategy, url, known, counts, examples, seed)()
            except Unsatisfiable:  # nothing to break in a request without a parameter
                continue
    return counts


def asker(strategy: Any, url: str, known: bool, counts: Counter[str], examples: int, seed: int) -> Any:
    """A property that asks; `known`: of the service that there is."""

    @seeded(seed)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def ask(case: Any) -> None:
        if known:
            case.path_parameters = {"service": "ehrseq-forecast"}
        response = case.call(base_url=url)
        counts[str(response.status_code)] += 1
        case.validate_response(response, checks=CHECKS)

    return ask


def mutated_records(url: str, records: int, seed: int, data: Path | None) -> Counter[str]:
    """Bundles with mutated records, some of them with mutated bytes; how many answers of each status there were."""
    r = random.Random(seed)
    known = fuzz.seeds(data)
    counts: Counter[str] = Counter()
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        for number in range(0, records, 5):
            made = [fuzz.mutate_fields(r.choice(known), known, r) for _ in range(5)]
            whole = [fuzz.SEEDS[0] | {"deceasedDateTime": None}, *fuzz.SEEDS[1:8]]
            if number % 4:  # most requests should get beyond the limit of depth
                made = [record for record in made if not is_deeper(json.dumps(record).encode(), 50)]
            entries = [{"resource": record} for record in [*whole, *made]]
            body = json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}).encode()
            if number % 3 == 0:
                body = fuzz.mutate_bytes(body, r)
            path = "/forecast?include=why&include=timeline" if number % 2 else "/forecast?at=2022-01-01&format=fhir"
            if number % 7 == 0:
                path = "/cds-services/ehrseq-forecast"
                body = b'{"hook": "patient-view", "hookInstance": "x", "context": {"patientId": "p"}, "prefetch": ' \
                       b'{"patient": ' + json.dumps(whole[0]).encode() + b', "x": ' + body + b"}}"  # fmt: skip
            reply = client.post(path, content=body, headers=HEADERS)
            counts[str(reply.status_code)] += 1
            if reply.status_code >= 500:
                Path("service_fuzz_failure.json").write_bytes(body)
                raise SystemExit(f"a {reply.status_code} of POST {path}: the body is in service_fuzz_failure.json")
            if reply.status_code != 200 and reply.json()["resourceType"] != "OperationOutcome":
                raise SystemExit(f"a {reply.status_code} without an OperationOutcome")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    given_ = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    service, model = Settings(rate=0, access_log=Path("/dev/null")), load_model(given_.model)
    several = given_.workers if given_.workers > 1 else 0
    workers = [Process(given_.model, model.folder_hash_, 1, service.answer_seconds) for _ in range(several)]
    app = make_app(model, service, None, workers)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        facts = {
            "from the OpenAPI document": described_requests(url, given_.examples, given_.seed),
            "mutated records": mutated_records(url, given_.records, given_.seed, given_.data),
        }
    finally:
        server.should_exit = True
        for worker in workers:
            worker.close()
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
