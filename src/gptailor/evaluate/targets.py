"""What the n-gram baseline is fitted to: classes, sets of labels, or numbers; each with its linear model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix
from sklearn import config_context
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier

from gptailor.evaluate.label_sets import best_cutoff, rarest_label
from gptailor.evaluate.numbers import quantile_bins, root_mean_square_error

MAX_ITERATIONS = 2000
FEWEST_OF_A_LABEL = 5


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of answer as the baseline sees it. Answers are (N,) classes, (N, C) 0 and 1, or (N,) numbers."""

    model: str  # what is fitted, in words
    metric: str  # what chooses its strength
    fit: Callable[..., Any]  # (matrix, answers, strength=, tolerance=, seed=)
    guess: Callable[[Any, Any], Any]  # of a fitted model and a matrix: classes, probabilities or numbers
    score: Callable[[Any, Any], float]  # of answers and guesses; higher is better
    strata: Callable[[Any], Any]  # (N,) what rows are dealt out evenly by
    problems: Callable[[Any], int]  # how many models are fitted
    constant: Callable[[], Any]  # what answers where there is nothing to learn


def fit_logistic(
    matrix: csr_matrix,
    answers: Any,
    *,
    strength: float,
    tolerance: float,
    seed: int,
    class_weight: Literal["balanced"] | Mapping[int, float] | None = None,
) -> Any:
    """One-vs-rest by dual coordinate descent, for classes and for sets of labels; classes may have weights.

    Against multinomial L-BFGS on 1,000 rows of three sets: accuracy within 0.4 points either way, 5 to
    40 times faster. One thread: liblinear's random numbers are shared by threads, which would make
    results differ from run to run.
    """
    if answers.ndim == 1 and len(np.unique(answers)) < 2:
        return DummyClassifier(strategy="most_frequent").fit(matrix, answers)
    logistic = LogisticRegression(
        C=strength, solver="liblinear", dual=True, tol=tolerance, max_iter=MAX_ITERATIONS, random_state=seed
    )
    with warnings.catch_warnings():
        # A bound on time, not a fault: the answer is as good as it will get.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes")  # it takes many for a regression
        warnings.filterwarnings("ignore", "Label .* is present in (all|no) training")  # always or never given
        if class_weight is None:
            return OneVsRestClassifier(logistic).fit(matrix, answers)
        if class_weight == "balanced":
            class_weight = dict(enumerate(len(answers) / np.maximum(1, np.bincount(answers))))
        weights = np.array([class_weight[answer] for answer in answers.tolist()])
        with config_context(enable_metadata_routing=True):
            weighted = OneVsRestClassifier(logistic.set_fit_request(sample_weight=True))
            return weighted.fit(matrix, answers, sample_weight=weights / weights.mean())


def weighted_classes(weights: Literal["balanced"] | Mapping[int, float]) -> Target:
    """Classes whose rows count by their class."""
    return replace(CLASSES, fit=partial(fit_logistic, class_weight=weights))


def fit_ridge(matrix: csr_matrix, answers: Any, *, strength: float, tolerance: float, seed: int) -> Any:
    """Least squares, held back by one over the strength."""
    solver = Ridge(alpha=1 / strength, tol=tolerance, solver="sparse_cg", random_state=seed)
    return solver.fit(matrix.astype(np.float64), answers)


def _probabilities(model: Any, inputs: Any) -> Any:
    found = model.predict_proba(inputs)
    if isinstance(found, list):  # the constant model's, a label at a time
        return np.stack([one @ (model.classes_[place] == 1) for place, one in enumerate(found)], axis=1)
    return np.asarray(found)


CLASSES = Target(
    model="logistic regression",
    metric="macro-F1",
    fit=fit_logistic,
    guess=lambda model, inputs: np.asarray(model.predict(inputs), dtype=np.int64),
    score=lambda answers, guesses: float(f1_score(answers, guesses, average="macro", zero_division=0)),
    strata=lambda answers: answers,
    problems=lambda answers: 1 if len(np.unique(answers)) == 2 else len(np.unique(answers)),
    constant=lambda: DummyClassifier(strategy="most_frequent"),
)
LABEL_SETS = Target(
    model="logistic regression for each label",
    metric="micro-F1",
    fit=fit_logistic,
    guess=_probabilities,
    score=lambda answers, guesses: best_cutoff(guesses, answers)[1],
    strata=lambda answers: rarest_label(answers, fewest=FEWEST_OF_A_LABEL),
    problems=lambda answers: int(answers.shape[1]),
    constant=lambda: DummyClassifier(strategy="prior"),
)
NUMBERS = Target(
    model="ridge regression",
    metric="root mean square error",
    fit=fit_ridge,
    guess=lambda model, inputs: np.asarray(model.predict(inputs), dtype=np.float64),
    score=lambda answers, guesses: -root_mean_square_error(answers, guesses),
    strata=quantile_bins,
    problems=lambda _: 1,
    constant=lambda: DummyRegressor(strategy="mean"),
)
