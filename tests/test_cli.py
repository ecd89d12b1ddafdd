"""The command line: the day of a user, what bad input gets, and nothing of a patient on the screen."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

import ehrseq.config
import ehrseq.demo
import ehrseq.estimator  # before `call` changes what it imports
from ehrseq.cli import main
from ehrseq.config import ModelConfig, NetworkConfig
from ehrseq.errors import EhrseqError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.forecast.table import Forecast
from ehrseq.timeline.store import Timelines
from tests.toy import CONFIG

ONE_LINE = re.compile(r"ehrseq: expected .+; found .+; .+\n")
CANARY = "zzcanary"
SUBJECTS = 120


class Small:
    """In the place of ModelConfig: a network of this size is fitted in a second."""

    from_dict = ModelConfig.from_dict

    def __new__(cls, seed, model="hybrid"):
        return replace(CONFIG, seed=seed, model=model)

    @staticmethod
    def of_size(size, **settings):
        return replace(CONFIG, **settings)


def call(*arguments):
    """Run a verb in this process; the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ehrseq", *map(str, arguments)])
        for room in (ehrseq.config, ehrseq.demo):
            patch.setattr(room, "ModelConfig", Small)
        try:
            main()
        except SystemExit as end:
            return end.code or 0
    return 0


@pytest.fixture
def run(capfd):
    """Run a verb: exit status, standard output, standard error."""

    def one(*arguments):
        capfd.readouterr()
        status = call(*arguments)
        return status, *capfd.readouterr()

    return one


@pytest.fixture
def refused(run):
    """Run a verb that must fail as a user's error does; its one line."""

    def one(*arguments):
        status, _, err = run(*arguments)
        assert status == 1
        assert ONE_LINE.fullmatch(err), err
        return err

    return one


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What the verbs make of a simulated export, each folder from the one before."""
    folder = tmp_path_factory.mktemp("work")
    s, t, m = folder / "simulation", folder / "timelines", folder / "model"
    assert call("simulate", "--subjects", SUBJECTS, "--seed", 4, "--out", s) == 0
    assert call("ingest", s / "export", "--out", t) == 0
    assert call("fit", t, "--task", s / "task.toml", "--out", m) == 0
    assert call("score", m, t, "--at", "task", "--out", folder / "forecasts") == 0
    assert call("evaluate", m, t, "--bootstrap", 5, "--out", folder / "report") == 0
    return folder


# the day of a user


def test_simulate_says_where_export_task_and_truth_are(run, tmp_path):
    status, out, err = run("simulate", "--subjects", 5, "--out", tmp_path / "s")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"export: {tmp_path / 's' / 'export'}", f"task: {tmp_path / 's' / 'task.toml'}",
        f"truth: {tmp_path / 's' / 'truth.parquet'}",
    ]  # fmt: skip


def test_ingest_prints_sizes_and_what_became_of_the_records(run, work, tmp_path):
    status, out, err = run("ingest", work / "simulation" / "export", "--out", tmp_path / "t")
    assert (status, err) == (0, "")
    assert f"subjects: {SUBJECTS}\n" in out
    lines = sum(len(f.read_bytes().splitlines()) for f in (work / "simulation" / "export").iterdir())
    counted = dict(re.findall(r"^  (\w+): ([\d,]+)$", out[out.index("records:") :], re.MULTILINE))
    followed = int(re.search(r"^    follow_up: (\d+)", out, re.MULTILINE)[1])
    assert int(counted["events"].replace(",", "")) + followed == lines
    assert out.endswith(f"timelines: {tmp_path / 't'}\n")
    assert "quarantine" not in out


def test_ingest_of_several_sources_with_a_data_cut(run, work, tmp_path):
    files = sorted((work / "simulation" / "export").iterdir())
    assert run("ingest", *files, "--out", tmp_path / "t", "--data-cut", "2013-01-01")[0] == 0
    assert Timelines.load(tmp_path / "t").metadata["data_cut"] == "2013-01-01T23:59:59.999999"


def two_codings(folder):
    """An export of one diagnosis with a SNOMED and an ICD-10-CM coding, and a concept map of the latter."""
    codings = [{"system": "http://snomed.info/sct", "code": "44054006"},
               {"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "E11.9"}]  # fmt: skip
    records = [
        {"resourceType": "Patient", "id": "p", "gender": "female"},
        {"resourceType": "Condition", "subject": {"reference": "Patient/p"}, "onsetDateTime": "2020-01-02",
         "code": {"coding": codings}},
    ]  # fmt: skip
    (folder / "export.ndjson").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "map.csv").write_text("code,target\nICD10CM//E11.9,urn:phecode//250.2\n")
    return folder / "export.ndjson"


def codes_of(folder):
    rows = Timelines.load(folder).events.filter(resource_type="Condition").select("code", "other_codes").rows()
    return [rows[0][0], *rows[0][1]]


def test_ingest_with_a_coding_preference_and_a_concept_map(run, tmp_path):
    export = two_codings(tmp_path)
    assert run("ingest", export, "--out", tmp_path / "plain")[0] == 0
    assert codes_of(tmp_path / "plain") == ["SNOMED//44054006", "ICD10CM//E11.9"]
    wanted = ("--prefer", "diagnosis=ICD10CM", "--prefer", "vaccine=NDC,CVX", "--concept-map", tmp_path / "map.csv")
    assert run("ingest", export, "--out", tmp_path / "mine", *wanted)[0] == 0
    assert codes_of(tmp_path / "mine") == ["ICD10CM//E11.9", "SNOMED//44054006", "urn:phecode//250.2"]
    # an update goes on with them
    assert run("ingest", export, "--out", tmp_path / "mine", "--update")[0] == 0
    assert codes_of(tmp_path / "mine") == ["ICD10CM//E11.9", "SNOMED//44054006", "urn:phecode//250.2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prefer", "diagnose=ICD10CM"], "did you mean 'diagnosis'"),
        (["--prefer", "diagnosis"], "write for example diagnosis=ICD10CM,SNOMED"),
        (["--prefer", "diagnosis=ICD10"] * 2, "'diagnosis' twice"),
        (["--prefer", "diagnosis=ICD10CN"], "did you mean 'ICD10CM'"),
        (["--concept-map", "none.csv"], "a table with the columns code and target"),
    ],
)
def test_preferences_that_cannot_be(refused, tmp_path, arguments, says):
    export = two_codings(tmp_path)
    assert says in refused("ingest", export, "--out", tmp_path / "t", *arguments)
    assert not (tmp_path / "t").exists()


def test_another_preference_than_the_datasets_is_no_update(refused, run, tmp_path):
    export = two_codings(tmp_path)
    assert run("ingest", export, "--out", tmp_path / "t")[0] == 0
    message = refused("ingest", export, "--out", tmp_path / "t", "--update", "--prefer", "diagnosis=ICD10CM")
    assert "the coding preference that the dataset was made with" in message


def test_strict_leaves_no_dataset(refused, tmp_path):
    export = two_codings(tmp_path)
    with export.open("a") as file:
        file.write('{"resourceType": "Condition",\n')
    assert "one that cannot (malformed_json)" in refused("ingest", export, "--out", tmp_path / "t", "--strict")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export.ndjson", "map.csv"]


def test_cohort_counts_who_is_at_risk(run, work):
    status, out, err = run("cohort", work / "timelines", "--task", work / "simulation" / "task.toml")
    assert (status, err) == (0, "")
    assert "already_present" in out
    assert "heart_failure" in out


def test_fit_reports_epochs_and_whom_it_was_fitted_on(run, work, tmp_path):
    arguments = ("fit", work / "timelines", "--task", work / "simulation" / "task.toml", "--seed", 7)
    status, out, err = run(*arguments, "--out", tmp_path / "m")
    assert (status, err) == (0, "")
    assert re.search(r"^epoch 1: tuning loss \d+\.\d{4}$", out, re.MULTILINE)
    assert re.search(r"^fitted on \d+ training and \d+ tuning subjects$", out, re.MULTILINE)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["seed"] == 7


@pytest.mark.parametrize("file_format", ["parquet", "csv"])
def test_score_an_export_and_its_timelines(run, work, tmp_path, file_format):
    for source, name in ((work / "simulation" / "export", "raw"), (work / "timelines", "stored")):
        status, out, err = run(
            "score", work / "model", source, "--at", "2012-06-30", "--format", file_format, "--out", tmp_path / name
        )
        assert (status, err) == (0, "")
    raw, stored = Forecast.load(tmp_path / "raw"), Forecast.load(tmp_path / "stored")
    assert raw.risk.equals(stored.risk)
    assert (tmp_path / "raw" / f"risk.{file_format}").is_file()
    scored = stored.risk.select("subject_id", "prediction_time").n_unique()
    assert f"scored: {scored} prediction times of {scored} subjects\n" in out
    assert re.search(r"^  already_present: \d+$", out, re.MULTILINE)
    assert "do not judge it on them" in out
    assert out.endswith(f"forecasts: {tmp_path / 'stored'}\n")


def test_score_by_one_branch(run, refused, work, tmp_path):
    status, _, err = run("score", work / "model", work / "timelines", "--branch", "boosted", "--out", tmp_path / "f")
    assert (status, err) == (0, "")
    assert Forecast.load(tmp_path / "f").metadata["model"] == "boosted"
    assert "'cox'" in refused("score", work / "model", work / "timelines", "--branch", "cox", "--out", tmp_path / "g")


def test_pretrain_adapt_and_recalibrate(run, refused, work, tmp_path):
    start, timelines = tmp_path / "start", work / "timelines"
    assert run("fit", timelines, "--pretrain", "--out", start)[0] == 0
    assert "pretrained" in run("inspect", start)[1]
    assert "adapt" in refused("score", start, timelines, "--out", tmp_path / "none")
    status, out, err = run(
        "fit",
        timelines,
        "--task",
        work / "simulation" / "task.toml",
        "--start",
        start,
        "--model",
        "transformer",
        "--out",
        tmp_path / "m",
    )
    assert (status, err) == (0, "")
    assert "training" in out
    assert not list(tmp_path.glob(".*"))  # nothing is left of the training state
    # without --size it goes on with the settings of the folder, whatever they are
    other = replace(load_model(start).config, network=NetworkConfig(width=16, layers=1, heads=2, gated=True))
    ProgressionModel(other).fit(Timelines.load(timelines)).save(tmp_path / "other")
    task = work / "simulation" / "task.toml"
    gone_on = ("--task", task, "--start", tmp_path / "other", "--model", "transformer")
    assert run("fit", timelines, *gone_on, "--out", tmp_path / "on")[::2] == (0, "")
    assert load_model(tmp_path / "on").config == other
    assert "network" in refused("fit", timelines, *gone_on, "--size", "small", "--out", tmp_path / "x")
    status, out, err = run("recalibrate", tmp_path / "m", timelines, "--out", tmp_path / "r")
    assert (status, err) == (0, "")
    assert re.search(r"^death +\d+\.\d +\d+\.\d +\d+\.\d$", out, re.MULTILINE)
    assert "not fitted on" in refused("recalibrate", tmp_path / "r", timelines, "--out", tmp_path / "again")
    assert "task" in refused("fit", timelines, "--pretrain", "--start", start, "--out", tmp_path / "x")


def test_evaluate_a_model_and_a_forecast_folder(run, work, tmp_path):
    for judged, model in ((work / "model", "age_sex"), (work / "forecasts", "hybrid")):
        status, out, err = run("evaluate", judged, work / "timelines", "--bootstrap", 5, "--out", tmp_path / "r")
        assert (status, err) == (0, "")
        assert re.search(rf"^{model} +death +", out, re.MULTILINE)
        assert re.search(r"^seen in training: \d+$", out, re.MULTILINE)
        assert out.endswith(f"evaluation: {tmp_path / 'r' / 'report.html'}\n")


def test_evaluate_with_audits(run, refused, work, tmp_path):
    arguments = ("evaluate", work / "model", work / "timelines", "--audits", "--bootstrap", 5, "--out", tmp_path / "r")
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("audit: Kinds of model\naudit: Ascertainment only\n")
    assert "<h3>Shuffled labels</h3>" in (tmp_path / "r" / "report.html").read_text()
    line = refused("evaluate", work / "forecasts", work / "timelines", "--audits", "--out", tmp_path / "f")
    assert "a model folder to audit" in line


def test_inspect_each_folder(run, work):
    for path, kind, expected in (
        ("timelines", "timelines", rf"^subjects +{SUBJECTS}$"),
        ("model", "model", r"^horizons +1y, 3y, 5y$"),
        (
            "forecasts",
            "forecast",
            r"^mean probability\n +365 days +109\d days +182\d days\n  death +[.\d]+ +[.\d]+ +[.\d]+$",
        ),
        ("report", "evaluation", r"^  model +outcome +landmark +horizon +n +events +observed expected +auc +brier$"),
        ("simulation/task.toml", "task", r"^  death +MEDS_DEATH; at risk until known$"),
    ):
        status, out, err = run("inspect", work / path)
        assert (status, err) == (0, "")
        assert re.search(expected, out, re.MULTILINE), out
        assert re.search(rf"^kind +{kind}$", out, re.MULTILINE)
        status, out, _ = run("inspect", "--json", work / path)
        assert json.loads(out)["kind"] == kind


def test_json_of_other_verbs(run, work, tmp_path):
    status, out, err = run("ingest", work / "simulation" / "export", "--json", "--out", tmp_path / "t")
    assert (status, err) == (0, "")
    assert json.loads(out)["subjects"] == SUBJECTS
    status, out, err = run("score", work / "model", work / "timelines", "--json", "--out", tmp_path / "f")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["prediction_times"] == Forecast.load(tmp_path / "f").risk["subject_id"].n_unique()
    assert told["drift"] == []
    assert set(told["skipped"]) >= {"dead"}


def test_score_says_what_has_drifted(run, work, tmp_path):
    timelines = Timelines.load(work / "timelines")
    measured = timelines.events.filter(pl.col("numeric_value").is_not_null())["code"].value_counts()
    code = measured.sort("count", "code")["code"][-1]
    mixed = pl.when(pl.col("code") == code).then(pl.col("numeric_value") * 38.67).otherwise("numeric_value")
    events = timelines.events.with_columns(mixed.cast(pl.Float32).alias("numeric_value"))
    replace(timelines, events=events).save(tmp_path / "t")
    status, out, _ = run("score", work / "model", tmp_path / "t", "--out", tmp_path / "f")
    assert status == 0
    assert "DRIFT: 1 warnings" in out
    assert re.search(rf"^  {re.escape(code)} .*look at its units$", out, re.MULTILINE)
    assert "no drift" in run("score", work / "model", work / "timelines", "--out", tmp_path / "g")[1]


@pytest.mark.parametrize(
    ("typed", "offered"), [("sc", "score"), ("score --work", "--workers"), ("inspect --j", "--json")]
)
def test_the_shell_completes(monkeypatch, capfd, typed, offered):
    words = f"ehrseq {typed}"
    monkeypatch.setenv("_EHRSEQ_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    call()
    assert capfd.readouterr().out.split() == [offered]


def test_demo(run, tmp_path):
    status, out, err = run("demo", "--subjects", 100, "--seed", 1, "--out", tmp_path / "d")
    assert (status, err) == (0, "")
    assert out.splitlines()[-2:] == [
        f"forecasts: {tmp_path / 'd' / 'forecasts' / 'risk.parquet'}", f"plot: {tmp_path / 'd' / 'risk_curves.png'}",
    ]  # fmt: skip
    assert json.loads((tmp_path / "d" / "model" / "config.json").read_text())["seed"] == 1


@pytest.mark.parametrize("columns", ["80", "20"])
def test_tables_and_paths_are_never_wrapped(run, work, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    deep = tmp_path / ("a_folder_with_a_long_name_" * 5) / "[bold]report"
    _, out, _ = run("evaluate", work / "model", work / "timelines", "--bootstrap", 0, "--out", deep)
    assert f"evaluation: {deep / 'report.html'}\n" in out
    rows = [line for line in out.splitlines() if line.startswith("transformer")]
    assert len(rows) == 18
    assert all(len(line.split()) == 12 for line in rows)


def test_a_terminal_gets_a_bar(run, work, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    task = work / "simulation" / "task.toml"
    status, out, _ = run("fit", work / "timelines", "--task", task, "--out", tmp_path / "m")
    assert status == 0
    assert "fitting" in out
    assert f"model: {tmp_path / 'm'}\n" in out
    assert run("simulate", "--subjects", 3, "--out", tmp_path / "s")[0] == 0
    assert run("ingest", tmp_path / "s" / "export", "--out", tmp_path / "t")[0] == 0


# exit status, wrong usage, --debug


@pytest.mark.parametrize("arguments", [(), ("--help",), ("fit", "--help")])
def test_help(run, arguments):
    status, out, _ = run(*arguments)
    assert status == (0 if arguments else 2)
    assert "Usage" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("fit",),
        ("fit", "t", "--out", "m"),
        ("simulate", "--subjects", "many", "--out", "s"),
        ("evaluate", "m", "t", "--out", "r", "--bootstrap", "-1"),
        ("evaluate", "m", "t", "--out", "r", "--audits", "--against", "f"),
        ("ingest", "x", "--out", "t", "--nonsense"),
    ],
)
def test_wrong_usage_is_status_2(run, arguments):
    status, _, err = run(*arguments)
    assert status == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_in_any_position_shows_the_traceback(tmp_path, place):
    arguments = ["inspect", str(tmp_path / "nowhere")]
    arguments.insert(place, "--debug")
    with pytest.raises(EhrseqError):
        call(*arguments)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, f"no access to {CANARY}"), "found PermissionError; check permissions and free space"),
        (KeyError(CANARY), "found an unexpected KeyError; run again with --debug and report it"),
        (EhrseqError(f"line one\nline two of {SUBJECTS}"), "line one line two"),
    ],
)
def test_every_error_is_one_line_without_content(run, monkeypatch, error, expected):
    def fail(*_):
        raise error

    monkeypatch.setattr("ehrseq.inspection.inspect", fail)
    status, out, err = run("inspect", "somewhere")
    assert (status, out) == (1, "")
    assert expected in err
    assert err.count("\n") == 1
    assert CANARY not in err


def test_an_interrupt_is_status_130(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ehrseq.inspection.inspect", interrupt)
    assert run("inspect", "somewhere")[0] == 130


def test_the_installed_command_exits_alike(tmp_path):
    def ended(*arguments):
        command = [sys.executable, "-m", "ehrseq", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    bad = ended("simulate", "--subjects", "0", "--out", "s")
    assert bad.returncode == 1
    assert ONE_LINE.fullmatch(bad.stderr)
    assert ended("simulate").returncode == 2
    traced = ended("simulate", "--subjects", "0", "--debug", "--out", "s")
    assert traced.returncode == 1
    assert "Traceback" in traced.stderr


# what bad input gets


def test_a_missing_or_empty_source(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no such path" in refused("ingest", tmp_path / "nowhere", "--out", tmp_path / "t")
    assert "an empty folder" in refused("ingest", tmp_path / "empty", "--out", tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_source_without_a_patient(refused, work, tmp_path):
    (tmp_path / "source").mkdir()
    shutil.copy(work / "simulation" / "export" / "Condition.ndjson", tmp_path / "source")
    assert "no readable Patient" in refused("ingest", tmp_path / "source", "--out", tmp_path / "t")


def test_a_malformed_line_is_counted_and_the_others_are_read(run, work, tmp_path):
    shutil.copytree(work / "simulation" / "export", tmp_path / "source")
    with (tmp_path / "source" / "Condition.ndjson").open("a") as file:
        file.write('{"resourceType": "Condition", "id": \n')
    status, out, err = run("ingest", tmp_path / "source", "--out", tmp_path / "t")
    assert (status, err) == (0, "")
    assert "  quarantined:\n    malformed_json: 1\n" in out
    assert str(tmp_path / "t" / "quarantine.parquet") in out
    assert Timelines.load(tmp_path / "t").events.equals(Timelines.load(work / "timelines").events)
    row = pl.read_parquet(tmp_path / "t" / "quarantine.parquet").row(0, named=True)
    lines = (work / "simulation" / "export" / "Condition.ndjson").read_bytes().count(b"\n")
    assert (row["line"], row["reason"]) == (lines + 1, "malformed_json")


def test_a_truncated_gzip_keeps_what_came_before(run, work, tmp_path):
    shutil.copytree(work / "simulation" / "export", tmp_path / "source")
    whole = (tmp_path / "source" / "Observation.ndjson").read_bytes()
    (tmp_path / "source" / "Observation.ndjson").unlink()
    packed = gzip.compress(whole)
    (tmp_path / "source" / "Observation.ndjson.gz").write_bytes(packed[: len(packed) // 2])
    status, out, err = run("ingest", tmp_path / "source", "--out", tmp_path / "t")
    assert (status, err) == (0, "")
    assert "truncated_file: 1" in out
    found, full = (Timelines.load(f).events for f in (tmp_path / "t", work / "timelines"))
    assert full.height / 5 < found.height < full.height
    assert found.join(full, on=found.columns, how="anti", nulls_equal=True).height == 0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("horizons =", "horizon =", "'horizon'; did you mean 'horizons'"),
        ("competing =", "competng =", "did you mean 'competing'"),
        ('"5y"', '"5 parsecs"', "5 parsecs"),
        ("[outcomes.death]", "[outcomes.death", "a syntax error"),
    ],
)
def test_an_unknown_task_key(refused, work, tmp_path, before, after, expected):
    text = (work / "simulation" / "task.toml").read_text()
    (tmp_path / "task.toml").write_text(text.replace(before, after))
    for verb, more in (("cohort", ()), ("fit", ("--out", tmp_path / "m"))):
        assert expected in refused(verb, work / "timelines", "--task", tmp_path / "task.toml", *more)
    assert not (tmp_path / "m").exists()


def test_a_task_file_that_is_not_there(refused, work, tmp_path):
    assert "a readable task file" in refused("cohort", work / "timelines", "--task", tmp_path / "nowhere.toml")


def test_a_code_that_never_occurs(run, refused, work, tmp_path):
    text = (work / "simulation" / "task.toml").read_text().replace("SNOMED//44054006", "SNOMED//0")
    (tmp_path / "task.toml").write_text(text)
    status, out, err = run("cohort", work / "timelines", "--task", tmp_path / "task.toml")
    assert (status, err) == (0, "")
    assert "SNOMED//0" in out
    status, out, _ = run("fit", work / "timelines", "--task", tmp_path / "task.toml", "--out", tmp_path / "m")
    assert status == 0
    assert "outcome 'diabetes' has no training event and is not forecast: check its codes\n" in out
    status, out, _ = run("score", tmp_path / "m", work / "timelines", "--at", "2012-06-30", "--out", tmp_path / "f")
    assert status == 0
    assert "no_training_events" in out
    assert set(Forecast.load(tmp_path / "f").risk["outcome"]) == {"heart_failure", "death"}
    alone = 'horizons = ["1y"]\n[outcomes.x]\ncodes = ["SNOMED//0"]\n[prediction_times]\nrule = "every_encounter"\n'
    (tmp_path / "task.toml").write_text(alone)
    assert "at least one outcome that occurs" in refused(
        "fit", work / "timelines", "--task", tmp_path / "task.toml", "--out", tmp_path / "other"
    )


def test_a_model_with_a_changed_byte(refused, work, tmp_path):
    shutil.copytree(work / "model", tmp_path / "m")
    weights = bytearray((tmp_path / "m" / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "m" / "weights.safetensors").write_bytes(weights)
    for arguments in (("score", tmp_path / "m", work / "timelines"), ("evaluate", tmp_path / "m", work / "timelines")):
        assert "found different bytes" in refused(*arguments, "--out", tmp_path / "f")
    refused("inspect", tmp_path / "m")


@pytest.mark.parametrize(("at", "reason"), [("1995-01-01", "no_history"), ("1850-01-01", "before_birth")])
def test_a_prediction_time_before_any_data(refused, work, tmp_path, at, reason):
    line = refused("score", work / "model", work / "timelines", "--at", at, "--out", tmp_path / "f")
    assert f"none of {SUBJECTS} (most often: {reason}); choose a later prediction time" in line
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("at", ["yesterday", "2012-13-01"])
def test_a_prediction_time_that_is_none(refused, work, tmp_path, at):
    assert "write it as ISO 8601" in refused(
        "score", work / "model", work / "timelines", "--at", at, "--out", tmp_path / "f"
    )


def test_a_subject_without_birth_date(run, work, tmp_path):
    shutil.copytree(work / "simulation" / "export", tmp_path / "source")
    first, *others = (tmp_path / "source" / "Patient.ndjson").read_text().splitlines()
    patient = json.loads(first)
    del patient["birthDate"]
    (tmp_path / "source" / "Patient.ndjson").write_text("\n".join([json.dumps(patient), *others]) + "\n")
    status, out, err = run("score", work / "model", tmp_path / "source", "--at", "2012-06-30", "--out", tmp_path / "f")
    assert (status, err) == (0, "")
    assert "  no_birth_date: 1\n" in out
    found = Forecast.load(tmp_path / "f")
    left_out = found.skipped.filter(reason="no_birth_date").select("patient", "outcome").rows()
    assert left_out == [(patient["id"], None)]
    assert found.risk["subject_id"].n_unique() > SUBJECTS / 2


def test_a_folder_of_another_kind_is_refused_and_kept(refused, work, tmp_path):
    shutil.copytree(work / "timelines", tmp_path / "t")
    task = work / "simulation" / "task.toml"
    for arguments in (
        ("score", work / "model", tmp_path / "t"),
        ("fit", tmp_path / "t", "--task", task),
        ("evaluate", work / "model", tmp_path / "t"),
    ):
        assert "found a timelines folder; choose another --out" in refused(*arguments, "--out", tmp_path / "t")
    assert len(Timelines.load(tmp_path / "t")) == SUBJECTS


# nothing of a patient, and no path from inside the data, on the screen


@pytest.fixture(scope="module")
def named(work, tmp_path_factory):
    """The simulated export with the canary in names, ids, texts and file names, in good records and in bad ones."""
    source = tmp_path_factory.mktemp("export")
    for file in (work / "simulation" / "export").iterdir():
        text = file.read_text().replace("sim-", f"{CANARY}-")
        if file.stem == "Patient":
            patients = [json.loads(line) for line in text.splitlines()]
            for patient in patients:
                patient["name"] = [{"family": CANARY.title(), "text": CANARY}]
            text = "\n".join(map(json.dumps, patients)) + "\n"
        bad = [
            f'{{"resourceType": "Patient", "name": [{{"family": "{CANARY}',
            f'{{"resourceType": "Patient", "id": "{CANARY}", "birthDate": {{"{CANARY}": 1}}}}',
            f'{{"resourceType": "Observation", "id": 17, "status": "{CANARY}", "code": "{CANARY}"}}',
            f'{{"resourceType": "{CANARY}", "id": "{CANARY}"}}',
            f'["{CANARY}"]',
            f'{{"resourceType": "Condition", "subject": {{"reference": "Patient/{CANARY}-nobody"}}, '
            f'"onsetDateTime": "{CANARY}", "code": {{"text": "{CANARY}"}}}}',
        ]
        (source / f"{CANARY}_{file.name}").write_text(text + "\n".join(bad) + "\n")
    packed = gzip.compress((source / f"{CANARY}_Observation.ndjson").read_bytes())
    (source / f"{CANARY}_cut.ndjson.gz").write_bytes(packed[: len(packed) // 3])
    (source / f"{CANARY}.json").write_text(f'{{"{CANARY}": ')
    return source


def test_no_verb_shows_what_the_data_hold(run, work, named, tmp_path):
    task = work / "simulation" / "task.toml"
    t, m, f = tmp_path / "t", tmp_path / "m", tmp_path / "f"
    shown = ""
    for arguments in (
        ("ingest", named, "--out", t),
        ("inspect", t),
        ("cohort", t, "--task", task),
        ("fit", t, "--task", task, "--out", m),
        ("inspect", m, "--json"),
        ("score", m, named, "--at", "task", "--out", f),
        ("inspect", f),
        ("evaluate", f, t, "--out", tmp_path / "r", "--bootstrap", 0),
        ("evaluate", m, t, "--out", tmp_path / "r", "--bootstrap", 0),
    ):
        status, out, err = run(*arguments)
        assert status == 0, err
        shown += out + err
    assert CANARY not in shown.lower()
    assert "malformed_json" in shown
    # the canary was there to be shown
    assert Timelines.load(t).subjects["patient"].str.contains(CANARY).all()
    assert not [p for p in m.iterdir() if CANARY.encode() in p.read_bytes()]


def test_no_error_shows_what_the_data_hold(refused, work, named, tmp_path):
    task = tmp_path / "task.toml"
    text = (work / "simulation" / "task.toml").read_text()
    times = f'[prediction_times]\nrule = "table"\ntimes = [{{ patient = "{CANARY}", time = "2012-13-45" }}]\n'
    task.write_text(text[: text.index("[prediction_times]")] + times)
    observations = next(named.glob("*_Observation.ndjson"))
    for arguments in (
        ("ingest", observations, "--out", tmp_path / "t"),
        ("ingest", named / f"{CANARY}.json", "--out", tmp_path / "t"),
        ("ingest", next(named.glob("*.gz")), "--out", tmp_path / "t"),
        ("score", work / "model", observations, "--out", tmp_path / "f"),
        ("score", work / "model", named, "--at", "1850-01-01", "--out", tmp_path / "f"),
        ("fit", named, "--task", work / "simulation" / "task.toml", "--out", tmp_path / "m"),
        ("cohort", work / "timelines", "--task", task),
    ):
        assert CANARY not in refused(*arguments).lower()


def test_a_damaged_timelines_folder(refused, work, tmp_path):
    shutil.copytree(work / "timelines", tmp_path / "t")
    shard = next(Path(tmp_path / "t" / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-20])
    assert f"{shard.name} as its manifest describes it; found different bytes" in refused(
        "score", work / "model", tmp_path / "t", "--out", tmp_path / "f"
    )
