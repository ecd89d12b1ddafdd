"""Whole jobs on folders: fit, score an export, evaluate, inspect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from ehrseq.config import ModelConfig
from ehrseq.errors import EvaluationError, UserError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.evaluate.evaluation import Evaluation, evaluate_forecasts
from ehrseq.forecast.table import Forecast, check_format
from ehrseq.storage import MANIFEST, check_target, read_json
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
    """Fit a progression model and save it to the folder `out`.

    `report(epoch, tuning_loss)` is called after each epoch. Raises UserError, before fitting, where `out` is taken.
    """
    check_target(out, "model")
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
    `ProgressionModel.forecast`; `file_format` "parquet" or "csv". Returns the Forecast. Raises UserError.
    """
    check_format(file_format)
    if out is not None:
        check_target(out, "forecast")
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
    null model. A forecast folder is judged at the times it has, with `task` or the task it was made for. Subjects
    that the model was fitted on are left out, and counted in the result's `facts`. Raises EvaluationError where nothing
    can be judged.
    """
    if out is not None:
        check_target(out, "evaluation")
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
        task = _task_of(forecast)
    elif not isinstance(task, Task):
        task = Task.from_toml(task)
    # the skipped as well: at risk and without a forecast is `unscored`
    asked = (f.select("subject_id", "prediction_time") for f in (forecast.risk, forecast.skipped))
    queries = pl.concat(asked).unique().sort("subject_id", "prediction_time")
    known = queries.join(timelines.subjects, on="subject_id", how="semi", maintain_order="left")
    labels = label(known, occurrences(timelines, task), timelines.subjects, task).with_columns(
        landmark=pl.lit(None, pl.String)
    )
    labels = labels.filter(pl.col("outcome").is_in(forecast.risk["outcome"].unique().implode()))
    labels = labels.join(forecast.seen, on="subject_id", how="anti", maintain_order="left")
    if not labels["at_risk"].any():
        raise EvaluationError(
            "forecasts of subjects whom the model was not fitted on, and who are followed after their prediction time",
            f"none among {queries.height:,} prediction times",
            "score again with an earlier prediction time, or judge them by later data",
        )
    horizons = {h.label: h.days for h in task.horizons}
    name = str(forecast.metadata.get("model", "forecast"))
    result = evaluate_forecasts({name: forecast.risk}, labels, horizons, n_bootstrap=n_bootstrap, seed=seed)
    result.facts.update(
        subjects=queries["subject_id"].n_unique(),
        not_in_timelines=queries["subject_id"].n_unique() - known["subject_id"].n_unique(),
        seen_in_training=forecast.seen.height,
    )
    return result


def _task_of(forecast: Forecast) -> Task:
    """The task that forecasts were made for; their prediction times are their own, so that its rule may be withheld."""
    content = forecast.metadata.get("task")
    if not isinstance(content, dict):
        raise EvaluationError("a forecast folder that holds its task", "none", "give the task file")
    times = content.get("prediction_times") or {"rule": "every_encounter"}
    return Task.from_dict({**content, "prediction_times": times})


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
            "model": model.config.model,
            "outcomes": model.fitted_.events,
            "horizons": [h.label for h in model.task_.horizons],
            "codes": len(model.fitted_.vocabulary.codes),
            "parameters": sum(p.numel() for n in model.fitted_.networks[:1] for p in n.parameters()),
            "members": len(model.fitted_.networks),
            "trained_on": dict(model.trained_on_["split"].value_counts().sort("split").iter_rows()),
            "tuning_loss": [min(losses) for losses in model.fitted_.history],
        }
    if kind == "forecast":
        forecast = Forecast.load(folder)
        return {
            "kind": kind,
            "rows": forecast.risk.height,
            "subjects": forecast.risk["subject_id"].n_unique(),
            "mean_probability": _means(forecast.risk),
            "skipped": dict(forecast.skipped["reason"].value_counts().sort("reason").iter_rows()),
        }
    raise UserError(
        "a timelines, model or forecast folder",
        (f"a folder of kind '{kind}'" if kind else "another folder") if folder.is_dir() else "no such folder",
        "check the path",
    )


def _means(risk: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Mean probability by outcome and horizon; a horizon of years has a day more or less, by the leap years in it."""
    by_horizon = risk.with_columns(
        horizon=pl.col("horizon_days").rank("dense").over("subject_id", "prediction_time", "outcome")
    )
    means = (
        by_horizon.group_by("outcome", "horizon")
        .agg(pl.col("horizon_days").median(), pl.col("probability").mean())
        .sort("outcome", "horizon")
    )
    found: dict[str, dict[str, float]] = {}
    for outcome, _, days, probability in means.iter_rows():
        found.setdefault(outcome, {})[f"{days:g} days"] = round(probability, 4)
    return found


def _kind(folder: Path) -> str | None:
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        kind = manifest.get("kind") if isinstance(manifest, dict) else None
        return kind if isinstance(kind, str) else None
    if is_ours(folder) or any((folder / "data").glob("**/*.parquet")):
        return "timelines"
    return None
