"""Facts of a report that several documents share; None where the evaluation does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]


def judged_model(report: Report) -> str | None:
    """The model that the report is about: the first."""
    return report["models"][0] if report["models"] else None


def main_rows(report: Report) -> list[Mapping[str, Any]]:
    """The judged model's rows at the main horizon."""
    first = judged_model(report)
    return [r for r in report["table"] if r["model"] == first and r["horizon"] == report["main_horizon"]]


def performance(report: Report) -> str | None:
    """AUC, calibration and Brier score at the main horizon, in one text."""
    parts = []
    for row in main_rows(report):
        place = " ".join(p for p in (row["outcome"], row["landmark"], row["horizon"]) if p)
        numbers = (
            f"{label} {row[name]:.3f}{_spread(row, name)}"
            for name, label in (("auc", "AUC"), ("observed_expected", "O/E"), ("slope", "slope"), ("brier", "Brier"))
            if row[name] is not None
        )
        parts.append(f"{place}: {', '.join(numbers) or row['reason']}")
    return "; ".join(parts) or None


def fairness(report: Report) -> str | None:
    """What was tested by group and what was flagged, in one text."""
    made = [t for t in report["group_tests"] if t["p"] is not None]
    if not made:
        return None
    flagged = sum(t["flagged"] for t in made)
    attributes = ", ".join(dict.fromkeys(t["attribute"] for t in made))
    return (
        f"calibration, discrimination and usefulness by {attributes}: {len(made)} tests adjusted together (Holm), "
        f"{flagged} flagged; figures by group in report.json"
    )


def people(report: Report) -> str | None:
    """Share of each group among the judged rows of the first outcome and landmark."""
    if not report["groups"]:
        return None
    first = report["groups"][0]
    rows = [g for g in report["groups"] if (g["outcome"], g["landmark"]) == (first["outcome"], first["landmark"])]
    parts = [
        f"{g['attribute']} {g['group']}: {g['subjects'] if g['subjects'] is not None else 'under 50'}" for g in rows
    ]
    return "; ".join(parts)


def outcomes(report: Report) -> str | None:
    """The outcomes with what counts as each, in one text."""
    found = report["study"].get("outcomes")
    return None if not found else "; ".join(f"{o['outcome']}: {o['found_by']}" for o in found)


def prediction_times(report: Report) -> str | None:
    """When forecasts are made."""
    study = report["study"]
    if not study.get("prediction_times"):
        return None
    landmarks = ", ".join(study.get("landmarks") or [])
    return f"rule {study['prediction_times']}" + (f", {landmarks} after follow-up starts" if landmarks else "")


def sample_size(report: Report) -> str | None:
    """Numbers judged and events at the main horizon."""
    rows = main_rows(report)
    parts = []
    for r in rows:
        place = " ".join(p for p in (r["outcome"], r["landmark"]) if p)
        counts = f"{r['subjects']} subjects, {r['events']} events, {r['competing']} competing"
        parts.append(f"{place}: {counts}, {r['censored']} censored before {r['horizon']}")
    return "; ".join(parts) or None


def _spread(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_lower"], row[f"{name}_upper"]
    return "" if low is None else f" ({low:.3f} to {high:.3f})"
