"""Spans of time as a task writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import TaskError

NOMINAL_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0, "m": 365.25 / 12, "y": 365.25}
MICROSECONDS_A_DAY = 86_400_000_000
LONGEST_DAYS = 365_250  # of any span: far beyond it there are no dates
_POLARS_UNIT = {"h": "h", "d": "d", "w": "w", "m": "mo", "y": "y"}
_SPAN = re.compile(r"[0-9]{1,6}[hdwmy]")


@dataclass(frozen=True)
class Horizon:
    """A span of time: a whole number of hours (h), days (d), weeks (w), calendar months (m) or calendar years (y).

    >>> from datetime import datetime
    >>> Horizon("5y").days, Horizon("48h").days
    (1826.25, 2.0)
    >>> start = pl.Series([datetime(2005, 1, 1), datetime(2004, 2, 29)])
    >>> pl.select(Horizon("5y").after(pl.lit(start))).to_series().to_list()
    [datetime.datetime(2010, 1, 1, 0, 0), datetime.datetime(2009, 2, 28, 0, 0)]
    """

    label: str

    def __post_init__(self) -> None:
        if not isinstance(self.label, str) or not _SPAN.fullmatch(self.label):
            raise TaskError(
                "a span such as '48h', '30d', '2w', '6m' or '5y'", repr(self.label), "write a number and one unit"
            )
        if self.days > LONGEST_DAYS:
            raise TaskError("a span of at most 1,000 years", repr(self.label), "write a shorter one")

    @property
    def count(self) -> int:
        """How many units."""
        return int(self.label[:-1])

    @property
    def unit(self) -> str:
        """One of h, d, w, m, y."""
        return self.label[-1]

    @property
    def days(self) -> float:
        """The nominal length in days: a year is 365.25, a month a twelfth of that."""
        # not by a twenty-fourth, which is no exact number
        return self.count / 24 if self.unit == "h" else self.count * NOMINAL_DAYS[self.unit]

    @property
    def longest_days(self) -> float:
        """The greatest length in days: a year may have 366, a month 31.

        >>> [Horizon(h).longest_days for h in ("1y", "3y", "5y", "1m", "3m", "48h")]
        [366.0, 1096.0, 1827.0, 31.0, 92.0, 2.0]
        """
        if self.unit not in ("m", "y"):
            return self.days
        starts = pl.datetime_range(pl.datetime(2000, 1, 1), pl.datetime(2007, 12, 31), "1d")
        return float(pl.select(self.days_after(starts).max()).item())

    def after(self, expr: pl.Expr) -> pl.Expr:
        """The exact instant this long after each datetime: y and m keep the calendar day (29 February: the 28th)."""
        return expr.dt.offset_by(f"{self.count}{_POLARS_UNIT[self.unit]}")

    def before(self, expr: pl.Expr) -> pl.Expr:
        """The exact instant this long before each datetime."""
        return expr.dt.offset_by(f"-{self.count}{_POLARS_UNIT[self.unit]}")

    def end_of(self, times: NDArray[np.datetime64]) -> NDArray[np.datetime64]:
        """The same as `after` of an array in microseconds: of a few times that takes a twentieth of what polars takes.

        >>> Horizon("1y").end_of(np.array(["2020-02-29T12:30"], "M8[us]")).astype(str).tolist()
        ['2021-02-28T12:30:00.000000']
        """
        if self.unit not in ("m", "y"):
            return times + np.timedelta64(round(self.days * MICROSECONDS_A_DAY), "us")
        day, month = times.astype("M8[D]"), times.astype("M8[M]")
        to = month + np.timedelta64(self.count * (12 if self.unit == "y" else 1), "M")
        last = (to + np.timedelta64(1, "M")).astype("M8[D]") - np.timedelta64(1, "D")
        date = np.minimum(to.astype("M8[D]") + (day - month.astype("M8[D]")), last)
        end: NDArray[np.datetime64] = date + (times - day)
        return end

    def days_after(self, expr: pl.Expr) -> pl.Expr:
        """The exact length in days counted from each datetime: 5y from 2005-01-01 is 1826."""
        return in_days(self.after(expr) - expr)


def in_days(length: pl.Expr) -> pl.Expr:
    """A duration in days, as numpy has it: equal lengths are equal days, to the last bit.

    >>> hours = pl.Series([7 * 3_600_000_000]).cast(pl.Duration("us"))
    >>> pl.select(in_days(pl.lit(hours))).item() == 7 / 24
    True
    """
    microseconds = length.dt.total_microseconds()
    # by a constant polars multiplies with its inverse, which is another number for a third of all hours
    return microseconds / (microseconds * 0 + MICROSECONDS_A_DAY)
