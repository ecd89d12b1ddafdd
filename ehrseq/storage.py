"""Folders written whole or not at all, and the manifest that says what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ehrseq.errors import ArtifactError, UserError

MANIFEST = "manifest.json"


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes `target` only if the block ends without an error.

    An existing `target` is replaced only when it is empty or holds an ehrseq manifest or MEDS metadata
    (so that a mistyped path never deletes somebody's files).

    >>> with tempfile.TemporaryDirectory() as d:
    ...     with atomic_folder(Path(d) / "out") as scratch:
    ...         _ = (scratch / "a.txt").write_text("x")
    ...     sorted(p.name for p in (Path(d) / "out").iterdir())
    ['a.txt']
    """
    target = Path(target)
    if target.exists() and not is_replaceable(target):
        raise UserError(
            "an output folder that is new, empty or written by ehrseq",
            "an existing folder or file with other content",
            "choose another --out",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        scratch.chmod(0o755)
        yield scratch
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, retired / "old")
            os.replace(scratch, target)
            shutil.rmtree(retired)
        else:
            os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_replaceable(target: Path) -> bool:
    """Whether a folder is empty or one of ours, so that it may be written anew."""
    if not target.is_dir():
        return False
    return (
        not any(target.iterdir()) or (target / MANIFEST).is_file() or (target / "metadata" / "dataset.json").is_file()
    )


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, error: type[UserError] = ArtifactError) -> Any:
    """Read JSON; a file that is missing or no JSON is an ArtifactError (or the `error` given)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as cause:
        raise error(
            f"a JSON file {path.name}",
            type(cause).__name__,
            "the folder is damaged or not from ehrseq: make it again",
        ) from None


def sha256_file(path: Path) -> str:
    """The hex SHA-256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_manifest(folder: Path, kind: str, version: int, **facts: Any) -> None:
    """Write `manifest.json`: the kind and format version, the facts given, and every other file's hash."""
    files = {
        p.relative_to(folder).as_posix(): sha256_file(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"kind": kind, "format_version": version, **facts, "files": files})


def read_manifest(
    folder: str | Path, kind: str, newest_version: int, error: type[UserError] = ArtifactError
) -> dict[str, Any]:
    """The manifest of an ehrseq folder, after its kind, version and every file's hash have been checked.

    Whatever is wrong is raised as an ArtifactError (or the `error` given).
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise error(
            f"an ehrseq {kind} folder with {MANIFEST}",
            "no manifest" if folder.is_dir() else "no such folder",
            "check the path, or make the folder again",
        )
    manifest = read_json(folder / MANIFEST, error)
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        found = manifest.get("kind") if isinstance(manifest, dict) else None
        raise error(f"a {kind} folder", f"a folder of kind {found!r}", "check the path")
    version = manifest.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= newest_version:
        raise error(
            f"{kind} format version 1 to {newest_version}",
            f"version {version!r}",
            "use a newer ehrseq to read it",
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise error(f"a list of files in {MANIFEST}", "none", "the folder was changed: copy or make it again")
    for name, digest in files.items():
        path = folder / name
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if not inside or not path.is_file() or sha256_file(path) != digest:
            raise error(
                f"{name} as its manifest describes it",
                "different bytes" if path.is_file() else "no such file",
                "the folder was changed or cut short: copy or make it again",
            )
    return manifest
