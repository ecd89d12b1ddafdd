import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from datetime import date, datetime, time

import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from meds import CodeMetadataSchema, DataSchema, DatasetMetadataSchema, SubjectSplitSchema
from polars.testing import assert_frame_equal

from ehrseq.errors import DataWarning, TimelineError, UserError
from ehrseq.timeline.meds import SHARDS, shard_of
from ehrseq.timeline.schema import EVENT_SCHEMA, SUBJECT_SCHEMA, as_instant, normalise_events
from ehrseq.timeline.store import Timelines, as_timelines
from ehrseq.timeline.subjects import derive_subjects, normalise_subjects

TABLES = ("events", "subjects", "splits", "ledger", "quarantine", "sources")
SUBJECTS = 40
SYSTEMS = {"LOINC", "SNOMED", "https://x.test/codes", "SEX", "MEDS_BIRTH", "MEDS_DEATH"}


def event_columns(seed=0, subjects=SUBJECTS):
    """Columns of an event table of several subjects, with every kind of value and many ties."""
    draw = random.Random(seed)
    rows = []
    for n in range(subjects):
        subject = draw.getrandbits(63) - 2**62
        born = datetime(1940 + n % 50, 1 + n % 12, 1)
        rows.append((subject, None, f"SEX//{'female' if n % 2 else 'male'}", None, None, None))
        rows.append((subject, born, "MEDS_BIRTH", None, None, None))
        for _ in range(draw.randrange(12)):
            when = datetime(2000 + draw.randrange(3), 1 + draw.randrange(2), 1)
            code = draw.choice(["LOINC//718-7", "LOINC//2160-0", "SNOMED//44054006", "https://x.test/codes//odd"])
            unit = draw.choice(["mg/dL", "g/L", None])
            rows.append((subject, when, code, draw.choice([None, 1.5, float(n)]), draw.choice([None, "", "é"]), unit))
        if n % 5 == 0:
            rows.append((subject, datetime(2004, 1, 1), "MEDS_DEATH", None, None, None))
    names = ("subject_id", "time", "code", "numeric_value", "text_value", "unit")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def whole_timelines(seed=0):
    timelines = Timelines.from_events(event_columns(seed), data_cut="2003-12-31")
    ids = timelines.subjects["subject_id"]
    splits = pl.DataFrame(
        {"subject_id": ids, "split": [("train", "tuning", "held_out")[i % 3] for i in range(len(ids))]}
    )
    return Timelines(
        events=timelines.events.with_columns(
            time_source=pl.lit("effective").cast(pl.Categorical), utc_offset=pl.lit(60, pl.Int16)
        ),
        subjects=timelines.subjects,
        splits=splits,
        ledger=pl.DataFrame(
            {
                "file_number": [0, 0, 1],
                "resource_type": ["Claim", "Observation", ""],
                "fate": ["skipped", "events", "quarantined"],
                "reason": ["financial", "", "malformed_json"],
                "count": [3, 10, 1],
            },
            schema_overrides={"file_number": pl.Int32},
        ),
        quarantine=pl.DataFrame({"file_number": [1], "line": [7], "reason": ["malformed_json"]}),
        sources=pl.DataFrame({"file_number": [0, 1], "path": ["a.ndjson", "b.ndjson"]}),
        metadata={
            "dataset_name": "test",
            "codes": pl.DataFrame(
                {"code": ["LOINC//718-7"], "description": ["Hemoglobin"], "parent_codes": [["LOINC//LP1"]]}
            ),
        },
    )


def assert_same(a, b):
    for name in TABLES:
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert_frame_equal(left, right)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def shuffled(frame, seed=1):
    return None if frame is None else frame.sample(fraction=1.0, shuffle=True, seed=seed)


@pytest.fixture(scope="module")
def timelines():
    return whole_timelines()


@pytest.fixture(scope="module")
def saved(timelines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "timelines"
    timelines.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "timelines")


@pytest.fixture
def foreign(saved, tmp_path):
    """The same dataset as another MEDS tool would have written it: its own shards, no tables of ours."""
    folder = tmp_path / "foreign"
    events = pl.concat([pl.read_parquet(f) for f in sorted((saved / "data").glob("*.parquet"))])
    events = events.select("subject_id", "time", "code", pl.col("numeric_value"), ward=pl.lit("x"))
    splits = pl.read_parquet(saved / "metadata" / "subject_splits.parquet")
    for split in ("train", "tuning", "held_out"):
        (folder / "data" / split).mkdir(parents=True)
        ids = splits.filter(pl.col("split") == split)["subject_id"].implode()
        part = events.filter(pl.col("subject_id").is_in(ids))
        part.with_columns(pl.col("code").cast(pl.Categorical)).write_parquet(folder / "data" / split / "0.parquet")
    (folder / "metadata").mkdir()
    splits.write_parquet(folder / "metadata" / "subject_splits.parquet")
    (folder / "metadata" / "dataset.json").write_text('{"dataset_name": "theirs", "etl_name": "another tool"}')
    return folder


# on disk


def test_save_then_load_gives_the_same_tables(timelines, saved):
    loaded = Timelines.load(saved)
    assert_same(loaded, timelines)
    assert dict(loaded.events.schema) == EVENT_SCHEMA
    assert dict(loaded.subjects.schema) == SUBJECT_SCHEMA
    assert loaded.metadata["dataset_name"] == "test"
    assert_frame_equal(loaded.metadata["codes"], timelines.codes())


def test_tables_that_are_not_there_stay_away(tmp_path):
    timelines = Timelines.from_events(event_columns())
    timelines.save(tmp_path / "t")
    loaded = Timelines.load(tmp_path / "t")
    assert_same(loaded, timelines)
    assert loaded.splits is loaded.ledger is loaded.sources is None


def test_no_events_at_all(tmp_path):
    Timelines.from_events(pl.DataFrame(schema=EVENT_SCHEMA)).save(tmp_path / "t")
    loaded = Timelines.load(tmp_path / "t")
    assert len(loaded) == loaded.events.height == 0
    assert loaded.summary()["last_time"] is None


def test_equal_content_gives_equal_bytes_whatever_the_order_of_rows(timelines, saved, tmp_path):
    other = Timelines(
        **{name: shuffled(getattr(timelines, name)) for name in TABLES},
        metadata={"codes": shuffled(timelines.codes()), "dataset_name": "test"},
    )
    other.save(tmp_path / "t")
    assert contents(tmp_path / "t") == contents(saved)


def test_saving_what_was_loaded_gives_the_same_bytes(saved, tmp_path):
    Timelines.load(saved).save(tmp_path / "t")
    assert contents(tmp_path / "t") == contents(saved)


def test_bytes_do_not_depend_on_what_the_process_did_before(saved, tmp_path):
    # polars numbers categories per process: they must not reach the file
    code = (
        "import sys, polars as pl; from ehrseq.timeline.store import Timelines;"
        "noise = pl.Series([f'x{i}' for i in range(100)] + ['effective'], dtype=pl.Categorical);"
        "Timelines.load(sys.argv[1]).save(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(saved), str(tmp_path / "t")], check=True)
    assert contents(tmp_path / "t") == contents(saved)


def test_other_content_gives_other_bytes(timelines, saved, tmp_path):
    changed = timelines.events.with_columns(
        numeric_value=pl.when(pl.int_range(pl.len()) == 5).then(99.0).otherwise("numeric_value").cast(pl.Float32)
    )
    Timelines(changed, timelines.subjects).save(tmp_path / "t")
    assert contents(tmp_path / "t")["manifest.json"] != contents(saved)["manifest.json"]


def test_the_folder_is_a_valid_meds_dataset(timelines, saved):
    seen = {}
    for file in sorted((saved / "data").glob("*.parquet")):
        table = pq.read_table(file)
        DataSchema.validate(table)
        rows = list(zip(table["subject_id"].to_pylist(), table["time"].to_pylist(), strict=True))
        # contiguous: a subject's block is entered once; sorted: static first, then by time
        blocks = [s for i, (s, _) in enumerate(rows) if i == 0 or rows[i - 1][0] != s]
        assert len(blocks) == len(set(blocks))
        for (s, t), (next_s, next_t) in itertools.pairwise(rows):
            assert s != next_s or (t or datetime.min) <= (next_t or datetime.min)
        for subject in blocks:
            assert subject not in seen, "a subject in two files"
            seen[subject] = file.name
    assert set(seen) == set(timelines.subjects["subject_id"])
    codes = pq.read_table(saved / "metadata" / "codes.parquet")
    CodeMetadataSchema.validate(codes)
    assert set(timelines.events["code"]) <= set(codes["code"].to_pylist())
    SubjectSplitSchema.validate(pq.read_table(saved / "metadata" / "subject_splits.parquet"))
    facts = json.loads((saved / "metadata" / "dataset.json").read_text())
    DatasetMetadataSchema.validate(facts)
    beyond = [c for key, columns in facts.items() if key.endswith("_columns") for c in columns]
    assert sorted(beyond) == sorted(set(EVENT_SCHEMA) - set(DataSchema.schema().names))


def test_shards_follow_splitmix64():
    def splitmix64(n):
        n = (n + 0x9E3779B97F4A7C15) % 2**64
        n = (n ^ (n >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        n = (n ^ (n >> 27)) * 0x94D049BB133111EB % 2**64
        return n ^ (n >> 31)

    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the reference generator's first number from seed 0
    ids = [-(2**63), -1, 0, 1, 12345, 2**63 - 1]
    assert shard_of(pl.Series(ids)).tolist() == [splitmix64(i % 2**64) % SHARDS for i in ids]


def test_descriptions_and_parents_reach_the_code_table(saved):
    row = pl.read_parquet(saved / "metadata" / "codes.parquet").filter(pl.col("code") == "LOINC//718-7").row(0)
    assert row == ("LOINC//718-7", "Hemoglobin", ["LOINC//LP1"])


def test_a_failing_save_leaves_the_old_dataset(timelines, folder, tmp_path):
    before = contents(folder)
    broken = Timelines(timelines.events, timelines.subjects, metadata={"dataset_name": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.save(folder)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["timelines"]


def test_a_foreign_folder_is_refused(timelines, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="choose another --out"):
        timelines.save(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def unlist(folder, name):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: flip(f / "data" / "3.parquet"),
        lambda f: flip(f / "subjects.parquet"),
        lambda f: flip(f / "metadata" / "dataset.json"),
        lambda f: (f / "data" / "0.parquet").unlink(),
        lambda f: (f / "subjects.parquet").write_bytes(b""),
        lambda f: (f / "manifest.json").unlink(),
        lambda f: (f / "manifest.json").write_text("{}"),
        lambda f: unlist(f, "data/2.parquet"),
        lambda f: unlist(f, "subjects.parquet"),
        lambda f: unlist(f, "metadata/codes.parquet"),
        lambda f: shutil.copy(f / "subjects.parquet", f / "data" / "2.parquet"),
    ],
)
def test_damage_is_one_line(folder, damage):
    damage(folder)
    with pytest.raises(TimelineError) as caught:
        Timelines.load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_neither_ours_nor_meds(tmp_path):
    with pytest.raises(
        TimelineError, match=r"expected a timelines folder or a MEDS dataset .*; found a folder without"
    ):
        Timelines.load(tmp_path)
    with pytest.raises(TimelineError, match="found no such folder"):
        Timelines.load(tmp_path / "nowhere")


# MEDS from elsewhere


def test_any_meds_dataset_is_read(foreign, timelines):
    loaded = Timelines.load(foreign)
    assert_frame_equal(
        loaded.events.select("subject_id", "time", "code", "numeric_value").sort(pl.all()),
        timelines.events.select("subject_id", "time", "code", "numeric_value").sort(pl.all()),
    )
    assert_frame_equal(loaded.splits, timelines.splits)
    derived = ["subject_id", "birth_time", "sex", "death_time", "follow_up_start"]
    assert_frame_equal(loaded.subjects.select(derived), timelines.subjects.select(derived))
    assert set(loaded.subjects["follow_up_rule"].drop_nulls()) == {"last_contact"}
    assert loaded.metadata["dataset_name"] == "theirs"


def test_meds_without_metadata_is_read(foreign):
    shutil.rmtree(foreign / "metadata")
    loaded = Timelines.load(foreign)
    assert loaded.splits is None
    assert len(loaded) == SUBJECTS


def test_meds_in_then_out_is_ours(foreign, tmp_path):
    first = Timelines.load(foreign)
    first.save(tmp_path / "ours")
    assert_same(Timelines.load(tmp_path / "ours"), first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "data" / "train" / "0.parquet").write_bytes(b"PAR1 nonsense"),
        lambda f: (f / "data" / "train" / "0.parquet").write_bytes(
            (f / "data" / "train" / "0.parquet").read_bytes()[:99]
        ),
        lambda f: (f / "metadata" / "subject_splits.parquet").write_bytes(b""),
        lambda f: (f / "metadata" / "dataset.json").write_text("[1]"),
        lambda f: (f / "metadata" / "dataset.json").write_text("{"),
        lambda f: pl.DataFrame({"patient_id": [1]}).write_parquet(f / "data" / "train" / "0.parquet"),
    ],
)
def test_damaged_meds_is_one_line(foreign, damage):
    damage(foreign)
    with pytest.raises(TimelineError) as caught:
        Timelines.load(foreign)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", range(20))
def test_a_flipped_bit_in_foreign_meds_is_never_a_traceback(foreign, place):
    # without a manifest some flips are legal other values; whatever is raised must be ours
    path = foreign / "data" / "train" / "0.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) * place // 20] ^= 0x10
    path.write_bytes(content)
    with contextlib.suppress(TimelineError):
        assert dict(Timelines.load(foreign).events.schema) == EVENT_SCHEMA


# event frames


@pytest.fixture(params=["polars", "pandas", "arrow"])
def as_frame(request):
    return {"polars": pl.DataFrame, "pandas": pd.DataFrame, "arrow": lambda c: pl.DataFrame(c).to_arrow()}[
        request.param
    ]


def test_event_frames_of_every_library_give_the_same_timelines(as_frame):
    expected = Timelines.from_events(event_columns())
    assert_same(as_timelines(as_frame(event_columns())), expected)


def test_as_timelines_takes_timelines_and_folders(saved, timelines):
    assert as_timelines(timelines) is timelines
    assert_same(as_timelines(saved), timelines)
    assert_same(as_timelines(str(saved)), timelines)
    with pytest.raises(UserError, match="found an object of type int"):
        as_timelines(7)


@pytest.mark.parametrize(
    ("code", "sex"),
    [
        ("SEX//female", "female"),
        ("GENDER//F", "female"),
        ("Gender//M", "male"),
        ("Gender/Male", "male"),
        ("SEX//unknown", "unknown"),
        ("SEX//hormone-binding globulin", None),
        ("SNOMED//248152002", None),
    ],
)
def test_sex_from_common_codes(code, sex):
    assert Timelines.from_events({"subject_id": [1], "time": [None], "code": [code]}).subjects["sex"].item() == sex


def test_static_facts_are_static_or_dated_at_birth():
    timelines = Timelines.from_events(
        {
            "subject_id": [1, 1, 2, 2, 2, 3],
            "time": [datetime(1950, 1, 1)] * 2
            + [None, datetime(2001, 1, 1), datetime(2001, 1, 1), datetime(2001, 1, 1)],
            "code": ["MEDS_BIRTH", "SEX//female", "RACE//white", "ETHNICITY//x", "RACE//black", "SEX//male"],
        }
    )
    assert timelines.subjects.select("sex", "race", "ethnicity").rows() == [
        ("female", None, None),
        (None, "white", None),
        (None, None, None),
    ]


def test_birth_and_death_of_a_subject():
    frame = {
        "subject_id": [1, 1, 2, 2],
        "time": [datetime(1950, 3, 1), datetime(2010, 5, 5), datetime(2011, 6, 6, 7), datetime(2010, 6, 6, 8)],
        "code": ["MEDS_BIRTH", "MEDS_DEATH", "MEDS_DEATH", "MEDS_DEATH//I21"],
        "time_precision": ["day", "day", "second", "second"],
        "known_time": [None, datetime(2010, 5, 5, 23, 59, 59, 999999), datetime(2012, 1, 1), None],
    }
    assert Timelines.from_events(frame).subjects.select("birth_time", "death_time").rows() == [
        (datetime(1950, 3, 1), datetime(2010, 5, 5, 23, 59, 59, 999999)),
        (None, datetime(2010, 6, 6, 8)),
    ]


def test_a_subject_table_goes_before_the_events(as_frame):
    given = as_frame(
        {
            "subject_id": [1, 9],
            "patient": ["anna", "carl"],
            "sex": [None, "male"],
            "follow_up_start": [datetime(1999, 1, 1), datetime(1999, 1, 1)],
            "follow_up_end": [datetime(2005, 1, 1), datetime(2009, 1, 1)],
        }
    )
    events = {"subject_id": [1, 1, 2], "time": [None, *[datetime(2001, 1, 1)] * 2], "code": ["SEX//F", "A//1", "A//1"]}
    timelines = Timelines.from_events(events, subjects=given, data_cut=date(2007, 12, 31))
    cut = datetime(2007, 12, 31, 23, 59, 59, 999999)
    columns = ["patient", "sex", "follow_up_start", "follow_up_end", "follow_up_rule"]
    assert timelines.subjects.select(columns).rows() == [
        ("anna", "female", datetime(1999, 1, 1), datetime(2005, 1, 1), "observation_period"),
        ("2", None, datetime(2001, 1, 1), cut, "data_cut"),
        ("carl", "male", datetime(1999, 1, 1), cut, "data_cut"),
    ]


@pytest.mark.parametrize(
    "subjects", [{"subject_id": [1, 1]}, {"patient": ["x"]}, {"subject_id": [1], "birth_time": ["secret"]}]
)
def test_a_bad_subject_table_is_one_line(subjects):
    with pytest.raises(TimelineError) as caught:
        normalise_subjects(subjects)
    assert "secret" not in str(caught.value)


# in memory


def test_select_keeps_some_subjects(timelines):
    ids = timelines.subjects["subject_id"][[3, 5]]
    few = timelines.select(ids)
    assert few.subjects["subject_id"].to_list() == ids.to_list()
    assert set(few.events["subject_id"]) == set(few.splits["subject_id"]) == set(ids)
    assert_frame_equal(timelines.select(ids.to_list()).events, few.events)
    assert len(timelines.select([])) == 0


def test_with_splits(timelines, as_frame):
    ids = timelines.subjects["subject_id"].to_list()
    split = timelines.with_splits(as_frame({"subject_id": ids[::-1], "split": ["train"] * len(ids)}))
    assert split.splits["subject_id"].to_list() == ids
    with pytest.raises(TimelineError, match="expected splits named train, tuning, held_out"):
        timelines.with_splits({"subject_id": ids, "split": ["test"] * len(ids)})


def test_patients_are_found_by_name_or_reference():
    subjects = {"subject_id": [1, 2, 3, 4], "patient": ["a", "b", "twice", "twice"]}
    timelines = Timelines.from_events(pl.DataFrame(schema=EVENT_SCHEMA), subjects=subjects)
    assert timelines.subject_ids(["b", "Patient/a", "http://x.test/fhir/Patient/b"]).to_list() == [2, 1, 2]
    assert timelines.subject_ids([]).to_list() == []
    with pytest.raises(TimelineError, match="found 1 names that fit no subject") as caught:
        timelines.subject_ids(["a", "secret"])
    assert "secret" not in str(caught.value)
    with pytest.raises(TimelineError, match="found 1 names that fit several subjects"):
        timelines.subject_ids(["twice"])


def test_summary_counts(timelines):
    summary = timelines.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["subjects"] == SUBJECTS
    assert sum(summary["events_per_code_system"].values()) == summary["events"] == timelines.events.height
    assert set(summary["events_per_code_system"]) == SYSTEMS
    assert summary["events_per_code_system"]["MEDS_BIRTH"] == SUBJECTS
    assert sum(summary["follow_up_rules"].values()) == SUBJECTS
    assert summary["deaths"] == SUBJECTS / 5
    assert summary["deaths_inside_follow_up"] == 0  # every death is after the data cut
    assert summary["splits"] == {"held_out": 13, "train": 14, "tuning": 13}
    assert summary["records"] == {
        "events": {"": 10},
        "quarantined": {"malformed_json": 1},
        "skipped": {"financial": 3},
    }
    times = [t for t, c in zip(*event_pair(timelines), strict=True) if t and not c.startswith("MEDS_")]
    assert (summary["first_time"], summary["last_time"]) == (min(times).isoformat(), max(times).isoformat())


def event_pair(timelines):
    return timelines.events["time"].to_list(), timelines.events["code"].to_list()


def test_a_given_follow_up_counts_as_observed_from_its_start():
    table = {
        "subject_id": [1, 2],
        "follow_up_start": [date(1999, 1, 1), None],
        "follow_up_end": [None, date(2009, 1, 1)],
    }
    subjects = derive_subjects(normalise_events(event_columns()), pl.DataFrame(table))
    found = dict(subjects.select("subject_id", "observation_start").iter_rows())
    assert found.pop(1) == datetime(1999, 1, 1)
    assert set(found.values()) == {None}


def test_deaths_inside_follow_up_are_counted():
    events = normalise_events(event_columns())
    inside = Timelines.from_events(events, data_cut="2004-12-31").summary()["deaths_inside_follow_up"]
    followed = set(events.filter(pl.col("code").str.contains("//") & pl.col("time").is_not_null())["subject_id"])
    died = set(events.filter(pl.col("code") == "MEDS_DEATH")["subject_id"])
    assert inside == len(followed & died) > 0


@pytest.mark.parametrize("column", ["birth_time", "death_time", "follow_up_end"])
def test_numbers_are_no_times(column):
    events = {"subject_id": [1], "time": [datetime(2010, 1, 1)], "code": ["LOINC//718-7"]}
    with pytest.raises(TimelineError, match=f"times in column {column}; found numbers"):
        Timelines.from_events(events, pl.DataFrame({"subject_id": [1], column: [1950]}))
    with pytest.raises(TimelineError, match="found numbers"):
        Timelines.from_events(events, pl.DataFrame({"subject_id": [1], column: [True]}))
    for kind, value in ((pl.Int64, None), (pl.Float64, float("nan"))):
        nothing = pl.DataFrame({"subject_id": [1], column: [value]}, {"subject_id": pl.Int64, column: kind})
        found = Timelines.from_events(events, nothing).subjects[column].item()
        assert found == (datetime(2010, 1, 1) if column == "follow_up_end" else None)  # that of the last contact
    with pytest.raises(TimelineError, match=f"in column {column} of the subject table"):
        Timelines.from_events(events, pl.DataFrame({"subject_id": [1], column: [time(12)]}))


def test_a_pandas_column_of_dates_and_times_is_refused_in_a_dict_too():
    mixed = pd.Series([date(2010, 1, 1), datetime(2010, 1, 2, 13)], dtype=object)
    with pytest.raises(UserError, match="make each column of one type"):
        Timelines.from_events({"subject_id": [1, 1], "time": mixed, "code": ["A//1", "A//2"]})


@pytest.mark.parametrize("year", [1, 1799, 2500, 9999])
def test_dates_that_stand_for_none_are_left_out_of_frames_with_a_warning(year):
    impossible, real = datetime(year, 1, 1), datetime(2010, 1, 1)
    codes = ["LOINC//718-7", "LOINC//718-7", "LOINC//2345-7", "MEDS_DEATH"]
    events = {"subject_id": [1] * 4, "time": [real, impossible, real, impossible], "code": codes,
              "known_time": [real, real, datetime(year, 6, 1), impossible]}  # fmt: skip
    with pytest.warns(DataWarning, match="found 3 events with others: they are left out"):
        timelines = Timelines.from_events(events)
    assert timelines.events["code"].to_list() == ["LOINC//718-7"]
    assert timelines.subjects.select("death_time", "follow_up_start", "follow_up_end").row(0) == (None, real, real)
    with pytest.warns(DataWarning, match="found 1 values of death_time"):
        subjects = normalise_subjects({"subject_id": [1], "death_time": [impossible], "birth_time": [real]})
    assert subjects.select("birth_time", "death_time").row(0) == (real, None)


@pytest.mark.parametrize("moment", [pd.NaT, pd.NA, 2015])
def test_what_is_no_moment_is_refused_by_its_type(moment):
    with pytest.raises(TimelineError, match=f"expected a date or a time; found {type(moment).__name__};"):
        as_instant(moment)
