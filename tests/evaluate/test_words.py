"""The sentences of a report say what the intervals show, and no more."""

from __future__ import annotations

import pytest

from ehrseq.evaluate.report.words import compared, flag


def gap(measure, difference, half, places=2):
    return {"against": "b", "measure": measure, "places": places, "difference": difference,
            "lower": difference - half, "upper": difference + half}  # fmt: skip


@pytest.mark.parametrize(
    ("auc", "brier", "said"),
    [
        ((0.02, 0.01), (-0.001, 0.0005), "a does better than b at 5y, over all 2 places: AUC +0.020"),
        ((-0.02, 0.01), (0.001, 0.0005), "a does worse than b at 5y"),
        ((0.02, 0.03), (0.001, 0.002), "a cannot be told apart from b at 5y"),
        ((0.02, 0.01), (0.001, 0.002), "a does better than b by AUC alone, at 5y"),
        ((0.02, 0.03), (-0.001, 0.0005), "a does better than b by Brier score alone, at 5y"),
        ((0.02, 0.01), (0.001, 0.0005), "a is better by one measure and worse by another than b at 5y"),
    ],
)
def test_who_wins(auc, brier, said):
    text = compared("a", "b", "5y", [gap("auc", *auc), gap("brier", *brier)], [gap("auc", 0.1, 0.01)])
    assert text.startswith(said)
    assert text.endswith("Place by place: AUC better in 1 of 1.")


def test_without_intervals_nobody_wins():
    rows = [gap("auc", 0.02, 0.01) | {"lower": None, "upper": None}]
    assert compared("a", "b", "5y", rows, rows) == "a was not compared with b, for want of events or intervals."


def test_a_flag_never_claims_a_p_of_zero():
    test = {"outcome": "t2d", "landmark": None, "horizon": "5y", "attribute": "sex", "group": "female",
            "p_adjusted": 1e-9, "question": "calibration", "difference": 0.4, "lower": 0.2, "upper": 0.6}  # fmt: skip
    assert flag(test).endswith("adjusted p below 0.001.")
