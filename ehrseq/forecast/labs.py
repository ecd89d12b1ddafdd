"""The table of lab forecasts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import ForecastError
from ehrseq.features.labs import LabEvents
from ehrseq.features.tabular import YEAR
from ehrseq.forecast.incidence import cumulative_incidence
from ehrseq.forecast.predict import encode_asked
from ehrseq.forecast.table import LAB_SCHEMA, days_ahead
from ehrseq.frames import microseconds, places
from ehrseq.model.fitted import Fitted, linear_features
from ehrseq.model.labs import LEVELS, Labs, window_of, with_times
from ehrseq.task.definition import Horizon
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import EncodedTimelines

Float = NDArray[np.float64]
KEY = ("subject_id", "patient", "prediction_time")
CELLS = 1_000_000  # rows of the table made at once
STANDARD = (0.05, 0.25, 0.5, 0.75, 0.95)


def check_levels(levels: Sequence[float]) -> list[int]:
    """The number of each level among the fitted ones; ForecastError for another, or for a disorder.

    >>> check_levels([0.05, 0.5])
    [0, 6]
    """
    if list(levels) != sorted(set(levels)) or not set(levels) <= set(LEVELS):
        known = ", ".join(f"{level:g}" for level in LEVELS)
        raise ForecastError(f"levels of quantiles, rising, among {known}", "others", "choose some of these")
    return [LEVELS.index(level) for level in levels]


def quantile_columns(levels: Sequence[float]) -> list[str]:
    """The column of each level.

    >>> quantile_columns([0.05, 0.5])
    ['q05', 'q50']
    """
    return [f"q{round(100 * level):02d}" for level in levels]


def labs_table(
    fitted: Fitted, timelines: Timelines, queries: pl.DataFrame, horizons: Sequence[Horizon], levels: Sequence[float],
    encoded: EncodedTimelines | None = None,
) -> pl.DataFrame:  # fmt: skip
    """The labs table of the output contract: a row a subject, prediction time, lab and horizon.

    `queries` has `subject_id` and `prediction_time`, each pair once and in order, of subjects with a birth date.
    `encoded` are the tokens of these subjects where they are at hand.
    """
    chosen, names = check_levels(levels), quantile_columns(levels)
    labs = fitted.labs
    if labs is None or not labs.scales or not (queries.height and horizons and names):
        return pl.DataFrame(schema=LAB_SCHEMA | dict.fromkeys(names, pl.Float64))
    encoded = encode_asked(fitted, timelines, queries) if encoded is None else encoded
    size = max(1, CELLS // (len(labs.scales) * len(horizons)))
    events = LabEvents.of(timelines.events, encoded.subject_id, labs.scales)
    parts = []
    for start in range(0, queries.height, size):
        asked = _Asked(fitted, labs, timelines, queries.slice(start, size), horizons, encoded)
        course = asked.course(events)
        own = with_times(np.repeat(course, len(horizons), axis=0), asked.days, labs.span)
        quantiles = labs.quantiles(own, asked.context, asked.query, asked.lab, asked.days)[:, chosen]
        parts.append(asked.table(_measured(asked, course).ravel(), names, quantiles))
    return pl.concat(parts)


def baseline_tables(
    fitted: Fitted, timelines: Timelines, queries: pl.DataFrame, horizons: Sequence[Horizon], levels: Sequence[float]
) -> dict[str, pl.DataFrame]:
    """The same table from each of the simple rivals, without `measured`."""
    chosen, names = check_levels(levels), quantile_columns(levels)
    labs = fitted.labs
    if labs is None or labs.baselines is None or not queries.height:
        return {}
    asked = _Asked(fitted, labs, timelines, queries, horizons, encode_asked(fitted, timelines, queries))
    out = {}
    for kind in labs.baselines.rest:
        quantiles = labs.baselines.quantiles(
            kind, timelines.events, asked.subject_id, asked.subject[asked.query], asked.time[asked.query], asked.lab,
            asked.age[asked.query], window_of(asked.days, labs.windows), labs.span,
        )  # fmt: skip
        out[kind] = asked.table(np.full(len(asked.lab), np.nan), names, quantiles[:, chosen])
    return out


class _Asked:
    """Everything that is read of the queries, and of each query, lab and horizon (n rows, in this order)."""

    def __init__(
        self, fitted: Fitted, labs: Labs, timelines: Timelines, queries: pl.DataFrame, horizons: Sequence[Horizon],
        encoded: EncodedTimelines,
    ) -> None:  # fmt: skip
        self.labs = labs
        people = timelines.subjects[["subject_id", "patient"]]
        self.rows = queries.join(people, on="subject_id", maintain_order="left")[list(KEY)]
        self.subject_id = encoded.subject_id
        self.subject = encoded.position(self.rows["subject_id"].to_numpy())
        self.time = microseconds(self.rows["prediction_time"])
        self.age = (self.time - encoded.birth[self.subject]) / YEAR
        self.context = linear_features(encoded, fitted.vocabulary, self.subject, self.time)
        self.ahead = days_ahead(self.rows, horizons)
        n_queries, n_labs, n_ahead = len(self.rows), len(labs.scales), len(horizons)
        self.query = np.repeat(np.arange(n_queries), n_labs * n_ahead)
        self.lab = np.tile(np.repeat(np.arange(n_labs), n_ahead), n_queries)
        self.days = np.tile(self.ahead[:, None], (1, n_labs, 1)).ravel()

    def course(self, events: LabEvents) -> Float:
        """(queries * labs, F) the features of each query's labs, without times ahead."""
        n_queries, n_labs = len(self.time), len(self.labs.scales)
        query, lab = np.repeat(np.arange(n_queries), n_labs), np.tile(np.arange(n_labs), n_queries)
        return events.features(self.subject[query], self.time[query], lab, self.labs.span)

    def table(self, measured: Float, levels: Sequence[str], quantiles: Float) -> pl.DataFrame:
        """The rows in order; `levels` are the names of the columns of `quantiles`."""
        scales = self.labs.scales
        codes = sorted({s.code for s in scales})
        code = np.array([codes.index(s.code) for s in scales])[self.lab]
        subjects, times = (self.rows[c].to_numpy()[self.query] for c in ("subject_id", "prediction_time"))
        order = np.lexsort((self.days, code, times, subjects))
        names = {c: pl.Series(c, [getattr(s, c) or None for s in scales], pl.String) for c in ("code", "unit")}
        numbers = {"horizon_days": self.days, "measured": measured, **dict(zip(levels, quantiles.T, strict=True))}
        columns = [
            *(name[places(self.lab[order])] for name in names.values()),
            *(pl.Series(c, x[order], dtype=pl.Float64, nan_to_null=True) for c, x in numbers.items()),
        ]
        return self.rows[places(self.query[order])].hstack(columns)


def _measured(asked: _Asked, course: Float) -> Float:
    """(queries, labs, horizons) the chance that the lab is measured by then, death coming first in some."""
    by_lab = course.reshape(len(asked.time), len(asked.labs.scales), -1)
    dying, *measuring = asked.labs.log_hazards(by_lab, asked.context)
    n_labs, n_queries = len(measuring), len(asked.time)
    hazard, rival = np.exp(np.concatenate(measuring)), np.tile(np.exp(dying), (n_labs, 1))
    found = cumulative_incidence(hazard, rival, asked.labs.edges, np.tile(asked.ahead, (n_labs, 1)))[0]
    return found.reshape(n_labs, n_queries, asked.ahead.shape[1]).swapaxes(0, 1)
