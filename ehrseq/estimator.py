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
from ehrseq.forecast.table import SKIPPED_SCHEMA, Forecast, Hazards, risk_table
from ehrseq.model.artifact import Artifact, hashed_ids, load_artifact, load_weights, save_artifact
from ehrseq.model.baselines import HazardBaseline
from ehrseq.model.card import model_card
from ehrseq.model.fitting import Fitted, fit_model
from ehrseq.model.heads import HazardName
from ehrseq.model.inference import predict_hazards
from ehrseq.model.network import ProgressionNetwork
from ehrseq.task.definition import Horizon, Task
from ehrseq.task.history import visible
from ehrseq.task.label import known_at_risk, label
from ehrseq.task.outcome import occurrences, with_dataset_descendants
from ehrseq.task.query import resolve_prediction_times
from ehrseq.task.split import split_subjects
from ehrseq.task.times import prediction_times
from ehrseq.timeline.store import Timelines, as_timelines
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, encode
from ehrseq.tokens.vocabulary import Vocabulary, model_events

Float = NDArray[np.float64]
At = str | date | datetime | pl.DataFrame | Any | None
BASELINES = ("age_sex", "null")
WHOLE_SUBJECT = ("no_birth_date", "before_birth", "dead", "no_history", "unknown_codes")


class ProgressionModel:
    """A transformer over event timelines that forecasts competing risks.

    Parameters are kept, nothing is computed. After `fit`: `task_`, `vocabulary_`, `networks_` (one a member),
    `baselines_`, `edges_` (interval edges in days), `hazards_`, `supported_days_`, `events_` (training subjects with
    each outcome), `history_` (tuning loss by member and epoch).

    >>> ProgressionModel(seed=1).config.seed
    1
    """

    def __init__(self, config: ModelConfig | None = None, *, seed: int | None = None) -> None:
        config = config or ModelConfig()
        self.config = config if seed is None else ModelConfig(config.network, config.training, seed)

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
        self._take(fit_model(timelines, self.task_, splits, self.config, report))
        used = splits.filter(pl.col("split").is_in(["train", "tuning"])).sort("subject_id")
        self.trained_on_ = used.select(
            hashed_id=pl.Series(hashed_ids(used["subject_id"].to_numpy(), self.data_hash_), dtype=pl.String),
            split="split",
        ).sort("hashed_id")
        return self

    def _take(self, fitted: Fitted) -> None:
        self.vocabulary_, self.edges_, self.hazards_ = fitted.vocabulary, fitted.edges, fitted.hazards
        self.networks_, self.baselines_ = fitted.networks, fitted.baselines
        self.supported_days_, self.events_ = fitted.supported_days, fitted.events
        self.history_, self.data_hash_ = fitted.history, fitted.data_hash

    def forecast(
        self, timelines: Any, at: At = None, *, horizons: Sequence[str] | None = None, baseline: str | None = None
    ) -> Forecast:
        """Forecasts at a prediction time, from what is known by then.

        `at`: a date (its end) or datetime for everyone; a frame with `patient` (or `subject_id`) and
        `prediction_time`; "task" for the task's own prediction times; None for each subject's end of follow-up.
        `horizons` such as "18m" replace the task's. `baseline` ("age_sex" or "null") answers instead of the network.
        Raises ForecastError where nobody can be scored.
        """
        self._check_fitted()
        timelines = as_timelines(timelines)
        queries = resolve_prediction_times(timelines, at, self.task_)
        scored, skipped = self._screen(timelines, queries)
        if not scored.height and queries.height:
            reasons = skipped.group_by("reason").len().sort("len", descending=True)
            raise ForecastError(
                "a subject with usable history at the prediction time",
                f"none of {queries.height} (most often: {reasons['reason'][0]})",
                "choose a later prediction time, or check that the export and the model speak of the same codes",
            )
        spans = tuple(Horizon(h) for h in horizons) if horizons is not None else self.task_.horizons
        tables = self._hazards(timelines, scored, baseline)
        who = scored.select(pl.col("subject_id").unique().sort())
        seen = who.filter(pl.Series(self.seen_in_training(who["subject_id"].to_numpy())))
        metadata = {
            "model": baseline or "transformer",
            "task": _without_patients(self.task_.to_dict()),
            "data_hash": self.data_hash_,
        }
        return Forecast(risk_table(tables, spans), skipped, metadata, tuple(tables), seen)

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
        names: dict[str, str | None] = {"transformer": None, **{b: b for b in BASELINES}}
        spans = [h.label for h in task.horizons]
        risks = {name: self.forecast(unseen, at, horizons=spans, baseline=b).risk for name, b in names.items()}
        risks["null"] = _same_for_all(risks["null"])
        order = {name: i for i, name in enumerate(self._outcomes())}
        labels = labels.filter(pl.col("outcome").is_in(list(order))).sort(
            pl.col("outcome").replace_strict(order, return_dtype=pl.Int64), "landmark", maintain_order=True
        )
        counts = dict(self.trained_on_["split"].value_counts().iter_rows())
        provenance = {
            "trained_on": f"{counts.get('train', 0)} training and {counts.get('tuning', 0)} tuning subjects",
            "training_data_hash": self.data_hash_,
            "model_seed": self.config.seed,
            **({"data_source": "internal"} if seen.any() else {}),  # else it may be the same source or another
        }
        result = evaluate_study(
            risks, labels, unseen, task, n_bootstrap=n_bootstrap, seed=seed, by=by, provenance=provenance
        )
        result.facts.update(subjects=len(timelines), seen_in_training=int(seen.sum()), evaluated=len(unseen))
        return result

    def _same_outcomes(self, task: Task) -> Task:
        theirs, ours = ({o.name: replace(o, descendant_codes=()) for o in t.outcomes} for t in (task, self.task_))
        if theirs != ours:
            raise EvaluationError(
                "a task with the outcomes that the model was fitted for", "other outcomes", "fit a model for this task"
            )
        return replace(task, outcomes=tuple(self.task_.outcome(o.name) for o in task.outcomes))

    def seen_in_training(self, subject_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each subject was in the train or tuning split of the fit."""
        known = set(self.trained_on_["hashed_id"].to_list())
        return np.array([h in known for h in hashed_ids(subject_ids, self.data_hash_)], dtype=bool)

    def save(self, folder: str | Path) -> None:
        """Write the model folder atomically: JSON and safetensors, no code."""
        self._check_fitted()
        counts = dict(self.trained_on_["split"].value_counts().iter_rows())
        facts = {
            "seed": self.config.seed, "data_hash": self.data_hash_, "n_train": counts.get("train", 0),
            "n_tuning": counts.get("tuning", 0),
        }  # fmt: skip
        task = _without_patients(self.task_.to_dict())
        refused = [o.name for o in self.task_.outcomes if o.name not in self._outcomes()]
        parts = {
            "config": self.config.to_dict(),
            "task": task,
            "vocabulary": self.vocabulary_.to_dict(),
            "baselines": {k: {o: b.to_dict() for o, b in v.items()} for k, v in self.baselines_.items()},
            "training": {
                "edges": self.edges_.tolist(), "hazards": [[h.outcome, h.competing] for h in self.hazards_],
                "supported_days": self.supported_days_, "events": self.events_, "history": self.history_,
            },
        }  # fmt: skip
        weights = [dict(network.state_dict()) for network in self.networks_]
        card = model_card(task, facts, self.events_, refused)
        save_artifact(folder, Artifact(parts, weights, self.trained_on_, card, facts))

    @classmethod
    def load(cls, folder: str | Path) -> ProgressionModel:
        """Read a model folder; a changed byte, an unknown version or a missing part is an ArtifactError."""
        artifact = load_artifact(folder)
        parts = artifact.parts
        try:
            model = cls(ModelConfig.from_dict(parts["config"]))
            model.task_ = Task.from_dict({**parts["task"], "prediction_times": _placeholder(parts["task"])})
            model.times_withheld_ = parts["task"]["prediction_times"] is None
            training = parts["training"]
            fitted = Fitted(
                vocabulary=Vocabulary.from_dict(parts["vocabulary"]),
                edges=np.asarray(training["edges"], dtype=np.float64),
                hazards=[HazardName(str(o), bool(c)) for o, c in training["hazards"]],
                networks=[],
                baselines={
                    k: {o: HazardBaseline.from_dict(b) for o, b in v.items()} for k, v in parts["baselines"].items()
                },
                supported_days=training["supported_days"],
                events=training["events"],
                history=training["history"],
                data_hash=str(artifact.facts["data_hash"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                "model settings of this version", type(error).__name__, "make the folder again"
            ) from None
        for weights in artifact.weights:
            network = ProgressionNetwork(fitted.vocabulary, model.config.network, len(fitted.hazards), fitted.edges)
            load_weights(network, weights)
            fitted.networks.append(network.eval())
        model._take(fitted)
        model.trained_on_ = artifact.trained_on
        return model

    def _check_fitted(self) -> None:
        if not hasattr(self, "networks_"):
            raise ForecastError("a fitted model", "one that was not fitted", "call fit, or load_model")

    def _outcomes(self) -> list[str]:
        return [h.outcome for h in self.hazards_ if not h.competing]

    def _screen(self, timelines: Timelines, queries: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows (query x outcome) that can be scored, and those that cannot with the reason."""
        rows = known_at_risk(queries, timelines, self.task_)
        unknown = self._unknown_history(timelines, queries)
        rows = rows.with_columns(
            reason=pl.when(pl.col("reason").is_not_null())
            .then("reason")
            .when(pl.Series(np.repeat(unknown, len(self.task_.outcomes))))
            .then(pl.lit("unknown_codes"))
            .when(~pl.col("outcome").is_in(self._outcomes()))
            .then(pl.lit("no_training_events"))
        ).join(timelines.subjects.select("subject_id", "patient"), on="subject_id", how="left", maintain_order="left")
        skipped = (
            rows.filter(pl.col("reason").is_not_null())
            .with_columns(outcome=pl.when(~pl.col("reason").is_in(WHOLE_SUBJECT)).then("outcome"))
            .select(pl.col(c).cast(t) for c, t in SKIPPED_SCHEMA.items())
            .unique(maintain_order=True)
            .sort("subject_id", "prediction_time", "outcome", nulls_last=False)
        )
        scored = rows.filter(pl.col("reason").is_null()).drop("reason", "at_risk")
        return scored, skipped

    def _unknown_history(self, timelines: Timelines, queries: pl.DataFrame) -> NDArray[np.bool_]:
        """Whether a query has visible, dated events, and none of them has a code of the vocabulary."""
        dated = model_events(timelines.events).filter(pl.col("known_time").is_not_null())
        known = pl.col("code").is_in(self.vocabulary_.codes)
        first = dated.group_by("subject_id").agg(
            any=pl.col("known_time").min(), known=pl.col("known_time").filter(known).min()
        )
        joined = queries.select("subject_id", "prediction_time").join(
            first, on="subject_id", how="left", maintain_order="left"
        )
        seen = {c: visible(pl.col(c), pl.col("prediction_time")).fill_null(False) for c in ("any", "known")}
        return joined.select(seen["any"] & ~seen["known"]).to_series().to_numpy()

    def _hazards(self, timelines: Timelines, scored: pl.DataFrame, baseline: str | None) -> list[Hazards]:
        """Hazards of every outcome at the rows of `scored` that ask for it."""
        queries = scored.select("subject_id", "prediction_time").unique(maintain_order=True).with_row_index("query")
        subjects = timelines.subjects.join(queries, on="subject_id", how="semi").sort("subject_id")
        if baseline is None:
            values = self._network_hazards(timelines, subjects, queries)
        out = []
        for name in self._outcomes():
            rows = scored.filter(pl.col("outcome") == name).join(
                queries, on=["subject_id", "prediction_time"], maintain_order="left"
            )
            which = rows["query"].to_numpy()
            if baseline is None:
                own = values[:, which, self.hazards_.index(HazardName(name))]
                rival = HazardName(name, competing=True)
                other = values[:, which, self.hazards_.index(rival)] if rival in self.hazards_ else np.zeros_like(own)
            else:
                own, other = self._baseline_hazards(baseline, name, rows, subjects)
            keyed = rows.select("subject_id", "patient", "prediction_time")
            out.append(Hazards(name, keyed, own, other, self.edges_, self.supported_days_[name]))
        return out

    def _network_hazards(self, timelines: Timelines, subjects: pl.DataFrame, queries: pl.DataFrame) -> Float:
        encoded = encode(timelines.events, subjects, self.vocabulary_)
        return predict_hazards(
            self.networks_, encoded, encoded.position(queries["subject_id"].to_numpy()),
            queries["prediction_time"].dt.epoch("us").to_numpy(), max_events=self.config.network.max_events,
            n_summary_codes=len(self.vocabulary_.summary_codes),
        )  # fmt: skip

    def _baseline_hazards(
        self, kind: str, outcome: str, rows: pl.DataFrame, subjects: pl.DataFrame
    ) -> tuple[Float, Float]:
        if kind not in self.baselines_:
            raise ForecastError(f"a baseline: {', '.join(self.baselines_)}", f"'{kind}'", "choose one of these")
        known = rows.join(
            subjects.select("subject_id", "birth_time", "sex"), on="subject_id", how="left", maintain_order="left"
        )
        age = (known["prediction_time"] - known["birth_time"]).dt.total_microseconds() / (MICROSECONDS_PER_DAY * 365.25)
        own, other = self.baselines_[kind][outcome].hazards(age.to_numpy(), known["sex"].to_list())
        return own[None], other[None]


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
