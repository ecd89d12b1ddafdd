"""Nothing that stands in a record leaves the tables of data: no text, whatever the field and the type."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec.inspect
import polars as pl
import pytest

from ehrseq.cli import main
from ehrseq.fhir.resource import READ_TYPES, Bundle
from ehrseq.fhir.skipped import _REASONS as SKIPPED_TYPES

CANARY = "zzcanary"
DATA = ("data/", "metadata/codes", "subjects.parquet", "sources.parquet", "units.parquet", "ingest/")


def filled(kind: Any, choice: int, depth: int = 0) -> Any:
    """JSON that fits a type, with the canary in every text; `choice` picks among the types a field may have."""
    if isinstance(kind, msgspec.inspect.StructType):
        fields = {f.encode_name: filled(f.type, choice, depth + 1) for f in kind.fields}
        return {name: value for name, value in fields.items() if value is not None}
    if isinstance(kind, msgspec.inspect.UnionType):
        some = [t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType)]
        return filled(some[choice % len(some)], choice, depth)
    if isinstance(kind, msgspec.inspect.ListType):
        return None if depth > 8 else [filled(kind.item_type, choice, depth + 1)]
    if isinstance(kind, msgspec.inspect.LiteralType):
        return kind.values[0]
    if isinstance(kind, msgspec.inspect.RawType):
        return {"resourceType": "Medication", "id": CANARY, "code": {"text": CANARY}}
    plain = {msgspec.inspect.StrType: CANARY, msgspec.inspect.IntType: 7, msgspec.inspect.FloatType: 7.5}
    return plain.get(type(kind), True)


def records(choice: int) -> list[dict[str, Any]]:
    """A record of every type, with everything that is read, all of it the canary, and a field that FHIR has not."""
    more = {CANARY: CANARY, "text": {"div": CANARY}, "name": [{"family": CANARY, CANARY: 1}]}
    made = [filled(msgspec.inspect.type_info(cls), choice) for cls in READ_TYPES.values()]
    made += [{"resourceType": kind, "id": CANARY} for kind in SKIPPED_TYPES]
    made += [{"resourceType": CANARY.title(), "id": CANARY}, {"resourceType": f"{CANARY} {CANARY}"}]
    made += [{"resourceType": "Patient", "id": CANARY, "birthDate": {CANARY: CANARY}}, {CANARY: CANARY}]
    return [record | more for record in made]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / CANARY
    folder.mkdir()
    for choice in range(3):
        lines = [json.dumps(record) for record in records(choice)]
        if choice:  # without a status that is none, and without modifiers, so that it goes on to the codes
            lines = [json.dumps(json.loads(x) | {"status": "final", "modifierExtension": None}) for x in lines]
        (folder / f"{CANARY}{choice}.ndjson").write_text("\n".join([*lines, CANARY, f'{{"{CANARY}']))
    entries = [{"fullUrl": CANARY, "resource": record} for record in records(0)]
    entries += [{"request": {"method": "DELETE", "url": f"{CANARY.title()}/{CANARY}"}}]
    entries += [filled(msgspec.inspect.type_info(Bundle), 0)["entry"][0]]
    (folder / "bundle.json").write_text(json.dumps({"resourceType": "Bundle", "entry": entries, CANARY: CANARY}))
    (folder / "broken.json").write_text(json.dumps({"resourceType": "Bundle", "entry": entries})[:-500])
    (folder / f"{CANARY}.txt").write_text(CANARY)
    return folder


def shown(capfd: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    """Exit status of a verb, and all that it says."""
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ehrseq", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), "".join(capfd.readouterr())
    return 0, "".join(capfd.readouterr())


def test_ingest_and_its_report_tell_no_content(
    export: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    status, text = shown(capfd, "ingest", export, "--out", tmp_path / "t", "--validate")
    assert status == 0, text
    assert CANARY not in (text + caplog.text).lower()
    held = {p.relative_to(tmp_path / "t").as_posix(): p for p in (tmp_path / "t").rglob("*") if p.is_file()}
    told = {name: path for name, path in held.items() if not name.startswith(DATA)}
    assert {"ledger.parquet", "quarantine.parquet", "manifest.json", "metadata/dataset.json"} <= told.keys()
    for name, path in told.items():
        if path.suffix == ".parquet":
            assert CANARY not in str(pl.read_parquet(path).to_dict(as_series=False)).lower(), name
        assert CANARY.encode() not in path.read_bytes().lower(), name
    # it was there to be told: as patient, as code, as text
    assert CANARY in str(pl.read_parquet(held["subjects.parquet"])["patient"].to_list())
    assert CANARY in str(pl.read_parquet(held["metadata/codes.parquet"])["code"].to_list())
    ledger = pl.read_parquet(held["ledger.parquet"])
    assert {"type_not_read", "invalid_field", "malformed_json", "deleted"} <= set(ledger["reason"])


def test_errors_tell_no_content(export: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["ingest", export, "--out", tmp_path / "t", "--strict"],
        ["ingest", export / f"{CANARY}.txt", "--out", tmp_path / "t"],
        ["ingest", export / "broken.json", "--out", tmp_path / "t", "--strict"],
    ):
        status, text = shown(capfd, *arguments)
        assert (status, text.count("\n")) == (1, 1), text
        assert CANARY not in text.lower()
