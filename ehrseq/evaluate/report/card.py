"""The model card of an evaluation, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehrseq.evaluate.report import facts

NOT_STATED = "Not stated in what was handed in."


def evaluation_card(report: Mapping[str, Any]) -> str:
    """Markdown: what was judged, how well it did, for whom, its limits, and what is not known."""
    study, provenance = report["study"], report["study"].get("provenance", {})
    sections = {
        "What it forecasts": f"{facts.outcomes(report) or NOT_STATED} Horizons: {', '.join(report['horizons'])}.",
        "When": facts.prediction_times(report) or NOT_STATED,
        "Trained on": provenance.get("trained_on") or NOT_STATED,
        "Judged on": facts.sample_size(report) or "Nobody could be judged.",
        "Performance at the main horizon": facts.performance(report) or "Nothing could be judged.",
        "Findings": "\n".join(f"- {line}" for line in report["findings"]),
        "Fairness": facts.fairness(report) or "Groups were not tested: too few events, people or replicates.",
        "Audits": "\n".join(f"- {a['name']}: {a['statement']}" for a in study.get("audits") or []) or "None was run.",
        "Explanation": report["explanation"],
        "Limits": "\n".join(f"- {line}" for line in report["limits"]),
        "Intended use, users and oversight": "To be stated by the organisation that uses it. Research use: not a "
        "medical device.",
        "Provenance": "\n".join(f"- {_plain(k)}: {_plain(v)}" for k, v in sorted(provenance.items())) or NOT_STATED,
    }
    body = "\n\n".join(f"## {title}\n\n{_lines(text)}" for title, text in sections.items())
    return f"# Model card: {_plain(facts.judged_model(report))}\n\n{body}\n"


def _lines(text: str) -> str:
    lines = text.split("\n")
    return "\n".join(f"- {_plain(line[2:])}" if line.startswith("- ") else _plain(line) for line in lines)


def _plain(value: Any) -> str:
    """Text from outside without Markdown or HTML of its own."""
    text = " ".join(str(value).split())
    for mark in "\\`*_[]#|!":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("<", "&lt;").replace(">", "&gt;")
