"""`ProgressionModel`: fit, forecast, evaluate, save, load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.config import ModelConfig
from ehrseq.errors import ArtifactError, EvaluationError, ForecastError
from ehrseq.evaluate.evaluation import Evaluation
from ehrseq.evaluate.study import evaluate_study
from ehrseq.forecast.labs import STANDARD, baseline_tables, check_levels, labs_table
from ehrseq.forecast.predict import check_branch, outcome_hazards
from ehrseq.forecast.screen import screen
from ehrseq.forecast.table import Forecast, risk_table
from ehrseq.model.artifact import Artifact, hashed_ids, load_artifact, save_artifact
from ehrseq.model.card import model_card
from ehrseq.model.fitted import Fitted
from ehrseq.model.fitting import fit_model
from ehrseq.model.labs import LEVELS
from ehrseq.task.definition import Horizon, Task
from ehrseq.task.label import label
from ehrseq.task.outcome import occurrences, with_dataset_descendants
from ehrseq.task.query import resolve_prediction_times
from ehrseq.task.split import split_subjects
from ehrseq.task.times import prediction_times
from ehrseq.timeline.store import Timelines, as_timelines

Float = NDArray[np.float64]
At = str | date | datetime | pl.DataFrame | Any | None


class ProgressionModel:
    """A transformer over event timelines that forecasts competing risks.

    Parameters are kept, nothing is computed. After `fit`: `task_`; `fitted_`, with the vocabulary, the networks (one a
    member), the boosted hazards, what blends and adjusts them, the baselines, the number of training subjects with
    each outcome (`events`) and the tuning loss by member and epoch (`history`); `trained_on_`, hashed subject ids.

    >>> ProgressionModel(seed=1).config.seed
    1
    """

    def __init__(self, config: ModelConfig | None = None, *, seed: int | None = None) -> None:
        config = config or ModelConfig()
        self.config = config if seed is None else replace(config, seed=seed)

    def fit(
        self, timelines: Any, task: Task | str | Path, *, report: Callable[[int, float], None] | None = None
    ) -> ProgressionModel:
        """Fit on the `train` split, stopping early on `tuning`; `held_out` subjects are not looked at.

        `timelines` is a Timelines, a folder or an event frame; the split is the dataset's own where it has one,
        else a seeded hash of the subject. `report(epoch, tuning_loss)` is called after each epoch. Returns self.
        """
        timelines = as_timelines(timelines)
        # descendants are settled now: an export scored later need not bring the hierarchy along
        self.task_ = with_dataset_descendants(timelines, task if isinstance(task, Task) else Task.from_toml(task))
        self.times_withheld_ = False
        splits = split_subjects(timelines, seed=self.config.seed)
        self.fitted_ = fit_model(timelines, self.task_, splits, self.config, report)
        used = splits.filter(pl.col("split").is_in(["train", "tuning"])).sort("subject_id")
        self.trained_on_ = used.select(
            hashed_id=pl.Series(hashed_ids(used["subject_id"].to_numpy(), self.fitted_.data_hash), dtype=pl.String),
            split="split",
        ).sort("hashed_id")
        return self

    def forecast(
        self,
        timelines: Any,
        at: At = None,
        *,
        horizons: Sequence[str] | None = None,
        branch: str | None = None,
        lab_levels: Sequence[float] = STANDARD,
    ) -> Forecast:
        """Forecasts at a prediction time, from what is known by then.

        `at`: a date (its end) or datetime for everyone; a frame with `patient` (or `subject_id`) and
        `prediction_time`; "task" for the task's own prediction times; None for each subject's end of follow-up.
        `horizons` such as "18m" replace the task's. `branch` says who answers: "hybrid" (the default where it was
        fitted), "transformer", "boosted", "cox", or a baseline, "age_sex" or "null".
        `lab_levels` are the quantiles of the labs table, among .05, .1, .2, .25, .3, .4 and so on to .95; () leaves the
        labs out. Raises ForecastError where nobody can be scored.
        """
        self._check_fitted()
        check_levels(lab_levels)
        branch = check_branch(self.fitted_, branch)
        timelines = as_timelines(timelines)
        queries = resolve_prediction_times(timelines, at, self.task_)
        fitted = self.fitted_
        scored, skipped = screen(timelines, queries, self.task_, fitted.vocabulary.codes, fitted.outcomes)
        if not scored.height and queries.height:
            reasons = skipped.group_by("reason").len().sort("len", descending=True)
            raise ForecastError(
                "a subject with usable history at the prediction time",
                f"none of {queries.height} (most often: {reasons['reason'][0]})",
                "choose a later prediction time, or check that the export and the model speak of the same codes",
            )
        spans = tuple(Horizon(h) for h in horizons) if horizons is not None else self.task_.horizons
        tables = outcome_hazards(fitted, timelines, scored, branch, self.config.network.max_events)
        who = scored.select(pl.col("subject_id").unique().sort())
        seen = who.filter(pl.Series(self.seen_in_training(who["subject_id"].to_numpy())))
        metadata = {
            "model": branch,
            "task": _without_patients(self.task_.to_dict()),
            "data_hash": self.fitted_.data_hash,
            "labs_withheld": self.labs_withheld,
        }
        usable = _usable(queries, skipped)
        labs = labs_table(fitted, timelines, usable, spans, lab_levels)
        return Forecast(risk_table(tables, spans), skipped, metadata, tuple(tables), seen, labs)

    @property
    def labs_withheld(self) -> dict[str, str]:
        """Which labs of the task are not forecast, and why."""
        self._check_fitted()
        if self.fitted_.labs is None:
            return dict.fromkeys(self.task_.labs, "not_fitted")
        return self.fitted_.labs.withheld

    def evaluate(
        self, timelines: Any, task: Task | None = None, *, n_bootstrap: int = 200, seed: int = 0, by: Any = None
    ) -> Evaluation:
        """Judge the model at the task's prediction times on subjects it was not fitted on, beside its baselines.

        Subjects of the train and tuning splits are left out (and counted); EvaluationError where nobody is left.
        `task` may give other prediction times and horizons for the same outcomes; `by` is a table of further groups
        (`patient` or `subject_id`, and a column a grouping).
        """
        self._check_fitted()
        if task is None and self.times_withheld_:
            raise EvaluationError(
                "prediction times",
                "a model whose table of them was withheld (it names patients)",
                "give the task again",
            )
        task = self.task_ if task is None else self._same_outcomes(task)
        timelines = as_timelines(timelines)
        seen = self.seen_in_training(timelines.subjects["subject_id"].to_numpy())
        unseen = timelines.select(timelines.subjects["subject_id"].filter(~pl.Series(seen)))
        queries = prediction_times(unseen, task)
        if not queries.height:
            raise EvaluationError(
                "subjects that the model was not fitted on, with a prediction time",
                f"{len(timelines)} subjects, {int(seen.sum())} of them seen in training",
                "evaluate on held-out subjects or on another data set",
            )
        labels = label(queries, occurrences(unseen, task), unseen.subjects, task)
        at = queries.select("subject_id", "prediction_time")
        spans = [h.label for h in task.horizons]
        names = (*self.fitted_.branches, *self.fitted_.baselines)
        risks = {name: self.forecast(unseen, at, horizons=spans, branch=name, lab_levels=()).risk for name in names}
        risks["null"] = _same_for_all(risks["null"])
        order = {name: i for i, name in enumerate(self.fitted_.outcomes)}
        labels = labels.filter(pl.col("outcome").is_in(list(order))).sort(
            pl.col("outcome").replace_strict(order, return_dtype=pl.Int64), "landmark", maintain_order=True
        )
        counts = dict(self.trained_on_["split"].value_counts().iter_rows())
        provenance = {
            "trained_on": f"{counts.get('train', 0)} training and {counts.get('tuning', 0)} tuning subjects",
            "training_data_hash": self.fitted_.data_hash,
            "model_seed": self.config.seed,
            **({"data_source": "internal"} if seen.any() else {}),  # else it may be the same source or another
        }
        labs = self._lab_rivals(unseen, at, task)
        result = evaluate_study(
            risks, labels, unseen, task, n_bootstrap=n_bootstrap, seed=seed, by=by, labs=labs, provenance=provenance
        )
        result.facts.update(subjects=len(timelines), seen_in_training=int(seen.sum()), evaluated=len(unseen))
        return result

    def _lab_rivals(self, timelines: Timelines, at: pl.DataFrame, task: Task) -> dict[str, pl.DataFrame]:
        """Lab forecasts at every level beside those of the simple rivals; none where no lab is forecast."""
        queries = at.unique().sort("subject_id", "prediction_time")
        _, skipped = screen(timelines, queries, self.task_, self.fitted_.vocabulary.codes, self.fitted_.outcomes)
        asked = (self.fitted_, timelines, _usable(queries, skipped), task.horizons, LEVELS)
        rivals = baseline_tables(*asked)
        return {"ehrseq": labs_table(*asked), **rivals} if rivals else {}

    def _same_outcomes(self, task: Task) -> Task:
        theirs, ours = ({o.name: o.as_written() for o in t.outcomes} for t in (task, self.task_))
        if theirs != ours:
            raise EvaluationError(
                "a task with the outcomes that the model was fitted for", "other outcomes", "fit a model for this task"
            )
        return replace(task, outcomes=tuple(self.task_.outcome(o.name) for o in task.outcomes))

    def seen_in_training(self, subject_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each subject was in the train or tuning split of the fit."""
        known = set(self.trained_on_["hashed_id"].to_list())
        return np.array([h in known for h in hashed_ids(subject_ids, self.fitted_.data_hash)], dtype=bool)

    def save(self, folder: str | Path) -> None:
        """Write the model folder atomically: JSON and safetensors, no code."""
        self._check_fitted()
        counts = dict(self.trained_on_["split"].value_counts().iter_rows())
        facts = {
            "model": self.config.model,
            "seed": self.config.seed, "data_hash": self.fitted_.data_hash, "n_train": counts.get("train", 0),
            "n_tuning": counts.get("tuning", 0),
        }  # fmt: skip
        task = _without_patients(self.task_.to_dict())
        fitted = self.fitted_
        refused = [o.name for o in self.task_.outcomes if o.name not in fitted.outcomes]
        parts = {
            "config": self.config.to_dict(),
            "task": task,
            **fitted.parts(),
        }
        optional = {} if fitted.labs is None else {"labs": fitted.labs.arrays()}
        weights = [dict(network.state_dict()) for network in fitted.networks]
        trees = [hazard.trees.arrays() for hazard in fitted.boosted]
        card = model_card(task, facts, fitted.events, refused)
        save_artifact(folder, Artifact(parts, weights, trees, self.trained_on_, card, facts, optional))

    @classmethod
    def load(cls, folder: str | Path) -> ProgressionModel:
        """Read a model folder; a changed byte, an unknown version or a missing part is an ArtifactError."""
        artifact = load_artifact(folder)
        parts = artifact.parts
        try:
            model = cls(ModelConfig.from_dict(parts["config"]))
            model.task_ = Task.from_dict({**parts["task"], "prediction_times": _placeholder(parts["task"])})
            model.times_withheld_ = parts["task"]["prediction_times"] is None
            model.fitted_ = Fitted.from_parts(artifact, model.config.network)
        except ArtifactError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                "model settings of this version", type(error).__name__, "make the folder again"
            ) from None
        model.trained_on_ = artifact.trained_on
        return model

    def _check_fitted(self) -> None:
        if not hasattr(self, "fitted_"):
            raise ForecastError("a fitted model", "one that was not fitted", "call fit, or load_model")


def _usable(queries: pl.DataFrame, skipped: pl.DataFrame) -> pl.DataFrame:
    """The queries but those of which nothing can be scored: a lab is forecast for those who have every outcome, too."""
    keys = ["subject_id", "prediction_time"]
    unusable = skipped.filter(pl.col("outcome").is_null())
    return queries.select(keys).join(unusable, on=keys, how="anti", maintain_order="left")


def _same_for_all(risk: pl.DataFrame) -> pl.DataFrame:
    """The null model's forecasts, one number a horizon: a year of 366 days must not rank people."""
    horizon = pl.col("horizon_days").rank("dense").over("subject_id", "prediction_time", "outcome")
    numbers = ("probability", "competing", "event_free")
    return risk.with_columns(pl.col(c).mean().over("outcome", horizon) for c in numbers)


def _without_patients(task: dict[str, Any]) -> dict[str, Any]:
    """The task without a table of prediction times: it names patients, which no folder that travels may."""
    return {**task, "prediction_times": None} if task["prediction_times"]["rule"] == "table" else task


def _placeholder(task: dict[str, Any]) -> dict[str, Any]:
    times: dict[str, Any] | None = task["prediction_times"]
    return {"rule": "every_encounter"} if times is None else times


def load_model(folder: str | Path) -> ProgressionModel:
    """Read a model folder written by `ProgressionModel.save`."""
    return ProgressionModel.load(folder)
