"""A cause planted in simulated records is found, a decoy is not; random weights do not find it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ehrseq.config import BoostedConfig
from ehrseq.estimator import ProgressionModel
from ehrseq.explain.faithfulness import precision_first, rank_agreement
from ehrseq.explain.randomise import randomised
from ehrseq.timeline.store import Timelines
from tests.toy import CONFIG, TASK, day

CAUSE, DECOY = "RXNORM//cause", "SNOMED//decoy"
NOISE = ["LOINC//a", "LOINC//b", "LOINC//c", "ICD10CM//y", "ICD10CM//z"]
AT = day(900)


def planted(n: int = 900, seed: int = 0) -> Timelines:
    """Who has the cause (3 records of it, as others have of the decoy) falls ill eight times as often."""
    rng = np.random.default_rng(seed)
    rows, subjects = [], []
    for i in range(1, n + 1):
        caused, decoy = (int(u < 0.3) for u in rng.random(2))
        codes = [CAUSE] * 3 * caused + [DECOY] * 3 * decoy + list(rng.choice(NOISE, rng.integers(8, 16)))
        for code in codes:
            when = day(rng.uniform(0, 700))
            rows.append((i, when, code, float(rng.normal(5, 2)) if code.startswith("LOINC") else None, "u", when))
        ill = 700 + rng.exponential(365 * (4 if caused else 32))
        end = rng.uniform(2000, 2900)
        rows.append((i, day(-20000), "MEDS_BIRTH", None, None, day(-20000)))
        if ill < end:
            rows.append((i, day(ill), "SNOMED//1", None, None, day(ill)))
        subjects.append((i, f"p{i}", day(-20000), "female", None, day(0), day(end)))
    columns = ["subject_id", "time", "code", "numeric_value", "unit", "known_time"]
    people = ["subject_id", "patient", "birth_time", "sex", "death_time", "follow_up_start", "follow_up_end"]
    events, table = (
        pl.DataFrame(r, schema=c, orient="row", infer_schema_length=None)
        for r, c in ((rows, columns), (subjects, people))
    )
    return Timelines.from_events(events, table.with_columns(pl.col("death_time").cast(pl.Datetime("us"))))


@pytest.fixture(scope="module")
def timelines():
    return planted()


@pytest.fixture(scope="module")
def unseen(timelines):
    return lambda model: timelines.select(
        timelines.subjects["subject_id"].filter(
            ~pl.Series(model.seen_in_training(timelines.subjects["subject_id"].to_numpy()))
        )
    )


def fit(timelines: Timelines, seed: int) -> ProgressionModel:
    boosted = BoostedConfig(landmarks_per_subject=4, max_trees=60, min_rows_per_leaf=30)
    return ProgressionModel(replace(CONFIG, model="boosted", boosted=boosted, seed=seed)).fit(timelines, TASK)


def test_the_planted_cause_is_found_the_decoy_is_not_and_random_weights_find_neither(timelines, unseen):
    model = fit(timelines, 0)
    some = unseen(model)

    def contributions(kinds=("event", "code")):
        return model.explain(some, AT, outcome="illness", horizon="3y", kinds=kinds).contributions

    found = contributions()
    scores = precision_first(found, {"illness": [CAUSE]})
    assert scores.height > 15
    assert scores["precision"].mean() >= 0.8
    assert scores["at_random"].mean() < 0.3
    codes = found.filter(kind="code").group_by("code").agg(pl.col("contribution").mean())
    by_code = dict(codes.iter_rows())
    assert by_code[CAUSE] > 0.05
    assert abs(by_code[DECOY]) < by_code[CAUSE] / 5
    model.fitted_ = randomised(model.fitted_)
    control = rank_agreement([found, contributions(("code",))])["correlation"].drop_nulls()
    assert abs(control.mean()) < 0.3


def test_seeds_agree_on_the_ranking(timelines, unseen):
    timelines = timelines.with_splits(
        timelines.subjects.select("subject_id", split=pl.Series(["train", "train", "tuning", "held_out"] * 225))
    )
    tables = []
    for seed in (0, 1):
        model = fit(timelines, seed)
        caused = timelines.events.filter(code=CAUSE)["subject_id"].unique()
        some = unseen(model)
        some = some.select(some.subjects["subject_id"].filter(some.subjects["subject_id"].is_in(caused.implode())))
        tables.append(model.explain(some, AT, outcome="illness", horizon="3y", kinds=["code"]).contributions)
    assert rank_agreement(tables)["correlation"].mean() > 0.5
