from __future__ import annotations

import csv
import time
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.data.duplicates import is_exact, merge_chains, near_duplicate_groups, near_matches

AG_NEWS = Path(__file__).resolve().parents[2] / "../shared/data/ag_news"
WORDS = [f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "klmnp"]


def sentence(random: np.random.Generator, words: int) -> list[str]:
    return [WORDS[i] for i in random.integers(0, len(WORDS), words)]


def shingles(text: str) -> tuple[int, set[object], set[object]]:
    """Words, word 3-shingles, character 5-grams; written apart from the code it judges. ASCII only."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    joined = " ".join(words)
    by_word = {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
    return len(words), set(by_word), {joined[i : i + 5] for i in range(max(1, len(joined) - 4))}


def similarity(one: str, other: str) -> float:
    (a_words, a_by_word, a_by_character), (b_words, b_by_word, b_by_character) = (
        shingles(one),
        shingles(other),
    )
    if not a_words or not b_words:
        return 0.0
    few = min(a_words, b_words) < 8
    a, b = (a_by_character, b_by_character) if few else (a_by_word, b_by_word)
    return len(a & b) / len(a | b)


def test_exact_means_the_same_letters_and_digits() -> None:
    assert is_exact("Don't STOP, 24/7!", "dont stop 247")
    assert is_exact("Straße", "STRASSE")
    assert not is_exact("a b 1", "a b 2")
    assert is_exact(" 👍 ", "👍")
    assert not is_exact("👍", "👎")
    assert not is_exact("", "a")
    assert not is_exact("कि", "की")  # one letter, two vowel signs


def test_nothing_comes_of_nothing() -> None:
    assert near_duplicate_groups([]).shape == (0,)
    assert near_matches([], ["a"]).shape == (0,)
    assert near_matches(["a", ""], []).tolist() == [-1, -1]
    assert near_duplicate_groups(["", "!", "a", "?", "!"]).tolist() == [0, 1, 2, 3, 1]


def test_chains_are_one_group() -> None:
    random = np.random.default_rng(0)
    text = sentence(random, 40)
    chain = []
    for k in range(0, 40, 4):
        text[k] = "changed"
        chain.append(" ".join(text))
    assert similarity(chain[0], chain[-1]) < 0.3
    assert all(similarity(a, b) >= 0.8 for a, b in pairwise(chain))
    strangers = [" ".join(sentence(random, 40)) for _ in range(20)]
    groups = near_duplicate_groups([*strangers, *chain])
    assert groups.tolist() == [*range(20), *[20] * 10]


def test_recall_is_97_percent_right_at_the_threshold() -> None:
    random = np.random.default_rng(1)
    texts, near = [], []
    while len(near) < 1000:
        text = sentence(random, 28)
        other = [*text]
        other[0] = other[-1] = "changed"
        other[12] = "changed" if random.random() < 0.3 else other[12]
        if 0.8 <= similarity(" ".join(text), " ".join(other)) < 0.86:
            texts.append(" ".join(text))
            near.append(" ".join(other))
    assert np.mean(near_matches(near, texts) == np.arange(1000)) >= 0.97
    groups = near_duplicate_groups([*texts, *near])
    assert np.mean(groups[:1000] == groups[1000:]) >= 0.97


@given(st.integers(0, 10_000), st.integers(2, 14))
@settings(max_examples=60, deadline=None)
def test_what_is_reported_is_true(seed: int, words: int) -> None:
    random = np.random.default_rng(seed)
    base = sentence(random, words)
    texts = []
    for _ in range(8):
        base[random.integers(0, words)] = WORDS[random.integers(0, len(WORDS))]
        texts.append(" ".join([*base, *sentence(random, random.integers(0, 2))]))
    groups = near_duplicate_groups(texts)
    pairs = [(i, j) for i, j in combinations(range(8), 2) if is_near(texts[i], texts[j])]
    truth = merge_chains(np.arange(8), *np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
    # Every group lies within a true one: what is merged is merged by proof.
    for i, j in combinations(range(8), 2):
        assert groups[i] != groups[j] or truth[i] == truth[j]
    matches = near_matches(texts[:4], texts[4:])
    assert all(match < 0 or is_near(texts[i], texts[4 + match]) for i, match in enumerate(matches))


def is_near(one: str, other: str) -> bool:
    return is_exact(one, other) or similarity(one, other) >= 0.8


def test_short_text_is_compared_with_one_a_little_longer() -> None:
    short = "the quick brown fox jumped over fences"  # 7 words
    longer = "the quick brown fox jumped over fences a"  # 8
    assert near_matches([short], [longer]).tolist() == [0]
    assert near_duplicate_groups([longer, short]).tolist() == [0, 0]


def test_exact_match_goes_before_a_near_one() -> None:
    random = np.random.default_rng(2)
    text = " ".join(sentence(random, 30))
    assert near_matches([text], [f"{text} more", text.upper(), text]).tolist() == [1]


def test_same_answer_again_and_matches_do_not_depend_on_the_other_texts() -> None:
    random = np.random.default_rng(3)
    texts = [" ".join(sentence(random, 12)) for _ in range(300)]
    texts += [f"{text} end" for text in texts[:100]]
    first = near_duplicate_groups(texts)
    assert np.array_equal(first, near_duplicate_groups(texts))
    assert first[300:].tolist() == first[:100].tolist()
    alone = [near_matches([text], texts[:300])[0] for text in texts[300:320]]
    assert alone == near_matches(texts[300:], texts[:300])[:20].tolist()


def test_templates_take_no_longer_than_other_texts() -> None:
    end = "has been shipped today and will be at your door within two or three days of this week"
    near = [f"your order number {i} {end} so please be at home when it comes" for i in range(6000)]
    apart = [f"your order {i} of house {i * 7} {end}" for i in range(6000)]
    start = time.perf_counter()
    assert len(set(near_duplicate_groups(near).tolist())) == 1
    assert len(set(near_duplicate_groups(apart).tolist())) == 6000
    assert time.perf_counter() - start < 30


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_merging_chains_is_connected_components(pairs: list[tuple[int, int]]) -> None:
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    merged = merge_chains(np.arange(20), left, right)
    expected = list(range(20))
    for _ in range(20):
        for one, other in pairs:
            expected[one] = expected[other] = min(expected[one], expected[other])
    assert merged.tolist() == expected


@pytest.mark.real_data
def test_ag_news_rows_that_stand_in_the_public_test_are_found() -> None:
    if not AG_NEWS.exists():
        pytest.skip("the development data is not beside the checkout")
    with (AG_NEWS / "noisyag_val10000.csv").open(encoding="utf-8", newline="") as file:
        train = [row["text"] for row in csv.DictReader(file)]
    with (AG_NEWS / "test.csv").open(encoding="utf-8", newline="") as file:
        test = [f"{title} {description}" for _, title, description in csv.reader(file)]
    matches = near_matches(train, test)
    found = np.flatnonzero(matches >= 0)
    assert len(found) >= 34  # comparing all pairs finds 35
    for i in found:
        one, other = train[i], test[matches[i]]
        assert is_exact(one, other) or similarity(one, other) >= 0.8


@pytest.mark.parametrize("first", ["\u4e00", "\u3042", "\u0e01", "\u1780"])
def test_scripts_without_blanks_are_compared_by_their_letters(first: str) -> None:
    """A clause of Chinese, Japanese, Thai or Khmer isn't a word: one letter of 150 makes no other text."""
    letters = [chr(ord(first) + place % 40) for place in range(150)]
    clauses = ["".join(letters[at : at + 15]) for at in range(0, 150, 15)]
    changed = [*clauses[:4], chr(ord(first) + 41) + clauses[4][1:], *clauses[5:]]
    other = ["".join(chr(ord(first) + (7 * place) % 41) for place in range(at, at + 15)) for at in range(10)]
    ids = near_duplicate_groups(["\uff0c".join(text) for text in (clauses, changed, other)])
    assert ids[0] == ids[1] != ids[2]
