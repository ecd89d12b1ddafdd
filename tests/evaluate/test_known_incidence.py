"""On simulated people the incidence estimate is the true one, where 1 - Kaplan-Meier is not."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from lifelines import KaplanMeierFitter

from ehrseq.evaluate import evaluate_forecasts
from ehrseq.synthetic import SimulationConfig
from ehrseq.synthetic.course import simulate_course
from ehrseq.synthetic.truth import truth_table

HORIZON = {"5y": 1826.25}
NEAR = 0.01


@pytest.fixture(scope="module")
def both():
    """Labels of frail old people, some lost to follow-up at random, and the true incidence of each."""
    config = SimulationConfig(covariate_censoring=False, death=0.02, age_mean=70.0, age_sd=6.0, landmarks=(2,))
    parts = []
    for block in range(4):
        course = simulate_course(3000, config, np.random.default_rng([7, block]))
        truth = truth_table(course, pl.Series([str(i) for i in range(3000)])).filter(outcome="diabetes", horizon="5y")
        row = truth["patient"].cast(pl.Int64).to_numpy()
        today = truth["prediction_time"].dt.date().cast(pl.Int32).to_numpy().astype(np.int64)
        times = np.stack([course.end[row], course.known[0][row], course.death[row]]) - today
        # the outcome goes before death, and both before the end of follow-up
        order = np.array([1, 2, 0])
        cause = order[times[order].argmin(0)]
        parts.append(truth.with_columns(
            subject_id=pl.Series(row + 3000 * block), days=pl.Series(times.min(0), dtype=pl.Float64),
            cause=pl.Series(cause, dtype=pl.Int8), at_risk=True,
        ))  # fmt: skip
    return pl.concat(parts)


def test_it_is_within_a_hundredth_and_one_minus_kaplan_meier_is_not(both):
    truth = both["probability"].mean()
    risk = both.select("subject_id", "prediction_time", "outcome", "horizon_days", "probability")
    found = evaluate_forecasts(risk, both, HORIZON, n_bootstrap=50).table.row(0, named=True)
    assert found["censored"] > 500
    assert abs(found["observed"] - truth) < NEAR
    assert found["observed_lower"] < truth < found["observed_upper"]
    naive = 1 - KaplanMeierFitter().fit(both["days"], both["cause"] == 1).predict(HORIZON["5y"])
    assert abs(naive - truth) > NEAR
    # the same by our own curve, with death taken for censoring
    as_censoring = both.with_columns(cause=pl.when(pl.col("cause") == 2).then(0).otherwise("cause"))
    same = evaluate_forecasts(risk, as_censoring, HORIZON, n_bootstrap=0).table.row(0, named=True)
    assert same["observed"] == pytest.approx(float(naive), abs=1e-6)
    assert abs(same["observed"] - truth) > NEAR
