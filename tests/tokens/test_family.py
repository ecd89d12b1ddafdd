"""Ancestors of codes: what a network reads of them, and what stands for a code that training did not have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrseq.config import NetworkConfig
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.timeline.hierarchy import with_code_parents
from ehrseq.timeline.schema import normalise_events
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import encode
from ehrseq.tokens.family import Family
from ehrseq.tokens.vocabulary import FIRST_CODE, UNKNOWN, Vocabulary
from tests.toy import CONFIG, TASK, append, cohort, day

PARENTS = {
    "code": ["ICD10CM//y", "ICD10CM//z", "ICD10CM//new", "ICD10CM//Y-Z"],
    "parent": ["ICD10CM//Y-Z", "ICD10CM//Y-Z", "ICD10CM//Y-Z", "ICD10CM//all"],
}
PAIRS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), max_size=12)


@pytest.fixture(scope="module")
def timelines():
    return with_code_parents(cohort(), PARENTS)


@pytest.fixture(scope="module")
def model(timelines):
    learned = replace(CONFIG.training, learning_rate=1e-2)  # so that what a network reads makes a difference
    return ProgressionModel(replace(CONFIG, model="transformer", training=learned)).fit(timelines, TASK)


@given(pairs=PAIRS)
def test_ancestors_are_what_can_be_reached(pairs):
    family = Family.of(pairs)
    for code in "abcdef":
        reached, level = set(), {code}
        while level:
            level = {p for c, p in pairs if c in level} - reached
            reached |= level
        assert set(family.ancestors(code)) == reached - {code}
        assert len(family.ancestors(code)) == len(reached - {code})


@given(pairs=PAIRS, known=st.sets(st.sampled_from("abcdef")))
def test_pairs_that_lead_nowhere_are_not_kept(pairs, known):
    kept = Family.of(Family.of(pairs).leading_to(known))
    for code in "abcdef":
        assert [c for c in kept.ancestors(code) if c in known] == [
            c for c in Family.of(pairs).ancestors(code) if c in known
        ]


def test_ancestors_are_codes_where_enough_subjects_have_a_descendant(timelines):
    parents = pl.DataFrame(PARENTS)
    found = Vocabulary.fit(timelines.events, NetworkConfig(min_subjects=3), timelines.subjects, parents)
    assert {"ICD10CM//Y-Z", "ICD10CM//all"} < set(found.codes)
    assert "ICD10CM//new" not in found.codes
    assert found.known_ancestors("ICD10CM//y") == ["ICD10CM//Y-Z", "ICD10CM//all"]
    assert Vocabulary.from_dict(found.to_dict()) == found
    none = Vocabulary.fit(timelines.events, NetworkConfig(min_subjects=10_000), timelines.subjects, parents)
    assert none.codes == ()


def test_tokens_have_the_rows_of_their_ancestors(timelines):
    parents = pl.DataFrame(PARENTS)
    vocabulary = Vocabulary.fit(timelines.events, NetworkConfig(min_subjects=3), timelines.subjects, parents)
    more = append(timelines, [(1, day(500), "ICD10CM//new", None, day(500)), (1, day(501), "X//1", None, day(501))])
    encoded = encode(more.events, more.subjects, vocabulary)
    own = slice(encoded.offset[0], encoded.offset[1])
    above = [FIRST_CODE + vocabulary.codes.index(c) for c in ("ICD10CM//Y-Z", "ICD10CM//all")]
    new, other = np.flatnonzero(encoded.code[own] == UNKNOWN)
    ancestors = encoded.ancestors[encoded.lineage[own]]
    assert ancestors[new].tolist() == above
    assert ancestors[other].tolist() == [0, 0]
    has = np.isin(encoded.code[own], [FIRST_CODE + vocabulary.codes.index(c) for c in ("ICD10CM//y", "ICD10CM//z")])
    assert has.any()
    assert (ancestors[has] == above).all()


def test_a_code_that_training_did_not_have_backs_off_to_its_parents(model, timelines):
    at = day(1000)
    extra = [(i, day(990), code, None, day(990)) for code, i in (("ICD10CM//new", 5), ("ICD10CM//other", 6))]
    changed = append(timelines, extra)
    assert model.unseen_codes(changed).rows() == [
        ("ICD10CM//new", 1, 1, "ICD10CM//Y-Z"), ("ICD10CM//other", 1, 1, None),
    ]  # fmt: skip
    as_unknown = append(timelines, [(5, day(990), "ICD10CM//other", None, day(990))])
    risk = {
        name: model.forecast(some, at).risk.filter(pl.col("subject_id") == 5)["probability"].to_numpy()
        for name, some in (("backed off", changed), ("unknown", as_unknown))
    }
    assert np.abs(risk["backed off"] - risk["unknown"]).max() > 1e-6


def test_parents_may_come_with_the_data_to_be_scored(model, timelines):
    event = [(5, day(990), "LOCAL//q", None, day(990))]
    without = append(timelines, event)
    with_them = with_code_parents(without, {"code": ["LOCAL//q"], "parent": ["ICD10CM//y"]})
    with_them = replace(with_them, events=without.events, subjects=without.subjects)
    assert model.unseen_codes(with_them)["backs_off_to"].to_list() == ["ICD10CM//y"]
    assert model.unseen_codes(without)["backs_off_to"].to_list() == [None]


def test_a_history_of_codes_with_known_ancestors_is_no_unknown_history(model, timelines):
    followed = timelines.subjects.filter(pl.col("follow_up_end") > day(1000))
    subject = followed["subject_id"][0]
    renamed = timelines.events.filter(pl.col("subject_id") == subject).with_columns(
        code=pl.when(pl.col("code").str.contains("ICD10CM|LOINC|RXNORM|SNOMED"))
        .then(pl.lit("ICD10CM//new"))
        .otherwise("code")
    )
    one = timelines.select(pl.Series([subject]))
    known = Timelines(events=normalise_events(renamed), subjects=one.subjects)
    assert model.forecast(known, day(1000)).risk.height


def test_ancestors_through_save_and_load(model, timelines, tmp_path):
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.forecast(timelines, day(1000)).risk.equals(model.forecast(timelines, day(1000)).risk)
    plain = cohort()  # the parents stay with the model
    assert loaded.forecast(plain, day(1000)).risk.equals(model.forecast(timelines, day(1000)).risk)


def test_codes_of_few_people_are_not_in_the_model_folder(timelines):
    rare = append(timelines, [(5, day(400), "ICD10CM//rare", None, day(400))])
    more = with_code_parents(with_code_parents(rare, PARENTS), {"code": ["ICD10CM//rare"], "parent": ["ICD10CM//Y-Z"]})
    fitted = ProgressionModel(replace(CONFIG, model="transformer")).fit(more, TASK)
    assert "ICD10CM//rare" not in str(fitted.fitted_.parts()["vocabulary"])
    assert "ICD10CM//new" in str(fitted.fitted_.parts()["vocabulary"])  # nobody's
    assert fitted.unseen_codes(more)["backs_off_to"].to_list() == ["ICD10CM//Y-Z"]  # the data bring it along
