"""An export as it stood at a moment, and the same export years later: what was known then is the same in both.

The earlier export is made by hand from the later one, resource by resource: what did not exist yet is taken away, what
ended later is open again. This is the leak that no test on finished timelines can see.
"""

from __future__ import annotations

import calendar
import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrseq.config import BoostedConfig, LabConfig, ModelConfig, NetworkConfig, TrainingConfig
from ehrseq.estimator import ProgressionModel
from ehrseq.synthetic import simulate
from ehrseq.task.definition import Task
from ehrseq.task.history import visible
from ehrseq.task.label import known_at_risk
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.store import Timelines

Resource = dict[str, Any]
PERIODS = ("period", "effectivePeriod", "performedPeriod", "occurrencePeriod", "timingPeriod", "identifiedPeriod",
           "createdPeriod", "collectedPeriod", "billablePeriod")  # fmt: skip
# what sums up a period is there once the period is over; everything else when it begins
RESULTS = ("Observation", "ClinicalImpression", "RiskAssessment", "DetectedIssue", "Claim")
# the dates by which a record exists, the first of each group that is there; with several groups, the latest
RECORDED = (("recordedDate", "dateAsserted", "issued"), ("authoredOn", "whenHandedOver", "performedDateTime",
             "effectiveDateTime", "occurrenceDateTime"))  # fmt: skip
SMALL = ModelConfig(
    NetworkConfig(width=16, layers=2, heads=2, intervals=4, min_subjects=3, max_events=60),
    TrainingConfig(max_epochs=1, landmarks_per_subject=3, tuning_landmarks_per_subject=3, members=1),
    BoostedConfig(landmarks_per_subject=3, max_trees=15),
    labs=LabConfig(members=1, passes=1, landmarks_per_subject=1),  # their forecasts are not compared
)


def moment(text: str) -> datetime:
    """The end of what is written, in UTC."""
    if len(text) == 4:
        text += "-12"
    if len(text) == 7:
        text += f"-{calendar.monthrange(int(text[:4]), int(text[5:]))[1]}"
    when = datetime.fromisoformat(text)
    if len(text) == 10:
        return when + timedelta(days=1, microseconds=-1)
    return when if when.tzinfo is None else when.astimezone(UTC).replace(tzinfo=None)


def person(resource: Resource) -> str:
    if resource["resourceType"] == "Patient":
        return str(resource["id"])
    who = next(resource[name] for name in ("subject", "patient", "individual", "beneficiary") if name in resource)
    return str(who["reference"]).removeprefix("Patient/")


def as_it_stood(resources: list[Resource], at: dict[str, datetime], undone: Counter[str]) -> Iterator[Resource]:
    """What of each patient's records existed at a moment, in the state of that moment; counts what was undone."""
    stays = {r["id"]: r["period"] for r in resources if r["resourceType"] == "Encounter"}
    for original in resources:
        kind = original["resourceType"]
        try:
            when = at[person(original)]
        except (KeyError, StopIteration):  # about nobody: a Medication, an Organization
            yield original
            continue
        if not _exists(original, stays, when):
            undone[f"{kind} taken away"] += 1
            continue
        resource = msgspec.json.decode(msgspec.json.encode(original))
        for name in ("deceasedDateTime", "abatementDateTime"):
            if name in resource and moment(resource[name]) > when:
                del resource[name]
                undone[f"{kind} {name}"] += 1
        if kind == "Patient" and resource.pop("deceasedBoolean", None):
            undone["Patient deceasedBoolean"] += 1
        for name, holder in _periods(resource):
            if "end" in holder[name] and moment(holder[name]["end"]) > when:
                del holder[name]["end"]
                resource["status"] = "in-progress"
                resource.pop("hospitalization", None)
                undone[f"{kind} end"] += 1
        yield resource


def _periods(resource: Resource) -> list[tuple[str, Resource]]:
    """The names of a record's periods, and the objects that hold them."""
    holders = (resource, resource.get("collection", {}))
    return [(name, holder) for name in PERIODS for holder in holders if name in holder]


def _exists(resource: Resource, stays: dict[str, Any], when: datetime) -> bool:
    """Whether a record may have existed at a moment: one without any date did as soon as its encounter had begun."""
    # an order is there before the time that it is for
    for name, holder in _periods(resource) if "authoredOn" not in resource else ():
        first = "end" if resource["resourceType"] in RESULTS else "start"
        return moment(holder[name].get(first) or holder[name]["start"]) <= when
    dates = [found[0] for group in RECORDED if (found := [resource[name] for name in group if name in resource])]
    if not dates and "onsetDateTime" in resource:
        dates = [resource["onsetDateTime"]]
    if "encounter" in resource and not dates:
        dates = [stays[resource["encounter"]["reference"].removeprefix("Encounter/")]["start"]]
    return all(moment(text) <= when for text in dates)


def seen(timelines: Timelines, queries: pl.DataFrame) -> pl.DataFrame:
    """The events that may be read at each subject's prediction time."""
    events = timelines.events.join(queries, on="subject_id")
    known = visible(pl.col("known_time"), pl.col("prediction_time")).fill_null(True)
    events = events.filter(known).with_columns(pl.col(pl.Categorical).cast(pl.String))
    return events.sort(pl.all())


def compare(resources: list[Resource], at: dict[str, datetime], task: Task, numbers: int) -> Counter[str]:
    """Assert that both exports show the same at each patient's moment; how often what was undone."""
    undone: Counter[str] = Counter()
    later, earlier = read_fhir(resources), read_fhir(list(as_it_stood(resources, at, undone)))
    names = later.subjects.select("subject_id", "patient")
    queries = names.select("subject_id", prediction_time=pl.col("patient").replace_strict(at))
    shown = seen(later, queries)
    assert shown.filter(pl.col("time").is_not_null()).height > numbers
    assert_frame_equal(seen(earlier, queries), shown)
    assert_frame_equal(known_at_risk(queries, earlier, task), known_at_risk(queries, later, task))
    model = ProgressionModel(SMALL).fit(later, task)
    a, b = (model.forecast(timelines, queries).risk for timelines in (earlier, later))
    columns = ["probability", "competing", "event_free"]
    assert a.height > 50
    assert a.drop(*columns).equals(b.drop(*columns))
    np.testing.assert_allclose(a.select(columns).to_numpy(), b.select(columns).to_numpy(), rtol=0, atol=1e-6)
    return undone


def coded(kind: str, name: str, who: str, field: str = "code", **fields: Any) -> Resource:
    concept = {"coding": [{"system": "http://snomed.info/sct", "code": name.split("-")[0]}]}
    return {"resourceType": kind, "id": name, "subject": {"reference": f"Patient/{who}"}, field: concept} | fields


def running(number: int, who: str, period: Resource, ordered: str) -> list[Resource]:
    """One record over a period of each other type that can have one."""
    about, fact = {"reference": f"Patient/{who}"}, {"coding": [{"system": "http://snomed.info/sct", "code": "period"}]}

    def record(kind: str, subject: str = "subject", **fields: Any) -> Resource:
        return {"resourceType": kind, "id": f"{kind}-{number}", subject: about, **json.loads(json.dumps(fields))}

    return [
        record("CarePlan", intent="plan", category=[fact], period=period),
        record("Flag", code=fact, period=period),
        record("DeviceUseStatement", device={"concept": fact}, timingPeriod=period),
        record("ServiceRequest", intent="order", code=fact, authoredOn=ordered, occurrencePeriod=period),
        record("SupplyDelivery", "patient", suppliedItem={"itemCodeableConcept": fact}, occurrencePeriod=period),
        record("NutritionIntake", consumedItem=[{"nutritionProduct": {"concept": fact}}], occurrencePeriod=period),
        record("AdverseEvent", actuality="actual", event=fact, occurrencePeriod=period),
        record("Specimen", type=fact, collection={"collectedPeriod": period}),
        record("Media", modality=fact, createdPeriod=period),
        record("ClinicalImpression", finding=[{"itemCodeableConcept": fact}], effectivePeriod=period),
        record("RiskAssessment", code=fact, occurrencePeriod=period),
        record("DetectedIssue", "patient", code=fact, identifiedPeriod=period),
        record("Claim", "patient", diagnosis=[{"diagnosisCodeableConcept": fact}], billablePeriod=period),
    ]


def enriched(n: int, seed: int) -> tuple[list[Resource], dict[str, datetime]]:
    """A simulated export with stays, periods, abatements and undated records; and for each patient a moment in it."""
    simulation, rng = simulate(n, seed=seed), random.Random(seed)
    resources = [r for kind in simulation.tables for r in simulation.resources(kind)]
    added: list[Resource] = []
    at: dict[str, datetime] = {r["id"]: datetime(2012, 1, 1) for r in resources if r["resourceType"] == "Patient"}

    def days(low: float, high: float) -> timedelta:
        return timedelta(days=round(rng.uniform(low, high), 3))

    def write(when: datetime) -> str:
        return when.strftime("%Y-%m-%dT%H:%M:%SZ") if rng.random() < 0.7 else when.strftime("%Y-%m-%d")

    for number, resource in enumerate(resources):
        if resource["resourceType"] == "Condition" and "recordedDate" in resource and rng.random() < 0.6:
            resource["abatementDateTime"] = write(moment(resource["recordedDate"]) + days(-300, 300))
        elif resource["resourceType"] == "Patient" and "deceasedDateTime" not in resource and rng.random() < 0.2:
            resource["deceasedBoolean"] = True
        elif resource["resourceType"] == "Encounter":
            who = person(resource)
            start = moment(resource["period"]["start"])
            if rng.random() < 0.7:
                resource["period"]["end"] = write(start + days(1, 20))
                resource["hospitalization"] = {"dischargeDisposition": {"text": "home"}}
            else:
                resource["period"].pop("end", None)
            period = {"start": write(start + days(0, 2)), "end": write(start + days(3, 40))}
            inside = {"encounter": {"reference": f"Encounter/{resource['id']}"}}
            added += [
                coded("Condition", f"undated-{number}", who, **inside),
                coded("Condition", f"passing-{number}", who, onsetDateTime=write(start),
                      abatementDateTime=write(start + days(0, 30)), **inside),
                coded("Observation", f"result-{number}", who, valueQuantity={"value": 1}, **inside),
                coded("Observation", f"day-{number}", who, effectivePeriod=period, valueQuantity={"value": 2}),
                coded("Procedure", f"surgery-{number}", who, performedPeriod=period, **inside),
                coded("MedicationAdministration", f"infusion-{number}", who, "medicationCodeableConcept",
                      effectivePeriod=period, **inside),
                coded("MedicationStatement", f"taken-{number}", who, "medicationCodeableConcept",
                      effectivePeriod=period),
                *running(number, who, period, write(start)),
            ]  # fmt: skip
            if rng.random() < 0.3:
                at[who] = start + days(0, 5)
    return resources + added, at


TASK = Task.from_dict(
    {
        "horizons": ["1y", "3y"],
        "outcomes": {
            "diabetes": {"codes": ["SNOMED//44054006"], "competing": ["death"]},
            "over": {"codes": ["ABATEMENT//SNOMED//*"], "incident": False},
        },
        "prediction_times": {"rule": "landmarks", "after_start": ["1y", "2y"]},
    }
)


def test_a_simulated_export_shows_at_a_moment_what_it_showed_then() -> None:
    resources, at = enriched(120, seed=3)
    undone = compare(resources, at, TASK, numbers=2000)
    found = set(read_fhir(resources).events["resource_type"].drop_nulls())
    assert found >= {r["resourceType"] for r in running(0, "p", {}, "")}
    # the export does hold each of the things that time undoes
    new = ("CarePlan", "Flag", "DeviceUseStatement", "SupplyDelivery", "NutritionIntake", "AdverseEvent", "Specimen",
           "Media")  # fmt: skip
    kinds = ("Procedure", "MedicationAdministration", "MedicationStatement", "Encounter", "ResearchSubject", *new)
    wanted = {f"{kind} end" for kind in kinds} | {
        f"{kind} taken away" for kind in (*kinds[:4], "Condition", *new, *RESULTS)
    }
    wanted |= {"Condition abatementDateTime", "Patient deceasedDateTime", "Patient deceasedBoolean"}
    assert {what for what in wanted if undone[what] < 5} == set()


def test_mimic_shows_at_a_moment_what_it_showed_then(data_folder: Path) -> None:
    files = sorted((data_folder / "mimic_iv_fhir_demo").glob("*.ndjson.gz"))
    decode = msgspec.json.decode
    resources = [decode(line) for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]
    stays: dict[str, list[datetime]] = {}
    for r in resources:
        if r["resourceType"] == "Encounter":
            stays.setdefault(person(r), []).append(moment(r["period"]["start"]))
    # the second day of the middle stay
    at = {who: sorted(starts)[len(starts) // 2] + timedelta(hours=30) for who, starts in stays.items()}
    task = Task.from_dict(
        {
            "horizons": ["30d", "1y"],
            "outcomes": {"readmission": {"codes": ["ENCOUNTER//inpatient/admission"], "incident": False,
                                         "competing": ["death"]}},
            "prediction_times": {"rule": "every_encounter"},
        }
    )  # fmt: skip
    undone = compare(resources, at, task, numbers=20_000)
    assert min(undone[f"{kind} end"] for kind in ("Encounter", "Procedure", "MedicationAdministration")) > 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2020-02", datetime(2020, 2, 29, 23, 59, 59, 999999)), ("2020-01-01T00:00:00-05:00", datetime(2020, 1, 1, 5))],
)
def test_moment(text: str, expected: datetime) -> None:
    assert moment(text) == expected
