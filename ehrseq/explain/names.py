"""Names that a person reads for codes."""

from __future__ import annotations

import polars as pl

from ehrseq.figures import plain
from ehrseq.timeline.analytes import ANALYTES
from ehrseq.timeline.store import Timelines

WIDTH = 44  # characters of a name that are shown


def display_names(timelines: Timelines) -> dict[str, str]:
    """A name for each code of the timelines that has one: its description there, else the analyte that it measures.

    >>> timelines = Timelines.from_events({"subject_id": [7], "time": [None], "code": ["LOINC//4548-4"]})
    >>> display_names(timelines)
    {'LOINC//4548-4': 'haemoglobin A1c'}
    """
    codes = timelines.codes().select("code", "description")
    named = {code: ANALYTES[code].name for code in codes["code"] if code in ANALYTES}
    described = codes.filter(pl.col("description").fill_null("") != "")
    return named | dict(described.iter_rows())


def display_name(code: str, names: dict[str, str]) -> str:
    """The name of a code, or what follows its system; safe to print and to draw, never long.

    >>> display_name("SEX//female", {}), display_name("SNOMED//44054006", {})
    ('sex female', 'SNOMED 44054006')
    """
    system, _, value = code.rpartition("//")
    if system in ("SEX", "RACE", "ETHNICITY"):
        system = system.lower()
    if "://" in system:  # a local code system: its address says little
        system = ""
    return plain(names.get(code) or f"{system} {value}", WIDTH)
