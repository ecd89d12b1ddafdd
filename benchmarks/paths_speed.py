"""Sampling with cached keys and values against reading the whole history anew at every step, at 512 events of history.

    python benchmarks/paths_speed.py [--events 512] [--subjects 2] [--paths 32] [--until 2y]

Both run the same sampler with the same random numbers on made-up subjects, and must give the same paths. Printed: CPU
seconds of each, their ratio, and events a second. The default network, in float64, one process.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import torch

import ehrseq as es
from ehrseq.forecast import dynamics as module
from ehrseq.model.cache import Cache

TASK = {
    "horizons": ["1y", "3y"],
    "outcomes": {"illness": {"codes": ["SNOMED//1"], "competing": ["death"]}, "death": {"codes": ["MEDS_DEATH"]}},
    "prediction_times": {"rule": "landmarks", "after_start": ["2y"]},
}
START = datetime(2010, 1, 1)


class Uncached:
    """As `Cache`, but everything is read anew at each step: the history and what the path has added to it."""

    def __init__(self, network, batch, n_paths, limit) -> None:
        n = batch.code.shape[1]
        shape = (len(batch.code), n_paths)
        self.network = network
        self.x = network.embed_events(batch)[:, None].expand(*shape, n, -1)
        self.real = (batch.code > 0)[:, None].expand(*shape, n)
        self.mask = batch.mask[:, None, :n, :n].expand(*shape, n, n)

    def advance(self, events, n_new, query):
        """Add a moment's events, and read everything."""
        s, p, n = events.shape[:3]
        old = self.x.shape[2]
        new = torch.arange(n) < n_new[..., None]
        self.real = torch.cat([self.real, new], dim=2)
        rows = self.real[:, :, None].expand(s, p, n, old + n).clone()
        rows[..., old:] |= torch.eye(n, dtype=torch.bool)
        unseen = self.mask.new_zeros(s, p, old, n)
        self.mask = torch.cat([torch.cat([self.mask, unseen], dim=3), rows], dim=2)
        self.x = torch.cat([self.x, events], dim=2)
        return self.read(query)

    def read(self, query):
        """What the network makes of each path at its query."""
        s, p, n = self.x.shape[:3]
        asks = torch.cat([self.real, self.real.new_ones(s, p, 1)], dim=2)[:, :, None]
        mask = torch.cat([torch.cat([self.mask, self.mask.new_zeros(s, p, n, 1)], dim=3), asks], dim=2).flatten(0, 1)
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf).unsqueeze(1)
        x = torch.cat([self.x, query.unsqueeze(2)], dim=2).flatten(0, 1)
        for i, block in enumerate(self.network.blocks):
            first = n if i == len(self.network.blocks) - 1 else 0
            x = block(x, bias[:, :, first:], first)
        return self.network.norm(x)[:, 0].view(s, p, -1)

    def keep(self, subject, path) -> None:
        """Keep some subjects and paths."""
        self.x, self.real, self.mask = (x[subject[:, None], path] for x in (self.x, self.real, self.mask))


def cohort(n: int, events: int, n_long: int) -> es.Timelines:
    """`n` subjects to fit on, and `n_long` more with `events` dated events before 2013."""
    rng = np.random.default_rng(0)
    rows, subjects = [], []
    for i in range(n + n_long):
        long = i >= n
        end = 3000.0 if long else rng.uniform(1200, 3000)
        birth = START - timedelta(days=365.25 * rng.uniform(40, 70))
        times = np.sort(rng.uniform(0, 1000, events)) if long else np.sort(rng.uniform(0, end, rng.integers(10, 60)))
        for t in times.round(2):
            value = float(rng.normal(5, 2))
            code = f"LOINC//{rng.integers(20)}"
            rows.append((i, START + timedelta(days=float(t)), code, value, "u"))
        if not long and rng.random() < 0.4:
            rows.append((i, START + timedelta(days=rng.uniform(100, end)), "SNOMED//1", None, None))
        died = START + timedelta(days=end) if not long and rng.random() < 0.3 else None
        if died:
            rows.append((i, died, "MEDS_DEATH", None, None))
        subjects.append((i, f"p{i}", birth, died, START, START + timedelta(days=end)))
    names = ["subject_id", "patient", "birth_time", "death_time", "follow_up_start", "follow_up_end"]
    return es.Timelines.from_events(
        pl.DataFrame(rows, ["subject_id", "time", "code", "numeric_value", "unit"], orient="row"),
        pl.DataFrame(subjects, names, orient="row", infer_schema_length=None),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=512)
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--paths", type=int, default=32)
    parser.add_argument("--until", default="1y")
    options = parser.parse_args()
    torch.set_num_threads(1)
    timelines = cohort(300, options.events, options.subjects)
    config = es.ModelConfig(model="transformer", network=es.NetworkConfig(max_events=options.events))
    config = replace(config, training=replace(config.training, max_epochs=1, members=1))
    model = es.ProgressionModel(config).fit(timelines.select(range(300)), es.Task.from_dict(TASK))
    few = timelines.select(range(300, 300 + options.subjects))
    forecast = model.forecast(few, START + timedelta(days=1000))
    seconds, tables = {}, {}
    for name, cache in (("cached", Cache), ("uncached", Uncached)):
        module.Cache = cache
        begun = time.process_time()
        tables[name] = forecast.paths(options.paths, options.until)
        seconds[name] = time.process_time() - begun
    same = tables["cached"].drop("numeric_value").equals(tables["uncached"].drop("numeric_value"))
    if not same:
        raise SystemExit("cached and uncached sampling gave different paths")
    n = tables["cached"].height
    print(f"{options.subjects} subjects with {options.events} events, {options.paths} paths each until {options.until}")
    for name, spent in seconds.items():
        print(f"{name}: {spent:.2f} CPU seconds, {n / spent:,.0f} events a second")
    print(f"ratio {seconds['uncached'] / seconds['cached']:.1f}; the paths are the same ({n} events)")


if __name__ == "__main__":
    main()
