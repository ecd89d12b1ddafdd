from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrseq.errors import TimelineError
from ehrseq.timeline.hierarchy import code_parents, descendants, read_code_parents, with_code_parents
from ehrseq.timeline.store import Timelines


def table(**parents):
    return pl.DataFrame([(c, p) for c, ps in parents.items() for p in ps], ["code", "parent"], orient="row")


def test_descendants_of_codes_and_prefixes_at_any_depth():
    tree = table(b=["a"], c=["b"], d=["c", "x"], e=["x"])
    assert descendants(tree, ["a"]) == ["b", "c", "d"]
    assert descendants(tree, ["c", "x"]) == ["d", "e"]
    assert descendants(tree, ["b*"]) == ["c", "d"]
    assert descendants(tree, ["d"]) == descendants(tree, []) == []


def test_a_code_that_ends_in_a_star_is_no_prefix():
    assert descendants(pl.DataFrame({"code": ["ICD10//M01.1*"], "parent": ["ICD10//M01"]}), ["ICD10//M01"]) == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=15), st.integers(0, 6))
@settings(deadline=None)
def test_descendants_equal_walking_the_table_even_in_circles(pairs, root):
    parents = pl.DataFrame([(str(c), str(p)) for c, p in pairs], {"code": pl.String, "parent": pl.String}, orient="row")
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        new = {c for c, p in pairs if p == node} - seen
        seen |= new
        waiting += new
    assert descendants(parents, [str(root)]) == sorted(str(c) for c in seen - {root})


def test_tables_are_read_from_csv_and_parquet(tmp_path):
    frame = pl.DataFrame({"code": ["A//1", " A//2 ", "A//1", None], "parent": ["A//0", "A//0", "A//0", "A//0"], "x": 1})
    frame.write_csv(tmp_path / "t.csv")
    frame.write_parquet(tmp_path / "t.parquet")
    for source in (frame, tmp_path / "t.csv", str(tmp_path / "t.parquet")):
        assert read_code_parents(source).rows() == [("A//1", "A//0"), ("A//2", "A//0")]
    with pytest.raises(TimelineError, match="columns code and parent"):
        read_code_parents({"code": ["A"]})
    with pytest.raises(TimelineError, match="found FileNotFoundError"):
        read_code_parents(tmp_path / "none.csv")


def test_parents_are_kept_with_the_dataset(tmp_path):
    timelines = Timelines.from_events({"subject_id": [1, 1], "time": [None, None], "code": ["A//1.1", "B//1"]})
    timelines = with_code_parents(timelines, {"code": ["A//1.1", "A//1.1", "A//1"], "parent": ["A//1", "C//1", "A//"]})
    timelines = with_code_parents(timelines, {"code": ["A//1.1"], "parent": ["D//1"]})
    timelines.save(tmp_path / "t")
    for found in (timelines, Timelines.load(tmp_path / "t")):
        lists = dict(found.codes().select("code", "parent_codes").iter_rows())
        assert lists == {"A//1": ["A//"], "A//1.1": ["A//1", "C//1", "D//1"], "B//1": None}
        assert descendants(code_parents(found), ["A//"]) == ["A//1", "A//1.1"]
    assert code_parents(Timelines.from_events({"subject_id": [1], "time": [None], "code": ["A"]})).height == 0
