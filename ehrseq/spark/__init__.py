"""Ingest and scoring on Apache Spark (extra `spark`): see `docs/spark.md`."""

from ehrseq.spark.cluster import SparkForecast, SparkTimelines, from_tables, read_fhir, score

__all__ = ["SparkForecast", "SparkTimelines", "from_tables", "read_fhir", "score"]
