from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrseq.task.definition import Confirm, Horizon
from ehrseq.task.outcome_definition import Bounds
from ehrseq.task.predicate import code_matches, confirmed, value_matches

DAY0 = datetime(2005, 1, 1)


def matching(patterns, codes):
    return [c for c in codes if pl.DataFrame({"code": [c]}).select(code_matches(patterns)).item()]


def test_codes_are_exact_unless_they_end_in_a_star():
    codes = ["ICD10CM//E11", "ICD10CM//E11.9", "ICD10CM//E110", "ICD10//E11.9", "icd10cm//E11"]
    assert matching(["ICD10CM//E11"], codes) == ["ICD10CM//E11"]
    assert matching(["ICD10CM//E11*"], codes) == ["ICD10CM//E11", "ICD10CM//E11.9", "ICD10CM//E110"]
    assert matching(["ICD10CM//E11.*", "ICD10//E11.9"], codes) == ["ICD10CM//E11.9", "ICD10//E11.9"]


def test_patterns_are_no_regular_expressions():
    assert matching(["LOINC//4548.4", "A(1*"], ["LOINC//4548-4", "A(1)"]) == ["A(1)"]


@pytest.mark.parametrize(
    ("value", "modifier", "below", "above", "counts"),
    [
        (44.9, None, 45, None, True), (45.0, None, 45, None, False), (45.1, None, None, 45, True),
        (45.0, None, None, 45, False), (2.67, None, None, 2.67, False), (2.67, None, 2.67, None, False),
        (None, None, 45, None, False), (None, "unknown", 45, None, False), (None, None, None, None, True),
        (45.0, "<", 45, None, True), (45.0, "<=", 45, None, False), (44.0, "<=", 45, None, True),
        (30.0, ">", 45, None, False), (30.0, ">=", 45, None, False), (60.0, ">", None, 60, True),
        (60.0, ">=", None, 60, False), (90.0, "<", None, 60, False), (90.0, ">", None, 60, True),
        (50.0, None, 60, 40, True), (70.0, None, 60, 40, False), (30.0, None, 60, 40, False),
    ],
)  # fmt: skip
def test_values_count_only_when_certainly_beyond(value, modifier, below, above, counts):
    frame = pl.DataFrame(
        {"numeric_value": [value], "value_modifier": [modifier]},
        schema={"numeric_value": pl.Float32, "value_modifier": pl.String},
    )
    assert frame.select(value_matches(Bounds(below, above))).item() is counts


@pytest.mark.parametrize(
    ("value", "modifier", "bounds", "counts"),
    [
        (45.0, None, {"at_most": 45}, True), (45.1, None, {"at_most": 45}, False), (45.0, "<=", {"at_most": 45}, True),
        (45.0, "<", {"at_most": 45}, True), (45.0, ">=", {"at_most": 45}, False), (30.0, ">", {"at_most": 45}, False),
        (45.0, None, {"at_least": 45}, True), (44.9, None, {"at_least": 45}, False),
        (45.0, ">=", {"at_least": 45}, True), (45.0, "<=", {"at_least": 45}, False),
        (2.67, None, {"at_least": 2.67}, True), (2.67, None, {"at_most": 2.67}, True),
        (40.0, None, {"at_least": 40, "below": 60}, True), (60.0, None, {"at_least": 40, "below": 60}, False),
    ],
)  # fmt: skip
def test_inclusive_bounds_count_the_bound_itself(value, modifier, bounds, counts):
    frame = pl.DataFrame(
        {"numeric_value": [value], "value_modifier": [modifier]},
        schema={"numeric_value": pl.Float32, "value_modifier": pl.String},
    )
    assert frame.select(value_matches(Bounds(**bounds))).item() is counts


def confirming(pairs, times, apart):
    frame = pl.DataFrame(
        [(s, DAY0 + timedelta(days=t), DAY0 + timedelta(days=k), i) for i, (s, t, k) in enumerate(pairs)],
        schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "known_time": pl.Datetime("us"), "i": pl.Int64},
        orient="row",
    )
    found = confirmed(frame, Confirm(times, Horizon(f"{apart}d")))
    return {i: (known - DAY0).days for i, known in found.select("i", "known_time").iter_rows()}


def test_a_second_value_far_enough_away_confirms():
    assert confirming([(1, 0, 0), (1, 89, 89), (1, 90, 90)], 2, 90) == {2: 90}
    assert confirming([(1, 0, 0), (2, 200, 200)], 2, 90) == {}
    assert confirming([(1, 0, 0), (1, 90, 90), (1, 100, 100), (1, 180, 180)], 3, 90) == {3: 180}


def test_a_chain_is_known_when_its_last_link_is():
    # the first value arrives late: the pair was not known before
    assert confirming([(1, 0, 300), (1, 100, 101)], 2, 90) == {1: 300}
    # a second chain, known earlier, makes the later value count earlier
    assert confirming([(1, 0, 300), (1, 5, 5), (1, 100, 101)], 2, 90) == {2: 101}


@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(0, 30), st.integers(0, 20)), max_size=9),
    st.integers(2, 4),
    st.integers(1, 8),
)
def test_confirmation_equals_trying_every_chain(raw, times, apart):
    pairs = [(s, t, t + delay) for s, t, delay in raw]

    def known(i, length):
        """The earliest moment at which some chain of that length ending at event i is known; None without one."""
        subject, time, own = pairs[i]
        if length == 1:
            return own
        before = [
            known(j, length - 1) for j, (s, t, _) in enumerate(pairs) if s == subject and t + apart <= time
        ]  # fmt: skip
        before = [k for k in before if k is not None]
        return max(own, min(before)) if before else None

    expected = {i: known(i, times) for i in range(len(pairs))}
    assert confirming(pairs, times, apart) == {i: k for i, k in expected.items() if k is not None}
