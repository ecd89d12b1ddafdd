"""The properties every forecast keeps: no future, no order, no batch, no loss through save and load."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrseq.errors import ArtifactError, EvaluationError, ForecastError, TaskError, TimelineError, UserError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.model.ensemble import Ensemble
from ehrseq.model.inference import predict_log_hazards
from ehrseq.task.definition import Task
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import encode
from tests.toy import CONFIG, TASK, append, cohort, day

AT = day(1000)  # a moment in mid follow-up
TOLERANCE = 1e-6
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def timelines():
    return cohort()


@pytest.fixture(scope="module")
def model(timelines):
    return ProgressionModel(CONFIG).fit(timelines, TASK)


@pytest.fixture(scope="module")
def reference(model, timelines):
    return model.forecast(timelines, AT).risk


def assert_same(a: pl.DataFrame, b: pl.DataFrame, tolerance: float = TOLERANCE) -> None:
    numbers = ["probability", "competing", "event_free"]
    assert a.drop(*numbers, "lower", "upper").equals(b.drop(*numbers, "lower", "upper"))
    np.testing.assert_allclose(a.select(numbers).to_numpy(), b.select(numbers).to_numpy(), atol=tolerance, rtol=0)


def test_contract(reference):
    p, c, free = (reference[name].to_numpy() for name in ("probability", "competing", "event_free"))
    assert len(reference)
    for x in (p, c, free):
        assert ((x >= 0) & (x <= 1)).all()
    np.testing.assert_allclose(p + c + free, 1, atol=1e-12)
    keys = ["subject_id", "prediction_time", "outcome"]
    assert (
        reference.sort(*keys, "horizon_days")
        .group_by(keys)
        .agg(pl.col("probability").diff().min() >= 0)["probability"]
        .all()
    )
    assert not reference.select(*keys, "horizon_days").is_duplicated().any()
    assert (reference.filter(pl.col("outcome") == "death")["competing"] == 0).all()


def test_scored_and_skipped_cover_everyone(model, timelines):
    forecast = model.forecast(timelines, AT)
    scored = forecast.risk.select("subject_id", "outcome").unique()
    whole = forecast.skipped.filter(pl.col("outcome").is_null())["subject_id"]
    single = forecast.skipped.filter(pl.col("outcome").is_not_null()).select("subject_id", "outcome")
    assert len(scored) + 2 * len(whole) + len(single) == 2 * len(timelines)
    assert not scored.join(single, on=["subject_id", "outcome"], how="semi").height
    assert set(forecast.skipped["reason"]) >= {"already_present", "dead"}


codes = st.sampled_from(["LOINC//a", "LOINC//b", "RXNORM//x", "ICD10CM//y", "SNOMED//1", "MEDS_DEATH", "NEW//code"])


@FEW
@given(
    st.lists(
        st.tuples(
            st.integers(1, 240), st.floats(-2000, 2000), codes, st.none() | st.floats(-50, 50), st.floats(0, 900)
        ),
        min_size=1, max_size=40,
    )
)  # fmt: skip
def test_what_becomes_known_later_changes_nothing(model, timelines, reference, drawn):
    """Events after the prediction time, and back-dated ones between old events that are only known later."""
    rows = [
        (i, AT + timedelta(days=when), code, value, AT + timedelta(days=max(when, 0) + delay, microseconds=1))
        for i, when, code, value, delay in drawn
    ]
    assert_same(model.forecast(append(timelines, rows), AT).risk, reference)


def test_a_back_dated_diagnosis_between_two_old_events_changes_nothing(model, timelines, reference):
    first = (
        timelines.events.filter(pl.col("time").is_between(day(0), day(800)))
        .group_by("subject_id")
        .agg(pl.col("time").min())
    )
    rows = [(i, t + timedelta(days=1), "ICD10CM//y", None, AT + timedelta(days=3)) for i, t in first.iter_rows()]
    assert_same(model.forecast(append(timelines, rows), AT).risk, reference)


def test_what_is_known_in_time_does_change_the_forecast(model, timelines, reference):
    """The control: the same event, known in time, moves the forecast."""
    rows = [(i, day(400), "ICD10CM//y", None, day(401)) for i in timelines.subjects["subject_id"]]
    changed = model.forecast(append(timelines, rows), AT).risk
    both = reference.join(changed, on=["subject_id", "outcome", "horizon_days"])
    assert len(both) == len(reference)
    assert (both["probability_right"] - both["probability"]).abs().max() > 1e-4


def test_follow_up_and_death_are_no_inputs(model, timelines, reference):
    alive = reference["subject_id"].unique()
    blind = timelines.subjects.with_columns(
        follow_up_end=pl.lit(AT + timedelta(days=1)), death_time=pl.lit(None, pl.Datetime("us"))
    )
    events = timelines.events.filter(pl.col("code") != "MEDS_DEATH")
    forecast = model.forecast(Timelines(events=events, subjects=blind).select(alive), AT).risk
    assert_same(forecast.join(reference, on=["subject_id", "outcome", "horizon_days"], how="semi"), reference)


def test_row_order_changes_nothing(model, timelines, reference):
    shuffled = Timelines(
        events=timelines.events.sample(fraction=1, shuffle=True, seed=3),
        subjects=timelines.subjects.sample(fraction=1, shuffle=True, seed=4),
    )
    assert_same(model.forecast(shuffled, AT).risk, reference)


def test_one_subject_alone_scores_as_in_a_batch(model, timelines, reference):
    for i in reference["subject_id"].unique().sort()[:5]:
        assert_same(model.forecast(timelines.select([i]), AT).risk, reference.filter(pl.col("subject_id") == i))


def test_batch_size_padding_and_company_change_nothing(model, timelines):
    subjects = timelines.subjects.sort("subject_id")
    encoded = encode(timelines.events, subjects, model.fitted_.vocabulary)
    who = np.repeat(np.arange(len(subjects)), 3)
    at = np.tile([int(day(d).timestamp()) for d in (200, 700, 1500)], len(subjects)) * 1_000_000

    def hazards(tokens, rows=slice(None), max_events=CONFIG.network.max_events):
        return predict_log_hazards(
            Ensemble(model.fitted_.networks), encoded, who[rows], at[rows], max_events=max_events,
            n_summary_codes=len(model.fitted_.vocabulary.summary_codes), tokens_per_batch=tokens,
        )  # fmt: skip

    together = hazards(100_000)
    np.testing.assert_allclose(hazards(64), together, rtol=1e-4)
    np.testing.assert_allclose(hazards(100_000, slice(0, None, 3)), together[:, ::3], rtol=1e-4)


def test_long_histories_keep_the_static_facts_and_the_most_recent_events(model, timelines):
    """Beyond max_events, an old event does not matter to attention; the answer does not depend on other queries."""
    rows = [(7, day(-2000 + 3 * k), "LOINC//a", 5.0, day(-2000 + 3 * k)) for k in range(300)]
    long = append(timelines, rows)
    alone = model.forecast(long, pl.DataFrame({"subject_id": [7], "prediction_time": [AT]})).risk
    times = [day(-1500), day(-1000), AT]
    several = model.forecast(long, pl.DataFrame({"subject_id": [7] * 3, "prediction_time": times})).risk
    assert_same(alone, several.filter(pl.col("prediction_time") == AT))


def test_save_then_load_is_bit_equal(model, timelines, reference, tmp_path):
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.forecast(timelines, AT).risk.equals(reference)
    assert loaded.forecast(timelines, AT, branch="age_sex").risk.equals(
        model.forecast(timelines, AT, branch="age_sex").risk
    )
    assert loaded.trained_on_.equals(model.trained_on_)
    loaded.save(tmp_path / "again")
    for name in ("weights.safetensors", "config.json", "task.json", "vocabulary.json", "training.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json", "manifest.json"])
def test_a_changed_byte_is_refused(model, tmp_path, name):
    model.save(tmp_path / "model")
    path = tmp_path / "model" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"expected .* found"):
        load_model(tmp_path / "model")


def test_the_same_seed_gives_the_same_forecast_and_another_does_not(model, timelines, reference):
    again = ProgressionModel(CONFIG).fit(timelines, TASK).forecast(timelines, AT).risk
    assert again.equals(reference)
    other = ProgressionModel(CONFIG, seed=1).fit(timelines, TASK).forecast(timelines, AT).risk
    assert not other["probability"].equals(reference["probability"])


@pytest.mark.parametrize("seed", ["3", 3.0])
def test_a_seed_that_is_no_whole_number_is_told(seed):
    with pytest.raises(UserError, match=r"expected a whole number as seed; found (str|float)"):
        ProgressionModel(seed=seed)


def test_ensemble_range_holds_the_members(timelines):
    from dataclasses import replace

    config = replace(CONFIG, training=replace(CONFIG.training, members=2, max_epochs=1))
    risk = ProgressionModel(config).fit(timelines, TASK).forecast(timelines, AT).risk
    assert (risk["lower"] <= risk["upper"]).all()
    assert (risk["upper"] - risk["lower"]).max() > 0


def test_any_horizon_by_closed_form(model, timelines, reference):
    more = model.forecast(timelines, AT, horizons=["1y", "2y", "3y"]).risk
    shared = more.filter(pl.col("horizon_days").is_in(reference["horizon_days"].unique().implode()))
    assert_same(shared, reference, 1e-12)


@pytest.mark.parametrize(("horizons", "found"), [([], "none"), (["1y", "1y"], "one twice")])
def test_horizons_are_each_asked_for_once(model, timelines, horizons, found):
    with pytest.raises(ForecastError, match=f"found {found}"):
        model.forecast(timelines, AT, horizons=horizons)


def test_beyond_the_follow_up_is_extrapolated(model, timelines):
    risk = model.forecast(timelines, AT, horizons=["1y", "20y"]).risk
    assert risk.filter(pl.col("horizon_days") > 7000)["extrapolated"].all()
    assert not risk.filter(pl.col("horizon_days") < 400)["extrapolated"].any()


def test_a_prediction_time_before_any_data_is_one_clear_line(model, timelines):
    with pytest.raises(ForecastError, match="choose a later prediction time") as caught:
        model.forecast(timelines, "1950-01-01")
    assert "\n" not in str(caught.value)


def test_an_outcome_that_never_occurs_is_named_and_the_others_go_on(timelines):
    content = TASK.to_dict()
    content["outcomes"]["unheard"] = {"codes": ["SNOMED//404"]}
    fitted = ProgressionModel(CONFIG).fit(timelines, Task.from_dict(content))
    forecast = fitted.forecast(timelines, AT)
    assert set(forecast.risk["outcome"]) == {"illness", "death"}
    reasons = forecast.skipped.filter(pl.col("outcome") == "unheard")["reason"]
    assert set(reasons) == {"no_training_events"}
    only = {**content, "outcomes": {"unheard": {"codes": ["SNOMED//404"]}}}
    with pytest.raises(TaskError, match="outcome that occurs"):
        ProgressionModel(CONFIG).fit(timelines, Task.from_dict(only))


def test_a_subject_without_birth_date_is_skipped_and_the_others_scored(model, timelines, reference):
    subjects = timelines.subjects.with_columns(
        birth_time=pl.when(pl.col("subject_id") != 1).then("birth_time"),
    )
    events = timelines.events.filter((pl.col("code") != "MEDS_BIRTH") | (pl.col("subject_id") != 1))
    forecast = model.forecast(Timelines(events=events, subjects=subjects), AT)
    assert forecast.skipped.filter(pl.col("subject_id") == 1)["reason"].to_list() == ["no_birth_date"]
    assert_same(forecast.risk, reference.filter(pl.col("subject_id") != 1))


def test_a_history_of_unknown_codes_is_refused(model, timelines):
    static = pl.col("time").is_null() | pl.col("code").is_in(["MEDS_BIRTH", "MEDS_DEATH"])
    events = timelines.events.with_columns(
        code=pl.when((pl.col("subject_id") == 2) & ~static).then(pl.lit("OTHER//q")).otherwise("code")
    )
    forecast = model.forecast(Timelines(events=events, subjects=timelines.subjects), AT)
    assert forecast.skipped.filter(pl.col("subject_id") == 2)["reason"].to_list() == ["unknown_codes"]


def test_too_few_subjects_are_told(timelines):
    with pytest.raises(TimelineError, match="expected"):
        ProgressionModel(CONFIG).fit(timelines.select([1]), TASK)


def test_evaluation_leaves_out_those_it_was_fitted_on(model, timelines):
    result = model.evaluate(timelines, n_bootstrap=10)
    seen = int(model.seen_in_training(timelines.subjects["subject_id"].to_numpy()).sum())
    assert result.facts["seen_in_training"] == seen > 0
    assert result.facts["evaluated"] == len(timelines) - seen
    fitted_on = timelines.subjects["subject_id"].filter(
        pl.Series(model.seen_in_training(timelines.subjects["subject_id"].to_numpy()))
    )
    with pytest.raises(EvaluationError, match="not fitted on"):
        model.evaluate(timelines.select(fitted_on))


def test_unfitted_model_says_so(timelines):
    with pytest.raises(ForecastError, match="fitted"):
        ProgressionModel().forecast(timelines, AT)


def test_pandas_in_pandas_out(model, timelines, reference):
    at = pl.DataFrame({"patient": timelines.subjects["patient"], "prediction_time": [AT] * len(timelines)})
    forecast = model.forecast(timelines, at.to_pandas())
    assert_same(forecast.risk, reference)
    assert list(forecast.to_pandas().columns) == reference.columns


@pytest.mark.parametrize("kind", ["hybrid", "transformer", "boosted", "cox", "age_sex"])
def test_each_kind_of_model_is_fitted_saved_loaded_and_judged(timelines, tmp_path, kind):
    from dataclasses import replace

    fitted = ProgressionModel(replace(CONFIG, model=kind)).fit(timelines, TASK)
    forecast = fitted.forecast(timelines, AT)
    assert forecast.metadata["model"] == kind
    fitted.save(tmp_path / "model")
    assert load_model(tmp_path / "model").forecast(timelines, AT).risk.equals(forecast.risk)
    assert kind in set(fitted.evaluate(timelines, n_bootstrap=0).table["model"])
    # what becomes known after the prediction time changes no branch
    later = append(timelines, [(i, day(1001), "LOINC//a", 9.0, day(1001)) for i in range(1, 200)])
    assert_same(fitted.forecast(later, AT).risk, forecast.risk)
    # one subject alone scores as in the batch
    one = forecast.risk["subject_id"][0]
    alone = fitted.forecast(timelines.select([one]), AT).risk
    assert_same(alone, forecast.risk.filter(subject_id=one))
    with pytest.raises(ForecastError, match="a fitted branch"):
        fitted.forecast(timelines, AT, branch="forest")


@pytest.mark.parametrize("kind", ["hybrid", "cox"])
def test_nobody_dies_and_an_outcome_that_only_came_before(timelines, kind):
    from dataclasses import replace

    alive = Timelines(
        events=timelines.events.filter(pl.col("code") != "MEDS_DEATH"),
        subjects=timelines.subjects.with_columns(death_time=pl.lit(None, pl.Datetime("us"))),
        splits=timelines.splits,
    )
    before = append(alive, [(i, day(-200), "SNOMED//2", None, day(-200)) for i in range(1, 200, 2)])
    content = TASK.to_dict()
    content["outcomes"]["earlier"] = {"codes": ["SNOMED//2"], "competing": ["death"]}
    fitted = ProgressionModel(replace(CONFIG, model=kind)).fit(before, Task.from_dict(content))
    assert fitted.fitted_.outcomes == ["illness"]
    assert fitted.fitted_.events == {"illness": fitted.fitted_.events["illness"], "death": 0, "earlier": 0}
    forecast = fitted.forecast(before, AT)
    assert forecast.risk["probability"].is_finite().all()
    assert forecast.risk["competing"].max() < 0.05
    assert set(forecast.skipped["reason"]) >= {"no_training_events"}


def test_later_events_and_other_people_move_no_boosted_forecast_at_all():
    from dataclasses import replace

    from ehrseq.config import BoostedConfig

    many = cohort(600, seed=4)
    config = replace(CONFIG, model="boosted", boosted=BoostedConfig(min_rows_per_leaf=20, max_trees=60))
    fitted = ProgressionModel(config).fit(many, TASK)
    forecast = fitted.forecast(many, AT).risk
    known = pl.col("known_time") <= AT
    cut = Timelines(events=many.events.filter(known | pl.col("known_time").is_null()), subjects=many.subjects)
    assert cut.events.height < many.events.height
    assert fitted.forecast(cut, AT).risk.equals(forecast)
    for one in forecast["subject_id"].unique().sort()[:40]:
        alone = fitted.forecast(many.select([one]), AT).risk
        assert alone.equals(forecast.filter(subject_id=one))
