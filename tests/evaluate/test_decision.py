from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from ehrseq.evaluate.decision import net_benefit, thresholds_for

LEVELS = (0.05, 0.1, 0.3, 0.5, 0.95)


def test_without_censoring_it_is_that_of_the_confusion_matrix():
    random = np.random.default_rng(0)
    p = random.beta(1, 4, 500)
    case = random.random(500) < p
    got = net_benefit(p, case, np.ones(500), np.ones(500), LEVELS)
    for value, level in zip(got, LEVELS, strict=True):
        (_, false), (_, true) = confusion_matrix(case, p >= level, labels=[False, True])
        assert value == pytest.approx(true / 500 - false / 500 * level / (1 - level), abs=1e-12)


def test_acting_on_everyone_and_on_nobody():
    case, ones = np.arange(100) < 20, np.ones(100)
    everyone = net_benefit(np.ones(100), case, ones, ones, LEVELS)
    np.testing.assert_allclose(everyone, [0.2 - 0.8 * t / (1 - t) for t in LEVELS])
    assert net_benefit(np.zeros(100), case, ones, ones, LEVELS).tolist() == [0.0] * 5


def test_weights_count_within_those_acted_on():
    # of three acted on one was censored (weight 0); the case stands for two
    p, case = [0.6, 0.7, 0.8, 0.1], [0, 1, 0, 0]
    weights, drawn = np.array([0.0, 2.0, 1.0, 1.0]), np.ones(4)
    expected = 0.75 * (2 / 3 - 1 / 3 * 1.0)
    assert net_benefit(p, case, weights, drawn, [0.5])[0] == pytest.approx(expected)
    many = np.stack([drawn, [0, 1, 1, 2]], axis=1)
    got = net_benefit(p, case, weights[:, None] * many, many, [0.5])
    np.testing.assert_allclose(got[0], [expected, 0.5 * (2 / 3 - 1 / 3)])


def test_thresholds_follow_the_forecasts():
    assert thresholds_for(0.001) == (0.005, 0.01, 0.02, 0.03, 0.05)
    assert max(thresholds_for(0.3)) == 0.3
