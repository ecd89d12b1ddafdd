"""Forecasts as files: one place where a format is a function of a forecast, and how the files of parts become one.

A population is forecast in parts. Each part is written to a folder of its own; at the end the files of one name are
joined in the order of the parts. A new format is a function in `FORMATS`, and, where its files end in something new,
one in `JOINS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrseq.errors import ForecastError
from ehrseq.forecast.fhir import write_folder

if TYPE_CHECKING:
    from ehrseq.forecast.table import Forecast


def tables_of(forecast: Forecast) -> dict[str, pl.DataFrame]:
    """The tables of a forecast folder by file name."""
    return {
        "risk": forecast.risk,
        "labs": forecast.labs,
        "skipped": forecast.skipped,
        "seen_in_training": forecast.seen,
    }


def write_parquet(forecast: Forecast, folder: Path) -> None:
    """Each table as Parquet."""
    for name, table in tables_of(forecast).items():
        table.write_parquet(folder / f"{name}.parquet")


def write_csv(forecast: Forecast, folder: Path) -> None:
    """Each table as comma-separated text with a header."""
    for name, table in tables_of(forecast).items():
        table.write_csv(folder / f"{name}.csv")


def write_fhir(forecast: Forecast, folder: Path) -> None:
    """As Parquet, and the risks once more as `RiskAssessment.ndjson`, with the `Device.ndjson` that made them."""
    write_parquet(forecast, folder)
    write_folder(forecast, folder)


FORMATS: dict[str, Callable[[Forecast, Path], None]] = {
    "parquet": write_parquet,
    "csv": write_csv,
    "fhir": write_fhir,
}
"""By name, how a forecast (of everyone, or of a part) is written into a folder."""


def check_format(file_format: str) -> None:
    """Raise ForecastError unless forecasts can be written in this format."""
    if file_format not in FORMATS:
        *others, last = FORMATS
        raise ForecastError(f"the format {', '.join(others)} or {last}", f"'{file_format}'", "choose one of them")


def join_parquet(parts: Sequence[Path], out: Path) -> None:
    """One Parquet file, a row group a part (none for a part without rows), read one part at a time."""
    writer = None
    for path in parts:
        table = pq.read_table(path)
        if writer is None:
            # the file's own schema, so that what polars notes in it is the same for every number of parts
            schema: pa.Schema = table.schema
            writer = pq.ParquetWriter(out, schema, compression="zstd")
        if table.num_rows:
            writer.write_table(table.cast(schema), row_group_size=table.num_rows)
    if writer is not None:
        writer.close()


def join_csv(parts: Sequence[Path], out: Path) -> None:
    """One text with the header of the first part."""
    with out.open("wb") as whole:
        for number, path in enumerate(parts):
            with path.open("rb") as part:
                if number:
                    part.readline()
                shutil.copyfileobj(part, whole)


def join_lines(parts: Sequence[Path], out: Path) -> None:
    """One text, such as NDJSON."""
    with out.open("wb") as whole:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole)


def join_same(parts: Sequence[Path], out: Path) -> None:
    """The file that is the same in all parts; ForecastError where it is not."""
    if len({path.read_bytes() for path in parts}) > 1:
        raise ForecastError(f"{out.name} the same in all parts", "several", "score again into another folder")
    shutil.copyfile(parts[0], out)


JOINS: dict[str, Callable[[Sequence[Path], Path], None]] = {
    ".parquet": join_parquet,
    ".csv": join_csv,
    ".ndjson": join_lines,
    "Device.ndjson": join_same,
}
"""By name, else by suffix, how the files of one name become one."""
