"""Batch scoring: subjects a second, what each stage costs, and memory, for a cohort and for many copies of it.

    python benchmarks/scoring.py TIMELINES MODEL --out FOLDER [--copies 1 10] [--workers 2]

TIMELINES and MODEL are folders of `ehrseq ingest` and `ehrseq fit`. For each number of copies the subjects are written
that often, under new ids, to FOLDER, and scored end to end by `score_export` in a process of its own (its start, the
reading of the model and the writing of the output included); then once more in one process with a clock on each stage.
Prints JSON (on Linux): wall and CPU seconds, subjects a second of each, peak memory of all processes together, and each
stage's share of the CPU time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from ehrseq.timeline.store import Timelines

RUN = """
import json, re, resource, sys, time
from ehrseq.score import score_export
source, model, out, workers = sys.argv[1:]
done = score_export(source, model, out, workers=int(workers))
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
# this process's own most; `ru_maxrss` would count what the process had that started it
own = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
# the children's figure is that of the largest: with two processes, this one and one more, the sum is exact
print(json.dumps({"cpu_seconds": sum(u.ru_utime + u.ru_stime for u in used),
                  "peak_mb": (own + used[1].ru_maxrss) / 1024, "counts": done.counts}))
"""


def copied(timelines: Timelines, copies: int) -> Timelines:
    """The same people that often: ids that are new, and fall into other shards."""
    events, subjects = [], []
    for number in range(copies):
        new = (pl.col("subject_id") // 32 + number * 2**58).cast(pl.Int64) if number else pl.col("subject_id")
        events.append(timelines.events.with_columns(subject_id=new))
        name = pl.col("patient") + f"-{number}"
        subjects.append(timelines.subjects.with_columns(subject_id=new, patient=name))
    out = Timelines(pl.concat(events), pl.concat(subjects), metadata=timelines.metadata)
    if out.subjects["subject_id"].n_unique() < copies * len(timelines):
        raise SystemExit("two copies have the same id")
    return out


class Stages:
    """CPU seconds by stage, each without those within it that are another's."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.stack: list[tuple[str, float]] = []

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Put a clock on a function, wherever it is looked up."""
        real: Callable[..., Any] = owner[name] if isinstance(owner, dict) else getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            self.switch(stage)
            try:
                return real(*given, **named)
            finally:
                self.switch(None)

        if isinstance(owner, dict):
            owner[name] = timed
        else:
            setattr(owner, name, timed)

    def switch(self, stage: str | None) -> None:
        """Another stage begins, or (None) the one within which this one ran goes on."""
        now = time.process_time()
        if self.stack:
            name, since = self.stack[-1]
            self.seconds[name] += now - since
            self.stack[-1] = (name, now)
        if stage is None:
            self.stack.pop()
            if self.stack:
                self.stack[-1] = (self.stack[-1][0], now)
        else:
            self.stack.append((stage, now))


def shares(source: Path, model: Path, out: Path) -> dict[str, float]:
    """Share of the CPU time of each stage, in one process."""
    import ehrseq.batch
    import ehrseq.estimator
    import ehrseq.explaining
    import ehrseq.forecast.labs
    import ehrseq.forecast.predict
    import ehrseq.model.fitted as fitted
    from ehrseq.features.labs import LabEvents
    from ehrseq.features.tabular import Tabulator
    from ehrseq.forecast.files import FORMATS
    from ehrseq.model.boosted import BoostedHazard
    from ehrseq.model.labs import Labs
    from ehrseq.timeline.pieces import Folder
    from ehrseq.tokens.batch import Batches

    stages = Stages()
    for owner, name, stage in (
        (Folder, "read", "read"), (Folder, "pieces", "read"), (ehrseq.explaining, "screen", "who can be scored"),
        (ehrseq.forecast.predict, "encode", "features"),
        (ehrseq.forecast.labs, "linear_features", "features"), (Tabulator, "__init__", "features"),
        (Tabulator, "rows", "features"), (Batches, "__init__", "features"), (Batches, "collate", "features"),
        (LabEvents, "of", "features"), (LabEvents, "features", "features"),
        (fitted, "predict_log_hazards", "network"), (BoostedHazard, "log_hazard", "trees"),
        (Labs, "quantiles", "lab network"), (ehrseq.forecast.labs, "_measured", "incidence"),
        (ehrseq.estimator, "risk_table", "incidence"), (ehrseq.estimator, "labs_table", "lab tables"),
        (ehrseq.estimator.ProgressionModel, "observed", "drift"), (FORMATS, "parquet", "write"),
        (ehrseq.batch, "_join", "write"), (ehrseq.estimator, "load_model", "model"),
    ):  # fmt: skip
        stages.watch(owner, name, stage)
    stages.switch("rest")
    ehrseq.batch.score_population(source, model, out, workers=1)
    stages.switch(None)
    total = sum(stages.seconds.values())
    return {name: round(seconds / total, 3) for name, seconds in stages.seconds.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("timelines", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    original = Timelines.load(options.timelines)
    for copies in options.copies:
        source, out = options.out / f"timelines-{copies}", options.out / f"forecasts-{copies}"
        if not source.exists():
            copied(original, copies).save(source)
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-c", RUN, source, options.model, out, options.workers]
        begun = time.perf_counter()
        told = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
        wall = time.perf_counter() - begun
        found = json.loads(told)
        subjects = copies * len(original)
        found |= {"subjects": subjects, "wall_seconds": wall, "subjects_a_second": subjects / wall}
        found["subjects_a_cpu_second"] = subjects / found["cpu_seconds"]
        print(json.dumps(found), flush=True)
    print(
        json.dumps({"shares": shares(options.out / f"timelines-{options.copies[0]}", options.model, options.out / "s")})
    )


if __name__ == "__main__":
    main()
