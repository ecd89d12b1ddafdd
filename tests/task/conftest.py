from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from ehrseq.task.definition import Task
from ehrseq.timeline.schema import SUBJECT_SCHEMA, normalise_events
from ehrseq.timeline.store import Timelines

START = datetime(2005, 1, 1)


@pytest.fixture(scope="session")
def day() -> Callable[[float], datetime]:
    """A moment that many days after 2005-01-01T00:00."""
    return lambda number: START + timedelta(days=number)


@pytest.fixture(scope="session")
def make_timelines(day: Callable[[float], datetime]) -> Callable[..., Timelines]:
    """Timelines from (subject, day, code) or (subject, day, code, {column: value}) and {subject: {column: value}}.

    Each subject is followed from day 0 to day 1000 and born in 1950 unless its table says otherwise; a day of None
    makes a static event.
    """

    def make(
        events: list[tuple[Any, ...]], subjects: dict[int, dict[str, Any]] | None = None, **more: Any
    ) -> Timelines:
        subjects = {1: {}} if subjects is None else subjects
        rows = [
            {"subject_id": s, "time": None if d is None else day(d), "code": code, **(rest[0] if rest else {})}
            for s, d, code, *rest in events
        ]
        columns = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
        frame = pl.DataFrame(rows, infer_schema_length=None) if rows else pl.DataFrame(schema=columns)
        frame = frame.with_columns(pl.col("time").cast(pl.Datetime("us")))
        default = {
            "birth_time": datetime(1950, 1, 1), "follow_up_start": day(0), "follow_up_end": day(1000),
            "follow_up_rule": "observation_period",
        }  # fmt: skip
        table = pl.DataFrame(
            [{"subject_id": s, "patient": f"patient-{s}", **default, **facts} for s, facts in subjects.items()],
            schema=SUBJECT_SCHEMA,
        )
        return Timelines(events=normalise_events(frame), subjects=table, **more)

    return make


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """A task from outcome tables; by default one horizon of a year and a landmark after 100 days."""

    def make(outcomes: dict[str, dict[str, Any]], **more: Any) -> Task:
        times = more.pop("prediction_times", {"rule": "landmarks", "after_start": ["100d"]})
        return Task.from_dict({"horizons": ["1y"], "outcomes": outcomes, "prediction_times": times, **more})

    return make


@pytest.fixture(scope="session")
def at(day: Callable[[float], datetime]) -> Callable[..., pl.DataFrame]:
    """Queries from (subject, day) pairs."""

    def make(*pairs: tuple[int, float]) -> pl.DataFrame:
        return pl.DataFrame(
            {"subject_id": [s for s, _ in pairs], "prediction_time": [day(d) for _, d in pairs]},
            schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")},
        )

    return make
