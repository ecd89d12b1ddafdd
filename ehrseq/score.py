"""Whole jobs on folders: fit, score an export, evaluate."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import polars as pl

from ehrseq.batch import score_population
from ehrseq.config import ModelConfig
from ehrseq.errors import EvaluationError, UserError
from ehrseq.evaluate.design import check_no_overlap
from ehrseq.evaluate.evaluation import Evaluation
from ehrseq.evaluate.groups import read_table, with_subject_ids
from ehrseq.evaluate.predictions import read_predictions
from ehrseq.evaluate.study import evaluate_study
from ehrseq.forecast.files import check_format
from ehrseq.forecast.stored import StoredForecast
from ehrseq.forecast.table import Forecast
from ehrseq.inspection import kind_of
from ehrseq.storage import MANIFEST, check_target, sha256_file
from ehrseq.task.definition import Task
from ehrseq.task.label import label
from ehrseq.task.outcome import occurrences
from ehrseq.task.times import prediction_times
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.meds import is_ours
from ehrseq.timeline.store import Timelines, as_timelines

if TYPE_CHECKING:
    from ehrseq.estimator import ProgressionModel


def fit_model(
    timelines: Any,
    task: Task | str | Path | None,
    out: str | Path,
    *,
    config: ModelConfig | None = None,
    start: ProgressionModel | str | Path | None = None,
    report: Callable[[int, float], None] | None = None,
    workers: int | None = None,
) -> ProgressionModel:
    """Fit a progression model and save it to the folder `out`; without a task, its networks alone (pretraining).

    With `start`, a model or its folder, that model is adapted to the task (`ProgressionModel.adapt`).
    `report(epoch, tuning_loss)` is called after each epoch; `workers` is as in `ProgressionModel.fit`, and one with
    `start`. Interrupted, the same call goes on from the last epoch, which is kept beside `out` until the model is
    written. Raises UserError, before fitting, where `out` is taken.
    """
    from ehrseq.estimator import ProgressionModel

    check_target(out, "model")
    training = Path(out).with_name(f".{Path(out).name}.training")
    if start is None:
        model = ProgressionModel(config).fit(timelines, task, report=report, checkpoint=training, workers=workers)
    elif task is None:
        raise UserError("a task to adapt the model to", "none", "give the task file")
    else:
        model = _loaded(start).adapt(timelines, task, config=config, report=report, checkpoint=training)
    if os.environ.get("RANK", "0") == "0":  # processes that trained together have the same model
        model.save(out)
        shutil.rmtree(training, ignore_errors=True)
    return model


def recalibrate_model(model: ProgressionModel | str | Path, timelines: Any, out: str | Path) -> ProgressionModel:
    """Set the level and slope of a model on another site's subjects and save it to the folder `out`.

    See `ProgressionModel.recalibrate`. Raises UserError, before anything else, where `out` is taken.
    """
    check_target(out, "model")
    recalibrated = _loaded(model).recalibrate(timelines)
    recalibrated.save(out)
    return recalibrated


@overload
def score_export(
    source: Any, model: ProgressionModel | str | Path, out: None = None, *, at: Any = None, branch: str | None = None,
    file_format: str = "parquet", workers: int | None = None, progress: bool = False,
) -> Forecast: ...  # fmt: skip


@overload
def score_export(
    source: Any, model: ProgressionModel | str | Path, out: str | Path, *, at: Any = None, branch: str | None = None,
    file_format: str = "parquet", workers: int | None = None, progress: bool = False,
) -> StoredForecast: ...  # fmt: skip


def score_export(
    source: Any,
    model: ProgressionModel | str | Path,
    out: str | Path | None = None,
    *,
    at: Any = None,
    branch: str | None = None,
    file_format: str = "parquet",
    workers: int | None = None,
    progress: bool = False,
) -> Forecast | StoredForecast:
    """Forecast everyone in a FHIR export or a timelines folder, and write the forecast folder `out`.

    `source` is what `read_fhir` reads, a timelines folder, a Timelines or an event frame; `at` and `branch` as in
    `ProgressionModel.forecast`; `file_format` "parquet", "csv" or "fhir". Without `out` the Forecast is made, and
    stays, in memory. With it, some thousand subjects are forecast at a time, by as many processes as `workers` says
    (default: one a core), so that memory does not grow with their number; interrupted, the same call goes on from what
    is done, and writes the same bytes. Then a StoredForecast is returned, with counts and what drift was found. Raises
    UserError.
    """
    if out is not None:
        return score_population(
            source, model, out, at=at, branch=branch, file_format=file_format, workers=workers, progress=progress
        )
    check_format(file_format)
    return _loaded(model).forecast(open_timelines(source, progress=progress), at, branch=branch)


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
    against: Sequence[str | Path] = (),
    by: Any = None,
    trained_on: Any = None,
) -> Evaluation:
    """Judge a model folder, a forecast folder or anyone's predictions against what happened; write the report `out`.

    A model is judged at its task's prediction times on the subjects it was not fitted on, beside the age-sex and the
    null model. A forecast folder, or a CSV or Parquet file of predictions (see `read_predictions`), is judged at the
    times it has, with `task` or the task it was made for, beside the folders and files `against` it. Subjects that a
    model was fitted on are left out, and counted in the result's `facts`.

    `by` is a table of further groups of subjects. `trained_on` is a table of the subjects (`patient` or `subject_id`)
    whom the predictions' model was trained on: EvaluationError where one of them is judged, or nothing can be judged.
    """
    if out is not None:
        check_target(out, "evaluation")
    timelines = as_timelines(timelines)
    if isinstance(judged, str | Path) and (Path(judged).is_file() or kind_of(Path(judged)) == "forecast"):
        result = _evaluate_tables([judged, *against], timelines, task, n_bootstrap, seed, by, trained_on)
    else:
        if against or trained_on is not None:
            raise EvaluationError(
                "predictions to compare, or whose training subjects to check", "a model folder",
                "score it first (`ehrseq score`), and evaluate the forecast folder",
            )  # fmt: skip
        other = Task.from_toml(task) if isinstance(task, str | Path) else task
        result = _loaded(judged).evaluate(timelines, other, n_bootstrap=n_bootstrap, seed=seed, by=by)
        if isinstance(judged, str | Path):
            facts = {"model_manifest_sha256": sha256_file(Path(judged) / MANIFEST)}
            result.study["provenance"] = {**result.study["provenance"], **facts}
    if out is not None:
        result.save(out)
    return result


def _loaded(model: ProgressionModel | str | Path) -> ProgressionModel:
    # predictions are judged, and folders inspected, without torch
    from ehrseq.estimator import load_model

    return load_model(model) if isinstance(model, str | Path) else model


def _evaluate_tables(
    sources: Sequence[str | Path],
    timelines: Timelines,
    task: Task | str | Path | None,
    n_bootstrap: int,
    seed: int,
    by: Any,
    trained_on: Any,
) -> Evaluation:
    """Judge forecast folders and files of predictions, the first beside the others, at the times that it has."""
    paths = [Path(s) for s in sources]
    forecasts = {p: Forecast.load(p) for p in paths if not p.is_file()}
    if not isinstance(task, Task):
        task = _task_of(forecasts.get(paths[0])) if task is None else Task.from_toml(task)
    risks, times, facts = _read_sources(paths, forecasts, timelines, [o.name for o in task.outcomes])
    queries = times.unique().sort("subject_id", "prediction_time")
    known = queries.join(timelines.subjects, on="subject_id", how="semi", maintain_order="left")
    seen = pl.concat([f.seen.select("subject_id") for f in forecasts.values()] or [known.clear().select("subject_id")])
    labels = label(_with_landmarks(known, timelines, task), occurrences(timelines, task), timelines.subjects, task)
    labels = labels.filter(pl.col("outcome").is_in(next(iter(risks.values()))["outcome"].unique().implode()))
    labels = labels.join(seen, on="subject_id", how="anti", maintain_order="left")
    if not labels["at_risk"].any():
        raise EvaluationError(
            "forecasts of subjects whom the model was not fitted on, and who are followed after their prediction time",
            f"none among {queries.height:,} prediction times",
            "score again with an earlier prediction time, or judge them by later data",
        )
    if trained_on is not None:
        trained = with_subject_ids(read_table(trained_on, "a table of training subjects"), timelines)
        check_no_overlap(trained["subject_id"], labels.filter("at_risk")["subject_id"])
    judged = labels.select(pl.col("subject_id").unique())
    risks = {name: risk.join(judged, on="subject_id", how="semi") for name, risk in risks.items()}
    files = (p if p.is_file() else p / MANIFEST for p in paths)
    hashes = {f"sha256 of {name}": sha256_file(file) for name, file in zip(risks, files, strict=True)}
    labs = {name: forecasts[path].labs for name, path in zip(risks, paths, strict=True) if path in forecasts}
    labs = {name: table.join(judged, on="subject_id", how="semi") for name, table in labs.items() if table.height}
    result = evaluate_study(
        risks, labels, timelines, task, n_bootstrap=n_bootstrap, seed=seed, by=by, labs=labs, provenance=hashes
    )
    result.facts.update(
        subjects=queries["subject_id"].n_unique(),
        not_in_timelines=queries["subject_id"].n_unique() - known["subject_id"].n_unique(),
        # a table from elsewhere does not tell whom its model was trained on
        **({"seen_in_training": seen["subject_id"].n_unique()} if forecasts or trained_on is not None else {}),
        **facts,
    )
    return result


def _read_sources(
    paths: Sequence[Path], forecasts: Mapping[Path, Forecast], timelines: Timelines, outcomes: list[str]
) -> tuple[dict[str, pl.DataFrame], pl.DataFrame, dict[str, int]]:
    """Risk tables by name, the prediction times of the first, and what was left out of files."""
    risks: dict[str, pl.DataFrame] = {}
    asked: list[pl.DataFrame] = []
    facts: dict[str, int] = {}
    for path in paths:
        if path in forecasts:
            forecast = forecasts[path]
            name, risk = str(forecast.metadata.get("model", "forecast")), forecast.risk
            # the skipped as well: at risk and without a forecast is `unscored`
            times = pl.concat(f.select("subject_id", "prediction_time") for f in (risk, forecast.skipped))
        else:
            name = path.stem
            risk, counts = read_predictions(path, timelines, outcomes)
            times = risk.select("subject_id", "prediction_time")
            facts |= {f"{name}_{count}": n for count, n in counts.items()}
        name = f"{name} ({len(risks) + 1})" if name in risks else name
        risks[name] = risk
        asked.append(times)
    return risks, asked[0], facts


def _with_landmarks(queries: pl.DataFrame, timelines: Timelines, task: Task) -> pl.DataFrame:
    """The queries with the names of the task's landmarks, where all of them are made at these; else without."""
    if task.prediction_times.rule == "landmarks":
        keys = ["subject_id", "prediction_time"]
        named = prediction_times(timelines, task).select(*keys, "landmark").unique(keys, keep="first")
        found = queries.join(named, on=keys, how="left", maintain_order="left")
        # a date for everyone is the landmark of a few by chance
        if not found["landmark"].null_count():
            return found
    return queries.with_columns(landmark=pl.lit(None, pl.String))


def _task_of(forecast: Forecast | None) -> Task:
    """The task that forecasts were made for; their prediction times are their own, so that its rule may be withheld."""
    content = None if forecast is None else forecast.metadata.get("task")
    if not isinstance(content, dict):
        raise EvaluationError("a task file, or a forecast folder that holds its task", "neither", "give the task file")
    times = content.get("prediction_times") or {"rule": "every_encounter"}
    return Task.from_dict({**content, "prediction_times": times})
