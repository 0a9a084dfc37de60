"""The part of a long context that a question is most likely about."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]  # texts to token ids

PRECISION = 1 << 60
ALIKE = PRECISION // 10**12  # scores that are no further apart are equal
# Scripts that put no blanks between words (Thai and Lao, Burmese, Khmer, kana, Han): each letter is one.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
# A sentence and the white space after it. Where no mark ends it, a line does.
UNIT = re.compile(r"(?:[^.!?\n。！？]|[.!?](?=\w))+(?:[.!?。！？]+[\"')\]]*|\n|\Z)\s*|\s+|[.!?。！？]+\s*")


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a context; `start` and `end` are places in it, in characters."""

    text: str
    start: int
    end: int


def choose_window(context: str, question: str, budget: int, encode: Encode) -> Window:
    """The stretch of whole sentences that overlaps the question most, within the budget of tokens.

    Overlap is TF-IDF: each word of the question that stands in the window counts with (1 + log of how
    often) times the square of its inverse document frequency, the context's sentences being the
    documents. Without a question, or where no word of it stands in the context, it is the beginning. Of
    equal windows the earlier one is taken. A sentence longer than the budget is cut between words.

    Args:
        context: The whole text.
        question: What is asked about it; may be empty.
        budget: Tokens that the window may have.
        encode: Texts to token ids, without what goes around them.
    """
    if len(encode([context])[0]) <= budget:
        return Window(context, 0, len(context))
    starts, sizes = _units(context, budget, encode)
    ends = [*starts[1:], len(context)]
    asked = Counter(WORD.findall(question.casefold()))
    words = [
        Counter(word for word in WORD.findall(context[a:b].casefold()) if word in asked)
        for a, b in zip(starts, ends, strict=True)
    ]
    overlap = _Overlap(asked, words)
    best, found = -PRECISION, (0, 1)
    stop, held = 0, 0
    for first in range(len(starts)):
        if stop < first + 1:  # a single unit may be over the budget by a token or two
            stop, held = first + 1, sizes[first]
            overlap.add(words[first])
        while stop < len(starts) and held + sizes[stop] <= budget:
            held += sizes[stop]
            overlap.add(words[stop])
            stop += 1
        if overlap.score > best + ALIKE:
            best, found = overlap.score, (first, stop)
        held -= sizes[first]
        overlap.take_away(words[first])
    return _trimmed(context, starts[found[0]], [ends[place] for place in range(*found)], budget, encode)


class _Overlap:
    """How much a window has in common with a question, kept while the window moves.

    A move costs as much as the words that come and go, and scores are whole numbers, so that no rounding
    adds up on the way: windows with the same words have the same score.
    """

    def __init__(self, asked: Mapping[str, int], units: Sequence[Mapping[str, int]]) -> None:
        holding = Counter(word for unit in units for word in unit)
        self._weights = {
            word: count * (math.log((1 + len(units)) / (1 + holding[word])) + 1) ** 2
            for word, count in asked.items()
        }
        self._counts = Counter[str]()
        self.score = 0  # in units of 1 / PRECISION

    def add(self, unit: Mapping[str, int]) -> None:
        self._change(unit, 1)

    def take_away(self, unit: Mapping[str, int]) -> None:
        self._change(unit, -1)

    def _change(self, unit: Mapping[str, int], sign: int) -> None:
        for word, count in unit.items():
            self.score -= self._part(word)
            self._counts[word] += sign * count
            self.score += self._part(word)

    def _part(self, word: str) -> int:
        count = self._counts[word]
        return round(PRECISION * self._weights[word] * (1 + math.log(count))) if count else 0


def _units(context: str, budget: int, encode: Encode) -> tuple[list[int], list[int]]:
    """Where each unit of the context starts, and its size in tokens: sentences; words of those too long."""
    spans = [match.span() for match in UNIT.finditer(context)]
    sizes = [len(ids) for ids in encode([context[a:b] for a, b in spans])]
    starts, counted = [], []
    for (a, b), size in zip(spans, sizes, strict=True):
        if size <= budget:
            starts.append(a)
            counted.append(size)
            continue
        pieces = [(a + m.start(), m[0]) for m in re.finditer(r"\s*\S{1,40}\s*", context[a:b])]
        starts += [place for place, _ in pieces]
        counted += [len(ids) for ids in encode([text for _, text in pieces])]
    return starts, counted


def _trimmed(context: str, start: int, ends: Sequence[int], budget: int, encode: Encode) -> Window:
    """The window without its outer white space, and without the last units if together they don't fit."""
    for end in reversed(ends):
        text = context[start:end].strip()
        if end == ends[0] or len(encode([text])[0]) <= budget:
            begin = start + context[start:end].index(text)
            return Window(text, begin, begin + len(text))
    raise AssertionError("a window has at least one unit")
