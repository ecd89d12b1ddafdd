"""The forecast tables and the object that carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import ArtifactError, ForecastError
from ehrseq.forecast.incidence import cumulative_incidence
from ehrseq.frames import to_pandas
from ehrseq.storage import atomic_folder, read_manifest, write_manifest
from ehrseq.task.definition import Horizon

if TYPE_CHECKING:
    import matplotlib.figure

KIND, FORMAT_VERSION = "forecast", 1
TIME = pl.Datetime("us")
RISK_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "patient": pl.String,
    "prediction_time": TIME,
    "outcome": pl.String,
    "horizon_days": pl.Float64,
    "probability": pl.Float64,
    "competing": pl.Float64,
    "event_free": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "extrapolated": pl.Boolean,
}
SKIPPED_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "patient": pl.String,
    "prediction_time": TIME,
    "outcome": pl.String,
    "reason": pl.String,
}
HAZARD_KEY = ("subject_id", "patient", "prediction_time")


@dataclass(frozen=True)
class Hazards:
    """Cause-specific hazards of one outcome at many prediction times.

    `rows` has `subject_id`, `patient`, `prediction_time` (n rows); `outcome_hazard` and `competing_hazard` are
    (members, n, I) per day on `edges` (I + 1,) days; forecasts beyond `supported_days` are extrapolated.
    """

    outcome: str
    rows: pl.DataFrame
    outcome_hazard: NDArray[np.float64]
    competing_hazard: NDArray[np.float64]
    edges: NDArray[np.float64]
    supported_days: float

    def incidence(self, days: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Outcome, competing and event-free probability, and the members' range of the outcome: each (n, H).

        `days` is (H,) or (n, H). Members are averaged on the log-hazard scale.
        """
        mean = [np.exp(np.log(np.maximum(h, 1e-300)).mean(0)) for h in (self.outcome_hazard, self.competing_hazard)]
        mean[1] = np.where(self.competing_hazard.max(0) > 0, mean[1], 0.0)
        outcome, competing, event_free = cumulative_incidence(mean[0], mean[1], self.edges, days)
        members = [
            cumulative_incidence(o, c, self.edges, days)[0]
            for o, c in zip(self.outcome_hazard, self.competing_hazard, strict=True)
        ]
        return outcome, competing, event_free, np.min(members, axis=0), np.max(members, axis=0)


def risk_table(hazards: Sequence[Hazards], horizons: Sequence[Horizon]) -> pl.DataFrame:
    """The risk table of the output contract: one row a subject, prediction time, outcome and horizon."""
    parts = []
    for h in hazards:
        if not h.rows.height:
            continue
        days = h.rows.select(
            horizon.days_after(pl.col("prediction_time")).cast(pl.Float64).alias(horizon.label) for horizon in horizons
        ).to_numpy()
        outcome, competing, event_free, lower, upper = h.incidence(days)
        several = len(h.outcome_hazard) > 1
        n = len(horizons)
        repeated = h.rows.select(HAZARD_KEY).select(pl.all().repeat_by(n).explode())
        parts.append(
            repeated.with_columns(
                pl.lit(h.outcome).alias("outcome"),
                pl.Series("horizon_days", days.ravel()),
                pl.Series("probability", outcome.ravel()),
                pl.Series("competing", competing.ravel()),
                pl.Series("event_free", event_free.ravel()),
                pl.Series("lower", lower.ravel() if several else [None] * days.size, dtype=pl.Float64),
                pl.Series("upper", upper.ravel() if several else [None] * days.size, dtype=pl.Float64),
                pl.Series("extrapolated", days.ravel() > h.supported_days),
            ).cast(RISK_SCHEMA)  # type: ignore[arg-type]
        )
    table = pl.concat(parts) if parts else pl.DataFrame(schema=RISK_SCHEMA)
    return table.sort("subject_id", "prediction_time", "outcome", "horizon_days")


@dataclass(frozen=True)
class Forecast:
    """Forecasts of many subjects.

    `risk` has one row a scored subject, prediction time, outcome and horizon: `probability` is the cumulative
    incidence of the outcome with its competitors respected, `competing` that of a competitor first, `event_free`
    that of neither; the three add up to 1. `lower` and `upper` are the range of the ensemble's members (model
    disagreement, not a confidence interval), null for one member. `skipped` says who was not scored, for which
    outcome (null: for all), and why.
    """

    risk: pl.DataFrame
    skipped: pl.DataFrame
    metadata: dict[str, Any] = field(default_factory=dict)
    hazards: tuple[Hazards, ...] = field(default=(), repr=False)

    def to_pandas(self) -> Any:
        """The risk table as a pandas frame."""
        return to_pandas(self.risk)

    def __repr__(self) -> str:
        scored = self.risk.select("subject_id", "prediction_time").n_unique()
        return f"Forecast({scored:,} prediction times scored, {self.skipped.height:,} skipped)"

    def curves(self, patient: str, *, n_points: int = 60) -> pl.DataFrame:
        """Cumulative incidence over time for one patient: `outcome, prediction_time, days, probability, competing`.

        A forecast read from a folder has the horizons of its risk table only.
        """
        mine = pl.col("patient") == patient.removeprefix("Patient/")
        rows = self.risk.filter(mine)
        if not rows.height:
            raise ForecastError(
                "a patient with a forecast", "one without", "see forecast.skipped for the reason, or check the id"
            )
        if not self.hazards:
            return rows.select("outcome", "prediction_time", "probability", "competing", days="horizon_days")
        grid = np.linspace(0, float(np.asarray(rows["horizon_days"].max())), n_points)
        parts = []
        for h in self.hazards:
            index = h.rows.with_row_index().filter(mine)["index"].to_numpy()
            for i in index:
                one = Hazards(
                    h.outcome, h.rows[int(i)], h.outcome_hazard[:, [i]], h.competing_hazard[:, [i]], h.edges,
                    h.supported_days,
                )  # fmt: skip
                outcome, competing, *_ = one.incidence(grid)
                time = h.rows["prediction_time"][int(i)]
                parts.append(
                    pl.DataFrame({"days": grid, "probability": outcome[0], "competing": competing[0]}).with_columns(
                        outcome=pl.lit(h.outcome), prediction_time=pl.lit(time, TIME)
                    )
                )
        return pl.concat(parts)

    def plot(self, patient: str) -> matplotlib.figure.Figure:
        """Risk curves of one patient, one line an outcome, at the patient's last prediction time."""
        from ehrseq.forecast.plot import plot_curves

        return plot_curves(self.curves(patient))

    def save(self, folder: str | Path, *, file_format: str = "parquet") -> None:
        """Write `risk`, `skipped` (parquet or csv) and `manifest.json` atomically."""
        if file_format not in ("parquet", "csv"):
            raise ForecastError("the format parquet or csv", f"'{file_format}'", "choose one of the two")
        with atomic_folder(folder) as scratch:
            for name, table in (("risk", self.risk), ("skipped", self.skipped)):
                if file_format == "csv":
                    table.write_csv(scratch / f"{name}.csv")
                else:
                    table.write_parquet(scratch / f"{name}.parquet")
            write_manifest(scratch, KIND, FORMAT_VERSION, format=file_format, **self.metadata)

    @classmethod
    def load(cls, folder: str | Path) -> Forecast:
        """Read a forecast folder after checking its manifest."""
        folder = Path(folder)
        manifest = read_manifest(folder, KIND, FORMAT_VERSION)
        suffix = manifest.get("format", "parquet")
        try:
            tables = [_read(folder / f"{name}.{suffix}", s) for name, s in _TABLES.items()]
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(
                "readable risk and skipped tables", type(error).__name__, "score the export again"
            ) from None
        facts = {k: v for k, v in manifest.items() if k not in ("kind", "format_version", "files", "format")}
        return cls(tables[0], tables[1], facts)


_TABLES = {"risk": RISK_SCHEMA, "skipped": SKIPPED_SCHEMA}


def _read(path: Path, schema: dict[str, Any]) -> pl.DataFrame:
    if path.suffix == ".csv":
        return pl.read_csv(path, schema=schema, try_parse_dates=True)
    return pl.read_parquet(path).select(pl.col(c).cast(t) for c, t in schema.items())
