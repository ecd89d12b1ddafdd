"""Head B: the state of codes, the moments that follow a query, and what is learned of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ehrseq.features.summary import PER_CODE, summarise
from ehrseq.model.code_state import CodeState
from ehrseq.model.path_fitting import _fit_codes, _fit_hazard, _fit_values, emitted_codes, next_moments
from ehrseq.model.sample import Part
from ehrseq.task.definition import Task
from ehrseq.tokens.encode import STATIC
from ehrseq.tokens.vocabulary import Vocabulary
from tests.toy import CONFIG, TASK, cohort

DAY = 86_400_000_000


def encoded(known, number, value, offset):
    return SimpleNamespace(
        offset=np.array(offset), known_time=np.array(known), value=np.array(value, np.float32),
        code=np.array(number), subject_id=np.arange(len(offset) - 1),
    )  # fmt: skip


@pytest.fixture
def events():
    """Two subjects and two codes; a static fact, a tie, and an event of no code."""
    known = [STATIC, 1 * DAY, 5 * DAY, 5 * DAY, 9 * DAY, 2 * DAY, 8 * DAY]
    return encoded(known, [0, 1, 0, 1, -1, 1, 1], [np.nan, 2.0, 1.5, np.nan, 9.0, np.nan, -1.0], [0, 5, 7])


def test_the_summary_of_the_state_is_that_of_the_features(events):
    row, time = np.array([0, 0, 1, 1]), np.array([4, 6, 1, 9]) * DAY
    state = CodeState.at(events, events.code, 2, row, time)
    expected = summarise(events.offset, events.known_time, events.code, events.value, row, time, 2)
    np.testing.assert_allclose(state.summary(time, 2), expected[:, : 2 * PER_CODE], atol=1e-7)


def test_the_state_is_the_same_however_many_events_are_held_at_once(events, monkeypatch):
    row, time = np.tile([0, 1, 0], 5), np.arange(15) * DAY
    whole = CodeState.at(events, events.code, 2, row, time)
    monkeypatch.setattr("ehrseq.model.code_state.PAIRS", 4)
    for name in ("count", "last", "value", "total", "valued"):
        some = getattr(CodeState.at(events, events.code, 2, row, time), name)
        np.testing.assert_array_equal(some, getattr(whole, name))
    assert CodeState.at(events, events.code, 2, row[:0], time[:0]).count.shape == (0, 2)


def test_adding_events_gives_the_state_of_having_had_them(events):
    before = CodeState.at(events, events.code, 2, np.array([0]), np.array([4 * DAY]))
    before.add(np.array([[True, True]]), np.array([5 * DAY]), np.array([[1.5, np.nan]]))
    after = CodeState.at(events, events.code, 2, np.array([0]), np.array([6 * DAY]))
    for name in ("count", "last", "value", "total", "valued"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_the_next_moment_has_all_that_becomes_known_at_once(events):
    part = SimpleNamespace(encoded=events)
    row, time = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 5, 2, 8]) * DAY
    days, happened, codes, values = next_moments(part, events.code, 2, row, time, np.array([10, 7]) * DAY)
    assert days.tolist() == [1, 4, 5, 5, -1]
    assert happened.tolist() == [True, True, False, False, False]
    assert codes[:2].tolist() == [[False, True], [True, True]]
    assert not codes[2:].any()
    np.testing.assert_array_equal(values[:2], [[np.nan, 2.0], [1.5, np.nan]])


def state_of(n, codes):
    zero = np.zeros((n, codes))
    return CodeState(zero, zero.astype(np.int64), zero, zero, zero)


def test_waits_that_are_always_the_same_are_learned():
    """Half of the people come back after exactly ten days, the others after two hundred: their features tell."""
    n = 2000
    kind = np.arange(n) % 2
    features = np.column_stack([kind, np.ones(n)]).astype(np.float64)
    edges = np.array([0.0, 5.0, 10.0, 50.0, 300.0])
    asked = SimpleNamespace(days=np.where(kind == 1, 10.0, 200.0), happened=np.ones(n, bool))
    hazard = np.exp(features[:2] @ _fit_hazard(features, [asked], edges))
    within = 1 - np.exp(-(hazard * np.diff(edges)))
    assert within[1, 1] > 0.95
    assert within[0, 1] < 0.05
    np.testing.assert_allclose(hazard[0, 3], 1 / 150, rtol=0.05)


def test_codes_that_come_together_are_drawn_together():
    n = 3000
    rng = np.random.default_rng(0)
    panel = rng.random(n) < 0.4
    codes = np.column_stack([panel, panel, ~panel & (rng.random(n) < 0.5)])
    asked = SimpleNamespace(
        days=np.ones(n), happened=np.ones(n, bool), codes=codes, state=state_of(n, 3), time=np.zeros(n, np.int64)
    )
    marks, _, chain = _fit_codes(np.ones((n, 1)), [asked])
    assert marks.shape == (3, 3)
    assert chain[0, 1] > 4
    assert chain[0, 2] < -1
    assert (np.tril(chain) == 0).all()


def outcomes_of(**outcomes):
    timelines = cohort(60)
    task = Task.from_dict({**TASK.to_dict(), "outcomes": outcomes})
    vocabulary = Vocabulary.fit(timelines.events, CONFIG.network, timelines.subjects)
    part = Part.prepare(timelines, vocabulary, "some")
    return emitted_codes(task, [o.name for o in task.outcomes], vocabulary, part)


def test_outcomes_that_share_a_code_do_not_bring_it_twice():
    death = {"codes": ["MEDS_DEATH"]}
    found = outcomes_of(
        y={"codes": ["ICD10CM//y"]}, any={"codes": ["ICD10CM//*"]}, ill={"codes": ["SNOMED//1"]}, end=death
    )
    assert set(found) == {"y", "ill", "end"}  # `any` happens with the events of y and with moments of z
    assert set(outcomes_of(end=death, again={**death, "incident": False})) == {"end"}


def test_death_beside_something_else_follows_from_events():
    either = {"codes": ["ICD10CM//y", "MEDS_DEATH"]}
    assert set(outcomes_of(either=either, death={"codes": ["MEDS_DEATH"]})) == {"death"}
    inline = {"any_of": [{"codes": ["ICD10CM//y"]}, {"codes": ["MEDS_DEATH"]}]}
    assert set(outcomes_of(inline=inline, death={"codes": ["MEDS_DEATH"]})) == {"death"}


def test_a_value_of_few_people_is_on_no_path():
    n = 400
    codes = np.ones((n, 2), bool)
    values = np.full((n, 2), np.nan)
    values[:, 0] = np.arange(n) / n
    values[:3, 1] = 7.0
    asked = SimpleNamespace(
        happened=np.ones(n, bool), codes=codes, values=values, state=state_of(n, 2), time=np.zeros(n, np.int64),
        days=np.ones(n),
    )  # fmt: skip
    _, _, share, bounds = _fit_values([asked])
    assert share.tolist() == [1.0, 0.0]
    assert not bounds[:, 1].any()
