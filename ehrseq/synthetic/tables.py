"""From simulated lives to flat record tables, one a FHIR resource type: what an export of this place would hold.

Everything after a subject's last day of follow-up is left out; a stay that is still running then has no end and its
diagnoses are not coded yet.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ehrseq.synthetic.config import REFERENCE_AGE, SimulationConfig
from ehrseq.synthetic.course import NEVER, ROUTINE, Course
from ehrseq.synthetic.process import expected_marker

DECOY = ("367498001", "Seasonal allergic rhinitis")
OTHER_STAY = ("233604007", "Pneumonia")
METFORMIN = ("860975", "24 HR metformin hydrochloride 500 MG Extended Release Oral Tablet")
LISINOPRIL = ("314076", "lisinopril 10 MG Oral Tablet")
PREDNISONE = ("312615", "prednisone 20 MG Oral Tablet")
SMOKING = "72166-2"
SMOKING_STATUS = {
    "449868002": "Smokes tobacco daily",
    "8517006": "Ex-smoker",
    "266919005": "Never smoked tobacco",
}
# LOINC code -> display, UCUM unit, category, decimals
LABS = {
    "4548-4": ("Hemoglobin A1c/Hemoglobin.total in Blood", "%", "laboratory", 1),
    "2160-0": ("Creatinine [Mass/volume] in Serum or Plasma", "mg/dL", "laboratory", 2),
    "33762-6": (
        "Natriuretic peptide.B prohormone N-Terminal [Mass/volume] in Serum or Plasma",
        "pg/mL",
        "laboratory",
        0,
    ),
    "39156-5": ("Body mass index (BMI) [Ratio]", "kg/m2", "vital-signs", 1),
    "85354-9": ("Blood pressure panel with all children optional", "mm[Hg]", "vital-signs", 0),
}
BLOOD_PRESSURE = "85354-9"


def record_tables(course: Course, patients: pl.Series, rng: np.random.Generator) -> dict[str, pl.DataFrame]:
    """The flat tables of a block of subjects, keyed by resource type, each with an `id` and a `patient` column.

    `patients` (n,) holds the FHIR ids. Times are naive UTC.
    """
    people = pl.DataFrame(
        {"row": np.arange(course.end.size), "patient": patients, "end_day": course.end, "death_day": course.death}
    )
    visits = _visits(course, people, rng)
    stays = _stays(course, people, rng)
    encounters = [
        visits.select("id", "patient", "start", "end", kind=pl.lit("AMB")),
        stays.select("id", "patient", "start", "end", kind=pl.lit("IMP")),
    ]
    return {
        "Patient": _patients(course, patients),
        "ResearchSubject": _follow_up(course, patients),
        "Encounter": pl.concat(encounters).sort("patient", "start", maintain_order=True),
        "Condition": _numbered("c", _conditions(course, people, visits, stays, rng)),
        "Observation": _numbered("o", _observations(course, visits, rng)),
        "MedicationRequest": _numbered("m", _prescriptions(course, people, visits, rng)),
    }


def _numbered(letter: str, table: pl.DataFrame, order: str = "time") -> pl.DataFrame:
    """Rows by patient and time, with an id made of the patient's and a running number."""
    table = table.sort("patient", order, maintain_order=True)
    number = pl.int_range(1, pl.len() + 1).over("patient")
    return table.with_columns(id=pl.format("{}-" + letter + "{}", "patient", number))


def _date(day: str) -> pl.Expr:
    """A column of days since 1970 as dates; NEVER is null."""
    return pl.when(pl.col(day) < NEVER).then(pl.col(day)).cast(pl.Int32).cast(pl.Date)


def _instant(day: str, seconds: pl.Series | int) -> pl.Expr:
    """A moment of each day; NEVER is null."""
    moment = pl.when(pl.col(day) < NEVER).then(pl.col(day)) * 86_400 + seconds
    return (moment * 1_000_000).cast(pl.Datetime("us"))


def _seconds(rng: np.random.Generator, n: int, first_hour: int, last_hour: int) -> pl.Series:
    """Whole minutes of a day, in seconds."""
    return pl.Series(rng.integers(first_hour * 60, last_hour * 60, n) * 60)


def _patients(course: Course, patients: pl.Series) -> pl.DataFrame:
    died = np.where(course.death <= course.end, course.death, NEVER)
    gender = np.where(course.male == 1, "male", "female")
    return pl.DataFrame({"id": patients, "gender": gender, "birth": course.birth, "died": died}).with_columns(
        _date("birth"), _date("died"), patient="id"
    )


def _follow_up(course: Course, patients: pl.Series) -> pl.DataFrame:
    return pl.DataFrame({"patient": patients, "start": course.boundaries[:, 0], "end": course.end}).with_columns(
        _date("start"), _date("end"), id=pl.format("{}-r", "patient")
    )


def _visits(course: Course, people: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Outpatient visits within the follow-up, with times and encounter ids."""
    visits = course.visits.join(people, on="row").filter(pl.col("day") <= pl.col("end_day"))
    visits = visits.with_columns(start=_instant("day", _seconds(rng, visits.height, 8, 16)))
    return _numbered("e", visits.with_columns(end=pl.col("start") + pl.duration(minutes=30)), order="start")


def _stays(course: Course, people: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Hospital stays begun within the follow-up; `disease` is null for those with another reason.

    `end` is null for a stay still running on the last day; `coded` says whether it ended alive within the follow-up.
    """
    of_disease = [_disease_stays(course, disease) for disease in (0, 1)]
    stays = pl.concat([*of_disease, _other_stays(course, pl.concat(of_disease), rng)]).join(people, on="row")
    stays = stays.filter((pl.col("admission") <= pl.col("end_day")) & (pl.col("admission") < pl.col("death_day")))
    closing = pl.min_horizontal("discharge", "death_day")
    stays = stays.with_columns(
        start=_instant("admission", _seconds(rng, stays.height, 0, 10)),
        closing=pl.when(closing <= pl.col("end_day")).then(closing).otherwise(NEVER),
        coded=(pl.col("discharge") <= pl.col("end_day")) & (pl.col("discharge") < pl.col("death_day")),
    )
    stays = stays.with_columns(end=_instant("closing", _seconds(rng, stays.height, 11, 18)))
    return _numbered("s", stays, order="start")


def _disease_stays(course: Course, disease: int) -> pl.DataFrame:
    """The stay in which a disease coded at discharge begins: row, admission, discharge, disease."""
    kernels = course.kernels[disease]
    onset, known = course.onset[disease], course.known[disease]
    in_hospital = kernels.config.confirmation == "discharge" and not kernels.immediate
    rows = np.flatnonzero((onset < NEVER) & in_hospital)
    return pl.DataFrame(
        {"row": rows, "admission": onset[rows], "discharge": known[rows], "disease": np.full(rows.size, disease)}
    )


def _other_stays(course: Course, stays: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Stays for a reason that has nothing to do with the outcomes; one that meets a disease's stay gives way to it."""
    config = course.config
    first, last = course.boundaries[:, 0], course.boundaries[:, -1]
    decades = (course.kernels[0].age - REFERENCE_AGE) / 10
    rate = config.other_stays * np.exp(config.other_stays_per_decade * decades)
    row = np.repeat(np.arange(rate.size), rng.poisson(rate * config.years))
    admission = first[row] + 1 + np.floor(rng.random(row.size) * (last - first)[row]).astype(np.int64)
    discharge = admission + rng.integers(1, config.longest_other_stay + 1, row.size)
    other = pl.DataFrame({"row": row, "admission": admission, "discharge": discharge}).sort("row", "admission")
    other = other.filter(
        pl.col("admission") > pl.col("discharge").cum_max().shift(1).over("row").fill_null(-NEVER)
    ).join(stays.rename({"admission": "began", "discharge": "ended"}), on="row", how="left")
    inside = (pl.col("admission") >= pl.col("began")) & (pl.col("admission") <= pl.col("ended"))
    # the earlier stay ends by transfer; it is never left out for the sake of what comes later
    transfer = (pl.col("admission") < pl.col("began")) & (pl.col("began") < pl.col("discharge"))
    return other.filter(~inside.fill_null(False)).select(
        "row",
        "admission",
        discharge=pl.when(transfer).then("began").otherwise("discharge"),
        disease=pl.lit(None, dtype=pl.Int64),
    )


def _conditions(
    course: Course, people: pl.DataFrame, visits: pl.DataFrame, stays: pl.DataFrame, rng: np.random.Generator
) -> pl.DataFrame:
    """Diagnoses: patient, encounter, code, display, category, onset, recorded, time (of becoming known)."""
    parts = [_decoys(course, people, rng)] if course.config.decoy else []
    parts += [_other_diagnoses(course.config, stays)]
    for disease, kernels in enumerate(course.kernels):
        coding = {"code": pl.lit(kernels.config.code), "display": pl.lit(kernels.config.display)}
        life = people.with_columns(onset_day=course.onset[disease], known_day=course.known[disease])
        if kernels.immediate:
            known = life.filter(pl.col("known_day") <= pl.col("end_day"))
            parts.append(
                _recorded(known.with_columns(encounter=pl.lit(None, pl.String)), "onset_day", "known_day", coding)
            )
        elif kernels.config.confirmation == "visit":
            confirming = visits.filter(pl.col("confirms") & (pl.col("kind") == disease))
            confirming = confirming.rename({"id": "encounter"}).join(life.select("row", "onset_day"), on="row")
            parts.append(_recorded(confirming, "onset_day", "day", coding))
        else:
            parts.append(_coded(stays.filter(pl.col("disease") == disease), coding))
    return pl.concat(parts)


def _recorded(rows: pl.DataFrame, onset: str, recorded: str, coding: dict[str, pl.Expr]) -> pl.DataFrame:
    """Diagnoses entered on a date of their own."""
    return rows.select(
        "patient", "encounter", **coding, category=pl.lit("problem-list-item"), onset=_date(onset),
        recorded=_date(recorded), time=_instant(recorded, 86_399),
    )  # fmt: skip


def _coded(stays: pl.DataFrame, coding: dict[str, pl.Expr]) -> pl.DataFrame:
    """Diagnoses of a stay, coded when it ends: they have no date of their own."""
    return stays.filter("coded").select(
        "patient", encounter="id", **coding, category=pl.lit("encounter-diagnosis"),
        onset=pl.lit(None, pl.Date), recorded=pl.lit(None, pl.Date), time="end",
    )  # fmt: skip


def _other_diagnoses(config: SimulationConfig, stays: pl.DataFrame) -> pl.DataFrame:
    other = stays.filter(pl.col("disease").is_null())
    coding = {"code": pl.lit(OTHER_STAY[0]), "display": pl.lit(OTHER_STAY[1])}
    if config.discharge_diagnoses:
        return _coded(other, coding)
    return _recorded(other.rename({"id": "encounter"}), "admission", "admission", coding)


def _decoys(course: Course, people: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """A diagnosis that has nothing to do with anything, in some people from before the start."""
    config, start = course.config, course.boundaries[:, 0]
    n = start.size
    before = rng.random(n) < config.decoy_at_start
    earlier = start - rng.integers(1, 3000, n)
    later = start + 1 + np.floor(rng.exponential(365.25 / config.decoy_rate, n)).astype(np.int64)
    rows = people.with_columns(day=np.where(before, earlier, later), encounter=pl.lit(None, pl.String))
    rows = rows.filter((pl.col("day") <= pl.col("end_day")) & (pl.col("day") < pl.col("death_day")))
    return _recorded(rows, "day", "day", {"code": pl.lit(DECOY[0]), "display": pl.lit(DECOY[1])})


def _observations(course: Course, visits: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Measurements at visits: patient, encounter, code, time, value, diastolic, concept."""
    measured = visits.with_columns(_values(course, visits, rng))
    routine, first = pl.col("kind") == ROUTINE, pl.col("kind") == 0
    draw = [pl.Series(u) for u in rng.random((5, visits.height))]
    when = {
        "4548-4": first | routine,
        "39156-5": routine | (first & (draw[0] < 0.5)),
        "2160-0": routine | (draw[1] < pl.when(first).then(0.4).otherwise(0.7)),
        "33762-6": routine | (~first & (draw[2] < 0.4)),
        BLOOD_PRESSURE: ~first | (draw[3] < 0.5),
        SMOKING: routine | (~first & (draw[4] < 0.3)),
    }
    parts = []
    for code, condition in when.items():
        value = pl.lit(None, pl.Float64) if code == SMOKING else pl.col(code).round(LABS[code][3])
        parts.append(
            measured.filter(condition).select(
                "patient",
                encounter="id",
                code=pl.lit(code),
                time=pl.col("start") + pl.duration(minutes=10),
                value=value,
                diastolic=pl.col("diastolic").round(0) if code == BLOOD_PRESSURE else pl.lit(None, pl.Float64),
                concept=pl.col("smoking") if code == SMOKING else pl.lit(None, pl.String),
            )
        )
    return pl.concat(parts)


def _values(course: Course, visits: pl.DataFrame, rng: np.random.Generator) -> list[pl.Series]:
    """What each visit would measure, whether or not it does; severities show through noise."""
    noise = rng.standard_normal((5, visits.height)) * course.config.noisy_labs
    people = rng.standard_normal((2, course.end.size)) * course.config.noisy_labs
    row = visits["row"].to_numpy()
    level_0, level_1 = visits["level_0"].to_numpy(), visits["level_1"].to_numpy()
    marker, kind = visits["marker"].to_numpy(), visits["kind"].to_numpy()
    pressure = expected_marker(course.kernels[1].config, level_1, course.kernels[1].person[row])
    pressure = np.where(kind == 1, marker, pressure + course.kernels[1].config.marker.noise_sd * noise[0])
    smoker = course.smoker == 1
    former = rng.random(smoker.size) < course.config.former_smoker
    never, daily, ex = "266919005", "449868002", "8517006"
    smoking = np.where(smoker, daily, np.where(former, ex, never))
    return [
        pl.Series("4548-4", marker),
        pl.Series("39156-5", 26 + 0.8 * level_0 + 2.5 * people[0][row] + 0.3 * noise[1]),
        pl.Series("2160-0", 0.75 + 0.15 * course.male[row] + 0.06 * level_1 + 0.08 * people[1][row] + 0.07 * noise[2]),
        pl.Series("33762-6", np.exp(4.0 + 0.5 * level_1 + 0.5 * noise[3])),
        pl.Series(BLOOD_PRESSURE, pressure),
        pl.Series("diastolic", 70 + 0.3 * (pressure - 114) + 6 * noise[4]),
        pl.Series("smoking", smoking[row]),
    ]


def _prescriptions(
    course: Course, people: pl.DataFrame, visits: pl.DataFrame, rng: np.random.Generator
) -> pl.DataFrame:
    """First prescriptions and renewals: patient, encounter, code, display, time (authored)."""
    columns = ("patient", "encounter", "code", "display", "time")
    at_visit = visits.rename({"id": "encounter"}).with_columns(
        exposed=pl.Series(course.exposed[0][visits["row"].to_numpy()]), time=pl.col("start") + pl.duration(minutes=20)
    )
    renewed = pl.Series(rng.random(visits.height) < 0.5)
    parts = []
    for disease, (code, display) in enumerate((METFORMIN, LISINOPRIL)):
        treated = at_visit.with_columns(renewed=renewed).filter(
            (pl.col("kind") == disease) & (pl.col(f"treated_{disease}") == 1)
        )
        treated = treated.filter(pl.col("renewed") | pl.col("row").is_first_distinct())
        parts.append(treated.with_columns(code=pl.lit(code), display=pl.lit(display)).select(columns))
    steroid = {"code": pl.lit(PREDNISONE[0]), "display": pl.lit(PREDNISONE[1])}
    begun = people.with_columns(day=course.exposed[0], encounter=pl.lit(None, pl.String), **steroid)
    begun = begun.filter(pl.col("day") <= pl.col("end_day")).with_columns(time=_instant("day", 43_200))
    again = at_visit.filter(renewed & (pl.col("kind") == 0) & (pl.col("day") > pl.col("exposed")))
    parts += [begun.select(columns), again.with_columns(**steroid).select(columns)]
    return pl.concat(parts)
