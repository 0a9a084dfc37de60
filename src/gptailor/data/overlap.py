"""Does a text stand in a held-out text? Runs of thirteen words, hashed.

Thirteen words are the usual length for contamination checks (Brown et al. 2020, "Language Models are Few-Shot
Learners", appendix C): long enough that chance doesn't make them equal. Where a script has no spaces between
words, a run is of 26 characters: a word is about two.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gptailor.data.shingles import UNSPACED, words_of
from gptailor.types import BoolArray

RUN, UNSPACED_RUN = 13, 26  # words; characters of a script without spaces
LETTER = re.compile(f"[{UNSPACED}]")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word's hash is lost

Hashes = npt.NDArray[np.uint64]
Words = tuple[Hashes, BoolArray]  # of each word its hash, and whether it is such a letter


@dataclass(frozen=True, slots=True)
class NgramSet:
    """Hashes of every run, sorted."""

    hashes: Hashes


def build_ngram_set(texts: Iterable[str]) -> NgramSet:
    """Every run of these texts; case and punctuation don't count."""
    found = [np.unique(run_hashes(text)) for text in texts]
    return NgramSet(np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64))


def shares_a_run(text: str, known: NgramSet) -> bool:
    """Whether any run of the text is in the set."""
    return _any_known(run_hashes(text), known)


def shares_across(before: str, after: str, known: NgramSet) -> bool:
    """Whether a run that begins in one text and ends in the next is in the set."""
    left, right = _read(before), _read(after)

    def around(run: int) -> Words:
        pairs = zip(left, right, strict=True)
        hashes, letters = (np.concatenate([one[1 - run :], other[: run - 1]]) for one, other in pairs)
        return hashes, letters

    return any(_any_known(_runs(around(run), run), known) for run in (RUN, UNSPACED_RUN))


def run_hashes(text: str) -> Hashes:
    """One hash for each run of thirteen words, or of 26 characters where most of it has no spaces; equal runs
    have equal hashes anywhere.
    """
    words = _read(text)
    return np.concatenate([_runs(words, run) for run in (RUN, UNSPACED_RUN)])


def _read(text: str) -> Words:
    words = words_of(text)
    letters = [LETTER.match(word) is not None for word in words]
    return np.array([_word_hash(word) for word in words], np.uint64), np.array(letters, np.bool_)


def _any_known(hashes: Hashes, known: NgramSet) -> bool:
    if not len(hashes) or not len(known.hashes):
        return False
    places = np.searchsorted(known.hashes, hashes)
    places[places == len(known.hashes)] = 0
    return bool((known.hashes[places] == hashes).any())


def _runs(words: Words, run: int) -> Hashes:
    """Hashes of the runs of so many words that are of this kind: at least half of their words are letters of
    a script without spaces, or fewer.
    """
    hashes, letters = words
    count = len(hashes) - run + 1
    if count < 1 or (run == UNSPACED_RUN and not letters.any()):
        return np.empty(0, np.uint64)
    total: Hashes = np.zeros(count, np.uint64)
    for offset in range(run):
        total = total * MULTIPLIER + hashes[offset : count + offset]
    so_far = np.concatenate([[0], letters.cumsum()])
    of_letters = 2 * (so_far[run:] - so_far[:-run]) >= run
    kept: Hashes = total[of_letters if run == UNSPACED_RUN else ~of_letters]
    return kept


@lru_cache(maxsize=500_000)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")
