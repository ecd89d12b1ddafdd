"""What the package promises before anything is called: light to import, typed, its public names there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ehrseq

HEAVY = {
    "torch", "pytorch_lightning", "pandas", "sklearn", "matplotlib", "captum", "pyspark", "fastapi", "uvicorn", "jwt",
}  # fmt: skip


def imported_by(statement: str) -> set[str]:
    """Top-level packages a fresh interpreter loads for a statement."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in told.splitlines() if "|" in line}


def test_import_is_light() -> None:
    loaded = imported_by("import ehrseq")
    assert "ehrseq" in loaded
    assert loaded & HEAVY == set()


def test_a_model_is_loaded_without_what_only_fitting_needs() -> None:
    assert imported_by("from ehrseq.estimator import load_model") & {"pytorch_lightning", "sklearn"} == set()


def test_a_heavy_import_would_be_seen() -> None:
    assert imported_by("import ehrseq, matplotlib") & HEAVY == {"matplotlib"}


def test_the_package_is_typed() -> None:
    assert (files("ehrseq") / "py.typed").is_file()


def test_every_public_name_is_there() -> None:
    names = getattr(ehrseq, "__all__", [])
    assert len(set(names)) == len(names)
    assert set(names) <= set(dir(ehrseq))
    for name in names:
        assert getattr(ehrseq, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "no_such_name"
    with pytest.raises(AttributeError, match=name):
        getattr(ehrseq, name)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ehrseq.__version__ == project["version"] == version("ehrseq")


def test_every_requirement_is_pinned_without_a_local_build() -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    assert {Requirement(line).name.lower() for line in wanted} <= pins.keys()
    assert pins["torch"] == "2.13.0"
    assert all(re.fullmatch(r"[\w.]+", pin) for pin in pins.values())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux to look at threads")
def test_importing_computes_nothing():
    """Polars starts its threads at the first computation: a process that is forked after that waits for ever."""
    code = (
        "import ehrseq.batch, ehrseq.estimator, ehrseq.score, ehrseq.serve.app, ehrseq.timeline.ingest\n"
        "from pathlib import Path\n"
        "print([each.read_text().strip() for each in Path('/proc/self/task').glob('*/comm')])"
    )
    threads = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "python" in threads
    assert "polars-0" not in threads
