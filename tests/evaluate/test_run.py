"""All scores of one classifier on one split: the same as scikit-learn's, and what the page is drawn from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from gptailor.errors import DataError, NonFiniteError
from gptailor.evaluate.calibrate import softmax
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.resampling import Resampling
from gptailor.evaluate.run import evaluate_logits, evaluation_details, macro_f1, overfitting_in_words

NAMES = ["business", "health", "sports"]


def draw(rows: int = 200, *, seed: int = 0, sharpness: float = 2.0) -> tuple[Any, Any]:
    """Logits (N, 3) that are right more often than not, and the answers."""
    dice = np.random.default_rng(seed)
    answers = dice.integers(3, size=rows)
    logits = dice.normal(size=(rows, 3)) * sharpness
    logits[np.arange(rows), answers] += 1.5
    return logits, answers


def evaluate(logits: Any, answers: Any, **changes: Any) -> Any:
    settings = {"label_names": NAMES, "temperature": 1.7, "resampling": Resampling(300, 0), **changes}
    return evaluate_logits(logits, answers, split="test", **settings)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_macro_f1_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    answers, predictions = np.array(pairs, np.int64).T
    ours = macro_f1(answers, predictions, num_labels=4)
    assert ours == pytest.approx(metrics.f1_score(answers, predictions, average="macro", zero_division=0))


def test_every_score_is_scikit_learns_with_an_interval_around_it() -> None:
    logits, answers = draw()
    report = evaluate(logits, answers)
    predictions = logits.argmax(axis=1)
    scores = report.scores
    expected = {
        "accuracy": metrics.accuracy_score(answers, predictions),
        "balanced_accuracy": metrics.balanced_accuracy_score(answers, predictions),
        "macro_f1": metrics.f1_score(answers, predictions, average="macro"),
        "weighted_f1": metrics.f1_score(answers, predictions, average="weighted"),
        "macro_precision": metrics.precision_score(answers, predictions, average="macro"),
        "macro_recall": metrics.recall_score(answers, predictions, average="macro"),
    }
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(value)
        assert scores[name].low < scores[name].value < scores[name].high
    per_class = metrics.f1_score(answers, predictions, average=None)
    assert [scores["per_class"][name]["f1"].value for name in NAMES] == pytest.approx(per_class)
    assert (report.split, report.size) == ("test", 200)
    json.dumps(as_json(scores), allow_nan=False)


def test_the_temperature_changes_probabilities_and_no_answer() -> None:
    logits, answers = draw()
    cold, warm = evaluate(logits, answers, temperature=0.5), evaluate(logits, answers, temperature=4.0)
    for name in ("accuracy", "macro_f1"):
        assert cold.scores[name] == warm.scores[name]
    assert cold.scores["calibration_error"] != warm.scores["calibration_error"]
    assert cold.scores["calibration_error_before"] == warm.scores["calibration_error_before"]
    assert (warm.predictions.probabilities == softmax(logits, 4.0)).all()
    assert warm.predictions.answers is answers


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others() -> None:
    logits, answers = draw()
    assert evaluate(logits, answers).scores == evaluate(logits, answers).scores
    assert evaluate(logits, answers).scores != evaluate(logits, answers, resampling=Resampling(300, 1)).scores


def test_the_order_of_the_rows_and_of_their_batches_changes_nothing() -> None:
    logits, answers = draw()
    shuffled = np.random.default_rng(1).permutation(len(answers))
    one, other = evaluate(logits, answers).scores, evaluate(logits[shuffled], answers[shuffled]).scores
    assert one["macro_f1"] == other["macro_f1"]
    assert one["per_class"] == other["per_class"]


def test_a_class_without_rows_has_no_say_in_the_macro_scores() -> None:
    logits, answers = draw()
    kept = answers != 2
    logits[:, 2] = -9
    report = evaluate(logits[kept], answers[kept])
    answers, predictions = answers[kept], logits[kept].argmax(axis=1)
    assert report.scores["macro_f1"].value == pytest.approx(
        metrics.f1_score(answers, predictions, average="macro")
    )
    assert report.scores["per_class"]["sports"]["support"] == 0


def test_no_rows_and_numbers_that_are_none_are_refused() -> None:
    logits, answers = draw(5)
    with pytest.raises(DataError, match="no row to score"):
        evaluate(logits[:0], answers[:0])
    logits[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="row 3"):
        evaluate(logits, answers)


# What the page draws.


def details(logits: Any, answers: Any, **changes: Any) -> dict[str, Any]:
    settings = {"label_names": NAMES, "temperature": 1.7, "threshold": 0.6, "resampling": Resampling(300, 0)}
    return evaluation_details(logits, answers, **{**settings, **changes})


def test_the_confusions_are_counted_and_sorted() -> None:
    answers = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    predictions = np.array([0, 1, 1, 2, 1, 0, 2, 2, 1, 1])
    logits = 5.0 * np.eye(3)[predictions]
    found = details(logits, answers)
    assert found["confusion"] == metrics.confusion_matrix(answers, predictions).tolist()
    assert found["confused"] == [
        {"answer": "business", "prediction": "health", "count": 2},
        {"answer": "sports", "prediction": "health", "count": 2},
        {"answer": "business", "prediction": "sports", "count": 1},
        {"answer": "health", "prediction": "business", "count": 1},
        {"answer": "health", "prediction": "sports", "count": 1},
    ]
    assert found["label_names"] == NAMES


def test_at_most_twelve_confusions_are_named() -> None:
    names = [f"label {n}" for n in range(6)]
    answers = np.repeat(np.arange(6), 6)
    logits = 5.0 * np.eye(6)[np.tile(np.arange(6), 6)]
    found = details(logits, answers, label_names=names)
    assert len(found["confused"]) == 12
    assert all(pair["answer"] != pair["prediction"] for pair in found["confused"])


def test_reliability_coverage_and_threshold_tell_of_the_same_rows() -> None:
    logits, answers = draw()
    found = details(logits, answers)
    for when, temperature in (("before", 1.0), ("after", 1.7)):
        probabilities = softmax(logits, temperature)
        bins = found["reliability"][when]
        assert sum(entry["count"] for entry in bins) == 200
        mean = sum(entry["count"] * entry["confidence"] for entry in bins) / 200
        assert mean == pytest.approx(probabilities.max(axis=1).mean())
    last = found["coverage"][-1]
    assert last["coverage"] == 1
    assert last["accuracy"] == pytest.approx((logits.argmax(axis=1) == answers).mean())
    top = softmax(logits, 1.7).max(axis=1)
    assert found["at_threshold"]["answered"] == (top >= 0.6).sum()
    assert found["at_threshold"]["abstained"] == (top < 0.6).sum()
    assert (found["temperature"], found["threshold"]) == (1.7, 0.6)
    assert details(logits, answers, threshold=None)["at_threshold"]["answered"] == 200
    json.dumps(as_json(found), allow_nan=False)


# Overfitting in words.


def curves(train: list[float], validation: list[float]) -> list[dict[str, float]]:
    return [
        {"step": 10 * place, "train_loss": inside, "validation_loss": outside}
        for place, (inside, outside) in enumerate(zip(train, validation, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        ([1.0, 0.5, 0.1], [0.9, 0.6, 0.9], "Overfitting from step 20"),
        ([1.0, 0.5, 0.4], [0.9, 0.6, 0.5], "still falling at the last step"),
        ([1.0, 0.5, 0.4], [0.9, 0.6, 0.62], "rose by 0.02 nats at most"),
        ([1.0, 0.1, 0.0], [0.9, 0.7, 0.74], "0.74 nats under the validation loss"),
        ([0.4, 0.42, 0.43], [0.5, 0.51, 0.52], "No overfitting to speak of"),
        (
            [0.4, 0.5, 0.9],
            [0.5, 0.6, 0.9],
            "went astray after step 10: the validation loss rose by 0.40",
        ),
    ],
)
def test_the_curves_are_put_into_words(train: list[float], validation: list[float], words: str) -> None:
    told = overfitting_in_words(curves(train, validation), best_step=20)
    assert words in told
    assert told.endswith("The weights of step 20 are kept.")


def test_one_point_is_no_curve() -> None:
    assert overfitting_in_words(curves([1.0], [1.0]), best_step=1) == ""
    apart = curves([1.0, 0.2, 0.1], [1.0, 0.9, 0.91])
    assert "under the validation loss" in overfitting_in_words(apart, best_step=20)
    assert "under the validation loss" not in overfitting_in_words(apart, best_step=20, alike=False)
    assert overfitting_in_words([], best_step=0) == ""


def test_a_loss_that_rose_and_fell_again_is_told_by_its_highest() -> None:
    losses = [(0.69, 0.703), (0.6, 0.732), (0.5, 0.768), (0.32, 0.752)]
    curves = [{"step": i, "train_loss": a, "validation_loss": b} for i, (a, b) in enumerate(losses, 1)]
    told = overfitting_in_words(curves, best_step=1)
    assert "rose by 0.07 nats at most" in told
