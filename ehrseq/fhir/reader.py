"""Decoding a FHIR source, once, into columns.

Lines are decoded a block at a time where all are of one type, and one by one where they are not or where one of them
is bad, so that a bad record costs itself alone.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from ehrseq.errors import SourceError
from ehrseq.fhir.events import Emitters
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.resource import BUNDLE_DECODER, DECODERS, HEAD_DECODER, Reference, Resource
from ehrseq.fhir.rows import TYPE_NUMBER, Rows
from ehrseq.fhir.skipped import reason_for_type
from ehrseq.fhir.source import DamagedFile, Progress, count_lines, holds_json, is_line_file, read_bytes, whole_lines

MEMORY = Path("(in memory)")
_TYPE_FIRST = re.compile(rb'\s*\{\s*"resourceType"\s*:\s*"([A-Za-z]+)"')
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_MAX_NESTING = 10  # bundles in bundles


class Reader:
    """Reads files or objects into `rows`."""

    def __init__(self) -> None:
        self.rows = Rows()
        self._emitters = Emitters(self.rows)
        self._file = 0
        self._waiting: dict[str, list[Resource]] = {}

    def read_file(self, path: Path, number: int, progress: Progress | None = None, asked_for: bool = False) -> None:
        """Read one file; what is wrong with it goes to the quarantine.

        A file that was only found in a folder is passed over where its name is not one of FHIR data.
        """
        self._file = number
        if not asked_for and not holds_json(path):
            self._count("", Reason.NOT_FHIR)
            return
        line = 0
        try:
            lines = whole_lines(read_bytes(path, progress))
            first = next(lines, b"")
            if not is_line_file(path) and not _looks_like_lines(first):
                self._read_document(first + b"".join(lines))
                return
            while first:
                self._read_lines(first, line)
                line += count_lines(first)
                first = next(lines, b"")
        except DamagedFile as damage:
            reason = Reason.TRUNCATED_FILE if damage.truncated else Reason.DAMAGED_FILE
            self._reject("", reason, line + 1)

    def read_objects(self, objects: Iterable[Any], number: int = 0) -> None:
        """Read resources held in memory: dicts, or objects of fhir.resources."""
        self._file = number
        for position, item in enumerate(objects, 1):
            self._route(_as_json(item), position)
            if position % 1000 == 0:
                self._take_waiting()
        self._take_waiting()

    def _read_document(self, document: bytes) -> None:
        """A file that is one JSON document: a resource, a bundle or a list of them."""
        if document.lstrip()[:1] == b"[":
            try:
                items = msgspec.json.decode(document, type=list[msgspec.Raw])
            except _DECODE_ERRORS:
                self._reject("", Reason.MALFORMED_JSON, 1)
                return
            for position, item in enumerate(items, 1):
                self._route(bytes(item), position)
        elif document.strip():
            self._route(document, 1, whole_file=True)
        self._take_waiting()

    def _read_lines(self, block: bytes, lines_before: int) -> None:
        kind = _type_of(block)
        decoder = DECODERS.get(kind, HEAD_DECODER)
        try:
            batch: list[Any] = decoder.decode_lines(block)
        except _DECODE_ERRORS:
            self._read_one_by_one(block, lines_before)
            return
        if decoder is HEAD_DECODER:
            types = Counter(head.resource_type for head in batch)
            if types.keys() & DECODERS.keys() or "Bundle" in types:
                self._read_one_by_one(block, lines_before)
                return
            for name, count in types.items():
                self._count(name, reason_for_type(name), count)
        elif None not in [r.id for r in batch]:
            self._take(kind, batch)
        else:
            self._read_one_by_one(block, lines_before)

    def _read_one_by_one(self, block: bytes, lines_before: int) -> None:
        for number, line in enumerate(block.split(b"\n"), lines_before + 1):
            if line.strip():
                self._route(line, number)
        self._take_waiting()

    def _route(
        self, raw: bytes, line: int, full_url: str | None = None, depth: int = 0, whole_file: bool = False
    ) -> None:
        """Decode one resource by its type and put it with others of that type, or settle its fate."""
        kind = _type_of(raw)
        try:
            if kind == "Bundle":
                self._open_bundle(raw, line, depth)
            elif (decoder := DECODERS.get(kind)) is not None:
                resource = decoder.decode(raw)
                if resource.id is None:
                    resource.id = _own_id(raw, full_url)
                if full_url:
                    self._remember(full_url, kind, resource.id)
                self._waiting.setdefault(kind, []).append(resource)
            elif kind:
                HEAD_DECODER.decode(raw)
                self._count(kind, reason_for_type(kind))
            elif whole_file and _is_object(raw):
                self._count("", Reason.NOT_FHIR)
            else:
                self._reject("", _fault(raw), line)
        except msgspec.ValidationError:
            self._reject(kind, Reason.INVALID_FIELD, line)
        except _DECODE_ERRORS:
            self._reject(kind, Reason.MALFORMED_JSON, line)

    def _open_bundle(self, raw: bytes, line: int, depth: int) -> None:
        if depth > _MAX_NESTING:
            self._reject("Bundle", Reason.INVALID_FIELD, line)
            return
        bundle = BUNDLE_DECODER.decode(raw)
        self._count("Bundle", Reason.CONTAINER)
        for position, entry in enumerate(bundle.entry or (), 1):
            if resource := bytes(entry.resource):
                self._route(resource, position, entry.full_url, depth + 1)

    def _remember(self, full_url: str, kind: str, resource_id: str | None) -> None:
        """Keep what a bundle's name for an entry stands for, where a reference could not tell by itself."""
        target = f"{kind}/{resource_id}"
        if not full_url.endswith("/" + target):
            known = self.rows.full_urls.setdefault(full_url, target)
            if known != target:
                self.rows.full_urls[full_url] = ""

    def _take_waiting(self) -> None:
        for kind, batch in self._waiting.items():
            self._take(kind, batch)
        self._waiting = {}

    def _take(self, kind: str, batch: list[Any]) -> None:
        """Give resources of one type to the function that makes events of them."""
        rows, size = self.rows, len(batch)
        references, times, start = rows.references, rows.times, rows.records
        rows.record_id.extend([r.id for r in batch])
        rows.record_kind.frombytes(bytes([TYPE_NUMBER[kind]]) * size)
        rows.record_file.extend(array("i", [self._file]) * size)
        rows.record_updated.extend(
            [0 if (m := r.meta) is None or (u := m.last_updated) is None else times[u] for r in batch]
        )
        if kind in ("Patient", "Encounter"):
            own = array("i", [references[f"{kind}/{r.id}"] for r in batch])
        if kind == "Patient":
            rows.record_subject.extend(own)
            rows.record_encounter.extend(array("i", [0]) * size)
        elif kind in ("Medication", "ResearchSubject"):
            rows.record_subject.extend(array("i", [0]) * size)
            rows.record_encounter.extend(array("i", [0]) * size)
        else:
            rows.record_subject.extend(
                [0 if (s := r.subject) is None else references[s.reference or _logical(s)] for r in batch]
            )
            rows.record_encounter.extend(
                own
                if kind == "Encounter"
                else [0 if (e := r.encounter or r.context) is None else references[e.reference] for r in batch]
            )
        emit = self._emitters.by_type[kind]
        rows.record_reason.extend([emit(r, n) for n, r in enumerate(batch, start)])
        rows.records += size
        rows.flush()

    def _count(self, kind: str, reason: Reason, count: int = 1) -> None:
        self.rows.counts[self._file, kind, reason] += count

    def _reject(self, kind: str, reason: Reason, line: int) -> None:
        self._count(kind, reason)
        self.rows.quarantine.append((self._file, line, reason))


def _type_of(raw: bytes) -> str:
    """The resource type of (the first of) some JSON; empty where there is none."""
    if match := _TYPE_FIRST.match(raw):
        return match[1].decode()
    end = raw.find(b"\n")
    for candidate in (raw[:end], raw) if end > 0 else (raw,):
        try:
            return HEAD_DECODER.decode(candidate).resource_type
        except _DECODE_ERRORS:
            continue
    return ""


def _looks_like_lines(block: bytes) -> bool:
    """Whether one of the first two lines is a whole resource, as in NDJSON."""
    lines = [line for line in block.split(b"\n", 8) if line.strip()][:2]
    return any(_type_of(line) for line in lines)


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(raw), dict)
    except _DECODE_ERRORS:
        return False


def _fault(raw: bytes) -> Reason:
    """Why JSON without a resource type cannot be read."""
    return Reason.NO_RESOURCE_TYPE if _is_object(raw) else Reason.MALFORMED_JSON


def _own_id(raw: bytes, full_url: str | None) -> str:
    """An identity for a resource without id: its name in the bundle, else a hash of its content."""
    if full_url:
        return full_url.rsplit("/", 1)[-1].removeprefix("urn:uuid:").removeprefix("urn:oid:")
    content = msgspec.json.encode(msgspec.json.decode(raw), order="deterministic")
    return "hash-" + blake2b(content, digest_size=16).hexdigest()


def _logical(reference: Reference) -> str | None:
    """A reference by identifier alone, written as a conditional one."""
    identifier = reference.identifier
    if identifier is None or not identifier.value:
        return None
    return f"Patient?identifier={identifier.system or ''}|{identifier.value}"


_ENCODER = msgspec.json.Encoder(decimal_format="number")


def _as_json(item: Any) -> bytes:
    """A resource in memory as JSON bytes. Raises SourceError for what is none."""
    if isinstance(item, dict):
        try:
            return _ENCODER.encode(item)
        except (TypeError, ValueError):
            raise SourceError(
                "FHIR resources as plain dicts", "a dict that is no JSON", "use JSON types only"
            ) from None
    dump = getattr(item, "model_dump_json", None)
    if dump is None:
        raise SourceError(
            "FHIR resources as dicts or fhir.resources objects",
            f"an object of type {type(item).__name__}",
            "convert them, or pass the path of an export",
        )
    return str(dump()).encode()
