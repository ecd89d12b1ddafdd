"""Decoding a FHIR source, once, into columns.

Lines are decoded a block at a time where all are of one type, and one by one where they are not or where one of them
is bad, so that a bad record costs itself alone.
"""

from __future__ import annotations

import gc
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from ehrseq.errors import SourceError
from ehrseq.fhir.clock import given
from ehrseq.fhir.codes import CodingPreference
from ehrseq.fhir.contained import contained_records, container, holds_records
from ehrseq.fhir.datatypes import Reference, Resource
from ehrseq.fhir.dating import POLICY, dated
from ehrseq.fhir.events import Emitters
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.limits import DEFAULT_LIMITS, Limits
from ehrseq.fhir.resource import BUNDLE_DECODER, DECODERS, HEAD_DECODER, Bundle, BundleEntry
from ehrseq.fhir.rows import TYPE_NUMBER, Rows
from ehrseq.fhir.skipped import known_type, reason_for_type
from ehrseq.fhir.source import Progress, count_lines, span_blocks
from ehrseq.fhir.walk import DECODE_ERRORS, type_of, walk, walk_lines, walk_pieces

MEMORY = Path("(in memory)")
OBSERVATION = POLICY["Observation"]
FULL = 1 << 17  # records gathered before they are handed over
ENTRY_DECODER = msgspec.json.Decoder(BundleEntry)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector for a while: a tenth of reading is its looking for cycles; records hold none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Refused(SourceError):
    """One record cannot be read, where all must be."""

    def __init__(self, reason: Reason) -> None:
        found = f"one that cannot ({reason.label})"
        super().__init__("records that can all be read", found, "read without strict; quarantine.parquet lists them")
        self.reason = reason


class Reader:
    """Reads files or objects into `rows`. Where it is `strict`, raises Refused at the first that cannot be read."""

    def __init__(
        self,
        coding: CodingPreference | None = None,
        limits: Limits = DEFAULT_LIMITS,
        on_full: Callable[[Rows], None] | None = None,
        full: int | None = None,
        strict: bool = False,
    ) -> None:
        self.rows = Rows(coding)
        self._strict = strict
        self._coding, self._on_full = coding, on_full
        self._full = FULL if full is None else full
        self._emitters = Emitters(self.rows)
        self._limits = limits
        self._file = 0
        self._member = 0
        self._salvaging = 0  # bundles within bundles that are being read in pieces
        self._waiting: dict[str, list[Resource]] = {}
        self._names: dict[str, str] = {}  # of the bundle being read: as its entries are called -> Type/id

    def read_file(self, path: Path, number: int, progress: Progress | None = None, asked_for: bool = False) -> None:
        """Read one file; what is wrong with it goes to the quarantine.

        A file that was only found in a folder is passed over where its name is not one of FHIR data.
        """
        self._file = number
        walk(path, self, self._limits, progress, asked_for)

    def read_span(self, path: Path, number: int, start: int, stop: int, progress: Progress | None = None) -> int:
        """Read the lines of a file that begin in a span of its bytes; how many they were."""
        self._file = number
        self.member(0)
        lines = 0

        def counted() -> Iterator[bytes]:
            nonlocal lines
            for block in span_blocks(path, start, stop, progress):
                lines += count_lines(block)
                yield block

        walk_lines(counted(), self, self._limits)
        return lines

    def read_objects(self, objects: Iterable[Any], number: int = 0) -> None:
        """Read resources held in memory: dicts, or objects of fhir.resources."""
        self._file = number
        for position, item in enumerate(objects, 1):
            self._route(_as_json(item), position)
            if position % 1000 == 0:
                self._take_waiting()
                self._cut()
        self._take_waiting()

    def member(self, number: int) -> None:
        """What follows is in this member of the file."""
        self._member = number

    def document(self, raw: bytes) -> bool:
        """Read a whole document: a resource, a bundle or a list of them; False where it is not one."""
        try:
            if type_of(raw):
                self._read_one(raw, 1)
            elif raw.lstrip()[:1] == b"[":
                self._read_items(raw)
            elif is_object(raw):
                self.count("", Reason.NOT_FHIR)
            else:
                return False
        except DECODE_ERRORS:
            return False
        return True

    def resource(self, raw: bytes, line: int) -> None:
        """Read a resource that was cut out of something larger."""
        self._route(raw, line, whole=False)

    def entry(self, raw: bytes, line: int) -> None:
        """Read one entry of a bundle."""
        try:
            self._read_entry(ENTRY_DECODER.decode(raw), line, None, 0)
        except DECODE_ERRORS as error:
            self.reject("", _reason(error), line)

    def bundle(self, raw: bytes, line: int) -> None:
        """Count a bundle whose entries have been read."""
        try:
            kind = HEAD_DECODER.decode(raw).resource_type
        except DECODE_ERRORS as error:
            self.reject("", _reason(error), line)
        else:
            self.count(kind, Reason.CONTAINER if kind == "Bundle" else reason_for_type(kind))
        self._take_waiting()
        self._names = {}

    def finish(self) -> Rows:
        """What has not been handed over; nothing more is read."""
        self._emitters.let_go()
        self._on_full = None
        return self.rows

    def flush(self) -> None:
        """Take what has been gathered."""
        self._take_waiting()
        self._cut()

    def _read_items(self, raw: bytes) -> None:
        for position, item in enumerate(msgspec.json.decode(raw, type=list[msgspec.Raw]), 1):
            self._route(bytes(item), position)

    def lines(self, block: bytes, lines_before: int) -> None:
        """Read whole lines, all at once where they are of one type."""
        kind = type_of(block)
        decoder = DECODERS.get(kind, HEAD_DECODER)
        try:
            batch: list[Any] = decoder.decode_lines(block)
        except DECODE_ERRORS:
            self._read_one_by_one(block, lines_before)
            return
        if decoder is HEAD_DECODER:
            types = Counter(head.resource_type for head in batch)
            if types.keys() & DECODERS.keys() or "Bundle" in types or any(holds_records(h.contained) for h in batch):
                self._read_one_by_one(block, lines_before)
                return
            for name, count in types.items():
                self.count(name, reason_for_type(name), count)
        elif all(ids := [r.id for r in batch]) and not any(holds_records(c) for r in batch if (c := r.contained)):
            self._take(kind, batch, ids)
            self._cut()
        else:
            self._read_one_by_one(block, lines_before)

    def _read_one_by_one(self, block: bytes, lines_before: int) -> None:
        for number, line in enumerate(block.split(b"\n"), lines_before + 1):
            if line.strip():
                self._route(line, number)
        self._take_waiting()
        self._cut()

    def _route(self, raw: bytes, line: int, full_url: str | None = None, depth: int = 0, whole: bool = True) -> None:
        """Read one resource, or say why it cannot be read; of a broken bundle (in `whole`), what can be."""
        try:
            self._read_one(raw, line, full_url, depth)
        except DECODE_ERRORS as error:
            kind = type_of(raw)
            if kind == "Bundle" and whole and self._salvaging < self._limits.bundle_levels:
                self._salvaging += 1
                walk_pieces(iter([raw]), self, self._limits, line - 1)
                self._salvaging -= 1
            else:
                self.reject(kind, _reason(error), line)

    def _read_one(self, raw: bytes, line: int, full_url: str | None = None, depth: int = 0) -> None:
        """Decode one resource by its type and put it with others of that type, or settle its fate."""
        kind = type_of(raw)
        if kind == "Bundle":
            self._open_bundle(raw, line, depth)
        elif (decoder := DECODERS.get(kind)) is not None:
            resource = decoder.decode(raw)
            if resource.id is None:
                resource.id = _own_id(raw, full_url)
            if full_url:
                self._remember(full_url, kind, resource.id)
            self._waiting.setdefault(kind, []).append(resource)
            if resource.contained:
                self._read_contained(resource, kind, line)
        elif kind:
            head = HEAD_DECODER.decode(raw)
            if head.resource_type == kind:
                self.count(kind, reason_for_type(kind))
                if head.contained:
                    self._read_contained(container(raw), kind, line)
            else:  # it says twice what it is, and not the same
                self.reject(kind, Reason.INVALID_FIELD, line)
        else:
            self.reject("", _fault(raw), line)

    def _read_contained(self, outer: Any, outer_kind: str, line: int) -> None:
        for kind, resource in contained_records(outer, f"{outer_kind}-{outer.id}"):
            if resource is None:
                self.reject(kind, Reason.INVALID_FIELD, line)
            else:
                self._waiting.setdefault(kind, []).append(resource)

    def _open_bundle(self, raw: bytes, line: int, depth: int) -> None:
        if depth > self._limits.bundle_levels:
            self.reject("Bundle", Reason.TOO_DEEP, line)
            return
        bundle = BUNDLE_DECODER.decode(raw)
        self.count("Bundle", Reason.CONTAINER)
        self._take_waiting()
        outside = self._names
        self._names = dict(outside)
        for position, entry in enumerate(bundle.entry or (), 1):
            self._read_entry(entry, position, bundle, depth)
        self._take_waiting()
        self._names = outside

    def _read_entry(self, entry: BundleEntry, position: int, bundle: Bundle | None, depth: int) -> None:
        if (request := entry.request) is not None and request.method == "DELETE":
            self._delete(bundle, entry, request.url or entry.full_url or "")
        elif resource := bytes(entry.resource):
            self._route(resource, position, entry.full_url, depth + 1)

    def _delete(self, bundle: Bundle | None, entry: BundleEntry, url: str) -> None:
        """A record's end: an entry of a history, or of the `deleted` bundles of a bulk export.

        It takes its place among the record's versions. Where nothing says when, it is the last word.
        """
        kind, _, name = url.partition("?")[0].partition("/_history/")[0].rpartition("/")
        kind = kind.rpartition("/")[2]
        if kind not in TYPE_NUMBER or not name:
            self.count(kind, Reason.DELETED)
            return
        when = entry.response.last_modified if entry.response is not None else None
        if bundle is not None:
            when = when or bundle.timestamp or (bundle.meta.last_updated if bundle.meta is not None else None)
        self.rows.add_record(name, TYPE_NUMBER[kind], self._file, Reason.DELETED, when)

    def _remember(self, full_url: str, kind: str, resource_id: str | None) -> None:
        """Keep what a bundle's name for an entry stands for, where a reference could not tell by itself."""
        target = f"{kind}/{resource_id}"
        if full_url.endswith("/" + target):
            return
        self._names[full_url] = target
        if full_url.rsplit(":", 1)[-1] != resource_id:
            known = self.rows.full_urls.setdefault(full_url, target)
            if known != target:
                self.rows.full_urls[full_url] = ""

    def _cut(self) -> None:
        """Hand over what has been gathered, once it is much; what comes next is gathered anew."""
        if self._on_full is not None and self.rows.records >= self._full:
            self._emitters.let_go()
            self._on_full(self.rows)
            self.rows = Rows(self._coding)
            self._emitters = Emitters(self.rows)

    def _take_waiting(self) -> None:
        if not self._waiting:
            return
        with self.rows.references.scope(self._names):
            for kind, batch in self._waiting.items():
                self._take(kind, batch, [r.id for r in batch])
        self._waiting = {}

    def _take(self, kind: str, batch: list[Any], ids: list[Any]) -> None:
        """Give resources of one type to the function that makes events of them."""
        rows, size = self.rows, len(batch)
        references, times, start = rows.references, rows.times, rows.records
        rows.record_id.extend(ids)
        rows.record_kind.frombytes(bytes([TYPE_NUMBER[kind]]) * size)
        rows.record_file.extend(array("i", [self._file]) * size)
        stamps = [m.last_updated or m.version_id for r in batch if (m := r.meta) is not None]
        if any(stamps):
            rows.record_updated.extend(
                array("i", [0 if (m := r.meta) is None or (u := m.last_updated) is None else times[u] for r in batch])
            )
            rows.record_version.extend(
                array("q", [-1 if (m := r.meta) is None or (v := m.version_id) is None else _version(v) for r in batch])
            )
        else:
            rows.record_updated.extend(array("i", [0]) * size)
            rows.record_version.extend(array("q", [-1]) * size)
        if kind in ("Patient", "Encounter", "MolecularSequence", "Sequence"):
            own = array("I", [references[f"{kind}/{r.id}"] for r in batch])
        if kind == "Patient":
            self._remember_links(batch, start)
            rows.record_subject.extend(own)
            rows.record_encounter.extend(array("I", [0]) * size)
        elif kind in ("Medication", "ResearchSubject"):
            rows.record_subject.extend(array("I", [0]) * size)
            rows.record_encounter.extend(array("I", [0]) * size)
        else:
            subjects = [
                0 if (s := r.subject or r.patient) is None else references[s.reference or _logical(s)] for r in batch
            ]
            rows.record_subject.extend(array("I", subjects))
            if kind in ("Encounter", "MolecularSequence", "Sequence"):
                encounters = own
            elif kind == "Observation":
                encounters = array("I", self._results(batch))
            else:
                named = [0 if (e := r.encounter or r.context) is None else references[e.reference] for r in batch]
                encounters = array("I", named)
            rows.record_encounter.extend(encounters)
        if (read := self._emitters.plain.get(kind)) is not None:
            rows.record_reason.extend(read(batch, start))
        else:
            emit = self._emitters.by_type[kind]
            rows.record_reason.extend(array("B", [emit(r, n) for n, r in enumerate(batch, start)]))
        rows.records += size
        rows.flush()

    def _results(self, batch: list[Any]) -> list[int]:
        """Of Observations: the reference to the encounter; where there is none, and no date, their own name, by which
        the report whose results they are can date them."""
        references = self.rows.references
        return [
            references[e.reference]
            if (e := r.encounter or r.context) is not None
            else 0
            if given(r.effective_date_time) or given(r.issued) or given(dated(r, OBSERVATION)[0])
            else references[f"Observation/{r.id}"]
            for r in batch
        ]

    def _remember_links(self, patients: list[Any], start: int) -> None:
        """Keep which patients were merged into which."""
        references = self.rows.references
        for record, patient in enumerate(patients, start):
            for link in patient.link or ():
                if link.type in ("replaced-by", "replace", "replaces") and link.other and link.other.reference:
                    own, other = f"Patient/{patient.id}", references.names[references[link.other.reference]]
                    self.rows.links.append((record, link.type, own, other or ""))

    def count(self, kind: str, reason: Reason, count: int = 1) -> None:
        """Count what gives no record of its own in the columns."""
        self.rows.counts[self._file, known_type(kind), reason] += count

    def reject(self, kind: str, reason: Reason, line: int) -> None:
        """Put something that cannot be read into the quarantine."""
        if self._strict:
            raise Refused(reason)
        self.count(kind, reason)
        self.rows.quarantine.append((self._file, self._member, line, reason))


def _version(written: str) -> int:
    """The number of a version, -1 where it is not one."""
    return int(written) if written.isdecimal() and written.isascii() and len(written) < 18 else -1


def is_object(raw: bytes) -> bool:
    """Whether some bytes are a JSON object."""
    try:
        return isinstance(msgspec.json.decode(raw), dict)
    except DECODE_ERRORS:
        return False


def _fault(raw: bytes) -> Reason:
    """Why JSON without a resource type cannot be read."""
    return Reason.NO_RESOURCE_TYPE if is_object(raw) else Reason.MALFORMED_JSON


def _reason(error: Exception) -> Reason:
    if isinstance(error, msgspec.ValidationError):
        return Reason.INVALID_FIELD
    return Reason.TOO_DEEP if isinstance(error, RecursionError) else Reason.MALFORMED_JSON


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
