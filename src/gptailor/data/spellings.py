"""Labels as people spell them: which spellings mean the same, and the labels in a cell."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from gptailor.types import AnswerKind

TYPO_LENGTH = 5  # shorter labels differ by one letter too easily: cat, car
WORD = re.compile(r"[^\W_]+")
TYPO_SHARE = 0.01  # of the other label's rows
MOST_LABELS = 5000  # more different "labels" are texts, or numbers of rows, in the wrong column
LONGEST_LABEL = 100  # a longer "label" is a text in the wrong column; its typos are not worth the time


def merge_labels(counts: Mapping[str, int]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Which spellings of labels mean the same.

    Labels that differ only by case and white space merge into the commonest spelling. One typo (a letter
    inserted, missing, replaced, or two swapped) merges only where both labels have five characters or
    more and no digit, and the rarer has at most 1 % of the commoner's rows. A leading "a" is never a
    typo: atypical is not typical.

    Returns:
        (spelling -> kept spelling, for those that change; pairs (rarer, commoner) that look alike but
        were not merged).
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        spellings[squeezed(label).casefold()].append(label)
    kept = {
        key: squeezed(min(same, key=lambda label: (-counts[label], label))) for key, same in spellings.items()
    }
    totals = {key: sum(counts[label] for label in same) for key, same in spellings.items()}
    targets, suspicions = _merge_typos(totals)
    merges = {
        label: kept[targets.get(key, key)]
        for key, same in spellings.items()
        for label in same
        if label != kept[targets.get(key, key)]
    }
    return merges, [(kept[rare], kept[common]) for rare, common in suspicions]


def labels_of(cell: str, kind: AnswerKind) -> list[str]:
    """The labels in a cell."""
    return list(json.loads(cell)) if kind == "multiple" and cell else [cell]


def each_label(cell: str, change: Callable[[str], str], kind: AnswerKind) -> str:
    """The cell with each of its labels changed; of several, each stands once and in order."""
    if kind != "multiple" or not cell:
        return change(cell)
    changed = {change(label) for label in labels_of(cell, kind)} - {""}
    return json.dumps(sorted(changed), ensure_ascii=False)


def squeezed(label: str) -> str:
    """The label with single blanks, and none around it."""
    return " ".join(label.split())


def _merge_typos(totals: Mapping[str, int]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """(folded label -> the one it is a typo of; other look-alikes as (rarer, commoner))."""
    if len(totals) > MOST_LABELS:
        return {}, []
    near: dict[str, list[str]] = defaultdict(list)
    order = sorted(totals, key=lambda label: (-totals[label], label))
    rank = {label: place for place, label in enumerate(order)}
    for one, other in _look_alikes(totals):
        rare, common = sorted((one, other), key=rank.__getitem__, reverse=True)
        near[rare].append(common)
    targets: dict[str, str] = {}
    suspicions: list[tuple[str, str]] = []
    for rare in order:
        commons = sorted(near[rare], key=rank.__getitem__)
        fitting = [
            common
            for common in commons
            if common not in targets
            and _is_typo(rare, common)
            and totals[rare] <= TYPO_SHARE * totals[common]
        ]
        if len(fitting) == 1:  # two would be a guess
            targets[rare] = fitting[0]
        else:
            suspicions += [(rare, common) for common in commons]
    return targets, suspicions


def _look_alikes(labels: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of labels without numbers, one edit apart or equal in all their letters.

    Labels one edit apart share a string that one or no deletion makes of both, so a table of these
    finds them without comparing all pairs.
    """
    table: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        if any(letter.isnumeric() for letter in label) or not 2 < len(label) <= LONGEST_LABEL:
            continue
        shorter = {label[:i] + label[i + 1 :] for i in range(len(label))}
        letters = "".join(filter(str.isalnum, label))
        for form in {label, *shorter, letters}:
            table[form].append(label)
    pairs = {
        (min(one, other), max(one, other))
        for same in table.values()
        for i, one in enumerate(same)
        for other in same[:i]
    }
    return sorted(pair for pair in pairs if _is_one_edit(*pair) or _has_same_letters(*pair))


def _has_same_letters(one: str, other: str) -> bool:
    letters = "".join(filter(str.isalnum, one))
    return bool(letters) and letters == "".join(filter(str.isalnum, other))


def _is_typo(one: str, other: str) -> bool:
    """Whether one is likely the other misspelled; `Type I` and `Type II`, or `C` and `C#`, are not."""
    short, long = sorted((one, other), key=len)
    if len(short) < TYPO_LENGTH or long == f"a{short}" or not _is_one_edit(short, long):
        return False
    words = [WORD.findall(label) for label in (one, other)]
    if len(words[0]) != len(words[1]):  # a blank or a hyphen more
        return True
    differing = [min(map(len, pair)) for pair in zip(*words, strict=True) if pair[0] != pair[1]]
    return bool(differing) and min(differing) >= TYPO_LENGTH


def _is_one_edit(one: str, other: str) -> bool:
    """Whether one insertion, deletion, substitution or swap of neighbors makes one of the other."""
    short, long = sorted((one, other), key=len)
    start = next((i for i, (s, o) in enumerate(zip(short, long, strict=False)) if s != o), len(short))
    if len(long) == len(short) + 1:
        return short[start:] == long[start + 1 :]
    if len(long) != len(short) or start == len(short):
        return False
    swapped = short[start : start + 2] == long[start : start + 2][::-1]
    return short[start + 1 :] == long[start + 1 :] or (swapped and short[start + 2 :] == long[start + 2 :])
