"""Running sums against the same figures read event by event."""

from __future__ import annotations

import numpy as np
import pytest

from ehrseq.features.tabular import RECENT, STATIC, YEAR, History, Tabulator

STEP = int(YEAR / 7)


def history(seed: int, n_subjects: int = 30) -> History:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 12, n_subjects)
    known = [np.sort(rng.integers(0, 20, size)) * STEP for size in sizes]
    for times in known[::3]:
        times[:1] = STATIC
    offset = np.append(0, np.cumsum(sizes))
    value = np.where(rng.random(offset[-1]) < 0.4, np.nan, rng.normal(size=offset[-1])).astype(np.float32)
    masks = np.array([False, False, False, True]), np.array([True, True, False, False])
    code = rng.integers(-1, 4, offset[-1])
    return History(
        offset, np.concatenate(known).astype(np.int64), code, value, *[np.zeros(n_subjects, np.int64)] * 2, *masks
    )


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_what_reading_the_visible_events_gives(seed):
    h = history(seed)
    table = Tabulator(h)
    rng = np.random.default_rng(seed)
    subject, time = rng.integers(0, len(h.birth), 200), rng.integers(-1, 22, 200) * STEP
    rows = table.rows(subject, time)
    assert rows.shape == (200, len(table.names))
    compared = 0
    for s, t, row in zip(subject, time, rows, strict=True):
        own = slice(h.offset[s], h.offset[s + 1])
        known, code, value = h.known_time[own], h.code[own], h.value[own].astype(float)
        seen = known <= t
        found = dict(zip(table.names, row, strict=True))
        assert found["overall:events"] == (seen & (known != STATIC)).sum()
        assert found["overall:moments"] == len(np.unique(known[seen & (known != STATIC)]))
        assert found["3:present"] == (seen & (code == 3)).any()
        for c in (0, 1, 2):
            mine = seen & (code == c)
            assert found[f"{c}:count"] == mine.sum()
            assert found[f"{c}:recent_count"] == (mine & (known > t - RECENT)).sum()
            if mine.any() and (known[mine] != STATIC).all():
                assert found[f"{c}:years_since_last"] == pytest.approx((t - known[mine].max()) / YEAR, abs=1e-5)
                assert found[f"{c}:years_since_first"] == pytest.approx((t - known[mine].min()) / YEAR, abs=1e-5)
            if c == 2:
                continue
            mine &= ~np.isnan(value)
            if not mine.any():
                assert np.isnan(found[f"{c}:last"])
                continue
            x = value[mine]
            year = np.where(known[mine] == STATIC, known[mine].max(), known[mine]) / YEAR
            wanted = {
                "mean": x.mean(),
                "minimum": x.min(),
                "maximum": x.max(),
                "last": x[-1],
                "change": x[-1] - x.mean(),
            }
            wanted["deviation"] = x.std()
            if (known[mine] != STATIC).all():
                centred = year - year.mean()
                wanted["slope"] = (centred * (x - x.mean())).sum() / ((centred**2).sum() + 1)
            for name, number in wanted.items():
                assert found[f"{c}:{name}"] == pytest.approx(number, abs=1e-4), name
                compared += 1
    assert compared > 300


def test_later_events_change_no_row():
    h = history(5)
    cut = 9 * STEP
    subject = np.arange(len(h.birth))
    time = np.full(len(subject), cut)
    kept = h.known_time <= cut
    owner = np.repeat(subject, np.diff(h.offset))
    offset = np.append(0, np.cumsum(np.bincount(owner[kept], minlength=len(subject))))
    earlier = History(offset, h.known_time[kept], h.code[kept], h.value[kept], h.birth, h.enrolled, h.static, h.valued)
    assert kept.sum() < len(kept)
    np.testing.assert_array_equal(Tabulator(earlier).rows(subject, time), Tabulator(h).rows(subject, time))


def test_a_subject_has_the_same_row_to_the_last_bit_whoever_else_is_there():
    h = history(6, 200)
    time = np.full(len(h.birth), 15 * STEP)
    together = Tabulator(h).rows(np.arange(len(h.birth)), time)
    for s in range(0, len(h.birth), 7):
        own = slice(h.offset[s], h.offset[s + 1])
        alone = History(
            np.array([0, own.stop - own.start]), h.known_time[own], h.code[own], h.value[own], h.birth[:1],
            h.enrolled[:1], h.static, h.valued,
        )  # fmt: skip
        np.testing.assert_array_equal(Tabulator(alone).rows(np.array([0]), time[:1])[0], together[s])


def test_a_constant_lab_does_not_vary():
    known = np.arange(50) * STEP
    code, value = np.zeros(50, np.int64), np.full(50, 1.2345, np.float32)
    one = History(np.array([0, 50]), known, code, value, *[np.array([0])] * 2, np.array([False]), np.array([True]))
    table = Tabulator(one)
    row = dict(zip(table.names, table.rows(np.array([0]), known[-1:])[0], strict=True))
    assert (row["0:deviation"], row["0:slope"], row["0:change"]) == (0, 0, 0)


def test_facts_without_a_date_count_and_have_no_since():
    known = np.array([STATIC, 2 * STEP, 5 * STEP])
    code, value = np.zeros(3, np.int64), np.array([1, 2, 3], np.float32)
    one = History(np.array([0, 3]), known, code, value, *[np.array([0])] * 2, np.array([False]), np.array([True]))
    table = Tabulator(one)
    rows = [
        dict(zip(table.names, r, strict=True)) for r in table.rows(np.zeros(2, np.int64), np.array([STEP, 7 * STEP]))
    ]
    assert [r["0:count"] for r in rows] == [1, 3]
    assert np.isnan(rows[0]["0:years_since_last"])
    assert np.isnan(rows[0]["0:years_since_first"])
    assert rows[1]["0:years_since_last"] == pytest.approx(2 / 7)
    assert rows[1]["0:years_since_first"] == pytest.approx(5 / 7)
    assert abs(rows[1]["0:slope"]) < 5


def test_time_under_observation_is_told_once_it_has_begun():
    one = History(*[np.array([0, 0])], *[np.zeros(0, np.int64)] * 2, np.zeros(0, np.float32), np.array([0]),
                  np.array([2 * STEP]), np.zeros(0, bool), np.zeros(0, bool))  # fmt: skip
    table = Tabulator(one)
    rows = table.rows(np.zeros(3, np.int64), np.array([STEP, 2 * STEP, 9 * STEP]))
    np.testing.assert_allclose(rows[:, table.names.index("overall:years_observed")], [np.nan, 0, 1], rtol=1e-6)
