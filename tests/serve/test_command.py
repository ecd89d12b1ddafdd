"""`ehrseq serve`: what it needs, and what it says where something is missing."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from ehrseq.cli import main
from tests.serve.conftest import free_port

ONE_LINE = re.compile(r"ehrseq: expected [^\n]*; found [^\n]*; [^\n]*\n")


@pytest.fixture
def refused(monkeypatch, capfd):
    def one(*arguments):
        monkeypatch.setattr(sys, "argv", ["ehrseq", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        told = capfd.readouterr().err
        assert ONE_LINE.fullmatch(told), told
        return told

    return one


SERVED = """
import sys
from pathlib import Path

from ehrseq.estimator import load_model
from ehrseq.serve.run import serve
from ehrseq.serve.settings import Settings

folder, port, log = sys.argv[1:]
serve(load_model(folder), Settings(port=int(port), access_log=Path(log)))
"""


@pytest.mark.parametrize(
    ("workers", "sent"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (2, signal.SIGINT), (2, signal.SIGKILL)]
)
def test_it_answers_until_it_is_interrupted_or_killed(simulated, tmp_path, workers, sent):
    port, log = free_port(), tmp_path / "access.ndjson"
    command = [sys.executable, "-m", "ehrseq", "serve", simulated.folder, "--port", str(port), "--access-log", log,
               "--workers", str(workers)]  # fmt: skip
    if not workers:  # a model that is no folder: nothing else is started
        command = [sys.executable, "-c", SERVED, simulated.folder, str(port), log]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        if workers:
            assert f"http://127.0.0.1:{port}/" in service.stdout.readline()
        # one client, and pauses: else who asks takes the processor from who begins
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            reply = None
            while reply is None:
                assert service.poll() is None
                try:
                    reply = client.post("/forecast", json=simulated.some(1)[0])
                except httpx.ConnectError:
                    time.sleep(0.05)
            assert reply.status_code == 200
            facts = client.get("/model").json()
        assert ("## Fitted on" in (facts.get("card") or "")) == (workers > 0)
        deadline = time.monotonic() + 30
        while len(log.read_text().splitlines()) < 2:  # a line is written when its answer is on its way
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tasks = Path(f"/proc/{service.pid}/task").glob("*/children")
        scoring = [Path(f"/proc/{pid}") for file in tasks for pid in file.read_text().split()]
    finally:
        service.send_signal(sent)
        _, told = service.communicate(timeout=60)
    assert told == ""
    assert len(scoring) == workers
    deadline = time.monotonic() + 30
    while any(process.exists() for process in scoring):  # they end by themselves
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(log.read_text().splitlines()) == 2


def test_a_model_folder_that_is_half_written(refused, simulated, tmp_path):
    shutil.copytree(simulated.folder, tmp_path / "model")
    weights = tmp_path / "model" / "boosted.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "different bytes" in refused(tmp_path / "model")
    weights.unlink()
    assert "no such file" in refused(tmp_path / "model")
    assert "found no such folder" in refused(tmp_path / "nowhere")


def test_others_are_not_let_in_without_credentials(refused, simulated, tmp_path):
    assert "a token file or a key set" in refused(simulated.folder, "--host", "0.0.0.0")
    assert "a token file" in refused(simulated.folder, "--token-file", tmp_path / "none")


def test_a_port_that_is_taken(refused, simulated):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert "a free address and port" in refused(
            simulated.folder, "--port", listening.getsockname()[1], "--workers", 1
        )


def test_without_the_libraries(simulated):
    """In a process of its own, which has not loaded them."""
    steps = (
        "import sys",
        "sys.modules['jwt'] = None",
        "from ehrseq.cli import main",
        "sys.argv = ['ehrseq', 'serve', 'm']",
        "main()",
    )
    done = subprocess.run([sys.executable, "-c", "; ".join(steps)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert ONE_LINE.fullmatch(done.stderr), done.stderr
    assert "pip install '.[serve]'" in done.stderr
