"""Thirteen words in a row are found wherever they stand; fewer, or others, never."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.data.overlap import RUN, build_ngram_set, run_hashes, shares_a_run, shares_across

HELD_OUT = "one two three four five six seven eight nine ten eleven twelve thirteen"
WORDS = HELD_OUT.split()


def numbered(start: int, count: int) -> str:
    return " ".join(f"word{number}" for number in range(start, start + count))


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        (HELD_OUT, True),
        (f"before it {HELD_OUT} after it", True),
        ("One, two - THREE; (four) five\nsix\t seven... eight 'nine' ten/eleven twelve: Thirteen!", True),
        (" ".join(WORDS[:12]), False),
        (" ".join(WORDS[1:]), False),
        (" ".join([*WORDS[:6], "other", *WORDS[6:]]), False),
        (" ".join(reversed(WORDS)), False),
        (" ".join([*WORDS[1:], WORDS[0]]), False),
        (HELD_OUT.replace("thirteen", "thirteenth"), False),
        ("", False),
        ("?!", False),
    ],
)
def test_thirteen_words_in_their_order(text: str, shared: bool) -> None:
    assert shares_a_run(text, build_ngram_set(["something else", HELD_OUT])) is shared


@pytest.mark.parametrize("place", range(RUN + 1))
def test_a_run_across_two_texts(place: int) -> None:
    """Found where it lies in both; what lies in one of them is found by looking at that one."""
    known = build_ngram_set([HELD_OUT])
    before = f"{numbered(0, 30)} {' '.join(WORDS[:place])}"
    after = f"{' '.join(WORDS[place:])} {numbered(50, 30)}"
    assert shares_across(before, after, known) is (0 < place < RUN)
    assert not shares_across(after, before, known)


def test_words_keep_the_vowel_signs_that_stand_on_them() -> None:
    """Seven Hindi words in a row are seven, not thirteen: cut at its signs, one of them would be five."""
    shared = ["मुख्यमंत्री", "ने", "राज्य", "की", "विधानसभा", "में", "प्रस्ताव"]
    others = ["रखा", "जिसके", "बाद", "सदस्यों", "ने", "देर", "तक", "चर्चा", "की", "और", "समर्थन", "दिया"]
    held_out = " ".join([*shared, *others])
    known = build_ngram_set([held_out])
    assert shares_a_run(held_out, known)
    assert not shares_a_run(" ".join([*shared, "पढ़ा", "गया"]), known)
    assert len(run_hashes(held_out)) == len(shared) + len(others) - RUN + 1


CHINESE = "这家餐厅的服务员非常热情菜品也很新鲜我们一家人都吃得很开心下次还会再来"


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        (CHINESE, True),
        (f"前言。{CHINESE}后记。", True),
        (CHINESE[:26], True),
        (f"他说，{CHINESE[3:10]}，{CHINESE[10:30]}。", True),
        (CHINESE[:25], False),
        (CHINESE[:13] + "不" + CHINESE[14:26], False),
    ],
)
def test_where_no_spaces_stand_between_words_a_run_is_of_26_characters(text: str, shared: bool) -> None:
    """A clause would count as one word, and thirteen clauses in a row as one run."""
    assert shares_a_run(text, build_ngram_set([CHINESE])) is shared


def test_a_run_of_characters_across_two_texts() -> None:
    known = build_ngram_set([CHINESE])
    assert shares_across(CHINESE[:15], CHINESE[15:], known)
    assert not shares_across(CHINESE, "别的", known), "it lies in one of them"


def test_letters_of_any_script() -> None:
    text = "Ärger über Öl и ещё три слова 東京 το ένα ç ñ é"
    assert len(re.findall(r"\w+", text)) == RUN
    known = build_ngram_set([text.upper()])
    assert shares_a_run(text, known)
    assert not shares_a_run(text.replace("слова", "слово"), known)


def test_texts_are_apart() -> None:
    """A run never goes from one held-out text into the next."""
    known = build_ngram_set([" ".join(WORDS[:7]), " ".join(WORDS[7:])])
    assert not shares_a_run(HELD_OUT, known)
    assert len(known.hashes) == 0


def test_nothing_held_out_shares_nothing() -> None:
    assert not shares_a_run(HELD_OUT, build_ngram_set([]))


texts = st.lists(st.sampled_from("aaaaaab"), max_size=40).map(" ".join)


@given(st.lists(texts, max_size=3), texts)
@settings(deadline=None, max_examples=150)
def test_the_same_as_sets_of_words(held_out: list[str], text: str) -> None:
    def runs(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}

    known = set().union(*(runs(held.split()) for held in held_out))
    assert shares_a_run(text, build_ngram_set(held_out)) is bool(known & runs(text.split()))


def test_a_run_has_one_hash_wherever_it_stands() -> None:
    rng = random.Random(0)
    expected = run_hashes(numbered(0, RUN))[0]
    for before in (0, 1, 5, 100):
        text = f"{' '.join(rng.choices(WORDS, k=before))} {numbered(0, RUN)} {numbered(50, before)}"
        assert run_hashes(text)[before] == expected


def test_many_runs_have_as_many_hashes() -> None:
    hashes = run_hashes(numbered(0, 50_000 + RUN - 1))
    assert hashes.dtype == np.uint64
    assert len(np.unique(hashes)) == len(hashes) == 50_000
