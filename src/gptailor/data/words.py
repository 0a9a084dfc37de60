"""Token ids of many texts by looking up their words, for tokenizers that divide texts as GPT-2's does.

Such a tokenizer encodes each word for itself, and most words come again. So each word goes through it once,
and a text is the ids of its words one after another: the same ids, for a fifth of the time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_CHARACTERS = 1 << 21  # of the words in the table, which then begins anew

# GPT-2's division (Radford et al. 2019, encoder.py) for ASCII alone, where it needs no Unicode tables. The
# branches stand in another order, the frequent ones first; tests compare both on every short string. A word
# stays whole when it is divided alone: what ends it ends it there, too.
WORD = re.compile(
    r" ?(?:[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9']+[^\sA-Za-z0-9]*)"
    r"|'(?:[stmd]|ll|ve|re)| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+",
    re.ASCII,
)


def divides_into_words(backend: Tokenizer) -> bool:
    """Whether a tokenizer is GPT-2's in what matters here: bytes as letters, its words, BPE in them."""
    from tokenizers import models, pre_tokenizers

    divider = backend.pre_tokenizer
    return (
        backend.normalizer is None
        and isinstance(divider, pre_tokenizers.ByteLevel)
        and divider.use_regex
        and not divider.add_prefix_space
        and isinstance(backend.model, models.BPE)
        and not backend.model.dropout
        and all(token.special for token in backend.get_added_tokens_decoder().values())
    )


class WordTable:
    """The words seen so far and their token ids."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._places: dict[str, int] = {}
        self._ids: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self._starts: npt.NDArray[np.int64] = np.zeros(1, np.int64)
        self._characters = 0

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """(all ids of all texts, (N,) ids of each) for N texts of nothing but ASCII."""
        if self._characters > MOST_CHARACTERS:
            self._forget()
        divided = [WORD.findall(text) for text in texts]
        words = list(chain.from_iterable(divided))
        places = np.fromiter(map(self._places.get, words, repeat(-1)), np.int64, count=len(words))
        new = np.flatnonzero(places < 0).tolist()
        if new:
            self._learn(list(dict.fromkeys(words[i] for i in new)))
            places[new] = [self._places[words[i]] for i in new]
        counts = self._starts[places + 1] - self._starts[places]
        ends = np.concatenate([[0], np.cumsum(counts)])
        # Token k of a word stands k places after the word's first one, in the table as in the text.
        shifts = np.repeat(self._starts[places] - ends[:-1], counts)
        borders = np.cumsum([0, *(len(one) for one in divided)])
        return self._ids[shifts + np.arange(len(shifts))], np.diff(ends[borders])

    def _learn(self, words: Sequence[str]) -> None:
        encodings = self._backend.encode_batch_fast(list(words), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        self._places.update(zip(words, range(len(self._places), len(self._places) + len(words)), strict=True))
        self._ids = np.concatenate([self._ids, np.fromiter(chain.from_iterable(ids), np.int32)])
        ends = self._starts[-1] + np.cumsum([len(one) for one in ids])
        self._starts = np.concatenate([self._starts, ends])
        self._characters += sum(map(len, words))

    def _forget(self) -> None:
        self._places.clear()
        self._ids, self._starts = self._ids[:0], self._starts[:1]
        self._characters = 0
