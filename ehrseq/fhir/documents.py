"""Cutting JSON documents of any length into records, without decoding them.

Only brackets outside of strings are looked at, a block at a time and vectorised. A bundle's entries and a list's items
come out one by one as soon as each is complete, so that a bundle need not fit into memory, and one that breaks off
gives every entry that is whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.limits import Limits

Kind = Literal["document", "item", "entry", "bundle", "fault"]
_QUOTE, _BACKSLASH, _OPEN_LIST, _LINE_END = ord('"'), ord("\\"), ord("["), ord("\n")
# '[' and '{' are one bit apart, and so are ']' and '}'
_CASE, _OPEN, _CLOSE = 0xDF, 0x5B, 0x5D
_ENTRY_KEY = re.compile(rb'(?<!\\)"entry"\s*:\s*\[\Z')
_LOOK = 1 << 18  # bytes looked at together
_BETWEEN = b" \t\r\n,\xef\xbb\xbf"  # a byte order mark may stand before each of several documents


@dataclass(frozen=True)
class Piece:
    """A part of a document.

    `document` (an object), `item` (of a list) and `entry` (of an object's `entry` list: a bundle's) hold their JSON.
    `bundle` is an object whose entries have been given, without these. `fault` says why something was left out.
    """

    kind: Kind
    raw: bytes = b""
    reason: Reason = Reason.EVENTS


def split_documents(blocks: Iterator[bytes], limits: Limits) -> Iterator[Piece]:
    """The pieces of JSON documents that follow one another.

    A last document that does not end gives a `fault` for itself, and another where one of its entries is incomplete.

    >>> text = b'{"entry": [{"resource": 1}, {}], "resourceType": "Bundle"} [{"a": [2]}] {"b'
    >>> for piece in split_documents(iter([text[:20], text[20:]]), Limits()):
    ...     print(piece.kind, piece.raw.decode(), piece.reason.label)
    entry {"resource": 1}
    entry {}
    bundle {"entry": [], "resourceType": "Bundle"}
    item {"a": [2]}
    fault  truncated_file
    """
    splitter = _Splitter(limits)
    for block in blocks:
        yield from splitter.feed(block)
    yield from splitter.end()


def is_deeper(text: bytes, depth: int) -> bool:
    """Whether JSON has more than `depth` brackets within brackets, seen without decoding it.

    >>> is_deeper(b'[[{"a": "[[["}]]', 3), is_deeper(b"[[[[]]]]", 3)
    (False, True)
    """
    scan = _Scan()
    blocks = (text[start : start + _LOOK] for start in range(0, len(text), _LOOK))
    return any((scan.brackets(block, depth)[1] > depth).any() for block in blocks)


class _Text:
    """Text that is gathered across blocks, up to a cap; what is beyond it, or too deep, is a fault."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parts: list[bytes] = []
        self._size = 0
        self._tail = b""
        self.fault: Reason | None = None

    def add(self, part: bytes) -> None:
        self._size += len(part)
        self._tail = (self._tail + part[-64:])[-64:]
        if self._size > self._limits.record_bytes:
            self.fault = Reason.TOO_LARGE
        if self.fault is None:
            self._parts.append(part)
        else:
            self._parts = []

    def ends_with_entry_key(self) -> bool:
        return _ENTRY_KEY.search(self._tail) is not None

    def piece(self, kind: Kind) -> Piece:
        if self.fault is not None:
            return Piece("fault", reason=self.fault)
        return Piece(kind, b"".join(self._parts))


class _Splitter:
    """What is open at the end of a block: the brackets, a string, and the texts being gathered."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._scan = _Scan()
        self._top = 0  # the bracket that opened the document; 0 outside of any
        self._in_entries = False
        self._has_entries = False
        self._document: _Text = _Text(limits)
        self._part: _Text | None = None  # the item or entry being gathered
        self._strayed = False  # something that is no JSON was found since the last bracket

    def feed(self, block: bytes) -> Iterator[Piece]:
        places, levels = self._scan.brackets(block, self._limits.depth)
        done = 0  # as far as the block's text has been given to something
        for place, level in zip(places.tolist(), levels.tolist(), strict=True):
            opening = block[place] & _CASE == _OPEN
            if level > 3:
                (self._part or self._document).fault = Reason.TOO_DEEP
                continue
            inside = 3 if self._in_entries else 2  # the level of the brackets around what comes out one by one
            if level == 0:
                yield from self._stray()
            elif level == 1 and opening:
                yield from self._between(block[done:place])
                self._begin(block[place])
                done = place + (self._top == _OPEN_LIST)
            elif level == 1:
                yield from self._rest(block[done : place + (self._top != _OPEN_LIST)])
                yield from self._finish(block[place])
                done = place + 1
            elif level == inside and (self._in_entries or self._top == _OPEN_LIST):
                if opening:
                    yield from self._between(block[done:place])
                    self._part, done = _Text(self._limits), place
                elif self._part is not None:
                    self._part.add(block[done : place + 1])
                    yield self._part.piece("entry" if self._in_entries else "item")
                    self._part, self._strayed, done = None, False, place + 1
            elif level == 2 and self._in_entries and not opening:
                yield from self._between(block[done:place])
                self._in_entries, done = False, place
            elif level == 2 and opening and block[place] == _OPEN_LIST:
                self._document.add(block[done : place + 1])
                done = place + 1
                self._in_entries = self._document.ends_with_entry_key()
                self._has_entries |= self._in_entries
        yield from self._rest(block[done:])

    def end(self) -> Iterator[Piece]:
        if self._part is not None:
            yield Piece("fault", reason=self._part.fault or Reason.TRUNCATED_FILE)
        if self._top:
            yield Piece("fault", reason=self._document.fault or Reason.TRUNCATED_FILE)

    def _begin(self, bracket: int) -> None:
        self._top = bracket
        self._in_entries = self._has_entries = self._strayed = False
        self._document = _Text(self._limits)

    def _finish(self, bracket: int) -> Iterator[Piece]:
        if self._top != _OPEN_LIST:
            yield self._document.piece("bundle" if self._has_entries else "document")
        elif bracket != _CLOSE:
            yield from self._stray()
        self._top, self._strayed = 0, False

    def _rest(self, text: bytes) -> Iterator[Piece]:
        """Give text to what is being gathered, if anything is."""
        if self._part is not None:
            self._part.add(text)
        elif self._top and self._top != _OPEN_LIST and not self._in_entries:
            self._document.add(text)
        else:
            yield from self._between(text)

    def _between(self, text: bytes) -> Iterator[Piece]:
        """Between documents, items or entries there may be a comma and white space alone."""
        if text.strip(_BETWEEN):
            yield from self._stray()

    def _stray(self) -> Iterator[Piece]:
        if not self._strayed:
            self._strayed = True
            yield Piece("fault", reason=Reason.MALFORMED_JSON)


class _Scan:
    """Finds brackets outside of strings, and how deep each lies."""

    def __init__(self) -> None:
        self._in_string = 0
        self._backslashes = 0  # at the end of the last block
        self._depth = 0

    def brackets(self, block: bytes, deepest: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Places and levels (1: around a document) of the brackets down to level 3, and of those just too deep.

        A bracket that closes what was never opened has level 0.
        """
        text = np.frombuffer(block, np.uint8)
        quotes = self._quotes(text)
        folded = text & _CASE
        places = np.flatnonzero((folded == _OPEN) | (folded == _CLOSE))
        places = places[self._quotes_open(text, quotes, places) % 2 == 0]
        opens = folded[places] == _OPEN
        sums = self._depth + np.cumsum(np.where(opens, 1, -1))
        # a bracket too many does not make what follows shallower
        after = sums - np.minimum(np.minimum.accumulate(sums), 0) if len(sums) else sums
        # of a closing bracket, its level is the depth before it
        previous = np.concatenate([[self._depth], after[:-1]]).astype(np.int64)
        levels = np.where(opens, after, previous)
        self._in_string = int(self._quotes_open(text, quotes, np.array([len(text)]))[0]) % 2
        self._depth = int(after[-1]) if len(after) else self._depth
        shown = (levels <= 3) | (opens & (levels == deepest + 1))
        return places[shown], levels[shown]

    def _quotes_open(
        self, text: npt.NDArray[np.uint8], quotes: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """How many quotes stand before each place in its line.

        No JSON string goes on over a line's end, so that a quote too many damages its own line alone.
        """
        line_ends = np.flatnonzero(text == _LINE_END)
        quotes_before = np.concatenate([[-self._in_string], np.searchsorted(quotes, line_ends)])
        before: npt.NDArray[np.int64] = np.searchsorted(quotes, places)
        return before - quotes_before[np.searchsorted(line_ends, places)].astype(np.int64)

    def _quotes(self, text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Places of the quotes that begin or end a string: not those after an odd number of backslashes."""
        quotes = np.flatnonzero(text == _QUOTE)
        is_backslash = text == _BACKSLASH
        # most blocks need no more than this look at the byte before each quote
        suspect = is_backslash[quotes - 1] if len(quotes) else np.zeros(0, bool)
        if len(quotes) and quotes[0] == 0:
            suspect[0] = self._backslashes > 0
        if suspect.any():
            steps = np.arange(len(text), dtype=np.int64)
            last_other = np.maximum.accumulate(np.where(is_backslash, -1, steps))
            before = quotes[suspect] - 1
            other = np.where(before >= 0, last_other[before], -1)
            run = before - other + np.where(other < 0, self._backslashes, 0)
            quotes = np.delete(quotes, np.flatnonzero(suspect)[run % 2 == 1])
        tail = text[::-1]
        trailing = int(np.argmin(tail == _BACKSLASH)) if len(text) and not is_backslash.all() else len(text)
        self._backslashes = trailing + (self._backslashes if trailing == len(text) else 0)
        return quotes
