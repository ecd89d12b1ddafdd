"""Reading FHIR dates and times, all at once.

A FHIR date may be partial: it stands for an interval, whose start gives an event's `time` and whose end gives the
moment by which it was over. Written seconds (and fractions of them) count as exact; a leap second (`:60`) is the
next minute's first. Times with a zone become UTC;
a time or date without one is taken as UTC. Dates such as 9999-12-31 or 0001-01-01, which stand for none, are no times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ehrseq.fhir.columns import buffers, nullable, series, strings, take

NO_TIME = np.iinfo(np.int64).min  # numpy's "not a time"
UNTOLD = NO_TIME + 1  # of when something was known: there is a date, and it is no time
PRECISIONS = ("", "year", "month", "day", "minute", "second")
NO_OFFSET = np.int16(np.iinfo(np.int16).min)
MINUTE = 60_000_000  # in microseconds

_PATTERN = (
    r"^(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[Tt ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d|60)(?:[.,](\d+))?)?"
    r"([Zz]|[+-](?:(?:0\d|1[0-3]):?[0-5]\d|14:?00))?)?)?)?$"
).replace(r"\d", "[0-9]")  # by itself it stands for the digits of any script
FIRST_YEAR, LAST_YEAR = 1800, 2499  # before and after these, dates stand for none; some exports move dates to 2200
NO_DATE = ("0000", "0001", "9999")  # years that systems write where there is no date
_PARTS = ("year", "month", "day", "hour", "minute", "second", "fraction", "zone")


def stands_for_none(written: str | None) -> bool:
    """Whether a date is what systems write where they have none.

    >>> stands_for_none("9999-12-31"), stands_for_none("0001-01-01T00:00:00Z"), stands_for_none("2199-12-31")
    (True, True, False)
    """
    year = (written or "")[:4]
    return len(year) == 4 and year.isascii() and year.isdecimal() and not FIRST_YEAR <= int(year) <= LAST_YEAR


def given(written: str | None) -> str | None:
    """What is written as a date; None where it is what systems write without one.

    >>> given("0001-01-01"), given("soon"), given("")
    (None, 'soon', None)
    """
    return written if written and not written.startswith(NO_DATE) else None


@dataclass(frozen=True)
class Instants:
    """Parsed times: `start` and `end` in microseconds since 1970 UTC (`NO_TIME`: none or unreadable).

    `precision` indexes `PRECISIONS`; `offset` is in minutes as written (`NO_OFFSET`: none written).
    """

    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    precision: npt.NDArray[np.uint8]
    offset: npt.NDArray[np.int16]

    def __getitem__(self, part: slice) -> Instants:
        """Some of them."""
        return Instants(self.start[part], self.end[part], self.precision[part], self.offset[part])


def parse_times(written: Sequence[str | None]) -> Instants:
    """Parse FHIR date, dateTime and instant strings.

    >>> p = parse_times(["2020-02", "2020-02-29T23:30:00-01:00", "soon", None])
    >>> p.end.astype("datetime64[us]").astype(str).tolist()
    ['2020-02-29T23:59:59.999999', '2020-03-01T00:30:00.000000', 'NaT', 'NaT']
    >>> [PRECISIONS[i] for i in p.precision], p.offset[1].item()
    (['month', 'second', '', ''], -60)
    """
    return parse_column(strings([each or "" for each in written]))


def ends_before(start: str, end: str) -> bool:
    """Whether a period ends before it starts: in UTC where both have an offset, else by the clock on the wall.

    The day of the end says so where it is later, whatever the offsets. Fractions of a second do not count.

    >>> ends_before("2016-03-02T10:00:00Z", "2016-03-02T08:00:00.5Z"), ends_before("2016-03-02T10:00:00Z", "2016-03-02")
    (True, False)
    """
    day, last = start[:10], end[:10]
    if last > day or (last == day and (len(start) <= 10 or len(end) <= 10)):
        return False
    # nearly all are written alike: to read a time is dear
    if len(start) >= 19 <= len(end):
        without = len(start) == len(end) == 19
        if without or start[-1] == end[-1] == "Z" or (start[-6:] == end[-6:] and start[-6] in "+-"):
            return end[:19] < start[:19]
    found = parse_times([start, end])
    local = not (found.offset != NO_OFFSET).all()
    shift = np.where(found.offset == NO_OFFSET, 0, found.offset).astype(np.int64) * (MINUTE if local else 0)
    known = found.start[0] != NO_TIME and found.end[1] != NO_TIME
    return bool(known and found.end[1] + shift[1] < found.start[0] + shift[0])


def later(one: str | None, other: str | None) -> str | None:
    """Of two times the one that is over later; what is no time counts for nothing beside one that is.

    >>> later("2014", "2014-03-01"), later("soon", "2014-03-01"), later(None, "2014-03-01")
    ('2014', '2014-03-01', '2014-03-01')
    """
    if not one or not other or one == other:
        return one or other
    ends = parse_times([one, other]).end
    return one if ends[0] >= ends[1] else other


def parse_column(written: pa.LargeStringArray) -> Instants:
    """The same of a column of strings, empty where there is none."""
    bounds, text = buffers(written)
    length, size = np.diff(bounds), len(written)
    found = Instants(np.full(size, NO_TIME), np.full(size, NO_TIME), np.zeros(size, np.uint8), np.full(size, NO_OFFSET))
    rest = length > 0
    for layout in _LAYOUTS:
        alike = length == len(layout)
        at = np.flatnonzero(alike)
        if len(at):
            only = len(at) * len(layout) == len(text)
            instants, fits = _parse_layout(text if only else text[np.repeat(alike, length)], layout)
            _put(found, at[fits], instants, fits)
            rest[at[fits]] = False
    at = np.flatnonzero(rest)
    if len(at):
        _put(found, at, _parse_any(series([take(written, at)]).alias("text")))
    return _real(found)


def _real(found: Instants) -> Instants:
    """The same, in place, without dates that stand for none."""
    none = np.flatnonzero((found.start < _FIRST) | (found.start >= _BEYOND))
    _put(found, none, Instants(*(np.full(len(none), each) for each in _NONE)))
    return found


def _put(found: Instants, at: npt.NDArray[np.int64], those: Instants, which: Any = slice(None)) -> None:
    for f in fields(Instants):
        getattr(found, f.name)[at] = getattr(those, f.name)[which]


# the commonest ways to write a time, which are looked at as digits in a grid: `9` a digit, `+` a sign
_LAYOUTS = (
    "9999-99-99T99:99:99+99:99",
    "9999-99-99T99:99:99.999+99:99",
    "9999-99-99T99:99:99Z",
    "9999-99-99T99:99:99.999Z",
    "9999-99-99",
)
_DAY = 86_400_000_000
_FIRST, _BEYOND = np.array([f"{FIRST_YEAR}-01-01", f"{LAST_YEAR + 1}-01-01"], "M8[us]").astype(np.int64).tolist()
_NONE = (NO_TIME, NO_TIME, np.uint8(0), NO_OFFSET)


def _parse_layout(text: npt.NDArray[np.uint8], layout: str) -> tuple[Instants, npt.NDArray[np.bool_]]:
    """Parse texts that have as many bytes as a layout; which of them are written like it and are a time."""
    size = len(text) // len(layout)
    # a row for each place in the layout, so that what follows runs along memory
    grid = text.reshape(size, len(layout)).T.copy()
    digits = grid - np.uint8(ord("0"))
    form = np.frombuffer(layout.encode(), np.uint8)[:, None]
    is_digit = form[:, 0] == ord("9")
    signs, wanted = grid[~is_digit], form[~is_digit]
    fits = (digits[is_digit] <= 9).all(axis=0)
    fits &= ((signs == wanted) | ((wanted == ord("+")) & (signs == ord("-")))).all(axis=0)

    def number(start: int, width: int = 2) -> npt.NDArray[np.int32]:
        value: npt.NDArray[np.int32] = digits[start].astype(np.int32)
        for place in range(start + 1, start + width):
            value *= 10
            value += digits[place]
        return value

    year, month, day = number(0, 4), number(5), number(8)
    fits &= (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1)
    months = np.where(fits, year * 12 + month - 1, 0)
    first = _first_days().take(months)
    fits &= day <= _first_days().take(months + 1) - first
    start = (first + day - 1) * _DAY
    minutes = np.full(size, NO_OFFSET)
    if len(layout) == 10:
        return Instants(start, start + _DAY - 1, np.full(size, 3, np.uint8), minutes), fits
    hour, minute, second = number(11), number(14), number(17)
    fits &= (hour <= 23) & (minute <= 59) & (second <= 59)
    zone = layout.index("Z") if layout.endswith("Z") else layout.index("+")
    offset = np.zeros(size, np.int32)
    if not layout.endswith("Z"):
        offset = (number(zone + 1) * 60 + number(zone + 4)) * np.where(grid[zone] == ord("-"), -1, 1)
        fits &= (np.abs(offset) <= 14 * 60) & (number(zone + 4) < 60)
    start += ((hour * 60 + minute - offset) * 60 + second).astype(np.int64) * 1_000_000
    if zone > 19:
        start += number(20, 3).astype(np.int64) * 1000
    return Instants(start, start, np.full(size, 5, np.uint8), offset.astype(np.int16)), fits


@cache
def _first_days() -> npt.NDArray[np.int64]:
    """The first days of all months from year 0 to January 10000, in days since 1970."""
    months = np.arange(-1970 * 12, 8030 * 12 + 1).astype("datetime64[M]")
    return months.astype("datetime64[D]").astype(np.int64)


def _parse_any(text: pl.Series) -> Instants:
    """Parse texts of any kind."""
    parts = text.str.extract_groups(_PATTERN).struct.rename_fields(list(_PARTS)).struct.unnest()
    whole = {c: pl.col(c).cast(pl.Int64).fill_null(0) for c in ("hour", "minute", "second")}
    day = pl.concat_str("year", pl.col("month").fill_null("01"), pl.col("day").fill_null("01"), separator="-")
    zone = pl.col("zone").str.replace(":", "", literal=True)
    sign = pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    minutes = zone.str.slice(1, 2).cast(pl.Int64) * 60 + zone.str.slice(3, 2).cast(pl.Int64)
    is_utc = zone.is_in(["Z", "z"])
    frame = (
        parts.with_columns(
            day=day.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
            clock=((whole["hour"] * 60 + whole["minute"]) * 60 + whole["second"]) * 1_000_000
            + pl.col("fraction").str.slice(0, 6).str.pad_end(6, "0").cast(pl.Int64).fill_null(0),
            offset=pl.when(is_utc).then(0).when(zone.is_not_null()).then(sign * minutes),
            precision=pl.when(pl.col("second").is_not_null()).then(5)
            .when(pl.col("hour").is_not_null()).then(4)
            .when(pl.col("day").is_not_null()).then(3)
            .when(pl.col("month").is_not_null()).then(2)
            .otherwise(1),
        )
        .with_columns(start=pl.col("day").dt.epoch("us") + pl.col("clock") - pl.col("offset").fill_null(0) * 60_000_000)
        .with_columns(
            end=pl.when(pl.col("precision") == 5).then("start")
            .when(pl.col("precision") == 4).then(pl.col("start") + 59_999_999)
            .when(pl.col("precision") == 3).then(pl.col("start") + 86_399_999_999)
            .when(pl.col("precision") == 2).then(pl.col("day").dt.offset_by("1mo").dt.epoch("us") - 1)
            .otherwise(pl.col("day").dt.offset_by("1y").dt.epoch("us") - 1),
            precision=pl.when(pl.col("start").is_not_null()).then("precision").otherwise(0),
        )
    )  # fmt: skip
    return Instants(
        frame["start"].fill_null(NO_TIME).to_numpy(),
        frame["end"].fill_null(NO_TIME).to_numpy(),
        frame["precision"].cast(pl.UInt8).to_numpy(),
        frame["offset"].fill_null(NO_OFFSET).cast(pl.Int16).to_numpy(),
    )


def moments(microseconds: npt.NDArray[np.int64]) -> pl.Series:
    """Microseconds since 1970 as a polars time column, null where `NO_TIME`.

    >>> moments(np.array([0, NO_TIME])).to_list()
    [datetime.datetime(1970, 1, 1, 0, 0), None]
    """
    return nullable(microseconds, NO_TIME).cast(pl.Datetime("us"))
