"""The main job on simulated people, from export to judged forecasts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrseq.config import ModelConfig
from ehrseq.errors import UserError
from ehrseq.figures import style
from ehrseq.forecast.plot import draw_curves, outcome_colours
from ehrseq.forecast.table import Forecast
from ehrseq.score import evaluate_export, fit_model, score_export
from ehrseq.synthetic import write_simulation
from ehrseq.task.definition import Task
from ehrseq.timeline.ingest import ingest

PLOTTED = 6


def run_demo(
    out: str | Path,
    n_subjects: int = 2000,
    *,
    seed: int = 0,
    config: ModelConfig | None = None,
    say: Callable[[str], object] = print,
) -> dict[str, Path]:
    """Simulate an export, read it, fit, forecast, evaluate and plot; everything lands under `out`.

    Returns the paths by name. `say` receives a text at each step; the last two say where the forecasts and the plot
    are. Raises UserError where there are too few subjects to fit, and where `out` holds something else.
    """
    out = Path(out)
    paths = {name: out / name for name in ("simulation", "timelines", "model", "evaluation", "forecasts")} | {
        "plot": out / "risk_curves.png"
    }
    say(f"1/6 simulating a FHIR export of {n_subjects:,} people whose true risks are known")
    write_simulation(paths["simulation"], n_subjects, seed=seed)
    say("2/6 reading the export into timelines")
    timelines = ingest(paths["simulation"] / "export", paths["timelines"]).load()
    say(f"    {len(timelines):,} people, {timelines.events.height:,} events")
    task = Task.from_toml(paths["simulation"] / "task.toml")
    say(f"3/6 fitting networks and boosted hazards to forecast {', '.join(o.name for o in task.outcomes)}")

    def report(epoch: int, loss: float) -> None:
        say(f"    epoch {epoch}: tuning loss {loss:.4f}")

    config = config or ModelConfig(seed=seed)
    model = fit_model(timelines, task, paths["model"], config=config, report=report)
    seen = pl.Series(model.seen_in_training(timelines.subjects["subject_id"].to_numpy()))
    others = timelines.select(timelines.subjects["subject_id"].filter(~seen))
    starts = " and ".join(h.label for h in task.prediction_times.after_start)
    say(f"4/6 forecasting the {len(others):,} people kept apart from fitting, {starts} into their follow-up")
    stored = score_export(others, model, paths["forecasts"], at="task")
    times = stored.counts["prediction_times"]
    say(f"    {times:,} prediction times; who was not scored, for which outcome and why: skipped.parquet")
    say("5/6 judging these forecasts by what happened, beside an age-sex and a null model\n")
    say(evaluate_export(model, timelines, paths["evaluation"]).summary())
    say("\n6/6 plotting risk curves beside the truth, which only a simulation knows\n")
    forecast = model.forecast(others, "task")  # with its whole curves, which no folder holds
    plot_beside_truth(forecast, pl.read_parquet(paths["simulation"] / "truth.parquet"), paths["plot"])
    for name in ("simulation", "timelines", "model"):
        say(f"{name}: {paths[name]}")
    say(f"evaluation: {paths['evaluation'] / 'report.html'}")
    say(f"forecasts: {paths['forecasts'] / 'risk.parquet'}")
    say(f"plot: {paths['plot']}")
    return paths


def plot_beside_truth(forecast: Forecast, truth: pl.DataFrame, path: Path) -> None:
    """Risk curves of a few patients (lines) beside their true incidences (dots), from low forecast risk to high.

    `truth` has `patient`, `prediction_time`, `outcome`, `horizon_days` and `probability`. Raises UserError where no
    forecast is at a prediction time of the truth.
    """
    from matplotlib.figure import Figure

    chosen = _from_low_to_high(forecast, truth)
    colours = outcome_colours(truth["outcome"].to_list())
    with style():
        figure = Figure(figsize=(9, 6), layout="constrained")
        panels = figure.subplots(2, PLOTTED // 2, sharex=True, sharey=True).ravel()
        for axis, (patient, time) in zip(panels, chosen.iter_rows(), strict=False):
            mine = (pl.col("patient") == patient) & (pl.col("prediction_time") == time)
            curves = forecast.curves(patient).filter(pl.col("prediction_time") == time)
            shown = truth.filter(mine, pl.col("outcome").is_in(curves["outcome"].unique().implode()))
            draw_curves(axis, curves, shown, colours)
            axis.set_title(f"{patient}, {time:%Y-%m-%d}{_unscored(forecast.skipped.filter(mine))}", fontsize=8)
            axis.label_outer()
        for axis in panels[chosen.height :]:
            axis.set_visible(False)
        # shared axes: a limit that is set while drawing would cut later, higher panels off
        panels[0].set_ylim(bottom=0)
        handles = _legend(panels)
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=len(colours),
        )  # fmt: skip
        figure.suptitle(
            "Simulated patients, from low to high risk: forecast cumulative incidence (lines) and the truth (dots).\n"
            "The truth knows the patients' hidden states; a forecast knows their records.",
            fontsize=10,
        )
        figure.savefig(path)


def _from_low_to_high(forecast: Forecast, truth: pl.DataFrame) -> pl.DataFrame:
    """`patient`, `prediction_time` of a few first forecasts, evenly from the lowest to the highest largest risk."""
    first = forecast.risk.filter(pl.col("prediction_time") == pl.col("prediction_time").min().over("patient"))
    first = first.group_by("patient", "prediction_time").agg(pl.col("probability").max())
    known = truth.select("patient", "prediction_time").unique()
    ranked = first.join(known, on=["patient", "prediction_time"]).sort("probability", "patient")
    if not ranked.height:
        raise UserError("forecasts at the truth's prediction times", "none", "simulate more subjects")
    places = np.unique(np.linspace(0, ranked.height - 1, PLOTTED).round().astype(int))
    return ranked[places].select("patient", "prediction_time")


def _unscored(skipped: pl.DataFrame) -> str:
    """A second title line that says which curves are missing, and why."""
    missing = [f"{outcome.replace('_', ' ')}: {reason.replace('_', ' ')}" for outcome, reason in _pairs(skipped)]
    return "".join(f"\n{text}" for text in missing)


def _pairs(skipped: pl.DataFrame) -> list[tuple[str, str]]:
    return list(skipped.drop_nulls("outcome").select("outcome", "reason").iter_rows())


def _legend(panels: Any) -> dict[str, Any]:
    """Handles by label over all panels: each outcome's line, and its dots below it."""
    found: dict[str, Any] = {}
    for axis in panels:
        handles, labels = axis.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    # matplotlib fills a legend column by column
    return dict(sorted(found.items()))
