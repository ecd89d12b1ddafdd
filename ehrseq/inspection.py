"""What a folder or file of ours holds, as plain facts and as aligned text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ehrseq.errors import ArtifactError, UserError
from ehrseq.forecast.table import Forecast
from ehrseq.storage import MANIFEST, read_json
from ehrseq.task.definition import Task
from ehrseq.task.describe import describe
from ehrseq.timeline.meds import is_ours
from ehrseq.timeline.store import Timelines


def inspect(path: str | Path) -> dict[str, Any]:
    """Plain facts (JSON values) about a timelines, model, forecast or evaluation folder, or a task file."""
    path = Path(path)
    if path.is_file():
        return {"kind": "task", **_task(Task.from_toml(path))}
    kind = kind_of(path)
    if kind in _FACTS:
        return {"kind": kind, **_FACTS[kind](path)}
    raise UserError(
        "a timelines, model, forecast or evaluation folder, or a task file",
        (f"a folder of kind '{kind}'" if kind else "another folder") if path.is_dir() else "no such folder",
        "check the path",
    )


def kind_of(folder: Path) -> str | None:
    """The kind that a folder's manifest names; "timelines" also for other MEDS datasets; None for other folders."""
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        kind = manifest.get("kind") if isinstance(manifest, dict) else None
        return kind if isinstance(kind, str) else None
    if is_ours(folder) or any((folder / "data").glob("**/*.parquet")):
        return "timelines"
    return None


def _model(folder: Path) -> dict[str, Any]:
    # folders of other kinds are inspected without torch
    from ehrseq.estimator import load_model

    model = load_model(folder)
    fitted, task = model.fitted_, getattr(model, "task_", None)
    return {
        "model": next(iter((*fitted.branches, "age_sex"))) if task is not None else "pretrained",
        "horizons": [h.label for h in task.horizons] if task is not None else [],
        "codes": len(fitted.vocabulary.codes),
        "parameters": sum(p.numel() for n in fitted.networks[:1] for p in n.parameters()),
        "members": len(fitted.networks),
        "labs": [] if fitted.labs is None else [s.code for s in fitted.labs.scales],
        "profile": None if fitted.profile is None else f"of {fitted.profile.subjects:,} training subjects",
        "outcomes": fitted.events,
        "trained_on": dict(model.trained_on_["split"].value_counts().sort("split").iter_rows()),
        "tuning_loss": [min(losses) for losses in fitted.history],
    }


def _forecast(folder: Path) -> dict[str, Any]:
    forecast = Forecast.load(folder)
    times = forecast.risk["prediction_time"]
    drift = read_json(folder / "drift.json") if (folder / "drift.json").is_file() else {"warnings": []}
    return {
        "model": forecast.metadata.get("model"),
        "rows": forecast.risk.height,
        "subjects": forecast.risk["subject_id"].n_unique(),
        "first_prediction_time": str(times.min()) if len(times) else None,
        "last_prediction_time": str(times.max()) if len(times) else None,
        "seen_in_training": forecast.seen.height,
        "labs": forecast.labs["code"].unique().sort().to_list(),
        "mean_probability": _means(forecast.risk),
        "skipped": dict(forecast.skipped["reason"].value_counts().sort("reason").iter_rows()),
        "drift": [warning["detail"] for warning in drift["warnings"]],
    }


def _evaluation(folder: Path) -> dict[str, Any]:
    report = read_json(folder / "report.json")
    columns = ("model", "outcome", "landmark", "horizon", "n", "events", "observed_expected", "auc", "brier")
    try:
        rows = [{name: row[name] for name in columns} for row in report["table"]]
        return {"horizons": list(report["horizons"]), "main_horizon": report["main_horizon"],
                "bootstrap_replicates": report["n_bootstrap"], "facts": report["facts"], "measures": rows}  # fmt: skip
    except (KeyError, TypeError):
        raise ArtifactError("the numbers of a report", "other content", "evaluate again") from None


def _task(task: Task) -> dict[str, Any]:
    times = task.to_dict()["prediction_times"]
    return {
        "horizons": [h.label for h in task.horizons],
        # a table of prediction times names patients
        "prediction_times": {k: v for k, v in times.items() if k != "times" and v not in (None, [], ())},
        "labs": list(task.labs),
        "outcomes": {o.name: describe(o, task) for o in task.outcomes},
    }


_FACTS = {
    "timelines": lambda folder: Timelines.load(folder).summary(),
    "model": _model,
    "forecast": _forecast,
    "evaluation": _evaluation,
}


def _means(risk: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Mean probability by outcome and horizon; a horizon of years has a day more or less, by the leap years in it."""
    by_horizon = risk.with_columns(
        horizon=pl.col("horizon_days").rank("dense").over("subject_id", "prediction_time", "outcome")
    )
    means = (
        by_horizon.group_by("outcome", "horizon")
        .agg(pl.col("horizon_days").median(), pl.col("probability").mean())
        .sort("outcome", "horizon")
    )
    found: dict[str, dict[str, float]] = {}
    for outcome, _, days, probability in means.iter_rows():
        found.setdefault(outcome, {})[f"{days:g} days"] = round(probability, 4)
    return found


# -- as text


def as_text(facts: Mapping[str, Any]) -> str:
    """Facts for people: single ones first, then a table for each group of them.

    >>> print(as_text({"kind": "model", "codes": 1200, "labs": [], "outcomes": {"death": 31, "t2d": 1024}}))
    kind   model
    codes  1,200
    labs   none
    <BLANKLINE>
    outcomes
      death     31
      t2d    1,024
    """
    single = {name: value for name, value in facts.items() if not _is_table(value)}
    blocks = [aligned([[_words(name), cell(value)] for name, value in single.items()], left=2)]
    for name, value in facts.items():
        if _is_table(value):
            rows = aligned(_rows(value), left=0 if isinstance(value, list) else 1)
            blocks.append("\n".join([_words(name), *("  " + line for line in rows.splitlines())]))
    return "\n\n".join(block for block in blocks if block)


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells in columns; numbers to the right, but for the first `left` columns.

    >>> print(aligned([["a", "1"], ["long", "22"]]))
    a      1
    long  22
    """
    if not rows:
        return ""
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [i >= left and all(_is_number(row[i]) for row in rows[1:]) for i in range(len(width))]
    lines = (
        "  ".join(x.rjust(w) if r else x.ljust(w) for x, w, r in zip(row, width, right, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def cell(value: Any) -> str:
    """One value as text.

    >>> cell(1234), cell(0.51234567), cell(None), cell([]), cell(["1y", "3y"])
    ('1,234', '0.5123', '-', 'none', '1y, 3y')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(v) for v in value) or "none"
    return "none" if value == {} else str(value)


def _is_table(value: Any) -> bool:
    return (isinstance(value, Mapping) and bool(value)) or (
        isinstance(value, list) and bool(value) and (isinstance(value[0], Mapping) or len(str(value)) > 100)
    )


def _rows(value: Any) -> list[list[str]]:
    """The rows of a table; of one with a header, the header first."""
    if isinstance(value, list):
        if not isinstance(value[0], Mapping):
            return [[cell(v)] for v in value]
        head = list(value[0])
        return [[_words(name) for name in head], *([cell(row[name]) for name in head] for row in value)]
    nested = {k: v for k, v in value.items() if isinstance(v, Mapping)}
    if nested and len(nested) == len(value):
        columns = list(dict.fromkeys(name for row in nested.values() for name in row))
        if len(nested) > 1 and all(set(row) == set(columns) for row in nested.values()):
            return [["", *columns], *([k, *(cell(row[c]) for c in columns)] for k, row in nested.items())]
    out: list[list[str]] = []
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            out += [[f"{name} {k}".strip(), cell(v)] for k, v in inner.items()]
        else:
            out.append([str(name), cell(inner)])
    return out


def _words(name: str) -> str:
    return name.replace("_", " ")


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(",", "").replace(".", "").replace("-", "").replace("e", "").isdigit()
