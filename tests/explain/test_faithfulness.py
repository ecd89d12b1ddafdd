"""The measures of faithfulness, on scorings whose truth is known, and on a small model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ehrseq.errors import ForecastError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.explain.explanation import trust
from ehrseq.explain.faithfulness import (
    curve_gains,
    figures,
    mean_with_interval,
    precision_first,
    rank_agreement,
    ranked_events,
    removal_curves,
)
from ehrseq.explain.occlusion import occlude
from ehrseq.explain.randomise import randomised
from ehrseq.timeline.store import Timelines
from tests.toy import CONFIG, TASK, cohort, day

AT = day(1000)
WEIGHTS = {"LOINC//a": 0.03, "LOINC//b": -0.02, "RXNORM//x": 0.01, "ICD10CM//y": 0.0, "ICD10CM//z": 0.005}


@pytest.fixture(scope="module")
def timelines():
    return cohort(80)


@pytest.fixture(scope="module")
def queries(timelines):
    return timelines.subjects.select("subject_id", "patient", prediction_time=pl.lit(AT), outcome=pl.lit("x"))


def score(made: Timelines, rows: pl.DataFrame) -> pl.DataFrame:
    """A risk that adds up over the events: contributions are exactly the weights."""
    weight = pl.col("code").replace_strict(WEIGHTS, default=0.0, return_dtype=pl.Float64)
    total = made.events.group_by("subject_id").agg(probability=0.3 + weight.sum())
    return rows.join(total, on="subject_id", how="left", maintain_order="left").with_columns(
        pl.col("probability").fill_null(0.3), horizon=pl.lit("1y"), horizon_days=pl.lit(365.0)
    )


@pytest.fixture(scope="module")
def contributions(timelines, queries):
    return occlude(timelines, queries, score, demographics=())[0]


def test_curves_start_and_end_where_they_must_and_follow_the_order(timelines, queries, contributions):
    curves = removal_curves(timelines, queries, contributions, score)
    issued = contributions.select("subject_id", "probability").unique()
    ends = curves.join(issued, on="subject_id")
    np.testing.assert_allclose(*ends.filter(step=0).select("deletion", "probability").to_numpy().T, atol=1e-12)
    np.testing.assert_allclose(*ends.filter(step=10).select("insertion", "probability").to_numpy().T, atol=1e-12)
    assert np.allclose(ends.filter(step=0)["insertion"], 0.3)
    assert np.allclose(ends.filter(step=10)["deletion"], 0.3)
    # by hand: the risk after the k largest weights are gone
    one = curves.filter(pl.col("order") == "explanation", pl.col("subject_id") == 3).sort("step")
    weights = sorted(contributions.filter(kind="event", subject_id=3)["contribution"], reverse=True)
    first = [int(len(weights) * s / 10 + 0.5) for s in range(11)]
    np.testing.assert_allclose(one["deletion"], [0.3 + sum(weights[k:]) for k in first], atol=1e-9)
    total = 0.3 + sum(weights)
    assert one["deletion"][0] == pytest.approx(total)
    gains = curve_gains(curves)
    assert (gains.select("deletion", "insertion").to_numpy() >= -1e-9).all()  # nothing beats the true order
    assert gains["deletion"].mean() > 0.01


def test_an_order_from_noise_gains_nothing(timelines, queries, contributions):
    """The control: contributions that were shuffled are as good as random."""
    events = contributions.filter(kind="event").with_columns(
        contribution=pl.Series(np.random.default_rng(1).random(contributions.filter(kind="event").height))
    )
    gains = curve_gains(removal_curves(timelines, queries, events, score))
    found = mean_with_interval(gains["deletion"], gains["subject_id"])
    assert found["lower"] < 0 < found["upper"]


def test_events_that_were_not_taken_out_one_by_one_stay(timelines, queries):
    table, _ = occlude(timelines, queries, score, kinds=("event",), recent_events=2)
    curves = removal_curves(timelines, queries, table, score)
    last = curves.filter(pl.col("order") == "explanation", pl.col("step") == 10).join(
        table.group_by("subject_id").agg(pl.col("contribution").sum(), pl.col("probability").first()), on="subject_id"
    )
    np.testing.assert_allclose(last["deletion"], last["probability"] - last["contribution"], atol=1e-12)


def test_agreement_of_equal_opposite_and_unrelated_contributions(contributions):
    opposite = contributions.with_columns(-pl.col("contribution"))
    same = rank_agreement([contributions, contributions])["correlation"].drop_nulls()
    assert np.allclose(same, 1)
    assert np.allclose(rank_agreement([contributions, opposite])["correlation"].drop_nulls(), -1)
    noise = contributions.with_columns(contribution=pl.Series(np.random.default_rng(0).random(contributions.height)))
    assert abs(rank_agreement([contributions, noise])["correlation"].mean()) < 0.15
    three = rank_agreement([contributions, contributions, opposite])["correlation"].drop_nulls()
    assert np.allclose(three, -1 / 3)  # one pair agrees, two do not


def test_precision_counts_causes_among_the_events_that_raise_most(contributions):
    found = precision_first(contributions, {"x": ["LOINC//a"]}, by_code=False)
    assert (found["precision"] == 1).all()  # the largest weight there is
    assert (found["at_random"] < 1).any()
    assert (found["causes"] > 0).all()
    none = precision_first(contributions, {"x": ["LOINC//b"]}, by_code=False)
    none = none.filter(pl.col("events") >= pl.col("causes") + 5)
    assert (none["precision"] == 0).all()  # they lower it
    assert none.height > 5


def test_by_code_the_events_of_the_heaviest_code_come_first(contributions):
    ranked = ranked_events(contributions, by_code=True)
    codes = contributions.filter(kind="code").select("subject_id", "code", whole="contribution")
    first = ranked.filter(rank=1).join(codes, on=["subject_id", "code"])
    most = codes.group_by("subject_id").agg(pl.col("whole").max().alias("most"))
    both = first.join(most, on="subject_id")
    assert both.height > 50
    np.testing.assert_allclose(both["whole"], both["most"], atol=1e-12)
    assert ranked.group_by("subject_id").agg(pl.col("rank").max() == pl.len())["rank"].all()


def test_a_model_is_measured_and_the_figures_travel(tmp_path):
    timelines = cohort()
    model = ProgressionModel(replace(CONFIG, model="boosted")).fit(timelines, TASK)
    assert model.faithfulness_ is None
    measured = model.check_faithfulness(timelines, n=30)
    assert measured == model.faithfulness_ == model.check_faithfulness(timelines, n=30)  # the same seed
    assert set(measured["gates"]) == {"deletion", "insertion", "randomised weights"}
    assert set(measured["curves"]) == {"illness", "death"}
    held_out = ~model.seen_in_training(timelines.subjects["subject_id"].to_numpy())
    assert 0 < measured["randomised_weights"]["people"] <= held_out.sum()
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.faithfulness_ == measured
    name = model.forecast(timelines, AT).risk["patient"][0]
    assert loaded.explain(timelines, AT, patient=name, kinds=["code"]).notes[-1] == trust(measured)
    assert model.evaluate(timelines, n_bootstrap=0).facts["faithfulness"] == measured


def test_what_cannot_be_measured_does_not_pass():
    nothing = pl.DataFrame(schema={"subject_id": pl.Int64, "value": pl.Float64})
    assert mean_with_interval(nothing["value"], nothing["subject_id"])["mean"] is None
    gains = pl.DataFrame(
        {"subject_id": range(20), "outcome": "x", "horizon": "1y", "deletion": [0.1, 0.2] * 10,
         "insertion": [-0.1, 0.1] * 10}
    )  # fmt: skip
    unknown = pl.DataFrame(
        {"subject_id": range(20), "correlation": [None] * 20}, {"subject_id": pl.Int64, "correlation": pl.Float64}
    )
    gates = figures(gains, unknown)["gates"]
    assert gates == {"deletion": "passed", "insertion": "failed", "randomised weights": "failed"}
    for correlation, verdict in ((0.05, "passed"), (0.9, "failed"), (-0.9, "failed")):
        agreement = unknown.with_columns(correlation=pl.lit(correlation))
        assert figures(gains, agreement)["gates"]["randomised weights"] == verdict
    assert set(figures(gains.clear(), unknown)["gates"].values()) == {"failed"}
    # one person fewer, whatever the figures, is too few
    few = figures(gains.head(19), unknown.head(19).with_columns(correlation=pl.lit(0.05)))
    assert set(few["gates"].values()) == {"failed"}
    assert few["curves"]["x"]["deletion"]["lower"] > 0
    timelines = cohort()
    model = ProgressionModel(replace(CONFIG, model="age_sex")).fit(timelines, TASK)
    with pytest.raises(ForecastError, match="a model that reads events; found the branch 'age_sex'"):
        model.check_faithfulness(timelines)


def test_below_the_gate_the_explanation_says_so():
    missed = {"gates": {"deletion": "passed", "insertion": "failed", "randomised weights": "passed"}}
    assert trust(missed) == "below the faithfulness gate (insertion): do not rely on these explanations"
    passed = {"gates": dict.fromkeys(missed["gates"], "passed")}
    assert trust(passed) == "the faithfulness gate was passed (deletion, insertion, randomised weights)"


@pytest.mark.parametrize("kind", ["hybrid", "cox"])
def test_random_weights_change_every_branch_and_leave_the_model_alone(kind):
    timelines = cohort()
    model = ProgressionModel(replace(CONFIG, model=kind)).fit(timelines, TASK)
    before = {b: model.forecast(timelines, AT, branch=b).risk for b in model.fitted_.branches}
    kept, model.fitted_ = model.fitted_, randomised(model.fitted_)
    for branch, risk in before.items():
        other = model.forecast(timelines, AT, branch=branch).risk
        assert (other["probability"] - risk["probability"]).abs().max() > 1e-4, branch
    model.fitted_ = kept
    for branch, risk in before.items():
        assert model.forecast(timelines, AT, branch=branch).risk.equals(risk)


def test_what_was_measured_of_one_branch_is_not_told_of_another():
    timelines = cohort()
    model = ProgressionModel(replace(CONFIG, model="boosted")).fit(timelines, TASK)
    measured = model.check_faithfulness(timelines, n=10)
    assert measured["branch"] == "boosted"
    name = model.forecast(timelines, AT).risk["patient"][0]
    notes = {
        b: model.explain(timelines, AT, patient=name, kinds=["code"], branch=b).notes for b in ("boosted", "age_sex")
    }
    assert notes["boosted"][-1] == trust(measured)
    assert notes["age_sex"][-1] == trust(None)
