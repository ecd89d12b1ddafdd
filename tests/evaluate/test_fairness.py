from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from ehrseq.errors import EvaluationError
from ehrseq.evaluate import evaluate_forecasts
from ehrseq.evaluate.bootstrap import subject_counts
from ehrseq.evaluate.cell import Cell
from ehrseq.evaluate.fairness import adjusted, judge_groups

AT = dt.datetime(2010, 6, 1)
HORIZON = {"3y": 1095.75}


def people(n, seed, gap=1.0):
    """Calibrated forecasts, but `gap` times the incidence in group b of `site`; censoring and competing deaths."""
    random = np.random.default_rng(seed)
    hazard = 2e-4 * np.exp(0.7 * random.normal(size=n))
    belongs = {
        "sex": random.choice(["female", "male"], n),
        "age": random.choice(["under 50", "50 to 64", "65 and over"], n, p=[0.5, 0.3, 0.2]),
        "site": random.choice(["a", "b", "c"], n, p=[0.5, 0.25, 0.25]),
    }

    def incidence(rate):
        return rate / (rate + 1e-4) * -np.expm1(-(rate + 1e-4) * 1095.75)

    forecast = incidence(hazard)
    # the rate that gives the wanted incidence, by bisection
    low, high = hazard * 0.0, hazard * 50
    wanted = forecast * np.where(belongs["site"] == "b", gap, 1.0)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            np.where(incidence(middle) < wanted, middle, low),
            np.where(incidence(middle) < wanted, high, middle),
        )
    times = np.stack([random.uniform(500, 2500, n), random.exponential(1 / high), random.exponential(1 / 1e-4, n)])
    return times.min(0), times.argmin(0).astype(np.int8), forecast, pl.DataFrame(belongs)


def cell_of(days, cause, forecast):
    n = len(days)
    rows = np.arange(n)
    return Cell(days, cause, np.full(n, 1095.75), rows, {"model": forecast}, n, {"model": 0}, rows)


def flags(n, seed, replicates=120, gap=1.0):
    days, cause, forecast, belongs = people(n, seed, gap)
    counts = subject_counts(n, replicates, 7000 + seed)
    _, tests = judge_groups(cell_of(days, cause, forecast), belongs, counts, "model", {})
    return [row for row in adjusted(tests) if row["flagged"]]


def test_false_alarms_are_at_most_one_in_twenty():
    # by the seed, one set with any flag among a hundred where nothing differs
    assert sum(bool(flags(800, seed, 100)) for seed in range(100)) <= 5


def test_a_gap_of_one_and_a_half_is_found_where_it_is():
    found = [flags(6000, seed, gap=1.5) for seed in range(5)]
    sizes, others = [], 0
    for rows in found:
        sizes += [r["difference"] for r in rows if (r["group"], r["question"]) == ("b", "calibration")]
        others += any(r["attribute"] != "site" for r in rows)
    assert len(sizes) == 5  # in every set
    assert np.mean(sizes) == pytest.approx(np.log(1.5), abs=0.06)
    assert others <= 1  # a false alarm in one set of five: rarer than that only on average


def test_a_forecast_that_harms_one_group_is_flagged():
    days, cause, forecast, belongs = people(6000, 1)
    rank = forecast.argsort().argsort()
    wrong = np.where((belongs["site"] == "c").to_numpy(), np.sort(forecast)[::-1][rank], forecast)
    _, tests = judge_groups(cell_of(days, cause, wrong), belongs, subject_counts(6000, 200, 0), "model", {})
    named = {(r["group"], r["question"]) for r in adjusted(tests) if r["flagged"]}
    assert {("c", "usefulness"), ("c", "discrimination")} <= named
    assert ("c", "calibration") not in named  # on average it is right


def test_holm_by_hand():
    rows = adjusted([{"p": p} for p in (0.01, 0.04, 0.03, None, 0.005)])
    assert [r["p_adjusted"] for r in rows] == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        pytest.approx(0.06),
        None,
        0.02,
    ]
    assert [r["flagged"] for r in rows] == [True, False, False, False, True]


def tables(days, cause, forecast):
    n = len(days)
    key = pl.DataFrame({"subject_id": np.arange(n), "prediction_time": [AT] * n, "outcome": ["t2d"] * n})
    labels = key.with_columns(
        pl.Series("days", days), pl.Series("cause", cause), landmark=pl.lit(None, pl.String), at_risk=True
    )
    return labels, key.with_columns(pl.Series("probability", forecast), horizon_days=pl.lit(1095.75))


def test_groups_are_measured_like_a_cohort_of_their_own():
    days, cause, forecast, belongs = people(2000, 3)
    labels, risk = tables(days, cause, forecast)
    groups = belongs.with_columns(labels["subject_id"])
    found = evaluate_forecasts(risk, labels, HORIZON, n_bootstrap=120, groups=groups)
    assert found.groups["attribute"].unique().sort().to_list() == ["age", "sex", "site"]
    for row in found.groups.iter_rows(named=True):
        member = (belongs[row["attribute"]] == row["group"]).to_numpy()
        alone = evaluate_forecasts(
            risk.filter(pl.Series(member)), labels.filter(pl.Series(member)), HORIZON, n_bootstrap=0
        ).table.row(0, named=True)
        for name in ("observed", "observed_expected", "auc"):
            assert row[name] == pytest.approx(alone[name], rel=1e-12)
        assert row["n"] == alone["n"]
        assert row["auc_lower"] < row["auc"] < row["auc_upper"]
    # two tests fewer than groups: the second sex is the first one's rest
    assert found.group_tests.select("attribute", "group").unique().height == 7


def test_small_groups_are_named_and_not_measured():
    days, cause, forecast, belongs = people(1000, 4)
    rare = belongs.select(site=pl.when(pl.int_range(pl.len()) < 49).then(pl.lit("rare")).otherwise(pl.lit("other")))
    labels, risk = tables(days, cause, forecast)
    found = evaluate_forecasts(
        risk, labels, HORIZON, n_bootstrap=120, groups=rare.with_columns(labels["subject_id"])
    )  # fmt: skip
    row = found.groups.filter(group="rare").row(0, named=True)
    assert row["reason"] == "fewer than 50 subjects"
    assert {row[c] for c in ("n", "subjects", "events", "observed", "auc", "net_benefit")} == {None}
    # neither may the others' figures give theirs away by subtraction of a test
    tested = found.group_tests.filter(pl.col("p").is_not_null() & (pl.col("question") != "usefulness"))
    assert tested.height == 0


def test_a_group_without_events_is_an_empty_cell_with_a_reason():
    days, cause, forecast, belongs = people(1000, 5)
    cause = np.where((belongs["site"] == "c").to_numpy(), 0, cause).astype(np.int8)
    labels, risk = tables(days, cause, forecast)
    found = evaluate_forecasts(
        risk, labels, HORIZON, n_bootstrap=120, groups=belongs.with_columns(labels["subject_id"])
    )
    row = found.groups.filter(group="c").row(0, named=True)
    assert (row["observed"], row["auc"], row["reason"]) == (0.0, None, "too few events")
    assert found.group_tests.filter(group="c")["p"].null_count() == 3


def test_unknown_and_repeated_members():
    days, cause, forecast, belongs = people(400, 6)
    labels, risk = tables(days, cause, forecast)
    groups = belongs.select("sex").with_columns(labels["subject_id"])
    found = evaluate_forecasts(risk, labels, HORIZON, n_bootstrap=0, groups=groups[:300])
    assert found.groups.filter(group="unknown")["n"].to_list() == [100]
    with pytest.raises(EvaluationError, match="one row of groups"):
        evaluate_forecasts(risk, labels, HORIZON, groups=pl.concat([groups, groups[:1]]))
