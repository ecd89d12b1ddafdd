"""The door between pandas and polars: the only file that knows pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from ehrseq.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


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


def _converted(frame: Any) -> Any:
    """What polars makes of an object it did not make itself; None where it knows no way."""
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if isinstance(frame, dict):
        return pl.DataFrame(frame)
    module = type(frame).__module__.split(".")[0]
    if module == "pandas":
        return pl.from_pandas(frame)
    return pl.from_arrow(frame) if module == "pyarrow" else None


def to_pandas(frame: pl.DataFrame) -> pd.DataFrame:
    """A pandas frame with the same columns.

    >>> type(to_pandas(pl.DataFrame({"a": [1]}))).__name__
    'DataFrame'
    """
    return frame.to_pandas()
