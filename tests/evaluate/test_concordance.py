from __future__ import annotations

import numpy as np
import pytest
from lifelines.utils import concordance_index
from sksurv.metrics import concordance_index_ipcw
from sksurv.util import Surv

from ehrseq.evaluate import concordance as module
from ehrseq.evaluate.concordance import concordance
from ehrseq.survival import kaplan_meier_censoring


def sample(n=250, seed=0, competing=0.0):
    random = np.random.default_rng(seed)
    score = random.normal(size=n).round(1)
    event, censored = random.exponential(1000 * np.exp(-score)), random.uniform(100, 3000, n)
    cause = np.where(event <= censored, np.where(random.random(n) < competing, 2, 1), 0)
    return score, np.minimum(event, censored), cause


def weights(days, cause):
    return (
        kaplan_meier_censoring(days, cause, at=days),
        kaplan_meier_censoring(days, cause, at=days, limit="right"),
    )


@pytest.mark.parametrize("until", [500.0, 2000.0])
def test_one_cause_is_unos_of_scikit_survival(until):
    score, days, cause = sample()
    before, after = weights(days, cause)
    expected = concordance_index_ipcw(
        Surv.from_arrays(cause == 1, days), Surv.from_arrays(cause == 1, days), score, tau=until
    )[0]
    assert concordance(score, days, cause, until, before, after, np.ones(250)) == pytest.approx(expected, abs=1e-6)


def test_without_censoring_it_is_harrells_with_competing_events_last():
    score, days, _ = sample()
    cause = np.random.default_rng(1).choice([1, 2], 250)
    # someone with a competing event never has the outcome
    expected = concordance_index(np.where(cause == 1, days, 1e9), -score, cause == 1)
    ones = np.ones(250)
    assert concordance(score, days, cause, 1e8, ones, ones, ones) == pytest.approx(expected, abs=1e-9)


def by_pairs(score, days, cause, until, before, after, drawn):
    won = total = 0.0
    for i in range(len(score)):
        for j in range(len(score)):
            if cause[i] != 1 or days[i] > until:
                continue
            if days[j] > days[i]:
                weight = 1 / (before[i] * (after[i, j] if after.ndim == 2 else after[i]))
            elif cause[j] == 2:
                weight = 1 / (before[i] * before[j])
            else:
                continue
            weight *= drawn[i] * drawn[j]
            won += weight * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
            total += weight
    return won / total


def test_every_pair_and_replicate(monkeypatch):
    score, days, cause = sample(60, seed=4, competing=0.4)
    before, after = weights(days, cause)
    own = np.clip(np.random.default_rng(0).random((60, 60)), 0.1, 1)
    drawn = np.random.default_rng(2).integers(0, 3, (60, 4))
    monkeypatch.setattr(module, "BLOCK", 300)  # several blocks of cases
    for g_after in (np.maximum(after, 0.05), own):
        g = np.maximum(before, 0.05)
        passed = g_after if g_after.ndim == 1 else own.__getitem__
        got = concordance(score, days, cause, 1500.0, g, passed, drawn)
        both = concordance(np.stack([score, -score]), days, cause, 1500.0, g, passed, drawn)
        np.testing.assert_allclose(both, [got, 1 - got], atol=1e-10)
        expected = [by_pairs(score, days, cause, 1500.0, g, g_after, drawn[:, r]) for r in range(4)]
        np.testing.assert_allclose(got, expected, atol=1e-10)


def test_no_pair_is_nan():
    assert np.isnan(concordance([0.1, 0.2], [1, 2], [0, 0], 5.0, np.ones(2), np.ones(2), np.ones(2)))
