"""Risk curves of patients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from ehrseq.figures import COLOURS, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DAYS_PER_YEAR = 365.25


def plot_curves(curves: pl.DataFrame) -> Figure:
    """One line an outcome at the last prediction time of `curves` (see `Forecast.curves`)."""
    from matplotlib.figure import Figure

    latest = curves.filter(pl.col("prediction_time") == pl.col("prediction_time").max())
    with style():
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        draw_curves(figure.subplots(), latest)
    return figure


def draw_curves(axes: Any, curves: pl.DataFrame, truth: pl.DataFrame | None = None) -> None:
    """Draw curves (and, as dots, true incidences with columns `outcome, horizon_days, probability`) on axes."""
    unit, name = (DAYS_PER_YEAR, "years") if (curves["days"].max() or 0) > 2 * DAYS_PER_YEAR else (1.0, "days")  # type: ignore[operator]
    for i, outcome in enumerate(sorted(curves["outcome"].unique())):
        colour = COLOURS[i % len(COLOURS)]
        rows = curves.filter(pl.col("outcome") == outcome).sort("days")
        axes.plot(rows["days"] / unit, 100 * rows["probability"], color=colour, label=outcome)
        if truth is not None:
            dots = truth.filter(pl.col("outcome") == outcome)
            axes.plot(dots["horizon_days"] / unit, 100 * dots["probability"], "o", color=colour, mfc="white")
    axes.set_xlabel(f"{name} from the prediction time")
    axes.set_ylabel("cumulative incidence (%)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend()
