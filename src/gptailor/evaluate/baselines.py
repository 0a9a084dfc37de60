"""The cheap rungs of the ladder: the most frequent answer, and TF-IDF + a linear model.

The second is built to win where it can: a baseline that nobody tuned flatters every fine-tune.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from gptailor.errors import DataError, number_of
from gptailor.evaluate.targets import CLASSES, Target
from gptailor.types import FloatArray, IntArray

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
FOLDS = 5
# The search for the strength looks at no more than this; the refit sees every row. One-vs-rest costs
# rows x classes, and at the row floor 77 classes still have 26 rows each.
SEARCH_ROWS = 4000
SEARCH_ROWS_TIMES_CLASSES = 200_000
SEARCH_ROWS_FLOOR = 2000
SEARCH_TOLERANCE = 1e-2  # half the time of 1e-4; probabilities within 1e-3, the same choice
FINAL_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """What a baseline answers to the rows of both parts: classes (N,), label sets (N, C) or numbers (N,)."""

    name: str
    test: Any
    validation: Any
    note: str
    seconds: float


@dataclass(frozen=True, slots=True)
class FittedTfidf:
    """A scikit-learn pipeline from texts to classes, and how its strength was chosen."""

    pipeline: Pipeline
    note: str
    strength: float | None = None  # None: there was nothing to learn from


def majority(train_labels: IntArray, *, num_validation: int, num_test: int) -> BaselineResult:
    """Answers the most frequent class (N,) or label set (N, C) of the training rows; ties go to the first."""
    started = time.perf_counter()
    _check_rows(len(train_labels))
    found, counts = np.unique(train_labels, axis=0, return_counts=True)
    most = int(counts.argmax())
    return BaselineResult(
        name="majority",
        test=np.repeat(found[most : most + 1], num_test, axis=0),
        validation=np.repeat(found[most : most + 1], num_validation, axis=0),
        note=f"{counts[most]:,} of {number_of(len(train_labels), 'training row')} carry it",
        seconds=time.perf_counter() - started,
    )


def mean_number(train_numbers: FloatArray, *, num_validation: int, num_test: int) -> BaselineResult:
    """Answers the mean of the training rows' numbers, shape (N,)."""
    _check_rows(len(train_numbers))
    mean = float(train_numbers.mean())
    return BaselineResult(
        "mean", np.full(num_test, mean), np.full(num_validation, mean), note=f"{mean:.4g}", seconds=0.0
    )


def strongest(asked: Mapping[str, int], score: Callable[[str, str], float]) -> str:
    """The best of several baselines, of which some were asked a sample of the rows only.

    Among those that answered the most rows it is chosen by all of them; another one takes its place if it
    does better on the rows that it was asked.

    Args:
        asked: How many rows each answered.
        score: Of the first named, on the rows that both answered; higher is better.
    """
    most = max(asked.values())
    best = max((name for name in asked if asked[name] == most), key=lambda name: score(name, name))
    for name in asked:
        if score(name, best) > score(best, name):
            best = name
    return best


def tfidf(
    train_texts: Sequence[str],
    train_labels: Any,
    validation_texts: Sequence[str],
    test_texts: Sequence[str],
    *,
    validation_labels: Any = None,
    names: Sequence[str] = (),
    folds: IntArray | None = None,
    seed: int = 0,
    target: Target = CLASSES,
) -> BaselineResult:
    """Fits `fit_tfidf` on the training rows and gives what the target guesses of the other parts.

    With `validation_labels` a fit on training and validation rows answers the test rows, with the strength
    that the training rows chose: whoever took it instead would give it all rows.
    """
    started = time.perf_counter()
    common: dict[str, Any] = {"names": names, "seed": seed, "target": target}
    fitted = fit_tfidf(train_texts, train_labels, folds=folds, **common)
    validation = _predict(fitted.pipeline, validation_texts, target, train_labels)
    note = fitted.note
    if validation_labels is not None and fitted.strength is not None:
        texts, labels = [*train_texts, *validation_texts], np.concatenate([train_labels, validation_labels])
        fitted = fit_tfidf(texts, labels, strength=fitted.strength, **common)
        note += "; then fitted to training and validation rows"
    test = _predict(fitted.pipeline, test_texts, target, train_labels)
    return BaselineResult("tfidf", test, validation, note, time.perf_counter() - started)


def fit_tfidf(
    texts: Sequence[str],
    labels: Any,
    *,
    names: Sequence[str] = (),
    folds: IntArray | None = None,
    strength: float | None = None,
    seed: int = 0,
    target: Target = CLASSES,
) -> FittedTfidf:
    """TF-IDF of word 1-2-grams and character 2-5-grams, and the target's linear model.

    The inverse regularization strength has the best 5-fold score (of classes macro-F1); then all rows are
    fitted. The texts are cut into n-grams once, but each fold's vocabulary and weights come from its own
    training rows. Sharing them looks harmless and isn't: n-grams that only the judged row has then take their
    part of its length (SMS spam, 200 rows: 0.57 macro-F1 in the folds, 0.91 on fresh rows).

    Args:
        texts: The training texts, N of them.
        labels: Their classes, shape (N,), or what else the target is. One single answer is allowed: it is
            always given.
        names: What the classes' names say, one text each in their order, or none: they teach beside the
            rows, in every fold, and nobody is judged by them.
        folds: (N,) numbers of the folds of the search; None deals every row out for itself.
        strength: Inverse regularization strength; None searches `STRENGTHS`.
        seed: Of the folds and of the solver.
        target: The kind of answer.

    Raises:
        DataError: There is no training row.
    """
    _check_rows(len(texts))
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} texts but {len(labels)} labels")
    counters = _usable_counters(texts)
    if not counters or len(np.unique(labels, axis=0)) < 2:
        why = "the training rows carry one label" if counters else "the training texts hold no characters"
        classifier = target.constant().fit(np.zeros((len(labels), 1)), labels)
        return FittedTfidf(
            Pipeline([("classifier", classifier)]), f"{why}, so it is always the most frequent one"
        )
    counts = [csr_matrix(counter.fit_transform([*texts, *names])) for counter in counters]
    taught = np.concatenate([labels, np.arange(len(names))]) if len(names) else labels
    note = "given"
    if strength is None:
        strength, note = _best_strength(counts, taught, target, judged=len(labels), folds=folds, seed=seed)
    if len(names):
        note += "; the labels' names taught, too"
    weightings = [TfidfTransformer(sublinear_tf=True).fit(block) for block in counts]
    matrix = hstack([w.transform(block) for w, block in zip(weightings, counts, strict=True)], format="csr")
    classifier = target.fit(matrix, taught, strength=strength, tolerance=FINAL_TOLERANCE, seed=seed)
    features = FeatureUnion(
        [
            (counter.analyzer, Pipeline([("counts", counter), ("weights", weighting)]))
            for counter, weighting in zip(counters, weightings, strict=True)
        ]
    )
    return FittedTfidf(
        Pipeline([("features", features), ("classifier", classifier)]),
        f"word 1-2-grams and character 2-5-grams, {target.model} with C={strength:g} ({note})",
        strength,
    )


def tfidf_probabilities(
    texts: Sequence[str],
    labels: IntArray,
    *,
    num_labels: int,
    folds: IntArray | None = None,
    strength: float = 1.0,
    seed: int = 0,
) -> FloatArray:
    """Out-of-fold probabilities (N, C): each row is judged by a model fitted without its fold.

    What a search for wrong labels needs; a stronger fit believes more of them (docs/log.md). A class that a
    fold's model hasn't seen gets 0.
    """
    probabilities = np.zeros((len(labels), num_labels))
    counters = _usable_counters(texts)
    counts = [csr_matrix(counter.fit_transform(texts)) for counter in counters]
    folds = _stratified_folds(labels, seed=seed) if folds is None else folds
    for fold in range(folds.max(initial=0) + 1):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(inside) or not len(outside):
            raise DataError("out-of-fold probabilities need at least 2 rows.", fix="Give more labelled rows.")
        if counts:
            matrix, unseen = _fold_features(counts, outside, inside)
        else:  # no text holds a character
            matrix, unseen = csr_matrix((len(outside), 1)), csr_matrix((len(inside), 1))
        fitted = CLASSES.fit(
            matrix, labels[outside], strength=strength, tolerance=SEARCH_TOLERANCE, seed=seed
        )
        probabilities[np.ix_(inside, fitted.classes_)] = fitted.predict_proba(unseen)
    return probabilities


def _usable_counters(texts: Sequence[str]) -> list[CountVectorizer]:
    """Both kinds of n-grams, less one that would find nothing (texts of emoji have no words).

    Character n-grams stay inside words (`char_wb`) and nothing is cut by frequency: on held-out training
    rows (1,000 rows fitted, 3,000 held out, C=10) this has 85.1 / 71.8 / 72.4 % on AG News / SST-2 /
    Banking77, n-grams across words 85.1 / 72.0 / 70.1 %, and dropping n-grams seen once costs 0.3 to 1.
    """
    words = CountVectorizer(ngram_range=(1, 2), dtype=np.float32)
    characters = CountVectorizer(ngram_range=(2, 5), analyzer="char_wb", dtype=np.float32)
    return [
        counter
        for counter in (words, characters)
        if any(map(counter.build_analyzer(), texts))  # stops at the first text that has one
    ]


def _best_strength(
    counts: Sequence[csr_matrix],
    labels: Any,
    target: Target,
    *,
    judged: int,
    folds: IntArray | None,
    seed: int,
) -> tuple[float, str]:
    """The strength with the best k-fold score (ties: the smallest), and how it was found.

    What comes behind the first `judged` rows teaches in every fold.
    """
    own = labels[:judged]
    rows = _search_rows(target.strata(own), problems=target.problems(own), seed=seed)
    folds = _stratified_folds(target.strata(own[rows]), seed=seed) if folds is None else folds[rows]
    beside = np.arange(judged, len(labels))
    rows, folds = np.append(rows, beside), np.append(folds, np.full(len(beside), -1))
    counts, labels = [block[rows] for block in counts], labels[rows]
    answered: list[Any] = []
    guesses: dict[float, list[Any]] = {strength: [] for strength in STRENGTHS}
    for fold in range(int(folds.max()) + 1):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(inside):  # of a sample
            continue
        matrix, unseen = _fold_features(counts, outside, inside)
        for strength in STRENGTHS:
            fitted = target.fit(
                matrix, labels[outside], strength=strength, tolerance=SEARCH_TOLERANCE, seed=seed
            )
            guesses[strength].append(target.guess(fitted, unseen))
        answered.append(labels[inside])
    answers = np.concatenate(answered)
    scores = {strength: target.score(answers, np.concatenate(guesses[strength])) for strength in STRENGTHS}
    best = max(scores, key=lambda strength: (scores[strength], -strength))
    note = (
        f"the best of {', '.join(f'{strength:g}' for strength in STRENGTHS)} by {len(answered)}-fold "
        f"{target.metric}, {abs(scores[best]):.3f}, on {number_of(len(folds) - len(beside), 'training row')}"
    )
    return best, note


def _fold_features(
    counts: Sequence[csr_matrix], outside: IntArray, inside: IntArray
) -> tuple[csr_matrix, csr_matrix]:
    """The TF-IDF matrices of a fold, as if vocabulary and weights had been fitted on the outside rows."""
    fitted, judged = [], []
    for block in counts:
        seen = block[outside]
        columns = np.unique(seen.indices)
        if len(columns):
            weighting = TfidfTransformer(sublinear_tf=True)
            fitted.append(weighting.fit_transform(seen[:, columns]))
            judged.append(weighting.transform(block[inside][:, columns]))
    if not fitted:  # every text with characters is inside
        return csr_matrix((len(outside), 1)), csr_matrix((len(inside), 1))
    return hstack(fitted, format="csr"), hstack(judged, format="csr")


def _search_rows(labels: IntArray, *, problems: int, seed: int) -> IntArray:
    """Row numbers of a stratified sample that keeps the search affordable; all of them where it is."""
    limit = max(SEARCH_ROWS_FLOOR, min(SEARCH_ROWS, SEARCH_ROWS_TIMES_CLASSES // problems))
    if len(labels) <= limit:
        return np.arange(len(labels))
    order = _shuffled_by_class(labels, seed=seed)
    class_sizes = np.bincount(labels)[labels[order]]
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])[labels[order]]
    # The i-th row of a class of n comes at (i + 1/2) / n: a prefix of this order has every class's share.
    shares = (np.arange(len(order)) - starts + 0.5) / class_sizes
    return np.sort(order[np.argsort(shares, kind="stable")[:limit]])


def _stratified_folds(labels: IntArray, *, seed: int) -> IntArray:
    """The fold of each row, shape (N,): each class is dealt out evenly, small classes to some folds only."""
    folds = np.empty(len(labels), dtype=np.int64)
    folds[_shuffled_by_class(labels, seed=seed)] = np.arange(len(labels)) % FOLDS
    return folds


def _shuffled_by_class(labels: IntArray, *, seed: int) -> IntArray:
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _predict(pipeline: Pipeline, texts: Sequence[str], target: Target, labels: Any) -> Any:
    if not len(texts):
        return labels[:0]
    return target.guess(pipeline, _inputs(pipeline, texts))


def _inputs(pipeline: Pipeline, texts: Sequence[str]) -> Sequence[str] | FloatArray:
    """A pipeline that always gives one answer takes any matrix of as many rows."""
    return texts if "features" in pipeline.named_steps else np.zeros((len(texts), 1))


def _check_rows(num_rows: int) -> None:
    if num_rows == 0:
        raise DataError("there is no training row for a baseline.", fix="Give labelled rows to train on.")
