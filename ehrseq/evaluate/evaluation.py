"""Judging forecasts of one or several models against what happened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.bootstrap import subject_counts
from ehrseq.evaluate.cell import MEASURES, SENSITIVITY, Cell, Censoring, FromFunction, Given
from ehrseq.evaluate.censoring import ConditionalCensoring
from ehrseq.evaluate.fairness import SHOWN, adjusted, judge_groups
from ehrseq.evaluate.judge import OVERALL, Tables, judge_cell, judge_overall, macro_differences
from ehrseq.evaluate.tables import Aligned, align, count_unmatched, validate_labels, validate_risk
from ehrseq.evaluate.text import summary

SPREAD: dict[str, Any] = {"lower": pl.Float64, "upper": pl.Float64}
GROUP: dict[str, Any] = {"outcome": pl.String, "landmark": pl.String}
KEYS: dict[str, Any] = {"model": pl.String, **GROUP, "horizon": pl.String}
COUNTS = ("at_risk", "unscored", "n", "subjects", "events", "competing", "censored")


def _measures(names: tuple[str, ...]) -> dict[str, Any]:
    return {name + end: pl.Float64 for name in names for end in ("", "_lower", "_upper")}


TABLE_SCHEMA: dict[str, Any] = {
    **KEYS, "weights": pl.String, **dict.fromkeys(COUNTS, pl.Int64), **_measures(MEASURES), "reason": pl.String,
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {
    "differences": {
        "model": pl.String, "against": pl.String, **GROUP, "horizon": pl.String, "measure": pl.String,
        "difference": pl.Float64, **SPREAD, "reason": pl.String,
    },
    "macro": {
        "model": pl.String, "against": pl.String, "horizon": pl.String, "measure": pl.String, "places": pl.Int64,
        "difference": pl.Float64, **SPREAD,
    },
    "sensitivity": {**KEYS, **_measures(SENSITIVITY)},
    "overall": {
        "model": pl.String, **GROUP, "horizons": pl.Int64, "until_days": pl.Float64, **_measures(OVERALL),
        "reason": pl.String,
    },
    "calibration": {**KEYS, "group": pl.Int64, "mean_predicted": pl.Float64, "observed": pl.Float64, **SPREAD},
    "curves": {**KEYS, "probability": pl.Float64, "observed": pl.Float64, **SPREAD},
    "decisions": {**KEYS, "threshold": pl.Float64, "net_benefit": pl.Float64, **SPREAD},
    "groups": {
        **KEYS, "attribute": pl.String, "group": pl.String, **dict.fromkeys(("n", "subjects", "events"), pl.Int64),
        "threshold": pl.Float64, **_measures(SHOWN), "reason": pl.String,
    },
    "group_tests": {
        **KEYS, "attribute": pl.String, "group": pl.String, "question": pl.String, "difference": pl.Float64, **SPREAD,
        "p": pl.Float64, "p_adjusted": pl.Float64, "flagged": pl.Boolean,
    },
}  # fmt: skip


def _frame(name: str, rows: Sequence[dict[str, Any]] = ()) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMAS[name])


@dataclass(frozen=True)
class Evaluation:
    """Measures of every model, and paired differences of the first model from each other.

    Intervals are 95% percentiles of a bootstrap over subjects; what is not defined is null, and `reason` says why.

    Attributes
    ----------
    table
        One row for each model, outcome, landmark and horizon. Counts: `at_risk` labels, `unscored` (at risk
        without a forecast of this model), `n` (rows judged: scored by every model), `subjects` among them,
        and their state at the horizon: `events`, `competing`, `censored` before it. Measures, each with
        `_lower` and `_upper`: `observed` incidence (Aalen-Johansen; with conditional `weights` the weighted share of
        cases), `mean_predicted`, `observed_expected` (their ratio), `auc`, `brier`, `scaled_brier` (1 - brier / that
        of the best constant), calibration `slope`, `ici`, `e50`, `e90`.
    differences
        `model` minus `against` by `measure` on the same rows and replicates; null `horizon` for those of `overall`.
    macro
        The mean of `differences` over all outcomes and landmarks at the main horizon (`places`: how many).
    sensitivity
        The same with marginal censoring weights, where those of `table` are conditional.
    overall
        Over all horizons, one row a model, outcome and landmark: `concordance` (Wolbers), `ibs`, `ibs_skill`.
    calibration, curves
        `observed` (Aalen-Johansen) by groups of the forecast, and the smooth curve at given forecasts.
    decisions
        `net_benefit` by `threshold`, of each model and of acting on everyone.
    groups, group_tests
        Measures of the first model by group at the main horizon, and tests of each group against everybody else
        (`difference`; for calibration the logarithm of a ratio), with p-values adjusted for all tests made.
    horizons, main_horizon
        The nominal days of each horizon, and the longest by which the state of half of those at risk is known.
    facts
        What whoever made the forecasts says of them: how many subjects were seen in training, and so on.
    study
        What a report says beside the measures: cohort flow, outcomes, follow-up, records, provenance.
    """

    table: pl.DataFrame
    differences: pl.DataFrame
    horizons: dict[str, float]
    n_bootstrap: int
    seed: int
    facts: dict[str, Any] = field(default_factory=dict)
    macro: pl.DataFrame = field(default_factory=lambda: _frame("macro"), repr=False)
    sensitivity: pl.DataFrame = field(default_factory=lambda: _frame("sensitivity"), repr=False)
    overall: pl.DataFrame = field(default_factory=lambda: _frame("overall"), repr=False)
    calibration: pl.DataFrame = field(default_factory=lambda: _frame("calibration"), repr=False)
    curves: pl.DataFrame = field(default_factory=lambda: _frame("curves"), repr=False)
    decisions: pl.DataFrame = field(default_factory=lambda: _frame("decisions"), repr=False)
    groups: pl.DataFrame = field(default_factory=lambda: _frame("groups"), repr=False)
    group_tests: pl.DataFrame = field(default_factory=lambda: _frame("group_tests"), repr=False)
    main_horizon: str | None = None
    study: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, null where a measure is not defined."""
        return {
            "horizons": self.horizons,
            "main_horizon": self.main_horizon,
            "n_bootstrap": self.n_bootstrap,
            "seed": self.seed,
            "facts": self.facts,
            "table": self.table.to_dicts(),
            **{name: getattr(self, name).to_dicts() for name in SCHEMAS},
            "study": self.study,
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text without NaN."""
        return json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False)

    def save(self, folder: str | Path) -> None:
        """Write the report folder, whole or not at all: page, `report.json`, model card and checklists."""
        from ehrseq.evaluate.report.write import write_report

        write_report(self, folder)

    def save_report(self, path: str | Path) -> None:
        """Write the page alone: one HTML file that needs no other."""
        from ehrseq.evaluate.report.write import render

        Path(path).write_text(render(self), encoding="utf-8")

    def summary(self) -> str:
        """Text tables for the terminal: one line a row of `table`, then the gain in AUC over the next model.

        Of `differences` only those of the AUC from the second model are shown, where they are defined.
        """
        return summary(self.table, self.differences)


def evaluate_forecasts(
    risk: Any | Mapping[str, Any],
    labels: Any,
    horizons: Mapping[str, float],
    *,
    n_bootstrap: int = 200,
    seed: int = 0,
    censoring: Censoring | ConditionalCensoring | None = None,
    groups: pl.DataFrame | None = None,
) -> Evaluation:
    """Measures of forecasts per model, outcome, landmark and horizon, with intervals.

    Every model is judged on the same rows: those at risk that all models scored.

    Parameters
    ----------
    risk
        a risk table, or {name: risk table}, the first being the one compared with the others
    labels
        what happened, as `validate_labels` describes it; rows not at risk are left out. With a column `fold`, the AUC
        compares rows of one fold only: those that the same model forecast.
    horizons
        {name: nominal days}, such as {"1y": 365.25}; a row's `horizon_days` belongs to the nearest one (within
        1.5 days, half a percent for short and a thousandth for long horizons), and its state is taken at its
        own exact horizon. The Aalen-Johansen incidence is taken at their median.
    n_bootstrap, seed
        replicates of the bootstrap over subjects (0: no intervals) and its seed
    censoring
        `censoring(labels, days) -> G`: for n label rows and a time each, the probability (n,) of being still
        under observation just before that time; or a `ConditionalCensoring`, fitted on each outcome and landmark.
        Without it, the marginal Kaplan-Meier curve of each outcome and landmark, estimated anew in each replicate.
    groups
        `subject_id`, `prediction_time` and text columns: what each row belongs to, for measures by group

    Raises
    ------
    EvaluationError
        for tables that cannot be judged (see `validate_risk`, `validate_labels`), or about nobody in the labels

    >>> import datetime as dt
    >>> at = dt.datetime(2020, 1, 1)
    >>> labels = pl.DataFrame({"subject_id": range(20), "prediction_time": [at] * 20, "landmark": [None] * 20,
    ...     "outcome": "t2d", "at_risk": True, "days": [100.0] * 10 + [400.0] * 10, "cause": [1] * 10 + [0] * 10})
    >>> risk = pl.DataFrame({"subject_id": range(20), "prediction_time": [at] * 20, "outcome": "t2d",
    ...     "horizon_days": 366.0, "probability": [0.75] * 10 + [0.25] * 10})
    >>> evaluate_forecasts(risk, labels, {"1y": 365.25}).table["observed", "auc", "brier"].row(0)
    (0.5, 1.0, 0.0625)
    """
    if n_bootstrap < 0:
        raise EvaluationError("a number of replicates from 0", "a negative one", "pass n_bootstrap=200")
    risks = _by_name(risk)
    validate_labels(labels)
    unmatched = count_unmatched(risks, labels)
    aligned = align(risks, labels, horizons)
    main = _main_horizon(aligned, horizons)
    tables = Tables()
    grouped = _judge(aligned, horizons, main, n_bootstrap, seed, censoring, groups, tables)
    gathered = {name: grouped[name] if name in grouped else getattr(tables, name) for name in SCHEMAS}
    frames: dict[str, Any] = {name: _frame(name, rows) for name, rows in gathered.items()}
    return Evaluation(
        pl.DataFrame(tables.table, schema=TABLE_SCHEMA),
        horizons={name: float(days) for name, days in horizons.items()},
        n_bootstrap=n_bootstrap,
        seed=seed,
        facts={"forecasts_of_nobody_in_the_labels": unmatched} if any(unmatched.values()) else {},
        main_horizon=main,
        **frames,
    )


def _by_name(risk: Any | Mapping[str, Any]) -> dict[str, Any]:
    """Risk tables by the names of their models, validated."""
    risks = dict(risk) if isinstance(risk, Mapping) else {"model": risk}
    if not risks:
        raise EvaluationError("at least one risk table", "none", "pass a table or {name: table}")
    for table in risks.values():
        validate_risk(table)
    return risks


def _judge(
    aligned: Aligned,
    horizons: Mapping[str, float],
    main: str | None,
    n_bootstrap: int,
    seed: int,
    censoring: Censoring | ConditionalCensoring | None,
    groups: pl.DataFrame | None,
    into: Tables,
) -> dict[str, list[dict[str, Any]]]:
    """Judge every outcome and landmark at every horizon into tables; returns the rows by group and their tests."""
    subjects, subject = np.unique(aligned.labels["subject_id"].to_numpy(), return_inverse=True)
    counts = subject_counts(len(subjects), n_bootstrap, seed)
    belongs = None if groups is None else _memberships(aligned.labels, groups)
    rows: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    mains = []
    for (outcome, landmark), chosen in _groups(aligned.labels):
        keys = {"outcome": outcome, "landmark": landmark}
        given = _given(censoring, aligned.labels[chosen])
        cells = [Cell.of(aligned, subject, chosen, position, given) for position in range(len(horizons))]
        found = []
        for name, cell in zip(horizons, cells, strict=True):
            drawn = counts[cell.subject]
            found.append(judge_cell(cell, drawn, keys | {"horizon": name}, into))
            if name == main:
                mains.append(found[-1])
            if belongs is not None and name == main and len(cell.days):
                members = belongs[chosen][cell.rows]
                by_group = judge_groups(cell, members, drawn, next(iter(cell.probability)), keys | {"horizon": name})
                rows += by_group[0]
                tests += by_group[1]
        judge_overall(cells, found, list(horizons.values()), counts[subject[chosen]], given, keys, into)
    if main is not None:
        into.macro += macro_differences(mains, main)
    first = next(iter(aligned.probability))
    return {"groups": rows, "group_tests": [{"model": first, **test} for test in adjusted(tests)]}


def _given(censoring: Censoring | ConditionalCensoring | None, labels: pl.DataFrame) -> Given | None:
    if censoring is None:
        return None
    if not isinstance(censoring, ConditionalCensoring):
        return FromFunction(censoring, labels)
    fitted = censoring.fit(labels)
    # where covariates could not be used, the marginal curve is estimated anew in each replicate
    return None if (fitted.ratio == 1).all() else fitted


def _main_horizon(aligned: Aligned, horizons: Mapping[str, float]) -> str | None:
    """The longest horizon by which the state of at least half of those at risk is known, else the shortest."""
    labels = aligned.labels
    if not len(labels):
        return None
    known = (labels["cause"].to_numpy() > 0)[:, None] | (labels["days"].to_numpy()[:, None] >= aligned.horizon_days)
    names = sorted(horizons, key=lambda name: horizons[name])
    share = dict(zip(horizons, known.mean(0), strict=True))
    return next((name for name in reversed(names) if share[name] >= 0.5), names[0])


def _memberships(labels: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """The text columns of `groups` for each row of `labels`."""
    keys = [c for c in ("subject_id", "prediction_time") if c in groups.columns]
    if "subject_id" not in keys or groups.select(keys).is_duplicated().any():
        raise EvaluationError("one row of groups for each subject_id", "none or several", "correct the table of groups")
    joined = labels.select("subject_id", "prediction_time").join(groups, on=keys, how="left", maintain_order="left")
    return joined.select(
        pl.col(c).cast(pl.String) for c in groups.columns if c not in ("subject_id", "prediction_time")
    )


def _groups(labels: pl.DataFrame) -> Iterator[tuple[tuple[str, str | None], NDArray[np.intp]]]:
    """Each (outcome, landmark) with the positions of its rows, in order of appearance."""
    indexed = labels.select("outcome", "landmark").with_row_index("row")
    groups = indexed.group_by("outcome", "landmark", maintain_order=True).agg("row")
    for outcome, landmark, rows in groups.iter_rows():
        yield (outcome, landmark), np.asarray(rows, dtype=np.intp)
