"""The forecast tables: their contract, their folder, and what is drawn from them."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib.colors import to_hex

from ehrseq.errors import ArtifactError, ForecastError, UserError
from ehrseq.figures import COLOURS
from ehrseq.forecast.plot import draw_curves, outcome_colours
from ehrseq.forecast.table import RISK_SCHEMA, Forecast, Hazards, risk_table
from ehrseq.storage import DIGEST, MANIFEST, manifest_digest, read_json, write_json
from ehrseq.task.definition import Horizon

EDGES = np.array([0.0, 100.0, 1000.0, 2000.0])
TIMES = [datetime(2012, 2, 29, 23, 59, 59, 999999), datetime(2013, 2, 28, 23, 59, 59, 999999)]
HORIZONS = (Horizon("1y"), Horizon("48h"), Horizon("5y"))
# section 6 of the design: the names, their order and their types are what other people's code rests on
CONTRACT = {
    "risk": {
        "subject_id": pl.Int64, "patient": pl.String, "prediction_time": pl.Datetime("us"), "outcome": pl.String,
        "horizon_days": pl.Float64, "probability": pl.Float64, "competing": pl.Float64, "event_free": pl.Float64,
        "lower": pl.Float64, "upper": pl.Float64, "extrapolated": pl.Boolean,
    },
    "skipped": {
        "subject_id": pl.Int64, "patient": pl.String, "prediction_time": pl.Datetime("us"), "outcome": pl.String,
        "reason": pl.String,
    },
}  # fmt: skip


def hazards(outcome, members=1, n=3, *, competing=True, supported=1500.0):
    """`n` rows, subjects from the last to the first, constant hazards that differ by member and row."""
    rows = pl.DataFrame(
        {
            "subject_id": [30 - i for i in range(n)],
            "patient": [f"p{30 - i}" for i in range(n)],
            "prediction_time": [TIMES[i % 2] for i in range(n)],
        },
        schema_overrides={"prediction_time": pl.Datetime("us")},
    )
    scale = np.arange(1, members + 1)[:, None, None] * np.arange(1, n + 1)[None, :, None]
    own = 1e-4 * scale * np.ones(3)
    return Hazards(outcome, rows, own, 2 * own if competing else np.zeros_like(own), EDGES, supported)


def skipped(*rows):
    return pl.DataFrame(rows, schema=CONTRACT["skipped"], orient="row")


def forecast(members=1):
    tables = (hazards("t2d", members), hazards("death", members, competing=False))
    left_out = skipped((1, "p1", TIMES[0], None, "no_history"), (30, "p30", TIMES[0], "ckd", "already_present"))
    return Forecast(
        risk_table(tables, HORIZONS), left_out, {"model": "transformer"}, tables, pl.DataFrame({"subject_id": [30]})
    )


def test_the_risk_table_keeps_the_contract():
    risk = forecast().risk
    assert dict(risk.schema) == CONTRACT["risk"]
    assert list(risk.schema) == list(CONTRACT["risk"])
    keys = ["subject_id", "prediction_time", "outcome", "horizon_days"]
    assert risk.height == 3 * 2 * len(HORIZONS)
    assert not risk.select(keys).is_duplicated().any()
    assert risk.equals(risk.sort(keys))
    assert risk.null_count().select(pl.exclude("lower", "upper")).sum_horizontal().item() == 0
    total = risk.select(pl.col("probability") + pl.col("competing") + pl.col("event_free")).to_series()
    np.testing.assert_allclose(total, 1, atol=1e-12)
    assert (risk.filter(outcome="death")["competing"] == 0).all()
    grown = risk.group_by(keys[:3]).agg(pl.col("probability").diff().drop_nulls().min())
    assert (grown["probability"] > 0).all()


def test_constant_hazards_have_a_closed_form():
    row = forecast().risk.filter(pl.col("patient") == "p29", pl.col("outcome") == "t2d").sort("horizon_days")
    own, other, days = 2e-4, 4e-4, row["horizon_days"].to_numpy()
    expected = own / (own + other) * -np.expm1(-(own + other) * days)
    np.testing.assert_allclose(row["probability"], expected, rtol=1e-12)


def test_horizons_are_calendar_days():
    days = forecast().risk.filter(outcome="t2d").group_by("prediction_time").agg(pl.col("horizon_days").unique())
    found = {time: sorted(horizon) for time, horizon in days.iter_rows()}
    # a year from 29 February ends on 28 February
    assert found == {TIMES[0]: [2.0, 365.0, 1826.0], TIMES[1]: [2.0, 365.0, 1826.0]}


def test_what_is_extrapolated_is_marked():
    marked = forecast().risk.filter("extrapolated")["horizon_days"].unique().to_list()
    assert marked == [1826.0]


def test_one_member_has_no_range():
    risk = forecast(members=1).risk
    assert risk["lower"].null_count() == risk["upper"].null_count() == risk.height


def test_several_members_have_the_range_of_their_own_forecasts():
    risk = forecast(members=3).risk
    inside = risk.select((pl.col("lower") < pl.col("probability")) & (pl.col("probability") < pl.col("upper")))
    assert inside.to_series().all()
    one = risk_table([hazards("t2d", 1), hazards("death", 1, competing=False)], HORIZONS)
    np.testing.assert_allclose(risk["lower"], one["probability"], rtol=1e-12)  # the first member's hazards are lowest


def test_nobody_scored_is_an_empty_table_with_the_contract():
    empty = risk_table([hazards("t2d", n=0)], HORIZONS)
    assert empty.height == 0
    assert dict(empty.schema) == CONTRACT["risk"]
    assert risk_table([], HORIZONS).schema == empty.schema


@pytest.mark.parametrize("file_format", ["parquet", "csv"])
@pytest.mark.parametrize("members", [1, 2])
def test_save_then_load(tmp_path, file_format, members):
    made = forecast(members)
    made.save(tmp_path / "out", file_format=file_format)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"labs.{file_format}", MANIFEST, f"risk.{file_format}", f"seen_in_training.{file_format}",
        f"skipped.{file_format}",
    ]  # fmt: skip
    again = Forecast.load(tmp_path / "out")
    assert again.risk.equals(made.risk)
    assert again.skipped.equals(made.skipped)
    assert again.seen.equals(made.seen)
    assert {name: dict(getattr(again, name).schema) for name in CONTRACT} == CONTRACT
    assert again.metadata == made.metadata
    assert repr(again) == "Forecast(3 prediction times scored, 2 skipped)"


def test_files_are_plain_to_other_readers(tmp_path):
    made = forecast()
    made.save(tmp_path / "a")
    made.save(tmp_path / "b", file_format="csv")
    stored = pd.read_parquet(tmp_path / "a" / "risk.parquet")
    assert list(stored) == list(CONTRACT["risk"])
    text = pd.read_csv(tmp_path / "b" / "risk.csv", parse_dates=["prediction_time"], float_precision="round_trip")
    np.testing.assert_array_equal(text["probability"], stored["probability"])
    assert (text["prediction_time"] == stored["prediction_time"]).all()
    assert list(made.to_pandas()) == list(CONTRACT["risk"])


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ForecastError, match="expected the format parquet, csv or fhir; found 'xml'"):
        forecast().save(tmp_path / "out", file_format="xml")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path):
    forecast().save(tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("name", [MANIFEST, "risk.parquet", "skipped.parquet"])
def test_a_damaged_folder_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 3] ^= 255
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError):
        Forecast.load(folder)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=r"no such file|no manifest"):
        Forecast.load(folder)


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_unreadable_tables_behind_good_hashes_are_refused(folder, content):
    manifest = read_json(folder / MANIFEST)
    if content is None:
        pl.DataFrame({"subject_id": [1]}).write_parquet(folder / "risk.parquet")
    else:
        (folder / "risk.parquet").write_bytes(content)
    content = {k: v for k, v in manifest.items() if k != DIGEST} | {"files": {}}
    write_json(folder / MANIFEST, content | {DIGEST: manifest_digest(content)})
    with pytest.raises(ArtifactError, match="readable risk, skipped and seen_in_training tables"):
        Forecast.load(folder)


def test_a_forecast_replaces_a_forecast_and_nothing_else(folder, tmp_path):
    before = (folder / "risk.parquet").read_bytes()
    forecast(members=2).save(folder)
    assert (folder / "risk.parquet").read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | {"kind": "model"})
    with pytest.raises(UserError, match="holds an earlier forecast; found a model folder"):
        forecast().save(folder)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="other content"):
        forecast().save(foreign)
    assert [p.name for p in foreign.iterdir()] == ["chapter.txt"]


def test_a_failed_save_leaves_what_was_there(folder, tmp_path, monkeypatch):
    before = (folder / "risk.parquet").read_bytes()

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("ehrseq.forecast.table.write_manifest", full)
    with pytest.raises(OSError, match="no space"):
        forecast(members=2).save(folder)
    assert (folder / "risk.parquet").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_curves_pass_through_the_risk_table(folder):
    made = forecast()
    curves = made.curves("Patient/p29", n_points=1827)
    assert curves.columns == ["outcome", "prediction_time", "days", "probability", "competing", "lower", "upper"]
    at = made.risk.filter(patient="p29").select("outcome", days="horizon_days", risk="probability")
    # the grid ends at the longest horizon, 1826 days: a point a day
    joined = at.join(curves.with_columns(pl.col("days").round(9)), on=["outcome", "days"])
    assert joined.height == at.height
    np.testing.assert_allclose(joined["risk"], joined["probability"], rtol=1e-9)


def test_curves_of_a_stored_forecast_have_its_horizons(folder):
    made, stored = forecast(), Forecast.load(folder)
    curves = stored.curves("p29")
    assert curves.columns == made.curves("p29").columns
    assert curves.filter(outcome="t2d")["days"].to_list() == [0.0, 2.0, 365.0, 1826.0]
    risk = made.risk.filter(patient="p29", outcome="t2d")
    assert curves.filter(outcome="t2d")["probability"].to_list() == [0.0, *risk["probability"]]


def test_curves_of_a_patient_without_a_forecast():
    with pytest.raises(ForecastError, match="a patient with a forecast; found one without") as caught:
        forecast().curves("p1")
    assert "p1" not in str(caught.value)


@pytest.mark.parametrize("stored", [False, True])
def test_plot_draws_every_outcome_at_the_last_time(folder, stored):
    twice = [hazards("t2d", n=3)]
    rows = twice[0].rows.with_columns(patient=pl.lit("p"), subject_id=pl.lit(1, pl.Int64))
    one = Hazards("t2d", rows[:2], *(h[:, :2] for h in (twice[0].outcome_hazard, twice[0].competing_hazard)), EDGES, 9)
    made = Forecast.load(folder) if stored else Forecast(risk_table([one], HORIZONS), skipped(), {}, (one,))
    axes = made.plot("p29" if stored else "p").axes[0]
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == (["death", "t2d"] if stored else ["t2d"])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [line.get_label() for line in lines]
    assert axes.get_title() == "prediction time 2013-02-28"
    assert axes.get_xlabel() == "years after the prediction time"
    assert axes.get_ylabel() == "cumulative incidence (%)"
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] >= max(max(line.get_ydata()) for line in lines)
    if not stored:
        expected = one.incidence(np.array([1826.0]))[0][1, 0]  # the second row is the later one
        assert lines[0].get_ydata()[-1] == pytest.approx(100 * expected)


def test_short_horizons_are_drawn_in_days():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    curves = forecast().curves("p29").filter(pl.col("days") < 100)
    draw_curves(axes, curves)
    assert axes.get_xlabel() == "days after the prediction time"


def test_an_outcome_keeps_its_colour_where_another_is_missing():
    colours = outcome_colours(["death", "heart_failure", "diabetes"])
    assert len(set(colours.values())) == 3
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    curves = forecast().curves("p29").filter(outcome="t2d").with_columns(outcome=pl.lit("heart_failure"))
    truth = pl.DataFrame({"outcome": ["heart_failure"], "horizon_days": [365.0], "probability": [0.9]})
    draw_curves(axes, curves, truth, colours)
    assert {to_hex(line.get_color()).upper() for line in axes.get_lines()} == {colours["heart_failure"]}
    assert [line.get_label() for line in axes.get_lines()] == ["heart failure", "heart failure, truth"]
    assert colours["heart_failure"] in COLOURS


def test_the_written_schema_is_the_contract():
    assert CONTRACT["risk"] == RISK_SCHEMA
