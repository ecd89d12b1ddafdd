"""Decompression and archives: a file's members as streams of bytes, in bounded memory and never on disk.

What a file is, its first bytes say (gzip, Zstandard, zip, tar), not its name. An archive within an archive is read
through the one around it, from the start again where a zip's directory asks for it.
"""

from __future__ import annotations

import io
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any, Self

from ehrseq.errors import SourceError
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.limits import DEFAULT_LIMITS, Limits
from ehrseq.fhir.source import STANDARD_INPUT, DamagedFile, Progress, holds_json

CHUNK = 1 << 18  # decoding a block that fits the cache is a quarter faster than one of megabytes
Blocks = Iterator[bytes]
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP, _ZSTANDARD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"PK\x03\x04", b"PK\x05\x06")
_ZSTANDARD_CHUNK = 1 << 16  # what was decompressed for a block that breaks off is lost
_TAR_MAGIC = slice(257, 262)
_LARGEST_TAR_HEADER = 1 << 20
_LARGEST_ZIP_ENTRY = 256  # bytes of a zip's directory per member, on average
# all that Python's readers of archives raise over bad bytes (RuntimeError: encrypted, NotImplementedError: a method)
_ARCHIVE_FAULTS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError,
    ArithmeticError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A plain file (number 0), or a member of an archive (numbered from 1 in the order in which they are stored)."""

    number: int
    name: PurePath
    blocks: Blocks


class Budget:
    """What one file may still decompress to, and how many members it may have."""

    def __init__(self, limits: Limits, size: int | None) -> None:
        self.limits = limits
        self.size = size  # None: not known beforehand; the bytes read so far count
        self.read = self.written = self.members = 0

    def spend(self, block: bytes) -> bytes:
        """Count decompressed bytes. Raises DamagedFile where they are too many."""
        self.written += len(block)
        if self.written > self.limits.output(self.read if self.size is None else self.size):
            raise DamagedFile(Reason.EXPANDS_TOO_FAR)
        return block

    def number(self) -> int:
        """The number of the next member. Raises DamagedFile where there are too many."""
        self.members += 1
        if self.members > self.limits.members:
            raise DamagedFile(Reason.TOO_MANY_MEMBERS)
        return self.members


def read_members(path: Path, limits: Limits, progress: Progress | None = None) -> Iterator[Member]:
    """The members of a file, each to be read before the next; a file that is no archive is its own only member.

    `progress` is called with the size of each block as it is on disk. A member that is damaged raises DamagedFile
    from its blocks, an archive that cannot be read on raises it here. Raises SourceError for a zip on standard input.
    """
    advance = progress or (lambda size: None)
    size, is_zip = _looked_at(path)
    budget = Budget(limits, size)
    if is_zip:
        advance(size or 0)
        with path.open("rb") as file:
            yield from _zip_members(file, budget, 0)
    else:
        yield from _expand(lambda: _file_blocks(path, budget, advance), Member(0, path, iter(())), budget, 0)


def read_bytes(path: Path, limits: Limits = DEFAULT_LIMITS) -> Blocks:
    """The content of a file that is no archive, decompressed, without a byte order mark. Raises DamagedFile."""
    for member in read_members(path, limits):
        yield from member.blocks


def _looked_at(path: Path) -> tuple[int | None, bool]:
    """The size of a regular file (None: unknown), and whether it is a zip."""
    try:
        if path == STANDARD_INPUT or not path.is_file():
            return None, False
        with path.open("rb") as file:
            return path.stat().st_size, file.read(4) in _ZIP
    except OSError:
        return None, False


def _file_blocks(path: Path, budget: Budget, progress: Progress) -> Blocks:
    if path == STANDARD_INPUT:
        if budget.read:
            raise SourceError("NDJSON, JSON, gzip, Zstandard or tar on standard input", "a zip", "pass its path")
        yield from _handle_blocks(sys.stdin.buffer, budget, progress)
        return
    try:
        with path.open("rb") as file:
            yield from _handle_blocks(file, budget, progress)
    except OSError:
        raise DamagedFile(Reason.DAMAGED_FILE) from None


def _handle_blocks(file: IO[bytes], budget: Budget, progress: Progress) -> Blocks:
    while block := file.read(CHUNK):
        budget.read += len(block)
        progress(len(block))
        yield block


def _expand(again: Callable[[], Blocks], plain: Member, budget: Budget, level: int) -> Iterator[Member]:
    """The members of what `again()` gives (anew each time); `plain` stands for it where it is no archive."""

    def content() -> Blocks:
        return _decompressed(again(), budget)

    def only(blocks: Blocks) -> Member:
        return Member(plain.number, plain.name, blocks)

    try:
        blocks, start = _peek(content(), 512)
    except DamagedFile as damage:
        yield only(_broken(damage))
        return
    is_zip, is_tar = start[:4] in _ZIP, start[_TAR_MAGIC] == b"ustar"
    if not is_zip and not is_tar:
        yield only(_without_mark(blocks))
    elif level >= budget.limits.archive_levels:
        yield only(_broken(DamagedFile(Reason.NESTED_ARCHIVE)))
    elif is_tar:
        yield from _tar_members(blocks, content, budget, level)
    else:
        yield from _zip_members(io.BufferedReader(_Rewound(content)), budget, level)


def _broken(damage: DamagedFile) -> Blocks:
    yield from ()
    raise damage


def _peek(blocks: Blocks, size: int) -> tuple[Blocks, bytes]:
    """The same blocks, and their first bytes. Damage within these bytes waits until they have been read."""
    start: list[bytes] = []
    after = blocks
    while sum(map(len, start)) < size:
        try:
            block = next(blocks, b"")
        except DamagedFile as damage:
            after = _broken(damage)
            break
        if not block:
            break
        start.append(block)
    joined = b"".join(start)
    return chain([joined] if joined else [], after), joined[:size]


def _without_mark(blocks: Blocks) -> Blocks:
    for first in blocks:
        yield first.removeprefix(_BYTE_ORDER_MARK)
        break
    yield from blocks


def _decompressed(blocks: Blocks, budget: Budget) -> Blocks:
    blocks, start = _peek(blocks, 4)
    if start.startswith(_GZIP):
        return map(budget.spend, _gunzip(blocks))
    if start == _ZSTANDARD:
        return map(budget.spend, _unzstandard(blocks))
    return blocks


def _gunzip(blocks: Blocks) -> Blocks:
    block = next(blocks, b"")
    member = zlib.decompressobj(wbits=31)
    try:
        while block:
            out = member.decompress(block, CHUNK)
            if out:
                yield out
            if not member.eof:
                block = member.unconsumed_tail or next(blocks, b"")
                continue
            # a gzip file may be several, one after the other; what follows may also be padding
            block = member.unused_data.lstrip(b"\0") or next(blocks, b"").lstrip(b"\0")
            if block:
                member = zlib.decompressobj(wbits=31)
    except zlib.error:
        raise DamagedFile(Reason.DAMAGED_FILE) from None
    if not member.eof:
        yield member.flush()
    if not member.eof:
        raise DamagedFile(Reason.TRUNCATED_FILE)


def _unzstandard(blocks: Blocks) -> Blocks:
    import pyarrow as pa  # only where it is needed: the import is dear

    try:
        stream = pa.CompressedInputStream(pa.PythonFile(_BlockFile(blocks), mode="r"), "zstd")
        while block := stream.read(_ZSTANDARD_CHUNK):
            yield block
    except OSError as error:
        truncated = "runcated" in str(error)
        raise DamagedFile(Reason.TRUNCATED_FILE if truncated else Reason.DAMAGED_FILE) from None


def _tar_members(blocks: Blocks, again: Callable[[], Blocks], budget: Budget, level: int) -> Iterator[Member]:
    try:
        with tarfile.open(fileobj=_BlockFile(blocks), mode="r|", tarinfo=_CappedHeader) as archive:
            for position, info in enumerate(archive):
                number, name = budget.number(), PurePosixPath(info.name)
                file = archive.extractfile(info) if info.isfile() else None
                if file is None or not holds_json(name):
                    if not info.isdir():
                        yield Member(number, name, iter(()))
                    continue
                once = _Once(file, partial(_tar_member, again, position))
                yield from _expand(once, Member(number, name, iter(())), budget, level + 1)
    except SourceError:
        raise
    except _ARCHIVE_FAULTS as fault:
        raise _damage(fault) from None


class _Once:
    """A member of a tar, which goes by once: its blocks from there first, after that from the tar opened again."""

    def __init__(self, file: IO[bytes], again: Callable[[], Blocks]) -> None:
        self._file: IO[bytes] | None = file
        self._again = again

    def __call__(self) -> Blocks:
        file, self._file = self._file, None
        return self._again() if file is None else _archived_blocks(file)


def _tar_member(again: Callable[[], Blocks], position: int) -> Blocks:
    """One member's blocks, from a tar that is read from its beginning."""
    try:
        with tarfile.open(fileobj=_BlockFile(again()), mode="r|", tarinfo=_CappedHeader) as archive:
            for number, info in enumerate(archive):
                if number == position and (file := archive.extractfile(info)) is not None:
                    yield from _archived_blocks(file)
                    return
    except SourceError:
        raise
    except _ARCHIVE_FAULTS as fault:
        raise _damage(fault) from None


def _zip_members(file: IO[bytes], budget: Budget, level: int) -> Iterator[Member]:
    try:
        _check_directory(file, budget.limits)
        with zipfile.ZipFile(file) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
                number, name = budget.number(), PurePosixPath(info.filename)
                if info.is_dir():
                    continue
                if not holds_json(name):
                    yield Member(number, name, iter(()))
                    continue
                plain = Member(number, name, iter(()))
                yield from _expand(partial(_zip_member, archive, info, budget), plain, budget, level + 1)
    except SourceError:
        raise
    except _ARCHIVE_FAULTS as fault:
        raise _damage(fault) from None


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> Blocks:
    try:
        with archive.open(info) as file:
            for block in _archived_blocks(file):
                yield budget.spend(block)
    except SourceError:
        raise
    except _ARCHIVE_FAULTS as fault:
        raise _damage(fault) from None


def _check_directory(file: IO[bytes], limits: Limits) -> None:
    """Refuse a zip whose directory alone would fill the memory. Raises DamagedFile."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise DamagedFile(Reason.TRUNCATED_FILE)
    length = struct.unpack_from("<L", tail, at + 12)[0]
    locator = tail.rfind(b"PK\x06\x06", 0, at)
    if locator >= 0 and length == 0xFFFFFFFF and len(tail) >= locator + 48:
        length = struct.unpack_from("<Q", tail, locator + 40)[0]
    if length > limits.members * _LARGEST_ZIP_ENTRY:
        raise DamagedFile(Reason.TOO_MANY_MEMBERS)
    file.seek(0)


def _archived_blocks(file: IO[bytes]) -> Blocks:
    try:
        while block := file.read(CHUNK):
            yield block
    except SourceError:
        raise
    except _ARCHIVE_FAULTS as fault:
        raise _damage(fault) from None


def _damage(fault: Exception) -> DamagedFile:
    if isinstance(fault, RuntimeError):  # also NotImplementedError: an encrypted member, a method that is not read
        return DamagedFile(Reason.UNSUPPORTED_ARCHIVE)
    truncated = isinstance(fault, EOFError) or "unexpected end" in str(fault)
    return DamagedFile(Reason.TRUNCATED_FILE if truncated else Reason.DAMAGED_FILE)


class _CappedHeader(tarfile.TarInfo):
    """Refuses names and extended headers of a size that would fill the memory."""

    _TEXT = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: Any, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in (*cls._TEXT, tarfile.SOLARIS_XHDTYPE) and info.size > _LARGEST_TAR_HEADER):
            raise tarfile.ReadError("oversized header")
        return info


class _BlockFile(io.RawIOBase):
    """Blocks as a file that can be read once."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, have = [self._rest], len(self._rest)
        while (size < 0 or have < size) and (block := next(self._blocks, b"")):
            parts.append(block)
            have += len(block)
        joined = b"".join(parts)
        end = len(joined) if size < 0 else size
        self._rest = joined[end:]
        return joined[:end]


class _Rewound(io.RawIOBase):
    """Blocks as a file with seeking: backwards begins again, forwards reads on."""

    def __init__(self, again: Callable[[], Blocks]) -> None:
        self._again = again
        self._file = _BlockFile(again())
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        self._at += len(block)
        return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            while self._skip(CHUNK):
                pass
            offset += self._at
        elif whence == io.SEEK_CUR:
            offset += self._at
        if offset < self._at:
            self._file, self._at = _BlockFile(self._again()), 0
        while self._at < offset and self._skip(min(CHUNK, offset - self._at)):
            pass
        return self._at

    def _skip(self, size: int) -> int:
        skipped = len(self._file.read(size))
        self._at += skipped
        return skipped
