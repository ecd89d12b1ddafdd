from datetime import date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ehrseq.errors import TimelineError
from ehrseq.timeline.follow_up import RULES, follow_up
from ehrseq.timeline.schema import normalise_events

Y = {year: datetime(year, 1, 1) for year in range(1990, 2031)}


def events(*rows):
    """Rows of (subject, year or None, code, year known or None)."""
    return normalise_events(
        {
            "subject_id": [r[0] for r in rows],
            "time": pl.Series([Y.get(r[1]) for r in rows], dtype=pl.Datetime("us")),
            "code": [r[2] for r in rows],
            "known_time": pl.Series([Y.get(r[3]) if len(r) > 3 else None for r in rows], dtype=pl.Datetime("us")),
        }
    )


LIVED = (
    (1, None, "SEX//female"),
    (1, 1990, "MEDS_BIRTH"),
    (1, 2001, "LOINC//718-7"),
    (1, 2003, "LOINC//718-7", 2004),
    (1, 2002, "SNOMED//1"),
    (1, 2010, "MEDS_DEATH"),
)


def periods(*rows):
    return pl.DataFrame(
        {
            "subject_id": [r[0] for r in rows],
            "start": pl.Series([Y.get(r[1]) for r in rows], dtype=pl.Datetime("us")),
            "end": pl.Series([Y.get(r[2]) for r in rows], dtype=pl.Datetime("us")),
        }
    )


@pytest.mark.parametrize(
    ("given_periods", "cut", "expected"),
    [
        (None, None, (2001, 2004, "last_contact")),
        (None, Y[2007], (2001, 2007, "data_cut")),
        (None, Y[2003], (2001, 2003, "data_cut")),
        (periods((1, 2000, 2012)), None, (2000, 2012, "observation_period")),
        (periods((1, 2000, 2012)), Y[2020], (2000, 2012, "observation_period")),
        (periods((1, 2000, 2012)), Y[2012], (2000, 2012, "observation_period")),
        (periods((1, 2000, 2012)), Y[2009], (2000, 2009, "data_cut")),
        (periods((1, 2000, 2002), (1, 2004, 2006)), None, (2000, 2006, "observation_period")),
        (periods((1, None, 2012)), None, (2001, 2012, "observation_period")),
        (periods((1, 2000, None)), None, (2000, 2004, "last_contact")),
        (periods((1, 2000, None)), Y[2008], (2000, 2008, "data_cut")),
        (periods((1, 1999, 2006), (1, 2006, None)), None, (1999, 2006, "last_contact")),
        (periods((2, 2000, 2012)), None, (2001, 2004, "last_contact")),
        (periods((1, None, None)), None, (2001, 2004, "last_contact")),
        (None, Y[1995], (None, None, None)),
        (periods((1, 2012, 2000)), None, (None, None, None)),
    ],
)
def test_rules(given_periods, cut, expected):
    frame = follow_up(events(*LIVED), given_periods, cut)
    start, end, rule = frame.filter(pl.col("subject_id") == 1).row(0)[1:4]
    assert (start and start.year, end and end.year, rule) == expected
    assert rule is None or rule in RULES


def test_dates_stand_for_whole_days():
    frame = {"subject_id": [1], "start": [date(2000, 3, 1)], "end": [date(2005, 3, 1)]}
    assert follow_up(events(*LIVED), frame).row(0)[1:3] == (
        datetime(2000, 3, 1),
        datetime(2005, 3, 1, 23, 59, 59, 999999),
    )
    assert follow_up(events(*LIVED), None, "2005-03-01")["follow_up_end"].item() == datetime(
        2005, 3, 1, 23, 59, 59, 999999
    )


def test_subjects_without_contact_have_no_follow_up_unless_a_period_says_so():
    silent = events((1, None, "SEX//male"), (1, 1990, "MEDS_BIRTH"), (1, 2010, "MEDS_DEATH"))
    for cut in (None, Y[2020]):
        assert follow_up(silent, data_cut=cut).row(0) == (1, None, None, None, None)
    assert follow_up(silent, periods((1, 2000, 2005))).row(0)[:4] == (1, Y[2000], Y[2005], "observation_period")


def test_a_period_of_a_subject_without_any_event_counts():
    assert follow_up(events(), periods((5, 2000, 2005))).rows() == [
        (5, Y[2000], Y[2005], "observation_period", Y[2000])
    ]
    assert follow_up(events(), periods((5, 2000, None))).rows() == [(5, None, None, None, Y[2000])]


def test_periods_without_their_columns_are_refused():
    with pytest.raises(TimelineError, match="found no column end"):
        follow_up(events(*LIVED), {"subject_id": [1], "start": [Y[2000]]})


CODES = st.sampled_from(["MEDS_BIRTH", "MEDS_DEATH", "SEX//female", "LOINC//1", "SNOMED//2"])
YEARS = st.one_of(st.none(), st.integers(1990, 2030))
ROWS = st.lists(st.tuples(st.integers(1, 4), YEARS, CODES, YEARS), max_size=25)
PERIODS = st.one_of(st.none(), st.lists(st.tuples(st.integers(1, 5), YEARS, YEARS), max_size=5))


@settings(max_examples=150, deadline=None)
@given(ROWS, PERIODS, st.one_of(st.none(), st.integers(1990, 2030)))
def test_follow_up_does_not_depend_on_death(rows, period_rows, cut):
    frame = None if period_rows is None else periods(*period_rows)
    with_deaths = events(*rows)
    without = with_deaths.filter(pl.col("code") != "MEDS_DEATH")
    a, b = (follow_up(e, frame, Y.get(cut)) for e in (with_deaths, without))
    # a subject known by the death alone leaves no row, and had no follow-up
    gone = a.join(b, on="subject_id", how="anti")
    assert gone["follow_up_end"].null_count() == gone.height
    assert_frame_equal(a.join(b, on="subject_id", how="semi"), b)


@settings(max_examples=100, deadline=None)
@given(ROWS, PERIODS, st.one_of(st.none(), st.integers(1990, 2030)), st.randoms(use_true_random=False))
def test_every_end_follows_its_start_and_row_order_does_not_matter(rows, period_rows, cut, random):
    frame = None if period_rows is None else periods(*period_rows)
    result = follow_up(events(*rows), frame, Y.get(cut))
    assert result["subject_id"].is_sorted()
    assert result["subject_id"].is_unique().all()
    assert (result["follow_up_start"] <= result["follow_up_end"]).all()
    # start, end and rule are there together or not at all
    assert result.select(pl.sum_horizontal(pl.col("^follow_up_.*$").is_null()).is_in([0, 3])).to_series().all()
    if cut is not None:
        assert (result["follow_up_end"] <= Y[cut]).all()
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert_frame_equal(follow_up(events(*shuffled), frame, Y.get(cut)), result)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_last_contact_by_a_plain_loop(rows):
    frame = events(*rows)
    expected = {}
    for event in frame.iter_rows(named=True):
        subject = event["subject_id"]
        expected.setdefault(subject, None)
        if event["time"] is not None and event["code"] not in ("MEDS_BIRTH", "MEDS_DEATH"):
            expected[subject] = max(expected[subject] or datetime.min, event["known_time"])
    found = dict(follow_up(frame).select("subject_id", "follow_up_end").iter_rows())
    assert found == expected


def test_one_day_of_contact_is_a_follow_up_of_its_last_moment():
    frame = normalise_events({"subject_id": [1], "time": [date(2020, 5, 5)], "code": ["LOINC//1"]})
    start, end = follow_up(frame).row(0)[1:3]
    assert start == end == datetime(2020, 5, 5, 23, 59, 59, 999999)


def test_a_back_dated_contact_starts_no_follow_up_before_it_was_known():
    frame = events((1, 1995, "SNOMED//1", 2016), (1, 2017, "LOINC//1"), (2, 1999, "LOINC//1"))
    assert follow_up(frame, data_cut=Y[2020])["follow_up_start"].to_list() == [Y[2016], Y[1999]]


@pytest.mark.parametrize("end", [2005, None])
@pytest.mark.parametrize("cut", [2003, 2010, None])
def test_observation_starts_with_the_period_however_it_ends(end, cut):
    found = follow_up(events(*LIVED), periods((1, 2000, end), (1, 2001, 2002), (2, None, 2005)), Y.get(cut))
    assert found["observation_start"].to_list() == [Y[2000], None]
    assert follow_up(events(*LIVED), None, Y.get(cut))["observation_start"].to_list() == [None]


@pytest.mark.parametrize(
    ("given_periods", "cut", "expected"),
    [
        (None, None, 2004),
        (None, Y[2007], 2004),
        (None, Y[2003], 2003),
        (periods((1, 2000, 2012)), None, 2004),
        (periods((1, 2000, 2003)), None, 2003),
    ],
)
def test_an_undated_death_ends_follow_up_with_the_last_contact(given_periods, cut, expected):
    _, _, end, rule, _ = follow_up(events(*LIVED), given_periods, cut, pl.Series([1])).row(0)
    assert (end, rule) == (Y[expected], "last_contact_undated_death")
    other = follow_up(events(*LIVED), given_periods, cut, pl.Series([2]))
    assert_frame_equal(other, follow_up(events(*LIVED), given_periods, cut))
