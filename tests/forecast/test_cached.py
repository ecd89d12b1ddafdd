"""A path's hazards from cached keys and values equal those of the whole history read anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from ehrseq.estimator import ProgressionModel
from ehrseq.forecast.draw import path_keys
from ehrseq.forecast.dynamics import NetworkDynamics, Sampler
from ehrseq.forecast.paths import END_CODE, rules_of
from ehrseq.forecast.sampling import Start, sample
from ehrseq.timeline.hierarchy import with_code_parents
from ehrseq.timeline.schema import normalise_events
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import encode
from tests.toy import CONFIG, TASK, cohort, day

TOLERANCE = 1e-5


class Recorder(NetworkDynamics):
    """Keeps every step's time and hazards of each path."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        shape = self.now.shape
        self.who = np.indices(shape)
        self.kept = []

    def hazards(self):
        level = (self.sampler.model.moment_level if self.started else self.sampler.model.level)[self.hazard]
        log_outcome, log_moment = super().hazards()
        self.kept += [
            (s, p, now, hazard)
            for s, p, now, hazard in zip(
                *(w.ravel() for w in self.who),
                self.now.ravel(),
                (log_outcome - level).reshape(-1, *level.shape),
                strict=True,
            )
        ]
        return log_outcome, log_moment

    def keep(self, subject, path):
        super().keep(subject, path)
        self.who = self.who[:, subject[:, None], path]


@pytest.fixture(scope="module")
def timelines():
    parents = {"code": ["ICD10CM//y", "ICD10CM//z"], "parent": ["ICD10CM//Y-Z", "ICD10CM//Y-Z"]}
    return with_code_parents(cohort(), parents)  # sampled events bring their ancestors, as recorded ones do


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "gated"])
def model(timelines, request):
    network = replace(CONFIG.network, gated=request.param)
    return ProgressionModel(replace(CONFIG, network=network)).fit(timelines, TASK)


def continued(timelines, subject, at, rows, codes, sampler):
    """The subject's visible history with a path's events after it."""
    mine = timelines.select([subject])
    known = mine.events.filter(pl.col("known_time").is_null() | (pl.col("known_time") <= at))
    sampled = pl.DataFrame(
        {
            "subject_id": subject,
            "time": pl.Series([t for t, _, _ in rows], dtype=pl.Int64).cast(pl.Datetime("us")),
            "code": [codes[c] for _, c, _ in rows],
            "numeric_value": [sampler.middle[c] + sampler.spread[c] * v for _, c, v in rows],
            "unit": [sampler.scales[c].unit if sampler.scales[c] else None for _, c, _ in rows],
        },
        schema_overrides={"code": pl.String, "unit": pl.String, "numeric_value": pl.Float64},
    )
    events = pl.concat([known, normalise_events(sampled)]) if rows else known
    return Timelines(events=events, subjects=mine.subjects)


def test_cached_hazards_are_those_of_the_whole_history(model, timelines):
    fitted, at = model.fitted_, day(1000)
    subjects = timelines.subjects.filter(pl.col("follow_up_end") > at).head(12).sort("subject_id")
    encoded = encode(timelines.events, subjects, fitted.vocabulary)
    sampler = Sampler(fitted, encoded, 60)  # room for what is sampled, so that reading anew drops nothing
    row = np.arange(len(subjects))
    time = np.full(len(row), int(pl.Series([at]).dt.epoch("us")[0]))
    drawn = list(sampler.model.emitted)
    hazard = np.array([[h.outcome for h in fitted.hazards if not h.competing].index(n) for n in drawn])
    hazard = np.array([i for i, h in enumerate(fitted.hazards) if not h.competing])[hazard]
    issued = sampler.issued(row, time, "hybrid")[:, hazard]
    dynamics = Recorder(sampler, row, time, issued, hazard, 5)
    codes = [*sampler.model.codes, "MEDS_DEATH", END_CODE]
    stop = time + 400 * 86_400_000_000
    key = path_keys(0, encoded.subject_id, time, np.arange(5))
    at_risk = np.ones((len(row), len(drawn)), bool)
    rules = rules_of(TASK, drawn, sampler, codes)
    found = sample(dynamics, Start(time, stop, key, at_risk), rules, len(sampler.model.codes))
    checked = 0
    for s, p, now, log_hazard in dynamics.kept[::7]:
        mine = (found["subject"] == s) & (found["path"] == p) & (found["time"] <= now) & (found["code"] >= 0)
        rows = list(zip(found["time"][mine], found["code"][mine], found["value"][mine], strict=True))
        if any(codes[c] == "MEDS_DEATH" for _, c, _ in rows):
            continue
        again = continued(timelines, int(encoded.subject_id[s]), at, rows, codes, sampler)
        other = Sampler(fitted, encode(again.events, again.subjects, fitted.vocabulary), 60)
        with torch.inference_mode():
            whole = other.network(other.histories(np.zeros(1, np.int64), np.array([now])))[0, 0].numpy()
        np.testing.assert_allclose(log_hazard, whole[hazard], atol=TOLERANCE, rtol=0)
        checked += len(rows) > 0
    assert checked > 20
