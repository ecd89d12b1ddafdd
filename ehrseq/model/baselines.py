"""Baseline hazards that use no record at all (null) or age and sex only.

Piecewise-exponential, cause-specific Poisson regression on person-intervals: what a forecast has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehrseq.errors import UserError

FloatArray = NDArray[np.float64]
Kind = Literal["age_sex", "null"]

# Prior weight, in events, of the pooled rate in each interval: one without events keeps a rate above 0.
PRIOR_EVENTS = 0.5
# Precision of the normal prior on the standardised coefficients: one unit is about what one event tells.
RIDGE = 1.0
KNOT_QUANTILES = (0.05, 0.35, 0.65, 0.95)


@dataclass(frozen=True)
class HazardBaseline:
    """Cause-specific hazards by interval, with or without age and sex; made by `fit` or `from_dict`.

    The hazard of cause k in interval b is `base_rate[k][b] * exp(design @ coefficients[k])`, where the
    design holds the standardised age spline, one column a sex and one an interval. Index 0 is the outcome,
    1 its competitors.

    Attributes
    ----------
    kind
        `null` (interval effects only) or `age_sex`
    edges
        shape (B + 1,), days from 0
    base_rate
        shape (2, B), per day
    knots
        knots of the age spline in years: four, fewer where ages coincide, none where all are equal or `null`
    centre, scale
        mean and standard deviation of each spline column in the training data
    sexes
        the values seen in training, `unknown` standing for a missing one; a value not seen has no effect
    coefficients
        shape (2, P), P = spline columns + sexes + intervals + 1 (the constant, last); empty for `null`
    """

    kind: Kind
    edges: FloatArray
    base_rate: FloatArray
    knots: FloatArray
    centre: FloatArray
    scale: FloatArray
    sexes: tuple[str, ...]
    coefficients: FloatArray

    @classmethod
    def fit(
        cls,
        kind: Kind,
        edges: ArrayLike,
        age_years: ArrayLike,
        sex: Sequence[str | None],
        days: ArrayLike,
        cause: ArrayLike,
        weight: ArrayLike | None = None,
    ) -> HazardBaseline:
        """Fit one outcome's hazards on rows of (subject, prediction time).

        Follow-up counts up to the last edge; an event exactly on an edge belongs to the interval that ends
        there. An interval's rate is drawn to the cause's pooled rate by half an event, so that one without
        events or without follow-up has a small finite hazard. An outcome without any event gets half an event
        over all the follow-up; a competitor without any has hazard 0 (death has no competitor).

        Parameters
        ----------
        kind
            `age_sex` or `null` (age and sex are then not read)
        edges
            shape (B + 1,), days rising from 0
        age_years
            shape (n,), finite: rows of unknown age are the caller's to leave out
        sex
            n values; None is a category of its own
        days
            shape (n,), above 0: from the prediction time to the first of event, competing event and censoring
        cause
            shape (n,): 0 censored, 1 outcome, 2 competing event first
        weight
            shape (n,), not negative; all 1 if None

        Raises
        ------
        UserError
            for arrays that break the above, or without any follow-up

        >>> days, cause = [5, 10, 15, 20], [1, 0, 1, 0]
        >>> model = HazardBaseline.fit("null", [0, 10, 20], [50.0] * 4, [None] * 4, days, cause)
        >>> model.hazards([70.0], ["female"])[0].round(3)  # 1.5 / (35 + 12.5) and 1.5 / (15 + 12.5)
        array([[0.032, 0.055]])
        """
        edges = np.asarray(edges, dtype=np.float64)
        follow_up, causes = np.asarray(days, dtype=np.float64), np.asarray(cause)
        weights = np.ones(len(follow_up)) if weight is None else np.asarray(weight, dtype=np.float64)
        _check(kind, edges, follow_up, causes, weights)
        # To mean 1, so that the half event and the ridge are in units of rows whatever the weights' unit.
        events, exposure = _person_intervals(edges, follow_up, causes, weights / weights.mean())
        base_rate = np.array([_interval_rates(events[k].sum(0), exposure.sum(0), needed=k == 0) for k in (0, 1)])
        nothing = np.zeros(0)
        model = cls(kind, edges, base_rate, nothing, nothing, nothing, (), np.zeros((2, 0)))
        if kind == "null":
            return model
        age = _checked_age(age_years, len(follow_up))
        knots = np.unique(np.quantile(age, KNOT_QUANTILES))
        knots = knots if len(knots) > 1 else nothing
        spline = _spline(age, knots)
        named = _named(sex, len(follow_up))
        model = replace(
            model,
            knots=knots,
            centre=spline.mean(0),
            scale=np.where(spline.std(0) > 0, spline.std(0), 1.0),
            sexes=tuple(sorted(set(named.tolist()))),
        )
        design = model._design(age, named)
        fitted = [_poisson(design, events[k], exposure * base_rate[k]) for k in (0, 1)]
        return replace(model, coefficients=np.array(fitted))

    def hazards(self, age_years: ArrayLike, sex: Sequence[str | None]) -> tuple[FloatArray, FloatArray]:
        """Hazards per day of the outcome and of its competitors, each of shape (n, B), on `edges`.

        `age_years` has shape (n,) and must be finite unless the kind is `null`; `sex` holds n values or None.
        """
        rows = len(np.asarray(age_years))
        if self.kind == "null":
            outcome, competing = (np.repeat(rate[None], rows, axis=0) for rate in self.base_rate)
            return outcome, competing
        design = self._design(_checked_age(age_years, rows), _named(sex, rows))
        person, intervals = design.shape[1], len(self.edges) - 1
        result = []
        for rate, coefficient in zip(self.base_rate, self.coefficients, strict=True):
            by_interval = coefficient[person : person + intervals] + coefficient[-1]
            result.append(rate * np.exp(design @ coefficient[:person, None] + by_interval))
        return result[0], result[1]

    def to_dict(self) -> dict[str, Any]:
        """All parameters as JSON values; `from_dict` gives back an equal model, to the last bit."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in self.__dict__.items()} | {
            "sexes": list(self.sexes)
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> HazardBaseline:
        """The model that `to_dict` wrote.

        >>> model = HazardBaseline.fit("null", [0, 10], [50.0] * 2, [None] * 2, [5, 8], [1, 2])
        >>> HazardBaseline.from_dict(model.to_dict()).base_rate == model.base_rate
        array([[ True],
               [ True]])
        """
        names = ("edges", "base_rate", "knots", "centre", "scale", "coefficients")
        arrays = {name: np.asarray(content[name], dtype=np.float64) for name in names}
        return cls(kind=content["kind"], sexes=tuple(content["sexes"]), **arrays)

    def _design(self, age: FloatArray, named: NDArray[np.str_]) -> FloatArray:
        """Shape (n, spline columns + sexes): what does not change with the interval."""
        spline = (_spline(age, self.knots) - self.centre) / self.scale
        return np.hstack([spline, (named[:, None] == np.array(self.sexes)).astype(np.float64)])


def _person_intervals(
    edges: FloatArray, days: FloatArray, cause: NDArray[Any], weight: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weighted events (2, n, B) and weighted days at risk (n, B)."""
    exposure = np.clip(days[:, None] - edges[:-1], 0.0, np.diff(edges)) * weight[:, None]
    inside = days <= edges[-1]
    events = np.zeros((2, *exposure.shape))
    for k in (0, 1):
        rows = np.flatnonzero(inside & (cause == k + 1))
        events[k, rows, np.searchsorted(edges, days[rows]) - 1] = weight[rows]
    return events, exposure


def _interval_rates(events: FloatArray, exposure: FloatArray, *, needed: bool) -> FloatArray:
    """Rates per day (B,), drawn to the pooled rate by a gamma prior worth `PRIOR_EVENTS` events."""
    if events.sum() == 0 and not needed:
        return np.zeros_like(events)
    pooled = max(events.sum(), PRIOR_EVENTS) / exposure.sum()
    return np.asarray((events + PRIOR_EVENTS) / (exposure + PRIOR_EVENTS / pooled))


def _poisson(design: FloatArray, events: FloatArray, expected: FloatArray) -> FloatArray:
    """Coefficients of a Poisson regression of events (n, B) on the design and the interval.

    `expected` (n, B) is the exposure in units of expected events. As the sample weight it stands in for the
    offset, and it makes the pooled rate about 1, which the solver's absolute tolerance needs (rates per day
    are about 1e-5).
    """
    from sklearn.linear_model import PoissonRegressor

    intervals = events.shape[1]
    columns = design.shape[1] + intervals + 1
    used = expected > 0
    if events.sum() == 0 or not used.any():
        return np.zeros(columns)
    row, interval = np.nonzero(used)
    features = np.hstack([design[row], np.eye(intervals)[interval]])
    exposure = expected[used]
    regression = PoissonRegressor(alpha=RIDGE / exposure.sum(), solver="newton-cholesky", tol=1e-8, max_iter=200).fit(
        features, events[used] / exposure, sample_weight=exposure
    )
    return np.append(regression.coef_, regression.intercept_).astype(np.float64)


def _spline(age: FloatArray, knots: FloatArray) -> FloatArray:
    """Restricted cubic spline basis, linear beyond the outer knots: shape (n, max(len(knots) - 1, 0)).

    Harrell, Regression Modeling Strategies, 2nd ed., section 2.4.5.
    """
    if len(knots) < 2:
        return np.zeros((len(age), 0))
    last, before = knots[-1], knots[-2]

    def cubed(knot: float) -> FloatArray:
        above = np.maximum(age - knot, 0.0)
        return np.asarray(above**3, dtype=np.float64)

    bends = [
        (
            cubed(knot)
            - cubed(before) * (last - knot) / (last - before)
            + cubed(last) * (before - knot) / (last - before)
        )
        / (last - knots[0]) ** 2
        for knot in knots[:-2]
    ]
    return np.column_stack([age, *bends])


def _named(sex: Sequence[str | None], rows: int) -> NDArray[np.str_]:
    if len(sex) != rows:
        raise UserError(f"{rows} values of sex", f"{len(sex)}", "pass one value a row, None where unknown")
    return np.array(["unknown" if value is None else str(value) for value in sex], dtype=np.str_)


def _checked_age(age_years: ArrayLike, rows: int) -> FloatArray:
    age = np.asarray(age_years, dtype=np.float64)
    if age.shape != (rows,) or not np.isfinite(age).all():
        raise UserError("a finite age for every row", "missing ages", "leave rows of unknown age out")
    return age


def _check(kind: str, edges: FloatArray, days: FloatArray, cause: NDArray[Any], weight: FloatArray) -> None:
    if kind not in ("age_sex", "null"):
        raise UserError("kind 'age_sex' or 'null'", repr(kind), "choose one of the two")
    if edges.ndim != 1 or len(edges) < 2 or edges[0] != 0 or not (np.diff(edges) > 0).all():
        raise UserError("edges in days rising from 0", "other edges", "check the intervals")
    if days.ndim != 1 or cause.shape != days.shape or weight.shape != days.shape:
        raise UserError("days, cause and weight of one length", "several lengths", "pass one value of each a row")
    if not (np.isfinite(days).all() and (days > 0).all() and np.isin(cause, (0, 1, 2)).all()):
        raise UserError("days above 0 and causes 0, 1 or 2", "others among them", "pass only rows at risk")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
        raise UserError("weights that are not negative and not all 0", "others", "check the rows passed to fit")
