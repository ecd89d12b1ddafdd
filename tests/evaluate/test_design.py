from __future__ import annotations

from datetime import datetime

import polars as pl
import pytest

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.design import (
    Design,
    check_known,
    check_no_overlap,
    site_designs,
    subject_designs,
    temporal_design,
)
from tests.toy import cohort, day

TIMES = [day(d) for d in (400, 800, 1200)]
QUERIES = pl.DataFrame({"subject_id": list(range(30))}).join(pl.DataFrame({"prediction_time": TIMES}), how="cross")


def ids(frame):
    return set(frame["subject_id"])


def test_subjects_are_judged_once_by_a_fit_without_them():
    designs = subject_designs(QUERIES, n_folds=4, seed=3)
    assert sorted(i for d in designs for i in ids(d.test)) == list(range(30))
    for design in designs:
        assert ids(design.train) | ids(design.test) == set(range(30))
        assert not ids(design.train) & ids(design.test)
    assert designs[0].test.equals(subject_designs(QUERIES, n_folds=4, seed=3)[0].test)
    assert not designs[0].test.equals(subject_designs(QUERIES, n_folds=4, seed=4)[0].test)


def test_time_does_not_run_backwards():
    design = temporal_design(QUERIES, TIMES[1].date())
    assert design.test["prediction_time"].unique().sort().to_list() == TIMES[1:]
    assert design.label_cut == TIMES[1]
    exact = temporal_design(QUERIES, TIMES[1].replace(hour=1))
    assert exact.test["prediction_time"].unique().to_list() == [TIMES[2]]
    with pytest.raises(EvaluationError, match="nobody who is judged"):
        temporal_design(QUERIES, "2030-01-01")
    with pytest.raises(EvaluationError, match="60 before it"):
        Design("x", design.train, QUERIES, datetime(2013, 1, 1)).checked()


def test_a_site_is_judged_by_the_others():
    timelines = cohort(30)
    sites = pl.DataFrame({"patient": [f"Patient/p{i}" for i in range(1, 28)], "site": ["n", "s", "w"] * 9})
    queries = QUERIES.with_columns(pl.col("subject_id") + 1)
    designs = site_designs(queries, sites, timelines)
    assert [d.test.height for d in designs] == [27, 27, 27]
    assert [d.train.height for d in designs] == [18, 18, 18]  # the three without a site do not train
    twice = pl.concat([sites, pl.DataFrame({"patient": ["p1"], "site": ["s"]})])
    with pytest.raises(EvaluationError, match="one row of groups for each subject"):
        site_designs(queries, twice, timelines)
    with pytest.raises(EvaluationError, match="at least two sites"):
        site_designs(queries, sites.with_columns(site=pl.lit("n")), timelines)
    with pytest.raises(EvaluationError, match="a column site"):
        site_designs(queries, sites.drop("site"), timelines)


def test_a_leaked_split_raises():
    with pytest.raises(EvaluationError, match="1 subjects on both sides"):
        Design("leak", QUERIES[:6].select("subject_id").unique(), QUERIES[3:9]).checked()
    with pytest.raises(EvaluationError, match="2 subjects on both sides"):
        check_no_overlap(pl.Series([1, 2, 3]), [2, 3, 3, 9])


def test_features_from_the_future_raise():
    frame = pl.DataFrame({"known_time": TIMES, "prediction_time": [TIMES[1]] * 3})
    check_known(frame[:2])
    with pytest.raises(EvaluationError, match="1 of 3 known only later"):
        check_known(frame)
    with pytest.raises(EvaluationError, match="no known_time"):
        check_known(frame.drop("known_time"))


def test_folds_that_cannot_be_made():
    for folds in (1, 31):
        with pytest.raises(EvaluationError, match="number of folds"):
            subject_designs(QUERIES, n_folds=folds)
