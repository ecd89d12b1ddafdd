"""The same 100 patients in R4 and in STU3: one timeline, but for what only one of the two files says."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.store import Timelines

# All columns of an event but for the ids of records, which differ between the two exports.
COLUMNS = [
    "subject_id", "time", "code", "numeric_value", "text_value", "value_modifier", "unit", "known_time",
    "time_source", "time_precision", "utc_offset", "resource_type",
]  # fmt: skip
DEMOGRAPHICS = pl.col("code").str.contains("^(RACE|ETHNICITY)//")
BILLS = pl.col("resource_type") == "ExplanationOfBenefit"


@pytest.fixture(scope="module")
def pair(data_folder: Path) -> dict[str, Timelines]:
    return {version: read_fhir(data_folder / "version_pair" / version) for version in ("r4", "stu3")}


def compared(timelines: Timelines) -> pl.DataFrame:
    frame = timelines.events.select(COLUMNS).with_columns(pl.col(pl.Categorical).cast(pl.String))
    return frame.sort(pl.all(), nulls_last=True)


@cache
def resources(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The Patients and the bills of a folder, decoded once."""
    found: dict[str, list[dict[str, Any]]] = {"Patient": [], "ExplanationOfBenefit": []}
    for path in sorted(folder.glob("*.json.gz")):
        for entry in msgspec.json.decode(gzip.decompress(path.read_bytes())).get("entry", []):
            if (kind := entry["resource"]["resourceType"]) in found:
                found[kind].append(entry["resource"])
    return found


def test_the_timelines_agree_on_all_that_is_in_both(pair: dict[str, Timelines]) -> None:
    r4, stu3 = compared(pair["r4"]), compared(pair["stu3"])
    assert_frame_equal(r4, stu3.filter(~DEMOGRAPHICS & ~BILLS))
    assert r4.height > 37_000
    # nothing of either difference is in R4
    assert r4.filter(DEMOGRAPHICS | BILLS).is_empty()


def test_first_difference_the_r4_files_have_no_race_or_ethnicity(pair: dict[str, Timelines], data_folder: Path) -> None:
    """Their Patients lack the US Core extensions."""
    for version, expected in (("r4", 0), ("stu3", 100)):
        with_race = sum(
            any(e["url"].endswith("us-core-race") for e in patient.get("extension", []))
            for patient in resources(data_folder / "version_pair" / version)["Patient"]
        )
        events = pair[version].events
        assert with_race == expected
        assert events.filter(pl.col("code").str.starts_with("RACE//"))["subject_id"].n_unique() == expected


def test_second_difference_most_stu3_bills_name_no_claim(pair: dict[str, Timelines], data_folder: Path) -> None:
    """In R4 every ExplanationOfBenefit names the Claim (and so the Encounters and Procedures) that it settles: it says
    nothing new. In STU3 most name no record at all, so the codes of their items are events."""
    named = {
        version: [
            "reference" in bill.get("claim", {})
            for bill in resources(data_folder / "version_pair" / version)["ExplanationOfBenefit"]
        ]
        for version in ("r4", "stu3")
    }
    assert (len(named["r4"]), all(named["r4"])) == (3697, True)
    assert (len(named["stu3"]), sum(named["stu3"])) == (3697, 813)
    bills = pair["stu3"].events.filter(BILLS)
    assert 0 < bills["resource_id"].n_unique() <= 3697 - 813
    # and they say nothing that a record of the patient does not say too
    others = pair["stu3"].events.filter(~BILLS).select("subject_id", "code").unique()
    assert bills.join(others, on=["subject_id", "code"], how="anti").is_empty()


def test_the_ledgers_agree_too(pair: dict[str, Timelines]) -> None:
    """But for the bills and the orders that they contain, and for CareTeam and Group, which only the R4 files have."""
    only_one = ["CareTeam", "Group", "ExplanationOfBenefit", "ServiceRequest", "ReferralRequest"]
    left, right = (
        pair[version]
        .ledger.group_by("resource_type", "fate", "reason")  # type: ignore[union-attr]
        .agg(pl.col("count").sum())
        .filter(~pl.col("resource_type").is_in(only_one))
        .sort("resource_type", "fate", "reason")
        for version in ("r4", "stu3")
    )
    assert_frame_equal(left, right)


@pytest.mark.parametrize("version", ["r4", "stu3"])
def test_all_clinical_records_give_events(pair: dict[str, Timelines], version: str) -> None:
    ledger = pair[version].ledger
    assert ledger is not None
    clinical = ("Observation", "Condition", "Procedure", "Encounter", "Immunization", "MedicationRequest", "CarePlan",
                "DiagnosticReport", "ImagingStudy", "AllergyIntolerance", "Patient")  # fmt: skip
    rows = ledger.filter(pl.col("resource_type").is_in(clinical))
    assert set(rows["fate"]) == {"events"}
    assert rows["count"].sum() == 28_004
