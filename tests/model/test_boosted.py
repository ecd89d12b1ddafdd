"""Our trees against scikit-learn's, and boosted hazards against the hazards that made the data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_info, threadpool_limits

from ehrseq.config import BoostedConfig
from ehrseq.errors import UserError
from ehrseq.estimator import ProgressionModel
from ehrseq.features.tabular import OVERALL
from ehrseq.model.boosted import BoostedHazard, BoostedHazards, Cuts, periods, person_periods
from ehrseq.model.cox import CoxHazard
from ehrseq.model.heads import exposure_and_interval, interval_edges
from ehrseq.model.trees import FEW_ROWS, Trees
from tests.toy import CONFIG, TASK, cohort

EDGES = interval_edges(1000.0, 6)


def rows(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 7)).astype(np.float32)
    x[rng.random((n, 7)) < 0.2] = np.nan
    times = [OVERALL.index(name) for name in ("years_observed", "years_since_first")]
    x[:, times] = np.abs(x[:, times])
    x[:, 0] = np.nan_to_num(x[:, 0])  # age is always known
    x[:, 3] = np.nan
    x[:, 4] = rng.integers(0, 3, n)
    return x


@pytest.mark.parametrize("n_bins", [16, 127])
def test_trees_give_what_scikit_learn_gives(n_bins):
    x = rows(3000)
    rng = np.random.default_rng(1)
    y = rng.poisson(np.exp(np.nan_to_num(x[:, 0]) - np.isnan(x[:, 1]))).astype(float)
    cuts = Cuts.fit(x, n_bins)
    model = HistGradientBoostingRegressor(loss="poisson", max_iter=20, max_bins=n_bins, early_stopping=False)
    model.fit(cuts.codes(x), y)
    fresh = rows(1000, seed=2)
    expected = np.log(model.predict(cuts.codes(fresh)))
    trees = cuts.uncoded(Trees.from_sklearn(model))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(trees.predict(fresh), expected, atol=1e-9)
    again = Trees.from_arrays(trees.arrays())
    assert np.array_equal(again.predict(fresh), trees.predict(fresh))
    np.testing.assert_allclose(trees.first(7).predict(fresh), list(trees.stages(fresh))[6], atol=1e-12)


@pytest.mark.parametrize("leaves", [12, 40, 90])
def test_columns_give_what_walking_each_tree_gives_to_the_last_bit(leaves):
    """12 leaves are bits of one number, 40 of a longer one, 90 of none: then trees are walked."""
    x, rng = rows(3000), np.random.default_rng(4)
    y = rng.poisson(np.exp(np.nan_to_num(x[:, 0]) + x[:, 4] * np.isnan(x[:, 1]) + np.sin(3 * np.nan_to_num(x[:, 5]))))
    cuts = Cuts.fit(x, 127)
    model = HistGradientBoostingRegressor(
        loss="poisson", max_iter=15, max_bins=127, max_leaf_nodes=leaves, min_samples_leaf=3, early_stopping=False
    ).fit(cuts.codes(x), y.astype(float))
    trees = cuts.uncoded(Trees.from_sklearn(model))
    fresh = rows(5000, seed=5)
    for feature in range(6):  # values at the very thresholds, which go left
        at = trees.threshold[(trees.feature == feature) & (trees.left >= 0) & np.isfinite(trees.threshold)]
        if len(at):
            fresh[:500, feature] = rng.choice(at, 500)
    walked = list(trees.stages(fresh))[-1]
    assert np.array_equal(trees.predict(fresh), walked)
    for n in (1, FEW_ROWS - 1, FEW_ROWS):  # few rows are walked down all trees together
        assert np.array_equal(trees.predict(fresh[:n]), walked[:n])
    # the last feature as the period: each of its values for every row
    order = [0, 1, 2, 3, 5, 6, 4]
    moved = replace(trees, feature=np.argsort(order)[trees.feature].astype(np.int32))
    found = moved.predict(fresh[:, order[:-1]], 3)
    assert found.shape == (5000, 3)
    assert np.array_equal(moved.predict(fresh[:7, order[:-1]], 3), found[:7])
    for period in range(3):
        of_period = fresh.copy()
        of_period[:, 4] = period
        assert np.array_equal(found[:, period], list(trees.stages(of_period))[-1])
    assert np.ptp(found, axis=1).max() > 0.1


def test_hazards_together_are_each_alone_to_the_last_bit():
    x, period = rows(3000), np.random.default_rng(4).integers(0, 3, 3000).astype(np.float32)
    y = np.random.default_rng(5).poisson(np.exp(np.nan_to_num(x[:, 0]) + period * np.isnan(x[:, 1])))
    model = HistGradientBoostingRegressor(loss="poisson", max_iter=15, max_leaf_nodes=12, early_stopping=False)
    wide = np.column_stack([x, period])
    cuts = Cuts.fit(wide, 127)
    trees = cuts.uncoded(Trees.from_sklearn(model.fit(cuts.codes(wide), y.astype(float))))
    linear = CoxHazard(np.zeros(6), np.zeros(8), np.ones(8), np.full(8, 0.1))
    hazards = [BoostedHazard(linear, some, periods(6, 3)) for some in (trees.first(4), Trees.none(), trees)]
    together, fresh = BoostedHazards(hazards), rows(FEW_ROWS, seed=6)
    for n in (1, 9, FEW_ROWS):
        each = np.stack([hazard.log_hazard(fresh[:n]) for hazard in hazards], axis=1)
        assert np.array_equal(together.log_hazard(fresh[:n]), each)
        assert not np.array_equal(each[:, 0], each[:, 2])
        with pytest.raises(IndexError):  # never a value of the next row
            together.log_hazard(fresh[:n, :-1])


def test_the_mean_of_hazards_forecasts_the_mean_of_their_log_hazards():
    x, rng = rows(3000), np.random.default_rng(7)
    wide = np.column_stack([x, rng.integers(0, 3, 3000).astype(np.float32)])
    cuts = Cuts.fit(wide, 64)
    linear = CoxHazard(np.linspace(-7, -6, 6), np.zeros(8), np.ones(8), np.full(8, 0.1))
    members = [BoostedHazard(linear, Trees.none(), periods(6, 3))]  # one that had no event to learn from
    for seed, n_trees in ((0, 3), (1, 12)):
        y = rng.poisson(np.exp(np.nan_to_num(x[:, 0]) + 0.5 * np.isnan(x[:, 1]) + 0.3 * wide[:, 7]))
        model = HistGradientBoostingRegressor(
            loss="poisson", max_iter=n_trees, max_features=0.5, early_stopping=False, random_state=seed
        )
        trees = cuts.uncoded(Trees.from_sklearn(model.fit(cuts.codes(wide), y.astype(float))))
        members.append(replace(members[0], trees=trees))
    mean = BoostedHazard.mean(members)
    assert len(mean.trees.root) == 15
    for n in (5, 500):
        fresh = rows(n, seed=8)
        each = [member.log_hazard(fresh) for member in members]
        np.testing.assert_allclose(mean.log_hazard(fresh), np.mean(each, axis=0), atol=1e-12)
        assert np.abs(each[1] - each[2]).max() > 0.01
        assert np.abs(each[0] - each[2]).max() > 0.01


def test_members_differ_and_the_first_is_that_of_a_model_with_one(monkeypatch):
    made = []
    mean = BoostedHazard.mean
    monkeypatch.setattr(BoostedHazard, "mean", lambda several: made.append(several) or mean(several))
    for n in (1, 3):
        boosted = replace(CONFIG.boosted, members=n)
        ProgressionModel(replace(CONFIG, model="boosted", boosted=boosted)).fit(cohort(400), TASK)
    n_hazards = 3  # illness, death before it, death
    one, three = made[:n_hazards], made[n_hazards:]
    assert [len(members) for members in made] == [1] * n_hazards + [3] * n_hazards
    for alone, (first, second, third) in zip(one, three, strict=True):
        assert np.array_equal(first.trees.value, alone[0].trees.value)
        assert not np.array_equal(first.trees.value, second.trees.value)
        assert not np.array_equal(second.trees.value, third.trees.value)
        assert first.linear is second.linear is third.linear


@pytest.mark.parametrize("members", [0, -1, 1.5, "3", None])
def test_members_that_cannot_be_are_refused(members):
    with pytest.raises(UserError, match="at least 1 boosted member"):
        BoostedConfig(members=members)


@pytest.mark.parametrize("kind", ["boosted", "hybrid"])
def test_fitting_takes_one_thread_where_people_are_few(kind, monkeypatch):
    threads, fit = [], BoostedHazard.fit
    monkeypatch.setattr(
        BoostedHazard, "fit", lambda *a: threads.extend(i["num_threads"] for i in threadpool_info()) or fit(*a)
    )
    with threadpool_limits(2):
        ProgressionModel(replace(CONFIG, model=kind)).fit(cohort(), TASK)
        assert set(threads) == {1}
        assert 2 in {i["num_threads"] for i in threadpool_info()}


def test_boosted_hazards_come_near_the_hazards_that_made_the_data():
    rng = np.random.default_rng(3)
    n = 12_000
    x = rows(n, seed=3)
    true = np.exp(-6.5 + np.nan_to_num(x[:, 0]))
    time, censored = rng.exponential(1 / true), rng.uniform(50, 1500, n)
    exposure, interval = exposure_and_interval(np.minimum(time, censored), EDGES)
    interval = np.where((time <= censored) & (interval < len(EDGES) - 1), interval, -1)
    base = np.full(6, np.log((interval >= 0).sum() / exposure.sum()))
    nothing = np.zeros(8)
    linear = CoxHazard(base, nothing, nothing + 1, nothing)
    half = n // 2
    start = np.tile(base, (half, 1))
    period = periods(6, 3)
    sets = [
        person_periods(x[s], exposure[s], interval[s], np.ones(half), start, period, np.ones(half))
        for s in (slice(half), slice(half, None))
    ]
    assert sets[0].events.sum() == (interval[:half] >= 0).sum()
    cuts = Cuts.fit(sets[0].rows, 64)
    config = BoostedConfig(min_rows_per_leaf=50, max_trees=120)
    hazard = BoostedHazard.fit(sets[0], sets[1], cuts, linear, period, config, seed=0)
    fresh = rows(2000, seed=4)
    found = hazard.log_hazard(fresh)
    assert found.shape == (2000, 6)
    wanted = -6.5 + np.nan_to_num(fresh[:, 0])
    assert np.corrcoef(found.mean(1), wanted)[0, 1] > 0.95
    assert np.exp(found).mean() == pytest.approx(np.exp(wanted).mean(), rel=0.15)
