import datetime
import resource

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ehrseq.errors import UserError
from ehrseq.frames import at_once, in_this_thread, to_pandas, to_polars

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


def test_what_is_done_in_this_thread_does_not_wait_for_others():
    frame = pl.DataFrame({"a": [3, 1, None] * 20, "b": ["x", "y", "z"] * 20})

    def waits() -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        for _ in range(200):
            at_once(frame.lazy().filter(pl.col("a") > 1).sort("b"))
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before

    assert in_this_thread(waits) < waits() / 4


@pytest.mark.parametrize("error", [KeyError("a name"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_error_in_this_thread_is_raised_as_it_is(error):
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        in_this_thread(fail)
    assert caught.value is error
