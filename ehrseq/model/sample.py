"""The subjects of a split as training material: encoded timelines, follow-up, and what happened after each landmark."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.errors import DataWarning, TimelineError
from ehrseq.features.tabular import History
from ehrseq.model.heads import HazardName
from ehrseq.model.landmarks import Targets, draw_landmarks, next_known, targets
from ehrseq.task.definition import Task
from ehrseq.task.label import OLDEST
from ehrseq.task.outcome import deaths
from ehrseq.timeline.follow_up import within_follow_up
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, EncodedTimelines, encode
from ehrseq.tokens.vocabulary import Vocabulary, is_static_fact

Index = NDArray[np.int64]
LONG = 40.0  # years that follow-up may last without a question
UNSEEN = 0.01  # of all follow-up may lie where nothing is recorded any more
FOREVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Labeller:
    """What is to be learned: the hazards of the task's outcomes, and the next occurrence of auxiliary codes.

    `auxiliary` are indices of the vocabulary's codes. Without a task there are no hazards of outcomes.
    """

    occurrences: pl.DataFrame | None
    subjects: pl.DataFrame
    task: Task | None
    hazards: list[HazardName]
    auxiliary: Index

    def after(self, subject_id: Index, time: Index, weight: NDArray[np.float64]) -> Targets:
        """What happened to the task's outcomes after each query; no hazards without a task."""
        if self.task is None or self.occurrences is None:
            return Targets(np.zeros((len(time), 0), np.float32), np.zeros((len(time), 0), bool), weight)
        return targets(
            subject_id, time, weight, occurrences=self.occurrences, subjects=self.subjects, task=self.task,
            hazards=self.hazards,
        )  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """Q prediction times (row of the encoded timelines, microseconds) and what happened after them."""

    row: Index
    time: Index
    target: Targets


@dataclass(frozen=True)
class Part:
    """The subjects of one split that can teach: birth known, some follow-up.

    `start`, `end` of follow-up and `death` (FOREVER for none) in microseconds; a death of the last day is not after it.
    """

    encoded: EncodedTimelines
    subjects: pl.DataFrame
    start: Index
    end: Index
    death: Index

    @classmethod
    def prepare(cls, timelines: Timelines, vocabulary: Vocabulary, name: str) -> Part:
        """The usable subjects of the split `name`; TimelineError where there are none."""
        # nobody is asked about at an impossible age: landmarks there would teach what is never wanted
        birth, since, until = pl.col("birth_time"), pl.col("follow_up_start"), pl.col("follow_up_end")
        oldest = birth + pl.duration(days=int(OLDEST * 365.25))
        usable = (
            timelines.subjects.filter(birth.is_not_null())
            .with_columns(
                follow_up_end=pl.when(until > oldest).then(oldest).otherwise(until),
                follow_up_start=pl.when(since < birth).then(birth).otherwise(since),
            )
            .filter(until > since)
            .sort("subject_id")
        )
        if not usable.height:
            raise TimelineError(
                f"subjects with a birth date and follow-up in the split '{name}'", "none", "check `ehrseq cohort`"
            )
        if "sex" not in usable.columns:
            usable = usable.with_columns(sex=pl.lit(None, pl.String))
        start, end = (usable[c].dt.epoch("us").to_numpy() for c in ("follow_up_start", "follow_up_end"))
        died = usable.join(deaths(timelines), on="subject_id", how="left", maintain_order="left")
        time = within_follow_up(pl.col("time"), pl.col("follow_up_end"), pl.col("by_day"))
        death = died.select(time.dt.epoch("us").fill_null(FOREVER)).to_series().to_numpy()
        years = (end - start) / (MICROSECONDS_PER_DAY * 365.25)
        _check_lengths(years, name)
        return cls(encode(timelines.events, usable, vocabulary), usable, start, end, death)

    @property
    def died(self) -> NDArray[np.bool_]:
        """Who died while followed."""
        return self.death <= self.end

    @property
    def lived_until(self) -> Index:
        """Until when a subject can have events: the end of follow-up or death."""
        return np.minimum(self.end, self.death)

    @property
    def years(self) -> float:
        """All follow-up together."""
        # microseconds of 292,000 years are more than an int64 holds: days and the rest are added up apart
        days, rest = np.divmod(self.end - self.start, MICROSECONDS_PER_DAY)
        return float(int(days.sum()) * MICROSECONDS_PER_DAY + int(rest.sum())) / (MICROSECONDS_PER_DAY * 365.25)

    def draw(
        self, rng: np.random.Generator, per_subject: int, labeller: Labeller, *, auxiliary: bool = False
    ) -> Sample:
        """Landmarks uniform over each subject's follow-up with their targets, auxiliary ones last."""
        row, time, weight = draw_landmarks(self.start, self.end, per_subject, rng)
        found = labeller.after(self.encoded.subject_id[row], time, weight)
        if auxiliary and len(labeller.auxiliary):
            more = next_known(self.encoded, labeller.auxiliary, row, time, self.lived_until[row])
            found = Targets(
                np.concatenate([found.days, more.days], axis=1),
                np.concatenate([found.event, more.event], axis=1),
                weight,
            )
        return Sample(row, time, found)


def _check_lengths(years: NDArray[np.float64], name: str) -> None:
    """Warn of follow-up that is so long that a wrong date is likelier: it counts in training by its length."""
    limit = max(LONG, 5 * float(np.quantile(years, 0.95)))
    if (too_long := years > limit).any():
        share = years[too_long].sum() / years.sum()
        warnings.warn(
            f"expected follow-up of people's lifetimes, found {too_long.sum()} of {len(years):,} subjects of the split "
            f"'{name}' followed for more than {limit:.0f} years, five times as long as most, with {share:.0%} of all "
            "follow-up: if their dates are wrong, forecasts are too low; check them, or give the data cut",
            DataWarning,
            stacklevel=2,
        )


def check_ends(timelines: Timelines) -> None:
    """Warn of observation periods that go on where nothing is recorded of anybody: nobody can be seen to fall ill."""
    last = timelines.events["known_time"].max()
    if last is None or "follow_up_rule" not in timelines.subjects.columns:
        return
    start, end = pl.col("follow_up_start"), pl.col("follow_up_end")
    followed = timelines.subjects.filter(end > start)
    by_period = pl.col("follow_up_rule") == "observation_period"
    beyond = followed.filter(by_period & (end - last > pl.duration(days=365)))
    unseen = beyond.select((end - pl.max_horizontal(start, pl.lit(last))).dt.total_days().sum()).item()
    share = unseen / max(1, followed.select((end - start).dt.total_days().sum()).item())
    if share > UNSEEN:
        warnings.warn(
            f"expected observation periods that end with the data, found {beyond.height:,} of {followed.height:,} "
            f"subjects observed for more than a year after the last record of all, with {share:.0%} of all follow-up: "
            "forecasts are too low if an insurance paid in advance, or an open end, is what says so; give the data cut",
            DataWarning,
            stacklevel=2,
        )


def history_of(encoded: EncodedTimelines, vocabulary: Vocabulary) -> History:
    """What the tabular features are made of."""
    codes = vocabulary.summary_codes
    measured = {s.code for s in vocabulary.scales}
    static = np.array([is_static_fact(c) for c in codes], dtype=bool)
    valued = np.array([c in measured for c in codes], dtype=bool)
    return History(
        encoded.offset,
        encoded.known_time,
        encoded.summary_code,
        encoded.value,
        encoded.birth,
        encoded.enrolled,
        static,
        valued,
    )
