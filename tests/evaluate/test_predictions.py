from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime

import polars as pl
import pytest

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.groups import default_groups, read_groups
from ehrseq.evaluate.predictions import read_predictions
from tests.toy import cohort, day

END = datetime(2012, 1, 1, 23, 59, 59, 999999)


@pytest.fixture(scope="module")
def timelines():
    return cohort(20)


def table(**change):
    columns = {"patient": ["p1", "Patient/p2"], "prediction_time": ["2012-01-01"] * 2, "outcome": ["illness", "death"],
               "horizon_days": [365, 365], "probability": [0.1, 0.2], "comment": ["", "x"]}  # fmt: skip
    return pl.DataFrame({**columns, **change})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_another_vendors_file(timelines, tmp_path, suffix):
    path = tmp_path / f"vendor.{suffix}"
    (table().write_csv if suffix == "csv" else table().write_parquet)(path)
    risk, counts = read_predictions(path, timelines, ["illness", "death"])
    assert risk.columns == ["subject_id", "prediction_time", "outcome", "horizon_days", "probability"]
    assert risk["subject_id"].to_list() == [1, 2]
    assert risk["prediction_time"].to_list() == [END, END]
    assert counts == {"rows": 2, "rows_of_unknown_subjects": 0, "rows_of_other_outcomes": 0}


def test_ids_in_a_file_are_text(timelines, tmp_path):
    """As a number 007 would be patient 7."""
    names = pl.when(pl.col("subject_id") == 1).then(pl.lit("007")).when(pl.col("subject_id") == 2).then(pl.lit("7"))
    named = replace(timelines, subjects=timelines.subjects.with_columns(patient=names.otherwise("patient")))
    table(patient=["007", "7"]).write_csv(tmp_path / "vendor.csv")
    risk, _ = read_predictions(tmp_path / "vendor.csv", named, ["illness", "death"])
    assert risk["subject_id"].to_list() == [1, 2]


@pytest.mark.parametrize(
    "times", [[date(2012, 1, 1)] * 2, [END] * 2, ["2012-01-01T23:59:59.999999", "2012-01-02T01:59:59.999999+02:00"]]
)
def test_times_of_every_kind(timelines, times):
    risk, _ = read_predictions(table(prediction_time=times), timelines, ["illness", "death"])
    assert risk["prediction_time"].to_list() == [END, END]


def test_what_is_left_out_is_counted(timelines):
    frame = pl.concat([table(), table(patient=["nobody", "p3"], outcome=["death", "stroke"])])
    risk, counts = read_predictions(frame, timelines, ["illness", "death"])
    assert risk.height == 2
    assert counts == {"rows": 4, "rows_of_unknown_subjects": 1, "rows_of_other_outcomes": 1}


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (table().drop("horizon_days"), "no horizon_days"),
        (table().drop("patient"), "no patient or subject_id"),
        (table(patient=["p1", None]), "1 rows without"),
        (table(patient=["x", "y"]), "2 rows about others"),
        (table(outcome=["a", "b"]), "name the outcomes as the task does"),
        (table(prediction_time=["soon"] * 2), "text that is none"),
        (table(prediction_time=[5, 6]), "the type Int64"),
        (table(prediction_time=["2012-01-01", None]), "missing prediction_time"),
        (table(probability=[0.1, 1.2]), "1 rows outside"),
        (table(probability=[0.1, -0.2]), "1 rows outside"),
        (table(probability=[0.1, float("nan")]), "1 rows outside"),
        (table(probability=["low", "high"]), "values of other types"),
        (table(patient=["p1", "p1"], outcome=["death"] * 2), "2 rows that repeat one"),
        (table(horizon_days=[365, -1]), "horizon_days above 0"),
        (table(patient=["p1"] * 2, outcome=["death"] * 2, horizon_days=[365, 730], probability=[0.3, 0.2]),
         "do not fall"),
        (table().drop("patient").with_columns(subject_id=pl.lit("p1")), "integers in subject_id"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_judged_say_why_in_one_line(timelines, frame, expected):
    with pytest.raises(EvaluationError, match=expected) as told:
        read_predictions(frame, timelines, ["illness", "death"])
    assert "\n" not in str(told.value)
    for content in ("p1", "p2", "soon", "nobody"):
        assert content not in str(told.value)


def test_files_that_are_none(timelines, tmp_path):
    (tmp_path / "bad.parquet").write_text("x")
    for name, expected in (("none.csv", "no such file"), ("bad.parquet", "ComputeError")):
        with pytest.raises(EvaluationError, match=expected) as told:
            read_predictions(tmp_path / name, timelines, ["death"])
        assert str(tmp_path) not in str(told.value)


def test_groups_of_a_user(timelines, tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("patient,ward,floor\nPatient/p1,a,1\np2,b,2\nstranger,a,1\n")
    assert read_groups(path, timelines).rows() == [(1, "a", "1"), (2, "b", "2")]
    for frame, expected in [
        ({"patient": ["p1", "p1"], "ward": ["a", "b"]}, "one row of groups"),
        ({"ward": ["a"]}, "subject_id or patient"),
        ({"patient": ["p1"]}, "columns of groups"),
        ({"patient": [f"p{i}" for i in range(30)], "age": list(range(30))}, "at most 20 groups"),
    ]:
        with pytest.raises(EvaluationError, match=expected):
            read_groups(frame, timelines)


def test_age_is_that_of_the_prediction_time(timelines):
    at = timelines.subjects.select("subject_id", prediction_time=pl.lit(day(800)))
    groups = default_groups(timelines, at)
    assert groups.columns == ["subject_id", "prediction_time", "sex", "age"]
    born = timelines.subjects["birth_time"]
    for birth, band in zip(born, groups["age"], strict=True):
        years = (day(800) - birth).days / 365.25
        expected = next(
            (n for b, n in ((50, "under 50"), (65, "50 to 64"), (80, "65 to 79")) if years < b), "80 and over"
        )
        assert band == expected
