"""Ingest and scoring on Apache Spark (extra `spark`): see `docs/spark.md`.

Names load on first use: a worker that reads an export needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ehrseq.spark.reading import SparkTimelines as SparkTimelines
    from ehrseq.spark.reading import from_tables as from_tables
    from ehrseq.spark.reading import read_fhir as read_fhir
    from ehrseq.spark.scoring import SparkForecast as SparkForecast
    from ehrseq.spark.scoring import score as score

_HOME = {"SparkTimelines": "reading", "from_tables": "reading", "read_fhir": "reading",
         "SparkForecast": "scoring", "score": "scoring"}  # fmt: skip
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ehrseq.spark' has no attribute '{name}'")
    return getattr(import_module(f"ehrseq.spark.{_HOME[name]}"), name)
