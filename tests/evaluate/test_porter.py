"""Stems are those of rouge-score, which has NLTK's: a table by hand, and NLTK itself on made-up words."""

from __future__ import annotations

import random

import pytest

from gptailor.evaluate import porter
from gptailor.evaluate.porter import stem

# Porter 1980 by step, then where the form that rouge-score uses differs from the paper.
STEMS = {
    "caresses": "caress",
    "ponies": "poni",
    "cats": "cat",
    "agreed": "agre",
    "plastered": "plaster",
    "sing": "sing",
    "conflated": "conflat",
    "hopping": "hop",
    "falling": "fall",
    "filing": "file",
    "happy": "happi",
    "relational": "relat",
    "vietnamization": "vietnam",
    "triplicate": "triplic",
    "electrical": "electr",
    "hopefulness": "hope",
    "revival": "reviv",
    "adoption": "adopt",
    "opinion": "opinion",
    "probate": "probat",
    "rate": "rate",
    "controlling": "control",
    "enjoy": "enjoy",
    "used": "use",
    "dies": "die",
    "died": "die",
    "dying": "die",
    "geology": "geolog",
    "carefully": "care",
    "additionally": "addit",
    "news": "news",
    "by": "by",
    "2nd": "2nd",
}


@pytest.mark.parametrize("word", STEMS)
def test_stem(word: str) -> None:
    assert stem(word) == STEMS[word]


def test_stems_are_those_of_nltk() -> None:
    """Words that end in every pair of endings, where rules meet."""
    theirs = pytest.importorskip("nltk.stem.porter").PorterStemmer()
    rng = random.Random(0)
    endings = ["s", "ed", "ing", "ies", "ied", "eed", "y", "e", "ll", "alli", "ly", "logi"]
    endings += [*porter.STEP_2, *porter.STEP_3, *porter.STEP_4]
    starts = ["".join(rng.choices("aeiouybcdlstzwx", k=rng.randint(0, 4))) for _ in range(2500)]
    words = {start + "".join(rng.choices(endings, k=rng.randint(1, 3))) for start in starts}
    words |= {*starts, *porter.ODD_WORDS, *STEMS}
    assert {word: stem(word) for word in words} == {word: theirs.stem(word) for word in words}
