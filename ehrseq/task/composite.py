"""Outcomes made of other outcomes: what refers to what, and when a composite happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from ehrseq.errors import TaskError, nearest
from ehrseq.task.outcome_definition import Outcome
from ehrseq.task.span import Horizon


def with_discharges(outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
    """The outcomes with discharge as a competitor of each that is looked for `during` a stay.

    It is the task's own outcome of that discharge, or `STAY_discharge` (alive: death competes), which is added.
    """
    names = {o.discharge: o.name for o in reversed(outcomes) if o.discharge is not None}
    added = []
    for stay in dict.fromkeys(o.during for o in outcomes):
        if stay is not None and stay not in names:
            names[stay] = f"{stay}_discharge"
            own = Outcome(names[stay], discharge=stay, incident=False, during=stay, competing=("death",))
            added.append(own)
    return tuple(_competing(o, names) for o in (*outcomes, *added))


def _competing(outcome: Outcome, discharges: Mapping[str, str]) -> Outcome:
    name = None if outcome.during is None else discharges[outcome.during]
    if name is None or name == outcome.name or name in outcome.competing:
        return outcome
    return replace(outcome, competing=(*outcome.competing, name))


def check_references(outcomes: Sequence[Outcome], stays: Sequence[str], prediction_stay: str | None) -> None:
    """Raise TaskError where an outcome or the prediction times name what the task does not have."""
    names = {o.name: o for o in outcomes}
    if len(names) < len(outcomes):
        raise TaskError("outcomes of different names", "a name used twice", "rename one")
    for name in sorted({c for o in outcomes for c in o.competing} - set(names)):
        raise TaskError("outcomes of the task in competing", f"'{name}'", nearest(name, names))
    for outcome in outcomes:
        for part in outcome.parts:
            if isinstance(part, str) and part not in names:
                raise TaskError(f"outcomes of the task in outcome '{outcome.name}'", f"'{part}'", nearest(part, names))
    for outcome in outcomes:
        _check_no_cycle(outcome, names)
    for outcome in outcomes:
        _check_changes(outcome, names)
    asked = [s for o in outcomes for s in (o.admission, o.discharge, o.during)]
    for stay in (*asked, prediction_stay):
        if stay is not None and stay not in stays:
            raise TaskError("stays of the task", f"'{stay}'", nearest(stay, stays) if stays else "add a [stays] table")


def _check_no_cycle(outcome: Outcome, names: Mapping[str, Outcome]) -> None:
    seen = [outcome.name]
    waiting = [p for p in outcome.parts if isinstance(p, str)]
    while waiting:
        name = waiting.pop()
        if name == outcome.name:
            raise TaskError("composites that are no part of themselves", f"'{name}' among its own parts", "remove it")
        if name not in seen:
            seen.append(name)
            waiting += [p for p in names[name].parts if isinstance(p, str)]


def _check_changes(outcome: Outcome, names: Mapping[str, Outcome]) -> None:
    if not outcome.any_of and any(changes(p, names) for p in resolve(outcome, names)):
        raise TaskError(
            f"parts that do not depend on the prediction time in outcome '{outcome.name}'",
            "a change from baseline",
            "such a part can stand in any_of only",
        )
    if changes(outcome, names) and outcome.washout is not None:
        raise TaskError(
            f"no washout in outcome '{outcome.name}'", "washout beside a change from baseline", "leave washout out"
        )


def resolve(outcome: Outcome, names: Mapping[str, Outcome]) -> list[Outcome]:
    """The definitions of an outcome's parts, in order."""
    return [names[p] if isinstance(p, str) else p for p in outcome.parts]


def changes(outcome: Outcome, names: Mapping[str, Outcome]) -> list[Outcome]:
    """The changes from baseline that are, or are part of, an outcome; in order, each once."""
    if outcome.is_change:
        return [outcome]
    found = [c for part in (resolve(outcome, names) if outcome.any_of else ()) for c in changes(part, names)]
    return list(dict.fromkeys(found))


def all_of(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """When the last of several things has first happened; each frame has `subject_id`, `occurred_time`, `known_time`.

    It is known once each of them is, and happens once.
    """
    columns = ("occurred_time", "known_time")
    firsts = [
        part.group_by("subject_id").agg(
            *(pl.col(c).min() for c in columns), by_day=pl.col("by_day").sort_by("known_time").first()
        )
        for part in parts
    ]
    return (
        pl.concat(firsts)
        .sort("subject_id", "known_time", maintain_order=True)
        .group_by("subject_id", maintain_order=True)
        .agg(*(pl.col(c).max() for c in columns), pl.col("by_day").last(), parts=pl.len())
        .filter(pl.col("parts") == len(parts))
        .drop("parts")
    )


def sequence(parts: Sequence[pl.DataFrame], within: Horizon | None) -> pl.DataFrame:
    """Each time the last of several things follows the one before it, that one the one before, and so on.

    Strictly later, and at most `within` later, by when they occurred. It happens with the last one, and is known once
    all are.
    """
    chain = parts[0]
    for part in parts[1:]:
        occurred = pl.col("occurred_time")
        tests = [pl.col("subject_id") == pl.col("_subject"), pl.col("_occurred") < occurred]
        earlier = chain.select(_subject="subject_id", _occurred="occurred_time", _known="known_time")
        if within is not None:
            earlier = earlier.with_columns(_until=within.after(pl.col("_occurred")))
            tests.append(pl.col("_until") >= occurred)
        later = part.with_row_index("_row")
        pairs = later.select("_row", "subject_id", "occurred_time").join_where(earlier, *tests)
        chain = (
            later.join(pairs.group_by("_row").agg(pl.col("_known").min()), on="_row", maintain_order="left")
            .with_columns(known_time=pl.max_horizontal("known_time", "_known"))
            .drop("_row", "_known")
        )
    return chain
