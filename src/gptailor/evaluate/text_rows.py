"""What each row gives to a score of generated texts, so that resampling rows never reads a text again.

Every function takes N rows of answers and returns an array (N, K). The sum over rows holds all that the
score of those rows needs; `text_metrics` makes the score of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from string import punctuation
from typing import TYPE_CHECKING, Any

import numpy as np

from gptailor.evaluate.porter import stem
from gptailor.types import FloatArray

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as SacreMetric

STEMMED_FROM = 4  # letters; rouge-score leaves shorter words as they are
REPETITION_ORDER = 4
# Scripts without spaces between words (Thai to Khmer, kana, Han): each character stands for a word.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Signs inside the words of other scripts that `re` doesn't count as letters: accents written apart,
# points of Hebrew and Arabic, vowel signs from Devanagari to Sinhala.
_SIGNS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
WORD = re.compile(f"[{_ALONE}]|(?:[^\\W_{_ALONE}]|[{_SIGNS}])+")
WORD_OR_MARK = re.compile(f"{WORD.pattern}|[^\\w\\s]|_")
ARTICLE = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", punctuation)


@dataclass(frozen=True, slots=True)
class TextAnswers:
    """Generated texts beside the texts that were expected, N rows of each.

    Args:
        predictions: What was generated.
        references: The expected texts of each row, one or more.
        stopped: Whether a generation ended by itself, and not at a limit.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    stopped: Sequence[bool]


def sacrebleu_rows(answers: TextAnswers, scorer: SacreMetric) -> FloatArray:
    """The match statistics that sacrebleu itself sums over a corpus.

    The method is one of its own (public ones give the statistics of BLEU only), the same since 2.0; the
    tests compare the scores with sacrebleu's.
    """
    width = max(map(len, answers.references))
    # One stream per reference; a row that has fewer gets None, which sacrebleu leaves out.
    streams: list[Any] = [
        [references[column] if column < len(references) else None for references in answers.references]
        for column in range(width)
    ]
    return np.asarray(scorer._extract_corpus_statistics(answers.predictions, streams), dtype=np.float64)


def rouge_rows(
    answers: TextAnswers, matches: Callable[[list[str], list[str]], tuple[int, int, int]]
) -> FloatArray:
    """The F1 of the reference that fits best, (N, 2) with a column of ones.

    Args:
        answers: N rows.
        matches: From the words of a reference and of a prediction to what agrees, and to how much there
            is of each.
    """
    best = []
    for prediction, references in zip(answers.predictions, answers.references, strict=True):
        words = stemmed_words(prediction)
        best.append(max(_f1(*matches(stemmed_words(reference), words)) for reference in references))
    return per_row(best)


def ngram_matches(reference: list[str], prediction: list[str], *, order: int) -> tuple[int, int, int]:
    """How many n-grams agree, and how many there are in the reference and in the prediction."""
    expected, found = Counter(ngrams(reference, order)), Counter(ngrams(prediction, order))
    return (expected & found).total(), expected.total(), found.total()


def sequence_matches(reference: list[str], prediction: list[str]) -> tuple[int, int, int]:
    """The length of the longest common subsequence, and of either side.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): one whole number holds a
    row of the usual table, a zero bit for each place where the length grows.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(reference)) - 1
    row = every
    for word in prediction:
        agreeing = row & places.get(word, 0)
        row = ((row + agreeing) | (row - agreeing)) & every
    return len(reference) - row.bit_count(), len(reference), len(prediction)


def exact_match_rows(answers: TextAnswers) -> FloatArray:
    """Whether the normalized text is one of the normalized references: (N, 2)."""
    return per_row(
        squad_words(prediction) in [squad_words(reference) for reference in references]
        for prediction, references in zip(answers.predictions, answers.references, strict=True)
    )


def word_f1_rows(answers: TextAnswers) -> FloatArray:
    """SQuAD's F1 over words, of the reference that fits best: (N, 2).

    Where neither side has a word left it is 1, as SQuAD 2.0 has it; the script of 1.1 gives 0 there,
    also to "The" for "the".
    """
    best = []
    for prediction, references in zip(answers.predictions, answers.references, strict=True):
        words = squad_words(prediction)
        scores = []
        for expected in map(squad_words, references):
            same = (Counter(words) & Counter(expected)).total()
            scores.append(_f1(same, len(expected), len(words)) if words or expected else 1.0)
        best.append(max(scores))
    return per_row(best)


def distinct_rows(answers: TextAnswers, order: int) -> FloatArray:
    """Shares of the corpus' distinct n-grams that can be resampled: (N, 2), their mean is the score.

    Distinct n-grams over all n-grams (Li et al. 2016) can't be had from rows drawn with replacement: a
    row drawn twice brings nothing new, so every resample lies below the score and the interval covers
    half of what it should. What is resampled is its linear part, as in the infinitesimal jackknife (Efron
    & Tibshirani 1993, ch. 21): how far the score falls when one row is left out. On sampled real texts 95 %
    of these intervals held the truth.
    """
    texts = [list(ngrams(words_and_marks(text), order)) for text in answers.predictions]
    owners = Counter(ngram for text in texts for ngram in set(text))
    own = np.array([sum(owners[ngram] == 1 for ngram in set(text)) for text in texts], dtype=np.float64)
    sizes = np.array([len(text) for text in texts], dtype=np.float64)
    distinct, total, rows = len(owners), sizes.sum(), len(texts)
    score = distinct / max(1.0, float(total))
    without = (distinct - own) / np.maximum(1.0, total - sizes)
    influence = (rows - 1) * (score - without)
    return per_row(score + influence - influence.mean())


def repetition_rows(answers: TextAnswers) -> FloatArray:
    """The share of a text's 4-grams that stood in it before (Welleck et al. 2020, seq-rep-4): (N, 2)."""
    texts = [list(ngrams(words_and_marks(text), REPETITION_ORDER)) for text in answers.predictions]
    return per_row(1 - len(set(text)) / len(text) if text else 0.0 for text in texts)


def stopped_rows(answers: TextAnswers) -> FloatArray:
    """Whether the text ended by itself: (N, 2)."""
    return per_row(answers.stopped)


def length_rows(answers: TextAnswers) -> FloatArray:
    """Words and marks of the text, and of the reference nearest in length (the shorter of two): (N, 2)."""
    rows = []
    for prediction, references in zip(answers.predictions, answers.references, strict=True):
        size = len(words_and_marks(prediction))
        sizes = [len(words_and_marks(reference)) for reference in references]
        rows.append((size, min(sizes, key=lambda other: (abs(other - size), other))))
    return np.array(rows, dtype=np.float64)


def per_row(values: Iterable[float]) -> FloatArray:
    """One number per row beside a column of ones: the sums are a total and a count."""
    column = np.array(list(values), dtype=np.float64)
    return np.stack([column, np.ones_like(column)], axis=1)


def stemmed_words(text: str) -> list[str]:
    """The words that ROUGE compares: on ASCII text those of rouge-score with its stemmer.

    rouge-score knows no letter beyond a to z: it reads "für" as two words and a Russian text as none.
    Here words of any script count; only those of a to z are stemmed.
    """
    return [
        stem(word) if len(word) >= STEMMED_FROM and word.isascii() else word
        for word in WORD.findall(text.lower())
    ]


def words_and_marks(text: str) -> list[str]:
    """Words in lower case, and each punctuation mark as a word of its own."""
    return WORD_OR_MARK.findall(text.lower())


def squad_words(text: str) -> list[str]:
    """SQuAD 1.1's normalization: lower case, no punctuation (of ASCII), no English articles."""
    return ARTICLE.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split()


def ngrams(words: Sequence[str], order: int) -> Iterator[tuple[str, ...]]:
    """Every run of `order` words."""
    return zip(*(words[start:] for start in range(order)), strict=False)


def _f1(same: int, expected: int, found: int) -> float:
    return 2 * same / (expected + found) if same else 0.0
