import polars as pl
import pytest

from ehrseq.errors import TaskError, TimelineError
from ehrseq.task.split import split_subjects
from ehrseq.timeline.store import Timelines


def people(ids, splits=None):
    return Timelines(pl.DataFrame(), pl.DataFrame({"subject_id": ids}, schema={"subject_id": pl.Int64}), splits=splits)


def test_a_subject_keeps_its_split_whoever_else_is_there():
    everyone = dict(split_subjects(people(list(range(500)))).rows())
    some = list(range(499, 0, -7))
    found = split_subjects(people(some))
    assert found["subject_id"].to_list() == some
    assert found["split"].to_list() == [everyone[i] for i in some]


def test_the_hash_is_frozen():
    # golden: a change would move people of published models between train and held-out
    assert split_subjects(people([1, 2, 3, -5, 2**62]))["split"].to_list() == GOLDEN


GOLDEN = ["held_out", "tuning", "train", "train", "train"]


def test_fractions_and_seed():
    ids = list(range(20_000))
    found = split_subjects(people(ids), fractions=(0.5, 0.2, 0.3))
    share = {name: n / len(ids) for name, n in found["split"].value_counts().rows()}
    assert share["train"] == pytest.approx(0.5, abs=0.015)
    assert share["tuning"] == pytest.approx(0.2, abs=0.015)
    assert not found["split"].equals(split_subjects(people(ids), fractions=(0.5, 0.2, 0.3), seed=1)["split"])
    assert set(split_subjects(people(ids[:99]), fractions=(0, 0, 1))["split"]) == {"held_out"}


def test_the_datasets_own_split_wins_and_the_unnamed_get_none():
    splits = pl.DataFrame({"subject_id": [3, 1, 9], "split": ["train", "held_out", "train"]})
    found = split_subjects(people([1, 2, 3], splits), seed=5)
    assert found.rows() == [(1, "held_out"), (2, None), (3, "train")]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.6, 0.1), (1.2, -0.1, -0.1)])
def test_bad_fractions(fractions):
    with pytest.raises(TaskError, match="three fractions that sum to 1"):
        split_subjects(people([1]), fractions=fractions)


def test_bad_split_tables():
    with pytest.raises(TimelineError, match="each subject in one split"):
        split_subjects(people([1], pl.DataFrame({"subject_id": [1, 1], "split": ["train", "held_out"]})))
    with pytest.raises(TimelineError, match="splits named train, tuning, held_out"):
        split_subjects(people([1], pl.DataFrame({"subject_id": [1], "split": ["test"]})))
