from datetime import date, datetime

import polars as pl
import pytest

from ehrseq.errors import TaskError
from ehrseq.task.times import prediction_times

MI = {"mi": {"codes": ["SNOMED//22298006"]}}


def end_of(*day):
    return datetime(*day, 23, 59, 59, 999999)


def test_landmarks_end_their_day_and_hours_are_exact(make_timelines, make_task):
    start = datetime(2004, 2, 29, 10, 30)
    timelines = make_timelines([], {1: {"follow_up_start": start}, 2: {"follow_up_start": None}})
    spans = ["36h", "0d", "30d", "2w", "6m", "1y", "4y"]
    task = make_task(MI, prediction_times={"rule": "landmarks", "after_start": spans})
    assert prediction_times(timelines, task).rows() == [
        (1, end_of(2004, 2, 29), "0d"),
        (1, datetime(2004, 3, 1, 22, 30), "36h"),
        (1, end_of(2004, 3, 14), "2w"),
        (1, end_of(2004, 3, 30), "30d"),
        (1, end_of(2004, 8, 29), "6m"),
        (1, end_of(2005, 2, 28), "1y"),
        (1, end_of(2008, 2, 29), "4y"),
    ]


def test_every_encounter_means_its_end_when_known(make_timelines, make_task, day):
    timelines = make_timelines([
        (1, 1, "ENCOUNTER//inpatient/admission"),
        (1, 3, "ENCOUNTER//inpatient/discharge", {"known_time": day(3.5)}),
        (1, 3, "ENCOUNTER//AMB/discharge", {"known_time": day(3.5)}),
        (1, 9, "ENCOUNTER//AMB/discharge"),
        (1, 10, "OTHER//AMB/discharge"),
    ])  # fmt: skip
    task = make_task(MI, prediction_times={"rule": "every_encounter"})
    assert prediction_times(timelines, task).rows() == [(1, day(3.5), None), (1, day(9), None)]


def test_after_a_code_means_when_it_is_known(make_timelines, make_task, day):
    events = [(2, 4, "X//1"), (1, 1, "X//1", {"known_time": day(2)}), (1, 1, "X//12"), (1, None, "X//1")]
    timelines = make_timelines(events, {1: {}, 2: {}})
    exact = make_task(MI, prediction_times={"rule": "after:X//1"})
    assert prediction_times(timelines, exact).rows() == [(1, day(2), None), (2, day(4), None)]
    prefix = make_task(MI, prediction_times={"rule": "after:X//1*"})
    assert prediction_times(timelines, prefix)["prediction_time"].to_list() == [day(1), day(2), day(4)]


def test_an_inline_table_names_patients_or_subjects(make_timelines, make_task):
    timelines = make_timelines([], {1: {}, 2: {}, 3: {"patient": "2"}})
    rows = [("patient-1", "2020-01-31"), ("2", "2020-01-01T10:00:00+02:00"), ("stranger", "2020-01-01")]
    times = {"rule": "table", "times": [{"patient": p, "time": t} for p, t in rows]}
    assert prediction_times(timelines, make_task(MI, prediction_times=times)).rows() == [
        (1, end_of(2020, 1, 31), None),
        (3, datetime(2020, 1, 1, 8), None),  # the patient named "2" goes before subject 2
    ]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_file(make_timelines, make_task, tmp_path, suffix):
    frame = pl.DataFrame({"patient": ["patient-1", "1"], "time": [date(2020, 1, 31), date(2021, 1, 31)], "x": [1, 2]})
    path = tmp_path / f"times.{suffix}"
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    task = make_task(MI, prediction_times={"rule": "table", "table": str(path)})
    assert prediction_times(make_timelines([]), task).rows() == [
        (1, end_of(2020, 1, 31), None),
        (1, end_of(2021, 1, 31), None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("who,time\na,2020-01-01\n", "columns patient and time"),
        ("patient,time\na,\n", "in each row"),
        ("patient,time\na,last May\n", "2020-01-31T12:00:00; found other text"),
    ],
)
def test_bad_tables_are_refused_without_their_content(make_timelines, make_task, tmp_path, text, message):
    path = tmp_path / "secret-name.csv"
    path.write_text(text)
    task = make_task(MI, prediction_times={"rule": "table", "table": str(path)})
    with pytest.raises(TaskError, match=message) as caught:
        prediction_times(make_timelines([]), task)
    assert "May" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_absent_table_file_is_refused(make_timelines, make_task, tmp_path):
    task = make_task(MI, prediction_times={"rule": "table", "table": str(tmp_path / "none.csv")})
    with pytest.raises(TaskError, match="readable CSV or Parquet table of prediction times; found FileNotFoundError"):
        prediction_times(make_timelines([]), task)


def test_a_table_of_numbers_is_refused(make_timelines, make_task, tmp_path):
    pl.DataFrame({"patient": ["a"], "time": [5]}).write_parquet(tmp_path / "t.parquet")
    task = make_task(MI, prediction_times={"rule": "table", "table": str(tmp_path / "t.parquet")})
    with pytest.raises(TaskError, match="expected dates or times in column time; found type Int64"):
        prediction_times(make_timelines([]), task)
