"""Who runs the stages: this process, or Apache Spark. The only file that calls pyspark's objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ehrseq.errors import UserError
from ehrseq.spark.stages import Batches, Made, Shared
from ehrseq.spark.wire import Row, rows_of

Stage = Callable[[Batches], Made]


class Engine(Protocol):
    """What the stages ask of an engine; `Rows` are its own kind of distributed table."""

    def table(self, rows: list[Row], schema: pa.Schema) -> Any:
        """A distributed table of one partition a row."""

    def share(self, content: bytes) -> Shared:
        """The same bytes for every worker."""

    def map(self, rows: Any, stage: Stage, schema: pa.Schema) -> Any:
        """A stage over every partition."""

    def keep(self, rows: Any) -> Any:
        """The same rows, not made anew each time that they are looked at."""

    def by_shard(self, rows: Any) -> Any:
        """The shuffle by patient: rows of one shard in one partition, together."""

    def rows(self, rows: Any) -> Iterator[Row]:
        """The rows, one by one, here."""


class Local:
    """Runs the stages in this process, one partition after the other.

    >>> from ehrseq.spark.wire import TASKS
    >>> engine = Local(2)
    >>> [row["task"] for row in engine.rows(engine.table([{"task": 1, "job": ""}], TASKS))]
    [1]
    """

    def __init__(self, partitions: int = 1) -> None:
        self.partitions = partitions

    def table(self, rows: list[Row], schema: pa.Schema) -> list[list[pa.RecordBatch]]:
        """One partition a row."""
        return [[pa.RecordBatch.from_pylist([row], schema=schema)] for row in rows]

    def share(self, content: bytes) -> Shared:
        """The bytes themselves."""
        return lambda: content

    def map(self, rows: list[list[pa.RecordBatch]], stage: Stage, schema: pa.Schema) -> list[list[pa.RecordBatch]]:
        """The stage, at once."""
        return [[batch.cast(schema) for batch in stage(iter(partition))] for partition in rows]

    def keep(self, rows: list[list[pa.RecordBatch]]) -> list[list[pa.RecordBatch]]:
        """They are in memory."""
        return rows

    def by_shard(self, rows: list[list[pa.RecordBatch]]) -> list[list[pa.RecordBatch]]:
        """Shards dealt out to the partitions."""
        batches = [batch for partition in rows for batch in partition]
        if not batches:
            return []
        table = pa.Table.from_batches(batches).sort_by("shard")
        shards = table["shard"].to_numpy()
        found: list[list[pa.RecordBatch]] = [[] for _ in range(self.partitions)]
        for shard, start, count in zip(*np.unique(shards, return_index=True, return_counts=True), strict=True):
            found[shard % self.partitions] += table.slice(start, count).to_batches()
        return found

    def rows(self, rows: list[list[pa.RecordBatch]]) -> Iterator[Row]:
        """The rows of all partitions."""
        for partition in rows:
            yield from rows_of(partition)


class Spark:
    """Runs the stages on a Spark session (classic; `session` is a `pyspark.sql.SparkSession`)."""

    def __init__(self, session: Any, partitions: int | None = None) -> None:
        if not hasattr(session, "createDataFrame") or not hasattr(session, "sparkContext"):
            raise UserError(
                "a SparkSession", f"an object of type {type(session).__name__}", "make one with SparkSession.builder"
            )
        self.session = session
        self.partitions = partitions or 2 * session.sparkContext.defaultParallelism

    def table(self, rows: list[Row], schema: pa.Schema) -> Any:
        """One partition a row."""
        tuples = [tuple(row[name] for name in schema.names) for row in rows]
        rdd = self.session.sparkContext.parallelize(tuples, max(len(tuples), 1))
        return self.session.createDataFrame(rdd, ddl(schema))

    def share(self, content: bytes) -> Shared:
        """A broadcast."""
        return partial(_value, self.session.sparkContext.broadcast(content))

    def map(self, rows: Any, stage: Stage, schema: pa.Schema) -> Any:
        """`mapInArrow`."""
        return rows.mapInArrow(stage, ddl(schema))

    def keep(self, rows: Any) -> Any:
        """On the workers' disks; what is lost with a worker is made again."""
        from pyspark import StorageLevel

        return rows.persist(StorageLevel.DISK_ONLY)

    def by_shard(self, rows: Any) -> Any:
        """A shuffle."""
        return rows.repartition(self.partitions, "shard").sortWithinPartitions("shard", "kind", "place")

    def rows(self, rows: Any) -> Iterator[Row]:
        """The rows, made by all workers at once and then fetched a partition at a time."""
        is_kept = rows.is_cached
        made = self.keep(rows)
        made.count()
        for row in made.coalesce(self.session.sparkContext.defaultParallelism).toLocalIterator():
            yield {**row.asDict(), "content": bytes(row["content"])}
        if not is_kept:
            made.unpersist()


def _value(broadcast: Any) -> bytes:
    value: bytes = broadcast.value
    return value


_DDL = {
    pa.int16(): "smallint", pa.int32(): "int", pa.int64(): "bigint", pa.float32(): "float", pa.float64(): "double",
    pa.bool_(): "boolean", pa.string(): "string", pa.binary(): "binary", pa.timestamp("us"): "timestamp_ntz",
    pa.list_(pa.string()): "array<string>",
}  # fmt: skip


def ddl(schema: pa.Schema) -> str:
    """A schema as Spark writes it.

    >>> ddl(pa.schema([("code", pa.string()), ("time", pa.timestamp("us"))]))
    '`code` string, `time` timestamp_ntz'
    """
    return ", ".join(f"`{field.name}` {_DDL[field.type]}" for field in schema)
