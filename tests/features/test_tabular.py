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
    return History(offset, np.concatenate(known).astype(np.int64), code, value, np.zeros(n_subjects, np.int64), *masks)


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
    earlier = History(offset, h.known_time[kept], h.code[kept], h.value[kept], h.birth, h.static, h.valued)
    assert kept.sum() < len(kept)
    np.testing.assert_allclose(
        Tabulator(earlier).rows(subject, time), Tabulator(h).rows(subject, time), rtol=1e-5, atol=1e-5
    )
