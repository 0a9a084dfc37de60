"""Does a text stand in a held-out text? Runs of thirteen words, hashed.

Thirteen words are the usual length for contamination checks (Brown et al. 2020, "Language Models are Few-Shot
Learners", appendix C): long enough that chance doesn't make them equal. Where a script has no spaces between
words, a run is of 26 characters: a word is about two.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gptailor.data.shingles import UNSPACED

RUN, UNSPACED_RUN = 13, 26  # words; characters of a script without spaces
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
LETTER = re.compile(f"[{UNSPACED}]")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word's hash is lost

Hashes = npt.NDArray[np.uint64]


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
    left, right = _words(before), _words(after)
    return any(
        _any_known(_runs([*left[1 - run :], *right[: run - 1]], run), known) for run in (RUN, UNSPACED_RUN)
    )


def run_hashes(text: str) -> Hashes:
    """One hash for each run of thirteen words, or of 26 characters where most of it has no spaces; equal runs
    have equal hashes anywhere.
    """
    words = _words(text)
    return np.concatenate([_runs(words, run) for run in (RUN, UNSPACED_RUN)])


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _any_known(hashes: Hashes, known: NgramSet) -> bool:
    if not len(hashes) or not len(known.hashes):
        return False
    places = np.searchsorted(known.hashes, hashes)
    places[places == len(known.hashes)] = 0
    return bool((known.hashes[places] == hashes).any())


def _runs(words: Sequence[str], run: int) -> Hashes:
    """Hashes of the runs of so many words that are of this kind: at least half of their words are letters of
    a script without spaces, or fewer.
    """
    count = len(words) - run + 1
    alone = [len(word) == 1 and LETTER.match(word) is not None for word in words]
    if count < 1 or (run == UNSPACED_RUN and not any(alone)):
        return np.empty(0, np.uint64)
    hashed = np.array([_word_hash(word) for word in words], np.uint64)
    total: Hashes = np.zeros(count, np.uint64)
    for offset in range(run):
        total = total * MULTIPLIER + hashed[offset : count + offset]
    letters = np.array([0, *alone]).cumsum()
    of_letters = 2 * (letters[run:] - letters[:-run]) >= run
    kept: Hashes = total[of_letters if run == UNSPACED_RUN else ~of_letters]
    return kept


@lru_cache(maxsize=500_000)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")
