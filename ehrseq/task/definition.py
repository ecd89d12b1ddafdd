"""The task: which outcomes, over which horizons, from which prediction times, and which labs to forecast.

A task is written as TOML (`docs/task.md` lists every key) or built from a dictionary. Both give the same frozen
dataclasses, which check themselves: an unknown key, a bad horizon or an impossible outcome is a one-line TaskError.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from ehrseq.errors import TaskError, nearest
from ehrseq.task.fields import check_distinct, check_keys, flag, optional_number, optional_string, strings, table_of
from ehrseq.timeline.hierarchy import descendants, read_code_parents
from ehrseq.timeline.measures import MEASURES
from ehrseq.timeline.schema import DEATH_CODE

DERIVED_MEASURES = tuple(MEASURES)  # what an outcome may name instead of a lab code
RULES = ("landmarks", "every_encounter", "after", "table")
NOMINAL_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0, "m": 365.25 / 12, "y": 365.25}
_POLARS_UNIT = {"h": "h", "d": "d", "w": "w", "m": "mo", "y": "y"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SPAN = re.compile(r"[0-9]{1,6}[hdwmy]")
MICROSECONDS_A_DAY = 86_400_000_000


@dataclass(frozen=True)
class Horizon:
    """A span of time: a whole number of hours (h), days (d), weeks (w), calendar months (m) or calendar years (y).

    >>> Horizon("5y").days, Horizon("48h").days
    (1826.25, 2.0)
    >>> start = pl.Series([dt.datetime(2005, 1, 1), dt.datetime(2004, 2, 29)])
    >>> pl.select(Horizon("5y").after(pl.lit(start))).to_series().to_list()
    [datetime.datetime(2010, 1, 1, 0, 0), datetime.datetime(2009, 2, 28, 0, 0)]
    """

    label: str

    def __post_init__(self) -> None:
        if not isinstance(self.label, str) or not _SPAN.fullmatch(self.label):
            raise TaskError(
                "a span such as '48h', '30d', '2w', '6m' or '5y'", repr(self.label), "write a number and one unit"
            )

    @property
    def count(self) -> int:
        """How many units."""
        return int(self.label[:-1])

    @property
    def unit(self) -> str:
        """One of h, d, w, m, y."""
        return self.label[-1]

    @property
    def days(self) -> float:
        """The nominal length in days: a year is 365.25, a month a twelfth of that."""
        return self.count * NOMINAL_DAYS[self.unit]

    def after(self, expr: pl.Expr) -> pl.Expr:
        """The exact instant this long after each datetime: y and m keep the calendar day (29 February: the 28th)."""
        return expr.dt.offset_by(f"{self.count}{_POLARS_UNIT[self.unit]}")

    def days_after(self, expr: pl.Expr) -> pl.Expr:
        """The exact length in days counted from each datetime: 5y from 2005-01-01 is 1826."""
        return (self.after(expr) - expr).dt.total_microseconds() / MICROSECONDS_A_DAY


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
class Outcome:
    """What is to be forecast: events by code, or a lab value beyond a bound, confirmed or not.

    `codes` are exact codes or prefixes (trailing `*`); with `descendants`, what the codes are parents of counts too:
    `descendant_codes` are those known so far. `measure` is one lab code or derived measure and needs `below` or
    `above`. `competing` names outcomes that preclude this one. People known to have an `incident` outcome are not at
    risk of it. `event_time` says when it happens: when it is "known" or when it "occurred".
    """

    name: str
    codes: tuple[str, ...] = ()
    descendants: bool = False
    descendant_codes: tuple[str, ...] = ()
    measure: str | None = None
    below: float | None = None
    above: float | None = None
    confirm: Confirm | None = None
    competing: tuple[str, ...] = ()
    incident: bool = True
    event_time: Literal["known", "occurred"] = "known"

    def __post_init__(self) -> None:
        where = f"outcome '{self.name}'"
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise TaskError(
                "an outcome name of letters, digits, _ and -, starting with a letter",
                repr(self.name),
                "rename the outcome",
            )
        if bool(self.codes) == (self.measure is not None):
            found = "both" if self.codes else "neither"
            raise TaskError(f"either codes or measure in {where}", found, "give exactly one of them")
        if self.measure is not None:
            _check_measure(self.measure, where)
            if self.below is None and self.above is None:
                raise TaskError(f"below or above beside measure in {where}", "neither", "say which values count")
        if (self.descendants and not self.codes) or (self.descendant_codes and not self.descendants):
            raise TaskError(
                f"descendants = true beside codes in {where}", "one without the other", "add what is missing"
            )
        if self.measure not in DERIVED_MEASURES:
            for code in self.patterns:
                check_pattern(code, where)
        for bound in (self.below, self.above):
            if bound is not None and not math.isfinite(bound):
                raise TaskError(f"a finite bound in {where}", str(bound), "write a number, or leave the bound out")
        if self.below is not None and self.above is not None and self.above >= self.below:
            raise TaskError(
                f"above < below in {where} (values between the two)",
                f"above {self.above:g}, below {self.below:g}",
                "correct the bounds, or use two outcomes",
            )
        if self.event_time not in ("known", "occurred"):
            raise TaskError(f"event_time 'known' or 'occurred' in {where}", repr(self.event_time), "choose one")
        if self.name in self.competing:
            raise TaskError(f"other outcomes in competing of {where}", "the outcome itself", "remove it")

    @property
    def patterns(self) -> tuple[str, ...]:
        """The codes or prefixes whose events count."""
        return (*self.codes, *self.descendant_codes) if self.measure is None else (self.measure,)

    def with_descendants(self, parents: pl.DataFrame) -> Outcome:
        """The same outcome, with what its codes are parents of in a table of `code` and `parent`."""
        if not self.descendants:
            return self
        found = sorted({*self.descendant_codes, *descendants(parents, self.codes)})
        return replace(self, descendant_codes=tuple(found))


@dataclass(frozen=True)
class PredictionTimes:
    """When forecasts are made.

    `rule` is "landmarks" (`after_start`: spans after the start of follow-up), "every_encounter" (each encounter's
    end), "after" (`code`: each matching event) or "table" (`table`: a CSV or Parquet file with the columns `patient`
    and `time`, or `times`: the pairs themselves; a date means the end of that day).
    """

    rule: str = "landmarks"
    after_start: tuple[Horizon, ...] = ()
    code: str | None = None
    table: str | None = None
    times: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise TaskError(
                "prediction_times.rule 'landmarks', 'every_encounter', 'after:CODE' or 'table'",
                repr(self.rule),
                nearest(str(self.rule), RULES),
            )
        given = {
            "after_start": bool(self.after_start),
            "code": self.code is not None,
            "table or times": self.table is not None or bool(self.times),
        }
        needed = {"landmarks": "after_start", "after": "code", "table": "table or times"}.get(self.rule)
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

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise TaskError("at least one outcome", "none", "add an [outcomes.NAME] table")
        names = [o.name for o in self.outcomes]
        if len(set(names)) < len(names):
            raise TaskError("outcomes of different names", "a name used twice", "rename one")
        competitors = {c for o in self.outcomes for c in o.competing}
        if "death" in competitors and "death" not in names:
            object.__setattr__(self, "outcomes", (*self.outcomes, Outcome("death", codes=(DEATH_CODE,))))
        for name in sorted(competitors - {o.name for o in self.outcomes}):
            raise TaskError("outcomes of the task in competing", f"'{name}'", nearest(name, names))
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
        check_keys(table, ("outcomes", "horizons", "prediction_times", "labs", "code_parents"), "the task")
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
        )
        file = optional_string(table.get("code_parents"), "code_parents")
        if file is None:
            return task
        if not any(o.descendants for o in task.outcomes):
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
            "outcomes": {o.name: _outcome_dict(o) for o in self.outcomes},
            "labs": {"codes": list(self.labs)},
            "prediction_times": {
                "rule": f"after:{times.code}" if times.rule == "after" else times.rule,
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

    @property
    def max_horizon_days(self) -> float:
        """The longest horizon in nominal days."""
        return self.horizons[-1].days


def check_pattern(code: Any, where: str) -> None:
    """Raise TaskError unless `code` is a code, or a prefix ending in one `*`."""
    if not isinstance(code, str) or not code.rstrip("*").strip() or "*" in code[:-1]:
        raise TaskError(
            f"a code such as 'SNOMED//44054006' or a prefix such as 'ICD10CM//E11*' in {where}",
            repr(code),
            "correct the code; * may stand only at its end",
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


def _outcome(name: str, table: Mapping[str, Any]) -> Outcome:
    where = f"outcome '{name}'"
    check_keys(table, [f.name for f in fields(Outcome) if f.name != "name"], where)
    return Outcome(
        name=name,
        codes=strings(table.get("codes", ()), f"codes of {where}"),
        descendants=flag(table.get("descendants", False), f"descendants in {where}"),
        descendant_codes=strings(table.get("descendant_codes", ()), f"descendant_codes of {where}"),
        measure=optional_string(table.get("measure"), f"measure of {where}"),
        below=optional_number(table.get("below"), f"below in {where}"),
        above=optional_number(table.get("above"), f"above in {where}"),
        confirm=None if table.get("confirm") is None else _confirm(table["confirm"], where),
        competing=strings(table.get("competing", ()), f"competing of {where}"),
        incident=flag(table.get("incident", True), f"incident in {where}"),
        event_time=table.get("event_time", "known"),
    )


def _confirm(value: Any, where: str) -> Confirm:
    table = table_of(value, f"confirm of {where}")
    check_keys(table, ("times", "apart"), f"confirm of {where}")
    for key in ("times", "apart"):
        if key not in table:
            raise TaskError(f"times and apart in confirm of {where}", f"no {key}", 'e.g. { times = 2, apart = "90d" }')
    return Confirm(times=table["times"], apart=Horizon(table["apart"]))


def _outcome_dict(outcome: Outcome) -> dict[str, Any]:
    table = {f.name: getattr(outcome, f.name) for f in fields(Outcome) if f.name != "name"}
    if outcome.confirm is not None:
        table["confirm"] = {"times": outcome.confirm.times, "apart": outcome.confirm.apart.label}
    lists = ("codes", "descendant_codes", "competing")
    return table | {name: list(getattr(outcome, name)) for name in lists}


def _prediction_times(table: Mapping[str, Any]) -> PredictionTimes:
    check_keys(table, ("rule", "after_start", "table", "times"), "prediction_times")
    rule = optional_string(table.get("rule"), "prediction_times.rule")
    if rule is None:
        raise TaskError("a rule in prediction_times", "none", "add for example rule = 'landmarks'")
    after, _, code = rule.partition(":")
    # a bare "after" is refused below for want of its code
    rule, code = ("after", code) if after == "after" else (rule, "")
    times = table.get("times", ())
    if isinstance(times, str) or not isinstance(times, Sequence):
        raise TaskError("a list for prediction_times.times", type(times).__name__, "write it as [{patient=, time=}]")
    return PredictionTimes(
        rule=rule,
        after_start=_spans(table.get("after_start", ()), "prediction_times.after_start"),
        code=code or None,
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
