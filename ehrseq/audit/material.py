"""What the audits of one model share: whom it was fitted on, whom it is judged on, and how anything is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import polars as pl

from ehrseq.config import ModelConfig
from ehrseq.estimator import ProgressionModel
from ehrseq.evaluate.censoring import ConditionalCensoring
from ehrseq.evaluate.covariates import covariates
from ehrseq.evaluate.evaluation import evaluate_forecasts
from ehrseq.evaluate.report.words import compared
from ehrseq.forecast.predict import outcome_hazards
from ehrseq.forecast.table import risk_table
from ehrseq.model.artifact import hashed_ids
from ehrseq.model.fitted import Fitted
from ehrseq.model.fitting import fit_model
from ehrseq.task.definition import Horizon, Task
from ehrseq.task.label import label
from ehrseq.task.outcome import occurrences
from ehrseq.task.times import prediction_times
from ehrseq.timeline.store import Timelines

Row = dict[str, Any]
KEY = ("subject_id", "prediction_time")
# The figures of each row, with `_lower` and `_upper`.
FIGURES = ("auc", "observed_expected", "brier")
# A refit has one network, so that an audit takes minutes.
MEMBERS = 1


class NotPossible(Exception):
    """An audit that this model, task or data do not allow; the message says why."""


@dataclass(frozen=True)
class Audit:
    """What one audit found.

    `passed` says whether a check held, and is None where there is nothing to pass; `rows` are the figures of `judge`.
    """

    name: str
    statement: str
    seed: int | None = None
    passed: bool | None = None
    rows: tuple[Row, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"name": self.name, "statement": self.statement, "seed": self.seed, "passed": self.passed,
                "rows": list(self.rows)}  # fmt: skip


@dataclass(frozen=True)
class Material:
    """A fitted model beside the timelines and the task of its evaluation; `horizon` is the main one, by name."""

    model: ProgressionModel
    timelines: Timelines
    task: Task
    horizon: Horizon
    n_bootstrap: int
    seed: int

    @cached_property
    def splits(self) -> pl.DataFrame:
        """`subject_id` and `split` of everybody, as the model's fit had them; whoever it did not see is `held_out`."""
        ids = self.timelines.subjects["subject_id"]
        hashed = pl.Series(hashed_ids(ids.to_numpy(), self.model.fitted_.data_hash), dtype=pl.String)
        table = pl.DataFrame({"subject_id": ids, "hashed_id": hashed})
        return table.join(self.model.trained_on_, on="hashed_id", how="left", maintain_order="left").select(
            "subject_id", pl.col("split").fill_null("held_out")
        )

    def members(self, split: str) -> pl.Series:
        """The subjects of a split."""
        return self.splits.filter(pl.col("split") == split)["subject_id"]

    @cached_property
    def unseen(self) -> Timelines:
        """The subjects whom the model is judged on."""
        return self.timelines.select(self.members("held_out"))

    @cached_property
    def labels(self) -> pl.DataFrame:
        """What happened to them, at the task's prediction times."""
        return self.labels_of(self.unseen)

    def labels_of(self, timelines: Timelines, happened: pl.DataFrame | None = None) -> pl.DataFrame:
        """What happened to these subjects after the task's prediction times, for the outcomes that are forecast."""
        found = occurrences(timelines, self.task) if happened is None else happened
        table = label(prediction_times(timelines, self.task), found, timelines.subjects, self.task)
        order = {name: i for i, name in enumerate(self.model.fitted_.outcomes)}
        place = pl.col("outcome").replace_strict(order, default=None, return_dtype=pl.Int64)
        return table.filter(place.is_not_null()).sort(place, "landmark", maintain_order=True)

    @cached_property
    def known(self) -> pl.DataFrame:
        """The covariates of the censoring model."""
        return covariates(self.unseen, self.labels.filter("at_risk"))

    @property
    def judged(self) -> str:
        """The name of the branch that answers."""
        return self.model.fitted_.branches[0] if self.model.fitted_.branches else "age_sex"

    def forecasts(self, branch: str | None = None, horizons: tuple[str, ...] | None = None) -> pl.DataFrame:
        """The model's own risk table of the subjects it is judged on, at the main horizon or at others."""
        at = self.labels.select(KEY).unique(maintain_order=True)
        return self.model.forecast(
            self.unseen, at, horizons=horizons or (self.horizon.label,), branch=branch, lab_levels=()
        ).risk

    def refit(self, kind: str, seed: int, timelines: Timelines, happened: pl.DataFrame) -> Fitted:
        """Fit on the subjects that the model was fitted on, with its settings but one network.

        Raises NotPossible where these are not all here.
        """
        here = self.splits.filter(pl.col("split") != "held_out").height
        wanted = self.model.trained_on_.height
        if here < wanted:
            raise NotPossible(f"{here} of the {wanted} subjects that the model was fitted on are in these timelines")
        return fit_model(timelines, self.task, self.splits, self.lighter(kind, seed), happened=happened)

    def lighter(self, kind: str, seed: int) -> ModelConfig:
        """The model's settings for a refit."""
        config = self.model.config
        training = replace(config.training, members=min(MEMBERS, config.training.members))
        return replace(config, model=kind, seed=seed, training=training, labs=replace(config.labs, members=0))

    def score(self, fitted: Fitted, branch: str, timelines: Timelines, labels: pl.DataFrame) -> pl.DataFrame:
        """Forecasts at the main horizon of everybody at risk in `labels`, from what `timelines` show."""
        names = timelines.subjects.select("subject_id", "patient")
        rows = labels.filter("at_risk").select(*KEY, "outcome").unique(maintain_order=True)
        rows = rows.join(names, on="subject_id", how="left", maintain_order="left")
        rows = rows.filter(pl.col("outcome").is_in(fitted.outcomes))
        tables = outcome_hazards(fitted, timelines, rows, branch, self.model.config.network.max_events)
        return risk_table(tables, (self.horizon,))

    def judge(
        self,
        risks: Mapping[str, pl.DataFrame],
        labels: pl.DataFrame,
        *,
        weights: str = "conditional",
        days: float | None = None,
    ) -> tuple[list[Row], str]:
        """Figures of each model at the main horizon, and in words how the first compares with each other.

        `days` is the nominal length of the horizon where it is not the main one. Rows have the outcome's place, the
        model, `subjects`, `events`, `FIGURES`, and `gap`: the first model's AUC minus this one's.
        """
        found = evaluate_forecasts(
            risks, labels, {self.horizon.label: self.horizon.days if days is None else days},
            n_bootstrap=self.n_bootstrap, seed=self.seed,
            censoring=ConditionalCensoring(self.known, seed=self.seed) if weights == "conditional" else None,
        )  # fmt: skip
        gaps = found.differences.to_dicts()
        rows = []
        for row in found.table.to_dicts():
            kept: Row = {name: row[name] for name in ("outcome", "landmark", "horizon", "model", "subjects", "events")}
            kept |= {name + end: row[name + end] for name in FIGURES for end in ("", "_lower", "_upper")}
            gap = next((g for g in gaps if _of(g, row) and g["measure"] == "auc"), {})
            kept |= {"gap": gap.get("difference"), "gap_lower": gap.get("lower"), "gap_upper": gap.get("upper")}
            rows.append(kept)
        first, *others = risks
        said = [compared(first, name, self.horizon.label, found.macro.to_dicts(), gaps) for name in others]
        return rows, " ".join(said)


def _of(gap: Row, row: Row) -> bool:
    return (gap["against"], gap["outcome"], gap["landmark"]) == (row["model"], row["outcome"], row["landmark"])
