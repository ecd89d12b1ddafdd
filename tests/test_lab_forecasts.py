"""The labs table keeps the properties of every forecast, and its intervals cover what they say."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrseq.config import ModelConfig
from ehrseq.errors import ForecastError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.forecast import labs
from ehrseq.forecast.table import LAB_SCHEMA, Forecast
from ehrseq.inspection import inspect
from ehrseq.task.definition import Task
from ehrseq.timeline.store import Timelines
from tests.make_artifact import DATA
from tests.make_artifact import timelines as strangers
from tests.test_estimator import AT
from tests.toy import CONFIG, TASK, append, cohort, day

QUICK = replace(CONFIG, model="age_sex")
LABS = replace(TASK, labs=("LOINC//a", "LOINC//b"))
QUANTILES = ["q05", "q25", "q50", "q75", "q95"]
NUMBERS = ["measured", *QUANTILES]
KEYS = ["subject_id", "prediction_time", "code", "horizon_days"]
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def timelines():
    return cohort()


@pytest.fixture(scope="module")
def model(timelines):
    return ProgressionModel(QUICK).fit(timelines, LABS)


@pytest.fixture(scope="module")
def reference(model, timelines):
    return model.forecast(timelines, AT).labs


def assert_same(a: pl.DataFrame, b: pl.DataFrame, tolerance: float = 1e-5) -> None:
    assert a.drop(NUMBERS).equals(b.drop(NUMBERS))
    np.testing.assert_allclose(a.select(NUMBERS).to_numpy(), b.select(NUMBERS).to_numpy(), atol=tolerance, rtol=0)


def test_contract(model, timelines, reference):
    assert dict(reference.schema) == LAB_SCHEMA | dict.fromkeys(QUANTILES, pl.Float64)
    assert list(reference.columns) == [*LAB_SCHEMA, *QUANTILES]
    assert not reference.select(KEYS).is_duplicated().any()
    assert set(reference["unit"]) == {"u"}
    assert (np.diff(reference.select(QUANTILES).to_numpy(), axis=1) > 0).all()
    assert reference["measured"].is_between(0, 1).all()
    rises = reference.sort(KEYS).group_by(KEYS[:3]).agg(pl.col("measured").diff().min())["measured"]
    assert (rises > 0).all()
    # everyone of whom anything can be told, whether or not an outcome is left to forecast
    whole = model.forecast(timelines, AT).skipped.filter(pl.col("outcome").is_null())["subject_id"]
    assert reference["subject_id"].n_unique() == len(timelines) - len(whole)
    assert reference.height == (len(timelines) - len(whole)) * 2 * 2


codes = st.sampled_from(["LOINC//a", "LOINC//b", "RXNORM//x", "MEDS_DEATH"])
drawn_events = st.lists(
    st.tuples(st.integers(1, 240), st.floats(-2000, 2000), codes, st.none() | st.floats(-50, 50), st.floats(0, 900)),
    min_size=1, max_size=40,
)  # fmt: skip


@FEW
@given(drawn_events)
def test_what_becomes_known_later_changes_nothing(model, timelines, reference, drawn):
    rows = [
        (i, AT + timedelta(days=when), code, value, AT + timedelta(days=max(when, 0) + delay, microseconds=1))
        for i, when, code, value, delay in drawn
    ]
    changed = append(timelines, rows)
    units = pl.when(pl.col("code").str.starts_with("LOINC")).then(pl.lit("u")).otherwise("unit")
    changed = Timelines(events=changed.events.with_columns(unit=units), subjects=changed.subjects)
    assert_same(model.forecast(changed, AT).labs, reference)


def with_value(timelines: Timelines, value: float, unit: str = "u") -> Timelines:
    """Everybody has one more value of the first lab, known in time."""
    more = append(timelines, [(i, day(990), "LOINC//a", value, day(990)) for i in timelines.subjects["subject_id"]])
    new = pl.col("unit").is_null() & (pl.col("code") == "LOINC//a")
    events = more.events.with_columns(unit=pl.when(new).then(pl.lit(unit)).otherwise("unit"))
    return Timelines(events=events, subjects=timelines.subjects)


def test_a_value_known_in_time_moves_the_forecast(model, timelines, reference):
    """The control: the same value in the lab's unit, known in time, moves the forecast."""
    changed = model.forecast(with_value(timelines, 12.0), AT).labs
    moved = (changed["q50"] - reference["q50"]).filter(reference["code"] == "LOINC//a")
    assert (moved.abs() > 1e-3).mean() > 0.9


def test_a_value_in_another_unit_is_no_value(model, timelines, reference):
    changed = model.forecast(with_value(timelines, 12000.0, "mg"), AT).labs
    events = model.forecast(with_value(timelines, 3.0, "mg"), AT).labs
    # that something was recorded may tell something; the number does not
    assert_same(changed, events)


def test_rows_packing_and_company_change_nothing(model, timelines, reference, monkeypatch):
    shuffled = Timelines(
        events=timelines.events.sample(fraction=1, shuffle=True, seed=3),
        subjects=timelines.subjects.sample(fraction=1, shuffle=True, seed=4),
    )
    assert_same(model.forecast(shuffled, AT).labs, reference)
    for one in reference["subject_id"].unique().sort()[:10]:
        alone = model.forecast(timelines.select([one]), AT).labs
        assert_same(alone, reference.filter(subject_id=one))
    monkeypatch.setattr(labs, "CELLS", 40)  # ten people at a time
    assert_same(model.forecast(timelines, AT).labs, reference)
    twice = pl.DataFrame({"subject_id": [5, 5, 6], "prediction_time": [AT, AT, day(700)]})
    assert_same(model.forecast(timelines, twice).labs.filter(subject_id=5), reference.filter(subject_id=5))


def test_follow_up_and_death_are_no_inputs(model, timelines, reference):
    alive = reference["subject_id"].unique()
    blind = timelines.subjects.with_columns(
        follow_up_end=pl.lit(AT + timedelta(days=1)), death_time=pl.lit(None, pl.Datetime("us"))
    )
    events = timelines.events.filter(pl.col("code") != "MEDS_DEATH")
    assert_same(model.forecast(Timelines(events=events, subjects=blind).select(alive), AT).labs, reference)


def test_save_then_load_is_bit_equal(model, timelines, reference, tmp_path):
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.forecast(timelines, AT).labs.equals(reference)
    loaded.save(tmp_path / "again")
    for name in ("labs.json", "labs.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert inspect(tmp_path / "model")["labs"] == ["LOINC//a", "LOINC//b"]


def test_the_same_seed_gives_the_same_forecast_whatever_the_kind_of_model(timelines, reference):
    for kind in ("boosted", "hybrid"):
        again = ProgressionModel(replace(CONFIG, model=kind)).fit(timelines, LABS)
        assert again.forecast(timelines, AT).labs.equals(reference), kind
        assert again.forecast(timelines, AT, branch="null").labs.equals(reference), kind
    other = ProgressionModel(QUICK, seed=1).fit(timelines, LABS).forecast(timelines, AT).labs
    assert not other["q50"].equals(reference["q50"])


def test_the_hazards_are_left_untouched(model, timelines):
    without = ProgressionModel(QUICK).fit(timelines, TASK)
    assert without.forecast(timelines, AT).risk.equals(model.forecast(timelines, AT).risk)


def test_other_quantiles(model, timelines, reference):
    levels = (0.05, 0.1, 0.5, 0.9, 0.95)
    more = model.forecast(timelines, AT, lab_levels=levels).labs
    assert [c for c in more.columns if c.startswith("q")] == ["q05", "q10", "q50", "q90", "q95"]
    assert more["q05"].equals(reference["q05"])
    assert model.forecast(timelines, AT, lab_levels=()).labs.is_empty()
    with pytest.raises(ForecastError, match=r"rising, among 0\.05"):
        model.forecast(timelines, AT, lab_levels=(0.5, 0.33))


def test_who_never_had_the_lab_is_forecast_from_the_population(model, timelines, reference):
    never = Timelines(events=timelines.events.filter(pl.col("code") != "LOINC//a"), subjects=timelines.subjects)
    own = pl.col("code") == "LOINC//a"
    found = model.forecast(never, AT).labs.filter(own)
    assert found.height == reference.filter(own).height
    assert found.select(QUANTILES).null_count().sum_horizontal().item() == 0
    assert found["q50"].is_between(2, 8).all()


def test_beyond_what_was_seen_there_is_no_value(model, timelines):
    table = model.forecast(timelines, AT, horizons=["1y", "20y"]).labs
    far = pl.col("horizon_days") > 7000
    assert table.filter(far)["q50"].null_count() == table.filter(far).height > 0
    assert table.filter(~far)["q50"].null_count() == 0


def test_odd_labs(timelines):
    """A constant, impossible values, units in a mixture, one that nobody has and one that only came before."""
    people = timelines.subjects["subject_id"].to_list()
    rng = np.random.default_rng(0)
    rows = []
    for i in people:
        for when in rng.uniform(0, 2000, 6):
            rows.append((i, day(when), "LAB//constant", 7.0, "u"))
            rows.append((i, day(when), "LAB//wild", float(rng.choice([5.0, 5.5, 6.0, 1e30, -1e30])), "u"))
            rows.append((i, day(when), "LAB//mixed", float(rng.normal(5, 1)), "mmol/L"))
            rows.append((i, day(when + 1), "LAB//mixed", float(rng.normal(90, 10)), "other"))
            rows.append((i, day(-when), "LAB//before", float(rng.normal(5, 1)), None))
            rows.append((i, day(when), "LAB//unitless", float(rng.normal(5, 1)), None))
    # the mixture is mostly in one unit
    rows = [r for r in rows if r[4] != "other" or r[0] % 3 == 0]
    more = pl.DataFrame(
        rows, schema=["subject_id", "time", "code", "numeric_value", "unit"], orient="row",
        infer_schema_length=None,
    )  # fmt: skip
    events = pl.concat([timelines.events, more.with_columns(known_time="time")], how="diagonal_relaxed")
    odd = Timelines.from_events(events, timelines.subjects)
    names = ["constant", "wild", "mixed", "before", "unitless", "nobody"]
    task = replace(TASK, labs=tuple(f"LAB//{name}" for name in names))
    fitted = ProgressionModel(QUICK).fit(odd, task)
    assert fitted.labs_withheld == {
        "LAB//nobody": "few_training_subjects_with_a_number", "LAB//before": "few_values_after_a_prediction_time",
    }  # fmt: skip
    forecast = fitted.forecast(odd, AT)
    assert forecast.metadata["labs_withheld"] == fitted.labs_withheld
    table = forecast.labs
    assert set(table["code"]) == {"LAB//constant", "LAB//wild", "LAB//mixed", "LAB//unitless"}
    assert table.select(NUMBERS).to_numpy().dtype == np.float64
    assert np.isfinite(table.select(NUMBERS).to_numpy()).all()
    of = {name: table.filter(code=f"LAB//{name}") for name in names}
    assert (of["constant"].select(QUANTILES).to_numpy() - 7 < 0.1).all()
    assert of["wild"]["q50"].is_between(4, 7).all()
    assert of["mixed"]["unit"].unique().to_list() == ["mmol/L"]
    assert of["mixed"]["q50"].is_between(3, 7).all()
    assert of["unitless"]["unit"].null_count() == of["unitless"].height


def test_no_labs_asked_or_none_fitted(timelines, tmp_path):
    none = ProgressionModel(QUICK).fit(timelines, TASK)
    assert none.labs_withheld == {}
    assert none.forecast(timelines, AT).labs.is_empty()
    none.save(tmp_path / "model")
    assert not list((tmp_path / "model").glob("labs*"))
    off = replace(QUICK, labs=replace(QUICK.labs, members=0))
    assert ProgressionModel(off).fit(timelines, LABS).labs_withheld == dict.fromkeys(LABS.labs, "not_fitted")
    nobody = ProgressionModel(QUICK).fit(timelines, replace(TASK, labs=("LAB//nobody",)))
    nobody.save(tmp_path / "nobody")
    forecast = load_model(tmp_path / "nobody").forecast(timelines, AT)
    assert forecast.labs.is_empty()
    assert forecast.metadata["labs_withheld"] == {"LAB//nobody": "few_training_subjects_with_a_number"}


def test_a_folder_of_an_earlier_version_says_that_it_has_no_labs():
    old = load_model(DATA / "model_version_1")
    assert old.forecast(strangers(), "2012-06-30").labs.is_empty()
    old.task_ = replace(old.task_, labs=("LOINC//a",))
    assert old.forecast(strangers(), "2012-06-30").metadata["labs_withheld"] == {"LOINC//a": "not_fitted"}


@pytest.mark.parametrize("file_format", ["parquet", "csv"])
def test_the_forecast_folder_carries_the_labs(model, timelines, tmp_path, file_format):
    forecast = model.forecast(timelines, AT, lab_levels=(0.1, 0.5, 0.9))
    forecast.save(tmp_path / "forecast", file_format=file_format)
    loaded = Forecast.load(tmp_path / "forecast")
    assert loaded.labs.schema == forecast.labs.schema
    assert loaded.labs.drop("prediction_time").equals(forecast.labs.drop("prediction_time"))
    assert list(forecast.to_pandas("labs").columns) == forecast.labs.columns
    with pytest.raises(ForecastError, match="the table risk, labs"):
        forecast.to_pandas("paths")


def steady_people(n: int, seed: int, rate: float = 1 / 300, dying: float = 1 / 2500) -> Timelines:
    """People with a level of their own that drifts, measured at random with a noise that differs between them."""
    rng = np.random.default_rng(seed)
    rows, subjects = [], []
    for i in range(10_000 * seed + 1, 10_000 * seed + n + 1):
        birth = day(-365.25 * rng.uniform(40, 60))
        level, drift, noise = rng.normal(50, 8), rng.normal(0, 1.5), rng.choice([1.0, 5.0])
        death = rng.exponential(1 / dying)
        end = min(3000.0, death)
        rows.append((i, birth, "MEDS_BIRTH", None, None))
        when = -600 + rng.exponential(1 / rate)
        while when < end:
            value = level + drift * when / 365.25 + noise * rng.normal()
            rows.append((i, day(when), "LAB//x", float(value), "u"))
            when += rng.exponential(1 / rate)
        rows.append((i, day(rng.uniform(-100, 0)), "ICD10CM//y", None, None))
        if death < 3000:
            rows.append((i, day(death), "MEDS_DEATH", None, None))
        subjects.append((i, f"p{i}", birth, day(death) if death < 3000 else None, day(0), day(end)))
    names = ["subject_id", "patient", "birth_time", "death_time", "follow_up_start", "follow_up_end"]
    events = pl.DataFrame(
        rows, schema=["subject_id", "time", "code", "numeric_value", "unit"], orient="row", infer_schema_length=None
    )
    return Timelines.from_events(
        events.with_columns(known_time="time"),
        pl.DataFrame(subjects, schema=names, orient="row", infer_schema_length=None),
    )


STEADY = Task.from_dict(
    {
        "horizons": ["1y", "3y", "5y"],
        "outcomes": {"death": {"codes": ["MEDS_DEATH"]}},
        "labs": {"codes": ["LAB//x"]},
        "prediction_times": {"rule": "landmarks", "after_start": ["2y"]},
    }
)


@pytest.fixture(scope="module")
def steady():
    people = steady_people(1600, seed=0)
    return people, ProgressionModel(ModelConfig(model="age_sex")).fit(people, STEADY)


def test_held_out_values_are_covered_and_sharper_than_by_a_line(steady):
    _, fitted = steady
    result = fitted.evaluate(steady_people(1500, seed=1), n_bootstrap=50)
    scores = pl.DataFrame(result.study["labs"])
    covered = scores.filter(model="ehrseq", measure="coverage_90")
    assert covered["horizon"].to_list() == ["1y", "3y", "5y"]
    assert covered["value"].is_between(0.86, 0.94).all(), covered
    gaps = pl.DataFrame(result.study["lab_differences"]).filter(measure="crps")
    assert set(gaps["against"]) == {"linear", "carried_forward"}
    # some people's values vary five times as much as others': a line with one spread for all cannot know
    assert (gaps["upper"] < 0).all(), gaps


def test_the_chance_of_being_measured_is_the_true_one(steady):
    _, fitted = steady
    new = steady_people(800, seed=2)
    table = fitted.forecast(new, at="task").labs.with_columns(years=pl.col("horizon_days") / 365.25)
    rate, dying = 1 / 300, 1 / 2500
    total = rate + dying
    expected = rate / total * (1 - np.exp(-total * np.array([1, 3, 5]) * 365.25))
    found = table.group_by(pl.col("years").round()).agg(pl.col("measured").mean()).sort("years")["measured"]
    np.testing.assert_allclose(found, expected, atol=0.02)
    # ignoring death, nearly everybody would be measured in five years
    assert found[-1] < 0.91


def test_the_spread_follows_the_person_and_the_time_ahead(steady):
    _, fitted = steady
    table = fitted.forecast(steady_people(400, seed=3), at="task").labs
    width = table.with_columns(width=pl.col("q95") - pl.col("q05"))
    by_time = width.group_by(pl.col("horizon_days").rank("dense")).agg(pl.col("width").mean()).sort("horizon_days")
    assert (by_time["width"].diff().drop_nulls() > 0).all()
    low, high = np.quantile(width["width"], [0.1, 0.9])
    assert high > 1.4 * low


def test_who_was_measured_higher_is_forecast_higher(steady):
    _, fitted = steady
    people = steady_people(100, seed=4)
    higher = Timelines(events=people.events.with_columns(pl.col("numeric_value") + 5), subjects=people.subjects)
    moved = fitted.forecast(higher, at="task").labs["q50"] - fitted.forecast(people, at="task").labs["q50"]
    assert 2 < moved.mean() < 6
    assert moved.min() == 0  # of the few without any value then


def test_who_has_every_outcome_is_forecast_alone_as_among_others(timelines):
    illness = replace(LABS, outcomes=tuple(replace(o, competing=()) for o in LABS.outcomes if o.name == "illness"))
    model = ProgressionModel(QUICK).fit(timelines, illness)
    forecast = model.forecast(timelines, AT)
    alone = set(forecast.labs["subject_id"]) - set(forecast.risk["subject_id"])
    assert alone
    one = model.forecast(timelines.select([min(alone)]), AT)
    assert not one.risk.height
    assert_same(one.labs, forecast.labs.filter(pl.col("subject_id") == min(alone)))
    with pytest.raises(ForecastError):
        model.forecast(timelines.select([min(alone)]), AT, lab_levels=())
