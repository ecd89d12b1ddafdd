"""Going through a file: its members, its shape, and each record's bytes, given to whoever reads or checks them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

import msgspec

from ehrseq.fhir.archive import Member, read_members
from ehrseq.fhir.documents import split_documents
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.limits import Limits
from ehrseq.fhir.resource import HEAD_DECODER
from ehrseq.fhir.source import DamagedFile, Progress, count_lines, holds_json, is_line_file, whole_lines

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
FLUSH_PIECES = 1000  # between them, whatever has been gathered may be taken
_TYPE_FIRST = re.compile(rb'\s*\{\s*"resourceType"\s*:\s*"([A-Za-z]+)"')


class Sink(Protocol):
    """What takes a file's records. A `line` is the number of the line, or of the entry or item in a document."""

    def member(self, number: int) -> None:
        """What follows is in this member of the file (0: the file itself)."""

    def lines(self, block: bytes, lines_before: int) -> None:
        """Whole lines, each a record."""

    def document(self, raw: bytes) -> bool:
        """A whole JSON document, if it is one; otherwise it is cut into pieces and comes again."""

    def resource(self, raw: bytes, line: int) -> None:
        """One resource."""

    def entry(self, raw: bytes, line: int) -> None:
        """One entry of a bundle."""

    def bundle(self, raw: bytes, line: int) -> None:
        """A bundle whose entries have been given, without them."""

    def flush(self) -> None:
        """Some records have been given."""

    def count(self, kind: str, reason: Reason) -> None:
        """A file or member that is passed over."""

    def reject(self, kind: str, reason: Reason, line: int) -> None:
        """Something that cannot be read."""


def walk(path: Path, sink: Sink, limits: Limits, progress: Progress | None = None, asked_for: bool = False) -> None:
    """Give every record of a file to a sink.

    A file that was only found in a folder, or is a member of an archive, is passed over where its name is not one of
    FHIR data.
    """
    sink.member(0)
    if not asked_for and not holds_json(path):
        sink.count("", Reason.NOT_FHIR)
        return
    try:
        for member in read_members(path, limits, progress):
            sink.member(member.number)
            if member.number and not holds_json(member.name):
                sink.count("", Reason.NOT_FHIR)
            else:
                _walk_member(member, sink, limits)
    except DamagedFile as damage:
        sink.reject("", damage.reason, 0)


def _walk_member(member: Member, sink: Sink, limits: Limits) -> None:
    first, blocks = b"", member.blocks
    try:
        first = next(blocks, b"")
    except DamagedFile as damage:
        sink.reject("", damage.reason, 1)
        return
    blocks = chain([first], blocks)
    if is_line_file(member.name) or _looks_like_lines(first):
        walk_lines(blocks, sink, limits)
    else:
        _walk_document(blocks, sink, limits)


def walk_lines(blocks: Iterator[bytes], sink: Sink, limits: Limits) -> None:
    """Give lines to a sink, a block at a time; from a line longer than a record may be on, pieces of documents."""
    line = 0
    try:
        for block in whole_lines(blocks, limits.record_bytes):
            if len(block) > limits.record_bytes and not block.endswith(b"\n"):
                walk_pieces(chain([block], blocks), sink, limits, line)
                return
            sink.lines(block, line)
            line += count_lines(block)
    except DamagedFile as damage:
        if type_of(damage.partial) == "Bundle":
            walk_pieces(iter([damage.partial]), sink, limits, line, damage.reason)
        else:
            sink.reject("", damage.reason, line + 1)


def _walk_document(blocks: Iterator[bytes], sink: Sink, limits: Limits) -> None:
    held: list[bytes] = []
    size = 0
    try:
        for block in blocks:
            held.append(block)
            size += len(block)
            if size > limits.record_bytes:
                walk_pieces(chain(held, blocks), sink, limits)
                return
    except DamagedFile as damage:
        walk_pieces(iter(held), sink, limits, damaged=damage.reason)
        return
    whole = b"".join(held)
    if whole.strip() and not sink.document(whole):
        walk_pieces(iter([whole]), sink, limits)
    sink.flush()


def walk_pieces(
    blocks: Iterator[bytes], sink: Sink, limits: Limits, line: int = 0, damaged: Reason | None = None
) -> None:
    """Give the pieces of documents to a sink; `line` is the number of records before, `damaged` why they break off."""
    give = {"document": sink.resource, "item": sink.resource, "entry": sink.entry, "bundle": sink.bundle}
    try:
        for line, piece in enumerate(split_documents(blocks, limits), line + 1):  # noqa: B020 - it goes on counting
            if piece.kind != "fault":
                give[piece.kind](piece.raw, line)
            elif damaged is None or piece.reason != Reason.TRUNCATED_FILE:
                sink.reject("", piece.reason, line)
            if line % FLUSH_PIECES == 0:
                sink.flush()
    except DamagedFile as damage:
        damaged = damage.reason
    if damaged is not None:
        sink.reject("", damaged, line + 1)
    sink.flush()


def type_of(raw: bytes) -> str:
    """The resource type of (the first of) some JSON; empty where there is none.

    >>> type_of(b'{"id": "7", "resourceType": "Patient"}'), type_of(b"[]")
    ('Patient', '')
    """
    if match := _TYPE_FIRST.match(raw):
        return match[1].decode()
    end = raw.find(b"\n")
    for candidate in (raw[:end], raw) if end > 0 else (raw,):
        try:
            return HEAD_DECODER.decode(candidate).resource_type
        except DECODE_ERRORS:
            continue
    return ""


def _looks_like_lines(block: bytes) -> bool:
    """Whether one of the first two lines is a whole resource, as in NDJSON; or the block is a part of one line."""
    *lines, rest = block.lstrip().split(b"\n", 8)
    if not lines:
        return bool(type_of(rest))
    return any(_is_resource(line) for line in [line for line in lines if line.strip()][:2])


def _is_resource(line: bytes) -> bool:
    try:
        HEAD_DECODER.decode(line)
    except DECODE_ERRORS:
        return False
    return True
