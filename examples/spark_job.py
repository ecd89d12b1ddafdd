"""Read an export and score it on a Spark cluster, with the extra `spark` installed on every worker.

spark-submit examples/spark_job.py hdfs:///export /models/progression 2024-01-01 hdfs:///forecasts
"""

import sys


def run(export: str, model: str, at: str, out: str) -> None:
    """The tables are those of `ehrseq score`, as Spark DataFrames: read, score and write stay on the cluster."""
    from pyspark.sql import SparkSession

    import ehrseq.spark

    spark = SparkSession.builder.appName("ehrseq").getOrCreate()
    timelines = ehrseq.spark.read_fhir(spark, export)
    forecast = ehrseq.spark.score(timelines, model, at=at)
    forecast.risk.write.mode("overwrite").parquet(f"{out}/risk")
    forecast.skipped.write.mode("overwrite").parquet(f"{out}/skipped")
    spark.stop()


if __name__ == "__main__":
    run(*sys.argv[1:5])
