"""The door between pandas and polars: the only file that knows pandas."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


def to_polars(frame: Any) -> pl.DataFrame:
    """A polars frame from polars (eager or lazy), pandas, an Arrow table or a dict of columns.

    >>> to_polars({"a": [1, 2]}).shape
    (2, 1)
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    try:
        converted = _converted(frame)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        # what polars, pandas and Arrow say of a column may quote its values
        raise UserError(
            "columns of one type and one length",
            f"{type(error).__name__} on conversion",
            "make each column of one type, under a name of its own",
        ) from None
    if isinstance(converted, pl.DataFrame):
        return converted
    raise UserError(
        "a polars or pandas DataFrame",
        f"an object of type {type(frame).__name__}",
        "convert it to one of these",
    )


def at_once(steps: pl.LazyFrame) -> pl.DataFrame:
    """What several steps give, done in one call, in memory and as they are written.

    A step by itself costs a tenth of a millisecond, however few its rows: of one patient's forecast that is most.

    >>> at_once(pl.DataFrame({"a": [2, 1]}).lazy().sort("a").select(b=pl.col("a") + 1))["b"].to_list()
    [2, 3]
    """
    return steps.collect(engine="in-memory", optimizations=_AS_WRITTEN)


_AS_WRITTEN = pl.QueryOptFlags.none()


def on_polars_thread(do: Callable[[], T]) -> T:
    """What a function gives, or raises, called on one of polars' own threads.

    On any other thread each step of polars is handed over to one of these and waited for: in the forecast of one
    patient over a hundred times, which can take as long as what is computed. (So does polars 2.1, and nowhere says so.)
    It makes no other difference, but that another thread may have to wait for polars until this is done.

    >>> on_polars_thread(lambda: pl.Series([1, 2]).sum())
    3
    """
    given: list[T] = []
    raised: list[BaseException] = []

    def call(column: pl.Series) -> pl.Series:
        try:
            given.append(do())
        except BaseException as error:  # polars would raise another in its place
            raised.append(error)
        return column

    # two columns, since one alone is computed on the thread that asks
    at_once(_TWO.lazy().select(pl.col("a").map_batches(call, return_dtype=pl.Int64), pl.col("b") + 1))
    for error in raised:
        raise error
    return given[0]


_TWO = pl.DataFrame({"a": [0], "b": [0]})


def places(numbers: NDArray[Any]) -> pl.Series:
    """Numbers of rows as polars takes them. Given others, it spends more on looking at them than on a small table.

    >>> pl.Series(["a", "b"])[places(np.array([1, 0, 1]))].to_list()
    ['b', 'a', 'b']
    """
    return pl.Series(numbers.astype(np.uint32, copy=False))


def microseconds(times: pl.Series) -> NDArray[np.int64]:
    """Times in microseconds as whole numbers, the smallest there is for none.

    >>> microseconds(pl.Series([1, None], dtype=pl.Datetime("ms"))).tolist()
    [1000, -9223372036854775808]
    """
    return times.cast(pl.Datetime("us")).to_numpy().view(np.int64)


def replaced(table: pl.DataFrame, *columns: pl.Series) -> pl.DataFrame:
    """The table with other columns in the place of those of the same names, which takes no step of polars.

    >>> replaced(pl.DataFrame({"a": [1], "b": [2]}), pl.Series("a", [3])).rows()
    [(3, 2)]
    """
    table = table.clone()
    for column in columns:
        table.replace_column(table.get_column_index(column.name), column)
    return table


def place_among(key: pl.Expr, known: pl.Enum, name: str) -> pl.Expr:
    """The place of each text among those known, int64, -1 for another: as column `name`.

    >>> pl.select(place_among(pl.lit("b"), pl.Enum(["a", "b"]), "found")).item()
    1
    """
    return key.cast(known, strict=False).to_physical().cast(pl.Int64).fill_null(-1).alias(name)


def read_pairs(source: Any, first: str, second: str, error: type[UserError] = UserError) -> pl.DataFrame:
    """Two text columns of a table: a CSV or Parquet file, or a frame; rows in order, without repeats or gaps.

    >>> read_pairs({"code": ["A//1", "A//1", None], "parent": ["A//0", "A//0", "A//0"]}, "code", "parent").rows()
    [('A//1', 'A//0')]
    """
    what = f"a table with the columns {first} and {second}"
    if isinstance(source, str | Path):
        try:
            parquet = Path(source).suffix.lower() == ".parquet"
            source = pl.read_parquet(source) if parquet else pl.read_csv(source, infer_schema=False)
        except (OSError, pl.exceptions.PolarsError) as problem:
            raise error(f"{what}, in CSV or Parquet", type(problem).__name__, "check the file") from None
    table = to_polars(source)
    if not {first, second} <= set(table.columns):
        raise error(what, "other columns", "rename the columns")
    columns = (pl.col(first).cast(pl.String).str.strip_chars(), pl.col(second).cast(pl.String).str.strip_chars())
    return table.select(columns).filter(~pl.any_horizontal(pl.all().fill_null("") == "")).unique(maintain_order=True)


def _converted(frame: Any) -> Any:
    """What polars makes of an object it did not make itself; None where it knows no way."""
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if isinstance(frame, dict):
        series = [c for c in frame.values() if type(c).__module__ == "pandas.core.series"]
        if any(_days_and_times(column) for column in series):
            raise TypeError("dates and times in one column")
        return pl.DataFrame(frame)
    module = type(frame).__module__.split(".")[0]
    if module == "pandas":
        if any(_days_and_times(column) for _, column in frame.items()):
            raise TypeError("dates and times in one column")
        return pl.from_pandas(frame)
    return pl.from_arrow(frame) if module == "pyarrow" else None


def _days_and_times(column: Any) -> bool:
    """Whether a pandas column has dates and times: by the first of them, the others would be cut or fail."""
    from pandas.api.types import infer_dtype

    if column.dtype != object or infer_dtype(column, skipna=True) != "date":
        return False
    return any(isinstance(value, datetime) for value in column.dropna())


def to_pandas(frame: pl.DataFrame) -> pd.DataFrame:
    """A pandas frame with the same columns.

    >>> type(to_pandas(pl.DataFrame({"a": [1]}))).__name__
    'DataFrame'
    """
    return frame.to_pandas()
