"""Files of every shape and packing through the reader: the same records, and each fault costs itself alone."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.limits import Limits
from ehrseq.fhir.reader import Reader
from ehrseq.fhir.source import find_files

from .test_archive import ARCHIVES, zstandard


def patient(name: str) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": name, "gender": "female"}


def bundle(kind: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": entries}


PEOPLE = [patient(f"p{i}") for i in range(30)]
ENTRIES = [{"fullUrl": f"http://x.org/Patient/{p['id']}", "resource": p} for p in PEOPLE]


def read(path: Path, limits: Limits = Limits(), asked_for: bool = True) -> Reader:  # noqa: B008
    reader = Reader(limits=limits)
    reader.read_file(path, 0, asked_for=asked_for)
    return reader


def people(reader: Reader) -> list[str]:
    return sorted({p.id for p in reader.rows.patients}, key=lambda name: int(name[1:]))


def fates(reader: Reader) -> Counter[tuple[str, str]]:
    return Counter({(kind, Reason(r).label): n for (_, kind, r), n in reader.rows.counts.items()})


KINDS = ["batch", "transaction", "searchset", "collection", "document", "history", "message"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_bundles_of_every_type(tmp_path: Path, kind: str, indent: int | None) -> None:
    extra: list[dict[str, Any]] = [
        {"request": {"method": "GET", "url": "Patient?name=x"}},
        {"search": {"mode": "outcome"}, "resource": {"resourceType": "OperationOutcome"}},
    ]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(bundle(kind, ENTRIES + extra), indent=indent))
    reader = read(path)
    assert people(reader) == [p["id"] for p in PEOPLE]
    assert fates(reader) == {("Bundle", "container"): 1, ("OperationOutcome", "infrastructure"): 1}


SHAPES = {
    "ndjson": "\n".join(map(json.dumps, PEOPLE)),
    "several documents": "\n".join(json.dumps(p, indent=1) for p in PEOPLE),
    "documents without space": "".join(map(json.dumps, PEOPLE)),
    "list": json.dumps(PEOPLE),
    "pretty list": json.dumps(PEOPLE, indent=1),
    "list of lines": "[\n" + ",\n".join(map(json.dumps, PEOPLE)) + "\n]",
    "bundle of lines": '{"resourceType": "Bundle",\n"entry": [\n' + ",\n".join(map(json.dumps, ENTRIES)) + "\n]}",
    "a first line too short": "oops\n" + "\n".join(map(json.dumps, PEOPLE)),
    "list of bundles": json.dumps([bundle("batch", ENTRIES[:10]), bundle("batch", ENTRIES[10:])], indent=1),
    "bundles one after the other": json.dumps(bundle("a", ENTRIES[:9]), indent=1)
    + json.dumps(bundle("b", ENTRIES[9:]), indent=1),
    "bundle in bundle": json.dumps(bundle("a", [*ENTRIES[:9], {"resource": bundle("b", ENTRIES[9:])}]), indent=1),
    "mixed": json.dumps(bundle("a", ENTRIES[:9]), indent=1)
    + json.dumps(PEOPLE[9:20])
    + json.dumps(PEOPLE[20:], indent=2),
    "type last": json.dumps({"entry": ENTRIES, "resourceType": "Bundle"}, indent=1),
}  # fmt: skip


@pytest.mark.parametrize("record_bytes", [1 << 20, 300])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_whole_and_in_pieces(tmp_path: Path, shape: str, record_bytes: int) -> None:
    """The cap on records is also what makes a document be read in pieces."""
    if record_bytes == 300 and shape in ("bundle in bundle", "list of bundles"):
        record_bytes = 5000  # a bundle within something is one record
    path = tmp_path / "x.json"
    for end in ("\n", "\r\n"):
        path.write_bytes(b"\xef\xbb\xbf" + SHAPES[shape].replace("\n", end).encode())
        reader = read(path, Limits(record_bytes=record_bytes))
        assert people(reader) == [p["id"] for p in PEOPLE]
        assert len(reader.rows.quarantine) == (shape == "a first line too short")


@pytest.mark.parametrize("pack", [lambda c: c, gzip.compress, zstandard])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_whole_entries_of_a_truncated_bundle(tmp_path: Path, indent: int | None, pack: Any) -> None:
    entries = [
        {"fullUrl": f"urn:uuid:{i}", "resource": {**patient(f"p{i}"), "note": os.urandom(50).hex()}}
        for i in range(3000)
    ]
    text = json.dumps(bundle("batch", entries), indent=indent).encode()
    path = tmp_path / "x.json"
    if pack(b"a") == b"a":
        path.write_bytes(text[: len(text) * 2 // 3])
        want = text[: len(text) * 2 // 3].count(b'"note"') - 1
    else:
        packed = pack(text)
        path.write_bytes(packed[: len(packed) * 2 // 3])
        want = 500
    reader = read(path)
    got = people(reader)
    assert len(got) >= want
    assert got == [f"p{i}" for i in range(len(got))]
    assert {reason for *_, reason in reader.rows.quarantine} == {Reason.TRUNCATED_FILE}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "bad",
    [
        "7",
        '"x"',
        '{"resource": 7}',
        '{"resource": {"resourceType": "Patient", "id": 7}}',
        '{"fullUrl": 7}',
        '{"a": 01}',
    ],
)
def test_a_bad_entry_costs_itself_alone(tmp_path: Path, bad: str, indent: int | None) -> None:
    path = tmp_path / "x.json"
    whole = json.dumps(bundle("batch", [*ENTRIES[:10], {"resource": "HERE"}, *ENTRIES[10:]]), indent=indent)
    place = json.dumps({"resource": "HERE"}) if indent is None else '{\n   "resource": "HERE"\n  }'
    assert place in whole
    path.write_text(whole.replace(place, bad))
    reader = read(path)
    assert people(reader) == [p["id"] for p in PEOPLE]
    assert sum(r.fate == "quarantined" for r in map(Reason, [x[-1] for x in reader.rows.quarantine])) == 1


def test_deletions_take_their_place_in_the_ledger(tmp_path: Path) -> None:
    gone = [
        {"request": {"method": "DELETE", "url": "Patient/p1"}, "response": {"lastModified": "2020-01-01T00:00:00Z"}},
        {"fullUrl": "http://x.org/Basic/b", "request": {"method": "DELETE"}},
    ]
    for indent, limits in ((None, Limits()), (1, Limits()), (1, Limits(record_bytes=400))):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(bundle("history", [*ENTRIES, *gone]), indent=indent))
        reader = read(path, limits)
        assert fates(reader) == {("Bundle", "container"): 1, ("Basic", "deleted"): 1}
        assert reader.rows.record_reason.count(Reason.DELETED) == 1
        ids = reader.rows.record_id.take().to_pylist()
        assert ids[list(reader.rows.record_reason).index(Reason.DELETED)] == "p1"


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_and_the_place_of_a_fault(tmp_path: Path, kind: str) -> None:
    lines = "".join(json.dumps(p) + "\n" for p in PEOPLE[5:])
    packed = ARCHIVES[kind](
        {
            "readme.txt": b"x",
            "deep/er/one.json": json.dumps(bundle("batch", ENTRIES[:5]), indent=1).encode(),
            "two.ndjson.gz": gzip.compress(b"{}\n" + lines.encode()),
            "three.ndjson": b"\n\noops",
        }
    )
    path = tmp_path / ("x." + kind.replace("stored ", ""))
    path.write_bytes(packed)
    reader = read(path, asked_for=False)
    assert people(reader) == [p["id"] for p in PEOPLE]
    assert reader.rows.quarantine == [(0, 3, 1, Reason.NO_RESOURCE_TYPE), (0, 4, 3, Reason.MALFORMED_JSON)]
    assert fates(reader)["", "not_fhir"] == 1


def test_deep_nesting(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    path = tmp_path / "x.ndjson"
    bad = f'{{"resourceType": "Patient", "id": "x", "a": {deep}}}'
    path.write_text("\n".join([json.dumps(PEOPLE[0]), bad, deep, json.dumps(PEOPLE[1])]))
    reader = read(path)
    assert people(reader) == ["p0", "p1"]
    assert next((x[2], Reason(x[3]).label) for x in reader.rows.quarantine) == (2, "too_deep")
    nested = json.dumps(patient("p5"))
    for _ in range(40):
        nested = f'{{"resourceType": "Bundle", "entry": [{{"resource": {nested}}}]}}'
    for text in (nested, nested[:-40]):
        path.write_text(text)
        reader = read(path)
        assert not people(reader)
        assert reader.rows.quarantine


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "NaN", "Infinity", "1" + "0" * 5000])
def test_numbers_that_are_none(tmp_path: Path, number: str) -> None:
    observation = '{"resourceType": "Observation", "id": "o", "status": "final", "valueQuantity": {"value": %s}}'
    path = tmp_path / "x.ndjson"
    path.write_text("\n".join([json.dumps(PEOPLE[0]), observation % number, json.dumps(PEOPLE[1])]))
    reader = read(path)
    assert people(reader) == ["p0", "p1"]
    assert len(reader.rows.quarantine) == 1


@pytest.mark.parametrize("name", ["x.ndjson", "x.json"])
def test_of_a_key_that_stands_twice_the_last_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"resourceType": "Patient", "id": "p1", "gender": "male", "id": "p2"}')
    assert people(read(tmp_path / name)) == ["p2"]


@pytest.mark.parametrize("name", ["x.ndjson", "x.json"])
@pytest.mark.parametrize("types", [("Patient", "Organization"), ("Organization", "Patient")])
def test_a_record_that_says_twice_what_it_is_is_not_read(tmp_path: Path, name: str, types: tuple[str, str]) -> None:
    first, last = types
    (tmp_path / name).write_text(f'{{"resourceType": "{first}", "id": "a", "resourceType": "{last}"}}')
    reader = read(tmp_path / name)
    assert not people(reader)
    assert [Reason(x[-1]) for x in reader.rows.quarantine] == [Reason.INVALID_FIELD]


def test_links_are_followed_once(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "x.ndjson").write_text("")
    (inner / "loop").symlink_to(tmp_path)
    (inner / "self").symlink_to(inner / "self")
    (tmp_path / "again.ndjson").symlink_to(inner / "x.ndjson")
    (tmp_path / "lost.ndjson").symlink_to(tmp_path / "nowhere")
    elsewhere = tmp_path / "outside"
    elsewhere.mkdir()
    (elsewhere / "y.ndjson").write_text("")
    (tmp_path / "a" / "linked").symlink_to(elsewhere)
    whole = find_files(tmp_path)
    assert sorted(os.path.realpath(p) for p in whole if p.name.endswith("ndjson")) == sorted(
        map(str, [inner / "x.ndjson", elsewhere / "y.ndjson", tmp_path / "nowhere"])
    )
    assert [x[-1] for x in read(tmp_path / "lost.ndjson").rows.quarantine] == [Reason.DAMAGED_FILE]
