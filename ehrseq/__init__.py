"""FHIR exports to patient timelines to calibrated, competing-risk trajectory forecasts.

Names load on first use: `import ehrseq` is quick and brings in neither torch nor pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ehrseq.audit import audit_export as audit_export
    from ehrseq.audit import evaluate_designs as evaluate_designs
    from ehrseq.config import (
        ModelConfig as ModelConfig,
    )
    from ehrseq.config import (
        NetworkConfig as NetworkConfig,
    )
    from ehrseq.config import (
        TrainingConfig as TrainingConfig,
    )
    from ehrseq.demo import run_demo as run_demo
    from ehrseq.errors import EhrseqError as EhrseqError
    from ehrseq.errors import UserError as UserError
    from ehrseq.estimator import ProgressionModel as ProgressionModel
    from ehrseq.estimator import load_model as load_model
    from ehrseq.evaluate.evaluation import Evaluation as Evaluation
    from ehrseq.forecast.table import Forecast as Forecast
    from ehrseq.inspection import inspect as inspect
    from ehrseq.score import (
        evaluate_export as evaluate_export,
    )
    from ehrseq.score import (
        fit_model as fit_model,
    )
    from ehrseq.score import (
        recalibrate_model as recalibrate_model,
    )
    from ehrseq.score import (
        score_export as score_export,
    )
    from ehrseq.synthetic import (
        SimulationConfig as SimulationConfig,
    )
    from ehrseq.synthetic import (
        simulate as simulate,
    )
    from ehrseq.synthetic import (
        write_simulation as write_simulation,
    )
    from ehrseq.task.cohort import Cohort as Cohort
    from ehrseq.task.cohort import build_cohort as build_cohort
    from ehrseq.task.definition import Task as Task
    from ehrseq.timeline.build import read_fhir as read_fhir
    from ehrseq.timeline.ingest import ingest as ingest
    from ehrseq.timeline.store import Timelines as Timelines

__version__ = "0.1.0"

_HOME = {
    "Cohort": "ehrseq.task.cohort",
    "EhrseqError": "ehrseq.errors",
    "Evaluation": "ehrseq.evaluate.evaluation",
    "Forecast": "ehrseq.forecast.table",
    "ModelConfig": "ehrseq.config",
    "NetworkConfig": "ehrseq.config",
    "ProgressionModel": "ehrseq.estimator",
    "SimulationConfig": "ehrseq.synthetic",
    "Task": "ehrseq.task.definition",
    "Timelines": "ehrseq.timeline.store",
    "TrainingConfig": "ehrseq.config",
    "UserError": "ehrseq.errors",
    "audit_export": "ehrseq.audit",
    "build_cohort": "ehrseq.task.cohort",
    "evaluate_designs": "ehrseq.audit",
    "evaluate_export": "ehrseq.score",
    "fit_model": "ehrseq.score",
    "ingest": "ehrseq.timeline.ingest",
    "inspect": "ehrseq.inspection",
    "load_model": "ehrseq.estimator",
    "read_fhir": "ehrseq.timeline.build",
    "recalibrate_model": "ehrseq.score",
    "run_demo": "ehrseq.demo",
    "score_export": "ehrseq.score",
    "simulate": "ehrseq.synthetic",
    "write_simulation": "ehrseq.synthetic",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ehrseq' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
