"""Reading FHIR dates and times, all at once.

A FHIR date may be partial: it stands for an interval, whose start gives an event's `time` and whose end gives the
moment by which it was over. Written seconds (and fractions of them) count as exact; a leap second (`:60`) is the
next minute's first. Times with a zone become UTC;
a time or date without one is taken as UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

NO_TIME = np.iinfo(np.int64).min  # numpy's "not a time"
PRECISIONS = ("", "year", "month", "day", "minute", "second")
NO_OFFSET = np.iinfo(np.int16).min

_PATTERN = (
    r"^(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[Tt ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d|60)(?:[.,](\d+))?)?"
    r"([Zz]|[+-]\d\d:?\d\d)?)?)?)?$"
)
_PARTS = ("year", "month", "day", "hour", "minute", "second", "fraction", "zone")


@dataclass(frozen=True)
class Instants:
    """Parsed times: `start` and `end` in microseconds since 1970 UTC (`NO_TIME`: none or unreadable).

    `precision` indexes `PRECISIONS`; `offset` is in minutes as written (`NO_OFFSET`: none written).
    """

    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    precision: npt.NDArray[np.uint8]
    offset: npt.NDArray[np.int16]


def parse_times(written: Sequence[str | None]) -> Instants:
    """Parse FHIR date, dateTime and instant strings.

    >>> p = parse_times(["2020-02", "2020-02-29T23:30:00-01:00", "soon", None])
    >>> p.end.astype("datetime64[us]").astype(str).tolist()
    ['2020-02-29T23:59:59.999999', '2020-03-01T00:30:00.000000', 'NaT', 'NaT']
    >>> [PRECISIONS[i] for i in p.precision], p.offset[1].item()
    (['month', 'second', '', ''], -60)
    """
    text = pl.Series("text", written, dtype=pl.String)
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
    series = pl.Series(microseconds)
    return series.set(series == NO_TIME, None).cast(pl.Datetime("us"))
