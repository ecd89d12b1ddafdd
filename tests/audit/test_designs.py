from __future__ import annotations

import json
from dataclasses import replace

import polars as pl
import pytest

from ehrseq.audit import evaluate_designs
from ehrseq.audit.designs import _training
from ehrseq.errors import EvaluationError
from ehrseq.evaluate.design import Design, site_designs, subject_designs, temporal_design
from ehrseq.task.times import prediction_times
from tests.toy import CONFIG, TASK, cohort, day

LIGHT = replace(CONFIG, model="boosted")


@pytest.fixture(scope="module")
def timelines():
    return cohort(400, seed=3)


@pytest.fixture(scope="module")
def queries(timelines):
    return prediction_times(timelines, TASK)


def test_every_subject_is_judged_once_by_another_fit(timelines, queries):
    designs = subject_designs(queries, n_folds=2)
    told = []
    found = evaluate_designs(timelines, TASK, designs, config=LIGHT, n_bootstrap=20, report=told.append)
    assert told == ["fold 1 of 2", "fold 2 of 2"]
    assert set(found.table["model"]) == {"boosted", "age_sex"}
    at_risk = [r["prediction_times"] for r in found.study["cohort"] if r["step"] == "considered"]
    assert at_risk == [queries.height] * 2
    assert found.table["n"].max() > 250
    assert "fold 1 of 2: 200 subjects" in found.study["provenance"]["trained_on"]
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(EvaluationError, match="judged once"):
        evaluate_designs(timelines, TASK, [designs[0], designs[0]], config=LIGHT)
    with pytest.raises(EvaluationError, match="both sides"):
        evaluate_designs(timelines, TASK, [replace(designs[0], train=queries.select("subject_id"))], config=LIGHT)


def test_after_a_cut_nothing_later_teaches(timelines):
    entered = timelines.subjects.with_row_index("i").with_columns(
        follow_up_start=pl.when(pl.col("i") % 2 == 0).then(pl.lit(day(-900))).otherwise("follow_up_start")
    )
    staggered = replace(timelines, subjects=entered.drop("i"))
    queries = prediction_times(staggered, TASK)
    cut = day(400)
    design = temporal_design(queries, cut)
    past = _training(staggered, design, 0)
    assert past.events["known_time"].max() <= cut
    assert past.subjects["follow_up_end"].max() <= cut
    assert (past.subjects["death_time"].drop_nulls() <= cut).all()
    assert set(past.splits["split"]) == {"train", "tuning"}
    found = evaluate_designs(staggered, TASK, [design], config=LIGHT, n_bootstrap=0)
    considered = [r for r in found.study["cohort"] if r["step"] == "considered"]
    assert considered[0]["prediction_times"] == design.test.height < queries.height


def test_each_site_is_judged_by_the_others(timelines, queries):
    sites = timelines.subjects.select("subject_id", site=pl.Series(["n", "s"] * 200))
    found = evaluate_designs(timelines, TASK, site_designs(queries, sites), config=LIGHT, n_bootstrap=0, by=sites)
    assert set(found.groups["attribute"]) >= {"site"}
    assert found.study["provenance"]["design"] == "without site 1 of 2; without site 2 of 2"


def test_a_leaked_design_raises(timelines, queries):
    leak = Design("leak", queries.select("subject_id"), queries)
    with pytest.raises(EvaluationError, match="400 subjects on both sides"):
        evaluate_designs(timelines, TASK, [leak], config=LIGHT)
