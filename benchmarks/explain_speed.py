"""How long explanations take, in CPU seconds of one thread.

    python benchmarks/explain_speed.py MODEL TIMELINES [--cohort 1000] [--outcome diabetes] [--horizon 5y]

MODEL and TIMELINES are folders (`ehrseq fit`, `ehrseq ingest`). Explained are: one subject at a time, with events,
codes and windows taken out (the median history, and the longest of the cohort); then the cohort by codes and windows,
and with events too. Loading is counted apart. Run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

import ehrseq as es


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return round(time.process_time() - start, 2), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("timelines", type=Path)
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--horizon", help="by default all of the task's")
    options = parser.parse_args()
    loading, (model, timelines) = seconds(lambda: (es.load_model(options.model), es.Timelines.load(options.timelines)))
    print(json.dumps({"load": loading, "branch": model.fitted_.branches[0], "members": len(model.fitted_.networks)}))
    times = model.forecast(timelines, at="task", branch="null").risk.select("patient", "prediction_time").unique()
    last = times.sort("prediction_time").unique("patient", keep="last").sort("patient")
    cohort = last.sample(min(options.cohort, last.height), seed=0)
    sizes = model.explain(timelines, cohort, branch="null", kinds=["window"], horizon="1y").scope.sort("events")
    middle, longest = sizes.row(sizes.height // 2, named=True), sizes.row(-1, named=True)
    for name, row in (("warm", middle), ("median", middle), ("longest", longest)):
        at = pl.DataFrame({"patient": [row["patient"]], "prediction_time": [row["prediction_time"]]})
        took, found = seconds(
            lambda at=at: model.explain(timelines, at, patient=at["patient"][0], horizon=options.horizon)
        )
        copies = found.contributions.select("kind", "code", "window", "time", "known_time", "text_value").n_unique()
        forecast, _ = seconds(lambda at=at: model.forecast(timelines, at))
        print(
            json.dumps({name: took, "events": row["events"], "taken_out": copies, "forecast_alone": forecast}),
            flush=True,
        )
    for kinds in (("code", "window"), ("event", "code", "window")):
        took, found = seconds(
            lambda kinds=kinds: model.explain(timelines, cohort, kinds=kinds, horizon=options.horizon)
        )
        print(
            json.dumps({"cohort": cohort.height, "kinds": kinds, "seconds": took, "rows": found.contributions.height}),
            flush=True,
        )


if __name__ == "__main__":
    main()
