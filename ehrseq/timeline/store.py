"""The timelines of many subjects, in memory and as a MEDS dataset on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from ehrseq.errors import TimelineError
from ehrseq.timeline import meds
from ehrseq.timeline.follow_up import deaths_by_day, is_contact, within_follow_up
from ehrseq.timeline.schema import (
    CODE_SCHEMA,
    EVENT_SCHEMA,
    SPLITS,
    conform,
    normalise_events,
    normalise_splits,
    sort_events,
)
from ehrseq.timeline.subjects import derive_subjects, normalise_subjects


@dataclass(frozen=True, eq=False)
class Timelines:
    """Events and follow-up of many subjects.

    `events` and `subjects` have the columns of `EVENT_SCHEMA` and `SUBJECT_SCHEMA`; `splits` (optional) has
    `subject_id` and `split` (`train`, `tuning`, `held_out`); `ledger` and `quarantine` say what became of
    every input record, `sources` which file each number stands for, `units` how numbers were converted. `metadata`
    holds plain JSON values (`dataset_name`, ...) and, under `codes`, an optional frame of `code`, `description` and
    `parent_codes`.
    """

    events: pl.DataFrame
    subjects: pl.DataFrame
    splits: pl.DataFrame | None = None
    ledger: pl.DataFrame | None = None
    quarantine: pl.DataFrame | None = None
    sources: pl.DataFrame | None = None
    units: pl.DataFrame | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of subjects."""
        return self.subjects.height

    def __repr__(self) -> str:
        return f"Timelines({self.subjects.height:,} subjects, {self.events.height:,} events)"

    @classmethod
    def from_events(cls, events: Any, subjects: Any = None, data_cut: str | date | datetime | None = None) -> Timelines:
        """Timelines from an event frame (polars, pandas or Arrow) with the MEDS columns.

        `subjects` (optional) goes before what the events say of birth, death, sex and follow-up; see
        `derive_subjects`. `data_cut` is the moment up to which the data are complete. Raises TimelineError.

        >>> Timelines.from_events({"subject_id": [1, 1], "time": [None, date(2020, 1, 1)],
        ...                        "code": ["SEX//female", "LOINC//718-7"]})
        Timelines(1 subjects, 2 events)
        """
        frame = normalise_events(events)
        return cls(events=frame, subjects=derive_subjects(frame, subjects, data_cut))

    @classmethod
    def load(cls, folder: str | Path) -> Timelines:
        """Timelines from a folder that `save` wrote, or from any MEDS dataset folder.

        Without our own tables the subjects are derived from the events, with follow-up until the last
        contact. Raises TimelineError where the folder is neither, or is damaged.
        """
        folder = Path(folder)
        ours = meds.is_ours(folder)
        if not ours and not any((folder / "data").rglob("*.parquet")):
            raise TimelineError(
                "a timelines folder or a MEDS dataset (data/*.parquet)",
                "a folder without" if folder.is_dir() else "no such folder",
                "check the path, or make one from FHIR with `ehrseq ingest`",
            )
        events, tables, metadata = meds.read_ours(folder) if ours else meds.read_foreign(folder)
        codes, splits = tables.get(meds.CODES), tables.get(meds.SPLITS_FILE)
        return cls(
            events=events,
            subjects=tables[meds.SUBJECTS] if ours else derive_subjects(events),
            splits=None if splits is None else normalise_splits(splits),
            metadata=metadata if codes is None else {**metadata, "codes": codes},
            **{name: tables.get(f"{name}.parquet") for name in meds.RECORD_TABLES},
        )

    def save(self, folder: str | Path) -> None:
        """Write a MEDS dataset folder, whole or not at all; equal content gives equal bytes.

        The order of the rows in memory does not matter. An existing dataset folder is replaced.
        """
        tables = {meds.SUBJECTS: normalise_subjects(self.subjects), meds.CODES: self.codes()}
        if self.splits is not None:
            tables[meds.SPLITS_FILE] = normalise_splits(self.splits)
        for name in meds.RECORD_TABLES:
            table = getattr(self, name)
            if table is not None:
                tables[f"{name}.parquet"] = table.sort(table.columns)
        facts = {key: value for key, value in self.metadata.items() if key != "codes"}
        events = conform(self.events, EVENT_SCHEMA, "event")
        meds.write_dataset(folder, sort_events(events), tables, facts)

    def codes(self) -> pl.DataFrame:
        """`code`, `description` and `parent_codes` of every code among the events, sorted by code."""
        found = self.events.select(pl.col("code").unique())
        known = conform(self.metadata.get("codes", pl.DataFrame()), CODE_SCHEMA, "code")
        return (
            pl.concat([known, found.join(known, on="code", how="anti").pipe(conform, CODE_SCHEMA, "code")])
            .unique("code", keep="first", maintain_order=True)
            .sort("code")
        )

    def select(self, subject_ids: pl.Series | Sequence[int]) -> Timelines:
        """The same timelines for some subjects only; what became of the input records stays as it was."""
        keep = pl.col("subject_id").is_in(pl.Series(subject_ids, dtype=pl.Int64).implode())
        return replace(
            self,
            events=self.events.filter(keep),
            subjects=self.subjects.filter(keep),
            splits=None if self.splits is None else self.splits.filter(keep),
        )

    def with_splits(self, splits: Any) -> Timelines:
        """The same timelines with another split: a frame of `subject_id` and `split`, one row a subject."""
        frame = normalise_splits(splits)
        if not frame["split"].is_in(SPLITS).all():
            raise TimelineError(f"splits named {', '.join(SPLITS)}", "other names", "rename them")
        return replace(self, splits=frame)

    def subject_ids(self, patients: Sequence[str]) -> pl.Series:
        """The subject ids of patients named as in the data: `x`, or a reference that ends in `Patient/x`.

        One id for each name, in the same order. A name that fits no subject, or several, is a TimelineError.

        >>> timelines = Timelines.from_events({"subject_id": [7], "time": [None], "code": ["SEX//female"]})
        >>> timelines.subject_ids(["Patient/7"]).to_list()
        [7]
        """
        names = pl.DataFrame({"patient": [p.rsplit("Patient/", 1)[-1] for p in patients]}, {"patient": pl.String})
        matches = self.subjects.group_by("patient").agg(pl.col("subject_id").first(), subjects=pl.len())
        found = names.join(matches, on="patient", how="left", maintain_order="left")
        for problem, count in (
            ("names that fit no subject", found["subject_id"].null_count()),
            ("names that fit several subjects", (found["subjects"] > 1).sum()),
        ):
            if count:
                raise TimelineError(
                    "names of patients as in the data",
                    f"{count} {problem}",
                    "look them up in the subject table",
                )
        return found["subject_id"]

    def summary(self) -> dict[str, Any]:
        """Plain numbers (JSON values) about the timelines: sizes, times, code systems, follow-up, records."""
        first, last = contact_times(self.events)
        codes = dict(self.events["code"].value_counts().iter_rows())
        inside = deaths_inside(self.subjects, deaths_by_day(self.events))
        return summarise(self.subjects, codes, first, last, inside, self.splits, self.ledger)


def contact_times(events: pl.DataFrame) -> tuple[str | None, str | None]:
    """The first and the last moment of contact, as text."""
    times = events.lazy().filter(is_contact()).select(first=pl.col("time").min(), last=pl.col("time").max())
    first, last = times.collect().row(0)
    return as_text(first), as_text(last)


def as_text(moment: datetime | None) -> str | None:
    """A moment as ISO 8601."""
    return None if moment is None else moment.isoformat()


def deaths_inside(subjects: pl.DataFrame, by_day: pl.DataFrame) -> int:
    """How many subjects died within their follow-up; `by_day` as `deaths_by_day` has it."""
    end = pl.col("follow_up_end")
    known = subjects.join(by_day.select("subject_id", "by_day"), on="subject_id", how="left")
    return known.filter(within_follow_up(pl.col("death_time"), end, pl.col("by_day")) <= end).height


def summarise(
    subjects: pl.DataFrame,
    codes: dict[str, int],
    first: str | None,
    last: str | None,
    inside: int,
    splits: pl.DataFrame | None,
    ledger: pl.DataFrame | None,
) -> dict[str, Any]:
    """Plain numbers about timelines: from their subjects, the events of each code, and what else is known of them."""
    counts = pl.DataFrame({"code": list(codes), "count": list(codes.values())}, {"code": pl.String, "count": pl.Int64})
    system = pl.col("code").str.extract(r"^((?:\w+://)?.*?)(?://|$)")
    systems = counts.group_by(system).agg(pl.col("count").sum()).sort("count", "code", descending=[True, False])
    return {
        "subjects": subjects.height,
        "events": sum(codes.values()),
        "first_time": first,
        "last_time": last,
        "events_per_code_system": dict(systems.iter_rows()),
        "follow_up_rules": _counts(subjects["follow_up_rule"].fill_null("none")),
        "deaths": subjects["death_time"].count(),
        "deaths_inside_follow_up": inside,
        "splits": {} if splits is None else _counts(splits["split"]),
        "records": {} if ledger is None else _records(ledger),
    }


def as_timelines(source: Timelines | str | Path | Any) -> Timelines:
    """Timelines from timelines, a dataset folder or an event frame.

    >>> as_timelines({"subject_id": [1], "time": [None], "code": ["SEX//male"]})
    Timelines(1 subjects, 1 events)
    """
    if isinstance(source, Timelines):
        return source
    return Timelines.load(source) if isinstance(source, str | Path) else Timelines.from_events(source)


def _counts(series: pl.Series) -> dict[str, int]:
    return dict(series.rename("value").value_counts().sort("value").iter_rows())


def _records(ledger: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Records per fate and reason; records that became events have the reason ``""``."""
    totals = ledger.group_by("fate", pl.col("reason").fill_null("")).agg(pl.col("count").sum()).sort("fate", "reason")
    records: dict[str, dict[str, int]] = {}
    for fate, reason, count in totals.iter_rows():
        records.setdefault(fate, {})[reason] = count
    return records
