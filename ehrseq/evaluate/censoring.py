"""The chance of still being observed, given what was known at the prediction time.

Marginal weights reward under-prediction where follow-up depends on risk. The conditional model here is cross-fitted by
subject: boosted trees give each row's relative hazard of censoring in a few intervals, and one baseline curve, the
Kaplan-Meier curve of censoring with each row counted by its relative hazard, gives the level at every day. Rows that
are all alike give the marginal Kaplan-Meier curve exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from ehrseq.errors import EvaluationError

FloatArray = NDArray[np.float64]

INTERVALS = 6
BANDS = 32
FOLDS = 5
# With fewer censored rows than this in an interval its relative hazards are noise.
FEWEST_CENSORED = 40
# How far from the mean one row's hazard of being censored may be taken to be.
LARGEST_RATIO = 20.0
KEY = ("subject_id", "prediction_time")


@dataclass(frozen=True)
class Observed:
    """The probability of still being observed for n rows: `ratio` (n, B) on the intervals `edges` (B + 1,) days.

    `times` (K,) are the days at which somebody was censored, `level` (K + 1,) the baseline's cumulative hazard after
    0, 1, ... of them.
    """

    ratio: FloatArray
    edges: FloatArray
    times: FloatArray
    level: FloatArray

    def until(
        self, days: ArrayLike, *, after: bool = False, rows: NDArray[np.intp] | slice = slice(None)
    ) -> FloatArray:
        """P(observed until just before `days`) or, with `after`, P(observed on and after them).

        `days` is (n,) or (n, H), or (H,) with an own set of `rows`: (rows, H) by broadcasting.
        """
        t = np.asarray(days, dtype=np.float64)
        ratio = self.ratio[rows]
        side: Literal["left", "right"] = "right" if after else "left"
        reached = self.level[np.searchsorted(self.times, t, side=side)]
        bounds = self.level[np.searchsorted(self.times, self.edges, side="right")]
        ratio = ratio.reshape(len(ratio), *[1] * (t.ndim - 1), ratio.shape[1])
        if t.ndim == 1 and len(t) != len(self.ratio[rows]):
            raise EvaluationError("a time for each row", "another number", "give (n, H) times")
        parts = np.clip(reached[..., None], bounds[:-1], bounds[1:]) - bounds[:-1]
        return np.asarray(np.exp(-(ratio * parts).sum(-1)))


def fit_censoring(
    days: ArrayLike, cause: ArrayLike, covariates: ArrayLike, subject: ArrayLike, *, seed: int = 0
) -> Observed:
    """The conditional censoring model of n rows; `covariates` is (n, P), NaN where unknown.

    Each row's relative hazard comes from a model that saw no row of its subject. With few censored rows the
    covariates are left out.

    >>> observed = fit_censoring([1, 2, 2, 3], [1, 2, 0, 0], np.zeros((4, 1)), range(4))
    >>> observed.until([2, 2.5, 1, 3.0])
    array([1. , 0.5, 1. , 0.5])
    """
    time, which = np.asarray(days, dtype=np.float64), np.asarray(cause)
    x = np.asarray(covariates, dtype=np.float64).reshape(len(time), -1)
    censored = which == 0
    edges = _edges(time[censored])
    ratio = np.ones((len(time), len(edges) - 1))
    if x.shape[1] and censored.sum() >= 2 * FEWEST_CENSORED and len(np.unique(subject)) >= 2 * FOLDS:
        ratio = _cross_fitted(time, censored, x, np.asarray(subject), edges, seed)
    times, level = _baseline(time, censored, ratio, edges)
    return Observed(ratio, edges, times, level)


class ConditionalCensoring:
    """`censoring(labels, days) -> G` for `evaluate_forecasts`, fitted anew on each outcome and landmark.

    `covariates` has `subject_id`, `prediction_time` and numeric columns, one row for each prediction time.
    """

    def __init__(self, covariates: pl.DataFrame, *, seed: int = 0) -> None:
        missing = [c for c in KEY if c not in covariates.columns]
        others = [c for c in covariates.columns if c not in KEY]
        if missing or not others or not all(covariates[c].dtype.is_numeric() for c in others):
            raise EvaluationError(
                "covariates with subject_id, prediction_time and numeric columns", "other columns",
                "see ehrseq.evaluate.covariates",
            )  # fmt: skip
        if covariates.select(KEY).is_duplicated().any():
            raise EvaluationError("one row of covariates for each prediction time", "several", "remove the duplicates")
        self.covariates, self.columns, self.seed = covariates, others, seed

    def fit(self, labels: pl.DataFrame) -> Observed:
        """The model of the rows of one outcome and landmark (`subject_id, prediction_time, days, cause`)."""
        joined = labels.select(KEY).join(self.covariates, on=list(KEY), how="left", maintain_order="left")
        return fit_censoring(
            labels["days"].to_numpy(),
            labels["cause"].to_numpy(),
            joined.select(pl.col(self.columns).cast(pl.Float64)).to_numpy(),
            labels["subject_id"].to_numpy(),
            seed=self.seed,
        )


def _edges(censored_days: FloatArray) -> FloatArray:
    wanted = int(np.clip(len(censored_days) // FEWEST_CENSORED, 1, INTERVALS))
    inner = np.unique(np.quantile(censored_days, np.arange(1, wanted) / wanted)) if wanted > 1 else np.zeros(0)
    return np.concatenate([[-1.0], inner, [np.inf]])


def _cross_fitted(
    time: FloatArray,
    censored: NDArray[np.bool_],
    x: FloatArray,
    subject: NDArray[np.int64],
    edges: FloatArray,
    seed: int,
) -> FloatArray:
    from sklearn.ensemble import HistGradientBoostingRegressor

    people, person = np.unique(subject, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(people))[person] % FOLDS
    starts, ends = np.maximum(edges[:-1], 0.0), edges[1:]
    row, interval = np.nonzero(time[:, None] > starts)
    exposure = np.minimum(time[row], ends[interval]) - starts[interval]
    happened = censored[row] & (time[row] <= ends[interval])
    # days would make for huge weights and tiny targets
    exposure = exposure / exposure.mean()
    x = _banded(x)
    design = np.column_stack([x[row], interval])
    ratio = np.ones((len(time), len(starts)))
    everywhere = [np.column_stack([x, np.full(len(x), b)]) for b in range(len(starts))]
    for f in range(FOLDS):
        fitted = fold[row] != f
        model = HistGradientBoostingRegressor(
            loss="poisson", learning_rate=0.1, max_iter=60, max_leaf_nodes=8, max_bins=BANDS, min_samples_leaf=40,
            l2_regularization=1.0, early_stopping=False, random_state=seed,
        )  # fmt: skip
        rows = fitted & (exposure > 1e-9)
        # scikit-learn cannot bin a column of which nothing is known
        usable = ~np.isnan(design[rows]).all(0)
        model.fit(design[rows][:, usable], happened[rows] / exposure[rows], sample_weight=exposure[rows])
        own = fold == f
        for b, inputs in enumerate(everywhere):
            predicted = model.predict(inputs[:, usable])
            # the level of an interval belongs to the baseline
            ratio[own, b] = predicted[own] / predicted.mean()
    return np.clip(ratio, 1 / LARGEST_RATIO, LARGEST_RATIO)


def _banded(x: FloatArray) -> FloatArray:
    """Each covariate as the number of its band of equal size, at most BANDS; NaN where unknown.

    Done once here: scikit-learn would find bands by weighted percentiles of every person-interval in every fold, which
    took most of the time.
    """
    banded = np.full(x.shape, np.nan)
    for j, column in enumerate(x.T):
        known = ~np.isnan(column)
        if known.any():
            bounds = np.unique(np.quantile(column[known], np.arange(1, BANDS) / BANDS))
            banded[known, j] = np.searchsorted(bounds, column[known], side="right")
    return banded


def _baseline(
    time: FloatArray, censored: NDArray[np.bool_], ratio: FloatArray, edges: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Days with a censoring, and -log of the product of 1 - (censored / relative hazard at risk) after each."""
    times, count = np.unique(time[censored], return_counts=True)
    order = np.argsort(time, kind="stable")
    summed = np.vstack([np.cumsum(ratio[order][::-1], axis=0)[::-1], np.zeros((1, ratio.shape[1]))])
    interval = np.clip(np.searchsorted(edges, times, side="left") - 1, 0, ratio.shape[1] - 1)
    # at equal times events come first: only those censored then, and later rows, are at risk of it
    later = summed[np.searchsorted(time[order], times, side="right"), interval]
    place = np.searchsorted(times, time[censored])
    own = np.bincount(place, ratio[censored, interval[place]], minlength=len(times))
    part = np.minimum(count / np.maximum(later + own, 1e-300), 1.0)
    with np.errstate(divide="ignore"):
        steps = np.minimum(-np.log1p(-part), 50.0)
    return times, np.append(0.0, np.cumsum(steps))
