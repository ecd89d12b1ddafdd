"""How fast FHIR becomes timelines, against `orjson.loads` over the same uncompressed lines, `fhir.resources` and two
workers; each is compared at the same moments, since the speed of a shared machine moves from minute to minute.

    python benchmarks/ingest.py --data DATA [--gigabytes 1] [--pairs 3] [--sample 6000]

Replicates the MIMIC-IV demo (DATA/mimic_iv_fhir_demo, or the folder in EHRSEQ_DATA) with new ids. Each pair is then:

1. `fhir.resources` (R4B models) validates a sample of lines, parsed by `orjson.loads` on the way (its own way from JSON
   is no faster), each type weighed as in the export: CPU time.
2. All of ingest (decode, events, chunks, survey, link, frame, units, sort, Parquet) in this process alone, imports
   aside: CPU time of all threads, also by stage, and wall time. Before each of its jobs (reading some files, writing
   some shards) `orjson.loads`, and our own typed decoding, go over the next slice of the same lines; every slice has
   its turn equally often, and their time is no part of ingest's.
3. The sample is validated once more; both times count by half.
4. The same ingest with two workers, of which this process is one: wall time, start and imports of the other included.
5. `orjson.loads` over all files in one fresh process, then in two at once, half of the files each: how much sooner two
   are done is what two workers could gain at best.

Prints one JSON object: every pair, and of each ratio the median, least and greatest. `others_cpu` is how many cores
other processes kept busy meanwhile (Linux). The copies repeat the demo's codes and times, so that looking these up is
as cheap as in one large export of one hospital, and a little cheaper than in many small ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from fhir.resources.R4B import get_fhir_model_class

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
    "sort: find the order": (build, "event_order"),
    "sort: the columns": (build, "in_order"),
    "subjects and follow-up": (shards, "subject_frame"),
    "contacts": (build, "contacts_of"),
    "Parquet": (meds, "write_table"),
    "hashing the files": (meds, "write_manifest"),
}

SLICES = 32
RATIOS = ("ratio", "faster_than_fhir_resources", "two_workers_are_faster", "two_orjson_processes_are_faster")
PARSE = """
import sys, orjson
print(flush=True)
sys.stdin.read()
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        for line in file.read().splitlines():
            orjson.loads(line)
"""


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


class Beside:
    """`orjson.loads`, and our typed decoding, over all lines of a folder, a slice at a time."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.iterdir())
        size = sum(path.stat().st_size for path in files)
        self.slices: list[list[Path]] = [[]]
        held = 0
        for path in files:
            if held * SLICES >= size:
                self.slices.append([])
                held = 0
            self.slices[-1].append(path)
            held += path.stat().st_size
        self.start()

    def start(self) -> None:
        """Begin to count anew."""
        self.turns, self.plain, self.typed, self.cpu, self.wall = 0, 0.0, 0.0, 0.0, 0.0

    def before(self, job: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which waits for a slice to have its turn."""

        def waiting(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            return job(*args, **kwargs)

        return waiting

    def turn(self) -> None:
        """Let the next slice have its turn."""
        cpu, wall = time.process_time(), time.perf_counter()
        for path in self.slices[self.turns % len(self.slices)]:
            lines = path.read_bytes().splitlines()
            decoder = DECODERS.get(orjson.loads(lines[0])["resourceType"], HEAD_DECODER)
            self.plain += over(lines, orjson.loads)
            self.typed += over(lines, decoder.decode)
        self.turns += 1
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall

    def finish(self) -> tuple[float, float]:
        """Let those have their turn that had one less; CPU seconds of `orjson.loads`, and of ours, over every line."""
        while self.turns % len(self.slices):
            self.turn()
        rounds = self.turns // len(self.slices)
        return self.plain / rounds, self.typed / rounds


def over(lines: list[bytes], parse: Callable[[bytes], Any]) -> float:
    """CPU seconds that parsing takes."""
    start = time.process_time()
    for line in lines:
        parse(line)
    return time.process_time() - start


def parsing_wall(folder: Path, processes: int) -> float:
    """Wall seconds until so many fresh processes have read and parsed all files, each its share."""
    files = sorted(str(path) for path in folder.iterdir())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PARSE, *files[n::processes]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for n in range(processes)
    ]
    for process in started:
        process.stdout.readline()  # ready
    start = time.perf_counter()
    for process in started:
        process.stdin.close()
    for process in started:
        if process.wait():
            raise SystemExit("a process that parses with orjson failed")
    return time.perf_counter() - start


def timed(seconds: dict[str, float], stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its CPU time added to its stage."""

    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[stage] += time.process_time() - start

    return measured


def sample_of(folder: Path, sample: int) -> list[tuple[Any, list[bytes], float]]:
    """Of each file the model of `fhir.resources`, lines from all over it, and how many lines each stands for."""
    files = sorted(folder.glob("000-*"))  # the other copies hold the same
    copies = len(list(folder.iterdir())) / len(files)
    found = []
    for path in files:
        lines = path.read_bytes().splitlines()
        some = lines[:: max(1, len(lines) * len(files) // sample)]
        model = get_fhir_model_class(orjson.loads(some[0])["resourceType"])
        validated(model, some[:20])  # builds what it needs
        found.append((model, some, len(lines) * copies / len(some)))
    return found


def validated(model: Any, lines: list[bytes]) -> float:
    """CPU seconds of validating lines."""
    start = time.process_time()
    try:
        for line in lines:
            model.model_validate(orjson.loads(line))
    except ValueError:
        raise SystemExit("fhir.resources rejects lines: its time says nothing") from None
    return time.process_time() - start


def busy_elsewhere() -> float:
    """CPU seconds that processes other than this one, and those it waited for, have used."""
    try:
        ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return float("nan")
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


class Clock:
    """Wall seconds of a block, and how many cores others kept busy meanwhile."""

    def __enter__(self) -> Clock:
        self.wall, self.others = time.perf_counter(), busy_elsewhere()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.wall
        self.others = round((busy_elsewhere() - self.others) / self.wall, 2)


def measured_pairs(export: Path, scratch: Path, pairs: int, sample: int) -> Iterator[dict[str, Any]]:
    """One dict of figures a pair."""
    beside, samples = Beside(export), sample_of(export, sample)
    alone = ingest.read_task, shards.write_shards
    accompanied = tuple(beside.before(job) for job in alone)
    for pair in range(pairs):
        validation = sum(validated(model, some) * each for model, some, each in samples)
        spent.clear()
        beside.start()
        ingest.read_task, shards.write_shards = accompanied
        start = time.process_time()
        with Clock() as one:
            done = ingest.ingest(export, scratch / f"one-{pair}", workers=1)
        total, wall = time.process_time() - start - beside.cpu, one.wall - beside.wall
        stages = {stage: round(seconds, 3) for stage, seconds in spent.items()}
        plain, typed = beside.finish()
        validation = (validation + sum(validated(model, some) * each for model, some, each in samples)) / 2
        ingest.read_task, shards.write_shards = alone  # of two workers this process is one
        with Clock() as two:
            ingest.ingest(export, scratch / f"two-{pair}", workers=2)
        for out in ("one", "two"):  # disk caches that fill up would make each pair dearer than the one before
            shutil.rmtree(scratch / f"{out}-{pair}")
        with Clock() as both:
            single, halves = parsing_wall(export, 1), parsing_wall(export, 2)
        yield {
            "events": done.events,
            "orjson_seconds": round(plain, 3),
            "ingest_seconds": round(total, 3),
            "ratio": round(plain / total, 4),
            "typed_decode_ratio": round(plain / typed, 4),
            "fhir_resources_seconds": round(validation, 1),
            "faster_than_fhir_resources": round(validation / total, 1),
            "one_worker_wall_seconds": round(wall, 3),
            "two_workers_wall_seconds": round(two.wall, 3),
            "two_workers_are_faster": round(wall / two.wall, 3),
            "two_orjson_processes_are_faster": round(single / halves, 3),
            "others_cpu": {"one worker": one.others, "two workers": two.others, "orjson processes": both.others},
            "stage_seconds": stages,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("EHRSEQ_DATA"), help="default: EHRSEQ_DATA")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--sample", type=int, default=6000, help="lines that fhir.resources validates")
    options = parser.parse_args()
    if not options.data:
        parser.error("give --data, or set EHRSEQ_DATA")
    for stage, (place, name) in STAGES.items():
        setattr(place, name, timed(spent, stage, getattr(place, name)))
    with tempfile.TemporaryDirectory() as scratch:
        export = Path(scratch) / "export"
        export.mkdir()
        demo = Path(options.data) / "mimic_iv_fhir_demo"
        size, lines = replicate(demo, export, int(options.gigabytes * 1e9))
        ingest.ingest(demo, Path(scratch) / "imports", workers=1)
        pairs = []
        for pair in measured_pairs(export, Path(scratch), options.pairs, options.sample):
            print(json.dumps(pair), file=sys.stderr)  # a long run that is cut short has said something
            pairs.append(pair)
    facts: dict[str, Any] = {"bytes": size, "lines": lines, "pairs": pairs}
    for name in RATIOS:
        values = [pair[name] for pair in pairs]
        facts[name] = {"median": round(statistics.median(values), 4), "least": min(values), "greatest": max(values)}
    print(json.dumps(facts, indent=1))


spent: dict[str, float] = defaultdict(float)

if __name__ == "__main__":
    main()
