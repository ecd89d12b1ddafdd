"""Judging forecasts of one or several models against what happened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.bootstrap import subject_counts
from ehrseq.evaluate.cell import MEASURES, Cell, Censoring, judge_cell
from ehrseq.evaluate.tables import align, validate_labels, validate_risk
from ehrseq.storage import atomic_folder, write_json, write_manifest

FORMAT_VERSION = 1
KEYS: dict[str, Any] = {
    "model": pl.String,
    "outcome": pl.String,
    "landmark": pl.String,
    "horizon": pl.String,
}
COUNTS = ("at_risk", "unscored", "n", "subjects", "events", "competing", "censored")
TABLE_SCHEMA: dict[str, Any] = {
    **KEYS,
    **dict.fromkeys(COUNTS, pl.Int64),
    **{m + end: pl.Float64 for m in MEASURES for end in ("", "_lower", "_upper")},
    "reason": pl.String,
}
DIFFERENCE_SCHEMA: dict[str, Any] = {
    "model": pl.String,
    "against": pl.String,
    "outcome": pl.String,
    "landmark": pl.String,
    "horizon": pl.String,
    "measure": pl.String,
    "difference": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "reason": pl.String,
}


@dataclass(frozen=True)
class Evaluation:
    """Measures of every model, and paired differences of the first model from each other.

    Attributes
    ----------
    table
        One row for each model, outcome, landmark and horizon. Counts: `at_risk` labels, `unscored` (at risk
        without a forecast of this model), `n` (rows judged: scored by every model), `subjects` among them,
        and their state at the horizon: `events`, `competing`, `censored` before it. Measures, each with
        `_lower` and `_upper` (95%, bootstrap over subjects): `observed` (Aalen-Johansen), `mean_predicted`,
        `observed_expected` (their ratio), `auc`, `brier`, `scaled_brier` (1 - brier / that of the best
        constant). A measure that is not defined is null, and `reason` says why.
    differences
        `model` minus `against` by `measure` (`auc`, `brier`), on the same rows and replicates.
    horizons
        The nominal days of each horizon.
    facts
        What whoever made the forecasts says of them: how many subjects were seen in training, and so on.
    """

    table: pl.DataFrame
    differences: pl.DataFrame
    horizons: dict[str, float]
    n_bootstrap: int
    seed: int
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, null where a measure is not defined."""
        return {
            "horizons": self.horizons,
            "n_bootstrap": self.n_bootstrap,
            "seed": self.seed,
            "facts": self.facts,
            "table": self.table.to_dicts(),
            "differences": self.differences.to_dicts(),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text without NaN."""
        return json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False)

    def save(self, folder: str | Path) -> None:
        """Write a folder with `evaluation.json` and a manifest, whole or not at all."""
        with atomic_folder(folder, "evaluation") as scratch:
            write_json(scratch / "evaluation.json", self.to_dict())
            write_manifest(scratch, "evaluation", FORMAT_VERSION)

    def summary(self) -> str:
        """Text tables for the terminal: one line a row of `table`, then the gain in AUC over the next model.

        Of `differences` only those of the AUC from the second model are shown, where they are defined.
        """
        head = ["model", "outcome", "landmark", "horizon", "n", "events", "observed", "predicted", "O/E"]
        lines = [[*head, "AUC (95%)", "Brier", "scaled"]]
        for row in self.table.iter_rows(named=True):
            names = [row["model"], row["outcome"], row["landmark"] or "-", row["horizon"]]
            numbers = [_text(row[m], d) for m, d in zip(MEASURES[:3], (4, 4, 2), strict=True)]
            spread = _with_interval(row["auc"], row["auc_lower"], row["auc_upper"], 3)
            scores = [_text(row["brier"], 4), _text(row["scaled_brier"], 3)]
            lines.append([*names, str(row["n"]), str(row["events"]), *numbers, spread, *scores])
        tables = [_columns(lines), *self._gains()]
        unscored = self.table.group_by("model", maintain_order=True).agg(pl.col("unscored").max())
        notes = [f"{m}: up to {u} rows at risk unscored" for m, u in unscored.iter_rows() if u]
        # the count in a reason such as "fewer than 5 events (3)" differs from row to row
        reasons = self.table["reason"].drop_nulls().str.replace(r" \(\d+\)", "").unique(maintain_order=True)
        notes += [f"not defined: {reason}" for reason in reasons]
        return "\n".join(["\n\n".join(tables), *notes])

    def _gains(self) -> list[str]:
        """The table of the first model's gain in AUC over the second, where there is one."""
        shown = self.differences.filter(pl.col("difference").is_not_null(), measure="auc")
        shown = shown.filter(pl.col("against") == pl.col("against").first())
        if shown.is_empty():
            return []
        model, against = shown.row(0, named=True)["model"], shown.row(0, named=True)["against"]
        lines = [["outcome", "landmark", "horizon", f"AUC of {model} minus {against} (95%)"]]
        for row in shown.iter_rows(named=True):
            gain = _with_interval(row["difference"], row["lower"], row["upper"], 3)
            lines.append([row["outcome"], row["landmark"] or "-", row["horizon"], gain])
        return [_columns(lines)]


def evaluate_forecasts(
    risk: Any | Mapping[str, Any],
    labels: Any,
    horizons: Mapping[str, float],
    *,
    n_bootstrap: int = 200,
    seed: int = 0,
    censoring: Censoring | None = None,
) -> Evaluation:
    """Measures of forecasts per model, outcome, landmark and horizon, with intervals.

    Every model is judged on the same rows: those at risk that all models scored.

    Parameters
    ----------
    risk
        a risk table, or {name: risk table}, the first being the one compared with the others
    labels
        what happened, as `validate_labels` describes it; rows not at risk are left out
    horizons
        {name: nominal days}, such as {"1y": 365.25}; a row's `horizon_days` belongs to the nearest one (within
        1.5 days, half a percent for short and a thousandth for long horizons), and its state is taken at its
        own exact horizon. The observed incidence is taken at their median.
    n_bootstrap, seed
        replicates of the bootstrap over subjects (0: no intervals) and its seed
    censoring
        `censoring(labels, days) -> G`: for n label rows and a time each, the probability (n,) of being still
        under observation just before that time. Without it, the marginal Kaplan-Meier curve of each
        outcome and landmark, estimated anew in each replicate.

    Raises
    ------
    EvaluationError
        for tables that cannot be judged (see `validate_risk`, `validate_labels`)

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
    risks = dict(risk) if isinstance(risk, Mapping) else {"model": risk}
    if not risks:
        raise EvaluationError("at least one risk table", "none", "pass a table or {name: table}")
    for table in risks.values():
        validate_risk(table)
    validate_labels(labels)
    aligned = align(risks, labels, horizons)
    subjects, subject = np.unique(aligned.labels["subject_id"].to_numpy(), return_inverse=True)
    counts = subject_counts(len(subjects), n_bootstrap, seed)
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for (outcome, landmark), chosen in _groups(aligned.labels):
        for position, name in enumerate(horizons):
            keys = {"outcome": outcome, "landmark": landmark, "horizon": name}
            cell = Cell.of(aligned, subject, chosen, position, censoring)
            measured, compared = judge_cell(cell, counts[cell.subject])
            rows += [keys | row for row in measured]
            differences += [keys | row for row in compared]
    return Evaluation(
        pl.DataFrame(rows, schema=TABLE_SCHEMA),
        pl.DataFrame(differences, schema=DIFFERENCE_SCHEMA),
        {name: float(days) for name, days in horizons.items()},
        n_bootstrap,
        seed,
    )


def _groups(labels: pl.DataFrame) -> Iterator[tuple[tuple[str, str | None], NDArray[np.intp]]]:
    """Each (outcome, landmark) with the positions of its rows, in order of appearance."""
    indexed = labels.select("outcome", "landmark").with_row_index("row")
    groups = indexed.group_by("outcome", "landmark", maintain_order=True).agg("row")
    for outcome, landmark, rows in groups.iter_rows():
        yield (outcome, landmark), np.asarray(rows, dtype=np.intp)


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _with_interval(value: float | None, lower: float | None, upper: float | None, digits: int) -> str:
    if value is None or lower is None or upper is None:
        return _text(value, digits)
    return f"{value:.{digits}f} ({lower:.{digits}f} to {upper:.{digits}f})"


def _columns(lines: list[list[str]]) -> str:
    """Lines of cells as text, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)
