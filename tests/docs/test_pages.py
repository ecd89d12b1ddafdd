"""The pages of the site do as they say: every block runs, page by page in the site's order, in one folder.

Networks and the number of simulated people are smaller than on the page, and where the README names a reader's own data
it gets simulated ones; nothing else is changed. Left out are blocks named `console` (installation, a running service)
and the page on Spark, which takes minutes: `tests/spark` has tests of what it does.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import ehrseq
from ehrseq.cli import app
from ehrseq.config import BoostedConfig, LabConfig, ModelConfig, NetworkConfig, TrainingConfig
from ehrseq.task.definition import Task

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PAGES = [page for page in PAGES if not {"_build", "_generated"} & set(page.parts)]
DOCS = ROOT / "docs"
CONTENTS = re.findall(r"```\{toctree\}\n.*?\n\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL)
LISTED = [page for entry in "".join(CONTENTS).split() for page in sorted(DOCS.glob(f"{entry}.md"))]
RUN = [*(page for page in LISTED if page.name != "spark.md"), ROOT / "README.md"]
OURS = {'"export/"': '"simulated/export"', '"task.toml"': '"simulated/task.toml"', "2024-01-01": "2014-06-30"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL = {
    "network": NetworkConfig(width=16, layers=2, heads=2, intervals=4, max_events=64, min_subjects=3),
    "training": TrainingConfig(max_epochs=1, members=1, landmarks_per_subject=2, tuning_landmarks_per_subject=2),
    "boosted": BoostedConfig(landmarks_per_subject=2, max_trees=10, min_rows_per_leaf=20),
    "labs": LabConfig(members=1, passes=1, landmarks_per_subject=1),
}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and content of every block of a page, in order."""
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield found[1], found[2]


def commands(content: str) -> list[list[str]]:
    """The arguments of each `ehrseq` command of a block, comments left out."""
    lines = [shlex.split(line.removeprefix("$ "), comments=True) for line in content.splitlines()]
    return [line[1:] for line in lines if line[:1] == ["ehrseq"]]


def test_the_pages_run_as_printed(tmp_path, monkeypatch):
    def smaller(config: ModelConfig) -> None:
        for name, part in SMALL.items():
            object.__setattr__(config, name, part)

    monkeypatch.setattr(ModelConfig, "__post_init__", smaller)
    monkeypatch.setattr("ehrseq.model.path_fitting.QUERIES", 200)  # of 8,000
    monkeypatch.chdir(tmp_path)
    ran = 0
    for page in RUN:
        names: dict[str, object] = {}
        for language, content in blocks(page):
            where = f"{page.name}, block {content.splitlines()[0]!r}"
            content = re.sub(r"\b1000\b", "160", content)
            for theirs, ours in OURS.items() if page.name == "README.md" else ():
                content = content.replace(theirs, ours)
            if language == "python":
                exec(compile(content, where, "exec"), names)
            elif language == "toml" and (name := re.match(r"# ([\w.]+\.toml)\n", content)):
                (tmp_path / name[1]).write_text(content, encoding="utf-8")
            for arguments in commands(content) if language == "shell" else []:
                result = CliRunner().invoke(app, arguments)
                assert result.exit_code == 0, f"{where}: {result.output} {result.exception}"
                ran += 1
    assert ran >= 10
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_is_python_toml_is_toml_and_public_names_exist(page):
    for language, content in blocks(page):
        if language == "python":
            for node in ast.walk(ast.parse(content)):
                if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("es", "ehrseq"):
                    assert hasattr(ehrseq, node.attr) or node.attr in ("spark", "timeline"), node.attr
        elif language == "toml":
            table = tomllib.loads(content)
            if {"horizons", "outcomes", "prediction_times"} <= table.keys():
                Task.from_dict(table)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_on_a_page_has_its_options(page):
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="ehrseq")
    text = page.read_text(encoding="utf-8")
    for arguments in [a for _, content in BLOCK.findall(text) for a in commands(content)]:
        command = group.get_command(context, arguments[0])
        assert command is not None, arguments
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        assert {a.split("=")[0] for a in arguments if a.startswith("--")} <= known, arguments


def test_every_public_name_has_an_example_that_runs():
    """A doctest, or code in a page, notebook or script that the checks run."""
    code = [content for page in RUN for language, content in blocks(page) if language == "python"]
    for notebook in ROOT.glob("examples/*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code.append((ROOT / "examples" / "pipeline.py").read_text(encoding="utf-8"))
    used = set(re.findall(r"\bes\.(\w+)", "\n".join(code)))
    shown = {name for name in ehrseq.__all__ if ">>>" in (inspect.getdoc(getattr(ehrseq, name)) or "")}
    assert set(ehrseq.__all__) - used - shown == set()


def test_every_public_name_is_on_the_reference_page():
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"ehrseq\.(\w+)\n", page)) == set(ehrseq.__all__)


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.toml")), ids=lambda p: p.name)
def test_task_files_of_the_examples_are_tasks(path):
    task = Task.from_toml(path)
    assert Task.from_dict(task.to_dict()) == task
