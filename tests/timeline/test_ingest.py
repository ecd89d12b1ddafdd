"""Ingest to a folder: the same bytes whatever the workers, the order, the interruptions and the updates."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrseq.errors import SourceError, TimelineError, UserError
from ehrseq.fhir import reader
from ehrseq.timeline import ingest as stages
from ehrseq.timeline import shards
from ehrseq.timeline.build import paths_of, read_fhir, subject_number
from ehrseq.timeline.ingest import ingest
from ehrseq.timeline.store import Timelines

LOINC = "http://loinc.org"


def patient(name: str, **fields: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": name, "gender": "female", "birthDate": "1960-05-01"} | fields


def encounter(name: str, who: str, start: str, end: str | None = None) -> dict[str, Any]:
    period = {"start": start} | ({"end": end} if end else {})
    return {"resourceType": "Encounter", "id": name, "status": "finished", "class": {"code": "IMP"},
            "subject": {"reference": f"Patient/{who}"}, "period": period}  # fmt: skip


def observation(name: str, who: str, value: float, **fields: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "id": name, "status": "final", "subject": {"reference": f"Patient/{who}"},
            "code": {"coding": [{"system": LOINC, "code": "718-7"}]}, "effectiveDateTime": "2020-03-02",
            "valueQuantity": {"value": value, "code": "g/dL"}} | fields  # fmt: skip


def condition(name: str, who: str, stay: str) -> dict[str, Any]:
    return {"resourceType": "Condition", "id": name, "subject": {"reference": f"Patient/{who}"},
            "code": {"coding": [{"system": "http://snomed.info/sct", "code": "44054006"}]},
            "encounter": {"reference": f"Encounter/{stay}"}}  # fmt: skip


def write(path: Path, *records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def make_export(folder: Path, people: int = 60) -> None:
    """An export with its types in files of their own, bundles with their own names, duplicates and broken lines."""
    rng = random.Random(7)
    names = [f"p{i}" for i in range(people)]
    write(folder / "a" / "Condition.ndjson", *(condition(f"c{n}", n, f"e{n}") for n in names))
    write(folder / "a" / "Observation.ndjson",
          *(observation(f"o{n}-{k}", n, round(rng.uniform(8, 16), 1)) for n in names for k in range(20)))  # fmt: skip
    write(folder / "b" / "Encounter.ndjson", *(encounter(f"e{n}", n, "2020-03-01", "2020-03-09") for n in names))
    write(folder / "z" / "Patient.ndjson", *(patient(n) for n in names), patient("p1"))
    with (folder / "a" / "Observation.ndjson").open("a") as file:
        file.write('{"resourceType": "Observation", \n' + json.dumps(observation("op0-0", "p0", 1.0)) + "\n")
    for i in range(6):
        entries = [
            {"fullUrl": "urn:uuid:me", "resource": patient(f"b{i}")},
            {"resource": observation(f"bo{i}", "", 9) | {"subject": {"reference": "urn:uuid:me"}}},
        ]
        (folder / f"bundle{i}.json").write_text(json.dumps({"resourceType": "Bundle", "entry": entries}))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(a: Path, b: Path) -> None:
    left, right = contents(a), contents(b)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


def value(timelines: Timelines, name: str) -> Any:
    return timelines.events.filter(pl.col("resource_id") == name)["numeric_value"].to_list()


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything cut into many small tasks, chunks and batches."""
    monkeypatch.setattr(stages, "TASK_BYTES", 20_000)
    monkeypatch.setattr(shards, "ROWS_AT_ONCE", 400)
    monkeypatch.setattr(stages, "SMALL", 0)
    monkeypatch.setattr(reader, "FULL", 50)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    make_export(tmp_path / "export")
    return tmp_path / "export"


# -- one result


def test_ingest_is_read_fhir_and_save(export: Path, tmp_path: Path) -> None:
    in_memory = read_fhir(export)
    in_memory.save(tmp_path / "saved")
    done = ingest(export, tmp_path / "out")
    assert (done.subjects, done.events) == (len(in_memory), in_memory.events.height)
    assert done.summary() == in_memory.summary()
    found = {name: raw for name, raw in contents(tmp_path / "out").items() if not name.startswith("ingest/")}
    assert found == contents(tmp_path / "saved")
    assert_frame_equal(done.load().events, in_memory.events, categorical_as_str=True)
    assert not list(tmp_path.glob(".*"))


def test_cutting_changes_nothing(export: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    ingest(export, tmp_path / "whole", workers=1)
    request.getfixturevalue("small_tasks")
    ingest(export, tmp_path / "cut", workers=1)
    whole, cut = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    kept = [name for name in whole if not name.startswith("ingest/")]
    assert [name for name in kept if whole[name] != cut[name]] == []
    quarantine = Timelines.load(tmp_path / "cut").quarantine
    assert quarantine is not None
    assert quarantine["line"].to_list() == [1201]


def test_the_last_tasks_of_a_folder_are_small_and_what_lies_beside_it_changes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "TASK_BYTES", 80_000)
    monkeypatch.setattr(stages, "SMALL", 100_000)
    for number, size in enumerate((300_000, 30_000, 5_000, 400_000)):
        write(tmp_path / "a" / f"{number}.ndjson", {"resourceType": "Basic", "id": "x" * size})
    alone = stages.tasks_of(cast(Any, paths_of(tmp_path)))
    write(tmp_path / "b" / "0.ndjson", *({"resourceType": "Basic", "id": "y" * 10_000} for _ in range(7)))
    beside = stages.tasks_of(cast(Any, paths_of(tmp_path)))
    assert beside[: len(alone)] == alone
    assert [task["bytes"] for task in beside[len(alone) :]] == [(tmp_path / "b" / "0.ndjson").stat().st_size]
    sizes = [task["bytes"] for task in alone]
    assert sum(sizes) == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert max(sizes) == 80_000
    assert all(size <= max(sum(sizes[at:]) // 4, 10_000) for at, size in enumerate(sizes))
    spans = [task["span"] for task in alone if task["files"][0][0].endswith("3.ndjson")]
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]


@pytest.mark.usefixtures("small_tasks")
def test_the_number_of_workers_and_the_order_of_files_change_nothing(export: Path, tmp_path: Path) -> None:
    ingest(export, tmp_path / "one", workers=1)
    ingest(export, tmp_path / "three", workers=3)
    same(tmp_path / "one", tmp_path / "three")
    files = sorted(p for p in export.rglob("*") if p.is_file())
    ingest(files, tmp_path / "sorted", workers=1)
    ingest(files[::-1], tmp_path / "reversed", workers=2)
    same(tmp_path / "sorted", tmp_path / "reversed")


def test_a_source_in_memory_goes_to_a_folder_too(tmp_path: Path) -> None:
    records = [patient("p"), observation("o", "p", 3)]
    ingest(records, tmp_path / "out")
    assert_frame_equal(Timelines.load(tmp_path / "out").events, read_fhir(records).events, categorical_as_str=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_without_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(shards, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(stages, "SMALL", 0)
    export = tmp_path / "export"
    write(export / "silent.ndjson", *({"resourceType": "Patient", "id": f"s{n}"} for n in range(20)))
    silent = ingest(export, tmp_path / "silent", workers=workers)
    assert (silent.subjects, silent.events) == (20, 0)
    write(export / "one.ndjson", patient("p"), observation("o", "p", 3))
    done = ingest(export, tmp_path / "out", workers=workers)
    in_memory = read_fhir(export)
    assert done.summary() == in_memory.summary()
    assert_frame_equal(done.load().events, in_memory.events, categorical_as_str=True)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("small_tasks")
def test_strict_stops_at_the_first_that_cannot_be_read(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    (export / "0.ndjson").write_text('{"resourceType": "Observation", \n')
    read: list[int] = []
    plain = stages.read_task

    def watched(job: dict[str, Any], advance: Any) -> Any:
        read.append(1)
        return plain(job, advance)

    monkeypatch.setattr(stages, "read_task", watched)
    with pytest.raises(SourceError, match=r"found one that cannot \(malformed_json\)"):
        ingest(export, tmp_path / "out", strict=True, workers=workers)
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))
    if workers == 1:  # else others may be under way
        assert len(read) == 1


def test_strict_does_not_take_over_what_a_tolerant_run_has_read(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "survey", stop)
    with pytest.raises(KeyboardInterrupt):
        ingest(export, tmp_path / "out")
    with pytest.raises(SourceError, match="one that cannot"):
        ingest(export, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()


def test_a_strict_reading_of_what_can_be_read_is_the_tolerant_one(export: Path, tmp_path: Path) -> None:
    lines = export / "a" / "Observation.ndjson"
    lines.write_text("".join(f"{line}\n" for line in lines.read_text().splitlines() if line.endswith("}")))
    ingest(export, tmp_path / "tolerant")
    ingest(export, tmp_path / "strict", strict=True)
    same(tmp_path / "tolerant", tmp_path / "strict")
    with pytest.raises(SourceError, match="no_resource_type"):
        ingest([patient("p"), {"id": "x"}], tmp_path / "out", strict=True)


def test_a_folder_of_somebody_else_is_left_alone(export: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="output folder"):
        ingest(export, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_no_workers(export: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one worker"):
        ingest(export, tmp_path / "out", workers=-1)


# -- references, identity


def test_references_lead_across_files_and_bundles(tmp_path: Path) -> None:
    stay = encounter("e", "a", "2020-01-01", "2020-01-05")
    cases = [
        {"reference": "Patient/a"},
        {"reference": "https://x.org/fhir/Patient/a/_history/4"},
        {"reference": "urn:uuid:of-a"},
        {"reference": "Patient?identifier=mrn|7"},
        {"identifier": {"system": "mrn", "value": "7"}},
    ]
    for n, case in enumerate(cases):
        write(tmp_path / "x" / f"{n}.ndjson", observation(f"o{n}", "", n) | {"subject": case})
    write(tmp_path / "x" / "c.ndjson", condition("c", "a", "e"))
    write(tmp_path / "x" / "e.ndjson", stay)
    person = patient("a", identifier=[{"system": "mrn", "value": "7"}])
    bundle = {"resourceType": "Bundle", "entry": [{"fullUrl": "urn:uuid:of-a", "resource": person}]}
    (tmp_path / "x" / "zz.json").write_text(json.dumps(bundle))
    events = read_fhir(tmp_path / "x").events
    found = events.filter(pl.col("resource_type") == "Observation")["resource_id"]
    assert sorted(found) == ["o0", "o1", "o2", "o3", "o4"]
    assert events.filter(pl.col("resource_id") == "c")["encounter_id"].to_list() == ["e"]


def test_a_bundles_own_names_come_first() -> None:
    def bundle(name: str) -> dict[str, Any]:
        mine = observation(f"o-{name}", "", 1) | {"subject": {"reference": "urn:uuid:1"}}
        entries = [{"resource": mine}, {"fullUrl": "urn:uuid:1", "resource": patient(name)}]
        return {"resourceType": "Bundle", "entry": entries}

    events = read_fhir([bundle("a"), bundle("b")]).events
    for name in "ab":
        found = events.filter(pl.col("resource_id") == f"o-{name}")["subject_id"].to_list()
        assert found == [subject_number(f"Patient/{name}")]


def test_the_newest_version_counts_also_where_it_names_another_patient() -> None:
    def version(who: str, number: float, when: str | None, version_id: str | None) -> dict[str, Any]:
        meta = {"lastUpdated": when, "versionId": version_id}
        return observation("o", who, number, meta={k: v for k, v in meta.items() if v})

    people = [patient(f"p{i}") for i in range(8)]
    by_time = [version("p0", 1, "2021-01-01T00:00:00Z", None), version("p5", 2, "2021-01-02T00:00:00Z", None)]
    by_number = [version("p0", 1, None, "9"), version("p5", 2, None, "10")]
    for versions in (by_time, by_time[::-1], by_number, by_number[::-1]):
        timelines = read_fhir([*people, *versions])
        assert value(timelines, "o") == [2]
        subject = timelines.events.filter(pl.col("resource_id") == "o")["subject_id"].item()
        assert subject == subject_number("Patient/p5")


def test_records_without_id_are_one_where_their_content_is_one() -> None:
    bare = {k: v for k, v in observation("o", "p", 3).items() if k != "id"}
    timelines = read_fhir([patient("p"), bare, dict(reversed(bare.items())), bare | {"effectiveDateTime": "2021"}])
    assert timelines.events.filter(pl.col("resource_type") == "Observation").height == 2


def test_deletions() -> None:
    def gone(url: str, when: str | None) -> dict[str, Any]:
        entry = {"request": {"method": "DELETE", "url": url}}
        return {"resourceType": "Bundle", "type": "history",
                "entry": [entry | ({"response": {"lastModified": when}} if when else {})]}  # fmt: skip

    def at(day: int) -> dict[str, Any]:
        return observation("o", "p", day, meta={"lastUpdated": f"2021-01-{day:02}T00:00:00Z"})

    deleted = gone("Observation/o", "2021-01-05T00:00:00Z")
    timelines = read_fhir([patient("p"), at(3), deleted, at(4)])
    assert value(timelines, "o") == []
    assert timelines.ledger is not None
    assert timelines.ledger.filter(pl.col("reason") == "deleted")["count"].sum() == 3
    assert value(read_fhir([patient("p"), deleted, at(6), at(3)]), "o") == [6]
    assert value(read_fhir([patient("p"), at(6), gone("Observation/o", None)]), "o") == []
    assert value(read_fhir([patient("p"), at(6), gone("Organization/o", None)]), "o") == [6]


# -- merged patients


def link(kind: str, other: str) -> dict[str, Any]:
    return {"link": [{"type": kind, "other": {"reference": f"Patient/{other}"}}]}


def test_a_merged_patients_records_are_the_other_patients() -> None:
    for people in (
        [patient("old", **link("replaced-by", "mid")), patient("mid", **link("replaced-by", "new")), patient("new")],
        [patient("mid", **link("replaces", "old")), patient("new", **link("replaces", "mid"))],
    ):
        timelines = read_fhir([*people, observation("o", "old", 1), observation("n", "new", 2)])
        assert timelines.subjects["patient"].to_list() == ["new"]
        assert sorted(timelines.events["resource_id"].unique()) == ["n", "new", "o"]


def test_a_merge_that_cannot_be_followed_is_none() -> None:
    circle = [patient("a", **link("replaced-by", "b")), patient("b", **link("replaced-by", "a"))]
    assert len(read_fhir(circle)) == 2
    assert len(read_fhir([patient("a", **link("replaced-by", "nobody"))])) == 1
    assert len(read_fhir([patient("a", **link("seealso", "b")), patient("b")])) == 2


@pytest.mark.usefixtures("small_tasks")
def test_merged_patients_in_other_shards(tmp_path: Path) -> None:
    people = [patient(f"p{i}", **(link("replaced-by", f"p{i - 1}") if i % 2 else {})) for i in range(40)]
    records = [*people, *(observation(f"o{i}", f"p{i}", i) for i in range(40))]
    write(tmp_path / "x" / "all.ndjson", *records)
    ingest(tmp_path / "x", tmp_path / "out", workers=1)
    loaded, whole = Timelines.load(tmp_path / "out"), read_fhir(records)
    assert len(loaded) == 20
    assert_frame_equal(loaded.events, whole.events, categorical_as_str=True)
    counts = loaded.events.filter(pl.col("resource_type") == "Observation").group_by("subject_id").len()
    assert counts["len"].to_list() == [2] * 20


# -- interruption


SCRIPT = """
import sys
from ehrseq.timeline import ingest as stages, shards
stages.TASK_BYTES, shards.ROWS_AT_ONCE, stages.SMALL = 20_000, 400, 0
stages.ingest(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
"""


def test_killed_at_any_moment_a_rerun_gives_the_same_bytes(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room, name, value in ((stages, "TASK_BYTES", 20_000), (shards, "ROWS_AT_ONCE", 400), (stages, "SMALL", 0)):
        monkeypatch.setattr(room, name, value)  # as in the script

    def start(out: Path, workers: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(export), str(out), str(workers)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    began = time.monotonic()
    assert start(tmp_path / "whole", 1).wait() == 0
    took = time.monotonic() - began
    rng = random.Random(11)
    interrupted = 0
    for moment in range(10):
        out = tmp_path / f"out{moment}"
        if moment % 2:  # an earlier dataset stands there, and is whole until the new one is
            shutil.copytree(tmp_path / "whole", out)
        process = start(out, 1 + moment % 2)
        time.sleep(took * rng.uniform(0.2, 1.0))
        process.send_signal(signal.SIGKILL)
        interrupted += process.wait() != 0
        if out.exists():
            same(tmp_path / "whole", out)
        ingest(export, out, workers=1)  # in this process, which has the imports behind it
        same(tmp_path / "whole", out)
    assert interrupted >= 5
    time.sleep(0.5)  # a worker notices that its process is gone, and ends


@pytest.mark.usefixtures("small_tasks")
def test_finished_tasks_are_not_read_again(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(export, tmp_path / "whole", workers=1)
    read: list[str] = []
    original = stages.read_task

    def count(job: dict[str, Any], advance: Any) -> None:
        if len(read) == 4:
            raise KeyboardInterrupt
        read.append(job["folder"])
        original(job, advance)

    monkeypatch.setattr(stages, "read_task", count)
    with pytest.raises(KeyboardInterrupt):
        ingest(export, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    first = read.copy()
    write(export / "b" / "Encounter.ndjson", encounter("e", "p0", "2020-01-01"))  # changed since
    read.clear()

    def note(job: dict[str, Any], advance: Any) -> None:
        read.append(job["folder"])
        original(job, advance)

    monkeypatch.setattr(stages, "read_task", note)
    ingest(export, tmp_path / "out", workers=1)
    assert set(first) & set(read) == set()
    shutil.rmtree(tmp_path / "whole")
    ingest(export, tmp_path / "whole", workers=1)
    same(tmp_path / "whole", tmp_path / "out")


def test_killed_between_the_two_steps_of_giving_the_name(export: Path, tmp_path: Path) -> None:
    ingest(export, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.retired")
    with pytest.raises(SourceError):
        ingest(tmp_path / "nothing", tmp_path / "out")
    assert Timelines.load(tmp_path / "out").events.height


# -- updates


def later_export(folder: Path) -> None:
    """New patients and records, corrections, a merge, a record that moves, and deletions."""
    newer = {"meta": {"lastUpdated": "2022-01-01T00:00:00Z"}}
    write(folder / "Patient.ndjson", patient("n1"), patient("p2", **newer, birthDate="1961-01-01"),
          patient("p3", **newer, link=[{"type": "replaced-by", "other": {"reference": "Patient/p4"}}]))  # fmt: skip
    write(folder / "Observation.ndjson", observation("n1-o", "n1", 5), observation("op5-0", "p5", 6, **newer),
          observation("op6-0", "p7", 7, **newer),
          observation("op8-0", "p8", 1) | {"status": "entered-in-error"} | newer)  # fmt: skip
    write(folder / "Encounter.ndjson", encounter("ep9", "p9", "2020-03-01", "2020-06-09") | newer)
    deleted = [
        {"request": {"method": "DELETE", "url": f"Observation/op{i}-1"}, "response": {"lastModified": "2022-02-02"}}
        for i in range(5)
    ]
    deleted.append({"request": {"method": "DELETE", "url": "Patient/p10"}})
    write(folder / "deleted" / "1.ndjson", {"resourceType": "Bundle", "type": "transaction", "entry": deleted})


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("small_tasks")
def test_an_update_is_a_rebuild(export: Path, tmp_path: Path, workers: int) -> None:
    later_export(tmp_path / "later")
    ingest([export, tmp_path / "later"], tmp_path / "rebuilt", data_cut="2023-01-01")
    ingest(export, tmp_path / "out", workers=workers)
    before = Timelines.load(tmp_path / "out")
    ingest(tmp_path / "later", tmp_path / "out", update=True, data_cut="2023-01-01", workers=workers)
    same(tmp_path / "rebuilt", tmp_path / "out")
    after = Timelines.load(tmp_path / "out")
    assert len(after) == len(before) + 1 - 2
    assert value(after, "op5-0") == [6]
    assert value(after, "op0-1") == []
    assert value(after, "op8-0") == []
    ends = after.events.filter(pl.col("resource_id") == "cp9")["known_time"].item()
    assert ends.month == 6


def test_the_data_cut_and_the_coding_stay(export: Path, tmp_path: Path) -> None:
    later_export(tmp_path / "later")
    ingest(export, tmp_path / "out", data_cut="2023-01-01")
    ingest(tmp_path / "later", tmp_path / "out", update=True)
    assert Timelines.load(tmp_path / "out").metadata["data_cut"] == "2023-01-01T23:59:59.999999"


def test_the_same_file_changed_is_another_one(tmp_path: Path) -> None:
    write(tmp_path / "x.ndjson", patient("p"), observation("o", "p", 1))
    ingest(tmp_path / "x.ndjson", tmp_path / "out")
    newer = {"meta": {"lastUpdated": "2022-01-01T00:00:00Z"}}
    write(tmp_path / "x.ndjson", observation("o", "p", 2, **newer))
    ingest(tmp_path / "x.ndjson", tmp_path / "out", update=True)
    loaded = Timelines.load(tmp_path / "out")
    assert value(loaded, "o") == [2]
    assert loaded.sources is not None
    assert loaded.sources.height == 2


def test_there_must_be_something_to_update(export: Path, tmp_path: Path) -> None:
    with pytest.raises(TimelineError, match="no such folder"):
        ingest(export, tmp_path / "out", update=True)
    read_fhir(export).save(tmp_path / "out")
    with pytest.raises(TimelineError, match="without its ingest folder"):
        ingest(export, tmp_path / "out", update=True)
    assert Timelines.load(tmp_path / "out").events.height
