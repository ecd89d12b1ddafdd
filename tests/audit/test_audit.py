"""Audits on a small cohort in which one measured value tells who will fall ill, and checks that must fail do fail."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ehrseq.audit import audit_export, checks, refits, run, run_audits
from ehrseq.audit.checks import after_gap, extended, truncated
from ehrseq.audit.material import Audit, Material, NotPossible
from ehrseq.errors import EvaluationError, TaskError
from ehrseq.estimator import ProgressionModel
from ehrseq.task.history import visible
from ehrseq.task.outcome import occurrences
from tests.toy import CONFIG, TASK, append, cohort, day

NAMES = list(run.AUDITS)


@pytest.fixture(scope="module")
def timelines():
    """The value of a test that everybody has had is high in those who fall ill."""
    plain = cohort(700, seed=5)
    ill = set(plain.events.filter(code="SNOMED//1")["subject_id"])
    values = np.random.default_rng(0).normal(5, 1, len(plain))
    told = [
        (i, day(50 + i % 40), "LOINC//told", float(v + 4 * (i in ill)), day(50 + i % 40))
        for i, v in zip(plain.subjects["subject_id"], values, strict=True)
    ]
    return append(plain, told)


@pytest.fixture(scope="module")
def model(timelines):
    return ProgressionModel(replace(CONFIG, boosted=replace(CONFIG.boosted, max_trees=40))).fit(timelines, TASK)


@pytest.fixture(scope="module")
def material(model, timelines):
    return Material(model, timelines, TASK, TASK.horizons[-1], 100, 0)


@pytest.fixture(scope="module")
def folder(model, timelines, tmp_path_factory):
    work = tmp_path_factory.mktemp("audited")
    model.save(work / "model")
    told = []
    audit_export(work / "model", timelines, work / "report", n_bootstrap=100, report=told.append)
    assert told == NAMES
    return work


@pytest.fixture(scope="module")
def audits(folder):
    report = json.loads((folder / "report" / "report.json").read_text())
    return {audit["name"]: audit for audit in report["study"]["audits"]}


def rows(audit, outcome, name):
    return next(r for r in audit["rows"] if r["outcome"] == outcome and r["model"].startswith(name))


def test_every_audit_is_in_the_report(folder, audits):
    assert list(audits) == NAMES
    assert not any(a["statement"].startswith("Not run") for a in audits.values())
    page = (folder / "report" / "report.html").read_text()
    for audit in audits.values():
        assert f"<h3>{audit['name']}</h3>" in page
    assert not list(folder.glob(".report*"))  # what was kept for a second run
    assert [a["passed"] for a in audits.values() if a["passed"] is not None] == [True] * 4
    assert "Audits that held" in page


def test_one_seed_a_refit(audits):
    seeds = {name: audit["seed"] for name, audit in audits.items() if audit["seed"] is not None}
    assert set(seeds) == {"Ascertainment only", "Shuffled labels"}
    assert len(set(seeds.values())) == len(seeds)


def test_values_that_tell_are_missed_without_them(audits):
    blind = rows(audits["Ascertainment only"], "illness", "boosted without values")
    full = rows(audits["Ascertainment only"], "illness", "boosted with values")
    assert full["auc"] > 0.8
    assert blind["auc"] < 0.65
    assert blind["gap_lower"] > 0
    assert "boosted with values does better than boosted without values" in audits["Ascertainment only"]["statement"]


def test_the_kinds_stand_beside_each_other(audits):
    named = [r["model"] for r in audits["Kinds of model"]["rows"] if r["outcome"] == "illness"]
    assert named == ["hybrid", "age_sex", "boosted", "transformer"]
    assert rows(audits["Kinds of model"], "illness", "age_sex")["gap_lower"] > 0


def test_shuffled_labels_are_at_chance_and_a_leak_is_not(audits, material, monkeypatch):
    assert audits["Shuffled labels"]["passed"] is True
    assert {r["model"] for r in audits["Shuffled labels"]["rows"]} == {"hybrid", "transformer", "boosted"}
    # the control: everybody keeps the own course
    monkeypatch.setattr(refits, "shuffled", lambda timelines, happened, *_: (timelines, happened))
    leaked = refits.shuffled_labels(material)
    assert leaked.passed is False
    assert "the labels leak" in leaked.statement


def test_a_shuffled_course_is_that_of_another(timelines, material):
    happened = occurrences(timelines, TASK)
    moved, given = refits.shuffled(timelines, happened, material.splits, seed=1)
    length = pl.col("follow_up_end") - pl.col("follow_up_start")
    before, after = (t.subjects.select(length).to_series() for t in (timelines, moved))
    assert sorted(before) == sorted(after)
    assert (before == after).mean() < 0.05
    assert moved.events.equals(timelines.events)
    assert given.height == happened.height
    counts = [h.filter(outcome="illness").join(material.splits, on="subject_id")["split"].value_counts(sort=True)
              for h in (happened, given)]  # fmt: skip
    assert counts[0].equals(counts[1])
    again, _ = refits.shuffled(timelines, happened, material.splits, seed=1)
    assert again.subjects.equals(moved.subjects)


class Peeking:
    """A model whose forecast is the number of events, later ones too, and which flags and refuses nothing."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def forecast(self, timelines, *arguments, **options):
        found = self.model.forecast(timelines, *arguments, **options)
        counts = timelines.events.group_by("subject_id").len("n")
        risk = found.risk.join(counts, on="subject_id").with_columns(probability=pl.col("n") / 10_000)
        risk = risk.drop("n", "competing", "event_free")
        return replace(found, risk=risk, seen=found.seen.clear())

    def evaluate(self, *_, **__):
        return None


def test_checks_fail_where_they_must(material):
    peeking = replace(material, model=Peeking(material.model))
    future = checks.future_events(peeking)
    assert future.passed is False
    leaked = checks.leaked_split(peeking)
    assert leaked.passed is False
    assert "Not refused: to judge the model on subjects it was fitted on." in leaked.statement
    assert checks.seen_in_training(peeking).passed is False


def test_new_onsets_leave_out_what_had_happened_before(material, audits):
    labels = material.labels
    onsets = material.timelines.events.filter(code="SNOMED//1").select("subject_id", "time")
    waiting = labels.filter("at_risk", outcome="illness").join(onsets, on="subject_id")
    expected = waiting.filter(pl.col("time") <= pl.col("prediction_time")).height
    assert int(audits["New onsets only"]["statement"].split()[0]) == expected > 0
    chosen = labels.filter("at_risk", outcome="illness")["subject_id"].unique().head(30)
    # each had it 100 days before the prediction time, and that becomes known the year after
    first = labels.filter(pl.col("subject_id").is_in(chosen.implode())).unique("subject_id")
    rows_ = [(r["subject_id"], r["prediction_time"]) for r in first.iter_rows(named=True)]
    late = [(i, t - (day(100) - day(0)), "SNOMED//1", None, t + (day(365) - day(0))) for i, t in rows_]
    followed = material.timelines.subjects.filter(
        pl.col("subject_id").is_in(chosen.implode()) & (pl.col("follow_up_end") > day(731 + 366))
    ).height
    known = replace(material, timelines=append(material.timelines, late))
    found = checks.new_onsets_only(known)
    assert int(found.statement.split()[0]) >= expected + followed > 5
    whole, rest = (rows(found.to_dict(), "illness", n) for n in ("hybrid", "hybrid, new onsets"))
    assert rest["subjects"] < whole["subjects"]


def test_after_a_gap_it_is_the_incidence_of_those_still_free():
    own, other = 3e-4, 2e-4
    key = {"subject_id": [1], "prediction_time": [day(0)], "outcome": ["illness"]}

    def at(days):
        both = -np.expm1(-(own + other) * days)
        return pl.DataFrame({**key, "horizon_days": [float(days)], "probability": [own / (own + other) * both],
                             "competing": [other / (own + other) * both]})  # fmt: skip

    found = after_gap(at(1096), at(90), 90)
    assert found["horizon_days"][0] == 1006
    assert found["probability"][0] == pytest.approx(at(1006)["probability"][0], abs=1e-12)  # no memory


def test_the_gap_leaves_out_what_comes_soon(audits, material):
    found = [r for r in audits["Gap between what is known and what is forecast"]["rows"] if r["outcome"] == "illness"]
    assert [r["model"].rsplit(" of ")[1] for r in found] == ["0 days", "30 days", "90 days"]
    days = material.labels.filter("at_risk", outcome="illness")["days"]
    assert found[2]["subjects"] == (days > 90).sum()


def test_the_future_is_there_and_the_past_is_not_touched(material):
    queries = material.labels.filter("at_risk").select("subject_id", "prediction_time").unique("subject_id")
    few = material.timelines.select(queries["subject_id"])
    longer, cut = extended(few, queries), truncated(few, queries)

    def early(timelines):
        joined = timelines.events.join(queries, on="subject_id")
        return joined.filter(visible(pl.col("known_time"), pl.col("prediction_time"))).height

    assert early(longer) == early(few) == early(cut)
    assert longer.events.height > few.events.height > cut.events.height


def test_a_run_cut_short_goes_on(model, timelines, tmp_path, monkeypatch):
    found = model.evaluate(timelines, n_bootstrap=0)
    calls = []

    def stub(name, stop):
        def audit(_):
            calls.append(name)
            if stop and len(calls) == 2:
                raise KeyboardInterrupt
            return Audit(name, "done", rows=({"auc": 0.5},))

        return audit

    for stop in (True, False):
        monkeypatch.setattr(run, "AUDITS", {name: stub(name, stop) for name in "abc"})
        if stop:
            with pytest.raises(KeyboardInterrupt):
                run_audits(found, model, timelines, kept=tmp_path, mark="m")
    done = run_audits(found, model, timelines, kept=tmp_path, mark="m")
    assert calls == ["a", "b", "b", "c"]
    assert done[0] == Audit("a", "done", rows=({"auc": 0.5},))
    (tmp_path / "0.json").write_text('{"mark": "m", "aud')
    run_audits(found, model, timelines, kept=tmp_path, mark="other")
    assert calls[4:] == ["a", "b", "c"]  # another evaluation, or a damaged file


def test_an_audit_that_the_data_refuse_says_so_and_the_others_go_on(model, timelines, monkeypatch):
    def refuse(_):
        raise TaskError("an event", "none", "use more subjects")

    monkeypatch.setattr(run, "AUDITS", {"a": refuse, "b": lambda _: Audit("b", "done", passed=True)})
    first, second = run_audits(model.evaluate(timelines, n_bootstrap=0), model, timelines)
    assert first == Audit("a", "Not run: expected an event; found none; use more subjects.")
    assert second.passed is True


def test_what_cannot_be_audited(model, timelines, folder, tmp_path):
    for judged in (tmp_path, tmp_path / "vendor.csv", folder / "report"):
        with pytest.raises(EvaluationError, match="a model folder to audit"):
            audit_export(judged, timelines)
    some = timelines.select(timelines.subjects["subject_id"][:650])
    away = replace(Material(model, some, TASK, TASK.horizons[-1], 0, 0), n_bootstrap=0)
    with pytest.raises(NotPossible, match="subjects that the model was fitted on are in these timelines"):
        refits.shuffled_labels(away)
    found = model.evaluate(some, n_bootstrap=0)
    told = {a.name: a.statement for a in run_audits(found, model, some)}
    assert told["Ascertainment only"].startswith("Not run: ")
    assert told["Kinds of model"].endswith("nothing was fitted again.")


def test_other_kinds_are_fitted_where_the_model_has_one(timelines):
    alone = ProgressionModel(replace(CONFIG, model="boosted")).fit(timelines, TASK)
    found = refits.kinds_of_model(Material(alone, timelines, TASK, TASK.horizons[-1], 0, 4))
    named = list(dict.fromkeys(r["model"] for r in found.rows))
    assert named == ["boosted", "age_sex", "transformer (fitted again)", "hybrid (fitted again)"]
    assert found.seed == 5
