"""What the site needs beside Sphinx, which itself checks links and anchors (`make docs`)."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTSIDE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]  # these are no pages of the site


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda p: p.name)
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert links or page.name != "README.md"
    for link in links:
        path, _, anchor = link.partition("#")
        if not path.startswith(("http://", "https://")):
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_of_the_site_is_in_its_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    entries = [
        line for block in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for line in block.split("\n")
    ]
    listed = {
        page
        for entry in entries if entry and not entry.startswith(":")
        for page in (ROOT / "docs").glob(f"{entry}.md")
    }  # fmt: skip
    pages = {p for p in ROOT.glob("docs/**/*.md") if not {"_build", "_generated"} & set(p.parts)}
    assert pages - listed == {ROOT / "docs" / "index.md"}


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
    assert project["authors"][0]["name"] in citation


def test_notebooks_are_small_and_show_no_error():
    for path in ROOT.glob("examples/*.ipynb"):
        assert path.stat().st_size < 400_000, path.name
        outputs = [o for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in cell.get("outputs", [])]
        assert all(output["output_type"] != "error" for output in outputs), path.name
        assert outputs, path.name


def test_the_notebook_on_hospital_patients_keeps_no_output_of_theirs():
    cells = json.loads((ROOT / "examples" / "03_icu_timelines.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(o.get("text", [])) for cell in cells for o in cell.get("outputs", [])]
    assert [text.split(":")[0] for text in texts] == ["SKIPPED"]
