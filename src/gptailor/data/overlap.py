"""Does a text stand in a held-out text? Runs of thirteen words, hashed.

Thirteen words are the usual length for contamination checks (Brown et al. 2020, "Language Models are Few-Shot
Learners", appendix C): long enough that chance doesn't make them equal.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

RUN = 13  # words
WORD = re.compile(r"\w+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word's hash is lost


@dataclass(frozen=True, slots=True)
class NgramSet:
    """Hashes of every run of thirteen words, sorted."""

    hashes: npt.NDArray[np.uint64]


def build_ngram_set(texts: Iterable[str]) -> NgramSet:
    """Every run of thirteen words of these texts; case and punctuation don't count."""
    found = [np.unique(run_hashes(text)) for text in texts]
    return NgramSet(np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64))


def shares_a_run(text: str, known: NgramSet) -> bool:
    """Whether any run of thirteen words of the text is in the set."""
    hashes = run_hashes(text)
    if not len(hashes) or not len(known.hashes):
        return False
    places = np.searchsorted(known.hashes, hashes)
    places[places == len(known.hashes)] = 0
    return bool((known.hashes[places] == hashes).any())


def shares_across(before: str, after: str, known: NgramSet) -> bool:
    """Whether a run that begins in one text and ends in the next is in the set."""
    left, right = WORD.findall(before)[1 - RUN :], WORD.findall(after)[: RUN - 1]
    return shares_a_run(" ".join((*left, *right)), known)


def run_hashes(text: str) -> npt.NDArray[np.uint64]:
    """(words - 12,) one hash for each run of thirteen words; equal runs have equal hashes anywhere."""
    words = np.array([_word_hash(word) for word in WORD.findall(text.lower())], np.uint64)
    if len(words) < RUN:
        return np.empty(0, np.uint64)
    total = np.zeros(len(words) - RUN + 1, np.uint64)
    for offset in range(RUN):
        total = total * MULTIPLIER + words[offset : len(words) - RUN + 1 + offset]
    return total


@lru_cache(maxsize=500_000)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")
