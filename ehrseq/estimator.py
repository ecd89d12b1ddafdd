"""`ProgressionModel`: fit, forecast, evaluate, save, load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.config import ModelConfig, as_fitted
from ehrseq.errors import ArtifactError, EvaluationError, ForecastError, NoPredictionTimeError, UserError
from ehrseq.evaluate.evaluation import Evaluation
from ehrseq.evaluate.study import evaluate_study
from ehrseq.explaining import Explaining
from ehrseq.forecast.labs import STANDARD, baseline_tables, check_levels, labs_table
from ehrseq.forecast.paths import PathSource
from ehrseq.forecast.predict import encode_asked, outcome_hazards
from ehrseq.forecast.screen import nobody_scored
from ehrseq.forecast.table import SKIPPED_SCHEMA, Forecast, distinct, risk_table
from ehrseq.frames import at_once
from ehrseq.model.artifact import Artifact, hashed_ids, load_artifact, save_artifact
from ehrseq.model.card import model_card
from ehrseq.model.fitted import Fitted
from ehrseq.model.labs import LEVELS
from ehrseq.model.profile import Observed
from ehrseq.model.recalibration import recalibrate
from ehrseq.storage import MANIFEST, sha256_file
from ehrseq.task.definition import Task
from ehrseq.task.label import label
from ehrseq.task.outcome import occurrences, with_dataset_descendants
from ehrseq.task.split import split_subjects
from ehrseq.task.times import prediction_times
from ehrseq.timeline.hierarchy import code_parents
from ehrseq.timeline.store import Timelines, as_timelines

Float = NDArray[np.float64]
At = str | date | datetime | pl.DataFrame | Any | None


class ProgressionModel(Explaining):
    """A transformer over event timelines that forecasts competing risks.

    Parameters are kept, nothing is computed. After `fit`: `task_`; `fitted_`, with the vocabulary, the networks (one a
    member), the boosted hazards, what blends and adjusts them, the baselines, the number of training subjects with
    each outcome (`events`) and the tuning loss by member and epoch (`history`); `trained_on_`, hashed subject ids.

    >>> ProgressionModel(seed=1).config.seed
    1
    """

    folder_hash_: str | None = None  # sha256 of the manifest of the folder that the model was read from
    _known_hashes: tuple[pl.DataFrame | None, frozenset[str]] = (None, frozenset())

    def __init__(self, config: ModelConfig | None = None, *, seed: int | None = None) -> None:
        config = config or ModelConfig()
        self.config = config if seed is None else replace(config, seed=seed)

    def fit(
        self, timelines: Any, task: Task | str | Path | None = None, *,
        report: Callable[[int, float], None] | None = None, checkpoint: str | Path | None = None,
        workers: int | None = None,
    ) -> ProgressionModel:  # fmt: skip
        """Fit on the `train` split, stopping early on `tuning`; `held_out` subjects are not looked at.

        `timelines` is a Timelines, a folder or an event frame; the split is the dataset's own where it has one,
        else a seeded hash of the subject. `report(epoch, tuning_loss)` is called after each epoch. `checkpoint`
        is a folder for the state of training after each epoch: an interrupted fit of the same data, task and
        configuration goes on from it, and gives the same model. Without a task the networks learn to read histories
        alone (pretraining), for `adapt`, from up to 256 codes whatever `auxiliary_codes` says. `workers` is how many
        processes fit the networks at most, each with the timelines in its memory; by default one a core, and one alone
        where there is little to do, a GPU, or much data. It changes nothing in the model. Returns self.
        """
        # lightning takes seconds to import, and forecasts do without it
        from ehrseq.model.fitting import fit_model
        from ehrseq.model.pretraining import pretrain

        timelines = as_timelines(timelines)
        self.faithfulness_ = self.folder_hash_ = None  # what was measured, and saved, was another fit
        splits = split_subjects(timelines, seed=self.config.seed)
        if task is None:
            if not self.config.has_networks:
                raise UserError("a task, or a model with networks", f"'{self.config.model}' without", "give a task")
            self.__dict__.pop("task_", None)
            self.fitted_ = pretrain(timelines, splits, self.config, report, checkpoint, workers)
            self.trained_on_ = _trained_on(splits, self.fitted_.data_hash)
            return self
        # descendants are settled now: an export scored later need not bring the hierarchy along
        self.task_ = with_dataset_descendants(timelines, task if isinstance(task, Task) else Task.from_toml(task))
        self.times_withheld_ = False
        self.fitted_ = fit_model(timelines, self.task_, splits, self.config, report, checkpoint, workers=workers)
        self.trained_on_ = _trained_on(splits, self.fitted_.data_hash)
        return self

    def adapt(
        self, timelines: Any, task: Task | str | Path, *, config: ModelConfig | None = None,
        report: Callable[[int, float], None] | None = None, checkpoint: str | Path | None = None,
    ) -> ProgressionModel:  # fmt: skip
        """A new model for another task, whose networks go on from this one's: for outcomes with few labels.

        `config` is as for a new model, with the network of this one (the default: this model's own settings, a hybrid).
        The auxiliary codes stay those of this model. Takes and gives what `fit` does; whom this model was fitted on is
        remembered, and never tunes. ForecastError where it has no networks, UserError for settings without networks or
        with some of another shape.
        """
        from ehrseq.model.fitting import fit_model

        origin = self._check_fitted(task=False)
        if not origin.networks:
            raise ForecastError("a model with networks to go on from", "none", "fit a transformer or a hybrid first")
        config = replace(self.config, model="hybrid") if config is None else config
        if not config.has_networks:
            raise UserError("a model with networks to go on", f"'{config.model}'", "choose transformer or hybrid")
        if config.network != self.config.network:
            raise UserError("the network settings of the model to go on from", "others", "leave `network` as it was")
        timelines = as_timelines(timelines)
        model = ProgressionModel(config)
        model.task_ = with_dataset_descendants(timelines, task if isinstance(task, Task) else Task.from_toml(task))
        model.times_withheld_ = False
        # what the networks were trained on cannot stop, blend or adjust them
        splits = split_subjects(timelines, seed=config.seed)
        hashed = pl.Series(hashed_ids(splits["subject_id"].to_numpy(), origin.data_hash), dtype=pl.String)
        trained = hashed.is_in(self.trained_on_.filter(pl.col("split") == "train")["hashed_id"].implode())
        moved = pl.when(trained & (pl.col("split") == "tuning")).then(pl.lit("train")).otherwise("split")
        splits = splits.with_columns(split=moved)
        model.fitted_ = fit_model(timelines, model.task_, splits, config, report, checkpoint, origin)
        model.trained_on_ = _together(_trained_on(splits, origin.data_hash), self.trained_on_)
        return model

    def recalibrate(self, timelines: Any) -> ProgressionModel:
        """A new model whose level and slope suit the subjects of another site; what it learned otherwise stays.

        Subjects that the model was fitted on are left out. `fitted_.recalibrated` has observed and expected events
        and the likelihood before and after, the latter for subjects who did not set what they are judged with.
        """
        fitted = self._check_fitted()
        if not fitted.branches:
            raise ForecastError("a branch whose level can be set", "baselines alone", "fit another kind of model")
        timelines = as_timelines(timelines)
        unseen = self._unseen(timelines)
        if not len(unseen):
            raise ForecastError(
                "subjects that the model was not fitted on", "none", "recalibrate on data of another site"
            )
        model = ProgressionModel(self.config)
        model.task_, model.times_withheld_ = self.task_, self.times_withheld_
        known = self._for_codes_of(unseen)  # as in forecasting
        settled = recalibrate(
            known, unseen, self.task_, max_events=self.config.network.max_events, seed=self.config.seed
        )
        model.fitted_ = replace(settled, vocabulary=fitted.vocabulary)
        used = unseen.subjects.select("subject_id", split=pl.lit("tuning"))
        model.trained_on_ = _together(_trained_on(used, fitted.data_hash), self.trained_on_)
        return model

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
        labs out. Raises ForecastError where nobody can be scored and no lab be forecast.
        """
        check_levels(lab_levels)
        found = self._forecast(as_timelines(timelines), at, horizons, self._branch(branch), lab_levels)
        if found.skipped.height and not (found.risk.height or found.labs.height):
            raise nobody_scored(found.skipped)
        return found

    def forecast_part(self, timelines: Timelines, at: At = None, *, branch: str | None = None) -> Forecast:
        """The same for a part of the people: an empty Forecast where none of them has a prediction time, or is scored.

        The parts of a population hold the same rows as its forecast, whatever the parts.
        """
        try:
            return self._forecast(timelines, at, None, self._branch(branch), STANDARD)
        except NoPredictionTimeError:
            none = timelines.subjects.select("subject_id", prediction_time="follow_up_end").clear()
            labs = labs_table(self.fitted_, timelines, none, self.task_.horizons, STANDARD)
            facts = self.forecast_facts(branch)  # as the other parts say it
            return Forecast(risk_table((), ()), pl.DataFrame(schema=SKIPPED_SCHEMA), facts, labs=labs)

    def _forecast(
        self, timelines: Timelines, at: At, horizons: Sequence[str] | None, branch: str, lab_levels: Sequence[float]
    ) -> Forecast:
        fitted, scored, skipped = self._screen(timelines, at)
        spans = self.task_.horizons if horizons is None else distinct(horizons)
        keys = ["subject_id", "prediction_time"]
        asked = pl.concat([table.lazy().select(keys) for table in (scored, skipped)]).unique().sort(keys)
        usable = _usable(asked, skipped)
        # whoever is scored is usable: their histories are read once for risks and labs
        encoded = encode_asked(fitted, timelines, usable) if lab_levels or branch not in fitted.baselines else None
        labs = labs_table(fitted, timelines, usable, spans, lab_levels, encoded)
        tables = []
        if scored.height:
            tables = outcome_hazards(fitted, timelines, scored, branch, self.config.network.max_events, encoded)
        seen = self._seen_among(scored, labs)
        metadata = self.forecast_facts(branch)
        explainer = partial(self.explain, timelines, at, branch=branch)
        source = PathSource(fitted, self.task_, timelines, scored, branch, self.config.network.max_events)
        return Forecast(
            risk_table(tables, spans), skipped, metadata, tuple(tables), seen, labs, spans, explainer, source
        )

    def observed(self, timelines: Timelines, forecast: Forecast) -> Observed:
        """What the people of a forecast look like, in counts that add up over parts, for `drift_of`."""
        keys = ["subject_id", "prediction_time"]
        asked = pl.concat([table.select(keys) for table in (forecast.risk, forecast.skipped)])
        return Observed.of(self.fitted_.profile, self._for_codes_of(timelines).vocabulary, timelines, asked)

    def forecast_facts(self, branch: str | None = None) -> dict[str, Any]:
        """What a forecast says of its model (`metadata`)."""
        return {
            "model": self._branch(branch),
            "task": _without_patients(self.task_.to_dict()),
            "data_hash": self.fitted_.data_hash,
            "labs_withheld": self.labs_withheld,
            **({} if self.folder_hash_ is None else {"model_manifest_sha256": self.folder_hash_}),
        }

    def unseen_codes(self, timelines: Any) -> pl.DataFrame:
        """The codes that the model does not know, the most frequent first.

        Columns: `code`; `events` and `subjects`, how many have it; `backs_off_to`, the nearest known ancestor that
        stands for it in the networks (by the parents of codes that training or these timelines bring), null for none.
        """
        self._check_fitted(task=False)
        timelines = as_timelines(timelines)
        return self._for_codes_of(timelines).vocabulary.unseen_codes(timelines.events)

    def _for_codes_of(self, timelines: Timelines) -> Fitted:
        """What was fitted, with the parents of codes that these timelines bring."""
        parents = code_parents(timelines)
        if not parents.height:
            return self.fitted_
        return replace(self.fitted_, vocabulary=self.fitted_.vocabulary.with_parents(parents))

    @property
    def labs_withheld(self) -> dict[str, str]:
        """Which labs of the task are not forecast, and why."""
        self._check_fitted(task=False)
        if self.fitted_.labs is None:
            return dict.fromkeys(self.task_.labs if hasattr(self, "task_") else (), "not_fitted")
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
        task = self.task_ if task is None else self.settled(task)
        timelines = as_timelines(timelines)
        unseen = self._unseen(timelines)
        seen = len(timelines) - len(unseen)
        queries = prediction_times(unseen, task)
        if not queries.height:
            raise EvaluationError(
                "subjects that the model was not fitted on, with a prediction time",
                f"{len(timelines)} subjects, {seen} of them seen in training",
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
            "inputs": self._inputs(),
            **({"data_source": "internal"} if seen else {}),  # else it may be the same source or another
        }
        labs = self._lab_rivals(unseen, at, task)
        result = evaluate_study(
            risks, labels, unseen, task, n_bootstrap=n_bootstrap, seed=seed, by=by, labs=labs, provenance=provenance
        )
        result.facts.update(subjects=len(timelines), seen_in_training=seen, evaluated=len(unseen))
        if self.faithfulness_ is not None:
            result.facts["faithfulness"] = self.faithfulness_
        return result

    def _inputs(self) -> str:
        """What the model reads, in words."""
        facts = self.config.network.demographics
        static = f", of demographic facts {', '.join(facts)} alone" if facts else ", no demographic facts but age"
        return f"age, and times, counts and values of {len(self.fitted_.vocabulary.codes)} codes of events{static}"

    def _lab_rivals(self, timelines: Timelines, at: pl.DataFrame, task: Task) -> dict[str, pl.DataFrame]:
        """Lab forecasts at every level beside those of the simple rivals; none where no lab is forecast."""
        queries = at.unique().sort("subject_id", "prediction_time")
        fitted, _, skipped = self._screen(timelines, queries)
        asked = (fitted, timelines, _usable(queries, skipped), task.horizons, LEVELS)
        rivals = baseline_tables(*asked)
        return {"ehrseq": labs_table(*asked), **rivals} if rivals else {}

    def settled(self, task: Task) -> Task:
        """A task with other times and horizons for the model's outcomes, these as the model was fitted for them.

        EvaluationError for other outcomes.
        """
        theirs, ours = ({o.name: o.as_written() for o in t.outcomes} for t in (task, self.task_))
        if theirs != ours:
            raise EvaluationError(
                "a task with the outcomes that the model was fitted for", "other outcomes", "fit a model for this task"
            )
        return replace(task, outcomes=tuple(self.task_.outcome(o.name) for o in task.outcomes))

    def seen_in_training(self, subject_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each subject was in the train or tuning split of the fit."""
        # a set of everyone, for each forecast of a few: made once of a table that stays as it is
        table, known = self._known_hashes
        if table is not self.trained_on_:
            known = frozenset(self.trained_on_["hashed_id"].to_list())
            self._known_hashes = self.trained_on_, known
        return np.array([h in known for h in hashed_ids(subject_ids, self.fitted_.data_hash)], dtype=bool)

    def _seen_among(self, *tables: pl.DataFrame) -> pl.DataFrame:
        """The subjects of some tables that were in the train or tuning split of the fit, sorted."""
        who = np.unique(np.concatenate([table["subject_id"].to_numpy() for table in tables]))
        return pl.Series("subject_id", who[self.seen_in_training(who)]).to_frame()

    def _unseen(self, timelines: Timelines) -> Timelines:
        """The subjects that the model was not fitted on."""
        ids = timelines.subjects["subject_id"]
        return timelines.select(ids.filter(~pl.Series(self.seen_in_training(ids.to_numpy()))))

    def save(self, folder: str | Path) -> None:
        """Write the model folder atomically: JSON and safetensors, no code."""
        fitted = self._check_fitted(task=False)
        counts = dict(self.trained_on_["split"].value_counts().iter_rows())
        facts = {
            "model": self.config.model,
            "seed": self.config.seed, "data_hash": self.fitted_.data_hash, "n_train": counts.get("train", 0),
            "n_tuning": counts.get("tuning", 0),
        }  # fmt: skip
        task = _without_patients(self.task_.to_dict()) if hasattr(self, "task_") else None
        refused = [o.name for o in self.task_.outcomes if o.name not in fitted.outcomes] if task else []
        parts = {
            "config": self.config.to_dict(),
            "task": task,
            **fitted.parts(),
        }
        parts["training"]["faithfulness"] = self.faithfulness_
        weights = [dict(network.state_dict()) for network in fitted.networks]
        trees = [hazard.trees.arrays() for hazard in fitted.boosted]
        card = model_card(task, facts, fitted.events, refused)
        optional = {} if fitted.labs is None else {"labs": fitted.labs.arrays()}
        if fitted.paths is not None:
            optional["paths"] = [fitted.paths.arrays()]
        save_artifact(folder, Artifact(parts, weights, trees, self.trained_on_, card, facts, optional))

    @classmethod
    def load(cls, folder: str | Path) -> ProgressionModel:
        """Read a model folder; a changed byte, an unknown version or a missing part is an ArtifactError."""
        artifact = load_artifact(folder)
        parts = artifact.parts
        try:
            model = cls(ModelConfig.from_dict(as_fitted(parts["config"])))
            if parts["task"] is not None:
                model.task_ = Task.from_dict({**parts["task"], "prediction_times": _placeholder(parts["task"])})
                model.times_withheld_ = parts["task"]["prediction_times"] is None
            model.fitted_ = Fitted.from_parts(artifact, model.config.network)
            model.faithfulness_ = parts["training"].get("faithfulness")
        except ArtifactError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                "model settings of this version", type(error).__name__, "make the folder again"
            ) from None
        model.trained_on_ = artifact.trained_on
        model.folder_hash_ = sha256_file(Path(folder) / MANIFEST)
        return model

    def _check_fitted(self, *, task: bool = True) -> Fitted:
        if not hasattr(self, "fitted_"):
            raise ForecastError("a fitted model", "one that was not fitted", "call fit, or load_model")
        if task and not hasattr(self, "task_"):
            raise ForecastError("a model of a task's outcomes", "one that was fitted without", "call its `adapt` first")
        return self.fitted_


def _trained_on(splits: pl.DataFrame, key: str) -> pl.DataFrame:
    """Hashed ids of the subjects who were used, with their split."""
    used = splits.filter(pl.col("split").is_in(["train", "tuning"]))
    hashes = pl.Series(hashed_ids(used["subject_id"].to_numpy(), key), dtype=pl.String)
    return used.select(hashed_id=hashes, split="split").sort("hashed_id")


def _together(first: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([first, more]).unique("hashed_id", keep="first").sort("hashed_id")


def _usable(queries: pl.DataFrame | pl.LazyFrame, skipped: pl.DataFrame) -> pl.DataFrame:
    """The queries but those of which nothing can be scored: a lab is forecast for those who have every outcome, too."""
    keys = ["subject_id", "prediction_time"]
    unusable = skipped.lazy().filter(pl.col("outcome").is_null())
    return at_once(queries.lazy().select(keys).join(unusable, on=keys, how="anti", maintain_order="left"))


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
