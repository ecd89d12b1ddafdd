"""What lies in several chunks is linked as if it lay in one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrseq.fhir.ledger import Reason
from ehrseq.timeline.build import Assembled, ChunkMaker, assemble, read_fhir
from ehrseq.timeline.follow_up import contacts
from ehrseq.timeline.medications import MedicationIndex
from ehrseq.timeline.survey import Survey, survey

PATIENTS: list[dict[str, Any]] = [
    {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1950-06", "deceasedDateTime": "2021"},
    {"resourceType": "Patient", "id": "q", "birthDate": "1960", "deceasedDateTime": "2020-05-01T10:00:00Z"},
    {"resourceType": "Patient", "id": "r", "gender": "male"},
    {"resourceType": "Patient", "id": "s", "birthDate": "1970-01-01", "deceasedDateTime": "2020-02-03"},
]
UNDATED = {
    "resourceType": "Observation",
    "id": "o",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "718-7"}]},
    "subject": {"reference": "Patient/s"},
}


def concept(code: str) -> dict[str, Any]:
    return {"coding": [{"system": "http://snomed.info/sct", "code": code}]}


def given(number: int, medication: dict[str, Any]) -> dict[str, Any]:
    """A dose of something, to one patient after the other."""
    return {
        "resourceType": "MedicationAdministration",
        "id": f"a{number}",
        "subject": {"reference": f"Patient/{'pqr'[number % 3]}"},
        "effectiveDateTime": f"2019-01-{number + 1:02d}",
        "dosage": {"dose": {"value": number, "unit": "mg"}},
    } | medication


def named(name: str) -> dict[str, Any]:
    return {"medicationReference": {"reference": f"Medication/{name}"}}


MEDICATIONS: list[dict[str, Any]] = [
    {"resourceType": "Medication", "id": "one", "code": concept("A")},
    {"resourceType": "Medication", "id": "mixture", "ingredient": [{"itemCodeableConcept": concept(c)} for c in "BC"]},
    {"resourceType": "Medication", "id": "nothing", "code": {"text": "something"}},
]
DOSES = [
    given(0, named("mixture")),
    given(1, {"medicationCodeableConcept": concept("D")}),
    given(2, named("one")),
    given(3, named("nobody-knows")),
    given(4, named("nothing")),
    given(5, named("mixture")),
    given(6, named("one")),
    given(7, {"medicationCodeableConcept": concept("A")}),
]
EXPECTED = {"a0": "BC", "a1": "D", "a2": "A", "a5": "BC", "a6": "A", "a7": "A"}


def linked(records: list[dict[str, Any]], full: int) -> tuple[Assembled, Survey]:
    """Records read into chunks of `full` records."""
    maker = ChunkMaker(["(in memory)"], full=full)
    for record in records:
        maker.reader.read_objects([record])
        maker.reader.flush()
    chunks = maker.finish()
    known = survey(chunks)
    return assemble(chunks, known), known


@pytest.mark.parametrize("full", [1, 3, 1000])
@pytest.mark.parametrize("medications", [MEDICATIONS, MEDICATIONS[:1], []])
def test_medications_in_other_chunks(full: int, medications: list[dict[str, Any]]) -> None:
    part, _ = linked(DOSES[:4] + PATIENTS + medications + DOSES[4:], full)
    ids = {m["id"] for m in medications}
    expected = {
        name: codes
        for name, codes in EXPECTED.items()
        if (refers := DOSES[int(name[1:])].get("medicationReference")) is None or refers["reference"][11:] in ids
    }
    doses = part.events.filter(pl.col("resource_type") == "MedicationAdministration")
    found = {
        name: "".join(sorted(code[-1] for code in codes))
        for name, codes in doses.group_by("resource_id").agg("code").iter_rows()
    }
    assert found == expected
    mixed = doses.filter(pl.col("resource_id").is_in(["a0", "a5"]))
    assert mixed["numeric_value"].null_count() == mixed["unit"].null_count() == len(mixed)  # nobody's dose
    alone = doses.filter(~pl.col("resource_id").is_in(["a0", "a5"]))
    assert alone["numeric_value"].to_list() == [float(name[1:]) for name in alone["resource_id"]]
    assert alone["unit"].to_list() == ["mg"] * len(alone)
    fates = Counter[int]()
    for (_, kind, reason), count in part.counts.items():
        fates[reason] += count * (kind == "MedicationAdministration")
    assert fates[Reason.EVENTS] == len(expected)
    assert fates[Reason.UNKNOWN_MEDICATION] == len(DOSES) - len(expected)


@pytest.mark.parametrize("full", [1, 1000])
def test_what_is_said_of_the_events_is_what_they_say(full: int) -> None:
    part, known = linked([*PATIENTS, *MEDICATIONS, *DOSES, UNDATED], full)
    assert_frame_equal(part.contacts.sort("subject_id"), contacts(part.events).sort("subject_id"))
    assert part.contacts["by_day"].sum() == 2  # not the one with a clock time
    assert part.contacts["first_contact"].null_count() == 1  # an undated Observation is none
    counts = Counter[str]()
    for code, count in zip(known.split_codes[0], part.codes.tolist(), strict=True):
        counts[code] += count
    assert +counts == Counter(part.events["code"].to_list())


def test_mixtures_of_mixtures_give_what_they_are_made_of_three_steps_deep() -> None:
    def mixture(name: str, *parts: str, **more: Any) -> dict[str, Any]:
        made_of = [{"itemReference": {"reference": f"Medication/{part}"}} for part in parts]
        return {"resourceType": "Medication", "id": name, "ingredient": made_of} | more

    own = {"itemCodeableConcept": concept("X")}
    chain = [mixture(f"m{n}", f"m{n - 1}") for n in range(2, 6)]
    records = [
        {"resourceType": "Medication", "id": "m1", "code": concept("A")}, *chain,
        {"resourceType": "Medication", "id": "b", "code": concept("B")},
        mixture("here", "there"), mixture("there", "here"),
        mixture("several", "m1", "b", "m1") | {"ingredient": [own, *mixture("", "m1", "b", "m1")["ingredient"]]},
        mixture("new", meta={"versionId": "1"}), mixture("new", "b", meta={"versionId": "2"}),
    ]  # fmt: skip
    doses = {f"a{n}": name for n, name in enumerate(["m1", "m2", "m4", "m5", "here", "several", "new"])}
    given_to = [given(n, named(name)) for n, name in enumerate(doses.values())]
    found = read_fhir([*PATIENTS, *records, *given_to]).events.filter(pl.col("resource_id").is_in(list(doses)))
    codes = {
        doses[str(name)]: sorted(code.removeprefix("SNOMED//") for code in rows["code"])
        for (name,), rows in found.group_by("resource_id")
    }
    assert codes == {"m1": ["A"], "m2": ["A"], "m4": ["A"], "several": ["A", "B", "X"], "new": ["B"]}


def test_an_index_of_no_medications_is_read_as_it_was_written(tmp_path: Path) -> None:
    MedicationIndex.of(pl.Series([], dtype=pl.String), np.zeros(0, np.int32), {}).save(tmp_path / "m.arrow")
    index = MedicationIndex.load(tmp_path / "m.arrow")
    sizes, begin = index.find(pl.Series(["Medication/x"]))
    assert (sizes.tolist(), index.codes[begin].tolist()) == ([1], [0])


def test_a_medication_of_another_name_is_not_taken_for_the_one_whose_hash_it_shares() -> None:
    index = MedicationIndex.of(pl.Series(["Medication/a", "Medication/b"]), np.array([7, 0], np.int32), {1: [3, 4]})
    targets = pl.Series(["Medication/b", "Medication/a"])
    sizes, begin = index.find(targets)
    assert (sizes.tolist(), index.codes[begin].tolist()) == ([2, 1], [3, 7])
    shared = replace(index, names=pl.Series(["Medication/x", "Medication/y"]))  # the hashes of a and b
    sizes, begin = shared.find(targets)
    assert (sizes.tolist(), index.codes[begin].tolist()) == ([1, 1], [0, 0])
