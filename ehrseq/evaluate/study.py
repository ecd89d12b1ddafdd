"""A whole evaluation: forecasts beside timelines and a task, and everything that a report says about the study."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from ehrseq import __version__
from ehrseq.evaluate.bootstrap import FEWEST_SUBJECTS
from ehrseq.evaluate.censoring import ConditionalCensoring
from ehrseq.evaluate.covariates import covariates
from ehrseq.evaluate.evaluation import Evaluation, evaluate_forecasts
from ehrseq.evaluate.groups import default_groups, read_groups
from ehrseq.evaluate.lab_tables import judge_lab_tables
from ehrseq.survival import kaplan_meier_censoring
from ehrseq.task.definition import Task
from ehrseq.task.describe import found_by
from ehrseq.task.outcome import unmatched_of_task
from ehrseq.timeline.store import Timelines

KEY = ("subject_id", "prediction_time")
# Most rows shown of the tables of codes and units.
MOST = 30


def evaluate_study(
    risks: Mapping[str, Any],
    labels: pl.DataFrame,
    timelines: Timelines,
    task: Task,
    *,
    n_bootstrap: int = 200,
    seed: int = 0,
    by: Any = None,
    labs: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Judge risk tables with conditional censoring weights, by group, and describe the study for a report.

    `labels` are those of `ehrseq.task.label.label` with a column `landmark`, for the prediction times that are judged;
    `timelines` and `task` those they were made from. `by` is a table of further groups (see `read_groups`), `labs` maps
    a model to its lab forecasts, and `provenance` holds plain facts of whoever made the forecasts (JSON values).
    """
    at_risk = labels.filter("at_risk")
    known = covariates(timelines, at_risk)
    groups = default_groups(timelines, at_risk)
    if by is not None:
        groups = groups.join(read_groups(by, timelines), on="subject_id", how="left", maintain_order="left")
    horizons = {h.label: h.days for h in task.horizons}
    found = evaluate_forecasts(
        risks, labels, horizons, n_bootstrap=n_bootstrap, seed=seed, groups=groups,
        censoring=ConditionalCensoring(known, seed=seed),
    )  # fmt: skip
    study = {
        "outcomes": outcome_definitions(task),
        "prediction_times": task.prediction_times.rule,
        "landmarks": [h.label for h in task.prediction_times.after_start],
        "cohort": cohort_flow(labels, timelines),
        "follow_up": follow_up(at_risk, found, groups),
        "missing_values": missing_values(at_risk, known, groups),
        "records": records(timelines, task),
        "provenance": {**software(), **_of_the_task(task), **(provenance or {})},
    }
    if labs:
        scores, gaps = judge_lab_tables(labs, timelines, horizons, n_bootstrap=n_bootstrap, seed=seed)
        study |= {"labs": scores.to_dicts(), "lab_differences": gaps.to_dicts()}
    return replace(found, study=study)


def outcome_definitions(task: Task) -> list[dict[str, Any]]:
    """What counts as each outcome, as the task says it: name, how it is found, competitors, and whether it is incident.

    >>> task = Task.from_dict({"horizons": ["1y"], "outcomes": {"mi": {"codes": ["SNOMED//22298006"]}},
    ...                        "prediction_times": {"rule": "every_encounter"}})
    >>> outcome_definitions(task)[0]["found_by"]
    'SNOMED//22298006'
    """
    return [
        {
            "outcome": outcome.name,
            "found_by": found_by(outcome, task),
            "competing": list(outcome.competing),
            "incident": outcome.incident,
            "event_time": outcome.event_time,
        }
        for outcome in task.outcomes
    ]


def cohort_flow(labels: pl.DataFrame, timelines: Timelines) -> list[dict[str, Any]]:
    """Who was considered for each outcome and landmark, who was left out and why, and who is at risk.

    Rows have `outcome`, `landmark`, `step`, `prediction_times`, `subjects`; the first is everyone in the timelines.
    """
    counts = (pl.len().alias("prediction_times"), pl.col("subject_id").n_unique().alias("subjects"))
    reason = pl.col("reason") if "reason" in labels.columns else pl.lit(None, pl.String)
    keys = ["outcome", "landmark"]
    considered = labels.group_by(keys, maintain_order=True).agg(*counts).with_columns(step=pl.lit("considered"))
    fate = pl.when("at_risk").then(pl.lit("at_risk")).otherwise(reason.fill_null("not_at_risk")).alias("step")
    fates = labels.group_by(*keys, fate, maintain_order=True).agg(*counts)
    order = {"considered": 0, "at_risk": 2}
    table = pl.concat([considered, fates], how="diagonal").with_columns(
        _order=pl.col("step").replace_strict(order, default=1, return_dtype=pl.Int64)
    )
    place = considered.select(keys).with_row_index("_place")
    table = table.join(place, on=keys, nulls_equal=True, how="left").sort("_place", "_order", "step")
    everyone = {"outcome": None, "landmark": None, "step": "in_the_timelines", "prediction_times": None,
                "subjects": len(timelines)}  # fmt: skip
    return [everyone, *table.select("outcome", "landmark", "step", "prediction_times", "subjects").to_dicts()]


def follow_up(at_risk: pl.DataFrame, found: Evaluation, groups: pl.DataFrame) -> list[dict[str, Any]]:
    """Length of follow-up and censoring by outcome and landmark, for everyone and in each group of 50 subjects or more.

    `median_days` is the reverse Kaplan-Meier median of follow-up (null where fewer than half are censored by the end),
    `censored_by_main_horizon` the share censored before the main horizon.
    """
    if not at_risk.height or found.main_horizon is None:
        return []
    horizon = found.horizons[found.main_horizon]
    columns = [c for c in groups.columns if c not in KEY]
    joined = at_risk.join(groups, on=list(KEY), how="left", maintain_order="left")
    rows = []
    for (outcome, landmark), part in joined.group_by("outcome", "landmark", maintain_order=True):
        parts: list[tuple[str | None, str | None, pl.DataFrame]] = [(None, None, part)]
        for column in columns:
            filled = part.with_columns(pl.col(column).fill_null("unknown"))
            parts += [
                (column, str(level[0]), p) for level, p in filled.sort(column).group_by(column, maintain_order=True)
            ]
        for attribute, group, rows_of in parts:
            subjects = rows_of["subject_id"].n_unique()
            row = {"outcome": outcome, "landmark": landmark, "attribute": attribute, "group": group}
            if attribute is not None and subjects < FEWEST_SUBJECTS:
                rows.append(row | dict.fromkeys(("subjects", "median_days", "censored_by_main_horizon")))
                continue
            days, cause = rows_of["days"].to_numpy(), rows_of["cause"].to_numpy()
            share = float(((cause == 0) & (days < horizon)).mean())
            rows.append(row | {"subjects": subjects, "median_days": _median_follow_up(days, cause),
                               "censored_by_main_horizon": share})  # fmt: skip
    return rows


def missing_values(at_risk: pl.DataFrame, known: pl.DataFrame, groups: pl.DataFrame) -> list[dict[str, Any]]:
    """For each code with values: the share of those at risk without any by the prediction time, by group too.

    Rows have `code`, `attribute`, `group`, `prediction_times`, `without_value`; groups of under 50 subjects are left
    out.
    """
    codes = [c.removesuffix("//years") for c in known.columns if c.endswith("//years")]
    valued = [c for c in codes if c in known.columns]
    table = at_risk.select(KEY).unique(maintain_order=True).join(known, on=list(KEY), how="left", maintain_order="left")
    table = table.join(groups, on=list(KEY), how="left", maintain_order="left")
    rows: list[dict[str, Any]] = []
    for attribute in [None, *(c for c in groups.columns if c not in KEY)]:
        level = pl.lit(None, pl.String) if attribute is None else pl.col(attribute).fill_null("unknown")
        shares = (
            table.with_columns(_level=level)
            .group_by("_level")
            .agg(
                pl.len(),
                pl.col("subject_id").n_unique().alias("_subjects"),
                *(pl.col(c).is_null().mean() for c in valued),
            )
            .filter((pl.col("_subjects") >= FEWEST_SUBJECTS) | pl.lit(attribute is None))
            .sort("_level")
        )
        for row in shares.iter_rows(named=True):
            rows += [
                {"code": code, "attribute": attribute, "group": row["_level"], "prediction_times": row["len"],
                 "without_value": row[code]}
                for code in valued
            ]  # fmt: skip
    return sorted(rows, key=lambda row: valued.index(row["code"]))


def records(timelines: Timelines, task: Task) -> dict[str, Any]:
    """What the data are: sizes, code systems, how follow-up ends, fate of input records, codes and units unmapped."""
    summary = timelines.summary()
    chosen = ("subjects", "events", "events_per_code_system", "follow_up_rules", "deaths", "records")
    plain = timelines.events.group_by("code").agg(count=pl.len(), _subjects=pl.col("subject_id").n_unique())
    unknown = plain.filter(pl.col("code").str.contains(r"^\w+://") | ~pl.col("code").str.contains("//|^MEDS_"))
    # a rare code might point at a person
    shown = unknown.filter(pl.col("_subjects") >= FEWEST_SUBJECTS).drop("_subjects")
    shown = shown.sort("count", "code", descending=[True, False])
    facts: dict[str, Any] = {name: summary[name] for name in chosen if name in summary}
    facts |= {
        "task_codes_without_event": list(unmatched_of_task(timelines, task)),
        "codes_of_unknown_systems": {"codes": unknown.height, "events": int(unknown["count"].sum()),
                                     "most_frequent": shown.head(MOST).to_dicts()},
        "units": None,
        "dates": {
            "follow_up_start": _day(timelines.subjects["follow_up_start"].min()),
            "follow_up_end": _day(timelines.subjects["follow_up_end"].max()),
        },
    }  # fmt: skip
    if timelines.units is not None:
        bad = timelines.units.filter(pl.col("factor").is_null()).sort("events", descending=True)
        named = bad.filter(pl.col("events") >= FEWEST_SUBJECTS).head(MOST)  # a rare text, too
        facts["units"] = {"kinds": timelines.units.height, "not_converted": named.to_dicts(),
                          "events_not_converted": int(bad["events"].sum())}  # fmt: skip
    return facts


def software() -> dict[str, Any]:
    """The versions that computed the evaluation."""
    return {
        "ehrseq": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "polars": pl.__version__,
    }


def _of_the_task(task: Task) -> dict[str, Any]:
    # a table of prediction times names patients: it stays out of the hash, too
    content = {k: v for k, v in task.to_dict().items() if k != "prediction_times"}
    text = json.dumps(content, sort_keys=True)
    return {"task_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _day(moment: Any) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%d}"


def _median_follow_up(days: Any, cause: Any) -> float | None:
    at = np.unique(days)
    left = kaplan_meier_censoring(days, cause, at=at, limit="right")
    return float(at[left <= 0.5][0]) if (left <= 0.5).any() else None
