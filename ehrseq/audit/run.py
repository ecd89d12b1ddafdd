"""An evaluation with every audit, and what is kept of those that are done when a run is cut short."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ehrseq.audit.checks import (
    future_events,
    gaps_before,
    leaked_split,
    new_onsets_only,
    seen_in_training,
)
from ehrseq.audit.material import Audit, Material, NotPossible
from ehrseq.audit.refits import ascertainment_only, kinds_of_model, shuffled_labels
from ehrseq.errors import ArtifactError, EvaluationError, UserError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.evaluate.evaluation import Evaluation
from ehrseq.score import evaluate_export
from ehrseq.storage import MANIFEST, check_target, read_json, sha256_file, write_json
from ehrseq.task.definition import Task
from ehrseq.timeline.store import as_timelines

AUDITS: dict[str, Callable[[Material], Audit]] = {
    "Kinds of model": kinds_of_model,
    "Ascertainment only": ascertainment_only,
    "New onsets only": new_onsets_only,
    "Gap between what is known and what is forecast": gaps_before,
    "Shuffled labels": shuffled_labels,
    "Leaked split": leaked_split,
    "Appended future events": future_events,
    "Subjects seen in training": seen_in_training,
}


def audit_export(
    judged: ProgressionModel | str | Path,
    timelines: Any,
    out: str | Path | None = None,
    *,
    task: Task | str | Path | None = None,
    n_bootstrap: int = 200,
    seed: int = 0,
    by: Any = None,
    report: Callable[[str], None] | None = None,
) -> Evaluation:
    """`evaluate_export` (which see) of a model with all audits in the report: a few refits, minutes each.

    `report(name)` is called before each audit. A run that is cut short goes on where it was, if the model is a folder
    and `out` the same. Raises EvaluationError for predictions without a model: they cannot be fitted again.
    """
    if isinstance(judged, str | Path) and not _is_model(Path(judged)):
        raise EvaluationError(
            "a model folder to audit", "something else", "evaluate predictions without audits: they cannot be refitted"
        )
    if out is not None:
        check_target(out, "evaluation")
    timelines = as_timelines(timelines)
    model = load_model(judged) if isinstance(judged, str | Path) else judged
    other = Task.from_toml(task) if isinstance(task, str | Path) else task
    found = evaluate_export(judged, timelines, task=other, n_bootstrap=n_bootstrap, seed=seed, by=by)
    kept, mark = None, ""
    if out is not None and isinstance(judged, str | Path):
        kept = Path(out).parent / f".{Path(out).name}.audits"
        mark = _mark(found, sha256_file(Path(judged) / MANIFEST))
    audits = run_audits(found, model, timelines, other, report=report, kept=kept, mark=mark)
    found = replace(found, study={**found.study, "audits": [audit.to_dict() for audit in audits]})
    if out is not None:
        found.save(out)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    return found


def run_audits(
    found: Evaluation,
    model: ProgressionModel,
    timelines: Any,
    task: Task | None = None,
    *,
    report: Callable[[str], None] | None = None,
    kept: Path | None = None,
    mark: str = "",
) -> list[Audit]:
    """Every audit of an evaluated model; one that is not possible says why.

    What is done is kept in the folder `kept`, for a later run with the same `mark`.
    """
    task = model.task_ if task is None else model.settled(task)
    main = next((h for h in task.horizons if h.label == found.main_horizon), None)
    if main is None:
        return [Audit(name, "Not run: nobody at risk could be judged.") for name in AUDITS]
    material = Material(model, as_timelines(timelines), task, main, found.n_bootstrap, found.seed)
    audits = []
    for number, (name, audit) in enumerate(AUDITS.items()):
        file = None if kept is None else kept / f"{number}.json"
        done = _read(file, mark)
        if done is None:
            if report is not None:
                report(name)
            try:
                done = audit(material)
            except (NotPossible, UserError) as reason:  # too few events for a refit, and the like
                done = Audit(name, f"Not run: {reason}.")
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, {"mark": mark, "audit": done.to_dict()})
        audits.append(done)
    return audits


def _read(file: Path | None, mark: str) -> Audit | None:
    """An audit that an earlier run has finished, if it was about the same."""
    if file is None or not file.is_file():
        return None
    try:
        content = read_json(file)
        return (
            Audit(**{**content["audit"], "rows": tuple(content["audit"]["rows"])}) if content["mark"] == mark else None
        )
    except (ArtifactError, KeyError, TypeError):
        return None  # cut short while it was written


def _mark(found: Evaluation, model: str) -> str:
    """Tells one evaluation from another: the model, and every figure of the evaluation itself."""
    text = json.dumps([model, found.to_dict()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_model(folder: Path) -> bool:
    try:
        return bool(read_json(folder / MANIFEST).get("kind") == "model")
    except (ArtifactError, AttributeError):
        return False
