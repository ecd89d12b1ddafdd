from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ehrseq.timeline.analytes import ANALYTES
from ehrseq.timeline.measures import MEASURES
from ehrseq.timeline.schema import normalise_events
from ehrseq.timeline.units import (
    _COMMON,
    _MOLAR,
    UNIT_SCHEMA,
    convert,
    convert_by_library,
    merge_units,
    normalise_units,
    spell_unit,
)


def frame(*rows, **more):
    """Events of one subject from (code, value, unit)."""
    code, value, unit = zip(*rows, strict=True)
    none = [None] * len(rows)
    return normalise_events(
        {"subject_id": [1] * len(rows), "time": none, "code": code, "numeric_value": value, "unit": unit, **more}
    )


def converted(code, value, unit):
    return normalise_units(frame((f"LOINC//{code}", value, unit)))[0].select("numeric_value", "unit").row(0)


@pytest.mark.parametrize(
    ("recorded", "unit"),
    [
        ("mg/dl", "mg/dL"), ("MG/DL", "mg/dL"), (" mg / dL ", "mg/dL"), ("mmHg", "mm[Hg]"), ("mm Hg", "mm[Hg]"),
        ("ml", "mL"), ("mEq.", "meq"),
        ("MMHG", "mm[Hg]"), ("IU/L", "[IU]/L"), ("10*3/uL", "10*3/uL"), ("10*3/ul", "10*3/uL"), ("K/uL", "10*3/uL"),
        ("x10^3/uL", "10*3/uL"), ("%", "%"), ("percent", "%"), ("mEq/L", "meq/L"), ("\u00b5mol/L", "umol/L"),
        ("\u03bcmol/L", "umol/L"), ("lbs", "[lb_av]"), ("in", "[in_i]"), ("mL/min/1.73m2", "mL/min/{1.73_m2}"),
        ("kg/m2", "kg/m2"), ("UNITS/L", "U/L"), ("G/L", "G/L"), ("C", "C"), ("{score}", "{score}"), ("", ""),
    ],
)  # fmt: skip
def test_spellings(recorded, unit):
    assert spell_unit(recorded) == unit


def test_a_letter_is_a_temperature_only_where_temperature_is_measured():
    assert converted("8310-5", 98.6, "F") == (pytest.approx(37, abs=1e-4), "Cel")
    assert converted("2345-7", 98.6, "F") == (pytest.approx(98.6), "F")


@given(st.text(max_size=60))
@settings(deadline=None)
def test_spelling_twice_changes_nothing(text):
    assert spell_unit(spell_unit(text)) == spell_unit(text)


# Factors as published, to the last digit: a number in the first unit times the factor is one in the second. AMA Manual
# of Style, 11th edition, 17.5 (conversion to SI units)
PUBLISHED = {
    "glucose": ("mg/dL", "0.05551", "mmol/L"), "creatinine": ("mg/dL", "88.4", "umol/L"),
    "cholesterol": ("mg/dL", "0.02586", "mmol/L"), "HDL cholesterol": ("mg/dL", "0.02586", "mmol/L"),
    "LDL cholesterol": ("mg/dL", "0.02586", "mmol/L"), "triglycerides": ("mg/dL", "0.0113", "mmol/L"),
    "bilirubin": ("mg/dL", "17.1", "umol/L"), "direct bilirubin": ("mg/dL", "17.1", "umol/L"),
    "urea nitrogen": ("mg/dL", "0.357", "mmol/L"), "urea": ("mg/dL", "0.1665", "mmol/L"),
    "urate": ("mg/dL", "59.48", "umol/L"), "calcium": ("mg/dL", "0.2495", "mmol/L"),
    "ionised calcium": ("meq/L", "0.5", "mmol/L"), "magnesium": ("mg/dL", "0.4114", "mmol/L"),
    "phosphate": ("mg/dL", "0.3229", "mmol/L"), "sodium": ("meq/L", "1.0", "mmol/L"),
    "potassium": ("meq/L", "1.0", "mmol/L"), "chloride": ("meq/L", "1.0", "mmol/L"),
    "lactate": ("mg/dL", "0.111", "mmol/L"), "iron": ("ug/dL", "0.179", "umol/L"),
    "25-hydroxyvitamin D": ("ng/mL", "2.496", "nmol/L"), "vitamin B12": ("pg/mL", "0.7378", "pmol/L"),
    "folate": ("ng/mL", "2.266", "nmol/L"), "free thyroxine": ("ng/dL", "12.87", "pmol/L"),
    "haemoglobin": ("g/dL", "0.6206", "mmol/L"), "urine albumin/creatinine": ("mg/g", "0.113", "mg/mmol"),
}  # fmt: skip
FORMULAS = {
    "glucose": "C6H12O6", "creatinine": "C4H7N3O", "cholesterol": "C27H46O", "HDL cholesterol": "C27H46O",
    "LDL cholesterol": "C27H46O", "triglycerides": "C57H104O6", "bilirubin": "C33H36N4O6",
    "direct bilirubin": "C33H36N4O6", "urea nitrogen": "N2", "urea": "CH4N2O", "urate": "C5H4N4O3", "calcium": "Ca",
    "ionised calcium": "Ca", "magnesium": "Mg", "phosphate": "P", "sodium": "Na", "potassium": "K", "chloride": "Cl",
    "lactate": "C3H6O3", "iron": "Fe", "25-hydroxyvitamin D": "C27H44O2", "vitamin B12": "C63H88CoN14O14P",
    "folate": "C19H19N7O6", "free thyroxine": "C15H11I4NO4", "urine albumin/creatinine": "C4H7N3O",
}  # fmt: skip
WEIGHTS = {  # standard atomic weights, IUPAC 2021, abridged (iodine to six digits)
    "H": 1.0080, "C": 12.011, "N": 14.007, "O": 15.999, "Na": 22.990, "Mg": 24.305, "P": 30.974, "Cl": 35.45,
    "K": 39.098, "Ca": 40.078, "Fe": 55.845, "Co": 58.933, "I": 126.904,
}  # fmt: skip
NAMED = {analyte.name: analyte for analyte in ANALYTES.values()}


def test_molar_masses_are_those_of_the_formulas():
    with_mass = {name for name, analyte in NAMED.items() if analyte.molar_mass is not None}
    assert with_mass == FORMULAS.keys() | {"haemoglobin"}  # a protein of four chains: .6206 below
    for name, formula in FORMULAS.items():
        atoms = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
        assert NAMED[name].molar_mass == pytest.approx(sum(WEIGHTS[a] * int(n or 1) for a, n in atoms), rel=2e-5), name


def test_every_molar_mass_gives_the_published_factor():
    assert PUBLISHED.keys() == {name for name, a in NAMED.items() if a.molar_mass is not None}
    for name, (first, factor, second) in PUBLISHED.items():
        to_unit = [convert_by_library(NAMED[name], unit) for unit in (first, second)]
        found = to_unit[0].factor / to_unit[1].factor
        digits = len(factor.partition(".")[2])
        assert abs(found - float(factor)) <= 0.51 * 10**-digits, (name, found)


# Worked values of the same factors, of exact ones, and of the NGSP's table (ngsp.org/ifcc.asp)
@pytest.mark.parametrize(
    ("code", "recorded", "unit", "value", "wanted"),
    [
        ("14749-6", 5.55, "mmol/L", 100, "mg/dL"), ("14682-9", 88.4, "umol/L", 1.0, "mg/dL"),
        ("14647-2", 5.18, "mmol/L", 200, "mg/dL"), ("14927-8", 1.69, "mmol/L", 150, "mg/dL"),
        ("14631-6", 17.1, "umol/L", 1.0, "mg/dL"), ("14937-7", 7.14, "mmol/L", 20, "mg/dL"),
        ("2000-8", 2.5, "mmol/L", 10, "mg/dL"), ("2000-8", 5.0, "meq/L", 10, "mg/dL"),
        ("14933-6", 416, "umol/L", 7, "mg/dL"), ("2601-3", 0.82, "mmol/L", 2, "mg/dL"),
        ("14879-1", 1.29, "mmol/L", 4, "mg/dL"), ("14798-3", 17.9, "umol/L", 100, "ug/dL"),
        ("2524-7", 18, "mg/dL", 2.0, "mmol/L"), ("1989-3", 74.9, "nmol/L", 30, "ng/mL"),
        ("2132-9", 148, "pmol/L", 200, "pg/mL"), ("14920-3", 12.87, "pmol/L", 1.0, "ng/dL"),
        ("718-7", 150, "g/L", 15, "g/dL"), ("718-7", 9.31, "mmol/L", 15, "g/dL"),
        ("59261-8", 42, "mmol/mol", 6.0, "%"), ("4548-4", 48, "mmol/mol", 6.5, "%"), ("4548-4", 53, "mmol/mol", 7, "%"),
        ("9318-7", 3, "mg/mmol", 26.5, "mg/g"), ("1751-7", 40, "g/L", 4.0, "g/dL"),
        ("6690-2", 7500, "/uL", 7.5, "10*3/uL"), ("777-3", 250, "10*9/L", 250, "10*3/uL"),
        ("789-8", 4.5, "10*12/L", 4.5, "10*6/uL"), ("4544-3", 0.42, "L/L", 42, "%"),
        ("1742-6", 0.5, "ukat/L", 30, "U/L"), ("1742-6", 30, "IU/L", 30, "U/L"),
        ("2951-2", 140, "mEq/L", 140, "mmol/L"),
        ("29463-7", 150, "lb", 68.04, "kg"), ("29463-7", 3500, "g", 3.5, "kg"), ("8302-2", 70, "in", 177.8, "cm"),
        ("8302-2", 1.75, "m", 175, "cm"), ("8310-5", 98.6, "[degF]", 37, "Cel"), ("8310-5", 310.15, "K", 37, "Cel"),
        ("8480-6", 16, "kPa", 120, "mm[Hg]"), ("2019-8", 5.33, "kPa", 40, "mm[Hg]"),
        ("8867-4", 72, "beats/min", 72, "/min"), ("3016-3", 2.5, "uIU/mL", 2.5, "m[IU]/L"),
        ("3016-3", 2.5, "mU/L", 2.5, "m[IU]/L"), ("3016-3", 2.5, "uU/mL", 2.5, "m[IU]/L"),
        ("718-7", 15, "gm/dL", 15, "g/dL"), ("2345-7", 99, "mg%", 99, "mg/dL"), ("4548-4", 6.5, "%{HbA1c}", 6.5, "%"),
        ("48642-3", 1.0, "mL/s/{1.73_m2}", 60, "mL/min/{1.73_m2}"), ("33914-3", 60, "mL/min", 60, "mL/min/{1.73_m2}"),
    ],
)  # fmt: skip
def test_published_conversions(code, recorded, unit, value, wanted):
    assert converted(code, recorded, unit) == (pytest.approx(value, rel=7e-3), wanted)


@pytest.mark.parametrize(
    ("code", "unit"),
    [
        ("2345-7", "mm[Hg]"), ("2345-7", "mg"), ("2345-7", "meq/L"), ("1751-7", "umol/L"), ("4548-4", "mg/dL"),
        ("6690-2", "{score}"), ("6690-2", "10*9999999/L"), ("8310-5", "kg"), ("29463-7", "?"),
        ("29463-7", "G/L"), ("29463-7", "-"), ("29463-7", "kg" * 30), ("29463-7", "((((kg"), ("8480-6", "1"),
    ],
)  # fmt: skip
def test_what_does_not_convert_stays_and_is_kept_apart(code, unit):
    events, units = normalise_units(frame((f"LOINC//{code}", 7.5, unit)))
    assert events.select("numeric_value", "unit", "unit_recorded").row(0) == (7.5, unit, None)
    assert units.select("unit_recorded", "unit", "factor", "offset", "events").row(0) == (unit, unit, None, None, 1)


@given(st.text(max_size=12), st.sampled_from(sorted(ANALYTES)))
@example("B", "LOINC//10834-0")
@example("Cel", "LOINC//10834-0")
@settings(deadline=None)
def test_no_text_breaks_the_parser(text, code):
    analyte = ANALYTES[code]
    found = convert(analyte, text)
    assert found is None or (found.unit == analyte.unit and np.isfinite(found.factor) and found.factor > 0)


UNITS = {
    "mg/dL": ["mmol/L", "umol/L", "g/L", "ug/dL", "mg/L"], "mmol/L": ["mg/dL", "umol/L", "meq/L"],
    "kg": ["[lb_av]", "g", "[oz_av]"], "cm": ["m", "[in_i]", "[ft_i]", "mm"], "Cel": ["[degF]", "K"],
    "mm[Hg]": ["kPa", "cm[H2O]", "mbar"], "%": ["1", "mmol/mol"], "g/dL": ["g/L", "mg/dL", "mmol/L"],
    "10*3/uL": ["10*9/L", "/uL", "10*6/uL"], "U/L": ["ukat/L", "nkat/L", "[IU]/L"],
}  # fmt: skip
PAIRS = [
    (code, unit)
    for code, analyte in sorted(ANALYTES.items())
    for unit in UNITS.get(analyte.unit, [])
    if convert(analyte, unit) is not None
]


@given(st.lists(st.tuples(st.sampled_from(PAIRS), st.floats(2**-6, 1e4, width=32)), min_size=1, max_size=20))
@settings(deadline=None)
def test_the_number_as_recorded_can_be_had_back(rows):
    given_events = frame(*((code, value, unit) for (code, unit), value in rows)).with_row_index()
    events, units = normalise_units(given_events)
    keys = ["code", "unit_recorded", "unit"]
    back = events.join(units.with_columns(known=pl.lit(True)), on=keys, how="left", nulls_equal=True).sort("index")
    assert back.filter(pl.col("unit_recorded").is_not_null())["known"].all()
    assert back["unit"].to_list() == [ANALYTES[code].unit for code in back["code"]]
    number = (back["numeric_value"].cast(pl.Float64) - back["offset"]) / back["factor"]
    # float32 keeps seven digits of the converted value, offset included
    loss = (back["offset"].abs() / back["factor"] + number.abs()) * 2e-7
    changed = back["unit_recorded"].is_not_null()
    was = given_events["numeric_value"].cast(pl.Float64)
    assert ((number - was).abs() <= loss).filter(changed).all()
    assert events.filter(~changed)["numeric_value"].equals(given_events.filter(~changed)["numeric_value"])


def test_two_units_become_one_scale_and_order_is_kept():
    rows = [("LOINC//2345-7", 99, "mg/dL"), ("LOINC//2345-7", 5.5, "mmol/L"), ("LOINC//2345-7", 1, "furlong")]
    events = pl.concat([frame(row) for row in rows])
    out, units = normalise_units(events)
    assert out["numeric_value"].to_list() == [99, pytest.approx(99.086, abs=1e-3), 1]
    assert out["unit"].to_list() == ["mg/dL", "mg/dL", "furlong"]
    assert out["unit_recorded"].to_list() == [None, "mmol/L", None]
    assert out.schema == events.schema
    assert units.select("unit_recorded", "factor").rows() == [("furlong", None), ("mg/dL", 1.0), ("mmol/L", 18.0156)]


def test_ranges_ratios_and_what_has_no_unit_or_number_stay():
    events = frame(
        ("LOINC//2345-7", 5.5, "mmol/L"), ("LOINC//2345-7", None, "mmol/L"), ("LOINC//2345-7", 5.5, None),
        text_value=["4..7", None, None],
    )  # fmt: skip
    out, units = normalise_units(events)
    assert out.equals(events)
    assert units.height == 0
    assert dict(units.schema) == UNIT_SCHEMA


def test_treating_twice_changes_nothing():
    events, units = normalise_units(
        frame(("LOINC//8310-5", 98.6, "F"), ("LOINC//2345-7", 5.5, "MMOL/L"), ("X//1", 1, "mg/dl"))
    )
    again, _ = normalise_units(events)
    assert again.equals(events)
    assert units["unit"].to_list() == ["mg/dL", "Cel", "mg/dL"]


def test_parts_give_what_the_whole_gives():
    rows = [("LOINC//2345-7", float(i), unit) for i, unit in enumerate(["mg/dL", "mmol/L", "MG/DL", "?"] * 5)]
    events = pl.concat([frame(row) for row in rows])
    whole, units = normalise_units(events)
    parts = [normalise_units(events[i : i + 3]) for i in range(0, 20, 3)]
    assert pl.concat([p[0] for p in parts]).equals(whole)
    assert merge_units([p[1] for p in parts]).equals(units)
    assert dict(merge_units([]).schema) == UNIT_SCHEMA


def test_another_coding_of_the_concept_tells_the_analyte():
    local = frame(("urn:lab//GLU", 5.5, "mmol/L"), other_codes=[["LOINC//14749-6", "SNOMED//33747003"]])
    out, units = normalise_units(local)
    assert out.select("code", "numeric_value", "unit").row(0) == (
        "urn:lab//GLU",
        pytest.approx(99.09, abs=0.01),
        "mg/dL",
    )
    assert units.select("code", "analyte").row(0) == ("urn:lab//GLU", "glucose")


def test_every_code_of_the_table_is_a_loinc_code_and_every_unit_one_of_ucum():
    for name, analyte in ANALYTES.items():
        number, check = re.fullmatch(r"LOINC//(\d+)-(\d)", name).groups()
        doubled = [sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(reversed(number))]
        assert (10 - sum(doubled) % 10) % 10 == int(check), name
        assert convert(analyte, analyte.unit).factor == 1
        assert spell_unit(analyte.unit) == analyte.unit
    assert sum(len(a.codes) for a in {id(a): a for a in ANALYTES.values()}.values()) == len(ANALYTES)


def test_factors_are_the_same_on_every_machine():
    found = convert(ANALYTES["LOINC//8480-6"], "kPa")
    assert found.factor == float(f"{found.factor:.12g}")
    assert np.float32(16 * found.factor + found.offset) == np.float32(120.00985)


def test_the_conversions_at_hand_are_those_of_the_library():
    analytes = {analyte.name: analyte for analyte in ANALYTES.values()}.values()
    pairs = [(a, unit) for a in analytes for unit, wanted in [*_COMMON, *_MOLAR] if wanted == a.unit]
    assert len(pairs) > 30
    for analyte, unit in pairs:
        assert convert(analyte, unit) == convert_by_library(analyte, unit), (analyte.name, unit)


def test_the_docs_list_every_analyte_and_measure():
    page = (Path(__file__).parents[2] / "docs" / "units.md").read_text(encoding="utf-8")
    for analyte in ANALYTES.values():
        mass = "" if analyte.molar_mass is None else f"{analyte.molar_mass:g}"
        row = f"| {analyte.name} | `{analyte.unit}` | {', '.join(analyte.codes)} | {mass} | {analyte.valence or ''} |"
        assert row in page, row
    for name, (_, unit) in MEASURES.items():
        assert f"| `{name}` | `{unit}` |" in page
    assert [column for column in UNIT_SCHEMA if f"`{column}`" not in page] == []
