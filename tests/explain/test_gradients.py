"""Integrated gradients add up to the networks' forecast, and are those of the embeddings themselves."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from ehrseq.errors import ForecastError, TaskError, TimelineError
from ehrseq.estimator import ProgressionModel
from ehrseq.explain.gradients import GRADIENT_SCHEMA, integrated_gradients
from ehrseq.forecast.incidence import cumulative_incidence
from ehrseq.model.adjustment import Adjustment
from ehrseq.model.heads import HazardName
from ehrseq.task.definition import Horizon
from ehrseq.tokens.batch import Batches
from ehrseq.tokens.encode import encode
from tests.toy import CONFIG, TASK, append, cohort, day

AT = day(1000)
FORECAST = ["subject_id", "patient", "prediction_time", "outcome", "horizon"]


@pytest.fixture(scope="module")
def timelines():
    return cohort()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "gated"])
def model(timelines, request):
    """Two members, and an adjustment that changes something; those with ReLU have learned something."""
    training = replace(CONFIG.training, members=2)
    if not request.param:
        training = replace(training, learning_rate=1e-2)
    network = replace(CONFIG.network, gated=request.param)
    config = replace(CONFIG, model="transformer", training=training, network=network)
    model = ProgressionModel(config).fit(timelines, TASK)
    n_hazards, n_intervals = len(model.fitted_.hazards), len(model.fitted_.edges) - 1
    model.fitted_.adjustments["transformer"] = Adjustment(
        np.linspace(0.8, 1.3, n_hazards), np.full((n_hazards, n_intervals), 0.1)
    )
    return model


@pytest.fixture(scope="module")
def patient(model, timelines):
    """A patient with both outcomes ahead."""
    risk = model.forecast(timelines, AT).risk
    both = risk.group_by("patient").agg(pl.col("outcome").n_unique()).filter(pl.col("outcome") == 2)
    return both["patient"].sort()[0]


@pytest.fixture(scope="module")
def steps(model):
    """A ReLU bends the way from the baseline, which then takes more of them than the default."""
    return {} if model.config.network.gated else {"steps": 2048}


@pytest.fixture(scope="module")
def table(model, timelines, patient, steps):
    return model.integrated_gradients(timelines, AT, patient=patient, **steps)


def test_attributions_add_up_to_the_forecast_of_the_branch(model, timelines, patient, table):
    assert dict(table.schema) == GRADIENT_SCHEMA
    sums = table.group_by(FORECAST, maintain_order=True).agg(
        pl.col("attribution").sum(), pl.col("probability", "baseline", "gap").first()
    )
    assert sums.height == 4  # two outcomes, two horizons
    risk = model.forecast(timelines.select(timelines.subject_ids([patient])), AT, branch="transformer").risk
    issued = risk.sort("outcome", "horizon_days")["probability"]
    np.testing.assert_allclose(sums.sort("outcome", "horizon")["probability"], issued, atol=1e-7, rtol=0)
    moved = sums["probability"] - sums["baseline"]
    assert moved.abs().max() > 1e-4
    np.testing.assert_allclose(sums["attribution"] - moved, sums["gap"], atol=1e-12, rtol=0)
    assert sums["gap"].abs().max() < 0.002 * moved.abs().max()
    few = model.integrated_gradients(timelines, AT, patient=patient, steps=2)
    assert few["gap"].abs().max() > 10 * table["gap"].abs().max()


def test_they_are_those_of_the_embeddings_by_plain_sums(model, timelines, patient, table):
    """By hand: the gradient by every member's embeddings at many points of the line, times the embeddings."""
    fitted, one = model.fitted_, timelines.select(timelines.subject_ids([patient]))
    encoded = encode(one.events, one.subjects, fitted.vocabulary)
    batches = Batches(encoded, len(fitted.vocabulary.summary_codes), CONFIG.network.max_events)
    at = pl.Series([AT]).dt.epoch("us").to_numpy()
    (batch,) = batches.over(np.array([0]), at, 8192)
    own, other = (fitted.hazards.index(HazardName("illness", competing=c)) for c in (False, True))
    embedded = [n.embed_events(batch).detach() for n in fitted.networks]
    days = float((day(1000).replace(year=day(1000).year + 3) - AT).days)

    def log_hazards(grown):
        raw = torch.stack([n(batch, x)[0, 0] for n, x in zip(fitted.networks, grown, strict=True)]).double().mean(0)
        return raw * torch.from_numpy(fitted.adjustments["transformer"].slope)[:, None] + 0.1

    def forecast(values):
        rates = np.exp(values)
        return cumulative_incidence(rates[:, own], rates[:, other], fitted.edges, np.array([days]))[0][:, 0]

    apart = 1e-5 * np.eye(len(fitted.hazards) * (len(fitted.edges) - 1)).reshape(-1, len(fitted.hazards), 4)
    total = np.zeros(batch.code.shape[1])
    points = np.concatenate([[0], np.geomspace(1e-12, 1, 250)])  # the norms act on small scales
    for low, high in pairwise(points):
        grown = [((low + high) / 2 * x).requires_grad_() for x in embedded]
        values = log_hazards(grown)
        centre = values.detach().numpy()
        slope = ((forecast(centre + apart) - forecast(centre - apart)) / 2e-5).reshape(values.shape)  # by differences
        gradients = torch.autograd.grad((values * torch.from_numpy(slope)).sum(), grown)
        for gradient, x in zip(gradients, embedded, strict=True):
            total += (gradient * x).sum(-1)[0].double().numpy() * (high - low)
    mine = table.filter(outcome="illness", horizon="3y")["attribution"].to_numpy()
    np.testing.assert_allclose(mine, total, atol=0.01 * np.abs(total).max(), rtol=0)
    assert np.abs(total).max() > 1e-4


def test_each_event_that_is_read_has_one_row(model, timelines, patient, table):
    mine = table.filter(outcome="illness", horizon="1y")
    whole = model.explain(timelines, AT, patient=patient, outcome="illness", horizon="1y", kinds=["event"])
    key = ["time", "known_time", "code"]
    dated = mine.drop_nulls("known_time").select(key).sort(key)
    assert dated.equals(whole.contributions.select(key).sort(key))
    assert mine.filter(pl.col("known_time").is_null())["code"].str.starts_with("SEX//").all()


def test_of_a_long_history_the_events_that_are_read_have_rows(model, timelines, table):
    scored = table.select("subject_id", "patient", "prediction_time", "outcome").filter(outcome="illness").unique()
    short = integrated_gradients(model.fitted_, timelines, scored, [Horizon("1y")], 4, 8)
    mine = table.filter(outcome="illness", horizon="1y")
    dated = mine.drop_nulls("known_time")
    static = mine.filter(pl.col("known_time").is_null())
    assert 0 < static.height < 4 < mine.height
    kept = pl.concat([static, dated.tail(4 - static.height)])
    assert short.select("time", "known_time", "code").equals(kept.select("time", "known_time", "code"))


def test_parts_of_any_size_give_the_same(model, timelines, patient, monkeypatch):
    ask = {"patient": patient, "outcome": "illness", "steps": 8}
    whole = model.integrated_gradients(timelines, AT, **ask)
    monkeypatch.setattr("ehrseq.explain.gradients.TOKENS_AT_ONCE", 1)
    parts = model.integrated_gradients(timelines, AT, **ask)
    np.testing.assert_allclose(parts["attribution"], whole["attribution"], atol=1e-7, rtol=0)
    assert whole["attribution"].abs().max() > 1e-4


def test_what_becomes_known_later_has_no_row_and_moves_none(model, timelines, patient, table, steps):
    subject = timelines.subject_ids([patient])[0]
    later = append(timelines, [(subject, day(400), "ICD10CM//y", None, AT + timedelta(microseconds=1))])
    assert model.integrated_gradients(later, AT, patient=patient, **steps).equals(table)
    # the control: the same event known in time has a row, and moves others
    seen = append(timelines, [(subject, day(400), "ICD10CM//y", None, AT)])
    more = model.integrated_gradients(seen, AT, patient=patient)
    assert more.height == table.height + 4
    assert not set(table["attribution"]) & set(more["attribution"])


def test_requests_that_cannot_be_answered(model, timelines, patient, monkeypatch):
    ask = model.integrated_gradients
    with pytest.raises(TimelineError, match="1 names that fit no subject"):
        ask(timelines, AT, patient="nobody")
    with pytest.raises(ForecastError, match="found 'ilness'; did you mean 'illness'"):
        ask(timelines, AT, patient=patient, outcome="ilness")
    with pytest.raises(TaskError):
        ask(timelines, AT, patient=patient, horizon="soon")
    with pytest.raises(ForecastError, match="at least one step"):
        ask(timelines, AT, patient=patient, steps=0)
    cox = ProgressionModel(replace(CONFIG, model="cox")).fit(timelines, TASK)
    with pytest.raises(ForecastError, match="a model with networks"):
        cox.integrated_gradients(timelines, AT, patient=patient)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ForecastError) as told:
        ask(timelines, AT, patient=patient)
    assert str(told.value) == (
        "expected captum, for integrated gradients; found none installed; "
        "install the extra `explain`: pip install '.[explain]' in the folder of the sources"
    )
