from __future__ import annotations

import datetime as dt
import json
import math

import numpy as np
import polars as pl
import pytest

from ehrseq.errors import EvaluationError
from ehrseq.evaluate import evaluate_forecasts
from ehrseq.evaluate.metrics import auc, brier, censoring_weights, state_at
from ehrseq.storage import read_manifest
from ehrseq.survival import aalen_johansen, kaplan_meier_censoring

HORIZONS = {"1y": 365.25, "3y": 1095.75}
AT = dt.datetime(2010, 6, 1, 23, 59, 59, 999999)


def simulate(n=1500, seed=0, subjects=None):
    """Constant hazards that depend on a known score: the true cumulative incidences are closed forms."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n)
    outcome_hazard, competing_hazard = 3e-4 * np.exp(score), 2e-4 * np.exp(0.5 * score)
    times = np.stack(
        [
            rng.uniform(300, 3000, n),
            rng.exponential(1 / outcome_hazard),
            rng.exponential(1 / competing_hazard),
        ]
    )
    subject = np.arange(n) if subjects is None else subjects
    total = outcome_hazard + competing_hazard
    labels = pl.DataFrame(
        {
            "subject_id": subject,
            "prediction_time": [AT + dt.timedelta(days=int(d)) for d in np.arange(n) * (subjects is not None)],
            "landmark": pl.Series([None] * n, dtype=pl.String),
            "outcome": "t2d",
            "at_risk": True,
            "days": times.min(0),
            "cause": pl.Series(times.argmin(0), dtype=pl.Int8),
        }
    )
    truth = {t: outcome_hazard / total * -np.expm1(-total * t) for t in (365.0, 1096.0)}
    return labels, truth


def table(labels, probabilities):
    parts = [
        labels.select("subject_id", "prediction_time", "outcome").with_columns(
            horizon_days=pl.lit(days), probability=pl.Series(np.asarray(p))
        )
        for days, p in probabilities.items()
    ]
    return pl.concat(parts)


def test_the_truth_is_calibrated_and_beats_a_constant():
    labels, truth = simulate()
    constant = {t: np.full(len(p), p.mean()) for t, p in truth.items()}
    risks = {"truth": table(labels, truth), "constant": table(labels, constant)}
    found = evaluate_forecasts(risks, labels, HORIZONS, n_bootstrap=100)
    for row in found.table.filter(model="truth").iter_rows(named=True):
        assert row["observed_expected_lower"] < 1 < row["observed_expected_upper"]
        assert row["observed_lower"] < row["observed"] < row["observed_upper"]
        assert row["mean_predicted_lower"] < row["mean_predicted"] < row["mean_predicted_upper"]
        assert row["auc_lower"] > 0.6
        assert row["scaled_brier_lower"] > 0
    for row in found.table.filter(model="constant").iter_rows(named=True):
        assert (row["auc"], row["auc_lower"], row["auc_upper"]) == (0.5, 0.5, 0.5)
        assert abs(row["scaled_brier"]) < 0.01
    gap = found.differences.filter(measure="brier", horizon="3y").row(0, named=True)
    assert (gap["model"], gap["against"]) == ("truth", "constant")
    assert gap["upper"] < 0


def test_estimates_are_those_of_the_functions():
    labels, truth = simulate(400)
    # whole months, so that events and censoring share days
    labels = labels.with_columns(days=(pl.col("days") / 30).ceil() * 30)
    found = evaluate_forecasts(table(labels, truth), labels, HORIZONS, n_bootstrap=0)
    days, cause = labels["days"].to_numpy(), labels["cause"].to_numpy()
    for horizon, (t, p) in zip(HORIZONS, truth.items(), strict=True):
        row = found.table.filter(horizon=horizon).row(0, named=True)
        state = state_at(days, cause, t)
        own = kaplan_meier_censoring(days, cause, at=days)
        weights = censoring_weights(state, own, kaplan_meier_censoring(days, cause, at=[t])[0])
        observed = aalen_johansen(days, cause, at=[t])[0][0]
        assert row["auc"] == pytest.approx(float(auc(p, state.case, weights)), rel=1e-12)
        assert row["brier"] == pytest.approx(float(brier(p, state.case, weights)), rel=1e-12)
        assert row["observed"] == pytest.approx(observed, rel=1e-12)
        assert row["mean_predicted"] == pytest.approx(p.mean(), rel=1e-12)
        assert row["observed_expected"] == pytest.approx(observed / p.mean(), rel=1e-12)
        assert row["auc_lower"] is None
        assert row["events"] == ((cause == 1) & (days <= t)).sum()
        assert row["competing"] == ((cause == 2) & (days <= t)).sum()
        assert row["censored"] == ((cause == 0) & (days < t)).sum()


def test_shuffled_labels_give_chance_and_perfect_scores_one():
    labels, truth = simulate(1200, seed=4)
    shuffled = labels.with_columns(
        pl.Series("days", labels["days"].sample(fraction=1, shuffle=True, seed=1)),
        pl.Series("cause", labels["cause"].sample(fraction=1, shuffle=True, seed=1)),
    )
    assert not shuffled["days"].equals(labels["days"])
    for row in evaluate_forecasts(table(labels, truth), shuffled, HORIZONS).table.iter_rows(named=True):
        assert row["auc_lower"] < 0.5 < row["auc_upper"]
    case = ((labels["cause"] == 1) & (labels["days"] <= 365)).cast(pl.Float64).to_numpy()
    perfect = evaluate_forecasts(table(labels, {365.0: case}), labels, {"1y": 365.25}).table.row(0, named=True)
    assert (perfect["auc"], perfect["brier"], perfect["scaled_brier"]) == (1.0, 0.0, 1.0)


def test_interval_covers_the_spread_over_samples():
    errors, widths = [], []
    for seed in range(12):
        labels, truth = simulate(400, seed=100 + seed)
        risk = table(labels, {1096.0: truth[1096.0]})
        row = evaluate_forecasts(risk, labels, {"3y": 1095.75}, n_bootstrap=60).table.row(0, named=True)
        errors.append(row["auc"])
        widths.append((row["auc_upper"] - row["auc_lower"]) / 3.92)
    assert 0.5 < np.std(errors, ddof=1) / np.mean(widths) < 2.0


def test_rows_of_one_subject_are_drawn_together():
    labels, truth = simulate(300, seed=6)
    one = evaluate_forecasts(table(labels, truth), labels, HORIZONS, seed=3).table
    # every subject four times, under other prediction times: the information is that of one copy
    copies = [labels.with_columns(pl.col("prediction_time") + pl.duration(days=d)) for d in range(4)]
    many = pl.concat(copies)
    risk = pl.concat([table(c, truth) for c in copies])
    four = evaluate_forecasts(risk, many, HORIZONS, seed=3).table
    for name in ("auc_lower", "auc_upper", "observed_lower", "brier_upper", "auc", "observed"):
        np.testing.assert_allclose(four[name].to_numpy(), one[name].to_numpy(), rtol=1e-9)
    assert four["n"].to_list() == [1200, 1200]
    assert four["subjects"].to_list() == [300, 300]


def test_row_order_changes_nothing_and_the_seed_decides():
    labels, truth = simulate(300)
    risk = table(labels, truth)
    first = evaluate_forecasts(risk, labels, HORIZONS, n_bootstrap=20)
    again = evaluate_forecasts(risk.reverse(), labels.reverse(), HORIZONS, n_bootstrap=20)
    numbers = [c for c, kind in first.table.schema.items() if kind == pl.Float64]
    np.testing.assert_allclose(
        first.table.select(numbers).to_numpy(), again.table.select(numbers).to_numpy(), rtol=1e-9
    )
    assert evaluate_forecasts(risk, labels, HORIZONS, n_bootstrap=20).to_json() == first.to_json()
    other = evaluate_forecasts(risk, labels, HORIZONS, n_bootstrap=20, seed=1)
    assert other.table["auc_lower"].to_list() != first.table["auc_lower"].to_list()


def test_unscored_rows_are_counted_and_all_models_judged_on_the_same():
    labels, truth = simulate(400)
    full, partial = table(labels, truth), table(labels, truth).filter(pl.col("subject_id") >= 50)
    found = evaluate_forecasts({"full": full, "partial": partial}, labels, HORIZONS, n_bootstrap=10)
    assert found.table.filter(model="full")["unscored"].to_list() == [0, 0]
    assert found.table.filter(model="partial")["unscored"].to_list() == [50, 50]
    assert found.table["n"].unique().to_list() == [350]
    assert found.table["at_risk"].unique().to_list() == [400]
    assert set(found.differences["difference"]) == {0.0}
    assert "partial: up to 50 rows at risk unscored" in found.summary()


def test_rows_not_at_risk_do_not_count():
    labels, truth = simulate(400)
    marked = labels.with_columns(
        at_risk=pl.col("subject_id") >= 100,
        days=pl.when(pl.col("subject_id") >= 100).then("days"),
        cause=pl.when(pl.col("subject_id") >= 100).then("cause"),
    )
    kept = labels.filter(pl.col("subject_id") >= 100)
    risk = table(labels, truth)
    first = evaluate_forecasts(risk, marked, HORIZONS, n_bootstrap=5)
    second = evaluate_forecasts(risk, kept, HORIZONS, n_bootstrap=5)
    assert first.facts == {}
    assert second.facts == {"forecasts_of_nobody_in_the_labels": {"model": 200}}
    assert first.to_dict() | {"facts": 0} == second.to_dict() | {"facts": 0}


def test_landmarks_and_outcomes_are_judged_apart():
    first, truth = simulate(300, seed=1)
    second, other = simulate(300, seed=2)
    labels = pl.concat(
        [
            first.with_columns(landmark=pl.lit("2y")),
            second.with_columns(landmark=pl.lit("5y"), prediction_time=AT + dt.timedelta(days=1096)),
        ]
    )
    risk = pl.concat([table(labels[:300], truth), table(labels[300:], other)])
    found = evaluate_forecasts(risk, labels, HORIZONS, n_bootstrap=0).table
    assert found.select("landmark", "horizon").rows() == [("2y", "1y"), ("2y", "3y"), ("5y", "1y"), ("5y", "3y")]
    alone = evaluate_forecasts(risk, labels[300:], HORIZONS, n_bootstrap=0).table
    assert found[2:].equals(alone)


def test_given_censoring_probabilities_are_used():
    labels, truth = simulate(300)
    days, cause = labels["days"].to_numpy(), labels["cause"].to_numpy()

    def uniform(rows, times):
        assert rows["subject_id"].to_list() == list(range(300))
        return np.clip((3000 - times) / 2700, 0, 1)

    row = evaluate_forecasts(table(labels, truth), labels, HORIZONS, n_bootstrap=5, censoring=uniform).table.row(
        1, named=True
    )
    state = state_at(days, cause, 1096.0)
    weights = censoring_weights(state, uniform(labels, days), uniform(labels, np.full(300, 1096.0)))
    assert row["auc"] == pytest.approx(float(auc(truth[1096.0], state.case, weights)), rel=1e-12)
    with pytest.raises(EvaluationError, match="censoring function"):
        evaluate_forecasts(table(labels, truth), labels, HORIZONS, censoring=lambda rows, times: times)


@pytest.mark.parametrize(
    ("change", "expected", "undefined"),
    [
        ({"cause": 0}, "fewer than 5 events (0)", ["auc", "brier", "scaled_brier", "observed_expected"]),
        ({"days": 100.0, "cause": 0}, "follow-up ends", ["auc", "brier", "observed", "observed_expected"]),
        ({"days": 100.0, "cause": 1}, "no controls", ["auc", "scaled_brier"]),
    ],
)
def test_what_is_not_defined_is_null_with_a_reason(change, expected, undefined, tmp_path):
    labels, truth = simulate(60)
    labels = labels.with_columns(**{k: pl.lit(v) for k, v in change.items()})
    risks = {"a": table(labels, truth), "b": table(labels, truth)}
    found = evaluate_forecasts(risks, labels, HORIZONS, n_bootstrap=10)
    for row in found.table.iter_rows(named=True):
        assert expected in row["reason"]
        for name in undefined:
            assert row[name] is None
            assert row[f"{name}_lower"] is None
        assert row["mean_predicted"] is not None
    differences = found.differences.filter(measure="auc")
    assert differences["difference"].to_list() == [None, None]
    assert expected in differences["reason"][0]
    assert "NaN" not in found.to_json()
    assert expected.removesuffix(" (0)") in found.summary()  # which leaves out the counts


def test_competing_events_are_controls():
    labels, truth = simulate(60)
    labels = labels.with_columns(days=pl.lit(100.0), cause=pl.Series([1, 2] * 30, dtype=pl.Int8))
    row = evaluate_forecasts(table(labels, truth), labels, HORIZONS, n_bootstrap=0).table.row(0, named=True)
    case = labels["cause"].to_numpy() == 1
    assert row["reason"] is None
    assert row["auc"] == pytest.approx(float(auc(truth[365.0], case, np.ones(60))), rel=1e-12)


def test_nothing_scored_or_at_risk_is_said():
    labels, truth = simulate(60)
    risk = table(labels, truth)
    found = evaluate_forecasts(risk.with_columns(outcome=pl.lit("ckd")), labels, HORIZONS)
    assert found.table["n"].to_list() == [0, 0]
    assert found.table["unscored"].to_list() == [60, 60]
    assert "no row at risk was scored" in found.table["reason"][0]
    nobody = evaluate_forecasts(risk, labels.with_columns(at_risk=False), HORIZONS)
    assert len(nobody.table) == 0
    assert nobody.summary()
    assert json.loads(nobody.to_json())["table"] == []


def test_everyone_censored_at_the_horizon_is_observed_to_it():
    # a data cut exactly one horizon after a common prediction date
    labels, truth = simulate(300)
    cut = labels.with_columns(
        cause=pl.when(pl.col("days") > 365).then(0).otherwise("cause").cast(pl.Int8),
        days=pl.col("days").clip(upper_bound=365.0),
    )
    risk = table(labels, {365.0: truth[365.0]})
    short = evaluate_forecasts(risk, cut, {"1y": 365.25}, n_bootstrap=0).table
    whole = evaluate_forecasts(risk, labels, {"1y": 365.25}, n_bootstrap=0).table
    for name in ("auc", "brier", "observed", "events", "censored"):
        assert short[name][0] == pytest.approx(whole[name][0], rel=1e-12)


def test_saved_json_has_no_nan(tmp_path):
    labels, truth = simulate(60)
    found = evaluate_forecasts(table(labels, truth), labels, HORIZONS, n_bootstrap=10)
    found.save(tmp_path / "report")
    read_manifest(tmp_path / "report", "evaluation", 2)
    content = json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["table"][0]["n"] == 60
    assert content["horizons"] == HORIZONS
    assert math.isclose(content["table"][0]["observed"], found.table["observed"][0])


def test_summary_is_a_table():
    labels, truth = simulate(200)
    text = evaluate_forecasts(
        {"hybrid": table(labels, truth), "null": table(labels, truth)}, labels, HORIZONS, n_bootstrap=10
    ).summary()
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["model", "outcome", "landmark", "horizon"]
    assert lines[1].startswith("hybrid")
    # of the paired differences the terminal shows the AUC's alone, one line a cell
    at = next(i for i, line in enumerate(lines) if "AUC of hybrid minus null (95%)" in line)
    assert len(lines) == at + 1 + len(HORIZONS)
    assert lines[at + 1].split()[0] == lines[1].split()[1]


def test_a_fold_of_one_class():
    labels, truth = simulate(400, seed=8)
    risk = table(labels, truth)
    case = ((labels["cause"] == 1) & (labels["days"] <= 365)).to_numpy()
    # fold 2 has no case by one year; the others have both
    mixed = labels.with_columns(fold=pl.Series(np.where(~case & (np.arange(400) % 3 == 0), 2, np.arange(400) % 2)))
    found = evaluate_forecasts(risk, mixed, {"1y": 365.25, "3y": 1095.75}, n_bootstrap=20)
    state = state_at(labels["days"], labels["cause"], 365.0)
    weights = censoring_weights(
        state, kaplan_meier_censoring(labels["days"], labels["cause"], at=labels["days"]),
        kaplan_meier_censoring(labels["days"], labels["cause"], at=[365.0])[0],
    )  # fmt: skip
    keep = mixed["fold"].to_numpy() < 2
    expected = auc(truth[365.0][keep], case[keep], weights[keep], mixed["fold"].to_numpy()[keep])
    assert found.table.filter(horizon="1y")["auc"][0] == pytest.approx(float(expected), rel=1e-12)
    # every fold of one class: no pair, and a reason
    apart = evaluate_forecasts(risk, labels.with_columns(fold=pl.Series(case.astype(int))), HORIZONS, n_bootstrap=20)
    row = apart.table.filter(horizon="1y").row(0, named=True)
    assert (row["auc"], row["auc_lower"]) == (None, None)
    assert "no fold has both events and others: auc" in row["reason"]
    assert row["brier"] is not None
    assert "NaN" not in apart.to_json()


def test_the_mean_over_outcomes_is_that_of_the_differences():
    first, truth = simulate(500, seed=1)
    second, other = simulate(500, seed=2)
    labels = pl.concat([first, second.with_columns(outcome=pl.lit("death"))])
    noise = np.random.default_rng(0).random(500)
    tables = {
        name: pl.concat([
            table(first, {1096.0: truth[1096.0] if name == "a" else noise / 2}),
            table(second, {1096.0: other[1096.0] if name == "a" else noise / 2}).with_columns(outcome=pl.lit("death")),
        ])
        for name in "ab"
    }  # fmt: skip
    found = evaluate_forecasts(tables, labels, {"3y": 1095.75}, n_bootstrap=200)
    for row in found.macro.iter_rows(named=True):
        each = found.differences.filter(measure=row["measure"], horizon="3y")
        assert row["places"] == each.height == 2
        assert row["difference"] == pytest.approx(each["difference"].mean(), abs=1e-12)
        assert row["lower"] < row["difference"] < row["upper"]
        # two outcomes of the same people together are known better than each
        assert row["upper"] - row["lower"] < (each["upper"] - each["lower"]).mean()
    assert set(found.macro["measure"]) == {"auc", "brier"}


def test_bad_arguments():
    labels, truth = simulate(60)
    risk = table(labels, truth)
    for arguments, expected in [
        ((risk, labels, {}), "horizons in days"),
        (({}, labels, HORIZONS), "at least one"),
        ((risk, labels.drop("cause"), HORIZONS), "no cause"),
        ((risk, labels, {"2y": 730.5}), "other horizons"),
    ]:
        with pytest.raises(EvaluationError, match=expected):
            evaluate_forecasts(*arguments)
    with pytest.raises(EvaluationError, match="replicates"):
        evaluate_forecasts(risk, labels, HORIZONS, n_bootstrap=-1)
