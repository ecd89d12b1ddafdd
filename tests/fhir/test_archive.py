"""Compressed files and archives: every way of packing gives the same bytes, and no hostile one more than it may."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from ehrseq.errors import SourceError
from ehrseq.fhir.archive import DamagedFile, read_bytes, read_members
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.limits import Limits

LINES = b"".join(b'{"resourceType": "Patient", "id": "%d"}\n' % i for i in range(40_000))
FILES = {"b/two.ndjson": LINES, "one.json": b"\xef\xbb\xbf{}", "notes.txt": b"x"}
Found = list[tuple[int, str, bytes | Reason]]


def zstandard(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def found(path: Path, limits: Limits = Limits()) -> Found:  # noqa: B008
    """Number, name and content of each member, or why it cannot be read."""
    result: Found = []
    try:
        for member in read_members(path, limits):
            try:
                result.append((member.number, member.name.name, b"".join(member.blocks)))
            except DamagedFile as damage:
                result.append((member.number, member.name.name, damage.reason))
    except DamagedFile as damage:
        result.append((0, "", damage.reason))
    return result


def write(folder: Path, content: bytes, name: str = "export") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "pack", [lambda c: c, gzip.compress, zstandard, lambda c: zstandard(c[:99]) + zstandard(c[99:])]
)
def test_plain_and_compressed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    assert b"".join(read_bytes(write(tmp_path, pack(b"\xef\xbb\xbf" + LINES)))) == LINES


ARCHIVES: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zipped,
    "stored zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "tar": tarred,
    "tar.gz": lambda files: gzip.compress(tarred(files)),
    "tar.zst": lambda files: zstandard(tarred(files)),
    "zip.gz": lambda files: gzip.compress(zipped(files)),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(tmp_path: Path, kind: str) -> None:
    packed = {**FILES, "three.ndjson.gz": gzip.compress(LINES), "four.ndjson.zst": zstandard(LINES)}
    assert found(write(tmp_path, ARCHIVES[kind](packed))) == [
        (1, "two.ndjson", LINES),
        (2, "one.json", b"{}"),
        (3, "notes.txt", b""),  # passed over by its name
        (4, "three.ndjson.gz", LINES),
        (5, "four.ndjson.zst", LINES),
    ]


@pytest.mark.parametrize("outer", ARCHIVES)
@pytest.mark.parametrize("inner", ARCHIVES)
def test_archives_in_archives_one_level(tmp_path: Path, inner: str, outer: str) -> None:
    within = ARCHIVES[inner](FILES)
    name = "in." + inner.replace("stored ", "")
    whole = ARCHIVES[outer]({"a.ndjson": LINES, name: within, "z.ndjson": b"z"})
    assert found(write(tmp_path, whole)) == [
        (1, "a.ndjson", LINES),
        (3, "two.ndjson", LINES),
        (4, "one.json", b"{}"),
        (5, "notes.txt", b""),
        (6, "z.ndjson", b"z"),
    ]
    twice = ARCHIVES[outer]({"outer.zip": zipped({name: within}), "z.ndjson": b"z"})
    assert found(write(tmp_path, twice)) == [(2, name, Reason.NESTED_ARCHIVE), (3, "z.ndjson", b"z")]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.zst"])
def test_a_truncated_archive_gives_what_was_before(tmp_path: Path, kind: str) -> None:
    whole = ARCHIVES[kind]({"a.ndjson": b"a" * 1000, "b.ndjson": LINES, "c.ndjson": b"c"})
    got = found(write(tmp_path, whole[: len(whole) * 2 // 3]))
    assert got[-1][2] == Reason.TRUNCATED_FILE
    if kind != "zip":  # whose table of contents was at its end
        assert got[0] == (1, "a.ndjson", b"a" * 1000)


def test_one_damaged_member_of_a_zip(tmp_path: Path) -> None:
    whole = bytearray(zipped({"a.ndjson": b"first\n" * 99, "b.ndjson": b"second\n" * 99}, zipfile.ZIP_STORED))
    whole[whole.index(b"first")] ^= 1
    got = found(write(tmp_path, bytes(whole)))
    assert got == [(1, "a.ndjson", Reason.DAMAGED_FILE), (2, "b.ndjson", b"second\n" * 99)]


def test_members_that_python_cannot_read(tmp_path: Path) -> None:
    encrypted = bytearray(zipped({"a.ndjson": b"x"}))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    assert found(write(tmp_path, bytes(encrypted))) == [(1, "a.ndjson", Reason.UNSUPPORTED_ARCHIVE)]
    unknown = bytearray(zipped({"a.ndjson": b"x"}))
    unknown[8] = unknown[unknown.index(b"PK\x01\x02") + 10] = 99
    assert found(write(tmp_path, bytes(unknown))) == [(1, "a.ndjson", Reason.UNSUPPORTED_ARCHIVE)]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_hostile_names_are_only_names(tmp_path: Path, kind: str) -> None:
    files = {"../../evil.ndjson": b"1", "/etc/evil.json": b"2", "C:\\evil.json": b"3", "é\n.json": b"4"}
    got = found(write(tmp_path, ARCHIVES[kind](files)))
    assert [content for _, _, content in got] == [b"1", b"2", b"3", b"4"]
    assert list(tmp_path.iterdir()) == [tmp_path / "export"]


def test_links_and_devices_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (("a.json", tarfile.SYMTYPE), ("b.json", tarfile.LNKTYPE), ("c.json", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert [content for _, _, content in found(write(tmp_path, out.getvalue()))] == [b"", b"", b""]


SMALL = Limits(ratio=20, free_bytes=1 << 20)
ZEROS = b"\0" * (16 << 20)


@pytest.mark.parametrize(
    "bomb",
    [
        gzip.compress(ZEROS),
        zstandard(ZEROS),
        zipped({"a.json": ZEROS}),
        zipped({"a.json": gzip.compress(ZEROS)}),
        gzip.compress(tarred({"a.json": ZEROS})),
        zipped({"in.zip": zipped({"a.json": ZEROS})}),
    ],
)
def test_bombs_stop(tmp_path: Path, bomb: bytes) -> None:
    assert found(write(tmp_path, bomb), SMALL)[-1][2] == Reason.EXPANDS_TOO_FAR


def test_too_many_members(tmp_path: Path) -> None:
    files = {f"{i}.json": b"{}" for i in range(30)}
    for packed in (zipped(files), tarred(files)):
        got = found(write(tmp_path, packed), Limits(members=20))
        assert got[-1] == (0, "", Reason.TOO_MANY_MEMBERS)
        assert len(got) in (1, 21)


def test_a_zip_whose_directory_would_fill_the_memory_is_refused_unread(tmp_path: Path) -> None:
    whole = bytearray(zipped({"a.json": b"{}"}))
    at = whole.index(b"PK\x05\x06") + 12
    whole[at : at + 4] = (1 << 30).to_bytes(4, "little")
    assert found(write(tmp_path, bytes(whole))) == [(0, "", Reason.TOO_MANY_MEMBERS)]


def test_oversized_headers_of_a_tar(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    packed = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * (1 << 20))
    assert found(write(tmp_path, packed)) == [(0, "", Reason.DAMAGED_FILE)]


@pytest.mark.parametrize("kind", ["plain", "tar.gz", "zip"])
def test_standard_input(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps({"a": 1}).encode() if kind == "plain" else ARCHIVES[kind]({"a.json": b"{}"})

    class Pipe:
        buffer = io.BytesIO(content)

    monkeypatch.setattr("sys.stdin", Pipe)
    if kind == "zip":
        with pytest.raises(SourceError, match="pass its path"):
            found(Path("-"))
    else:
        assert found(Path("-"))[0][2] == (content if kind == "plain" else b"{}")
