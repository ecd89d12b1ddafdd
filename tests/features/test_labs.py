"""A lab's features and what is measured next, against the same read value by value."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrseq.features import labs
from ehrseq.features.labs import LAST, LEVEL, NAMES, SEEN, LabEvents, LabScale
from ehrseq.features.summary import DAY

SPAN = 1000.0
PLAIN = LabScale("a", "u", False, 0.0, 1.0, -1e9, 1e9, 2.0, 0.5)
SCALES = (PLAIN, replace(PLAIN, code="b", centre=5.0, spread=2.0))


def events(seed: int, n_subjects: int = 25) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    n = 12 * n_subjects
    time = [datetime(2010, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, 60, n) * 20]
    delay = rng.choice([0, 0, 35], n)
    return pl.DataFrame(
        {
            "subject_id": rng.integers(1, n_subjects, n), "code": rng.choice(["a", "b", "c"], n),
            "unit": rng.choice(["u", "u", "u", "other"], n), "numeric_value": rng.normal(5, 2, n), "time": time,
            "known_time": [t + timedelta(days=int(d)) for t, d in zip(time, delay, strict=True)],
        }
    )  # fmt: skip


def visible_values(frame: pl.DataFrame, subject: int, lab: int, at: int) -> list[tuple[float, float]]:
    """(days before `at`, value on the lab's scale), the oldest first; values of one moment averaged."""
    scale = SCALES[lab]
    own = (
        frame.filter(subject_id=subject, code=scale.code, unit="u")
        .with_columns(k=pl.col("known_time").dt.epoch("us"), t=pl.col("time").dt.epoch("us"))
        .filter(pl.col("k") <= at).group_by("t", "k").agg(pl.col("numeric_value").mean()).sort("t", "k")
    )  # fmt: skip
    return [((at - t) / DAY, (v - scale.centre) / scale.spread) for t, _, v in own.iter_rows()]


@pytest.mark.parametrize("pairs", [4_000_000, 7])
def test_features_are_what_reading_the_visible_values_gives(monkeypatch, pairs):
    monkeypatch.setattr(labs, "PAIRS", pairs)
    frame = events(0)
    ids = np.arange(1, 26)
    read = LabEvents.of(frame, ids, SCALES)
    rng = np.random.default_rng(1)
    subject, lab = rng.integers(0, 25, 150), rng.integers(0, 2, 150)
    start = int(datetime(2010, 1, 1).timestamp() // 86400) * DAY
    time = start + rng.integers(-5, 1300, 150) * DAY
    found = read.features(subject, time, lab, SPAN)
    unseen = 0
    for s, t, k, row in zip(subject, time, lab, found, strict=True):
        values = visible_values(frame, s + 1, k, t)
        if not values:
            unseen += 1
            assert not row.any()
            continue
        ago, x = np.array([a for a, _ in values]) / SPAN, np.array([v for _, v in values])
        level = x.sum() / (len(x) + 2)
        weight = np.exp(-8 * ago)
        expected = {
            "level": level, "seen": 1, "count": np.log1p(len(x)), "last": x[-1] - level,
            "recency": np.log(ago.min() + 1e-4), "recent": (weight * (x - level)).sum() / (weight.sum() + 2),
            "deviation": np.log((((x - x.mean()) ** 2).sum() + 0.75) / (len(x) - 1 + 3) / 0.25),
            "slope": -((ago - ago.mean()) * x).sum() / (((ago - ago.mean()) ** 2).sum() + 0.04),
        }  # fmt: skip
        for name, value in expected.items():
            assert row[NAMES.index(name)] == pytest.approx(value, abs=1e-9), name
    assert 0 < unseen < 100


def test_the_first_value_in_each_interval_follows():
    frame = events(2)
    ids = np.arange(1, 26)
    read = LabEvents.of(frame, ids, SCALES)
    subject = np.arange(25)
    at = read.time.min() + 300 * DAY
    end = at + 500 * DAY
    edges = np.array([0.0, 100.0, 400.0])
    found = read.following(subject, np.full(25, at), np.full(25, end), edges)
    rows = {(int(q), int(k), int(np.searchsorted(edges[1:], d))): (d, v) for q, k, d, v in zip(*found, strict=True)}
    assert len(rows) == len(found[0]) > 30
    for s in subject:
        for lab in (0, 1):
            later = [(-a, v) for a, v in visible_values(frame, s + 1, lab, end)]
            later = [(d - (end - at) / DAY * -1, v) for d, v in later]
            for i in (0, 1):
                inside = [(d, v) for d, v in later if edges[i] < d <= edges[i + 1]]
                assert ((s, lab, i) in rows) == bool(inside)
                if inside:
                    assert rows[s, lab, i][0] == pytest.approx(inside[0][0])


def test_numbers_in_another_unit_are_not_read():
    frame = events(3)
    ids = np.arange(1, 26)
    without = LabEvents.of(frame.filter(unit="u"), ids, SCALES)
    assert np.array_equal(LabEvents.of(frame, ids, SCALES).value, without.value)


def test_a_scale_is_not_decided_by_the_impossible():
    rng = np.random.default_rng(0)
    subject, number = np.repeat(np.arange(200), 5), rng.normal(50, 10, 1000)
    clean = LabScale.fit("a", "u", subject, number)
    number[::40] = 1e7
    dirty = LabScale.fit("a", "u", subject, number)
    for z in (-1.0, 0.0, 1.0):
        assert dirty.number(np.array([z]))[0] == pytest.approx(clean.number(np.array([z]))[0], abs=4)
    assert dirty.scaled(np.array([1e30]))[0] < 15


def test_a_constant_lab_has_a_scale():
    scale = LabScale.fit("a", "u", np.arange(30), np.full(30, 7.0))
    assert scale.scaled(np.array([7.0, 9.0])).tolist() == pytest.approx([0, 0])
    assert scale.number(np.array([0.0])) == pytest.approx(7)


def test_skewed_values_are_read_as_logarithms_and_come_back():
    rng = np.random.default_rng(0)
    number = np.exp(rng.normal(3, 1, 2000))
    scale = LabScale.fit("a", "u", np.arange(2000), number)
    assert scale.logged
    assert not LabScale.fit("a", "u", np.arange(2000), number, plain=True).logged
    np.testing.assert_allclose(scale.number(scale.scaled(number)), number)
    assert np.isfinite(scale.scaled(np.array([0.0, -5.0]))).all()


def test_a_subjects_level_is_drawn_to_the_population():
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(400), 4)
    steady = LabScale.fit("a", "u", subject, rng.normal(0, 10, 400)[subject] + rng.normal(0, 1, 1600))
    noisy = LabScale.fit("a", "u", subject, rng.normal(0, 1, 400)[subject] + rng.normal(0, 10, 1600))
    assert steady.prior < 0.1 < 5 < noisy.prior
    assert (LEVEL, SEEN, LAST) == (0, 1, 3)


def test_what_some_people_have_all_the_time_is_not_impossible():
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(1000), 6)
    level = np.where(np.arange(1000) < 20, 9.0, 0.9)[subject]
    number = level * np.exp(rng.normal(0, 0.1, len(subject)))
    ordinary = LabScale.fit("a", "u", subject[level < 5], number[level < 5])
    assert np.exp(ordinary.high) < 3
    some = LabScale.fit("a", "u", subject, number)
    assert np.exp(some.high) > 9
    # one impossible value each of a few people, or two people with nothing else, move nothing
    number[[900, 1800, 2700]] = 5000.0
    assert LabScale.fit("a", "u", subject, number).high == some.high
    absurd = np.where(np.isin(subject, np.arange(100, 200)), 1e30, number)
    assert LabScale.fit("a", "u", subject, absurd).high < np.log(1e4)
    # nor what many people have once or twice, or two people always
    for people, times in ((50, 1), (50, 2), (2, 9)):
        wrong = np.append(number[level < 5], np.full(people * times, 9999.0))
        whose = np.append(subject[level < 5], np.repeat(2000 + np.arange(people), times))
        assert np.exp(LabScale.fit("a", "u", whose, wrong).high) < 3
    # and what is said of everybody does not move with the bounds
    assert some.centre < np.log(1.0)
