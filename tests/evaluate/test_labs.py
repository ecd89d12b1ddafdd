from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import mean_pinball_loss

from ehrseq.errors import EvaluationError
from ehrseq.evaluate.labs import STANDARD_LEVELS, at_levels, crps, judge_labs, pinball, row_scores

WINDOWS = {"0-1y": (0.0, 365.25), "1-3y": (365.25, 1095.75)}


def sample(n=600, seed=0, levels=STANDARD_LEVELS):
    """Normal values whose true quantiles are known, two a subject."""
    random = np.random.default_rng(seed)
    centre = random.normal(50, 10, n)
    observed = random.normal(centre, 5)
    quantiles = centre[:, None] + 5 * norm.ppf(levels)
    return quantiles, observed, random.uniform(1, 1095, n), np.arange(n) // 2


def test_pinball_is_that_of_scikit_learn():
    quantiles, observed, *_ = sample()
    for column, level in enumerate(STANDARD_LEVELS):
        expected = mean_pinball_loss(observed, quantiles[:, column], alpha=level)
        assert pinball(quantiles, STANDARD_LEVELS, observed)[:, column].mean() == pytest.approx(expected, abs=1e-12)


def test_crps_tends_to_the_closed_form_of_the_normal():
    quantiles, observed, *_ = sample(levels=(np.arange(999) + 0.5) / 999)
    centre = np.median(quantiles, axis=1)
    z = (observed - centre) / 5
    exact = 5 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(crps(quantiles, (np.arange(999) + 0.5) / 999, observed), exact, atol=0.005)


def test_standard_levels_are_those_of_the_recipe():
    nine = np.arange(1, 10) / 10
    assert sorted([0.05, *nine.round(1), 0.95]) == list(STANDARD_LEVELS)


def test_quantiles_between_levels_lie_on_straight_lines():
    quantiles, *_ = sample(n=20)
    wanted = [0.05, 0.25, 0.5, 0.77, 0.95]
    expected = [np.interp(wanted, STANDARD_LEVELS, row) for row in quantiles]
    np.testing.assert_allclose(at_levels(quantiles, STANDARD_LEVELS, wanted), expected, atol=1e-12)
    with pytest.raises(EvaluationError, match="levels between"):
        at_levels(quantiles, STANDARD_LEVELS, [0.99])


def test_truth_covers_as_it_says_and_beats_a_wide_forecast():
    quantiles, observed, ahead, subject = sample(n=4000, seed=1)
    wide = 50 + 12 * norm.ppf(STANDARD_LEVELS) + np.zeros_like(quantiles)
    rows, gaps = judge_labs(
        {"truth": quantiles, "wide": wide}, STANDARD_LEVELS, observed, ahead, subject, WINDOWS, n_bootstrap=200
    )
    for row in rows:
        if not row["measure"].startswith("width"):  # which is the same for everybody here
            assert row["lower"] < row["value"] < row["upper"]
        if row["model"] == "truth" and row["measure"] in ("coverage_90", "coverage_80"):
            assert row["lower"] < int(row["measure"][-2:]) / 100 < row["upper"]
    for gap in gaps:
        if gap["measure"] in ("crps", "absolute_error"):
            assert gap["upper"] < 0
    of = {(r["model"], r["window"], r["measure"]): r["value"] for r in rows}
    for gap in gaps:
        pair = [of[m, gap["window"], gap["measure"]] for m in (gap["model"], gap["against"])]
        assert gap["difference"] == pytest.approx(pair[0] - pair[1], abs=1e-12)


def test_means_by_hand():
    scores = row_scores([[1.0, 2.0, 4.0], [0.0, 1.0, 2.0]], [0.25, 0.5, 0.75], [4.5, 1.0])
    np.testing.assert_allclose(scores["absolute_error"], [2.5, 0])
    np.testing.assert_allclose(scores["coverage_50"], [0, 1])
    np.testing.assert_allclose(scores["width_50"], [3, 2])
    # row 1: .25 * 3.5 + .5 * 2.5 + .75 * .5; row 2: .25 + 0 + .25
    np.testing.assert_allclose(scores["crps"], [2 * 2.5 / 3, 2 * 0.5 / 3])


def test_the_interval_is_over_subjects():
    quantiles, observed, ahead, _ = sample(n=400)
    one = {"0-3y": (0.0, 1100.0)}

    def width(subject, copies=1):
        tables = {"a": np.tile(quantiles, (copies, 1))}
        rows, _ = judge_labs(
            tables, STANDARD_LEVELS, np.tile(observed, copies), np.tile(ahead, copies), subject, one, n_bootstrap=300
        )
        return next(r["upper"] - r["lower"] for r in rows if r["measure"] == "crps")

    own = width(np.arange(400))
    # four copies of everyone tell nothing new if they belong to the same people
    assert width(np.tile(np.arange(400), 4), 4) == pytest.approx(own, rel=1e-9)
    assert width(np.arange(1600), 4) == pytest.approx(own / 2, rel=0.2)


def test_rows_that_a_model_did_not_score_count_for_none():
    quantiles, observed, ahead, subject = sample()
    part = quantiles.copy()
    part[:100] = np.nan
    rows, gaps = judge_labs(
        {"full": quantiles, "part": part}, STANDARD_LEVELS, observed, ahead, subject, WINDOWS, n_bootstrap=5
    )
    assert sum(r["unscored"] for r in rows if r["model"] == "part" and r["measure"] == "crps") == 100
    assert sum(r["n"] for r in rows if r["model"] == "full" and r["measure"] == "crps") == 500
    assert {g["difference"] for g in gaps} == {0.0}


def test_few_subjects_are_not_shown():
    quantiles, observed, ahead, subject = sample(n=98)  # 49 people
    rows, gaps = judge_labs(
        {"a": quantiles, "b": quantiles}, STANDARD_LEVELS, observed, np.minimum(ahead, 365), subject, WINDOWS
    )
    assert {r["value"] for r in rows} == {g["difference"] for g in gaps} == {None}
    assert {r["reason"] for r in rows} == {"fewer than 50 subjects"}
    more = judge_labs({"a": np.vstack([quantiles] * 2)}, STANDARD_LEVELS, np.tile(observed, 2), np.full(196, 9.0),
                      np.arange(196) // 2, WINDOWS)[0]  # fmt: skip
    assert next(r for r in more if r["window"] == "0-1y")["value"] is not None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"levels": [0.5] * 11}, "levels that rise"),
        ({"levels": [0.1, 0.5, 0.9]}, "other shapes"),
        ({"observed": np.full(600, np.nan)}, "a value and a time"),
        ({"quantiles": {}}, "at least one model"),
        ({"quantiles": {"a": sample()[0][:, ::-1]}}, "600 rows that do"),
    ],
)
def test_bad_input(change, expected):
    quantiles, observed, ahead, subject = sample()
    given = {"quantiles": {"a": quantiles}, "levels": STANDARD_LEVELS, "observed": observed} | change
    with pytest.raises(EvaluationError, match=expected):
        judge_labs(**given, days_ahead=ahead, subject=subject, windows=WINDOWS)
