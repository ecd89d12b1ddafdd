"""One outcome, landmark and horizon: every measure of every model, in the sample and in each bootstrap replicate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.bootstrap import FEWEST_SUBJECTS
from ehrseq.evaluate.calibration import Smoother, calibration_error, slope
from ehrseq.evaluate.decision import net_benefit
from ehrseq.evaluate.metrics import (
    State,
    auc,
    brier,
    censoring_weights,
    null_brier,
    state_at,
    weighted_mean,
)
from ehrseq.evaluate.pseudo import aalen_johansen_pseudo_values, weighted_pseudo_values
from ehrseq.evaluate.tables import Aligned
from ehrseq.survival import aalen_johansen, kaplan_meier_censoring

FloatArray = NDArray[np.float64]
Rows = NDArray[np.intp]
Censoring = Callable[[pl.DataFrame, FloatArray], FloatArray]
Replicates = dict[str, FloatArray]

# Below this an AUC or a Brier score says more about the few subjects than about the forecast.
FEWEST_CASES = 5
GROUPS = 10
MEASURES = (
    "observed", "mean_predicted", "observed_expected", "auc", "brier", "scaled_brier", "slope", "ici", "e50", "e90",
)  # fmt: skip
SENSITIVITY = ("observed", "observed_expected", "auc", "brier")
COMPARED = ("auc", "brier", "ici")


class Given(Protocol):
    """Given chances of being observed for the rows of one outcome and landmark, in their order."""

    def until(self, days: FloatArray, *, after: bool = False, rows: Rows | slice = slice(None)) -> FloatArray:
        """P(observed until just before `days`), or on and after them; `days` as (rows,) or (rows, H)."""


@dataclass(frozen=True)
class FromFunction:
    """A caller's `censoring(labels, days)` for the rows of one outcome and landmark."""

    censoring: Censoring
    labels: pl.DataFrame

    def until(self, days: FloatArray, *, after: bool = False, rows: Rows | slice = slice(None)) -> FloatArray:
        """As `Given.until`, for (rows,) days alone; `after` makes no difference to a smooth curve."""
        chosen = self.labels if isinstance(rows, slice) else self.labels[rows]
        g = np.asarray(self.censoring(chosen, days), dtype=np.float64)
        if g.shape != days.shape or not ((g >= 0) & (g <= 1)).all():
            raise EvaluationError(
                "one probability of being observed for each row", "other values", "check the censoring function"
            )
        return g


@dataclass(frozen=True)
class Cell:
    """The rows judged: at risk, and scored by every model. Arrays of shape (n,).

    `g_event` and `g_horizon` are given probabilities of being still observed just before the row's own time and
    its horizon; None stands for the marginal Kaplan-Meier curve. `subject` numbers the subjects; `fold` says which
    rows may be ranked against each other (those that one model predicted); `rows` are their places in the group.
    """

    days: FloatArray
    cause: NDArray[np.int8]
    horizon: FloatArray
    subject: Rows
    probability: dict[str, FloatArray]
    at_risk: int
    unscored: dict[str, int]
    rows: Rows
    fold: NDArray[Any] | None = None
    g_event: FloatArray | None = None
    g_horizon: FloatArray | None = None

    @classmethod
    def of(cls, aligned: Aligned, subject: Rows, chosen: Rows, position: int, given: Given | None = None) -> Cell:
        """The cell of the `chosen` rows of `aligned` at the horizon at `position`."""
        forecasts = {model: table[chosen, position] for model, table in aligned.probability.items()}
        missing = {model: np.isnan(p) for model, p in forecasts.items()}
        scored = ~np.any(list(missing.values()), axis=0)
        places = np.flatnonzero(scored)
        rows = chosen[places]
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
            rows=places,
            fold=labels["fold"].to_numpy() if "fold" in labels.columns else None,
            g_event=None if given is None else given.until(days, rows=places),
            g_horizon=None if given is None else given.until(horizon, rows=places),
        )

    def part(self, keep: NDArray[np.bool_], models: tuple[str, ...]) -> Cell:
        """Some of the rows, and some of the models."""
        arrays: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[keep]
            for name in ("days", "cause", "horizon", "subject", "rows", "fold", "g_event", "g_horizon")
        }
        kept = {m: self.probability[m][keep] for m in models}
        return replace(self, **arrays, probability=kept, at_risk=int(keep.sum()), unscored=dict.fromkeys(models, 0))

    @property
    def state(self) -> State:
        """What is known of each row at its horizon."""
        return state_at(self.days, self.cause, self.horizon)

    @property
    def subjects(self) -> int:
        """How many people the rows are about."""
        return len(np.unique(self.subject))


def undefined(cell: Cell) -> dict[str, str]:
    """Measures that cannot be given, with the reason."""
    state = cell.state
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


def replicates(
    cell: Cell,
    counts: NDArray[np.uint16],
    reasons: Mapping[str, str],
    *,
    thresholds: tuple[float, ...] = (),
    brief: bool = False,
) -> dict[str, Replicates]:
    """Each measure of each model in the sample (index 0) and in every replicate: {model: {measure: (..., 1 + R)}}.

    `counts` (n, 1 + R) says how often each row was drawn. Beside `MEASURES` there are `null_brier` and, unless `brief`,
    `net_benefit` (K, 1 + R) at the thresholds and `group_predicted` and `group_observed` (groups, 1 + R) by groups of
    the forecast. The model "" stands for acting on everybody.
    """
    if not len(cell.days):
        return {m: {} for m in cell.probability}
    prepared = _Prepared.of(cell, reasons, thresholds, brief)
    # A few columns at a time stay in the processor's cache.
    width = int(np.clip(4_000_000 // len(cell.days), 8, 32))
    parts: dict[str, dict[str, list[FloatArray]]] = {}
    for start in range(0, counts.shape[1], width):
        drawn = counts[:, start : start + width].astype(np.float64)
        for model, measures in prepared.measures(drawn).items():
            for name, values in measures.items():
                parts.setdefault(model, {}).setdefault(name, []).append(values)
    return {m: {name: np.concatenate(v, axis=-1) for name, v in named.items()} for m, named in parts.items()}


@dataclass(frozen=True)
class _Prepared:
    """What the replicates of a cell share."""

    cell: Cell
    reasons: Mapping[str, str]
    thresholds: tuple[float, ...]
    brief: bool
    state: State
    pseudo: FloatArray | None
    smoothers: dict[str, Smoother]
    groups: dict[str, list[Rows]]

    @classmethod
    def of(cls, cell: Cell, reasons: Mapping[str, str], thresholds: tuple[float, ...], brief: bool) -> _Prepared:
        state = cell.state
        pseudo, smoothers, groups = None, {}, {}
        if not brief and "ici" not in reasons:
            if cell.g_event is not None and cell.g_horizon is not None:
                weights = censoring_weights(state, cell.g_event, cell.g_horizon)
                pseudo = weighted_pseudo_values(state.case, weights)
            else:
                pseudo = aalen_johansen_pseudo_values(cell.days, cell.cause, float(np.median(cell.horizon)))
            smoothers = {m: Smoother.of(p) for m, p in cell.probability.items()}
            groups = {m: forecast_groups(p, cell.subjects) for m, p in cell.probability.items()}
        return cls(cell, reasons, thresholds, brief, state, pseudo, smoothers, groups)

    def measures(self, drawn: FloatArray) -> dict[str, Replicates]:
        """The defined measures for some replicates: drawn (n, C) to {model: {measure: (..., C)}}."""
        cell, state = self.cell, self.state
        result: dict[str, Replicates] = {
            m: {"mean_predicted": weighted_mean(p, drawn)} for m, p in cell.probability.items()
        }
        if "observed" in self.reasons:
            return result
        weights = drawn * self._weights(drawn)
        observed = self._observed(drawn, weights)
        for measures in result.values():
            measures["observed"] = observed
        if "brier" in self.reasons:
            return result
        known = ~state.censored
        case, seen = state.case[known], weights[known]
        reference = null_brier(case, seen)
        for model, measures in result.items():
            p = cell.probability[model]
            measures["observed_expected"] = quotient(observed, measures["mean_predicted"])
            measures["brier"] = brier(p[known], case, seen)
            measures["null_brier"] = reference
            if "auc" not in self.reasons:
                fold = None if cell.fold is None else cell.fold[known]
                measures["auc"] = auc(p[known], case, seen, fold)
                measures["scaled_brier"] = 1.0 - quotient(measures["brier"], reference)
            if self.pseudo is not None:
                measures |= self._calibration(model, p, drawn)
            if self.thresholds:
                measures["net_benefit"] = net_benefit(p, state.case, weights, drawn, self.thresholds)
        if self.thresholds:
            ones = np.ones(len(drawn))
            result[""] = {"net_benefit": net_benefit(ones, state.case, weights, drawn, self.thresholds)}
        return result

    def _observed(self, drawn: FloatArray, weights: FloatArray) -> FloatArray:
        """The incidence: Aalen-Johansen's, or with given weights the weighted share of cases."""
        if self.cell.g_event is not None:
            return weighted_mean(self.state.case, weights)
        return self._incidence(slice(None), drawn)

    def _incidence(self, rows: Rows | slice, drawn: FloatArray) -> FloatArray:
        at = [float(np.median(self.cell.horizon))]
        incidence = aalen_johansen(self.cell.days[rows], self.cell.cause[rows], drawn[rows], at=at)[0]
        return np.asarray(incidence[0])

    def _calibration(self, model: str, p: FloatArray, drawn: FloatArray) -> Replicates:
        smoother = self.smoothers[model]
        found: Replicates = {"slope": slope(p, self.pseudo, drawn)}  # type: ignore[arg-type]
        curve = smoother.coefficients(self.pseudo, drawn)  # type: ignore[arg-type]
        errors = calibration_error(p, smoother.fitted(curve), drawn)
        found |= dict(zip(("ici", "e50", "e90"), errors, strict=True))
        if self.groups[model]:
            rows = self.groups[model]
            found["group_predicted"] = np.stack([weighted_mean(p[r], drawn[r]) for r in rows])
            found["group_observed"] = np.stack([self._incidence(r, drawn) for r in rows])
            found["curve"] = smoother.at(curve_points(p), curve)
        return found

    def _weights(self, drawn: FloatArray) -> FloatArray:
        cell, state = self.cell, self.state
        if cell.g_event is not None and cell.g_horizon is not None:
            return censoring_weights(state, cell.g_event, cell.g_horizon)[:, None]
        times, row = np.unique(cell.horizon, return_inverse=True)
        happened = state.case | state.competing
        at = np.concatenate([times, cell.days[happened]])
        g = kaplan_meier_censoring(cell.days, cell.cause, drawn, at=at)
        own = np.ones_like(drawn)
        own[happened] = g[len(times) :]
        return censoring_weights(state, own, g[row])


def forecast_groups(probability: FloatArray, subjects: int) -> list[Rows]:
    """Rows in up to ten groups of rising forecast, equal ones together, of about 50 subjects or more.

    >>> [len(rows) for rows in forecast_groups(np.repeat([0.1, 0.2, 0.3], 80), 240)]
    [80, 80, 80]
    """
    wanted = min(GROUPS, subjects // FEWEST_SUBJECTS)
    if wanted < 2:
        return []
    inner = np.unique(np.quantile(probability, np.arange(1, wanted) / wanted))
    group = np.searchsorted(inner, probability)
    return [np.flatnonzero(group == g) for g in np.unique(group)]


def curve_points(probability: FloatArray) -> FloatArray:
    """Forecasts at which the smooth curve is drawn: from the 1st to the 99th percentile."""
    low, high = np.quantile(probability, (0.01, 0.99))
    return np.linspace(low, high, 25)


def quotient(part: FloatArray, whole: FloatArray) -> FloatArray:
    """`part / whole`, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
