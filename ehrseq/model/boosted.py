"""Gradient-boosted hazards on tabular summaries: the tabular branch of a model.

A hazard is a linear model of age and time under observation times exp(score). What these do is near linear, and trees
that stop early follow it too slowly: alone they forecast 1.16 times the true one-year deaths two years into follow-up,
on simulated people whose risk is known. The score is a sum of regression trees over a subject's summary and the period
after the prediction time, grown by scikit-learn under the Poisson likelihood of person-periods.
Several such scores, each from prediction times and a choice of features of its own, are averaged: one alone moves with
its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ehrseq.config import BoostedConfig
from ehrseq.features.tabular import OVERALL
from ehrseq.model.cox import CoxHazard
from ehrseq.model.trees import FEW_ROWS, Trees, with_period

Float = NDArray[np.float64]
Rows = NDArray[np.float32]
Index = NDArray[np.int64]
FEW = 35  # trees where nothing says how many


def age_and_times(rows: Rows) -> Float:
    """(n, 8) of feature rows (n, F): age and its square; years and log years under observation and since the first
    event, 0 for none; and whether there is none.

    >>> age_and_times(np.array([[50, 3, 2, 1, 2, 0.5, np.nan]], np.float32)).round(2).tolist()
    [[50.0, 2500.0, 3.0, 1.39, 0.0, 0.0, 0.0, 1.0]]
    """
    age, observed, first = (
        rows[:, OVERALL.index(name)].astype(np.float64) for name in ("age", "years_observed", "years_since_first")
    )
    none = [np.isnan(observed), np.isnan(first)]
    observed, first = np.nan_to_num(observed), np.nan_to_num(first)
    return np.column_stack([age, age**2, observed, np.log1p(observed), first, np.log1p(first), *none])


def periods(n_intervals: int, n_periods: int) -> Index:
    """(n_intervals,) the period of each interval: trees look at time after the prediction in a few coarse steps.

    >>> periods(10, 4).tolist()
    [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    """
    return (np.arange(n_intervals) * n_periods) // n_intervals


@dataclass(frozen=True)
class BoostedHazard:
    """One hazard: log hazard per day in interval b = linear(age and times)[b] + trees(features, period of b)."""

    linear: CoxHazard
    trees: Trees
    period: Index

    def log_hazard(self, rows: Rows) -> Float:
        """(n, I) log hazards per day for feature rows (n, F)."""
        score = self.trees.predict(rows, int(self.period[-1]) + 1)
        return np.asarray(self.linear.log_hazard(age_and_times(rows)) + score[:, self.period])

    @classmethod
    def fit(
        cls, training: PersonPeriods, tuning: PersonPeriods, cuts: Cuts, linear: CoxHazard, period: Index,
        config: BoostedConfig, seed: int,
    ) -> BoostedHazard:  # fmt: skip
        """Grow trees on the training periods; their number is the one of least tuning loss.

        Without an event to learn from there are none, and without one to choose by, FEW.
        """
        from sklearn.ensemble import HistGradientBoostingRegressor

        if not training.events.sum():
            return cls(linear, Trees.none(), period)
        model = HistGradientBoostingRegressor(
            loss="poisson", learning_rate=config.learning_rate, max_iter=config.max_trees,
            max_leaf_nodes=config.leaves, min_samples_leaf=config.min_rows_per_leaf,
            l2_regularization=config.prior_events, max_features=config.features_per_split, max_bins=config.bins,
            early_stopping=False, random_state=seed,
        )  # fmt: skip
        # no offset is to be had: the ratio of observed to expected events, weighted by the expected ones
        model.fit(cuts.codes(training.rows), training.events / training.expected, sample_weight=training.expected)
        trees = cuts.uncoded(Trees.from_sklearn(model))
        best = min(FEW, config.max_trees)
        if tuning.events.sum():
            best = 1 + int(np.argmin([tuning.loss(score) for score in trees.stages(tuning.rows)]))
        return cls(linear, trees.first(best), period)

    @classmethod
    def mean(cls, several: Sequence[BoostedHazard]) -> BoostedHazard:
        """The mean log hazard of several with one linear model and the same periods, as one."""
        trees = Trees.joined([hazard.trees for hazard in several])
        offset = sum(hazard.trees.offset for hazard in several) / len(several)
        return replace(several[0], trees=replace(trees, value=trees.value / len(several), offset=offset))


class BoostedHazards:
    """Several hazards with the same periods. For a few rows, the trees of all of them are walked down together."""

    def __init__(self, hazards: Sequence[BoostedHazard]) -> None:
        self.hazards, self.joined = hazards, Trees.joined([hazard.trees for hazard in hazards])

    def log_hazard(self, rows: Rows) -> Float:
        """(n, H, I) log hazards per day for feature rows (n, F)."""
        n_periods = int(self.hazards[0].period[-1]) + 1
        if len(rows) * n_periods > FEW_ROWS:
            return np.stack([hazard.log_hazard(rows) for hazard in self.hazards], axis=1)
        leaves = self.joined.leaf_values(np.concatenate([with_period(rows, p) for p in range(n_periods)]))
        times, first, out = age_and_times(rows), 0, []
        for hazard in self.hazards:
            end = first + len(hazard.trees.root)
            score = hazard.trees.added(leaves[:, first:end]).reshape(n_periods, -1).T
            out.append(hazard.linear.log_hazard(times) + score[:, hazard.period])
            first = end
        return np.stack(out, axis=1)


@dataclass(frozen=True)
class Cuts:
    """For each of F features the values (ascending float32) at which a split may cut: below or equal goes left.

    scikit-learn would look for them anew for each hazard, with weights, and take most of the time of a fit for it; it
    takes the small whole numbers of `codes` as they are.
    """

    values: list[Rows]

    @classmethod
    def fit(cls, rows: Rows, n_bins: int) -> Cuts:
        """At most `n_bins` bins a feature: midway between neighbours where they are few, else quantiles."""
        out = []
        for column in rows.T:
            distinct = np.unique(column[~np.isnan(column)])
            if len(distinct) > n_bins:
                levels = np.linspace(0, 1, n_bins + 1)[1:-1]
                out.append(np.unique(np.quantile(column[~np.isnan(column)], levels, method="lower")))
            else:
                out.append(distinct[:-1] + (distinct[1:] - distinct[:-1]) / 2)
        return cls(out)

    def codes(self, rows: Rows) -> Rows:
        """The number of cuts below each value, (n, F) as float32; missing stays missing, all-missing becomes 0."""
        out = np.zeros_like(rows)
        for f, cuts in enumerate(self.values):
            column = rows[:, f]
            if not np.isnan(column).all():
                out[:, f] = np.where(np.isnan(column), column, np.searchsorted(cuts, column))
        return out

    def uncoded(self, trees: Trees) -> Trees:
        """Trees on the values themselves, from trees on their codes."""
        threshold = np.array(
            [
                # a split between missing and present has no cut above it
                float(self.values[f][int(t)]) if t < len(self.values[f]) else np.inf
                for f, t in zip(trees.feature, trees.threshold, strict=True)
            ]
        )
        return replace(trees, threshold=threshold)


@dataclass(frozen=True)
class PersonPeriods:
    """Rows (n, F + 1) of features and period, with the expected events (n,) before the trees and the observed."""

    rows: Rows
    expected: Float
    events: Float

    def loss(self, score: Float) -> float:
        """Negative log-likelihood of scores (n,), up to a constant."""
        return float(self.expected @ np.exp(score) - self.events @ score)


def person_periods(
    rows: Rows, exposure: Float, interval: Index, weight: Float, log_hazard: Float, period: Index, keep: Float
) -> PersonPeriods:
    """Rows of those at risk in each period.

    rows (Q, F); exposure (Q, I) days; interval (Q,) of the event, -1 for none; weight (Q,); log_hazard (Q, I)
    per day, from which the trees start; `keep` (Q,) is 0 where periods without an event are left out, else what the
    expected events of those that are kept are multiplied by.
    """
    parts = []
    for p in range(int(period[-1]) + 1):
        inside = period == p
        expected = (exposure[:, inside] * np.exp(log_hazard[:, inside])).sum(1) * weight
        happened = np.where(interval >= 0, inside[interval], False) * weight
        expected = np.where(happened > 0, expected, expected * keep)
        kept = expected > 0
        parts.append((with_period(rows[kept], p), expected[kept], happened[kept]))
    return PersonPeriods(*(np.concatenate(column) for column in zip(*parts, strict=True)))
