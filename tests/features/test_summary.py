"""Summaries read visible history only, and are what a hand count gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrseq.features.summary import DAY, summarise

STATIC = np.iinfo(np.int64).min


def one(known, code, value, at, n_codes=2):
    return summarise(
        np.array([0, len(known)]),
        np.array(known, np.int64),
        np.array(code, np.int64),
        np.array(value, np.float32),
        np.array([0]),
        np.array([at], np.int64),
        n_codes,
    )[0]


def test_hand_count():
    row = one([STATIC, 0, 10 * DAY, 20 * DAY], [-1, 0, 0, 1], [np.nan, 1.5, np.nan, 7.0], 15 * DAY)
    last, count, recency, ever = row[:4]
    assert last == pytest.approx(1.5)  # the later event has no value: the earlier one is carried forward
    assert count == pytest.approx(np.log(3))
    assert recency == pytest.approx(1 / (1 + 5 / 365.25))
    assert ever == 1
    assert (row[4:8] == 0).all()  # code 1 is not known yet
    assert row[8] == pytest.approx(np.log(3))


def test_known_at_the_very_moment_counts():
    assert one([DAY], [0], [2.0], DAY)[0] == 2.0
    assert one([DAY + 1], [0], [2.0], DAY)[0] == 0.0


def test_no_history_is_zero_but_for_recency():
    row = one([], [], [], DAY)
    assert (row[:-1] == 0).all()
    assert np.isfinite(row).all()


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1), st.floats(-5, 5, width=32)), max_size=12),
    st.lists(st.tuples(st.integers(31, 90), st.integers(0, 1), st.floats(-5, 5, width=32)), max_size=5),
)
def test_later_events_change_nothing(history, later):
    at = 30 * DAY
    before = sorted(e for e in history if e[0] <= 30)
    after = before + sorted(later)

    def row(events):
        return one([e[0] * DAY for e in events], [e[1] for e in events], [e[2] for e in events], at)

    np.testing.assert_array_equal(row(before), row(after))


def test_queries_of_several_subjects():
    together = summarise(
        np.array([0, 2, 3]), np.array([0, DAY, 0]), np.array([0, 0, 1]), np.array([1, 2, 3], np.float32),
        np.array([1, 0, 0]), np.array([DAY, 0, DAY]), 2,
    )  # fmt: skip
    np.testing.assert_array_equal(together[1], one([0, DAY], [0, 0], [1, 2], 0))
    np.testing.assert_array_equal(together[2], one([0, DAY], [0, 0], [1, 2], DAY))
    np.testing.assert_array_equal(together[0], one([0], [1], [3], DAY))
