"""Checking a source against FHIR's own models (`fhir.resources`): a report, never a filter.

There are models of R4B, STU3 and R5. R4 records are checked by those of R4B, which differ from R4 in a few types that
no timeline reads. DSTU2 has no models: such records are counted as `no_model`.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from ehrseq.errors import SourceError, nearest
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.limits import DEFAULT_LIMITS, Limits
from ehrseq.fhir.resource import BUNDLE_DECODER, BundleEntry
from ehrseq.fhir.skipped import known_type
from ehrseq.fhir.source import find_files
from ehrseq.fhir.walk import DECODE_ERRORS, type_of, walk

VERSIONS = ("R4", "R4B", "STU3", "R5", "DSTU2")
MODELS = ("R4B", "STU3", "R5")  # in the order in which they are tried
REPORT_SCHEMA = {
    "resource_type": pl.String,  # empty where it is not known
    "version": pl.String,  # of the models: R4B, STU3, R5; DSTU2; empty where none has the type
    "result": pl.String,  # valid, invalid, no_model, unreadable: counts of records; error: counts of errors
    "element": pl.String,  # of an error: where, as Type.field.field
    "error": pl.String,  # of an error: its kind, as pydantic names it
    "count": pl.Int64,
}
_DSTU2_TYPES = {"MedicationOrder", "DiagnosticOrder", "Conformance", "Order", "OrderResponse", "DeviceUseRequest"}
_ENTRY_DECODER = msgspec.json.Decoder(BundleEntry)
Errors = list[tuple[str, str]]  # element, kind


def validate_source(
    source: str | Path | Iterable[str | Path],
    *,
    sample: int | None = None,
    seed: int = 0,
    version: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> pl.DataFrame:
    """A report on the records of files or folders, with the columns of `REPORT_SCHEMA`.

    `sample` takes that many records alone: those whose content hashes lowest under the `seed`, so that the order of
    files does not matter. `version` checks all records by that version's models; without it each record is checked by
    the first of R4B, STU3, R5 that accepts it, else by the one that finds least wrong. Bundles are opened, not checked.
    The report holds no field's content. Raises SourceError for an unknown version, or where there is nothing to read.
    """
    if version is not None and version not in VERSIONS:
        raise SourceError(f"a FHIR version ({', '.join(VERSIONS)})", "another", nearest(version, VERSIONS))
    if sample is not None and sample < 1:
        raise SourceError("a sample of at least one record", f"{sample}", "leave it out to check all records")
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    records = _Records(sample, seed, version)
    for path in find_files(paths):
        walk(path, records, limits, asked_for=path in paths)
    return records.report()


def check_record(raw: bytes, version: str | None = None) -> tuple[str, str, Errors | None]:
    """Type, version of the models, and what is wrong with a record; None where no model has its type.

    >>> check_record(b'{"resourceType": "Observation", "status": "final", "code": {"text": 3}}')
    ('Observation', 'R4B', [('Observation.code.text', 'string_type')])
    """
    kind = type_of(raw)
    if version == "DSTU2" or (version is None and kind in _DSTU2_TYPES):
        return kind, "DSTU2", None
    wanted = MODELS if version is None else ("R4B" if version == "R4" else version,)
    best: tuple[str, Errors] | None = None
    for name in wanted:
        model = _model(kind, name)
        if model is None:
            continue
        errors = _errors(kind, model, raw)
        if best is None or len(errors) < len(best[1]):
            best = name, errors
        if not errors:
            break
    return (kind, "", None) if best is None else (kind, *best)


def summary(report: pl.DataFrame) -> dict[str, Any]:
    """A report as nested counts: records by type, and the commonest errors by their place.

    >>> summary(pl.DataFrame([("Basic", "R4B", "valid", "", "", 2)], REPORT_SCHEMA, orient="row"))
    {'checked': {'Basic': {'R4B valid': 2}}, 'commonest errors': {}}
    """
    checked: dict[str, dict[str, int]] = {}
    for kind, version, result, _, _, count in report.filter(pl.col("result") != "error").iter_rows():
        name = f"{version} {result}".strip()
        checked.setdefault(kind or "unknown type", {})[name] = count
    errors = report.filter(result="error").sort("count", "element", "error", descending=[True, False, False]).head(20)
    return {
        "checked": checked,
        "commonest errors": {f"{e['version']} {e['element']} {e['error']}": e["count"] for e in errors.to_dicts()},
    }


@cache
def _model(kind: str, version: str) -> Any:
    """The model of a resource type; None where a version has none."""
    import fhir.resources
    import fhir.resources.R4B
    import fhir.resources.STU3

    package = {"R4B": fhir.resources.R4B, "STU3": fhir.resources.STU3, "R5": fhir.resources}[version]
    try:
        return package.get_fhir_model_class(kind)
    except (ValueError, LookupError, ImportError):
        return None


def _errors(kind: str, model: Any, raw: bytes) -> Errors:
    """What is wrong with a record; a key that stands twice in an object is wrong too, although models read past it."""
    return sorted([*_model_errors(kind, model, raw), *([(kind, "duplicate_key")] if _repeats_key(raw) else [])])


def _repeats_key(raw: bytes) -> bool:
    repeated = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal repeated
        repeated = repeated or len({key for key, _ in pairs}) < len(pairs)

    try:
        json.loads(raw, object_pairs_hook=look)
    except (ValueError, RecursionError):  # no JSON: the models say so
        return False
    return repeated


def _model_errors(kind: str, model: Any, raw: bytes) -> Errors:
    try:
        model.model_validate_json(raw)
    except ValueError as error:
        listed = getattr(error, "errors", None)
        if listed is None:
            return [(kind, "value_error")]
        found = listed(include_url=False, include_context=False, include_input=False)
        return sorted({(_element(kind, e["loc"], e["type"]), str(e["type"])) for e in found})
    except Exception as error:  # the models' own validators fail in many ways over odd values
        return [(kind, type(error).__name__)]
    return []


def _element(kind: str, place: tuple[Any, ...], error: str) -> str:
    """Where an error is. The name of a field that FHIR does not have is content, and left out."""
    names = [name for name in place if isinstance(name, str)]
    return ".".join([kind, *(names[:-1] if error == "extra_forbidden" else names)])


class _Records:
    """Takes the records of files (a `walk.Sink`): checks each, or keeps a sample to be checked at the end."""

    def __init__(self, sample: int | None, seed: int, version: str | None) -> None:
        self._sample, self._version = sample, version
        self._key = seed.to_bytes(16, "big", signed=True)
        self._kept: list[tuple[int, int, bytes]] = []  # a heap: the greatest hash first, to go first
        self._seen = 0
        self._counts: Counter[tuple[str, str, str, str, str]] = Counter()

    def report(self) -> pl.DataFrame:
        """The counts of everything taken so far."""
        for _, _, raw in self._kept:
            self._check(raw)
        self._kept = []
        rows = [(*key, count) for key, count in self._counts.items()]
        return pl.DataFrame(rows, REPORT_SCHEMA, orient="row").sort(pl.all())

    def member(self, number: int) -> None:
        pass

    def lines(self, block: bytes, lines_before: int) -> None:
        for line in block.split(b"\n"):
            if line.strip():
                self.resource(line, 0)

    def document(self, raw: bytes) -> bool:
        try:
            if raw.lstrip()[:1] == b"[":
                items = msgspec.json.decode(raw, type=list[msgspec.Raw])
                for item in items:
                    self.resource(bytes(item), 0)
                return True
            msgspec.json.decode(raw, type=msgspec.Raw)
        except DECODE_ERRORS:
            return False
        if type_of(raw):
            self.resource(raw, 0)
        return True

    def resource(self, raw: bytes, line: int) -> None:
        for record in self._opened(raw, 0):
            if self._sample is None:
                self._check(record)
                continue
            self._seen += 1
            rank = -int.from_bytes(blake2b(record, digest_size=8, key=self._key).digest(), "big")
            push = heapq.heappush if len(self._kept) < self._sample else heapq.heappushpop
            push(self._kept, (rank, self._seen, record))

    def entry(self, raw: bytes, line: int) -> None:
        try:
            resource = bytes(_ENTRY_DECODER.decode(raw).resource)
        except DECODE_ERRORS:
            self.reject("", Reason.INVALID_FIELD, line)
            return
        if resource:
            self.resource(resource, line)

    def bundle(self, raw: bytes, line: int) -> None:
        pass

    def flush(self) -> None:
        pass

    def count(self, kind: str, reason: Reason) -> None:
        pass

    def reject(self, kind: str, reason: Reason, line: int) -> None:
        self._counts[known_type(kind), "", "unreadable", "", ""] += 1

    def _opened(self, raw: bytes, level: int) -> Iterator[bytes]:
        """The record, or those of a bundle."""
        if type_of(raw) != "Bundle":
            yield raw
            return
        try:
            entries = BUNDLE_DECODER.decode(raw).entry or ()
        except DECODE_ERRORS:
            entries = None
        if entries is None or level > DEFAULT_LIMITS.bundle_levels:
            self.reject("Bundle", Reason.INVALID_FIELD, 0)
            return
        for entry in entries:
            if resource := bytes(entry.resource):
                yield from self._opened(resource, level + 1)

    def _check(self, raw: bytes) -> None:
        kind, version, errors = check_record(raw, self._version)
        if not known_type(kind):
            self.reject("", Reason.NO_RESOURCE_TYPE, 0)
            return
        result = "no_model" if errors is None else "invalid" if errors else "valid"
        self._counts[kind, version, result, "", ""] += 1
        for element, error in errors or ():
            self._counts[kind, version, "error", element, error] += 1
