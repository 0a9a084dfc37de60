"""From text to token ids, with the base's own tokenizer, whatever it is.

A person's text is encoded as text only: a `<|endoftext|>` inside it stays those thirteen characters.
What the tokenizer itself puts before and after every text (a begin token, the starter's end-of-text) is
joined as token ids, so that cutting a long text never cuts them off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gptailor.types import Example, IntArray, TokenizedExample

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TooLong = Literal["cut", "drop", "window"]
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


def build_encoder(backend: Tokenizer, *, pad_id: int) -> Encoder:
    """Makes an encoder of a fast tokenizer; the one given is copied, since transformers changes its own."""
    backend = type(backend).from_str(backend.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
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


def tokenize(
    encoder: Encoder, examples: Sequence[Example], *, max_tokens: int, too_long: TooLong
) -> Iterator[tuple[int, list[TokenizedExample]]]:
    """Yields (index, sequences) for each classification example; no sequences for one that is dropped.

    A text that becomes no token at all (a tokenizer without a byte alphabet may know none of it) has none.
    Only the last token is learned from: the head reads its hidden state.
    """
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        for offset, ids in enumerate(encode_texts(encoder, [example.text for example in chunk])):
            example = chunk[offset]
            sequences = []
            fitted = fit_length(encoder, ids, max_tokens=max_tokens, too_long=too_long) if ids else []
            for tokens, cut in fitted:
                learn = np.zeros(len(tokens), np.bool_)
                learn[-1] = True
                sequences.append(
                    TokenizedExample(
                        token_ids=np.array(tokens, np.int32),
                        learn=learn,
                        source=example.source,
                        row=example.row,
                        label=example.label,
                        cut=cut,
                    )
                )
            yield start + offset, sequences


def token_lengths(encoder: Encoder, texts: Sequence[str]) -> IntArray:
    """(N,) tokens of each text, what goes around it included."""
    return np.array([len(ids) + encoder.overhead for ids in encode_texts(encoder, texts)], np.int64)
