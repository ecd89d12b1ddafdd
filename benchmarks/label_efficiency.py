"""Few labels: a pretrained network that is adapted, beside the same networks and boosted hazards from scratch.

    python benchmarks/label_efficiency.py [--pretrain 8000] [--labels 250 1000 4000] [--people 3000] [--out FILE]

Networks are pretrained on simulated timelines, without a task. Then, for each number of labels, that many of these
subjects are all that the fit of the task sees: `adapt` goes on from the pretrained networks, `fit` begins anew; the
boosted branch is the same in both. Judged on `--people` others by the expected AUC under their true risks and by the
calibration error (see known_truth.py), means over outcomes, landmarks and horizons.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import polars as pl
from known_truth import OTHERS, cells

import ehrseq as es


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain", type=int, default=8000)
    parser.add_argument("--labels", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--people", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write label_efficiency.csv here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        es.write_simulation(folder / "fit", options.pretrain, seed=options.seed)
        es.write_simulation(folder / "others", options.people, seed=options.seed + OTHERS)
        timelines, others = (es.read_fhir(folder / part / "export") for part in ("fit", "others"))
        task = es.Task.from_toml(folder / "fit" / "task.toml")
        truth = pl.read_parquet(folder / "others" / "truth.parquet").rename({"probability": "truth"})
    began = time.process_time()
    pretrained = es.ProgressionModel(seed=options.seed).fit(timelines, workers=1)
    print(f"pretraining: {time.process_time() - began:.0f} CPU seconds", flush=True)
    found = []
    for labels in options.labels:
        few = timelines.select(timelines.subjects["subject_id"].sample(labels, seed=options.seed))
        for start in ("pretrained", "scratch"):
            began = time.process_time()
            model = (
                pretrained.adapt(few, task)
                if start == "pretrained"
                else es.ProgressionModel(seed=options.seed).fit(few, task, workers=1)
            )
            seconds = time.process_time() - began
            for branch in model.fitted_.branches:
                risk = model.forecast(others, at="task", branch=branch, lab_levels=()).risk
                found.append(
                    judged(risk, truth, branch) | {"labels": labels, "start": start, "cpu_seconds": round(seconds)}
                )
                print(found[-1], flush=True)
    table = pl.DataFrame(found)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, float_precision=4, tbl_hide_dataframe_shape=True):
        print(table)
    if options.out:
        table.write_csv(options.out)


def judged(risk: pl.DataFrame, truth: pl.DataFrame, branch: str) -> dict[str, object]:
    """Mean expected AUC and calibration error of one branch."""
    keys = ["patient", "prediction_time", "outcome", "horizon_days"]
    both = truth.join(risk.select(*keys, "probability"), on=keys)
    scores = pl.DataFrame(list(cells(both.rename({"probability": branch}), [branch])))
    return {"branch": branch, "rows": both.height, "auc": scores["auc"].mean(), "error": scores["error"].mean()}


if __name__ == "__main__":
    main()
