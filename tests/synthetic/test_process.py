"""The exact propagation against closed forms and against drawing from the same chain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ehrseq.synthetic.config import DIABETES, HEART_FAILURE, STEPS_PER_YEAR, DiseaseConfig
from ehrseq.synthetic.process import Kernels, State, advance, propagate

YEARS = 3


def _state(n: int, **values: int) -> State:
    parts = {name: np.full(n, values.get(name, 0)) for name in ("status", "exposed", "treated", "level")}
    return State(**parts)


def _kernels(disease: DiseaseConfig, n: int, immediate: bool = False) -> Kernels:
    return Kernels.build(disease, immediate, np.full(n, 67.0), np.ones(n, np.int64), np.full(n, 0.7))


def test_constant_hazards_have_the_closed_form() -> None:
    disease = replace(
        DIABETES, levels=1, onset=0.08, onset_male=0, onset_per_decade=0, exposure=0, death=0.03, death_known=0
    )
    flow, unknown, alive = propagate(_kernels(disease, 1, immediate=True), _state(1), np.zeros(1, np.int64), 72)
    steps = np.arange(1, 73) / STEPS_PER_YEAR
    assert np.allclose(alive[:, 0], np.exp(-0.03 * steps))
    assert np.allclose(unknown[:, 0], np.exp(-0.11 * steps))
    # death comes first within a step, so the flow is what survived the step's death times the step's onset
    expected = np.exp(-0.11 * (steps - 1 / 24) - 0.03 / 24) * -np.expm1(-0.08 / 24)
    assert np.allclose(flow[:, 0], expected)
    # and by three years within 0.1% of the continuous formula
    assert flow.sum() == pytest.approx(0.08 / 0.11 * -np.expm1(-0.11 * YEARS), rel=1e-3)


@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize("disease", [DIABETES, HEART_FAILURE], ids=lambda d: d.outcome)
@pytest.mark.parametrize("status", [0, 1])
def test_drawing_agrees_with_propagating(disease: DiseaseConfig, immediate: bool, status: int) -> None:
    """The same state many times over: the share that becomes known before death is the propagated one."""
    n, steps = 30_000, YEARS * STEPS_PER_YEAR
    rng = np.random.default_rng(17)
    kernels, state = _kernels(disease, n, immediate), _state(n, status=status, level=4)
    alive, known = np.ones(n, np.bool_), np.zeros(n, np.bool_)
    for step in range(steps):
        alive &= rng.random(n) < kernels.survive[state.status, state.level]
        known |= advance(kernels, state, step, alive, rng).known
    one = propagate(_kernels(disease, 1, immediate), _state(1, status=status, level=4), np.zeros(1, np.int64), steps)
    for observed, expected in ((known, one[0].sum()), (alive, one[2][-1, 0]), (alive & ~known, one[1][-1, 0])):
        error = np.sqrt(max(expected * (1 - expected), 1e-9) / n)
        assert abs(observed.mean() - expected) < 4 * error


def test_starting_later_is_being_older() -> None:
    kernels = _kernels(HEART_FAILURE, 2)
    flow, _, _ = propagate(kernels, _state(2, level=3), np.array([0, 5 * STEPS_PER_YEAR]), 48)
    assert flow[:, 1].sum() > 1.1 * flow[:, 0].sum()


@pytest.mark.parametrize("disease", [DIABETES, HEART_FAILURE], ids=lambda d: d.outcome)
def test_the_planted_cause_raises_and_treatment_lowers_the_risk(disease: DiseaseConfig) -> None:
    risk = {}
    for name, values in {"plain": {}, "exposed": {"exposed": 1}, "treated": {"treated": 1}}.items():
        first = np.zeros(1, np.int64)
        risk[name] = propagate(_kernels(disease, 1), _state(1, level=3, **values), first, 72)[0].sum()
    assert risk["exposed"] > 1.7 * risk["plain"]
    assert risk["treated"] < 0.9 * risk["plain"]
