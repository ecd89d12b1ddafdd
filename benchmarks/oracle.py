"""The best forecast a simulated record allows: P(outcome | what was recorded by the landmark), by a particle filter.

The truth of a simulation is given the hidden severity; nobody can see that. Here the severities of both diseases are
filtered from what the record shows (visits and their absence, laboratory values, prescriptions, diagnoses, survival),
with the simulator's own parameters, and carried forward exactly as the truth is. A particle is a pair of severity
courses; lasting differences between people (normal) and whether a disease has begun unseen are carried along in closed
form (Rao-Blackwellised; Doucet et al. 2000, UAI). Simplifications, which can only make the forecasts a little worse:
the two diseases' posteriors are multiplied, a person's marker difference is set to its posterior mean, and an open
hospital stay at the landmark is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.synthetic.config import REFERENCE_AGE, STEPS_PER_YEAR, SimulationConfig
from ehrseq.synthetic.course import _boundaries, background_survival
from ehrseq.synthetic.export import Simulation
from ehrseq.synthetic.process import HEALTHY, HIDDEN, KNOWN, Kernels, carry
from ehrseq.synthetic.tables import BLOOD_PRESSURE, LISINOPRIL, METFORMIN, PREDNISONE, SMOKING

Array = NDArray[Any]
HBA1C, BMI, CREATININE, BNP = "4548-4", "39156-5", "2160-0", "33762-6"
TREATMENTS = (METFORMIN[0], LISINOPRIL[0])
NEVER = 1 << 30
AT_ONCE = 1000  # subjects


@dataclass
class Record:
    """What the records of n subjects show, by half month: days count from 1970, steps from the start of follow-up.

    `values[code]` (2, steps, n): measured at a visit for the first and the second disease; NaN where it was not.
    `first_values[code]` (n,) at entry. `visits` (2, steps, n). `treated`, `known` (2, n) and `exposed` (2, n): the step
    from the end of which it holds; NEVER.
    """

    age: Array
    male: Array
    visits: Array
    values: dict[str, Array]
    first_values: dict[str, Array]
    treated: Array
    known: Array
    exposed: Array


def read_record(simulation: Simulation, patients: list[str], config: SimulationConfig, steps: int) -> Record:
    """The record of some patients, from the simulation's tables of resources."""
    who = pl.DataFrame({"patient": patients}).with_row_index("n")
    n = len(patients)
    tables = simulation.tables

    def of(kind: str) -> pl.DataFrame:
        return who.join(tables[kind], on="patient", maintain_order="left")

    people = who.join(tables["Patient"], left_on="patient", right_on="id", maintain_order="left")
    start = of("ResearchSubject")["start"].cast(pl.Int32).cast(pl.Int64).to_numpy()
    bounds = _boundaries(start, config.years)
    offset = (np.arange(n) * (1 << 20))[:, None] + (bounds - start[:, None])

    def step_of(frame: pl.DataFrame) -> Array:
        """-1: on the day of entry."""
        day = frame["time"].dt.date().cast(pl.Int32).cast(pl.Int64).to_numpy()
        row = frame["n"].to_numpy().astype(np.int64)
        place = np.searchsorted(offset.ravel(), row * (1 << 20) + day - start[row]) - row * bounds.shape[1]
        return np.asarray(place - 1)

    seen = of("Observation").with_columns(number=pl.col("code") == HBA1C)
    seen = seen.with_columns(step=step_of(seen), kind=1 - pl.col("number").max().over("encounter").cast(pl.Int64))
    visits = np.zeros((2, steps, n), bool)
    inside = seen.filter(pl.col("step").is_between(0, steps - 1))
    at = [inside[c].to_numpy() for c in ("kind", "step", "n")]
    visits[tuple(at)] = True
    values, first = {}, {}
    for code in (HBA1C, BMI, CREATININE, BNP, BLOOD_PRESSURE):
        values[code], first[code] = np.full((2, steps, n), np.nan), np.full(n, np.nan)
        mine = inside.filter(code=code)
        values[code][tuple(mine[c].to_numpy() for c in ("kind", "step", "n"))] = mine["value"].to_numpy()
        entry = seen.filter((pl.col("step") < 0) & (pl.col("code") == code))
        first[code][entry["n"].to_numpy()] = entry["value"].to_numpy()

    def begun(frame: pl.DataFrame) -> Array:
        out = np.full(n, NEVER)
        frame = frame.with_columns(step=step_of(frame)).group_by("n").agg(pl.col("step").min())
        out[frame["n"].to_numpy()] = frame["step"].to_numpy()
        return out

    drugs, diagnoses = of("MedicationRequest"), of("Condition")
    smokes = seen.filter((pl.col("code") == SMOKING) & (pl.col("concept") == "449868002"))
    return Record(
        age=(start - people["birth"].cast(pl.Int32).cast(pl.Int64).to_numpy()) / 365.25,
        male=(people["gender"] == "male").to_numpy().astype(np.int64),
        visits=visits,
        values=values,
        first_values=first,
        treated=np.stack([begun(drugs.filter(code=code)) for code in TREATMENTS]),
        known=np.stack([begun(diagnoses.filter(code=disease.code)) for disease in config.diseases]),
        exposed=np.stack([begun(drugs.filter(code=PREDNISONE[0])), begun(smokes)]),
    )


class Filter:
    """The particles of n subjects: `level` (2, n, P); `unseen` (2, n, P), the chance that a disease began unknown."""

    def __init__(self, record: Record, config: SimulationConfig, particles: int, rng: np.random.Generator) -> None:
        self.record, self.config, self.rng = record, config, rng
        n, shape = record.age.size, (record.age.size, particles)
        z = rng.standard_normal((2, *shape))
        z[1] = config.start_correlation * z[0] + np.sqrt(1 - config.start_correlation**2) * z[1]
        decades = (record.age - REFERENCE_AGE)[:, None] / 10
        self.level = np.stack(
            [
                np.clip(np.round(d.start_mean + d.start_per_decade * decades + d.start_sd * draw), 0, d.levels - 1)
                for d, draw in zip(config.diseases, z, strict=True)
            ]
        ).astype(np.int64)
        self.unseen = np.zeros((2, *shape))
        self.log_weight = np.zeros(shape)
        # lasting differences of a person: mean by particle, variance by subject
        self.person = {name: (np.zeros(shape), np.ones((n, 1))) for name in (HBA1C, BMI, CREATININE, BLOOD_PRESSURE)}
        self.kernels = self._kernels(np.zeros(n))
        noisy = float(config.noisy_labs)
        first, second = (d.marker for d in config.diseases)
        # code: disease, mean at severity 0, per level, spread of people, of measurements, of rounding
        self.scales = {
            HBA1C: (0, first.mean, first.per_level, first.person_sd, first.noise_sd, 0.1),
            BMI: (0, 26.0, 0.8, 2.5 * noisy, 0.3 * noisy, 0.1),
            CREATININE: (1, 0.75, 0.06, 0.08 * noisy, 0.07 * noisy, 0.01),
            BLOOD_PRESSURE: (1, second.mean, second.per_level, second.person_sd, second.noise_sd, 1.0),
        }
        self._measure(record.first_values)

    def _kernels(self, person: Array) -> list[Kernels]:
        c, r = self.config, self.record
        return [Kernels.build(d, c.immediate(d), r.age, r.male, person) for d in c.diseases]

    def _measure(self, values: dict[str, Array]) -> None:
        """Weigh particles by laboratory values (n,), NaN where there is none."""
        for code, (disease, mean, slope, spread, noise, rounding) in self.scales.items():
            value = values.get(code)
            if value is None or np.isnan(value).all():
                continue
            there = ~np.isnan(value)[:, None]
            offset = 0.15 * self.record.male[:, None] if code == CREATININE else 0.0
            m, v = self.person[code]
            variance = noise**2 + rounding**2 / 12
            total = spread**2 * v + variance
            gap = np.where(there, value[:, None] - mean - offset - slope * self.level[disease] - spread * m, 0.0)
            self.log_weight -= np.where(there, 0.5 * gap**2 / total + 0.5 * np.log(total), 0.0)
            gain = np.where(there, spread * v / total, 0.0)
            self.person[code] = (m + gain * gap, v * (1 - gain * spread))
        value = values.get(BNP)
        if value is not None and not np.isnan(value).all():
            gap = np.log(np.maximum(value, 0.5))[:, None] - 4.0 - 0.5 * self.level[1]
            spread = max(0.5 * self.config.noisy_labs, 0.01)
            self.log_weight -= np.where(np.isnan(value)[:, None], 0.0, 0.5 * gap**2 / spread**2)

    def step(self, step: int) -> None:
        """One half month in which the subject lived and was watched."""
        record = self.record
        for disease, kernels in enumerate(self.kernels):
            status = np.where(record.known[disease] < step, KNOWN, HEALTHY)[:, None]
            self.log_weight += np.log(kernels.survive[status, self.level[disease]])
        for disease, kernels in enumerate(self.kernels):
            level, visit = self.level[disease], record.visits[disease, step][:, None]
            chance = kernels.visit[level]
            self.log_weight += np.log(np.where(visit, chance, 1 - chance))
            self._measure({code: value[disease, step] for code, value in record.values.items()})
            self._confirm(disease, kernels, step, visit)
            self._drift(disease, kernels, step)
        self._resample()

    def _confirm(self, disease: int, kernels: Kernels, step: int, visit: Array) -> None:
        record, q = self.record, self.unseen[disease]
        known = record.known[disease][:, None]
        exposed = (record.exposed[disease] < step).astype(np.int64)
        hazard = kernels.onset[np.arange(exposed.size)[:, None], exposed[:, None], self.level[disease]]
        onset = -np.expm1(-hazard * kernels.age_factor(step)[:, None])
        now, before = known == step, known < step
        if kernels.immediate:
            self.log_weight += np.where(before, 0.0, np.log(np.where(now, onset, 1 - onset)))
            return
        looks = visit if kernels.config.confirmation == "visit" else np.ones_like(visit)
        caught = np.where(looks, q * kernels.config.confirming, 0.0)
        self.log_weight += np.where(before, 0.0, np.log(np.maximum(np.where(now, caught, 1 - caught), 1e-300)))
        left = (q - caught) / np.maximum(1 - caught, 1e-300)
        self.unseen[disease] = np.where(known <= step, 0.0, left + (1 - left) * onset)

    def _drift(self, disease: int, kernels: Kernels, step: int) -> None:
        treated = (self.record.treated[disease] <= step).astype(np.int64)[:, None]
        draw, level = self.rng.random(self.level[disease].shape), self.level[disease]
        moved = level + (draw < kernels.up[treated]) - (draw > 1 - kernels.down[treated])
        self.level[disease] = np.clip(moved, 0, kernels.config.levels - 1)

    def _resample(self) -> None:
        weight = self.weight()
        few = np.flatnonzero(1 / (weight**2).sum(1) < weight.shape[1] / 2)
        if not few.size:
            return
        n, size = few.size, weight.shape[1]
        edges = np.cumsum(weight[few], axis=1)
        edges[:, -1] = 1.0
        points = (np.arange(size) + self.rng.random((n, 1))) / size
        row = np.arange(n)[:, None]
        picked = np.searchsorted((edges + 2 * row).ravel(), (points + 2 * row).ravel()).reshape(n, size) - row * size
        for disease in (0, 1):
            self.level[disease][few] = self.level[disease][few[:, None], picked]
            self.unseen[disease][few] = self.unseen[disease][few[:, None], picked]
        for mean, _ in self.person.values():
            mean[few] = mean[few[:, None], picked]
        self.log_weight[few] = 0.0

    def weight(self) -> Array:
        """(n, P), rows sum to 1."""
        weight = np.exp(self.log_weight - self.log_weight.max(1, keepdims=True))
        return np.asarray(weight / weight.sum(1, keepdims=True))

    def curves(self, step: int, steps: int) -> dict[str, Array]:
        """Per outcome the cumulative incidence (steps, n) after the boundary of `step`."""
        record, config, weight = self.record, self.config, self.weight()
        n, row = record.age.size, np.arange(record.age.size)
        runs = []
        for disease, code in enumerate((HBA1C, BLOOD_PRESSURE)):
            kernels = self._kernels((weight * self.person[code][0]).sum(1))[disease]
            known = record.known[disease] < step
            exposed, treated = (a[disease] < step for a in (record.exposed, record.treated))
            mass = np.zeros((3, n, 2, 2, kernels.config.levels))
            at = (row, exposed.astype(np.int64), treated.astype(np.int64))
            for level in range(kernels.config.levels):
                here = weight * (self.level[disease] == level)
                unseen = (here * self.unseen[disease]).sum(1)
                mass[(KNOWN, *at, level)] = np.where(known, here.sum(1), 0.0)
                mass[(HIDDEN, *at, level)] = np.where(known, 0.0, unseen)
                mass[(HEALTHY, *at, level)] = np.where(known, 0.0, here.sum(1) - unseen)
            runs.append(carry(kernels, mass, np.full(n, step), steps))
        smoker = (record.exposed[1] < step).astype(np.int64)
        survive = [background_survival(config, record.age, record.male, smoker, step + s) for s in range(steps)]
        background = np.cumprod(np.stack(survive), axis=0)
        found = {
            d.outcome: np.cumsum(runs[i][0] * background * runs[1 - i][2], axis=0)
            for i, d in enumerate(config.diseases)
        }
        return found | {"death": 1 - background * runs[0][2] * runs[1][2]}


def oracle(
    simulation: Simulation, truth: pl.DataFrame, config: SimulationConfig, *, particles: int = 500, seed: int = 0
) -> pl.DataFrame:
    """The rows of a truth table (`TRUTH_SCHEMA`) with a column `oracle`: the forecast from the record alone."""
    last = max(config.landmarks) * STEPS_PER_YEAR
    ahead = max(config.horizons) * STEPS_PER_YEAR
    patients = truth["patient"].unique().sort().to_list()
    parts = []
    for first in range(0, len(patients), AT_ONCE):
        some = patients[first : first + AT_ONCE]
        record = read_record(simulation, some, config, last)
        particle_filter = Filter(record, config, particles, np.random.default_rng([seed, first]))
        for step in range(last + 1):
            if step and step % STEPS_PER_YEAR == 0 and step // STEPS_PER_YEAR in config.landmarks:
                landmark = pl.lit(f"{step // STEPS_PER_YEAR}y")
                parts += [
                    pl.DataFrame({"patient": some, "oracle": curve[years * STEPS_PER_YEAR - 1]}).with_columns(
                        landmark=landmark, outcome=pl.lit(outcome), horizon=pl.lit(f"{years}y")
                    )
                    for outcome, curve in particle_filter.curves(step, ahead).items()
                    for years in config.horizons
                ]
            if step < last:
                particle_filter.step(step)
    return truth.join(pl.concat(parts), on=["patient", "landmark", "outcome", "horizon"], how="left")
