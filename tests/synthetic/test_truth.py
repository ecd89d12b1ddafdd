"""The truth against what then happens: incidence, calibration by decile, discrimination."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ehrseq.synthetic import TRUTH_SCHEMA, Simulation

CELLS = [
    (outcome, landmark, horizon)
    for outcome in ("diabetes", "heart_failure", "death")
    for landmark in ("2y", "4y")
    for horizon in ("1y", "3y", "5y")
]


def aalen_johansen(days: np.ndarray, kind: np.ndarray, until: float) -> float:
    """Cumulative incidence of kind 1 by `until` with kind 2 competing and kind 0 censored."""
    survival, incidence = 1.0, 0.0
    for day in np.unique(days[(kind > 0) & (days <= until)]):
        at_risk = (days >= day).sum()
        now = days == day
        incidence += survival * (now & (kind == 1)).sum() / at_risk
        survival *= 1 - (now & (kind > 0)).sum() / at_risk
    return incidence


def one_minus_kaplan_meier(days: np.ndarray, kind: np.ndarray, until: float) -> float:
    """The naive estimate, which treats death as censoring."""
    return aalen_johansen(days, np.where(kind == 2, 0, kind), until)


@pytest.mark.parametrize("key", CELLS, ids="-".join)
def test_observed_incidence_is_the_mean_truth(realised, key) -> None:
    cell = realised[key]
    p = cell.probability
    observed = aalen_johansen(cell.days, cell.kind, cell.horizon_days.max())
    error = np.sqrt((p * (1 - p)).sum()) / p.size
    assert abs(observed - p.mean()) < 3.5 * error
    # the test would notice a bias of 20% in the five-year cells
    if key[2] == "5y":
        assert abs(observed - 1.2 * p.mean()) > 3.5 * error
    q = cell.competing
    assert abs((cell.kind == 2).mean() - q.mean()) <= 3.5 * np.sqrt((q * (1 - q)).sum()) / q.size


@pytest.mark.parametrize("key", [c for c in CELLS if c[2] != "1y"], ids="-".join)
def test_truth_is_calibrated_in_every_tenth(realised, key) -> None:
    cell = realised[key]
    chi_square = 0.0
    for rows in np.array_split(np.argsort(cell.probability, kind="stable"), 10):
        p = cell.probability[rows]
        chi_square += ((cell.kind[rows] == 1).sum() - p.sum()) ** 2 / (p * (1 - p)).sum()
    assert chi_square < 29.6  # 0.999 quantile at 10 degrees of freedom


@pytest.mark.parametrize("outcome", ["diabetes", "heart_failure"])
def test_one_minus_kaplan_meier_overestimates(realised, outcome) -> None:
    cell = realised[outcome, "4y", "5y"]
    until = cell.horizon_days.max()
    naive = one_minus_kaplan_meier(cell.days, cell.kind, until)
    error = np.sqrt((cell.probability * (1 - cell.probability)).sum()) / cell.probability.size
    assert naive > 1.04 * cell.probability.mean()
    assert naive - cell.probability.mean() > 3.5 * error


@pytest.mark.parametrize("outcome", ["diabetes", "heart_failure", "death"])
@pytest.mark.parametrize("landmark", ["2y", "4y"])
def test_discrimination_lies_in_the_documented_band(realised, outcome, landmark) -> None:
    cell = realised[outcome, landmark, "3y"]
    p = cell.probability
    # what the truth itself implies: every subject counts as a case with weight p and as a control with 1 - p
    labels = np.repeat([1, 0], p.size)
    implied = roc_auc_score(labels, np.tile(p, 2), sample_weight=np.concatenate([p, 1 - p]))
    assert 0.75 < implied < 0.85
    assert abs(roc_auc_score(cell.kind == 1, p) - implied) < 0.03  # about four standard errors


def test_incidences_are_of_the_documented_size(realised) -> None:
    for outcome, (low, high) in {"diabetes": (0.15, 0.25), "heart_failure": (0.15, 0.25), "death": (0.1, 0.15)}.items():
        assert low < realised[outcome, "2y", "5y"].probability.mean() < high


def test_truth_table_keeps_its_contract(default: Simulation) -> None:
    truth = default.truth
    assert dict(truth.schema) == TRUTH_SCHEMA
    assert truth.null_count().sum_horizontal().item() == 0
    assert truth.select("patient", "landmark", "outcome", "horizon").is_duplicated().sum() == 0
    total = truth.select(pl.sum_horizontal("probability", "competing", "event_free")).to_series()
    assert np.allclose(total, 1, atol=1e-12)
    for column in ("probability", "competing", "event_free"):
        assert truth[column].is_between(0, 1).all()
    widened = truth.pivot("horizon", index=["patient", "landmark", "outcome"], values="probability")
    # equal where the diagnosis is certain: somebody in hospital whose stay ends within a year
    assert ((widened["1y"] <= widened["3y"]) & (widened["3y"] <= widened["5y"])).all()
    assert (widened["1y"] < widened["5y"]).mean() > 0.95


def test_prediction_times_and_horizons_are_calendar_dates(default: Simulation) -> None:
    truth = default.truth.join(default.lives.select("patient", "start"), on="patient")
    years = pl.col("landmark").str.head(1).cast(pl.Int64)
    ahead = pl.col("horizon").str.head(1).cast(pl.Int64)
    day = pl.col("start").dt.offset_by(pl.format("{}y", years))
    last = (day.dt.offset_by("1d").cast(pl.Datetime("us"))) - pl.duration(microseconds=1)
    exact = (day.dt.offset_by(pl.format("{}y", ahead)) - day).dt.total_days()
    assert truth.select((pl.col("prediction_time") == last).all()).item()
    assert truth.select((pl.col("horizon_days") == exact).all()).item()
    assert truth["horizon_days"].cast(pl.Int64).is_in([365, 366, 1095, 1096, 1826, 1827]).all()


def test_truth_covers_exactly_those_at_risk(default: Simulation) -> None:
    day = pl.col("start").dt.offset_by("2y")
    expected = default.lives.filter((pl.col("end") > day) & (pl.col("death") > day).fill_null(True))
    at_risk = expected.filter((pl.col("known_diabetes") > day).fill_null(True))
    cell = default.truth.filter(pl.col("landmark") == "2y", pl.col("horizon") == "1y")
    assert set(cell.filter(outcome="death")["patient"]) == set(expected["patient"])
    assert set(cell.filter(outcome="diabetes")["patient"]) == set(at_risk["patient"])
    assert at_risk.height < expected.height
