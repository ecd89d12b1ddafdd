"""Two processes that train together give the network that one gives with the batches of both in each step."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ehrseq.estimator import ProgressionModel
from ehrseq.model import module
from tests.toy import CONFIG, TASK, cohort

# without dropout, which the processes draw apart
PLAIN = replace(
    CONFIG,
    model="transformer",
    network=replace(CONFIG.network, dropout=0.0, summary_dropout=0.0),
    training=replace(CONFIG.training, max_epochs=2, tokens_per_batch=256),
)
FIT = """
import os, sys
from tests.model.test_several_processes import PLAIN
from tests.toy import TASK, cohort
from ehrseq.estimator import ProgressionModel
ProgressionModel(PLAIN).fit(cohort(), TASK).save(f"{sys.argv[1]}/model-{os.environ['RANK']}")
"""


def as_one_process(monkeypatch):
    """One process takes the steps of two: both their batches in each."""
    trainer = module.lightning.Trainer
    batches = module.LandmarkBatches.__iter__

    def pairs(self):  # the same batches: two processes leave out an odd last one
        found = list(batches(self))
        yield from found if self.fixed else found[: len(found) // 2 * 2]

    monkeypatch.setattr(module.LandmarkBatches, "__iter__", pairs)
    monkeypatch.setattr(module.lightning, "Trainer", lambda **kw: trainer(accumulate_grad_batches=2, **kw))
    configure = module.ProgressionModule.configure_optimizers

    def half_as_many_steps(self):
        self.batches_per_epoch /= 2
        return configure(self)

    monkeypatch.setattr(module.ProgressionModule, "configure_optimizers", half_as_many_steps)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed training")
def test_two_processes_equal_one_with_the_batches_of_both(tmp_path, monkeypatch):
    script = tmp_path / "fit.py"
    script.write_text(FIT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run([*launch, str(script), str(tmp_path)], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    two, other = (load_file(tmp_path / f"model-{rank}" / "weights.safetensors") for rank in (0, 1))

    as_one_process(monkeypatch)
    one = ProgressionModel(PLAIN).fit(cohort(), TASK).fitted_.networks[0].state_dict()
    fresh = ProgressionModel(replace(PLAIN, training=replace(PLAIN.training, learning_rate=0.0))).fit(cohort(), TASK)
    moved = 0.0
    for name, tensor in one.items():
        if name.endswith("edges"):
            continue
        assert torch.equal(two[f"0.{name}"], other[f"0.{name}"]), name
        torch.testing.assert_close(two[f"0.{name}"], tensor, atol=2e-5, rtol=1e-4, msg=name)
        moved = max(moved, float((tensor - fresh.fitted_.networks[0].state_dict()[name]).abs().max()))
    assert moved > 1e-3  # training did something that could differ
