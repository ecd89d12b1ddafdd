"""An outcome in words: what a reader of the cohort should know of it before anything is fitted."""

from __future__ import annotations

from ehrseq.task.definition import Outcome, Task
from ehrseq.task.outcome_definition import Bounds
from ehrseq.timeline.analytes import ANALYTES
from ehrseq.timeline.measures import MEASURES

_SIGNS = {"above": ">", "at_least": ">=", "below": "<", "at_most": "<="}
MANY = 4  # codes named one by one


def describe(outcome: Outcome, task: Task) -> str:
    """One line: what it is made of, its bounds in their unit, and who is at risk.

    >>> task = Task.from_dict({"horizons": ["1y"], "prediction_times": {"rule": "every_encounter"}, "outcomes": {
    ...     "ckd": {"measure": "egfr_ckdepi2021", "stage": "G3b", "confirm": {"times": 2, "apart": "90d"}}}})
    >>> describe(task.outcomes[0], task)
    'egfr_ckdepi2021 < 45 mL/min/{1.73_m2} (G3b), 2 times at least 90d apart; at risk until known'
    """
    text = _content(outcome, task, MANY)
    at_risk = ["at risk until known" if outcome.incident else "may happen again", *_limits(outcome)]
    if outcome.event_time == "occurred":
        at_risk.append("happens when it occurred")
    if outcome.competing:
        at_risk.append(f"competing: {', '.join(outcome.competing)}")
    return "; ".join([text, *at_risk])


def found_by(outcome: Outcome, task: Task) -> str:
    """How it is found: every code that it is made of, its bounds, and when nobody is at risk of it."""
    return "; ".join([_content(outcome, task, None), *_limits(outcome)])


def _limits(outcome: Outcome) -> list[str]:
    found = []
    if outcome.washout is not None:
        found.append(f"not at risk for {outcome.washout.label} after it")
    if outcome.during is not None:
        found.append(f"at risk during {outcome.during}")
    return found


def _content(outcome: Outcome, task: Task, many: int | None) -> str:
    """`many` is how many codes are named, at most."""
    if outcome.admission is not None or outcome.discharge is not None:
        word = "discharge from" if outcome.admission is None else "admission to"
        stay = task.stay(outcome.admission or outcome.discharge or "")
        return f"{word} {stay.name} ({_listed(stay.classes or stay.admissions, many)})"
    if outcome.parts:
        parts = [p if isinstance(p, str) else f"({_content(p, task, many)})" for p in outcome.parts]
        if outcome.sequence:
            return ", then ".join(parts) + ("" if outcome.within is None else f" within {outcome.within.label}")
        return ("any of " if outcome.any_of else "all of ") + ", ".join(parts)
    text = outcome.measure or _listed(outcome.codes, many)
    if outcome.descendants:
        text += f" and {len(outcome.descendant_codes):,} descendants"
    text += _values(outcome.bounds, _unit(outcome.measure))
    if outcome.stage is not None:
        text += f" ({outcome.stage})"
    if outcome.baseline is not None:
        word, change = "falls" if outcome.rise is None else "rises", outcome.change
        size = change if isinstance(change, str) else f"{change:g}{_unit(outcome.measure)}"
        text += f" {word} by at least {size} from the {outcome.baseline.value} value of {outcome.baseline.within.label}"
    if outcome.confirm is not None:
        text += f", {outcome.confirm.times} times at least {outcome.confirm.apart.label} apart"
    return text


def _listed(codes: tuple[str, ...], many: int | None) -> str:
    more = 0 if many is None else len(codes) - many
    return ", ".join(codes[:many]) + (f" and {more:,} more" if more > 0 else "")


def _values(bounds: Bounds, unit: str) -> str:
    found = [(sign, getattr(bounds, name)) for name, sign in _SIGNS.items() if getattr(bounds, name) is not None]
    return " and".join(f" {sign} {bound:g}" for sign, bound in found) + (unit if found else "")


def _unit(measure: str | None) -> str:
    if measure in MEASURES:
        return f" {MEASURES[measure][1]}"
    analyte = ANALYTES.get(measure or "")
    return "" if analyte is None else f" {analyte.unit}"
