"""The truth: exact cumulative incidences at every landmark, given the full latent state then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from ehrseq.synthetic.config import STEPS_PER_YEAR, Float, Int
from ehrseq.synthetic.course import Course, background_survival
from ehrseq.synthetic.process import KNOWN, Kernels, State, propagate

TRUTH_SCHEMA: dict[str, pl.DataType] = {
    "patient": pl.String(),
    "prediction_time": pl.Datetime("us"),
    "landmark": pl.String(),
    "outcome": pl.String(),
    "horizon": pl.String(),
    "horizon_days": pl.Float64(),
    "probability": pl.Float64(),
    "competing": pl.Float64(),
    "event_free": pl.Float64(),
}

DAY = 86_400_000_000  # microseconds


def truth_table(course: Course, patients: pl.Series) -> pl.DataFrame:
    """The true forecasts of everyone alive, watched and without the outcome at each landmark.

    `patients` (n,) holds the FHIR ids. One row a subject, landmark, outcome and horizon, in the columns of
    `TRUTH_SCHEMA`; the prediction time is the last microsecond of the landmark's day.
    """
    config = course.config
    tables = [pl.DataFrame(schema=TRUTH_SCHEMA)]
    for landmark in config.landmarks:
        first_step = landmark * STEPS_PER_YEAR
        today = course.boundaries[:, first_step]
        watched = np.flatnonzero((course.end > today) & (course.death > today))
        states = tuple(state.take(watched) for state in course.at_landmark[landmark])
        curves = true_curves(course, watched, states, first_step, max(config.horizons))
        at_risk = {k.config.outcome: s.status != KNOWN for k, s in zip(course.kernels, states, strict=True)}
        for outcome, curve in curves.items():
            rows = np.flatnonzero(at_risk.get(outcome, np.ones(watched.size, np.bool_)))
            frame = pl.DataFrame({"patient": patients.gather(watched[rows]), "landmark": f"{landmark}y"})
            frame = frame.with_columns(pl.lit(outcome).alias("outcome"))
            tables += [_horizon(frame, today[watched[rows]], [c[:, rows] for c in curve], h) for h in config.horizons]
    return pl.concat(tables).sort("patient", "prediction_time", "outcome", "horizon_days")


def _horizon(frame: pl.DataFrame, today: Int, curve: list[Float], years: int) -> pl.DataFrame:
    """One horizon of one outcome: the curves' values that many calendar years after `today`."""
    probability, competing, event_free = (c[years * STEPS_PER_YEAR - 1] for c in curve)
    return frame.with_columns(
        prediction_time=pl.Series((today + 1) * DAY - 1).cast(pl.Datetime("us")),
        horizon=pl.lit(f"{years}y"),
        horizon_days=pl.Series((_years_later(today, years) - today).astype(np.float64)),
        probability=pl.Series(probability),
        competing=pl.Series(competing),
        event_free=pl.Series(event_free),
    ).select(*TRUTH_SCHEMA)


def true_curves(
    course: Course, rows: Int, states: Sequence[State], first_step: int, years: int
) -> dict[str, tuple[Float, Float, Float]]:
    """Per outcome: cumulative incidence, incidence of death before it, and event-free probability.

    Each has the shape (steps, subjects), at the end of each half month after the boundary of `first_step`.
    """
    steps = years * STEPS_PER_YEAR
    first = np.full(rows.size, first_step)
    kernels = [k.take(rows) for k in course.kernels]
    background = _background(course, rows, kernels[0], first_step, steps)
    runs = [propagate(k, s, first, steps) for k, s in zip(kernels, states, strict=True)]
    curves = {}
    for index, kernel in enumerate(kernels):
        flow, unknown, _ = runs[index]
        others = background * runs[1 - index][2]
        probability = np.cumsum(flow * others, axis=0)
        event_free = unknown * others
        # the three add up to 1 because each step's deaths are exactly what the first two lose
        curves[kernel.config.outcome] = probability, np.maximum(1 - probability - event_free, 0), event_free
    alive = np.minimum(background * runs[0][2] * runs[1][2], 1)  # rounding may exceed 1 where nobody dies
    curves["death"] = 1 - alive, np.zeros_like(alive), alive
    return curves


def _background(course: Course, rows: Int, kernels: Kernels, first_step: int, steps: int) -> Float:
    """Survival of the background causes to the end of each step, shape (steps, subjects)."""
    factors = [
        background_survival(course.config, kernels.age, course.male[rows], course.smoker[rows], first_step + step)
        for step in range(steps)
    ]
    return np.asarray(np.cumprod(np.stack(factors), axis=0))


def _years_later(day: Int, years: int) -> Int:
    """The same calendar day some years later."""
    days = day.astype("M8[D]")
    months = days.astype("M8[M]")
    day_of_month = days - months.astype("M8[D]")
    return np.asarray(((months + np.timedelta64(12 * years, "M")).astype("M8[D]") + day_of_month).astype(np.int64))
