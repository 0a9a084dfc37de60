"""Scores equal scikit-learn's, intervals behave, and the verdict says what the interval says."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from gptailor.errors import DataError
from gptailor.evaluate.metrics import (
    as_json,
    bootstrap_mean,
    bootstrap_share,
    classification_scores,
    confusion_matrix,
    paired_difference,
    verdict,
)
from gptailor.evaluate.resampling import Resampling
from gptailor.evaluate.run import macro_f1
from gptailor.types import IntArray, Score


def noisy(answers: IntArray, *, right: float, num_labels: int, seed: int) -> IntArray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(answers)) < right, answers, rng.integers(num_labels, size=len(answers)))


@st.composite
def labelled(draw: st.DrawFn) -> tuple[int, IntArray, IntArray]:
    """Any answers and predictions, with classes that are missing on either side or on both."""
    num_labels = draw(st.integers(2, 6))
    pairs = st.tuples(st.integers(0, num_labels - 1), st.integers(0, num_labels - 1))
    rows = np.array(draw(st.lists(pairs, min_size=1, max_size=40)), dtype=np.int64)
    return num_labels, rows[:, 0], rows[:, 1]


@settings(max_examples=60, deadline=None)
@given(labelled())
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_point_values_equal_scikit_learn(data: tuple[int, IntArray, IntArray]) -> None:
    num_labels, answers, predictions = data
    names = [f"label {index}" for index in range(num_labels)]
    scores = classification_scores(answers, predictions, names, resampling=Resampling(20))
    assert scores["accuracy"].value == pytest.approx(reference.accuracy_score(answers, predictions))
    balanced = reference.balanced_accuracy_score(answers, predictions)
    assert scores["balanced_accuracy"].value == pytest.approx(balanced)
    for average in ("macro", "weighted"):
        expected = reference.precision_recall_fscore_support(
            answers, predictions, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert scores[f"{average}_{name}"].value == pytest.approx(value)
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        answers, predictions, labels=range(num_labels), zero_division=0
    )
    for index, name in enumerate(names):
        found = scores["per_class"][name]
        assert found["precision"].value == pytest.approx(precision[index])
        assert found["recall"].value == pytest.approx(recall[index])
        assert found["f1"].value == pytest.approx(f1[index])
        assert found["support"] == support[index]
        assert scores["precision"][name] == found["precision"]
        assert scores["recall"][name] == found["recall"]


@settings(max_examples=60, deadline=None)
@given(labelled())
def test_every_interval_holds_its_value(data: tuple[int, IntArray, IntArray]) -> None:
    num_labels, answers, predictions = data

    def check(node: object) -> None:
        if isinstance(node, dict):
            for child in node.values():
                check(child)
        elif isinstance(node, Score):
            assert 0 <= node.low <= node.value <= node.high <= 1

    check(
        classification_scores(
            answers, predictions, [str(i) for i in range(num_labels)], resampling=Resampling(50)
        )
    )


def test_confusion_matrix_has_true_rows() -> None:
    answers, predictions = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    expected = reference.confusion_matrix(answers, predictions, labels=range(4))
    assert (confusion_matrix(answers, predictions, 4) == expected).all()


def test_interval_equals_resampling_rows_one_by_one() -> None:
    """The multinomial over pairs is the row bootstrap: the two intervals agree up to sampling noise."""
    rng = np.random.default_rng(3)
    answers = rng.integers(3, size=200)
    predictions = noisy(answers, right=0.7, num_labels=3, seed=4)
    rows = rng.integers(200, size=(4000, 200))
    by_class = [
        2
        * ((answers == label) & (predictions == label))[rows].sum(axis=1)
        / ((answers == label)[rows].sum(axis=1) + (predictions == label)[rows].sum(axis=1))
        for label in range(3)
    ]
    low, high = np.quantile(np.mean(by_class, axis=0), [0.025, 0.975])
    found = classification_scores(answers, predictions, ["a", "b", "c"], resampling=Resampling(4000))[
        "macro_f1"
    ]
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)


def test_resample_averages_over_its_own_classes() -> None:
    """Two rows a class, all right: a class that a resample lacks must not count as a failure."""
    answers = np.repeat(np.arange(30), 2)
    scores = classification_scores(answers, answers, [str(i) for i in range(30)])
    sixty = Score(1.0, pytest.approx(0.9398, abs=1e-4), 1.0)  # type: ignore[arg-type]  # of 60, Wilson's
    assert scores["macro_f1"] == scores["balanced_accuracy"] == scores["accuracy"] == sixty
    assert scores["per_class"]["7"]["f1"].low == pytest.approx(0.3424, abs=1e-4)  # of 2


def test_of_a_label_that_was_never_answered_the_precision_is_unknown() -> None:
    answers, predictions = np.tile([0, 1, 2], 10), np.tile([0, 1, 1], 10)
    found = classification_scores(answers, predictions, ["a", "b", "c"], resampling=Resampling(50))
    assert found["per_class"]["c"]["precision"] == Score(0.0, 0.0, 1.0)


def test_all_right_is_not_for_sure() -> None:
    """No resample of 20 right answers holds a wrong one; a true 97 % gives 20 of 20 every other time."""
    answers = np.tile([0, 1], 10)
    found = classification_scores(answers, answers, ["a", "b"], resampling=Resampling(50))["accuracy"]
    between = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((between.low, 1.0))
    assert bootstrap_share(np.zeros(20), resampling=Resampling(50)).high == pytest.approx(1 - between.low)
    assert bootstrap_mean(np.zeros(20), resampling=Resampling(50)) == Score(
        0, 0, 0
    )  # differences of equal models


def test_interval_covers_the_truth() -> None:
    covered = 0
    for seed in range(200):
        right = (np.random.default_rng(seed).random(150) < 0.8).astype(np.int64)
        score = classification_scores(
            np.ones(150, dtype=np.int64), right, ["n", "y"], resampling=Resampling(300, seed)
        )
        covered += score["accuracy"].low <= 0.8 <= score["accuracy"].high
    assert 0.89 <= covered / 200 <= 0.99


def test_same_seed_same_interval() -> None:
    answers = np.random.default_rng(0).integers(4, size=300)
    predictions = noisy(answers, right=0.8, num_labels=4, seed=1)
    one, again, other = (
        classification_scores(answers, predictions, list("abcd"), resampling=Resampling(seed=seed))
        for seed in (5, 5, 6)
    )
    assert as_json(one) == as_json(again)
    assert as_json(one) != as_json(other)


def test_two_thousand_resamples_of_77_classes_are_quick() -> None:
    answers = np.random.default_rng(0).integers(77, size=7600)
    ours, theirs = (noisy(answers, right=share, num_labels=77, seed=1) for share in (0.85, 0.8))
    started = time.thread_time()
    classification_scores(answers, ours, [str(i) for i in range(77)])
    paired_difference(answers, ours, theirs, num_labels=77)
    # 0.9 s on two shared cores; a loop over resamples takes a minute
    assert time.thread_time() - started < 8


def test_paired_difference_is_the_difference_of_the_scores() -> None:
    answers = np.random.default_rng(0).integers(4, size=500)
    ours, theirs = (noisy(answers, right=s, num_labels=4, seed=i) for i, s in enumerate((0.9, 0.7)))
    found = paired_difference(answers, ours, theirs, num_labels=4)
    scores = [
        classification_scores(answers, p, list("abcd"), resampling=Resampling(10)) for p in (ours, theirs)
    ]
    assert found.value == pytest.approx(scores[0]["macro_f1"].value - scores[1]["macro_f1"].value)
    assert found.low > 0.05
    turned = paired_difference(answers, theirs, ours, num_labels=4)
    assert turned.value == pytest.approx(-found.value)
    accuracy = paired_difference(answers, ours, theirs, num_labels=4, metric="accuracy")
    assert accuracy.value == pytest.approx((ours == answers).mean() - (theirs == answers).mean())


def test_pairing_narrows_the_interval() -> None:
    """Models that fail on the same rows: the paired interval is far narrower than either score's."""
    answers = np.random.default_rng(0).integers(4, size=400)
    theirs = noisy(answers, right=0.6, num_labels=4, seed=1)
    ours = theirs.copy()
    ours[:12] = answers[:12]
    difference = paired_difference(answers, ours, theirs, num_labels=4, metric="accuracy")
    alone = classification_scores(answers, ours, list("abcd"))["accuracy"]
    assert difference.high - difference.low < 0.4 * (alone.high - alone.low)


def test_equal_models_are_seldom_called_different() -> None:
    false_alarms = 0
    for seed in range(120):
        answers = np.random.default_rng(seed).integers(3, size=200)
        ours, theirs = (noisy(answers, right=0.8, num_labels=3, seed=1000 * side + seed) for side in (1, 2))
        difference = paired_difference(answers, ours, theirs, num_labels=3, resampling=Resampling(300, seed))
        false_alarms += difference.low > 0
    assert false_alarms <= 9  # 3 expected; more than 9 happens once in 600


def test_same_predictions_differ_by_exactly_nothing() -> None:
    answers = np.array([0, 1, 1, 0, 1])
    ours = np.array([0, 1, 0, 0, 1])
    assert paired_difference(answers, ours, ours, num_labels=2) == Score(0.0, 0.0, 0.0)


def test_bootstrap_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    score = bootstrap_mean(values)
    assert score.value == pytest.approx(values.mean())
    standard_error = values.std() / 20
    assert score.low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.03)
    assert score.high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.03)


def test_rows_that_cannot_be_scored_are_refused() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    with pytest.raises(DataError, match="no row to score"):
        classification_scores(nothing, nothing, ["a", "b"])
    with pytest.raises(DataError, match="no row to score"):
        bootstrap_mean(np.zeros(0))
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        confusion_matrix(np.array([0, 2]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        confusion_matrix(np.array([0, -1]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="one shape"):
        confusion_matrix(np.array([0, 1]), np.array([0]), 2)


def test_as_json_is_plain_and_rounded() -> None:
    scores = {
        "f1": Score(1 / 3, 0.1, float("nan")),
        "n": np.int64(4),
        "bins": [{"x": np.float64(0.5)}],
        "none": None,
    }
    plain = as_json(scores)
    assert plain == {
        "f1": {"value": 0.333333, "low": 0.1, "high": None},
        "n": 4,
        "bins": [{"x": 0.5}],
        "none": None,
    }
    json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize(
    ("difference", "worth_it", "says"),
    [
        (
            Score(0.041, 0.02, 0.063),
            True,
            "The fine-tune is 4.1 points of macro-F1 ahead of TF-IDF + logistic regression "
            "(95 % interval 2.0 to 6.3): worth it.",
        ),
        (
            Score(0.011, -0.008, 0.03),
            False,
            "No clear difference: the fine-tune is 1.1 points of macro-F1 ahead of "
            "TF-IDF + logistic regression (95 % interval -0.8 to 3.0); "
            "use TF-IDF, it is cheaper, or label more rows.",
        ),
        (
            Score(-0.05, -0.08, -0.02),
            False,
            "The fine-tune is 5.0 points of macro-F1 worse than TF-IDF + logistic regression "
            "(95 % interval -8.0 to -2.0): don't ship the fine-tune.",
        ),
        (
            Score(0.01, 0.0001, 0.02),
            True,
            "The fine-tune is 1.0 points of macro-F1 ahead of TF-IDF + logistic regression "
            "(95 % interval 0.01 to 2.0): worth it.",
        ),
    ],
)
def test_verdict_says_what_the_interval_says(difference: Score, worth_it: bool, says: str) -> None:
    found = verdict(ours_name="The fine-tune", best_baseline="tfidf", difference=difference)
    assert found == {
        "best_baseline": "tfidf",
        "difference": as_json(difference),
        "worth_it": worth_it,
        "says": says,
    }


def test_touching_zero_is_not_worth_it() -> None:
    assert not verdict(ours_name="The fine-tune", best_baseline="tfidf", difference=Score(0.02, 0.0, 0.05))[
        "worth_it"
    ]


def test_same_predictions_are_not_worth_it() -> None:
    found = verdict(
        ours_name="the frozen model",
        best_baseline="majority",
        difference=Score(0, 0, 0),
        same_predictions=True,
    )
    assert not found["worth_it"]
    assert found["says"].startswith("The frozen model gives the same answers as always answering")


def test_verdict_names_an_unknown_baseline_and_metric() -> None:
    found = verdict(
        ours_name="LoRA",
        best_baseline="copy the source",
        difference=Score(3, 1, 5),
        metric_name="chrF",
        points=1,
    )
    assert (
        found["says"]
        == "LoRA is 3.0 points of chrF ahead of copy the source (95 % interval 1.0 to 5.0): worth it."
    )


def test_many_classes_of_few_rows_have_an_interval_that_holds_the_macro_f1_of_all() -> None:
    """A resample lacks rows of every class, and its macro-F1 is lower for it: 44 of 100 intervals would."""
    rng = np.random.default_rng(0)
    shares = np.clip(0.8 + 0.15 * rng.normal(size=77), 0.05, 0.98)  # of each class' rows that are right

    def draw(rows: int) -> tuple[Any, Any]:
        answers = rng.integers(77, size=rows)
        wrong = (answers + rng.integers(1, 77, size=rows)) % 77
        return answers, np.where(rng.random(rows) < shares[answers], answers, wrong)

    names, held = [str(number) for number in range(77)], 0
    truth = macro_f1(*draw(400_000), num_labels=77)
    for seed in range(40):
        found = classification_scores(*draw(231), names, resampling=Resampling(200, seed))["macro_f1"]
        assert found.low <= found.value <= found.high <= 1
        held += found.low <= truth <= found.high
    assert held >= 33
