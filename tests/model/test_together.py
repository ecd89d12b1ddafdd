"""Networks that several processes fit are those that one fits; nothing of the patients is left on the way."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from ehrseq.errors import TrainingError, WorkerError
from ehrseq.estimator import ProgressionModel
from ehrseq.model import members, together
from ehrseq.timeline.hierarchy import with_code_parents
from ehrseq.timeline.pool import Pool, processes
from ehrseq.timeline.worker import PARENT
from tests.toy import CONFIG, TASK, cohort

HYBRID = replace(CONFIG, training=replace(CONFIG.training, members=2))
NETWORKS = replace(HYBRID, model="transformer")


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    """However small a fit, several processes share it; as little as there can be of what comes after."""
    monkeypatch.setattr(together, "MUCH", 0)
    monkeypatch.setattr("ehrseq.model.path_fitting.QUERIES", 200)


@pytest.fixture(scope="module")
def timelines():
    """With ancestors, which the other processes must know of too."""
    parents = {"code": ["ICD10CM//y", "ICD10CM//z"], "parent": ["ICD10CM//x", "ICD10CM//x"]}
    return with_code_parents(cohort(90), parents)


@pytest.fixture
def trained(monkeypatch):
    """The seeds of the networks that this process trained for at least an epoch."""
    seeds = []

    def train(module, training, tuning, report=None, start=None, keep=None):
        if start is None:
            seeds.append(training.rng.bit_generator.seed_seq.entropy)
        return real(module, training, tuning, report, start, keep)

    real = members.train
    monkeypatch.setattr(members, "train", train)
    return seeds


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("task", [TASK, None])
def test_several_processes_give_the_model_of_one_and_leave_no_patient_in_a_file(
    timelines, trained, tmp_path, monkeypatch, task
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said, seen = {1: [], 2: []}, set()
    for workers in said:

        def report(epoch, loss, to=said[workers]):
            to.append((epoch, loss))
            seen.update(path.name for path in tmp_path.glob("ehrseq-*/**/*") if path.is_file())

        model = ProgressionModel(HYBRID if task is not None else NETWORKS)
        model.fit(timelines, task, report=report, workers=workers).save(tmp_path / str(workers))
    assert sorted(trained) in ([0, 0, 1000], [0, 1000, 1000])  # both, and then one of the two
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert sorted(said[1]) == sorted(said[2])
    assert "manifest.json" in seen
    assert seen <= {"manifest.json", *(f"member-{m}.{end}" for m in range(2) for end in ("safetensors", "new"))}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_an_interrupted_fit_ends_the_processes_and_goes_on_with_one(timelines, trained, tmp_path, monkeypatch):
    started = []

    class Watched(Pool):
        def listen(self):
            return []  # this process's own epochs alone

        def stop(self):
            started.extend(self._started)
            super().stop()

    def interrupt(epoch, _):
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(together, "Pool", Watched)
    with pytest.raises(KeyboardInterrupt):
        ProgressionModel(NETWORKS).fit(timelines, TASK, report=interrupt, checkpoint=tmp_path, workers=2)
    assert [process.poll() for process in started] == [-signal.SIGKILL]
    (own,) = trained
    again = ProgressionModel(NETWORKS).fit(timelines, TASK, checkpoint=tmp_path, workers=1)
    assert own not in trained[1:]  # it went on from the first epoch
    whole = ProgressionModel(NETWORKS).fit(timelines, TASK, workers=1)
    assert again.fitted_.history == whole.fitted_.history


def test_what_goes_wrong_in_another_process_is_told_as_here(timelines, trained, monkeypatch):
    monkeypatch.setattr(together, "do", lambda *_: None)  # in this one nothing does
    wild = replace(NETWORKS, training=replace(NETWORKS.training, learning_rate=1e30))
    with pytest.raises(TrainingError, match="the loss is not finite"):
        ProgressionModel(wild).fit(timelines, TASK, workers=2)
    assert trained == []  # and is not tried again


def test_another_plan_in_another_process_is_an_error(timelines, monkeypatch):
    real = together._job

    def job(plan, timelines, splits, file):
        return real(plan, timelines, splits.with_columns(pl.col("split").reverse()), file)

    monkeypatch.setattr(together, "_job", job)
    with pytest.raises(WorkerError, match="worker processes that finish"):
        ProgressionModel(NETWORKS).fit(timelines, TASK, workers=2)


def test_a_table_of_codes_with_a_row_for_each_parent_and_a_seed_of_numpy_are_the_same_elsewhere(trained, tmp_path):
    pairs = pl.DataFrame({"code": ["ICD10CM//y"] * 2, "parent_codes": [["ICD10CM//x"], ["ICD10CM//z"]]})
    timelines = cohort(90)
    timelines = replace(timelines, metadata={**timelines.metadata, "codes": pairs})
    ProgressionModel(NETWORKS, seed=np.int64(3)).fit(timelines, TASK, workers=2).save(tmp_path / "model")
    assert len(trained) == 1


@pytest.mark.parametrize("why", ["no room", "little room", "no JSON"])
def test_what_cannot_be_handed_over_is_fitted_here(timelines, trained, tmp_path, monkeypatch, why):
    task = TASK
    if why == "no room":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    elif why == "little room":
        files = []

        class Full(io.BytesIO):
            def write(self, content):
                files.append(self)
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(together, "TemporaryFile", lambda **_: Full())
    else:
        times = replace(TASK.prediction_times, rule="table", after_start=(), times=(("p1", date(2012, 1, 1)),))
        task = replace(TASK, prediction_times=times)
    model = ProgressionModel(NETWORKS).fit(timelines, task, workers=2)
    assert sorted(trained) == [0, 1000]
    assert len(model.fitted_.networks) == 2
    assert why != "little room" or files[0].closed


def test_a_process_that_ends_early_is_told(timelines, monkeypatch):
    class Ending(Pool):
        def run(self, *args, **kwargs):
            for result in super().run(*args, **kwargs):
                for process in self._started:
                    process.kill()
                yield result

    started = time.monotonic()
    monkeypatch.setattr(together, "Pool", Ending)
    with pytest.raises(WorkerError, match="worker processes that finish"):
        ProgressionModel(replace(NETWORKS, training=replace(NETWORKS.training, members=3))).fit(
            timelines, TASK, workers=2
        )
    assert time.monotonic() - started < 60


def test_an_interrupt_at_the_terminal_is_not_for_the_others(tmp_path):
    (tmp_path / "grouped.py").write_text(
        "import os\nfrom ehrseq.timeline.worker import main\nmain(lambda *_: [os.getpgrp(), os.getppid()])\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(tmp_path))
        with Pool(2, do=lambda *_: time.sleep(0.2), module="grouped") as pool:
            found = [told for told in pool.run([{}, {}], None) if told is not None]
            (process,) = pool._started
    assert found == [[process.pid, os.getpid()]]


@pytest.mark.parametrize(("what", "told"), [("TrainingError('x')", TrainingError), ("OSError('x')", WorkerError)])
def test_an_error_elsewhere_is_told_during_a_long_job_here(tmp_path, what, told):
    (tmp_path / "failing.py").write_text(
        "from ehrseq.errors import TrainingError\nfrom ehrseq.timeline.worker import main\n"
        f"def do(*_): raise {what}\nmain(do)\n"
    )

    def long(*_):
        last = time.monotonic() + 60
        while time.monotonic() < last:
            pool.listen()
            time.sleep(0.05)

    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(tmp_path))
        with Pool(2, do=long, module="failing") as pool, pytest.raises(told):
            list(pool.run([{}, {}], None))


def test_a_process_ends_where_the_one_that_started_it_is_gone():
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    environment = os.environ | {PARENT: gone.stdout.decode().strip()}
    command = [sys.executable, "-m", "ehrseq.timeline.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        assert process.wait(30) == 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system knows no affinity")
def test_the_cores_are_those_that_may_be_used():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert processes(None) == 1
    finally:
        os.sched_setaffinity(0, cores)


def test_a_job_that_is_no_json_is_told_before_anything_begins():
    with Pool(2, do=lambda *_: None) as pool:
        with pytest.raises(TypeError):
            list(pool.run([{"date": date(2020, 1, 1)}, {}], None))
        assert not pool._started


@pytest.mark.parametrize("why", ["little", "gpu", "many", "long", "double", "adapting", "wide"])
def test_one_process_fits_where_several_would_not_pay(timelines, monkeypatch, why):
    def refused(*_, **__):
        raise AssertionError("another process was started")

    monkeypatch.setattr(together, "_fit_together", refused)
    config, model = NETWORKS, ProgressionModel(NETWORKS)
    if why == "adapting":
        model.fit(timelines, None, workers=1)
        assert len(model.adapt(timelines, TASK).fitted_.networks) == 2
        return
    if why == "little":
        monkeypatch.setattr(together, "MUCH", 1 << 40)
    if why == "gpu":
        monkeypatch.setattr(together, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)))
    if why == "many":
        monkeypatch.setattr(together, "MANY", len(timelines))
    if why == "long":
        monkeypatch.setattr(together, "MANY_EVENTS", timelines.events.height)
    if why == "double":
        monkeypatch.setattr(together.torch, "get_default_dtype", lambda: torch.float64)
    if why == "wide":
        monkeypatch.setattr(together, "NARROW", config.network.width)
    assert len(model.fit(timelines, TASK, workers=2).fitted_.networks) == 2
