"""The only causal rule: what may be read at a prediction time."""

from __future__ import annotations

from typing import Any


def visible(known_time: Any, prediction_time: Any) -> Any:
    """Whether something known from `known_time` on may be read at `prediction_time` (inclusive).

    Works elementwise on anything that compares: polars expressions, numpy arrays, tensors, datetimes. Static facts
    are known from the beginning of time: callers give them the smallest time their type has.

    >>> visible(3, 3), visible(4, 3)
    (True, False)
    """
    return known_time <= prediction_time
