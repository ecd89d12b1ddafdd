"""The disease process: a Markov chain in steps of half a calendar month, drawn at random and propagated exactly.

The state of one disease is (status, exposed, treated, severity). In each step, in this order:

1. death: with rate `death * exp(per_level * severity)`, more once the disease is known;
2. a visit, more often the more severe; it may start the treatment (on the measured value) and confirm the disease;
   or, for a disease treated in hospital, the stay ends and the diagnosis is coded;
3. onset: healthy becomes ill, which nobody knows before step 2 of a later step (or at once, with the trap off);
4. exposure to the planted cause begins;
5. severity moves up or down by one level.

`advance` draws one step for every subject; `propagate` carries the exact distribution over states through the same
kernels. The two diseases share no kernel, and the death rates add up, so the joint distribution is their product: one
small chain a disease is enough for exact cumulative incidences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrseq.synthetic.config import REFERENCE_AGE, STEPS_PER_YEAR, DiseaseConfig, Float, Int

HEALTHY, HIDDEN, KNOWN = 0, 1, 2
Bool = NDArray[np.bool_]


@dataclass
class State:
    """One disease of n subjects, each array of shape (n,)."""

    status: Int
    exposed: Int
    treated: Int
    level: Int

    def copy(self) -> State:
        """The same state in arrays of its own."""
        return State(self.status.copy(), self.exposed.copy(), self.treated.copy(), self.level.copy())

    def take(self, rows: Int) -> State:
        """The state of some of the subjects."""
        return State(self.status[rows], self.exposed[rows], self.treated[rows], self.level[rows])


@dataclass
class Kernels:
    """One disease's transition probabilities a step, for n subjects and L levels.

    `onset` (n, exposed 2, L) is the cumulative hazard of a step at the reference age, to be multiplied by
    `age_factor(step)`; `survive` (status 3, L); `visit` (L,); `treat` (n, L), given a visit; `up` and `down`
    (treated 2,).
    """

    config: DiseaseConfig
    immediate: bool
    age: Float
    person: Float
    onset: Float
    survive: Float
    visit: Float
    treat: Float
    expose: float
    up: Float
    down: Float

    @classmethod
    def build(cls, disease: DiseaseConfig, immediate: bool, age: Float, male: Int, person: Float) -> Kernels:
        """The probabilities of a disease for subjects of the given age at start, sex and lasting marker difference."""
        levels = np.arange(disease.levels)
        onset = disease.onset * np.exp(
            disease.onset_male * male[:, None, None]
            + disease.onset_exposed * np.arange(2)[None, :, None]
            + disease.onset_per_level * levels
        )
        death = np.tile(disease.death * np.exp(disease.death_per_level * levels), (3, 1))
        death[KNOWN] += disease.death_known
        visits = disease.visits * np.exp(disease.visits_per_level * levels)
        marker = disease.marker
        excess = expected_marker(disease, levels[None, :], person[:, None]) - marker.treat_at
        return cls(
            config=disease,
            immediate=immediate,
            age=age,
            person=person,
            onset=onset / STEPS_PER_YEAR,
            survive=np.exp(-death / STEPS_PER_YEAR),
            visit=-np.expm1(-visits / STEPS_PER_YEAR),
            treat=marker.prescribing * _probability_above(excess, marker.noise_sd),
            expose=-math.expm1(-disease.exposure / STEPS_PER_YEAR),
            up=disease.worsening * np.array([1.0, disease.treated_worsening]) / STEPS_PER_YEAR,
            down=disease.recovery * np.array([1.0, disease.treated_recovery]) / STEPS_PER_YEAR,
        )

    def take(self, rows: Int) -> Kernels:
        """The kernels of some of the subjects."""
        return Kernels(
            self.config, self.immediate, self.age[rows], self.person[rows], self.onset[rows], self.survive,
            self.visit, self.treat[rows], self.expose, self.up, self.down,
        )  # fmt: skip

    def age_factor(self, step: int | Int) -> Float:
        """The rate ratio of onset for the age in a step, shape (n,)."""
        age = self.age + step / STEPS_PER_YEAR
        return np.asarray(np.exp(self.config.onset_per_decade * (age - REFERENCE_AGE) / 10))


def expected_marker(disease: DiseaseConfig, level: Int, person: Float) -> Float:
    """The mean measured value at a severity, for a person's lasting difference (in standard deviations)."""
    marker = disease.marker
    return np.asarray(marker.mean + marker.per_level * level + marker.person_sd * person)


def _probability_above(excess: Float, noise_sd: float) -> Float:
    """P(excess + noise >= 0) for normal noise."""
    if noise_sd == 0:
        return (excess >= 0).astype(np.float64)
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return np.asarray(0.5 * (1 + erf(excess / (noise_sd * math.sqrt(2)))))


@dataclass
class Happened:
    """What one step brought to each of n subjects, each array of shape (n,)."""

    visit: Bool
    marker: Float  # measured at the visit
    onset: Bool
    known: Bool
    exposed: Bool


def advance(kernels: Kernels, state: State, step: int, alive: Bool, rng: np.random.Generator) -> Happened:
    """Draw one step (after death) for those alive, in place; the order is that of `propagate`.

    The same number of random numbers is used whatever happens.
    """
    disease, n = kernels.config, alive.size
    rows = np.arange(n)
    draws = rng.random((6, n))
    visit = alive & (draws[0] < kernels.visit[state.level])
    noise = disease.marker.noise_sd * rng.standard_normal(n)
    marker = expected_marker(disease, state.level, kernels.person) + noise
    start = visit & (state.treated == 0) & (marker >= disease.marker.treat_at)
    state.treated[start & (draws[1] < disease.marker.prescribing)] = 1
    seen = visit if disease.confirmation == "visit" else alive
    known = seen & (state.status == HIDDEN) & (draws[2] < disease.confirming)
    state.status[known] = KNOWN
    hazard = kernels.onset[rows, state.exposed, state.level] * kernels.age_factor(step)
    onset = alive & (state.status == HEALTHY) & (draws[3] < -np.expm1(-hazard))
    state.status[onset] = KNOWN if kernels.immediate else HIDDEN
    exposed = alive & (state.exposed == 0) & (draws[4] < kernels.expose)
    state.exposed[exposed] = 1
    up = alive & (draws[5] < kernels.up[state.treated])
    down = alive & (draws[5] > 1 - kernels.down[state.treated])
    state.level += up.astype(np.int64) - down.astype(np.int64)
    np.clip(state.level, 0, disease.levels - 1, out=state.level)
    return Happened(visit, marker, onset, known | onset if kernels.immediate else known, exposed)


def propagate(kernels: Kernels, state: State, first_step: Int, steps: int) -> tuple[Float, Float, Float]:
    """The exact distribution of one disease over the coming steps, given its full state now.

    Parameters: `first_step` (n,) is each subject's coming step. Returns three arrays of shape (steps, n), of
    probabilities that count only this disease's own deaths: that the disease becomes known in the step; that the
    subject is alive and it is not known at the end of the step; that the subject is alive then.
    """
    n = state.level.size
    mass = np.zeros((3, n, 2, 2, kernels.config.levels))
    mass[state.status, np.arange(n), state.exposed, state.treated, state.level] = 1.0
    return carry(kernels, mass, first_step, steps)


def carry(kernels: Kernels, mass: Float, first_step: Int, steps: int) -> tuple[Float, Float, Float]:
    """As `propagate`, from a distribution over states: (status 3, n, exposed 2, treated 2, severity L)."""
    n, mass = mass.shape[1], mass.copy()
    survive = kernels.survive[:, None, None, None, :]
    flow, unknown, alive = np.zeros((3, steps, n))
    for step in range(steps):
        mass *= survive
        known = _see(kernels, mass)
        hazard = kernels.onset * kernels.age_factor(first_step + step)[:, None, None]
        onset = mass[HEALTHY] * -np.expm1(-hazard)[:, :, None, :]
        mass[HEALTHY] -= onset
        if kernels.immediate:
            mass[KNOWN] += onset
            known = known + onset.sum((1, 2, 3))
        else:
            mass[HIDDEN] += onset
        if kernels.expose > 0:
            begun = mass[:, :, 0] * kernels.expose
            mass[:, :, 0] -= begun
            mass[:, :, 1] += begun
        mass = _drift(kernels, mass)
        flow[step] = known
        by_status = mass.sum((2, 3, 4))
        unknown[step] = by_status[HEALTHY] + by_status[HIDDEN]
        alive[step] = unknown[step] + by_status[KNOWN]
    return flow, unknown, alive


def _see(kernels: Kernels, mass: Float) -> Float:
    """Visits and discharges of one step, in place; returns the probability of becoming known, shape (n,)."""
    confirming = kernels.config.confirming
    visited = mass * kernels.visit
    mass -= visited
    treated = visited[..., 0, :] * kernels.treat[None, :, None, :]
    visited[..., 0, :] -= treated
    visited[..., 1, :] += treated
    if kernels.config.confirmation == "discharge":
        mass += visited
        visited = mass  # a stay ends whether or not there is a visit
    confirmed = visited[HIDDEN] * confirming
    visited[HIDDEN] -= confirmed
    visited[KNOWN] += confirmed
    if visited is not mass:
        mass += visited
    return np.asarray(confirmed.sum((1, 2, 3)))


def _drift(kernels: Kernels, mass: Float) -> Float:
    """Severity up or down by one level; at the ends it stays."""
    up, down = mass * kernels.up[:, None], mass * kernels.down[:, None]
    moved = mass - up - down
    moved[..., 1:] += up[..., :-1]
    moved[..., -1] += up[..., -1]
    moved[..., :-1] += down[..., 1:]
    moved[..., 0] += down[..., 0]
    return np.asarray(moved)
