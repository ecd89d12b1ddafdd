from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.lab_tables import judge_lab_tables
from ehrseq.timeline.store import Timelines

AT = datetime(2015, 1, 1)
HORIZONS = {"1y": 365.25, "3y": 1095.75}


def world(n=120, seed=0):
    """One value a person 300 days ahead and one 1,100 days ahead; the forecast knows each person's level."""
    random = np.random.default_rng(seed)
    level = random.normal(50, 8, n)
    rows = [
        (i, AT + timedelta(days=d), "LOINC//a", float(random.normal(level[i], 3)))
        for i in range(n)
        for d in (300, 1100)
    ]
    events = pl.DataFrame(rows, schema=["subject_id", "time", "code", "numeric_value"], orient="row")
    key = pl.DataFrame([(i, AT, "LOINC//a", d) for i in range(n) for d in (365.0, 1096.0)], orient="row",
                       schema=["subject_id", "prediction_time", "code", "horizon_days"])  # fmt: skip
    centre = level[key["subject_id"].to_numpy()]
    z = {"q05": -1.645, "q25": -0.674, "q50": 0.0, "q75": 0.674, "q95": 1.645}
    good = key.with_columns(**{c: pl.Series(centre + 3 * k) for c, k in z.items()})
    wide = key.with_columns(**{c: pl.lit(50 + 9 * k) for c, k in z.items()})
    return Timelines.from_events(events), good, wide


def test_scores_by_code_and_horizon():
    timelines, good, wide = world()
    rows, gaps = judge_lab_tables({"good": good, "wide": wide}, timelines, HORIZONS, n_bootstrap=100)
    assert rows["horizon"].unique().sort().to_list() == ["1y", "3y"]
    crps = gaps.filter(measure="crps")
    assert crps.height == 2
    assert (crps["upper"] < 0).all()
    covered = rows.filter(model="good", measure="coverage_90")
    assert ((covered["lower"] < 0.9) & (covered["upper"] > 0.85)).all()
    assert set(rows["n"]) == {120}


def test_values_too_far_from_the_horizon_do_not_count():
    timelines, good, _ = world()
    late = timelines.events.with_columns(pl.col("time") + pl.duration(days=100))  # 400 and 1,200 days
    rows, _ = judge_lab_tables({"good": good}, Timelines.from_events(late), HORIZONS, n_bootstrap=0)
    assert rows["horizon"].unique().sort().to_list() == ["1y", "3y"]
    later = timelines.events.with_columns(pl.col("time") + pl.duration(days=200))  # 500 and 1,300 days
    rows, _ = judge_lab_tables({"good": good}, Timelines.from_events(later), HORIZONS, n_bootstrap=0)
    assert rows.height == 0


def test_tables_that_cannot_be_used():
    timelines, good, _ = world(60)
    for table, expected in [
        (good.drop("code"), "no code"),
        (good.select("subject_id", "prediction_time", "code", "horizon_days"), "quantile columns"),
        (pl.concat([good, good]), "several"),
        (good.with_columns(q05=pl.lit("x")), "other values"),
    ]:
        with pytest.raises(EvaluationError, match=expected):
            judge_lab_tables({"a": table}, timelines, HORIZONS)


def test_values_in_another_unit_do_not_count_where_the_table_names_one():
    timelines, good, _ = world()
    mixed = timelines.events.with_columns(unit=pl.when(pl.col("subject_id") % 2 == 0).then(pl.lit("g")))
    timelines = Timelines(events=mixed, subjects=timelines.subjects)
    rows, _ = judge_lab_tables({"good": good}, timelines, HORIZONS, n_bootstrap=0)
    assert set(rows["n"]) == {120}
    for unit in ("g", None):
        told = good.with_columns(unit=pl.lit(unit, pl.String))
        rows, _ = judge_lab_tables({"good": told}, timelines, HORIZONS, n_bootstrap=0)
        assert set(rows["n"]) == {60}
