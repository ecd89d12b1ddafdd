"""The sampler against hazards that are known: counts, times and causes, with the error that sampling allows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ehrseq.forecast.draw import first_event, hazard_pieces, path_keys, uniforms
from ehrseq.forecast.incidence import cumulative_incidence
from ehrseq.forecast.sampling import Rules, Start, Tally, sample

DAY = 86_400_000_000
ALPHA = 1e-3  # of each test: with the seeds fixed, they pass or fail for good
EDGES = np.array([0.0, 50.0, 200.0, 1000.0])
RATES = np.array([[0.002, 0.0005, 0.001], [0.0004, 0.0008, 0.0002]])  # illness and death, per day since the start
MOMENTS = 0.01
STOP = 800
N = 6000


class Frozen:
    """Hazards that nothing moves: those of outcomes piecewise in time since the start, that of moments constant."""

    def __init__(self, n_subjects: int, n_paths: int) -> None:
        shape = (n_subjects, n_paths)
        self.edges, self.moment_edges = EDGES, np.array([0.0, 7.0, 1000.0])
        self.offset = np.broadcast_to(np.log(RATES), (*shape, *RATES.shape))
        self.shape = shape

    def hazards(self):
        return np.zeros((*self.shape, *RATES.shape)), np.full((*self.shape, 2), np.log(MOMENTS))

    def draw(self, time, uniform):
        return np.ones((*self.shape, 1), bool), uniform[..., 1:]

    def move(self, time, codes, values, unknown):
        self.time = time

    def keep(self, subject, path):
        self.offset = self.offset[subject[:, None], path]
        self.shape = path.shape


def rules(**changes):
    """Two outcomes, illness (its code is the table's second) and death (the third); illness happens once."""
    known = {
        "codes": np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        "ends": np.array([[True, False], [True, True]]),
        "pause": np.zeros(2, np.int64),
        "death": np.array([False, True]),
    }
    return Rules(**(known | changes))


def run(n_subjects=1, n_paths=N, seed=0, stop=STOP, tally=None, **changes):
    start = np.zeros(n_subjects, np.int64)
    key = path_keys(seed, np.arange(n_subjects), start, np.arange(n_paths))
    state = Start(start, start + stop * DAY, key, np.ones((n_subjects, 2), bool))
    return sample(Frozen(n_subjects, n_paths), state, rules(**changes), 1, tally)


@pytest.fixture(scope="module")
def found():
    return run()


def days(found, code):
    return found["time"][found["code"] == code] / DAY


def incidence(at, rates=RATES):
    return [p[0] for p in cumulative_incidence(rates[:1], rates[1:], EDGES, np.atleast_1d(at))]


def test_uniform_numbers_are_uniform_and_unrelated():
    u = uniforms(path_keys(3, np.arange(200), np.zeros(200, np.int64), np.arange(20)), 5, 4).reshape(-1, 4)
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > ALPHA
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 4 / np.sqrt(len(u))


def first(rates, n=20_000):
    shape = (n, *RATES.shape)
    pieces = hazard_pieces(
        np.zeros(shape), np.broadcast_to(np.log(rates), shape), np.full((n, 1), -np.inf), EDGES,
        np.array([0.0, 1000.0]), np.zeros(n), np.full(n, 900.0),
    )  # fmt: skip
    u = uniforms(path_keys(1, np.arange(n), np.zeros(n, np.int64), np.arange(1)), 0, 2)[:, 0]
    return first_event(*pieces, u[:, 0], u[:, 1])


def test_times_and_causes_of_piecewise_hazards():
    when, cause = first(RATES)
    happened = cause >= 0
    outcome, competing, free = incidence(np.array([900.0]))
    expected = np.array([free[0], outcome[0], competing[0]]) * len(when)
    assert stats.chisquare(np.bincount(cause + 1, minlength=3)[:3], expected).pvalue > ALPHA

    def cdf(t):
        return (1 - incidence(t)[2]) / (1 - free[0])

    assert stats.kstest(when[happened], cdf).pvalue > ALPHA
    # the share of the cause follows the hazards of the interval, and not those of all the time
    inside = happened & (when <= 50)
    assert stats.binomtest(int((cause[inside] == 0).sum()), int(inside.sum()), 2 / 2.4).pvalue > ALPHA
    assert (when[~happened] == 900).all()


def test_a_hazard_that_is_a_tenth_wrong_would_be_told():
    when, cause = first(RATES * 1.1)
    free = incidence(np.array([900.0]))[2]
    assert stats.binomtest(int((cause < 0).sum()), len(when), float(free[0])).pvalue < ALPHA


def test_incidence_on_paths_is_that_of_the_hazards(found):
    """Hazards are evaluated anew after every moment; what happens by each horizon is as if they were not."""
    n = N
    for t in (50.0, 300.0, float(STOP)):
        outcome, _, _ = incidence(t)
        died = np.zeros(n, bool)
        died[found["path"][(found["code"] == 2) & (found["time"] <= t * DAY)]] = True
        ill = np.zeros(n, bool)
        ill[found["path"][(found["code"] == 1) & (found["time"] <= t * DAY)]] = True
        assert stats.binomtest(int(ill.sum()), n, float(outcome[0])).pvalue > ALPHA
        alive = np.exp(-(RATES[1] * np.clip(t - EDGES[:-1], 0, np.diff(EDGES))).sum())
        assert stats.binomtest(int(died.sum()), n, 1 - float(alive)).pvalue > ALPHA


def test_moments_are_as_many_and_as_far_apart_as_their_hazard_says(found):
    ends = found["time"][(found["code"] == 2) | (found["code"] == -1)].sum() / DAY
    count = (found["code"] == 0).sum()
    assert abs(count - MOMENTS * ends) < 3.3 * np.sqrt(MOMENTS * ends)
    # long paths only, so that the end cuts no wait of their first ten moments
    moments = np.sort(found["time"][(found["code"] == 0) & (found["path"] == 0)])
    many = run(n_paths=300, stop=100_000, death=np.zeros(2, bool), ends=np.ones((2, 2), bool))
    waits = []
    for path in range(300):
        times = np.sort(many["time"][(many["code"] == 0) & (many["path"] == path)])[:10]
        waits.append(np.diff(times, prepend=0) / DAY)
    assert len(moments)
    assert stats.kstest(np.concatenate(waits), stats.expon(scale=1 / MOMENTS).cdf).pvalue > ALPHA


def test_nothing_follows_death_or_the_horizon(found):
    for path in range(200):
        mine = found["path"] == path
        time, code = found["time"][mine], found["code"][mine]
        assert time.max() <= STOP * DAY
        last = code[time == time.max()]
        assert ((last == 2) | (last == -1)).sum() == 1
        assert ((code == 2) | (code == -1)).sum() == 1
        assert (time[code == -1] == STOP * DAY).all()
        assert (code == 1).sum() <= 1
        assert (np.diff(np.sort(time)) >= 0).all()
        assert (time > 0).all()


def test_an_outcome_that_can_recur_does_and_a_pause_keeps_it_away():
    ends = np.array([[False, False], [True, True]])
    often = run(n_paths=2000, ends=ends)
    pause = 100
    seldom = run(n_paths=2000, ends=ends, pause=np.array([pause * DAY, 0]))
    counts = [np.bincount(f["path"][f["code"] == 1], minlength=2000) for f in (often, seldom)]
    assert counts[0].max() > 3
    assert counts[1].sum() < counts[0].sum()
    for path in np.flatnonzero(counts[1] > 1):
        times = np.sort(seldom["time"][(seldom["code"] == 1) & (seldom["path"] == path)])
        assert (np.diff(times) > pause * DAY).all()


def test_a_path_is_the_same_whoever_is_sampled_with_it():
    several, alone = run(n_subjects=3, n_paths=20), run(n_subjects=3, n_paths=5)
    for name in ("time", "code", "value"):
        some = several["path"] < 5
        order = [np.lexsort((f["code"], f["time"], f["path"], f["subject"])) for f in (several, alone)]
        kept = several[name][order[0]][some[order[0]]]
        np.testing.assert_array_equal(kept, alone[name][order[1]])
    assert not np.array_equal(several["time"], run(n_subjects=3, n_paths=20, seed=1)["time"])


def test_the_tally_finds_the_mean_hazard():
    tally = Tally(2, 2, EDGES)
    run(n_subjects=2, n_paths=50, tally=tally)
    np.testing.assert_allclose(tally.ratio(np.log(RATES)[None].repeat(2, 0)), 0, atol=1e-9)
    np.testing.assert_allclose(tally.ratio(np.log(2 * RATES)[None].repeat(2, 0)), np.log(2), atol=1e-9)
