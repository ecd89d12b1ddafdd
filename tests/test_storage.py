import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ehrseq.storage
from ehrseq.errors import ArtifactError, TimelineError, UserError
from ehrseq.storage import (
    DIGEST,
    MANIFEST,
    ResumableFolder,
    atomic_folder,
    check_target,
    discard,
    lock_folder,
    manifest_digest,
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


def test_a_folder_is_replaced_by_its_own_kind(tmp_path):
    out = tmp_path / "out"
    for kind in ("model", "model", None):
        check_target(out, kind)
        with atomic_folder(out, kind) as scratch:
            write_manifest(scratch, "model", 1)
    with pytest.raises(UserError, match="holds an earlier forecast; found a model folder; choose another --out"):
        check_target(out, "forecast")
    dataset = tmp_path / "meds"
    (dataset / "metadata").mkdir(parents=True)
    (dataset / "metadata" / "dataset.json").write_text("{}")
    check_target(dataset)
    with pytest.raises(UserError, match="other content"):
        check_target(dataset, "model")


@pytest.mark.parametrize("content", ['{"name": "an application"}', '{"kind": "x"}', "[]", "no JSON", '{"kind": 1}'])
def test_somebody_elses_manifest_is_no_licence(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    for kind in (None, "model"):
        with pytest.raises(UserError, match="other content"):
            check_target(tmp_path, kind)


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
    """Change the manifest and sign it anew."""
    manifest = json.loads((folder / MANIFEST).read_text())
    content = {k: v for k, v in {**manifest, **changes}.items() if k != DIGEST}
    (folder / MANIFEST).write_text(json.dumps({**content, DIGEST: manifest_digest(content)}))


def change(folder, old, new):
    """Change the manifest's text and nothing else."""
    text = (folder / MANIFEST).read_text()
    assert old in text
    (folder / MANIFEST).write_text(text.replace(old, new))


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
        (lambda f: change(f, '"seed": 7', '"seed": 8'), "expected manifest.json as it was written"),
        (lambda f: change(f, '"sub/b.txt"', '"sub/c.txt"'), "expected manifest.json as it was written"),
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


def test_a_locked_folder_is_waited_for_and_then_refused(tmp_path):
    first = lock_folder(tmp_path / "scratch")
    with pytest.raises(UserError, match="found another run"):
        lock_folder(tmp_path / "scratch", patience=0.2)
    os.close(first)
    os.close(lock_folder(tmp_path / "scratch", patience=0.2))


def test_a_lock_lasts_as_long_as_a_process_that_shares_it(tmp_path):
    held = lock_folder(tmp_path / "scratch")
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(held,))
    os.close(held)
    with pytest.raises(UserError):
        lock_folder(tmp_path / "scratch", patience=0.2)
    worker.kill()
    worker.wait()
    os.close(lock_folder(tmp_path / "scratch"))


def test_one_job_at_a_time_writes_to_a_folder_whatever_the_job(tmp_path, monkeypatch):
    patient = ehrseq.storage.lock_folder
    monkeypatch.setattr(ehrseq.storage, "lock_folder", lambda folder: patient(folder, patience=0.1))
    with (
        ResumableFolder(tmp_path / "out", "timelines", "ingest"),
        pytest.raises(UserError, match="another run"),
        ResumableFolder(tmp_path / "out", "forecast", "score"),
    ):
        pytest.fail("two at once")
    assert names(tmp_path) == []


def test_what_an_earlier_run_made_outlives_an_error_of_this_one(tmp_path):
    def run(error, name):
        with ResumableFolder(tmp_path / "out", "thing", "job") as scratch:
            (scratch.folder / name).write_text("hours of work")
            raise error

    with pytest.raises(UserError):
        run(UserError("a", "b", "c"), "own")
    assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        run(KeyboardInterrupt(), "first")
    with pytest.raises(UserError):
        run(UserError("a", "b", "c"), "second")
    assert names(tmp_path / ".out.job") == ["first", "second"]


def test_cut_off_while_removing_nothing_half_removed_has_its_name(tmp_path, monkeypatch):
    def cut_off(folder, **_):
        next(Path(folder).rglob("b.txt"), tmp_path / "none").unlink(missing_ok=True)

    def run():
        with ResumableFolder(tmp_path / "out", "thing", "job") as scratch:
            left = names(scratch.folder)
            (scratch.folder / "part").mkdir()
            for path in (scratch.folder / "note.json", *(scratch.folder / "part" / f"{c}.txt" for c in "ab")):
                path.write_text("x")
            return left

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    run()
    assert names(tmp_path / ".out.job") == [".gone"]
    (tmp_path / "part").mkdir()
    discard(tmp_path / "part")
    assert not (tmp_path / "part").exists()
    monkeypatch.undo()
    assert run() == []
    assert names(tmp_path) == [".part.gone"]


def test_json_is_replaced_whole(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", [1])

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a.json", [2])
    assert read_json(tmp_path / "a.json") == [1]
