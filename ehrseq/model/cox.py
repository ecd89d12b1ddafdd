"""A proportional-hazards model on the summaries of visible history: the linear rival of the other branches.

Piecewise-exponential: with the base rates of the intervals profiled out this is Cox's regression with Breslow's
handling of ties (Laird and Olivier, 1981, Journal of the American Statistical Association 76, 231-240).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Index = NDArray[np.int64]
PENALTY = 10.0  # precision of the prior on a standardised coefficient: about what ten events tell
ROUNDS = 2  # of base rates and coefficients in turn


@dataclass(frozen=True)
class CoxHazard:
    """One hazard: log hazard per day in interval b = base[b] + scaled features @ coefficients.

    base (I,); centre, scale, coefficients (F,).
    """

    base: Float
    centre: Float
    scale: Float
    coefficients: Float

    @classmethod
    def fit(cls, features: Float, exposure: Float, interval: Index, weight: Float, base: Float) -> CoxHazard:
        """From features (Q, F), days at risk (Q, I), event interval (Q,) or -1, weights (Q,) whose sum is the number
        of subjects, and a first log base rate (I,)."""
        from sklearn.linear_model import PoissonRegressor

        centre, spread = features.mean(0), features.std(0)
        scale = np.where(spread > 1e-9, spread, 1.0)
        scaled = (features - centre) / scale
        at_risk = exposure.sum(1) > 0
        happened = interval >= 0
        events = np.bincount(interval[happened], weight[happened], minlength=len(base))
        coefficients = np.zeros(features.shape[1])
        if not events.sum():
            return cls(base, centre, scale, coefficients)
        for _ in range(ROUNDS):
            expected = (exposure @ np.exp(base)) * weight
            model = PoissonRegressor(alpha=PENALTY / expected.sum(), solver="newton-cholesky", tol=1e-6).fit(
                scaled[at_risk],
                (happened * weight)[at_risk] / expected[at_risk],
                sample_weight=expected[at_risk],
            )
            coefficients = model.coef_.astype(np.float64)
            relative = np.exp(scaled @ coefficients) * weight
            at_base = relative @ exposure
            pooled = events.sum() / at_base.sum()
            rate = (events + 1) / (at_base + 1 / pooled)  # an event's worth of the pooled rate where there are few
            base = np.log(rate)
        return cls(base, centre, scale, coefficients)

    def log_hazard(self, features: Float) -> Float:
        """(n, I) log hazards per day for features (n, F)."""
        # a matrix product would round a row differently beside other rows
        score = ((features - self.centre) / self.scale * self.coefficients).sum(axis=1)
        return np.asarray(score[:, None] + self.base)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value.tolist() for name, value in self.__dict__.items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> CoxHazard:
        """What `to_dict` wrote."""
        return cls(**{name: np.asarray(value, dtype=np.float64) for name, value in content.items()})
