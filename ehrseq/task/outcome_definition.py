"""What is to be forecast: the definition of one outcome, checked as it is made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import polars as pl

from ehrseq.errors import TaskError, nearest
from ehrseq.task.span import Horizon
from ehrseq.task.stages import Stages, stages_of
from ehrseq.timeline.hierarchy import descendants
from ehrseq.timeline.measures import MEASURES

DERIVED_MEASURES = tuple(MEASURES)  # what an outcome may name instead of a lab code
KINDS = ("codes", "measure", "any_of", "all_of", "sequence", "admission", "discharge")
OF_MEASURES = ("stage", "fall", "rise", "baseline")
PART_KEYS = (
    "codes", "descendants", "descendant_codes", "measure", "below", "above", "at_most", "at_least", "stage", "fall",
    "rise", "baseline", "confirm",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_PERCENT = re.compile(r"[0-9]+(\.[0-9]+)?%")


@dataclass(frozen=True)
class Confirm:
    """An outcome needs `times` matching events, each at least `apart` after the one before."""

    times: int
    apart: Horizon

    def __post_init__(self) -> None:
        if isinstance(self.times, bool) or not isinstance(self.times, int) or not 2 <= self.times <= 10:
            raise TaskError("confirm.times from 2 to 10", repr(self.times), "leave confirm out if one event is enough")
        if self.apart.count == 0:
            raise TaskError("confirm.apart above zero", f"'{self.apart.label}'", "use for example '90d'")


@dataclass(frozen=True)
class Baseline:
    """The value that a change is counted from: the `last` or the `mean` one known `within` the span before."""

    within: Horizon
    value: Literal["last", "mean"] = "last"

    def __post_init__(self) -> None:
        if self.value not in ("last", "mean"):
            raise TaskError("baseline.value 'last' or 'mean'", repr(self.value), nearest(str(self.value), BASELINES))
        if self.within.count == 0:
            raise TaskError("baseline.within above zero", f"'{self.within.label}'", "use for example '1y'")


BASELINES = ("last", "mean")


@dataclass(frozen=True)
class Bounds:
    """What a value must be: `below` and `above` exclude the bound itself, `at_most` and `at_least` include it."""

    below: float | None = None
    above: float | None = None
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What is to be forecast.

    One of
    - `codes`: exact codes or prefixes (trailing `*`); with `descendants`, what they are parents of counts too
      (`descendant_codes` are those known so far). Bounds are for the event's value
    - `measure`: a lab code or derived measure beyond a bound (`below`, `above`, `at_most`, `at_least`), in a `stage`,
      or after a `fall` or `rise` from its `baseline`
    - `any_of`, `all_of`, `sequence` (each `within` a span of the one before): other outcomes by name, or definitions
    - `admission` to and `discharge` from a stay of the task

    `confirm` asks for several events. `competing` names outcomes that preclude this one. People known to have an
    `incident` outcome are not at risk of it, nor those who had another within the `washout` before; with `during`
    only those in a stay are. `event_time` says when it happens: when it is "known" or when it "occurred".
    """

    name: str
    codes: tuple[str, ...] = ()
    descendants: bool = False
    descendant_codes: tuple[str, ...] = ()
    measure: str | None = None
    below: float | None = None
    above: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    stage: str | None = None
    fall: float | str | None = None
    rise: float | str | None = None
    baseline: Baseline | None = None
    any_of: tuple[str | Outcome, ...] = ()
    all_of: tuple[str | Outcome, ...] = ()
    sequence: tuple[str | Outcome, ...] = ()
    within: Horizon | None = None
    admission: str | None = None
    discharge: str | None = None
    confirm: Confirm | None = None
    competing: tuple[str, ...] = ()
    incident: bool = True
    washout: Horizon | None = None
    during: str | None = None
    event_time: Literal["known", "occurred"] = "known"

    def __post_init__(self) -> None:
        where = f"outcome '{self.name}'"
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise TaskError(
                "an outcome name of letters, digits, _ and -, starting with a letter",
                repr(self.name),
                "rename the outcome",
            )
        given = [kind for kind in KINDS if getattr(self, kind) not in ((), None)]
        if len(given) != 1:
            raise TaskError(
                f"one of {', '.join(KINDS)} in {where}", " and ".join(given) or "none", "give exactly one of them"
            )
        if (self.descendants and not self.codes) or (self.descendant_codes and not self.descendants):
            raise TaskError(
                f"descendants = true beside codes in {where}", "one without the other", "add what is missing"
            )
        if self.measure not in DERIVED_MEASURES:
            for code in self.patterns:
                check_pattern(code, where)
        _check_values(self, where)
        _check_parts(self, given[0], where)
        _check_time_at_risk(self, where)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The codes or prefixes whose events count, or the measure; none for what is made of other outcomes."""
        return (*self.codes, *self.descendant_codes) if self.measure is None else (self.measure,)

    @property
    def parts(self) -> tuple[str | Outcome, ...]:
        """What a composite is made of: names of outcomes, and definitions of its own."""
        return (*self.any_of, *self.all_of, *self.sequence)

    @property
    def own_parts(self) -> tuple[Outcome, ...]:
        """The definitions that a composite has of its own; for any other outcome, itself."""
        return tuple(p for p in self.parts if isinstance(p, Outcome)) if self.parts else (self,)

    @property
    def is_change(self) -> bool:
        """Whether the outcome is a change from a baseline, which each prediction time has its own of."""
        return self.baseline is not None

    @property
    def change(self) -> float | str | None:
        """The `fall` or `rise`."""
        return self.fall if self.fall is not None else self.rise

    @property
    def stages(self) -> Stages | None:
        """The stages of the measure where the outcome names one."""
        return None if self.stage is None or self.measure is None else stages_of(self.measure)

    @property
    def bounds(self) -> Bounds:
        """The bounds of the value, those of the stage among them."""
        if self.stages is None or self.stage is None:
            return Bounds(self.below, self.above, self.at_most, self.at_least)
        at_least, below = self.stages.bounds(self.stage)
        return Bounds(below=below, at_least=at_least)

    def with_descendants(self, parents: pl.DataFrame) -> Outcome:
        """The same outcome, with what its codes are parents of in a table of `code` and `parent`."""
        if self.parts:
            return self._with_parts(lambda part: part.with_descendants(parents))
        if not self.descendants:
            return self
        found = sorted({*self.descendant_codes, *descendants(parents, self.codes)})
        return replace(self, descendant_codes=tuple(found))

    def as_written(self) -> Outcome:
        """The same outcome without the descendants that were looked up."""
        if self.parts:
            return self._with_parts(Outcome.as_written)
        return replace(self, descendant_codes=())

    def _with_parts(self, change: Callable[[Outcome], Outcome]) -> Outcome:
        def changed(parts: tuple[str | Outcome, ...]) -> tuple[str | Outcome, ...]:
            return tuple(part if isinstance(part, str) else change(part) for part in parts)

        return replace(self, any_of=changed(self.any_of), all_of=changed(self.all_of), sequence=changed(self.sequence))

    def to_dict(self) -> dict[str, Any]:
        """The keys of the task file with every default written out, in types JSON has."""
        return {name: _plain(value, part=False) for name, value in _values(self).items()}


def amount(change: float | str) -> tuple[float, bool]:
    """A change as a number, and whether it is a share of the baseline.

    >>> amount("40%"), amount(0.3)
    ((0.4, True), (0.3, False))
    """
    return (float(change[:-1]) / 100, True) if isinstance(change, str) else (float(change), False)


def check_pattern(code: Any, where: str) -> None:
    """Raise TaskError unless `code` is a code, or a prefix ending in one `*`."""
    if not isinstance(code, str) or not code.rstrip("*").strip() or "*" in code[:-1]:
        raise TaskError(
            f"a code such as 'SNOMED//44054006' or a prefix such as 'ICD10CM//E11*' in {where}",
            repr(code),
            "correct the code; * may stand only at its end",
        )


def _check_values(outcome: Outcome, where: str) -> None:
    """Measure, bounds, stage and change go together."""
    extra = [key for key in OF_MEASURES if getattr(outcome, key) is not None]
    if outcome.measure is None and extra:
        raise TaskError(f"measure beside {extra[0]} in {where}", "none", "say which measure")
    _check_bounds(outcome, where)
    if outcome.measure is None:
        return
    _check_measure(outcome.measure, where)
    bounded = any(getattr(outcome, b) is not None for b in ("below", "above", "at_most", "at_least"))
    if outcome.stage is not None:
        stages = stages_of(outcome.measure)
        if bounded or stages is None:
            found = "both" if bounded else f"measure '{outcome.measure}', which has no stages"
            raise TaskError(f"either a stage or bounds in {where}", found, "keep one; eGFR and hba1c have stages")
        stages.bounds(outcome.stage)
    if (outcome.fall is not None) + (outcome.rise is not None) != (outcome.baseline is not None):
        raise TaskError(
            f"one of fall and rise, and baseline, in {where}",
            "others",
            "e.g. fall = '40%' and baseline = { within = '1y' }",
        )
    if not bounded and outcome.stage is None and not outcome.is_change:
        raise TaskError(
            f"below, above, at_most, at_least, stage, fall or rise beside measure in {where}",
            "none",
            "say which values count",
        )
    if outcome.change is not None:
        _check_change(outcome.change, falls=outcome.rise is None, where=where)


def _check_change(change: float | str, *, falls: bool, where: str) -> None:
    wrong = isinstance(change, str) and not _PERCENT.fullmatch(change)
    if not wrong:
        number, share = amount(change)
        wrong = not math.isfinite(number) or number <= 0 or (falls and share and number >= 1)
    if wrong:
        raise TaskError(
            f"a change such as '40%' (of the baseline) or 0.3 (in the measure's unit) in {where}",
            repr(change),
            "write a share as text with %, an amount as a number above zero",
        )


def _check_bounds(outcome: Outcome, where: str) -> None:
    sides = {"upper": ("below", "at_most"), "lower": ("above", "at_least")}
    found: dict[str, tuple[str, float]] = {}
    for side, keys in sides.items():
        for key in keys:
            bound = getattr(outcome, key)
            if bound is None:
                continue
            if not math.isfinite(bound):
                raise TaskError(f"a finite bound in {where}", str(bound), "write a number, or leave the bound out")
            if side in found:
                raise TaskError(f"one {side} bound in {where}", " and ".join(keys), f"{keys[0]} excludes the bound")
            found[side] = key, bound
    if len(found) == 2:
        (upper, high), (lower, low) = found["upper"], found["lower"]
        if low > high or (low == high and (upper, lower) != ("at_most", "at_least")):
            raise TaskError(
                f"{lower} < {upper} in {where} (values between the two)",
                f"{lower} {low:g}, {upper} {high:g}",
                "correct the bounds, or use two outcomes",
            )


def _check_measure(measure: str, where: str) -> None:
    if "//" not in measure and measure not in DERIVED_MEASURES:
        raise TaskError(
            f"a lab code such as 'LOINC//2160-0' or a derived measure as measure of {where}",
            repr(measure),
            nearest(measure, DERIVED_MEASURES),
        )
    if measure.endswith("*"):
        raise TaskError(f"one exact lab code as measure of {where}", "a prefix", "list several codes under codes")


def _check_parts(outcome: Outcome, kind: str, where: str) -> None:
    """A composite has several parts and no values of its own."""
    if outcome.within is not None and kind != "sequence":
        raise TaskError(f"sequence beside within in {where}", kind, "within is how far apart the sequence may be")
    if kind in ("codes", "measure"):
        return
    bounds = [key for key in ("below", "above", "at_most", "at_least", "confirm") if getattr(outcome, key) is not None]
    if bounds:
        raise TaskError(f"no {bounds[0]} beside {kind} in {where}", bounds[0], "give it to the part that it is for")
    if outcome.parts and len(set(outcome.parts)) < max(2, len(outcome.parts)) and kind != "sequence":
        raise TaskError(f"two or more different parts in {kind} of {where}", "fewer", "list outcomes or definitions")
    if kind == "sequence" and len(outcome.sequence) < 2:
        raise TaskError(
            f"two or more parts in sequence of {where}", "fewer", "list what comes first, then what follows"
        )
    if outcome.name in outcome.parts:
        raise TaskError(f"other outcomes in {kind} of {where}", "the outcome itself", "remove it")


def _check_time_at_risk(outcome: Outcome, where: str) -> None:
    if outcome.event_time not in ("known", "occurred"):
        raise TaskError(f"event_time 'known' or 'occurred' in {where}", repr(outcome.event_time), "choose one")
    if outcome.name in outcome.competing:
        raise TaskError(f"other outcomes in competing of {where}", "the outcome itself", "remove it")
    if outcome.washout is None:
        return
    if outcome.incident:
        raise TaskError(
            f"incident = false beside washout in {where}",
            "incident = true",
            "with incident, one known at any time before keeps people out",
        )
    if outcome.washout.count == 0 or outcome.is_change:
        found = "a change from baseline" if outcome.is_change else f"'{outcome.washout.label}'"
        raise TaskError(
            f"a washout above zero, of events that do not depend on the prediction time, in {where}",
            found,
            "leave washout out",
        )


def _values(outcome: Outcome) -> dict[str, Any]:
    return {f.name: getattr(outcome, f.name) for f in fields(Outcome) if f.name != "name"}


def _plain(value: Any, *, part: bool) -> Any:
    """A value of an outcome in types JSON has."""
    if isinstance(value, Horizon):
        return value.label
    if isinstance(value, tuple):
        return [_plain(v, part=True) for v in value]
    if isinstance(value, Outcome) and part:
        given = {name: _plain(v, part=True) for name, v in _values(value).items() if name in PART_KEYS}
        return {name: v for name, v in given.items() if v not in ([], None, False)}
    if isinstance(value, Confirm | Baseline):
        return {f.name: _plain(getattr(value, f.name), part=False) for f in fields(value)}
    return value


def known_keys(*, part: bool) -> tuple[str, ...]:
    """The keys of an outcome's table, or of a definition inside a composite."""
    return PART_KEYS if part else tuple(f.name for f in fields(Outcome) if f.name != "name")
