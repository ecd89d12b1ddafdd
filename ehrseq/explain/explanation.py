"""What `ProgressionModel.explain` answers: tables of contributions, and a few words on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ehrseq.errors import ForecastError
from ehrseq.explain.names import display_name
from ehrseq.frames import to_pandas

MEANING = (
    "model sensitivity: how far this model's forecast moves when a record is taken out of the history, "
    "not the effect of a disease or a treatment"
)
SINGLE_EVENTS = (  # docs/evidence.md, "Planted causes"
    "a single record counts for little where others tell the same: of simulated people, planted causes were found by "
    "code (.96 and 1.00 of the first five), and below the gate of .8 by single record (.53 and .65)"
)
LEAST = 0.001  # a contribution that is worth a reason, on the risk scale: a tenth of a percentage point
REASON_KEY = ("subject_id", "patient", "prediction_time", "outcome", "horizon")
SUMMARY_KEY = ("outcome", "horizon", "kind", "code", "window")


@dataclass(frozen=True)
class Explanation:
    """Contributions to forecasts.

    `contributions` has a row for each forecast (subject, prediction time, outcome, horizon) and each thing taken out of
    its history: an `event`, all events of a `code` (or a demographic fact), all events of a `window` of time. The
    `contribution` is the issued `probability` minus that of the same history `without` it, by the model's own path: an
    absolute risk, positive where it raises the forecast. Contributions of several things do not add up: what two
    records tell alike, neither is missed for alone. `scope` has a row a prediction time: how many `events` were
    visible, and how many were taken out `one_by_one` (the most recent). `branch` says who answered; `names` are for
    people to read; `faithfulness` holds what was measured of this model's explanations, None where nothing was.
    """

    contributions: pl.DataFrame
    scope: pl.DataFrame
    branch: str
    names: Mapping[str, str] = field(default_factory=dict, repr=False)
    faithfulness: Mapping[str, Any] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Explanation({self.scope.height:,} prediction times, {self.contributions.height:,} contributions)"

    def to_pandas(self) -> Any:
        """The contributions as a pandas frame."""
        return to_pandas(self.contributions)

    @property
    def notes(self) -> list[str]:
        """What a reader has to know: the meaning, what was left out, and whether explanations can be relied on."""
        cut = self.scope.filter(pl.col("one_by_one").is_between(1, pl.col("events") - 1))
        left_out = int((cut["events"] - cut["one_by_one"]).sum())
        single = (
            f"{left_out:,} older events of {cut.height:,} histories were not taken out one by one; "
            "their codes and windows were"
        )
        no_reader = f"the branch '{self.branch}' reads no events" if self.branch in ("age_sex", "null") else ""
        told = {single: bool(left_out), no_reader: bool(no_reader), SINGLE_EVENTS: self._by_event() and not no_reader}
        return [MEANING, *(note for note, said in told.items() if said), trust(self.faithfulness)]

    def _by_event(self) -> bool:
        return bool((self.contributions["kind"] == "event").any())

    def name(self, code: str) -> str:
        """A code's name for people."""
        return display_name(code, dict(self.names))

    def summary(self, kind: str = "code") -> pl.DataFrame:
        """Over all forecasts, by code or by window: `outcome, horizon, kind, code, window, name, n, of, mean_absolute,
        mean_signed, raises`.

        `n` of `of` forecasts have it in their history, the means are over these, `raises` is the share of them whose
        forecast it raises. The largest mean absolute contribution comes first.
        """
        if kind not in ("code", "window"):
            raise ForecastError("a summary by code or window", f"'{kind}'", "choose one of the two")
        rows = self.contributions.filter(kind=kind)
        of = self.contributions.group_by("outcome", "horizon").agg(
            of=pl.struct("subject_id", "prediction_time").n_unique()
        )
        moved = pl.col("contribution")
        return (
            rows.group_by(SUMMARY_KEY)
            .agg(
                n=pl.len(), mean_absolute=moved.abs().mean(), mean_signed=moved.mean(),
                raises=(moved > 0).mean(),
            )
            .join(of, on=["outcome", "horizon"])
            .with_columns(name=pl.coalesce("window", self._name()))
            .select(*SUMMARY_KEY, "name", "n", "of", "mean_absolute", "mean_signed", "raises")
            .sort(
                "outcome", "horizon", "mean_absolute", "code", "window", descending=[False, False, True, False, False]
            )
        )  # fmt: skip

    def reasons(self, n: int = 3, *, least: float = LEAST) -> pl.DataFrame:
        """The `n` codes that move each forecast most, in words: `rank`, `code`, `name`, `contribution` and `text`.

        Codes and not single events: of several events that tell the same, none is missed for alone. What moves a
        forecast by less than `least` is no reason; a forecast without a reason has no row.
        """
        rows = self.contributions.filter(kind="code").filter(pl.col("contribution").abs() >= least)
        ranked = rows.with_columns(
            rank=pl.col("contribution").abs().rank("ordinal", descending=True).over(REASON_KEY).cast(pl.Int64)
        ).filter(pl.col("rank") <= n)
        texts = [reason_text(row, self.names) for row in ranked.iter_rows(named=True)]
        return (
            ranked.with_columns(name=self._name(), text=pl.Series(texts, dtype=pl.String))
            .select(*REASON_KEY, "rank", "code", "name", "contribution", "text")
            .sort("subject_id", "prediction_time", "outcome", "horizon", "rank")
        )

    def _name(self) -> pl.Expr:
        return pl.col("code").map_elements(self.name, return_dtype=pl.String)


def reason_text(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """One contribution in words.

    >>> row = {"code": "LOINC//4548-4", "value": 7.25, "unit": "%", "time": None, "known_time": None, "events": 3,
    ...        "contribution": 0.0312, "text_value": None}
    >>> reason_text(row, {"LOINC//4548-4": "haemoglobin A1c"})
    'haemoglobin A1c, last 7.25 % (3 records): raises the forecast by 3.1 percentage points'
    """
    name = display_name(row["code"], dict(names))
    coded = display_name(row["text_value"], dict(names)) if row["text_value"] else None
    unit = "" if row["unit"] in (None, "1") else row["unit"]
    value = f"{row['value']:.4g} {unit}".strip() if row["value"] is not None else coded
    several = row["events"] > 1
    when = f" on {row['time']:%Y-%m-%d}" if row["time"] is not None else ""
    last = f", {'last ' if several else ''}{value}" if value else ", last" if several and when else ""
    count = f" ({row['events']} records)" if several else ""
    points = 100 * row["contribution"]
    way = "raises" if points > 0 else "lowers"
    return f"{name}{last}{when}{count}: {way} the forecast by {abs(points):.1f} percentage points"


def trust(faithfulness: Mapping[str, Any] | None) -> str:
    """What was measured of a model's explanations, in a sentence.

    >>> trust(None)
    'faithfulness of the explanations of this model has not been measured'
    """
    if faithfulness is None:
        return "faithfulness of the explanations of this model has not been measured"
    failed = [name for name, verdict in faithfulness["gates"].items() if verdict != "passed"]
    if failed:
        return f"below the faithfulness gate ({', '.join(failed)}): do not rely on these explanations"
    return f"the faithfulness gate was passed ({', '.join(faithfulness['gates'])})"
