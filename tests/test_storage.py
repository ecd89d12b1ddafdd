import json
import shutil

import pytest

from ehrseq.errors import ArtifactError, TimelineError, UserError
from ehrseq.storage import (
    MANIFEST,
    atomic_folder,
    read_json,
    read_manifest,
    sha256_file,
    write_json,
    write_manifest,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_an_error_inside_leaves_nothing(tmp_path):
    def write():
        with atomic_folder(tmp_path / "out") as scratch:
            (scratch / "half.txt").write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write()
    assert names(tmp_path) == []


def test_an_error_inside_keeps_the_folder_that_was_there(tmp_path):
    def write(text, fail=False):
        with atomic_folder(tmp_path / "out") as scratch:
            (scratch / "a.txt").write_text(text)
            write_manifest(scratch, "thing", 1)
            if fail:
                raise KeyboardInterrupt

    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("new", fail=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    write("new")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_replacing_leaves_no_file_of_the_old_folder(tmp_path):
    for name in ("first.txt", "second.txt"):
        with atomic_folder(tmp_path / "out") as scratch:
            (scratch / name).write_text("x")
            write_manifest(scratch, "thing", 1)
    assert names(tmp_path / "out") == [MANIFEST, "second.txt"]


def test_a_foreign_folder_or_file_is_refused_and_kept(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.txt").write_text("years of work")
    file = tmp_path / "notes.txt"
    file.write_text("notes")
    for target in (folder, file):
        with (
            pytest.raises(UserError, match="expected an output folder that is new, empty or written by ehrseq"),
            atomic_folder(target),
        ):
            pytest.fail("the block must not run")
    assert (folder / "chapter1.txt").read_text() == "years of work"
    assert file.read_text() == "notes"
    assert names(tmp_path) == ["notes.txt", "thesis"]


def test_empty_folders_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        with atomic_folder(target) as scratch:
            (scratch / "x").write_text("x")
        assert names(target) == ["x"]


def test_json_bytes_depend_on_content_alone(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": [1.5, None], "b": 1}


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[" * 100_000], ids=["cut", "bytes", "empty", "deep"])
def test_damaged_json_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"expected a JSON file a\.json"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ArtifactError, match="FileNotFoundError"):
        read_json(tmp_path / "none.json")


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.txt").write_text("b")
    write_manifest(folder, "model", 2, seed=7)
    return folder


def edit(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def test_a_whole_folder_reads_back_its_facts(folder):
    manifest = read_manifest(folder, "model", 2)
    assert manifest["seed"] == 7
    assert sorted(manifest["files"]) == ["a.txt", "sub/b.txt"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "sub" / "b.txt").write_text("c"), r"sub/b\.txt as its manifest.*found different bytes"),
        (lambda f: (f / "a.txt").unlink(), r"a\.txt as its manifest.*found no such file"),
        (lambda f: (f / MANIFEST).unlink(), "found no manifest"),
        (lambda f: (f / MANIFEST).write_text("{"), "a JSON file manifest.json"),
        (lambda f: (f / MANIFEST).write_text("[]"), "expected a model folder; found a folder of kind None"),
        (lambda f: edit(f, kind="forecast"), "found a folder of kind 'forecast'"),
        (lambda f: edit(f, format_version=3), "format version 1 to 2; found version 3; use a newer ehrseq"),
        (lambda f: edit(f, format_version="2"), "found version '2'"),
        (lambda f: edit(f, files=["a.txt"]), "expected a list of files in manifest.json"),
        (lambda f: edit(f, files={"a.txt": "0" * 64}), r"a\.txt as its manifest"),
        (shutil.rmtree, "found no such folder"),
    ],
)
def test_damage_is_named_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_manifest(folder, "model", 2)
    assert "\n" not in str(caught.value)
    with pytest.raises(TimelineError, match=message):
        read_manifest(folder, "model", 2, TimelineError)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_manifest_cannot_point_outside_its_folder(folder, tmp_path, absolute):
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    edit(folder, files={str(outside) if absolute else "../outside.txt": sha256_file(outside)})
    with pytest.raises(ArtifactError, match="as its manifest describes it"):
        read_manifest(folder, "model", 2)
