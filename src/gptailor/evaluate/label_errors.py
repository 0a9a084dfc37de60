"""How likely each label of a file is wrong, from out-of-fold probabilities (one label a row).

People mistake some classes for some others, and far more often one way than back. A model that learned from
their labels repeats that: it is sure of Sports where Sports was given wrongly a hundred times. So neither the
probability of the given label nor its margin ranks well on what people really label. Here the mistakes are
counted first, class by class (the confident joint of Northcutt, Jiang & Chuang 2021, Confident Learning,
section 3.1), and taken out of the probabilities; what is left is Bayes' rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptailor.types import FloatArray, IntArray

ROUNDS = 30  # of the deconvolution; from 10 on the ranking hardly moves
SMALLEST = 1e-9


@dataclass(frozen=True, slots=True)
class LabelDoubts:
    """What is thought of each of N labels."""

    wrong: FloatArray  # (N,) probability that it is wrong
    likeliest: IntArray  # (N,) the likeliest of the other classes
    sureness: FloatArray  # (N,) the probability of that class


def doubt_labels(probabilities: FloatArray, labels: IntArray) -> LabelDoubts:
    """How likely each given label is wrong, and what it should be.

    Args:
        probabilities: (N, C), of each row by a model that was fitted without it, on labels as noisy as these.
        labels: (N,) as given.
    """
    joint = confident_joint(probabilities, labels)
    mistakes = joint / joint.sum(axis=1, keepdims=True)  # (C, C) P(given | true)
    true = _without_mistakes(probabilities, mistakes, joint.sum(axis=1))
    posterior = true * mistakes[:, labels].T + SMALLEST**2
    posterior /= posterior.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    wrong = 1 - posterior[rows, labels]
    posterior[rows, labels] = -1
    return LabelDoubts(wrong, posterior.argmax(axis=1), posterior.max(axis=1))


def confident_joint(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """(C, C) estimated shares of rows whose true class is the first and whose given one is the second.

    A row counts as the class whose probability reaches that class's own mean among the rows that carry it;
    of several the largest. Columns add up to the classes' shares as given.
    """
    num_labels = probabilities.shape[1]
    given = np.bincount(labels, minlength=num_labels)
    own = np.bincount(labels, weights=probabilities[np.arange(len(labels)), labels], minlength=num_labels)
    thresholds = np.where(given > 0, own / np.maximum(given, 1), np.inf)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    counted = reached.max(axis=1) >= 0
    joint = np.zeros((num_labels, num_labels))
    np.add.at(joint, (reached.argmax(axis=1)[counted], labels[counted]), 1.0)
    joint[np.diag_indices(num_labels)] += SMALLEST  # a class of which no row was counted is taken as right
    joint *= given / joint.sum(axis=0)
    joint[np.diag_indices(num_labels)] += SMALLEST * len(labels)  # and a row of zeros can be divided
    shares: FloatArray = joint / joint.sum()
    return shares


def _without_mistakes(probabilities: FloatArray, mistakes: FloatArray, prior: FloatArray) -> FloatArray:
    """(N, C) probabilities of the true classes, where those given are P(given label | text).

    Richardson-Lucy deconvolution, which is expectation maximization of one mixture a row: the result stays
    a probability, as the inverse of the matrix would not.
    """
    true = np.tile(prior, (len(probabilities), 1))
    for _ in range(ROUNDS):
        true *= (probabilities / np.maximum(true @ mistakes, SMALLEST)) @ mistakes.T
        true /= true.sum(axis=1, keepdims=True)
    return true
