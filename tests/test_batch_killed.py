"""Batch scoring that is killed: nothing is lost or doubled, with one process or two, from timelines or an export."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ehrseq.config import ModelConfig
from ehrseq.estimator import ProgressionModel
from ehrseq.forecast.table import Forecast
from ehrseq.score import score_export
from ehrseq.storage import lock_folder
from ehrseq.synthetic import write_simulation
from ehrseq.timeline import pieces
from ehrseq.timeline.build import read_fhir
from tests import test_batch
from tests.test_batch import PIECE, content, read_lines
from tests.toy import CONFIG

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no SIGKILL")
work = test_batch.work  # the fixture

KILLED = """
import json, os, sys, time
from pathlib import Path
import torch
import ehrseq.batch, ehrseq.estimator, ehrseq.score
from ehrseq.timeline import pieces
pieces.SUBJECTS = {piece}
real, mine = ehrseq.batch.do, set()

def in_turn(job, loaded, advance):
    # what a piece takes is less than what another process takes to begin
    real(job, loaded, advance)
    folder, last = Path(job["folder"]), time.monotonic() + 120
    mine.add(folder.name)
    while not {{p.name for p in folder.parent.iterdir() if p.name.isdigit()}} - mine and time.monotonic() < last:
        time.sleep(0.02)

# forked before anything has run: a fresh process each time, without the seconds of the imports
for line in sys.stdin:
    child = os.fork()
    if not child:
        out, how = json.loads(line)
        if how["workers"] > 1:
            ehrseq.batch.do = in_turn
        ehrseq.score.score_export({source!r}, {model!r}, out, **how)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Killing:
    """Scores a source again and again, each time in a new process."""

    def __init__(self, source, model, **how):
        code = KILLED.format(piece=PIECE // 2, source=str(source), model=str(model))
        self.how = how
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def start(self, out):
        self.process.stdin.write(json.dumps([str(out), self.how]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def ended(self):
        return int(self.process.stdout.readline())

    def whole(self, out):
        """Score to the end; the seconds it takes."""
        begun = time.monotonic()
        self.start(out)
        assert self.ended() == 0
        return time.monotonic() - begun

    def killed(self, out, ready):
        """Kill a run when it is ready; whether it was not done by then, and how many parts were."""
        child = self.start(out)
        ready()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        killed = self.ended() == signal.SIGKILL.value
        if killed:  # those that worked for it end a little later
            os.close(lock_folder(out.parent / f".{out.name}.lock", patience=120))
        return killed, len(parts_of(out))


def parts_of(out):
    return [p for p in (out.parent / f".{out.name}.score" / "parts").glob("*") if p.name.isdigit()]


def test_killed_at_ten_random_moments_nothing_is_lost_or_doubled(work, tmp_path):
    chance = random.Random(0)
    killed, kept = 0, []
    with Killing(work / "timelines", work / "model", workers=1) as run:
        run.whole(tmp_path / "warm")
        takes = run.whole(tmp_path / "whole")
        while killed < 10:
            was, parts = run.killed(tmp_path / "killed", lambda: time.sleep(chance.uniform(0, takes)))
            killed += was
            kept.append(parts)
            if (tmp_path / "killed").exists():
                assert content(tmp_path / "killed") == content(tmp_path / "whole")
        run.whole(tmp_path / "killed")
    assert max(kept) > 1  # else nothing was cut off that could be lost
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "warm", "whole"]
    risk = Forecast.load(tmp_path / "killed").risk
    assert not risk.select("subject_id", "prediction_time", "outcome", "horizon_days").is_duplicated().any()
    assert Path(tmp_path / "killed" / "manifest.json").is_file()


def test_killed_while_two_processes_work(work, tmp_path, monkeypatch):
    def both():
        last = time.monotonic() + 120
        while len(parts_of(tmp_path / "killed")) < 2 and time.monotonic() < last:
            time.sleep(0.01)

    with Killing(work / "timelines", work / "model", workers=2) as run:
        was, parts = run.killed(tmp_path / "killed", both)
        assert was
        assert parts >= 2
        run.whole(tmp_path / "killed")
    monkeypatch.setattr(pieces, "SUBJECTS", PIECE // 2)
    score_export(work / "timelines", work / "model", tmp_path / "whole", workers=1)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "whole"]


def test_killed_while_a_raw_export_becomes_fhir(tmp_path):
    write_simulation(tmp_path / "s", 60, seed=3)
    timelines, task = read_fhir(tmp_path / "s" / "export"), tmp_path / "s" / "task.toml"
    ProgressionModel(ModelConfig(CONFIG.network, CONFIG.training, CONFIG.boosted, "boosted", 1)).fit(
        timelines, task
    ).save(tmp_path / "model")
    chance, killed = random.Random(1), 0
    with Killing(tmp_path / "s" / "export", tmp_path / "model", workers=1, file_format="fhir") as run:
        takes = run.whole(tmp_path / "whole")
        while killed < 3:
            killed += run.killed(tmp_path / "killed", lambda: time.sleep(chance.uniform(0, takes)))[0]
        run.whole(tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert len(read_lines(tmp_path / "killed" / "RiskAssessment.ndjson")) > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "model", "s", "whole"]
