"""A forecast folder that was written part by part: its counts at hand, its tables on disk until they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ehrseq.forecast.table import Forecast


@dataclass(frozen=True)
class StoredForecast:
    """What `score_export` wrote.

    `counts` has `prediction_times` and `subjects` scored, rows of `risk` and `labs`, `skipped` by reason, and how many
    of the subjects were `seen_in_training`; `drift` is what `drift.json` says. The tables of the forecast (`risk`,
    `labs`, `skipped`, `seen`, `metadata`) are read, all of them, when one is first asked for.
    """

    folder: Path
    counts: dict[str, Any]
    drift: dict[str, Any]

    def load(self) -> Forecast:
        """The forecast, in memory."""
        return self._forecast

    @cached_property
    def _forecast(self) -> Forecast:
        return Forecast.load(self.folder)

    @property
    def risk(self) -> pl.DataFrame:
        """The risk table; see `Forecast`."""
        return self._forecast.risk

    @property
    def labs(self) -> pl.DataFrame:
        """The table of lab forecasts."""
        return self._forecast.labs

    @property
    def skipped(self) -> pl.DataFrame:
        """Who was not scored, for which outcome, and why."""
        return self._forecast.skipped

    @property
    def seen(self) -> pl.DataFrame:
        """The scored subjects whom the model was fitted on."""
        return self._forecast.seen

    @property
    def metadata(self) -> dict[str, Any]:
        """What the forecast says of its model."""
        return self._forecast.metadata

    def __repr__(self) -> str:
        scored, skipped = self.counts["prediction_times"], sum(self.counts["skipped"].values())
        return f"StoredForecast({scored:,} prediction times scored, {skipped:,} skipped)"
