"""What the user says of codes: what else they mean (a concept map), and which are preferred."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ehrseq.errors import SourceError, nearest
from ehrseq.fhir.codes import CodingPreference
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


def coding_preference(prefer: Iterable[str] = (), concept_map: str | Path | Any = None) -> CodingPreference | None:
    """The preference that the command line spells; None where it says nothing.

    `prefer` holds texts `KIND=SYSTEM,SYSTEM`, KIND being a field of `CodingPreference`; `concept_map` is a table (see
    `read_concept_map`). Raises SourceError for an unknown kind or system, and for a kind that comes twice.

    >>> coding_preference(["diagnosis=ICD10CM,SNOMED"]).diagnosis
    ('ICD10CM', 'SNOMED')
    """
    kinds = [f.name for f in fields(CodingPreference) if f.name != "concept_map"]
    orders: dict[str, tuple[str, ...]] = {}
    for text in prefer:
        kind, equals, systems = text.partition("=")
        order = tuple(system.strip() for system in systems.split(",") if system.strip())
        if kind not in kinds or not order:
            hint = nearest(kind, kinds) if equals and order else "write for example diagnosis=ICD10CM,SNOMED"
            raise SourceError("KIND=SYSTEM,SYSTEM with a kind of concept", f"'{text}'", hint)
        if kind in orders:
            raise SourceError("each kind of concept once", f"'{kind}' twice", "name its systems in one list")
        orders[kind] = order
    if not orders and concept_map is None:
        return None
    return CodingPreference(**orders, concept_map={} if concept_map is None else read_concept_map(concept_map))
