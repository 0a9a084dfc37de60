"""The part of a long context that a question is most likely about."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]  # texts to token ids

WORD = re.compile(r"\w+")
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
    weights = {
        word: count * (math.log((1 + len(words)) / (1 + sum(word in unit for unit in words))) + 1) ** 2
        for word, count in asked.items()
    }
    best, found = -1.0, (0, 1)
    stop, held, counts = 0, 0, Counter[str]()
    for first in range(len(starts)):
        if stop < first + 1:  # a single unit may be over the budget by a token or two
            stop, held = first + 1, sizes[first]
            counts = Counter(words[first])
        while stop < len(starts) and held + sizes[stop] <= budget:
            held += sizes[stop]
            counts += words[stop]
            stop += 1
        score = sum(weight * (1 + math.log(counts[word])) for word, weight in weights.items() if counts[word])
        if score > best + 1e-12:
            best, found = score, (first, stop)
        held -= sizes[first]
        counts -= words[first]
    return _trimmed(context, starts[found[0]], [ends[place] for place in range(*found)], budget, encode)


def holds_answer(window: Window, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the window."""
    return any(answer.strip() in window.text for answer in answers if answer.strip())


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
