"""Paths of a fitted model: what they may depend on, what they refuse, and outcomes found on them."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from ehrseq.errors import ForecastError, TaskError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.forecast.compound import first_on_paths, path_incidence
from ehrseq.forecast.paths import END_CODE, PATH_SCHEMA
from ehrseq.forecast.table import Forecast
from ehrseq.task.definition import Task
from ehrseq.timeline.store import Timelines
from tests.make_artifact import AT as OLD_AT
from tests.make_artifact import DATA
from tests.make_artifact import timelines as old_timelines
from tests.toy import CONFIG, TASK, append, cohort, day

AT = day(1000)


@pytest.fixture(scope="module")
def everyone():
    return cohort()


@pytest.fixture(scope="module")
def timelines(everyone):
    """Some of them, to sample paths of: a third cannot be scored."""
    return everyone.select(everyone.subjects["subject_id"].head(36))


@pytest.fixture(scope="module")
def model(everyone):
    return ProgressionModel(CONFIG).fit(everyone, TASK)


@pytest.fixture(scope="module")
def forecast(model, timelines):
    return model.forecast(timelines, AT)


@pytest.fixture(scope="module")
def paths(forecast):
    return forecast.paths(8, "2y")


def test_contract(paths, forecast):
    assert dict(paths.schema) == PATH_SCHEMA
    scored = forecast.risk.select("subject_id", "prediction_time").unique()
    each = paths.select("subject_id", "prediction_time", "path").unique()
    assert each.height == 8 * scored.height
    assert sorted(each["path"].unique()) == list(range(8))
    assert not scored.join(each, on=["subject_id", "prediction_time"], how="anti").height
    horizon = pl.col("prediction_time").dt.offset_by("2y")
    assert paths.select(((pl.col("time") > pl.col("prediction_time")) & (pl.col("time") <= horizon)).all()).item()
    ends = paths.group_by("subject_id", "path").agg(
        last=pl.col("code").sort_by("time").last(), n=pl.col("code").is_in([END_CODE, "MEDS_DEATH"]).sum()
    )
    assert ends["n"].eq(1).all()
    assert ends["last"].is_in([END_CODE, "MEDS_DEATH"]).all()
    assert paths.filter(code=END_CODE).select((pl.col("time") == horizon).all()).item()
    values = paths.filter(pl.col("numeric_value").is_not_null())
    assert values["code"].str.starts_with("LOINC").all()
    assert values["unit"].eq("u").all()


def test_the_same_seed_gives_the_same_paths_and_another_others(forecast, paths):
    assert forecast.paths(8, "2y").equals(paths)
    assert not forecast.paths(8, "2y", seed=1).equals(paths)


def test_fewer_paths_are_the_first_of_more(forecast, paths):
    assert forecast.paths(3, "2y").equals(paths.filter(pl.col("path") < 3))


def test_some_subjects_alone_have_the_paths_they_have_among_all(model, timelines, paths):
    some = paths["subject_id"].unique().sort()[3:7]
    alone = model.forecast(timelines.select(some), AT).paths(8, "2y")
    assert alone.equals(paths.filter(pl.col("subject_id").is_in(some.implode())))


def test_what_becomes_known_later_changes_nothing(model, timelines, paths):
    rows = [
        (i, AT + timedelta(days=k), code, 3.0, AT + timedelta(days=k + 5))
        for i in paths["subject_id"].unique()
        for k, code in ((-40, "ICD10CM//y"), (3, "LOINC//a"), (9, "SNOMED//1"))
    ]
    rows = [(i, when, code, value, max(known, AT + timedelta(days=1))) for i, when, code, value, known in rows]
    assert model.forecast(append(timelines, rows), AT).paths(8, "2y").equals(paths)


def test_what_is_known_in_time_does_change_paths(model, timelines, paths):
    """The control of the test above."""
    rows = [(i, day(400), "ICD10CM//y", None, day(401)) for i in paths["subject_id"].unique()]
    assert not model.forecast(append(timelines, rows), AT).paths(8, "2y").equals(paths)


def test_an_outcome_that_is_already_present_is_not_drawn_anew(forecast, model, timelines):
    """Its code may recur, but nobody's incidence counts it."""
    ill = forecast.skipped.filter(outcome="illness")["subject_id"]
    assert len(ill)
    some = forecast.path_incidence(forecast.paths(4, "1y"), "illness", ["1y"])
    assert not some["subject_id"].is_in(ill.implode()).any()


def test_save_and_load_keep_paths(model, timelines, paths, tmp_path):
    model.save(tmp_path / "model")
    assert load_model(tmp_path / "model").forecast(timelines, AT).paths(8, "2y").equals(paths)


def test_incidence_on_paths_is_the_forecasts(forecast):
    """Over all subjects together: a path more or less of one changes little."""
    paths = forecast.paths(60)
    for outcome in ("illness", "death"):
        found = forecast.path_incidence(paths, outcome)
        both = forecast.risk.filter(outcome=outcome).join(found, on=["subject_id", "horizon_days"])
        assert both.height == forecast.risk.filter(outcome=outcome).height
        difference = (both["probability_right"] - both["probability"]).to_numpy()
        allowed = 3.3 * np.sqrt((both["probability"] * (1 - both["probability"]) / both["paths"]).mean() / both.height)
        assert abs(difference.mean()) < allowed + 0.01


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"n": 0}, "at least 1; found n = 0"),
        ({"n": 2.5}, "found n = 2.5"),
        ({"n": True}, "found n = True"),
        ({"until": "20y"}, r"\(3y\); found '20y'; choose"),
        ({"until": "0d"}, "found '0d'"),
        ({"until": "soon"}, "found 'soon'"),
    ],
)
def test_bad_input_is_told(forecast, arguments, told):
    with pytest.raises((ForecastError, TaskError), match=told) as caught:
        forecast.paths(**arguments)
    assert "\n" not in str(caught.value)


def test_models_and_forecasts_without_paths_are_told(model, everyone, timelines, forecast, tmp_path):
    forecast.save(tmp_path / "forecast")
    with pytest.raises(ForecastError, match="found one read from a folder; forecast again"):
        Forecast.load(tmp_path / "forecast").paths(2)
    with pytest.raises(ForecastError, match="found the branch 'age_sex'"):
        model.forecast(timelines, AT, branch="age_sex").paths(2)
    old = load_model(DATA / "model_version_1").forecast(old_timelines(), OLD_AT)
    with pytest.raises(ForecastError, match="fitted without paths; fit a transformer or hybrid"):
        old.paths(2)
    task = Task.from_dict(TASK.to_dict() | {"outcomes": {"illness": {"codes": ["SNOMED//1"]}}})
    deathless = ProgressionModel(CONFIG).fit(everyone, task)
    with pytest.raises(ForecastError, match="an outcome of MEDS_DEATH"):
        deathless.forecast(timelines, AT).paths(2)


def by_hand():
    """One subject with a value of 10 before the prediction time, and four paths."""
    rows = [
        (0, 10, "LOINC//a", 8.0), (0, 100, "LOINC//a", 5.5), (0, 400, END_CODE, None),
        (1, 30, "SNOMED//1", None), (1, 60, "MEDS_DEATH", None),
        (2, 50, "RXNORM//x", None), (2, 200, "SNOMED//1", None), (2, 390, "LOINC//a", 4.0), (2, 400, END_CODE, None),
        (3, 400, END_CODE, None),
    ]  # fmt: skip
    frame = pl.DataFrame(
        {
            "subject_id": 1, "patient": "p1", "prediction_time": AT, "path": [r[0] for r in rows],
            "time": [AT + timedelta(days=r[1]) for r in rows], "code": [r[2] for r in rows],
            "numeric_value": [r[3] for r in rows], "unit": ["u" if r[3] else None for r in rows],
        }
    )  # fmt: skip
    return frame.select(pl.col(c).cast(t) for c, t in PATH_SCHEMA.items())


def one_subject():
    events = {
        "subject_id": [1, 1], "time": [day(-9000), day(900)], "code": ["MEDS_BIRTH", "LOINC//a"],
        "numeric_value": [None, 10.0], "unit": [None, "u"],
    }  # fmt: skip
    subjects = {"subject_id": [1], "patient": ["p1"], "birth_time": [day(-9000)], "follow_up_start": [day(0)]}
    return Timelines.from_events(pl.DataFrame(events), pl.DataFrame(subjects).with_columns(follow_up_end=pl.lit(AT)))


HALVED = {"measure": "LOINC//a", "fall": "50%", "baseline": {"within": "1y"}}


@pytest.mark.parametrize(
    ("definition", "days"),
    [
        ({"codes": ["SNOMED//1"]}, [None, 30, 200, None]),
        ({"codes": ["MEDS_DEATH"]}, [None, 60, None, None]),
        ({"any_of": ["illness", "death"]}, [None, 30, 200, None]),
        ({"all_of": ["illness", "death"]}, [None, 60, None, None]),
        ({"sequence": [{"codes": ["RXNORM//x"]}, "illness"], "within": "6m"}, [None, None, 200, None]),
        ({"sequence": [{"codes": ["RXNORM//x"]}, "illness"], "within": "3m"}, [None, None, None, None]),
        ({"measure": "LOINC//a", "below": 6}, [100, None, 390, None]),
        (HALVED, [None, None, 390, None]),
        ({"any_of": [HALVED, "death"]}, [None, 60, 390, None]),
    ],
)
def test_outcomes_on_paths_by_hand(definition, days):
    table = TASK.to_dict()
    task = Task.from_dict({**table, "outcomes": {**table["outcomes"], "wanted": definition}})
    found = first_on_paths(one_subject(), by_hand(), task, "wanted").sort("path")
    assert found["path"].to_list() == [0, 1, 2, 3]
    assert found["days"].to_list() == days


def test_incidence_and_its_error_by_hand(forecast):
    source = forecast.source
    found = path_incidence(source, by_hand(), pl.col("code") == "SNOMED//1", ["1m", "1y"])
    assert found["probability"].to_list() == [0.25, 0.5]
    np.testing.assert_allclose(found["standard_error"].to_list(), [np.sqrt(0.25 * 0.75 / 4), 0.25])
    assert found["paths"].to_list() == [4, 4]


def test_a_history_that_has_the_outcome_already_has_no_incidence():
    table = TASK.to_dict()
    task = Task.from_dict({**table, "outcomes": {**table["outcomes"], "wanted": {"measure": "LOINC//a", "above": 9}}})
    assert not first_on_paths(one_subject(), by_hand(), task, "wanted").height


def test_outcomes_that_paths_cannot_have_are_told(forecast, paths):
    with pytest.raises(ForecastError, match=r"found one of others: NO//x; name the code"):
        forecast.path_incidence(paths, {"codes": ["NO//x"]})
    with pytest.raises(ForecastError, match="horizons within that of the paths; found '3y'"):
        forecast.path_incidence(paths, "death", ["3y"])
    with pytest.raises(ForecastError, match="a predicate on the columns"):
        forecast.path_incidence(paths, pl.col("nothing") > 1)
    with pytest.raises(ForecastError, match="a frame of paths"):
        forecast.path_incidence(paths.drop("path"), "death")
    with pytest.raises(ForecastError, match="a name of an outcome"):
        forecast.path_incidence(paths, 3)
    with pytest.raises(TaskError, match="did you mean 'death'"):
        forecast.path_incidence(paths, "deth")


def test_an_outcome_that_was_not_fitted_is_refused_not_counted_as_never(everyone, timelines):
    table = TASK.to_dict()
    outcomes = {**table["outcomes"], "rare": {"codes": ["ICD10CM//never"]}}
    unfitted = ProgressionModel(CONFIG).fit(everyone, Task.from_dict({**table, "outcomes": outcomes}))
    forecast = unfitted.forecast(timelines, AT)
    paths = forecast.paths(2, "2y")
    assert forecast.path_incidence(paths, "illness", ["1y"]).height
    with pytest.raises(ForecastError, match="codes that paths have"):
        forecast.path_incidence(paths, "rare", ["1y"])
    with pytest.raises(ForecastError, match="codes that paths have"):
        forecast.path_incidence(paths, {"any_of": ["rare", "illness"]}, ["1y"])
