"""The lab network's quantiles never cross, start as the population's, and are widened to cover what they say."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from ehrseq.config import ModelConfig
from ehrseq.features.labs import LEVEL, LabEvents
from ehrseq.model.lab_fitting import Landmarks, choose_labs, fit_correction, fit_labs, widening
from ehrseq.model.lab_network import LabNetwork
from ehrseq.model.labs import ENOUGH, LEVELS, Labs, window_of
from ehrseq.model.sample import Part
from ehrseq.tokens.vocabulary import Vocabulary
from tests.test_lab_forecasts import STEADY, steady_people

EDGES = np.linspace(0, 1830, 6)


@pytest.fixture(scope="module")
def fitted():
    """Labs of a small cohort, with the tuning part and its events."""
    people = {"train": steady_people(500, seed=5), "tuning": steady_people(900, seed=6), "new": steady_people(900, 7)}
    vocabulary = Vocabulary.fit(people["train"].events, ModelConfig().network, people["train"].subjects)
    parts = {name: Part.prepare(some, vocabulary, name) for name, some in people.items()}
    events = {name: some.events for name, some in people.items()}
    used = {name: parts[name] for name in ("train", "tuning")}
    labs = fit_labs(used, events, vocabulary, EDGES, STEADY, ModelConfig())
    assert labs is not None

    def draw(name: str, seed: int) -> Landmarks:
        read = LabEvents.of(events[name], parts[name].encoded.subject_id, labs.scales)
        return Landmarks.draw(parts[name], read, vocabulary, EDGES, 1, np.random.default_rng(seed))

    return labs, draw


def covered(labs: Labs, drawn: Landmarks, low: int = 0) -> float:
    own = drawn.own(labs)
    quantiles = labs.quantiles(own, drawn.context, drawn.query, drawn.lab, drawn.days)
    value = labs.scales[0].number(drawn.value)
    inside = (value >= quantiles[:, low]) & (value <= quantiles[:, -1 - low])
    return float(inside[~np.isnan(quantiles[:, 0])].mean())


def test_quantiles_rise_whatever_the_weights():
    torch.manual_seed(0)
    network = LabNetwork(3, 5, 7, 8, LEVELS)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    out = network.eval()(torch.randn(200, 5) * 9, torch.randn(200, 7) * 9, torch.randint(0, 3, (200,)))
    assert (out.diff(dim=1) > 0).all()
    assert torch.isfinite(out).all()


def test_an_untrained_network_gives_the_populations_quantiles():
    network = LabNetwork(2, 4, 3, 8, LEVELS)
    expected = torch.linspace(-2, 3, len(LEVELS))
    network.middle[1] = expected[network.median]
    network.gap[1] = expected.diff().log()
    out = network.eval()(torch.randn(5, 4), torch.randn(5, 3), torch.ones(5, dtype=torch.int64))
    torch.testing.assert_close(out, expected.expand(5, -1))


def test_intervals_that_are_too_narrow_or_too_wide_are_mended(fitted):
    labs, draw = fitted
    for stretch, wrong in ((0.4, lambda c: c < 0.7), (2.5, lambda c: c > 0.97)):
        networks = [_stretched(network, stretch) for network in labs.networks]
        other = replace(labs, networks=networks, correction=np.zeros_like(labs.correction))
        assert wrong(covered(other, draw("new", 1)))
        mended = replace(other, correction=fit_correction(draw("tuning", 0), other))
        assert covered(mended, draw("new", 1)) == pytest.approx(0.9, abs=0.03)
        assert covered(mended, draw("new", 1), LEVELS.index(0.25)) == pytest.approx(0.5, abs=0.05)


def _stretched(network: LabNetwork, factor: float) -> LabNetwork:
    n_own, n_context = network.own.weight.shape[1], network.context.weight.shape[1]
    other = LabNetwork(len(network.middle), n_own, n_context, len(network.own.bias), LEVELS)
    other.load_state_dict(network.state_dict())
    other.gap += float(np.log(factor))
    return other.eval()


def test_pairs_are_widened_evenly_and_few_values_change_nothing():
    rng = np.random.default_rng(0)
    quantiles = np.tile(np.linspace(-1, 1, len(LEVELS)), (500, 1))
    added = widening(quantiles, rng.normal(size=500))
    np.testing.assert_allclose(added, -added[::-1])
    assert added[LEVELS.index(0.5)] == 0
    assert not widening(quantiles[: ENOUGH - 1], rng.normal(size=ENOUGH - 1)).any()


def test_targets_end_with_the_follow_up_and_with_death(fitted):
    labs, draw = fitted
    drawn = draw("tuning", 3)
    ahead = drawn.time[drawn.query] + drawn.days * 86_400_000_000
    assert (drawn.days > 0).all()
    assert (ahead <= drawn.end[drawn.query] + 1e6).all()
    # a landmark of its own for each subject: one value a lab and interval of each
    cell = drawn.query * 100 + np.searchsorted(EDGES[1:], drawn.days)
    assert len(np.unique(cell)) == len(cell)
    assert drawn.own(labs)[:, LEVEL].std() > 0.5


def test_the_usual_unit_is_chosen():
    events = steady_people(40, seed=8).events
    few = events.filter(pl.col("subject_id") % 4 == 0).with_columns(
        unit=pl.lit("other"), numeric_value=pl.col("numeric_value") * 100
    )
    scales, withheld = choose_labs(pl.concat([events, few]), ("LAB//x", "LAB//y"), 5)
    assert [(s.code, s.unit) for s in scales] == [("LAB//x", "u")]
    assert withheld == {"LAB//y": "few_training_subjects_with_a_number"}
    assert scales[0] == choose_labs(events, ("LAB//x",), 5)[0][0]
    assert choose_labs(events, ("LAB//x",), 41)[0] == ()


def test_parts_come_back_and_others_are_refused(fitted):
    labs, _ = fitted
    again = Labs.from_parts(labs.parts(), labs.arrays())
    assert again.parts() == labs.parts()
    with pytest.raises(ValueError, match="other quantiles"):
        Labs.from_parts({**labs.parts(), "levels": [0.5]}, labs.arrays())
    with pytest.raises(KeyError):
        Labs.from_parts({k: v for k, v in labs.parts().items() if k != "dying"}, labs.arrays())


def test_a_forecast_for_a_horizon_is_in_the_window_that_ends_with_it(fitted):
    """A year has 366 days at times, and three of them 1,096."""
    labs, _ = fitted
    assert len(labs.windows) == 1 + len(STEADY.horizons)
    starts = pl.Series([datetime(2022, 1, 1) + timedelta(days=d) for d in range(0, 1500, 7)])
    for window, horizon in enumerate(STEADY.horizons):
        days = pl.select(horizon.days_after(pl.lit(starts))).to_series().cast(pl.Float64).to_numpy()
        assert len(set(days)) > 1
        assert (window_of(days, labs.windows) == window).all()


def test_people_who_are_measured_often_count_once(fitted):
    labs, draw = fitted
    drawn = draw("tuning", 0)
    repeated = np.repeat(np.arange(len(drawn.value)), 1 + 30 * (drawn.query[: len(drawn.value)] % 2))
    often = replace(
        drawn, query=drawn.query[repeated], lab=drawn.lab[repeated], days=drawn.days[repeated],
        value=drawn.value[repeated],
    )  # fmt: skip
    once = fit_correction(drawn, labs)
    spread = np.abs(fit_correction(often, labs) - once).max()
    other = np.abs(fit_correction(drawn, labs, seed=1) - once).max()
    assert spread < 0.1
    assert other < 0.1  # whichever of a subject's values is drawn
    few = np.repeat(np.flatnonzero(drawn.query < ENOUGH // 2), 3)
    assert len(few) > ENOUGH
    some = replace(drawn, query=drawn.query[few], lab=drawn.lab[few], days=drawn.days[few], value=drawn.value[few])
    assert not fit_correction(some, labs).any()  # many values of too few people


def test_a_death_of_the_last_day_ends_follow_up():
    people = steady_people(20, seed=9)
    end = people.subjects["follow_up_end"].dt.truncate("1d") + timedelta(hours=15)
    closing = end.dt.truncate("1d") + timedelta(days=1) - timedelta(microseconds=1)
    subjects = people.subjects.with_columns(follow_up_end=end, death_time=closing)
    vocabulary = Vocabulary.fit(people.events, ModelConfig().network, subjects)
    part = Part.prepare(replace(people, subjects=subjects), vocabulary, "some")
    assert part.died.all()
    assert (part.lived_until == part.end).all()
    later = replace(people, subjects=subjects.with_columns(death_time=closing + timedelta(days=1)))
    assert not Part.prepare(later, vocabulary, "some").died.any()
