"""From FHIR to timelines: linking, the time policy, duplicates, the ledger; and real exports."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ehrseq.errors import SourceError, UserError
from ehrseq.fhir.ledger import Reason
from ehrseq.task.definition import Task
from ehrseq.task.outcome import occurrences
from ehrseq.timeline.build import read_fhir, subject_number
from ehrseq.timeline.ingest import ingest
from ehrseq.timeline.schema import EVENT_SCHEMA, SUBJECT_SCHEMA, sort_events
from ehrseq.timeline.store import Timelines

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
PATIENT: dict[str, Any] = {"resourceType": "Patient", "id": "p", "gender": "male", "birthDate": "1950-06"}
ME = {"reference": "Patient/p"}
STAY = {
    "resourceType": "Encounter",
    "id": "e",
    "subject": ME,
    "class": {"code": "IMP"},
    "period": {"start": "2020-03-01T08:00:00+02:00", "end": "2020-03-09T12:00:00+02:00"},
}
START, END = datetime(2020, 3, 1, 6), datetime(2020, 3, 9, 10)
IN_STAY = {"encounter": {"reference": "Encounter/e"}}


def concept(code: str, system: str = SNOMED) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def condition(name: str = "c", **fields: Any) -> dict[str, Any]:
    return {"resourceType": "Condition", "id": name, "subject": ME, "code": concept(name)} | fields


def observation(name: str = "o", **fields: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "id": name, "status": "final", "subject": ME,
            "code": concept(name, LOINC)} | fields  # fmt: skip


def only(timelines: Timelines, name: str) -> dict[str, Any]:
    (row,) = timelines.events.filter(pl.col("resource_id") == name).iter_rows(named=True)
    return row


def reasons(timelines: Timelines) -> dict[tuple[str, str], int]:
    assert timelines.ledger is not None
    return {
        (row["resource_type"], row["reason"] or row["fate"]): row["count"]
        for row in timelines.ledger.group_by("resource_type", "fate", "reason")
        .agg(pl.col("count").sum())
        .iter_rows(named=True)
    }


# -- the time policy


def test_an_undated_encounter_diagnosis_is_known_at_the_encounters_end() -> None:
    row = only(read_fhir([PATIENT, STAY, condition(**IN_STAY)]), "c")
    assert (row["time"], row["known_time"]) == (START, END)
    assert (row["time_source"], row["time_precision"], row["utc_offset"]) == ("encounter", "second", 120)
    assert row["encounter_id"] == "e"


def test_an_onset_without_record_date_is_known_at_the_encounters_end_too() -> None:
    row = only(read_fhir([PATIENT, STAY, condition(onsetDateTime="2020-03-02", **IN_STAY)]), "c")
    assert (row["time"], row["known_time"], row["time_source"]) == (datetime(2020, 3, 2), END, "onset")


@pytest.mark.parametrize("field", ["recordedDate", "assertedDate"])
def test_a_back_dated_diagnosis_is_known_when_it_was_recorded(field: str) -> None:
    row = only(read_fhir([PATIENT, STAY, condition(onsetDateTime="2010", **{field: "2020-03-03"}, **IN_STAY)]), "c")
    assert row["time"] == datetime(2010, 1, 1)
    assert row["known_time"] == datetime(2020, 3, 3, 23, 59, 59, 999999)
    assert row["time_precision"] == "year"


def test_a_result_is_known_when_issued() -> None:
    day, issued = {"effectiveDateTime": "2020-03-02"}, {"issued": "2020-03-05T10:00:00Z"}
    timelines = read_fhir([PATIENT, observation("a", **day, **issued), observation("b", **day),
                           observation("c", **issued),
                           observation("d", effectivePeriod={"start": "2020-03-02", "end": "2020-03-04"})])  # fmt: skip
    assert only(timelines, "a")["known_time"] == datetime(2020, 3, 5, 10)
    assert only(timelines, "b")["known_time"] == datetime(2020, 3, 2, 23, 59, 59, 999999)
    assert only(timelines, "c")["time"] == datetime(2020, 3, 5, 10)
    assert only(timelines, "c")["time_source"] == "issued"
    assert only(timelines, "d")["time"] == datetime(2020, 3, 2)
    assert only(timelines, "d")["known_time"] == datetime(2020, 3, 4, 23, 59, 59, 999999)


def test_nothing_is_known_before_it_happened() -> None:
    row = only(read_fhir([PATIENT, observation(effectiveDateTime="2020-03-02T10:00:00Z", issued="2020-03-01")]), "o")
    assert row["known_time"] == row["time"] == datetime(2020, 3, 2, 10)


RUNNING = STAY | {"period": {"start": "2020-03-01T08:00:00+02:00"}}


def test_a_running_encounter_ends_at_the_data_cut() -> None:
    records = [PATIENT, RUNNING, condition(**IN_STAY)]
    assert only(read_fhir(records, data_cut=datetime(2020, 4, 1)), "c")["known_time"] == datetime(2020, 4, 1)


def test_without_a_cut_what_is_known_at_a_running_encounters_end_is_not_known_yet() -> None:
    records = [
        PATIENT,
        RUNNING,
        condition(**IN_STAY),
        condition("onset", onsetDateTime="2020-03-02", abatementDateTime="2020-03-03", **IN_STAY),
        condition("recorded", recordedDate="2020-03-02", **IN_STAY),
        observation(**IN_STAY),
        observation("dated", effectiveDateTime="2020-03-02", **IN_STAY),
    ]
    timelines = read_fhir(records)
    found = reasons(timelines)
    assert (found["Condition", "encounter_open"], found["Observation", "encounter_open"]) == (2, 1)
    assert {"recorded", "dated", "e"} == set(timelines.events["resource_id"]) - {"p"}
    assert timelines.subjects["follow_up_end"].item() == datetime(2020, 3, 2, 23, 59, 59, 999999)
    # nothing that anybody else's records say of later times changes that
    q = PATIENT | {"id": "q"}
    later = observation("late", effectiveDateTime="2030-01-01", subject={"reference": "Patient/q"})
    more = read_fhir([*records, q, later])
    me = pl.col("subject_id") == subject_number("Patient/p")
    assert_frame_equal(more.events.filter(me), timelines.events, categorical_as_str=True)
    assert_frame_equal(more.subjects.filter(me), timelines.subjects)


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        # recorded long after it was over
        (
            {"onsetDateTime": "2010", "abatementDateTime": "2012", "recordedDate": "2015-01-01T10:00:00Z"},
            datetime(2015, 1, 1, 10),
        ),
        # over within the stay whose end makes it known
        ({"onsetDateTime": "2020-03-02", "abatementDateTime": "2020-03-03", **IN_STAY}, END),
        ({"abatementDateTime": "2020-03-03", **IN_STAY}, END),
        # over after it became known
        (
            {"onsetDateTime": "2010", "recordedDate": "2011", "abatementDateTime": "2020-05-01"},
            datetime(2020, 5, 1, 23, 59, 59, 999999),
        ),
        ({"abatementDateTime": "2020-05-01T10:00:00Z", **IN_STAY}, datetime(2020, 5, 1, 10)),
    ],
)
def test_an_end_of_illness_is_not_known_before_the_illness(fields: dict[str, Any], known: datetime) -> None:
    events = read_fhir([PATIENT, STAY, condition(**fields)]).events.filter(pl.col("resource_id") == "c")
    ends = events.filter(pl.col("code").str.starts_with("ABATEMENT//"))
    assert ends["known_time"].to_list() == [known]
    assert ends["time"].item() == min(ends["time"].item(), known)
    assert (events["known_time"] <= known).all()


def test_an_end_of_illness_without_a_readable_date_is_left_out() -> None:
    timelines = read_fhir([PATIENT, STAY, condition(abatementDateTime="last year", **IN_STAY)])
    assert only(timelines, "c")["code"] == "SNOMED//c"
    assert timelines.metadata["events_left_out"] == {"invalid_time": 1}


def test_an_encounter_that_is_not_there_or_has_no_dates_gives_no_time() -> None:
    dateless = {k: v for k, v in STAY.items() if k != "period"}
    for other in ([], [dateless], [STAY | {"status": "planned"}], [STAY | {"status": "entered-in-error"}]):
        timelines = read_fhir([PATIENT, *other, condition(**IN_STAY), observation()])
        assert reasons(timelines)["Condition", "no_time"] == 1
        assert reasons(timelines)["Observation", "no_time"] == 1


def test_stu3_context_links_as_encounter_does() -> None:
    row = only(read_fhir([PATIENT, STAY, condition(context={"reference": "Encounter/e"})]), "c")
    assert row["time_source"] == "encounter"


# -- birth and death


def test_birth_is_the_start_and_death_the_end_of_what_is_written() -> None:
    timelines = read_fhir([PATIENT | {"deceasedDateTime": "2021-05-05"}])
    subject = timelines.subjects.row(0, named=True)
    death = datetime(2021, 5, 5, 23, 59, 59, 999999)
    assert (subject["birth_time"], subject["death_time"]) == (datetime(1950, 6, 1), death)
    rows = timelines.events.filter(pl.col("time").is_not_null()).select("code", "time", "known_time").rows()
    assert rows == [
        ("MEDS_BIRTH", datetime(1950, 6, 1), datetime(1950, 6, 30, 23, 59, 59, 999999)),
        ("MEDS_DEATH", death, death),
    ]


def test_the_day_of_death_stays_and_the_day_after_goes() -> None:
    dead = PATIENT | {"deceasedDateTime": "2021-05-05"}
    timelines = read_fhir([
        dead,
        observation("same-day", effectiveDateTime="2021-05-05"),
        observation("evening", effectiveDateTime="2021-05-05T22:00:00-05:00"),  # the 6th in UTC
        observation("after", effectiveDateTime="2021-05-06"),
        STAY | {"period": {"start": "2021-05-01", "end": "2021-05-07"}},
    ])  # fmt: skip
    assert {"same-day", "evening"} <= set(timelines.events["resource_id"])
    assert reasons(timelines)["Observation", "after_death"] == 1
    assert reasons(timelines)["Encounter", "events"] == 1
    assert timelines.metadata["events_left_out"] == {"after_death": 1}
    assert not timelines.events["code"].str.ends_with("/discharge").any()


@pytest.mark.parametrize(
    ("zones", "end"),
    [
        (("-05:00",), datetime(2021, 5, 6, 4, 59, 59, 999999)),
        (("-04:00", "-05:00", "-04:00"), datetime(2021, 5, 6, 4, 59, 59, 999999)),  # over when it is over in both
        (("+02:00",), datetime(2021, 5, 5, 21, 59, 59, 999999)),
        (("Z",), datetime(2021, 5, 5, 23, 59, 59, 999999)),
        ((), datetime(2021, 5, 5, 23, 59, 59, 999999)),
    ],
)
def test_a_day_of_death_ends_where_the_records_were_written(zones: tuple[str, ...], end: datetime) -> None:
    dead = [PATIENT | {"deceasedDateTime": "2021-05-05"}, PATIENT | {"id": "q", "deceasedDateTime": "2021-05-05"}]
    written = [
        observation(f"{i}", effectiveDateTime=f"2021-05-05T23:30:00{zone}", issued=f"2021-05-05T23:40:00{zone}")
        for i, zone in enumerate(zones)
    ]
    timelines = read_fhir([*dead, *written, observation("date", effectiveDateTime="2021-05-05")])
    assert timelines.events.filter(pl.col("resource_type") == "Observation").height == len(zones) + 1
    deaths = dict(timelines.subjects.select("patient", "death_time").iter_rows())
    assert deaths == {"p": end, "q": datetime(2021, 5, 5, 23, 59, 59, 999999)}
    event = timelines.events.filter(
        (pl.col("code") == "MEDS_DEATH") & (pl.col("subject_id") == subject_number("Patient/p"))
    )
    assert event.select("time", "known_time").row(0) == (end, end)
    # other dates stay days of UTC
    assert only(timelines, "date")["known_time"] == datetime(2021, 5, 5, 23, 59, 59, 999999)
    assert (timelines.events["time"] <= timelines.events["known_time"]).all()


def test_a_death_with_a_clock_time_ends_there() -> None:
    dead = PATIENT | {"deceasedDateTime": "2021-05-05T10:00:00Z"}
    timelines = read_fhir(
        [dead, observation("a", effectiveDateTime="2021-05-05"),
         observation("b", effectiveDateTime="2021-05-05T10:00:01Z")]
    )  # fmt: skip
    assert "a" in timelines.events["resource_id"]
    assert reasons(timelines)["Observation", "after_death"] == 1


def test_before_birth() -> None:
    timelines = read_fhir([PATIENT, observation("a", effectiveDateTime="1950"),
                           observation("b", effectiveDateTime="1950-05-31")])  # fmt: skip
    assert only(timelines, "a")["time"] == datetime(1950, 6, 1)  # the year of birth can only mean what is left of it
    assert reasons(timelines)["Observation", "before_birth"] == 1


def test_a_patient_without_birth_date_or_anything() -> None:
    timelines = read_fhir([{"resourceType": "Patient", "id": "p"}, observation(effectiveDateTime="2020-01-01")])
    subject = timelines.subjects.row(0, named=True)
    assert subject["birth_time"] is None
    assert subject["sex"] is None
    assert reasons(timelines)["Patient", "no_facts"] == 1
    assert timelines.events.height == 1


# -- identity


def test_subject_ids_are_stable() -> None:
    subject = read_fhir([PATIENT]).subjects.row(0, named=True)
    assert (subject["patient"], subject["subject_id"]) == ("p", subject_number("Patient/p"))
    # written out: existing datasets and models rest on this number
    assert subject_number("Patient/p") == 6630586475809064281
    assert len({subject_number(f"Patient/{i}") for i in range(10_000)}) == 10_000


def test_the_same_record_in_several_bundles_counts_once() -> None:
    bundle = {"resourceType": "Bundle", "entry": [{"resource": PATIENT}, {"resource": STAY}]}
    timelines = read_fhir([bundle, bundle, PATIENT])
    assert_frame_equal(timelines.events, read_fhir([PATIENT, STAY]).events)
    assert reasons(timelines) == {
        ("Bundle", "container"): 2,
        ("Patient", "events"): 1, ("Patient", "duplicate"): 2,
        ("Encounter", "events"): 1, ("Encounter", "duplicate"): 1,
    }  # fmt: skip


def test_of_several_versions_the_last_updated_counts() -> None:
    def version(value: float, updated: str | None) -> dict[str, Any]:
        meta = {"meta": {"lastUpdated": updated}} if updated else {}
        return observation(effectiveDateTime="2020-03-02", valueQuantity={"value": value}, **meta)

    old, new, bare = version(1, "2020-03-03T00:00:00Z"), version(2, "2020-03-04T00:00:00Z"), version(3, None)
    for order in ([old, new, bare], [bare, new, old], [new, bare, old]):
        assert only(read_fhir([PATIENT, *order]), "o")["numeric_value"] == 2
    withdrawn = new | {"status": "entered-in-error"}
    assert reasons(read_fhir([PATIENT, old, withdrawn])).keys() >= {("Observation", "entered_in_error")}


RECORDS = [
    PATIENT,
    PATIENT | {"id": "q", "deceasedDateTime": "2021"},
    STAY,
    condition(**IN_STAY),
    condition("d", onsetDateTime="2020"),
    observation(effectiveDateTime="2020-03-02", valueQuantity={"value": 1}),
    observation(effectiveDateTime="2020-03-02", valueQuantity={"value": 2}),
    observation("x", subject={"reference": "Patient/q"}, effectiveDateTime="2020-03-02T10:00:00Z"),
    observation("y", subject={"reference": "Patient/zz"}),
    {"resourceType": "Claim", "id": "1"},
    {"resourceType": "Medication", "id": "m", "code": concept("drug")},
    {"resourceType": "Medication", "id": "m", "code": concept("other drug")},
    {"resourceType": "MedicationRequest", "id": "r", "subject": ME, "authoredOn": "2020-03-02",
     "medicationReference": {"reference": "Medication/m"}},
    {"resourceType": "ResearchSubject", "id": "s", "individual": ME, "period": {"start": "2020", "end": "2020-06"}},
]  # fmt: skip


@given(st.permutations(RECORDS))
@settings(max_examples=25, deadline=None)
def test_the_order_of_records_changes_nothing(records: list[dict[str, Any]]) -> None:
    expected, found = read_fhir(RECORDS), read_fhir(records)
    assert_frame_equal(found.events, expected.events, categorical_as_str=True)
    assert_frame_equal(found.subjects, expected.subjects)
    assert found.ledger is not None
    assert expected.ledger is not None
    assert_frame_equal(found.ledger, expected.ledger)
    assert found.ledger["count"].sum() == len(RECORDS)


# -- the result as a whole


def test_columns_and_order_of_the_contract() -> None:
    timelines = read_fhir(RECORDS)
    assert dict(timelines.events.schema) == EVENT_SCHEMA
    assert dict(timelines.subjects.schema) == SUBJECT_SCHEMA
    assert_frame_equal(timelines.events, sort_events(timelines.events))
    dated = timelines.events.filter(pl.col("time").is_not_null())
    assert (dated["known_time"] >= dated["time"]).all()


def test_follow_up_comes_from_research_subjects_or_the_data_cut() -> None:
    subjects = {row["patient"]: row for row in read_fhir(RECORDS, data_cut="2022-01-31").subjects.rows(named=True)}
    assert subjects["p"]["follow_up_rule"] == "observation_period"
    assert subjects["p"]["follow_up_start"] == datetime(2020, 1, 1)
    assert subjects["p"]["follow_up_end"] == datetime(2020, 6, 30, 23, 59, 59, 999999)
    assert subjects["q"]["follow_up_rule"] == "data_cut"
    assert subjects["q"]["follow_up_end"] == datetime(2022, 1, 31, 23, 59, 59, 999999)
    assert_frame_equal(
        read_fhir(RECORDS, data_cut=date(2022, 1, 31)).subjects,
        read_fhir(RECORDS, data_cut="2022-01-31").subjects,
    )


def research_subject(name: str, **fields: Any) -> dict[str, Any]:
    return {"resourceType": "ResearchSubject", "id": name, "individual": ME} | fields


def test_observation_periods_that_cannot_be_used_say_why() -> None:
    period = {"start": "2020", "end": "2021"}
    records = [
        PATIENT,
        research_subject("good", period=period),
        research_subject("open", period={"start": "2020"}),
        research_subject("nobody", period=period, individual={"reference": "Patient/zz"}),
        research_subject("group", period=period, individual={"reference": "Group/g"}),
        research_subject("bad-end", period={"start": "1999", "end": "soon"}),
        research_subject("bad-start", period={"start": "once", "end": "2030"}),
        research_subject("dateless"),
    ]
    timelines = read_fhir(records, data_cut="2022-01-01")
    found = {reason: n for (kind, reason), n in reasons(timelines).items() if kind == "ResearchSubject"}
    assert found == {"follow_up": 2, "unknown_subject": 1, "not_a_patient": 1, "invalid_time": 2, "no_time": 1}
    subject = timelines.subjects.row(0, named=True)
    assert (subject["follow_up_start"], subject["observation_start"]) == (datetime(2020, 1, 1), datetime(2020, 1, 1))


@pytest.mark.parametrize(("kind", "field"), [("EpisodeOfCare", "patient"), ("Coverage", "beneficiary")])
def test_episodes_and_coverages_that_cannot_be_used_say_why(kind: str, field: str) -> None:
    def record(name: str, who: str = "Patient/p", **fields: Any) -> dict[str, Any]:
        return {"resourceType": kind, "id": name, field: {"reference": who}} | fields

    period = {"start": "2020", "end": "2021"}
    records = [
        PATIENT,
        record("good", period=period),
        record("nobody", "Patient/zz", period=period),
        record("group", "Group/g", period=period),
        record("bad-end", period={"start": "1999", "end": "soon"}),
        record("dateless"),
        record("changed", period={"start": "1990"}, modifierExtension=[{"url": "x", "valueBoolean": True}]),
    ]
    timelines = read_fhir(records, data_cut="2022-01-01")
    found = {reason: n for (k, reason), n in reasons(timelines).items() if k == kind}
    assert found == dict.fromkeys(
        ("follow_up", "unknown_subject", "not_a_patient", "invalid_time", "no_time", "modifier_extension"), 1
    )
    assert timelines.subjects["observation_start"].to_list() == [datetime(2020, 1, 1)]


def test_a_result_is_there_with_the_first_report_that_was() -> None:
    def report(name: str, day: int, **fields: Any) -> dict[str, Any]:
        named = {"result": [{"reference": "Observation/x"}], "code": {"coding": [{"system": LOINC, "code": "1-8"}]}}
        return {"resourceType": "DiagnosticReport", "id": name, "status": "final", "subject": ME,
                "effectiveDateTime": f"2020-03-0{day}"} | named | fields  # fmt: skip

    result = observation("x")
    slow, quick = report("slow", 1, issued="2020-03-09T08:00:00Z"), report("quick", 2, issued="2020-03-04T08:00:00Z")
    odd = report("odd", 3, issued="some day")
    for reports in ([quick], [slow, quick], [quick, slow, odd]):
        row = read_fhir([PATIENT, result, *reports]).events.filter(pl.col("resource_id") == "x").row(0, named=True)
        assert (row["time"], row["known_time"]) == (datetime(2020, 3, 2), datetime(2020, 3, 4, 8))
    alone = read_fhir([PATIENT, result, odd])  # nobody can tell since when it was there
    assert alone.events["code"].to_list() == ["SEX//male", "MEDS_BIRTH"]


def test_no_other_record_ends_an_open_encounter() -> None:
    other = PATIENT | {"id": "q"}
    late = observation("late", effectiveDateTime="2024-01-01") | {"subject": {"reference": "Patient/q"}}
    stay = STAY | {"period": {"start": STAY["period"]["start"]}}
    inside = observation(**IN_STAY)
    timelines = read_fhir([PATIENT, other, stay, inside, late])
    assert reasons(timelines)["Observation", "encounter_open"] == 1
    cut = read_fhir([PATIENT, other, stay, inside, late], data_cut="2020-03-05")
    row = cut.events.filter(pl.col("encounter_id") == "e", pl.col("resource_type") == "Observation").row(0, named=True)
    assert (row["time"], row["known_time"]) == (START, datetime(2020, 3, 5, 23, 59, 59, 999999))


@pytest.mark.parametrize("death", [{"deceasedBoolean": True}, {"deceasedDateTime": "some day"}])
def test_who_died_at_an_unknown_time_is_followed_to_the_last_contact(death: dict[str, Any]) -> None:
    records = [observation(effectiveDateTime="2019-01-01"), observation("b", effectiveDateTime="2020-03-02")]
    last = datetime(2020, 3, 2, 23, 59, 59, 999999)
    period = research_subject("s", period={"start": "2018", "end": "2025"})
    for more in ([], [period]):
        timelines = read_fhir([PATIENT | death, *records, *more], data_cut="2030-01-01")
        subject = timelines.subjects.row(0, named=True)
        assert (subject["follow_up_end"], subject["follow_up_rule"]) == (last, "last_contact_undated_death")
        assert subject["death_time"] is None
        assert timelines.summary()["follow_up_rules"] == {"last_contact_undated_death": 1}
    assert read_fhir([PATIENT | death], data_cut="2030-01-01").subjects["follow_up_end"].to_list() == [None]
    for alive in (PATIENT, PATIENT | {"deceasedBoolean": False}, PATIENT | death | {"deceasedDateTime": "2025"}):
        timelines = read_fhir([alive, *records], data_cut="2030-01-01")
        assert timelines.subjects["follow_up_rule"].to_list() == ["data_cut"]


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such path"):
        read_fhir(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="empty folder"):
        read_fhir(tmp_path)
    with pytest.raises(SourceError, match="empty list"):
        read_fhir([])
    with pytest.raises(SourceError, match="both in one list"):
        read_fhir([tmp_path, PATIENT])
    with pytest.raises(SourceError, match="type int"):
        read_fhir([PATIENT, 1])
    with pytest.raises(SourceError, match="1 records and no readable Patient"):
        read_fhir([STAY])
    with pytest.raises(UserError, match="expected a date"):
        read_fhir([PATIENT], data_cut="soon")
    (tmp_path / "Patient.ndjson").write_text('{"resourceType": "Patient", "id": \n')
    with pytest.raises(SourceError, match="no readable Patient"):
        read_fhir(tmp_path)


def write_export(folder: Path) -> None:
    (folder / "deep").mkdir(parents=True)
    by_type: dict[str, list[str]] = {}
    for record in RECORDS:
        by_type.setdefault(record["resourceType"], []).append(json.dumps(record))
    for kind, lines in by_type.items():
        (folder / "deep" / f"{kind}.ndjson.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "manifest.json").write_text('{"output": []}')
    (folder / "bad.ndjson").write_text('{"resourceType": "Patient"\n')


def test_files_give_what_objects_give(tmp_path: Path) -> None:
    write_export(tmp_path / "export")
    timelines = read_fhir(tmp_path / "export", progress=True)
    assert_frame_equal(timelines.events, read_fhir(RECORDS).events, categorical_as_str=True)
    assert timelines.quarantine is not None
    assert timelines.sources is not None
    assert timelines.ledger is not None
    assert timelines.quarantine.rows() == [(0, 0, 1, "malformed_json")]
    assert timelines.sources["path"].str.ends_with("bad.ndjson").to_list()[0]
    assert timelines.ledger["count"].sum() == len(RECORDS) + 2
    several = read_fhir(sorted((tmp_path / "export").rglob("*.*"), reverse=True))
    assert_frame_equal(several.ledger, timelines.ledger)


def test_a_file_asked_for_by_name_is_read_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "patients.txt").write_text(json.dumps(PATIENT))
    assert len(read_fhir(tmp_path / "patients.txt")) == 1
    with pytest.raises(SourceError):
        read_fhir(tmp_path)


def test_ingest_saves_what_it_returns(tmp_path: Path) -> None:
    done = ingest(RECORDS, tmp_path / "out", data_cut="2022-01-31")
    timelines = read_fhir(RECORDS, data_cut="2022-01-31")
    assert (done.subjects, done.events) == (len(timelines), timelines.events.height)
    loaded = Timelines.load(tmp_path / "out")
    assert_frame_equal(loaded.events, timelines.events, categorical_as_str=True)
    assert_frame_equal(loaded.subjects, timelines.subjects)
    assert loaded.ledger is not None
    assert timelines.ledger is not None
    assert_frame_equal(loaded.ledger, timelines.ledger)


def test_every_reason_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "timeline.md").read_text(encoding="utf-8")
    assert [r.label for r in Reason if r and f"`{r.label}`" not in page] == []


# -- real exports


def lines_by_type(folder: Path) -> Counter[str]:
    """An independent count of an NDJSON export's resources."""
    counts: Counter[str] = Counter()
    for path in folder.glob("*.ndjson.gz"):
        with gzip.open(path, "rb") as file:
            counts.update(json.loads(line)["resourceType"] for line in file)
    return counts


def ledger_by_type(timelines: Timelines) -> dict[str, int]:
    assert timelines.ledger is not None
    totals = timelines.ledger.group_by("resource_type").agg(pl.col("count").sum())
    return {kind: count for kind, count in totals.iter_rows() if kind}


@pytest.fixture(scope="module")
def mimic(data_folder: Path) -> Timelines:
    return read_fhir(data_folder / "mimic_iv_fhir_demo")


def test_mimic_ledger_equals_the_line_counts(mimic: Timelines, data_folder: Path) -> None:
    assert ledger_by_type(mimic) == lines_by_type(data_folder / "mimic_iv_fhir_demo")
    assert mimic.quarantine is not None
    assert mimic.quarantine.is_empty()


def test_mimic_conditions_are_dated_and_known_by_their_encounter(mimic: Timelines, data_folder: Path) -> None:
    periods: dict[str, tuple[datetime, datetime]] = {}
    for name in ("Encounter", "EncounterED", "EncounterICU"):
        with gzip.open(data_folder / "mimic_iv_fhir_demo" / f"Mimic{name}.ndjson.gz", "rb") as file:
            for line in file:
                record = json.loads(line)
                start, end = (
                    datetime.fromisoformat(record["period"][k]).astimezone(UTC).replace(tzinfo=None)
                    for k in ("start", "end")
                )
                periods[record["id"]] = (start, end)
    conditions = mimic.events.filter(pl.col("resource_type") == "Condition")
    assert conditions.height == 5051
    assert conditions["time_source"].cast(pl.String).unique().to_list() == ["encounter"]
    for row in conditions.iter_rows(named=True):
        assert (row["time"], row["known_time"]) == periods[row["encounter_id"]]


def test_mimic_nothing_happens_after_death_and_deaths_inside_follow_up_are_counted_once(mimic: Timelines) -> None:
    deaths = mimic.subjects.select("subject_id", "death_time", "follow_up_end").drop_nulls("death_time")
    late = mimic.events.join(deaths, on="subject_id").filter(pl.col("time") > pl.col("death_time"))
    assert late.height == 0
    task = Task.from_dict(
        {
            "horizons": ["1y"],
            "outcomes": {"death": {"codes": ["MEDS_DEATH"]}},
            "prediction_times": {"rule": "every_encounter"},
        }
    )
    inside = mimic.summary()["deaths_inside_follow_up"]
    assert inside == occurrences(mimic, task).height
    assert inside >= deaths.filter(pl.col("death_time") <= pl.col("follow_up_end")).height


def test_mimic_blood_pressure_panels(mimic: Timelines, data_folder: Path) -> None:
    expected: dict[str, list[float | None]] = {"LOINC//8480-6": [], "LOINC//8462-4": []}
    with gzip.open(data_folder / "mimic_iv_fhir_demo" / "MimicObservationVitalSignsED.ndjson.gz", "rb") as file:
        for record in map(json.loads, file):
            for part in record.get("component", ()):
                value = part.get("valueQuantity", {}).get("value")
                expected["LOINC//" + part["code"]["coding"][0]["code"]].append(value)
    for code, values in expected.items():
        found = mimic.events.filter(pl.col("code") == code)
        assert found.height == len(values) == 1260
        assert Counter(found["numeric_value"]) == Counter(values)


def test_nafld(data_folder: Path) -> None:
    timelines = read_fhir(data_folder / "nafld_fhir")
    assert len(timelines) == 17_549
    assert timelines.subjects["follow_up_rule"].unique().to_list() == ["observation_period"]
    assert ledger_by_type(timelines) == lines_by_type(data_folder / "nafld_fhir")
    assert timelines.events.filter(pl.col("resource_type") == "Condition").height == 34_327
    assert timelines.events.filter(pl.col("resource_type") == "Observation").height == 243_157


@pytest.mark.parametrize("folder", ["synthea_r4", "version_pair/r4", "version_pair/stu3"])
def test_synthea(data_folder: Path, folder: str) -> None:
    timelines = read_fhir(data_folder / folder)
    expected: Counter[str] = Counter()
    for path in (data_folder / folder).glob("*.json*"):
        raw = path.read_bytes()
        bundle = msgspec.json.decode(gzip.decompress(raw) if path.suffix == ".gz" else raw)
        expected[bundle["resourceType"]] += 1
        entries = [entry["resource"] for entry in bundle.get("entry", ())]
        expected.update(resource["resourceType"] for resource in entries)
        # the bills contain orders, which count, and coverages, which do not
        contained = [inner["resourceType"] for resource in entries for inner in resource.get("contained", ())]
        assert set(contained) <= {"Coverage", "ServiceRequest", "ReferralRequest"}
        expected.update(kind for kind in contained if kind != "Coverage")
    assert ledger_by_type(timelines) == expected
    assert timelines.quarantine is not None
    assert timelines.quarantine.is_empty()


@pytest.mark.parametrize("folder", ["hl7_r4_examples", "genomics_r4"])
def test_odd_examples_are_all_accounted_for(data_folder: Path, folder: str) -> None:
    timelines = read_fhir(data_folder / folder)
    assert timelines.events.height > 0
    assert timelines.ledger is not None
    assert timelines.ledger["count"].sum() >= len(list((data_folder / folder).glob("*.json")))
    assert timelines.quarantine is not None
    assert timelines.quarantine.is_empty()
