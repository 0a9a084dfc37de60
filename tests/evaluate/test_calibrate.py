"""Temperature, calibration error and threshold do what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.errors import DataError, NonFiniteError
from gptailor.evaluate.calibrate import (
    at_threshold,
    calibration_error,
    calibration_noise,
    calibration_scores,
    choose_threshold,
    coverage_curve,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    softmax,
)
from gptailor.evaluate.resampling import Resampling
from gptailor.types import FloatArray, IntArray


def true_to_their_word(
    num_rows: int, *, num_labels: int = 4, temperature: float = 1.0, seed: int = 0
) -> tuple[FloatArray, IntArray]:
    """Logits whose probabilities are right once divided by the temperature."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(num_rows, num_labels))
    probabilities = softmax(logits)
    answers = (probabilities.cumsum(axis=1) > rng.random((num_rows, 1))).argmax(axis=1)
    return logits * temperature, answers


def of_two(confidence: list[float], right: list[int]) -> tuple[FloatArray, IntArray]:
    """Two-class rows with a top probability on class 0, which is the answer or not."""
    top = np.array(confidence)
    return np.stack([top, 1 - top], axis=1), 1 - np.array(right)


def test_softmax_is_stable_and_ordered() -> None:
    probabilities = softmax(np.array([[1e4, 0.0, -1e4], [0.0, np.log(3), -1e9]]))
    assert probabilities == pytest.approx(np.array([[1, 0, 0], [0.25, 0.75, 0]]))
    logits = np.array([[2.0, 1.0, 0.0]])
    flatter = softmax(logits, 4.0)
    assert flatter.max() < softmax(logits).max()
    assert flatter.argmax() == 0


def test_no_probability_of_nan() -> None:
    with pytest.raises(NonFiniteError, match="row 1"):
        softmax(np.array([[0.0, 1.0], [np.nan, 1.0]]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(temperature: float) -> None:
    logits, answers = true_to_their_word(4000, temperature=temperature)
    assert fit_temperature(logits, answers) == pytest.approx(temperature, rel=0.06)


def test_temperature_is_the_most_likely_one() -> None:
    logits, answers = true_to_their_word(2000, temperature=2.5, seed=5)
    found = fit_temperature(logits, answers)

    def loss(temperature: float) -> float:
        return float(-np.log(softmax(logits, temperature)[np.arange(2000), answers]).mean())

    assert loss(found) <= min(loss(found * factor) for factor in (0.95, 1.05)) + 1e-9


def test_temperature_of_few_or_perfect_rows_stays_sane() -> None:
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)) == 1.0
    assert fit_temperature(np.zeros((50, 3)), np.zeros(50, dtype=np.int64)) == pytest.approx(1.0, abs=1e-3)
    one_wrong = fit_temperature(np.array([[30.0, 0.0]]), np.array([1]))
    assert 1.0 < one_wrong <= 20.0
    logits = 4.0 * np.eye(2)[np.arange(30) % 2]
    perfect = fit_temperature(logits, np.arange(30) % 2)
    assert 0.3 < perfect < 1.0  # the likelihood alone would go to 0: certain for ever
    hopeless = fit_temperature(1e3 * np.eye(2)[np.arange(500) % 2], 1 - np.arange(500) % 2)
    assert hopeless == pytest.approx(20.0, rel=1e-3)


def test_calibration_error_by_hand() -> None:
    probabilities, answers = of_two([0.9, 0.9, 0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0, 0, 1])
    # bin of 0.9: |0.9 - 0.75| on 4 rows; bin of 0.6: |0.6 - 0.5| on 2 rows
    assert expected_calibration_error(probabilities, answers) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    certain, never = of_two([1.0, 1.0], [0, 0])
    assert expected_calibration_error(certain, never) == pytest.approx(1.0)


def test_calibration_error_interval_equals_a_plain_loop() -> None:
    logits, answers = true_to_their_word(120, temperature=3.0)
    probabilities = softmax(logits)
    rng = np.random.default_rng(9)
    rows = rng.integers(120, size=(400, 120))
    errors = [expected_calibration_error(probabilities[r], answers[r]) for r in rows]
    low, high = np.quantile(errors, [0.025, 0.975])
    found = calibration_error(probabilities, answers, resampling=Resampling(400, 9))
    assert found.value == expected_calibration_error(probabilities, answers)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_temperature_mends_the_calibration() -> None:
    validation = true_to_their_word(2000, temperature=3.0, seed=1)
    logits, answers = true_to_their_word(2000, temperature=3.0, seed=2)
    scores = calibration_scores(logits, answers, fit_temperature(*validation), resampling=Resampling(200, 0))
    assert scores["before"].low > 0.1
    assert scores["after"].high < 0.06
    for score in scores.values():
        assert 0 <= score.low <= score.value <= score.high <= 1


def test_reliability_bins_account_for_every_row() -> None:
    logits, answers = true_to_their_word(500)
    probabilities = softmax(logits)
    bins = reliability_bins(probabilities, answers)
    assert sum(entry["count"] for entry in bins) == 500
    assert all(entry["low"] < entry["confidence"] <= entry["high"] for entry in bins)
    gaps = sum(entry["count"] * abs(entry["confidence"] - entry["accuracy"]) for entry in bins)
    assert gaps / 500 == pytest.approx(expected_calibration_error(probabilities, answers, bins=10))


def test_right_probabilities_are_within_their_noise() -> None:
    rng = np.random.default_rng(5)
    within = 0
    for seed in range(40):
        top = rng.uniform(0.5, 1.0, 60)
        right = (rng.random(60) < top).astype(int)
        probabilities, answers = of_two(top.tolist(), right.tolist())
        noise = calibration_noise(probabilities, resamples=200, seed=seed)
        assert noise.value > 0.05  # on sixty rows right probabilities look this wrong
        within += expected_calibration_error(probabilities, answers) <= noise.high
    assert within >= 36
    sure, wrong = of_two([0.99] * 60, [1, 0] * 30)
    assert expected_calibration_error(sure, wrong) > calibration_noise(sure).high


def test_threshold_keeps_the_most_rows_that_reach_the_target() -> None:
    probabilities, answers = of_two([0.99, 0.9, 0.8, 0.7, 0.6] * 20, [1, 0, 1, 1, 0] * 20)
    assert choose_threshold(probabilities, answers, target=0.75) == 0.7  # 3 of 4, though 1 of 2 above 0.9
    assert choose_threshold(probabilities, answers, target=0.95) == 0.99
    assert choose_threshold(probabilities, answers, target=0.6) == 0.0  # all rows do


def test_threshold_is_none_where_nothing_reaches_the_target() -> None:
    probabilities, answers = of_two([0.9, 0.8], [0, 1])
    assert choose_threshold(probabilities, answers) is None


def test_a_threshold_rests_on_more_than_the_surest_rows() -> None:
    """Those are nearly always right, so "at least 95 %" would hold for one row or another."""
    probabilities, answers = of_two([0.99] * 19 + [0.9] * 100, [1] * 19 + [1, 0] * 50)
    assert choose_threshold(probabilities, answers) is None
    probabilities, answers = of_two([0.99] * 20 + [0.9] * 100, [1] * 20 + [1, 0] * 50)
    assert choose_threshold(probabilities, answers) == 0.99


def test_rows_of_equal_confidence_stand_or_fall_together() -> None:
    probabilities, answers = of_two([0.9] * 20, [1] * 18 + [0] * 2)
    assert choose_threshold(probabilities, answers) is None
    assert choose_threshold(probabilities, answers, target=0.9) == 0.0


rows = st.lists(
    st.tuples(st.sampled_from([0.55, 0.6, 0.7, 0.8, 0.95]), st.integers(0, 1)), min_size=1, max_size=30
)


@settings(max_examples=80, deadline=None)
@given(rows, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_threshold_is_the_lowest_that_works(data: list[tuple[float, int]], target: float) -> None:
    probabilities, answers = of_two([top for top, _ in data], [right for _, right in data])
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == answers
    enough = min(20, len(data))
    levels = [t for t in (0.0, *confidence.tolist()) if (confidence >= t).sum() >= enough]
    working = [t for t in levels if right[confidence >= t].mean() >= target]
    assert choose_threshold(probabilities, answers, target=target) == (min(working) if working else None)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_coverage_curve_agrees_with_the_threshold_applied(data: list[tuple[float, int]]) -> None:
    probabilities, answers = of_two([top for top, _ in data], [right for _, right in data])
    curve = coverage_curve(probabilities, answers)
    assert curve[-1]["coverage"] == 1.0
    assert [point["coverage"] for point in curve] == sorted(point["coverage"] for point in curve)
    for point in curve:
        applied = at_threshold(probabilities, answers, point["threshold"], resampling=Resampling(10))
        assert applied["coverage"].value == pytest.approx(point["coverage"])
        assert applied["accuracy"].value == pytest.approx(point["accuracy"])


def test_coverage_curve_is_short() -> None:
    logits, answers = true_to_their_word(3000)
    curve = coverage_curve(softmax(logits), answers, points=50)
    assert 45 <= len(curve) <= 50
    assert curve[0]["accuracy"] > curve[-1]["accuracy"]


def test_at_threshold_counts_what_it_buys() -> None:
    probabilities, answers = of_two([0.99, 0.9, 0.8, 0.7, 0.6], [1, 1, 1, 0, 0])
    bought = at_threshold(probabilities, answers, 0.8)
    assert (bought["answered"], bought["abstained"]) == (3, 2)
    assert bought["coverage"].value == pytest.approx(0.6)
    assert bought["accuracy"].value == 1.0
    everything = at_threshold(probabilities, answers, None)
    assert everything["coverage"].value == 1.0
    assert everything["accuracy"].value == pytest.approx(0.6)
    nothing = at_threshold(probabilities, answers, 0.999)
    assert nothing["accuracy"] is None
    assert nothing["coverage"].value == 0.0


def test_no_rows_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="no row to score"):
        choose_threshold(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        expected_calibration_error(np.ones((3, 2)), np.zeros(2, dtype=np.int64))
