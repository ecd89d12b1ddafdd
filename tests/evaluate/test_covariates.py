from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from ehrseq.evaluate.covariates import covariates
from tests.toy import TASK, append, cohort, day


@pytest.fixture(scope="module")
def timelines():
    return cohort(60)


def queries(timelines):
    times = [day(d) for d in (200, 730, 1500)]
    return timelines.subjects.select("subject_id").join(pl.DataFrame({"prediction_time": times}), how="cross")


def test_each_number_by_hand(timelines):
    table = covariates(timelines, queries(timelines))
    assert table.height == 180
    for row in table.sample(25, seed=1).iter_rows(named=True):
        at = row["prediction_time"]
        own = timelines.events.filter(
            (pl.col("subject_id") == row["subject_id"]) & (pl.col("known_time") <= at),
            ~pl.col("code").is_in(["MEDS_BIRTH", "MEDS_DEATH"]),
        )
        person = timelines.subjects.row(by_predicate=pl.col("subject_id") == row["subject_id"], named=True)
        assert row["age"] == pytest.approx((at - person["birth_time"]).days / 365.25, abs=0.003)
        assert row["female"] == (person["sex"] == "female")
        assert row["events"] == pytest.approx(np.log1p(own.height))
        recent = own.filter(pl.col("known_time") > at - timedelta(days=365.25))
        assert row["events_last_year"] == pytest.approx(np.log1p(recent.height))
        values = own.filter(code="LOINC//a").sort("known_time")["numeric_value"]
        assert row["LOINC//a"] == (pytest.approx(values[-1]) if len(values) else None)
        for code in ("LOINC//a", "RXNORM//x"):
            last = own.filter(code=code)["known_time"].max()
            years = None if last is None else pytest.approx((at - last) / timedelta(days=365.25))
            assert row[f"{code}//years"] == years
        first, last = own["known_time"].min(), own["known_time"].max()
        for name, when in (("years_since_first", first), ("years_since_last", last)):
            assert row[name] == (None if when is None else pytest.approx((at - when) / timedelta(days=365.25)))
        assert "RXNORM//x" not in row


def test_what_becomes_known_later_changes_nothing(timelines):
    asked = queries(timelines).filter(prediction_time=day(730))
    before = covariates(timelines, asked)
    late = [(s, day(100), "LOINC//a", 99.0, day(731)) for s in timelines.subjects["subject_id"]]
    assert covariates(append(timelines, late), asked).equals(before)
    early = [(s, day(100), "LOINC//a", 99.0, day(729)) for s in timelines.subjects["subject_id"]]
    assert not covariates(append(timelines, early), asked).equals(before)


def test_order_and_repeats(timelines):
    asked = queries(timelines)
    mixed = pl.concat([asked.sample(fraction=1, shuffle=True, seed=0), asked])
    table = covariates(timelines, mixed)
    assert table.select("subject_id", "prediction_time").equals(mixed[:180])
    assert table.sort("subject_id", "prediction_time").equals(covariates(timelines, asked))


def test_the_task_is_not_read():
    assert TASK.outcomes[0].codes[0] == "SNOMED//1"
    ill = covariates(cohort(60), queries(cohort(60)))
    assert "SNOMED//1//years" in ill.columns  # an outcome known by the prediction time is history like any other
