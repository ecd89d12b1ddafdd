"""Folders written whole or not at all, and the manifest that says what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ehrseq.errors import ArtifactError, UserError, WorkerError

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None  # Windows has none

MANIFEST = "manifest.json"
DIGEST = "manifest_sha256"


@contextmanager
def atomic_folder(target: str | Path, kind: str | None = None) -> Iterator[Path]:
    """Yield a scratch folder that becomes `target` only if the block ends without an error.

    An existing `target` is replaced only where `check_target` allows it.

    >>> with tempfile.TemporaryDirectory() as d:
    ...     with atomic_folder(Path(d) / "out") as scratch:
    ...         _ = (scratch / "a.txt").write_text("x")
    ...     sorted(p.name for p in (Path(d) / "out").iterdir())
    ['a.txt']
    """
    target = Path(target)
    check_target(target, kind)
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


def check_target(target: str | Path, kind: str | None = None) -> None:
    """Raise a UserError unless a folder may be written at `target`: a mistyped path never deletes somebody's files.

    It may where nothing is, where an empty folder is, and where ehrseq wrote a folder of the same `kind` earlier (or,
    without a `kind`, where any ehrseq folder or MEDS dataset is). Long jobs ask before they begin.
    """
    target = Path(target)
    if not target.exists():
        return
    found = _written_kind(target)
    if found is not None and kind not in (None, found):
        raise UserError(
            f"an output folder that is new, empty or holds an earlier {kind}", f"a {found} folder",
            "choose another --out",
        )  # fmt: skip
    dataset = kind is None and (target / "metadata" / "dataset.json").is_file()
    empty = target.is_dir() and not any(target.iterdir())
    if found is None and not dataset and not empty:
        raise UserError(
            "an output folder that is new, empty or written by ehrseq",
            "an existing folder or file with other content",
            "choose another --out",
        )


def _written_kind(folder: Path) -> str | None:
    """The kind that an ehrseq manifest names; None where there is no manifest, or somebody else's."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_json(folder / MANIFEST)
    except ArtifactError:
        return None
    ours = isinstance(manifest, dict) and isinstance(manifest.get("kind"), str) and "format_version" in manifest
    return manifest["kind"] if ours else None


def lock_folder(folder: Path, patience: float = 10.0) -> int | None:
    """Make the folder and lock it for this process and whoever shares the open file returned; None on Windows.

    Waits `patience` seconds for another holder, then raises UserError. Closing the file by all who share it unlocks.
    """
    if fcntl is None:
        folder.mkdir(parents=True, exist_ok=True)
        return None
    last = time.monotonic() + patience
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            opened = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # its holder has just removed it
            continue
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(opened).st_ino == os.stat(folder).st_ino:  # else it was removed, and what we hold is no folder
                return opened
        os.close(opened)
        if time.monotonic() > last:
            raise UserError(
                "nobody else writing to the same output folder", "another run", "wait for it, or choose another --out"
            )
        time.sleep(0.05)


class ResumableFolder:
    """The folder beside `out` in which a long job makes everything; the same one after an interruption.

    One such job at a time: the lock is shared with the workers, so that those of an interrupted run have ended, and
    write nothing any more, when the next run looks at what is there.
    """

    def __init__(self, out: Path, kind: str, job: str) -> None:
        self.out, self.kind = out, kind
        self.folder = out.parent / f".{out.name}.{job}"
        self.retired = out.parent / f".{out.name}.retired"
        self._held = out.parent / f".{out.name}.lock"  # one for every job, as they write to the same place
        self._gone = self.folder / ".gone"
        self.discards = True  # whether an error that the same call would meet again leaves nothing behind

    def __enter__(self) -> ResumableFolder:
        self.lock = lock_folder(self._held)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._gone, ignore_errors=True)
            self.discards = not any(self.folder.iterdir())  # else a slip in this call would cost an earlier one's work
            if self.retired.exists():
                if self.out.exists():
                    shutil.rmtree(self.retired)
                else:  # interrupted between the two steps of `publish`
                    os.replace(self.retired, self.out)
            check_target(self.out, self.kind)
        except BaseException:
            with suppress(OSError):  # there is something in it, or it was never made
                self.folder.rmdir()
            self._unlock()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # an interruption leaves what is done
        fault = kind is not None and issubclass(kind, UserError) and not issubclass(kind, WorkerError)
        if kind is None or (fault and self.discards):
            self._remove()
        self._unlock()

    def _remove(self) -> None:
        """Remove everything; cut off half-way, nothing half removed is left under the name of something whole."""
        with suppress(OSError):
            self._gone.mkdir(exist_ok=True)
            for path in sorted(self.folder.iterdir(), key=Path.is_dir):  # notes, and then what they speak of
                if path != self._gone:
                    os.replace(path, self._gone / path.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _unlock(self) -> None:
        """Let the next one in."""
        if self.lock is not None:
            with suppress(OSError):
                self._held.rmdir()
            os.close(self.lock)

    def publish(self, made: Path) -> None:
        """Give what was made the name `out`; UserError, and all is kept, where somebody else's folder is there now."""
        self.discards = False
        check_target(self.out, self.kind)
        if self.out.exists():
            os.replace(self.out, self.retired)
        os.replace(made, self.out)
        shutil.rmtree(self.retired, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder, if there is one; cut off half-way, what is left of it has another name."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.is_dir():
        os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def write_json(path: Path, content: Any, *, sort_keys: bool = True) -> None:
    """Write JSON with sorted keys (or in their own order), so that equal content gives equal bytes; whole or not."""
    growing = path.with_name(f".{path.name}.part")
    text = json.dumps(content, indent=1, sort_keys=sort_keys, allow_nan=False) + "\n"
    growing.write_text(text, encoding="utf-8")
    os.replace(growing, path)


def read_note(path: Path) -> Any:
    """What a note of one's own says; None where there is none that can be read."""
    try:
        return read_json(path)
    except ArtifactError:
        return None


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
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST]
    with ThreadPoolExecutor(usable_cores()) as threads:  # hashing lets other threads run
        hashes = threads.map(sha256_file, paths)
        files = {p.relative_to(folder).as_posix(): digest for p, digest in zip(paths, hashes, strict=True)}
    content = {"kind": kind, "format_version": version, **facts, "files": files}
    write_json(folder / MANIFEST, {**content, DIGEST: manifest_digest(content)})


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def manifest_digest(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's own content, so that a changed byte in it is told as one in the files is."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    if manifest.pop(DIGEST, None) != manifest_digest(manifest):
        raise error(f"{MANIFEST} as it was written", "other content", "the folder was changed: copy or make it again")
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
