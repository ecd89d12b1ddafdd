"""The import rules: a room imports lower rooms only, and the walls hold. Read from the source alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "ehrseq"
ORDER = (
    "errors",
    "config frames storage figures survival",
    "fhir synthetic",
    "timeline",
    "task",
    "features",
    "tokens",
    "model",
    "forecast evaluate explain",
    "explaining",
    "estimator",
    "batch inspection",
    "score",
    "audit",
    "serve spark demo",
    "cli",
    "__init__ __main__",  # the shop window and the door: above every room
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms.split()}
TORCH = {"torch", "pytorch_lightning", "lightning", "torchmetrics"}
PICKLE = {
    "pickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "torch.load",
    "torch.save",
}
PICKLED = {"read_pickle", "to_pickle", "load_from_checkpoint", "save_checkpoint"}


def imports(tree: ast.AST, module: str) -> set[str]:
    """Dotted names imported anywhere in a module: in functions, for type checking, by `import_module` too.

    `from a import b` counts as `a.b`; `module` is dotted, a package ends in `.__init__`.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(name.value) for name in node.args if isinstance(name, ast.Constant)}
    return found


def within(name: str, forbidden: set[str]) -> bool:
    """Whether a dotted name is one of the forbidden modules, or inside one."""
    return any(name == f or name.startswith(f + ".") for f in forbidden)


def breaches(source: str, module: str) -> list[str]:
    """What a module's source does against the rules, in words."""
    tree = ast.parse(source)
    room, found = module.split(".")[1], imports(tree, module)
    if room not in RANK:
        return [f"{room} has no rank"]
    targets = {name.split(".")[1] if "." in name else "__init__" for name in found if within(name, {"ehrseq"})}
    # A public name taken from `ehrseq` itself hides which room it comes from; its version has no room.
    rooms = {t if t in RANK else "__init__" for t in targets - {"__version__", room}}
    told = [f"{room} imports {t}" for t in rooms if RANK[t] >= RANK[room]]
    walls = PICKLE | {"sksurv"}  # GPL: an oracle of the tests, never a part of the package
    if room != "frames":
        walls |= {"pandas"}
    if room in {"tokens", "model"}:
        walls |= {"fhir", "ehrseq.fhir"}
    if room == "evaluate":
        walls |= TORCH
    told += [f"{room} imports {name}" for name in found if within(name, walls)]
    return told + pickling(tree)


def pickling(tree: ast.AST) -> list[str]:
    """Expressions that read or write pickles, under whatever name torch was imported."""
    names = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    torch = {alias.asname or alias.name for alias in names if alias.name == "torch"}
    forbidden = {f"{name}.{verb}" for name in torch for verb in ("load", "save")}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    told = [ast.unparse(a) for a in attributes if a.attr in PICKLED or ast.unparse(a) in forbidden]
    options = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "allow_pickle"]
    return told + ["allow_pickle" for option in options if ast.unparse(option.value) != "False"]


def modules() -> dict[str, str]:
    """Dotted name to source, for every file of the package."""
    return {
        ".".join(path.relative_to(SOURCES.parent).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(SOURCES.rglob("*.py"))
    }


def reach(start: set[str], sources: dict[str, str]) -> set[str]:
    """Every dotted name that importing the `start` modules can lead to, function-level imports included."""
    seen: set[str] = set()
    waiting = set(start)
    while waiting:
        name = waiting.pop()
        seen.add(name)
        parts = name.split(".")
        # Importing a.b.c runs a/__init__ and a.b/__init__; the lazy top package is judged by test_package.
        runs = {".".join(parts[:n]) for n in range(2, len(parts) + 1)}
        for module in {r for n in runs for r in (n, f"{n}.__init__")} & sources.keys():
            waiting |= imports(ast.parse(sources[module]), module) | {module}
        waiting -= seen
    return seen


@pytest.mark.parametrize("module", modules())
def test_a_module_keeps_the_import_rules(module: str) -> None:
    assert breaches(modules()[module], module) == []


def test_evaluate_cannot_reach_torch_through_other_rooms() -> None:
    sources = modules()
    reached = reach({name for name in sources if name.startswith("ehrseq.evaluate.")}, sources)
    assert sorted(name for name in reached if within(name, TORCH)) == []


@pytest.mark.parametrize(
    ("module", "source", "told"),
    [
        ("ehrseq.timeline.store", "from ehrseq.task import history", "timeline imports task"),
        ("ehrseq.timeline.store", "def f():\n    import ehrseq.task.history", "timeline imports task"),
        ("ehrseq.timeline.store", "from ..task.history import visible", "timeline imports task"),
        ("ehrseq.timeline.__init__", "from ..cli import main", "timeline imports cli"),
        (
            "ehrseq.timeline.store",
            "if TYPE_CHECKING:\n    from ehrseq.model.network import N",
            "timeline imports model",
        ),
        ("ehrseq.timeline.store", "import_module('ehrseq.estimator')", "timeline imports estimator"),
        ("ehrseq.timeline.store", "from ehrseq import read_fhir", "timeline imports __init__"),
        ("ehrseq.timeline.store", "import ehrseq", "timeline imports __init__"),
        ("ehrseq.forecast.risk", "import ehrseq.evaluate.metrics", "forecast imports evaluate"),
        ("ehrseq.helpers", "", "helpers has no rank"),
        (
            "ehrseq.tokens.batch",
            "from ehrseq.fhir.clock import when",
            "tokens imports ehrseq.fhir.clock.when",
        ),
        ("ehrseq.model.network", "import fhir.resources", "model imports fhir.resources"),
        ("ehrseq.evaluate.metrics", "from torch import nn", "evaluate imports torch.nn"),
        ("ehrseq.evaluate.metrics", "import lightning", "evaluate imports lightning"),
        ("ehrseq.timeline.store", "import pandas as pd", "timeline imports pandas"),
        ("ehrseq.model.artifact", "from joblib import dump", "model imports joblib.dump"),
        ("ehrseq.evaluate.metrics", "import sksurv.metrics", "evaluate imports sksurv.metrics"),
        ("ehrseq.model.artifact", "from torch import load", "model imports torch.load"),
        ("ehrseq.model.artifact", "import torch as t\nt.load('x')", "t.load"),
        ("ehrseq.model.artifact", "numpy.load('x', allow_pickle=True)", "allow_pickle"),
    ],
)
def test_a_breach_is_told(module: str, source: str, told: str) -> None:
    assert told in breaches(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ehrseq.timeline.store", "from ehrseq.timeline.schema import EVENTS\nfrom .schema import EVENTS"),
        ("ehrseq.timeline.store", "from ehrseq.errors import UserError\nfrom ehrseq import __version__"),
        ("ehrseq.timeline.build", "from ehrseq.fhir import events\nfrom ehrseq import fhir"),
        ("ehrseq.frames", "import pandas as pd"),
        ("ehrseq.model.network", "import torch\nnumpy.load('x', allow_pickle=False)"),
        ("ehrseq.cli", "from ehrseq.estimator import ProgressionModel"),
    ],
)
def test_what_the_rules_allow_passes(module: str, source: str) -> None:
    assert breaches(source, module) == []


def test_torch_behind_a_room_is_found() -> None:
    sources = {
        "ehrseq.evaluate.report": "from ehrseq.task import cohort",
        "ehrseq.task.cohort": "def f():\n    from ehrseq.model.loss import nll",
        "ehrseq.model.__init__": "import torch",
        "ehrseq.model.loss": "",
    }
    assert "torch" in reach({"ehrseq.evaluate.report"}, sources)
