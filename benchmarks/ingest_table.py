"""What became of every record of a folder of exports: the table of docs/ingest.md.

    python benchmarks/ingest_table.py DATA --write docs/ingest.md

For each folder under DATA and each resource type: records in = with events + skipped (by reason) + quarantined (by
reason). `--write` puts the tables between the page's markers. In every line the fates add
up to the records, or it stops. (That the records are those of the files is a test: `tests/timeline/test_counts.py`.)
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import polars as pl

from ehrseq.timeline.build import read_fhir

FOLDERS = (
    "nafld_fhir",
    "mimic_iv_fhir_demo",
    "synthea_r4",
    "version_pair/r4",
    "version_pair/stu3",
    "hl7_r4_examples",
    "genomics_r4",
)
MARKERS = ("<!-- tables -->", "<!-- end of tables -->")


def fates(ledger: pl.DataFrame) -> pl.DataFrame:
    """One row a resource type: records in, with events, skipped and quarantined, and the reasons in words."""
    counts = ledger.group_by("resource_type", "fate", "reason").agg(pl.col("count").sum())
    words = pl.col("reason") + " " + pl.col("count").map_elements(lambda n: f"{n:,}", pl.String)
    return (
        counts.sort("resource_type", "count", "reason", descending=[False, True, False])
        .group_by("resource_type", maintain_order=True)
        .agg(
            records=pl.col("count").sum(),
            **{
                fate: pl.col("count").filter(pl.col("fate") == fate).sum()
                for fate in ("events", "skipped", "quarantined")
            },
            reasons=words.filter(pl.col("fate") != "events").str.join(", "),
        )
    )


def table(folder: Path) -> str:
    """The table of one folder, in markdown."""
    timelines = read_fhir(folder)
    if timelines.ledger is None:
        raise SystemExit("a source without a ledger")
    rows = fates(timelines.ledger)
    unequal = rows.filter(pl.col("records") != pl.sum_horizontal("events", "skipped", "quarantined"))
    if unequal.height:
        raise SystemExit(f"{unequal.height} lines do not add up")
    left_out = timelines.metadata["events_left_out"]
    lines = [
        f"{timelines.events.height:,} events of {timelines.subjects.height:,} subjects. Single events left out of "
        f"records that kept others: {', '.join(f'{k} {v:,}' for k, v in left_out.items()) or 'none'}.",
        "",
        "| type | records | with events | skipped | quarantined | reasons |",
        "|---|---|---|---|---|---|",
    ]
    for name, *numbers, reasons in rows.iter_rows():
        lines.append(f"| {name or '(no type)'} | {' | '.join(f'{n:,}' for n in numbers)} | {reasons} |")
    total = [int(rows[c].sum()) for c in ("records", "events", "skipped", "quarantined")]
    return "\n".join([*lines, f"| all | {' | '.join(f'{n:,}' for n in total)} | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    found = [name for name in FOLDERS if (options.data / name).is_dir()]
    text = "\n\n".join(f"### {name}\n\n{table(options.data / name)}" for name in found)
    if options.write is None:
        sys.stdout.write(text + "\n")
        return
    page = options.write.read_text(encoding="utf-8")
    start, end = MARKERS
    page = re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", page, flags=re.DOTALL)
    options.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
