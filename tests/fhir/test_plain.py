"""Plain records, read in one loop, give what their type's own function gives."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ehrseq.fhir.chunk import Chunk, content
from ehrseq.fhir.plain import SHAPES, plain_reader
from ehrseq.timeline.build import ChunkMaker

CODINGS = [
    {"system": "http://loinc.org", "code": "718-7"},
    {"system": "http://snomed.info/sct", "code": "718-7"},  # the same code in another system
    {"system": "http://loinc.org", "code": "69548-6"},  # a genomic variant
    {"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "E119"},
    {"code": "718-7"},
    {"system": "http://loinc.org"},
    {},
]
DATES = ["2020-03-02", "2020-03", "2020-03-02T10:00:00+01:00", "", "soon", "0001-01-01T00:00:00Z", "9999-12-31"]
PERIODS = [
    {"start": "2020-01-01", "end": "2020-02-01"},
    {"end": "2020-02-01"},
    {},
    {"start": "2020-01-01", "end": "9999"},
    {"start": "0001-01-01", "end": "2020-02-01"},
    {"start": "0001-01-01"},
]
QUANTITIES = [
    {"value": 5, "code": "mg", "unit": "milligram"},
    {"value": 5.5, "unit": "mg"},
    {"value": 1e39, "unit": "mg"},
    {"value": "<5", "unit": "mg"},
    {"value": 3, "comparator": ">", "code": "%"},
    {"code": "mg"},
    {},
]
STATUSES = ["final", "completed", "active", "entered-in-error", "cancelled", "registered", "draft", "intended", "weird"]
REFERENCES = [{"reference": "Medication/m"}, {"reference": "#m"}, {"reference": ""}, {"display": "aspirin"}]


def concept(rng: random.Random) -> dict[str, Any]:
    return {"coding": rng.sample(CODINGS, rng.choice([0, 1, 1, 1, 1, 2])), "text": "words"}


def fields(rng: random.Random) -> dict[str, Any]:
    """Fields of all the types, of which each record has some; a type passes over those that it does not know."""
    return {
        "status": rng.choice(STATUSES),
        "intent": rng.choice(["order", "plan", "proposal"]),
        "code": concept(rng),
        "type": concept(rng),
        "medicationCodeableConcept": concept(rng),
        "medicationReference": rng.choice(REFERENCES),
        "medication": {"concept": concept(rng)},
        "effectiveDateTime": rng.choice(DATES),
        "effectivePeriod": rng.choice(PERIODS),
        "issued": rng.choice(DATES),
        "authoredOn": rng.choice(DATES),
        "whenHandedOver": rng.choice(DATES),
        "whenPrepared": rng.choice(DATES),
        "performedDateTime": rng.choice(DATES),
        "performedPeriod": rng.choice(PERIODS),
        "onsetDateTime": rng.choice(DATES),
        "onsetPeriod": rng.choice(PERIODS),
        "recordedDate": rng.choice(DATES),
        "assertedDate": rng.choice(DATES),
        "abatementDateTime": rng.choice(DATES),
        "recorded": rng.choice(DATES),
        "receivedTime": rng.choice(DATES),
        "collection": {"collectedDateTime": rng.choice(DATES)} | rng.choice([{}, {}, {"bodySite": concept(rng)}]),
        "verificationStatus": {"coding": [{"code": rng.choice(["confirmed", "refuted"])}]},
        "valueQuantity": rng.choice(QUANTITIES),
        "valueString": rng.choice(["7", "positive", ""]),
        "valueCodeableConcept": concept(rng),
        "dataAbsentReason": {"coding": [{"code": "unknown"}]},
        "component": [{"code": concept(rng), "valueQuantity": rng.choice(QUANTITIES)}],
        "hasMember": [{"reference": "Observation/r1"}],
        "derivedFrom": [{"reference": "MolecularSequence/m"}],
        "related": [{"type": "has-member", "target": {"reference": "Observation/r2"}}],
        "dosage": rng.choice([{"dose": rng.choice(QUANTITIES)}, {"text": "one"}]),
        "dateAsserted": rng.choice(DATES),
        "taken": rng.choice(["y", "n", "unk"]),
        "wasNotTaken": rng.choice([True, False]),
        "notGiven": rng.choice([True, False]),
        "wasNotGiven": rng.choice([True, False]),
        "notDone": rng.choice([True, False]),
        "notPerformed": rng.choice([True, False]),
        "doNotPerform": rng.choice([True, False]),
        "modifierExtension": rng.choice([[], [{"url": "x"}]]),
        "extension": rng.choice([[], [{"url": "x"}]]),
    }


# rare ones make a record unusual, so that most have none
COMMON = ("status", "code", "type", "medicationCodeableConcept", "effectiveDateTime", "authoredOn", "whenHandedOver",
          "performedDateTime", "onsetDateTime", "collection", "valueQuantity", "dosage", "intent")  # fmt: skip


def record(kind: str, number: int, rng: random.Random) -> dict[str, Any]:
    kept = {name: value for name, value in fields(rng).items() if rng.random() < (0.8 if name in COMMON else 0.07)}
    return {"resourceType": kind, "id": f"r{number}", "subject": {"reference": "Patient/p"}} | kept


def read(records: list[dict[str, Any]], plain: bool) -> Chunk:
    maker = ChunkMaker(["(in memory)"])
    if not plain:
        maker.reader._emitters.plain = {}
    maker.reader.read_objects(records)
    return maker.finish()[0]


def says(chunk: Chunk) -> dict[str, tuple[int, str]]:
    """Of each record: its reason, and all that it says."""
    columns = chunk.columns
    every = content(chunk, np.arange(len(columns.records)))
    return dict(zip(columns.ids.to_pylist(), zip(columns.records["reason"].tolist(), every, strict=True), strict=True))


@pytest.mark.parametrize("kind", SHAPES)
def test_plain_records_say_the_same(kind: str) -> None:
    rng = random.Random(kind)
    records = [record(kind, n, rng) for n in range(4000)]
    plain, other = read(records, plain=True), read(records, plain=False)
    whole = says(other)
    assert says(plain) == whole
    assert plain.tables["encounters"].equals(other.tables["encounters"])  # the times that others may take
    assert other.tables["encounters"].height > 100 or kind != "Observation"
    reasons = Counter(reason for reason, _ in whole.values())
    assert len(reasons) > 2
    assert reasons[0] > 500


@pytest.mark.parametrize("kind", SHAPES)
def test_plain_records_do_not_reach_the_function_of_their_type(kind: str) -> None:
    maker = ChunkMaker(["(in memory)"])
    reached: list[str] = []
    emitters = maker.reader._emitters

    def emit(r: Any, number: int) -> int:
        reached.append(r.id)
        return emitters.by_type[kind](r, number)

    pools = {"Observation": emitters.measurements}
    special = emitters.genomic if kind == "Observation" else None
    emitters.plain[kind] = plain_reader(kind, maker.reader.rows, pools.get(kind, emitters.diagnoses), emit, special)
    coded = {"coding": [{"system": "http://loinc.org", "code": "718-7"}]}
    plain = {"resourceType": kind, "status": "final", "code": coded, "type": coded, "medicationCodeableConcept": coded,
             "collection": {"collectedDateTime": "2020"}}  # fmt: skip
    maker.reader.read_objects(
        [plain | {"id": name} for name in "abc"] + [plain | {"id": "d", "modifierExtension": [{}]}]
    )
    first = ["a"] if kind == "Observation" else []  # whether its code is genomic is asked once
    assert reached == [*first, "d"]


def test_real_records_say_the_same(data_folder: Path) -> None:
    for folder, pattern in (("mimic_iv_fhir_demo", "*.gz"), ("hl7_r4_examples", "*.json")):
        for path in sorted((data_folder / folder).glob(pattern)):
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            lines = raw.splitlines()[:3000] if path.suffix == ".gz" else [raw]
            records = [r for r in map(json.loads, lines) if r["resourceType"] in SHAPES]
            if records:
                assert says(read(records, plain=True)) == says(read(records, plain=False)), path.name
