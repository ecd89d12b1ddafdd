"""Concept maps: what else a code means, as the user says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ehrseq.errors import SourceError
from ehrseq.frames import read_pairs


def read_concept_map(source: str | Path | Any) -> dict[str, tuple[str, ...]]:
    """The targets of each code, from a table with the columns `code` and `target`: CSV, Parquet or a frame.

    Codes are written as in events (`SYSTEM//code`); one code may have several targets.

    >>> read_concept_map({"code": ["urn:lab//GLU", "urn:lab//GLU"], "target": ["LOINC//2345-7", "SNOMED//33747003"]})
    {'urn:lab//GLU': ('LOINC//2345-7', 'SNOMED//33747003')}
    """
    targets: dict[str, tuple[str, ...]] = {}
    for code, target in read_pairs(source, "code", "target", SourceError).iter_rows():
        if "//" not in code or "//" not in target or not target.isprintable():
            raise SourceError(
                "codes written SYSTEM//code in a concept map", "others", "write for example LOINC//2345-7"
            )
        targets[code] = (*targets.get(code, ()), target)
    return targets
