"""What the site shows of the code itself: the commands, the errors and the figures of the concepts."""

from __future__ import annotations

import ast
from pathlib import Path

import figures
import typer
from typer.cli import get_docs_for_click

import ehrseq.errors
from ehrseq.cli import app


def write_all(folder: Path) -> None:
    """Write `cli.md`, `errors.md` and the figures into a folder, leaving alone what is there already and equal."""
    folder.mkdir(exist_ok=True)
    write(folder / "cli.md", commands())
    write(folder / "errors.md", errors())
    for name, draw in figures.FIGURES.items():
        write(folder / f"{name}.svg", draw())


def commands() -> str:
    """Every command with its arguments and options, as Markdown, one heading a command."""
    command = typer.main.get_command(app)
    for verb in command.commands.values():
        verb.short_help = (verb.help or "").partition(". ")[0].rstrip(".") + "."  # else it is cut at 45 characters
    context = typer.Context(command, info_name="ehrseq")
    return get_docs_for_click(obj=command, ctx=context, name="ehrseq", indent=1)


def write(path: Path, text: str) -> None:
    """Write a text where it is new: Sphinx goes by the time of a file."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def errors() -> str:
    """Every message of the errors raised in the package, by class, as Markdown tables."""
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted(Path(ehrseq.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and len(node.args) == 3 and not node.keywords:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if isinstance(getattr(ehrseq.errors, name, None), type):
                    expected, _, step = (_said(part) for part in node.args)
                    found.setdefault(name, set()).add((expected, step))
    parts = []
    for name in sorted(found):
        rows = "\n".join(f"| {expected} | {step} |" for expected, step in sorted(found[name]))
        parts.append(f"### {name}\n\n| expected | what to do |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _said(node: ast.expr) -> str:
    """A message's part as it stands in the source, with an ellipsis for what is filled in."""
    if isinstance(node, ast.Constant):
        text = str(node.value)
    elif isinstance(node, ast.JoinedStr):
        text = "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    elif isinstance(node, ast.IfExp):
        return f"{_said(node.body)}, or: {_said(node.orelse)}"
    else:
        text = "…"
    return " ".join(text.split()).replace("|", r"\|").replace("<", r"\<").replace("*", r"\*").replace("[", r"\[")
