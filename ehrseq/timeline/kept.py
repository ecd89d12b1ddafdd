"""What a dataset keeps so that it can be updated: the chunks that it was made from, and how they were read."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from ehrseq.errors import TimelineError
from ehrseq.fhir.chunk import Chunk
from ehrseq.fhir.codes import CodingPreference
from ehrseq.storage import read_json, write_json

KEPT = "ingest"  # the folder of a dataset that holds the chunks it was made from
FORMAT = 5  # of what is kept


def keep_chunks(chunks: list[Chunk], coding: CodingPreference, folder: Path) -> None:
    """Put the chunks into the dataset; their bytes are shared with the scratch folder where the disk can do that."""
    folder.mkdir()
    for number, chunk in enumerate(chunks):
        shutil.copytree(str(chunk.folder), folder / f"{number:06d}", copy_function=_link)
    write_json(folder / "ingest.json", {"format": FORMAT, "chunks": len(chunks), "coding": asdict(coding)})


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def kept_chunks(
    out: Path, coding: CodingPreference | None, cut: datetime | None
) -> tuple[list[Chunk], CodingPreference, datetime | None]:
    """The chunks that a dataset was made from, its coding preference and its data cut."""
    if not (out / KEPT / "ingest.json").is_file():
        raise TimelineError(
            "a dataset made by `ehrseq ingest` to update",
            "one without its ingest folder" if out.is_dir() else "no such folder",
            "ingest all sources together, without --update",
        )
    kept = read_json(out / KEPT / "ingest.json", TimelineError)
    if kept.get("format") != FORMAT:
        raise TimelineError(
            f"a dataset with ingest format {FORMAT}", "another", "ingest all sources together, without --update"
        )
    before = as_coding(kept["coding"])
    if coding is not None and coding != before:
        raise TimelineError(
            "the coding preference that the dataset was made with", "another", "ingest all sources together with it"
        )
    metadata = read_json(out / "manifest.json", TimelineError)["metadata"]
    if cut is None and metadata.get("data_cut"):
        cut = datetime.fromisoformat(metadata["data_cut"])
    folders = [out / KEPT / f"{number:06d}" for number in range(kept["chunks"])]
    return [Chunk.load(folder) for folder in folders], before, cut


def as_coding(plain: dict[str, Any]) -> CodingPreference:
    """A coding preference from JSON."""
    concept_map = {code: tuple(others) for code, others in plain["concept_map"].items()}
    orders = {name: tuple(order) for name, order in plain.items() if name != "concept_map"}
    return CodingPreference(**orders, concept_map=concept_map)
