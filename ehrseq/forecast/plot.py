"""Risk curves of patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        axes = figure.subplots()
        draw_curves(axes, latest)
        axes.legend()
        axes.set_title(f"prediction time {latest['prediction_time'][0]:%Y-%m-%d}", fontsize=9)
        axes.set_ylim(0, None)
    return figure


def outcome_colours(outcomes: Sequence[str]) -> dict[str, str]:
    """One colour an outcome, the same in every panel of a figure.

    >>> outcome_colours(["t2d", "death", "t2d"])
    {'death': '#0072B2', 't2d': '#D55E00'}
    """
    return {outcome: COLOURS[i % len(COLOURS)] for i, outcome in enumerate(sorted(set(outcomes)))}


def draw_curves(
    axes: Any, curves: pl.DataFrame, truth: pl.DataFrame | None = None, colours: Mapping[str, str] | None = None
) -> None:
    """Draw curves (and, as dots, true incidences with columns `outcome, horizon_days, probability`) on axes.

    Legend, title and the limit of the vertical axis are left to the caller: panels may share them.
    """
    colours = colours or outcome_colours(curves["outcome"].to_list())
    longest = max(curves["days"].to_list(), default=0.0)
    unit, name = (DAYS_PER_YEAR, "years") if longest > 2 * DAYS_PER_YEAR else (1.0, "days")
    for outcome in sorted(curves["outcome"].unique()):
        rows = curves.filter(pl.col("outcome") == outcome).sort("days")
        axes.plot(rows["days"] / unit, 100 * rows["probability"], color=colours[outcome], label=_words(outcome))
        if truth is not None:
            dots = truth.filter(pl.col("outcome") == outcome)
            axes.plot(
                dots["horizon_days"] / unit, 100 * dots["probability"], "o", color=colours[outcome], mfc="white",
                label=f"{_words(outcome)}, truth",
            )  # fmt: skip
    axes.set_xlabel(f"{name} after the prediction time")
    axes.set_ylabel("cumulative incidence (%)")
    axes.set_xlim(left=0)


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")
