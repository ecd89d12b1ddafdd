"""Vocabulary, encoding, the attention mask and packing."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrseq.config import NetworkConfig
from ehrseq.task.history import visible
from ehrseq.timeline.schema import normalise_events
from ehrseq.tokens.batch import Batches, attention_mask, pack, plan_sequences, visible_end
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, STATIC, encode
from ehrseq.tokens.vocabulary import FIRST_CODE, UNKNOWN, Vocabulary
from tests.toy import cohort, day


@pytest.fixture(scope="module")
def timelines():
    return cohort(60)


@pytest.fixture(scope="module")
def vocabulary(timelines):
    return Vocabulary.fit(timelines.events, NetworkConfig(min_subjects=3))


@pytest.fixture(scope="module")
def encoded(timelines, vocabulary):
    return encode(timelines.events, timelines.subjects, vocabulary)


def frame(rows):
    columns = ["subject_id", "time", "code", "numeric_value", "unit", "text_value"]
    return normalise_events(pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None))


def test_rare_codes_outcome_codes_and_free_text_stay_out():
    rows = [(i, day(1), "LOINC//a", 1.0 + i, "u", None) for i in range(5)]
    rows += [(0, day(1), "RARE//1", None, None, None)]
    rows += [(i, day(2), "MEDS_DEATH", None, None, None) for i in range(5)]
    rows += [(i, day(1), "LOINC//t", None, None, "a name in free text") for i in range(5)]
    rows += [(i, day(1), "LOINC//s", None, None, "SNOMED//8392000") for i in range(5)]
    found = Vocabulary.fit(frame(rows), NetworkConfig(min_subjects=5))
    assert found.codes == ("LOINC//a", "LOINC//s", "LOINC//t")
    assert found.coded_values == ("LOINC//s=SNOMED//8392000",)


def test_vocabulary_round_trip(vocabulary):
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


def test_values_in_another_unit_are_left_out_and_unknown_codes_marked():
    rows = [(i, day(1), "LOINC//a", float(i), "mg/dL", None) for i in range(12)]
    known = Vocabulary.fit(frame(rows), NetworkConfig(min_subjects=5))
    subjects = pl.DataFrame({"subject_id": [1], "birth_time": [day(-9000)]})
    events = frame(
        [(1, day(1), "LOINC//a", 5.0, "mg/dL", None), (1, day(2), "LOINC//a", 5.0, "mmol/L", None),
         (1, day(3), "LOINC//b", 5.0, "mg/dL", None)]
    )  # fmt: skip
    tokens = encode(events, subjects, known)
    assert (tokens.knot > 0).tolist() == [True, False, False]
    assert np.isnan(tokens.value).tolist() == [False, True, True]
    assert (tokens.code == UNKNOWN).tolist() == [False, False, True]


def test_repeated_measurements_of_one_moment_become_their_mean():
    rows = [(i, day(1), "LOINC//a", float(i), "u", None) for i in range(12)]
    known = Vocabulary.fit(frame(rows), NetworkConfig(min_subjects=5))
    subjects = pl.DataFrame({"subject_id": [1], "birth_time": [day(-9000)]})
    two = [(1, day(1), "LOINC//a", v, "u", None) for v in (4.0, 6.0)]
    one = [(1, day(1), "LOINC//a", 5.0, "u", None)]
    a, b = (encode(frame(r), subjects, known) for r in (two, one))
    assert a.value.tolist() == b.value.tolist()
    assert len(a.code) == 1


def test_interpolation_between_knots_gives_the_value_back(vocabulary, encoded, timelines):
    code = vocabulary.codes.index("LOINC//a")
    scale = next(s for s in vocabulary.scales if s.code == "LOINC//a")
    first = 1 + sum(len(s.knots) for s in vocabulary.scales[: vocabulary.scales.index(scale)])
    rows = np.flatnonzero(encoded.code == code + FIRST_CODE)
    value = np.interp(encoded.knot[rows] - first + encoded.fraction[rows], range(len(scale.knots)), scale.knots)
    wanted = timelines.events.filter(pl.col("code") == "LOINC//a")["numeric_value"].to_numpy()
    np.testing.assert_allclose(np.sort(value), np.sort(np.clip(wanted, scale.knots[0], scale.knots[-1])), rtol=1e-5)


def test_visible_end_is_the_visibility_rule(encoded):
    rng = np.random.default_rng(0)
    subject = rng.integers(0, len(encoded.subject_id), 200)
    time = rng.choice(encoded.known_time[encoded.known_time != STATIC], 200)
    rows = np.repeat(np.arange(len(encoded.subject_id)), np.diff(encoded.offset))
    wanted = [
        encoded.offset[s] + visible(encoded.known_time[rows == s], t).sum() for s, t in zip(subject, time, strict=True)
    ]
    assert visible_end(encoded, subject, time).tolist() == wanted


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_mask_lets_nothing_through_an_intermediate_event(known, at):
    """The closure of 'may read' from a query holds only events visible at the query."""
    mask = attention_mask(np.array([sorted(known)]), np.array([at]))[0]
    n = len(known)
    reach = np.linalg.matrix_power(mask.astype(int), 4) > 0
    for k, t in enumerate(at):
        assert (reach[n + k, :n] == visible(np.array(sorted(known)), t)).all()
        others = [n + j for j in range(len(at)) if j != k]
        assert not reach[n + k, others].any()
    assert not mask[:n, n:].any()  # nothing sees a query


@settings(deadline=None, max_examples=20)
@given(st.integers(30, 2000), st.integers(2, 60), st.integers(0, 5))
def test_every_query_is_in_one_batch_within_the_budget(encoded, tokens, max_events, seed):
    rng = np.random.default_rng(seed)
    subject = rng.integers(0, len(encoded.subject_id), 80)
    time = rng.integers(-300, 3000, 80) * MICROSECONDS_PER_DAY + int(day(0).timestamp()) * 1_000_000
    sequences = plan_sequences(encoded, subject, time, max_events)
    assert sorted(sequences.query[sequences.query >= 0]) == list(range(80))
    assert (sequences.length <= max_events).all()
    batches = pack(sequences, tokens, rng)
    assert sorted(np.concatenate(batches)) == list(range(len(sequences.subject)))
    length = sequences.length + (sequences.query >= 0).sum(1)
    for rows in batches:
        assert len(rows) == 1 or length[rows].max() * len(rows) <= tokens


def test_a_long_history_keeps_static_facts(encoded, vocabulary):
    batches = Batches(encoded, len(vocabulary.summary_codes), max_events=5)
    late = np.array([encoded.known_time.max()])
    batch = next(iter(batches.over(np.array([0]), late, 1000)))
    first, end = encoded.offset[0], encoded.offset[1]
    assert batch.code[0].tolist() == [encoded.code[first], *encoded.code[end - 4 : end]]
