"""Finding the files of a FHIR source, and cutting their bytes into whole lines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ehrseq.errors import SourceError
from ehrseq.fhir.ledger import Reason

Progress = Callable[[int], None]
STANDARD_INPUT = Path("-")
LINE_SUFFIXES = (".ndjson", ".jsonl")
SUFFIXES = (".json", *LINE_SUFFIXES)
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz")
COMPRESSED_SUFFIXES = (".gz", ".zst")
BLOCK = 1 << 18


class DamagedFile(Exception):
    """A file or member cannot be read on, for a `reason` of the ledger; all before it has been yielded."""

    partial = b""  # an unfinished last line

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.label)
        self.reason = reason


def find_files(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """Every file of a path or of several, folders searched through, in one order that the input's does not change.

    Links are followed, and each real file or folder is taken once, so that a loop of links ends. `-` is standard
    input. Raises SourceError where a path does not exist or nothing is found.
    """
    roots = [Path(source)] if isinstance(source, str | Path) else [_as_path(path) for path in source]
    found: set[Path] = set()
    for root in roots:
        if root.is_dir():
            found.update(_files_below(root))
        elif root == STANDARD_INPUT or root.exists():
            found.add(root)
        else:
            raise SourceError("a FHIR file or folder", "no such path", "check the path of the source")
    if not found:
        raise SourceError("FHIR files (NDJSON, bundles, archives)", "an empty folder", "check the path of the source")
    real: dict[str, Path] = {}
    for path in sorted(found, key=lambda path: path.as_posix()):
        real.setdefault(os.path.realpath(path) if path != STANDARD_INPUT else "-", path)
    return list(real.values())


def _files_below(root: Path) -> Iterator[Path]:
    """Files of a folder and its folders; also a link that leads nowhere, which is then counted as damaged."""
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(subfolders):
            target = os.path.realpath(os.path.join(folder, name))
            if target not in seen:
                seen.add(target)
                kept.append(name)
        subfolders[:] = kept
        for name in names:
            path = Path(folder, name)
            if path.is_file() or path.is_symlink():
                yield path


def size_on_disk(path: Path) -> int:
    """The bytes of a file; 0 for standard input and for a link that leads nowhere."""
    return state_on_disk(path)[0]


def state_on_disk(path: Path) -> tuple[int, int]:
    """Size and time of change of a file, which say that it is the same; of standard input never twice the same."""
    if path == STANDARD_INPUT:
        return 0, time.time_ns()
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _as_path(item: Any) -> Path:
    if not isinstance(item, str | Path):
        raise SourceError("paths alone, or FHIR resources alone", "both in one list", "read them one after the other")
    return Path(item)


def holds_json(path: PurePath) -> bool:
    """Whether a file of a folder or a member of an archive is to be read, by its name.

    >>> [holds_json(PurePath(name)) for name in ("Patient.ndjson.gz", "export.tar.zst", "README.md")]
    [True, True, False]
    """
    return _plain_name(path).endswith(SUFFIXES + ARCHIVE_SUFFIXES) and not path.name.startswith(".")


def is_line_file(path: PurePath) -> bool:
    """Whether a file's name says that each line is a record.

    >>> is_line_file(PurePath("a.NDJSON.gz")), is_line_file(PurePath("a.json"))
    (True, False)
    """
    return _plain_name(path).endswith(LINE_SUFFIXES)


def _plain_name(path: PurePath) -> str:
    name = path.name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def whole_lines(blocks: Iterator[bytes], longest: int | None = None) -> Iterator[bytes]:
    r"""Blocks cut anew so that each ends with a line's end (the last one, where the file's does not, without).

    A partial line before a DamagedFile goes with it. A line of more than `longest` bytes is yielded as far as it
    has come; what follows is then the caller's to take from `blocks`.

    >>> list(whole_lines(iter([b"a\nb", b"b\nc"])))
    [b'a\n', b'bb\n', b'c']
    """
    rest: list[bytes] = []
    size = 0
    try:
        for block in blocks:
            cut = block.rfind(b"\n") + 1
            if cut:
                yield b"".join([*rest, memoryview(block)[:cut]])
                rest, size = [block[cut:]], len(block) - cut
            else:
                rest.append(block)
                size += len(block)
            if longest is not None and size > longest:
                yield b"".join(rest)
                rest, size = [], 0
    except DamagedFile as damage:
        damage.partial = b"".join(rest)
        raise
    tail = b"".join(rest)
    if tail:
        yield tail


def count_lines(block: bytes) -> int:
    r"""The number of line ends, seven times as fast as `bytes.count`.

    >>> count_lines(b"a\nb\nc")
    2
    """
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n")))


def span_blocks(path: Path, start: int, stop: int, progress: Progress | None = None) -> Iterator[bytes]:
    """The bytes of the lines that begin in a span of a file."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        elif file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        at = file.tell()
        while at < stop:
            block = file.read(min(BLOCK, stop - at))
            if not block:
                break
            at += len(block)
            if at >= stop and not block.endswith(b"\n"):
                block += file.readline()
            if progress is not None:
                progress(len(block))
            yield block
