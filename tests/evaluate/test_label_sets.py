"""Scores of sets of labels equal scikit-learn's, the cutoff is the best, and intervals hold their value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as reference

from gptailor.errors import DataError
from gptailor.evaluate.label_sets import (
    best_cutoff,
    evaluate_label_sets,
    fit_label_temperature,
    label_calibration_error,
    label_set_details,
    label_set_scores,
    mean_nats,
    micro_f1,
    paired_label_set_difference,
    rarest_label,
)
from gptailor.evaluate.metrics import share_interval
from gptailor.evaluate.resampling import Resampling
from gptailor.models.readout import sigmoid
from gptailor.types import AnswerForm, FloatArray, IntArray, Score

NAMES = ["a", "b", "c"]
bits = arrays(np.int64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.integers(0, 1))


@st.composite
def two_of_a_kind(draw: st.DrawFn) -> tuple[IntArray, IntArray]:
    answers = draw(bits)
    return answers, draw(arrays(np.int64, answers.shape, elements=st.integers(0, 1)))


def made(rows: int = 400, *, seed: int = 0, scale: float = 1.0) -> tuple[FloatArray, IntArray]:
    """Logits whose sigmoid at temperature `scale` is the true probability of each label."""
    rng = np.random.default_rng(seed)
    logits = rng.normal([0, -1, -3], 2, size=(rows, 3))
    return logits * scale, (rng.random((rows, 3)) < sigmoid(logits)).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(two_of_a_kind())
def test_point_values_equal_scikit_learn(data: tuple[IntArray, IntArray]) -> None:
    answers, predictions = data
    scores = label_set_scores(answers, predictions, NAMES, resampling=Resampling(20))
    assert scores["subset_accuracy"].value == pytest.approx(reference.accuracy_score(answers, predictions))
    assert scores["hamming_loss"].value == pytest.approx(reference.hamming_loss(answers, predictions))
    seen = np.flatnonzero((answers + predictions).sum(axis=0))
    for average in ("micro", "macro"):
        expected: Any = (0.0, 0.0, 0.0)
        if len(seen):
            expected = reference.precision_recall_fscore_support(
                answers, predictions, labels=seen, average=average, zero_division=0
            )
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert scores[f"{average}_{name}"].value == pytest.approx(value)
    each = reference.precision_recall_fscore_support(answers, predictions, average=None, zero_division=0)
    for place, name in enumerate(NAMES):
        one = scores["per_class"][name]
        assert (one["precision"].value, one["recall"].value, one["f1"].value) == pytest.approx(
            tuple(part[place] for part in each[:3])
        )
        assert one["support"] == each[3][place]
    assert micro_f1(answers, predictions) == pytest.approx(scores["micro_f1"].value)


@settings(max_examples=60, deadline=None)
@given(two_of_a_kind(), st.integers(0, 5))
def test_every_score_stands_in_its_interval(data: tuple[IntArray, IntArray], seed: int) -> None:
    found = label_set_scores(*data, NAMES, resampling=Resampling(50, seed))
    for score in found.values():
        if isinstance(score, Score):
            assert 0 <= score.low <= score.value <= score.high <= 1


def test_the_interval_is_that_of_rows_drawn_with_replacement() -> None:
    logits, answers = made(60)
    predictions = (logits > 0).astype(np.int64)
    rng = np.random.default_rng(1)
    drawn = [micro_f1(answers[rows], predictions[rows]) for rows in rng.integers(60, size=(4000, 60))]
    low, high = np.quantile(drawn, (0.025, 0.975))
    found = label_set_scores(answers, predictions, NAMES, resampling=Resampling(4000))["micro_f1"]
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


@settings(max_examples=60, deadline=None)
@given(bits, st.integers(0, 99))
def test_no_cutoff_is_better_than_the_best(answers: IntArray, seed: int) -> None:
    probabilities = np.random.default_rng(seed).integers(0, 8, answers.shape) / 8  # with equal ones
    cutoff, score = best_cutoff(probabilities, answers)
    assert micro_f1(answers, (probabilities >= cutoff).astype(np.int64)) == pytest.approx(score)
    every = [micro_f1(answers, (probabilities >= c).astype(np.int64)) for c in np.arange(0, 9) / 8]
    assert score == pytest.approx(max(every))


def test_paired_difference_is_the_difference_and_sees_an_advantage() -> None:
    logits, answers = made()
    ours, theirs = (logits > 0).astype(np.int64), (logits > 2).astype(np.int64)
    gap = paired_label_set_difference(answers, ours, theirs, resampling=Resampling(300))
    assert gap.value == pytest.approx(micro_f1(answers, ours) - micro_f1(answers, theirs))
    assert gap.low > 0
    assert paired_label_set_difference(answers, ours, ours, resampling=Resampling(50)) == Score(0, 0, 0)


def test_temperature_is_found_again_and_calibrates() -> None:
    logits, answers = made(4000, scale=3.0)
    temperature = fit_label_temperature(logits, answers)
    assert temperature == pytest.approx(3.0, rel=0.1)
    before = label_calibration_error(sigmoid(logits), answers, resampling=Resampling(50))
    after = label_calibration_error(sigmoid(logits / temperature), answers, resampling=Resampling(50))
    assert after.value < before.value / 3
    assert fit_label_temperature(logits[:0], answers[:0]) == 1.0


def test_mean_nats_are_those_of_scikit_learn() -> None:
    logits, answers = made(50)
    expected = sum(reference.log_loss(answers[:, c], sigmoid(logits[:, c])) for c in range(3))
    assert mean_nats(logits, answers) == pytest.approx(expected)


def test_report_and_details_speak_of_the_same_decisions() -> None:
    logits, answers = made(200)
    form = AnswerForm("multiple", ";", cutoff=0.3)
    common: dict[str, Any] = {"form": form, "label_names": NAMES, "temperature": 1.0}
    report = evaluate_label_sets(logits, answers, split="test", resampling=Resampling(50, 0), **common)
    given = (sigmoid(logits) >= 0.3).astype(np.int64)
    assert report.scores["micro_f1"].value == pytest.approx(micro_f1(answers, given))
    details = label_set_details(logits, answers, **common)
    wrong = sum(one["missed"] + one["invented"] for one in details["errors_by_label"])
    assert wrong == (given != answers).sum() == pytest.approx(report.scores["hamming_loss"].value * 600)
    assert sum(one["count"] for one in details["reliability"]["after"]) == 600


def test_rarest_label_is_the_stratum_and_few_rows_share_one() -> None:
    answers = np.array([[1, 1, 0]] * 5 + [[1, 0, 0]] * 9 + [[1, 0, 1]] + [[0, 0, 0]] * 2)
    assert rarest_label(answers, fewest=5).tolist() == [1] * 5 + [0] * 9 + [3] + [3] * 2


def test_what_is_no_set_is_refused() -> None:
    with pytest.raises(DataError, match="no row"):
        label_set_scores(np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64), NAMES)
    with pytest.raises(ValueError, match="0 and 1"):
        label_set_scores(np.full((2, 3), 2), np.zeros((2, 3), np.int64), NAMES)


def test_whole_sets_that_are_all_right_are_not_right_for_sure() -> None:
    answers = np.random.default_rng(0).integers(2, size=(20, 3))
    scores = label_set_scores(answers, answers, NAMES, resampling=Resampling(20))
    found, wrong = scores["subset_accuracy"], scores["hamming_loss"]
    assert (found.low, found.value, found.high) == (pytest.approx(share_interval(20, 20)[0]), 1.0, 1.0)
    assert (wrong.low, wrong.value, wrong.high) == (0.0, 0.0, 1 - found.low)
