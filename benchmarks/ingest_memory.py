"""The peak memory of ingest on an export and on one ten times as large: it should hardly grow.

    python benchmarks/ingest_memory.py --data DATA [--gigabytes 1.5] [--workers 2]

Replicates Synthea's bundles (DATA/synthea_r4, or the folder in EHRSEQ_DATA) with new ids, on the fly, into a scratch
folder. Each size is ingested by a process of its own. Two peaks are taken, 20 times a second: the sum, over that
process and its workers, of anonymous memory (`RssAnon`: file pages can be dropped at will), and the largest resident
size of any one of them, file pages included (`VmHWM`). Prints one JSON object. Linux only.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

UUID = re.compile(rb"([0-9a-f]{8})(-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
SCRIPT = """
import sys
from ehrseq.timeline.ingest import ingest
done = ingest(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
print(done.events)
"""


def renamed(mask: int, found: re.Match[bytes]) -> bytes:
    """Another id for each id, the same for the same."""
    return b"%08x" % (int(found[1], 16) ^ mask) + found[2]


def replicate(source: Path, out: Path, size: int) -> int:
    """Write copies of the bundles with new ids until there are `size` bytes; the bytes written."""
    out.mkdir()
    written = copy = 0
    while written < size:
        for path in sorted(source.glob("*.json*")):
            raw = path.read_bytes()
            plain = gzip.decompress(raw) if path.suffix == ".gz" else raw
            fresh = UUID.sub(partial(renamed, copy * 0x9E3779B1 & 0xFFFFFFFF), plain)
            (out / f"{copy:03d}-{path.name.removesuffix('.gz')}").write_bytes(fresh)
            written += len(fresh)
            if written >= size:
                break
        copy += 1
    return written


def family(process: int) -> list[int]:
    """A process and its children."""
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += [child for each in task.read_text().split() for child in family(int(each))]
    return found


def memory(process: int, field: str) -> int:
    """A field of /proc/PID/status in bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def peak(export: Path, out: Path, workers: int) -> dict[str, float]:
    """Ingest in a process of its own, looking at its memory 20 times a second."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(export), str(out), str(workers)], stdout=subprocess.PIPE
    )
    together = largest = 0
    while process.poll() is None:
        try:
            everyone = family(process.pid)
            together = max(together, sum(memory(p, "RssAnon") for p in everyone))
            largest = max(largest, *(memory(p, "VmHWM") for p in everyone))
        except (OSError, ValueError):
            pass  # one has just ended
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit("ingest failed")
    return {
        "events": int(process.stdout.read()) if process.stdout else 0,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_together": together,
        "peak_of_one_process": largest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("EHRSEQ_DATA"), help="default: EHRSEQ_DATA")
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if not options.data:
        parser.error("give --data, or set EHRSEQ_DATA")
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, size in (("tenth", options.gigabytes / 10), ("whole", options.gigabytes)):
            export = Path(scratch) / name
            written = replicate(Path(options.data) / "synthea_r4", export, int(size * 1e9))
            results[name] = {"bytes": written} | peak(export, Path(scratch) / f"{name}-out", options.workers)
            shutil.rmtree(export)
    ratios = {
        key: round(results["whole"][key] / results["tenth"][key], 3) for key in ("peak_together", "peak_of_one_process")
    }
    print(json.dumps(results | {"workers": options.workers, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
