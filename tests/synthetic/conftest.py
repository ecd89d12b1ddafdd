from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from ehrseq.synthetic import Simulation, SimulationConfig, simulate
from ehrseq.synthetic.course import NEVER, simulate_course
from ehrseq.synthetic.truth import truth_table


@pytest.fixture(scope="session")
def default() -> Simulation:
    """A small export with every trap on."""
    return simulate(1000, seed=5)


@dataclass
class Realised:
    """One (outcome, landmark, horizon): the truth and what then happened to everyone, nobody censored."""

    probability: np.ndarray
    competing: np.ndarray
    days: np.ndarray  # from the landmark to the outcome, or to death before it; horizon_days + 1 where neither
    kind: np.ndarray  # 1 the outcome, 2 death before it, 0 neither within the horizon
    horizon_days: np.ndarray


@pytest.fixture(scope="session")
def realised() -> dict[tuple[str, str, str], Realised]:
    """The truth and the realised events of 12,000 subjects simulated without censoring."""
    config = SimulationConfig(censoring=False)
    cells: dict[tuple[str, str, str], list[Realised]] = {}
    for block in range(6):
        n = 2000
        course = simulate_course(n, config, np.random.default_rng([2024, block]))
        patients = pl.Series([str(i) for i in range(n)])
        truth = truth_table(course, patients)
        events = {
            "diabetes": course.known[0],
            "heart_failure": course.known[1],
            "death": np.full(n, NEVER),
        }
        for key, cell in truth.group_by("outcome", "landmark", "horizon"):
            row = cell["patient"].cast(pl.Int64).to_numpy()
            today = cell["prediction_time"].dt.date().cast(pl.Int32).to_numpy().astype(np.int64)
            horizon = cell["horizon_days"].to_numpy()
            event, death = events[key[0]][row] - today, course.death[row] - today
            if key[0] == "death":
                event, death = death, event
            kind = np.where((event <= horizon) & (event < death), 1, np.where(death <= horizon, 2, 0))
            days = np.where(kind == 1, event, np.where(kind == 2, death, horizon + 1))
            cells.setdefault(key, []).append(
                Realised(cell["probability"].to_numpy(), cell["competing"].to_numpy(), days, kind, horizon)
            )
    return {
        key: Realised(*(np.concatenate([getattr(p, f) for p in parts]) for f in Realised.__dataclass_fields__))
        for key, parts in cells.items()
    }
