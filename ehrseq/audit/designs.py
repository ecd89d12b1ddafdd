"""Validation by design: fit and judge once a fold, after a date, or once a site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from ehrseq.audit.checks import truncated
from ehrseq.config import ModelConfig
from ehrseq.errors import EvaluationError
from ehrseq.estimator import ProgressionModel
from ehrseq.evaluate.design import KEY, Design
from ehrseq.evaluate.evaluation import Evaluation
from ehrseq.evaluate.study import evaluate_study
from ehrseq.task.definition import Task
from ehrseq.task.label import label
from ehrseq.task.outcome import occurrences
from ehrseq.task.split import split_subjects
from ehrseq.task.times import prediction_times
from ehrseq.timeline.store import Timelines, as_timelines

# Part of each design's training subjects that stops, blends and adjusts.
TUNING = 0.15


def evaluate_designs(
    timelines: Any,
    task: Task,
    designs: Sequence[Design],
    *,
    config: ModelConfig | None = None,
    n_bootstrap: int = 200,
    by: Any = None,
    report: Callable[[str], None] | None = None,
) -> Evaluation:
    """Fit a model for each design (see `subject_designs`, `temporal_design`, `site_designs`), and judge all together.

    A forecast is only ranked against those of the same fit. After a cut in time the model is fitted to what was known
    by it: later events, deaths and follow-up are not there. Tuning subjects are drawn from the training ones. The seed
    is that of `config`. `report(name)` is called before each fit. Raises EvaluationError for a leaked design, and for
    designs that judge somebody at one time twice.
    """
    timelines = as_timelines(timelines)
    config = config or ModelConfig()
    judged = pl.concat([design.checked().test.select(KEY) for design in designs])
    if judged.is_duplicated().any():
        raise EvaluationError("each prediction time judged once", "some by several designs", "evaluate them apart")
    risks: dict[str, list[pl.DataFrame]] = {}
    folds = []
    for design in designs:
        if report is not None:
            report(design.name)
        model = ProgressionModel(config).fit(_training(timelines, design, config.seed), task)
        at = design.test.select(KEY)
        test = timelines.select(at["subject_id"].unique())
        horizons = [h.label for h in task.horizons]
        for name in (*model.fitted_.branches, "age_sex"):
            risks.setdefault(name, []).append(
                model.forecast(test, at, horizons=horizons, branch=name, lab_levels=()).risk
            )
        folds.append(at.with_columns(fold=pl.lit(design.name)))
    queries = prediction_times(timelines, task).join(pl.concat(folds), on=list(KEY), maintain_order="left")
    labels = label(queries, occurrences(timelines, task), timelines.subjects, task)
    facts = {"design": "; ".join(design.name for design in designs), "model_seed": config.seed,
             "trained_on": "; ".join(f"{d.name}: {d.train.height} subjects" for d in designs),
             "data_source": "internal"}  # fmt: skip
    return evaluate_study(
        {name: pl.concat(tables) for name, tables in risks.items()}, labels, timelines, task,
        n_bootstrap=n_bootstrap, seed=config.seed, by=by, provenance=facts,
    )  # fmt: skip


def _training(timelines: Timelines, design: Design, seed: int) -> Timelines:
    """The training subjects of a design as they may be seen, split into `train` and `tuning`."""
    some = timelines.select(design.train["subject_id"])
    if design.label_cut is not None:
        cut = some.subjects.select("subject_id", prediction_time=pl.lit(design.label_cut, pl.Datetime("us")))
        some = truncated(some, cut)
    some = Timelines(some.events, some.subjects, metadata=some.metadata)  # the design is the split
    return some.with_splits(split_subjects(some, fractions=(1 - TUNING, TUNING, 0.0), seed=seed))
