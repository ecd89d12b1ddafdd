"""Check what the wheel and the sdist hold, and that the wheel runs: python tests/docs/check_dist.py DIST."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


def check(folder: Path) -> None:
    """Raise SystemExit with what is wrong, in one line."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(Path.cwd()).as_posix() for path in Path.cwd().glob("ehrseq/**/*") if path.is_file()}
    sources = {path for path in sources if "__pycache__" not in path}
    expect(sources <= packed, f"every file of ehrseq/ in the wheel; missing {sorted(sources - packed)}")
    strange = {name for name in packed if not name.startswith(("ehrseq/", "ehrseq-"))}
    expect(not strange, f"nothing but ehrseq in the wheel; found {sorted(strange)}")
    expect("ehrseq/py.typed" in packed, "py.typed in the wheel")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"README.md", "LICENSE", "CITATION.cff", "pyproject.toml", "Makefile", "constraints.txt", "docs/conf.py",
              "tests/conftest.py", "examples/pipeline.py"}  # fmt: skip
    expect(needed <= names, f"the sources in the sdist; missing {sorted(needed - names)}")
    unwanted = {name for name in names if name.startswith((".venv", "docs/_build", "shared", "dist/"))}
    expect(not unwanted, f"sources alone in the sdist; found {sorted(unwanted)[:5]}")
    with tempfile.TemporaryDirectory() as place:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place, str(wheel)]
        subprocess.run(install, check=True)
        code = "import ehrseq; from ehrseq.cli import app; print(ehrseq.__version__, ehrseq.__file__)"
        told = subprocess.run([sys.executable, "-P", "-c", code], env={"PYTHONPATH": place}, cwd=place,
                              capture_output=True, text=True, check=True).stdout  # fmt: skip
        expect(place in told, f"the installed wheel imported; found {told.strip()}")
    print(f"{wheel.name} and {sdist.name}: {len(packed)} and {len(names)} files, as they should be")


def expect(holds: bool, what: str) -> None:
    """End with a message where something does not hold."""
    if not holds:
        raise SystemExit(f"expected {what}")


if __name__ == "__main__":
    check(Path(sys.argv[1]))
