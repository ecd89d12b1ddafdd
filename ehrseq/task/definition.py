"""The task: which outcomes, over which horizons, from which prediction times, and which labs to forecast.

A task is written as TOML (`docs/task.md` lists every key) or built from a dictionary. Both give the same frozen
dataclasses, which check themselves: an unknown key, a bad horizon or an impossible outcome is a one-line TaskError.
"""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from ehrseq.errors import TaskError, nearest
from ehrseq.task.composite import check_references, with_discharges
from ehrseq.task.fields import check_distinct, check_keys, flag, optional_number, optional_string, strings, table_of
from ehrseq.task.outcome_definition import (
    DERIVED_MEASURES,
    Baseline,
    Confirm,
    Outcome,
    check_pattern,
    known_keys,
)
from ehrseq.task.span import MICROSECONDS_A_DAY, NOMINAL_DAYS, Horizon
from ehrseq.timeline.hierarchy import read_code_parents
from ehrseq.timeline.schema import DEATH_CODE

__all__ = [
    "DERIVED_MEASURES", "MICROSECONDS_A_DAY", "NOMINAL_DAYS", "Baseline", "Confirm", "Horizon", "Outcome",
    "PredictionTimes", "Stay", "Task",
]  # fmt: skip

RULES = ("landmarks", "every_encounter", "after", "admission", "discharge", "table")
NEEDED = {"landmarks": "after_start", "after": "code", "admission": "stay", "discharge": "stay",
          "table": "table or times"}  # fmt: skip
_STAY_KEYS = ("classes", "admission", "discharge")


@dataclass(frozen=True)
class Stay:
    """A stay in hospital: the encounters of some `classes`, or those that `admission` and `discharge` codes mark.

    Encounters that overlap or touch (emergency department, ward, intensive care) are one stay.

    >>> Stay("hospital", classes=("inpatient",)).admissions
    ('ENCOUNTER//inpatient/admission',)
    """

    name: str
    classes: tuple[str, ...] = ()
    admission: tuple[str, ...] = ()
    discharge: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"stays.{self.name}"
        if bool(self.classes) == bool(self.admission and self.discharge) or (
            bool(self.admission) != bool(self.discharge)
        ):
            raise TaskError(
                f"either classes or both admission and discharge in {where}",
                "others",
                "e.g. hospital = { classes = ['inpatient'] }",
            )
        for code in (*self.admissions, *self.discharges):
            check_pattern(code, where)

    @property
    def admissions(self) -> tuple[str, ...]:
        """The codes of an encounter's start."""
        return self.admission or tuple(f"ENCOUNTER//{name}/admission" for name in self.classes)

    @property
    def discharges(self) -> tuple[str, ...]:
        """The codes of an encounter's end."""
        return self.discharge or tuple(f"ENCOUNTER//{name}/discharge" for name in self.classes)


@dataclass(frozen=True)
class PredictionTimes:
    """When forecasts are made.

    `rule` is "landmarks" (`after_start`: spans after the start of follow-up), "every_encounter" (each encounter's
    end), "after" (`code`: each matching event), "admission" or "discharge" (`stay`: each begin or end of such a stay)
    or "table" (`table`: a CSV or Parquet file with the columns `patient` and `time`, or `times`: the pairs
    themselves; a date means the end of that day).
    """

    rule: str = "landmarks"
    after_start: tuple[Horizon, ...] = ()
    code: str | None = None
    stay: str | None = None
    table: str | None = None
    times: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise TaskError(
                "prediction_times.rule 'landmarks', 'every_encounter', 'after:CODE', 'admission:STAY', "
                "'discharge:STAY' or 'table'",
                repr(self.rule),
                nearest(str(self.rule), RULES),
            )
        given = {
            "after_start": bool(self.after_start),
            "code": self.code is not None,
            "stay": self.stay is not None,
            "table or times": self.table is not None or bool(self.times),
        }
        needed = NEEDED.get(self.rule)
        if needed is not None and not given[needed]:
            raise TaskError(f"{needed} with prediction_times rule '{self.rule}'", "none", f"add {needed}")
        extra = [key for key, present in given.items() if present and key != needed]
        if extra:
            raise TaskError(
                f"no {extra[0]} with prediction_times rule '{self.rule}'", f"{extra[0]} given", "remove it or the rule"
            )
        if self.table is not None and self.times:
            raise TaskError("either table or times in prediction_times", "both", "keep one")
        if self.code is not None:
            check_pattern(self.code, "prediction_times")
        check_distinct([h.days for h in self.after_start], "prediction_times.after_start")


@dataclass(frozen=True)
class Task:
    """Outcomes, horizons (ascending), prediction times and the labs to forecast.

    A `competing = ["death"]` needs no declaration of death: an outcome `death` of MEDS_DEATH is then added.

    >>> task = Task.from_dict({
    ...     "horizons": ["5y", "1y"],
    ...     "outcomes": {"t2d": {"codes": ["SNOMED//44054006", "ICD10CM//E11*"], "competing": ["death"]}},
    ...     "prediction_times": {"rule": "landmarks", "after_start": ["2y"]},
    ... })
    >>> [o.name for o in task.outcomes], [h.label for h in task.horizons], task.max_horizon_days
    (['t2d', 'death'], ['1y', '5y'], 1826.25)
    >>> Task.from_dict(task.to_dict()) == task
    True
    """

    outcomes: tuple[Outcome, ...]
    horizons: tuple[Horizon, ...]
    prediction_times: PredictionTimes
    labs: tuple[str, ...] = ()
    stays: tuple[Stay, ...] = ()

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise TaskError("at least one outcome", "none", "add an [outcomes.NAME] table")
        names = [o.name for o in self.outcomes]
        if len(set(names)) < len(names):
            raise TaskError("outcomes of different names", "a name used twice", "rename one")
        check_distinct([s.name for s in self.stays], "stays")
        object.__setattr__(self, "outcomes", with_discharges(self.outcomes))
        competitors = {c for o in self.outcomes for c in o.competing}
        if "death" in competitors and "death" not in names:
            object.__setattr__(self, "outcomes", (*self.outcomes, Outcome("death", codes=(DEATH_CODE,))))
        check_references(self.outcomes, [s.name for s in self.stays], self.prediction_times.stay)
        if not self.horizons or any(h.count == 0 for h in self.horizons):
            raise TaskError(
                "at least one horizon, each above zero", "none or zero", "add for example horizons = ['1y']"
            )
        check_distinct([h.days for h in self.horizons], "horizons")
        object.__setattr__(self, "horizons", tuple(sorted(self.horizons, key=lambda h: h.days)))
        for code in self.labs:
            check_pattern(code, "labs")
            if code.endswith("*"):
                raise TaskError("exact codes in labs", "a code ending in *", "name each lab's code")
        check_distinct(self.labs, "labs")

    @classmethod
    def from_toml(cls, path: str | Path) -> Task:
        """The task in a TOML file; relative `prediction_times.table` and `code_parents` are looked up beside it."""
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TaskError("a readable task file", type(error).__name__, "check the path") from None
        except UnicodeDecodeError:
            raise TaskError("a task file in UTF-8", "other bytes", "save it as UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            at = re.search(r"\(at [^)]*\)$", str(error))
            raise TaskError(
                "a task file in TOML", f"a syntax error {at[0] if at else ''}".strip(), "correct that line"
            ) from None
        if isinstance(parents := table.get("code_parents"), str):
            table["code_parents"] = str(path.parent / parents)
        task = cls.from_dict(table)
        times = task.prediction_times
        if times.table is not None and not Path(times.table).is_absolute():
            return replace(task, prediction_times=replace(times, table=str(path.parent / times.table)))
        return task

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Task:
        """The task in a dictionary of the TOML file's keys."""
        check_keys(table, ("outcomes", "horizons", "prediction_times", "labs", "stays", "code_parents"), "the task")
        for key in ("outcomes", "horizons", "prediction_times"):
            if key not in table:
                raise TaskError(f"the key '{key}' in the task", "none", "add it (see the task reference in the docs)")
        outcomes = table_of(table["outcomes"], "outcomes")
        labs = table_of(table.get("labs", {}), "labs")
        check_keys(labs, ("codes",), "labs")
        task = cls(
            outcomes=tuple(_outcome(name, table_of(o, f"outcome '{name}'")) for name, o in outcomes.items()),
            horizons=_spans(table["horizons"], "horizons"),
            prediction_times=_prediction_times(table_of(table["prediction_times"], "prediction_times")),
            labs=strings(labs.get("codes", ()), "labs.codes"),
            stays=tuple(_stay(name, stay) for name, stay in table_of(table.get("stays", {}), "stays").items()),
        )
        file = optional_string(table.get("code_parents"), "code_parents")
        if file is None:
            return task
        if not any(o.descendants for o in task.definitions):
            raise TaskError("descendants = true in an outcome beside code_parents", "none", "add it where it is meant")
        return task.with_descendants(read_code_parents(file))

    def with_descendants(self, parents: pl.DataFrame) -> Task:
        """The same task, with the descendants of its outcomes' codes in a table of `code` and `parent`.

        They stay with the task: what has been fitted is scored with the same codes, whatever table is at hand then.

        >>> task = Task.from_dict({"horizons": ["1y"], "prediction_times": {"rule": "every_encounter"},
        ...     "outcomes": {"diabetes": {"codes": ["SNOMED//73211009"], "descendants": True}}})
        >>> parents = pl.DataFrame({"code": ["SNOMED//44054006"], "parent": ["SNOMED//73211009"]})
        >>> task.with_descendants(parents).outcomes[0].patterns
        ('SNOMED//73211009', 'SNOMED//44054006')
        """
        return replace(self, outcomes=tuple(o.with_descendants(parents) for o in self.outcomes))

    def to_dict(self) -> dict[str, Any]:
        """The task with every default written out, in types JSON has; `from_dict` gives the same task back."""
        times = self.prediction_times
        return {
            "horizons": [h.label for h in self.horizons],
            "outcomes": {o.name: o.to_dict() for o in self.outcomes},
            "labs": {"codes": list(self.labs)},
            "stays": {s.name: _stay_dict(s) for s in self.stays},
            "prediction_times": {
                "rule": ":".join([times.rule, *(part for part in (times.code, times.stay) if part is not None)]),
                "after_start": [h.label for h in times.after_start],
                "table": times.table,
                "times": [{"patient": patient, "time": time} for patient, time in times.times],
            },
        }

    def outcome(self, name: str) -> Outcome:
        """The outcome of that name."""
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        raise TaskError("an outcome of the task", f"'{name}'", nearest(name, [o.name for o in self.outcomes]))

    def stay(self, name: str) -> Stay:
        """The stay of that name."""
        for stay in self.stays:
            if stay.name == name:
                return stay
        raise TaskError("a stay of the task", f"'{name}'", nearest(name, [s.name for s in self.stays]))

    @property
    def definitions(self) -> tuple[Outcome, ...]:
        """Everything that is defined by codes or a measure: outcomes, and the composites' own parts."""
        return tuple(part for o in self.outcomes for part in o.own_parts)

    @property
    def max_horizon_days(self) -> float:
        """The longest horizon in nominal days."""
        return self.horizons[-1].days


def _outcome(name: str, table: Mapping[str, Any], *, part: bool = False) -> Outcome:
    where = f"outcome '{name}'"
    check_keys(table, known_keys(part=part), f"a part of {where}" if part else where)
    return Outcome(
        name=name,
        codes=strings(table.get("codes", ()), f"codes of {where}"),
        descendants=flag(table.get("descendants", False), f"descendants in {where}"),
        descendant_codes=strings(table.get("descendant_codes", ()), f"descendant_codes of {where}"),
        measure=optional_string(table.get("measure"), f"measure of {where}"),
        below=optional_number(table.get("below"), f"below in {where}"),
        above=optional_number(table.get("above"), f"above in {where}"),
        at_most=optional_number(table.get("at_most"), f"at_most in {where}"),
        at_least=optional_number(table.get("at_least"), f"at_least in {where}"),
        stage=optional_string(table.get("stage"), f"stage of {where}"),
        fall=_change(table.get("fall"), f"fall in {where}"),
        rise=_change(table.get("rise"), f"rise in {where}"),
        baseline=None if table.get("baseline") is None else _baseline(table["baseline"], where),
        any_of=_parts(table.get("any_of", ()), name, "any_of"),
        all_of=_parts(table.get("all_of", ()), name, "all_of"),
        sequence=_parts(table.get("sequence", ()), name, "sequence"),
        within=_span(table.get("within")),
        admission=optional_string(table.get("admission"), f"admission in {where}"),
        discharge=optional_string(table.get("discharge"), f"discharge in {where}"),
        confirm=None if table.get("confirm") is None else _confirm(table["confirm"], where),
        competing=strings(table.get("competing", ()), f"competing of {where}"),
        incident=flag(table.get("incident", True), f"incident in {where}"),
        washout=_span(table.get("washout")),
        during=optional_string(table.get("during"), f"during in {where}"),
        event_time=table.get("event_time", "known"),
    )


def _parts(value: Any, name: str, kind: str) -> tuple[str | Outcome, ...]:
    where = f"{kind} of outcome '{name}'"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TaskError(f"a list for {where}", type(value).__name__, "list names of outcomes, or tables")
    return tuple(p if isinstance(p, str) else _outcome(name, table_of(p, f"each of {where}"), part=True) for p in value)


def _change(value: Any, where: str) -> float | str | None:
    return value if isinstance(value, str) else optional_number(value, where)


def _baseline(value: Any, where: str) -> Baseline:
    table = table_of(value, f"baseline of {where}")
    check_keys(table, ("value", "within"), f"baseline of {where}")
    if "within" not in table:
        raise TaskError(f"within in baseline of {where}", "none", 'e.g. { value = "last", within = "1y" }')
    return Baseline(within=Horizon(table["within"]), value=table.get("value", "last"))


def _confirm(value: Any, where: str) -> Confirm:
    table = table_of(value, f"confirm of {where}")
    check_keys(table, ("times", "apart"), f"confirm of {where}")
    for key in ("times", "apart"):
        if key not in table:
            raise TaskError(f"times and apart in confirm of {where}", f"no {key}", 'e.g. { times = 2, apart = "90d" }')
    return Confirm(times=table["times"], apart=Horizon(table["apart"]))


def _span(value: Any) -> Horizon | None:
    return None if value is None else Horizon(value)


def _stay(name: str, value: Any) -> Stay:
    where = f"stays.{name}"
    if not isinstance(value, Mapping):
        return Stay(name, classes=strings(value, where))
    check_keys(value, _STAY_KEYS, where)
    return Stay(name, *(strings(value.get(key, ()), f"{key} of {where}") for key in _STAY_KEYS))


def _stay_dict(stay: Stay) -> dict[str, list[str]]:
    return {key: list(getattr(stay, key)) for key in _STAY_KEYS}


def _prediction_times(table: Mapping[str, Any]) -> PredictionTimes:
    check_keys(table, ("rule", "after_start", "table", "times"), "prediction_times")
    rule = optional_string(table.get("rule"), "prediction_times.rule")
    if rule is None:
        raise TaskError("a rule in prediction_times", "none", "add for example rule = 'landmarks'")
    kind, _, code = rule.partition(":")
    # a bare "after" is refused below for want of its code
    rule, code = (kind, code) if NEEDED.get(kind) in ("code", "stay") else (rule, "")
    times = table.get("times", ())
    if isinstance(times, str) or not isinstance(times, Sequence):
        raise TaskError("a list for prediction_times.times", type(times).__name__, "write it as [{patient=, time=}]")
    return PredictionTimes(
        rule=rule,
        after_start=_spans(table.get("after_start", ()), "prediction_times.after_start"),
        code=code or None if kind == "after" else None,
        stay=code or None if kind in ("admission", "discharge") else None,
        table=optional_string(table.get("table"), "prediction_times.table"),
        times=tuple(_pair(row) for row in times),
    )


def _spans(value: Any, where: str) -> tuple[Horizon, ...]:
    return tuple(Horizon(label) for label in strings(value, where))


def _pair(row: Any) -> tuple[str, str]:
    table = table_of(row, "each of prediction_times.times")
    check_keys(table, ("patient", "time"), "prediction_times.times")
    time = table.get("time")
    if isinstance(time, dt.date):  # TOML has dates and datetimes of its own
        time = time.isoformat()
    if not isinstance(table.get("patient"), str) or not isinstance(time, str):
        raise TaskError("patient and time in each of prediction_times.times", "one without", "give both")
    return table["patient"], time
