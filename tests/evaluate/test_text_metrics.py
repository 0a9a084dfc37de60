"""Scores of texts: known values, intervals against plain resampling, and what must hold for any text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.errors import DataError, RecipeError
from gptailor.evaluate.metrics import has_interval, interval, share_interval
from gptailor.evaluate.resampling import FEWEST_UNITS, Resampling
from gptailor.evaluate.text_metrics import (
    METRICS,
    TextAnswers,
    paired_text_difference,
    signature,
    text_answer_scores,
)
from gptailor.evaluate.text_rows import ngrams, sequence_matches, squad_words, stemmed_words, words_and_marks
from gptailor.types import Score

TOP = {"bleu": 100.0, "chrf": 100.0, "length_ratio": float("inf")}
LINEARIZED = ("distinct_1", "distinct_2")
TEXTS = (
    "The cat sat on the mat, and the cat sat on the mat again.",
    "A dog runs through the green field behind the house.",
    "Two men are talking.",
    "",
    "Ein Mann fährt mit dem Fahrrad über die Straße.",
    "on and on and on and on and on and on",
    "three small birds sing in a tree",
    "yes",
)


def answers_of(predictions: Sequence[str], *references: str | Sequence[str]) -> TextAnswers:
    expected = [[each] if isinstance(each, str) else list(each) for each in references]
    return TextAnswers(list(predictions), expected, [True] * len(predictions))


def value(metric: str, prediction: str, *references: str) -> float:
    """The score of a single row."""
    return text_answer_scores(
        answers_of([prediction], references), metrics=[metric], resampling=Resampling(2)
    )[metric].value


def some_answers(num_rows: int = 16) -> TextAnswers:
    """Predictions that differ from their references a little, much, or in all; one to three references."""
    rng = np.random.default_rng(3)
    predictions, references = [], []
    for row in range(num_rows):
        words = TEXTS[row % len(TEXTS)].split()
        references.append([" ".join(words), *(TEXTS[(row + extra) % len(TEXTS)] for extra in range(row % 3))])
        predictions.append(" ".join(word for word in words if rng.random() < 0.8))
    return TextAnswers(predictions, references, [row % 4 != 0 for row in range(num_rows)])


def drawn_again(answers: TextAnswers, rows: Sequence[int]) -> TextAnswers:
    return TextAnswers(
        [answers.predictions[row] for row in rows],
        [answers.references[row] for row in rows],
        [answers.stopped[row] for row in rows],
    )


def close(found: Score, expected: Score) -> bool:
    return astuple(found) == pytest.approx(astuple(expected), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "reference", "words"),
    [
        ("The Eiffel Tower!", "eiffel tower", ["eiffel", "tower"]),
        ("An apple a day", "apple day.", ["apple", "day"]),
        ("  U.S.A. \n (1999)", "USA 1999", ["usa", "1999"]),
        ("Beyoncé's", "beyoncés", ["beyoncés"]),
        ("theory", "theory", ["theory"]),
    ],
)
def test_squad_normalization(prediction: str, reference: str, words: list[str]) -> None:
    assert squad_words(prediction) == squad_words(reference) == words
    assert value("exact_match", prediction, "something else", reference) == 1


def test_word_f1_takes_the_best_reference() -> None:
    # cat, sat, on, mat against cat, sat: precision 1/2, recall 1
    assert value("f1", "the cat sat on the mat", "a dog", "the cat sat") == pytest.approx(2 / 3)
    assert value("f1", "cat cat", "cat dog") == pytest.approx(0.5), "a word counts as often as both have it"
    assert value("f1", "", "cat") == value("f1", "cat", "") == value("exact_match", "cat", "cats") == 0
    assert value("f1", "The", "the!") == value("exact_match", "The", "the!") == 1


def test_rouge_by_hand() -> None:
    reference, prediction = "police killed the gunman", "police kill the gunman"
    assert value("rouge_1", prediction, reference) == value("rouge_l", prediction, reference) == 1, "stems"
    other = "the gunman kills police"
    assert value("rouge_1", other, reference) == 1
    assert value("rouge_2", other, reference) == pytest.approx(1 / 3)  # the gunman
    assert value("rouge_l", other, reference) == pytest.approx(2 / 4)  # the gunman
    assert value("rouge_l", other, reference, other) == 1, "the best reference counts"


def test_words_of_any_script() -> None:
    assert stemmed_words("Für Größe_2, naïve e\u0301tat") == ["für", "größe", "2", "naïve", "e\u0301tat"]
    assert stemmed_words("Он читает.") == ["он", "читает"]
    assert stemmed_words("हिन्दी में।") == ["हिन्दी", "में"]
    assert stemmed_words("我爱 New York") == ["我", "爱", "new", "york"]
    assert words_and_marks("Don't_go!") == ["don", "'", "t", "_", "go", "!"]


def test_distinct_and_repetition() -> None:
    answers = answers_of(["a b a b", "a b c"], "x", "x")
    found = text_answer_scores(answers, metrics=["distinct_1", "distinct_2"])
    assert found["distinct_1"].value == pytest.approx(3 / 7)
    assert found["distinct_2"].value == pytest.approx(3 / 5)  # ab, ba, bc of ab ba ab ab bc
    assert value("repetition", "x " * 10, "") == pytest.approx(6 / 7)
    assert value("repetition", "a b c d a b c d", "") == pytest.approx(1 / 5)
    assert value("repetition", "too short", "") == value("distinct_2", "", "") == 0


def test_stop_rate_and_length_ratio() -> None:
    answers = TextAnswers(["a b c d", "a"], [["a b", "a b c d e f"], ["a"]], [True, False])
    found = text_answer_scores(answers, metrics=["stop_rate", "length_ratio"])
    assert found["stop_rate"].value == 0.5
    assert found["length_ratio"].value == 5 / 3, "of two references equally near the shorter one"


@pytest.mark.parametrize("metric", [name for name in METRICS if name not in LINEARIZED])
def test_intervals_equal_plain_resampling(metric: str) -> None:
    answers = some_answers()
    drawn = np.random.default_rng(5).integers(len(answers.stopped), size=(60, len(answers.stopped)))
    plain = [
        text_answer_scores(drawn_again(answers, rows), metrics=[metric], resampling=Resampling(1))[
            metric
        ].value
        for rows in drawn.tolist()
    ]
    found = text_answer_scores(answers, metrics=[metric], resampling=Resampling(60, 5))[metric]
    assert close(found, interval(found.value, np.array(plain)))
    assert found.low < found.high


@pytest.mark.parametrize("metric", [name for name in METRICS if name not in (*LINEARIZED, "stop_rate")])
def test_paired_difference_equals_plain_resampling(metric: str) -> None:
    answers = some_answers()
    theirs = TextAnswers(answers.predictions[::-1], answers.references, answers.stopped)
    drawn = np.random.default_rng(5).integers(len(answers.stopped), size=(30, len(answers.stopped)))
    everyone = [list(range(len(answers.stopped))), *drawn.tolist()]
    ours, others = (
        np.array(
            [
                text_answer_scores(drawn_again(system, rows), metrics=[metric], resampling=Resampling(1))[
                    metric
                ].value
                for rows in everyone
            ]
        )
        for system in (answers, theirs)
    )
    gaps = ours - others
    found = paired_text_difference(answers, theirs.predictions, metric=metric, resampling=Resampling(30, 5))
    assert close(found, interval(float(gaps[0]), gaps[1:]))
    back = paired_text_difference(theirs, answers.predictions, metric=metric, resampling=Resampling(30, 5))
    assert back.value == -found.value


def test_a_system_is_no_better_than_itself() -> None:
    answers = some_answers()
    for metric in METRICS.keys() - {"stop_rate"}:
        found = paired_text_difference(answers, answers.predictions, metric=metric)
        assert found == Score(0.0, 0.0, 0.0), metric


@pytest.mark.parametrize("metric", LINEARIZED)
def test_intervals_of_distinct_hold_the_truth(metric: str) -> None:
    """Samples of 60 rows from a language of 400 words: 95 of 100 intervals should hold what they estimate.

    Plain resampling would hold it in half of them: a row drawn twice brings no new words.
    """
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 401)
    vocabulary = np.array([f"w{number}" for number in range(400)])

    def sampled() -> Score:
        words = rng.choice(vocabulary, p=share / share.sum(), size=(60, 8))
        answers = answers_of([" ".join(row) for row in words], *([""] * 60))
        return text_answer_scores(answers, metrics=[metric], resampling=Resampling(300))[metric]

    found = [sampled() for _ in range(150)]
    truth = np.mean([score.value for score in found])
    assert np.mean([score.low <= truth <= score.high for score in found]) >= 0.88
    spread = 3.92 * np.std([score.value for score in found])
    assert np.mean([score.high - score.low for score in found]) < 1.4 * spread, (
        "and are no wider than need be"
    )


def test_all_metrics_together_equal_each_alone() -> None:
    answers = some_answers()
    together = text_answer_scores(answers, metrics=list(METRICS), resampling=Resampling(50, 1))
    assert list(together) == list(METRICS)
    for metric in METRICS:
        alone = text_answer_scores(answers, metrics=[metric], resampling=Resampling(50, 1))[metric]
        assert close(together[metric], alone), metric
    assert text_answer_scores(answers, metrics=[]) == {}


any_text = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(["a", "the", "Cat", "cat", "für", "我", ".", "😀", "\n"])).map(" ".join),
)
any_row = st.tuples(any_text, st.lists(any_text, min_size=1, max_size=3), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(any_row, min_size=1, max_size=6))
def test_every_score_is_on_its_scale_inside_its_interval(rows: list[tuple[str, list[str], bool]]) -> None:
    predictions, references, stopped = zip(*rows, strict=True)
    scores = text_answer_scores(
        TextAnswers(predictions, references, stopped), metrics=list(METRICS), resampling=Resampling(25)
    )
    for metric, score in scores.items():
        low, high = (score.low, score.high) if has_interval(score) else (score.value, score.value)
        assert 0 <= low <= score.value <= high <= TOP.get(metric, 1.0) * (1 + 1e-12), metric
        assert has_interval(score) or len(rows) < FEWEST_UNITS


@settings(max_examples=60, deadline=None)
@given(st.lists(any_text, min_size=1, max_size=5), any_text)
def test_a_text_equal_to_a_reference_scores_the_top(texts: list[str], other: str) -> None:
    answers = answers_of(texts, *([other, text] for text in texts))
    found = text_answer_scores(answers, metrics=list(METRICS), resampling=Resampling(10))
    top = Score(1.0, share_interval(len(texts), len(texts))[0], 1.0)
    assert found["exact_match"] == found["f1"] == top
    if all(len(stemmed_words(text)) >= 2 for text in texts):
        assert found["rouge_1"] == found["rouge_2"] == found["rouge_l"] == top
    if all(text.split() for text in texts):
        assert found["chrf"].value == pytest.approx(100)
    if all(len(text.split()) >= 4 for text in texts):  # shorter ones have no 4-gram that could match
        assert found["bleu"].value == pytest.approx(100)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_longest_common_subsequence(left: list[str], right: list[str]) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, first in enumerate(left):
        for j, second in enumerate(right):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if first == second else max(table[i][j + 1], table[i + 1][j])
            )
    assert sequence_matches(left, right) == (table[-1][-1], len(left), len(right))


def test_ngrams() -> None:
    assert list(ngrams("abcd", 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert list(ngrams("ab", 3)) == []


def test_faults_are_told() -> None:
    answers = some_answers()
    with pytest.raises(RecipeError, match="Did you mean 'bleu'") as error:
        text_answer_scores(answers, metrics=["bleu2"])
    assert "rouge_l" in str(error.value)
    with pytest.raises(DataError, match="no row to score"):
        text_answer_scores(answers_of([]), metrics=["bleu"])
    with pytest.raises(ValueError, match="as many"):
        text_answer_scores(TextAnswers(["a"], [["a"]], []), metrics=["bleu"])
    with pytest.raises(ValueError, match="as many"):
        paired_text_difference(answers, ["one"], metric="bleu")
    with pytest.raises(ValueError, match="row 1 has no reference"):
        text_answer_scores(answers_of(["a", "b"], "a", []), metrics=["f1"])
    with pytest.raises(ValueError, match="no score of the texts"):
        paired_text_difference(answers, answers.predictions, metric="stop_rate")


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_signature(metric: str) -> None:
    assert signature(metric)
    assert "nrefs" not in signature(metric)


def test_sacrebleu_is_loaded_only_when_asked() -> None:
    code = "import sys, gptailor.evaluate.text_metrics; sys.exit('sacrebleu' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_shares_of_rows_that_are_all_alike_are_not_sure() -> None:
    answers = TextAnswers(["x"] * 20, [["y"]] * 20, [True] * 20)
    found = text_answer_scores(answers, metrics=["exact_match", "stop_rate"], resampling=Resampling(20))
    assert (found["exact_match"].low, found["exact_match"].high) == share_interval(0, 20)
    assert (found["stop_rate"].low, found["stop_rate"].high) == share_interval(20, 20)
