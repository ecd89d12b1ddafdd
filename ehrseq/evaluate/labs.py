"""Scores of lab forecasts given as quantiles: arrays in, numbers out.

Shapes: `quantiles` (n, Q) in the unit of the value, one column for each of `levels` (Q,) rising in (0, 1); `observed`
(n,). Scores are averaged over rows; intervals are percentiles of a bootstrap over subjects. Forecasts are judged on
the rows that every model scored, and only where a value was measured: they are forecasts given that it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.bootstrap import FEWEST_SUBJECTS, interval, subject_counts

FloatArray = NDArray[np.float64]

# .1 to .9, extended by .05 and .95: the levels whose scores this project compares
STANDARD_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Quantiles kept as 32-bit floats may cross by their rounding.
ROUNDING = 1e-5


def pinball(quantiles: ArrayLike, levels: ArrayLike, observed: ArrayLike) -> FloatArray:
    """Pinball loss of each quantile (Koenker and Bassett 1978): (n, Q), in the unit of the value.

    With u the observed value minus the quantile of level a, the loss is a u above it and (a - 1) u below.

    >>> pinball([[1.0, 3.0]], [0.25, 0.75], [2.0])
    array([[0.25, 0.25]])
    """
    above = np.asarray(observed, dtype=np.float64)[:, None] - np.asarray(quantiles, dtype=np.float64)
    level = np.asarray(levels, dtype=np.float64)
    return np.asarray(np.maximum(level * above, (level - 1) * above))


def crps(quantiles: ArrayLike, levels: ArrayLike, observed: ArrayLike) -> FloatArray:
    """Continuous ranked probability score of each row from quantiles, (n,): twice the mean pinball loss.

    It tends to the exact score as the levels fill (0, 1) evenly (Gneiting and Ranjan 2011), and depends on the
    levels: compare only scores of the same ones, such as `STANDARD_LEVELS`.

    >>> crps([[1.0, 3.0]], [0.25, 0.75], [2.0])
    array([0.5])
    """
    return np.asarray(2 * pinball(quantiles, levels, observed).mean(1))


def at_levels(quantiles: ArrayLike, levels: ArrayLike, wanted: ArrayLike) -> FloatArray:
    """Quantiles at other levels, (n, W), by straight lines between the given ones.

    Raises EvaluationError for a level outside them: tails are not invented.

    >>> at_levels([[1.0, 3.0, 4.0]], [0.1, 0.5, 0.9], [0.3, 0.5])
    array([[2., 3.]])
    """
    table, have, want = (np.asarray(a, dtype=np.float64) for a in (quantiles, levels, wanted))
    if len(want) and (want.min() < have[0] - 1e-9 or want.max() > have[-1] + 1e-9):
        raise EvaluationError(
            f"levels between {have[0]:g} and {have[-1]:g}", "others", "forecast the quantiles of those levels too"
        )
    right = np.clip(np.searchsorted(have, want), 1, len(have) - 1)
    share = (want - have[right - 1]) / (have[right] - have[right - 1])
    return np.asarray(table[:, right - 1] * (1 - share) + table[:, right] * share)


def row_scores(quantiles: ArrayLike, levels: ArrayLike, observed: ArrayLike) -> dict[str, FloatArray]:
    """Every score of each row, (n,) each: `crps`, `absolute_error` of the median, and for each pair of levels that
    lie evenly about .5, such as .05 and .95, `coverage_90` (0 or 1) and `width_90` of the interval between them.

    >>> scores = row_scores([[1.0, 2.0, 4.0]], [0.05, 0.5, 0.95], [4.5])
    >>> {name: float(value[0]) for name, value in scores.items() if name != "crps"}
    {'absolute_error': 2.5, 'coverage_90': 0.0, 'width_90': 3.0}
    """
    table, level, value = (np.asarray(a, dtype=np.float64) for a in (quantiles, levels, observed))
    scores = {"crps": crps(table, level, value)}
    if level[0] <= 0.5 <= level[-1]:
        scores["absolute_error"] = np.abs(value - at_levels(table, level, [0.5])[:, 0])
    for low in np.flatnonzero(level < 0.5):
        for high in np.flatnonzero(np.isclose(level, 1 - level[low])):
            percent = round(100 * float(level[high] - level[low]))
            scores[f"coverage_{percent}"] = ((value >= table[:, low]) & (value <= table[:, high])).astype(np.float64)
            scores[f"width_{percent}"] = table[:, high] - table[:, low]
    return scores


def judge_labs(
    quantiles: Mapping[str, ArrayLike],
    levels: ArrayLike,
    observed: ArrayLike,
    days_ahead: ArrayLike,
    subject: ArrayLike,
    windows: Mapping[str, tuple[float, float]],
    *,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Mean scores by model and window of time ahead, and paired differences of the first model from each other.

    Parameters
    ----------
    quantiles
        {model: (n, Q)}; a row with NaN is one that the model did not score
    levels, observed, days_ahead, subject
        (Q,), and (n,) each: the measured value, when it was measured, whose it is
    windows
        {name: (after, until)} in days, such as {"0-1y": (0, 365.25)}: after < days_ahead <= until

    Returns
    -------
    Rows with `model, window, measure, n, subjects, unscored, value, lower, upper, reason`, and rows with
    `model, against, window, measure, difference, lower, upper, reason`. A window with fewer than 50 subjects has null
    values and a reason.

    Raises
    ------
    EvaluationError
        for shapes that do not fit, levels that do not rise in (0, 1), quantiles that cross or values that are missing

    >>> n = 100
    >>> q = np.tile([1.0, 2.0, 3.0], (n, 1))
    >>> rows, gaps = judge_labs({"a": q, "b": q + 1}, [0.1, 0.5, 0.9], np.full(n, 2.0), np.full(n, 200.0),
    ...                         np.arange(n), {"0-1y": (0, 365.25)}, n_bootstrap=20)
    >>> [(r["model"], r["measure"], r["value"]) for r in rows if r["measure"] == "absolute_error"]
    [('a', 'absolute_error', 0.0), ('b', 'absolute_error', 1.0)]
    >>> [(g["against"], g["difference"], g["upper"]) for g in gaps if g["measure"] == "absolute_error"]
    [('b', -1.0, -1.0)]
    """
    level, value, ahead = (np.asarray(a, dtype=np.float64) for a in (levels, observed, days_ahead))
    tables = {model: np.asarray(q, dtype=np.float64) for model, q in quantiles.items()}
    subjects, person = np.unique(np.asarray(subject), return_inverse=True)
    _check(tables, level, value, ahead, person)
    missing = {model: np.isnan(q).any(1) for model, q in tables.items()}
    scored = ~np.any(list(missing.values()), axis=0)
    counts = subject_counts(len(subjects), n_bootstrap, seed)
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for name, (after, until) in windows.items():
        inside = (ahead > after) & (ahead <= until)
        chosen = inside & scored
        drawn = counts[person[chosen]].astype(np.float64)
        people = len(np.unique(person[chosen]))
        reason = None if people >= FEWEST_SUBJECTS else f"fewer than {FEWEST_SUBJECTS} subjects"
        found = {model: row_scores(q[chosen], level, value[chosen]) for model, q in tables.items()}
        for model, scores in found.items():
            facts = {"n": int(chosen.sum()), "subjects": people, "unscored": int((inside & missing[model]).sum())}
            for measure, score in scores.items():
                keys = {"model": model, "window": name, "measure": measure}
                rows.append(keys | facts | _mean("value", score, drawn, reason))
        first, *others = found
        for other in others:
            for measure, score in found[first].items():
                keys = {"model": first, "against": other, "window": name, "measure": measure}
                differences.append(keys | _mean("difference", score - found[other][measure], drawn, reason))
    return rows, differences


def _mean(name: str, score: FloatArray, drawn: FloatArray, reason: str | None) -> dict[str, Any]:
    """The mean score and its interval over the replicates of `drawn` (n, 1 + R)."""
    if reason is not None:
        return {name: None, "lower": None, "upper": None, "reason": reason}
    total = drawn.sum(0)
    means = np.divide(score @ drawn, total, out=np.full_like(total, np.nan), where=total > 0)
    lower, upper = interval(means)
    return {name: float(means[0]), "lower": lower, "upper": upper, "reason": None}


def _check(
    tables: Mapping[str, FloatArray], level: FloatArray, value: FloatArray, ahead: FloatArray, person: NDArray[Any]
) -> None:
    if not tables:
        raise EvaluationError("the quantiles of at least one model", "none", "pass {name: quantiles}")
    if not len(level) or not ((level > 0) & (level < 1)).all() or not (np.diff(level) > 0).all():
        raise EvaluationError("levels that rise between 0 and 1", "others", "pass e.g. .05, .25, .5, .75, .95")
    shapes = {q.shape for q in tables.values()} | {(len(value), len(level))}
    if len(shapes) > 1 or ahead.shape != value.shape or person.shape != value.shape:
        raise EvaluationError(
            f"quantiles of shape {(len(value), len(level))} and a time and a subject for each value",
            "other shapes",
            "give one row a measured value",
        )
    if not np.isfinite(value).all() or not np.isfinite(ahead).all():
        raise EvaluationError("a value and a time in each row", "rows without", "leave out what was not measured")
    for q in tables.values():
        room = ROUNDING * np.maximum(1.0, np.abs(q[:, :-1]))
        crossing = int((np.diff(q, axis=1) < -room).any(1).sum())
        if crossing:
            raise EvaluationError(
                "quantiles that do not fall as the level rises", f"{crossing} rows that do", "sort the quantiles"
            )
