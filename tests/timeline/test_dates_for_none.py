"""Dates that stand for none (9999-12-31, 0001-01-01, a period since 1900-01-01): nobody is followed by them."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import polars as pl
import pytest

from ehrseq.errors import DataWarning, TimelineError
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.store import Timelines

ME = {"reference": "Patient/p"}
PATIENT: dict[str, Any] = {"resourceType": "Patient", "id": "p", "birthDate": "1950-06-01"}
VISIT: dict[str, Any] = {
    "resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"}, "subject": ME,
    "period": {"start": "2015-03-01", "end": "2015-03-02"},
}  # fmt: skip
LAST = datetime(2015, 3, 2, 23, 59, 59, 999999)


def insured(**period: str) -> dict[str, Any]:
    return {"resourceType": "Coverage", "id": "c", "status": "active", "beneficiary": ME, "period": period}


def follow_up(*records: dict[str, Any]) -> tuple[Any, ...]:
    return read_fhir(records).subjects.select("follow_up_start", "follow_up_end", "follow_up_rule").row(0)


@pytest.mark.parametrize("end", ["9999-12-31", "9999-12-31T23:59:59-12:00", "2999-12-31"])
def test_an_end_that_stands_for_none_is_open(end: str) -> None:
    assert follow_up(PATIENT, VISIT, insured(start="2010-01-01", end=end)) == follow_up(
        PATIENT, VISIT, insured(start="2010-01-01")
    )
    later = VISIT | {"id": "later", "period": {"start": "2015-05-01", "end": end}}
    timelines = read_fhir([PATIENT, VISIT, later])
    assert timelines.events.filter(resource_id="later")["code"].to_list() == ["ENCOUNTER//ambulatory/admission"]
    assert timelines.subjects["follow_up_end"].item() == datetime(2015, 5, 1, 23, 59, 59, 999999)


def test_an_illness_that_ends_in_9999_is_counted_and_leaves_follow_up_as_it_is() -> None:
    illness = {
        "resourceType": "Condition", "id": "i", "subject": ME, "recordedDate": "2015-03-01",
        "onsetDateTime": "2015-03-01", "abatementDateTime": "9999-12-31",
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "1"}]},
    }  # fmt: skip
    timelines = read_fhir([PATIENT, VISIT, illness])
    assert timelines.subjects["follow_up_end"].item() == LAST
    assert timelines.metadata["events_left_out"] == {"invalid_time": 1}


@pytest.mark.parametrize("when", ["9999-12-31", "0001-01-01T00:00:00"])
def test_a_death_that_stands_for_none_is_no_death(when: str) -> None:
    timelines = read_fhir([PATIENT | {"deceasedDateTime": when}, VISIT])
    assert "MEDS_DEATH" not in timelines.events["code"]
    assert timelines.subjects.select("death_time", "follow_up_rule").row(0) == (None, "last_contact")


@pytest.mark.parametrize("birth", ["0001-01-01", "1753-01-01", "0000-01-01"])
def test_a_birth_that_stands_for_none_is_unknown(birth: str) -> None:
    timelines = read_fhir([PATIENT | {"birthDate": birth, "gender": "male"}, VISIT])
    assert timelines.subjects["birth_time"].item() is None
    assert timelines.metadata["events_left_out"] == {"invalid_time": 1}


def test_an_observation_period_that_starts_before_birth_does_not_say_when_it_did() -> None:
    first = datetime(2015, 3, 1, 23, 59, 59, 999999)
    for start in ("1900-01-01", "0001-01-01"):
        found = read_fhir([PATIENT, VISIT, insured(start=start, end="2016-01-01")]).subjects
        assert found.select("follow_up_start", "observation_start").row(0) == (first, None)
        assert found["follow_up_rule"].item() == "observation_period"
    # a day begins elsewhere at another moment: a period from birth on stays as it is
    found = read_fhir([PATIENT, VISIT, insured(start="1950-06-01T00:00:00+10:00", end="2016-01-01")]).subjects
    assert found["follow_up_start"].item() == datetime(1950, 5, 31, 14)
    # of several periods the one that can be counts, and one before birth is somebody else's
    real = insured(start="2005-01-01", end="2016-01-01") | {"id": "real"}
    found = read_fhir([PATIENT, VISIT, real, insured(start="1900-01-01", end="1999-12-31")]).subjects
    assert found.select("follow_up_start", "observation_start").row(0) == (datetime(2005, 1, 1),) * 2
    assert follow_up(PATIENT, VISIT, insured(start="1900-01-01", end="1949-01-01")) == follow_up(PATIENT, VISIT)
    given = {"subject_id": [1], "birth_time": [date(1950, 6, 1)], "follow_up_start": [date(1900, 1, 1)]}
    events = {"subject_id": [1], "time": [datetime(2015, 3, 1)], "code": ["LOINC//718-7"]}
    assert Timelines.from_events(events, given).subjects["follow_up_start"].item() == datetime(2015, 3, 1)


def test_nothing_that_comes_later_changes_since_when_somebody_is_observed() -> None:
    since = [insured(start="1900-01-01"), insured(start="1900-01-01", end="2012-01-01"), insured(start="2005-01-01")]
    for period in since:
        before = read_fhir([PATIENT, period]).subjects["observation_start"].item()
        for more in ([VISIT], [VISIT, PATIENT | {"deceasedBoolean": True}]):
            found = read_fhir([PATIENT, period, *more] if len(more) == 1 else [more[1], period, more[0]]).subjects
            assert found["observation_start"].item() == before


@pytest.mark.parametrize("start", ["0001-01-01", "2016-01-01T00:00:00+15:00"])
def test_an_encounter_does_not_begin_when_it_ends(start: str) -> None:
    stay = VISIT | {"id": "s", "period": {"start": start, "end": "2016-01-09T10:00:00Z"}}
    timelines = read_fhir([PATIENT, VISIT, stay])
    assert timelines.events.filter(resource_id="s")["code"].to_list() == ["ENCOUNTER//ambulatory/discharge"]
    assert timelines.metadata["events_left_out"] == {"invalid_time": 1}


@pytest.mark.parametrize("when", ["0212-05-06", "2912-05-06"])
def test_a_death_in_an_impossible_year_is_one_without_a_date(when: str) -> None:
    timelines = read_fhir([PATIENT | {"deceasedDateTime": when}, VISIT], data_cut="2020-01-01")
    assert timelines.subjects.select("death_time", "follow_up_rule").row(0) == (None, "last_contact_undated_death")
    assert timelines.metadata["events_left_out"] == {"invalid_time": 1}


@pytest.mark.parametrize(
    ("recorded", "known"), [("9999-12-31", 2010), ("2015-03-01", 2015), ("2915-03-01", None), ("soon", None)]
)
def test_what_was_recorded_at_an_impossible_time_is_not_known_since_it_happened(recorded: str, known: Any) -> None:
    illness = {
        "resourceType": "Condition", "id": "i", "subject": ME, "onsetDateTime": "2010-01-01", "recordedDate": recorded,
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "1"}]},
    }  # fmt: skip
    timelines = read_fhir([PATIENT, VISIT, illness])
    assert timelines.events.filter(resource_id="i")["known_time"].dt.year().to_list() == ([known] if known else [])
    ledger = timelines.ledger
    assert ledger is not None
    assert ledger.filter(reason="invalid_time")["count"].sum() == (known is None)


def coded(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    concept = {"coding": [{"system": "http://snomed.info/sct", "code": "1"}]}
    named = dict.fromkeys(("code", "type") if kind == "Specimen" else ("code", "medicationCodeableConcept"), concept)
    return {"resourceType": kind, "id": name, "subject": ME, "status": "final"} | named | fields


def left_out(timelines: Timelines, reason: str = "invalid_time") -> int:
    ledger = timelines.ledger
    assert ledger is not None
    return int(ledger.filter(reason=reason)["count"].sum()) + timelines.metadata["events_left_out"].get(reason, 0)


def test_an_encounter_does_not_date_what_was_recorded_at_an_impossible_time() -> None:
    stay = {"encounter": {"reference": "Encounter/e"}}
    illness = coded("Condition", "i", onsetDateTime="2010-01-01", recordedDate="2915-03-01", **stay)
    timelines = read_fhir([PATIENT, VISIT, illness])
    assert timelines.events.filter(resource_id="i").height == 0
    assert left_out(timelines) == 1
    # as without a date, one that stands for none is known once the encounter is over
    timelines = read_fhir([PATIENT, VISIT, illness | {"recordedDate": "9999-12-31"}])
    assert timelines.events.filter(resource_id="i").select("time", "known_time").row(0) == (datetime(2010, 1, 1), LAST)
    # one before birth is impossible too
    timelines = read_fhir([PATIENT, VISIT, illness | {"recordedDate": "1900-01-01"}])
    assert (timelines.events.filter(resource_id="i").height, left_out(timelines)) == (0, 1)


@pytest.mark.parametrize(
    ("onset", "recorded", "known"),
    [("2010-01-01", "2915-03-01", None), ("0001-01-01", "2020-03-01", 2020), ("soon", "2020-03-01", 2020),
     ("2010-01-01", "2020-03-01", 2020), ("2010-01-01", "0001-01-01", 2012), ("2015-03-01", "2010-01-01", 2015)],
)  # fmt: skip
def test_the_end_of_an_illness_is_not_known_before_the_illness(onset: str, recorded: str, known: Any) -> None:
    illness = coded("Condition", "i", onsetDateTime=onset, recordedDate=recorded, abatementDateTime="2012-05-01")
    timelines = read_fhir([PATIENT, VISIT, illness])
    ends = timelines.events.filter(pl.col("code").str.starts_with("ABATEMENT//"))
    assert ends["known_time"].dt.year().to_list() == ([] if known is None else [known])
    assert left_out(timelines) == (known is None or onset == "soon")


@pytest.mark.parametrize("issued", ["2915-01-01T10:00:00Z", "soon", "1900-01-01T00:00:00Z"])
def test_a_report_or_panel_of_an_impossible_time_dates_no_result(issued: str) -> None:
    result = [{"reference": "Observation/r"}]
    report = coded("DiagnosticReport", "d", effectiveDateTime="2010-01-01", issued=issued, result=result)
    panel = coded("Observation", "d", effectiveDateTime="2010-01-01", issued=issued, hasMember=result)
    for outer in (report, panel):
        timelines = read_fhir([PATIENT, VISIT, coded("Observation", "r", valueInteger=1), outer])
        assert timelines.events.filter(pl.col("resource_id").is_in(["r", "d"])).height == 0
        assert left_out(timelines) + left_out(timelines, "no_time") == 2
        # as without a date of issue, one that stands for none leaves the day
        undated = coded("Observation", "r", valueInteger=1, effectiveDateTime="0001-01-01")
        timelines = read_fhir([PATIENT, VISIT, undated, outer | {"issued": "9999"}])
        assert timelines.events.filter(resource_id="r")["known_time"].dt.date().to_list() == [date(2010, 1, 1)]
        # so does a period that has not ended
        del outer["issued"], outer["effectiveDateTime"]
        for end in ({}, {"end": "9999-12-31"}):
            timelines = read_fhir([PATIENT, VISIT, undated, outer | {"effectivePeriod": {"start": "2010-01-01"} | end}])
            assert timelines.events.filter(resource_id="r")["known_time"].dt.date().to_list() == [date(2010, 1, 1)]


@pytest.mark.parametrize("none", ["0001-01-01", "9999-12-31T00:00:00Z"])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Condition", {"onsetDateTime": None, "recordedDate": "2015-03-02"}),
        ("Condition", {"onsetPeriod": {"start": None, "end": "2015-03-02"}}),
        ("Condition", {"recordedDate": None, "assertedDate": "2015-03-02"}),
        ("Observation", {"effectiveDateTime": None, "issued": "2015-03-02T23:59:59.999999Z"}),
        ("Observation", {"effectivePeriod": {"start": None, "end": "2015-03-02"}}),
        ("Procedure", {"performedPeriod": {"start": None, "end": "2015-03-02"}, "status": "completed"}),
        ("Observation", {"effectivePeriod": {"start": "2015-03-02", "end": "2015-03-02"}, "issued": None}),
        ("Observation", {"effectivePeriod": {"start": "2015-03-02", "end": None}, "issued": None}),
        ("MedicationDispense", {"whenHandedOver": None, "whenPrepared": "2015-03-02", "status": "completed"}),
        ("Specimen", {"collection": {"collectedDateTime": None}, "receivedTime": "2015-03-02", "status": "available"}),
        ("DiagnosticReport", {"effectiveDateTime": None, "issued": "2015-03-02T23:59:59.999999Z"}),
    ],
)
def test_dates_that_stand_for_none_are_passed_over(kind: str, fields: dict[str, Any], none: str) -> None:
    def filled(value: Any) -> Any:
        return {k: filled(v) for k, v in value.items()} if isinstance(value, dict) else value or none

    timelines = read_fhir([PATIENT, VISIT, coded(kind, "x", **filled(fields))])
    (event,) = timelines.events.filter(resource_id="x").rows(named=True)
    assert (event["time"].date(), event["known_time"]) == (date(2015, 3, 2), LAST)
    assert left_out(timelines) == 0


def test_an_event_whose_type_is_not_dated_by_its_recording_is_not() -> None:
    done = coded("Procedure", "x", performedDateTime="0001-01-01", recorded="2015-03-02", status="completed")
    timelines = read_fhir([PATIENT, VISIT, done])
    assert timelines.events.filter(resource_id="x").height == 0
    assert left_out(timelines) == 1


@pytest.mark.parametrize("died", ["1900-01-01", "1950-05-31", "1950-05"])
def test_a_death_before_birth_is_one_without_a_date(died: str) -> None:
    timelines = read_fhir([PATIENT | {"deceasedDateTime": died}, VISIT], data_cut="2020-01-01")
    assert timelines.subjects.select("death_time", "follow_up_rule").row(0) == (None, "last_contact_undated_death")
    assert timelines.events.filter(resource_id="e").height == 2
    assert timelines.metadata["events_left_out"] == {"before_birth": 1}
    # but on the day of birth, which begins elsewhere at another moment
    newborn = {"birthDate": "2015-03-02", "deceasedDateTime": "2015-03-02T05:00:00+10:00"}
    timelines = read_fhir([PATIENT | newborn, VISIT])
    assert timelines.subjects["death_time"].item() == datetime(2015, 3, 1, 19)
    assert "MEDS_DEATH" in timelines.events["code"]


def test_a_period_that_begins_in_the_month_or_year_of_birth_begins_at_birth() -> None:
    born = datetime(1950, 6, 1)
    for start in ("1950-05-31", "1950", "1949-06-02", "1950-05"):
        found = read_fhir([PATIENT, VISIT, insured(start=start, end="2016-01-01")]).subjects
        expected = datetime(1950, 5, 31) if start == "1950-05-31" else born
        assert found.select("follow_up_start", "observation_start").row(0) == (expected, expected)
    # nobody vanishes for having had no contact
    found = read_fhir([PATIENT, insured(start="1950-05", end="2016-01-01")]).subjects
    assert found["follow_up_start"].item() == born


def test_a_period_that_ends_before_birth_is_counted_as_one() -> None:
    timelines = read_fhir([PATIENT, VISIT, insured(start="1900-01-01", end="1949-01-01")])
    assert left_out(timelines, "before_birth") == 1
    # the day of birth begins elsewhere at another moment
    newborn = insured(start="1950-06-01T00:00:00+10:00", end="1950-06-01T06:00:00+10:00")
    assert left_out(read_fhir([PATIENT, VISIT, newborn]), "before_birth") == 0
    # a plan of the mother's that ended the day before leaves the child's follow-up as it is
    for end in ("1950-05-31", "1950-05-31T20:00:00Z"):
        timelines = read_fhir([PATIENT, VISIT, insured(start="1949-12-01", end=end)])
        assert left_out(timelines, "before_birth") == 1
        assert timelines.subjects["follow_up_rule"].item() == "last_contact"
        given = {"subject_id": [1], "birth_time": [date(1950, 6, 1)], "follow_up_start": [date(1949, 12, 1)],
                 "follow_up_end": [date.fromisoformat(end[:10])]}  # fmt: skip
        events = {"subject_id": [1], "time": [datetime(2015, 3, 1)], "code": ["LOINC//718-7"]}
        assert Timelines.from_events(events, given).subjects["follow_up_end"].item() == datetime(2015, 3, 1)


def test_one_such_date_among_many_people_leaves_everybody_else_as_they_are() -> None:
    people = [PATIENT | {"id": f"p{n}"} for n in range(3)]
    visits = [VISIT | {"id": f"e{n}", "subject": {"reference": f"Patient/p{n}"}} for n in range(3)]
    more = read_fhir([*people, *visits, insured(end="9999-12-31") | {"beneficiary": {"reference": "Patient/p0"}}])
    assert more.subjects["follow_up_end"].to_list() == [LAST] * 3
    assert more.events.filter(pl.col("time").dt.year() > 2015).height == 0


CODE = {"coding": [{"system": "http://snomed.info/sct", "code": "1"}]}
HERE = {"subject": ME, "code": CODE}


def known(*records: dict[str, Any]) -> dict[str, datetime]:
    """Since when the events of code 1 are known, by code."""
    events = read_fhir([PATIENT, *records]).events.filter(pl.col("code").str.ends_with("//1"))
    return dict(events.select("code", "known_time").iter_rows())


def reasons(timelines: Timelines, kind: str) -> list[str]:
    """Why records of a type gave no event."""
    assert timelines.ledger is not None
    return timelines.ledger.filter(pl.col("resource_type") == kind, pl.col("fate") == "skipped")["reason"].to_list()


def test_an_event_of_the_day_of_birth_elsewhere_recorded_before_it_is_left_out() -> None:
    newborn = HERE | {"resourceType": "Observation", "id": "o", "status": "final", "issued": "1900-01-01T00:00:00Z"}
    for when in ("1950-06-01T05:00:00+10:00", "1950-06-01T05:00:00Z"):
        timelines = read_fhir([PATIENT, VISIT, newborn | {"effectiveDateTime": when}])
        assert "SNOMED//1" not in timelines.events["code"]
        assert reasons(timelines, "Observation") == ["invalid_time"]


def test_the_end_of_an_illness_recorded_before_birth_is_not_known() -> None:
    illness = HERE | {"resourceType": "Condition", "id": "i", "recordedDate": "1900-01-01"}
    for onset in ("1900-01-01", "2009-01-01"):
        gone = illness | {"onsetDateTime": onset, "abatementDateTime": "2010-05-01"}
        timelines = read_fhir([PATIENT, VISIT, gone])
        assert not timelines.events["code"].str.contains("SNOMED").any()
        assert len(reasons(timelines, "Condition")) == 1


def test_of_two_reports_of_one_result_the_one_whose_issue_is_possible_dates_it() -> None:
    result = HERE | {"resourceType": "Observation", "id": "r", "status": "final"}
    report = HERE | {"resourceType": "DiagnosticReport", "status": "final", "result": [{"reference": "Observation/r"}]}
    later = report | {"id": "d2", "effectiveDateTime": "2012-01-01", "issued": "2012-01-02T10:00:00Z"}

    def dated(effective: str, issued: str) -> tuple[datetime, datetime]:
        first = report | {"id": "d1", "effectiveDateTime": effective, "issued": issued}
        events = read_fhir([PATIENT, result, first, later]).events.filter(resource_type="Observation")
        return events.select("time", "known_time").row(0)

    assert dated("2010-01-01", "1900-01-01T00:00:00Z") == (datetime(2012, 1, 1), datetime(2012, 1, 2, 10))
    # issued too early, but not at no time: a later report does not move what was known without it
    assert dated("2011", "2010-06-01T00:00:00Z") == (datetime(2011, 1, 1), datetime(2011, 12, 31, 23, 59, 59, 999999))


@pytest.mark.parametrize("start", [{}, {"start": "0001-01-01"}, {"start": "1900-01-01"}])
def test_a_period_that_ends_before_birth_is_nobodys_whatever_its_start(start: dict[str, str]) -> None:
    assert follow_up(PATIENT, VISIT, insured(**start, end="1950-05-31")) == follow_up(PATIENT, VISIT)


BEFORE = ["1900-01-01", "2016-02-29", "2016-03-01T07:00:00Z", "2016-02-29T20:00:00-05:00"]


@pytest.mark.parametrize("end", [*BEFORE, "9999-12-31"])
def test_an_encounter_that_ends_before_it_starts_has_no_end(end: str) -> None:
    stay = VISIT | {"period": {"start": "2016-03-01T08:00:00Z", "end": end}}
    found = HERE | {"resourceType": "Condition", "id": "i", "encounter": {"reference": "Encounter/e"}}
    assert known(stay, found) == {}
    timelines = read_fhir([PATIENT, stay])
    assert timelines.events.filter(resource_type="Encounter")["time"].to_list() == [datetime(2016, 3, 1, 8)]
    assert timelines.subjects["follow_up_start"].item() == datetime(2016, 3, 1, 8)
    assert timelines.metadata["events_left_out"] == ({"invalid_time": 1} if end in BEFORE else {})


def test_an_encounter_ends_by_the_clock_on_the_wall() -> None:
    found = HERE | {"resourceType": "Condition", "id": "i", "encounter": {"reference": "Encounter/e"}}
    for start, end, over in (
        ("2016-03-01T22:00:00-08:00", "2016-03-01", datetime(2016, 3, 2, 6)),
        ("2016-11-06T01:30:00-04:00", "2016-11-06T01:10:00-05:00", datetime(2016, 11, 6, 6, 10)),
        ("2016-03-01T08:00:00Z", "2016-03-01T08:00:00Z", datetime(2016, 3, 1, 8)),
    ):
        assert known(VISIT | {"period": {"start": start, "end": end}}, found) == {"SNOMED//1": over}
    # one that goes on is not known before its start is certain
    running = read_fhir([PATIENT, VISIT | {"period": {"start": "2016"}}, found], data_cut="2015-06-01")
    assert running.events.filter(resource_type="Condition")["known_time"].to_list() == [
        datetime(2016, 12, 31, 23, 59, 59, 999999)
    ]


@pytest.mark.parametrize("when", ["1950-05-31T10:00:00Z", "1950-05-31T20:00:00-05:00", "1950-05-31"])
def test_a_death_by_the_clock_before_birth_has_no_date(when: str) -> None:
    timelines = read_fhir([PATIENT | {"deceasedDateTime": when}, VISIT])
    assert timelines.subjects["death_time"].item() is None
    assert "after_death" not in timelines.metadata["events_left_out"]
    born = read_fhir([PATIENT | {"deceasedDateTime": "1950-06-01T03:00:00+10:00"}])
    assert born.subjects["death_time"].item() == datetime(1950, 5, 31, 17)


@pytest.mark.parametrize("kind", ["Procedure", "MedicationAdministration"])
@pytest.mark.parametrize("performed", [None, "0001-01-01"])
def test_what_an_encounter_dates_is_not_known_before_it_was_recorded(kind: str, performed: str | None) -> None:
    concept, field = ("code", "performed") if kind == "Procedure" else ("medicationCodeableConcept", "effective")
    record = {"resourceType": kind, "id": "x", "status": "completed", "subject": ME, concept: CODE}
    record |= {"encounter": {"reference": "Encounter/e"}, "context": {"reference": "Encounter/e"}}
    record |= {f"{field}DateTime": performed} if performed else {}
    later = known(VISIT, record | {"recorded": "2020-01-01"})
    assert list(later.values()) == [datetime(2020, 1, 1, 23, 59, 59, 999999)]
    assert list(known(VISIT, record).values()) == [LAST]
    assert known(VISIT, record | {"recorded": "2915-01-01"}) == {}


def test_what_is_recorded_before_a_year_is_known_once_the_year_is_over() -> None:
    illness = HERE | {"resourceType": "Condition", "id": "i", "onsetDateTime": "2015", "recordedDate": "2014-06-01"}
    assert known(illness) == {"SNOMED//1": datetime(2015, 12, 31, 23, 59, 59, 999999)}
    at = illness | {"onsetDateTime": "2015-03-01T10:00:00Z"}
    assert known(at) == {"SNOMED//1": datetime(2015, 3, 1, 10)}


def test_what_a_bill_says_was_done_is_known_once_the_bill_is_or_its_period_over() -> None:
    bill = {
        "resourceType": "Claim", "id": "b", "status": "active", "use": "claim", "patient": ME,
        "billablePeriod": {"start": "2014-08-01", "end": "2014-08-31"},
        "procedure": [{"sequence": 1, "date": "2014-08-01", "procedureCodeableConcept": CODE}],
    }  # fmt: skip
    over = {"PROCEDURE//SNOMED//1": datetime(2014, 8, 31, 23, 59, 59, 999999)}
    assert list(known(bill).values()) == list(known(bill | {"created": "0001-01-01"}).values()) == list(over.values())
    item = {"sequence": 1, "productOrService": CODE, "servicedPeriod": {"start": "2014-08-02"}}
    billed = {name: value for name, value in bill.items() if name != "procedure"}
    for end, last in (("2014-08-10", 31), ("2014-09-30", 30)):
        items = [item | {"servicedPeriod": {"start": "2014-08-02", "end": end}}]
        found = list(known(billed | {"item": items}).values())
        assert found == [datetime(2014, 8 if last == 31 else 9, last, 23, 59, 59, 999999)]
    assert list(known(bill | {"created": "2014-09-02"}).values()) == [datetime(2014, 9, 2, 23, 59, 59, 999999)]


def test_times_of_orders_and_uses_that_stand_for_none_are_passed_over() -> None:
    order = {
        "resourceType": "DiagnosticOrder", "id": "x", "status": "completed", "subject": ME, "item": [{"code": CODE}],
        "event": [{"dateTime": "0001-01-01"}, {"dateTime": "2013-05-02"}],
    }  # fmt: skip
    use = {
        "resourceType": "DeviceUseStatement", "id": "x", "status": "active", "subject": ME,
        "device": {"concept": CODE}, "timingTiming": {"event": ["0001-01-01", "2013-05-02"]},
    }  # fmt: skip
    for record in (order, use):
        timelines = read_fhir([PATIENT, record])
        assert datetime(2013, 5, 2) in timelines.events["time"].to_list()
        assert not timelines.metadata["events_left_out"]


def test_bounds_of_follow_up_in_a_frame_that_stand_for_none_are_unknown() -> None:
    events = {"subject_id": [1, 1], "time": [datetime(2010, 1, 1), datetime(2012, 1, 1)], "code": ["A", "B"]}
    plain = Timelines.from_events(events, {"subject_id": [1]}).subjects
    for column in ("follow_up_start", "follow_up_end", "observation_start"):
        for year in (1, 9999):
            with pytest.warns(DataWarning, match=column):
                found = Timelines.from_events(events, {"subject_id": [1], column: [datetime(year, 1, 1)]}).subjects
            assert found.equals(plain)


def test_times_that_no_clock_holds_are_one_clear_line() -> None:
    for time in (
        pl.Series([2**62, 0]).cast(pl.Datetime("ms")),
        pl.Series([2**31 - 1, 0], dtype=pl.Int32).cast(pl.Date),
    ):
        with pytest.raises(TimelineError, match="expected times in column time; found years beyond"):
            Timelines.from_events(pl.DataFrame({"subject_id": [1, 1], "time": time, "code": ["A", "B"]}))


def test_a_data_cut_that_stands_for_none_is_refused() -> None:
    events = {"subject_id": [1], "time": [datetime(2010, 1, 1)], "code": ["A"]}
    for cut in ("9999-12-31", "0001-01-01T00:00:00+14:00", datetime(2600, 1, 1)):
        for build in (
            lambda cut: Timelines.from_events(events, data_cut=cut),
            lambda cut: read_fhir([PATIENT], data_cut=cut),
        ):
            with pytest.raises(TimelineError, match="expected a moment from 1800 to 2499; found another year"):
                build(cut)


@pytest.mark.parametrize(
    ("bill", "item", "over"),
    [
        ("2014", "2014-03-01", datetime(2014, 12, 31, 23, 59, 59, 999999)),
        ("2014-08-31T20:00:00-08:00", "2014-08-31T23:00:00Z", datetime(2014, 9, 1, 4)),
        ("2014-08-31T20:00:00-08:00", "soon", datetime(2014, 9, 1, 4)),
    ],
)
def test_a_billed_item_is_known_when_its_period_and_the_bills_are_over(bill: str, item: str, over: datetime) -> None:
    claim = {
        "resourceType": "Claim", "id": "b", "status": "active", "use": "claim", "patient": ME,
        "billablePeriod": {"start": "2014-01-01", "end": bill},
        "item": [{"sequence": 1, "productOrService": CODE, "servicedPeriod": {"start": "2014-01-02", "end": item}}],
    }  # fmt: skip
    assert list(known(claim).values()) == [over]


def test_a_report_of_1900_without_another_date_does_not_hide_a_good_one() -> None:
    result = HERE | {"resourceType": "Observation", "id": "r", "status": "final"}
    report = HERE | {"resourceType": "DiagnosticReport", "status": "final", "result": [{"reference": "Observation/r"}]}
    bad = report | {"id": "d1", "issued": "1900-01-01T20:00:00-05:00"}
    good = report | {"id": "d2", "effectiveDateTime": "2012-01-01", "issued": "2012-01-02T10:00:00Z"}
    events = read_fhir([PATIENT, result, bad, good]).events.filter(resource_type="Observation")
    assert events.select("time", "known_time").rows() == [(datetime(2012, 1, 1), datetime(2012, 1, 2, 10))]


def test_a_timing_without_a_date_of_its_own_is_dated_by_its_bounds() -> None:
    use = {
        "resourceType": "DeviceUseStatement", "id": "x", "status": "active", "subject": ME, "device": {"concept": CODE},
        "timingTiming": {"event": ["0001-01-01"], "repeat": {"boundsPeriod": {"start": "2013-05-02"}}},
    }  # fmt: skip
    assert datetime(2013, 5, 2) in read_fhir([PATIENT, use]).events["time"].to_list()
