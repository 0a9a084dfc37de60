"""Which rows to label first: the doubtful ones, and not one doubt many times."""

from __future__ import annotations

import numpy as np
import pytest

from gptailor.evaluate.choice import doubts, most_telling_first
from gptailor.types import AnswerForm, FloatArray, IntArray


def alone(rows: IntArray) -> IntArray:
    return np.arange(len(rows))


def test_doubt_is_the_margin_between_two_labels() -> None:
    probabilities = np.array([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05], [0.4, 0.35, 0.25]])
    assert doubts(probabilities, AnswerForm()) == pytest.approx([1.0, 0.15, 0.95])
    assert doubts(np.ones((2, 1)), AnswerForm()).tolist() == [0, 0]


def test_doubt_of_a_set_is_its_least_sure_label() -> None:
    form = AnswerForm(kind="multiple", cutoff=0.4)
    found = doubts(np.array([[0.4, 0.99], [1.0, 0.1], [1.0, 1.0]]), form)
    assert found == pytest.approx([1.0, 0.5, 0.0])


def test_every_row_comes_once_whatever_the_sizes() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 3, 9, 60):
        features = rng.normal(size=(size, 4))
        order = most_telling_first(
            rng.random(size), features_of=features.__getitem__, duplicates_of=alone, batch=3, most=10
        )
        assert sorted(order.tolist()) == list(range(size))


def test_a_batch_takes_from_every_cluster_and_its_most_doubtful_row() -> None:
    """Four heaps of ten; one heap is doubted most. Doubt alone would ask it ten times."""
    rng = np.random.default_rng(0)
    centers = np.array([[0, 0], [40, 0], [0, 40], [40, 40]])
    features = np.repeat(centers, 10, axis=0) + rng.normal(size=(40, 2))
    doubt = np.r_[np.linspace(0.9, 0.99, 10), rng.uniform(0.3, 0.5, 30)]
    order = most_telling_first(
        doubt, features_of=lambda rows: features[rows], duplicates_of=alone, batch=4, most=4
    )
    assert sorted(order[:4] // 10) == [0, 1, 2, 3]
    assert order[0] == 9
    for row in order[:4]:
        heap = slice(row // 10 * 10, row // 10 * 10 + 10)
        assert doubt[row] == doubt[heap].max()
    rest = order[4:]
    assert doubt[rest].tolist() == sorted(doubt[rest], reverse=True)


def test_near_duplicates_are_asked_once_and_come_last() -> None:
    rng = np.random.default_rng(1)
    doubt = np.r_[0.99, 0.98, 0.97, rng.uniform(0, 0.9, 20)]
    features = rng.normal(size=(23, 3))

    def groups(rows: IntArray) -> IntArray:
        return np.where(rows < 3, 0, rows)

    order = most_telling_first(
        doubt, features_of=lambda rows: features[rows], duplicates_of=groups, batch=5, most=10
    )
    assert 0 in order[:5]
    assert order[-2:].tolist() == [1, 2]


def test_features_are_asked_for_what_may_be_chosen_only() -> None:
    asked: list[int] = []

    def features_of(rows: IntArray) -> FloatArray:
        asked.append(len(rows))
        return np.random.default_rng(0).normal(size=(len(rows), 3))

    most_telling_first(
        np.random.default_rng(0).random(1000), features_of=features_of, duplicates_of=alone, batch=5, most=10
    )
    assert asked == [10 + 9 * 5]


def test_equal_rows_do_not_break_the_clustering() -> None:
    order = most_telling_first(
        np.ones(50), features_of=lambda rows: np.zeros((len(rows), 2)), duplicates_of=alone, batch=5, most=10
    )
    assert sorted(order.tolist()) == list(range(50))
