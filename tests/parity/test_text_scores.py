"""BLEU and chrF equal sacrebleu's, ROUGE equals rouge-score's: on made-up rows and on real ones."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from gptailor.evaluate.resampling import Resampling
from gptailor.evaluate.text_metrics import TextAnswers, signature, text_answer_scores
from gptailor.evaluate.text_rows import stemmed_words

REAL = Path(__file__).resolve().parents[2] / "../shared/data"
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
SACRE = {"bleu": BLEU, "chrf": CHRF}

WORDS = ["the", "cat", "sat", "on", "a", "mat", ".", "über", "我们", ",", "3.5", "U.S.", "\n"]
words = st.lists(st.sampled_from(WORDS), max_size=14)
text = st.one_of(words.map(" ".join), st.text(max_size=12))
rows_of_text = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=3)), min_size=1, max_size=5)


def answers_of(rows: list[tuple[str, list[str]]]) -> TextAnswers:
    return TextAnswers([row[0] for row in rows], [row[1] for row in rows], [True] * len(rows))


def by_sacrebleu(scorer: Any, rows: list[tuple[str, list[str]]]) -> float:
    width = max(len(references) for _, references in rows)
    streams = [[refs[column] if column < len(refs) else None for _, refs in rows] for column in range(width)]
    return float(scorer.corpus_score([row[0] for row in rows], streams).score)


@pytest.mark.parametrize("metric", SACRE)
@settings(max_examples=80, deadline=None)
@given(rows=rows_of_text)
def test_any_rows_equal_sacrebleu(metric: str, rows: list[tuple[str, list[str]]]) -> None:
    scorer = SACRE[metric]()
    answers = answers_of(rows)
    found = text_answer_scores(answers, metrics=[metric], resampling=Resampling(2))[metric].value
    assert found == pytest.approx(by_sacrebleu(scorer, rows), rel=1e-12, abs=1e-12)
    assert signature(metric, answers.references) == str(scorer.get_signature())


def german(count: int) -> list[tuple[str, list[str]]]:
    """Multi30k's German captions, beside themselves with every fifth word gone and some rows swapped."""
    path = REAL / "multi30k" / "test_2016_flickr.de.gz"
    if not path.is_file():
        pytest.skip("the development data does not stand beside the checkout")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()[:count]
    changed = [" ".join(w for n, w in enumerate(line.split()) if n % 5 != 3) for line in lines]
    changed[::7] = reversed(changed[::7])
    return [(prediction, [line]) for prediction, line in zip(changed, lines, strict=True)]


def restaurants(count: int) -> list[tuple[str, list[str]]]:
    """E2E's first description of each restaurant against its others, as many as there are."""
    path = REAL / "e2e_nlg" / "testset_w_refs.csv"
    if not path.is_file():
        pytest.skip("the development data does not stand beside the checkout")
    by_meaning: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_meaning.setdefault(row["mr"], []).append(row["ref"])
    return [(refs[0], refs[1:]) for refs in by_meaning.values() if len(refs) > 1][:count]


@pytest.mark.real_data
@pytest.mark.parametrize("metric", SACRE)
@pytest.mark.parametrize("rows_of", [german, restaurants])
def test_real_rows_equal_sacrebleu(rows_of: Any, metric: str) -> None:
    """The corpus, and the ends of the interval: those of sacrebleu asked about every resample."""
    rows = rows_of(40)
    answers = answers_of(rows)
    scorer = SACRE[metric]()
    found = text_answer_scores(answers, metrics=[metric], resampling=Resampling(15, 4))[metric]
    assert found.value == pytest.approx(by_sacrebleu(scorer, rows), rel=1e-12)
    assert 5 < found.value < 95
    drawn = np.random.default_rng(4).integers(len(rows), size=(15, len(rows)))
    theirs = [by_sacrebleu(scorer, [rows[row] for row in sample]) for sample in drawn]
    assert [found.low, found.high] == pytest.approx(np.quantile(theirs, [0.025, 0.975]), rel=1e-12)


def by_rouge_score(rows: list[tuple[str, list[str]]], tokenizer: Any = None) -> dict[str, float]:
    scorer_module = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = scorer_module.RougeScorer(list(ROUGE.values()), use_stemmer=True, tokenizer=tokenizer)
    found = [scorer.score_multi(references, prediction) for prediction, references in rows]
    return {ours: float(np.mean([row[name].fmeasure for row in found])) for ours, name in ROUGE.items()}


def our_rouge(rows: list[tuple[str, list[str]]]) -> dict[str, float]:
    scores = text_answer_scores(answers_of(rows), metrics=list(ROUGE), resampling=Resampling(2))
    return {name: score.value for name, score in scores.items()}


def test_made_up_rows_equal_rouge_score() -> None:
    rows = [
        ("The cats were running, happily; they'd used 2 mats!", ["A cat runs happily.", "using the mat"]),
        ("", ["nothing"]),
        ("nothing", [""]),
        ("... !!! _ __init__", ["... init"]),
        ("the the the the", ["the cat the"]),
        ("generalizations of news about dying skies", ["general new die sky"]),
        ("b a c a d", ["a b c d", "d c b a"]),
    ]
    assert our_rouge(rows) == pytest.approx(by_rouge_score(rows), rel=1e-12)
    for row in rows:
        assert our_rouge([row]) == pytest.approx(by_rouge_score([row]), rel=1e-12)


@pytest.mark.real_data
def test_real_english_rows_equal_rouge_score() -> None:
    """rouge-score with its own words and stems."""
    rows = [
        (prediction, references)
        for prediction, references in restaurants(200)
        if not any(letter.isalnum() and not letter.isascii() for letter in "".join([prediction, *references]))
    ]
    assert len(rows) > 60
    assert our_rouge(rows) == pytest.approx(by_rouge_score(rows), rel=1e-12)


@pytest.mark.real_data
def test_real_german_rows_equal_rouge_score_with_our_words() -> None:
    """rouge-score itself takes ä, ö, ü and ß for ends of words, so it is given ours."""

    class OurWords:
        tokenize = staticmethod(stemmed_words)

    rows = german(120)
    assert our_rouge(rows) == pytest.approx(by_rouge_score(rows, OurWords()), rel=1e-12)
    assert our_rouge(rows) != pytest.approx(by_rouge_score(rows), abs=1e-3)
