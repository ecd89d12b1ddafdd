from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ehrseq.errors import SourceError
from ehrseq.fhir.archive import read_bytes
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.source import DamagedFile, find_files, whole_lines

LINES = b"".join(b'{"resourceType": "Patient", "id": "%d"}\n' % i for i in range(40_000))


def test_files_are_found_once_and_in_one_order(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.json", "deep/a.ndjson", "deep/er/c.json.gz"):
        (tmp_path / name).write_bytes(b"{}")
    files = find_files([tmp_path / "deep", tmp_path])
    assert files == find_files(tmp_path)
    assert [f.name for f in files] == ["b.json", "a.ndjson", "c.json.gz"]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such path") as error:
        find_files(tmp_path / "patient-smith")
    assert "smith" not in str(error.value)
    with pytest.raises(SourceError, match="empty folder"):
        find_files(tmp_path)


@pytest.mark.parametrize("members", [1, 3])
def test_gzip_of_one_or_several_members(tmp_path: Path, members: int) -> None:
    path = tmp_path / "x.ndjson.gz"
    path.write_bytes(b"".join(gzip.compress(LINES) for _ in range(members)) + b"\0" * 100)
    assert b"".join(read_bytes(path)) == LINES * members


def test_a_byte_order_mark_goes(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert b"".join(read_bytes(path)) == b"{}"


def test_truncated_gzip_gives_what_was_before(tmp_path: Path) -> None:
    path = tmp_path / "x.ndjson.gz"
    whole = gzip.compress(LINES, 1)
    path.write_bytes(whole[: len(whole) // 2])
    read: list[bytes] = []
    with pytest.raises(DamagedFile) as damage:
        read.extend(whole_lines(read_bytes(path)))
    got = b"".join(read)
    assert damage.value.reason == Reason.TRUNCATED_FILE
    assert len(got) > len(LINES) // 4
    assert LINES.startswith(got)
    assert got.endswith(b"\n")


def test_broken_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.ndjson.gz"
    whole = bytearray(gzip.compress(LINES, 1))
    whole[len(whole) // 2 :] = b"\xff" * (len(whole) - len(whole) // 2)
    path.write_bytes(whole)
    with pytest.raises(DamagedFile) as damage:
        list(read_bytes(path))
    assert damage.value.reason == Reason.DAMAGED_FILE


def test_lines_come_whole_whatever_the_blocks() -> None:
    text = b"one\ntwo\r\n\nlast"
    for size in range(1, len(text) + 1):
        blocks = list(whole_lines(text[i : i + size] for i in range(0, len(text), size)))
        assert b"".join(blocks) == text
        assert all(block.endswith(b"\n") for block in blocks[:-1])
