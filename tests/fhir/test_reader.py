"""What reading makes of files of every shape: counts, quarantine, and no more lost than what is bad."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ehrseq.errors import SourceError
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.reader import Reader


def patient(name: str = "p", **fields: Any) -> dict[str, Any]:
    return {"id": name, "gender": "female", "resourceType": "Patient", **fields}


def read(path: Path) -> Reader:
    reader = Reader()
    reader.read_file(path, 0)
    return reader


def lines(*resources: Any, end: str = "\n") -> str:
    return "".join(json.dumps(r) + end for r in resources)


def counted(reader: Reader, reason: Reason) -> int:
    return sum(n for (_, _, r), n in reader.rows.counts.items() if r == reason)


SHAPES = {
    "a.ndjson": lines(patient("a"), patient("b")),
    "crlf.ndjson": lines(patient("a"), patient("b"), end="\r\n"),
    "blank.ndjson": "\n\n" + lines(patient("a"), end="\n \n") + json.dumps(patient("b")),
    "bom.ndjson": "\ufeff" + lines(patient("a"), patient("b")),
    "lines.json": lines(patient("a"), patient("b")),
    "long-lines.json": lines(patient("a", text={"div": "x" * 600_000}), patient("b")),
    "list.json": json.dumps([patient("a"), patient("b")], indent=1),
    "bundle.json": json.dumps(
        {"resourceType": "Bundle", "entry": [{"resource": patient("a")}, {}, {"resource": patient("b")}]}
    ),
    "pretty.json": "\ufeff"
    + json.dumps(
        {"entry": [{"resource": patient("a")}, {"resource": patient("b")}], "resourceType": "Bundle"}, indent=2
    ),
    "nested.json": json.dumps(
        {"resourceType": "Bundle", "entry": [
            {"resource": {"resourceType": "Bundle", "entry": [{"resource": patient("a")}]}},
            {"resource": patient("b")}]}
    ),
    "bundles.ndjson": lines(
        {"resourceType": "Bundle", "entry": [{"resource": patient("a")}]},
        {"resourceType": "Bundle", "entry": [{"resource": patient("b")}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_of_file(tmp_path: Path, name: str, compressed: bool) -> None:
    content = SHAPES[name].encode()
    path = tmp_path / (name + ".gz" * compressed)
    path.write_bytes(gzip.compress(content) if compressed else content)
    reader = read(path)
    assert sorted(p.id for p in reader.rows.patients) == ["a", "b"]
    assert not reader.rows.quarantine


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"resourceType": "Patient", "id": "x"', Reason.MALFORMED_JSON),
        ('{"resourceType": "Patient", "id": 7}', Reason.INVALID_FIELD),
        ('{"resourceType": "Patient", "id": "\\ud800"}', Reason.MALFORMED_JSON),
        ('{"id": "x"}', Reason.NO_RESOURCE_TYPE),
        ("[1]", Reason.MALFORMED_JSON),
        ("garbage", Reason.MALFORMED_JSON),
        ('{"resourceType": "Claim", "id": }', Reason.MALFORMED_JSON),
    ],
)
def test_a_bad_line_costs_itself_alone(tmp_path: Path, bad: str, reason: Reason) -> None:
    path = tmp_path / "x.ndjson"
    path.write_text(lines(patient("a")) + "\n" + bad + "\n" + lines(patient("b")))
    reader = read(path)
    assert [p.id for p in reader.rows.patients] == ["a", "b"]
    assert reader.rows.quarantine == [(0, 0, 3, reason)]
    assert counted(reader, reason) == 1


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.ndjson"
    path.write_bytes(lines(patient("a")).encode() + b'{"resourceType": "Patient", "id": "\xff"}\n')
    assert read(path).rows.quarantine == [(0, 0, 2, Reason.MALFORMED_JSON)]


def test_truncated_files(tmp_path: Path) -> None:
    many = lines(*(patient(f"p{i}") for i in range(5000)))
    plain, packed = tmp_path / "x.ndjson", tmp_path / "x.ndjson.gz"
    plain.write_text(many[:-20])
    reader = read(plain)
    assert (len(reader.rows.patients), reader.rows.quarantine) == (4999, [(0, 0, 5000, Reason.MALFORMED_JSON)])
    packed.write_bytes(gzip.compress(many.encode())[:-1000])
    reader = read(packed)
    got = len(reader.rows.patients)
    assert 0 < got < 5000
    assert reader.rows.quarantine == [(0, 0, got + 1, Reason.TRUNCATED_FILE)]


def test_line_numbers_go_on_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehrseq.fhir.archive.CHUNK", 200)
    path = tmp_path / "x.ndjson"
    path.write_text(lines(*(patient(f"p{i}") for i in range(50))) + "bad\n" + lines(patient("z")))
    reader = read(path)
    assert reader.rows.quarantine == [(0, 0, 51, Reason.MALFORMED_JSON)]
    assert len(reader.rows.patients) == 51


def test_mixed_types_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x.ndjson"
    invoice, medication = {"resourceType": "Invoice"}, {"resourceType": "Medication", "id": "m"}
    path.write_text(lines(patient("a"), invoice, medication, invoice, patient("b"), {"resourceType": "Foo"}))
    reader = read(path)
    assert [p.id for p in reader.rows.patients] == ["a", "b"]
    assert [m.id for m in reader.rows.medications] == ["m"]
    assert dict(reader.rows.counts) == {
        (0, "Invoice", Reason.FINANCIAL): 2,
        (0, "", Reason.TYPE_NOT_READ): 1,
    }


@pytest.mark.parametrize("name", ["manifest.json", "README.md", ".hidden.json", "table.csv"])
def test_what_is_no_fhir_is_counted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps({"transactionTime": "2020", "output": [{"url": "x"}]}, indent=1))
    reader = read(path)
    assert dict(reader.rows.counts) == {(0, "", Reason.NOT_FHIR): 1}
    assert not reader.rows.quarantine


def test_a_missing_id_is_made_from_the_content(tmp_path: Path) -> None:
    path = tmp_path / "x.ndjson"
    first = {"resourceType": "Observation", "status": "final", "subject": {"reference": "Patient/p"}}
    reordered = dict(reversed(first.items()))
    path.write_text(lines(patient(), first, reordered, {**first, "status": "amended"}))
    ids = read(path).rows.record_id.take().to_pylist()
    assert len(ids) == 4
    assert ids[1] == ids[2] != ids[3]
    assert ids[1].startswith("hash-")


def test_a_bundle_names_what_has_no_id() -> None:
    reader = Reader()
    anonymous = {k: v for k, v in patient().items() if k != "id"}
    entries = [{"fullUrl": "urn:uuid:1-2", "resource": anonymous}]
    reader.read_objects([{"resourceType": "Bundle", "entry": entries}])
    assert [p.id for p in reader.rows.patients] == ["1-2"]
    assert reader.rows.full_urls == {}  # the name is the id: there is nothing to remember


def test_objects_of_fhir_resources() -> None:
    from fhir.resources.R4B.patient import Patient

    reader = Reader()
    reader.read_objects([Patient(id="a", gender="male", birthDate="1970"), patient("b")])
    assert [(p.id, p.sex, p.birth) for p in reader.rows.patients] == [
        ("a", "male", "1970"),
        ("b", "female", None),
    ]


def test_objects_that_are_no_resources() -> None:
    with pytest.raises(SourceError, match="type int"):
        Reader().read_objects([3])
    with pytest.raises(SourceError, match="no JSON"):
        Reader().read_objects([{"resourceType": "Patient", "id": object()}])
