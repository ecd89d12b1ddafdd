"""Judging forecasts from prediction tables alone: any vendor's table can be judged, no model is needed."""

from ehrseq.evaluate.evaluation import Evaluation, evaluate_forecasts
from ehrseq.evaluate.tables import validate_labels, validate_risk

__all__ = ["Evaluation", "evaluate_forecasts", "validate_labels", "validate_risk"]
