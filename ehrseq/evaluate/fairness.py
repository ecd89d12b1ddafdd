"""Does a forecast serve one group worse than the others? Measures by group, tests against everybody else, and flags.

Three questions, each with a test on the bootstrap's own spread:

- calibration: is the group's observed over expected another than everybody else's? (on the logarithm)
- discrimination: is its AUC another than everybody else's? An age band is narrower than the whole cohort, so that a
  lower AUC within it need not be unfair: read the flag with the figures.
- usefulness: at a threshold equal to the incidence, is acting on the forecast worse for the group than the better of
  acting on everyone and on no one?

The statistic is the difference over the spread of its replicates, read off Student's t with as many degrees of freedom
as the smaller side has events: the normal distribution flags too often where events are few. The p-values of all
groups, outcomes, landmarks and questions of one evaluation are adjusted together (Holm 1979), so that on data without
any difference the chance of one false flag or more is at most 5%.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.evaluate.bootstrap import FEWEST_SUBJECTS, LARGEST_UNDEFINED, interval
from ehrseq.evaluate.cell import Cell, replicates, undefined
from ehrseq.evaluate.judge import estimate

FloatArray = NDArray[np.float64]
Row = dict[str, Any]

LEVEL = 0.05
# With fewer events on either side the spread of the replicates says too little of the tails.
FEWEST_EVENTS = 20
# Replicates below which no test is made.
FEWEST_REPLICATES = 100
SHOWN = ("observed", "observed_expected", "auc", "net_benefit", "net_benefit_of_default")
QUESTIONS = ("calibration", "discrimination", "usefulness")


def judge_groups(
    cell: Cell, groups: pl.DataFrame, counts: NDArray[np.uint16], model: str, keys: Row
) -> tuple[list[Row], list[Row]]:
    """Measures of one model in every group of a cell, and the tests of each group, not yet adjusted.

    `groups` (n rows of text columns) says what each row of the cell belongs to, null where unknown; `counts` is
    (n, 1 + R). A group with fewer than 50 subjects is named and not measured.
    """
    incidence = replicates(cell, counts[:, :1], undefined(cell), brief=True).get(model, {}).get("observed")
    threshold = float(np.clip(incidence[0] if incidence is not None else 0.1, 0.005, 0.8))
    rows: list[Row] = []
    tests: list[Row] = []
    for attribute in groups.columns:
        levels = groups[attribute].fill_null("unknown").to_numpy()
        names = sorted(set(levels))
        for place, level in enumerate(names):
            member = levels == level
            here = keys | {"attribute": attribute, "group": level}
            own = _measured(cell, member, counts, model, threshold)
            rows.append(here | _row(cell, member, own, model, threshold))
            # of two groups each is the other's rest
            if len(names) > 1 and not (len(names) == 2 and place == 1):
                rest = _measured(cell, ~member, counts, model, threshold)
                tests += [here | test for test in _tests(cell, member, own, rest)]
    return rows, tests


def adjusted(tests: Sequence[Row]) -> list[Row]:
    """The tests with `p_adjusted` (Holm's step-down over all of them) and `flagged` (adjusted p below .05).

    >>> [row["p_adjusted"] for row in adjusted([{"p": 0.01}, {"p": 0.04}, {"p": None}])]
    [0.02, 0.04, None]
    """
    made = sorted((row["p"], i) for i, row in enumerate(tests) if row["p"] is not None)
    result = [{**row, "p_adjusted": None, "flagged": False} for row in tests]
    largest = 0.0
    for rank, (p, i) in enumerate(made):
        largest = max(largest, min(1.0, p * (len(made) - rank)))
        result[i] |= {"p_adjusted": largest, "flagged": largest < LEVEL}
    return result


def _measured(
    cell: Cell, member: NDArray[np.bool_], counts: NDArray[np.uint16], model: str, threshold: float
) -> dict[str, FloatArray]:
    """Replicates of the measures among some rows; empty where they are too few people to show."""
    part = cell.part(member, (model,))
    if part.subjects < FEWEST_SUBJECTS:
        return {}
    found = replicates(part, counts[member], undefined(part), thresholds=(threshold,), brief=True)
    measures = dict(found[model])
    if "net_benefit" in measures:
        measures["net_benefit"] = measures["net_benefit"][0]
        # acting on no one is worth 0
        measures["net_benefit_of_default"] = np.maximum(found[""]["net_benefit"][0], 0.0)
    return measures


def _row(cell: Cell, member: NDArray[np.bool_], own: dict[str, FloatArray], model: str, threshold: float) -> Row:
    subjects = len(np.unique(cell.subject[member]))
    shown = subjects >= FEWEST_SUBJECTS
    events = int((cell.state.case & member).sum())
    row: Row = {
        "model": model,
        "n": int(member.sum()) if shown else None,
        "subjects": subjects if shown else None,
        "events": events if shown else None,
        "threshold": threshold,
    }
    for name in SHOWN:
        row |= estimate(name, own.get(name), named=True)
    few = "auc" not in own
    why = f"fewer than {FEWEST_SUBJECTS} subjects" if not shown else "too few events" if few else None
    return row | {"reason": why}


def _tests(
    cell: Cell, member: NDArray[np.bool_], own: dict[str, FloatArray], rest: dict[str, FloatArray]
) -> Iterator[Row]:
    case = cell.state.case
    events = int(min((case & member).sum(), (case & ~member).sum()))
    for question in QUESTIONS:
        values, one_sided = None, question == "usefulness"
        if question == "calibration" and "observed_expected" in own and "observed_expected" in rest:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log(own["observed_expected"] / rest["observed_expected"])
        elif question == "discrimination" and "auc" in own and "auc" in rest:
            values = own["auc"] - rest["auc"]
        elif one_sided and "net_benefit" in own:
            values = own["net_benefit"] - own["net_benefit_of_default"]
        yield {"question": question, **_test(values if events >= FEWEST_EVENTS else None, events, one_sided)}


def _test(values: FloatArray | None, events: int, one_sided: bool) -> Row:
    """Difference (a ratio for calibration is its logarithm) with interval, and the p-value of none."""
    from scipy.special import stdtr

    nothing: Row = {"difference": None, "lower": None, "upper": None, "p": None}
    if values is None or not np.isfinite(values[0]):
        return nothing
    spread = values[1:][np.isfinite(values[1:])]
    if len(spread) < FEWEST_REPLICATES or len(spread) < (1 - LARGEST_UNDEFINED) * (len(values) - 1):
        return {**nothing, "difference": float(values[0])}
    error = float(spread.std(ddof=1))
    if error <= 1e-12:
        return {**nothing, "difference": float(values[0])}
    z = float(values[0]) / error
    p = float(stdtr(events, z)) if one_sided else 2 * float(stdtr(events, -abs(z)))
    lower, upper = interval(values)
    return {"difference": float(values[0]), "lower": lower, "upper": upper, "p": p}
