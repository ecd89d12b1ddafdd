"""Occlusion is what the model says of the edited history, for every branch, and of nothing but what was visible."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from ehrseq.errors import ForecastError, TaskError, TimelineError, UserError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.explain.occlusion import CONTRIBUTION_SCHEMA, SCOPE_SCHEMA, WINDOWS, occlude
from ehrseq.timeline.store import Timelines
from tests.toy import CONFIG, TASK, append, cohort, day

AT = day(1000)
EXACT = 1e-7  # float32 rounding of the network, in different company
BRANCHES = ("hybrid", "transformer", "boosted", "age_sex", "null")
KEY = ["subject_id", "prediction_time", "outcome", "horizon_days"]


@pytest.fixture(scope="module")
def timelines():
    return cohort()


@pytest.fixture(scope="module")
def model(timelines):
    return ProgressionModel(CONFIG).fit(timelines, TASK)


@pytest.fixture(scope="module")
def scored(model, timelines):
    """Patients with a history, who are scored for both outcomes."""
    risk = model.forecast(timelines, AT).risk
    both = risk.group_by("patient").agg(pl.col("outcome").n_unique(), pl.col("subject_id").first())
    return both.filter(pl.col("outcome") == 2).sort("subject_id")["patient"].to_list()


@pytest.fixture(scope="module")
def explanation(model, timelines, scored):
    return model.explain(timelines, AT, patient=scored[:4])


def without(timelines: Timelines, rows: pl.Expr) -> Timelines:
    """The timelines without some events, taken out by hand."""
    return replace(timelines, events=timelines.events.filter(~rows.fill_null(False)))


def risks(table: pl.DataFrame) -> list[float]:
    return table.sort("outcome", "horizon_days")["probability"].to_list()


@pytest.mark.parametrize("branch", BRANCHES)
def test_each_kind_equals_the_forecast_of_a_timeline_edited_by_hand(model, timelines, scored, branch):
    name = scored[0]
    subject = timelines.subject_ids([name])[0]
    table = model.explain(timelines, AT, patient=name, branch=branch).contributions
    assert set(table["kind"]) == {"event", "code", "window"}
    forecast = model.forecast(timelines.select([subject]), AT, branch=branch).risk
    mine = pl.col("subject_id") == subject
    age = (pl.lit(AT) - pl.col("known_time")).dt.total_days()
    for item, rows in table.group_by("kind", "code", "window", "time", "known_time", maintain_order=True):
        kind, code, window, time, known = item
        if code is not None and code.startswith("SEX//"):
            edited = replace(timelines, subjects=timelines.subjects.with_columns(sex=pl.lit(None, pl.String)))
        elif kind == "event":
            gone = (pl.col("code") == code) & (pl.col("time") == time) & (pl.col("known_time") == known)
            edited = without(timelines, mine & gone)
        elif kind == "code":
            edited = without(timelines, mine & (pl.col("code") == code))
        else:
            low, high = ((0, 90), (90, 365), (365, 1826), (1826, 9**9))[WINDOWS.index(window)]
            edited = without(timelines, mine & (age >= low) & (age < high) & (pl.col("code") != "MEDS_BIRTH"))
        hand = model.forecast(replace(edited).select([subject]), AT, branch=branch).risk
        np.testing.assert_allclose(
            rows.sort("outcome", "horizon_days")["without"].to_list(), risks(hand), atol=EXACT, rtol=0
        )
        np.testing.assert_allclose(
            rows.sort("outcome", "horizon_days")["probability"].to_list(), risks(forecast), atol=EXACT, rtol=0
        )
    np.testing.assert_array_equal(table["contribution"], table["probability"] - table["without"])
    if branch in ("age_sex", "null"):
        events = table.filter(~pl.col("code").fill_null("").str.starts_with("SEX//"))
        assert (events["contribution"] == 0).all()
    else:
        assert (table["contribution"].abs() > 1e-5).any()


def test_the_cox_branch_is_explained_by_its_own_path(timelines):
    model = ProgressionModel(replace(CONFIG, model="cox")).fit(timelines, TASK)
    name = model.forecast(timelines, AT).risk["patient"][0]
    explanation = model.explain(timelines, AT, patient=name, kinds=["code"])
    assert explanation.branch == "cox"
    code = explanation.contributions.filter(pl.col("events") > 0).row(0, named=True)
    edited = without(timelines, (pl.col("subject_id") == code["subject_id"]) & (pl.col("code") == code["code"]))
    hand = model.forecast(edited, AT).risk.join(
        explanation.contributions.filter(code=code["code"]), on=KEY, suffix="_explained"
    )
    assert hand.height
    np.testing.assert_allclose(hand["probability"], hand["without"], atol=EXACT, rtol=0)


def test_the_tables_keep_their_schema(explanation):
    assert dict(explanation.contributions.schema) == CONTRIBUTION_SCHEMA
    assert dict(explanation.scope.schema) == SCOPE_SCHEMA
    key = [*KEY, "kind", "code", "window", "time", "known_time", "unit", "text_value"]
    assert not explanation.contributions.select(key).is_duplicated().any()
    assert explanation.contributions.drop_nulls("code")["contribution"].is_finite().all()


def test_what_becomes_known_later_has_no_contribution_and_moves_none(model, timelines, scored, explanation):
    ids = timelines.subject_ids(scored[:4]).to_list()
    later = AT + timedelta(microseconds=1)
    rows = [(i, day(400), "ICD10CM//y", None, later) for i in ids]  # back-dated, known too late
    rows += [(i, day(1100), "LOINC//a", 99.0, day(1100)) for i in ids]
    more = model.explain(append(timelines, rows), AT, patient=scored[:4])
    assert more.contributions.equals(explanation.contributions)
    assert more.scope.equals(explanation.scope)
    assert (explanation.contributions["known_time"].drop_nulls() <= AT).all()
    # the control: the same event known in time has a contribution, and moves others
    seen = model.explain(append(timelines, [(ids[0], day(400), "ICD10CM//y", None, AT)]), AT, patient=scored[:4])
    assert seen.scope["events"].to_list()[0] == explanation.scope["events"].to_list()[0] + 1
    assert not seen.contributions.equals(explanation.contributions)


def test_contributions_do_not_depend_on_the_company(model, timelines, scored, explanation):
    alone = pl.concat([model.explain(timelines, AT, patient=name).contributions for name in scored[:4]])
    many = model.explain(timelines, AT, patient=scored).contributions
    many = many.join(alone.select("subject_id").unique(), on="subject_id", how="semi")
    key = [*KEY, "kind", "code", "window", "known_time", "time"]
    one, other, together = (t.sort(key) for t in (alone, many, explanation.contributions))
    for table in (other, together):
        assert table.select(key).equals(one.select(key))
        np.testing.assert_allclose(table["contribution"], one["contribution"], atol=2 * EXACT, rtol=0)


def test_parts_of_any_size_give_the_same(model, timelines, scored, explanation, monkeypatch):
    monkeypatch.setattr("ehrseq.explain.occlusion.ROWS_AT_ONCE", 1)
    again = model.explain(timelines, AT, patient=scored[:4]).contributions
    one, other = (
        t.sort(*KEY, "kind", "code", "window", "known_time", "time") for t in (again, explanation.contributions)
    )
    np.testing.assert_allclose(one["contribution"], other["contribution"], atol=2 * EXACT, rtol=0)


def test_the_same_model_explains_the_same_after_loading(model, timelines, scored, explanation, tmp_path):
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model").explain(timelines, AT, patient=scored[:4])
    assert again.contributions.equals(explanation.contributions)
    assert again.faithfulness is None


def test_repeats_of_one_measurement_are_one_event(model, timelines, scored):
    subject = timelines.subject_ids(scored[:1])[0]
    twice = append(
        timelines, [(subject, day(500), "LOINC//a", 5.0, day(500)), (subject, day(500), "LOINC//a", 7.0, day(500))]
    )
    table = model.explain(twice, AT, patient=scored[0], kinds=["event"]).contributions
    rows = table.filter(pl.col("time") == day(500))
    assert rows.height == 4  # two outcomes, two horizons
    assert set(rows["events"]) == {2}
    assert set(rows["value"]) == {6.0}


def test_a_long_history_is_taken_out_one_by_one_for_its_last_events_and_by_code_for_all(model, timelines, scored):
    explanation = model.explain(timelines, AT, patient=scored[:4], recent_events=3)
    scope, table = explanation.scope, explanation.contributions
    assert (scope["one_by_one"] == scope["events"].clip(upper_bound=3)).all()
    assert (scope["events"] > 3).any()
    assert any("were not taken out one by one" in note for note in explanation.notes)
    single = table.filter(kind="event", outcome="death", horizon="1y").group_by("subject_id").len()
    assert dict(single.iter_rows()) == dict(scope.select("subject_id", "one_by_one").iter_rows())
    for subject, rows in table.filter(kind="event").group_by("subject_id"):
        mine = timelines.events.filter(
            pl.col("subject_id") == subject[0], pl.col("known_time") <= AT, ~pl.col("code").str.contains("MEDS|SEX")
        )
        assert rows["known_time"].min() == mine["known_time"].unique().sort().tail(3).min()
    by_code = table.filter(
        pl.col("kind") == "code", pl.col("events") > 0, pl.col("horizon") == "1y", pl.col("outcome") == "death"
    )
    assert by_code["events"].sum() == scope["events"].sum()


def test_only_some_kinds_one_outcome_one_horizon(model, timelines, scored):
    some = model.explain(timelines, AT, patient=scored[0], kinds=["code"], outcome="illness", horizon="18m")
    assert set(some.contributions["kind"]) == {"code"}
    assert set(some.contributions["outcome"]) == {"illness"}
    assert set(some.contributions["horizon"]) == {"18m"}
    assert some.scope["one_by_one"].to_list() == [0]
    assert not any("one by one" in note for note in some.notes)


def test_what_is_not_read_contributes_exactly_nothing(timelines):
    """A scoring that counts one code alone: every other code and event is worth 0, and that code all there is."""
    queries = timelines.subjects.select("subject_id", "patient", prediction_time=pl.lit(AT), outcome=pl.lit("x"))

    def score(made: Timelines, rows: pl.DataFrame) -> pl.DataFrame:
        count = made.events.filter(code="LOINC//a").group_by("subject_id").agg(probability=pl.len() / 100.0)
        return rows.join(count, on="subject_id", how="left", maintain_order="left").with_columns(
            pl.col("probability").fill_null(0.0), horizon=pl.lit("1y"), horizon_days=pl.lit(365.0)
        )

    table, _ = occlude(timelines, queries, score, demographics=("sex",))
    codes = table.filter(kind="code")
    assert (codes.filter(pl.col("code") != "LOINC//a")["contribution"] == 0).all()
    mine = codes.filter(code="LOINC//a")
    np.testing.assert_allclose(mine["contribution"], mine["events"] / 100.0, atol=1e-12)
    assert mine.height > 100
    windows = table.filter(kind="window").group_by("subject_id").agg(pl.col("contribution").sum())
    totals = mine.join(windows, on="subject_id", suffix="_windows")
    np.testing.assert_allclose(totals["contribution"], totals["contribution_windows"], atol=1e-12)


def test_prediction_times_of_one_patient_do_not_mix(model, timelines, scored):
    at = pl.DataFrame({"patient": [scored[0]] * 2, "prediction_time": [day(500), AT]})
    both = model.explain(timelines, at).contributions
    for time in (day(500), AT):
        one = model.explain(timelines, time, patient=scored[0]).contributions
        mine = both.filter(pl.col("prediction_time") == time)
        assert mine.height == one.height
        np.testing.assert_allclose(
            *(t.sort(*KEY, "kind", "code", "window", "known_time")["without"] for t in (mine, one)), atol=EXACT, rtol=0
        )


def test_requests_that_cannot_be_answered(model, timelines, scored):
    with pytest.raises(TimelineError, match="1 names that fit no subject"):
        model.explain(timelines, AT, patient="nobody")
    with pytest.raises(ForecastError, match="found 'ilness'; did you mean 'illness'"):
        model.explain(timelines, AT, patient=scored[0], outcome="ilness")
    with pytest.raises(TaskError):
        model.explain(timelines, AT, patient=scored[0], horizon="soon")
    with pytest.raises(ForecastError, match="found 'codes'; did you mean 'code'"):
        model.explain(timelines, AT, kinds=["codes"])
    with pytest.raises(ForecastError, match="one kind and one event"):
        model.explain(timelines, AT, recent_events=0)
    with pytest.raises(ForecastError, match="a fitted branch"):
        model.explain(timelines, AT, branch="cox")
    with pytest.raises(ForecastError, match="usable history"):
        model.explain(timelines, day(-9000), patient=scored[0])
    present = model.forecast(timelines, AT).skipped.filter(reason="already_present")["patient"][0]
    with pytest.raises(ForecastError, match="already_present"):
        model.explain(timelines, AT, patient=present, outcome="illness")
    with pytest.raises(ForecastError, match="a fitted model"):
        ProgressionModel().explain(timelines)
    for error in (TimelineError, ForecastError, TaskError):
        assert issubclass(error, UserError)
