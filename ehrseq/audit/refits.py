"""Audits that fit again: other kinds of model, a model without values, and labels that belong to somebody else."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl

from ehrseq.audit.material import Audit, Material, NotPossible
from ehrseq.model.fitted import HYBRID
from ehrseq.task.outcome import ALWAYS, occurrences
from ehrseq.timeline.schema import TIME
from ehrseq.timeline.store import Timelines

LADDER = ("age_sex", "boosted", "transformer", "hybrid")
# Chance of saying that shuffled labels are not at chance when they are.
LEVEL = 0.05


def kinds_of_model(m: Material) -> Audit:
    """Age and sex, boosted hazards, the transformer alone and their hybrid, beside the model that is judged."""
    fitted = m.model.fitted_
    here = {*fitted.branches, *fitted.baselines}
    risks = {m.judged: m.forecasts(m.judged)}
    if set(LADDER) <= here:
        how, seed = "All were fitted together with the model that is judged; nothing was fitted again.", None
        risks |= {name: m.forecasts(name) for name in LADDER if name not in risks}
    else:
        seed = m.seed + 1
        again = m.refit("hybrid", seed, m.timelines, occurrences(m.timelines, m.task))
        how = "Those marked were fitted again on the same subjects, the transformer with one network."
        risks |= {
            name if name in here else f"{name} (fitted again)": m.forecasts(name)
            if name in here
            else m.score(again, name, m.unseen, m.labels)
            for name in LADDER
            if name != m.judged
        }
    rows, said = m.judge(risks, m.labels)
    return Audit("Kinds of model", f"{said} {how}", seed, None, tuple(rows))


def ascertainment_only(m: Material) -> Audit:
    """What does the mere fact tell that something was measured or recorded, and when?"""
    seed = m.seed + 2
    happened = occurrences(m.timelines, m.task)
    blind = without_values(m.timelines)
    fitted = m.refit("boosted", seed, blind, happened)
    if "boosted" in m.model.fitted_.branches:
        full, how = m.forecasts("boosted"), "the boosted hazards of the model that is judged"
    else:
        again = m.refit("boosted", seed, m.timelines, happened)
        full, how = m.score(again, "boosted", m.unseen, m.labels), "boosted hazards fitted again with the values"
    name = "boosted without values"
    risks = {"boosted with values": full, name: m.score(fitted, "boosted", without_values(m.unseen), m.labels)}
    rows, said = m.judge(risks, m.labels)
    statement = (
        "Boosted hazards fitted again on which codes were recorded, how often and when, without any value, beside"
        f" {how}. {said} Where the two are not told apart, a forecast may rest on who was"
        " tested rather than on what was found."
    )
    return Audit("Ascertainment only", statement, seed, None, tuple(rows))


def shuffled_labels(m: Material) -> Audit:
    """A model that learns, and is judged on, the course of somebody else must be at chance."""
    seed = m.seed + 3
    timelines, happened = shuffled(m.timelines, occurrences(m.timelines, m.task), m.splits, seed)
    fitted = m.refit("hybrid", seed, timelines, happened)
    unseen = timelines.select(m.members("held_out"))
    here = happened.join(unseen.subjects.select("subject_id"), on="subject_id", how="semi")
    labels = m.labels_of(unseen, here)
    labels = labels.filter(pl.col("outcome").is_in(fitted.outcomes))
    if not labels["at_risk"].any():
        raise NotPossible("nobody is at risk of shuffled outcomes")
    risks = {name: m.score(fitted, name, unseen, labels) for name in ("hybrid", *HYBRID)}
    rows, _ = m.judge(risks, labels, weights="marginal")
    known = [row for row in rows if row["auc_lower"] is not None]
    how = (
        "Each subject got the follow-up and outcomes of another one of the same split, counted from the start of"
        " follow-up; a hybrid with one network was fitted to that, and judged on it."
    )
    if not known:
        return Audit("Shuffled labels", f"{how} Too few events or replicates to say.", seed, None, tuple(rows))
    off = [row for row in known if not at_chance(row, len(known))]
    found = f"{len(known) - len(off)} of {len(known)} AUCs are within chance of .5, as they must be"
    found += "." if not off else "; the others are not: the labels leak into what is learned from."
    return Audit("Shuffled labels", f"{how} {found}", seed, not off, tuple(rows))


def at_chance(row: dict[str, Any], made: int) -> bool:
    """Whether an AUC with its 95% interval is .5 but for chance, `made` of them being looked at (Bonferroni).

    The error is that of the interval, or the one that ranks have by chance (Mann and Whitney, Ann Math Stat
    1947;18:50-60) where it is larger: of few events, an AUC that is far off by chance has a narrow interval.

    >>> many = {"events": 2000, "subjects": 10_000}
    >>> at_chance({"auc": 0.53, "auc_lower": 0.505, "auc_upper": 0.555, **many}, 10)
    True
    >>> at_chance({"auc": 0.60, "auc_lower": 0.575, "auc_upper": 0.625, **many}, 10)
    False
    >>> at_chance({"auc": 0.76, "auc_lower": 0.69, "auc_upper": 0.83, "events": 9, "subjects": 137}, 18)
    True
    """
    error = (row["auc_upper"] - row["auc_lower"]) / (2 * NormalDist().inv_cdf(0.975))
    cases, others = row["events"], max(1, row["subjects"] - row["events"])
    by_chance = sqrt((cases + others + 1) / (12 * cases * others))
    return bool(abs(row["auc"] - 0.5) <= NormalDist().inv_cdf(1 - LEVEL / (2 * made)) * max(error, by_chance))


def without_values(timelines: Timelines) -> Timelines:
    """The same events without numbers, texts and units."""
    blank = [pl.lit(None, timelines.events.schema[c]).alias(c) for c in
             ("numeric_value", "text_value", "value_modifier", "unit") if c in timelines.events.columns]  # fmt: skip
    return Timelines(timelines.events.with_columns(blank), timelines.subjects, timelines.splits)


def shuffled(
    timelines: Timelines, happened: pl.DataFrame, splits: pl.DataFrame, seed: int
) -> tuple[Timelines, pl.DataFrame]:
    """Each subject with the follow-up, death and occurrences of another of its split, counted from the start of both.

    Events stay whose they are. Subjects without follow-up stay as they are.
    """
    people = timelines.subjects
    usable = people.filter(pl.col("follow_up_start").is_not_null() & pl.col("follow_up_end").is_not_null())
    usable = usable.select("subject_id", "follow_up_start").join(splits, on="subject_id").sort("subject_id")
    random = np.random.default_rng(seed)
    parts = []
    for (_,), group in usable.group_by("split", maintain_order=True):
        order = random.permutation(group.height)
        parts.append(group.with_columns(_donor=group["subject_id"][order], _start=group["follow_up_start"][order]))
    pairs = pl.concat(parts).select("subject_id", "_donor", _shift=pl.col("follow_up_start") - pl.col("_start"))
    courses = people.select(_donor="subject_id", _end="follow_up_end", _died="death_time")
    moved = people.join(pairs, on="subject_id", how="left", maintain_order="left").join(
        courses, on="_donor", how="left", maintain_order="left"
    )
    paired = pl.col("_donor").is_not_null()
    end, died = ((pl.col(c) + pl.col("_shift")).cast(TIME) for c in ("_end", "_died"))
    subjects = moved.with_columns(
        follow_up_end=pl.when(paired).then(end).otherwise("follow_up_end"),
        death_time=pl.when(paired).then(died).otherwise("death_time"),
    ).select(people.columns)
    times = [c for c, kind in happened.schema.items() if isinstance(kind, pl.Datetime)]
    given = (
        happened.rename({"subject_id": "_donor"})
        .join(pairs, on="_donor")
        .with_columns(
            pl.when(pl.col(c) == ALWAYS).then(c).otherwise(pl.col(c) + pl.col("_shift")).alias(c) for c in times
        )
    )
    others = happened.join(pairs, on="subject_id", how="anti")
    return (
        Timelines(timelines.events, subjects, timelines.splits, metadata=timelines.metadata),
        pl.concat([given.select(happened.columns), others]),
    )
