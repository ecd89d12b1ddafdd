"""Auxiliary targets against reading the events one by one."""

from __future__ import annotations

import warnings
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrseq.config import ModelConfig, NetworkConfig
from ehrseq.errors import TimelineError
from ehrseq.model.landmarks import next_known
from ehrseq.model.sample import FOREVER, Part, check_ends
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, encode
from ehrseq.tokens.vocabulary import Vocabulary
from tests.toy import cohort


def test_the_next_time_that_a_code_becomes_known():
    timelines = cohort(60)
    vocabulary = Vocabulary.fit(timelines.events, NetworkConfig(min_subjects=3), timelines.subjects)
    subjects = timelines.subjects.sort("subject_id")
    encoded = encode(timelines.events, subjects, vocabulary)
    rng = np.random.default_rng(0)
    row = rng.integers(0, 60, 300)
    start, end = (subjects[c].dt.epoch("us").to_numpy() for c in ("follow_up_start", "follow_up_end"))
    time = (start[row] + rng.random(300) * (end[row] - start[row])).astype(np.int64)
    time[:20] = encoded.known_time[encoded.offset[row[:20] + 1] - 1]  # at the very moment of an event
    code = np.array([2 + vocabulary.codes.index(c) for c in ("LOINC//a", "ICD10CM//y")])
    found = next_known(encoded, code, row, time, end[row])
    for q in range(300):
        own = slice(encoded.offset[row[q]], encoded.offset[row[q] + 1])
        for c, one in enumerate(code):
            later = encoded.known_time[own][(encoded.code[own] == one) & (encoded.known_time[own] > time[q])]
            left = max(end[row[q]] - time[q], 0)
            happened = len(later) > 0 and later.min() - time[q] <= left
            assert found.event[q, c] == happened
            days = (later.min() - time[q] if happened else left) / MICROSECONDS_PER_DAY
            assert np.isclose(found.days[q, c], days, rtol=1e-6)
    assert found.event.any(0).all()


def test_a_code_that_a_split_does_not_have_is_never_next():
    timelines = cohort(20)
    vocabulary = Vocabulary.fit(timelines.events, NetworkConfig(min_subjects=3), timelines.subjects)
    encoded = encode(timelines.events, timelines.subjects.sort("subject_id"), vocabulary)
    found = next_known(encoded, np.array([999]), np.array([3]), np.array([0]), np.array([5 * MICROSECONDS_PER_DAY]))
    assert not found.event.any()
    assert found.days.tolist() == [[5.0]]


@pytest.mark.parametrize("n", [1, 29_000, 60_000, 2_000_000])
def test_the_follow_up_of_many_is_added_up_as_that_of_few(n):
    """292,000 years are more microseconds than an int64 holds."""
    encoded = encode(cohort(1).events, cohort(1).subjects, Vocabulary.fit(cohort(20).events, NetworkConfig()))
    start = np.arange(n)
    spent = round(10.25 * 365.25 * MICROSECONDS_PER_DAY)
    part = Part(encoded, pl.DataFrame(), start, start + spent, np.full(n, FOREVER))
    assert part.years == pytest.approx(10.25 * n, rel=1e-12)


def test_follow_up_that_is_far_longer_than_everybody_elses_is_warned_of_and_ends_with_a_lifetime():
    timelines = cohort(200)
    vocabulary = Vocabulary.fit(timelines.events, ModelConfig().network, timelines.subjects)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        usual = Part.prepare(timelines, vocabulary, "train")
    first = timelines.subjects["subject_id"].min()
    end = pl.when(pl.col("subject_id") == first).then(datetime(9999, 12, 31)).otherwise("follow_up_end")
    wrong = replace(timelines, subjects=timelines.subjects.with_columns(follow_up_end=end))
    with pytest.warns(UserWarning, match="found 1 of 200 subjects of the split 'train' followed for more than 40"):
        part = Part.prepare(wrong, vocabulary, "train")
    age = (part.end - part.encoded.birth) / (86_400_000_000 * 365.25)
    assert age.max() <= 130
    assert part.years - usual.years < 130
    nobody = replace(timelines, subjects=timelines.subjects.with_columns(follow_up_end=pl.lit(None, pl.Datetime("us"))))
    with pytest.raises(TimelineError, match="follow-up"):
        Part.prepare(nobody, vocabulary, "train")


def test_observation_periods_that_go_on_where_nothing_is_recorded_are_warned_of():
    timelines = cohort(200)
    last = timelines.events["known_time"].max()

    def observed(until, rule="observation_period"):
        end, rules = pl.lit(last + until), pl.lit(rule)
        return replace(timelines, subjects=timelines.subjects.with_columns(follow_up_end=end, follow_up_rule=rules))

    with pytest.warns(UserWarning, match="found 200 of 200 subjects observed for more than a year after the last"):
        check_ends(observed(timedelta(days=2000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_ends(observed(timedelta(days=360)))
        check_ends(observed(timedelta(days=2000), "data_cut"))  # somebody said so
        check_ends(replace(timelines, events=timelines.events.clear()))
        check_ends(replace(timelines, subjects=timelines.subjects.drop("follow_up_rule")))
        check_ends(replace(timelines, subjects=timelines.subjects.clear()))
