"""Drift: the same population gives no warning, each planted shift one that names it, and nobody is identified."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import betabinom, nbinom

from ehrseq.estimator import load_model
from ehrseq.forecast.drift import NAMED, _more_by_chance, _rate_by_chance, drift_of, summary_lines
from ehrseq.model.profile import Observed, Profile, Rate, _spread, _value_profile
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
    assert (with_nobody.events, with_nobody.end_ages) == (whole.events, whole.end_ages)


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
    assert all(scale.spread.subjects >= MINIMUM for scale in profile.values.values())
    # nor in what is written of a run
    found = drift((vocabulary, profile), replace(people, events=rare))
    assert not any(word in json.dumps(found) for word in ("rare", "RARE"))


def test_a_profile_survives_its_json(training):
    _, profile = training
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
    assert Profile.from_dict({"bands": [0.0]}) is None  # of an earlier version
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


@pytest.mark.parametrize(("text", "told"), [("MRN12345678", None), ("Mg/Dl", "mg/dL"), (None, "none")])
@pytest.mark.parametrize("people", [1, 12])
def test_only_a_known_unit_of_enough_people_is_named(training, text, told, people):
    others = cohort(40, seed=3)
    measured = others.events.filter(CODE == "LOINC//b").group_by("subject_id").len().sort("len")
    some = measured["subject_id"].to_list()[-people:]
    written = pl.when((CODE == "LOINC//b") & pl.col("subject_id").is_in(some)).then(pl.lit(text)).otherwise("unit")
    # each of these people has a hundred such numbers
    more = others.events.filter((CODE == "LOINC//b") & pl.col("subject_id").is_in(some)).unique("subject_id")
    events = pl.concat([others.events, *[more] * 100]).with_columns(written.alias("unit"))
    found = drift(training, replace(others, events=events))
    details = [warning["detail"] for warning in found["warnings"] if warning["kind"] == "unit"]
    assert [detail.endswith(f"({told or 'another unit'})") for detail in details] == ([True] if people > 1 else [])
    assert text not in json.dumps(found) or text == told if text else True


def test_what_few_people_have_is_not_told(training):
    others = cohort(40, seed=3)
    one = others.events["subject_id"][0]
    mine = pl.col("subject_id") == one
    codes = ["RXNORM//x", "LOINC//a"]
    rare = replace(
        others, events=others.events.filter(~CODE.is_in(codes) | mine),
        subjects=others.subjects.with_columns(sex=pl.when(mine).then(pl.lit("other")).otherwise(pl.lit("male"))),
    )  # fmt: skip
    # the one person has each of the codes a hundred times
    events = pl.concat([rare.events, *[rare.events.filter(mine & CODE.is_in(codes))] * 100])
    assert set(events.filter(mine)["code"]) >= set(codes)
    found, nobody = (drift(training, replace(rare, events=e)) for e in (events, events.filter(~mine)))
    told = {row["code"]: row for row in found["rates"]}
    for code in codes:
        assert (told[code]["observed"], told[code]["ratio"]) == (None, None)
        assert not [w for w in found["warnings"] if w["name"] == code and "fewer than 10 people" not in w["detail"]]
    assert told["ICD10CM//y"]["observed"] > 0
    assert [row["code"] for row in found["values"]] == ["LOINC//b"]
    assert {row["observed"] for row in nobody["rates"] if row["code"] in codes} == {None}
    assert set(found["sex"]) == {"female", "male"}
    assert found["sex"]["male"][0] == 1.0


@pytest.mark.parametrize("n", [1, NAMED - 1])
def test_few_people_are_not_compared(training, n):
    people = cohort(n, seed=2)
    found = drift(training, people)
    assert found == {"compared": False, "note": "fewer than 10 people were asked about", "warnings": []}
    assert "fewer than 10 people" in summary_lines(found)[0]


@pytest.mark.parametrize("n", [10, 12, 19, 20, 25, 199, 200, 1500])
def test_a_profile_of_numbers_holds_nobodys(n):
    value = np.random.default_rng(n).lognormal(size=n)
    value[: n // 3] = 1.0  # many have the same
    made = _value_profile(value, MINIMUM)
    counts = np.array(made.spread.shares) * n
    assert counts.min() >= MINIMUM - 1e-9
    assert len(made.spread.edges) == 0 if n < 2 * MINIMUM else len(made.spread.edges) > 0 or n < 100
    assert not set(made.spread.edges) & set(value[value != 1.0])
    assert (made.low is None) == (n < 200)
    if made.low is not None:
        assert min((value < made.low).sum() + (made.low == 1.0) * n, (value > made.high).sum()) >= 1
        assert made.outside * n >= MINIMUM
        assert made.high not in value
    assert _spread(np.zeros(0), MINIMUM).shares == (0.0,)


@pytest.mark.parametrize("years", [0, 12, 22])
def test_ages_are_those_of_the_training_people_whenever_they_are_asked(years):
    people = cohort(600, seed=100)
    # followed for up to 8, 20 and 30 years; the older die
    begun = pl.col("follow_up_start").dt.offset_by(f"-{years}y")
    old = (pl.col("follow_up_end") - pl.col("birth_time")).dt.total_days() > 365 * 65
    died = pl.when(old).then("follow_up_end").alias("death_time")
    people = replace(people, subjects=people.subjects.with_columns(begun, died))
    learnt = learned(people)
    for at in (None, day(2900), day(9000), *(day(2600 - 365 * back) for back in range(0, years + 7, 3))):
        found = drift(learnt, people, at)
        assert not {"age", "sex"} & {kind for kind, _ in named(found)}, at
    assert drift(learnt, people)["age_shift"] < 0.01
    older = people.subjects.with_columns(pl.col("birth_time").dt.offset_by("-20y"))
    assert ("age", "age") in named(drift(learnt, replace(people, subjects=older), day(1000)))


def many_codes(n, seed):
    """300 rare codes and 100 labs, whose people differ in how many they have."""
    people = cohort(n, seed=seed)
    rng = np.random.default_rng(seed + 1000)
    k = people.events.height
    of = {"LOINC": rng.integers(0, 100, k), "ICD10CM": rng.integers(0, 150, k), "RXNORM": rng.integers(0, 150, k)}
    new = [
        f"{system}//{of[system][row]}" if (system := code.partition("/")[0]) in of else code
        for row, code in enumerate(people.events["code"].to_list())
    ]
    return replace(people, events=people.events.with_columns(code=pl.Series(new)))


@pytest.fixture(scope="module")
def training_of_many():
    return learned(many_codes(1500, 100))


@pytest.mark.parametrize(("n", "seeds"), [(5, 2), (20, 12), (50, 12), (400, 3)])
def test_rare_codes_of_the_same_population_give_no_warning(training_of_many, n, seeds):
    # one run in a hundred at most; none of these 29 has one
    assert len(training_of_many[1].rates) > 350
    assert [drift(training_of_many, many_codes(n, seed))["warnings"] for seed in range(seeds)] == [[]] * seeds


def test_shifts_among_rare_codes_are_named(training_of_many):
    people = many_codes(400, 3)
    counts = Counter(people.events["code"].to_list())
    lab = max((c for c in counts if c.startswith("LOINC")), key=counts.__getitem__)
    mixed = pl.when(CODE.eq(lab)).then(pl.col("numeric_value") * 38.67).otherwise("numeric_value").cast(pl.Float32)
    found = drift(training_of_many, changed(people, mixed.alias("numeric_value")))
    assert named(found) == {("values", lab)}
    found = drift(training_of_many, changed(people, keep=~CODE.str.starts_with("RXNORM")))
    assert named(found) == {("event_rate", "RXNORM//*")}  # of each code, so few were expected that none can miss
    usual = drift(training_of_many, people)["rates"]
    code, *_ = (row["code"] for row in usual if row["code"].startswith("ICD10CM//1") and row["observed"])
    often = pl.when(CODE.str.starts_with("ICD10CM//12")).then(pl.lit(code)).otherwise("code")
    assert ("code_rate", code) in named(drift(training_of_many, changed(people, often.alias("code"))))


def test_one_person_with_a_code_a_hundred_times_is_no_rise(training):
    others = cohort(400, seed=3)
    coded = others.events.filter(CODE == "ICD10CM//z")
    mine = coded.filter(pl.col("subject_id") == coded["subject_id"][0])
    events = pl.concat([others.events, *[mine] * (2 * coded.height // mine.height)])
    assert drift(training, replace(others, events=events))["warnings"] == []


def test_bands_without_training_years_are_not_compared():
    people = cohort(600, seed=5)
    short = people.subjects.with_columns(follow_up_end=pl.lit(day(60)))
    events = people.events.filter(pl.col("known_time").is_null() | (pl.col("known_time") <= day(60)))
    learnt = learned(replace(people, events=events, subjects=short))
    assert (learnt[1].years[0] > 100, learnt[1].years[1:]) == (True, (0.0, 0.0))
    # records of years: what happened in their first year alone is counted, and expected
    found = drift(learnt, cohort(400, seed=6))
    assert not [w for w in found["warnings"] if w["kind"] in ("event_rate", "code_rate", "missing_code")]
    assert {round(row["ratio"]) for row in found["rates"] if row["expected"] > 30} == {1}


def test_an_unseen_feed_of_codes_that_few_have_is_seen(training):
    others = cohort(400, seed=3)
    extra = others.events.filter(CODE.str.starts_with("LOINC")).with_row_index("i")
    extra = extra.with_columns(code=pl.concat_str(pl.lit("LOCAL//"), pl.col("i").cast(pl.String))).drop("i")
    both = replace(others, events=pl.concat([others.events, extra.select(others.events.columns)]))
    found = drift(training, both)
    assert named(found) == {("unseen_codes", "unseen codes")}
    assert found["unseen_codes"] == []
    assert "LOCAL" not in json.dumps(found)
    # the same number of events, of a few people
    few = extra.with_columns(subject_id=pl.col("subject_id") % 5 + 1)
    both = replace(others, events=pl.concat([others.events, few.select(others.events.columns)]))
    found = drift(training, both)
    assert (found["warnings"], found["unseen_events"]) == ([], None)


def test_tails_are_those_of_scipy():
    for k, n, usual, trained in [(3, 20, 0.05, 400), (20, 20, 0.5, 40), (0, 9, 0.1, 50), (900, 1000, 0.85, 800)]:
        law = betabinom(n, usual * trained + 0.5, (1 - usual) * trained + 0.5)
        assert _more_by_chance(k / n, n, usual, trained) == pytest.approx(law.sf(k - 1), rel=1e-9)
    for observed, expected, spread in [(0, 12.0, 1.0), (40, 12.0, 3.0), (7, 30.0, 2.0)]:
        variance = spread * (1 + expected / 300)
        law = nbinom(expected / (variance - 1), 1 / variance)
        tail = 2 * min(law.cdf(observed), law.sf(observed - 1))
        found = _rate_by_chance(Rate((100.0, 100.0, 100.0), spread), observed, observed, expected)
        assert found == pytest.approx(tail, rel=1e-9)


def test_nobody_is_no_drift(training):
    vocabulary, profile = training
    nobody = Timelines.from_events({"subject_id": [1], "time": [None], "code": ["SEX//female"]})
    asked = nobody.subjects.select("subject_id", prediction_time="follow_up_end")
    assert drift_of(profile, Observed.of(profile, vocabulary, nobody, asked))["warnings"] == []


def test_records_that_have_not_lasted_are_no_drift(training):
    """Everyone is asked about when the first thing becomes known: no time has passed in which to expect events."""
    vocabulary, profile = training
    n, when = 40, day(500)
    rows = [(i, when, "RXNORM//x", when) for i in range(1, n + 1)]
    events = pl.DataFrame(rows, ["subject_id", "time", "code", "known_time"], orient="row")
    people = Timelines.from_events(events)
    asked = pl.DataFrame({"subject_id": range(1, n + 1)}).with_columns(prediction_time=pl.lit(when, pl.Datetime("us")))
    seen = Observed.of(profile, vocabulary, people, asked)
    assert seen.events["RXNORM//x"] == n
    assert sum(seen.years) == 0
    assert not [w for w in drift_of(profile, seen)["warnings"] if w["kind"].endswith("rate")]
