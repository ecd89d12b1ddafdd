"""Measures derived from others: named, cited, and known only once everything they are made of is known.

egfr_ckdepi2021           glomerular filtration rate estimated from creatinine, age and sex
bmi                       body mass index from weight and the latest height
mean_arterial_pressure    from systolic and diastolic pressure of the same moment
hba1c                     haemoglobin A1c under any of its codes, in %, whether recorded in % or in mmol/mol
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from ehrseq.errors import TimelineError, nearest
from ehrseq.timeline.analytes import ANALYTES
from ehrseq.timeline.schema import SUBJECT_SCHEMA, TIME, conform
from ehrseq.timeline.units import analyte_code, normalise_units

MEASURE_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "time": TIME,
    "code": pl.String,
    "numeric_value": pl.Float32,
    "value_modifier": pl.String,
    "unit": pl.String,
    "known_time": TIME,
    "time_precision": pl.String,
}
ADULT = 18.0  # years
HEIGHT_DAYS = 365  # for how long the height of someone who still grows counts
_DAY = 86_400_000_000
_YEAR = 365.25 * _DAY
_POSITIONS = {  # postures in which both pressures are taken, by LOINC code
    "LOINC//8480-6": 0, "LOINC//8462-4": 0, "LOINC//8459-0": 1, "LOINC//8453-3": 1,
    "LOINC//8460-8": 2, "LOINC//8454-1": 2, "LOINC//8461-6": 3, "LOINC//8455-8": 3,
}  # fmt: skip


def derive_measure(name: str, events: pl.DataFrame, subjects: pl.DataFrame) -> pl.DataFrame:
    """The values of a derived measure as rows of measurement (`MEASURE_SCHEMA`), sorted by subject and time.

    `code` is the measure's name; `time` is the time of the latest input, `known_time` the moment by which all inputs
    are known. Inputs are numbers in a unit that converts to the analyte's, without a comparator (`hba1c` keeps its
    own). Raises TimelineError for an unknown name.

    >>> from datetime import datetime
    >>> from ehrseq.timeline.schema import normalise_events
    >>> events = normalise_events({"subject_id": [1], "time": [datetime(2020, 6, 1)], "code": ["LOINC//2160-0"],
    ...                            "numeric_value": [1.2], "unit": ["mg/dL"]})
    >>> subjects = pl.DataFrame({"subject_id": [1], "sex": ["male"], "birth_time": [datetime(1965, 6, 1)]})
    >>> derive_measure("egfr_ckdepi2021", events, subjects).select("numeric_value", "unit").row(0)
    (71.4..., 'mL/min/{1.73_m2}')
    """
    if name not in MEASURES:
        raise TimelineError("a derived measure", f"'{name}'", nearest(name, MEASURES))
    function, unit = MEASURES[name]
    people = {column: SUBJECT_SCHEMA[column] for column in ("subject_id", "birth_time", "sex")}
    return (
        function(events, conform(subjects, people, "subject"))
        .filter(pl.col("numeric_value").is_finite())
        .with_columns(code=pl.lit(name), unit=pl.lit(unit))
        .select(pl.col(column).cast(kind) for column, kind in MEASURE_SCHEMA.items())
        .sort("subject_id", "time", "known_time", "numeric_value")
    )


def egfr_ckdepi2021(creatinine: pl.Expr, age: pl.Expr, sex: pl.Expr) -> pl.Expr:
    """Glomerular filtration rate in mL/min/1.73 m2, from creatinine in mg/dL, age in years and sex; else null.

    142 * min(creatinine / k, 1) ** a * max(creatinine / k, 1) ** -1.2 * 0.9938 ** age (* 1.012 for women), with k .7
    and a -.241 for women, k .9 and a -.302 for men; for adults. The CKD-EPI creatinine equation of 2021, without
    race: Inker et al., N Engl J Med 2021;385:1737-49.

    >>> one = pl.DataFrame({"creatinine": [0.7], "age": [50.0], "sex": ["female"]})
    >>> one.select(egfr_ckdepi2021(pl.col("creatinine"), pl.col("age"), pl.col("sex"))).item()
    105.2...
    """
    female = sex == "female"
    ratio = creatinine / pl.when(female).then(0.7).otherwise(0.9)
    low = pl.min_horizontal(ratio, 1.0).pow(pl.when(female).then(-0.241).otherwise(-0.302))
    high = pl.max_horizontal(ratio, 1.0).pow(-1.2)
    rate = 142 * low * high * pl.lit(0.9938).pow(age) * pl.when(female).then(1.012).otherwise(1.0)
    return pl.when(sex.is_in(["female", "male"]) & (age >= ADULT) & (creatinine > 0)).then(rate)


def bmi(weight: pl.Expr, height: pl.Expr) -> pl.Expr:
    """Body mass index in kg/m2, from kilograms and centimetres: WHO Technical Report Series 894, 2000.

    >>> pl.select(bmi(pl.lit(70.0), pl.lit(175.0))).item()
    22.85...
    """
    return weight / (height / 100).pow(2)


def mean_arterial_pressure(systolic: pl.Expr, diastolic: pl.Expr) -> pl.Expr:
    """(systolic + 2 diastolic) / 3, as in Sesso et al., Hypertension 2000;36:801-7.

    >>> pl.select(mean_arterial_pressure(pl.lit(120.0), pl.lit(80.0))).item()
    93.33...
    """
    return (systolic + 2 * diastolic) / 3


def _egfr(events: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    found = _inputs(events, "creatinine").join(people, on="subject_id")
    age = (pl.col("time") - pl.col("birth_time")).dt.total_microseconds() / _YEAR
    return found.with_columns(numeric_value=egfr_ckdepi2021(pl.col("value"), age, pl.col("sex")))


def _bmi(events: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    weights = _inputs(events, "body weight").join(people, on="subject_id", how="left").sort("time")
    heights = _inputs(events, "body height").select(
        "subject_id", "time", height="value", height_time="time", height_known="known_time"
    )
    pairs = weights.join_asof(
        heights.sort("time", maintain_order=True), on="time", by="subject_id", check_sortedness=False
    )
    grown = (pl.col("height_time") - pl.col("birth_time")).dt.total_microseconds() >= ADULT * _YEAR
    recent = (pl.col("time") - pl.col("height_time")).dt.total_microseconds() <= HEIGHT_DAYS * _DAY
    return pairs.filter(grown.fill_null(False) | recent).with_columns(
        known_time=pl.max_horizontal("known_time", "height_known"),
        numeric_value=bmi(pl.col("value"), pl.col("height")),
    )


def _pressure(events: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    """Both pressures of one record, or the only two of a moment."""
    systolic, diastolic = (_inputs(events, f"{kind} blood pressure") for kind in ("systolic", "diastolic"))
    moment = ["subject_id", "time", "posture"]
    record = [*moment, "resource_id"]
    together = _alone(systolic, record).join(_alone(diastolic, record), on=record)
    left = [side.join(together, on=record, how="anti", nulls_equal=True) for side in (systolic, diastolic)]
    apart = _alone(left[0], moment).join(_alone(left[1], moment), on=moment)
    return (
        pl.concat([together, apart], how="diagonal_relaxed")
        .filter(pl.col("value") > pl.col("value_right"))
        .with_columns(
            known_time=pl.max_horizontal("known_time", "known_time_right"),
            numeric_value=mean_arterial_pressure(pl.col("value"), pl.col("value_right")),
        )
    )


def _hba1c(events: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    found = _inputs(events, "haemoglobin A1c", exact=False).join(people, on="subject_id", how="semi")
    return found.with_columns(numeric_value="value")


def _alone(frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """The rows that share their keys with no other."""
    return frame.filter(pl.len().over(keys) == 1)


def _inputs(events: pl.DataFrame, analyte: str, *, exact: bool = True) -> pl.DataFrame:
    """The usable numbers of an analyte, as `value` in its unit, sorted by subject, time and when they were known.

    With a comparator (`>14`) only where they need not be `exact`.
    """
    codes = [code for code, a in ANALYTES.items() if a.name == analyte]
    found, _ = normalise_units(events.filter(analyte_code(events).is_in(codes)))
    usable = (pl.col("numeric_value") > 0) & pl.col("time").is_not_null()
    if exact:
        usable &= pl.col("value_modifier").is_null()
    return (
        found.filter(usable & (pl.col("unit") == ANALYTES[codes[0]].unit))
        .select(
            "subject_id",
            "time",
            "resource_id",
            "value_modifier",
            pl.col("time_precision").cast(pl.String),
            value=pl.col("numeric_value").cast(pl.Float64),
            known_time=pl.max_horizontal("known_time", "time"),
            posture=analyte_code(found).replace_strict(_POSITIONS, default=None, return_dtype=pl.Int8),
        )
        .sort("subject_id", "time", "known_time", "value", "resource_id")
    )


MEASURES: dict[str, tuple[Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame], str]] = {
    "egfr_ckdepi2021": (_egfr, "mL/min/{1.73_m2}"),
    "bmi": (_bmi, "kg/m2"),
    "mean_arterial_pressure": (_pressure, "mm[Hg]"),
    "hba1c": (_hba1c, "%"),
}
"""What makes the values of each derived measure, and their unit."""
