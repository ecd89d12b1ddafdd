"""The ledger against an independent count of the files, for every resource type of every folder of real data."""

from __future__ import annotations

import codecs
import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ehrseq.fhir.contained import PARTS
from ehrseq.fhir.resource import READ_TYPES
from ehrseq.timeline.build import read_fhir


def inside(resource: dict[str, Any]) -> Iterator[str]:
    """The type of a resource and of all in it: a bundle's entries, and what it contains that can give events."""
    yield resource["resourceType"]
    for contained in resource.get("contained", []):
        if contained["resourceType"] in READ_TYPES.keys() - PARTS:
            yield contained["resourceType"]
    if resource["resourceType"] == "Bundle":
        for entry in resource.get("entry", []):
            if "resource" in entry:
                yield from inside(entry["resource"])


def resources(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if not path.name.endswith((".json", ".json.gz", ".ndjson.gz")):
            continue
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        documents = data.splitlines() if "ndjson" in path.name else [data]
        for document in documents:
            parsed = msgspec.json.decode(document.removeprefix(codecs.BOM_UTF8))
            if "resourceType" in parsed:
                yield from inside(parsed)


@pytest.mark.parametrize("folder", ["genomics_r4", "hl7_r4_examples", "mimic_iv_fhir_demo"])
def test_every_record_is_in_the_ledger_once(data_folder: Path, folder: str) -> None:
    ledger = read_fhir(data_folder / folder).ledger
    assert ledger is not None
    counts: Counter[str] = Counter()
    # what is deleted is counted, but is no resource of the file
    for name, reason, count in ledger.select("resource_type", "reason", "count").iter_rows():
        if name and reason != "deleted":
            counts[name] += count
    assert counts == Counter(resources(data_folder / folder))
