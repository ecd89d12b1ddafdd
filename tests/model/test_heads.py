"""Hazard head, exposure and the censored likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ehrseq.model.heads import HazardHead, base_log_hazard, event_edges, exposure_and_interval, interval_edges
from ehrseq.model.landmarks import draw_landmarks
from ehrseq.model.loss import negative_log_likelihood

EDGES = interval_edges(1000.0, 5)


@given(st.floats(0.01, 5000))
def test_exposure_adds_up_to_the_time_within_the_edges(days):
    exposure, interval = exposure_and_interval(np.array([days]), EDGES)
    assert exposure.sum() == pytest.approx(min(days, EDGES[-1]))
    assert (exposure >= 0).all()
    if days <= EDGES[-1]:
        assert EDGES[interval[0]] < days <= EDGES[interval[0] + 1] or days == 0
    else:
        assert interval[0] == len(EDGES) - 1


@given(
    st.lists(st.one_of(st.sampled_from([0.0, 1.0, 30.0, 400.0]), st.floats(0, 500)), max_size=60), st.integers(1, 12)
)
def test_edges_on_events_are_apart_and_reach_from_now_to_the_last_horizon(days, n):
    edges = event_edges(np.array(days), 400.0, n)
    assert len(edges) == n + 1
    assert edges[0] == 0
    assert edges[-1] == pytest.approx(400.0)
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize("scale", [1 / 24, 1.0, 365.0])
def test_edges_are_where_events_are_whatever_their_scale(scale):
    days = np.random.default_rng(0).exponential(scale, 5000)
    edges = event_edges(days, 40 * scale, 10)
    share = np.histogram(days, edges)[0] / len(days)
    # a tenth of the mixture each, of which events are three quarters
    assert share.max() < 0.14
    assert (edges[1:7] < 2 * scale).all()


def test_likelihood_of_exponential_data_is_least_at_the_true_rate():
    rng = np.random.default_rng(0)
    time, censored = rng.exponential(200, 20_000), rng.exponential(300, 20_000)
    days, event = np.minimum(time, censored), time <= censored
    given = (torch.tensor(days), torch.tensor(event), torch.tensor(EDGES))

    def mean_loss(rate: float) -> float:
        return float(negative_log_likelihood(torch.full((20_000, 5), np.log(rate)), *given).mean())

    assert min((0.003, 0.004, 0.005, 0.006, 0.008), key=mean_loss) == 0.005


def test_a_censored_batch_still_owes_its_cumulative_hazard():
    edges = torch.tensor([0.0, 1.0, 2.0, 3.0])
    loss = negative_log_likelihood(torch.zeros(2, 3), torch.tensor([3.0, 7.0]), torch.zeros(2, dtype=torch.bool), edges)
    assert loss.tolist() == [3.0, 3.0]


@given(st.lists(st.one_of(st.sampled_from([0.0, *EDGES.tolist(), 5000.0]), st.floats(0, 1500)), min_size=1))
def test_likelihood_is_that_of_each_interval_apart(times):
    days = np.array(times)
    event = np.arange(len(days)) % 2 == 0
    log_hazard = np.linspace(-9, -5, 5 * len(days)).reshape(-1, 5)
    exposure, interval = exposure_and_interval(days, EDGES)
    counts = event & (days > 0) & (interval < 5)
    at_event = np.where(counts, log_hazard[np.arange(len(days)), np.minimum(interval, 4)], 0)
    given = (torch.tensor(x) for x in (log_hazard, days, event, EDGES))
    np.testing.assert_allclose(
        negative_log_likelihood(*given).numpy(), (np.exp(log_hazard) * exposure).sum(1) - at_event, rtol=1e-9, atol=1e-9
    )


def test_untrained_head_gives_the_base_rates():
    head = HazardHead(8, 3, 2, EDGES)
    head.base[:] = torch.arange(10.0).reshape(2, 5)
    assert torch.equal(head(torch.randn(4, 8), torch.randn(4, 3)), head.base.expand(4, 2, 5))


def test_base_rate_is_events_over_exposure_and_shrinks_where_there_are_none():
    rng = np.random.default_rng(1)
    days = rng.exponential(400, 50_000)
    exposure, interval = exposure_and_interval(days, EDGES)
    rate = np.exp(base_log_hazard(exposure, interval, days < np.inf, np.ones(len(days))))
    np.testing.assert_allclose(rate, 1 / 400, rtol=0.05)
    none = np.exp(base_log_hazard(exposure, interval, np.zeros(len(days), bool), np.ones(len(days))))
    assert (none > 0).all()
    assert (none < 1e-6).all()


def test_weighted_landmarks_give_back_the_hazard_under_informative_follow_up():
    """People who die early have short follow-up; equal draws for everyone over-count them, the weights do not."""
    rng = np.random.default_rng(2)
    n, end = 40_000, 3650.0
    frail = rng.random(n) < 0.3
    death = rng.exponential(np.where(frail, 700, 7000))
    stop = np.minimum(death, end)
    micro = 86_400_000_000
    row, time, weight = draw_landmarks(np.zeros(n, np.int64), (stop * micro).astype(np.int64), 5, rng)
    left = stop[row] - time / micro
    exposure, interval = exposure_and_interval(left, np.array([0.0, 365.0]))
    event = (death[row] <= end) & (interval < 1)
    # The truth: the share of person-time, over all follow-up, in which death comes within a year, by its hazard.
    day = np.arange(0, end)
    alive = np.array([(stop > d).sum() for d in day])
    deaths = np.histogram(death[death <= end], bins=np.append(day, end))[0]
    ahead = np.array([alive[i : i + 365].sum() for i in range(len(day))])
    coming = np.array([deaths[i : i + 365].sum() for i in range(len(day))])
    truth = coming.sum() / ahead.sum()
    weighted = (weight @ event) / (weight @ exposure[:, 0])
    unweighted = event.sum() / exposure.sum()
    assert weighted == pytest.approx(truth, rel=0.02)
    assert unweighted > 1.2 * truth  # the control: without weights the hazard is over-stated
