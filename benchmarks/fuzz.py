"""Broken records by the thousand: ingest must not crash, hang or lose count, whatever it is given.

    python benchmarks/fuzz.py [--records 200000] [--seed 0] [--data DATA] [--keep FOLDER]

Mutates real examples (DATA, or the folder in EHRSEQ_DATA) and a few records written here: bytes, and fields (types
swapped, values deleted, huge or nested, parts of one record put into another). They are read in files of every shape:
lines, bundles, several documents, lists, gzip, Zstandard, zip, tar, each sometimes damaged as a whole. Fails where
reading raises anything, a file takes more than 5 seconds, memory passes 1 GiB, or the ledger's counts are not the
number of records. Prints one JSON object. `--keep` writes what made it fail there.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import resource
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ehrseq.fhir.contained import PARTS
from ehrseq.fhir.resource import READ_TYPES
from ehrseq.timeline.build import read_fhir

SECONDS_PER_FILE, MEMORY = 5.0, 1 << 30
BATCH = 500
SUBJECT = {"reference": "Patient/p"}
CODE = {"coding": [{"system": "http://loinc.org", "code": "718-7", "display": 'say "x"'}, {"code": "z"}], "text": "t"}
EXTENSION = {"url": "http://x.org", "extension": [{"url": "ombCategory", "valueCoding": {"code": "2106-3"}}]}
SEEDS: list[dict[str, Any]] = [
    {"resourceType": "Patient", "id": "p", "meta": {"lastUpdated": "2020-01-01T00:00:00Z", "versionId": "3"},
     "extension": [EXTENSION], "identifier": [{"system": "u", "value": "7"}], "gender": "male", "birthDate": "1970",
     "deceasedDateTime": "2021-02", "link": [{"other": SUBJECT, "type": "replaced-by"}]},
    {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "IMP"}, "type": [CODE],
     "subject": SUBJECT, "period": {"start": "2020-01-01T10:00:00+01:00", "end": "2020-01-05"}},
    {"resourceType": "Observation", "id": "o", "status": "final", "code": CODE, "subject": SUBJECT,
     "encounter": {"reference": "urn:uuid:1"}, "effectivePeriod": {"start": "2020-01", "end": "2020-02-30"},
     "issued": "2020-01-02T00:00:00.000-05:00", "valueQuantity": {"value": 13.1, "comparator": "<", "code": "g/dL"},
     "component": [{"code": CODE, "valueCodeableConcept": CODE}, {"code": CODE, "valueRange": {"low": {"value": 1}}}]},
    {"resourceType": "Condition", "id": "c", "verificationStatus": {"coding": [{"code": "confirmed"}]}, "code": CODE,
     "subject": {"identifier": {"system": "u", "value": "7"}}, "onsetDateTime": "2019-05-05", "recordedDate": "2019"},
    {"resourceType": "MedicationRequest", "id": "m", "status": "active", "intent": "order", "subject": SUBJECT,
     "contained": [{"resourceType": "Medication", "id": "med", "code": CODE,
                    "ingredient": [{"itemCodeableConcept": CODE}]}],
     "medicationReference": {"reference": "#med"}, "authoredOn": "2020-03-03"},
    {"resourceType": "MedicationAdministration", "status": "completed", "subject": SUBJECT, "effectiveDateTime": "2020",
     "medicationCodeableConcept": CODE, "dosage": {"dose": {"value": 5, "unit": "mg"}}},
    {"resourceType": "Procedure", "id": "pr", "status": "completed", "code": CODE, "subject": SUBJECT,
     "performedPeriod": {"start": "2020-01-01T00:00Z"}},
    {"resourceType": "Immunization", "id": "i", "status": "completed", "vaccineCode": CODE, "patient": SUBJECT,
     "occurrenceDateTime": "2020-01-01"},
    {"resourceType": "DiagnosticReport", "id": "d", "status": "final", "code": CODE, "subject": SUBJECT,
     "effectiveDateTime": "2020-01-01", "result": [{"reference": "Observation/o"}]},
    {"resourceType": "QuestionnaireResponse", "id": "q", "status": "completed", "subject": SUBJECT,
     "item": [{"linkId": "1", "answer": [{"valueInteger": 1, "item": [{"linkId": "2"}]}]}], "authored": "2020"},
    {"resourceType": "FamilyMemberHistory", "status": "completed", "patient": SUBJECT, "relationship": CODE,
     "condition": [{"code": CODE, "onsetAge": {"value": 50}}]},
    {"resourceType": "Claim", "id": "cl", "status": "active", "patient": SUBJECT, "created": "2020-01-01",
     "diagnosis": [{"sequence": 1, "diagnosisCodeableConcept": CODE}], "item": [{"productOrService": CODE}]},
    {"resourceType": "ResearchSubject", "id": "r", "individual": SUBJECT, "period": {"start": "2019", "end": "2021"}},
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 1e308, 1e-320, 10**30, 2**63, 0.1, "", " ", "\0", "\ud800", "x" * 5000,
    "é\u2028\U0001f600",
    "2020-13-45", "0000", "9999-12-31T23:59:59.999999Z", "2020-02-30T25:61:61+99:99", "0001-01-01T00:00:00+14:00",
    "Patient/", "/", "#", "urn:uuid:", "Patient?identifier=|", "http://[", "Patient/p/_history/", "1:2", "<5", "nan",
    "1e999", "-inf", [], {}, [None], [[]], {"": ""}, {"reference": "#"}, {"coding": [None]}, {"coding": {}},
    {"value": "7"}, {"value": {}}, {"start": 5},
]  # fmt: skip
LITERALS = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 400, b"1" + b"0" * 5000, b'"\\ud800"', b"01",
            b'"\\u0000"', b"{" , b"[" * 300 + b"]" * 300, b"[" * 3000 + b"]" * 3000]  # fmt: skip


def seeds(data: Path | None) -> list[dict[str, Any]]:
    """The embedded records, and up to some thousands of real ones of at most 8 kB."""
    found = list(SEEDS)
    if data is None:
        return found
    for folder in ("hl7_r4_examples", "genomics_r4"):
        for path in sorted((data / folder).glob("*.json")):
            if path.stat().st_size <= 8000:
                found.append(json.loads(path.read_bytes()))  # noqa: PERF401 - as readable
    for path in sorted((data / "mimic_iv_fhir_demo").glob("*.gz")):
        with gzip.open(path) as lines:
            found.extend(json.loads(line) for _, line in zip(range(30), lines, strict=False))
    for path in sorted((data / "version_pair" / "stu3").glob("*.gz"))[:2]:
        entries = json.loads(gzip.decompress(path.read_bytes()))["entry"]
        found.extend(entry["resource"] for entry in entries[:200])
    return [record for record in found if record.get("resourceType") != "Bundle"]


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a record."""
    if isinstance(value, dict | list):
        for key in range(len(value)) if isinstance(value, list) else list(value):
            found.append((value, key))
            places(value[key], found)
    return found


def mutate_fields(record: dict[str, Any], others: list[dict[str, Any]], r: random.Random) -> dict[str, Any]:
    """The record with a few fields deleted, replaced, nested, repeated or exchanged for those of another record."""
    record = json.loads(json.dumps(record))
    for _ in range(r.choice((1, 1, 2, 4))):
        if not (possible := places(record, [])):
            break
        inside, key = r.choice(possible)
        if key == "resourceType" and r.random() < 0.9:
            continue
        action = r.randrange(7)
        if action == 0:
            del inside[key]
        elif action == 1:
            inside[key] = json.loads(json.dumps(r.choice(ODD)))  # a copy: it may be changed in its turn
        elif action == 2:
            inside[key] = [inside[key]]
        elif action == 3:
            inside[key] = {"value": inside[key], "coding": inside[key], "extension": [inside[key]]}
        elif action == 4:
            there, name = r.choice(places(r.choice(others), []))
            inside[key] = json.loads(json.dumps(there[name]))
        elif action == 5 and isinstance(inside[key], list) and inside[key]:
            inside[key] = inside[key] * r.choice((2, 50))
        else:
            for _ in range(r.choice((3, 30, 150))):
                inside[key] = {"extension": [inside[key]]} if r.random() < 0.5 else {"item": [inside[key]]}
            break  # so deep that Python itself must not walk it again
    return record


def mutate_bytes(text: bytes, r: random.Random) -> bytes:
    """The text with a few bytes flipped, dropped, put in or repeated, a value exchanged, or its end cut off."""
    for _ in range(r.choice((0, 1, 1, 3))):
        at = r.randrange(len(text) + 1)
        end = min(len(text), at + r.choice((1, 1, 5, 50)))
        text = r.choice(
            (
                lambda: text[:at] + bytes([r.randrange(256)]) + text[end:],  # noqa: B023
                lambda: text[:at] + text[end:],  # noqa: B023
                lambda: text[:at] + text[at:end] * 3 + text[end:],  # noqa: B023
                lambda: text[:at],  # noqa: B023
                lambda: exchanged(text, r.choice(LITERALS), r),  # noqa: B023
            )
        )()
    return text.replace(b"\n", b" ")


def exchanged(text: bytes, literal: bytes, r: random.Random) -> bytes:
    """The text with one value, or what stands in its place, exchanged for a literal."""
    colons = [i for i, byte in enumerate(text) if byte == ord(":")] or [0]
    at = r.choice(colons) + 1
    ends = [end for end in (text.find(c, at) for c in (b",", b"}", b"]")) if end >= 0]
    return text[:at] + literal + text[min(ends, default=len(text)) :]


def record(pool: list[dict[str, Any]], r: random.Random, broken: float) -> bytes:
    """One record: some stay whole, so that good ones stand beside bad ones; `broken` of them are no JSON perhaps."""
    chosen = dict(r.choice(pool))
    for name in ("subject", "patient"):
        if name in chosen and r.random() < 0.8:
            chosen[name] = SUBJECT  # so that what it says is linked and dated, not left out for want of a patient
    if r.random() < 0.7:
        chosen = mutate_fields(chosen, pool, r)
    text = json.dumps(chosen, ensure_ascii=True).encode()
    return mutate_bytes(text, r) if r.random() < broken else text


def packed(name: str, content: bytes, kind: str) -> tuple[str, bytes]:
    out = io.BytesIO()
    if kind == "gz":
        return name + ".gz", gzip.compress(content, 1)
    if kind == "zst":
        with pa.CompressedOutputStream(sink := pa.BufferOutputStream(), "zstd") as stream:
            stream.write(content)
        return name + ".zst", sink.getvalue().to_pybytes()
    if kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        return "a.zip", out.getvalue()
    if kind == "tgz":
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        return "a.tgz", out.getvalue()
    return name, content


def bundled(lines: list[bytes], r: random.Random) -> bytes:
    entries = []
    for i, line in enumerate(lines):
        request = b', "request": {"method": "DELETE", "url": "Observation/o"}' if r.random() < 0.05 else b""
        entries.append(b'{"fullUrl": "urn:uuid:%d", "resource": %s%s}' % (i, line, request))
    return b'{"resourceType": "Bundle",\n "type": "batch", "entry": [\n' + b",\n".join(entries) + b"]}"


def file_of(pool: list[dict[str, Any]], r: random.Random) -> tuple[str, bytes, tuple[int, int] | None, list[bytes]]:
    """Name and content of a file, how many records the ledger must count at least and at most (None: not to be told),
    and the records."""
    shape = r.choice(("lines", "lines", "lines", "bundle", "list", "documents", "bundles in lines"))
    # in a document, one bracket too many or too few takes all that follows with it
    broken = r.choice((0, 1 / BATCH)) if shape in ("bundle", "list", "documents") else 0.2
    lines = [record(pool, r, broken) for _ in range(BATCH)]
    count = None
    if shape == "lines":
        content, name, least = b"\n".join(lines), "x.ndjson", sum(bool(line.strip()) for line in lines)
        count = least, least + sum(map(contained_in, lines))
    elif shape == "bundle":
        content, name = bundled(lines, r), "x.json"
    elif shape == "list":
        content, name = b"[\n" + b",\n".join(lines) + b"]", "x.json"
    elif shape == "documents":
        content, name = b"\n".join(line.replace(b', "', b',\n "') for line in lines), "x.json"
    else:
        groups = [lines[i : i + 20] for i in range(0, len(lines), 20)]
        content, name = b"\n".join(bundled(group, r).replace(b"\n", b" ") for group in groups), "x.ndjson"
    name, content = packed(name, content, r.choice(("plain", "plain", "gz", "zst", "zip", "tgz")))
    if r.random() < 0.15:  # damage the whole
        at = r.randrange(len(content))
        content = r.choice((content[:at], content[:at] + bytes([r.randrange(256)]) + content[at + 1 :]))
        count = None
    return name, content, count, lines


def contained_in(line: bytes) -> int:
    """How many records the record of a line may contain: they count where it can be read itself."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return 0
    inner = found.get("contained") if isinstance(found, dict) else None
    kinds = [c.get("resourceType") for c in inner if isinstance(c, dict)] if isinstance(inner, list) else []
    return sum(isinstance(kind, str) and kind in READ_TYPES.keys() - PARTS for kind in kinds)


def check(name: str, content: bytes, count: tuple[int, int] | None) -> str | None:
    """What is wrong with reading this file beside a patient's; None where nothing is."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "patient.ndjson").write_text(json.dumps(SEEDS[0]))
        (Path(folder) / name).write_bytes(content)
        start = time.perf_counter()
        try:
            timelines = read_fhir(folder)
        except Exception:
            return traceback.format_exc(limit=-3)
        seconds = time.perf_counter() - start
    if seconds > SECONDS_PER_FILE:
        return f"{seconds:.1f} seconds"
    ledger, quarantine = timelines.ledger, timelines.quarantine
    if ledger is None or quarantine is None:
        return "no ledger"
    counted = ledger["count"].sum() - 1
    if count is not None and not count[0] <= counted <= count[1]:
        return f"{counted} counted of {count[0]}"
    refused = sum(n for fate, n in ledger.select("fate", "count").iter_rows() if fate == "quarantined")
    if refused != quarantine.height:
        return f"{refused} quarantined, {quarantine.height} listed"
    fates.update(dict(ledger.group_by("fate").agg(pl.col("count").sum()).iter_rows()))
    return None


def smallest(lines: list[bytes], fails: Callable[[list[bytes]], bool]) -> list[bytes]:
    """Fewer records that still fail."""
    size = len(lines) // 2
    while size:
        for start in range(0, len(lines), size):
            fewer = lines[:start] + lines[start + size :]
            if fewer and fails(fewer):
                lines = fewer
                break
        else:
            size //= 2
    return lines


def peak_memory() -> int:
    """The most bytes that this process held. Linux counts a parent's memory into `ru_maxrss`, but not into `VmHWM`."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("EHRSEQ_DATA"), help="default: EHRSEQ_DATA")
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where to write what made it fail")
    options = parser.parse_args()
    warnings.simplefilter("error")
    pool = seeds(Path(options.data) if options.data else None)
    r = random.Random(options.seed)
    start = time.perf_counter()
    slowest, failures = 0.0, Counter[str]()
    for number in range(0, options.records, BATCH):
        name, content, count, lines = file_of(pool, r)
        began = time.perf_counter()
        wrong = check(name, content, count)
        slowest = max(slowest, time.perf_counter() - began)
        if wrong is not None:
            failures[wrong] += 1
            if options.keep and failures[wrong] == 1:
                options.keep.mkdir(parents=True, exist_ok=True)
                few = smallest(lines, lambda few: check("x.ndjson", b"\n".join(few), None) is not None)
                (options.keep / f"{options.seed}-{number}.ndjson").write_bytes(b"\n".join(few))
                (options.keep / f"{options.seed}-{number}-{name}").write_bytes(content)
    peak = peak_memory()
    if peak > MEMORY:
        failures["memory"] += 1
    facts = {
        "records": options.records,
        "seeds": len(pool),
        "fates": dict(fates),
        "failures": dict(failures),
        "slowest_file_seconds": round(slowest, 2),
        "peak_mib": peak >> 20,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(facts, indent=1))
    return 1 if failures else 0


fates: Counter[str] = Counter()

if __name__ == "__main__":
    sys.exit(main())
