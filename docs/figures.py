"""The figures of the concepts page, as SVG texts drawn from the code and from simulated people."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from ehrseq.figures import COLOURS, style
from ehrseq.survival import aalen_johansen, kaplan_meier_censoring
from ehrseq.synthetic import simulate
from ehrseq.task.history import visible

BLUE, ORANGE, GREEN = COLOURS[:3]
# what happened, when it was known, and how high it is drawn
EVENTS = [
    ("HbA1c 6.1 %", date(2021, 3, 1), date(2021, 3, 2)),
    ("statin", date(2021, 9, 10), date(2021, 9, 10)),
    ("HbA1c 6.3 %", date(2022, 8, 1), date(2022, 8, 3)),
    ("stay: heart failure,\ncoded at discharge", date(2023, 3, 5), date(2023, 4, 20)),
    ("diabetes, back-dated", date(2022, 12, 1), date(2023, 9, 15)),
]
NOW = date(2023, 3, 31)


def timeline() -> str:
    """Events at their clinical time and at the time they were known, about a prediction time."""

    def draw(axes: Any) -> None:
        for row, (name, happened, known) in enumerate(reversed(EVENTS)):
            seen = visible(known, NOW)
            colour = BLUE if seen else ORANGE
            axes.plot([happened, known], [row, row], color=colour, linewidth=1.2)
            axes.plot([happened], [row], "|", color=colour, markersize=11)
            axes.plot([known], [row], "o", color=colour, mfc=colour if seen else "white", markersize=7)
            axes.annotate(name, (happened, row), xytext=(-7, 0), textcoords="offset points", ha="right", va="center")
        axes.axvline(NOW, color="0.3", linestyle="--", linewidth=1.2)
        axes.annotate("prediction time", (NOW, 4.55), xytext=(5, 0), textcoords="offset points", va="center")
        handles = [
            axes.plot([], [], "|", color="0.3", markersize=11, label="when it happened")[0],
            axes.plot([], [], "o", color=BLUE, label="known: may be read")[0],
            axes.plot([], [], "o", color=ORANGE, mfc="white", label="known later: may not be read")[0],
        ]
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.45, -0.12), ncols=3)
        axes.set_yticks([])
        axes.set_ylim(-0.6, 4.9)
        axes.set_xlim(date(2020, 1, 1), date(2024, 2, 1))
        axes.grid(visible=False)

    return svg(draw, (7.4, 2.9))


def prediction_times() -> str:
    """Landmarks of four people: at risk, already ill, dead, and censored before the horizon."""
    people = [
        ("followed to the horizon", 9.0, None, None),
        ("outcome within the horizon", 8.0, 4.3, None),
        ("already ill: not at risk", 7.5, 1.2, None),
        ("died first: competing", 5.6, None, 5.6),
        ("follow-up ends: censored", 4.4, None, None),
    ]

    def draw(axes: Any) -> None:
        axes.axvspan(2, 7, color=BLUE, alpha=0.08, linewidth=0)
        axes.axvline(2, color="0.3", linestyle="--", linewidth=1.2)
        for row, (name, end, outcome, death) in enumerate(reversed(people)):
            axes.plot([0, end], [row, row], color="0.55", linewidth=2)
            if outcome is not None:
                axes.plot([outcome], [row], "o", color=ORANGE, markersize=8)
            axes.plot([end], [row], "X" if death else "|", color="black", markersize=9)
            axes.annotate(name, (9.25, row), va="center", annotation_clip=False)
        axes.annotate("prediction time\n(landmark 2y)", (2, 4.75), ha="center", va="bottom", annotation_clip=False)
        axes.annotate("horizon 5y", (7, 4.75), ha="center", va="bottom", annotation_clip=False)
        handles = [
            axes.plot([], [], "o", color=ORANGE, label="outcome")[0],
            axes.plot([], [], "X", color="black", linestyle="none", label="death")[0],
            axes.plot([], [], "|", color="black", markersize=9, linestyle="none", label="end of follow-up")[0],
        ]
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
        axes.set_yticks([])
        axes.set_ylim(-0.6, 4.7)
        axes.set_xlim(0, 9.1)
        axes.set_xlabel("years after the start of follow-up")
        axes.grid(visible=False)

    return svg(draw, (7.4, 3.2))


def competing_risks() -> str:
    """What becomes of simulated people: the share with diabetes, dead before, and neither; and 1 - Kaplan-Meier."""
    days, cause = courses()
    at = np.linspace(0, 365.25 * 8, 97)
    ill, dead = aalen_johansen(days, cause, at=at)
    # 1 - Kaplan-Meier of the outcome, where deaths are treated as censored
    naive = 1 - kaplan_meier_censoring(days, np.where(cause == 1, 0, 1), at=at, limit="right")

    def draw(axes: Any) -> None:
        years = at / 365.25
        axes.fill_between(years, 0, 100 * ill, color=ORANGE, alpha=0.75, linewidth=0, label="diabetes")
        axes.fill_between(years, 100 * ill, 100 * (ill + dead), color="0.6", linewidth=0, label="died without diabetes")
        axes.fill_between(years, 100 * (ill + dead), 100, color=BLUE, alpha=0.12, linewidth=0, label="neither")
        axes.plot(years, 100 * naive, "--", color="black", label="1 - Kaplan-Meier: too high")
        axes.set_xlim(0, 8)
        axes.set_ylim(0, 100)
        axes.set_xlabel("years after the prediction time")
        axes.set_ylabel("people (%)")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))

    return svg(draw, (7.4, 3.0))


def calibration() -> str:
    """Three forecasts with the same order of people, judged by what happened: right, twice too high, too sure."""
    rng = np.random.default_rng(0)
    truth = rng.beta(1.2, 6, 20_000)
    happened = rng.random(len(truth)) < truth
    log_odds = np.log(truth / (1 - truth))
    forecasts = {
        "calibrated": truth,
        "twice too high": np.minimum(2 * truth, 1),
        "too sure": 1 / (1 + np.exp(-(log_odds.mean() + 2 * (log_odds - log_odds.mean())))),
    }

    def draw(axes: Any) -> None:
        axes.plot([0, 80], [0, 80], color="0.6", linewidth=1)
        for (name, forecast), colour, mark in zip(forecasts.items(), (BLUE, ORANGE, GREEN), "os^", strict=True):
            groups = np.array_split(np.argsort(forecast), 10)
            x, y = ([100 * values[g].mean() for g in groups] for values in (forecast, happened))
            axes.plot(x, y, mark + "-", color=colour, linewidth=1, markersize=5, label=name)
        axes.set_xlabel("forecast (%), tenths of the people")
        axes.set_ylabel("happened (%)")
        axes.set_xlim(0, 80)
        axes.set_ylim(0, 60)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="the same AUC, and")

    return svg(draw, (7.4, 3.0))


def courses(n_subjects: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Days from two years on, and the cause: 1 diabetes, 2 death first, 0 censored, of simulated people at risk."""
    landmark = pl.col("start").dt.offset_by("2y")
    death = pl.when(pl.col("death") <= pl.col("end")).then("death")
    outcome = pl.when(pl.col("known_diabetes") <= pl.col("end")).then("known_diabetes")
    lives = simulate(n_subjects, seed=0).lives.filter(
        pl.col("end") > landmark, (pl.col("known_diabetes") > landmark) | pl.col("known_diabetes").is_null()
    )
    found = lives.select(
        days=(pl.min_horizontal("end", outcome) - landmark).dt.total_days(),
        cause=pl.when(outcome.is_not_null()).then(1).when(death.is_not_null()).then(2).otherwise(0),
    )
    return found["days"].to_numpy(), found["cause"].to_numpy()


def svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """A drawing as SVG text that is the same at every build."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with style(), mpl.rc_context({"svg.hashsalt": "ehrseq", "svg.fonttype": "path"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


FIGURES: dict[str, Callable[[], str]] = {
    "timeline": timeline,
    "prediction_times": prediction_times,
    "competing_risks": competing_risks,
    "calibration": calibration,
}
