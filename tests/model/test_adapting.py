"""Pretraining, adapting to another task, and recalibration for another site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ehrseq.config import ModelConfig, NetworkConfig
from ehrseq.errors import ForecastError, UserError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.model.artifact import hashed_ids
from ehrseq.model.recalibration import SITE_PRIOR
from ehrseq.task.split import split_subjects
from ehrseq.timeline.hierarchy import with_code_parents
from tests.toy import CONFIG, TASK, append, cohort, day

NETWORKS = replace(CONFIG, model="transformer")
BOOSTED = replace(CONFIG, model="boosted")
OLD = Path(__file__).parents[1] / "data" / "model_version_1"


@pytest.fixture(scope="module")
def timelines():
    return cohort()


@pytest.fixture(scope="module")
def pretrained(timelines):
    return ProgressionModel(NETWORKS).fit(timelines)


@pytest.fixture(scope="module")
def boosted(timelines):
    return ProgressionModel(BOOSTED).fit(timelines, TASK)


def test_pretraining_learns_when_codes_come(timelines):
    """Those with the code are seen every 30 days, the others every 300."""
    frail = timelines.subjects["subject_id"].to_numpy() % 2 == 0
    end = ((timelines.subjects["follow_up_end"] - day(0)).dt.total_hours() / 24).to_list()
    ids = timelines.subjects["subject_id"].to_list()
    rows = [(i, day(-10), "ICD10CM//frail", None, day(-10)) for i, often in zip(ids, frail, strict=True) if often]
    for i, often, last in zip(ids, frail, end, strict=True):
        rows += [(i, day(d), "LOINC//visit", None, day(d)) for d in np.arange(1 + i % 29, last, 30 if often else 300)]
    regular = append(timelines, rows)
    settings = replace(NETWORKS.training, learning_rate=1e-2, max_epochs=8, patience=8)
    history = ProgressionModel(replace(NETWORKS, training=settings)).fit(regular).fitted_.history[0]
    assert history[-1] < history[0] - 0.5


def test_a_pretrained_model_forecasts_nothing(pretrained, timelines):
    assert pretrained.fitted_.outcomes == []
    assert set(pretrained.fitted_.auxiliary) == {
        "LOINC//a",
        "LOINC//b",
        "RXNORM//x",
        "ICD10CM//y",
        "ICD10CM//z",
        "SNOMED//1",
    }
    with pytest.raises(ForecastError, match=r"fitted without.*adapt"):
        pretrained.forecast(timelines, day(1000))


def test_a_pretrained_model_is_a_folder_and_adapts_as_before(pretrained, timelines, tmp_path):
    pretrained.save(tmp_path / "start")
    assert "forecasts nothing" in (tmp_path / "start" / "model_card.md").read_text()
    loaded = load_model(tmp_path / "start")
    adapted = [model.adapt(timelines, TASK, config=NETWORKS) for model in (pretrained, loaded)]
    risk = [model.forecast(timelines, day(1000)).risk for model in adapted]
    assert risk[0].equals(risk[1])
    adapted[0].save(tmp_path / "adapted")
    assert load_model(tmp_path / "adapted").forecast(timelines, day(1000)).risk.equals(risk[0])


def test_adapting_starts_where_pretraining_ended(pretrained, timelines):
    still = replace(NETWORKS, training=replace(NETWORKS.training, learning_rate=0.0, max_epochs=1))
    adapted = pretrained.adapt(timelines, TASK, config=still).fitted_.networks[0].state_dict()
    before = pretrained.fitted_.networks[0].state_dict()
    for name, tensor in before.items():
        if not name.startswith("head.") and name not in ("auxiliary.base", "auxiliary.terms", "auxiliary.offset"):
            assert torch.equal(adapted[name], tensor), name
    assert any(n.startswith("auxiliary.linear") for n in before)


def test_whom_a_model_was_pretrained_on_is_remembered(timelines):
    ids = timelines.subjects["subject_id"]
    early, late = timelines.select(ids[:120]), timelines.select(ids[120:])
    adapted = ProgressionModel(NETWORKS).fit(early).adapt(late, TASK, config=NETWORKS)
    assert adapted.seen_in_training(ids[:120].to_numpy()).any()
    assert adapted.seen_in_training(ids[120:].to_numpy()).any()


def test_adapting_asks_for_networks_of_the_same_shape(pretrained, boosted, timelines):
    with pytest.raises(ForecastError, match="networks to go on from"):
        boosted.adapt(timelines, TASK)
    with pytest.raises(UserError, match="the network settings"):
        pretrained.adapt(timelines, TASK, config=ModelConfig(network=NetworkConfig(width=32)))


def rarer(timelines, seed=0):
    """Another site, where most of those who fall ill are never recorded as such."""
    rng = np.random.default_rng(seed)
    ids = timelines.subjects["subject_id"]
    forgotten = ids.filter(pl.Series(rng.random(len(ids)) < 0.7))
    hidden = (pl.col("code") == "SNOMED//1") & pl.col("subject_id").is_in(forgotten.implode())
    return replace(timelines, events=timelines.events.filter(~hidden))


def test_recalibration_mends_the_level_at_another_site(boosted):
    site = rarer(cohort(600, seed=7))
    moved = site.subjects.with_columns(subject_id=pl.col("subject_id") + 10_000)
    site = replace(site, subjects=moved, events=site.events.with_columns(subject_id=pl.col("subject_id") + 10_000))
    model = boosted.recalibrate(site)
    rows = {row["outcome"]: row for row in model.fitted_.recalibrated}
    ill = rows["illness"]
    assert ill["expected_before"] / ill["observed"] > 2
    assert ill["expected_after"] / ill["observed"] == pytest.approx(1, abs=0.15)  # 52 events, set on halves
    assert ill["loss_after"] < ill["loss_before"]
    assert rows["death"]["expected_after"] / rows["death"]["observed"] == pytest.approx(1, abs=0.15)
    before, after = (m.forecast(site, day(1000)).risk for m in (boosted, model))
    order = [r.filter(pl.col("outcome") == "illness")["probability"] for r in (before, after)]
    assert order[1].mean() < 0.5 * order[0].mean()
    assert np.corrcoef(order[0], order[1])[0, 1] > 0.95  # who is at higher risk stays so
    total = after["probability"] + after["competing"] + after["event_free"]
    np.testing.assert_allclose(total, 1, atol=1e-12)


def test_recalibration_is_kept_and_its_subjects_are_not_judged(boosted, timelines, tmp_path):
    unseen = timelines.select(
        timelines.subjects["subject_id"].filter(
            ~pl.Series(boosted.seen_in_training(timelines.subjects["subject_id"].to_numpy()))
        )
    )
    model = boosted.recalibrate(timelines)
    assert {row["subjects"] for row in model.fitted_.recalibrated} == {len(unseen)}
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.fitted_.recalibrated == model.fitted_.recalibrated
    assert loaded.forecast(timelines, day(1000)).risk.equals(model.forecast(timelines, day(1000)).risk)
    assert loaded.seen_in_training(timelines.subjects["subject_id"].to_numpy()).all()
    with pytest.raises(ForecastError, match="not fitted on"):
        loaded.recalibrate(timelines)


def test_a_site_of_one_subject_changes_next_to_nothing(boosted):
    one = cohort(1, seed=9)
    one = replace(
        one, subjects=one.subjects.with_columns(subject_id=pl.lit(99_999, pl.Int64)),
        events=one.events.with_columns(subject_id=pl.lit(99_999, pl.Int64)),
    )  # fmt: skip
    model = boosted.recalibrate(one)
    for branch, adjustment in model.fitted_.adjustments.items():
        assert np.abs(adjustment.shift - boosted.fitted_.adjustments[branch].shift).max() < 0.2


def test_settings_that_cannot_be_are_refused(pretrained, timelines):
    with pytest.raises(UserError, match="a model with networks to go on"):
        pretrained.adapt(timelines, TASK, config=BOOSTED)
    with pytest.raises(UserError, match="a task, or a model with networks"):
        ProgressionModel(BOOSTED).fit(timelines)


def test_whom_the_networks_were_trained_on_does_not_tune_them(timelines):
    start = ProgressionModel(NETWORKS).fit(timelines)
    other = replace(NETWORKS, seed=5)
    train = start.trained_on_.filter(pl.col("split") == "train")["hashed_id"]
    plain = split_subjects(timelines, seed=5)
    assert (
        pl.Series(hashed_ids(plain.filter(split="tuning")["subject_id"].to_numpy(), start.fitted_.data_hash))
        .is_in(train.implode())
        .any()
    )
    adapted = start.adapt(timelines, TASK, config=other)
    tuned = adapted.trained_on_.filter(pl.col("split") == "tuning")["hashed_id"]
    assert len(tuned)
    assert not tuned.is_in(train.implode()).any()


def test_each_recalibration_has_its_own_rows(boosted, timelines):
    ids = timelines.subjects["subject_id"].to_numpy()
    unseen = ids[~boosted.seen_in_training(ids)]
    once = boosted.recalibrate(timelines.select(unseen[::2]))
    twice = once.recalibrate(timelines.select(unseen[1::2]))
    assert [row["round"] for row in twice.fitted_.recalibrated] == [1, 1, 2, 2]
    assert twice.fitted_.recalibrated[:2] == once.fitted_.recalibrated


def test_a_site_without_an_event_is_drawn_to_the_model_by_the_prior_once(boosted):
    site = cohort(300, seed=7)
    site = replace(site, events=site.events.filter(pl.col("code") != "SNOMED//1"))
    moved = site.subjects.with_columns(subject_id=pl.col("subject_id") + 10_000)
    site = replace(site, subjects=moved, events=site.events.with_columns(subject_id=pl.col("subject_id") + 10_000))
    model = boosted.recalibrate(site)
    ill = next(row for row in model.fitted_.recalibrated if row["outcome"] == "illness")
    before, at = ill["expected_before"], day(1000)
    assert ill["observed"] == 0
    mean = [
        m.forecast(site, at, horizons=["1y"]).risk.filter(outcome="illness")["probability"].mean()
        for m in (boosted, model)
    ]
    expected = SITE_PRIOR / (before + SITE_PRIOR)
    assert mean[1] / mean[0] == pytest.approx(expected, rel=0.25)  # the intervals are drawn on from there


def test_recalibration_reads_a_sites_codes_as_its_forecasts_do(timelines):
    parents = {"code": ["ICD10CM//y", "ICD10CM//z"], "parent": ["ICD10CM//Y-Z", "ICD10CM//Y-Z"]}
    model = ProgressionModel(NETWORKS).fit(with_code_parents(timelines, parents), TASK)
    local = pl.col("code").str.replace("ICD10CM//", "LOCAL//")
    site = replace(timelines, events=timelines.events.with_columns(code=local))
    told = with_code_parents(site, {"code": ["LOCAL//y", "LOCAL//z"], "parent": ["ICD10CM//Y-Z"] * 2})
    told = replace(told, events=site.events)
    before = [row["loss_before"] for row in model.recalibrate(told).fitted_.recalibrated]
    untold = [row["loss_before"] for row in model.recalibrate(site).fitted_.recalibrated]
    assert before != untold


def test_a_folder_of_earlier_layers_goes_on_with_them(timelines, tmp_path):
    old = load_model(OLD)
    adapted = old.adapt(timelines, TASK)
    assert adapted.config.network == old.config.network
    assert adapted.config.network.gated
    adapted.save(tmp_path / "adapted")
    again = load_model(tmp_path / "adapted").forecast(timelines, day(900)).risk
    assert again.equals(adapted.forecast(timelines, day(900)).risk)
    assert again["probability"].n_unique() > 10


@pytest.mark.parametrize(("width", "heads"), [(10, 4), (0, 4), (8, 0), (8, -4)])
def test_a_width_that_heads_cannot_share_is_refused_for_networks_alone(width, heads):
    network = NetworkConfig(width=width, heads=heads)
    with pytest.raises(UserError, match=f"found {width} for {heads}"):
        ModelConfig(network)
    assert ModelConfig(network, model="cox").network == network
