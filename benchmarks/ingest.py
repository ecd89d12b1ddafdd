"""How fast FHIR becomes timelines, as a ratio to `orjson.loads` over the same uncompressed lines in the same run.

    python benchmarks/ingest.py --data DATA [--gigabytes 1] [--repeat 1] [--sample 6000]

Replicates the MIMIC-IV demo (DATA/mimic_iv_fhir_demo, or the folder in EHRSEQ_DATA) with new ids, then measures, in
this process alone, the CPU time of all of ingest (decode, events, chunks, survey, link, frame, units, sort, Parquet),
imports aside, and of its stages. CPU time is that of all threads. Then the wall time with one worker and with two, and
the CPU time of `fhir.resources` (R4B models) over a sample of lines, each type weighed as in the export. Prints one
JSON object. The copies repeat the demo's codes and times, so that looking these up is as cheap as in one large export
of one hospital, and a little cheaper than in many small ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from ehrseq.fhir import chunk, reader
from ehrseq.fhir.resource import DECODERS, HEAD_DECODER
from ehrseq.timeline import build, ingest, meds, shards

# MIMIC's ids are version 5 UUIDs: the version digit and the one after it are free for the number of the copy
IDENTIFIER = re.compile(rb"([0-9a-f]{8}-[0-9a-f]{4}-)5[0-9a-f]([0-9a-f]{2}-)")
STAGES = {
    "decode and emit": (reader, "walk"),
    "decode and emit (pieces)": (reader.Reader, "read_span"),
    "chunks: pack": (build, "pack"),
    "chunks: write": (chunk.Chunk, "save"),
    "survey (duplicates, patients, encounters)": (ingest, "survey"),
    "link": (build, "link"),
    "frame": (build, "event_frame"),
    "units": (build, "normalise_units"),
    "sort": (build, "sort_events"),
    "subjects and follow-up": (shards, "subject_frame"),
    "Parquet": (meds, "_write"),
}


def replicate(source: Path, out: Path, size: int) -> tuple[int, int]:
    """Write copies of the export's lines with new ids until there are `size` bytes; the bytes and lines written."""
    originals = {path.name.removesuffix(".gz"): gzip.decompress(path.read_bytes()) for path in source.glob("*.gz")}
    written = lines = 0
    for copy in range(256):
        if written >= size:
            break
        for name, content in originals.items():
            fresh = IDENTIFIER.sub(rb"\g<1>%02x\g<2>" % copy, content)
            (out / f"{copy:03d}-{name}").write_bytes(fresh)
            written += len(fresh)
            lines += fresh.count(b"\n")
    return written, lines


def parse_seconds(folder: Path) -> tuple[float, float]:
    """CPU seconds of `orjson.loads` over every line, and of our typed decoding of the same bytes."""
    plain = typed = 0.0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        lines = content.splitlines()
        start = time.process_time()
        for line in lines:
            orjson.loads(line)
        plain += time.process_time() - start
        decoder = DECODERS.get(orjson.loads(lines[0])["resourceType"], HEAD_DECODER)
        start = time.process_time()
        for line in lines:
            decoder.decode(line)
        typed += time.process_time() - start
    return plain, typed


def timed(seconds: dict[str, float], stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its CPU time added to its stage."""

    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[stage] += time.process_time() - start

    return measured


def validation_seconds(folder: Path, sample: int) -> float | None:
    """CPU seconds that `fhir.resources` (R4B models) would take to validate every line, once parsed.

    Of each file lines from all over it are validated, and stand for as many as there are: types weigh as much as they
    do in the export. Models are built, and parsing is done, before the clock starts.
    """
    try:
        from fhir.resources.R4B import get_fhir_model_class
    except ImportError:
        return None
    total = 0.0
    files = sorted(folder.glob("000-*"))  # the other copies hold the same
    copies = len(list(folder.iterdir())) / len(files)
    for path in files:
        lines = path.read_bytes().splitlines()
        some = [orjson.loads(line) for line in lines[:: max(1, len(lines) * len(files) // sample)]]
        model = get_fhir_model_class(some[0]["resourceType"])
        rejected = 0
        for timed_round in (False, True):
            start = time.process_time()
            for resource in some if timed_round else some[:20]:
                try:
                    model.model_validate(resource)
                except ValueError:
                    rejected += 1
            spent_now = time.process_time() - start
        if rejected:
            raise SystemExit("fhir.resources rejects lines: its time says nothing")
        total += spent_now / len(some) * len(lines) * copies
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("EHRSEQ_DATA"), help="default: EHRSEQ_DATA")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--sample", type=int, default=6000, help="lines that fhir.resources validates")
    options = parser.parse_args()
    if not options.data:
        parser.error("give --data, or set EHRSEQ_DATA")
    for stage, (place, name) in STAGES.items():
        setattr(place, name, timed(spent, stage, getattr(place, name)))
    with tempfile.TemporaryDirectory() as scratch:
        export, out = Path(scratch) / "export", Path(scratch) / "timelines"
        export.mkdir()
        demo = Path(options.data) / "mimic_iv_fhir_demo"
        size, lines = replicate(demo, export, int(options.gigabytes * 1e9))
        ingest.ingest(demo, out, workers=1)  # imports
        validation = validation_seconds(export, options.sample)
        for run in range(options.repeat):
            spent.clear()
            plain, typed = parse_seconds(export)
            start, wall = time.process_time(), time.perf_counter()
            done = ingest.ingest(export, Path(scratch) / f"one-{run}", workers=1)
            total, wall = time.process_time() - start, time.perf_counter() - wall
            stages = {stage: round(s, 3) for stage, s in spent.items()}
            two = time.perf_counter()
            ingest.ingest(export, Path(scratch) / f"two-{run}", workers=2)
            two = time.perf_counter() - two
            facts = {
                "run": run,
                "bytes": size,
                "lines": lines,
                "events": done.events,
                "orjson_seconds": round(plain, 3),
                "ingest_seconds": round(total, 3),
                "ratio": round(plain / total, 4),
                "typed_decode_ratio": round(plain / typed, 4),
                "one_worker_wall_seconds": round(wall, 3),
                "two_workers_wall_seconds": round(two, 3),
                "two_workers_are_faster": round(wall / two, 3),
                "fhir_resources_seconds": validation and round(validation, 1),
                "fhir_resources_ratio": validation and round(plain / validation, 4),
                "faster_than_fhir_resources": validation and round(validation / total, 1),
                "stage_seconds": stages,
            }
            print(json.dumps(facts, indent=1))


spent: dict[str, float] = defaultdict(float)

if __name__ == "__main__":
    main()
