"""From text to token ids, with the base's own tokenizer, whatever it is.

A person's text is encoded as text only: a `<|endoftext|>` inside it stays those thirteen characters.
What the tokenizer itself puts before and after every text (a begin token, the starter's end-of-text) is
joined as token ids, so that cutting a long text never cuts them off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from gptailor.data.spill import Spill
from gptailor.data.words import WordTable, divides_into_words
from gptailor.types import Example, IntArray, TokenizedExample

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TooLong = Literal["cut", "drop", "window"]
# Some vocabularies list the headers of their turns as ordinary added tokens (DeepSeek's, written with the
# full-width bar, among them). What is spelled like a control token is taken for one.
LOOKS_LIKE_CONTROL = re.compile(r"<[|｜].*[|｜]>", re.S)
CHUNK = 1024  # texts per call into the tokenizer: large enough to use every core, small enough to stay flat


@dataclass(frozen=True, slots=True)
class Encoder:
    """A tokenizer ready to encode people's texts: `prefix` and `suffix` are token ids it puts around them."""

    backend: Tokenizer
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int

    @property
    def overhead(self) -> int:
        return len(self.prefix) + len(self.suffix)

    def __reduce__(self) -> tuple[Any, ...]:
        return copied, (Encoder, (self.backend.to_str(),), self.prefix, self.suffix, self.pad_id)


def copied(make: Callable[..., Any], closed_ones: Sequence[str], *others: Any) -> Any:
    """What holds closed tokenizers, from a pickle: they don't pickle that they are closed."""
    from tokenizers import Tokenizer

    backends = [Tokenizer.from_str(state) for state in closed_ones]
    for backend in backends:
        backend.encode_special_tokens = True
    return make(*backends, *others)


def closed(backend: Tokenizer) -> tuple[Tokenizer, list[dict[str, Any]]]:
    """A copy that takes the strings of control tokens for text; and these tokens, as its file lists them."""
    state = json.loads(backend.to_str())
    control = []
    for token in state["added_tokens"]:
        if token["special"] or LOOKS_LIKE_CONTROL.fullmatch(token["content"]):
            token["special"] = True
            control.append(token)
    copy = type(backend).from_str(json.dumps(state))
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy, control


def build_encoder(backend: Tokenizer, *, pad_id: int) -> Encoder:
    """Makes an encoder of a fast tokenizer; the one given is copied, since transformers changes its own."""
    backend, _ = closed(backend)
    around = backend.encode("a", add_special_tokens=True)
    inside = [place for place, special in enumerate(around.special_tokens_mask) if not special]
    return Encoder(
        backend=backend,
        prefix=tuple(around.ids[: inside[0]]),
        suffix=tuple(around.ids[inside[-1] + 1 :]),
        pad_id=pad_id,
    )


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without what goes around it."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), CHUNK):
        encodings = encoder.backend.encode_batch_fast(
            list(texts[start : start + CHUNK]), add_special_tokens=False
        )
        ids.extend(encoding.ids for encoding in encodings)
    return ids


def fit_length(
    encoder: Encoder, ids: Sequence[int], *, max_tokens: int, too_long: TooLong
) -> list[tuple[list[int], int]]:
    """The sequences one text becomes, each with how many of its tokens were cut.

    `cut` keeps the head; `drop` returns nothing for a text that doesn't fit; `window` returns
    consecutive windows that together hold every token.
    """
    room = max_tokens - encoder.overhead
    if len(ids) <= room:
        return [([*encoder.prefix, *ids, *encoder.suffix], 0)]
    if too_long == "drop":
        return []
    if too_long == "cut":
        return [([*encoder.prefix, *ids[:room], *encoder.suffix], len(ids) - room)]
    return [
        ([*encoder.prefix, *ids[start : start + room], *encoder.suffix], 0)
        for start in range(0, len(ids), room)
    ]


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Token ids of N texts, without what goes around them, in one array that may lie on the disk.

    Text i has `ids[starts[i] : starts[i] + lengths[i]]`.
    """

    ids: npt.NDArray[np.int32]
    starts: IntArray  # (N,)
    lengths: IntArray  # (N,)


def encode_all(encoder: Encoder, texts: Sequence[str]) -> EncodedTexts:
    """Token ids of any number of texts, each encoded once; word by word where the tokenizer allows it."""
    encode = partial(_encode, encoder)
    by_words = WordTable(encoder.backend).encode if divides_into_words(encoder.backend) else encode
    starts, lengths = np.zeros((2, len(texts)), np.int64)
    total = 0
    with Spill(np.int32) as spill:
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            is_ascii = np.array([text.isascii() for text in chunk])
            for rows, how in ((np.flatnonzero(is_ascii), by_words), (np.flatnonzero(~is_ascii), encode)):
                ids, counts = how([chunk[i] for i in rows.tolist()])
                spill.append(ids)
                starts[start + rows] = total + np.cumsum(counts) - counts
                lengths[start + rows] = counts
                total += len(ids)
        return EncodedTexts(spill.read(), starts, lengths)


def _encode(encoder: Encoder, texts: list[str]) -> tuple[npt.NDArray[np.int32], IntArray]:
    encodings = encoder.backend.encode_batch_fast(texts, add_special_tokens=False)
    ids = [encoding.ids for encoding in encodings]
    return np.fromiter(chain.from_iterable(ids), np.int32), np.array([len(one) for one in ids], np.int64)


@dataclass(frozen=True, slots=True)
class TokenizedRows(Sequence[TokenizedExample]):
    """Classification sequences, each made when it is asked for: a million take no more than their ids.

    Only the last token is learned from: the head reads its hidden state.
    """

    examples: Sequence[Example]
    places: IntArray  # (S,) whose example each sequence is
    starts: IntArray  # (S,) where its ids begin
    lengths: IntArray  # (S,) how many there are, without what goes around them
    cut: IntArray  # (S,) tokens that did not fit
    ids: npt.NDArray[np.int32]
    encoder: Encoder

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example = self.examples[self.places[index]]
        begin = self.starts[index]
        ids = self.ids[begin : begin + self.lengths[index]]
        if self.encoder.overhead:
            around = (self.encoder.prefix, self.encoder.suffix)
            before, after = (np.array(special, np.int32) for special in around)
            ids = np.concatenate([before, ids, after])
        learn = np.zeros(len(ids), np.bool_)
        learn[-1] = True
        cut = int(self.cut[index])
        return TokenizedExample(ids, learn, example.source, example.row, example.label, cut, example.group)


def fit_rows(
    encoder: Encoder,
    encoded: EncodedTexts,
    examples: Sequence[Example],
    *,
    first: int,
    max_tokens: int,
    too_long: TooLong,
) -> TokenizedRows:
    """The sequences of classification examples, as `fit_length` makes them; none for one that is dropped.

    A text that becomes no token at all (a tokenizer without a byte alphabet may know none of it) has none.

    Args:
        encoder: What the texts were encoded with.
        encoded: The texts of these examples and maybe of others.
        examples: N examples.
        first: Where the first of their texts stands in `encoded`.
        max_tokens: The longest sequence, what goes around a text included.
        too_long: What to do with a longer one.
    """
    room = max_tokens - encoder.overhead
    starts = encoded.starts[first : first + len(examples)]
    lengths = encoded.lengths[first : first + len(examples)]
    windows = -(-lengths // room)
    if too_long == "cut":
        windows = np.minimum(windows, 1)
    elif too_long == "drop":
        windows = np.where(windows > 1, 0, windows)
    places = np.repeat(np.arange(len(examples)), windows)
    within = np.arange(len(places)) - np.repeat(np.cumsum(windows) - windows, windows)
    held = np.minimum(lengths[places] - within * room, room)
    cut = lengths[places] - held if too_long == "cut" else np.zeros_like(held)
    return TokenizedRows(examples, places, starts[places] + within * room, held, cut, encoded.ids, encoder)


def token_lengths(encoder: Encoder, texts: Sequence[str]) -> IntArray:
    """(N,) tokens of each text, what goes around it included."""
    return encode_all(encoder, texts).lengths + encoder.overhead
