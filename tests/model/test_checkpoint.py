"""An interrupted fit goes on to the model it would have given; a loss that is not finite leaves the last good state."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import polars as pl
import pytest
import torch

from ehrseq.errors import TrainingError, UserError
from ehrseq.estimator import ProgressionModel
from ehrseq.model.checkpoint import Checkpoint, State
from ehrseq.model.module import ProgressionModule
from tests.toy import CONFIG, TASK, cohort, day

NETWORKS = replace(CONFIG, model="transformer", training=replace(CONFIG.training, max_epochs=3, members=2, patience=3))


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def few_moments():
    """What comes after the networks is not resumed: as little of it as there can be."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ehrseq.model.path_fitting.QUERIES", 200)
        yield


@pytest.fixture(scope="module")
def timelines():
    return cohort(90)


@pytest.fixture(scope="module")
def whole(timelines):
    return ProgressionModel(NETWORKS).fit(timelines, TASK)


def stop_after(calls):
    """A report that interrupts the fit at the given call."""
    left = [calls]

    def report(epoch, loss):
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted

    return report


def same(a: ProgressionModel, b: ProgressionModel, timelines) -> None:
    assert a.fitted_.history == b.fitted_.history
    risk = [model.forecast(timelines, day(1000)).risk for model in (a, b)]
    assert risk[0].equals(risk[1])


@pytest.mark.parametrize("epochs", [1, 4])
def test_an_interrupted_fit_goes_on_to_the_same_model(timelines, whole, tmp_path, epochs):
    folder = tmp_path / "training"
    with pytest.raises(Interrupted):
        ProgressionModel(NETWORKS).fit(timelines, TASK, report=stop_after(epochs), checkpoint=folder)
    seen = []
    again = ProgressionModel(NETWORKS).fit(
        timelines, TASK, report=lambda epoch, _: seen.append(epoch), checkpoint=folder
    )
    same(whole, again, timelines)
    assert len(seen) == sum(map(len, whole.fitted_.history)) - epochs  # and no epoch twice


def test_a_member_that_has_stopped_early_stays_stopped(timelines, tmp_path):
    eager = replace(NETWORKS, training=replace(NETWORKS.training, max_epochs=8, patience=2, learning_rate=0.1))
    whole = ProgressionModel(eager).fit(timelines, TASK)
    first = len(whole.fitted_.history[0])
    assert first < 8
    for epochs in (first - 1, first):  # while it waits, and once it has stopped
        folder = tmp_path / str(epochs)
        with pytest.raises(Interrupted):
            ProgressionModel(eager).fit(timelines, TASK, report=stop_after(epochs), checkpoint=folder)
        same(whole, ProgressionModel(eager).fit(timelines, TASK, checkpoint=folder), timelines)


def test_a_finished_fit_is_not_run_again(timelines, whole, tmp_path):
    ProgressionModel(NETWORKS).fit(timelines, TASK, checkpoint=tmp_path / "training")
    seen = []
    again = ProgressionModel(NETWORKS).fit(
        timelines, TASK, report=lambda epoch, _: seen.append(epoch), checkpoint=tmp_path / "training"
    )
    assert seen == []
    same(whole, again, timelines)


def test_the_state_of_another_run_or_a_damaged_one_is_not_used(timelines, tmp_path):
    folder = tmp_path / "training"
    ProgressionModel(NETWORKS).fit(timelines, TASK, checkpoint=folder)
    with pytest.raises(Interrupted):
        ProgressionModel(NETWORKS, seed=1).fit(timelines, TASK, report=stop_after(0), checkpoint=folder)
    with pytest.raises(Interrupted):
        ProgressionModel(NETWORKS).fit(cohort(91), TASK, report=stop_after(0), checkpoint=folder)
    file = folder / "member-0.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(Interrupted):
        ProgressionModel(NETWORKS).fit(timelines, TASK, report=stop_after(0), checkpoint=folder)


def test_a_checkpoint_is_not_written_over_other_files(timelines, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="an output folder"):
        ProgressionModel(NETWORKS).fit(timelines, TASK, checkpoint=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_state(timelines, whole, tmp_path, monkeypatch):
    folder = tmp_path / "training"
    losses = ProgressionModule.losses

    def broken(self, batch):
        return losses(self, batch) * (torch.nan if len(self.history) == 2 else 1)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressionModule, "losses", broken)
        with pytest.raises(TrainingError, match="not finite"):
            ProgressionModel(NETWORKS).fit(timelines, TASK, checkpoint=folder)
    again = ProgressionModel(NETWORKS).fit(timelines, TASK, checkpoint=folder)
    assert again.fitted_.history[0][:2] == whole.fitted_.history[0][:2]
    same(whole, again, timelines)


def test_a_state_comes_back_as_it_was(tmp_path):
    checkpoint = Checkpoint.open(tmp_path / "training", {"a": 1})
    assert checkpoint.load(0) is None
    checkpoint.save(0, State({"x": torch.arange(3)}, {"n": [0.1, 2**80]}))
    kept = Checkpoint.open(tmp_path / "training", {"a": 1}).load(0)
    assert kept is not None
    assert kept.tensors["x"].tolist() == [0, 1, 2]
    assert kept.facts == {"n": [0.1, 2**80]}
    assert Checkpoint.open(tmp_path / "training", {"a": 2}).load(0) is None
    assert pl.Series([p.name for p in (tmp_path / "training").iterdir()]).sort().to_list() == [
        "manifest.json",
        "member-0.safetensors",
    ]


def test_the_state_of_the_same_events_with_other_follow_up_or_origin_is_not_used(timelines, tmp_path):
    folder = tmp_path / "training"
    ProgressionModel(NETWORKS).fit(timelines, TASK, checkpoint=folder)
    end = pl.col("follow_up_end") - pl.duration(days=1)
    shorter = replace(timelines, subjects=timelines.subjects.with_columns(follow_up_end=end))
    with pytest.raises(Interrupted):
        ProgressionModel(NETWORKS).fit(shorter, TASK, report=stop_after(0), checkpoint=folder)
    starts = [ProgressionModel(NETWORKS, seed=seed).fit(timelines) for seed in (0, 1)]
    starts[0].adapt(timelines, TASK, config=NETWORKS, checkpoint=folder)
    with pytest.raises(Interrupted):
        starts[1].adapt(timelines, TASK, config=NETWORKS, report=stop_after(0), checkpoint=folder)


def test_a_fit_that_is_terminated_does_not_end_as_a_success(timelines):
    def report(epoch, loss):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        ProgressionModel(NETWORKS).fit(timelines, TASK, report=report)
    assert ended.value.code == 128 + signal.SIGTERM


def test_a_fit_that_is_interrupted_says_so_and_can_be_interrupted_again(timelines):
    def report(epoch, loss):
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            ProgressionModel(NETWORKS).fit(timelines, TASK, report=report)
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_fit_leaves_an_accelerator_without_double_precision_alone(timelines, whole, monkeypatch):
    from lightning_fabric.accelerators.mps import MPSAccelerator

    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    same(whole, ProgressionModel(NETWORKS).fit(timelines, TASK), timelines)
