"""The cheap rungs are honest: tuned, repeatable, quick, and never in the way."""

from __future__ import annotations

import csv
import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.metrics import f1_score

from gptailor.errors import DataError
from gptailor.evaluate import baselines, targets
from gptailor.evaluate.baselines import fit_tfidf, majority, tfidf, tfidf_probabilities
from gptailor.evaluate.targets import CLASSES, weighted_classes
from gptailor.types import IntArray

REAL_DATA = Path(__file__).resolve().parents[2] / "../shared/data"
WORDS = {
    0: ["goal", "match", "referee", "striker", "keeper", "league"],
    1: ["loan", "bank", "interest", "credit", "mortgage", "rate"],
    2: ["soup", "pepper", "roast", "flour", "butter", "oven"],
}
FILLER = ["the", "a", "of", "and", "today", "we", "you", "some", "with", "more"]


def rows(count: int, *, seed: int, labels: tuple[int, ...] = (0, 1, 2)) -> tuple[list[str], IntArray]:
    rng = random.Random(seed)
    answers = [labels[index % len(labels)] for index in range(count)]
    texts = [" ".join(rng.choices(FILLER, k=6) + rng.choices(WORDS[label], k=2)) for label in answers]
    return texts, np.array(answers)


def one_word_decides(count: int) -> tuple[list[str], IntArray]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(FILLER, k=30)) + (" yes" if i % 4 == 0 else "") for i in range(count)]
    return texts, np.array([int(i % 4 == 0) for i in range(count)])


def test_majority_answers_the_most_frequent() -> None:
    result = majority(np.array([2, 1, 1, 0, 1]), num_validation=3, num_test=2)
    assert result.name == "majority"
    assert result.validation.tolist() == [1, 1, 1]
    assert result.test.tolist() == [1, 1]
    assert "3 of 5" in result.note
    assert majority(np.array([1, 0]), num_validation=0, num_test=1).test.tolist() == [0]
    with pytest.raises(DataError, match="no training row"):
        majority(np.zeros(0, dtype=np.int64), num_validation=1, num_test=1)


def test_tfidf_learns_and_repeats() -> None:
    texts, labels = rows(120, seed=0)
    validation, validation_answers = rows(30, seed=1)
    test, answers = rows(60, seed=2)
    one, again = (tfidf(texts, labels, validation, test, seed=3) for _ in range(2))
    assert (one.test == answers).mean() > 0.95
    assert (one.validation == validation_answers).mean() > 0.9
    assert (one.test == again.test).all()
    assert one.note == again.note
    assert one.name == "tfidf"
    assert "5-fold" in one.note
    assert 0 < one.seconds < 20


def test_strength_is_searched_on_training_rows() -> None:
    """Each strength is fitted on every fold's rest, never on a whole part, and then once on all rows."""
    fits: list[tuple[float, int]] = []

    def counted(matrix, labels, **settings):  # type: ignore[no-untyped-def]
        fits.append((settings["strength"], matrix.shape[0]))
        return CLASSES.fit(matrix, labels, **settings)

    texts, labels = one_word_decides(50)
    result = fit_tfidf(texts, labels, target=dataclasses.replace(CLASSES, fit=counted))
    for strength in (0.3, 1.0, 3.0, 10.0, 30.0):
        assert fits[:-1].count((strength, 40)) == 5
    assert len(fits) == 26
    assert fits[-1][1] == 50
    assert fits[-1][0] > 1
    assert f"C={fits[-1][0]:g} " in result.note


def test_best_strength_is_the_best_and_of_equals_the_smallest() -> None:
    """One word decides, drowned in filler: 0.3 and 1 are too timid to hear it, 3, 10 and 30 are perfect."""
    note = fit_tfidf(*one_word_decides(200)).note
    assert "C=3 " in note
    assert "1.000" in note


def test_a_given_strength_is_used() -> None:
    texts, labels = rows(30, seed=0)
    assert "C=3 (given)" in fit_tfidf(texts, labels, strength=3.0).note


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["one", "two", "three"], [1, 1, 1]),  # one label
        (["", " ", ""], [0, 1, 1]),  # nothing to see
        (["a b", "a b", "a b", "a b"], [0, 1, 0, 1]),  # contradictions
        (["😀😀", "😡", "😀", "😡😡"], [0, 1, 0, 1]),  # no words
        (["good day", "bad day"], [0, 1]),  # two rows
        (["good day"] * 9 + ["bad day"], [0] * 9 + [1]),  # a class of one row
        (["你好 世界", "再见", "你好", "再见 世界"], [0, 1, 0, 1]),
    ],
)
def test_odd_rows_get_an_answer(texts: list[str], labels: list[int]) -> None:
    result = tfidf(texts, np.array(labels), texts, ["", "something else", *texts])
    assert set(result.test.tolist()) <= set(labels)
    assert result.validation.dtype == np.int64
    assert len(result.test) == len(texts) + 2


def test_a_solver_that_runs_out_of_iterations_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "MAX_ITERATIONS", 1)
    texts, labels = rows(60, seed=0)
    assert (tfidf(texts, labels, [], texts).test == labels).mean() > 0.5


def test_emoji_are_told_apart() -> None:
    texts, labels = ["😀😀", "😡", "😀", "😡😡"] * 3, np.array([0, 1, 0, 1] * 3)
    assert tfidf(texts, labels, [], ["😀", "😡"]).test.tolist() == [0, 1]


def test_no_training_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no training row"):
        tfidf([], np.zeros(0, dtype=np.int64), [], ["a"])
    with pytest.raises(ValueError, match="2 texts but 1 labels"):
        fit_tfidf(["a", "b"], np.array([0]))


def test_folds_see_only_their_own_vocabulary() -> None:
    """Equal to a vectorizer that is fitted on the fold's training rows alone."""
    texts, _ = rows(40, seed=0)
    texts = [f"{text} only{index}" for index, text in enumerate(texts)]
    outside, inside = np.arange(0, 30), np.arange(30, 40)
    counter = CountVectorizer(ngram_range=(1, 2))
    found = baselines._fold_features([counter.fit_transform(texts)], outside, inside)
    reference = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    expected = reference.fit_transform(texts[:30]), reference.transform(texts[30:])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.toarray() == pytest.approx(theirs.toarray())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 3))
def test_folds_deal_every_class_out_evenly(labels: list[int], seed: int) -> None:
    answers = np.array(labels)
    folds = baselines._stratified_folds(answers, seed=seed)
    assert np.bincount(folds, minlength=5).max() - np.bincount(folds, minlength=5).min() <= 1
    for label in set(labels):
        shares = np.bincount(folds[answers == label], minlength=5)
        assert shares.max() - shares.min() <= 1


def test_given_folds_are_held_out_whole() -> None:
    texts, labels = rows(90, seed=0, labels=(0, 2))
    copies, given = [*texts, *texts], np.concatenate([labels, labels[::-1]])
    folds = np.tile(np.arange(90) % 5, 2)
    apart = baselines.tfidf_probabilities(copies, given, num_labels=3, folds=folds)
    assert np.array_equal(apart[:90], apart[90:]), "a row was judged by a model that had seen its twin"
    note = fit_tfidf(texts, labels, folds=np.arange(90) % 3).note
    assert "by 3-fold macro-F1" in note


def test_the_validation_rows_teach_what_answers_the_test_rows() -> None:
    texts, labels = ["red one", "red two", "blue one", "blue two"] * 5, np.array([0, 0, 1, 1] * 5)
    later, theirs = ["green one", "green two"] * 5, np.array([2] * 10)
    settings: dict[str, Any] = {"validation_texts": later, "test_texts": ["green", "red"]}
    alone = tfidf(texts, labels, **settings)
    both = tfidf(texts, labels, validation_labels=theirs, **settings)
    assert 2 not in alone.test.tolist()
    assert both.test.tolist() == [2, 0]
    assert both.validation.tolist() == alone.validation.tolist(), "validation was asked of who had seen it"


def test_the_names_of_classes_teach_and_are_never_judged() -> None:
    texts, labels = ["red one", "red two", "blue one", "blue two"] * 5, np.array([0, 0, 1, 1] * 5)
    names = ["crimson", "navy"]
    for refit in (None, labels[:2]):
        told = tfidf(texts, labels, texts[:2], names, validation_labels=refit, names=names)
        assert told.test.tolist() == [0, 1]
        assert "on 20 training rows" in told.note
        assert "names taught" in told.note
    wrong = fit_tfidf(texts, labels, names=["blue blue", "red red"])
    assert "macro-F1, 1.000" in wrong.note, "a fold was judged by the names"
    assert fit_tfidf(texts, labels, names=()).note == fit_tfidf(texts, labels).note
    folds = np.arange(20) % 2
    assert "by 2-fold" in fit_tfidf(texts, labels, names=names, folds=folds).note


def test_search_sample_keeps_every_class_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "SEARCH_ROWS", 100)
    monkeypatch.setattr(baselines, "SEARCH_ROWS_FLOOR", 100)
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [600, 300, 100]))
    sample = baselines._search_rows(labels, problems=3, seed=0)
    assert len(sample) == len(set(sample.tolist())) == 100
    assert np.bincount(labels[sample]).tolist() == pytest.approx([60, 30, 0, 10], abs=1)
    assert len(baselines._search_rows(labels[:90], problems=3, seed=0)) == 90


def test_out_of_fold_probabilities_find_a_wrong_label() -> None:
    texts, labels = rows(90, seed=0, labels=(0, 2))
    labels = labels.copy()
    labels[4] = 2  # planted: row 4 is of class 0
    probabilities = tfidf_probabilities(texts, labels, num_labels=4)
    assert probabilities.shape == (90, 4)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(90))
    assert not probabilities[:, [1, 3]].any()
    of_given_label = probabilities[np.arange(90), labels]
    assert of_given_label.argmin() == 4


def test_a_row_never_sees_its_own_label() -> None:
    """Texts that carry nothing but a key of their own: out of fold, nobody can know the answer."""
    texts = [f"key{index:03d}{index * 7919:x}" for index in range(60)]
    labels = np.random.default_rng(0).integers(2, size=60)
    guessed = tfidf_probabilities(texts, labels, num_labels=2).argmax(axis=1)
    assert (guessed == labels).mean() < 0.8
    assert (tfidf(texts, labels, [], texts).test == labels).mean() > 0.9


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "reference"), [("sst2", 0.735), pytest.param("banking77", 0.727, marks=pytest.mark.slow)]
)
def test_reaches_the_reference_on_real_data(name: str, reference: float) -> None:
    """The accuracies of a C=10 logistic regression at 1,000 rows; 2 points for the shuffle."""
    if not (REAL_DATA / name).is_dir():
        pytest.skip("the development data does not stand beside the checkout")
    if name == "sst2":
        train, test = (
            [
                tuple(line.rsplit("\t", 1))
                for line in (REAL_DATA / name / file).read_text("utf-8").split("\n")
                if line
            ]
            for file in ("train.tsv", "dev.tsv")
        )
    else:
        train, test = (
            [
                (row[0], row[1])
                for row in csv.reader((REAL_DATA / name / file).read_text("utf-8").splitlines()[1:])
            ]
            for file in ("train.csv", "test.csv")
        )
    random.Random(0).shuffle(train)
    names = sorted({row[1] for row in train})
    texts, labels = [row[0] for row in train[:1000]], np.array([names.index(row[1]) for row in train[:1000]])
    result = tfidf(texts, labels, [], [row[0] for row in test])
    accuracy = np.mean([names[guess] == row[1] for guess, row in zip(result.test, test, strict=True)])
    assert accuracy > reference - 0.02


@pytest.mark.parametrize("weights", ["balanced", {0: 0.2, 1: 2.0}], ids=["balanced", "by class"])
def test_tfidf_is_given_the_weights_that_the_model_has(weights: Any) -> None:
    """A recipe that weighs rare classes up gains macro-F1 by that alone; so does the baseline."""
    rng = np.random.default_rng(0)
    labels = (rng.random(600) < 0.08).astype(np.int64)
    words = rng.integers(40, size=(600, 6)) + 6 * labels[:, None] * (rng.random((600, 6)) < 0.5)
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    found = []
    for target in (CLASSES, weighted_classes(weights)):
        fitted = fit_tfidf(texts[:400], labels[:400], strength=1.0, target=target)
        guesses = fitted.pipeline.predict(texts[400:])
        found.append((guesses.sum(), f1_score(labels[400:], guesses, average="macro")))
    assert found[1][0] > found[0][0]
    assert found[1][1] > found[0][1] + 0.05
