"""Broken records by the thousand: no crash, no hang, bounded memory, and every record counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrseq.fhir.resource import READ_TYPES
from ehrseq.timeline.build import read_fhir

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
PATIENT = {"resourceType": "Patient", "id": "p", "gender": "male", "birthDate": "1970-01-01"}


def test_twenty_thousand_mutated_records() -> None:
    """In a process of its own, where the peak of memory is its alone. It fails by its exit status."""
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--records", "20000", "--seed", "5"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(FUZZ.parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["records"] == 20_000
    # it must not pass by refusing everything
    assert min(facts["fates"].values()) > 300


def fields_of(kind: str) -> list[str]:
    """The names that a type's reader knows, as JSON writes them."""
    return sorted(set(READ_TYPES[kind].__struct_encode_fields__) - {"resourceType"})


TEXT = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            "Patient/p",
            "#",
            "2020-02-30",
            "2020",
            "2020-01-01T00:00:00Z",
            "-1-01-01",
            "active",
            "final",
            "http://loinc.org",
        ]
    ),
)
LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT)
KEY = st.one_of(
    st.sampled_from(
        ["coding", "code", "system", "value", "unit", "reference", "start", "end", "extension", "url", "text"]
    ),
    st.text(max_size=3),
)
ANYTHING = st.recursive(
    LEAF, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=4)), max_leaves=10
)
REFERENCE = st.just({"reference": "Patient/p"})
CONCEPT = st.fixed_dictionaries(
    {}, optional={"coding": st.lists(st.fixed_dictionaries({"system": TEXT, "code": TEXT}), max_size=2), "text": TEXT}
)


@st.composite
def made(draw: Any) -> dict[str, Any]:
    """A record of a type that is read, its own fields with likely or unlikely values."""
    kind = draw(st.sampled_from(sorted(READ_TYPES)))
    names = draw(st.lists(st.sampled_from(fields_of(kind)), max_size=6, unique=True))
    record = {
        name: draw(st.one_of(TEXT, CONCEPT, st.lists(CONCEPT, max_size=2), REFERENCE, ANYTHING)) for name in names
    }
    for name in ("subject", "patient"):
        if name in fields_of(kind):
            record[name] = {"reference": "Patient/p"}
    return {"resourceType": kind, **record}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(made(), min_size=1, max_size=12))
def test_made_records(records: list[dict[str, Any]]) -> None:
    timelines = read_fhir([PATIENT, *records])
    assert timelines.ledger is not None
    assert timelines.quarantine is not None
    assert timelines.ledger["count"].sum() == len(records) + 1
    refused = timelines.ledger.filter(pl.col("fate") == "quarantined")["count"].sum()
    assert refused == timelines.quarantine.height
