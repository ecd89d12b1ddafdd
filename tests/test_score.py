"""Whole jobs on folders: fit, score, evaluate and inspect."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest

from ehrseq.config import ModelConfig
from ehrseq.errors import ArtifactError, EvaluationError, SourceError, TaskError, TimelineError, UserError
from ehrseq.estimator import ProgressionModel
from ehrseq.forecast.table import Forecast
from ehrseq.score import evaluate_export, fit_model, inspect, score_export
from ehrseq.storage import MANIFEST, write_json
from ehrseq.synthetic import write_simulation
from ehrseq.task.definition import Task
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.ingest import ingest
from ehrseq.timeline.store import Timelines
from tests.toy import CONFIG

AT = "2012-06-30"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A simulated export, its timelines, a tiny model and its forecasts at the task's prediction times."""
    folder = tmp_path_factory.mktemp("work")
    write_simulation(folder / "simulation", 150, seed=3)
    ingest(folder / "simulation" / "export", folder / "timelines")
    epochs = []
    fit_model(
        folder / "timelines", folder / "simulation" / "task.toml", folder / "model", config=CONFIG,
        report=lambda epoch, loss: epochs.append(epoch),
    )  # fmt: skip
    assert epochs == [1, 2]
    score_export(folder / "timelines", folder / "model", folder / "forecasts", at="task")
    return folder


def test_the_export_scores_like_its_timelines(work, tmp_path):
    model = ProgressionModel.load(work / "model")
    stored = score_export(work / "timelines", work / "model", tmp_path / "f", at=AT)
    raw = score_export(work / "simulation" / "export", model, at=AT)
    events = Timelines.load(work / "timelines")
    for other in (raw, score_export(events, model, at=AT), score_export(str(work / "timelines"), model, at=AT)):
        assert other.risk.equals(stored.risk)
        assert other.skipped.equals(stored.skipped)
        assert other.metadata == stored.metadata
    assert Forecast.load(tmp_path / "f").risk.equals(stored.risk)
    assert stored.risk.height > 100


def test_an_event_frame_is_a_source(work):
    model = ProgressionModel.load(work / "model")
    events = Timelines.load(work / "timelines").events
    few = events.filter(pl.col("subject_id").is_in(events["subject_id"].unique().sort().head(5).implode()))
    found = score_export(few.to_pandas(), model, at=AT)
    assert found.risk["subject_id"].n_unique() + found.skipped["subject_id"].n_unique() >= 5


def test_at(work):
    timelines, model = Timelines.load(work / "timelines"), ProgressionModel.load(work / "model")
    by_text = score_export(timelines, model, at=AT)
    frame = timelines.subjects.select("patient", prediction_time=pl.lit(date(2012, 6, 30)))
    days = frame.to_pandas().assign(prediction_time=date(2012, 6, 30))  # pandas has no dates but as objects
    for at in (date(2012, 6, 30), frame, days, "2012-06-30T23:59:59.999999"):
        same = score_export(timelines, model, at=at)
        assert same.risk.equals(by_text.risk)
        assert same.skipped.equals(by_text.skipped)
    ends = score_export(timelines, model)
    known = timelines.subjects.select("subject_id", prediction_time="follow_up_end")
    assert ends.risk.join(known, on=["subject_id", "prediction_time"], how="anti").height == 0
    task = score_export(timelines, model, at="task")
    assert task.risk.group_by("subject_id").agg(pl.col("prediction_time").n_unique())["prediction_time"].max() == 2


def test_taken_places_and_formats_are_refused_before_any_work(work, tmp_path):
    (tmp_path / "mine.txt").write_text("years of work")
    nowhere = tmp_path / "nowhere"
    taken = {tmp_path: "other content", work / "timelines": "a timelines folder"}
    for out, found in taken.items():
        # what is to be read is not there: the place to write is looked at first
        with pytest.raises(UserError, match=found):
            fit_model(nowhere, nowhere, out)
        with pytest.raises(UserError, match=found):
            score_export(nowhere, nowhere, out)
        with pytest.raises(UserError, match=found):
            evaluate_export(nowhere, nowhere, out)
    with pytest.raises(UserError, match="parquet, csv or fhir"):
        score_export(nowhere, nowhere, tmp_path / "f", file_format="xml")
    assert (tmp_path / "mine.txt").read_text() == "years of work"
    assert len(Timelines.load(work / "timelines")) == 150


def test_what_is_not_there(work, tmp_path):
    with pytest.raises(SourceError, match="no such path"):
        score_export(tmp_path / "nowhere", work / "model")
    with pytest.raises(ArtifactError, match="no such folder"):
        score_export(work / "timelines", tmp_path / "nowhere")
    with pytest.raises(TimelineError, match="a timelines folder"):
        score_export(work / "model", work / "model")
    with pytest.raises(TimelineError, match="ehrseq ingest"):
        evaluate_export(work / "model", work / "simulation" / "export")


def test_a_model_is_judged_on_whom_it_has_not_seen(work, tmp_path):
    result = evaluate_export(work / "model", work / "timelines", tmp_path / "report", n_bootstrap=0)
    assert result.facts["seen_in_training"] + result.facts["evaluated"] == result.facts["subjects"] == 150
    assert set(result.table["model"]) == {"hybrid", "transformer", "boosted", "age_sex", "null"}
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == [
        "hti1_source_attributes.json", MANIFEST, "model_card.md", "report.html", "report.json", "tripod_ai.json",
    ]  # fmt: skip
    model = ProgressionModel.load(work / "model")
    task = Task.from_toml(work / "simulation" / "task.toml")
    for given in (task, work / "simulation" / "task.toml"):
        again = evaluate_export(model, Timelines.load(work / "timelines"), task=given, n_bootstrap=0)
        assert again.table.equals(result.table)


def test_a_forecast_folder_is_judged_like_the_table_it_holds(work, tmp_path):
    timelines = Timelines.load(work / "timelines")
    model = ProgressionModel.load(work / "model")
    seen = pl.Series(model.seen_in_training(timelines.subjects["subject_id"].to_numpy()))
    unseen = timelines.select(timelines.subjects["subject_id"].filter(~seen))
    task = Task.from_toml(work / "simulation" / "task.toml")
    once = Task.from_dict(task.to_dict() | {"prediction_times": {"rule": "landmarks", "after_start": ["2y"]}})
    model.task_ = once
    model.forecast(unseen, "task").save(tmp_path / "f")
    by_folder = evaluate_export(tmp_path / "f", timelines, tmp_path / "report", n_bootstrap=0)
    by_model = evaluate_export(model, timelines, n_bootstrap=0).table.filter(model="hybrid")
    keys = ["outcome", "horizon"]
    columns = [*keys, "n", "events", "observed", "mean_predicted", "auc"]
    found = by_folder.table.select(columns).sort(keys)
    # other models are not there to leave a row out, and the whole cohort's reference is not
    assert found.equals(by_model.select(columns).sort(keys))
    assert by_folder.facts == {"subjects": len(unseen), "not_in_timelines": 0, "seen_in_training": 0}
    given = evaluate_export(tmp_path / "f", timelines, task=work / "simulation" / "task.toml", n_bootstrap=0)
    assert given.table.equals(evaluate_export(tmp_path / "f", timelines, task=task, n_bootstrap=0).table)


def test_strangers_and_the_unscored_are_counted(work, tmp_path):
    timelines = Timelines.load(work / "timelines")
    forecast = Forecast.load(work / "forecasts")
    assert forecast.seen.height > 0
    some = timelines.select(timelines.subjects["subject_id"].head(100))
    dropped = forecast.risk.filter(outcome="death").select("subject_id", "patient", "prediction_time").unique()
    # one who is at risk of death then: still followed
    followed = dropped.join(timelines.subjects.select("subject_id", "follow_up_end"), on="subject_id")
    followed = followed.filter(pl.col("follow_up_end") > pl.col("prediction_time")).drop("follow_up_end")
    dropped = followed.sort("subject_id", "prediction_time").head(1)
    at_risk = forecast.risk.join(dropped, on=["subject_id", "prediction_time"], how="anti")
    lost = dropped.with_columns(outcome=pl.lit(None, pl.String), reason=pl.lit("unknown_codes"))
    # nobody is said to be seen in training here, so that everybody is judged
    Forecast(at_risk, pl.concat([forecast.skipped, lost]), forecast.metadata).save(tmp_path / "f")
    whole = evaluate_export(tmp_path / "f", timelines, n_bootstrap=0)
    by_horizon = whole.table.filter(outcome="death").group_by("horizon").agg(pl.col("unscored").sum())
    assert by_horizon["unscored"].to_list() == [1, 1, 1]
    assert whole.facts["seen_in_training"] == 0
    unseen = evaluate_export(work / "forecasts", timelines, n_bootstrap=0)
    assert unseen.facts["seen_in_training"] == forecast.seen.height
    judged, everybody = (e.table.filter(outcome="death")["at_risk"].max() for e in (unseen, whole))
    assert judged < everybody
    assert evaluate_export(tmp_path / "f", some, n_bootstrap=0).facts["not_in_timelines"] == 50


def test_forecasts_without_later_follow_up_cannot_be_judged(work, tmp_path):
    score_export(work / "timelines", work / "model", tmp_path / "f")
    with pytest.raises(EvaluationError, match="followed after their prediction time; found none among 150"):
        evaluate_export(tmp_path / "f", work / "timelines")


def test_forecasts_without_their_task_ask_for_it(work, tmp_path):
    forecast = Forecast.load(work / "forecasts")
    Forecast(forecast.risk, forecast.skipped).save(tmp_path / "f")
    with pytest.raises(EvaluationError, match="give the task file"):
        evaluate_export(tmp_path / "f", work / "timelines")
    task = work / "simulation" / "task.toml"
    result = evaluate_export(tmp_path / "f", work / "timelines", task=task, n_bootstrap=0)
    assert set(result.table["model"]) == {"forecast"}


def test_forecasts_of_a_task_whose_times_were_withheld(work, tmp_path):
    forecast = Forecast.load(work / "forecasts")
    withheld = forecast.metadata | {"task": forecast.metadata["task"] | {"prediction_times": None}}
    Forecast(forecast.risk, forecast.skipped, withheld, seen=forecast.seen).save(tmp_path / "f")
    found = evaluate_export(tmp_path / "f", work / "timelines", n_bootstrap=0)
    known = evaluate_export(work / "forecasts", work / "timelines", n_bootstrap=0).table
    # the same rows, under the landmarks' names where these are known
    assert found.table["landmark"].null_count() == found.table.height
    assert known["landmark"].null_count() == 0
    for name in ("at_risk", "events", "competing"):
        counts = known.group_by("outcome", "horizon", maintain_order=True).agg(pl.col(name).sum())
        assert (
            counts.join(found.table.select("outcome", "horizon", pl.col(name).alias("_")), on=["outcome", "horizon"])[
                name
            ].to_list()
            == found.table[name].to_list()
        )


def test_inspect(work):
    assert inspect(work / "timelines")["subjects"] == 150
    model = inspect(work / "model")
    assert model["kind"] == "model"
    assert set(model["outcomes"]) == {"diabetes", "heart_failure", "death"}
    assert model["members"] == len(model["tuning_loss"]) == 1
    assert sum(model["trained_on"].values()) < 150
    facts = inspect(work / "forecasts")
    risk = Forecast.load(work / "forecasts").risk
    assert facts["rows"] == risk.height
    means = facts["mean_probability"]["death"]
    assert len(means) == 3  # whether a year has 365 days or 366
    one_year = risk.filter(pl.col("outcome") == "death", pl.col("horizon_days") < 400)["probability"].mean()
    assert next(iter(means.values())) == pytest.approx(one_year, abs=1e-4)
    assert sum(facts["skipped"].values()) == Forecast.load(work / "forecasts").skipped.height


def test_inspect_other_folders(work, tmp_path):
    for folder, found in (
        (tmp_path, "another folder"),
        (tmp_path / "nowhere", "no such folder"),
        (work / "simulation", "a folder of kind 'simulation'"),
    ):
        with pytest.raises(UserError, match=f"found {found}; check the path"):
            inspect(folder)
    write_json(tmp_path / MANIFEST, ["no", "manifest"])
    with pytest.raises(UserError, match="found another folder"):
        inspect(tmp_path)


def test_a_foreign_meds_dataset_is_timelines(work, tmp_path):
    events = Timelines.load(work / "timelines").events
    (tmp_path / "meds" / "data").mkdir(parents=True)
    events.select("subject_id", "time", "code", "numeric_value").write_parquet(tmp_path / "meds" / "data" / "0.parquet")
    assert inspect(tmp_path / "meds")["kind"] == "timelines"
    found = score_export(tmp_path / "meds", work / "model", at=AT)
    assert found.risk["subject_id"].n_unique() > 50


def test_outcomes_that_never_occur(work, tmp_path):
    task = Task.from_toml(work / "simulation" / "task.toml").to_dict()
    never = {"codes": ["SNOMED//0"], "competing": ["death"]}
    config = ModelConfig(CONFIG.network, CONFIG.training, seed=1)
    with_it = Task.from_dict(task | {"outcomes": {"never": never, "death": task["outcomes"]["death"]}})
    model = fit_model(work / "timelines", with_it, tmp_path / "model", config=config)
    assert model.fitted_.events["never"] == 0
    forecast = score_export(work / "timelines", tmp_path / "model", at=AT)
    assert set(forecast.risk["outcome"]) == {"death"}
    assert forecast.skipped.filter(outcome="never")["reason"].unique().to_list() == ["no_training_events"]
    alone = Task.from_dict(task | {"outcomes": {"never": {"codes": ["SNOMED//0"]}}})
    with pytest.raises(TaskError, match="at least one outcome that occurs"):
        fit_model(work / "timelines", alone, tmp_path / "other", config=config)
    assert not (tmp_path / "other").exists()


def test_read_fhir_and_ingest_agree(work):
    assert read_fhir(work / "simulation" / "export").events.equals(Timelines.load(work / "timelines").events)


def test_a_forecast_folders_labs_are_judged(work):
    forecast = Forecast.load(work / "forecasts")
    assert set(forecast.labs["code"]) == set(inspect(work / "forecasts")["labs"]) > set()
    result = evaluate_export(work / "forecasts", work / "timelines", n_bootstrap=0)
    scored = pl.DataFrame(result.study["labs"], infer_schema_length=None)
    assert set(scored["code"]) == set(forecast.labs["code"])
    seen = forecast.seen["subject_id"].n_unique()
    assert scored["subjects"].max() <= forecast.labs["subject_id"].n_unique() - seen
