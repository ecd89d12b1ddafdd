"""Edit and rescore: the forecast of the edited history, labelled as what it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from ehrseq.errors import ForecastError, TimelineError
from ehrseq.estimator import ProgressionModel
from ehrseq.explain.edits import LABEL, WHAT_IF_SCHEMA, WhatIf
from tests.toy import CONFIG, TASK, append, cohort, day

AT = day(1000)
KEY = ["subject_id", "prediction_time", "outcome", "horizon_days"]


@pytest.fixture(scope="module")
def timelines():
    """Everybody has a value of LOINC//a, known in time, and one known too late."""
    plain = cohort()
    rows = [(i, day(999), "LOINC//a", 5.0, day(999)) for i in plain.subjects["subject_id"]]
    return append(plain, [*rows, *((i, day(950), "LOINC//a", 9.0, day(1001)) for i in plain.subjects["subject_id"])])


@pytest.fixture(scope="module")
def model(timelines):
    return ProgressionModel(replace(CONFIG, model="boosted")).fit(timelines, TASK)


@pytest.fixture(scope="module")
def patient(model, timelines):
    risk = model.forecast(timelines, AT).risk
    both = risk.group_by("patient").agg(pl.col("outcome").n_unique())
    names = both.filter(pl.col("outcome") == 2)["patient"]
    drug = timelines.events.filter(code="RXNORM//x").filter(pl.col("known_time") < AT)["subject_id"].unique()
    on_drug = timelines.subjects.filter(pl.col("subject_id").is_in(drug.implode()))["patient"]
    return sorted(set(names) & set(on_drug))[0]


def test_leaving_out_and_a_value_equal_the_forecast_of_a_timeline_edited_by_hand(model, timelines, patient):
    answer = model.what_if(timelines, patient, AT, without=["RXNORM//x"], values={"LOINC//a": 9.5})
    mine = pl.col("subject_id") == timelines.subject_ids([patient])[0]
    last = mine & (pl.col("code") == "LOINC//a") & (pl.col("time") == day(999))
    events = timelines.events.filter(~(mine & (pl.col("code") == "RXNORM//x"))).with_columns(
        numeric_value=pl.when(last).then(pl.lit(9.5, pl.Float32)).otherwise("numeric_value")
    )
    hand = model.forecast(replace(timelines, events=events), AT).risk.join(answer.table, on=KEY, suffix="_issued")
    assert hand.height == 4
    np.testing.assert_array_equal(hand["edited"], hand["probability"])
    issued = model.forecast(timelines, AT).risk.join(answer.table, on=KEY, suffix="_again")
    np.testing.assert_array_equal(issued["probability"], issued["probability_again"])
    assert (answer.table["difference"].abs() > 0).any()
    np.testing.assert_array_equal(answer.table["difference"], answer.table["edited"] - answer.table["probability"])


def test_one_event_can_be_left_out_by_its_time_or_day(model, timelines, patient):
    by_time = model.what_if(timelines, patient, AT, without=[("LOINC//a", day(999))])
    by_day = model.what_if(timelines, patient, AT, without=[("LOINC//a", f"{day(999):%Y-%m-%d}")])
    assert by_time.table.drop("edits").equals(by_day.table.drop("edits"))
    mine = (pl.col("subject_id") == timelines.subject_ids([patient])[0]) & (pl.col("time") == day(999))
    hand = model.forecast(replace(timelines, events=timelines.events.filter(~mine)), AT).risk
    np.testing.assert_array_equal(
        hand.join(by_time.table, on=KEY)["edited"], hand.join(by_time.table, on=KEY)["probability"]
    )


def test_the_label_is_in_the_table_and_on_the_plot(model, timelines, patient):
    answer = model.what_if(timelines, patient, AT, values={"LOINC//a": 1.0})
    assert dict(answer.table.schema) == WHAT_IF_SCHEMA
    assert set(answer.table["meaning"]) == {LABEL} == {"model sensitivity, not effect"}
    assert set(answer.table["edits"]) == {"with LOINC a 1"}
    figure = answer.plot()
    assert isinstance(figure, Figure)
    assert LABEL in figure.axes[0].get_title()


def test_an_edited_history_that_would_not_be_forecast_says_why(model, timelines, patient):
    codes = ["LOINC//a", "LOINC//b", "RXNORM//x", "ICD10CM//y", "ICD10CM//z"]
    seen = timelines.events.filter(
        (pl.col("subject_id") == timelines.subject_ids([patient])[0]) & (pl.col("known_time") <= AT)
    )
    timelines = replace(
        timelines, subjects=timelines.subjects.with_columns(observation_start=pl.lit(None, pl.Datetime("us")))
    )  # someone under observation without a record has a history too
    answer = model.what_if(timelines, patient, AT, without=[c for c in codes if c in set(seen["code"])])
    assert answer.table["edited"].null_count() == 4
    assert set(answer.table["reason"]) == {"no_history"}
    assert isinstance(answer.plot(), Figure)


def test_what_is_not_there_cannot_be_edited(model, timelines, patient):
    with pytest.raises(ForecastError, match="found 'LOINC//c'; see explain") as told:
        model.what_if(timelines, patient, AT, without=["LOINC//c"])
    assert "LOINC//a" not in str(told.value)  # a near match is on the patient's record
    with pytest.raises(ForecastError, match="an event of this code at this time"):
        model.what_if(timelines, patient, AT, without=[("LOINC//a", day(950))])  # known too late
    with pytest.raises(ForecastError, match="a numeric value of 'RXNORM//x'"):
        model.what_if(timelines, patient, AT, values={"RXNORM//x": 1.0})
    with pytest.raises(ForecastError, match="found no edit"):
        model.what_if(timelines, patient, AT)
    with pytest.raises(TimelineError, match="1 names that fit no subject"):
        model.what_if(timelines, "nobody", AT, without=["LOINC//a"])
    with pytest.raises(TimelineError):
        model.what_if(timelines, patient, AT, without=[("LOINC//a", "last week")])


def test_untrusted_text_is_short_and_no_formula():
    row = dict.fromkeys(WHAT_IF_SCHEMA) | {
        "outcome": "x" * 200 + "$\\frac{1}{0}$", "horizon_days": 365.0, "probability": 0.1, "edited": 0.2,
        "difference": 0.1, "edits": "without $\\undefined$\n" * 30, "meaning": LABEL,
    }  # fmt: skip
    figure = WhatIf(pl.DataFrame([row], schema=WHAT_IF_SCHEMA)).plot()
    figure.canvas.draw()  # a formula that does not parse would raise here
    assert len(figure.axes[0].get_title()) < 150
