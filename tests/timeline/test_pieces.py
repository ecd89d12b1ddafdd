"""A folder in pieces: together they are the folder, whatever the sizes, and each subject is in one piece, whole."""

from __future__ import annotations

import polars as pl
import pytest

from ehrseq.timeline import meds, pieces
from ehrseq.timeline.pieces import Folder, Piece
from ehrseq.timeline.store import Timelines
from tests.toy import cohort


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    timelines = cohort(150, seed=5)
    # someone without an event is somebody too
    empty = timelines.subjects.head(1).with_columns(subject_id=pl.lit(999_999_999, pl.Int64), patient=pl.lit("nobody"))
    folder = tmp_path_factory.mktemp("pieces") / "timelines"
    Timelines(timelines.events, pl.concat([timelines.subjects, empty])).save(folder)
    return folder


def together(folder, found):
    parts = [folder.read(Piece.from_dict(piece.to_dict())) for piece in found]
    assert [len(part) for part in parts] == [piece.size for piece in found]
    return [pl.concat(getattr(part, name) for part in parts) for name in ("events", "subjects")]


@pytest.mark.parametrize(("subjects", "events"), [(2048, 200_000), (20, 200_000), (2, 200_000), (2048, 60), (1, 1)])
def test_pieces_are_the_folder(saved, monkeypatch, subjects, events):
    monkeypatch.setattr(pieces, "SUBJECTS", subjects)
    monkeypatch.setattr(pieces, "EVENTS", events)
    folder, whole = Folder(saved), Timelines.load(saved)
    found = folder.pieces()
    assert (len(found) == 1) == ((subjects, events) == (2048, 200_000))
    if subjects < 100:
        assert max(piece.size for piece in found) <= subjects
    rows, people = together(folder, found)
    assert people.sort("subject_id").equals(whole.subjects)
    assert rows.sort("subject_id", maintain_order=True).equals(whole.events)
    assert Folder(saved).pieces() == found


def test_a_large_file_is_read_by_row_groups(saved, monkeypatch, tmp_path):
    monkeypatch.setattr(meds, "ROW_GROUP", 40)
    Timelines.load(saved).save(tmp_path / "t")
    monkeypatch.setattr(pieces, "SUBJECTS", 1)
    folder = Folder(tmp_path / "t")
    rows, _ = together(folder, folder.pieces())
    assert rows.sort("subject_id", maintain_order=True).equals(Timelines.load(saved).events)
    path = max((tmp_path / "t" / "data").iterdir(), key=lambda p: p.stat().st_size)
    ids = pl.read_parquet(path)["subject_id"]
    assert len(ids) > 40
    assert meds.groups_with(path, ids.min(), ids.min()) == [0]


@pytest.mark.parametrize("split_by", ["subject", "row"])
def test_another_meds_dataset_in_pieces(saved, monkeypatch, tmp_path, split_by):
    monkeypatch.setattr(pieces, "SUBJECTS", 40)
    events = Timelines.load(saved).events.select("subject_id", "time", "code", "numeric_value")
    (tmp_path / "data" / "deep").mkdir(parents=True)
    # of two files each subject is in one, or in both: then neither can be read alone
    half = pl.col("subject_id") % 2 if split_by == "subject" else pl.int_range(pl.len()) % 2
    for number in (0, 1):
        events.filter(half == number).write_parquet(tmp_path / "data" / "deep" / f"{number}.parquet")
    folder, whole = Folder(tmp_path), Timelines.load(tmp_path)
    rows, people = together(folder, folder.pieces())
    assert len(folder.pieces()) == 4
    assert people.sort("subject_id").equals(whole.subjects)
    assert rows.sort("subject_id", maintain_order=True).equals(whole.events)


def test_a_changed_folder_has_another_fingerprint(saved, tmp_path):
    timelines = Timelines.load(saved)
    for name, some in (
        ("a", timelines),
        ("b", timelines),
        ("c", timelines.select(timelines.subjects["subject_id"][1:])),
    ):
        some.save(tmp_path / name)
    found = [Folder(tmp_path / name).fingerprint() for name in "abc"]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("ours", [True, False])
def test_a_heavy_file_is_cut_by_events(saved, monkeypatch, tmp_path, ours):
    # some people have most of the events, one of them more than a piece may hold
    few = cohort(40, seed=6)
    many = [few.events] + [few.events.filter(pl.col("subject_id") == i) for i in (1, 2, 3) for _ in range(20)]
    skewed = Timelines.from_events(pl.concat(many), few.subjects)
    if ours:
        monkeypatch.setattr(meds, "SHARDS", 1)
        skewed.save(tmp_path / "t")
    else:
        (tmp_path / "t" / "data").mkdir(parents=True)
        skewed.events.write_parquet(tmp_path / "t" / "data" / "0.parquet")
    events = skewed.events["subject_id"].value_counts()["count"]
    limit = int(events.sort()[-2]) + 1
    monkeypatch.setattr(pieces, "EVENTS", limit)
    folder = Folder(tmp_path / "t")
    parts = [folder.read(piece) for piece in folder.pieces()]
    assert len(parts) > 2
    assert all(part.events.height <= limit or len(part) == 1 for part in parts)
    assert sum(part.events.height for part in parts) == skewed.events.height


def test_names_of_another_meds_dataset_are_read_from_its_ids_alone(saved, monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    Timelines.load(saved).events.write_parquet(tmp_path / "data" / "0.parquet")
    expected = Timelines.load(tmp_path).subjects.select("subject_id", "patient")
    monkeypatch.setattr(Timelines, "load", lambda *_: pytest.fail("all of it was read"))
    assert Folder(tmp_path).names().equals(expected)
    assert Folder(saved).names().columns == ["subject_id", "patient"]
