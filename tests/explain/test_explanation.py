"""What people read: summaries, reasons, notes and the page of one patient."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ehrseq.errors import ForecastError
from ehrseq.estimator import ProgressionModel
from ehrseq.explain.explanation import MEANING, SINGLE_EVENTS, Explanation
from ehrseq.explain.names import display_name, display_names
from ehrseq.explain.occlusion import CONTRIBUTION_SCHEMA, SCOPE_SCHEMA
from ehrseq.forecast.explained import LOWERS, RAISES, plot_explained
from ehrseq.forecast.table import Forecast
from ehrseq.timeline.store import Timelines
from tests.toy import CONFIG, TASK, cohort, day

AT = datetime(2015, 6, 1)
MOVED = {  # subject, code -> contribution
    (1, "LOINC//4548-4"): 0.05, (1, "RXNORM//x"): -0.02, (1, "ICD10CM//y"): 0.0001, (2, "LOINC//4548-4"): -0.01,
}  # fmt: skip


def row(subject, code, contribution, kind="code", window=None, time=datetime(2015, 1, 1)):
    return dict.fromkeys(CONTRIBUTION_SCHEMA) | {
        "subject_id": subject, "patient": f"p{subject}", "prediction_time": AT, "outcome": "illness", "horizon": "3y",
        "horizon_days": 1096.0, "kind": kind, "code": code, "window": window, "time": time, "known_time": time,
        "value": 7.125 if code and code.startswith("LOINC") else None, "unit": "%", "events": 2, "events_left": 3,
        "probability": 0.2, "without": 0.2 - contribution, "contribution": contribution,
    }  # fmt: skip


@pytest.fixture
def explanation():
    rows = [row(subject, code, c) for (subject, code), c in MOVED.items()]
    rows += [row(subject, code, c / 2, kind="event") for (subject, code), c in MOVED.items()]
    rows += [row(1, None, 0.03, kind="window", window="last 90 days")]
    scope = [
        {"subject_id": i, "patient": f"p{i}", "prediction_time": AT, "events": 60, "one_by_one": 50} for i in (1, 2)
    ]
    return Explanation(
        pl.DataFrame(rows, schema=CONTRIBUTION_SCHEMA), pl.DataFrame(scope, schema=SCOPE_SCHEMA), "hybrid",
        {"LOINC//4548-4": "haemoglobin A1c"},
    )  # fmt: skip


def test_a_summary_has_means_and_counts_by_code(explanation):
    table = explanation.summary()
    first = table.row(0, named=True)
    assert (first["code"], first["name"], first["n"], first["of"]) == ("LOINC//4548-4", "haemoglobin A1c", 2, 2)
    assert first["mean_absolute"] == pytest.approx(0.03)
    assert first["mean_signed"] == pytest.approx(0.02)
    assert first["raises"] == 0.5
    assert table["code"].to_list() == ["LOINC//4548-4", "RXNORM//x", "ICD10CM//y"]
    windows = explanation.summary("window")
    assert windows.select("name", "n", "of").rows() == [("last 90 days", 1, 2)]
    with pytest.raises(ForecastError, match="found 'event'"):
        explanation.summary("event")


def test_reasons_are_few_signed_and_in_words(explanation):
    reasons = explanation.reasons(2)
    assert reasons.select("patient", "rank", "code").rows() == [
        ("p1", 1, "LOINC//4548-4"), ("p1", 2, "RXNORM//x"), ("p2", 1, "LOINC//4548-4"),
    ]  # fmt: skip
    assert reasons["text"].to_list() == [
        "haemoglobin A1c, last 7.125 % on 2015-01-01 (2 records): raises the forecast by 5.0 percentage points",
        "RXNORM x, last on 2015-01-01 (2 records): lowers the forecast by 2.0 percentage points",
        "haemoglobin A1c, last 7.125 % on 2015-01-01 (2 records): lowers the forecast by 1.0 percentage points",
    ]
    assert explanation.reasons(5).filter(code="ICD10CM//y").height == 0  # too little to be a reason
    assert explanation.reasons(5, least=0).filter(code="ICD10CM//y").height == 1


def test_notes_tell_what_was_left_out_and_what_was_not_measured(explanation):
    assert explanation.notes[0] == MEANING
    assert explanation.notes[1].startswith("20 older events of 2 histories were not taken out one by one")
    assert "has not been measured" in explanation.notes[-1]
    assert SINGLE_EVENTS in explanation.notes
    codes = replace(explanation, contributions=explanation.contributions.filter(pl.col("kind") == "code"))
    assert SINGLE_EVENTS not in codes.notes
    assert "reads no events" in replace(explanation, branch="age_sex").notes[2]


def test_names_come_from_the_data_then_the_analyte_and_stay_short():
    codes = pl.DataFrame({"code": ["LOINC//2160-0", "X//1"], "description": ["Kreatinin", "a\nlong " + "name " * 40]})
    timelines = Timelines.from_events(
        {"subject_id": [1] * 3, "time": [datetime(2020, 1, 1)] * 3, "code": ["LOINC//4548-4", "LOINC//2160-0", "X//1"]}
    )
    names = display_names(replace(timelines, metadata={"codes": codes}))
    assert names["LOINC//4548-4"] == "haemoglobin A1c"
    assert names["LOINC//2160-0"] == "Kreatinin"
    shown = display_name("X//1", names)
    assert len(shown) <= 44
    assert "\n" not in shown


def curves():
    days = np.linspace(0, 1826, 9)
    rise = pl.DataFrame({"days": days, "probability": days / 9130, "competing": 0.0})
    band = rise.with_columns(lower=pl.col("probability") * 0.8, upper=pl.col("probability") * 1.2)
    named = [band.with_columns(outcome=pl.lit(o), prediction_time=pl.lit(AT)) for o in ("illness", "death")]
    return pl.concat(named)


def test_the_page_shows_rows_in_order_with_signs_values_and_notes(explanation):
    mine = replace(explanation, contributions=explanation.contributions.filter(subject_id=1))
    figure = plot_explained(curves(), mine, "illness", 1096.0)
    history, bars, risk, windows = figure.axes
    assert [t.get_text() for t in history.get_yticklabels()] == ["haemoglobin A1c", "RXNORM x", "ICD10CM y"]
    assert [round(bar.get_width(), 3) for bar in bars.patches] == [5.0, -2.0, 0.01]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars.patches][:2] == [RAISES.upper(), LOWERS.upper()]
    assert {"+5.0", "-2.0", "0.0"} <= {t.get_text() for t in bars.texts}
    assert "last 7.125 %" in {t.get_text() for t in history.texts}
    assert len(history.collections) == 3  # a dot an event
    assert {t.get_text() for t in risk.texts} == {"illness 20.0%", "death 20.0%"}
    assert len(risk.collections) == 2  # the members' range
    assert [round(bar.get_width(), 3) for bar in windows.patches] == [3.0]
    assert "p1 on 2015-06-01: risk of illness within 3 years 20.0%" in figure.get_suptitle()
    assert any(MEANING[:40] in t.get_text() for part in figure.subfigs for t in part.texts)
    figure.canvas.draw()
    small = next(t for part in figure.subfigs for t in part.texts if MEANING[:40] in t.get_text())
    assert small.get_window_extent().y0 >= 0  # every note is on the page
    assert not any(axes.get_legend() for axes in figure.axes)


def lab_rows(*codes, unit="%"):
    quantiles = {"q05": 5.0, "q50": [6.0, 6.5], "q95": 7.0}
    tables = [pl.DataFrame({"horizon_days": [365.25, 1096.0], **quantiles}).with_columns(code=pl.lit(c)) for c in codes]
    return pl.concat(tables).with_columns(unit=pl.lit(unit, pl.String))


def test_the_page_has_the_labs_that_move_the_forecast_most(explanation):
    mine = replace(explanation, contributions=explanation.contributions.filter(subject_id=1))
    labs = lab_rows("LOINC//z", "LOINC//y", "LOINC//x", "LOINC//w", "LOINC//4548-4")
    figure = plot_explained(curves(), mine, "illness", 1096.0, labs)
    shown = figure.axes[4:]
    assert [axes.get_title("left") for axes in shown] == [
        "haemoglobin A1c (%)", "LOINC w (%)", "LOINC x (%)", "LOINC y (%)",
    ]  # fmt: skip
    assert shown[0].lines[0].get_xydata().round(2).tolist() == [[1.0, 6.0], [3.0, 6.5]]
    assert any("4 of 5" in part.get_suptitle() for part in figure.subfigs)
    nothing = labs.with_columns(q50=pl.lit(None, pl.Float64))
    assert len(plot_explained(curves(), mine, "illness", 1096.0, nothing).axes) == 4
    odd = plot_explained(curves(), mine, "illness", 1096.0, lab_rows("LOINC//$\\frac{1}{0}$", unit="$^$"))
    odd.canvas.draw()  # a formula that does not parse would raise


def test_untrusted_names_are_drawn_as_text(explanation):
    evil = replace(explanation, names={"LOINC//4548-4": "$\\frac{1}{0}$ <script>\x00" + "x" * 500})
    figure = plot_explained(curves(), evil, "illness", 1096.0)
    figure.canvas.draw()  # a formula that does not parse would raise
    assert max(len(t.get_text()) for t in figure.axes[0].get_yticklabels()) < 60


def test_a_forecast_with_its_model_draws_the_page_and_one_from_a_folder_says_it_cannot(tmp_path):
    timelines = cohort()
    model = ProgressionModel(replace(CONFIG, model="boosted")).fit(timelines, TASK)
    forecast = model.forecast(timelines, day(1000))
    name = forecast.risk["patient"][0]
    figure = forecast.plot(name, explain=True)
    assert isinstance(figure, Figure)
    assert "within 3 years" in figure.get_suptitle()
    other = forecast.plot(name, explain=True, outcome="death", horizon="18m")
    assert "risk of death within 1.5 years" in other.get_suptitle()
    asked = model.forecast(timelines, day(1000), horizons=["18m"]).plot(name, explain=True)
    assert "within 1.5 years" in asked.get_suptitle()  # its own horizon, not the task's
    with pytest.raises(ForecastError, match="one without"):
        forecast.plot("nobody", explain=True)
    with pytest.raises(ForecastError, match="found 'deth'; did you mean 'death'"):
        forecast.plot(name, explain=True, outcome="deth")
    assert not forecast.labs.height  # the task has no lab
    assert len(figure.axes) == 4
    at = forecast.risk["prediction_time"].max()
    mine = lab_rows("LOINC//a", unit="u").with_columns(patient=pl.lit(name), prediction_time=pl.lit(at))
    others = [mine.with_columns(patient=pl.lit("else"), q50=7.0), mine.with_columns(prediction_time=day(1), q50=5.0)]
    labelled = replace(forecast, labs=pl.concat([*others, mine])).plot(f"Patient/{name}", explain=True)
    assert labelled.axes[4].lines[0].get_ydata().tolist() == [6.0, 6.5]
    unusual = replace(forecast, labs=mine.drop("q05"))  # forecast at other levels
    assert len(unusual.plot(name, explain=True).axes) == 4
    model.times_withheld_ = True  # as when a table of prediction times was not saved
    with pytest.raises(ForecastError, match="give them as `at`"):
        model.explain(timelines, "task")
    with pytest.raises(ForecastError, match="give them as `at`"):
        model.forecast(timelines, "task")
    forecast.save(tmp_path / "forecast")
    with pytest.raises(ForecastError, match="a forecast with its model; found one read from a folder"):
        Forecast.load(tmp_path / "forecast").plot(name, explain=True)
