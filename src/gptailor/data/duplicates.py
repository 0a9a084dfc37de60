"""Finds texts that are nearly the same, so that no text is on both sides of a split.

Two texts are near when the Jaccard similarity of their shingle sets reaches the threshold: word
3-shingles, or character 5-grams when either text has under 8 words. MinHash signatures (Broder 1997)
and banding (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4) propose the pairs;
each pair is then measured on its full sets, so what is reported is true and only recall is a matter
of chance. Words are runs of letters, digits and their marks, case folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from gptailor.data.shingles import (
    CHARACTER_SHINGLE,
    WORD_SHINGLE,
    HashArray,
    TextWords,
    character_codes,
    key_of,
    mixed,
    read_words,
    shingle_hashes,
    word_codes,
    words_of,
)
from gptailor.data.spill import Spill, scratch
from gptailor.data.views import chained
from gptailor.types import IntArray

FEW_WORDS = 8
NOT_SO_FEW_WORDS = 12  # a text under 8 words can be near one of a few more, hardly near one of 12

PERMUTATIONS = 128
RECALL = 0.99  # asked of the bands for a pair that just reaches the threshold
SLACK = 0.2  # an estimate from 128 permutations is further off than this once in ten million
REACH = 32  # neighbors in a bucket that each text is tried with; only templates fill larger buckets
PATIENCE = 32  # failed comparisons of a text before only likely ones are made
CHUNK_TEXTS, CHUNK_WORDS = 8192, 1_000_000  # whose shingles are in memory at once

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
    words = read_words(texts)
    groups = _first_equal(words.keys)
    distinct = np.flatnonzero(groups == np.arange(len(texts)))
    for places, width in _spaces(words.counts, distinct):
        is_compared = (words.counts[places] < FEW_WORDS) | (width == WORD_SHINGLE)
        sketch = _Sketch(texts, words, places, width=width, threshold=threshold, seed=seed)
        _join_near(sketch, places, groups, is_compared, threshold)
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def near_matches(texts: Sequence[str], against: Sequence[str], *, threshold: float = 0.8) -> IntArray:
    """For each text, one that is the same or near among `against`.

    Returns:
        (N,) indices into `against`: the first with the same letters and digits, else one that is near,
        else -1.
    """
    size = len(texts)
    together = chained(texts, against)
    words = read_words(together)
    first: dict[bytes, int] = {}
    for i, key in enumerate(words.keys[size:]):
        first.setdefault(key.tobytes(), i)
    matches = np.array([first.get(key.tobytes(), -1) for key in words.keys[:size]], dtype=np.int64)
    open_places = np.concatenate([np.flatnonzero(matches < 0), np.arange(size, len(together))])
    for places, width in _spaces(words.counts, open_places):
        is_compared = (words.counts[places] < FEW_WORDS) | (width == WORD_SHINGLE)
        border = int(np.searchsorted(places, size))
        sketch = _Sketch(together, words, places, width=width, threshold=threshold, seed=0)
        for member, other in _match_near(sketch, border, is_compared, threshold).items():
            if matches[places[member]] < 0:
                matches[places[member]] = places[other] - size
    return matches


def is_exact(a: str, b: str) -> bool:
    """Whether two texts have the same letters and digits, case folded.

    Texts without a letter or digit (emoji, signs) must be equal but for blanks at the ends.
    """
    return key_of(a, words_of(a)) == key_of(b, words_of(b))


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


# --- candidates and their proof --------------------------------------------------------------------


def _first_equal(keys: HashArray) -> IntArray:
    """(N,) for each text the first one with its key."""
    order = np.lexsort([keys[:, 1], keys[:, 0]])  # stable: of equal ones the first stays first
    is_new = np.ones(len(keys), dtype=bool)
    is_new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = np.empty(len(keys), dtype=np.int64)
    first[order] = order[np.flatnonzero(is_new)][np.cumsum(is_new) - 1]
    return first


def _spaces(counts: IntArray, places: IntArray) -> Iterator[tuple[IntArray, int]]:
    """The texts to compare with one another by word shingles, and those by character shingles."""
    of_places = counts[places]
    enough = places[of_places >= FEW_WORDS]
    if enough.size:
        yield enough, WORD_SHINGLE
    if ((of_places > 0) & (of_places < FEW_WORDS)).any():
        yield places[(of_places > 0) & (of_places <= NOT_SO_FEW_WORDS)], CHARACTER_SHINGLE


class _Sketch:
    """Some texts as shingles and signatures, and what comparing them has cost so far.

    Texts are named by their place in `members`.
    """

    def __init__(
        self,
        texts: Sequence[str],
        words: TextWords,
        members: IntArray,
        *,
        width: int,
        threshold: float,
        seed: int,
    ) -> None:
        size = _band_size(threshold)
        self.signatures = scratch((len(members), PERMUTATIONS), np.uint32)
        self.bands = scratch((PERMUTATIONS // size, len(members)), np.uint64)  # equal keys: the band agrees
        counts = np.zeros(len(members) + 1, dtype=np.int64)
        done = 0
        with Spill(np.uint64) as hashes:
            for places in _chunks(members, words.counts):
                some = slice(done, done := done + len(places))
                codes, lengths = (
                    word_codes(words, places)
                    if width == WORD_SHINGLE
                    else character_codes([texts[i] for i in places.tolist()])
                )
                flat, starts = shingle_hashes(codes, lengths, width)
                self.signatures[some] = signatures = _signatures(flat, starts, seed)
                self.bands[:, some] = _band_keys(signatures, size)
                hashes.append(flat)
                counts[1:][some] = np.diff(starts)
            self._hashes = hashes.read()
        self._starts = np.cumsum(counts)
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


def _chunks(members: IntArray, counts: IntArray) -> Iterator[IntArray]:
    """The members in pieces of so many texts and words."""
    words = np.cumsum(counts[members])
    start = 0
    while start < len(members):
        before = words[start - 1] if start else 0
        end = int(np.searchsorted(words, before + CHUNK_WORDS, side="right"))
        end = min(max(end, start + 1), start + CHUNK_TEXTS)
        yield members[start:end]
        start = end


def _signatures(hashes: HashArray, starts: HashArray, seed: int) -> Signatures:
    """(N, PERMUTATIONS) of the texts whose shingles these are."""
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts, PERMUTATIONS, seed)
    numbers = chain.from_iterable(matrix.to_rows())
    return np.fromiter(numbers, np.uint32, count=matrix.len() * PERMUTATIONS).reshape(-1, PERMUTATIONS)


def _band_size(threshold: float) -> int:
    """Permutations a band: as many as the recall allows.

    A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s^r)^b.
    """
    sizes = [r for r in range(1, 17) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL]
    return max(sizes, default=1)


def _band_keys(signatures: Signatures, size: int) -> HashArray:
    """(bands, N): texts with equal keys agree in the whole band."""
    bands = np.zeros((PERMUTATIONS // size, len(signatures)), dtype=np.uint64)
    for band, keys in enumerate(bands):
        for column in range(band * size, (band + 1) * size):
            keys[:] = mixed(keys + signatures[:, column])
    return bands


def _ordered(bands: HashArray, band: int) -> IntArray:
    """Texts by their key in one band; those with equal keys by the next two, so that neighbors are likest."""
    return np.lexsort([bands[(band + i) % len(bands)] for i in (2, 1, 0)])


def _shared(bands: HashArray, band: int) -> IntArray:
    """The same order, without texts that share their key with no other."""
    keys = np.array(bands[band])
    order = np.argsort(keys)
    differs = np.flatnonzero(np.diff(keys[order])) + 1
    sizes = np.diff(np.concatenate([[0], differs, [len(keys)]]))
    shared = np.sort(order[np.repeat(sizes > 1, sizes)])
    return shared[_ordered(bands[:, shared], band)]


def _join_near(
    sketch: _Sketch, members: IntArray, groups: IntArray, is_compared: npt.NDArray[np.bool_], threshold: float
) -> None:
    """Merges, in place, the groups of the members that are near."""
    for band, keys in enumerate(sketch.bands):
        order = _shared(sketch.bands, band)
        for step in range(1, REACH + 1):
            left, right = order[:-step], order[step:]
            same = keys[left] == keys[right]
            if not same.any():
                break
            left, right = np.minimum(left, right)[same], np.maximum(left, right)[same]
            # What a chain has joined needs no proof: a large group costs no more than its size.
            apart = groups[members[left]] != groups[members[right]]
            wanted = apart & (is_compared[left] | is_compared[right])
            near = np.array(sketch.near(left[wanted], right[wanted], threshold), dtype=np.int64)
            if near.size:
                groups[:] = merge_chains(groups, members[near[:, 0]], members[near[:, 1]])


def _match_near(
    sketch: _Sketch, border: int, is_compared: npt.NDArray[np.bool_], threshold: float
) -> dict[int, int]:
    """For places before the border, a near one from the border on, where there is one."""
    matches: dict[int, int] = {}
    is_open = np.ones(border, dtype=bool)
    for band, keys in enumerate(sketch.bands):
        order = _ordered(sketch.bands, band)
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
