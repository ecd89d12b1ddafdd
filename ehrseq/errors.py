"""Every error ehrseq raises on purpose.

    EhrseqError
    ├── UserError (also a ValueError)   what was handed in cannot be used
    │   ├── SourceError                 a FHIR source: missing, empty, unreadable
    │   ├── TimelineError               a timeline table or folder breaks the column contract
    │   ├── TaskError                   a task file: unknown key, bad horizon, impossible outcome
    │   ├── ArtifactError               a model or forecast folder: wrong format, changed bytes
    │   ├── ForecastError               a request a model cannot answer
    │   │   └── NoPredictionTimeError   nobody has a prediction time
    │   ├── EvaluationError             a prediction table that cannot be judged
    │   └── WorkerError                 a process that worked for this one ended early
    └── TrainingError                   fitting failed for a reason that is not the input's shape

`DataWarning` (a UserWarning) is what does not stop the work, and should be looked at.

Messages are one line: what was expected, what was found, what to do next. They never carry field
content or paths found inside the data: both can identify a person.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EhrseqError(Exception):
    """Base of every error raised on purpose."""


class DataWarning(UserWarning):
    """Data that may be wrong; the message says what to look at."""


class UserError(EhrseqError, ValueError):
    """What was handed in cannot be used; the message says what to change.

    >>> print(UserError("a folder of FHIR files", "an empty folder", "check the path"))
    expected a folder of FHIR files; found an empty folder; check the path
    """

    def __init__(self, expected: str, found: str, next_step: str) -> None:
        self.told = (expected, found, next_step)
        super().__init__(f"expected {expected}; found {found}; {next_step}")


class SourceError(UserError):
    """A FHIR source is missing, empty or unreadable."""


class TimelineError(UserError):
    """A timeline table or folder breaks the column contract."""


class TaskError(UserError):
    """A task definition cannot be used."""


class ArtifactError(UserError):
    """A model or forecast folder is not what its manifest says."""


class ForecastError(UserError):
    """A request that the model cannot answer."""


class NoPredictionTimeError(ForecastError):
    """Nobody has a prediction time."""


class EvaluationError(UserError):
    """A prediction table that cannot be judged."""


class WorkerError(UserError):
    """A process that worked for this one ended early; the same call into the same folder goes on from what is done."""


class TrainingError(EhrseqError):
    """Fitting failed for a reason other than the shape of the input."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the nearest known word, or the known words.

    >>> nearest("horizon", ["horizons", "outcomes"])
    "did you mean 'horizons'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"
