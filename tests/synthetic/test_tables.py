"""The records: they tell what happened, stop at the end of follow-up, and each trap is a switch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest

from ehrseq.synthetic import Simulation, SimulationConfig, simulate
from ehrseq.synthetic.tables import DECOY, LISINOPRIL, METFORMIN, PREDNISONE

DIABETES, HEART_FAILURE = "44054006", "84114007"


@cache
def without(n: int = 1000, **switches: bool) -> Simulation:
    """A simulation with some traps off; a short truth, which most of these tests do not look at, saves time."""
    return simulate(n, seed=5, config=SimulationConfig(landmarks=(2,), horizons=(1,), **switches))


def known(simulation: Simulation, code: str) -> pl.DataFrame:
    """When a diagnosis is known by the record alone: its recorded date, else its encounter's end."""
    conditions = simulation.tables["Condition"].filter(code=code)
    ends = simulation.tables["Encounter"].select(encounter="id", closed=pl.col("end").dt.date())
    joined = conditions.join(ends, on="encounter", how="left")
    return joined.select("patient", day=pl.coalesce("recorded", "closed"))


@pytest.mark.parametrize(("outcome", "code"), [("diabetes", DIABETES), ("heart_failure", HEART_FAILURE)])
@pytest.mark.parametrize("switches", [{}, {"back_dated_diagnoses": False, "discharge_diagnoses": False}])
def test_the_record_says_when_the_outcome_became_known(outcome: str, code: str, switches: dict[str, bool]) -> None:
    simulation = without(**switches)
    lives = simulation.lives.filter(pl.col(f"known_{outcome}") <= pl.col("end"))
    expected = lives.select("patient", day=f"known_{outcome}").sort("patient")
    assert expected.height > 100
    assert known(simulation, code).sort("patient").equals(expected)


def test_nothing_is_recorded_after_follow_up_or_before_it(default: Simulation) -> None:
    end = default.lives.select("patient", "start", "end")
    moments = {"Observation": "time", "MedicationRequest": "time", "Encounter": "start", "Condition": "time"}
    for kind, column in moments.items():
        joined = default.tables[kind].join(end.rename({"start": "entry", "end": "last"}), on="patient")
        assert (joined[column].dt.date() <= joined["last"]).all(), kind
        if kind != "Condition":  # history from before the start is allowed
            assert (joined[column].dt.date() >= joined["entry"]).all(), kind
    periods = default.tables["ResearchSubject"]
    assert periods.select("patient", "start", "end").equals(default.lives.select("patient", "start", "end"))


def test_deaths_are_recorded_only_while_watched_and_end_the_follow_up(default: Simulation) -> None:
    joined = default.tables["Patient"].join(default.lives, on="patient")
    recorded = joined.filter(pl.col("died").is_not_null())
    assert recorded.height > 50
    assert (recorded["died"] == recorded["end"]).all()
    assert joined.filter(pl.col("died").is_null() & (pl.col("death") <= pl.col("end"))).is_empty()
    assert joined.filter(pl.col("died").is_null() & (pl.col("death") > pl.col("end"))).height > 50


def test_stays_and_their_diagnoses() -> None:
    simulation = without(2000)
    stays = simulation.tables["Encounter"].filter(kind="IMP")
    assert (stays["end"].is_null() | (stays["end"] > stays["start"])).all()
    assert stays["end"].null_count() > 0  # still running when the follow-up ends
    coded = simulation.tables["Condition"].filter(category="encounter-diagnosis")
    assert set(coded["code"]) == {HEART_FAILURE, "233604007"}
    assert coded["onset"].null_count() == coded["recorded"].null_count() == coded.height
    joined = coded.join(stays, left_on="encounter", right_on="id")
    assert joined.height == coded.height
    assert joined["end"].null_count() == 0
    length = (stays["end"] - stays["start"]).dt.total_days()
    assert 5 < length.mean() < 30


def test_one_stay_at_a_time(default: Simulation) -> None:
    stays = default.tables["Encounter"].filter(kind="IMP").sort("patient", "start")
    previous = stays["end"].shift(1).dt.date()
    same = stays["patient"] == stays["patient"].shift(1)
    assert not ((stays["start"].dt.date() < previous) & same).any()


def test_back_dating() -> None:
    on, off = without(), without(back_dated_diagnoses=False)
    delays = [
        (s.tables["Condition"].filter(code=DIABETES).select((pl.col("recorded") - pl.col("onset")).dt.total_days()))
        for s in (on, off)
    ]
    assert delays[0].to_series().min() > 0
    assert delays[0].to_series().median() > 60
    late = off.tables["Condition"].filter(pl.col("recorded") > pl.col("onset"))
    assert late.is_empty()


def test_discharge_diagnoses() -> None:
    off = without(discharge_diagnoses=False).tables["Condition"]
    assert off.filter(category="encounter-diagnosis").is_empty()
    assert off["recorded"].null_count() == 0
    assert off.filter(code=HEART_FAILURE).height > 100


def test_competing_death() -> None:
    off = without(competing_death=False)
    assert off.lives["death"].null_count() == off.lives.height
    assert off.truth.filter(outcome="death")["probability"].max() < 1e-12
    assert off.truth["competing"].max() < 1e-12


def test_censoring() -> None:
    length = (pl.col("end") - pl.col("start")).dt.total_days()
    on, off = without(), without(censoring=False)
    alive = off.lives.filter(pl.col("death").is_null())
    assert set(alive.select(length).to_series()) <= {3652, 3653}
    assert on.lives.select(length).to_series().mean() < 0.85 * off.lives.select(length).to_series().mean()


def test_censoring_depends_on_the_record_or_not() -> None:
    """Dropping out within four years (when no data cut interferes) among the old and among the young."""
    ratio = {}
    for switch in (True, False):
        simulation = without(2500, covariate_censoring=switch, competing_death=False)
        joined = simulation.lives.join(simulation.tables["Patient"].select("patient", "birth"), on="patient")
        age = (pl.col("start") - pl.col("birth")).dt.total_days() / 365.25
        early = (pl.col("end") - pl.col("start")).dt.total_days() < 4 * 365
        old, young = joined.filter(age > 65).select(early.mean()), joined.filter(age < 55).select(early.mean())
        ratio[switch] = old.item() / young.item()
    assert ratio[True] > 1.35
    assert 0.8 < ratio[False] < 1.25


def test_informative_visits() -> None:
    """Visits a year among those with high and with low HbA1c at entry."""
    ratio = {}
    for switch in (True, False):
        simulation = without(informative_visits=switch, censoring=False, competing_death=False)
        labs = simulation.tables["Observation"].filter(code="4548-4")
        first = labs.group_by("patient").agg(pl.col("value").sort_by("time").first(), visits=pl.len())
        high, low = first.filter(pl.col("value") >= 6), first.filter(pl.col("value") <= 5.2)
        ratio[switch] = high["visits"].mean() / low["visits"].mean()
    assert ratio[True] > 1.4
    assert 0.9 < ratio[False] < 1.1


def test_noisy_labs() -> None:
    values = without(noisy_labs=False).tables["Observation"].filter(code="4548-4")["value"]
    assert values.n_unique() <= 7  # one for each severity
    assert without().tables["Observation"].filter(code="4548-4")["value"].n_unique() > 20


def test_treatment() -> None:
    on, off = without().tables["MedicationRequest"], without(treatment=False).tables["MedicationRequest"]
    assert {METFORMIN[0], LISINOPRIL[0], PREDNISONE[0]} == set(on["code"])
    assert set(off["code"]) == {PREDNISONE[0]}


def test_planted_causes() -> None:
    """Heart failure in smokers and diabetes under steroids, against everybody else."""
    for switch, low, high in ((True, 1.5, 4.0), (False, 0.75, 1.35)):
        simulation = without(2500, planted_causes=switch, competing_death=False, censoring=False)
        smokers = simulation.tables["Observation"].filter(concept="449868002").select("patient").unique()
        lives = simulation.lives.with_columns(
            smoker=pl.col("patient").is_in(smokers["patient"].implode()),
            ill=pl.col("onset_heart_failure") < pl.col("start").dt.offset_by("6y"),
        ).with_columns(pl.col("ill").fill_null(False))
        ratio = lives.filter("smoker")["ill"].mean() / lives.filter(~pl.col("smoker"))["ill"].mean()
        assert low < ratio < high
        steroid = (
            simulation.tables["MedicationRequest"].filter(code=PREDNISONE[0]).group_by("patient").agg(pl.min("time"))
        )
        early = steroid.join(lives.select("patient", "start"), on="patient")
        early = early.filter(pl.col("time").dt.date() <= pl.col("start"))["patient"]
        soon = (pl.col("onset_diabetes") < pl.col("start").dt.offset_by("6y")).fill_null(False)
        exposed = pl.col("patient").is_in(early.implode())
        share = lives.group_by(exposed.alias("exposed")).agg(soon.mean().alias("ill"), pl.len()).sort("exposed")
        assert low * 0.9 < share["ill"][1] / share["ill"][0] < high


def test_decoy() -> None:
    on, off = without(), without(decoy=False)
    assert on.tables["Condition"].filter(code=DECOY[0]).height > 200
    assert off.tables["Condition"].filter(code=DECOY[0]).is_empty()
    # unrelated: having had it at the start is as common among those who fall ill as among those who do not
    joined = on.tables["Condition"].filter(code=DECOY[0]).join(on.lives, on="patient")
    carriers = pl.col("patient").is_in(joined.filter(pl.col("onset") < pl.col("start"))["patient"].implode())
    ill = (pl.col("onset_diabetes") <= pl.col("end")).fill_null(False)
    share = on.lives.group_by(ill.alias("ill")).agg(carriers.mean().alias("decoy"), pl.len()).sort("ill")
    assert abs(share["decoy"][1] - share["decoy"][0]) < 4 * np.sqrt(0.25 / share["len"].min())


def test_staggered_entry() -> None:
    assert without().lives["start"].n_unique() > 300
    assert without(staggered_entry=False).lives["start"].n_unique() == 1


def test_a_higher_rate_in_the_configuration_arrives() -> None:
    base = SimulationConfig()
    more = replace(base, diabetes=replace(base.diabetes, onset=2 * base.diabetes.onset))
    low, high = simulate(300, seed=2, config=base).truth, simulate(300, seed=2, config=more).truth
    for outcome, ratio in (("diabetes", 1.4), ("heart_failure", 0.9)):
        assert (
            high.filter(outcome=outcome)["probability"].mean()
            > ratio * low.filter(outcome=outcome)["probability"].mean()
        )
