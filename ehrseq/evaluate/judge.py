"""Table rows from replicates: estimates with intervals, paired differences, curves, and measures over all horizons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehrseq.evaluate.bootstrap import interval
from ehrseq.evaluate.cell import (
    COMPARED,
    MEASURES,
    SENSITIVITY,
    Cell,
    Given,
    Replicates,
    curve_points,
    quotient,
    replicates,
    undefined,
)
from ehrseq.evaluate.concordance import concordance
from ehrseq.evaluate.decision import thresholds_for
from ehrseq.survival import kaplan_meier_censoring

FloatArray = NDArray[np.float64]
Row = dict[str, Any]

MACRO = ("auc", "brier")
OVERALL = ("concordance", "ibs", "ibs_skill")
EVERYONE = "act on everyone"
# Why a measure that a cell allows may still be undefined.
UNDEFINED = {"slope": "all forecasts are equal", "auc": "no fold has both events and others"}


@dataclass
class Tables:
    """Rows of every table of an evaluation, while they are gathered."""

    table: list[Row] = field(default_factory=list)
    differences: list[Row] = field(default_factory=list)
    sensitivity: list[Row] = field(default_factory=list)
    overall: list[Row] = field(default_factory=list)
    calibration: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    decisions: list[Row] = field(default_factory=list)
    macro: list[Row] = field(default_factory=list)


def judge_cell(cell: Cell, counts: NDArray[np.uint16], keys: Row, into: Tables) -> dict[str, Replicates]:
    """Judge one cell, add its rows to `into`, and give back its replicates.

    `counts` has shape (n, 1 + R): how often each row was drawn, the first column all 1.
    """
    reasons = undefined(cell)
    largest = max((float(np.quantile(p, 0.99)) for p in cell.probability.values() if len(p)), default=0.0)
    thresholds = thresholds_for(largest) if "brier" not in reasons else ()
    found = replicates(cell, counts, reasons, thresholds=thresholds)
    into.table += [keys | row for row in _rows(cell, found, reasons)]
    into.differences += [keys | row for row in differences(found, COMPARED, reasons)]
    if cell.g_event is not None:
        marginal = replicates(replace(cell, g_event=None, g_horizon=None), counts, reasons, brief=True)
        into.sensitivity += [keys | row for row in _named(marginal, cell, SENSITIVITY)]
    for model, measures in found.items():
        label = {**keys, "model": model or EVERYONE}
        if "net_benefit" in measures:
            into.decisions += [
                label | {"threshold": t} | estimate("net_benefit", v)
                for t, v in zip(thresholds, measures["net_benefit"], strict=True)
            ]
        if "group_observed" in measures:
            pairs = zip(measures["group_predicted"], measures["group_observed"], strict=True)
            into.calibration += [
                label | {"group": g, "mean_predicted": float(p[0])} | estimate("observed", o)
                for g, (p, o) in enumerate(pairs, 1)
            ]
            points = curve_points(cell.probability[model])
            into.curves += [
                label | {"probability": float(x)} | estimate("observed", v)
                for x, v in zip(points, measures["curve"], strict=True)
            ]
    return found


def judge_overall(
    cells: Sequence[Cell],
    found: Sequence[dict[str, Replicates]],
    days: Sequence[float],
    counts: NDArray[np.uint16],
    given: Given | None,
    keys: Row,
    into: Tables,
) -> None:
    """Measures over all horizons of one outcome and landmark: concordance and the integrated Brier score.

    `counts` (rows of the group, 1 + R). The concordance ranks by the forecast at the last horizon at which anything is
    defined. The Brier score is integrated by trapezoids over the horizons at which it is defined (two at least), and
    its skill is 1 minus its ratio to that of the best constant at each horizon.
    """
    models = list(cells[0].probability)
    collected: dict[str, Replicates] = {m: {} for m in models}
    usable = [i for i, f in enumerate(found) if "brier" in f.get(models[0], {})]
    reasons = {}
    if len(usable) < 2:
        reasons = dict.fromkeys(OVERALL[1:], "fewer than two horizons with a Brier score")
    for model in models if len(usable) > 1 else ():
        at = [days[i] for i in usable]
        score, null = (
            np.asarray(np.trapezoid([found[i][model][name] for i in usable], at, axis=0))
            for name in ("brier", "null_brier")
        )
        collected[model] |= {"ibs": score / (at[-1] - at[0]), "ibs_skill": 1 - quotient(score, null)}
    ranked = [i for i in usable if "auc" in found[i][models[0]]]
    if not ranked:
        reasons["concordance"] = "no horizon with enough events"
    elif given is not None and not hasattr(given, "level"):
        reasons["concordance"] = "not computed with a censoring function"
    else:
        cell = cells[ranked[-1]]
        values = _concordance(cell, counts[cell.rows], given)
        for model, value in zip(models, values, strict=True):
            collected[model]["concordance"] = value
    covered = {"horizons": len(usable), "until_days": float(days[usable[-1]]) if usable else None}
    for model in models:
        row: Row = {"model": model, **covered, "reason": _text(reasons)}
        for name in OVERALL:
            row |= estimate(name, collected[model].get(name), named=True)
        into.overall.append({**keys, **row})
    into.differences += [keys | {"horizon": None} | row for row in differences(collected, OVERALL, reasons)]


def _concordance(cell: Cell, counts: NDArray[np.uint16], given: Given | None) -> FloatArray:
    """Of every model, (M, 1 + R). The weights are those of the sample in every replicate."""
    scores = np.stack(list(cell.probability.values()))
    if given is None or cell.g_event is None:
        before = kaplan_meier_censoring(cell.days, cell.cause, at=cell.days)
        after: Any = kaplan_meier_censoring(cell.days, cell.cause, at=cell.days, limit="right")
    else:
        before = cell.g_event

        def after(cases: NDArray[np.intp]) -> FloatArray:
            times = np.broadcast_to(cell.days[cases], (len(cell.days), len(cases)))
            return given.until(times, after=True, rows=cell.rows).T

    return concordance(scores, cell.days, cell.cause, cell.horizon, before, after, counts.astype(np.float64))


def estimate(name: str, values: FloatArray | None, *, named: bool = False) -> Row:
    """`name`, `lower` and `upper` of (1 + R,) values, null where not defined; `named`: `name_lower`, `name_upper`.

    >>> estimate("auc", np.array([0.7]))
    {'auc': 0.7, 'lower': None, 'upper': None}
    """
    ends = (f"{name}_lower", f"{name}_upper") if named else ("lower", "upper")
    if values is None or not np.isfinite(values[0]):
        return dict.fromkeys((name, *ends))
    return {name: float(values[0]), **dict(zip(ends, interval(values), strict=True))}


def differences(found: Mapping[str, Replicates], measures: Sequence[str], reasons: Mapping[str, str]) -> list[Row]:
    """The first model's measures minus each other's, on the same rows and replicates."""
    first, *others = (m for m in found if m)
    rows = []
    for other in others:
        for name in measures:
            pair = found[first].get(name), found[other].get(name)
            gap = pair[0] - pair[1] if pair[0] is not None and pair[1] is not None else None
            keys: Row = {"model": first, "against": other, "measure": name}
            rows.append(keys | estimate("difference", gap) | {"reason": reasons.get(name)})
    return rows


def macro_differences(found: Sequence[Mapping[str, Replicates]], horizon: str) -> list[Row]:
    """The first model's mean over all places minus each other's, by measure, in the places where both have it.

    A place is an outcome at a landmark; `found` holds the replicates of each, drawn from the same subjects.
    """
    rows = []
    first, *others = (m for m in found[0] if m) if found else [""]
    for other in others:
        for name in MACRO:
            places = [(f[first][name], f[other][name]) for f in found if name in f[first] and name in f[other]]
            gap = np.mean([a - b for a, b in places], axis=0) if places else None
            keys: Row = {"model": first, "against": other, "horizon": horizon, "measure": name, "places": len(places)}
            rows.append(keys | estimate("difference", gap))
    return rows


def _rows(cell: Cell, found: Mapping[str, Replicates], reasons: Mapping[str, str]) -> list[Row]:
    """One row of the main table a model."""
    state = cell.state
    shared = {
        "weights": "marginal" if cell.g_event is None else "conditional",
        "at_risk": cell.at_risk,
        "n": len(cell.days),
        "subjects": cell.subjects,
        "events": int(state.case.sum()),
        "competing": int(state.competing.sum()),
        "censored": int(state.censored.sum()),
    }
    rows = []
    for model in cell.probability:
        values: Row = {}
        missing = dict(reasons)
        for name in MEASURES:
            values |= estimate(name, found[model].get(name), named=True)
            if values[name] is None and name not in missing:
                missing[name] = UNDEFINED.get(name, "the mean forecast is 0")
        rows.append({"model": model, "unscored": cell.unscored[model], **shared, **values, "reason": _text(missing)})
    return rows


def _named(found: Mapping[str, Replicates], cell: Cell, measures: Sequence[str]) -> list[Row]:
    rows = []
    for model in cell.probability:
        row: Row = {"model": model}
        for name in measures:
            row |= estimate(name, found[model].get(name), named=True)
        rows.append(row)
    return rows


def _text(reasons: Mapping[str, str]) -> str | None:
    """Reasons with the measures that each is about; None where there are none."""
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault(why, []).append(name)
    return "; ".join(f"{why}: {', '.join(names)}" for why, names in groups.items()) or None
