from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ehrseq.errors import EvaluationError
from ehrseq.evaluate import validate_labels, validate_risk
from ehrseq.evaluate.tables import align

AT = dt.datetime(2020, 2, 1, 23, 59, 59, 999999)
RISK = pl.DataFrame(
    {
        "subject_id": [1, 1, 2, 2],
        "patient": ["a", "a", "b", "b"],
        "prediction_time": [AT] * 4,
        "outcome": ["t2d"] * 4,
        "horizon_days": [366.0, 1827.0, 366.0, 1827.0],
        "probability": [0.1, 0.4, 0.2, 0.2],
        "competing": [0.1, 0.2, 0.1, 0.3],
        "event_free": [0.8, 0.4, 0.7, 0.5],
        "lower": [None] * 4,
        "upper": [None] * 4,
        "extrapolated": [False] * 4,
    }
)
LABELS = pl.DataFrame(
    {
        "subject_id": [1, 2],
        "prediction_time": [AT] * 2,
        "landmark": ["2y", None],
        "outcome": ["t2d"] * 2,
        "at_risk": [True, True],
        "days": [100.0, 200.0],
        "cause": [1, 0],
    }
)
HORIZONS = {"1y": 365.25, "5y": 1826.25}


def test_contract_tables_pass():
    validate_risk(RISK)
    validate_risk(RISK.to_pandas())
    validate_risk(RISK.select("subject_id", "prediction_time", "outcome", "horizon_days", "probability"))
    validate_risk(RISK.with_columns(pl.col("probability", "competing", "event_free").cast(pl.Float32)))
    validate_risk(RISK.clear())
    validate_labels(LABELS)
    validate_labels(LABELS.with_columns(at_risk=pl.Series([True, False]), days=pl.Series([1.0, None])))


@pytest.mark.parametrize(
    ("risk", "expected"),
    [
        (RISK.drop("outcome", "probability"), "no outcome, probability; add them"),
        (RISK.with_columns(probability=pl.lit(1.2)), "probability between 0 and 1; found 4 rows"),
        (RISK.with_columns(probability=pl.lit(float("nan"))), "probability between 0 and 1"),
        (RISK.with_columns(competing=pl.lit(-0.1)), "competing between 0 and 1"),
        (RISK.with_columns(event_free=pl.lit(0.1)), "adding up to 1"),
        (RISK.with_columns(probability=pl.lit(None, pl.Float64)), "missing probability"),
        (RISK.with_columns(probability=pl.lit("high")), "column types"),
        (RISK.with_columns(horizon_days=pl.lit(0.0)), "above 0"),
        (pl.concat([RISK, RISK[:1]]), "found 2 rows that repeat one"),
        (RISK.with_columns(probability=1 - pl.col("probability")).drop("competing"), "do not fall"),
    ],
)
def test_bad_risk_tables_get_one_line(risk, expected):
    with pytest.raises(EvaluationError, match=expected) as caught:
        validate_risk(risk)
    assert "\n" not in str(caught.value)
    assert "high" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (LABELS.drop("cause"), "no cause"),
        (LABELS.with_columns(cause=pl.lit(3)), "causes 0, 1 or 2"),
        (LABELS.with_columns(days=pl.lit(-1.0)), "days not below 0"),
        (LABELS.with_columns(days=pl.lit(None, pl.Float64)), "missing days"),
        (LABELS.with_columns(at_risk=pl.lit(None, pl.Boolean)), "missing at_risk"),
        (pl.concat([LABELS, LABELS]), "4 rows that repeat one"),
    ],
)
def test_bad_label_tables_get_one_line(labels, expected):
    with pytest.raises(EvaluationError, match=expected) as caught:
        validate_labels(labels)
    assert "\n" not in str(caught.value)


def test_rows_are_lined_up_by_the_nearest_horizon():
    got = align({"m": RISK.reverse()}, LABELS, HORIZONS)
    np.testing.assert_array_equal(got.probability["m"], [[0.1, 0.4], [0.2, 0.2]])
    np.testing.assert_array_equal(got.horizon_days, [[366, 1827], [366, 1827]])
    missing = align({"m": RISK[1:]}, LABELS, HORIZONS)
    assert np.isnan(missing.probability["m"][0, 0])
    assert missing.horizon_days[0, 0] == 365.25


@pytest.mark.parametrize(
    ("horizon_days", "nominal", "fits"),
    [
        (365.0, 365.25, True),
        (366.0, 365.25, True),
        (367.0, 365.25, False),
        (3650.0, 3652.5, True),  # ten years of 365 days: within a thousandth
        (3657.0, 3652.5, False),
        (2.0, 2.0, True),
        (1.0, 2.0, False),  # a day is no 48 hours
        (29.0, 30.0, False),
    ],
)
def test_room_around_a_nominal_horizon(horizon_days, nominal, fits):
    risk = RISK[:1].with_columns(horizon_days=pl.lit(horizon_days))
    if fits:
        assert align({"m": risk}, LABELS, {"h": nominal}).horizon_days[0, 0] == horizon_days
    else:
        with pytest.raises(EvaluationError, match="1 of 1 rows at other horizons"):
            align({"m": risk}, LABELS, {"h": nominal})


def test_two_rows_of_one_nominal_horizon_are_refused():
    risk = pl.concat([RISK, RISK.with_columns(horizon_days=pl.col("horizon_days") - 1)])
    with pytest.raises(EvaluationError, match="one row for each nominal horizon"):
        align({"m": risk}, LABELS, HORIZONS)


@pytest.mark.parametrize(
    "time",
    [
        pl.Series([dt.date(2020, 2, 1)] * 4),
        pl.Series([AT] * 4).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
    ],
)
def test_dates_stand_for_their_end_and_zones_become_utc(time):
    got = align({"m": RISK.with_columns(prediction_time=time)}, LABELS, HORIZONS)
    assert not np.isnan(got.probability["m"]).any()


def test_pandas_tables_align():
    labels = pd.DataFrame(LABELS.to_dict(as_series=False))
    got = align({"m": RISK.to_pandas()}, labels, HORIZONS)
    assert not np.isnan(got.probability["m"]).any()
