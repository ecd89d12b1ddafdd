from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrseq.errors import TimelineError
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.measures import MEASURE_SCHEMA, MEASURES, derive_measure, egfr_ckdepi2021
from ehrseq.timeline.schema import normalise_events

BIRTH = datetime(1970, 1, 1)
CREATININE, WEIGHT, HEIGHT = "LOINC//2160-0", "LOINC//29463-7", "LOINC//8302-2"
SYSTOLIC, DIASTOLIC = "LOINC//8480-6", "LOINC//8462-4"
UNITS = {CREATININE: "mg/dL", WEIGHT: "kg", HEIGHT: "cm", SYSTOLIC: "mm[Hg]", DIASTOLIC: "mm[Hg]"}
SUBJECTS = pl.DataFrame({"subject_id": [1, 2], "sex": ["female", "male"], "birth_time": [BIRTH, BIRTH]})


def day(number: float) -> datetime:
    return datetime(2020, 1, 1) + timedelta(days=number)


def derived(name, *rows, subjects=SUBJECTS):
    """Days, days known and values of a measure of subject 1, from (code, day, value, {column: value})."""
    events = pl.DataFrame(
        [
            {"subject_id": 1, "time": day(d), "code": code, "numeric_value": float(v), "unit": UNITS[code]}
            | (rest[0] if rest else {})
            for code, d, v, *rest in rows
        ],
        infer_schema_length=None,
    )
    found = derive_measure(name, normalise_events(events), subjects)
    assert dict(found.schema) == MEASURE_SCHEMA
    when = [(t - day(0)).days for t in found["time"]], [(t - day(0)).days for t in found["known_time"]]
    return list(zip(*when, [round(v, 2) for v in found["numeric_value"]], strict=True))


def by_hand(creatinine, age, sex):
    """The equation of Inker et al. 2021, case by case, in plain Python."""
    k, a, factor = (0.7, -0.241, 1.012) if sex == "female" else (0.9, -0.302, 1.0)
    exponent = a if creatinine <= k else -1.2
    return 142 * (creatinine / k) ** exponent * 0.9938**age * factor


def egfr(creatinine, age, sex):
    frame = pl.DataFrame(
        {"c": [creatinine], "a": [age], "s": [sex]}, {"c": pl.Float64, "a": pl.Float64, "s": pl.String}
    )
    return frame.select(egfr_ckdepi2021(pl.col("c"), pl.col("a"), pl.col("s"))).item()


@pytest.mark.parametrize(
    ("creatinine", "age", "sex", "published"),
    [
        # the National Kidney Foundation's calculator (kidney.org/professionals/gfr_calculator), as quoted by others
        (1.2, 55, "male", 71),
        # coefficients as printed: at creatinine = k everything but age and sex is 1
        (0.9, 18, "male", 127), (0.7, 18, "female", 128),
    ],
)  # fmt: skip
def test_published_filtration_rates(creatinine, age, sex, published):
    assert round(egfr(creatinine, age, sex)) == published


@given(st.floats(0.1, 20), st.floats(18, 100), st.sampled_from(["female", "male"]))
@settings(deadline=None)
def test_filtration_rate_is_the_equation_case_by_case(creatinine, age, sex):
    assert egfr(creatinine, age, sex) == pytest.approx(by_hand(creatinine, age, sex), rel=1e-12)


@pytest.mark.parametrize(("age", "sex"), [(17.9, "male"), (50.0, "other"), (50.0, None), (None, "male")])
def test_no_filtration_rate_for_children_or_without_age_or_sex(age, sex):
    assert egfr(1.0, age, sex) is None


def test_filtration_rate_takes_any_unit_of_creatinine_and_age_at_the_time():
    mg = derived("egfr_ckdepi2021", (CREATININE, 0, 1.0))
    assert mg == [(0, 0, round(by_hand(1.0, (day(0) - BIRTH).days / 365.25, "female"), 2))]
    assert derived("egfr_ckdepi2021", (CREATININE, 0, 88.4, {"unit": "umol/L"}))[0][2] == pytest.approx(
        mg[0][2], abs=0.1
    )
    assert derived("egfr_ckdepi2021", (CREATININE, 0, 1.0, {"unit": "furlong"})) == []
    assert derived("egfr_ckdepi2021", (CREATININE, 0, 1.0, {"value_modifier": "<"})) == []
    assert derived("egfr_ckdepi2021", (CREATININE, 0, 1.0), subjects=SUBJECTS.drop("sex")) == []


def test_a_result_is_known_when_its_creatinine_is():
    assert [row[:2] for row in derived("egfr_ckdepi2021", (CREATININE, 0, 1.0, {"known_time": day(3)}))] == [(0, 3)]


def test_body_mass_index_takes_the_latest_height_and_waits_for_it():
    assert derived("bmi", (HEIGHT, 0, 175), (WEIGHT, 0, 70), (WEIGHT, 900, 80)) == [(0, 0, 22.86), (900, 900, 26.12)]
    assert derived("bmi", (HEIGHT, 0, 175), (HEIGHT, 5, 170, {"known_time": day(30)}), (WEIGHT, 10, 70)) == [
        (10, 30, 24.22)
    ]
    assert derived("bmi", (WEIGHT, 10, 70), (HEIGHT, 11, 170)) == []
    assert derived("bmi", (HEIGHT, 0, 70, {"unit": "in"}), (WEIGHT, 0, 150, {"unit": "lbs"})) == [(0, 0, 21.52)]


def test_the_height_of_a_child_counts_for_a_year():
    child = SUBJECTS.with_columns(birth_time=pl.lit(day(-3000)))
    rows = (HEIGHT, 0, 130), (WEIGHT, 365, 30), (WEIGHT, 366, 30)
    assert [row[0] for row in derived("bmi", *rows, subjects=child)] == [365]
    unknown = SUBJECTS.with_columns(birth_time=pl.lit(None))
    assert [row[0] for row in derived("bmi", *rows, subjects=unknown)] == [365]
    assert [row[0] for row in derived("bmi", *rows)] == [365, 366]


def test_mean_pressure_needs_both_of_one_record_or_the_only_two_of_a_moment():
    assert derived("mean_arterial_pressure", (SYSTOLIC, 0, 120), (DIASTOLIC, 0, 80, {"known_time": day(2)})) == [
        (0, 2, 93.33)
    ]
    assert derived("mean_arterial_pressure", (SYSTOLIC, 0, 120), (DIASTOLIC, 1, 80)) == []
    assert derived("mean_arterial_pressure", (SYSTOLIC, 0, 70), (DIASTOLIC, 0, 80)) == []
    a, b = {"resource_id": "a"}, {"resource_id": "b"}
    two = (SYSTOLIC, 0, 120, a), (DIASTOLIC, 0, 80, a), (SYSTOLIC, 0, 150, b), (DIASTOLIC, 0, 90, b)
    assert [row[2] for row in derived("mean_arterial_pressure", *two)] == [93.33, 110.0]
    assert derived("mean_arterial_pressure", (SYSTOLIC, 0, 120, a), (DIASTOLIC, 0, 80, b)) == [(0, 0, 93.33)]
    assert derived("mean_arterial_pressure", (SYSTOLIC, 0, 120, a), (SYSTOLIC, 0, 140, b), (DIASTOLIC, 0, 80)) == []
    sitting = {"code": "LOINC//8453-3"}
    assert derived("mean_arterial_pressure", (SYSTOLIC, 0, 120), (DIASTOLIC, 0, 80, sitting)) == []


rows = st.tuples(
    st.sampled_from(sorted(UNITS)), st.integers(0, 400), st.floats(1, 200, width=32),
    st.integers(0, 30),
)  # fmt: skip


@given(st.lists(rows, max_size=12), st.sampled_from(sorted(MEASURES)), st.integers(0, 430))
@settings(deadline=None)
def test_what_is_known_later_never_changes_what_is_visible(raw, name, now):
    """Dropping every event that is not yet known leaves the values that are known as they are, or adds older ones."""
    kinds = {"code": pl.String, "time": pl.Datetime("us"), "numeric_value": pl.Float32, "known_time": pl.Datetime("us")}
    table = pl.DataFrame([(c, day(d), v, day(d + k)) for c, d, v, k in raw], kinds, orient="row")
    units = pl.col("code").replace_strict(UNITS, return_dtype=pl.String)
    events = normalise_events(table.with_columns(unit=units, subject_id=pl.lit(1)))
    everything = derive_measure(name, events, SUBJECTS).filter(pl.col("known_time") <= day(now))
    then = derive_measure(name, events.filter(pl.col("known_time") <= day(now)), SUBJECTS)
    assert everything.join(then, on=list(MEASURE_SCHEMA), how="anti", nulls_equal=True).height == 0


def test_an_unknown_measure_is_refused():
    with pytest.raises(TimelineError, match="found 'egfr'"):
        derive_measure("egfr", normalise_events({"subject_id": [], "time": [], "code": []}), SUBJECTS)


def test_the_index_that_real_records_hold_is_the_one_derived(data_folder):
    timelines = read_fhir(sorted((data_folder / "synthea_r4").rglob("*.json"))[:4])
    recorded = timelines.events.filter(pl.col("code") == "LOINC//39156-5")
    recorded = recorded.select("subject_id", "time", recorded="numeric_value")
    both = derive_measure("bmi", timelines.events, timelines.subjects).join(recorded, on=["subject_id", "time"])
    assert both.height > 10
    assert (both["numeric_value"] - both["recorded"]).abs().max() < 1e-4
