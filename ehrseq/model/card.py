"""The model card that travels with a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KINDS = {
    "hybrid": "Transformers over event timelines, blended with gradient-boosted hazards",
    "transformer": "Transformers over event timelines",
    "boosted": "Gradient-boosted hazards on summaries of the timelines",
    "cox": "A proportional-hazards model on summaries of the timelines",
    "age_sex": "A proportional-hazards model of age and sex",
}


def model_card(
    task: Mapping[str, Any] | None, facts: Mapping[str, Any], events: Mapping[str, int], refused: Sequence[str]
) -> str:
    """Markdown: what the model forecasts, what it was fitted on, and what it must not be used for.

    >>> print(model_card({"horizons": ["1y"]}, {"n_train": 9, "n_tuning": 2}, {"t2d": 3}, []).splitlines()[0])
    # Model card
    """
    forecasts = (
        ["Transformers over event timelines, fitted without outcomes: it forecasts nothing until it is adapted."]
        if task is None
        else [
            f"{KINDS[str(facts.get('model', 'hybrid'))]}.",
            "Forecasts the cumulative incidence of each outcome, competing risks respected. Fitted by ehrseq.",
            "",
            "## Forecasts",
            f"Horizons: {', '.join(task['horizons'])}.",
            "",
            "| outcome | training subjects with it |",
            "|---|---|",
            *(f"| {name} | {count} |" for name, count in events.items()),
        ]
    )
    lines = [
        "# Model card",
        "",
        *forecasts,
        "",
        *(["Not fitted, for want of training events: " + ", ".join(refused) + ".", ""] if refused else []),
        "## Fitted on",
        f"{facts['n_train']} training and {facts['n_tuning']} tuning subjects. No other data.",
        "",
        "## Limits",
        "- Judge it on your own data (`ehrseq evaluate`) before anybody reads a number.",
        "- A forecast says what happened to people with such records where it was fitted, not what treatment would do.",
        "- It knows what was recorded and when it was known, nothing else.",
        "- Research use: not a medical device.",
        "",
    ]
    return "\n".join(lines)
