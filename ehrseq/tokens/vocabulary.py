"""Which codes and values the model knows; fitted on training subjects only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.config import NetworkConfig, from_mapping
from ehrseq.features.labs import UNIT
from ehrseq.frames import at_once
from ehrseq.timeline.schema import BIRTH_CODE, DEATH_CODE
from ehrseq.tokens.family import Family

PADDING, UNKNOWN, FIRST_CODE = 0, 1, 2
DEMOGRAPHICS = ("sex", "race", "ethnicity")
MAX_ANCESTORS = 8  # a token takes the nearest ones
CODED_TEXT = r"^\S+//\S+$"  # a coded value such as SNOMED//8392000; free text never enters a vocabulary


@dataclass(frozen=True)
class ValueScale:
    """The values of one code in one unit: quantile knots for the tokens, centre and spread for summaries."""

    code: str
    unit: str
    knots: tuple[float, ...]
    centre: float
    spread: float


@dataclass(frozen=True)
class Vocabulary:
    """Codes (index FIRST_CODE on), coded values (index 1 on) and value scales known to the model.

    `summary_codes` are what the per-query summaries cover: the most frequent codes, and the static facts. `parents`
    are (code, parent) pairs that lead from any code to one of `codes`, which hold the ancestors of recorded codes too.
    """

    codes: tuple[str, ...]
    coded_values: tuple[str, ...]
    scales: tuple[ValueScale, ...]
    summary_codes: tuple[str, ...]
    parents: tuple[tuple[str, str], ...] = ()

    @property
    def n_codes(self) -> int:
        """Rows of the code embedding."""
        return FIRST_CODE + len(self.codes)

    @property
    def n_coded_values(self) -> int:
        """Rows of the coded-value embedding; row 0 is 'no coded value'."""
        return 1 + len(self.coded_values)

    @property
    def n_knots(self) -> int:
        """Rows of the value embedding; row 0 is 'no value'."""
        return 1 + sum(len(s.knots) for s in self.scales)

    @classmethod
    def fit(
        cls, events: pl.DataFrame, config: NetworkConfig, subjects: pl.DataFrame | None = None,
        parents: pl.DataFrame | None = None,
    ) -> Vocabulary:  # fmt: skip
        """Learn the vocabulary from the events, and the demographics, of the training subjects.

        `parents` (optional) has `code` and `parent`: ancestors that enough subjects have a descendant of are codes too.

        >>> events = pl.DataFrame({"subject_id": [1, 2], "code": ["A//1", "A//1"], "text_value": [None, None],
        ...     "numeric_value": [1.0, 3.0], "unit": ["kg", "kg"]}, schema_overrides={"text_value": pl.String})
        >>> Vocabulary.fit(events, NetworkConfig(min_subjects=2)).codes
        ('A//1',)
        """
        events = model_events(events)
        codes = _frequent(events, pl.col("code"), config.min_subjects)
        facts = (
            []
            if subjects is None
            else _frequent(at_once(static_facts(subjects, config.demographics)), pl.col("code"), config.min_subjects)
        )
        summary_codes = (*codes[: config.summary_codes], *(f for f in facts if f not in codes[: config.summary_codes]))
        codes += facts
        family = Family.of(() if parents is None else parents.select("code", "parent").rows())
        above = _frequent(family.ancestor_events(events), pl.col("code"), config.min_subjects)
        codes += [code for code in above if code not in set(codes)]
        known = events.filter(pl.col("code").is_in(codes))
        coded = known.filter(pl.col("text_value").str.contains(CODED_TEXT))
        values = _frequent(coded, pl.col("code") + "=" + pl.col("text_value"), config.min_subjects)
        numeric = known.filter(pl.col("numeric_value").is_finite())
        scales = tuple(
            ValueScale(str(code), str(unit), *_scale(group["numeric_value"].to_numpy(), config.value_bins))
            for (code, unit), group in sorted(
                numeric.group_by("code", pl.col("unit").fill_null("")), key=lambda item: (item[0][0], item[0][1])
            )
            if group["subject_id"].n_unique() >= config.min_subjects
        )
        return cls(
            tuple(sorted(set(codes))), tuple(sorted(values)), scales, summary_codes, family.leading_to(set(codes))
        )

    def with_parents(self, parents: pl.DataFrame) -> Vocabulary:
        """The same codes, with further (code, parent) pairs: those of the data to be scored."""
        family = Family.of([*self.parents, *parents.select("code", "parent").iter_rows()])
        return replace(self, parents=family.leading_to(set(self.codes)))

    def without_rare(self, recorded: pl.Series) -> Vocabulary:
        """Without pairs of codes that are recorded, and by too few to be in the vocabulary: these identify people."""
        rare = set(recorded.unique().to_list()) - set(self.codes)
        return replace(self, parents=tuple(pair for pair in self.parents if pair[0] not in rare))

    @cached_property
    def family(self) -> Family:
        """Who is above whom."""
        return Family.of(self.parents)

    def known_ancestors(self, code: str) -> list[str]:
        """The ancestors of a code that are in the vocabulary, the nearest first, at most MAX_ANCESTORS."""
        index = self.code_index
        return [c for c in self.family.ancestors(code) if c in index][:MAX_ANCESTORS]

    def ancestor_table(self) -> NDArray[np.int64]:
        """(n_codes, P) indices of each code's known ancestors, 0 for none."""
        above = [[self.code_index[c] for c in self.known_ancestors(code)] for code in self.codes]
        table = np.zeros((self.n_codes, max(map(len, above), default=0)), np.int64)
        for row, indices in enumerate(above, FIRST_CODE):
            table[row, : len(indices)] = indices
        return table

    @cached_property
    def code_index(self) -> dict[str, int]:
        """Row of the code embedding by code."""
        return {code: FIRST_CODE + i for i, code in enumerate(self.codes)}

    @cached_property
    def is_code(self) -> pl.Expr:
        """Whether the `code` of an event is in the vocabulary."""
        return pl.col("code").is_in(pl.Series(self.codes, dtype=pl.String).implode())

    @cached_property
    def demographics(self) -> tuple[str, ...]:
        """The columns of the subject table whose static facts are among the codes."""
        known = {code.partition("//")[0].lower() for code in self.codes}
        return tuple(name for name in DEMOGRAPHICS if name in known)

    @cached_property
    def known(self) -> dict[str, pl.Enum]:
        """The codes, coded values and scales (a code, `UNIT` and a unit): a text's place among them is a cast away."""
        scales = [f"{s.code}{UNIT}{s.unit}" for s in self.scales]
        return {"codes": pl.Enum(self.codes), "coded_values": pl.Enum(self.coded_values), "scales": pl.Enum(scales)}

    @cached_property
    def summary_index(self) -> NDArray[np.int64]:
        """(n_codes,) the place of each code among `summary_codes`, -1 for none."""
        found = np.full(self.n_codes, -1)
        found[[self.code_index[code] for code in self.summary_codes]] = np.arange(len(self.summary_codes))
        return found

    def understood(self, codes: pl.Series) -> list[str]:
        """The vocabulary's codes, and those of `codes` that have a known ancestor."""
        if not self.parents:
            return list(self.codes)
        others = codes.unique().drop_nulls().sort().to_list()
        return [*self.codes, *(c for c in others if c not in self.code_index and self.known_ancestors(c))]

    def understands(self, codes: pl.Series) -> pl.Expr:
        """Whether the `code` of an event, one of `codes`, is in the vocabulary or has a known ancestor."""
        return pl.col("code").is_in(self.understood(codes)) if self.parents else self.is_code

    def unseen_codes(self, events: pl.DataFrame, *by: str) -> pl.DataFrame:
        """The codes of these events that are not in the vocabulary, the most frequent first.

        Columns: `code`; `events` and `subjects`, how many; `backs_off_to`, the nearest known ancestor, or null. Counted
        apart, in their order, for each value of the columns `by`, which come first.
        """
        counts = at_once(
            events.lazy()
            .filter(is_model_event() & ~self.is_code)
            .group_by(*by, "code")
            .agg(events=pl.len().cast(pl.Int64), subjects=pl.col("subject_id").n_unique().cast(pl.Int64))
            .sort(*by, "events", "code", descending=[*(False for _ in by), True, False])
        )
        nearest = [next(iter(self.known_ancestors(c)), None) for c in counts["code"].to_list()]
        return counts.hstack([pl.Series("backs_off_to", nearest, pl.String)])

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary as JSON-safe content."""
        return {
            "codes": list(self.codes),
            "coded_values": list(self.coded_values),
            "scales": [
                {"code": s.code, "unit": s.unit, "knots": list(s.knots), "centre": s.centre, "spread": s.spread}
                for s in self.scales
            ],
            "summary_codes": list(self.summary_codes),
            "parents": [list(pair) for pair in self.parents],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Vocabulary:
        """The vocabulary that `to_dict` wrote."""
        scales = tuple(from_mapping(ValueScale, {**s, "knots": tuple(s["knots"])}) for s in content["scales"])
        parents = tuple((str(code), str(parent)) for code, parent in content.get("parents", ()))
        return cls(
            tuple(content["codes"]), tuple(content["coded_values"]), scales, tuple(content["summary_codes"]), parents
        )


@cache
def is_model_event() -> pl.Expr:
    """Whether a model may learn from an event: birth is given as age, death is an outcome, and demographics are static
    facts of the subject table, read only where the configuration names them."""
    demographic = pl.any_horizontal(pl.col("code").str.starts_with(f"{name.upper()}//") for name in DEMOGRAPHICS)
    return ~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE]) & ~demographic


def model_events(events: pl.DataFrame) -> pl.DataFrame:
    """The events that a model may learn from."""
    return events.filter(is_model_event())


def static_facts(subjects: pl.DataFrame, columns: Sequence[str]) -> pl.LazyFrame:
    """One dateless fact, `subject_id` and `code`, for each known value of these columns of the subject table.

    >>> static_facts(pl.DataFrame({"subject_id": [1, 2], "sex": ["female", None]}), ["sex", "race"]).collect().rows()
    [(1, 'SEX//female')]
    """
    told = [pl.lit(f"{c.upper()}//") + pl.col(c).cast(pl.String) for c in columns if c in subjects.columns]
    if not told:
        return pl.LazyFrame(schema={"subject_id": pl.Int64, "code": pl.String})
    return subjects.lazy().select("subject_id", code=pl.concat_list(told)).explode("code").drop_nulls("code")


def is_static_fact(code: str) -> bool:
    """Whether a code is one that `static_facts` gives."""
    return code.partition("//")[0].lower() in DEMOGRAPHICS


def _frequent(events: pl.DataFrame, key: pl.Expr, min_subjects: int) -> list[str]:
    """Keys seen in enough subjects, most frequent first."""
    counts = (
        events.select("subject_id", key=key)
        .group_by("key")
        .agg(n=pl.col("subject_id").n_unique())
        .filter(pl.col("n") >= min_subjects)
        .sort("n", "key", descending=[True, False])
    )
    return counts["key"].to_list()


def _scale(values: np.ndarray[Any, Any], bins: int) -> tuple[tuple[float, ...], float, float]:
    """Distinct quantile knots, the median, and a spread that is never zero."""
    values = values.astype(np.float64)
    knots = tuple(float(v) for v in np.unique(np.quantile(values, np.linspace(0.01, 0.99, bins + 1))))
    low, centre, high = np.quantile(values, [0.25, 0.5, 0.75])
    spread = (high - low) / 1.349 or float(np.std(values)) or 1.0
    return knots, float(centre), float(spread)
