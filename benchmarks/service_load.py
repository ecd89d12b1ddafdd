"""How many forecasts a second the service gives on one machine, and how soon each comes at half that rate.

    python benchmarks/service_load.py MODEL BUNDLES [--seconds 60] [--users 96] [--threads 1] [--workers N]

Starts `ehrseq serve MODEL` and asks it over the loopback with locust, which shares the machine's cores: first as much
as it answers (`--users` that ask again at once; more than may wait, so that some are told 429 and ask again when told),
then at half the rate that this gave, evenly spread. Each request is `POST /forecast` with one patient's record, one of
the JSON files of the folder BUNDLES. Prints one JSON object, with the machine's load before the start, and of each
process of the service the most memory and the CPU time an answer. Fails where an answer is neither 200 nor 429.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, task
from locust.env import Environment

HEADERS = {"content-type": "application/fhir+json"}


def ask(url: str, bodies: list[bytes], users: int, seconds: float, rate: float | None = None) -> dict[str, Any]:
    """Let some users ask for a time, at once again or together `rate` times a second, evenly spread; statuses, answers
    a second and milliseconds of those that were answered."""
    statuses: Counter[int] = Counter()
    milliseconds: list[float] = []
    number = itertools.count()

    class Asker(FastHttpUser):
        host = url

        def on_start(self) -> None:
            if rate is not None:
                self.due = time.perf_counter() + next(number) / rate
                gevent.sleep(self.due - time.perf_counter())

        def wait_time(self) -> float:
            """Locust's own pacing counts from the moment that it makes the users, which is the same for all."""
            if rate is None:
                return 0.0
            self.due += users / rate
            return max(0.0, self.due - time.perf_counter())

        @task
        def forecast(self) -> None:
            begun = time.perf_counter()
            with self.client.post(
                "/forecast", data=random.choice(bodies), headers=HEADERS, catch_response=True
            ) as reply:
                statuses[reply.status_code] += 1
                if reply.status_code == 429:
                    reply.success()
                    gevent.sleep(float(reply.headers["Retry-After"]))
                elif reply.status_code == 200:
                    milliseconds.append(1000 * (time.perf_counter() - begun))

    environment = Environment(user_classes=[Asker])
    runner = environment.create_local_runner()
    runner.start(users, spawn_rate=users)
    gevent.sleep(seconds)
    runner.quit()
    if not milliseconds:
        return {"statuses": dict(statuses), "answers_a_second": 0.0}
    milliseconds.sort()
    at = {f"p{p}_ms": round(milliseconds[int(len(milliseconds) * p / 100)], 1) for p in (50, 95, 99)}
    return {"statuses": dict(statuses), "answers_a_second": round(len(milliseconds) / seconds, 2), **at}


def ask_timed(processes: list[int], *asked: Any) -> dict[str, Any]:
    """As `ask`, with the CPU milliseconds of each process an answer that was given."""
    before = [cpu_seconds(pid) for pid in processes]
    facts = ask(*asked)
    answered = max(1, facts["statuses"].get(200, 0))
    spent = [cpu_seconds(pid) - then for pid, then in zip(processes, before, strict=True)]
    return facts | {"cpu_ms_an_answer": [round(1000 * seconds / answered, 1) for seconds in spent]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--users", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--port", type=int, default=8799)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    bodies = [file.read_bytes() for file in sorted(given.bundles.glob("*.json"))]
    command = [sys.executable, "-m", "ehrseq", "serve", str(given.model), "--port", str(given.port), "--rate", "0",
               "--threads", str(given.threads), "--access-log", os.devnull]  # fmt: skip
    if given.workers is not None:
        command += ["--workers", str(given.workers)]
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{given.port}"
    try:
        wait_until_ready(url, service)
        ask(url, bodies, 4, 5)  # warm
        processes = family(service.pid)
        saturated = ask_timed(processes, url, bodies, given.users, given.seconds)
        drain(url)
        rate = saturated["answers_a_second"] / 2
        half = ask_timed(processes, url, bodies, 20, given.seconds, rate)
        sizes = sorted(map(len, bodies))
        facts = {
            "load_before": round(load, 2), "cores": os.cpu_count(), "bundles": len(bodies),
            "median_bundle_bytes": sizes[len(sizes) // 2], "saturated": saturated, "half": half,
            "workers": len(processes) - 1, "resident_mb": [round(resident(pid) / 1024) for pid in processes],
        }  # fmt: skip
    finally:
        service.terminate()
        service.wait(30)
    print(json.dumps(facts, indent=1))
    return int(not {*saturated["statuses"], *half["statuses"]} <= {200, 429})


def wait_until_ready(url: str, service: subprocess.Popen[bytes]) -> None:
    """Ask until the service answers."""
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/ready").close()
            return
        except OSError:
            if service.poll() is not None:
                raise SystemExit("the service stopped") from None
            time.sleep(0.2)
    raise SystemExit("the service is not ready")


def drain(url: str) -> None:
    """Wait until nothing waits for an answer."""
    while b"ehrseq_waiting 0.0" not in urllib.request.urlopen(f"{url}/metrics").read():
        time.sleep(0.2)


def family(pid: int) -> list[int]:
    """A process and those that it started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *sorted(int(child) for file in tasks for child in file.read_text().split())]


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """The most memory that a process had, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    sys.exit(main())
