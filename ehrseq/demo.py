"""The main job on simulated people, from export to judged forecasts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from ehrseq.errors import UserError
from ehrseq.figures import style
from ehrseq.forecast.plot import draw_curves
from ehrseq.forecast.table import Forecast
from ehrseq.score import evaluate_export, fit_model, score_export
from ehrseq.synthetic import write_simulation
from ehrseq.task.definition import Task
from ehrseq.timeline.ingest import ingest

PLOTTED = 6


def run_demo(
    out: str | Path, n_subjects: int = 2000, *, seed: int = 0, say: Callable[[str], object] = print
) -> dict[str, Path]:
    """Simulate an export, read it, fit, forecast, evaluate and plot; everything lands under `out`.

    Returns the paths by name. `say` receives a line at each step.
    """
    out = Path(out)
    paths = {name: out / name for name in ("simulation", "timelines", "model", "forecasts", "evaluation")} | {
        "plot": out / "risk_curves.png"
    }
    say(f"1/6 simulating a FHIR export of {n_subjects:,} people whose true risks are known")
    write_simulation(paths["simulation"], n_subjects, seed=seed)
    say("2/6 reading the export into timelines")
    timelines = ingest(paths["simulation"] / "export", paths["timelines"]).load()
    say(f"    {timelines}")
    task = Task.from_toml(paths["simulation"] / "task.toml")
    say("3/6 fitting the transformer on the training subjects")

    def report(epoch: int, loss: float) -> None:
        say(f"    epoch {epoch}: tuning loss {loss:.4f}")

    model = fit_model(timelines, task, paths["model"], report=report)
    say("4/6 forecasting the others at the task's prediction times")
    seen = pl.Series(model.seen_in_training(timelines.subjects["subject_id"].to_numpy()))
    others = timelines.select(timelines.subjects["subject_id"].filter(~seen))
    forecast = score_export(others, model, paths["forecasts"], at="task")
    say(f"    {forecast}")
    say("5/6 judging the forecasts by what happened")
    say(evaluate_export(model, timelines, paths["evaluation"]).summary())
    say("6/6 plotting risk curves beside the truth")
    plot_beside_truth(forecast, pl.read_parquet(paths["simulation"] / "truth.parquet"), paths["plot"])
    for name in ("forecasts", "evaluation", "model", "plot"):
        say(f"{name}: {paths[name]}")
    return paths


def plot_beside_truth(forecast: Forecast, truth: pl.DataFrame, path: Path) -> None:
    """Risk curves of a few patients (lines) beside their true incidences (dots), low risk to high."""
    from matplotlib.figure import Figure

    first = forecast.risk.group_by("patient").agg(pl.col("prediction_time").min(), pl.col("probability").max())
    known = first.join(truth.select("patient", "prediction_time").unique(), on=["patient", "prediction_time"])
    ranked = known.sort("probability", "patient")
    if not ranked.height:
        raise UserError("forecasts at the truth's landmarks", "none", "simulate more subjects")
    chosen = ranked.gather_every(max(1, ranked.height // PLOTTED)).head(PLOTTED)
    with style():
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        axes = figure.subplots(2, 3, sharey=True).ravel()
        for axis, (patient, time, _) in zip(axes, chosen.iter_rows(), strict=False):
            mine = (pl.col("patient") == patient) & (pl.col("prediction_time") == time)
            curves = forecast.curves(patient).filter(pl.col("prediction_time") == time)
            draw_curves(axis, curves, truth.filter(mine))
            axis.set_title(f"simulated patient {patient}", fontsize=8)
        figure.suptitle("Forecast cumulative incidence (lines) beside the true one (dots)")
        figure.savefig(path)
