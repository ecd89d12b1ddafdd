"""On a GPU: the network that a CPU gives, bfloat16 near it, training that goes on where it stopped, two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ehrseq.estimator import ProgressionModel
from ehrseq.model import module
from tests.model.test_checkpoint import Interrupted, stop_after
from tests.model.test_several_processes import PLAIN, as_one_process
from tests.toy import CONFIG, TASK, cohort, day

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
HALF = replace(PLAIN, training=replace(PLAIN.training, bfloat16=True))
# NCCL refuses two processes on one GPU, so they exchange their gradients through gloo
FIT = """
import os, sys
import pytorch_lightning.strategies.ddp as ddp
from tests.model import test_gpu
from tests.toy import TASK, cohort
from ehrseq.estimator import ProgressionModel
ddp._get_default_process_group_backend_for_device = lambda device: "gloo"
model = ProgressionModel(getattr(test_gpu, sys.argv[2])).fit(cohort(), TASK)
model.save(f"{sys.argv[1]}/model-{os.environ['RANK']}")
"""


@pytest.fixture(scope="module")
def timelines():
    return cohort()


def probabilities(model, timelines):
    return model.forecast(timelines, day(1000)).risk["probability"].to_numpy()


@pytest.fixture(scope="module")
def on_gpu(timelines):
    return ProgressionModel(PLAIN).fit(timelines, TASK)


def test_the_model_of_a_cpu(timelines, on_gpu, monkeypatch):
    devices = []
    step = module.ProgressionModule.training_step
    monkeypatch.setattr(
        module.ProgressionModule, "training_step", lambda self, *a: devices.append(self.device.type) or step(self, *a)
    )
    torch.cuda.manual_seed(12345)  # not where the fit before left it
    random = torch.cuda.get_rng_state()
    again = ProgressionModel(PLAIN).fit(timelines, TASK)
    assert set(devices) == {"cuda"}
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert np.array_equal(probabilities(again, timelines), probabilities(on_gpu, timelines))  # the same seed
    devices.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = ProgressionModel(PLAIN).fit(timelines, TASK)
    assert set(devices) == {"cpu"}
    np.testing.assert_allclose(on_cpu.fitted_.history, on_gpu.fitted_.history, rtol=1e-4)
    np.testing.assert_allclose(probabilities(on_cpu, timelines), probabilities(on_gpu, timelines), atol=1e-4)


def test_bfloat16_is_near(timelines, on_gpu):
    half = ProgressionModel(HALF).fit(timelines, TASK)
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in half.fitted_.networks[0].parameters())
    apart = np.abs(probabilities(half, timelines) - probabilities(on_gpu, timelines))
    assert 0 < apart.max() < 5e-3


def test_an_interrupted_fit_goes_on_to_the_same_model(timelines, tmp_path):
    # with dropout, which is drawn on the GPU
    config = replace(CONFIG, model="transformer", training=replace(CONFIG.training, max_epochs=3, bfloat16=True))
    whole = ProgressionModel(config).fit(timelines, TASK)
    with pytest.raises(Interrupted):
        ProgressionModel(config).fit(timelines, TASK, report=stop_after(1), checkpoint=tmp_path / "training")
    again = ProgressionModel(config).fit(timelines, TASK, checkpoint=tmp_path / "training")
    assert again.fitted_.history == whole.fitted_.history
    assert np.array_equal(probabilities(again, timelines), probabilities(whole, timelines))


def together(script: Path, folder: Path, config: str) -> list[dict[str, torch.Tensor]]:
    """The weights that each of two processes ends with, each a machine of one GPU to `torchrun`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1")
    where = ("--master_addr", "127.0.0.1", "--master_port", port)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    started = [
        subprocess.Popen(
            [*launch, *where, "--node_rank", rank, str(script), str(folder), config],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in "01"
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0].decode()[-2000:] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return [load_file(folder / f"model-{rank}" / "weights.safetensors") for rank in "01"]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fit.py"
    path.write_text(FIT)
    return path


def test_two_processes_equal_one_with_the_batches_of_both(timelines, tmp_path, script, monkeypatch):
    two, other = together(script, tmp_path, "PLAIN")
    as_one_process(monkeypatch)
    for name, tensor in ProgressionModel(PLAIN).fit(timelines, TASK).fitted_.networks[0].state_dict().items():
        if not name.endswith("edges"):
            assert torch.equal(two[f"0.{name}"], other[f"0.{name}"]), name
            torch.testing.assert_close(two[f"0.{name}"], tensor, atol=2e-5, rtol=1e-4, msg=name)


def test_two_processes_in_bfloat16_end_alike(tmp_path, script):
    two, other = together(script, tmp_path, "HALF")
    assert two.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in two.items())
