"""From an export to a judged model and a list of people at high risk: an analytics pipeline.

python examples/pipeline.py EXPORT TASK.toml WORK 2024-01-01
"""

import sys
from pathlib import Path

import polars as pl

import ehrseq as es


def run(export: str, task: str, work: str, at: str, config: es.ModelConfig | None = None) -> pl.DataFrame:
    """Ingest, look at the cohort, fit, judge, score; returns who is at highest risk of each outcome, and why."""
    folder = Path(work)
    timelines = es.ingest(export, folder / "timelines").load()
    print(es.build_cohort(timelines, es.Task.from_toml(task)).summary())
    model = es.fit_model(timelines, task, folder / "model", config=config)
    print(es.evaluate_export(folder / "model", timelines, folder / "report").summary())
    risk = es.score_export(timelines, folder / "model", folder / "forecasts", at=at).risk
    longest = pl.col("horizon_days") == pl.col("horizon_days").max()
    high = risk.filter(longest).sort("probability", descending=True).group_by("outcome", maintain_order=True).head(20)
    span = model.task_.horizons[-1].label
    whys = [
        model.explain(timelines, at, patient=rows["patient"].to_list(), outcome=o, horizon=span, kinds=["code"])
        for (o,), rows in high.group_by("outcome")
    ]
    why = (
        pl.concat(e.reasons(3) for e in whys).group_by("patient", "outcome").agg(reasons=pl.col("text").str.join("; "))
    )
    high = high.select("patient", "outcome", "probability", "competing").join(
        why, on=["patient", "outcome"], how="left"
    )
    high.write_csv(folder / "high_risk.csv")
    return high


if __name__ == "__main__":
    run(*sys.argv[1:5])
