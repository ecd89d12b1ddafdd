"""The stages without Spark: however an export is cut and dealt out, the timelines are those of `read_fhir`."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from ehrseq.config import BoostedConfig, ModelConfig
from ehrseq.errors import SourceError, TimelineError, UserError
from ehrseq.estimator import ProgressionModel
from ehrseq.fhir import reader
from ehrseq.fhir.columns import strings
from ehrseq.forecast.table import Forecast
from ehrseq.spark import stages
from ehrseq.spark.engine import Local
from ehrseq.spark.reading import SparkTimelines, read_on
from ehrseq.spark.scoring import score
from ehrseq.spark.wire import TASKS, folder_bytes, frame_bytes, frame_of, part_bytes, part_of, write_folder
from ehrseq.synthetic import write_simulation
from ehrseq.task.definition import PredictionTimes, Task
from ehrseq.timeline import ingest
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.parts import nothing
from ehrseq.timeline.store import Timelines
from tests.timeline.test_ingest import condition, encounter, make_export, observation, patient, write


def assert_same(found: Timelines, expected: Timelines) -> None:
    """Everything that `read_fhir` says, in its order; the ledger is in no order."""
    assert expected.events.height
    assert_frame_equal(found.events, expected.events, categorical_as_str=True)
    for name in ("subjects", "ledger", "quarantine", "sources", "units"):
        one, other = (getattr(t, name) for t in (found, expected))
        assert_frame_equal(one, other, check_row_order=name == "subjects", categorical_as_str=True)
    assert found.metadata == expected.metadata


def hard_export(folder: Path) -> None:
    """Besides what `make_export` has: what only a look at all files settles."""
    make_export(folder, 12)
    write(folder / "c" / "Patient.ndjson",
          patient("old", link=[{"type": "replaced-by", "other": {"reference": "Patient/p3"}}]),
          patient("p4", gender="male", meta={"lastUpdated": "2021-01-01T00:00:00Z"}),
          patient("named", identifier=[{"system": "urn:mrn", "value": "77"}]))  # fmt: skip
    write(folder / "d" / "more.ndjson",
          observation("merged", "old", 11.0),
          observation("lost", "nobody", 11.0),
          observation("by-identifier", "", 12.0) | {"subject": {"identifier": {"system": "urn:mrn", "value": "77"}}},
          observation("twice", "p5", 13.0), observation("twice", "p5", 14.0),
          observation("twice", "p6", 13.5),  # the same record of another patient: one of the three stays
          observation("dated-elsewhere", "p7", 9.0, effectiveDateTime=None, encounter={"reference": "Encounter/late"}),
          condition("known-late", "p7", "late"))  # fmt: skip
    write(folder / "e" / "last.ndjson", encounter("late", "p7", "2020-05-01"),
          {"resourceType": "Medication", "id": "m", "code": {"coding": [
              {"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "860975"}]}})  # fmt: skip
    write(folder / "a" / "orders.ndjson",
          {"resourceType": "MedicationRequest", "id": "r", "status": "active", "intent": "order",
           "authoredOn": "2020-02-02", "subject": {"reference": "Patient/p8"},
           "medicationReference": {"reference": "Medication/m"}})  # fmt: skip


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hard") / "export"
    hard_export(folder)
    return folder


@pytest.mark.parametrize(("partitions", "task_bytes", "full"), [(1, 1 << 26, 1 << 17), (5, 5000, 50)])
def test_the_timelines_are_those_of_one_process(export, monkeypatch, partitions, task_bytes, full):
    monkeypatch.setattr(ingest, "TASK_BYTES", task_bytes)
    monkeypatch.setattr(reader, "FULL", full)
    made = read_on(Local(partitions), export, data_cut=date(2020, 12, 31)).collect()
    assert_same(made, read_fhir(export, data_cut=date(2020, 12, 31)))
    # what only a look at all chunks settles is in it
    assert {"duplicate", "merged", "unknown_subject"} <= set(made.ledger["reason"])
    assert made.quarantine.height
    assert made.events.filter(resource_id="r", code="RXNORM//860975").height == 1
    assert set(made.events.filter(pl.col("resource_id").is_in(["dated-elsewhere", "known-late"]))["time_source"]) == {
        "encounter"
    }


def test_a_file_that_changes_or_is_not_there_stops_the_job(export, tmp_path):
    task = next(t for t in ingest.tasks_of([(export / "e" / "last.ndjson", False)]))
    job = {"task": task, "coding": {}, "full": 10, "strict": False}
    for states in ([[1, 2]], [[0, 0]]):
        batch = pa.RecordBatch.from_pylist([{"task": 0, "job": json.dumps(job | {"states": states})}], schema=TASKS)
        with pytest.raises(SourceError, match="every worker sees") as told:
            next(stages.read_tasks([batch]))
        assert "last" not in str(told.value)


def test_a_source_without_patients_is_refused(tmp_path):
    write(tmp_path / "in" / "a.ndjson", observation("o", "p", 1.0))
    with pytest.raises(SourceError, match="no readable Patient"):
        read_on(Local(), tmp_path / "in")


def test_a_synthea_folder(data_folder, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for file in sorted((data_folder / "synthea_r4").glob("*.json.gz"))[:4]:
        (folder / file.name).symlink_to(file)
    hospital = sorted((data_folder / "synthea_r4").glob("hospital*"))
    for file in hospital[:1]:
        (folder / file.name).symlink_to(file)
    monkeypatch.setattr(ingest, "TASK_BYTES", 200_000)
    assert_same(read_on(Local(3), folder).collect(), read_fhir(folder))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return write_simulation(tmp_path_factory.mktemp("simulated") / "sim", 100, seed=3)


@pytest.fixture(scope="module")
def timelines(simulated) -> Timelines:
    return read_fhir(simulated / "export")


@pytest.fixture(scope="module")
def model(simulated, timelines) -> ProgressionModel:
    config = ModelConfig(
        model="boosted", boosted=BoostedConfig(landmarks_per_subject=3, max_trees=15, min_rows_per_leaf=20)
    )
    return ProgressionModel(config).fit(timelines, Task.from_toml(simulated / "task.toml"))


def assert_same_forecast(found: Forecast, expected: Forecast) -> None:
    assert expected.risk.height
    for name in ("risk", "labs", "skipped", "seen"):
        one, other = (getattr(f, name) for f in (found, expected))
        assert_frame_equal(one, other, check_exact=False, rel_tol=0, abs_tol=1e-6)


@pytest.mark.parametrize("at", [None, "2012-06-30", "task"])
def test_forecasts_are_those_of_one_process(simulated, timelines, model, at, monkeypatch):
    monkeypatch.setattr(stages, "EVENTS_AT_ONCE", 3000)  # several calls a partition
    made = score(read_on(Local(2), simulated / "export"), model, at=at)
    expected = model.forecast(timelines, at)
    assert_same_forecast(made.collect(), expected)
    assert made.metadata["model"] == "boosted"
    assert made.metadata == expected.metadata


def test_where_nobody_can_be_scored_all_are_skipped(simulated, timelines, model):
    made = score(read_on(Local(2), simulated / "export"), model, at="1900-01-01").collect()
    assert made.risk.height == 0
    assert set(made.skipped["subject_id"]) == set(timelines.subjects["subject_id"])


def test_tables_come_and_go_as_they_are(timelines):
    engine = Local(3)
    tables = {stages.EVENTS: timelines.events, stages.SUBJECTS: timelines.subjects}
    pieces = []
    for kind, table in tables.items():
        plain = table.with_columns(pl.col(pl.Categorical).cast(pl.String)).sample(fraction=1, shuffle=True, seed=1)
        batches = plain.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches(5000)
        pieces.append(list(stages.pack(batches, kind)))
    made = SparkTimelines(engine, engine.by_shard(pieces))
    assert_frame_equal(made.collect().events, timelines.events, categorical_as_str=True)
    assert_frame_equal(made.collect().subjects, timelines.subjects)
    rows = [batch for partition in made.events for batch in partition]
    assert sum(batch.num_rows for batch in rows) == timelines.events.height
    assert {str(kind) for kind in rows[0].schema.types} >= {"timestamp[us]", "string", "float", "int16"}


def test_tables_may_lack_columns(timelines, model):
    engine, plain = Local(2), timelines.events.select("subject_id", "time", "code", "known_time", "numeric_value")
    tables = {stages.EVENTS: plain, stages.SUBJECTS: timelines.subjects}
    batches = {kind: t.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches() for kind, t in tables.items()}
    made = SparkTimelines(engine, engine.by_shard([list(stages.pack(b, kind)) for kind, b in batches.items()]))
    assert made.collect().events["unit"].null_count() == plain.height
    expected = model.forecast(Timelines.from_events(plain, timelines.subjects), "2012-06-30")
    assert_frame_equal(score(made, model, at="2012-06-30").collect().skipped, expected.skipped)


def test_a_frame_of_times_is_scored_elsewhere(simulated, model):
    with pytest.raises(UserError, match="score a table locally"):
        score(read_on(Local(), simulated / "export"), model, at=pl.DataFrame({"patient": ["x"]}))


def spark_of(tables: dict[str, pl.DataFrame]) -> SparkTimelines:
    engine = Local(2)
    plain = {kind: t.with_columns(pl.col(pl.Categorical).cast(pl.String)) for kind, t in tables.items()}
    batches = {kind: t.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches() for kind, t in plain.items()}
    return SparkTimelines(engine, engine.by_shard([list(stages.pack(b, kind)) for kind, b in batches.items()]))


@pytest.mark.parametrize("left", [1, 0])
def test_nobody_without_a_subject_row_is_lost(timelines, model, left):
    one = timelines.events["subject_id"][0]
    rows = timelines.subjects.filter(pl.col("subject_id") != one) if left else timelines.subjects.clear()
    made = spark_of({stages.EVENTS: timelines.events, stages.SUBJECTS: rows})
    with pytest.raises(TimelineError, match="a subject row for everyone who has events") as told:
        score(made, model, at="2012-06-30")
    assert "\n" not in str(told.value)


def test_a_task_with_a_table_of_times_is_refused_here(timelines, model):
    names = timelines.subjects["patient"].to_list()[:3]
    times = PredictionTimes("table", times=tuple((name, "2012-06-30") for name in names))
    other = copy(model)
    other.task_ = replace(model.task_, prediction_times=times)
    tables = spark_of({stages.EVENTS: timelines.events, stages.SUBJECTS: timelines.subjects})
    with pytest.raises(UserError, match="a task with a table of them"):
        score(tables, other, at="task")


def test_a_forecast_has_all_its_tables(timelines, model):
    made = score(spark_of({stages.EVENTS: timelines.events, stages.SUBJECTS: timelines.subjects}), model)
    seen = pl.concat([pl.DataFrame(pl.from_arrow(batch)) for partition in made.seen for batch in partition])
    expected = model.forecast(timelines).seen
    assert expected.height
    assert_frame_equal(seen.sort("subject_id"), expected)


def test_what_travels_comes_back(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.bin").write_bytes(b"\x00\xff")
    assert (write_folder(folder_bytes(tmp_path / "a"), tmp_path / "d") / "b" / "c.bin").read_bytes() == b"\x00\xff"
    part = nothing()
    part.ids = strings(["é", "", "plain"])[1:]
    part.kind = np.array([1, 2], np.uint8)
    again = part_of(part_bytes(part))
    assert again.ids.to_pylist() == ["", "plain"]
    assert again.kind.tolist() == [1, 2]
    assert again.events.dtype == part.events.dtype
    frame = pl.DataFrame({"a": ["x", None], "b": [[1], None]}, schema_overrides={"a": pl.Categorical})
    assert frame_of(frame_bytes(frame)).rows() == frame.rows()
