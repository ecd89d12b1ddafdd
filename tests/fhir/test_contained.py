"""What records contain of their own: events of the container's patient, under the container's name."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.store import Timelines

PATIENT = {"resourceType": "Patient", "id": "p"}


def observation(name: Any, value: float, **more: Any) -> dict[str, Any]:
    code = {"coding": [{"system": "http://loinc.org", "code": "718-7"}]}
    return {"resourceType": "Observation", "id": name, "status": "final", "code": code,
            "valueQuantity": {"value": value}} | more  # fmt: skip


def report(*contained: Any, **more: Any) -> dict[str, Any]:
    return {"resourceType": "DiagnosticReport", "id": "r", "status": "final", "subject": {"reference": "Patient/p"},
            "effectiveDateTime": "2020-01-02", "issued": "2020-01-03T00:00:00Z", "result": [{"reference": "#a"}],
            "contained": list(contained)} | more  # fmt: skip


def values(timelines: Timelines) -> list[tuple[Any, ...]]:
    events = timelines.events.filter(resource_type="Observation")
    return events.select("resource_id", "numeric_value", "time", "known_time").rows()


def test_contained_results_take_patient_and_time_of_their_report() -> None:
    found = values(read_fhir([PATIENT, report(observation("a", 13))]))
    assert found == [("DiagnosticReport-r#a", 13.0, datetime(2020, 1, 2), datetime(2020, 1, 3))]


@pytest.mark.parametrize("shape", ["ndjson", "document", "bundle", "list"])
def test_in_every_shape_also_of_containers_that_give_no_event(tmp_path: Path, shape: str) -> None:
    holder = {"resourceType": "List", "id": "l", "subject": {"reference": "Patient/p"},
              "contained": [observation("a", 1, effectiveDateTime="2020-01-01")]}  # fmt: skip
    records = [PATIENT, holder]
    text = {
        "ndjson": "\n".join(map(json.dumps, records)),
        "document": json.dumps(holder, indent=1),
        "bundle": json.dumps({"resourceType": "Bundle", "entry": [{"resource": r} for r in records]}),
        "list": json.dumps(records),
    }[shape]
    (tmp_path / f"x.{'ndjson' if shape == 'ndjson' else 'json'}").write_text(text)
    (tmp_path / "people.ndjson").write_text(json.dumps(PATIENT))
    assert [row[:2] for row in values(read_fhir(tmp_path))] == [("List-l#a", 1.0)]


def test_a_bad_one_costs_itself_alone_and_others_are_no_records() -> None:
    timelines = read_fhir(
        [PATIENT, report(observation("a", 1), observation(7, 1), {"resourceType": "Organization"}, "x", {"id": "y"})]
    )
    assert [row[0] for row in values(timelines)] == ["DiagnosticReport-r#a"]
    assert timelines.ledger is not None
    fates = timelines.ledger.filter(resource_type="Observation").select("reason", "count").rows()
    assert sorted(fates) == [("", 1), ("invalid_field", 1)]
    assert set(timelines.ledger["resource_type"]) == {"Patient", "DiagnosticReport", "Observation"}


def test_the_newest_version_of_the_container_counts() -> None:
    versions = [
        report(
            observation("a", value), meta={"versionId": str(version), "lastUpdated": f"2020-02-0{version}T00:00:00Z"}
        )
        for version, value in ((1, 20), (2, 10))
    ]
    for order in (versions, versions[::-1]):
        assert [row[1] for row in values(read_fhir([PATIENT, *order]))] == [10.0]


def test_what_an_error_contains_is_one() -> None:
    timelines = read_fhir([PATIENT, report(observation("a", 1), status="entered-in-error")])
    assert values(timelines) == []
    assert timelines.ledger is not None
    assert set(timelines.ledger.filter(resource_type="Observation")["reason"]) == {"entered_in_error"}


def test_containers_of_one_id_and_none_keep_theirs_apart() -> None:
    dated = {"effectiveDateTime": "2020-01-01"}
    holder = {
        "resourceType": "List",
        "subject": {"reference": "Patient/p"},
        "contained": [observation("a", 2, **dated)],
    }
    others = [holder | {"id": "r"}, holder, holder | {"contained": [observation("a", 3, **dated)]}]
    found = values(read_fhir([PATIENT, report(observation("a", 1)), *others]))
    assert sorted(row[1] for row in found) == [1.0, 2.0, 2.0, 3.0]


def test_what_says_of_whom_it_is_keeps_that() -> None:
    other = {"resourceType": "Patient", "id": "q"}
    about = observation("a", 1, subject={"reference": "Patient/q"})
    timelines = read_fhir([PATIENT, other, report(about)])
    whose = dict(timelines.subjects.select("subject_id", "patient").rows())
    assert [whose[s] for s in timelines.events.filter(resource_type="Observation")["subject_id"]] == ["q"]
