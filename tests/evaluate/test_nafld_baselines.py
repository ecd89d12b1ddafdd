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

OUTCOMES = {
    "diabetes": {"73211009"},
    "cvd": {"22298006", "230690007", "84114007", "414545008", "410429000"},
    "death": set(),
}
MODELS = ("cox_full", "rsf", "xgb_stack", "blend4")
# per cell and model, at five years: AUC, 1,000 times Brier, observed over expected; and the integrated Brier skill
EXPECTED = {
    ("diabetes", 730): [
        (0.7584, 45.00, 0.9880, 0.0350), (0.7622, 44.53, 0.9497, 0.0433),
        (0.7700, 44.73, 0.9677, 0.0396), (0.7728, 44.50, 0.9938, 0.0451),
    ],
    ("diabetes", 1826): [
        (0.7513, 38.62, 0.9893, 0.0340), (0.7574, 38.36, 0.9859, 0.0430),
        (0.7693, 38.30, 0.9693, 0.0431), (0.7752, 38.21, 0.9596, 0.0458),
    ],
    ("cvd", 730): [
        (0.7398, 50.65, 1.0127, 0.0615), (0.7399, 51.05, 0.9468, 0.0538),
        (0.7389, 50.59, 0.9855, 0.0613), (0.7539, 50.31, 1.0031, 0.0665),
    ],
    ("cvd", 1826): [
        (0.7231, 48.06, 0.9745, 0.0408), (0.7124, 47.89, 0.9484, 0.0427),
        (0.7185, 47.46, 0.9723, 0.0492), (0.7293, 47.46, 0.9714, 0.0516),
    ],
    ("death", 730): [
        (0.8878, 39.20, 1.0581, 0.2197), (0.8801, 39.35, 0.9837, 0.2265),
        (0.8908, 38.46, 1.0001, 0.2346), (0.8917, 38.01, 0.9137, 0.2450),
    ],
    ("death", 1826): [
        (0.8594, 50.69, 1.1170, 0.2183), (0.8520, 50.36, 1.0325, 0.2178),
        (0.8679, 49.52, 1.0365, 0.2287), (0.8638, 49.12, 1.0652, 0.2386),
    ],
}  # fmt: skip
HORIZONS = {f"{year}y": 365.25 * year for year in range(1, 9)}


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
    place = {subject: row for row, subject in enumerate(subjects)}

    def observed_until(rows, times):
        """Given on a half-year grid."""
        own = curves[[place[s] for s in rows["subject_id"]]]
        at = np.minimum(times / 365.25, 8) * 2
        left = np.minimum(at.astype(int), 15)
        row = np.arange(len(own))
        return own[row, left] * (1 - at + left) + own[row, left + 1] * (at - left)

    frame = pl.DataFrame({"subject_id": subjects, "prediction_time": [dt.datetime(2007, 1, 1)] * len(subjects)})
    labels = frame.with_columns(
        pl.Series("days", days, dtype=pl.Float64), pl.Series("cause", cause), pl.Series("fold", fold),
        outcome=pl.lit(outcome), landmark=pl.lit(name), at_risk=True,
    )  # fmt: skip
    forecasts = {m: rows_of(np.load(folder / f"{outcome}_{name}_{m}.npz"), "cif", subjects) for m in MODELS}
    tables = {
        model: pl.concat(
            frame.with_columns(
                outcome=pl.lit(outcome), horizon_days=pl.lit(d), probability=pl.Series(p[:, year].clip(0, 1))
            )
            for year, d in enumerate(HORIZONS.values())
        )
        for model, p in forecasts.items()
    }
    found = evaluate_forecasts(tables, labels, HORIZONS, n_bootstrap=20, censoring=observed_until)
    for model, (area, score, ratio, skill) in zip(MODELS, EXPECTED[cell], strict=True):
        row = found.table.filter(model=model, horizon="5y").row(0, named=True)
        assert row["auc"] == pytest.approx(area, abs=1e-3)
        assert 1e3 * row["brier"] == pytest.approx(score, abs=1e-2)
        assert row["observed_expected"] == pytest.approx(ratio, abs=1e-3)
        assert found.overall.filter(model=model)["ibs_skill"][0] == pytest.approx(skill, abs=1e-3)
        assert row["auc_lower"] < row["auc"] < row["auc_upper"]
