"""From an evaluation to the files of its report."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ehrseq.evaluate.judge import EVERYONE
from ehrseq.evaluate.report.card import evaluation_card
from ehrseq.evaluate.report.figures import calibration_figure, decision_figure
from ehrseq.evaluate.report.source_attributes import source_attributes
from ehrseq.evaluate.report.tripod import tripod
from ehrseq.evaluate.report.words import MODELS, explanation, findings, limits, signed, verdicts
from ehrseq.storage import atomic_folder, write_json, write_manifest

if TYPE_CHECKING:
    from ehrseq.evaluate.evaluation import Evaluation

KIND, FORMAT_VERSION = "evaluation", 2
# What the page asks of a study; whatever an evaluation does not have, it says so.
STUDY = (
    "outcomes", "prediction_times", "landmarks", "cohort", "follow_up", "missing_values", "records", "labs",
    "lab_differences", "audits", "provenance",
)  # fmt: skip
PAGE, NUMBERS = "report.html", "report.json"


def write_report(evaluation: Evaluation, folder: str | Path) -> None:
    """Write the folder, whole or not at all: the page, its numbers, a model card, and two checklists as JSON."""
    report = content(evaluation)
    with atomic_folder(folder, KIND) as scratch:
        write_json(scratch / NUMBERS, report, sort_keys=False)
        (scratch / PAGE).write_text(page(report), encoding="utf-8")
        (scratch / "model_card.md").write_text(evaluation_card(report), encoding="utf-8")
        write_json(scratch / "hti1_source_attributes.json", report["source_attributes"])
        write_json(scratch / "tripod_ai.json", report["tripod_ai"])
        write_manifest(scratch, KIND, FORMAT_VERSION)


def render(evaluation: Evaluation) -> str:
    """The page alone."""
    return page(content(evaluation))


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Everything the page says, as JSON values: what `report.json` holds."""
    report: dict[str, Any] = {"format_version": FORMAT_VERSION, **evaluation.to_dict()}
    report["models"] = list(dict.fromkeys(row["model"] for row in report["table"]))
    outcomes = list(dict.fromkeys(row["outcome"] for row in report["table"]))
    # another vendor's model may have any name
    ours = "model_seed" in report["study"].get("provenance", {})
    report["model_notes"] = {m: MODELS[m] for m in report["models"] if m in MODELS} if ours else {}
    report["title"] = f"Evaluation of forecasts: {', '.join(outcomes) or 'no outcome'}"
    report["explanation"] = explanation(report)
    report["limits"] = limits(report)
    report["findings"] = findings(report)
    report["source_attributes"] = source_attributes(report)
    report["tripod_ai"] = tripod(report)
    return report


def page(report: Mapping[str, Any]) -> str:
    """One HTML file that loads nothing: the report's content, with its figures inside it."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "percent": _percent, "signed": signed, "words": _words}
    environment.globals |= {"interval": _interval}
    source = resources.files("ehrseq.evaluate.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        cells=_cells(report),
        study={**dict.fromkeys(STUDY), **report["study"]},
        flow=_flow(report["study"].get("cohort") or []),
    )


def _cells(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry an outcome and landmark: its rows, and its figures at the main horizon."""
    from markupsafe import Markup

    keys = dict.fromkeys((r["outcome"], r["landmark"]) for r in report["table"])
    cells = []
    for number, (outcome, landmark) in enumerate(keys, 1):

        def mine(table: str, outcome: str = outcome, landmark: str | None = landmark) -> list[dict[str, Any]]:
            rows = report[table]
            return [r for r in rows if (r["outcome"], r["landmark"]) == (outcome, landmark)]

        main = {t: [r for r in mine(t) if r["horizon"] == report["main_horizon"]] for t in
                ("calibration", "curves", "decisions")}  # fmt: skip
        cell = {
            "number": number, "outcome": outcome, "landmark": landmark,
            **{t: mine(t) for t in ("table", "differences", "sensitivity", "overall", "groups", "group_tests")},
            "verdicts": verdicts(report, {"outcome": outcome, "landmark": landmark}),
            "calibration": main["calibration"], "decisions": main["decisions"],
            "calibration_figure": None, "decision_figure": None,
        }  # fmt: skip
        if main["calibration"]:
            figure = calibration_figure(main["calibration"], main["curves"], report["models"], f"calibration{number}")
            cell["calibration_figure"] = Markup(figure)
        if main["decisions"]:
            figure = decision_figure(main["decisions"], report["models"], EVERYONE, f"decision{number}")
            cell["decision_figure"] = Markup(figure)
        cells.append(cell)
    return cells


def _flow(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The cohort flow with one row an outcome and landmark and one column a step."""
    placed = [r for r in rows if r["outcome"] is not None]
    steps = [s for s in dict.fromkeys(r["step"] for r in placed) if s != "at_risk"] + ["at_risk"]
    lines = []
    for outcome, landmark in dict.fromkeys((r["outcome"], r["landmark"]) for r in placed):
        counts = {r["step"]: r for r in placed if (r["outcome"], r["landmark"]) == (outcome, landmark)}
        cells = [_people(counts[s]) if s in counts else "0" for s in steps]
        lines.append([f"{outcome}, from {landmark}" if landmark else outcome, *cells])
    return ["outcome", *(_words(s) for s in steps)], lines


def _people(row: Mapping[str, Any]) -> str:
    times, subjects = row["prediction_times"], row["subjects"]
    return f"{times:,}" if times == subjects else f"{times:,} ({subjects:,} subjects)"


def _number(value: Any, digits: int = 3) -> str:
    """A number with so many decimals, an integer with separators, or a dash.

    >>> _number(0.12345), _number(12345), _number(None)
    ('0.123', '12,345', '–')
    """
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    # adding 0 turns -0.0 into 0.0
    return "–" if value is None else f"{round(100 * value, digits) + 0.0:.{digits}f}%"


def _interval(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """`value (lower to upper)` of a row's measure, as far as there are any."""
    ends = [row.get(f"{name}_{end}", row.get(end)) for end in ("lower", "upper")]
    text = _number(row[name], digits)
    return (
        text
        if None in ends or row[name] is None
        else f"{text} ({_number(ends[0], digits)} to {_number(ends[1], digits)})"
    )


def _words(name: Any) -> str:
    return str(name).replace("_", " ")
