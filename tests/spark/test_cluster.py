"""The same on Apache Spark: a cluster of two worker processes, one of which is killed in the middle of a job."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import ehrseq
from ehrseq.config import BoostedConfig, ModelConfig
from ehrseq.estimator import ProgressionModel
from ehrseq.fhir import reader
from ehrseq.spark import from_tables, read_fhir, reading, score, stages
from ehrseq.synthetic import write_simulation
from ehrseq.task.definition import Task
from ehrseq.timeline import build, ingest
from ehrseq.timeline.schema import EVENT_SCHEMA, conform, sort_events
from ehrseq.timeline.store import Timelines
from tests.spark.test_stages import assert_same, assert_same_forecast, hard_export

pyspark = pytest.importorskip("pyspark", reason="needs pyspark: pip install '.[spark]'")
if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
    pytest.skip("needs Java 17 for Apache Spark", allow_module_level=True)

pytestmark = [
    # pyspark 3.5 compares versions with a class that Python has dropped, and leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:distutils Version classes are deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def spark(tmp_path_factory) -> Iterator[Any]:
    from pyspark.sql import SparkSession

    scratch = tmp_path_factory.mktemp("spark")
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.local.dir": str(scratch),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.executorEnv.PYTHONPATH": str(Path(ehrseq.__file__).parents[1]),
        # short jobs: a JVM that compiles little, plans that are not compiled
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.adaptive.enabled": "false",
        "spark.executorEnv.OMP_NUM_THREADS": "1",
        "spark.executorEnv.POLARS_MAX_THREADS": "1",
    }
    builder = SparkSession.builder.master("local-cluster[2,1,1024]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPARK_WORKER_DIR", str(scratch / "work"))  # else it is the folder of the package
        environment.setenv("PYSPARK_PYTHON", sys.executable)
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        yield session
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of py4j's sockets
            session.stop()


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hard")
    hard_export(folder / "deep")
    (folder / "flat").mkdir()
    for file in sorted((folder / "deep").rglob("*json")):  # in one folder: fewer tasks
        file.rename(folder / "flat" / "-".join(file.relative_to(folder / "deep").parts))
    return folder / "flat"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return write_simulation(tmp_path_factory.mktemp("simulated") / "sim", 60, seed=3)


@pytest.fixture(scope="module")
def timelines(simulated) -> Timelines:
    return build.read_fhir(simulated / "export")


@pytest.fixture(scope="module")
def model(simulated, timelines, tmp_path_factory) -> Path:
    config = ModelConfig(
        model="boosted", boosted=BoostedConfig(landmarks_per_subject=3, max_trees=5, min_rows_per_leaf=20)
    )
    folder = tmp_path_factory.mktemp("model") / "model"
    ProgressionModel(config).fit(timelines, Task.from_toml(simulated / "task.toml")).save(folder)
    return folder


def killing(stage: Any, marker: Path) -> Any:
    """The stage, but the first worker to get to it is killed there, Python and Java: the whole executor."""
    parents = f"{marker}"

    def run(batches: Any, **options: Any) -> Any:
        import os
        import signal

        batches = list(batches)
        try:
            os.close(os.open(parents, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            with open(parents, "w") as file:
                file.write("killed")
            daemon = os.getppid()
            with open(f"/proc/{daemon}/stat") as file:
                executor = int(file.read().rpartition(")")[2].split()[1])
            os.kill(executor, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return stage(batches, **options)

    return run


def test_an_export_read_while_a_worker_is_killed(spark, export, monkeypatch, tmp_path):
    monkeypatch.setattr(ingest, "TASK_BYTES", 40_000)  # several tasks
    monkeypatch.setattr(reader, "FULL", 150)  # and chunks
    marker = tmp_path / "marker"
    # chunks that lay with the killed worker are read again
    monkeypatch.setattr(reading.stages, "link_shards", killing(stages.link_shards, marker))
    made = read_fhir(spark, export, data_cut=date(2020, 12, 31), partitions=2)
    found = made.collect()
    assert marker.read_text() == "killed"
    assert_same(found, build.read_fhir(export, data_cut=date(2020, 12, 31)))
    made.unpersist()


def test_a_simulation_is_read_stored_and_scored(spark, simulated, timelines, model, tmp_path):
    made = read_fhir(spark, simulated / "export", partitions=2)
    made.events.write.parquet(str(tmp_path / "events"))
    made.subjects.write.parquet(str(tmp_path / "subjects"))
    stored = conform(pl.read_parquet(tmp_path / "events" / "*.parquet"), EVENT_SCHEMA, "event")
    assert_frame_equal(sort_events(stored), timelines.events, categorical_as_str=True)
    local = ProgressionModel.load(model).forecast(timelines)
    forecast = score(made, model)
    assert_same_forecast(forecast.collect(), local)
    assert forecast.risk.count() == local.risk.height
    assert {row["reason"] for row in forecast.skipped.collect()} == set(local.skipped["reason"])
    # and from the tables, in other partitions
    tables = (spark.read.parquet(str(tmp_path / name)).repartition(2) for name in ("events", "subjects"))
    assert_same_forecast(score(from_tables(*tables, partitions=2), model, at=None).collect(), local)
    forecast.unpersist()
    made.unpersist()
