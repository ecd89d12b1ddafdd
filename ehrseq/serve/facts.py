"""What the service tells of its model."""

from __future__ import annotations

from typing import Any

from ehrseq import __version__
from ehrseq.estimator import ProgressionModel


def model_facts(model: ProgressionModel, card: str | None = None) -> dict[str, Any]:
    """The model's outcomes, horizons, labs and versions, and its card. ForecastError for one without outcomes."""
    fitted = model._check_fitted()
    task = model.task_
    return {
        "ehrseq": __version__,
        "model_manifest_sha256": model.folder_hash_,
        "branch": model._branch(None),
        "branches": list(fitted.branches),
        "outcomes": [
            {
                "name": outcome.name,
                "forecast": outcome.name in fitted.outcomes,
                "supported_days": fitted.supported_days.get(outcome.name),
                "training_events": fitted.events.get(outcome.name, 0),
            }
            for outcome in task.outcomes
        ],
        "horizons": [horizon.label for horizon in task.horizons],
        "labs": [] if fitted.labs is None else [scale.code for scale in fitted.labs.scales],
        "labs_withheld": model.labs_withheld,
        "codes": len(fitted.vocabulary.codes),
        "card": card,
    }
