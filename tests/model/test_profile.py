"""Drift: the same population gives no warning, each planted shift one that names it, and nobody is identified."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrseq.estimator import load_model
from ehrseq.forecast.drift import drift_of, summary_lines
from ehrseq.model.profile import Observed, Profile
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.vocabulary import Vocabulary
from tests.toy import CONFIG, cohort, day

MINIMUM = 10


def learned(timelines):
    network = replace(CONFIG.network, min_subjects=MINIMUM)
    vocabulary = Vocabulary.fit(timelines.events, network, timelines.subjects)
    return vocabulary, Profile.fit(timelines, vocabulary, MINIMUM)


@pytest.fixture(scope="module")
def training():
    return learned(cohort(600, seed=100))


def drift(training, timelines, at=None):
    vocabulary, profile = training
    asked = timelines.subjects.select("subject_id", prediction_time="follow_up_end" if at is None else pl.lit(at))
    return drift_of(profile, Observed.of(profile, vocabulary, timelines, asked))


def named(found):
    return {(warning["kind"], warning["name"]) for warning in found["warnings"]}


def changed(timelines, *columns, keep=None):
    events = timelines.events.with_columns(*columns)
    return replace(timelines, events=events if keep is None else events.filter(keep))


@pytest.mark.parametrize("seed", range(6))
def test_the_same_population_gives_no_warning(training, seed):
    others = cohort(400, seed=seed)
    assert drift(training, others)["warnings"] == []
    # nor one that is asked about earlier, whose records are shorter
    early = others.subjects.filter(pl.col("follow_up_end") > day(800))["subject_id"]
    assert drift(training, others.select(early), at=day(800))["warnings"] == []


CODE = pl.col("code")
SHIFTS = {
    "a unit mix-up": (
        [pl.when(CODE == "LOINC//a").then(pl.col("numeric_value") * 38.67).otherwise("numeric_value")
         .cast(pl.Float32).alias("numeric_value")], None, {("values", "LOINC//a")},
    ),
    "a unit mix-up of every seventh person": (
        [pl.when((CODE == "LOINC//a") & (pl.col("subject_id") % 7 == 0)).then(pl.col("numeric_value") * 38.67)
         .otherwise("numeric_value").cast(pl.Float32).alias("numeric_value")], None, {("values", "LOINC//a")},
    ),
    "another unit, and said so": (
        [pl.when(CODE == "LOINC//b").then(pl.lit("mmol/L")).otherwise("unit").alias("unit")], None,
        {("unit", "LOINC//b")},
    ),
    "a code that is missing": ([], CODE != "RXNORM//x", {("missing_code", "RXNORM//x"), ("event_rate", "RXNORM//*")}),
    "codes that were renamed": (
        [CODE.replace("ICD10CM//y", "LOCAL//77").alias("code")], None,
        {("missing_code", "ICD10CM//y"), ("unseen_codes", "unseen codes"), ("event_rate", "ICD10CM//*")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_planted_shift_is_named(training, shift):
    columns, keep, expected = SHIFTS[shift]
    found = drift(training, changed(cohort(400, seed=3), *columns, keep=keep))
    assert named(found) == expected
    for _, name in expected - {("unseen_codes", "unseen codes")}:
        assert any(name in warning["detail"] for warning in found["warnings"])


def test_renamed_codes_are_told_by_their_new_name(training):
    found = drift(training, changed(cohort(400, seed=3), CODE.replace("ICD10CM//y", "LOCAL//77").alias("code")))
    assert [row["code"] for row in found["unseen_codes"]] == ["LOCAL//77"]
    assert any("LOCAL//77" in line for line in summary_lines(found))
    assert found["unseen_events_in_training"] == 0


def test_half_of_the_events_are_missed(training):
    half = np.random.default_rng(0).random(cohort(400, seed=3).events.height) < 0.5
    keep = pl.Series(half) | CODE.str.starts_with("MEDS_")
    found = drift(training, changed(cohort(400, seed=3), keep=keep))
    assert {("event_rate", "LOINC//*"), ("event_rate", "ICD10CM//*"), ("event_rate", "RXNORM//*")} <= named(found)
    assert {kind for kind, _ in named(found)} <= {"event_rate", "code_rate"}
    ratios = {row["code"]: row["ratio"] for row in found["rates"]}
    assert ratios["LOINC//*"] == pytest.approx(0.5, abs=0.06)


def test_other_people(training):
    others = cohort(400, seed=3)
    older = replace(others, subjects=others.subjects.with_columns(pl.col("birth_time").dt.offset_by("-20y")))
    assert named(drift(training, older)) == {("age", "age")}
    women = others.select(others.subjects.filter(sex="female")["subject_id"])
    assert named(drift(training, women)) == {("sex", "female"), ("sex", "male")}


def test_parts_of_a_population_add_up_to_it(training):
    vocabulary, profile = training
    people = cohort(100, seed=4)
    asked = people.subjects.select("subject_id", prediction_time="follow_up_end")
    whole = Observed.of(profile, vocabulary, people, asked)
    parts = []
    for rest in range(3):
        some = people.select(asked.filter(pl.col("subject_id") % 3 == rest)["subject_id"])
        mine = asked.join(some.subjects, on="subject_id", how="semi")
        parts.append(json.loads(json.dumps(Observed.of(profile, vocabulary, some, mine).to_dict())))
    total = Observed.sum(parts)
    assert np.allclose(total.years, whole.years)
    total.years = whole.years
    assert total == whole
    with_nobody = Observed.sum([parts[0], Observed().to_dict(), *parts[1:]])
    assert (with_nobody.events, with_nobody.ages) == (whole.events, whole.ages)


def test_nothing_is_told_of_a_code_that_few_have():
    people = cohort(80, seed=1)
    rare = people.events.with_columns(
        pl.when((CODE == "LOINC//a") & (pl.col("subject_id") < MINIMUM)).then(pl.lit("LOINC//rare"))
        .when((CODE == "RXNORM//x") & (pl.col("subject_id") < MINIMUM)).then(pl.lit("RARESYSTEM//x"))
        .otherwise("code").alias("code"),
        pl.when((CODE == "LOINC//b") & (pl.col("subject_id") < MINIMUM)).then(pl.lit("rareunit")).otherwise("unit")
        .alias("unit"),
    )  # fmt: skip
    vocabulary, profile = learned(replace(people, events=rare))
    text = json.dumps(profile.to_dict())
    assert "LOINC//a" in text
    assert not any(word in text for word in ("rare", "RARE"))
    assert all(scale.subjects >= MINIMUM for scale in profile.values.values())
    # nor in what is written of a run
    found = drift((vocabulary, profile), replace(people, events=rare))
    assert not any(word in json.dumps(found) for word in ("rare", "RARE"))


def test_a_profile_survives_its_json(training):
    _, profile = training
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
    with pytest.raises(ValueError, match="bands"):
        Profile.from_dict({**profile.to_dict(), "bands": [0.0]})


def test_events_that_are_not_known_yet_are_not_counted(training):
    vocabulary, profile = training
    people = cohort(60, seed=2)
    asked = people.subjects.select("subject_id", prediction_time=pl.lit(day(500)))
    before = Observed.of(profile, vocabulary, people, asked)
    later = people.events.filter(pl.col("known_time").is_null() | (pl.col("known_time") <= day(500)))
    assert Observed.of(profile, vocabulary, replace(people, events=later), asked) == before


def test_folders_of_earlier_versions_have_no_profile():
    model = load_model(Path(__file__).parents[1] / "data" / "model_version_1")
    assert model.fitted_.profile is None
    found = drift_of(None, Observed())
    assert (found["compared"], found["warnings"]) == (False, [])
    assert "no training profile" in summary_lines(found)[0]


def test_a_unit_that_is_no_unit_is_not_repeated(training):
    text = pl.when(CODE == "LOINC//b").then(pl.lit("Jane Roe, 12 Elm St")).otherwise("unit").alias("unit")
    found = drift(training, changed(cohort(400, seed=3), text))
    assert named(found) == {("unit", "LOINC//b")}
    assert "Roe" not in json.dumps(found)


def test_nobody_is_no_drift(training):
    vocabulary, profile = training
    nobody = Timelines.from_events({"subject_id": [1], "time": [None], "code": ["SEX//female"]})
    asked = nobody.subjects.select("subject_id", prediction_time="follow_up_end")
    assert drift_of(profile, Observed.of(profile, vocabulary, nobody, asked))["warnings"] == []
