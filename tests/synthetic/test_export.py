"""The written export: layout, determinism, nothing of the truth in it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import polars as pl
import pytest

import ehrseq.synthetic.export as export
from ehrseq.errors import UserError
from ehrseq.storage import read_manifest
from ehrseq.synthetic import SimulationConfig, simulate, task_toml, write_simulation

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulated.toml"


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_layout_and_content(tmp_path: Path) -> None:
    out = write_simulation(tmp_path / "sim", 60, seed=3)
    kinds = ("Condition", "Encounter", "MedicationRequest", "Observation", "Patient", "ResearchSubject")
    assert sorted(_bytes(out)) == sorted(
        ["manifest.json", "task.toml", "truth.parquet", *(f"export/{kind}.ndjson" for kind in kinds)]
    )
    simulation = simulate(60, seed=3)
    assert pl.read_parquet(out / "truth.parquet").equals(simulation.truth)
    for kind in kinds:
        lines = (out / "export" / f"{kind}.ndjson").read_text().splitlines()
        assert [json.loads(line) for line in lines] == list(simulation.resources(kind))


def test_same_seed_same_bytes_other_seed_other_people(tmp_path: Path) -> None:
    first = _bytes(write_simulation(tmp_path / "a", 40, seed=3))
    assert first == _bytes(write_simulation(tmp_path / "b", 40, seed=3))
    other = _bytes(write_simulation(tmp_path / "c", 40, seed=4))
    assert first["export/Observation.ndjson"] != other["export/Observation.ndjson"]


def test_blocks_are_joined_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "BLOCK", 25)
    out = write_simulation(tmp_path / "sim", 60, seed=3)
    patients = [json.loads(line)["id"] for line in (out / "export" / "Patient.ndjson").read_text().splitlines()]
    assert patients == [f"sim-{i:07d}" for i in range(1, 61)]
    # a full block is the same people, however many come after it
    ten_more, simulation = simulate(70, seed=3), simulate(60, seed=3)
    last = f"sim-{50:07d}"
    for kind, table in simulation.tables.items():
        assert table.filter(pl.col("patient") <= last).equals(ten_more.tables[kind].filter(pl.col("patient") <= last))


def test_nothing_of_the_truth_is_in_the_export(tmp_path: Path) -> None:
    out = write_simulation(tmp_path / "sim", 60, seed=3)
    allowed = {
        "Patient": {"gender", "birthDate", "deceasedDateTime"},
        "ResearchSubject": {"status", "period", "study", "individual"},
        "Encounter": {"status", "class", "subject", "period"},
        "Condition": {
            "clinicalStatus", "verificationStatus", "category", "code", "subject", "encounter", "onsetDateTime",
            "recordedDate",
        },
        "Observation": {
            "status", "category", "code", "subject", "encounter", "effectiveDateTime", "valueQuantity",
            "valueCodeableConcept", "component",
        },
        "MedicationRequest": {
            "status", "intent", "medicationCodeableConcept", "subject", "encounter", "authoredOn",
        },
    }  # fmt: skip
    for kind, fields in allowed.items():
        for line in (out / "export" / f"{kind}.ndjson").read_text().splitlines():
            assert set(json.loads(line)) - {"resourceType", "id"} <= fields
    assert [p.name for p in (out / "export").iterdir() if p.suffix != ".ndjson"] == []


def test_every_parameter_is_in_the_manifest(tmp_path: Path) -> None:
    manifest = read_manifest(write_simulation(tmp_path / "sim", 5, seed=9), "simulation", 1)
    assert manifest["seed"] == 9
    assert manifest["subjects"] == 5
    assert manifest["config"] == json.loads(json.dumps(SimulationConfig().to_dict()))


def test_the_example_task_is_the_written_one() -> None:
    assert EXAMPLE.read_text() == task_toml()
    task = tomllib.loads(task_toml(SimulationConfig(landmarks=(3,), horizons=(2, 4))))
    assert task["horizons"] == ["2y", "4y"]
    assert task["prediction_times"]["after_start"] == ["3y"]
    assert task["outcomes"]["heart_failure"]["codes"] == ["SNOMED//84114007"]


@pytest.mark.parametrize(
    ("n", "config"),
    [(0, SimulationConfig()), (5, SimulationConfig(landmarks=(10,))), (5, SimulationConfig(horizons=()))],
)
def test_impossible_requests_are_refused(tmp_path: Path, n: int, config: SimulationConfig) -> None:
    with pytest.raises(UserError, match="expected"):
        write_simulation(tmp_path / "sim", n, config=config)
    assert not (tmp_path / "sim").exists()


def test_someone_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="output folder"):
        write_simulation(tmp_path / "mine", 5)
    with pytest.raises(UserError, match="seed"):
        write_simulation(tmp_path / "sim", 5, seed=-1)
    write_simulation(tmp_path / "sim", 5)
    write_simulation(tmp_path / "sim", 6)
    assert read_manifest(tmp_path / "sim", "simulation", 1)["subjects"] == 6
