"""The site: Markdown pages, docstrings, and what is made from the code at each build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generated

import ehrseq

project = "ehrseq"
author = "The ehrseq developers"
html_show_copyright = False
version = release = ehrseq.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # so that `page.md#a-heading` is checked
exclude_patterns = ["_build", "_generated"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
smartquotes_action = "qe"  # no dashes: `--option` in a text stays what one types
default_role = "code"  # docstrings write `names` as Markdown does

html_theme = "furo"
html_title = f"ehrseq {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def separate_examples(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give a doctest that follows a section a heading of its own: numpydoc would take it for a part of the section."""
    starts = [i for i, line in enumerate(lines) if line.startswith(">>>") and i and not lines[i - 1].strip()]
    if starts and any(line and set(line) == {"-"} for line in lines[: starts[0]]):
        lines[starts[0] : starts[0]] = ["Examples", "--------"]


def setup(app: Any) -> None:
    """Make what is generated before pages are read."""
    app.connect("autodoc-process-docstring", separate_examples, priority=400)  # before napoleon
    app.connect("builder-inited", lambda app: generated.write_all(Path(app.srcdir) / "_generated"))
