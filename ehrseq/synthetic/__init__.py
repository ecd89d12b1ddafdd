"""The known-hazard simulator: FHIR R4 records of people whose true risks are known exactly."""

from ehrseq.synthetic.config import DiseaseConfig, MarkerConfig, SimulationConfig
from ehrseq.synthetic.export import Simulation, simulate, task_toml, write_simulation
from ehrseq.synthetic.truth import TRUTH_SCHEMA

__all__ = [
    "TRUTH_SCHEMA",
    "DiseaseConfig",
    "MarkerConfig",
    "Simulation",
    "SimulationConfig",
    "simulate",
    "task_toml",
    "write_simulation",
]
