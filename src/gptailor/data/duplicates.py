"""Finds texts that are nearly the same, so that no text is on both sides of a split.

Two texts are near when the Jaccard similarity of their shingle sets reaches the threshold: word
3-shingles, or character 5-grams when either text has under 8 words. MinHash signatures (Broder 1997)
and banding (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4) propose the pairs;
each pair is then measured on its full sets, so what is reported is true and only recall is a matter
of chance. Words are runs of letters, digits and their marks, case folded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from gptailor.types import IntArray

WORD_SHINGLE = 3
CHARACTER_SHINGLE = 5
FEW_WORDS = 8
NOT_SO_FEW_WORDS = 12  # a text under 8 words can be near one of a few more, hardly near one of 12

PERMUTATIONS = 128
RECALL = 0.99  # asked of the bands for a pair that just reaches the threshold
SLACK = 0.2  # an estimate from 128 permutations is further off than this once in ten million
REACH = 32  # neighbors in a bucket that each text is tried with; only templates fill larger buckets
PATIENCE = 32  # failed comparisons of a text before only likely ones are made
CHUNK_TEXTS, CHUNK_CHARACTERS = 8192, 4_000_000  # whose shingles are in memory at once

HashArray = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]


def near_duplicate_groups(texts: Sequence[str], *, threshold: float = 0.8, seed: int = 0) -> IntArray:
    """Groups of near-duplicates: texts are in one group if a chain of near or equal pairs joins them.

    Equal means the same letters and digits, as in `is_exact`.

    Args:
        texts: N texts.
        threshold: The Jaccard similarity from which a pair is near.
        seed: Of the permutations. Another seed may find another of the few pairs that are missed.

    Returns:
        (N,) group ids, numbered from 0 in the order of each group's first text.
    """
    keys, counts = _keys_and_counts(texts)
    first: dict[bytes, int] = {}
    groups = np.array([first.setdefault(key, i) for i, key in enumerate(keys)], dtype=np.int64)
    distinct = np.flatnonzero(groups == np.arange(len(texts)))
    for members, width in _spaces(counts[distinct]):
        places = distinct[members]
        is_compared = (counts[places] < FEW_WORDS) | (width == WORD_SHINGLE)
        _join_near(_Sketch(texts, places, width, seed), places, groups, is_compared, threshold)
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def near_matches(texts: Sequence[str], against: Sequence[str], *, threshold: float = 0.8) -> IntArray:
    """For each text, one that is the same or near among `against`.

    Returns:
        (N,) indices into `against`: the first with the same letters and digits, else one that is near,
        else -1.
    """
    keys, counts = _keys_and_counts(texts)
    other_keys, other_counts = _keys_and_counts(against)
    first: dict[bytes, int] = {}
    for i, key in enumerate(other_keys):
        first.setdefault(key, i)
    matches = np.array([first.get(key, -1) for key in keys], dtype=np.int64)
    unmatched = np.flatnonzero(matches < 0)
    together = [*(texts[int(i)] for i in unmatched), *against]
    counts = np.concatenate([counts[unmatched], other_counts])
    for members, width in _spaces(counts):
        is_compared = (counts[members] < FEW_WORDS) | (width == WORD_SHINGLE)
        border = int(np.searchsorted(members, len(unmatched)))
        found = _match_near(_Sketch(together, members, width, seed=0), border, is_compared, threshold)
        for place, other in found.items():
            if matches[unmatched[members[place]]] < 0:
                matches[unmatched[members[place]]] = members[other] - len(unmatched)
    return matches


def is_exact(a: str, b: str) -> bool:
    """Whether two texts have the same letters and digits, case folded.

    Texts without a letter or digit (emoji, signs) must be equal but for blanks at the ends.
    """
    return _key(a, _words(a)) == _key(b, _words(b))


def merge_chains(groups: IntArray, left: IntArray, right: IntArray) -> IntArray:
    """Joins the groups of the items `left[i]` and `right[i]`, for every i.

    Args:
        groups: (N,) each item's group, named by one of its items, whose own group has that name too.
        left: (M,) items.
        right: (M,) items.

    Returns:
        (N,) the joined groups, each named by the smallest of the names that went into it.
    """
    groups = groups.copy()
    while True:
        one, other = groups[left], groups[right]
        apart = one != other
        if not apart.any():
            return groups
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(groups, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(groups, above := groups[groups]):
            groups = above


# --- words and shingles ----------------------------------------------------------------------------

ASCII_WORD = re.compile("[a-z0-9]+")


@cache
def _word() -> re.Pattern[str]:
    """Letters, digits and the marks on them: without its marks, a Hindi word is another word."""
    marks = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"]
    runs = np.split(np.array(marks), np.flatnonzero(np.diff(marks) > 1) + 1)
    ranges = "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)
    return re.compile(f"(?:[^\\W_]|[{ranges}])+")


def _words(text: str) -> list[str]:
    folded = text.casefold()
    return ASCII_WORD.findall(folded) if folded.isascii() else _word().findall(folded)


def _key(text: str, words: Sequence[str]) -> str:
    return "".join(words) or f" {text.strip()}"  # the blank keeps the two kinds of key apart


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


@lru_cache(maxsize=1 << 18)
def _word_code(word: str) -> int:
    return int.from_bytes(_digest(word, 8), "little")


def _keys_and_counts(texts: Sequence[str]) -> tuple[list[bytes], IntArray]:
    """What makes texts equal, and the number of words of each."""
    keys: list[bytes] = []
    counts = np.zeros(len(texts), dtype=np.int64)
    for i, text in enumerate(texts):
        words = _words(text)
        keys.append(_digest(_key(text, words), 16))
        counts[i] = len(words)
    return keys, counts


def _spaces(counts: IntArray) -> Iterator[tuple[IntArray, int]]:
    """The texts to compare with one another by word shingles, and those by character shingles."""
    enough = np.flatnonzero(counts >= FEW_WORDS)
    if enough.size:
        yield enough, WORD_SHINGLE
    if ((counts > 0) & (counts < FEW_WORDS)).any():
        yield np.flatnonzero((counts > 0) & (counts <= NOT_SO_FEW_WORDS)), CHARACTER_SHINGLE


def _codes(text: str, width: int) -> HashArray:
    """The text as numbers, one per word or one per character."""
    words = _words(text)
    if width == WORD_SHINGLE:
        return np.fromiter(map(_word_code, words), dtype=np.uint64, count=len(words))
    padded = " ".join(words).ljust(width, "\0")
    return np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)


def _shingle_hashes(codes: Sequence[HashArray], width: int) -> tuple[HashArray, HashArray]:
    """(all texts' shingle hashes in one row; (N + 1,) where each text's begin). Texts have `width` codes."""
    lengths = np.array([len(code) for code in codes])
    flat = np.concatenate(codes)
    hashes = np.zeros(len(flat) - width + 1, dtype=np.uint64)
    for i in range(width):
        hashes = _mixed(hashes + flat[i : len(flat) - width + 1 + i])
    ends = np.cumsum(lengths)
    within = np.ones(len(flat), dtype=bool)
    for i in range(1, width):
        within[ends - i] = False  # a shingle that begins here would run into the next text
    starts = np.concatenate([[0], np.cumsum(lengths - width + 1)]).astype(np.uint64)
    return hashes[within[: len(hashes)]], starts


def _mixed(values: HashArray) -> HashArray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a one-to-one scramble."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# --- candidates and their proof --------------------------------------------------------------------


class _Sketch:
    """Some texts as shingles and signatures, and what comparing them has cost so far.

    Texts are named by their place in `members`.
    """

    def __init__(self, texts: Sequence[str], members: IntArray, width: int, seed: int) -> None:
        hashes: list[HashArray] = []
        lengths: list[IntArray] = []
        rows: list[Signatures] = []
        for codes in _chunks(texts, members, width):
            flat, starts = _shingle_hashes(codes, width)
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, starts, PERMUTATIONS, seed)
            rows.append(np.array(matrix.to_rows(), dtype=np.uint32))
            hashes.append(flat)
            lengths.append(np.diff(starts).astype(np.int64))
        self.signatures = np.concatenate(rows)  # (M, PERMUTATIONS)
        self._hashes = np.concatenate(hashes)
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        self._failures = np.zeros(len(members), dtype=np.int64)
        self._failed: set[tuple[int, int]] = set()
        self._shingles = lru_cache(maxsize=1 << 12)(self._read_shingles)

    def _read_shingles(self, place: int) -> frozenset[int]:
        return frozenset(self._hashes[self._starts[place] : self._starts[place + 1]].tolist())

    def near(self, left: IntArray, right: IntArray, threshold: float) -> list[tuple[int, int]]:
        """Which of the pairs are near, proven on their full sets.

        Texts that have failed many times (rows of one template) are tried only where the estimate is
        high, so that the work grows with the number of texts, not of pairs.
        """
        proven: list[tuple[int, int]] = []
        for start in range(0, len(left), CHUNK_TEXTS):
            some = slice(start, start + CHUNK_TEXTS)
            agreeing = self.signatures[left[some]] == self.signatures[right[some]]
            estimates = np.count_nonzero(agreeing, axis=1) / PERMUTATIONS
            for k in start + np.flatnonzero(estimates >= threshold - SLACK):
                pair = (int(left[k]), int(right[k]))
                is_spent = min(self._failures[pair[0]], self._failures[pair[1]]) >= PATIENCE
                if pair in self._failed or (is_spent and estimates[k - start] < (1 + threshold) / 2):
                    continue
                one, other = self._shingles(pair[0]), self._shingles(pair[1])
                shared = len(one & other)
                if shared >= threshold * (len(one) + len(other) - shared):
                    proven.append(pair)
                else:
                    self._failed.add(pair)
                    self._failures[list(pair)] += 1
        return proven


def _chunks(texts: Sequence[str], members: IntArray, width: int) -> Iterator[list[HashArray]]:
    chunk: list[HashArray] = []
    size = 0
    for i in members:
        chunk.append(_codes(texts[i], width))
        size += len(texts[i])
        if len(chunk) == CHUNK_TEXTS or size > CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _band_keys(signatures: Signatures, threshold: float) -> list[HashArray]:
    """(M,) per band: texts with equal keys agree in the whole band.

    Bands are as long as the recall allows: a pair of similarity s shares one of b bands of r rows with
    probability 1 - (1 - s^r)^b.
    """
    lengths = [r for r in range(1, 17) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL]
    length = max(lengths, default=1)
    bands: list[HashArray] = []
    for start in range(0, PERMUTATIONS - length + 1, length):
        keys = np.zeros(len(signatures), dtype=np.uint64)
        for column in range(start, start + length):
            keys = _mixed(keys + signatures[:, column])
        bands.append(keys)
    return bands


def _ordered(bands: Sequence[HashArray], band: int) -> IntArray:
    """Texts by their key in one band; those with equal keys by the next two, so that neighbors are likest."""
    return np.lexsort([bands[(band + i) % len(bands)] for i in (2, 1, 0)])


def _join_near(
    sketch: _Sketch, members: IntArray, groups: IntArray, is_compared: npt.NDArray[np.bool_], threshold: float
) -> None:
    """Merges, in place, the groups of the members that are near."""
    bands = _band_keys(sketch.signatures, threshold)
    for band, keys in enumerate(bands):
        order = _ordered(bands, band)
        for step in range(1, REACH + 1):
            left, right = order[:-step], order[step:]
            same = keys[left] == keys[right]
            if not same.any():
                break
            left, right = np.minimum(left, right)[same], np.maximum(left, right)[same]
            # What a chain has joined needs no proof: a large group costs no more than its size.
            apart = groups[members[left]] != groups[members[right]]
            wanted = apart & (is_compared[left] | is_compared[right])
            near = np.array(sketch.near(left[wanted], right[wanted], threshold), dtype=np.int64).reshape(
                -1, 2
            )
            groups[:] = merge_chains(groups, members[near[:, 0]], members[near[:, 1]])


def _match_near(
    sketch: _Sketch, border: int, is_compared: npt.NDArray[np.bool_], threshold: float
) -> dict[int, int]:
    """For places before the border, a near one from the border on, where there is one."""
    bands = _band_keys(sketch.signatures, threshold)
    matches: dict[int, int] = {}
    is_open = np.ones(border, dtype=bool)
    for band, keys in enumerate(bands):
        order = _ordered(bands, band)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        others = order[order >= border]
        nearest = np.searchsorted(rank[others], rank[:border])
        for step in range(REACH):
            found = False
            for places in (nearest + step, nearest - 1 - step):
                left = np.flatnonzero(is_open & (places >= 0) & (places < len(others)))
                right = others[places[left]]
                same = keys[left] == keys[right]
                found |= bool(same.any())
                wanted = same & (is_compared[left] | is_compared[right])
                for text, other in sketch.near(left[wanted], right[wanted], threshold):
                    matches[text] = other
                    is_open[text] = False
            if not found:
                break
    return matches
