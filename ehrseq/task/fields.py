"""Typed values out of the tables of a task file: each reader returns the value or raises a one-line TaskError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ehrseq.errors import TaskError, nearest


def check_distinct(values: Sequence[Any], where: str) -> None:
    """Refuse a value that stands twice."""
    if len(set(values)) < len(values):
        raise TaskError(f"each of {where} once", "one of them twice", "remove the second")


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse a key that is not known, naming the nearest one that is."""
    for key in table:
        if key not in known:
            raise TaskError(f"known keys in {where}", f"'{key}'", nearest(str(key), known))


def table_of(value: Any, where: str) -> Mapping[str, Any]:
    """A table."""
    if not isinstance(value, Mapping):
        raise TaskError(f"a table for {where}", type(value).__name__, "write it as a TOML table")
    return value


def strings(value: Any, where: str) -> tuple[str, ...]:
    """A list of strings."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise TaskError(f"a list of strings for {where}", type(value).__name__, 'write it as ["...", "..."]')
    return tuple(value)


def optional_number(value: Any, where: str) -> float | None:
    """A number, or None where the key is absent."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TaskError(f"a number for {where}", type(value).__name__, "write it without quotes")
    return float(value)


def flag(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TaskError(f"true or false for {where}", type(value).__name__, "write it without quotes")
    return value


def optional_string(value: Any, where: str) -> str | None:
    """A string, or None where the key is absent."""
    if value is not None and not isinstance(value, str):
        raise TaskError(f"a string for {where}", type(value).__name__, "write it in quotes")
    return value
