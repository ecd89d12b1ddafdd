"""The resources are valid FHIR R4."""

from __future__ import annotations

from itertools import islice

import msgspec
import pytest
from fhir.resources.R4B import get_fhir_model_class

from ehrseq.synthetic import Simulation
from ehrseq.synthetic.resources import BUILDERS


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_resources_validate_as_r4(default: Simulation, kind: str) -> None:
    model = get_fhir_model_class(kind)
    every = max(default.tables[kind].height // 60, 1)
    checked = [
        model.model_validate_json(msgspec.json.encode(resource))
        for resource in islice(default.resources(kind), 0, None, every)
    ]
    assert {resource.__resource_type__ for resource in checked} == {kind}


def test_an_invalid_resource_would_be_noticed(default: Simulation) -> None:
    resource = next(default.resources("Observation"))
    del resource["status"]
    with pytest.raises(ValueError, match="status"):
        get_fhir_model_class("Observation").model_validate_json(msgspec.json.encode(resource))


def test_ids_are_unique_and_references_resolve(default: Simulation) -> None:
    ids = {kind: [r["id"] for r in default.resources(kind)] for kind in BUILDERS}
    assert all(len(set(v)) == len(v) > 0 for v in ids.values())
    people, encounters = set(ids["Patient"]), set(ids["Encounter"])
    for kind in BUILDERS:
        for resource in default.resources(kind):
            owner = resource.get("subject") or resource.get("individual")
            assert kind == "Patient" or owner["reference"].removeprefix("Patient/") in people
            if "encounter" in resource:
                assert resource["encounter"]["reference"].removeprefix("Encounter/") in encounters


def test_blood_pressure_is_a_panel_and_smoking_a_concept(default: Simulation) -> None:
    by_code = {r["code"]["coding"][0]["code"]: r for r in default.resources("Observation")}
    panel = by_code["85354-9"]
    assert [c["code"]["coding"][0]["code"] for c in panel["component"]] == ["8480-6", "8462-4"]
    assert panel["component"][0]["valueQuantity"]["value"] > panel["component"][1]["valueQuantity"]["value"]
    assert "valueQuantity" not in panel
    assert "valueCodeableConcept" in by_code["72166-2"]
