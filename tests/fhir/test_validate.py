"""The report of the models of fhir.resources: what it counts, and what it must not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrseq.errors import SourceError
from ehrseq.fhir.validate import REPORT_SCHEMA, check_record, validate_source

GOOD = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
STU3 = {"resourceType": "MedicationStatement", "status": "active", "taken": "y", "subject": {"reference": "Patient/p"},
        "medicationReference": {"reference": "#m"}}  # fmt: skip
R5 = {"resourceType": "MedicationStatement", "status": "recorded", "subject": {"reference": "Patient/p"},
      "medication": {"concept": {"text": "x"}}}  # fmt: skip


def test_each_record_is_checked_by_the_version_that_fits() -> None:
    for record, version in ((GOOD, "R4B"), (STU3, "STU3"), (R5, "R5")):
        assert check_record(json.dumps(record).encode()) == (record["resourceType"], version, [])
    assert check_record(b'{"resourceType": "MedicationOrder"}') == ("MedicationOrder", "DSTU2", None)
    assert check_record(b'{"resourceType": "Foo"}') == ("Foo", "", None)


def test_a_version_can_be_asked_for() -> None:
    text = json.dumps(STU3).encode()
    assert check_record(text, "STU3")[2] == []
    assert check_record(text, "R4")[2] != []
    assert check_record(text, "DSTU2") == ("MedicationStatement", "DSTU2", None)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"resourceType": "Observation", "status": 5, "code": []}',
        b'{"resourceType": "Observation", "valueQuantity": {"value": 1e999}}',
        b'{"resourceType": "Observation", "contained": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"resourceType": "Observation", "contained": [{"resourceType": "Nothing"}]}',
        b'{"resourceType": "Observation", "contained": [{"resourceType": ["x"]}]}',
        b'{"resourceType": "Observation", "status": "\xff"}',
    ],
)
def test_whatever_is_wrong_is_an_error_and_no_crash(raw: bytes) -> None:
    kind, _, errors = check_record(raw)
    assert kind == "Observation"
    assert errors


def write(folder: Path, name: str, *records: Any) -> None:
    (folder / name).write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))


def test_the_report_counts_every_record_and_holds_no_content(tmp_path: Path) -> None:
    secret = {**GOOD, "Jane Secret": 1, "status": ["Secret"], "code": {"coding": [{"Secret key": 1}]}}
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": [{"resource": GOOD}, {"resource": STU3}, {}]}
    write(tmp_path, "a.ndjson", GOOD, secret, "oops Secret")
    write(tmp_path, "b.json", json.dumps(bundle, indent=1))
    write(tmp_path, "c.json", json.dumps(bundle, indent=1).rpartition("{}")[0])
    report = validate_source(tmp_path)
    assert report.schema == REPORT_SCHEMA
    records = report.filter(pl.col("result") != "error").drop("element", "error").rows()
    assert records == [
        ("", "", "unreadable", 2),
        ("MedicationStatement", "STU3", "valid", 2),
        ("Observation", "R4B", "invalid", 1),
        ("Observation", "R4B", "valid", 3),
    ]
    assert "Secret" not in str(report.rows())
    assert report.filter(error="extra_forbidden")["element"].to_list() == ["Observation", "Observation.code.coding"]


def test_a_sample_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    records = [{"resourceType": kind, "id": str(i)} for i in range(40) for kind in ("Patient", "Basic")]
    for name, order in (("one", records), ("two", records[::-1])):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "x.ndjson", *order)
    first = validate_source(tmp_path / "one", sample=15)
    assert first.filter(pl.col("result") != "error")["count"].sum() == 15
    assert first.equals(validate_source(tmp_path / "two", sample=15))
    others = [validate_source(tmp_path / "one", sample=15, seed=seed) for seed in range(1, 6)]
    assert any(not first.equals(other) for other in others)
    assert validate_source(tmp_path / "one", sample=1000).equals(validate_source(tmp_path / "one"))


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="did you mean 'STU3'"):
        validate_source(tmp_path, version="STU33")
    with pytest.raises(SourceError, match="at least one"):
        validate_source(tmp_path, sample=0)


def test_official_examples_fit(data_folder: Path) -> None:
    """All of HL7's R4 examples but a few are valid R4B: the difference between the two is small."""
    report = validate_source(data_folder / "hl7_r4_examples", sample=150)
    counts = dict(report.group_by("result").agg(pl.col("count").sum()).iter_rows())
    assert counts["valid"] > 0.9 * (150 - counts.get("no_model", 0))


def test_a_key_that_stands_twice_is_reported() -> None:
    twice = b'{"resourceType": "Patient", "contact": [{"gender": "male", "gender": "female"}]}'
    assert check_record(twice) == ("Patient", "R4B", [("Patient", "duplicate_key")])
    assert check_record(twice.replace(b'"gender": "male", ', b""))[2] == []
