"""Judging one outcome, landmark and horizon: the measures of every model on the same rows and replicates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.bootstrap import interval
from ehrseq.evaluate.metrics import (
    State,
    auc,
    brier,
    censoring_weights,
    null_brier,
    state_at,
    weighted_mean,
)
from ehrseq.evaluate.tables import Aligned
from ehrseq.survival import aalen_johansen, kaplan_meier_censoring

FloatArray = NDArray[np.float64]
Censoring = Callable[[pl.DataFrame, FloatArray], FloatArray]
Replicates = dict[str, FloatArray]

# Below this an AUC or a Brier score says more about the few subjects than about the forecast.
FEWEST_CASES = 5
MEASURES = ("observed", "mean_predicted", "observed_expected", "auc", "brier", "scaled_brier")
COMPARED = ("auc", "brier")


@dataclass(frozen=True)
class Cell:
    """The rows judged: at risk, and scored by every model. Arrays of shape (n,).

    `g_event` and `g_horizon` are given probabilities of being still observed just before the row's own time and
    its horizon; None stands for the marginal Kaplan-Meier curve. `subject` numbers the subjects.
    """

    days: FloatArray
    cause: NDArray[np.int8]
    horizon: FloatArray
    subject: NDArray[np.intp]
    probability: dict[str, FloatArray]
    at_risk: int
    unscored: dict[str, int]
    g_event: FloatArray | None = None
    g_horizon: FloatArray | None = None

    @classmethod
    def of(
        cls,
        aligned: Aligned,
        subject: NDArray[np.intp],
        chosen: NDArray[np.intp],
        position: int,
        censoring: Censoring | None = None,
    ) -> Cell:
        """The cell of the `chosen` rows of `aligned` at the horizon at `position`."""
        forecasts = {model: table[chosen, position] for model, table in aligned.probability.items()}
        missing = {model: np.isnan(p) for model, p in forecasts.items()}
        scored = ~np.any(list(missing.values()), axis=0)
        rows = chosen[scored]
        labels = aligned.labels[rows]
        days, horizon = labels["days"].to_numpy(), aligned.horizon_days[rows, position]
        return cls(
            days=days,
            cause=labels["cause"].to_numpy(),
            horizon=horizon,
            subject=subject[rows],
            probability={model: p[scored] for model, p in forecasts.items()},
            at_risk=len(chosen),
            unscored={model: int(m.sum()) for model, m in missing.items()},
            g_event=_given(censoring, labels, days),
            g_horizon=_given(censoring, labels, horizon),
        )


def judge_cell(cell: Cell, counts: NDArray[np.uint16]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One table row a model, and the differences of the first model from each other.

    `counts` has shape (n, 1 + R): how often each row was drawn, the first column all 1.
    """
    state = state_at(cell.days, cell.cause, cell.horizon)
    reasons = _undefined(cell, state)
    found = _replicates(cell, state, counts, reasons) if len(cell.days) else {m: {} for m in cell.probability}
    shared = {
        "at_risk": cell.at_risk,
        "n": len(cell.days),
        "subjects": len(np.unique(cell.subject)),
        "events": int(state.case.sum()),
        "competing": int(state.competing.sum()),
        "censored": int(state.censored.sum()),
    }
    rows = []
    for model, measures in found.items():
        missing = dict(reasons)
        values: dict[str, float | None] = {}
        for name in MEASURES:
            summary = _summary(measures.get(name))
            values |= dict(zip((name, f"{name}_lower", f"{name}_upper"), summary, strict=True))
            if summary[0] is None and name not in missing:
                missing[name] = "the mean forecast is 0"
        reason = "; ".join(f"{why}: {', '.join(names)}" for why, names in _grouped(missing).items()) or None
        rows.append({"model": model, "unscored": cell.unscored[model], **shared, **values, "reason": reason})
    return rows, _differences(found, reasons)


def _given(censoring: Censoring | None, labels: pl.DataFrame, days: FloatArray) -> FloatArray | None:
    if censoring is None:
        return None
    g = np.asarray(censoring(labels, days), dtype=np.float64)
    if g.shape != days.shape or not ((g >= 0) & (g <= 1)).all():
        raise EvaluationError(
            "one probability of being observed for each row", "other values", "check the censoring function"
        )
    return g


def _undefined(cell: Cell, state: State) -> dict[str, str]:
    """Measures that cannot be given, with the reason."""
    if not len(cell.days):
        why = "no row at risk was scored by every model" if cell.at_risk else "nobody is at risk"
        return dict.fromkeys(MEASURES, why)
    if state.censored.any() and not state.event_free.any():
        return dict.fromkeys((m for m in MEASURES if m != "mean_predicted"), "follow-up ends before the horizon")
    cases = int(state.case.sum())
    if cases < FEWEST_CASES:
        return dict.fromkeys(MEASURES[2:], f"fewer than {FEWEST_CASES} events ({cases})")
    if not (state.event_free | state.competing).any():
        return dict.fromkeys(("auc", "scaled_brier"), "no controls")
    return {}


def _replicates(
    cell: Cell, state: State, counts: NDArray[np.uint16], undefined: dict[str, str]
) -> dict[str, Replicates]:
    """Each measure of each model in the sample (index 0) and in every replicate: shape (1 + R,)."""
    # A few columns at a time stay in the processor's cache.
    width = int(np.clip(4_000_000 // len(cell.days), 8, 32))
    parts: dict[str, dict[str, list[FloatArray]]] = {model: {} for model in cell.probability}
    for start in range(0, counts.shape[1], width):
        drawn = counts[:, start : start + width].astype(np.float64)
        for model, measures in _measures(cell, state, drawn, undefined).items():
            for name, values in measures.items():
                parts[model].setdefault(name, []).append(values)
    return {m: {name: np.concatenate(v) for name, v in named.items()} for m, named in parts.items()}


def _measures(cell: Cell, state: State, drawn: FloatArray, undefined: dict[str, str]) -> dict[str, Replicates]:
    """The defined measures for some replicates: drawn (n, C) to {model: {measure: (C,)}}."""
    result = {m: {"mean_predicted": weighted_mean(p, drawn)} for m, p in cell.probability.items()}
    if "observed" in undefined:
        return result
    at = [float(np.median(cell.horizon))]
    observed = aalen_johansen(cell.days, cell.cause, drawn, at=at)[0][0]
    for measures in result.values():
        measures["observed"] = observed
    if "brier" in undefined:
        return result
    known = ~state.censored
    weights = (drawn * _censoring_weights(cell, state, drawn))[known]
    case = state.case[known]
    reference = null_brier(case, weights)
    for model, measures in result.items():
        probability = cell.probability[model][known]
        measures["observed_expected"] = _quotient(observed, measures["mean_predicted"])
        measures["brier"] = brier(probability, case, weights)
        if "auc" not in undefined:
            measures["auc"] = auc(probability, case, weights)
            measures["scaled_brier"] = 1.0 - _quotient(measures["brier"], reference)
    return result


def _censoring_weights(cell: Cell, state: State, drawn: FloatArray) -> FloatArray:
    if cell.g_event is not None and cell.g_horizon is not None:
        return censoring_weights(state, cell.g_event, cell.g_horizon)[:, None]
    times, row = np.unique(cell.horizon, return_inverse=True)
    happened = state.case | state.competing
    at = np.concatenate([times, cell.days[happened]])
    g = kaplan_meier_censoring(cell.days, cell.cause, drawn, at=at)
    own = np.ones_like(drawn)
    own[happened] = g[len(times) :]
    return censoring_weights(state, own, g[row])


def _differences(found: dict[str, Replicates], reasons: dict[str, str]) -> list[dict[str, Any]]:
    first, *others = found
    rows = []
    for other in others:
        for name in COMPARED:
            pair = found[first].get(name), found[other].get(name)
            gap = pair[0] - pair[1] if pair[0] is not None and pair[1] is not None else None
            value, lower, upper = _summary(gap)
            rows.append(
                {
                    "model": first,
                    "against": other,
                    "measure": name,
                    "difference": value,
                    "lower": lower,
                    "upper": upper,
                    "reason": reasons.get(name),
                }
            )
    return rows


def _summary(values: FloatArray | None) -> tuple[float | None, float | None, float | None]:
    if values is None or not np.isfinite(values[0]):
        return None, None, None
    return (float(values[0]), *interval(values))


def _quotient(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _grouped(reasons: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault(why, []).append(name)
    return groups
