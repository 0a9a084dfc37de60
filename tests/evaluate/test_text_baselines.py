"""The rungs without a model: copies, first sentences, the nearest known answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from gptailor.errors import DataError
from gptailor.evaluate import text_baselines
from gptailor.evaluate.text_baselines import copy, fit_taste, lead, nearest

WORDS = [
    "red",
    "green",
    "house",
    "garden",
    "river",
    "runs",
    "sings",
    "old",
    "young",
    "quick",
    "near",
    "behind",
]


def sentences(count: int, seed: int) -> list[str]:
    """Made-up words, some of which begin alike, so that every length of n-gram has its part."""
    rng = np.random.default_rng(seed)
    starts = ["ab", "abc", "bca", "cabba", "ccab"]
    return [
        " ".join(rng.choice(starts) + rng.choice(["", "a", "bb", "cac"]) for _ in range(rng.integers(2, 9)))
        for _ in range(count)
    ]


def test_copy() -> None:
    assert copy(["One.", ""]) == ["One.", ""]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One."),
        ("No end at all", "No end at all"),
        ("", ""),
        ("  \n Really?! Yes.", "Really?!"),
        ('He said "no." Then he left.', 'He said "no."'),
        ("Dr. J. Smith (cf. Fig. 3) agrees. So do we.", "Dr. J. Smith (cf. Fig. 3) agrees."),
        ("Many tasks, e.g. parsing, are hard. Why?", "Many tasks, e.g. parsing, are hard."),
        ("It costs 3.50 in total. Cheap.", "It costs 3.50 in total."),
        ("Well... maybe not. Yes.", "Well... maybe not."),
        ("So do I. They don't.", "So do I."),
        ("A title\n \nThe text. More.", "A title"),
        ("A line\nthat goes on. More.", "A line\nthat goes on."),
        ("今天下雨。我在家。", "今天下雨。"),
        ("1. Mix", "1."),
        (". One", "."),
        (f"One{' ' * 30}. Two", f"One{' ' * 30}."),
    ],
)
def test_lead(text: str, first: str) -> None:
    assert lead([text]) == [first]


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from([".", "!", " ", "\n", "A", "b", "Dr", "。", "”"])).map("".join)
    )
)
def test_lead_is_the_beginning_of_any_text(text: str) -> None:
    (first,) = lead([text])
    assert text.strip().startswith(first)
    assert bool(first) == bool(text.strip())


@pytest.mark.timeout(20)  # minutes, if the time grew with the square of the length
@pytest.mark.parametrize("text", ["." * 200_000 + "x", "x" * 200_000 + ". y", "1. b " * 200_000])
def test_lead_of_a_text_without_an_end_is_quick(text: str) -> None:
    assert lead([text]) == [text.strip()]


@pytest.mark.parametrize("cells", [text_baselines.CHUNK_CELLS, 350, 1], ids=["whole", "pieces", "one by one"])
def test_nearest_has_the_highest_cosine(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(text_baselines, "CHUNK_CELLS", cells)
    train, prompts = sentences(100, seed=0), sentences(20, seed=1)
    answers = [f"answer {row}" for row in range(100)]
    total = np.zeros((20, 100))
    for choices in ({"ngram_range": (1, 2)}, {"ngram_range": (2, 5), "analyzer": "char_wb"}):
        vectorizer = TfidfVectorizer(sublinear_tf=True, **choices).fit(train)
        total += (vectorizer.transform(prompts) @ vectorizer.transform(train).T).toarray()
    found = nearest(prompts, train_prompts=train, train_answers=answers)
    chosen = [answers.index(answer) for answer in found]
    assert np.allclose(total[np.arange(20), chosen], total.max(axis=1), rtol=1e-5)
    assert nearest(train, train_prompts=train, train_answers=answers) == [
        answers[train.index(prompt)] for prompt in train
    ], "a known prompt has its own answer, of equal ones the first"


def test_nearest_without_anything_alike() -> None:
    assert nearest(["?", "", "😀"], train_prompts=["a cat", "a dog"], train_answers=["1", "2"]) == ["1"] * 3
    assert nearest(["a"], train_prompts=["", " "], train_answers=["1", "2"]) == ["1"]
    assert nearest(["😀 😀"], train_prompts=["🐈 🐈", "😀 😀"], train_answers=["1", "2"]) == ["2"]
    assert nearest([], train_prompts=["a cat"], train_answers=["1"]) == []
    with pytest.raises(DataError, match="no training row"):
        nearest(["a"], train_prompts=[], train_answers=[])
    with pytest.raises(ValueError, match="1 prompts but 0 answers"):
        nearest(["a"], train_prompts=["a"], train_answers=[])


def test_much_text_is_searched_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_baselines, "TRAIN_CHARACTERS", 400)
    monkeypatch.setattr(text_baselines, "READ_CHARACTERS", 40)
    train = [f"{word} starts {'-' * 1000} ends {word}" for word in WORDS * 5]  # 40 characters count
    answers = [str(row) for row in range(60)]
    assert text_baselines._searched_rows([1000] * 60) == [0, 6, 12, 18, 24, 30, 36, 42, 48, 54]
    assert nearest([train[18]], train_prompts=train, train_answers=answers) == ["6"], (
        "the first searched row with its word"
    )


def test_a_long_prompt_counts_with_both_ends() -> None:
    middle = "filler " * 1000
    train = [f"{middle} who paints?", f"{middle} who sings?", f"sings {middle}"]
    answers = ["painter", "singer", "start"]
    found = nearest([f"{middle} who sings?", f"sings {middle}"], train_prompts=train, train_answers=answers)
    assert found == ["singer", "start"]


def test_taste_is_learned_from_the_answers_alone() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        (" ".join([*rng.choice(WORDS, 4), "please"]), " ".join([*rng.choice(WORDS, 4), "now"]))
        for _ in range(60)
    ]
    chosen, rejected = zip(*pairs, strict=True)
    taste = fit_taste(chosen[:40], rejected[:40], groups=np.arange(40))
    assert (taste(chosen[40:]) > taste(rejected[40:])).all()
    assert taste([]).shape == (0,)
    again = fit_taste(chosen[:40], rejected[:40], groups=np.arange(40))
    assert taste(chosen).tolist() == again(chosen).tolist()


def test_taste_of_what_has_no_characters_is_none() -> None:
    for size in (1, 3):
        taste = fit_taste([" "] * size, [""] * size, groups=np.zeros(size, np.int64))
        assert taste([" ", "words"]).tolist() == [0, 0]


def test_taste_of_one_pair_or_of_one_prompt_is_learned_too() -> None:
    assert (lambda taste: taste(["good"]) > taste(["bad"]))(
        fit_taste(["good"], ["bad"], groups=np.zeros(1, np.int64))
    )
    many = fit_taste(["good one"] * 8, ["bad one"] * 8, groups=np.zeros(8, np.int64))
    assert many(["good"]) > many(["bad"])
