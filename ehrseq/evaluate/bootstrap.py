"""The bootstrap over subjects: all rows of a subject are drawn together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# An interval is not shown when more than this part of the replicates left the measure undefined.
LARGEST_UNDEFINED = 0.1
# Fewer people than this are not shown apart: the figures would be noise, and might point at persons.
FEWEST_SUBJECTS = 50


def subject_counts(subjects: int, replicates: int, seed: int) -> NDArray[np.uint16]:
    """How often each subject was drawn: shape (subjects, 1 + replicates), the first column all 1 (the sample).

    >>> subject_counts(3, 2, seed=0).sum(0)
    array([3, 3, 3], dtype=uint64)
    """
    random = np.random.default_rng(seed)
    counts = np.ones((subjects, 1 + replicates), dtype=np.uint16)
    for r in range(replicates):
        counts[:, 1 + r] = np.bincount(random.integers(0, subjects, subjects), minlength=subjects)
    return counts


def interval(values: FloatArray) -> tuple[float | None, float | None]:
    """The 95% percentile interval of replicates 1.. of (1 + R,) values, or (None, None) where undefined.

    >>> interval(np.arange(102.0))
    (3.5, 98.5)
    """
    replicates = values[1:]
    defined = replicates[np.isfinite(replicates)]
    if not len(defined) or len(defined) < (1 - LARGEST_UNDEFINED) * len(replicates):
        return None, None
    lower, upper = np.percentile(defined, (2.5, 97.5))
    return float(lower), float(upper)
