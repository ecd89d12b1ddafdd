import gzip
import json
import shutil
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from ehrseq.task.cohort import build_cohort
from ehrseq.task.definition import Task
from ehrseq.task.label import REASONS
from ehrseq.task.split import split_subjects

MI, VISIT = "SNOMED//22298006", "ENCOUNTER//AMB/discharge"
OUTCOMES = {"mi": {"codes": [MI], "competing": ["death"]}, "death": {"codes": ["MEDS_DEATH"]}}


@pytest.fixture
def cohort(make_timelines, make_task, day):
    timelines = make_timelines(
        [(1, 150, MI), (2, 50, MI), (3, 700, MI), (6, 150, MI), (6, 170, MI)],
        {
            1: {}, 2: {}, 3: {}, 4: {"death_time": day(120)}, 5: {"follow_up_end": day(130)},
            6: {"follow_up_end": day(160)}, 7: {"birth_time": None}, 8: {"follow_up_start": None},
        },
        splits=pl.DataFrame({"subject_id": [1, 2, 3], "split": ["train", "tuning", "held_out"]}),
    )  # fmt: skip
    spans = {"rule": "landmarks", "after_start": ["100d", "1m", "200d"]}
    task = make_task(OUTCOMES, horizons=["60d", "2y"], prediction_times=spans, labs={"codes": ["LOINC//1"]})
    return build_cohort(timelines, task)


def test_rows_have_landmark_and_split(cohort):
    assert cohort.rows.columns == [
        "subject_id", "prediction_time", "landmark", "split", "outcome", "at_risk", "reason", "days", "cause",
    ]  # fmt: skip
    assert cohort.rows.height == 7 * 3 * 2
    first = cohort.rows.filter((pl.col("subject_id") == 1) & (pl.col("outcome") == "mi"))
    assert first.select("landmark", "split", "reason").rows() == [
        ("1m", "train", None), ("100d", "train", None), ("200d", "train", "already_present"),
    ]  # fmt: skip


def test_attrition_adds_up(cohort):
    table = cohort.attrition
    general = table.filter(pl.col("outcome").is_null()).select("step", "prediction_times", "subjects").rows()
    assert general == [("all_subjects", 21, 8), ("no_prediction_time", 0, 1), ("no_split", 12, 5)]
    for (_, _), part in table.filter(pl.col("outcome").is_not_null()).group_by("outcome", "landmark"):
        steps = part["step"].to_list()
        assert steps[0] == "considered"
        assert steps[1:] == [s for s in [*REASONS, "at_risk"] if s in steps]
        assert part["prediction_times"][0] == part["prediction_times"][1:].sum()
        assert part["subjects"][0] == part["subjects"][1:].sum()
    mi = table.filter((pl.col("outcome") == "mi") & (pl.col("landmark") == "200d")).select("step", "subjects").rows()
    assert mi == [
        ("considered", 7), ("no_birth_date", 1), ("dead", 1), ("after_follow_up", 2), ("already_present", 2),
        ("at_risk", 1),
    ]  # fmt: skip
    assert table.drop_nulls("outcome")["landmark"].unique(maintain_order=True).to_list() == ["100d", "1m", "200d"]


def test_events_by_horizon(cohort):
    columns = ("horizon", "at_risk", "events", "competing", "censored", "event_free")
    mi = cohort.events.filter((pl.col("outcome") == "mi") & (pl.col("landmark") == "100d"))
    # at 100 days: 1 (event after 49 days), 3 (after 599), 4 (dies after 19), 5 (censored after 29), 6 (after 49)
    assert mi.select(columns).rows() == [("60d", 5, 2, 1, 1, 1), ("2y", 5, 3, 1, 1, 0)]
    total = cohort.events.select(pl.sum_horizontal("events", "competing", "censored", "event_free")).to_series()
    assert total.equals(cohort.events["at_risk"], check_names=False)


def test_incidence_is_that_of_aalen_and_johansen(cohort):
    rows = cohort.events.filter(pl.col("landmark") == "100d").select(
        "outcome", "horizon", "incidence", "competing_incidence"
    )
    # mi: 1 of 5 dies first (.2), one is censored, 2 of the other 3 have it by day 60 (.8 * 2/3), the last one later;
    # death: 4 of the 6 leave without it
    expected = {("mi", "60d"): (0.8 * 2 / 3, 0.2), ("mi", "2y"): (0.8, 0.2), ("death", "60d"): (1 / 6, 0.0)}
    found = {row[:2]: row[2:] for row in rows.iter_rows()}
    for key, pair in expected.items():
        assert found[key] == pytest.approx(pair), key


def test_incidence_is_measured_by_each_row_s_own_horizon(make_timelines, make_task, day):
    # a year from 2007-01-01 ends on 2008-01-01 (365 days), one from 2008-01-01 after 366
    start = {"follow_up_start": day(730), "follow_up_end": day(3000)}
    leap = {"follow_up_start": day(1095), "follow_up_end": day(3000)}
    task = make_task(
        {"mi": {"codes": [MI]}}, horizons=["1y"], prediction_times={"rule": "landmarks", "after_start": ["0h"]}
    )
    late = [(1, 730 + 365.5, MI), (2, 1095 + 365.5, MI)]
    (row,) = build_cohort(make_timelines(late, {1: start, 2: leap}), task).events.iter_rows(named=True)
    assert (row["events"], row["incidence"]) == (1, 0.5)


def test_incidence_is_null_where_nobody_is_followed_as_long(make_timelines, make_task, day):
    task = make_task({"mi": {"codes": [MI]}}, horizons=["60d", "2y"])
    censored = build_cohort(make_timelines([(1, 150, MI)], {1: {}, 2: {"follow_up_end": day(400)}}), task).events
    assert censored["incidence"].to_list() == [0.5, None]
    over = build_cohort(make_timelines([(1, 150, MI), (2, 300, MI)], {1: {}, 2: {}}), task).events
    assert over["incidence"].to_list() == [0.5, 1.0]


def test_an_event_exactly_at_the_horizon_counts(make_timelines, make_task, day):
    task = make_task(OUTCOMES, horizons=["1y", "1d"], prediction_times={"rule": "landmarks", "after_start": ["0h"]})
    events = build_cohort(make_timelines([(1, 365, MI)]), task).events
    assert events.filter(pl.col("outcome") == "mi").select("horizon", "events").rows() == [("1d", 0), ("1y", 1)]


def test_summary_says_what_deserves_a_look(cohort):
    assert cohort.unmatched_codes == ("LOINC//1",)
    assert cohort.outside_follow_up.rows() == [("mi", 1)]
    text = cohort.summary()
    assert "No event has the code LOINC//1." in text
    assert "Occurrences of mi after the end of follow-up, which do not count: 1." in text
    assert "already_present" in text
    assert "patient-" not in text
    assert repr(cohort) == text


def test_an_outcome_present_in_everyone_gets_a_hint(make_timelines, make_task):
    timelines = make_timelines([(1, 10, "X//1"), (1, 10, VISIT), (1, 20, "X//1")], {1: {}, 2: {}})
    task = make_task({"again": {"codes": ["X//1"]}, "never": {"codes": ["X//2"]}},
                     prediction_times={"rule": "every_encounter"})  # fmt: skip
    cohort = build_cohort(timelines, task)
    first, second, third = cohort.remarks()
    assert first == "No event has the code X//2."
    assert second.startswith("Nobody is at risk of again")
    assert "incident = false" in second
    assert third == "never never happens after a prediction time."
    assert cohort.attrition.filter(pl.col("step") == "no_prediction_time")["subjects"].to_list() == [1]


def test_follow_up_to_the_last_contact_gets_a_warning(make_timelines, make_task):
    task = make_task({"mi": {"codes": [MI]}}, prediction_times={"rule": "every_encounter"})
    events = [(1, 10, VISIT), (1, 20, MI)]
    rules = {1: {"follow_up_rule": "last_contact"}, 2: {"follow_up_rule": "last_contact"}, 3: {}}
    (line,) = build_cohort(make_timelines(events, rules), task).remarks()
    assert line.startswith("Follow-up of 2 subjects ends with their last record (last_contact)")
    assert "data cut" in line
    assert build_cohort(make_timelines(events, {1: {}, 2: {"follow_up_rule": "data_cut"}}), task).remarks() == []


def test_the_split_is_that_of_the_seed(make_timelines, make_task):
    timelines = make_timelines([], {s: {} for s in range(1, 60)})
    task = make_task(OUTCOMES, prediction_times={"rule": "landmarks", "after_start": ["1d"]})

    def splits(seed):
        rows = build_cohort(timelines, task, seed=seed).rows
        return dict(rows.select("subject_id", "split").iter_rows())

    for seed in (0, 7):
        assert splits(seed) == dict(split_subjects(timelines, seed=seed).iter_rows())
    assert splits(0) != splits(7)


def test_nobody_at_all(make_timelines, make_task):
    task = make_task(OUTCOMES, prediction_times={"rule": "after:X//1"})
    cohort = build_cohort(make_timelines([], {1: {}}), task)
    assert cohort.rows.height == cohort.events.height == 0
    assert cohort.unmatched_codes == (MI, "MEDS_DEATH", "X//1")
    assert "no_prediction_time" in cohort.summary()


def test_unknown_patients_of_a_table_are_counted(make_timelines, make_task):
    pairs = [{"patient": p, "time": "2005-06-01"} for p in ("patient-1", "stranger", "nobody")]
    cohort = build_cohort(make_timelines([]), make_task(OUTCOMES, prediction_times={"rule": "table", "times": pairs}))
    assert cohort.attrition.row(2) == (None, None, "unknown_patient", 2, 0)
    assert "stranger" not in cohort.summary()


# --- a real cohort, labelled a second time from its source files ---

EXAMPLE = Path(__file__).parents[2] / "examples" / "nafld.toml"
FILES = ("Patient", "Condition", "ResearchSubject")
LANDMARKS = {"2y": 730, "5y": 1826}


def records(folder, name):
    with gzip.open(folder / f"{name}.ndjson.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def day_number(text):
    return (date.fromisoformat(text[:10]) - date(2005, 1, 1)).days


def expected_cell(folder, codes, landmark):
    """{patient: (days, cause)} of those at risk, day by day: an event on the day of the landmark is in the past."""
    first: dict[str, int] = {}
    for record in records(folder, "Condition"):
        if record["code"]["coding"][0]["code"] in codes:
            patient = record["subject"]["reference"].removeprefix("Patient/")
            when = day_number(record["onsetDateTime"])
            first[patient] = min(when, first.get(patient, when))
    died = {r["id"]: day_number(r["deceasedDateTime"]) for r in records(folder, "Patient") if "deceasedDateTime" in r}
    cell = {}
    for record in records(folder, "ResearchSubject"):
        patient = record["individual"]["reference"].removeprefix("Patient/")
        moments = [(day_number(record["period"]["end"]), 3)]
        if patient in died:
            moments.append((died[patient], 2 if codes else 1))
        if patient in first:
            moments.append((first[patient], 1))
        when, cause = min(moments)
        if when > landmark:
            cell[patient] = (float(when - landmark), cause % 3)
    return cell


@pytest.fixture(scope="session")
def nafld_cohort(data_folder, tmp_path_factory):
    from ehrseq.timeline.build import read_fhir

    folder = tmp_path_factory.mktemp("nafld")
    for name in FILES:  # the labels need no observations
        shutil.copy(data_folder / "nafld_fhir" / f"{name}.ndjson.gz", folder)
    timelines = read_fhir(folder)
    return build_cohort(timelines, Task.from_toml(EXAMPLE)), timelines.subjects


@pytest.mark.parametrize("landmark", LANDMARKS)
@pytest.mark.parametrize("outcome", ["diabetes", "cvd", "death"])
def test_nafld_labels_equal_the_source_files(nafld_cohort, data_folder, outcome, landmark):
    cohort, subjects = nafld_cohort
    rows = cohort.rows.filter((pl.col("outcome") == outcome) & (pl.col("landmark") == landmark) & pl.col("at_risk"))
    named = rows.join(subjects.select("subject_id", "patient"), on="subject_id")
    found = {patient: (days, cause) for patient, days, cause in named.select("patient", "days", "cause").iter_rows()}
    task = Task.from_toml(EXAMPLE)
    codes = {c.removeprefix("SNOMED//") for c in task.outcome(outcome).codes if c != "MEDS_DEATH"}
    assert found == expected_cell(data_folder / "nafld_fhir", codes, LANDMARKS[landmark])
    assert len(found) > 8000
