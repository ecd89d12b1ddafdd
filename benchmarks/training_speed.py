"""How fast the networks train on one core: tokens a second, and the share of the core's matrix-multiply rate.

    python benchmarks/training_speed.py [--data FOLDER_WITH_nafld_fhir] [--width 96 256] [--batches 60] [--repeat 3]
    python benchmarks/training_speed.py --device cuda --size base large [--data ...]

Trains a network of each width (other settings are the defaults) for some batches of real steps - drawing
landmarks, collating, forward, backward, clipping, optimiser - in one thread, on NAFLD or, without data, on 2,000
simulated people. Prints one JSON object a width: tokens a second (events and queries, padding not counted),
floating-point operations a second (as counted by torch over forward and backward, padding included as it is computed;
of fused attention on a CPU as two products forward and four backward, without the one that it does again),
the rate of a 1,024-square matrix product in the same run, before and after, their ratio, and where the time goes. CPU
time of the process, which other work on the machine disturbs less than wall time. On a GPU the presets named are
measured instead, by the clock: in single precision, and in bfloat16 against the rate of an 8,192-square bfloat16
product.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import ehrseq as es
from ehrseq.model import plan
from ehrseq.model.heads import hazard_names, interval_edges
from ehrseq.model.members import _set_base_rates, _set_scales
from ehrseq.model.module import LandmarkBatches, ProgressionModule, TrainingBatch
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.sample import Labeller
from ehrseq.task.outcome import occurrences
from ehrseq.task.split import split_subjects
from ehrseq.tokens.batch import Batches

FUSED = {  # what torch counts nothing for
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: 2 * sdpa_flop_count(q, k, v)
    ),
}


def now(device: str) -> float:
    """CPU seconds of the process; with a GPU, seconds by the clock at which it has nothing left to do."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(device: str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Floating-point operations a second of a square matrix product."""
    n, at_once = (1024, 1) if device == "cpu" else (8192, 50)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in "ab")
    a @ b
    start, done = now(device), 0
    while now(device) - start < seconds:
        for _ in range(at_once):
            a @ b
        done += at_once
    return done * 2 * n**3 / (now(device) - start)


def prepare(
    timelines: es.Timelines, task: es.Task, config: es.ModelConfig
) -> tuple[ProgressionModule, LandmarkBatches]:
    """The training plan of one network, as `fit` makes it."""
    splits = split_subjects(timelines, seed=config.seed)
    vocabulary = plan.learn_vocabulary(timelines, splits, config)
    part = plan.split_parts(timelines, splits, vocabulary)["train"]
    edges = interval_edges(task.max_horizon_days + 2, config.network.intervals)
    auxiliary = plan.auxiliary_codes(vocabulary, config.training.auxiliary_codes)
    index = plan.code_indices(vocabulary, auxiliary)
    labeller = Labeller(occurrences(timelines, task), timelines.subjects, task, hazard_names(task.outcomes), index)

    def draw(rng: Any) -> Any:
        return part.draw(rng, config.training.landmarks_per_subject, labeller, auxiliary=True)

    batches = Batches(part.encoded, len(vocabulary.summary_codes), config.network.max_events)
    passes = LandmarkBatches(batches, draw, config.training.tokens_per_batch, config.seed, redraw=True)
    torch.manual_seed(config.seed)
    network = ProgressionNetwork(vocabulary, config.network, len(labeller.hazards), edges, len(auxiliary))
    sample = draw(passes.rng)
    _set_base_rates(network.head, sample, edges, 0)
    _set_scales(network, batches, sample)
    n_batches = max(1.0, (len(part.encoded.code) + len(sample.row)) / config.training.tokens_per_batch)
    return ProgressionModule(network, config.training, part.years / n_batches, n_batches), passes


def endless(passes: LandmarkBatches) -> Iterator[TrainingBatch]:
    """Batches of one epoch after the other."""
    while True:
        yield from passes


def measure(
    module: ProgressionModule, passes: LandmarkBatches, n_batches: int, repeat: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Figures of `n_batches` optimiser steps, the median of `repeat` runs."""
    module.to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    module.network.train()
    stream = endless(passes)
    for _ in range(5):  # warm up
        step(module, next(stream).to(torch.device(device)), optimizer, {}, device, dtype)
    runs = []
    for _ in range(repeat):
        rate = [matmul_rate(device, dtype)]
        spent: dict[str, float] = {}
        tokens, batches, start = 0, [], now(device)
        for _ in range(n_batches):
            began = now(device)
            batch = next(stream).to(torch.device(device))
            spent["draw and collate"] = spent.get("draw and collate", 0.0) + now(device) - began
            tokens += int((batch.inputs.code > 0).sum() + (batch.inputs.query >= 0).sum())
            batches.append(batch)
            step(module, batch, optimizer, spent, device, dtype)
        seconds = now(device) - start
        rate.append(matmul_rate(device, dtype))
        with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
            for batch in batches:
                module.training_step(batch, 0).backward()
        share = counter.get_total_flops() / seconds / statistics.mean(rate)
        runs.append((share, tokens / seconds, counter.get_total_flops() / seconds, rate, spent, seconds))
    share, per_second, flops, rate, spent, seconds = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
    return {
        "share_of_matmul_rate": round(share, 3),
        "all_runs": [round(run[0], 3) for run in runs],
        "tokens_per_second": round(per_second),
        "gigaflops": round(flops / 1e9, 2),
        "matmul_gigaflops": [round(r / 1e9, 1) for r in rate],
        "stage_share": {name: round(value / seconds, 3) for name, value in spent.items()},
    }


def step(
    module: ProgressionModule, batch: TrainingBatch, optimizer: Any, spent: dict[str, float], device: str,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """One optimiser step; adds the seconds of its stages to `spent`."""
    moments = [now(device)]
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        loss = module.training_step(batch, 0)
    moments.append(now(device))
    loss.backward()
    moments.append(now(device))
    torch.nn.utils.clip_grad_norm_(module.network.parameters(), module.config.gradient_clip)
    optimizer.step()
    optimizer.zero_grad()
    moments.append(now(device))
    for name, begin, end in zip(("forward", "backward", "optimiser"), moments, moments[1:], strict=False):
        spent[name] = spent.get(name, 0.0) + end - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--width", type=int, nargs="+", default=[es.NetworkConfig().width, 256])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", nargs="+", default=["base", "large"], help="presets to measure on a GPU")
    parser.add_argument("--tokens", type=int, default=es.TrainingConfig().tokens_per_batch, help="tokens a batch")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            es.write_simulation(Path(folder) / "simulation", 2000, seed=0)
            source, task = Path(folder) / "simulation" / "export", Path(folder) / "simulation" / "task.toml"
        else:
            source, task = options.data / "nafld_fhir", Path(__file__).parents[1] / "examples" / "nafld.toml"
        timelines, task = es.read_fhir(source), es.Task.from_toml(task)
    default = es.ModelConfig()
    if options.device == "cpu":
        training = replace(default.training, tokens_per_batch=options.tokens)
        networks = [replace(default.network, width=width) for width in options.width]
        runs = [(replace(default, network=network, training=training), torch.float32) for network in networks]
    else:
        both = (torch.float32, torch.bfloat16)
        runs = [(es.ModelConfig.of_size(size), dtype) for size in options.size for dtype in both]
    for config, dtype in runs:
        module, passes = prepare(timelines, task, config)
        found = measure(module, passes, options.batches, options.repeat, options.device, dtype)
        tokens = config.training.tokens_per_batch
        of = {"width": config.network.width, "precision": str(dtype), "tokens_a_batch": tokens}
        print(json.dumps(of | found, indent=1), flush=True)


if __name__ == "__main__":
    main()
