"""The demo runs from nothing to a plot, and its plot shows what it says."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from ehrseq.demo import PLOTTED, plot_beside_truth, run_demo
from ehrseq.errors import UserError
from ehrseq.forecast.table import SKIPPED_SCHEMA, Forecast
from tests.toy import CONFIG


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("work") / "demo"
    said: list[str] = []
    paths = run_demo(out, 120, config=CONFIG, say=said.append)
    return out, paths, said


def test_everything_lands_under_the_folder(demo):
    out, paths, _ = demo
    assert sorted(p.name for p in out.iterdir()) == [
        "evaluation", "forecasts", "model", "risk_curves.png", "simulation", "timelines",
    ]  # fmt: skip
    assert {p.parent for p in paths.values()} == {out}
    assert paths["plot"].read_bytes().startswith(b"\x89PNG")


def test_it_ends_with_where_the_forecasts_and_the_plot_are(demo):
    out, _, said = demo
    assert said[-2:] == [f"forecasts: {out / 'forecasts' / 'risk.parquet'}", f"plot: {out / 'risk_curves.png'}"]
    steps = [text.strip()[:3] for text in said if text.strip()[1:3] == "/6"]
    assert steps == [f"{i}/6" for i in range(1, 7)]
    assert any("AUC (95%)" in text for text in said)


def test_only_people_kept_apart_are_forecast(demo):
    _, paths, said = demo
    forecast = Forecast.load(paths["forecasts"])
    assert forecast.seen.height == 0
    subjects = pl.concat([forecast.risk["subject_id"], forecast.skipped["subject_id"]]).n_unique()
    assert any(f"the {subjects:,} people kept apart from fitting" in text for text in said)


def test_a_second_run_replaces_the_first_and_another_folder_is_refused(demo, tmp_path):
    (tmp_path / "simulation").mkdir()
    (tmp_path / "simulation" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="choose another --out"):
        run_demo(tmp_path, 10, config=CONFIG, say=lambda text: None)


def test_too_few_people(tmp_path):
    with pytest.raises(UserError, match="subjects"):
        run_demo(tmp_path / "demo", 1, config=CONFIG, say=lambda text: None)


@pytest.fixture
def drawn(demo, tmp_path, monkeypatch):
    """The figure of a plot, and the tables behind it."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    _, paths, _ = demo
    forecast, truth = Forecast.load(paths["forecasts"]), pl.read_parquet(paths["simulation"] / "truth.parquet")
    plot_beside_truth(forecast, truth, tmp_path / "plot.png")
    return figures[0], forecast, truth


def test_every_dot_is_inside_its_panel_and_is_the_truth(drawn):
    figure, forecast, truth = drawn
    dots = 0
    for axes in figure.axes:
        patient = axes.get_title().split(",")[0]
        low, high = axes.get_ylim()
        assert low == 0
        for line in axes.get_lines():
            values = np.asarray(line.get_ydata())
            assert (values <= high).all()
            outcome = line.get_label().removesuffix(", truth").replace(" ", "_")
            table = truth if line.get_label().endswith("truth") else forecast.risk
            mine = table.filter(patient=patient, outcome=outcome).sort("prediction_time", "horizon_days")
            first = mine.filter(pl.col("prediction_time") == pl.col("prediction_time").min())
            np.testing.assert_allclose(values[values > 0], 100 * first["probability"], rtol=1e-9)
            dots += len(values) * line.get_label().endswith("truth")
    assert dots >= PLOTTED * 3


def test_panels_go_from_the_lowest_to_the_highest_risk(drawn):
    figure, forecast, _ = drawn
    assert len(figure.axes) == PLOTTED
    heights = [
        max(np.max(line.get_ydata()) for line in axes.get_lines() if not line.get_label().endswith("truth"))
        for axes in figure.axes
    ]
    assert heights == sorted(heights)
    first = pl.col("prediction_time") == pl.col("prediction_time").min().over("patient")
    assert heights[-1] == pytest.approx(100 * forecast.risk.filter(first)["probability"].max())


def test_one_legend_names_lines_and_dots_and_colours_agree(drawn):
    figure, _, _ = drawn
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    names = ("death", "diabetes", "heart failure")
    assert labels == [label for name in names for label in (name, f"{name}, truth")]
    colours = {(line.get_label().removesuffix(", truth"), line.get_color()) for a in figure.axes for line in a.lines}
    assert len(colours) == len(names)
    assert "truth (dots)" in figure.get_suptitle()


def forecast_of(*patients):
    """A stored-like forecast of one outcome, `skipped` naming another one for the first patient."""
    times = pl.Series([datetime(2012, 1, 1)] * len(patients), dtype=pl.Datetime("us"))
    risk = pl.DataFrame({"patient": patients, "prediction_time": times}).with_columns(
        subject_id=pl.int_range(pl.len(), dtype=pl.Int64), outcome=pl.lit("death"), horizon_days=365.0,
        probability=0.1 + 0.1 * pl.int_range(pl.len()), competing=0.0,
        lower=pl.lit(None, pl.Float64), upper=pl.lit(None, pl.Float64),
    )  # fmt: skip
    skipped = risk.head(1).with_columns(outcome=pl.lit("heart_failure"), reason=pl.lit("already_present"))
    return Forecast(risk, skipped.select(pl.col(c).cast(t) for c, t in SKIPPED_SCHEMA.items()))


def test_few_patients_and_none(tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))
    forecast = forecast_of("a", "b")
    plot_beside_truth(forecast, forecast.risk, tmp_path / "x.png")
    shown = [axes for axes in figures[0].axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["a, 2012-01-01\nheart failure: already present", "b, 2012-01-01"]
    with pytest.raises(UserError, match="forecasts at the truth's prediction times"):
        plot_beside_truth(forecast, forecast.risk.clear(), tmp_path / "x.png")
