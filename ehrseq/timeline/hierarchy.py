"""Which codes are parents of which: tables of parents, and what descends from a code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import polars as pl

from ehrseq.errors import TimelineError
from ehrseq.frames import read_pairs
from ehrseq.timeline.schema import CODE_SCHEMA, conform
from ehrseq.timeline.store import Timelines

PARENT_SCHEMA = {"code": pl.String, "parent": pl.String}


def read_code_parents(source: str | Path | Any) -> pl.DataFrame:
    """`code` and `parent` of a table of parents: a CSV or Parquet file, or a frame. A code may have several.

    >>> read_code_parents({"code": ["SNOMED//44054006"], "parent": ["SNOMED//73211009"]}).rows()
    [('SNOMED//44054006', 'SNOMED//73211009')]
    """
    return read_pairs(source, "code", "parent", TimelineError)


def code_parents(timelines: Timelines) -> pl.DataFrame:
    """`code` and `parent` as the dataset's own table of codes has them (`parent_codes` of metadata/codes.parquet)."""
    table = timelines.metadata.get("codes")
    if table is None:
        return pl.DataFrame(schema=PARENT_SCHEMA)
    known = conform(table, CODE_SCHEMA, "code").drop_nulls("parent_codes")
    return known.select("code", parent="parent_codes").explode("parent").drop_nulls().unique().sort("code", "parent")


def with_code_parents(timelines: Timelines, parents: Any) -> Timelines:
    """The same timelines, with the parents of a table (`read_code_parents`) in their table of codes.

    >>> timelines = Timelines.from_events({"subject_id": [1], "time": [None], "code": ["A//1.1"]})
    >>> with_code_parents(timelines, {"code": ["A//1.1"], "parent": ["A//1"]}).codes()["parent_codes"].to_list()
    [['A//1']]
    """
    table = pl.concat([code_parents(timelines), read_code_parents(parents)]).unique()
    lists = table.group_by("code").agg(parent_codes=pl.col("parent").sort())
    known = conform(timelines.metadata.get("codes", pl.DataFrame()), CODE_SCHEMA, "code").drop("parent_codes")
    codes = known.join(lists, on="code", how="full", coalesce=True).sort("code").select(*CODE_SCHEMA)
    return replace(timelines, metadata={**timelines.metadata, "codes": codes})


def descendants(parents: pl.DataFrame, patterns: Sequence[str]) -> list[str]:
    """The codes below those that equal a pattern, or start with one that ends in `*`; sorted, patterns left out.

    `parents` has `code` and `parent`; a circle in it does no harm. A code that ends in `*` (a mark of ICD-10's) is
    passed over: in a task it would read as a prefix.

    >>> table = pl.DataFrame({"code": ["B", "C", "D"], "parent": ["A", "B", "X"]})
    >>> descendants(table, ["A"])
    ['B', 'C']
    """
    exact = [p for p in patterns if not p.endswith("*")]
    starts = [pl.col("parent").str.starts_with(p[:-1]) for p in patterns if p.endswith("*")]
    below = parents.filter(reduce(or_, starts, pl.col("parent").is_in(exact)))["code"].unique()
    found = below
    while below.len():
        below = parents.filter(pl.col("parent").is_in(below.implode()))["code"].unique()
        below = below.filter(~below.is_in(found.implode()))
        found = pl.concat([found, below])
    return sorted(code for code in found if code not in exact and "*" not in code)
