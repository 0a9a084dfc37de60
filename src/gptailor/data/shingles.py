"""Texts as words, and as the shingles by which near-duplicates are told. Words are case folded."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from gptailor.data.spill import Spill
from gptailor.types import IntArray

WORD_SHINGLE = 3
CHARACTER_SHINGLE = 5
CHUNK_TEXTS = 8192  # whose words are in memory at once
MOST_CODES = 1 << 18  # words whose codes are remembered

HashArray = npt.NDArray[np.uint64]

# Thai and Lao, Burmese, Khmer, kana and Han: a clause of them isn't a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
ASCII_WORD = re.compile("[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class TextWords:
    """N texts as the words in them."""

    keys: HashArray  # (N, 2) what makes texts equal: their letters and digits
    counts: IntArray  # (N,) words of each
    starts: IntArray  # (N,) where its words begin in `codes`
    codes: HashArray  # (all words,) a number for each, maybe on the disk


def read_words(texts: Sequence[str]) -> TextWords:
    """Divides every text into its words, once."""
    codes = _WordCodes()
    keys = bytearray()
    counts = np.zeros(len(texts), dtype=np.int64)
    with Spill(np.uint64) as spill:
        for start in range(0, len(texts), CHUNK_TEXTS):
            found: list[int] = []
            for i, text in enumerate(texts[start : start + CHUNK_TEXTS], start):
                words = words_of(text)
                keys += _digest(key_of(text, words), 16)
                counts[i] = len(words)
                found += map(codes.__getitem__, words)
            spill.append(np.array(found, dtype=np.uint64))
        pairs = np.frombuffer(keys, dtype=np.uint64).reshape(-1, 2)
        return TextWords(pairs, counts, np.cumsum(counts) - counts, spill.read())


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and their marks; of scripts without blanks each character."""
    folded = text.casefold()
    return ASCII_WORD.findall(folded) if folded.isascii() else _word().findall(folded)


def key_of(text: str, words: Sequence[str]) -> str:
    """Equal for texts with the same letters and digits."""
    return "".join(words) or f" {text.strip()}"  # the blank keeps the two kinds of key apart


def word_codes(words: TextWords, places: IntArray) -> tuple[HashArray, IntArray]:
    """(the words of some texts in a row, how many each text has)."""
    counts = words.counts[places]
    shifts = np.repeat(words.starts[places] - (np.cumsum(counts) - counts), counts)
    return words.codes[shifts + np.arange(len(shifts))], counts


def character_codes(texts: Sequence[str]) -> tuple[HashArray, IntArray]:
    """(the characters of the texts' words in a row, how many each text has); five at least."""
    padded = [" ".join(words_of(text)).ljust(CHARACTER_SHINGLE, "\0") for text in texts]
    flat = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return flat.astype(np.uint64), np.array([len(text) for text in padded], dtype=np.int64)


def shingle_hashes(codes: HashArray, lengths: IntArray, width: int) -> tuple[HashArray, HashArray]:
    """(all texts' shingle hashes in one row; (N + 1,) where each text's begin). Texts have `width` codes."""
    hashes = np.zeros(len(codes) - width + 1, dtype=np.uint64)
    for i in range(width):
        hashes = mixed(hashes + codes[i : len(codes) - width + 1 + i])
    ends = np.cumsum(lengths)
    within = np.ones(len(codes), dtype=bool)
    for i in range(1, width):
        within[ends - i] = False  # a shingle that begins here would run into the next text
    starts = np.concatenate([[0], np.cumsum(lengths - width + 1)]).astype(np.uint64)
    return hashes[within[: len(hashes)]], starts


def mixed(values: HashArray) -> HashArray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a one-to-one scramble."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _WordCodes(dict[str, int]):
    """The code of each word, computed when it is first asked for."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MOST_CODES:
            self.clear()
        code = self[word] = int.from_bytes(_digest(word, 8), "little")
        return code


@cache
def _word() -> re.Pattern[str]:
    """Letters, digits and the marks on them: without its marks, a Hindi word is another word."""
    marks = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"]
    runs = np.split(np.array(marks), np.flatnonzero(np.diff(marks) > 1) + 1)
    ranges = "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)
    return re.compile(f"[{UNSPACED}][{ranges}]*|(?:[^\\W_{UNSPACED}]|[{ranges}])+")


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()
