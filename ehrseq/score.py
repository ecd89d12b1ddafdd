"""Whole jobs on folders: fit, score an export, evaluate, inspect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from ehrseq.config import ModelConfig
from ehrseq.errors import UserError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.evaluate.evaluation import Evaluation, evaluate_forecasts
from ehrseq.forecast.table import Forecast
from ehrseq.storage import MANIFEST, read_json
from ehrseq.task.definition import Task
from ehrseq.task.label import label
from ehrseq.task.outcome import occurrences
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.meds import is_ours
from ehrseq.timeline.store import Timelines, as_timelines


def fit_model(
    timelines: Any,
    task: Task | str | Path,
    out: str | Path,
    *,
    config: ModelConfig | None = None,
    report: Callable[[int, float], None] | None = None,
) -> ProgressionModel:
    """Fit a progression model and save it to the folder `out`."""
    model = ProgressionModel(config).fit(timelines, task, report=report)
    model.save(out)
    return model


def score_export(
    source: Any,
    model: ProgressionModel | str | Path,
    out: str | Path | None = None,
    *,
    at: Any = None,
    file_format: str = "parquet",
    progress: bool = False,
) -> Forecast:
    """Forecast everyone in a FHIR export or a timelines folder, and write the forecast folder `out`.

    `source` is what `read_fhir` reads, a timelines folder, a Timelines or an event frame; `at` as in
    `ProgressionModel.forecast`. Returns the Forecast.
    """
    fitted = model if isinstance(model, ProgressionModel) else load_model(model)
    forecast = fitted.forecast(open_timelines(source, progress=progress), at)
    if out is not None:
        forecast.save(out, file_format=file_format)
    return forecast


def open_timelines(source: Any, *, progress: bool = False) -> Timelines:
    """Timelines from a timelines (or MEDS) folder, an event frame or, failing these, a FHIR export."""
    if isinstance(source, str | Path):
        folder = Path(source)
        if is_ours(folder) or any((folder / "data").glob("**/*.parquet")):
            return Timelines.load(folder)
        return read_fhir(folder, progress=progress)
    return as_timelines(source)


def evaluate_export(
    judged: ProgressionModel | str | Path,
    timelines: Any,
    out: str | Path | None = None,
    *,
    task: Task | str | Path | None = None,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> Evaluation:
    """Judge a model folder, or a forecast folder with its task, against what happened; write the folder `out`.

    A model is judged at its task's prediction times on the subjects it was not fitted on, beside the age-sex and the
    null model. A forecast folder is judged at the times it has, with `task` or the task it was made for.
    """
    timelines = as_timelines(timelines)
    if isinstance(judged, str | Path) and _kind(Path(judged)) == "forecast":
        result = _evaluate_folder(Path(judged), timelines, task, n_bootstrap, seed)
    else:
        model = judged if isinstance(judged, ProgressionModel) else load_model(judged)
        other = Task.from_toml(task) if isinstance(task, str | Path) else task
        result = model.evaluate(timelines, other, n_bootstrap=n_bootstrap, seed=seed)
    if out is not None:
        result.save(out)
    return result


def _evaluate_folder(
    folder: Path, timelines: Timelines, task: Task | str | Path | None, n_bootstrap: int, seed: int
) -> Evaluation:
    forecast = Forecast.load(folder)
    if task is None:
        task = Task.from_dict(forecast.metadata["task"])
    elif not isinstance(task, Task):
        task = Task.from_toml(task)
    queries = forecast.risk.select("subject_id", "prediction_time").unique(maintain_order=True)
    queries = queries.join(timelines.subjects, on="subject_id", how="semi", maintain_order="left")
    labels = label(queries, occurrences(timelines, task), timelines.subjects, task).with_columns(
        landmark=pl.lit(None, pl.String)
    )
    labels = labels.filter(pl.col("outcome").is_in(forecast.risk["outcome"].unique().implode()))
    horizons = {h.label: h.days for h in task.horizons}
    name = str(forecast.metadata.get("model", "forecast"))
    result = evaluate_forecasts({name: forecast.risk}, labels, horizons, n_bootstrap=n_bootstrap, seed=seed)
    result.facts.update(seen_in_training=forecast.metadata.get("seen_in_training"))
    return result


def inspect(folder: str | Path) -> dict[str, Any]:
    """Plain facts about a timelines, model or forecast folder."""
    folder = Path(folder)
    kind = _kind(folder)
    if kind == "timelines":
        return {"kind": kind, **Timelines.load(folder).summary()}
    if kind == "model":
        model = load_model(folder)
        return {
            "kind": kind,
            "outcomes": model.events_,
            "horizons": [h.label for h in model.task_.horizons],
            "codes": len(model.vocabulary_.codes),
            "parameters": sum(p.numel() for p in model.networks_[0].parameters()),
            "members": len(model.networks_),
            "trained_on": dict(model.trained_on_["split"].value_counts().sort("split").iter_rows()),
            "tuning_loss": [min(losses) for losses in model.history_],
        }
    if kind == "forecast":
        forecast = Forecast.load(folder)
        return {
            "kind": kind,
            "rows": forecast.risk.height,
            "subjects": forecast.risk["subject_id"].n_unique(),
            "mean_probability": {
                f"{outcome} {days:g}d": round(p, 4)
                for outcome, days, p in forecast.risk.group_by("outcome", pl.col("horizon_days").round())
                .agg(pl.col("probability").mean())
                .sort("outcome", "horizon_days")
                .iter_rows()
            },
            "skipped": dict(forecast.skipped["reason"].value_counts().sort("reason").iter_rows()),
        }
    raise UserError(
        "a timelines, model or forecast folder", "another folder" if folder.is_dir() else "no such folder",
        "check the path",
    )  # fmt: skip


def _kind(folder: Path) -> str | None:
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        return str(manifest.get("kind")) if isinstance(manifest, dict) else None
    if is_ours(folder) or any((folder / "data").glob("**/*.parquet")):
        return "timelines"
    return None
