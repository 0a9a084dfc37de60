"""Pieces of text as tokens come: whole characters, no piece of a stop string, nothing lost."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from gptailor.models.text_stream import TextStream

SPECIAL = 256  # beyond the bytes: a token that is left out of the text
# Characters of one to four bytes, and some that make stop strings likely.
TEXTS = st.text(st.sampled_from("aab .\né€漢😀\u0301"), max_size=30)
STOPS = st.lists(st.text(st.sampled_from("ab.é😀"), min_size=1, max_size=4), max_size=3)


def decode(pieces: Sequence[bytes]) -> str:
    """As byte-level tokenizers do: bytes joined, parts of characters replaced."""
    return b"".join(pieces).decode("utf-8", errors="replace")


class Pieces:
    """A tokenizer whose tokens are any byte strings."""

    def __init__(self) -> None:
        self.known: list[bytes] = []

    def add(self, piece: bytes) -> int:
        self.known.append(piece)
        return len(self.known) - 1

    def decode(self, ids: Sequence[int]) -> str:
        return decode([self.known[token] for token in ids])


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """Bytes cut at some places, inside characters as well; also empty pieces, as special tokens give."""
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(borders)]


def stream_pieces(pieces: Sequence[bytes], stop: Sequence[str]) -> tuple[TextStream, list[str], list[int]]:
    """What was taken after each token, and how many tokens went with it."""
    tokenizer = Pieces()
    stream = TextStream(tokenizer.decode, stop)
    shown, counts = [], []
    for piece in pieces:
        stream.push(tokenizer.add(piece))
        text, count = stream.take()
        shown.append(text)
        counts.append(count)
        if stream.stopped:
            return stream, shown, counts
    stream.end()
    text, count = stream.take(ended=True)
    return stream, [*shown, text], [*counts, count]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the stop string that is complete first, the longest of those that end there."""
    ends = [(text.index(string) + len(string), text.index(string)) for string in stop if string in text]
    return text[: min(ends)[1]] if ends else text


@given(TEXTS, st.lists(st.integers(0, 200), max_size=40), STOPS)
@example("éa", [1], ["a"])
@example("aaab", [1, 2, 3], ["aab"])
@settings(deadline=None, max_examples=500, database=None)
def test_pieces_joined_are_the_text_whatever_the_tokens(
    text: str, places: list[int], stop: list[str]
) -> None:
    stream, shown, counts = stream_pieces(cut(text.encode(), places), stop)
    assert "".join(shown) == stream.text == before_stop(text, stop)
    assert stream.stopped == any(string in text for string in stop)
    assert sum(counts) == stream.num_tokens
    assert all(count >= 0 for count in counts)


@given(TEXTS, st.lists(st.integers(0, 200), max_size=40), STOPS)
@settings(deadline=None, max_examples=300, database=None)
def test_nothing_is_held_longer_than_needed(text: str, places: list[int], stop: list[str]) -> None:
    """After each token all text is shown but what could be the beginning of a stop string."""
    pieces = cut(text.encode(), places)
    _, shown, _ = stream_pieces(pieces, stop)
    whole = ""
    for count in range(1, len(shown)):
        with contextlib.suppress(UnicodeDecodeError):  # the token waits for the rest of its last character
            whole = b"".join(pieces[:count]).decode()
        expected = before_stop(whole, stop)
        if expected == whole:
            expected = whole.removesuffix(longest_beginning(whole, stop))
        assert "".join(shown[:count]) == expected


def longest_beginning(text: str, stop: Sequence[str]) -> str:
    """The longest end of a text with which a stop string begins."""
    beginnings = (string[:size] for string in stop for size in range(1, len(string)))
    return max((some for some in beginnings if text.endswith(some)), key=len, default="")


@given(st.lists(st.binary(max_size=3), max_size=20))
@settings(deadline=None, max_examples=300, database=None)
def test_bytes_that_are_no_text_lose_nothing_but_an_unfinished_end(pieces: list[bytes]) -> None:
    whole = decode(pieces)
    stream, shown, _ = stream_pieces(pieces, [])
    assert "".join(shown) == stream.text
    assert whole.startswith(stream.text)
    assert not whole[len(stream.text) :].strip("\N{REPLACEMENT CHARACTER}")


def test_half_a_character_at_the_end_is_left_out() -> None:
    stream, shown, counts = stream_pieces([b"a", "é".encode()[:1]], [])
    assert shown == ["a", "", ""]
    assert (stream.text, stream.num_tokens, sum(counts)) == ("a", 2, 2)


def test_the_tokens_before_a_stop_string_are_counted() -> None:
    """The token in which the stop string begins counts where it begins before it."""
    assert stream_pieces([b"ab", b"c", b"d"], ["cd"])[0].num_tokens == 1
    assert stream_pieces([b"a", b"bc", b"d"], ["cd"])[0].num_tokens == 2
    assert stream_pieces([b"cd"], ["cd"])[0].num_tokens == 0


def test_tokens_go_with_the_first_piece_that_shows_a_character_of_them() -> None:
    _, shown, counts = stream_pieces([b"x", b"a", b"b", b"y"], ["abc"])
    assert list(zip(shown, counts, strict=True)) == [("x", 1), ("", 0), ("", 0), ("aby", 3), ("", 0)]


def test_nothing_is_taken_after_a_stop_string() -> None:
    tokenizer = Pieces()
    stream = TextStream(tokenizer.decode, ["."])
    for piece in (b"a", b".", b"b"):
        stream.push(tokenizer.add(piece))
    stream.end()
    assert (stream.text, stream.num_tokens, stream.take()) == ("a", 1, ("a", 1))


def test_a_decoder_that_drops_the_first_space_keeps_the_others() -> None:
    """SentencePiece's, as Llama 2 has it: the words' marks become spaces, the text's first is dropped."""
    words = ["▁The", "▁cup", "<0xC3>", "<0xA9>", "▁a", "b"]
    backend = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[]))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    stream, shown = TextStream(backend.decode), ""
    for token in (0, 1, 2, 3, 1, 4, 5):
        stream.push(token)
        shown += stream.take()[0]
    assert shown == stream.text == "The cupé cup ab"


def test_an_answer_keeps_its_first_space_where_it_follows_a_prompt() -> None:
    words = ["▁The", "▁cup", "s", "<|end|>"]
    backend = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[]))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for before, told in (((0,), " cups"), ((0, 1), " cups"), ((), "cups")):
        stream = TextStream(backend.decode, before=before)
        for token in (1, 2):
            stream.push(token)
        stream.end()
        assert (stream.text, stream.num_tokens, stream.begins) == (told, 2, [0, len(told) - 1])


def test_a_stop_string_may_wait_for_the_first_words() -> None:
    for waits, text in ((False, ""), (True, "\n\nfoo")):
        tokenizer = Pieces()
        stream = TextStream(tokenizer.decode, ["\n"], stop_after_text=waits)
        for piece in (b"\n", b"\nfo", b"o\nb", b"ar"):
            stream.push(tokenizer.add(piece))
        assert stream.stopped
        assert stream.text == text
