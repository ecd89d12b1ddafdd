"""Out-of-fold forecasts of several baselines on real people, judged with a given conditional censoring model.

The expected numbers come from an independent implementation of the same definitions (pairs within a fold, G clipped at
.05): AUC and Brier score at five years.
"""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import json

import numpy as np
import polars as pl
import pytest

from ehrseq.evaluate import evaluate_forecasts
from ehrseq.evaluate.metrics import auc, brier, censoring_weights, state_at

FIVE_YEARS = 5 * 365.25
OUTCOMES = {
    "diabetes": {"73211009"},
    "cvd": {"22298006", "230690007", "84114007", "414545008", "410429000"},
    "death": set(),
}
MODELS = ("cox_full", "rsf", "xgb_stack", "blend4")
# per cell: AUC and 1,000 times Brier of each model
EXPECTED = {
    ("diabetes", 730): [(0.758, 45.00), (0.762, 44.53), (0.770, 44.73), (0.773, 44.50)],
    ("diabetes", 1826): [(0.751, 38.62), (0.757, 38.36), (0.769, 38.30), (0.775, 38.21)],
    ("cvd", 730): [(0.740, 50.65), (0.740, 51.05), (0.739, 50.59), (0.754, 50.31)],
    ("cvd", 1826): [(0.723, 48.06), (0.712, 47.89), (0.719, 47.46), (0.729, 47.46)],
    ("death", 730): [(0.888, 39.20), (0.880, 39.35), (0.891, 38.46), (0.892, 38.01)],
    ("death", 1826): [(0.859, 50.69), (0.852, 50.36), (0.868, 49.52), (0.864, 49.12)],
}


def records(folder, kind):
    with gzip.open(folder / "nafld_fhir" / f"{kind}.ndjson.gz", "rt") as lines:
        yield from map(json.loads, lines)


def upstream(reference):
    return int(reference.rsplit("nafld-", 1)[1])


def day(text):
    return (dt.date.fromisoformat(text[:10]) - dt.date(2005, 1, 1)).days


@pytest.fixture(scope="module")
def follow_up(data_folder):
    if not (data_folder / "nafld_baselines").is_dir():
        pytest.skip("needs nafld_baselines")
    end = {
        upstream(r["individual"]["reference"]): day(r["period"]["end"]) for r in records(data_folder, "ResearchSubject")
    }
    dead = {upstream(p["id"]) for p in records(data_folder, "Patient") if "deceasedDateTime" in p}
    onset: dict[str, dict[int, int]] = {outcome: {} for outcome in OUTCOMES}
    for condition in records(data_folder, "Condition"):
        subject, when = upstream(condition["subject"]["reference"]), day(condition["onsetDateTime"])
        for outcome, codes in OUTCOMES.items():
            if condition["code"]["coding"][0]["code"] in codes:
                onset[outcome][subject] = min(when, onset[outcome].get(subject, when))
    return end, dead, onset


def at_risk(follow_up, outcome, landmark):
    """Subject ids with days and cause from the landmark, those already ill or no longer followed left out."""
    end, dead, onset = follow_up
    rows = []
    for subject, last in end.items():
        first = onset[outcome].get(subject)
        if last > landmark and (first is None or first > landmark):
            died = 1 if outcome == "death" else 2
            rows.append(
                (subject, last - landmark, died * (subject in dead))
                if first is None
                else (subject, first - landmark, 1)
            )
    return (np.array(column) for column in zip(*rows, strict=True))


def rows_of(archive, name, subjects):
    position = {subject: row for row, subject in enumerate(archive["id"])}
    return archive[name].astype(float)[[position[s] for s in subjects]]


@pytest.mark.parametrize("cell", EXPECTED, ids=lambda cell: f"{cell[0]}-{cell[1]}")
def test_shipped_baselines_give_the_expected_figures(data_folder, follow_up, cell):
    outcome, landmark = cell
    folder, name = data_folder / "nafld_baselines", f"L{2 if landmark == 730 else 5}"
    subjects, days, cause = at_risk(follow_up, outcome, landmark)
    fold = np.array([int(hashlib.sha256(str(s).encode()).hexdigest()[:8], 16) % 100 // 20 for s in subjects])
    curves = rows_of(np.load(folder / f"G_{name}.npz"), "G", subjects).clip(0.05, 1)

    def observed_until(times):
        return np.array([np.interp(t, np.arange(17) / 2, g) for t, g in zip(times / 365.25, curves, strict=True)])

    state = state_at(days, cause, FIVE_YEARS)
    weights = censoring_weights(state, observed_until(days), observed_until(np.full(len(days), FIVE_YEARS)))
    forecasts = {m: rows_of(np.load(folder / f"{outcome}_{name}_{m}.npz"), "cif", subjects)[:, 4] for m in MODELS}
    for (model, forecast), (expected_auc, expected_brier) in zip(forecasts.items(), EXPECTED[cell], strict=True):
        assert float(auc(forecast, state.case, weights, fold)) == pytest.approx(expected_auc, abs=6e-4), model
        assert 1e3 * float(brier(forecast, state.case, weights)) == pytest.approx(expected_brier, abs=6e-3), model

    key = {"subject_id": subjects, "prediction_time": [dt.datetime(2007, 1, 1)] * len(subjects)}
    frame = pl.DataFrame(key).with_columns(outcome=pl.lit(outcome))
    labels = frame.with_columns(
        landmark=pl.lit(name), at_risk=True, days=pl.Series(days, dtype=pl.Float64), cause=pl.Series(cause)
    )
    tables = {
        model: frame.with_columns(horizon_days=pl.lit(FIVE_YEARS), probability=pl.Series(p.clip(0, 1)))
        for model, p in forecasts.items()
    }
    table = evaluate_forecasts(
        tables, labels, {"5y": FIVE_YEARS}, n_bootstrap=20, censoring=lambda rows, times: observed_until(times)
    ).table
    expected = [figures[1] for figures in EXPECTED[cell]]
    np.testing.assert_allclose(1e3 * table["brier"].to_numpy(), expected, atol=6e-3)
    # pairs across folds count too here
    np.testing.assert_allclose(table["auc"].to_numpy(), [figures[0] for figures in EXPECTED[cell]], atol=0.01)
    assert table["observed_expected"].is_between(0.85, 1.15).all()
