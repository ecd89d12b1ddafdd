import datetime
import threading

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ehrseq.errors import UserError
from ehrseq.frames import on_polars_thread, to_pandas, to_polars

COLUMNS = {"subject_id": [1, 2], "code": ["A//1", "B//2"], "time": [datetime.datetime(2020, 1, 1), None]}


@pytest.mark.parametrize(
    "convert",
    [pl.DataFrame, pl.LazyFrame, pd.DataFrame, lambda c: pl.DataFrame(c).to_arrow(), dict],
    ids=["polars", "lazy", "pandas", "arrow", "dict"],
)
def test_every_kind_of_frame_gives_the_same_polars_frame(convert):
    frame = to_polars(convert(COLUMNS))
    assert frame.rows() == pl.DataFrame(COLUMNS).rows()
    assert frame.columns == list(COLUMNS)


def test_polars_frames_pass_through_uncopied():
    frame = pl.DataFrame(COLUMNS)
    assert to_polars(frame) is frame


def test_to_pandas_and_back():
    frame = pl.DataFrame(COLUMNS)
    assert to_polars(to_pandas(frame)).rows() == frame.rows()


@pytest.mark.parametrize("thing", [[1, 2], "path", None, pa.array([1, 2])], ids=["list", "text", "none", "array"])
def test_other_objects_are_refused_by_type(thing):
    with pytest.raises(UserError, match="expected a polars or pandas DataFrame; found an object of type"):
        to_polars(thing)


@pytest.mark.parametrize(
    "broken",
    [{"a": [1, 2], "b": [1]}, pd.DataFrame({"a": [1, "secret"]}), pd.DataFrame([[1, 2]], columns=["a", "a"])],
    ids=["ragged", "mixed", "same name twice"],
)
def test_frames_that_do_not_convert_are_refused_in_one_line_without_values(broken):
    with pytest.raises(UserError) as caught:
        to_polars(broken)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_thread_of_polars_answers_and_raises_as_any_other():
    asking = threading.get_ident()
    assert on_polars_thread(threading.get_ident) not in (asking, None)
    assert on_polars_thread(lambda: on_polars_thread(lambda: pl.DataFrame(COLUMNS).sort("code").height)) == 2
    error = pl.exceptions.PanicException("told as it is")
    for raised in (UserError("one thing", "another", "choose"), KeyboardInterrupt(), error):
        with pytest.raises(type(raised)) as caught:
            on_polars_thread(lambda raised=raised: (_ for _ in ()).throw(raised))
        assert caught.value is raised


@pytest.mark.parametrize("first", [0, 1])
def test_dates_and_times_in_one_column_are_refused_whichever_comes_first(first):
    values = [datetime.date(2014, 6, 30), datetime.datetime(2014, 6, 30, 12)]
    with pytest.raises(UserError, match="columns of one type"):
        to_polars(pd.DataFrame({"t": [values[first], values[1 - first], None]}))
    assert to_polars(pd.DataFrame({"t": [values[0], None]}))["t"].to_list() == [values[0], None]
    gap = pd.DataFrame({"t": pd.to_datetime(pd.Series(["2014-06-30", None])).dt.date})  # NaT passes for a time
    assert to_polars(gap)["t"].to_list() == [values[0], None]
