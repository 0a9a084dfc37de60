"""Looking words up gives the ids that the tokenizer gives, for every text it is used for."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from gptailor.data import words
from gptailor.data.words import WORD, WordTable, divides_into_words
from gptailor.models.load import load_tokenizer
from gptailor.models.names import resolve_base

# As GPT-2 wrote it, but for its Unicode classes.
ORIGINAL = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
ascii_texts = st.text(st.characters(max_codepoint=127), max_size=80)
likely_texts = st.text(st.sampled_from("aZt sdlve'r0 9.,!?-\n\t\x0b\x1c\x00<|>"), max_size=40)


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    tokenizer: Any = load_tokenizer(resolve_base("starter"))
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    return backend


def test_words_are_those_of_the_original_division() -> None:
    for length in range(1, 6):
        for letters in product("as'l !0\n", repeat=length):
            text = "".join(letters)
            assert WORD.findall(text) == ORIGINAL.findall(text), text


def test_words_of_any_three_letters_are_those_of_the_tokenizer(backend: Tokenizer) -> None:
    everything = [chr(code) for code in range(128)]
    for first, second in product(everything, repeat=2):
        text = f"b{first}{second}{first} {second}t"
        pieces = [text[slice(*span)] for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
        assert WORD.findall(text) == pieces, text


@given(st.lists(st.one_of(ascii_texts, likely_texts), max_size=6))
@settings(max_examples=200, deadline=None)
def test_ids_are_those_of_the_tokenizer(backend: Tokenizer, texts: list[str]) -> None:
    table = WordTable(backend)
    for _ in range(2):  # new words, then known ones
        ids, counts = table.encode(texts)
        assert counts.sum() == len(ids)
        found = iter(ids.tolist())
        for text, count in zip(texts, counts.tolist(), strict=True):
            expected = backend.encode(text, add_special_tokens=False).ids
            assert [next(found) for _ in range(count)] == expected


def test_table_that_is_full_begins_anew(backend: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_CHARACTERS", 20)
    table = WordTable(backend)
    for text in ("one two three four five six", "seven", "one two eight", "<|endoftext|>"):
        ids, _ = table.encode([text])
        assert ids.tolist() == backend.encode(text, add_special_tokens=False).ids


def test_only_tokenizers_that_divide_so_are_looked_up(backend: Tokenizer) -> None:
    assert divides_into_words(backend)
    assert not divides_into_words(changed(backend, pre_tokenizer=pre_tokenizers.Whitespace()))
    assert not divides_into_words(
        changed(backend, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    )
    assert not divides_into_words(
        changed(backend, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    )
    assert not divides_into_words(changed(backend, normalizer=normalizers.Lowercase()))
    assert not divides_into_words(changed(backend, model=models.WordLevel({"a": 0}, unk_token="a")))
    more = Tokenizer.from_str(backend.to_str())
    more.add_tokens([AddedToken("New York", normalized=False)])
    assert not divides_into_words(more)


def changed(backend: Tokenizer, **parts: Any) -> Tokenizer:
    copy = Tokenizer.from_str(backend.to_str())
    for name, part in parts.items():
        setattr(copy, name, part)
    return copy
