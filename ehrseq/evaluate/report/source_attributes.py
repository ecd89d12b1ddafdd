"""Source attributes of a predictive decision support intervention: 45 CFR 170.315(b)(11)(iv)(B), the ONC HTI-1 rule.

The texts below name each attribute in short words of our own; the rule's text is what counts. What the evaluation does
not know is "not available", with what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehrseq.evaluate.report import facts

NOT_AVAILABLE = "not available"

# (paragraph, category, attribute, which fact answers it)
ATTRIBUTES: tuple[tuple[str, str, str, str | None], ...] = (
    ("1.i", "details and output", "name and contact of the developer", None),
    ("1.ii", "details and output", "funding source of the technical implementation", None),
    ("1.iii", "details and output", "value that the intervention produces", "output"),
    ("1.iv", "details and output", "type of output", "type"),
    ("2.i", "purpose", "intended use", None),
    ("2.ii", "purpose", "intended patient population", None),
    ("2.iii", "purpose", "intended users", None),
    ("2.iv", "purpose", "intended role in decisions", None),
    ("3.i", "cautioned out-of-scope use", "tasks, situations or populations to be cautious about", "caution"),
    ("3.ii", "cautioned out-of-scope use", "known risks, unsuitable settings and uses, limitations", "limits"),
    ("4.i", "development and input features", "inclusion and exclusion criteria of the training data", "training"),
    ("4.ii", "development and input features", "race, ethnicity, language, sex, social needs and the like as inputs",
     "inputs"),
    ("4.iii", "development and input features", "demographic representativeness of the training data",
     "training_people"),
    ("4.iv", "development and input features", "relevance of the training data to the deployed setting", None),
    ("5.i", "fairness in development", "approach to make the output fair", None),
    ("5.ii", "fairness in development", "approaches to manage, reduce or remove bias", None),
    ("6.i", "external validation", "data source, setting or environment of the external validation", "external"),
    ("6.ii", "external validation", "who conducted the external testing", None),
    ("6.iii", "external validation", "demographic representativeness of the external data", "external_people"),
    ("6.iv", "external validation", "process of the external validation", "external_process"),
    ("7.i", "performance", "validity in test data of the source of the training data", "internal_validity"),
    ("7.ii", "performance", "fairness in test data of the source of the training data", "internal_fairness"),
    ("7.iii", "performance", "validity in data of another source", "external_validity"),
    ("7.iv", "performance", "fairness in data of another source", "external_fairness"),
    ("7.v", "performance", "evaluations of use on outcomes", None),
    ("8.i", "maintenance", "how, and how often, validity is monitored", None),
    ("8.ii", "maintenance", "validity in local data", "local_validity"),
    ("8.iii", "maintenance", "how, and how often, fairness is monitored", None),
    ("8.iv", "maintenance", "fairness in local data", "local_fairness"),
    ("9.i", "update schedule", "how, and how often, the intervention is updated", None),
    ("9.ii", "update schedule", "how often performance is corrected when risks are found", None),
)  # fmt: skip
BY_ORGANISATION = "only the developer or the deploying organisation can state this"


def source_attributes(report: Mapping[str, Any]) -> dict[str, Any]:
    """All 31 attributes with a value, or "not available" and the reason.

    The provenance may say whether the data judged are of the training data's source: `data_source` "internal" (the same
    source), "external" or "local". Without it, none of these is claimed.
    """
    known = _known(report)
    rows = []
    for paragraph, category, attribute, fact in ATTRIBUTES:
        value = known.get(fact) if fact else None
        row = {"paragraph": paragraph, "category": category, "attribute": attribute, "value": value or NOT_AVAILABLE}
        if not value:
            row["reason"] = _REASONS.get(fact or "", BY_ORGANISATION)
        rows.append(row)
    return {
        "rule": "45 CFR 170.315(b)(11)(iv)(B)",
        "model": facts.judged_model(report),
        "available": sum(row["value"] != NOT_AVAILABLE for row in rows),
        "attributes": rows,
    }


_REASONS = {
    "training": "the criteria by which the training data were chosen are not recorded with the model",
    "training_people": "the provenance of these predictions says nothing about the people trained on",
    "inputs": "the provenance of these predictions does not list the inputs",
    **dict.fromkeys(
        ("external", "external_people", "external_process", "external_validity", "external_fairness",
         "internal_validity", "internal_fairness", "local_validity", "local_fairness"),
        "not stated whether the data judged are of the source of the training data (data_source in the provenance)",
    ),
}  # fmt: skip


def _known(report: Mapping[str, Any]) -> dict[str, str | None]:
    study = report["study"]
    provenance = study.get("provenance", {})
    source = provenance.get("data_source")
    horizons = ", ".join(report["horizons"])
    measured = {"validity": facts.performance(report), "fairness": facts.fairness(report)}
    known: dict[str, str | None] = {
        "output": f"probability of each outcome by {horizons} after the prediction time, competing events respected "
        f"({facts.outcomes(report) or 'outcomes not described'})",
        "type": "prediction",
        "caution": "people unlike those judged, codes the model has not seen, and any use as an effect of treatment",
        "limits": " ".join(report["limits"]),
        "training_people": provenance.get("trained_on_people"),
        "inputs": provenance.get("inputs"),
    }
    if source in ("internal", "external", "local"):
        known |= {f"{source}_{name}": value for name, value in measured.items()}
    if source == "external":
        known |= {
            "external": f"{study.get('records', {}).get('subjects', 'unknown')} subjects of the timelines judged",
            "external_people": facts.people(report),
            "external_process": "ehrseq evaluate on these timelines; see report.html",
        }
    return known
