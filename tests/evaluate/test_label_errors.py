"""Wrong labels are ranked first, also where the model learned the mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.evaluate.label_errors import confident_joint, doubt_labels
from gptailor.types import FloatArray, IntArray

MISTAKES = np.array(
    [[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
)  # P(given | true): class 0 is lost to 1


def noisy_rows(count: int, mistakes: FloatArray, seed: int) -> tuple[FloatArray, IntArray, IntArray]:
    """What a perfect model of noisy labels answers, the labels given, and the true ones."""
    random = np.random.default_rng(seed)
    clean = random.dirichlet(np.full(len(mistakes), 0.3), count)
    true = np.array([random.choice(len(mistakes), p=row) for row in clean])
    labels = np.array([random.choice(len(mistakes), p=mistakes[place]) for place in true])
    return clean @ mistakes, labels, true


def found(order: IntArray, wrong: FloatArray) -> float:
    """The share of wrong labels among as many first rows as half of them."""
    return float(wrong[order[: int(wrong.sum()) // 2]].mean())


def test_mistakes_that_the_model_learned_are_still_found() -> None:
    """One class loses rows to another, one way: the probability of the given label hides exactly these."""
    probabilities, labels, true = noisy_rows(3000, MISTAKES, seed=0)
    wrong = labels != true
    doubts = doubt_labels(probabilities, labels)
    own = probabilities[np.arange(len(labels)), labels]
    assert found(np.argsort(-doubts.wrong), wrong) > found(np.argsort(own), wrong) + 0.2
    first = [row for row in np.argsort(-doubts.wrong)[:300].tolist() if wrong[row]]
    assert (doubts.likeliest[first] == 0).mean() > 0.9, "the class that was lost is suggested"


def test_even_mistakes_are_found_as_well_as_by_the_label_s_own_probability() -> None:
    even = np.full((4, 4), 0.2 / 3)
    np.fill_diagonal(even, 0.8)
    probabilities, labels, true = noisy_rows(3000, even, seed=1)
    wrong = labels != true
    doubts = doubt_labels(probabilities, labels)
    own = probabilities[np.arange(len(labels)), labels]
    assert found(np.argsort(-doubts.wrong), wrong) > found(np.argsort(own), wrong) - 0.03
    assert (doubts.likeliest == true)[wrong].mean() > 0.6


def test_the_joint_counts_by_each_class_s_own_threshold() -> None:
    """Northcutt et al. 2021, equation 1, by hand; the thresholds are 0.5 and 0.8."""
    probabilities = np.array([[0.7, 0.3], [0.3, 0.7], [0.2, 0.8], [0.2, 0.8]])
    labels = np.array([0, 0, 1, 1])
    assert confident_joint(probabilities, labels) == pytest.approx(
        np.array([[0.5, 0.0], [0.0, 0.5]]), abs=1e-6
    )
    labels = np.array([0, 1, 0, 1])  # thresholds 0.45 and 0.75
    expected = np.array([[0.25, 0.0], [0.25, 0.5]])  # row 2 was given 0 and counts as 1
    assert confident_joint(probabilities, labels) == pytest.approx(expected, abs=1e-6)


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), count=st.integers(1, 40))
def test_doubts_are_probabilities_of_other_classes(seed: int, classes: int, count: int) -> None:
    """Whatever comes: sure models, classes that no row carries, one row."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, random.choice([0.01, 1.0, 100.0])), count)
    labels = random.integers(classes, size=count)
    doubts = doubt_labels(probabilities, labels)
    assert np.isfinite(doubts.wrong).all()
    assert ((doubts.wrong >= -1e-9) & (doubts.wrong <= 1)).all()
    assert (doubts.likeliest != labels).all()
    assert (doubts.sureness <= doubts.wrong + 1e-9).all()
