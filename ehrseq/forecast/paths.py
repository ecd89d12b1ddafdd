"""Sampled futures: events with times and values, forward from the prediction time, as one long frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import ForecastError
from ehrseq.forecast.draw import path_keys
from ehrseq.forecast.dynamics import NetworkDynamics, Sampler
from ehrseq.forecast.sampling import Drawn, Rules, Start, Tally, sample
from ehrseq.model.fitted import Fitted
from ehrseq.model.heads import HazardName
from ehrseq.task.definition import Horizon, Task
from ehrseq.task.history import visible
from ehrseq.timeline.schema import DEATH_CODE, TIME
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.batch import visible_end
from ehrseq.tokens.encode import encode

Float = NDArray[np.float64]
Index = NDArray[np.int64]
END_CODE = "PATH//end"  # the horizon: the path goes on, unseen
ROWS = 512  # paths advanced together
TOKENS = 2**15  # of histories held together
PILOT = np.arange(2**32, 2**32 + 48)  # the numbers of the paths that settle the level
KEY = ("subject_id", "prediction_time")
PATH_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "patient": pl.String,
    "prediction_time": TIME,
    "path": pl.Int32,
    "time": TIME,
    "code": pl.String,
    "numeric_value": pl.Float32,
    "unit": pl.String,
}


@dataclass(frozen=True)
class PathSource:
    """What paths are sampled from: a fitted model, the branch that issued the forecast, and who was scored for what.

    `scored` has `subject_id`, `patient`, `prediction_time` and `outcome`.
    """

    fitted: Fitted
    task: Task
    timelines: Timelines
    scored: pl.DataFrame
    branch: str
    max_events: int

    def sample(self, n: int, until: str | None, seed: int) -> pl.DataFrame:
        """`n` paths of each prediction time, in the columns of `PATH_SCHEMA`; see `Forecast.paths`."""
        horizon = self._check(n, until)
        queries = self.scored.select("subject_id", "patient", "prediction_time").unique(maintain_order=True)
        subjects = self.timelines.subjects.join(queries, on="subject_id", how="semi").sort("subject_id")
        encoded = encode(self.timelines.events, subjects, self.fitted.vocabulary)
        row = encoded.position(queries["subject_id"].to_numpy())
        time = queries["prediction_time"].dt.epoch("us").to_numpy()
        stop = queries.select(horizon.after(pl.col("prediction_time")).dt.epoch("us")).to_series().to_numpy()
        sampler = Sampler(self.fitted, encoded, self.max_events)
        drawn = [name for name in sampler.model.emitted if name in self.fitted.outcomes]
        hazard = np.array([self.fitted.hazards.index(HazardName(name)) for name in drawn], dtype=np.int64)
        codes = [*sampler.model.codes]
        codes += sorted({c for name in drawn for c, _ in sampler.model.emitted[name]} - set(codes))
        rules, n_codes = rules_of(self.task, drawn, sampler, codes), len(sampler.model.codes)
        at_risk = self._at_risk(queries, drawn)
        issued = np.zeros((len(row), len(drawn), len(sampler.edges) - 1))
        level = issued.copy()

        def run(some: Index, paths: Index, tally: Tally | None = None) -> Drawn:
            dynamics = NetworkDynamics(sampler, row[some], time[some], level[some], hazard, len(paths))
            key = path_keys(seed, encoded.subject_id[row[some]], time[some], paths)
            return sample(dynamics, Start(time[some], stop[some], key, at_risk[some]), rules, n_codes, tally)

        for some, pilot in _batches(sampler, row, time, PILOT):
            issued[some] = level[some] = sampler.issued(row[some], time[some], self.branch)[:, hazard]
            tally = Tally(len(some), len(drawn), sampler.edges)
            run(some, pilot, tally)
            level[some] += tally.ratio(issued[some])
        tables = []
        for some, paths in _batches(sampler, row, time, np.arange(n)):
            tables.append(_table(run(some, paths), queries[some], paths, codes, sampler))
        return pl.concat(tables).sort("subject_id", "prediction_time", "path", "time", "code")

    def _check(self, n: int, until: str | None) -> Horizon:
        """The horizon asked for, once it is known that the model can go there."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ForecastError("a number of paths of at least 1", f"n = {n}", "ask for one path or more")
        horizon = self.task.horizons[-1] if until is None else Horizon(until)
        last = self.fitted.edges[-1]
        if horizon.count == 0 or horizon.days > last:
            raise ForecastError(
                f"until above 0 and within the horizons the model was fitted for ({self.task.horizons[-1].label})",
                f"'{horizon.label}'", "choose a horizon up to it, or fit for a longer one",
            )  # fmt: skip
        if self.branch in self.fitted.baselines or self.fitted.paths is None or not self.fitted.networks:
            raise ForecastError(
                "a forecast of a model with a network and its paths",
                f"the branch '{self.branch}' of a model {'with' if self.fitted.networks else 'without'} a network"
                + ("" if self.fitted.paths is not None else ", fitted without paths"),
                "fit a transformer or hybrid with this version",
            )
        deaths = {name for name, codes in self.fitted.paths.emitted.items() if codes[0][0] == DEATH_CODE}
        if not deaths & set(self.fitted.outcomes):
            raise ForecastError(
                "an outcome of MEDS_DEATH that was fitted, so that paths can end", "none", "add it to the task"
            )
        return horizon

    def _at_risk(self, queries: pl.DataFrame, drawn: list[str]) -> NDArray[np.bool_]:
        """(S, D) who was scored for which outcome."""
        wanted = queries.select(KEY).with_row_index("row").join(pl.DataFrame({"outcome": drawn}), how="cross")
        scored = self.scored.select(*KEY, "outcome", at_risk=pl.lit(True))
        flags = wanted.join(scored, on=[*KEY, "outcome"], how="left", maintain_order="left")["at_risk"]
        return flags.fill_null(False).to_numpy().reshape(queries.height, len(drawn))


def rules_of(task: Task, drawn: list[str], sampler: Sampler, codes: list[str]) -> Rules:
    """How the drawn outcomes behave, by the task: who ends whose risk, and with which codes they come."""
    outcomes = [task.outcome(name) for name in drawn]
    weight = np.zeros((len(drawn), len(codes)))
    for i, name in enumerate(drawn):
        for code, share in sampler.model.emitted[name]:
            weight[i, codes.index(code)] = share
    ends = np.zeros((len(drawn), len(drawn)), bool)
    for i, happened in enumerate(outcomes):
        for j, other in enumerate(outcomes):
            leaves = other.during is not None and happened.discharge == other.during
            known = happened.incident and (i == j or happened.name in other.competing)
            ends[i, j] = known or leaves
    pause = [0 if o.washout is None else round(o.washout.days * 86_400_000_000) for o in outcomes]
    death = np.array([sampler.model.emitted[name][0][0] == DEATH_CODE for name in drawn])
    return Rules(weight, ends, np.array(pause, dtype=np.int64), death)


def visible_history(timelines: Timelines, queries: pl.DataFrame) -> pl.DataFrame:
    """The events visible at each prediction time, with the columns of `queries` beside theirs."""
    joined = queries.join(timelines.events, on="subject_id")
    static = pl.col("known_time").is_null()
    return joined.filter(static | visible(pl.col("known_time"), pl.col("prediction_time")))


def _batches(sampler: Sampler, row: Index, time: Index, numbers: Index) -> Iterator[tuple[Index, Index]]:
    """Prediction times with histories of similar length, and the numbers of the paths sampled for them together."""
    encoded = sampler.batches.encoded
    length = np.minimum(visible_end(encoded, row, time) - encoded.offset[row], sampler.max_events)
    order = np.argsort(length, kind="stable")
    for paths in np.split(numbers, np.arange(ROWS, len(numbers), ROWS)):
        most = max(1, ROWS // len(paths))
        start = 0
        while start < len(order):
            some = order[start : start + most]
            while len(some) > 1 and len(some) * length[some[-1]] > TOKENS:  # the longest comes last
                some = some[: len(some) // 2]
            yield some, paths
            start += len(some)


def _table(found: Drawn, queries: pl.DataFrame, paths: Index, codes: list[str], sampler: Sampler) -> pl.DataFrame:
    code = found["code"]
    c = np.where(code < len(sampler.middle), code, -1)
    value = sampler.middle[c] + sampler.spread[c] * found["value"]
    units = [None if s is None or not s.unit else s.unit for s in sampler.scales]
    units += [None] * (len(codes) + 1 - len(units))
    numbers = pl.DataFrame(
        {
            "row": found["subject"], "path": paths[found["path"]], "time": found["time"],
            "code": pl.Series([*codes, END_CODE]).gather(np.where(code < 0, len(codes), code)),
            "numeric_value": pl.Series(value).fill_nan(None),
            "unit": pl.Series(units, dtype=pl.String).gather(np.where(code < 0, len(codes), code)),
        }
    )  # fmt: skip
    who = queries.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    table = numbers.join(who, on="row", how="left", maintain_order="left")
    valued = pl.col("numeric_value").is_not_null()
    return table.with_columns(pl.when(valued).then("unit").alias("unit")).select(
        pl.col(c).cast(t) for c, t in PATH_SCHEMA.items()
    )
