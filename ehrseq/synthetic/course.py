"""The simulated lives of a block of subjects: what happened, on which day, and how long they were watched."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from ehrseq.synthetic.config import REFERENCE_AGE, STEPS_PER_YEAR, Float, Int, SimulationConfig
from ehrseq.synthetic.process import Bool, Happened, Kernels, State, advance, expected_marker

NEVER = np.iinfo(np.int64).max // 2  # a day that is not reached
ROUTINE = 2  # the visit at entry, which measures everything; visits 0 and 1 belong to the first and second disease


@dataclass
class Course:
    """Days count from 1970-01-01; arrays of shape (n,) unless said otherwise; NEVER where nothing happened.

    `boundaries` (n, steps + 1): the last day of each step; step k covers the days after boundary k up to boundary
    k + 1, and the follow-up starts on boundary 0. `visits` has a row a visit: row, day, kind, level_0, level_1,
    marker, treated, exposed, confirms. Onset, known and death days are those of the whole life up to the last step,
    whether watched or not; `end` is the last day of follow-up.
    """

    config: SimulationConfig
    kernels: tuple[Kernels, Kernels]
    boundaries: Int
    birth: Int
    male: Int
    smoker: Int
    death: Int
    end: Int
    onset: Int  # (2, n)
    known: Int  # (2, n)
    exposed: Int  # (2, n)
    visits: pl.DataFrame
    at_landmark: dict[int, tuple[State, State]] = field(default_factory=dict)  # by years after the start


def simulate_course(n: int, config: SimulationConfig, rng: np.random.Generator) -> Course:
    """Draw the lives of `n` subjects."""
    start = _entry_days(n, config, rng)
    boundaries = _boundaries(start, config.years)
    age = np.clip(rng.normal(config.age_mean, config.age_sd, n), config.age_low, config.age_high)
    male = (rng.random(n) < config.male).astype(np.int64)
    kernels, states = _begin(config, age, male, rng)
    life = _Life(config, kernels, states, boundaries, age, male, rng)
    for step in range(boundaries.shape[1] - 1):
        life.step(step)
    cut = np.datetime64(config.data_cut, "D").astype(np.int64)
    administrative = np.minimum(boundaries[:, -1], cut) if config.censoring else boundaries[:, -1]
    end = np.minimum(np.minimum(life.death, administrative), life.dropout)
    birth = start - np.round(age * 365.25).astype(np.int64)
    return Course(
        config, kernels, boundaries, birth, male, life.smoker, life.death, end,
        life.onset, life.known, life.exposed, life.visit_table(), life.at_landmark,
    )  # fmt: skip


def _entry_days(n: int, config: SimulationConfig, rng: np.random.Generator) -> Int:
    """The day follow-up starts; never after the 28th, so that every month has that day."""
    first = np.datetime64(config.first_entry, "D")
    month, day = rng.integers(0, max(config.entry_months, 1), n), rng.integers(0, 28, n)
    if not config.staggered_entry:
        return np.full(n, first.astype(np.int64))
    return np.asarray((first.astype("M8[M]") + month.astype("m8[M]")).astype("M8[D]").astype(np.int64) + day)


def _boundaries(start: Int, years: int) -> Int:
    """The start, and every half calendar month after it, as days; shape (n, 24 * years + 1)."""
    days = start.astype("M8[D]")
    months = days.astype("M8[M]")
    day_of_month = (days - months.astype("M8[D]")).astype(np.int64)
    ahead = np.arange(12 * years + 1)
    whole = (months[:, None] + ahead.astype("m8[M]")).astype("M8[D]").astype(np.int64) + day_of_month[:, None]
    both = np.stack([whole, whole + 15], axis=-1).reshape(start.size, -1)
    return np.asarray(both[:, :-1])


def _begin(
    config: SimulationConfig, age: Float, male: Int, rng: np.random.Generator
) -> tuple[tuple[Kernels, Kernels], tuple[State, State]]:
    """Both diseases at the start: nobody is ill, severities are correlated."""
    n = age.size
    first, second = rng.standard_normal((2, n))
    rho = config.start_correlation
    kernels, states = [], []
    for disease, z in zip(config.diseases, (first, rho * first + np.sqrt(1 - rho**2) * second), strict=True):
        mean = disease.start_mean + disease.start_per_decade * (age - REFERENCE_AGE) / 10
        level = np.clip(np.round(mean + disease.start_sd * z), 0, disease.levels - 1).astype(np.int64)
        exposed = (rng.random(n) < disease.exposed_at_start).astype(np.int64)
        kernels.append(Kernels.build(disease, config.immediate(disease), age, male, rng.standard_normal(n)))
        states.append(State(np.zeros(n, np.int64), exposed, np.zeros(n, np.int64), level))
    return (kernels[0], kernels[1]), (states[0], states[1])


def background_survival(config: SimulationConfig, age: Float, male: Int, smoker: Int, step: int | Int) -> Float:
    """The probability of surviving a step's causes of death other than the two diseases, shape (n,)."""
    if not config.competing_death:
        return np.ones(age.size)
    decades = (age + step / STEPS_PER_YEAR - REFERENCE_AGE) / 10
    log_ratio = config.death_per_decade * decades + config.death_male * male + config.death_smoker * smoker
    return np.asarray(np.exp(-config.death * np.exp(log_ratio) / STEPS_PER_YEAR))


class _Life:
    """The running state of `simulate_course`."""

    def __init__(
        self,
        config: SimulationConfig,
        kernels: tuple[Kernels, Kernels],
        states: tuple[State, State],
        boundaries: Int,
        age: Float,
        male: Int,
        rng: np.random.Generator,
    ) -> None:
        self.config, self.kernels, self.states, self.boundaries = config, kernels, states, boundaries
        self.age, self.male, self.rng = age, male, rng
        self.smoker = states[1].exposed.copy()
        n = age.size
        self.alive: Bool = np.ones(n, np.bool_)
        self.death, self.dropout = np.full((2, n), NEVER)
        self.onset, self.known, self.exposed = np.full((3, 2, n), NEVER)
        for exposed, state in zip(self.exposed, states, strict=True):
            exposed[state.exposed == 1] = boundaries[state.exposed == 1, 0]
        self.rows: list[dict[str, Int | Float | Bool]] = []
        self.at_landmark: dict[int, tuple[State, State]] = {}
        marker = expected_marker(kernels[0].config, states[0].level, kernels[0].person)
        marker = marker + kernels[0].config.marker.noise_sd * rng.standard_normal(n)
        self.last_marker = marker
        self._record(np.arange(n), boundaries[:, 0], ROUTINE, marker, np.zeros(n, np.bool_))

    def step(self, step: int) -> None:
        """One half month for everybody."""
        years, part = divmod(step, STEPS_PER_YEAR)
        if part == 0 and years in self.config.landmarks:
            self.at_landmark[years] = (self.states[0].copy(), self.states[1].copy())
        self._drop_out(step)
        self._die(step)
        for index, (kernels, state) in enumerate(zip(self.kernels, self.states, strict=True)):
            before = self.states[0].level.copy(), self.states[1].level.copy()
            days = self._days(step), self._days(step), self._days(step)
            happened = advance(kernels, state, step, self.alive, self.rng)
            self._keep(index, happened, days, before)

    def _days(self, step: int) -> Int:
        """A day of the step for each subject, all equally likely."""
        low, high = self.boundaries[:, step], self.boundaries[:, step + 1]
        return np.asarray(low + 1 + np.floor(self.rng.random(low.size) * (high - low)).astype(np.int64))

    def _drop_out(self, step: int) -> None:
        """Leaving depends only on what the record shows: age, smoking and the last measured HbA1c."""
        config = self.config
        rate = np.full(self.age.size, config.dropout_uninformative)
        if config.covariate_censoring:
            decades = (self.age + step / STEPS_PER_YEAR - REFERENCE_AGE) / 10
            rate = config.dropout * np.exp(
                config.dropout_per_decade * decades
                + config.dropout_smoker * self.smoker
                + config.dropout_high_marker * (self.last_marker >= config.high_marker)
            )
        leaves = (self.rng.random(rate.size) < -np.expm1(-rate / STEPS_PER_YEAR)) & (self.dropout == NEVER)
        days = self._days(step)
        if config.censoring:
            self.dropout[leaves] = days[leaves]

    def _die(self, step: int) -> None:
        survive = background_survival(self.config, self.age, self.male, self.smoker, step)
        for kernels, state in zip(self.kernels, self.states, strict=True):
            survive = survive * kernels.survive[state.status, state.level]
        dies = self.alive & (self.rng.random(survive.size) >= survive)
        self.death[dies] = self._days(step)[dies]
        self.alive &= ~dies

    def _keep(self, index: int, happened: Happened, days: tuple[Int, Int, Int], before: tuple[Int, Int]) -> None:
        visit_day, event_day, exposure_day = days
        immediate = self.kernels[index].immediate
        by_visit = self.kernels[index].config.confirmation == "visit" and not immediate
        self.onset[index][happened.onset] = event_day[happened.onset]
        known_day = visit_day if by_visit else event_day
        self.known[index][happened.known] = known_day[happened.known]
        self.exposed[index][happened.exposed] = exposure_day[happened.exposed]
        if index == 0:
            self.last_marker = np.where(happened.visit, happened.marker, self.last_marker)
        rows = np.flatnonzero(happened.visit)
        confirms = happened.known if by_visit else np.zeros_like(happened.known)
        self._record(rows, visit_day[rows], index, happened.marker[rows], confirms[rows], before)

    def _record(
        self,
        rows: Int,
        day: Int,
        kind: int,
        marker: Float,
        confirms: Bool,
        levels: tuple[Int, Int] | None = None,
    ) -> None:
        level_0, level_1 = levels or (self.states[0].level, self.states[1].level)
        self.rows.append(
            {
                "row": rows,
                "day": day,
                "kind": np.full(rows.size, kind, np.int64),
                "level_0": level_0[rows],
                "level_1": level_1[rows],
                "marker": marker,
                "treated_0": self.states[0].treated[rows],
                "treated_1": self.states[1].treated[rows],
                "confirms": confirms,
            }
        )

    def visit_table(self) -> pl.DataFrame:
        """All visits, by subject and day."""
        columns = {name: np.concatenate([r[name] for r in self.rows]) for name in self.rows[0]}
        return pl.DataFrame(columns).sort("row", "day", "kind", maintain_order=True)
