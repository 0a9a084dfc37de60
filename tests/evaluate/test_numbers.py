"""Scores of numbers equal those of scipy and scikit-learn; the verdict reads an error the right way round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from gptailor.errors import DataError
from gptailor.evaluate.metrics import has_interval
from gptailor.evaluate.numbers import (
    number_details,
    number_scores,
    number_verdict,
    paired_error_difference,
    quantile_bins,
)
from gptailor.evaluate.resampling import FEWEST_UNITS, Resampling
from gptailor.types import FloatArray, Score

numbers = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=40)


@settings(max_examples=60, deadline=None)
@given(numbers)
def test_point_values_equal_scipy_and_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    answers, predictions = np.array(pairs, np.float64).T
    scores = number_scores(answers, predictions, resampling=Resampling(20))
    assert scores["mae"].value == pytest.approx(reference.mean_absolute_error(answers, predictions))
    assert scores["rmse"].value == pytest.approx(reference.root_mean_squared_error(answers, predictions))
    flat = len(set(answers)) < 2 or len(set(predictions)) < 2
    for name, other in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        expected = 0.0 if flat else other(answers, predictions).statistic
        assert scores[name].value == pytest.approx(expected, abs=1e-9)
    for score in scores.values():
        assert has_interval(score) == (len(pairs) >= FEWEST_UNITS)
        assert not score.value < score.low
        assert not score.value > score.high


@pytest.mark.parametrize("scale", [1e-200, 3e-7, 1.0, 1e12])
@pytest.mark.parametrize("start", [0.0, 1e6])
def test_correlations_do_not_depend_on_the_unit(scale: float, start: float) -> None:
    answers, predictions = noisy(50, 0.5)
    expected = number_scores(answers, predictions, resampling=Resampling(50))
    scaled = number_scores(
        (answers + start) * scale, (predictions - start) * scale, resampling=Resampling(50)
    )
    for name in ("pearson", "spearman"):
        for end in ("value", "low", "high"):
            assert getattr(scaled[name], end) == pytest.approx(getattr(expected[name], end), abs=1e-6)


@pytest.mark.parametrize("same", [0.1, 1e-9, 1.7e9 + 0.1])
def test_equal_numbers_have_no_correlation(same: float) -> None:
    answers, _ = noisy(1001, 0.5)
    for pair in ((answers, np.full(1001, same)), (np.full(1001, same), answers)):
        assert number_scores(*pair, resampling=Resampling(20))["pearson"] == Score(0.0, 0.0, 0.0)


def noisy(rows: int, noise: float, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    answers = rng.normal(3, 1, rows)
    return answers, answers + rng.normal(0, noise, rows)


def test_paired_difference_below_zero_is_better() -> None:
    answers, ours = noisy(300, 0.3)
    _, theirs = noisy(300, 0.6)
    gap = paired_error_difference(answers, ours, theirs, resampling=Resampling(300))
    assert gap.high < 0
    said = number_verdict(
        ours_name="The fine-tune", best_baseline="tfidf_ridge", difference=gap, same_predictions=False
    )
    assert said["worth_it"]
    assert "less than TF-IDF + ridge regression" in said["says"]
    worse = number_verdict(
        ours_name="The fine-tune",
        best_baseline="mean",
        difference=paired_error_difference(answers, theirs, ours, resampling=Resampling(300)),
        same_predictions=False,
    )
    assert not worse["worth_it"]
    assert "don't ship" in worse["says"]


@pytest.mark.parametrize("same", [True, False])
def test_verdict_without_a_clear_difference(same: bool) -> None:
    said = number_verdict(
        ours_name="The fine-tune",
        best_baseline="mean",
        difference=Score(-0.1, -0.3, 0.1),
        same_predictions=same,
    )
    assert not said["worth_it"]
    assert said["says"].startswith("The fine-tune gives the same" if same else "No clear difference")


def test_fifths_are_even_and_equal_numbers_stay_together() -> None:
    bins = quantile_bins(np.random.default_rng(0).permutation(100).astype(np.float64))
    assert np.bincount(bins).tolist() == [20] * 5
    assert len(set(quantile_bins(np.ones(10)).tolist())) == 1
    mostly_none = np.array([0.0] * 85 + [1.0, 2.0, 3.0] * 5)
    assert np.bincount(quantile_bins(mostly_none)).tolist() == [85, 15], "folds need two to spread"
    assert quantile_bins(np.zeros(0)).tolist() == []


def test_details_cover_the_range_and_stay_small() -> None:
    answers, predictions = noisy(3000, 0.5)
    shown = number_details(predictions, answers)["numbers"]
    assert len(shown) == 400
    assert shown[0]["answer"] == answers.min()
    assert shown[-1]["answer"] == answers.max()


def test_no_row_is_refused() -> None:
    with pytest.raises(DataError, match="no row"):
        number_scores(np.zeros(0), np.zeros(0))
