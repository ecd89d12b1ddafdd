"""One unit for each analyte: how units are spelled, how numbers are converted, and the record of it.

A number is converted where its code has an analyte in `ANALYTES` and its unit converts to that analyte's; the unit as
written stays in `unit_recorded`, and the table of units has the factor and offset, so the number as written can be
had back: (value - offset) / factor. Any other unit stays what it is, but for its spelling.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import polars as pl

from ehrseq.frames import at_once
from ehrseq.timeline.analytes import ANALYTES, Analyte

UNIT_SCHEMA: dict[str, Any] = {
    "code": pl.String,
    "analyte": pl.String,  # null where the table of analytes does not know the code
    "unit_recorded": pl.String,
    "unit": pl.String,
    "factor": pl.Float64,  # value = recorded * factor + offset; null where an analyte's unit cannot be converted
    "offset": pl.Float64,
    "events": pl.Int64,
}

_UNIT_KEYS = [name for name in UNIT_SCHEMA if name != "events"]

# HbA1c of the NGSP in % from that of the IFCC in mmol/mol: Hoelzel et al., Clin Chem 2004;50:166-74, as the joint
# consensus statement has it (Diabetes Care 2007;30:2399-400)
NGSP_FROM_IFCC = (0.09148, 2.152)

# UCUM units that are recognised in any case and without regard to spaces, and other spellings of units
_PLAIN = (
    "mg/dL", "g/dL", "g/L", "ug/dL", "mg/L", "ug/L", "ng/mL", "ng/dL", "ng/L", "pg/mL", "ug/mL", "mg/mL", "mmol/L",
    "umol/L", "nmol/L", "pmol/L", "mmol/mol", "mg/g", "mg/mmol", "U/L", "m[IU]/L", "u[IU]/mL", "[IU]/L", "[IU]/mL",
    "U/mL", "ukat/L", "meq/L", "meq", "mL", "fL", "pg", "kg", "g", "mg", "ug", "cm", "mm", "mm[Hg]", "kPa", "kg/m2",
    "mL/min", "/min", "mL/min/{1.73_m2}", "Cel", "10*3/uL", "10*6/uL", "10*9/L", "10*12/L", "/uL", "%", "[degF]",
    "[lb_av]", "[oz_av]", "[in_i]", "[ft_i]",
)  # fmt: skip
_OTHERS = {
    "mmhg": "mm[Hg]", "torr": "mm[Hg]", "mmofhg": "mm[Hg]",
    "percent": "%", "pct": "%",
    "mcg/dl": "ug/dL", "mcg/l": "ug/L", "mcg/ml": "ug/mL", "mcg": "ug", "mcmol/l": "umol/L",
    "µg/dl": "ug/dL", "µg/l": "ug/L", "µg/ml": "ug/mL", "µg": "ug", "µmol/l": "umol/L", "µkat/l": "ukat/L",
    "iu/l": "[IU]/L", "iu/ml": "[IU]/mL", "miu/l": "m[IU]/L", "uiu/ml": "u[IU]/mL", "µiu/ml": "u[IU]/mL",
    "miu/ml": "m[IU]/mL", "units/l": "U/L", "unit/l": "U/L",
    "k/ul": "10*3/uL", "k/mcl": "10*3/uL", "k/µl": "10*3/uL", "thou/ul": "10*3/uL", "thousand/ul": "10*3/uL",
    "10^3/ul": "10*3/uL", "x10^3/ul": "10*3/uL", "x10*3/ul": "10*3/uL", "x10e3/ul": "10*3/uL", "10e3/ul": "10*3/uL",
    "10^3/µl": "10*3/uL", "10*3/µl": "10*3/uL", "k/mm3": "10*3/uL", "k/cumm": "10*3/uL",
    "m/ul": "10*6/uL", "mil/ul": "10*6/uL", "million/ul": "10*6/uL", "m/mcl": "10*6/uL", "10^6/ul": "10*6/uL",
    "x10^6/ul": "10*6/uL", "x10*6/ul": "10*6/uL", "x10e6/ul": "10*6/uL", "10e6/ul": "10*6/uL",
    "10^9/l": "10*9/L", "x10^9/l": "10*9/L", "x10*9/l": "10*9/L", "x10e9/l": "10*9/L", "10e9/l": "10*9/L",
    "giga/l": "10*9/L", "10^12/l": "10*12/L", "x10^12/l": "10*12/L", "x10*12/l": "10*12/L", "tera/l": "10*12/L",
    "unit": "{unit}", "units": "{unit}",
    "cells/ul": "{cells}/uL", "#/ul": "/uL", "/mm3": "/uL", "cells/mm3": "{cells}/uL",
    "lb": "[lb_av]", "lbs": "[lb_av]", "pound": "[lb_av]", "pounds": "[lb_av]", "oz": "[oz_av]",
    "gm/dl": "g/dL", "gms/dl": "g/dL", "g%": "g/dL", "mg%": "mg/dL", "gm": "g", "gms": "g", "meq.": "meq",
    "kgs": "kg", "kilogram": "kg", "kilograms": "kg", "gram": "g", "grams": "g",
    "in": "[in_i]", "inch": "[in_i]", "inches": "[in_i]", "ft": "[ft_i]", "feet": "[ft_i]", "cms": "cm",
    "centimeter": "cm", "centimeters": "cm", "centimetre": "cm", "centimetres": "cm",
    "°c": "Cel", "degc": "Cel", "celsius": "Cel", "degreescelsius": "Cel",
    "°f": "[degF]", "degf": "[degF]", "fahrenheit": "[degF]", "degreesfahrenheit": "[degF]",
    "bpm": "{beats}/min", "beats/min": "{beats}/min", "beats/minute": "{beats}/min", "breaths/min": "{breaths}/min",
    "breaths/minute": "{breaths}/min", "insp/min": "{breaths}/min",
    "kg/m^2": "kg/m2", "kg/m²": "kg/m2", "kg/sqm": "kg/m2", "ml/min/1.73m2": "mL/min/{1.73_m2}",
    "ml/min/1.73m^2": "mL/min/{1.73_m2}", "ml/min/1.73m²": "mL/min/{1.73_m2}", "ml/min/1.73sqm": "mL/min/{1.73_m2}",
    "ml/min/1.73": "mL/min/{1.73_m2}", "ml/min/{1.73m2}": "mL/min/{1.73_m2}", "ml/min/1.73_m2": "mL/min/{1.73_m2}",
}  # fmt: skip
_SPELLINGS = {unit.lower(): unit for unit in _PLAIN} | _OTHERS
_COMMON_UNITS = frozenset(_SPELLINGS.values())
_AMBIGUOUS = frozenset({"G/L"})  # grams, or (in France) billions, per litre: left alone
_TEMPERATURES = {"C": "Cel", "F": "[degF]"}  # coulomb and farad anywhere else

# The commonest conversions, at hand: loading the units library takes half a second (a test compares the two)
_COMMON: dict[tuple[str, str], tuple[float, float]] = {
    ("[degF]", "Cel"): (5 / 9, -160 / 9),
    ("[lb_av]", "kg"): (0.45359237, 0.0),
    ("g", "kg"): (0.001, 0.0),
    ("[in_i]", "cm"): (2.54, 0.0),
    ("m", "cm"): (100.0, 0.0),
    ("g/L", "g/dL"): (0.1, 0.0),
    ("[IU]/L", "U/L"): (1.0, 0.0),
    ("{beats}/min", "/min"): (1.0, 0.0),
    ("{breaths}/min", "/min"): (1.0, 0.0),
    ("mL/min", "mL/min/{1.73_m2}"): (1.0, 0.0),
    ("10*9/L", "10*3/uL"): (1.0, 0.0),
    ("10*12/L", "10*6/uL"): (1.0, 0.0),
    ("/uL", "10*3/uL"): (0.001, 0.0),
}
_MOLAR = {("mmol/L", "mg/dL"): 0.1, ("umol/L", "mg/dL"): 0.0001}  # times the molar mass
_LONGEST = 40  # characters of a unit worth parsing
_TOO_LARGE = re.compile(r"\d{3}")
_PLAIN_UNIT = re.compile(r"[mun]?U/(m|d|u)?L")
_ANNOTATION = re.compile(r"\{[^}]*\}")


@dataclass(frozen=True)
class Conversion:
    """`value` in `unit` = recorded value * `factor` + `offset`."""

    unit: str
    factor: float = 1.0
    offset: float = 0.0


def spell_unit(unit: str, analyte: Analyte | None = None) -> str:
    """A unit in UCUM's spelling where it is a common one written otherwise; else the unit as it is.

    >>> [spell_unit(u) for u in ("MG/DL", "mm Hg", "K/uL", "IU/L", "[arb'U]", "G/L")]
    ['mg/dL', 'mm[Hg]', '10*3/uL', '[IU]/L', "[arb'U]", 'G/L']
    """
    unit = unit.strip().replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    if analyte is not None and analyte.unit == "Cel" and unit.upper() in _TEMPERATURES:
        return _TEMPERATURES[unit.upper()]
    if unit in _AMBIGUOUS:
        return unit
    return _SPELLINGS.get(unit.lower().replace(" ", ""), unit)


def common_unit(unit: str) -> str | None:
    """A unit in UCUM's spelling where the table of units has it; None for any other text, which may be anything.

    >>> common_unit("MG/DL"), common_unit("room 12")
    ('mg/dL', None)
    """
    spelled = spell_unit(unit)
    return spelled if spelled in _COMMON_UNITS else None


def convert(analyte: Analyte, unit: str) -> Conversion | None:
    """How numbers in `unit` (spelled as UCUM) become numbers in the analyte's unit; None where they do not.

    >>> from ehrseq.timeline.analytes import ANALYTES
    >>> convert(ANALYTES["LOINC//2345-7"], "mmol/L"), convert(ANALYTES["LOINC//2345-7"], "mm[Hg]")
    (Conversion(unit='mg/dL', factor=18.0156, offset=0.0), None)
    """
    if unit == analyte.unit:
        return Conversion(unit)
    if analyte.name == "haemoglobin A1c" and _ANNOTATION.sub("", unit) == "mmol/mol":
        return Conversion(analyte.unit, *NGSP_FROM_IFCC)
    pair = (unit, analyte.unit)
    if pair in _COMMON:
        return _rounded(analyte, *_COMMON[pair])
    if pair in _MOLAR and analyte.molar_mass is not None:
        return _rounded(analyte, _MOLAR[pair] * analyte.molar_mass)
    return convert_by_library(analyte, unit)


def convert_by_library(analyte: Analyte, unit: str) -> Conversion | None:
    """As `convert`, by the units library and the analyte's molar mass and valence alone."""
    if analyte.unit == "U/L" and "[IU]" in unit:  # an international unit of an enzyme is its unit
        unit = unit.replace("[IU]", "U")
    elif "[IU]" in analyte.unit and _PLAIN_UNIT.fullmatch(unit):  # of what is no enzyme, U means an international one
        unit = unit.replace("U", "[IU]")
    # an annotation, such as {1.73_m2}, is no part of a unit for UCUM: the code says what is measured
    function = _function(unit, analyte) if _is_measure(unit) else None
    if function is None:
        return None
    offset = function(0.0) if analyte.unit == "Cel" else 0.0
    factor = function(1.0) - offset
    return _rounded(analyte, factor, offset) if math.isfinite(factor) and factor > 0 else None


def _rounded(analyte: Analyte, factor: float, offset: float = 0.0) -> Conversion:
    """Twelve digits: the same on every machine."""
    return Conversion(analyte.unit, float(f"{factor:.12g}"), float(f"{offset:.12g}"))


_ROW = pl.int_range(pl.len(), dtype=pl.UInt32).alias("_row")
_UNTREATED = (
    pl.col("unit").is_not_null()
    & pl.col("numeric_value").is_not_null()
    & pl.col("text_value").is_null()
    & pl.col("unit_recorded").is_null()
)


def normalise_units(events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events with the numbers of an analyte on one scale, and the table of units (`UNIT_SCHEMA`).

    Rows keep their order; sort them afterwards. What an event becomes depends on itself alone, so parts of a dataset
    may be treated one by one and their tables be added up by `merge_units`. Events with a value in words (a range, a
    ratio), without a unit or already treated stay as they are; so the function may be applied twice.

    >>> from ehrseq.timeline.schema import normalise_events
    >>> events = normalise_events({"subject_id": [1, 1], "time": [None, None], "code": ["LOINC//14749-6"] * 2,
    ...                            "numeric_value": [5.5, 99.1], "unit": ["mmol/l", "mg/dL"]})
    >>> events, units = normalise_units(events)
    >>> events.select("numeric_value", "unit", "unit_recorded").rows()
    [(99.08..., 'mg/dL', 'mmol/l'), (99.0..., 'mg/dL', None)]
    >>> units.row(1)
    ('LOINC//14749-6', 'glucose', 'mmol/l', 'mg/dL', 18.0156, 0.0, 1)
    """
    wanted = [name for name in ("code", "unit", "numeric_value", "other_codes") if name in events.columns]
    groups = at_once(
        events.lazy()
        .select(_ROW, *wanted, "text_value", "unit_recorded")
        .filter(_UNTREATED)
        .select("_row", *wanted, analyte_code(events))
        .group_by("code", "_key", "unit")
        .agg("_row", "numeric_value", pl.len().alias("events"))
    )
    recorded = groups["unit"].to_list()
    said = [_said(key, unit) for key, unit in zip(groups["_key"], recorded, strict=True)]
    is_changed = [new != unit and factor is not None for unit, (_, new, factor, _) in zip(recorded, said, strict=True)]
    if any(is_changed):
        table = groups.hstack(pl.DataFrame(said, _SAID, orient="row"))
        events = _apply(events, table.filter(pl.Series(is_changed)))
    counts = Counter[tuple[Any, ...]]()  # codes of one analyte may be found by different other codes
    for code, unit, (analyte, *rest), count in zip(groups["code"], recorded, said, groups["events"], strict=True):
        counts[code, analyte, unit, *rest] += count
    rows = [(*key, n) for key, n in counts.items()]
    return events, pl.DataFrame(rows, UNIT_SCHEMA, orient="row").sort(_UNIT_KEYS)


def merge_units(tables: Sequence[pl.DataFrame | pl.LazyFrame]) -> pl.DataFrame:
    """Tables of units of several parts of a dataset as one, sorted."""
    if not tables:
        return pl.DataFrame(schema=UNIT_SCHEMA)
    merged = pl.concat([table.lazy() for table in tables]).group_by(_UNIT_KEYS).agg(pl.col("events").sum())
    return at_once(merged.select(*UNIT_SCHEMA).sort(_UNIT_KEYS))


def analyte_code(events: pl.DataFrame) -> pl.Expr:
    """The code by which an event is converted (`_key`): its own, else the first of its other codes in `ANALYTES`."""
    own = pl.col("code")
    if "other_codes" not in events.columns or events["other_codes"].null_count() == events.height:
        return own.alias("_key")
    known = list(ANALYTES)
    first = pl.col("other_codes").list.eval(pl.element().filter(pl.element().is_in(known))).list.first()
    return pl.when(own.is_in(known)).then(own).otherwise(pl.coalesce(first, own)).alias("_key")


_SAID = {"analyte": pl.String, "new": pl.String, "factor": pl.Float64, "offset": pl.Float64}


def _said(key: str, unit: str) -> tuple[str | None, str, float | None, float | None]:
    """What becomes of a unit: the analyte, the new unit, factor and offset (None where it cannot be converted)."""
    analyte = ANALYTES.get(key)
    found = _conversion(key if analyte is not None else None, unit)
    name = None if analyte is None else analyte.name
    return (name, unit, None, None) if found is None else (name, found.unit, found.factor, found.offset)


@lru_cache(maxsize=1 << 14)
def _conversion(key: str | None, unit: str) -> Conversion | None:
    """The conversion for the code of an analyte (None: another code) and a unit as written."""
    if key is None:
        return Conversion(spell_unit(unit))
    return convert(ANALYTES[key], spell_unit(unit, ANALYTES[key]))


def _apply(events: pl.DataFrame, changed: pl.DataFrame) -> pl.DataFrame:
    """Events with the rows of `changed` (a list of them for each code and unit) converted."""
    hit = changed.explode("_row", "numeric_value")
    value = pl.col("numeric_value").cast(pl.Float64) * pl.col("factor") + pl.col("offset")
    fresh = hit.select(numeric_value=value.cast(pl.Float32), unit="new", unit_recorded="unit")
    rows = hit["_row"]
    return events.with_columns(events[name].clone().scatter(rows, fresh[name]) for name in fresh.columns)


def _is_measure(unit: str) -> bool:
    """Whether a unit is worth parsing: not too long, no huge number in it, and more than an annotation."""
    bare = _ANNOTATION.sub("", unit)
    return bool(bare) and len(unit) <= _LONGEST and not _TOO_LARGE.search(bare)


def _function(unit: str, analyte: Analyte) -> Callable[[float], float] | None:
    """The function from a number in `unit` to one in the analyte's unit; None where there is none."""
    given, wanted = _parse(unit), _parse(analyte.unit)
    if given is None or wanted is None:
        return None
    quantity = type(given)  # of the registry that parsed it
    if analyte.unit == "Cel":  # an affine scale: it cannot be multiplied
        if given.dimensionality != wanted.dimensionality:
            return None
        return lambda number: float(quantity(number, given.units).to(wanted.units).magnitude)
    if "eq" in unit:
        if analyte.valence is None:
            return None
        given = given / analyte.valence
    try:
        for bridge in _bridges(analyte, quantity):
            one = given * bridge
            if one.dimensionality == wanted.dimensionality:
                return _scale(one / wanted)
    except TypeError:  # pint's, of scales that cannot be multiplied: bels, degrees
        return None
    return None


def _scale(ratio: Any) -> Callable[[float], float]:
    factor = float(ratio.to("").magnitude)
    return lambda number: number * factor


def _bridges(analyte: Analyte, quantity: Any) -> list[Any]:
    """What an amount may be multiplied by to become another amount of the same analyte."""
    if analyte.molar_mass is None:
        return [quantity(1.0)]
    weight = quantity(analyte.molar_mass, "g/mol")
    return [quantity(1.0), weight, 1 / weight]


@lru_cache(maxsize=1024)
def _parse(unit: str) -> Any:
    """A quantity of one unit; None where it is no unit of UCUM."""
    try:
        quantity = _registry().from_ucum(unit)
        quantity.dimensionality  # noqa: B018  (an annotation alone gives something that has none)
    except Exception:  # whatever a parser makes of text that is no unit
        return None
    return quantity


@lru_cache(maxsize=1)
def _registry() -> Any:
    from ucumvert import PintUcumRegistry  # half a second: only where a unit is to be converted

    return PintUcumRegistry()
