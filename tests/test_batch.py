"""Batch scoring: the same bytes however many processes, wherever it was cut off, and nothing lost on the way."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from rich.progress import Progress

import ehrseq.batch
from ehrseq.config import ModelConfig
from ehrseq.errors import ArtifactError, ForecastError, SourceError, TimelineError, UserError, WorkerError
from ehrseq.estimator import ProgressionModel
from ehrseq.forecast import files
from ehrseq.forecast.table import Forecast
from ehrseq.model.profile import Observed
from ehrseq.score import score_export
from ehrseq.storage import read_json
from ehrseq.synthetic import write_simulation
from ehrseq.task.definition import Task
from ehrseq.timeline import pieces
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.store import Timelines
from tests.toy import CONFIG, TASK, cohort, day

PIECE = 30


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Timelines, and a cheap model of some of their subjects."""
    folder = tmp_path_factory.mktemp("batch")
    timelines = cohort(150, seed=1)
    timelines.save(folder / "timelines")
    some = timelines.select(timelines.subjects["subject_id"].head(120))
    ProgressionModel(ModelConfig(CONFIG.network, CONFIG.training, CONFIG.boosted, "boosted", 1)).fit(some, TASK).save(
        folder / "model"
    )
    return folder


@pytest.fixture
def small(monkeypatch):
    """Pieces of some subjects."""
    monkeypatch.setattr(pieces, "SUBJECTS", PIECE)


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_same_bytes_however_many_processes(work, small, tmp_path):
    one = score_export(work / "timelines", work / "model", tmp_path / "one", workers=1)
    score_export(work / "timelines", work / "model", tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    memory = score_export(work / "timelines", work / "model")
    for name in ("risk", "skipped", "seen"):
        assert getattr(one, name).equals(getattr(memory, name))
    assert one.metadata == memory.metadata
    scored = memory.risk.select("subject_id", "prediction_time").unique()
    assert (one.counts["prediction_times"], one.counts["subjects"]) == (scored.height, scored.height)
    assert sum(one.counts["skipped"].values()) == memory.skipped.height
    assert one.counts["seen_in_training"] == memory.seen.height > 50
    assert repr(one).startswith(f"StoredForecast({scored.height} prediction times scored")
    assert read_json(tmp_path / "one" / "drift.json") == json.loads(json.dumps(one.drift))
    assert one.drift["compared"]
    assert one.load().risk is one.risk


@pytest.mark.parametrize(("source", "file_format"), [("timelines", "csv"), ("foreign", "parquet"), ("frame", "csv")])
def test_every_source_and_format(work, small, tmp_path, source, file_format):
    timelines = Timelines.load(work / "timelines")
    if source == "foreign":
        (tmp_path / "meds" / "data").mkdir(parents=True)
        timelines.events.write_parquet(tmp_path / "meds" / "data" / "0.parquet")
    data = {"timelines": timelines, "foreign": tmp_path / "meds", "frame": timelines.events}[source]
    model = ProgressionModel.load(work / "model")
    stored = score_export(data, model, tmp_path / "f", file_format=file_format, at="2014-03-01", workers=1)
    memory = score_export(data, model, at="2014-03-01")
    assert stored.risk.equals(memory.risk)
    assert stored.skipped.equals(memory.skipped)
    assert [p.suffix for p in (tmp_path / "f").glob("risk.*")] == [f".{file_format}"]


def test_prediction_times_of_every_kind(work, small, tmp_path):
    timelines, model = Timelines.load(work / "timelines"), ProgressionModel.load(work / "model")
    few = timelines.subjects.select("patient", prediction_time=pl.lit(date(2013, 5, 6))).gather_every(9)
    for number, at in enumerate((date(2013, 5, 6), day(1000.5), few, "task")):
        stored = score_export(work / "timelines", model, tmp_path / str(number), at=at, workers=1)
        memory = score_export(timelines, model, at=at)
        assert stored.risk.equals(memory.risk)
        assert stored.skipped.equals(memory.skipped)
    # the task's own table of times, which no folder keeps
    times = [{"patient": name, "time": "2013-05-06"} for name in few["patient"].head(4)]
    model.task_ = Task.from_dict(TASK.to_dict() | {"prediction_times": {"rule": "table", "times": times}})
    stored = score_export(work / "timelines", model, tmp_path / "table", at="task", workers=1)
    assert stored.risk["subject_id"].n_unique() + stored.skipped["subject_id"].n_unique() >= 4
    assert stored.risk.equals(score_export(timelines, model, at="task").risk)
    model.save(tmp_path / "model")
    with pytest.raises(ForecastError, match="withheld"):
        score_export(work / "timelines", tmp_path / "model", tmp_path / "no", at="task")


def test_what_cannot_be_is_told_and_leaves_nothing(work, small, tmp_path):
    timelines, model = Timelines.load(work / "timelines"), work / "model"
    strangers = pl.DataFrame({"patient": ["nobody"], "prediction_time": [date(2013, 5, 6)]})
    for at, error, says in (
        ("2013-13-01", TimelineError, "ISO 8601"),
        ("1950-01-01", ForecastError, "none of 150 .most often: before_birth"),
        (strangers, TimelineError, "fit no subject"),
    ):
        with pytest.raises(error, match=says) as in_pieces:
            score_export(work / "timelines", model, tmp_path / "f", at=at, workers=1)
        with pytest.raises(error) as in_memory:
            score_export(timelines, model, at=at)
        assert str(in_pieces.value) == str(in_memory.value)
    with pytest.raises(ForecastError, match="'cox'"):
        score_export(timelines, model, tmp_path / "f", branch="cox")
    for none in (-1, 0):
        with pytest.raises(UserError, match="at least one worker"):
            score_export(timelines, model, tmp_path / "f", workers=none)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_goes_on_and_other_questions_start_anew(work, small, tmp_path, monkeypatch):
    scored = []
    real = ehrseq.batch.do

    def failing(job, loaded, advance):
        scored.append(job["folder"])
        if len(scored) == 4:
            raise KeyboardInterrupt
        real(job, loaded, advance)

    monkeypatch.setattr(ehrseq.batch, "do", failing)
    out = tmp_path / "f"
    with pytest.raises(KeyboardInterrupt):
        score_export(work / "timelines", work / "model", out, workers=1)
    assert not out.exists()
    score_export(work / "timelines", work / "model", out, workers=1)
    assert len(scored) == len(set(scored)) + 1  # the fourth piece alone was begun twice
    score_export(work / "timelines", work / "model", tmp_path / "whole", workers=1)
    assert content(out) == content(tmp_path / "whole")

    scored.clear()
    with pytest.raises(KeyboardInterrupt):
        score_export(work / "timelines", work / "model", out, workers=1)
    # a mistake in the meantime does not cost what is done
    with pytest.raises(TimelineError):
        score_export(work / "timelines", work / "model", out, at="soon", workers=1)
    assert len(list((tmp_path / ".f.score" / "parts").iterdir())) == 3
    scored[:] = scored[:3]
    monkeypatch.setattr(ehrseq.batch, "do", lambda job, *rest: (scored.append(job["folder"]), real(job, *rest)))
    score_export(work / "timelines", work / "model", out, at="2013-05-06", workers=1)
    assert len(scored) == 3 + len(all_pieces(work))
    assert list(tmp_path.glob(".*")) == []


def all_pieces(work):
    return pieces.Folder(work / "timelines").pieces()


def test_a_worker_that_fails_leaves_what_is_done(work, small, tmp_path, monkeypatch):
    real, pools = ehrseq.batch.do, []
    # the other process has another do: it cannot read a model that is gone by then
    (tmp_path / "model").symlink_to(work / "model")

    def gone(job, loaded, advance):
        (tmp_path / "model").unlink(missing_ok=True)
        real(job, loaded, advance)

    monkeypatch.setattr(ehrseq.batch, "do", gone)
    # a user's fault is the same one in another process
    with pytest.raises(ArtifactError, match=r"an ehrseq model folder .*; found no such folder"):
        score_export(work / "timelines", tmp_path / "model", tmp_path / "f", workers=2)
    assert done(tmp_path)

    class Watched(ehrseq.batch.Pool):
        def __enter__(self):
            pools.append(self)
            return self

    def lonely(job, loaded, advance):
        for process in pools[0]._started:
            process.kill()
        real(job, loaded, advance)

    monkeypatch.setattr(ehrseq.batch, "do", lonely)
    monkeypatch.setattr(ehrseq.batch, "Pool", Watched)
    with pytest.raises(WorkerError, match=r"one that ended early; .* what is done is kept"):
        score_export(work / "timelines", work / "model", tmp_path / "f", workers=2, at="2013-05-06")
    assert done(tmp_path)


def done(folder):
    return sorted(p for p in (folder / ".f.score" / "parts").iterdir() if p.name.isdigit())


@pytest.fixture
def interrupted(work, small, tmp_path):
    """A run of which only the end is missing: its folder `f`, whose parts are done."""

    def again():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ehrseq.batch, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                score_export(work / "timelines", work / "model", tmp_path / "f", workers=1)
        assert len(done(tmp_path)) == len(all_pieces(work))
        return done(tmp_path)

    return again


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """What an uninterrupted run writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "SUBJECTS", PIECE)
        folder = tmp_path_factory.mktemp("whole") / "f"
        score_export(work / "timelines", work / "model", folder, workers=1)
    return content(folder)


def test_a_part_that_is_not_whole_is_made_again(work, whole, interrupted, tmp_path, monkeypatch):
    first, second, *_ = interrupted()
    for name in ("labs.parquet", "skipped.parquet"):
        (first / name).unlink()
    (second / "risk.parquet").write_bytes(b"")
    score_export(work / "timelines", work / "model", tmp_path / "f", workers=1)
    assert content(tmp_path / "f") == whole
    shutil.rmtree(tmp_path / "f")

    # another question begins to remove the parts, and is cut off
    interrupted()

    def cut_off(folder, *_, **__):
        for path in sorted(Path(folder).rglob("risk.parquet"))[:1]:
            path.unlink()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            score_export(work / "timelines", work / "model", tmp_path / "f", workers=1, at="2013-05-06")
    score_export(work / "timelines", work / "model", tmp_path / "f", workers=1)
    assert content(tmp_path / "f") == whole
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_note_that_cannot_be_read_is_none(work, whole, interrupted, tmp_path):
    interrupted()
    (tmp_path / ".f.score" / "run.json").write_text('{"at": nu')
    score_export(work / "timelines", work / "model", tmp_path / "f", workers=1)
    assert content(tmp_path / "f") == whole


def test_a_slip_does_not_cost_what_is_done(work, whole, interrupted, tmp_path):
    parts = interrupted()
    strangers = pl.DataFrame({"patient": ["nobody"], "prediction_time": [date(2013, 5, 6)]})
    (tmp_path / "empty").mkdir()
    for source, at, error in (
        (work / "timelinez", None, SourceError),
        (tmp_path / "empty", None, SourceError),
        (work / "timelines", strangers, TimelineError),
    ):
        with pytest.raises(error):
            score_export(source, work / "model", tmp_path / "f", at=at, workers=1)
        assert done(tmp_path) == parts
    score_export(work / "timelines", work / "model", tmp_path / "f", workers=1)
    assert content(tmp_path / "f") == whole


def test_one_run_has_one_model_and_one_state_of_the_timelines(work, small, tmp_path, monkeypatch):
    real, calls = ehrseq.batch.do, []
    shutil.copytree(work / "model", tmp_path / "model")
    shutil.copytree(work / "timelines", tmp_path / "timelines")
    other = ProgressionModel.load(work / "model")
    other.config = ModelConfig(CONFIG.network, CONFIG.training, CONFIG.boosted, "boosted", 7)

    def replaced(job, loaded, advance):
        calls.append(1)
        if len(calls) == 3:
            other.save(tmp_path / "model")
            loaded.clear()  # what a process has that begins now
        real(job, loaded, advance)

    monkeypatch.setattr(ehrseq.batch, "do", replaced)
    with pytest.raises(ArtifactError, match="another in its folder"):
        score_export(tmp_path / "timelines", tmp_path / "model", tmp_path / "f", workers=1)
    calls.clear()

    def changed(job, loaded, advance):
        calls.append(1)
        real(job, loaded, advance)
        if len(calls) == len(all_pieces(work)):
            timelines = Timelines.load(work / "timelines")
            timelines.select(timelines.subjects["subject_id"].head(149)).save(tmp_path / "timelines")

    monkeypatch.setattr(ehrseq.batch, "do", changed)
    with pytest.raises(TimelineError, match="stay as they are"):
        score_export(tmp_path / "timelines", work / "model", tmp_path / "g", workers=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".f.score", "model", "timelines"]


def test_a_source_is_scored_by_its_own_timelines(tmp_path, monkeypatch):
    for name, seed in (("a", 1), ("b", 2)):
        write_simulation(tmp_path / name, 6, seed=seed)
    scratch, real = tmp_path / "scratch", ehrseq.batch.ingest
    scratch.mkdir()
    ehrseq.batch._timelines(tmp_path / "a" / "export", scratch, 1, False)

    def killed(*args, **options):
        real(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(ehrseq.batch, "ingest", killed)
    with pytest.raises(KeyboardInterrupt):
        ehrseq.batch._timelines(tmp_path / "b" / "export", scratch, 1, False)
    monkeypatch.setattr(ehrseq.batch, "ingest", real)
    for name in ("a", "b", "a"):
        made = ehrseq.batch._timelines(tmp_path / name / "export", scratch, 1, False)
        found, expected = Timelines.load(made).subjects, read_fhir(tmp_path / name / "export").subjects
        assert found.sort("patient").equals(expected.sort("patient"))
        assert list(scratch.iterdir()) == [made]
    # one that was cut short is made again
    (made / "subjects.parquet").write_bytes(b"")
    assert Timelines.load(ehrseq.batch._timelines(tmp_path / "a" / "export", scratch, 1, False)).subjects.equals(found)


def test_a_folder_that_appears_meanwhile_is_left_alone(work, small, tmp_path, monkeypatch):
    real = ehrseq.batch._run

    def run(*args):
        real(*args)
        (tmp_path / "f").mkdir()
        (tmp_path / "f" / "thesis.txt").write_text("mine")

    monkeypatch.setattr(ehrseq.batch, "_run", run)
    with pytest.raises(UserError, match="output folder"):
        score_export(work / "timelines", work / "model", tmp_path / "f", workers=1)
    assert (tmp_path / "f" / "thesis.txt").read_text() == "mine"
    assert len(done(tmp_path)) == len(all_pieces(work))


def test_parts_are_added_up_one_at_a_time_and_named_alike(work, interrupted, tmp_path, monkeypatch):
    interrupted()
    read, real = [], ehrseq.batch.read_json
    monkeypatch.setattr(ehrseq.batch, "read_json", lambda path, *rest: (read.append(path), real(path, *rest))[1])

    def total(parts):
        read.clear()
        for number, _ in enumerate(parts, 1):
            assert len(read) == number
        return Observed()

    monkeypatch.setattr(Observed, "sum", total)
    score_export(work / "timelines", work / "model", tmp_path / "f", workers=1)
    assert len(read) == len(all_pieces(work))
    shutil.rmtree(tmp_path / "f")
    monkeypatch.undo()
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, name in zip(folders, ("x.csv", "y.csv"), strict=True):
        folder.mkdir()
        (folder / name).write_text("")
        (folder / "facts.json").write_text(json.dumps({"counts": {"skipped": {}}, "observed": Observed().to_dict()}))
    with pytest.raises(ForecastError, match="the same files in all parts"):
        ehrseq.batch._join(tmp_path / "joined", folders, "csv", {}, None)


def test_a_bar_over_subjects(work, small, tmp_path, monkeypatch):
    seen = []
    real = Progress.advance
    monkeypatch.setattr(Progress, "advance", lambda self, task, n=1: (seen.append(n), real(self, task, n)))
    score_export(work / "timelines", work / "model", tmp_path / "f", workers=1, progress=True)
    assert sum(seen) == 150
    assert len(seen) > 4


def test_a_raw_export_is_read_once(work, small, tmp_path, monkeypatch):
    write_simulation(tmp_path / "s", 20, seed=3)
    out = tmp_path / "f"
    monkeypatch.setattr(ehrseq.batch, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score_export(tmp_path / "s" / "export", work / "model", out, workers=1)
    monkeypatch.undo()
    monkeypatch.setattr(ehrseq.batch, "ingest", lambda *_, **__: pytest.fail("it was read again"))
    # none of its codes are known to the model
    with pytest.raises(ForecastError, match="unknown_codes"):
        score_export(tmp_path / "s" / "export", work / "model", out, workers=1)


def test_a_format_is_one_function(work, small, tmp_path, monkeypatch):
    def lines(forecast, folder):
        ids = forecast.risk["subject_id"].unique().sort()
        (folder / "risks.ndjson").write_text("".join(f'{{"id": {i}}}\n' for i in ids))

    monkeypatch.setitem(files.FORMATS, "lines", lines)
    score_export(work / "timelines", work / "model", tmp_path / "f", file_format="lines", workers=1)
    found = [json.loads(line)["id"] for line in (tmp_path / "f" / "risks.ndjson").read_text().splitlines()]
    assert sorted(found) == score_export(work / "timelines", work / "model").risk["subject_id"].unique().to_list()


def test_fhir_from_parts_is_that_from_memory(work, small, tmp_path):
    score_export(work / "timelines", work / "model", tmp_path / "parts", file_format="fhir", workers=1)
    score_export(work / "timelines", work / "model").save(tmp_path / "whole", file_format="fhir")
    for name, count in (("Device.ndjson", 1), ("RiskAssessment.ndjson", None)):
        parts, whole = (read_lines(tmp_path / folder / name) for folder in ("parts", "whole"))
        assert sorted(parts) == sorted(whole)
        assert len(parts) == (count or len(set(parts))) > 0
    assert Forecast.load(tmp_path / "parts").risk.equals(Forecast.load(tmp_path / "whole").risk)


def test_the_device_is_one_whoever_is_in_a_part(work, small, tmp_path):
    timelines, model = Timelines.load(work / "timelines"), ProgressionModel.load(work / "model")
    first = pieces.Folder(work / "timelines").read(all_pieces(work)[0]).subjects["subject_id"]
    others = timelines.subjects.filter(~pl.col("subject_id").is_in(first.implode()))
    at = others.select("patient", prediction_time=pl.lit(date(2013, 5, 6)))
    saved = device_of(score_export(work / "timelines", model, tmp_path / "saved", at=at, file_format="fhir", workers=1))
    assert saved["identifier"][0]["value"] == model.folder_hash_
    # a model without a folder is told from others by its training data alone, in parts as in memory
    model.folder_hash_ = None
    made = score_export(work / "timelines", model, tmp_path / "new", at=at, file_format="fhir", workers=1)
    assert model.fitted_.data_hash in [version["value"] for version in device_of(made)["version"]]
    score_export(timelines, model, at=at).save(tmp_path / "memory", file_format="fhir")
    assert read_lines(tmp_path / "new" / "Device.ndjson") == read_lines(tmp_path / "memory" / "Device.ndjson")
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    with pytest.raises(ForecastError, match="the same in all parts"):
        files.join_same([tmp_path / "one", tmp_path / "two"], tmp_path / "Device.ndjson")


def device_of(stored):
    [device] = [json.loads(line) for line in read_lines(stored.folder / "Device.ndjson")]
    made_by = {
        json.loads(line)["performer"]["reference"] for line in read_lines(stored.folder / "RiskAssessment.ndjson")
    }
    assert made_by == {f"Device/{device['id']}"}
    return device


def read_lines(path):
    return path.read_text().splitlines()
