"""The TRIPOD+AI checklist (Collins and others, BMJ 2024;385:e078378): a value or a reason for each of its 52 items.

Items are named in short words of our own; the published checklist is what counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehrseq.evaluate.report import facts

AUTHORS = "for the authors of a study: an evaluation of predictions cannot know it"
DEVELOPERS = "about development: for whoever fitted the model"
METHODS = (
    "AUC by cumulative cases and dynamic controls, competing events as controls, Brier score, Wolbers' concordance, "
    "all weighted for censoring; calibration by Aalen-Johansen curves, pseudo-value slope, ICI, E50, E90; net benefit; "
    "bootstrap over subjects, {n} replicates, seed {seed}"
)

# (item, topic, key of the answer or the reason)
ITEMS: tuple[tuple[str, str, str], ...] = (
    ("1", "title", "title"),
    ("2", "abstract", "findings"),
    ("3a", "health-care context and rationale", AUTHORS),
    ("3b", "target population, purpose and users", AUTHORS),
    ("3c", "known health inequalities", AUTHORS),
    ("4", "objectives", "objective"),
    ("5a", "sources of data and representativeness", "data"),
    ("5b", "dates of data", "dates"),
    ("6a", "setting and centres", AUTHORS),
    ("6b", "eligibility", "eligibility"),
    ("6c", "treatments received", AUTHORS),
    ("7", "data preparation and quality", "preparation"),
    ("8a", "outcome, horizon, how and why", "outcomes"),
    ("8b", "who assessed the outcome", "assessors"),
    ("8c", "blinding of the assessment", "blinding"),
    ("9a", "choice of predictors", DEVELOPERS),
    ("9b", "definition of predictors", "inputs"),
    ("9c", "who assessed predictors", "assessors"),
    ("10", "sample size", "sample"),
    ("11", "missing data", "missing"),
    ("12a", "how data were used, partitions", "partitions"),
    ("12b", "handling of predictors", DEVELOPERS),
    ("12c", "type of model, building, internal validation", DEVELOPERS),
    ("12d", "heterogeneity across clusters", "heterogeneity"),
    ("12e", "measures and plots of performance", "methods"),
    ("12f", "model updating", "updating"),
    ("12g", "how predictions were calculated", "calculated"),
    ("13", "class imbalance", "imbalance"),
    ("14", "approaches to fairness", "fairness"),
    ("15", "output of the model", "output"),
    ("16", "differences between training and evaluation", "differences"),
    ("17", "ethical approval", AUTHORS),
    ("18a", "funding", AUTHORS),
    ("18b", "conflicts of interest", AUTHORS),
    ("18c", "protocol", AUTHORS),
    ("18d", "registration", AUTHORS),
    ("18e", "data sharing", AUTHORS),
    ("18f", "code sharing", "code"),
    ("19", "patient and public involvement", AUTHORS),
    ("20a", "flow of participants", "flow"),
    ("20b", "characteristics of participants", "people"),
    ("20c", "comparison with development data", "comparison"),
    ("21", "participants and events in each analysis", "sample"),
    ("22", "specification of the model", DEVELOPERS),
    ("23a", "performance with intervals, in subgroups", "performance"),
    ("23b", "heterogeneity of performance", "heterogeneity"),
    ("24", "results of updating", "updating"),
    ("25", "interpretation, fairness in context", "findings"),
    ("26", "limitations", "limits"),
    ("27a", "how poor or missing input is handled in use", DEVELOPERS),
    ("27b", "interaction and expertise of users", AUTHORS),
    ("27c", "next steps of research", AUTHORS),
)


def tripod(report: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Each item with `value`, or a null value and a `reason`."""
    known = _answers(report)
    rows: list[dict[str, str | None]] = []
    for item, topic, key in ITEMS:
        answer = known.get(key)
        reason = None if answer else _REASONS.get(key, key)
        rows.append({"item": item, "topic": topic, "value": answer or None, "reason": reason})
    return rows


_REASONS = {
    "title": "no outcome was judged",
    "data": "the evaluation was given no timelines",
    "dates": "the timelines do not say when follow-up starts and ends",
    "eligibility": "the evaluation was given no task",
    "preparation": "the evaluation was given no timelines",
    "outcomes": "the evaluation was given no task",
    "assessors": "events are as the records have them; who assessed them is not recorded",
    "blinding": "routine records: nobody was blinded, as far as they tell",
    "inputs": "the provenance of these predictions does not list the inputs",
    "sample": "nobody could be judged",
    "missing": "the evaluation was given no timelines",
    "partitions": "the provenance of these predictions does not say whom the model was trained on",
    "heterogeneity": "no groups to compare",
    "updating": "no model was updated in this evaluation",
    "fairness": "groups were not tested: too few events, people or replicates",
    "differences": "not stated whether the data judged are of the source of the training data",
    "flow": "the evaluation was given no cohort",
    "people": "no groups were given",
    "comparison": "the provenance of these predictions does not describe the training data",
    "performance": "nothing could be judged",
}
_KNOWN = "the model reads only what was known by the prediction time"
_GIVEN = "what the predictions were made from, and when it was known, is not told by a table of predictions"


def _answers(report: Mapping[str, Any]) -> dict[str, str | None]:
    study = report["study"]
    records = study.get("records", {})
    provenance = study.get("provenance", {})
    tested = facts.fairness(report)
    seen = report["facts"].get("seen_in_training")
    ours = "model_seed" in provenance
    return {
        "title": report["title"],
        "findings": " ".join(report["findings"]),
        "objective": f"evaluation of the forecasts of {facts.judged_model(report)}, beside "
        f"{', '.join(report['models'][1:]) or 'no other model'}",
        "data": f"timelines of {records['subjects']} subjects, {records['events']} events" if records else None,
        "dates": _dates(study),
        "eligibility": facts.prediction_times(report),
        "preparation": f"units and codes as in the section on records; {_KNOWN if ours else _GIVEN}" if records
        else None,
        "outcomes": facts.outcomes(report),
        "inputs": provenance.get("inputs"),
        "sample": facts.sample_size(report),
        "missing": "share without a value by code and group in the section on missing values" if study.get(
            "missing_values") else None,
        "partitions": None if seen is None else f"{seen} subjects seen in training, left out of the judgement",
        "heterogeneity": tested,
        "methods": METHODS.format(n=report["n_bootstrap"], seed=report["seed"]),
        "calculated": f"by {facts.judged_model(report)}; the forecasts were taken as given",
        "imbalance": "in the evaluation none: probabilities were judged as they are, without resampling",
        "fairness": tested,
        "output": f"cumulative incidence by {', '.join(report['horizons'])}",
        "differences": "none of source: those judged come from the data set that the model was fitted on, and were "
        "held out" if provenance.get("data_source") == "internal" else None,
        "code": f"ehrseq {provenance['ehrseq']}" if "ehrseq" in provenance else None,
        "flow": "section on the cohort" if study.get("cohort") else None,
        "people": facts.people(report),
        "comparison": provenance.get("trained_on_people"),
        "performance": facts.performance(report),
        "limits": " ".join(report["limits"]),
    }  # fmt: skip


def _dates(study: Mapping[str, Any]) -> str | None:
    dates = study.get("records", {}).get("dates", {})
    start, end = dates.get("follow_up_start"), dates.get("follow_up_end")
    return f"follow-up from {start} to {end}" if start and end else None
