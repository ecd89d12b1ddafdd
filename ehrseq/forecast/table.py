"""The forecast tables and the object that carries them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import ArtifactError, ForecastError, nearest
from ehrseq.forecast.files import FORMATS, check_format
from ehrseq.forecast.incidence import cumulative_incidence
from ehrseq.frames import places, to_pandas
from ehrseq.storage import atomic_folder, read_manifest, write_manifest
from ehrseq.task.definition import Horizon

if TYPE_CHECKING:
    import matplotlib.figure

    from ehrseq.forecast.paths import PathSource

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
LAB_SCHEMA: dict[str, Any] = {  # and a column a quantile, such as q05
    "subject_id": pl.Int64,
    "patient": pl.String,
    "prediction_time": TIME,
    "code": pl.String,
    "unit": pl.String,
    "horizon_days": pl.Float64,
    "measured": pl.Float64,
}
SEEN_SCHEMA: dict[str, Any] = {"subject_id": pl.Int64}
SKIPPED_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "patient": pl.String,
    "prediction_time": TIME,
    "outcome": pl.String,
    "reason": pl.String,
}
CURVE_KEY = ("outcome", "prediction_time")
CURVE_SCHEMA: dict[str, Any] = dict.fromkeys(("days", "probability", "competing", "lower", "upper"), pl.Float64)
QUANTILE = re.compile(r"q\d\d")
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
        members, n = self.outcome_hazard.shape[:2]
        # the mean and its members one below the other, so that it is gone through once
        own, other = (
            np.concatenate([m, h.reshape(members * n, h.shape[-1])])
            for m, h in zip(mean, (self.outcome_hazard, self.competing_hazard), strict=True)
        )
        days = np.broadcast_to(days, (n, days.shape[-1]))
        outcome, competing, event_free = cumulative_incidence(own, other, self.edges, np.tile(days, (1 + members, 1)))
        each = outcome[n:].reshape(members, n, days.shape[-1])
        return outcome[:n], competing[:n], event_free[:n], each.min(axis=0), each.max(axis=0)


def risk_table(hazards: Sequence[Hazards], horizons: Sequence[Horizon]) -> pl.DataFrame:
    """The risk table of the output contract: one row a subject, prediction time, outcome and horizon."""
    scored = [h for h in hazards if h.rows.height]
    if not scored:
        return pl.DataFrame(schema=RISK_SCHEMA)
    rows = pl.concat([h.rows[list(HAZARD_KEY)] for h in scored])
    ahead = days_ahead(rows, horizons)
    heights = [h.rows.height for h in scored]
    before = np.cumsum([0, *heights])
    found = [h.incidence(ahead[i:j]) for h, i, j in zip(scored, before[:-1], before[1:], strict=True)]
    outcome, competing, event_free, lower, upper = (np.concatenate(x) for x in zip(*found, strict=True))
    # one member has no range
    alone = np.repeat([len(h.outcome_hazard) == 1 for h in scored], heights)
    lower[alone], upper[alone] = np.nan, np.nan
    supported = np.repeat([h.supported_days for h in scored], heights)[:, None]
    names = sorted(h.outcome for h in scored)
    name = np.repeat([names.index(h.outcome) for h in scored], heights)
    subjects, times = rows["subject_id"].to_numpy(), rows["prediction_time"].to_numpy()
    row = np.repeat(np.arange(rows.height), len(horizons))
    order = np.lexsort((ahead.ravel(), name[row], times[row], subjects[row]))
    row = row[order]
    columns = {
        "horizon_days": ahead, "probability": outcome, "competing": competing, "event_free": event_free,
        "lower": lower, "upper": upper, "extrapolated": ahead > supported,
    }  # fmt: skip
    return rows[places(row)].hstack(
        [
            pl.Series("outcome", names, pl.String)[places(name[row])],
            *(pl.Series(c, x.ravel()[order], nan_to_null=c in ("lower", "upper")) for c, x in columns.items()),
        ]
    )


def distinct(horizons: Sequence[str]) -> tuple[Horizon, ...]:
    """The horizons as asked for. ForecastError where there are none, or the same one twice.

    >>> [h.label for h in distinct(["1y", "6m"])]
    ['1y', '6m']
    """
    spans = tuple(Horizon(h) for h in horizons)
    labels = [span.label for span in spans]
    if not spans or len(set(labels)) < len(labels):
        raise ForecastError("horizons, each once", "none" if not spans else "one twice", 'give some such as ["1y"]')
    return spans


def days_ahead(rows: pl.DataFrame, horizons: Sequence[Horizon]) -> NDArray[np.float64]:
    """(n, H) how many days each horizon is from the `prediction_time` of each row."""
    times = rows["prediction_time"].to_numpy()
    ahead = np.stack([h.end_of(times) - times for h in horizons], axis=1)
    return np.asarray(ahead / np.timedelta64(1, "D"))


def _curve(hazards: Hazards, chosen: pl.Expr, grid: NDArray[np.float64]) -> pl.DataFrame:
    """The curves of one outcome at the prediction times of the chosen rows, one row a point of `grid` (days)."""
    index = hazards.rows.with_row_index().filter(chosen)["index"].to_numpy()
    rows = hazards.rows[index]
    own, other = (h[:, index] for h in (hazards.outcome_hazard, hazards.competing_hazard))
    chosen_hazards = replace(hazards, rows=rows, outcome_hazard=own, competing_hazard=other)
    outcome, competing, _, *band = chosen_hazards.incidence(grid)
    # one member has no range
    low, high = (b.ravel() if len(own) > 1 else [None] * outcome.size for b in band)
    values = (np.tile(grid, len(index)), outcome.ravel(), competing.ravel(), low, high)
    return pl.DataFrame(
        {
            "outcome": pl.repeat(hazards.outcome, outcome.size, dtype=pl.String, eager=True),
            "prediction_time": rows["prediction_time"].gather(np.repeat(np.arange(len(index)), len(grid))),
            **dict(zip(CURVE_SCHEMA, values, strict=True)),
        },
        schema_overrides=CURVE_SCHEMA,
    )


@dataclass(frozen=True)
class Forecast:
    """Forecasts of many subjects.

    `risk` has one row a scored subject, prediction time, outcome and horizon: `probability` is the cumulative
    incidence of the outcome with its competitors respected, `competing` that of a competitor first, `event_free`
    that of neither; the three add up to 1. `lower` and `upper` are the range of the ensemble's members (model
    disagreement, not a confidence interval), null for one member. `skipped` says who was not scored, for which
    outcome (null: for all), and why. `seen` lists the scored subjects that the model was fitted on (`subject_id`): do
    not judge it on them.

    `labs` has one row a subject, prediction time, lab of the task and horizon: quantiles (`q05` to `q95`, in `unit`) of
    the value given that it is measured about then, and `measured`, the chance that the lab is measured by then, death
    coming first in some. Whichever branch answers for the risks, these are the same. `metadata["labs_withheld"]` says
    which labs of the task have no forecast, and why.
    """

    risk: pl.DataFrame
    skipped: pl.DataFrame
    metadata: dict[str, Any] = field(default_factory=dict)
    hazards: tuple[Hazards, ...] = field(default=(), repr=False)
    seen: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SEEN_SCHEMA), repr=False)
    labs: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LAB_SCHEMA), repr=False)
    spans: tuple[Horizon, ...] = field(default=(), repr=False, compare=False)
    explainer: Callable[..., Any] | None = field(default=None, repr=False, compare=False)
    source: PathSource | None = field(default=None, repr=False, compare=False)

    def to_pandas(self, table: str = "risk") -> Any:
        """The risk table, or the one named ("labs", "skipped", "seen"), as a pandas frame."""
        if table not in ("risk", "labs", "skipped", "seen"):
            raise ForecastError("the table risk, labs, skipped or seen", f"'{table}'", "choose one of these")
        return to_pandas(getattr(self, table))

    def __repr__(self) -> str:
        scored = self.risk.select("subject_id", "prediction_time").n_unique()
        return f"Forecast({scored:,} prediction times scored, {self.skipped.height:,} skipped)"

    def curves(self, patient: str, *, n_points: int = 60) -> pl.DataFrame:
        """Cumulative incidence over time for one patient: `outcome, prediction_time, days, probability, competing`, and
        the range of the ensemble's members, `lower` and `upper` (null for one member).

        Curves start at 0 days. A forecast read from a folder has the horizons of its risk table only. Raises
        ForecastError for a patient without a forecast.
        """
        mine = self._of(patient)
        rows = self.risk.filter(mine)
        if not rows.height:
            raise ForecastError(
                "a patient with a forecast", "one without", "see forecast.skipped for the reason, or check the id"
            )
        if self.hazards:
            grid = np.linspace(0, float(np.asarray(rows["horizon_days"].max())), n_points)
            curves = pl.concat([_curve(h, mine, grid) for h in self.hazards])
        else:
            known = rows.select(*CURVE_KEY, "probability", "competing", "lower", "upper", days="horizon_days")
            start = known.unique(CURVE_KEY).with_columns(pl.lit(0.0).alias(c) for c in CURVE_SCHEMA)
            curves = pl.concat([start, known])
        return curves.select(*CURVE_KEY, *CURVE_SCHEMA).sort(*CURVE_KEY, "days")

    def plot(
        self, patient: str, *, explain: bool = False, outcome: str | None = None, horizon: str | None = None
    ) -> matplotlib.figure.Figure:
        """Risk curves of one patient, one line an outcome, at the patient's last prediction time.

        With `explain`, one page: what was on record, what of it moved the forecast of `outcome` (default: the first one
        scored) by `horizon` (default: the task's longest), the risk curves with the range of the members, and the
        laboratory values that were forecast (four at most: those that move the forecast most). Raises ForecastError for
        a patient without a forecast, and where there is no model to ask (a forecast from a folder).
        """
        from ehrseq.forecast.plot import plot_curves

        curves = self.curves(patient)
        if not explain:
            return plot_curves(curves)
        from ehrseq.forecast.explained import plot_explained

        if self.explainer is None:
            raise ForecastError(
                "a forecast with its model", "one read from a folder", "load the model and make the forecast again"
            )
        at = curves["prediction_time"].max()
        latest = curves.filter(pl.col("prediction_time") == at)
        names = latest["outcome"].to_list()
        outcome = outcome or next(h.outcome for h in self.hazards if h.outcome in names)
        if outcome not in names:
            raise ForecastError(
                "an outcome that was forecast at the last prediction time", f"'{outcome}'", nearest(outcome, set(names))
            )
        span = self._span(patient, outcome, at) if horizon is None else Horizon(horizon)
        days = float(pl.DataFrame({"t": [at]}).select(span.days_after(pl.col("t")).cast(pl.Float64)).item())
        explanation = self.explainer(patient=patient, outcome=outcome, horizon=span.label)
        # the very point of which the page tells, with the range of the members there
        point = pl.concat(_curve(h, self._of(patient), np.array([days])) for h in self.hazards)
        latest = pl.concat([latest, point.filter(pl.col("prediction_time") == at).select(latest.columns)])
        latest = latest.unique(maintain_order=True).sort(*CURVE_KEY, "days")
        return plot_explained(latest, explanation, outcome, days, self._labs_of(patient, at))

    def _labs_of(self, patient: str, at: Any) -> pl.DataFrame | None:
        """The lab forecasts of one patient at one prediction time; None without those that are drawn."""
        from ehrseq.forecast.explained import LAB_QUANTILES

        mine = self._of(patient) & (pl.col("prediction_time") == at)
        return self.labs.filter(mine) if set(LAB_QUANTILES) <= set(self.labs.columns) else None

    def _span(self, patient: str, outcome: str, at: Any) -> Horizon:
        """The longest horizon of a forecast that is not extrapolated, else the shortest."""
        rows = self.risk.filter(self._of(patient), pl.col("prediction_time") == at, pl.col("outcome") == outcome)
        inside = int((~rows.sort("horizon_days")["extrapolated"]).sum())
        return sorted(self.spans, key=lambda span: span.days)[max(inside - 1, 0)]

    @staticmethod
    def _of(patient: str) -> pl.Expr:
        return pl.col("patient") == patient.rsplit("Patient/", 1)[-1]

    def paths(self, n: int = 100, until: str | None = None, seed: int = 0) -> pl.DataFrame:
        """`n` futures of each scored prediction time, sampled from what was known then: one row an event.

        Columns `subject_id, patient, prediction_time, path` (0 to n - 1), `time, code, numeric_value, unit`. The last
        row of each path is its death (`MEDS_DEATH`) or the horizon (`PATH//end`). `until` is a span such as "5y", the
        task's longest horizon by default. The same seed gives the same paths, whoever else is sampled. Raises
        ForecastError for n below 1, a horizon beyond the one fitted for, a model without a network or without death,
        and a forecast read from a folder.
        """
        return self._source().sample(n, until, seed)

    def path_incidence(
        self, paths: pl.DataFrame, outcome: str | Mapping[str, Any] | pl.Expr, horizons: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """How often an outcome happens on sampled paths: its Monte Carlo incidence by horizon, before death.

        `outcome` is the name of one of the task's, a definition in the keys of a task file (`any_of`, `sequence`,
        `measure`, ...), found on what is visible and sampled by the code that finds it on real timelines, or a polars
        predicate on the rows of `paths`, true where it happens. `horizons` such as "2y" replace the task's. One row a
        prediction time and horizon: `probability`, its `standard_error` by sampling alone, and `paths`, how many were
        at risk; a prediction time at which the outcome cannot happen, as it already has, has none.
        """
        from ehrseq.forecast.compound import path_incidence

        return path_incidence(self._source(), paths, outcome, horizons)

    def _source(self) -> PathSource:
        if self.source is None:
            raise ForecastError(
                "a forecast that `model.forecast` has just made", "one read from a folder",
                "forecast again with the model and the timelines, then ask for paths",
            )  # fmt: skip
        return self.source

    def save(self, folder: str | Path, *, file_format: str = "parquet") -> None:
        """Write `risk`, `labs`, `skipped`, `seen_in_training` (parquet or csv) and `manifest.json` atomically.

        The format "fhir" is Parquet, and the risks once more as `RiskAssessment.ndjson` and `Device.ndjson`.
        """
        check_format(file_format)
        with atomic_folder(folder, KIND) as scratch:
            FORMATS[file_format](self, scratch)
            write_manifest(scratch, KIND, FORMAT_VERSION, format=file_format, **self.metadata)

    @classmethod
    def load(cls, folder: str | Path) -> Forecast:
        """Read a forecast folder after checking its manifest; rows are in order, however they stand in the files."""
        folder = Path(folder)
        manifest = read_manifest(folder, KIND, FORMAT_VERSION)
        suffix = "csv" if manifest.get("format") == "csv" else "parquet"
        try:
            tables = [_read(folder / f"{name}.{suffix}", s) for name, s in _TABLES.items()]
            # folders written before labs were forecast have no such table
            has_labs = f"labs.{suffix}" in manifest["files"]
            labs = _read_labs(folder / f"labs.{suffix}") if has_labs else pl.DataFrame(schema=LAB_SCHEMA)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(
                "readable risk, skipped and seen_in_training tables", type(error).__name__, "score the export again"
            ) from None
        facts = {k: v for k, v in manifest.items() if k not in ("kind", "format_version", "files", "format", "counts")}
        keys = ("subject_id", "prediction_time")
        return cls(
            tables[0].sort(*keys, "outcome", "horizon_days"), tables[1].sort(*keys, "outcome", nulls_last=False), facts,
            seen=tables[2].sort("subject_id"), labs=labs.sort(*keys, "code", "horizon_days"),
        )  # fmt: skip


_TABLES = {"risk": RISK_SCHEMA, "skipped": SKIPPED_SCHEMA, "seen_in_training": SEEN_SCHEMA}


def _read(path: Path, schema: dict[str, Any]) -> pl.DataFrame:
    if path.suffix == ".csv":
        return pl.read_csv(path, schema=schema, try_parse_dates=True)
    return pl.read_parquet(path).select(pl.col(c).cast(t) for c, t in schema.items())


def _read_labs(path: Path) -> pl.DataFrame:
    """The labs table with the quantiles that it has."""
    names = (pl.read_csv(path, n_rows=0) if path.suffix == ".csv" else pl.read_parquet(path, n_rows=0)).columns
    return _read(path, LAB_SCHEMA | {name: pl.Float64 for name in names if QUANTILE.fullmatch(name)})
