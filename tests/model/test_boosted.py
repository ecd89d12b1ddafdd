"""Our trees against scikit-learn's, and boosted hazards against the hazards that made the data."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from ehrseq.config import BoostedConfig
from ehrseq.features.tabular import OVERALL
from ehrseq.model.boosted import BoostedHazard, Cuts, Trees, periods, person_periods
from ehrseq.model.cox import CoxHazard
from ehrseq.model.heads import exposure_and_interval, interval_edges

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
