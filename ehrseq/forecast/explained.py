"""One page on a forecast: what was on record, what of it moved the forecast, and the risk curves."""

from __future__ import annotations

import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from ehrseq.figures import COLOURS, drawable, style
from ehrseq.forecast.plot import DAYS_PER_YEAR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAISES, LOWERS, NEITHER = COLOURS[1], COLOURS[0], "#8A8A8A"
ROWS = 10  # codes that are shown: those that move the forecast most
LABS = 4  # laboratory values that are shown, chosen likewise
LAB_QUANTILES = ("q05", "q50", "q95")
VISIBLE = 0.0005  # risk below which a record is drawn as moving nothing: what would be printed as 0.0 points
NOTE_WIDTH = 150  # characters a line of the small print
NOTE_LINE = 0.13  # inches a line of it


class Explained(Protocol):
    """What is drawn of `ehrseq.explain.explanation.Explanation` (a room beside this one, so it is not imported)."""

    @property
    def contributions(self) -> pl.DataFrame:
        """A row a forecast and thing taken out."""

    @property
    def notes(self) -> list[str]:
        """What a reader has to know."""

    def name(self, code: str) -> str:
        """A code's name for people."""


def plot_explained(
    curves: pl.DataFrame, explanation: Explained, outcome: str, horizon_days: float, labs: pl.DataFrame | None = None
) -> Figure:
    """The page of one patient at one prediction time.

    `curves` as `Forecast.curves` gives them; of the explanation, the contributions to `outcome` by `horizon_days`.
    `labs` are the patient's rows of `Forecast.labs` at that time, with `q05`, `q50` and `q95`; without any, no panels.
    """
    from matplotlib.figure import Figure

    at = curves["prediction_time"][0]
    rows = explanation.contributions.filter(
        pl.col("prediction_time") == at, pl.col("outcome") == outcome, pl.col("horizon_days") == horizon_days
    )
    codes = rows.filter(kind="code").sort(pl.col("contribution").abs(), "code", descending=[True, False]).head(ROWS)
    height = 0.3 * max(codes.height, 3)
    with style():
        shown = [] if labs is None else _lab_order(labs, rows)[:LABS]
        text = "\n".join(textwrap.fill(note, NOTE_WIDTH) for note in explanation.notes)
        heights = (height + 1.2, 2.6, *([2.2] if shown else []), 0.15 + NOTE_LINE * (1 + text.count("\n")))
        figure = Figure(figsize=(10, sum(heights)), layout="constrained")
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        top, bottom, *between, small = parts
        history, bars = top.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
        _draw_history(history, rows.filter(kind="event"), codes, explanation, at)
        _draw_bars(bars, codes)
        panels = bottom.subplots(1, 2)
        _draw_risk(panels[0], curves, outcome, horizon_days)
        _draw_windows(panels[1], rows.filter(kind="window"))
        if labs is not None and shown:
            _draw_labs(between[0], labs, shown, explanation)
        figure.suptitle(_title(curves, rows, outcome, horizon_days), fontsize=11)
        small.text(0.01, 0.95, text, fontsize=7, va="top", color="#444444")
    return figure


def _title(curves: pl.DataFrame, rows: pl.DataFrame, outcome: str, horizon_days: float) -> str:
    who = drawable(rows["patient"][0], 40) if rows.height else "patient"
    mine = (
        curves.filter(outcome=outcome)
        .with_columns(gap=(pl.col("days") - horizon_days).abs())
        .sort("gap")
        .row(0, named=True)
    )
    risk = rows["probability"][0] if rows.height else mine["probability"]
    between = ""
    if mine["lower"] is not None:
        between = f" (the model's members: {100 * mine['lower']:.1f} to {100 * mine['upper']:.1f}%)"
    years = round(horizon_days / DAYS_PER_YEAR, 1)
    by = f"{years:g} year{'' if years == 1 else 's'}" if years >= 1 else f"{horizon_days:.0f} days"
    return (
        f"{who} on {curves['prediction_time'][0]:%Y-%m-%d}: risk of {drawable(_words(outcome), 40)} within {by} "
        f"{100 * risk:.1f}%{between}"
    )


def _draw_history(axes: Any, events: pl.DataFrame, codes: pl.DataFrame, explanation: Explained, at: Any) -> None:
    """A row a code, a dot a record, its colour and size what taking it out changes."""
    from matplotlib.dates import AutoDateLocator

    axes.set_yticks(range(codes.height), [drawable(explanation.name(code), 44) for code in codes["code"]])
    place = {code: i for i, code in enumerate(codes["code"])}
    shown = events.filter(pl.col("code").is_in(list(place)) & pl.col("time").is_not_null())
    for row in shown.iter_rows(named=True):
        moved = row["contribution"]
        colour = NEITHER if abs(moved) < VISIBLE else RAISES if moved > 0 else LOWERS
        size = 14 + 3000 * min(abs(moved), 0.05)
        axes.scatter(row["time"], place[row["code"]], s=size, color=colour, alpha=0.75, linewidths=0)
    axes.axvline(at, color=COLOURS[6], linewidth=1)
    bottom = max(codes.height, 1) - 0.05
    axes.annotate("forecast made", (at, bottom), (4, 4), textcoords="offset points", fontsize=7)
    for i, row in enumerate(codes.iter_rows(named=True)):
        if row["value"] is not None:
            unit = "" if row["unit"] in (None, "1") else row["unit"]
            text = f"last {row['value']:.4g} {unit}"
            axes.annotate(drawable(text, 24), (at, i), (5, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_ylim(bottom, -0.6)
    span = at - min([at - timedelta(days=365), *shown["time"].to_list()])
    axes.set_xlim(at - 1.03 * span, at + 0.03 * span)
    # more would run into each other
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=8))  # type: ignore[no-untyped-call]
    axes.tick_params(axis="y", length=0)
    axes.set_title(
        "Each dot is a record: orange raises the forecast, blue lowers it, grey does neither", loc="left", fontsize=9
    )


def _draw_bars(axes: Any, codes: pl.DataFrame) -> None:
    points = (100 * codes["contribution"]).to_list()
    colours = [NEITHER if abs(p) < 100 * VISIBLE else RAISES if p > 0 else LOWERS for p in points]
    _signed_bars(axes, points, colours)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.set_title("The whole row: points of risk", loc="left", fontsize=9)


def _signed_bars(axes: Any, points: list[float], colours: list[str]) -> None:
    """Bars with their numbers, and what the sides mean in place of a legend."""
    axes.barh(range(len(points)), points, color=colours, height=0.6)
    for i, p in enumerate(points):
        side = 1 if p >= 0 else -1
        axes.annotate(
            f"{p:+.1f}" if abs(p) >= 100 * VISIBLE else "0.0", (p, i), (4 * side, 0), textcoords="offset points",
            va="center", ha="left" if side > 0 else "right", fontsize=8,
        )  # fmt: skip
    reach = max([0.2, *(abs(p) for p in points)]) * 1.5
    axes.set_xlim(-reach, reach)
    axes.axvline(0, color=COLOURS[6], linewidth=0.8)
    axes.set_xlabel("lowers the risk  ←      → raises the risk", fontsize=8)
    axes.grid(False)


def _draw_risk(axes: Any, curves: pl.DataFrame, outcome: str, horizon_days: float) -> None:
    """Each outcome's curve with its name at its end and the range of the members around it."""
    longest = float(curves["days"].max())  # type: ignore[arg-type]
    unit, name = (DAYS_PER_YEAR, "years") if longest > 2 * DAYS_PER_YEAR else (1.0, "days")
    ends = []
    for other in sorted(curves["outcome"].unique()):
        line = curves.filter(outcome=other).sort("days")
        days, chosen = line["days"] / unit, other == outcome
        # not in colours: those say what raises and what lowers
        shade = COLOURS[6] if chosen else NEITHER
        axes.plot(days, 100 * line["probability"], color=shade, linewidth=2.2 if chosen else 1.2)
        if line["lower"].null_count() == 0:
            axes.fill_between(days, 100 * line["lower"], 100 * line["upper"], color=shade, alpha=0.15, linewidth=0)
        ends.append((100 * float(line["probability"][-1]), other))
    ends.sort()
    highest = max(ends[-1][0], 100 * max(curves["upper"].drop_nulls().to_list(), default=0.0))
    top = 1.15 * highest or 1.0
    for height, (end, other) in zip(_apart([end for end, _ in ends], top / 11), ends, strict=True):
        chosen = other == outcome
        axes.annotate(
            f"{drawable(_words(other), 24)} {end:.1f}%", (longest / unit, height), (4, 0), annotation_clip=False,
            textcoords="offset points", va="center", fontsize=8, color=COLOURS[6] if chosen else "#666666",
            fontweight="bold" if chosen else "normal",
        )  # fmt: skip
    axes.axvline(horizon_days / unit, color=COLOURS[6], linewidth=0.8, linestyle=":")
    axes.set_xlim(0, longest / unit)
    axes.set_ylim(0, top)
    axes.set_xlabel(f"{name} after the prediction time")
    axes.set_ylabel("risk (%)")
    several = ", with the range of the model's members" if curves["lower"].null_count() < curves.height else ""
    axes.set_title(f"Forecast{several}", loc="left", fontsize=9)


def _apart(heights: list[float], least: float) -> list[float]:
    """Heights in ascending order moved up where they are closer than `least`.

    >>> _apart([1.0, 1.2, 5.0], 1.0)
    [1.0, 2.0, 5.0]
    """
    out: list[float] = []
    for height in heights:
        out.append(max(height, out[-1] + least) if out else height)
    return out


def _draw_windows(axes: Any, windows: pl.DataFrame) -> None:
    """What the records of a span of time move together, the most recent first."""
    rows = windows.sort("known_time", descending=True)
    points = (100 * rows["contribution"]).to_list()
    colours = [NEITHER if abs(p) < 100 * VISIBLE else RAISES if p > 0 else LOWERS for p in points]
    _signed_bars(axes, points, colours)
    names = [f"{w}\n({n} record{'s' if n > 1 else ''})" for w, n in zip(rows["window"], rows["events"], strict=True)]
    axes.set_yticks(range(rows.height), names, fontsize=8)
    axes.set_ylim(max(rows.height, 1) - 0.4, -0.6)
    axes.set_title("By when it became known", loc="left", fontsize=9)


def _lab_order(labs: pl.DataFrame, rows: pl.DataFrame) -> list[str]:
    """The codes of laboratory values with a forecast, those that move the forecast of the outcome most first."""
    moved = rows.filter(kind="code").select("code", moved=pl.col("contribution").abs())
    known = labs.drop_nulls(LAB_QUANTILES).select("code").unique().join(moved, on="code", how="left")
    return known.sort(pl.col("moved").fill_null(0), "code", descending=[True, False])["code"].to_list()


def _draw_labs(part: Any, labs: pl.DataFrame, codes: list[str], explanation: Explained) -> None:
    """A panel a laboratory value: the forecast medians with their 90% bands."""
    of = labs["code"].n_unique()
    part.suptitle(
        "Laboratory values, if measured: median and 90% range"
        + (f" ({len(codes)} of {of}: those that move the forecast most)" if of > len(codes) else ""),
        fontsize=9, x=0.01, ha="left",
    )  # fmt: skip
    for axes, code in zip(part.subplots(1, len(codes), squeeze=False)[0], codes, strict=True):
        rows = labs.filter(code=code).drop_nulls(LAB_QUANTILES).sort("horizon_days")
        years = rows["horizon_days"] / DAYS_PER_YEAR
        low, middle, high = (rows[q] for q in LAB_QUANTILES)
        axes.fill_between(years, low, high, color=COLOURS[2], alpha=0.2, linewidth=0)
        axes.vlines(years, low, high, color=COLOURS[2], linewidth=1)  # a single horizon has no band
        axes.plot(years, middle, "o-", color=COLOURS[2], markersize=4)
        unit = rows["unit"][0]
        shown = "" if unit in (None, "1") else f" ({drawable(unit, 12)})"
        axes.set_title(f"{drawable(explanation.name(code), 26)}{shown}", loc="left", fontsize=9)
        axes.set_xlim(left=0)
        axes.set_xlabel("years after the prediction time", fontsize=8)


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")
