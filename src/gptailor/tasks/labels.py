"""What a label cell holds: one label, several, or a number; taken from the person, or plain from the cells.

Behind this file a cell of several labels is a JSON array of texts, sorted and each once, whatever it was in
the file. So equal sets are equal texts, and an empty array, which is an answer, isn't an empty cell.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gptailor.errors import DataError
from gptailor.tasks.cells import as_printed
from gptailor.types import AnswerForm, AnswerKind, Label

SEPARATORS = ("|", ";", ",")  # tried in this order
LOOKED_AT = 2000  # cells that are looked at to tell what a column holds
LONGEST_LABEL = 60  # characters; a longer part is a stretch of prose
FEWEST_JOINED = 0.02  # share of the cells that hold more than one part, for a separator to be one
REPEATED = 0.9  # share of the parts in these cells that must stand in other cells, too
HUMP = re.compile(r"(?<=[a-z]{2})(?=[A-Z])")  # in cardArrival, not in iPhone
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def infer_form(cells: Sequence[str], *, kind: AnswerKind | None, separator: str | None) -> AnswerForm:
    """The kind of answer and what divides its labels. What the person named wins; the rest must be plain.

    Several labels are plain where most cells are arrays of texts, or where a separator stands in some cells
    and nearly all the parts between are found in other combinations as well. A number is never inferred:
    0 to 4 may be five classes.
    """
    if kind in ("single", "score"):
        return AnswerForm(kind)
    filled = [cell.strip() for cell in cells[:LOOKED_AT] if cell.strip()]
    arrays = [found for cell in filled if (found := _array(cell)) is not None]
    if separator is None and 2 * len(arrays) > len(filled):
        return AnswerForm("multiple", _unused_separator(arrays))
    separator = separator or next((mark for mark in SEPARATORS if _divides(mark, filled)), None)
    if separator is not None:
        return AnswerForm("multiple", separator)
    if kind == "multiple":  # asked for, and every row happens to carry one
        return AnswerForm("multiple", _unused_separator([[cell] for cell in filled]))
    return AnswerForm()


def labels_in(cell: str, form: AnswerForm) -> tuple[str, ...]:
    """The labels of a cell as it stands in the file; `("",)` for an empty cell, which nobody labelled."""
    if form.kind != "multiple":
        return (cell,)
    if not cell.strip():
        return ("",)
    found = _array(cell)
    if found is None:
        found = cell.split(form.separator) if form.separator else [cell]
    return tuple(dict.fromkeys(label for part in found if (label := part.strip())))


def label_cell(labels: Iterable[str], form: AnswerForm) -> str:
    """The labels as the cell that cleaning and everything after it reads."""
    if form.kind != "multiple" or (labels := tuple(labels)) == ("",):
        return "".join(labels)
    return json.dumps(sorted(set(labels)), ensure_ascii=False)


def labels_of(cell: str, form: AnswerForm) -> tuple[str, ...]:
    """The labels of a cell that `label_cell` made; none for a number."""
    if form.kind == "multiple":
        return tuple(json.loads(cell)) if cell else ()
    return (cell,) if form.kind == "single" and cell else ()


def label_of(cell: str, label_ids: dict[str, int], form: AnswerForm) -> Label:
    """A cell that `label_cell` made as the trainer sees it."""
    if form.kind == "score":
        return float(cell)
    if form.kind == "single":
        return label_ids[cell]
    carried = {label_ids[label] for label in labels_of(cell, form)}
    return tuple(int(place in carried) for place in range(len(label_ids)))


def names_as_texts(names: Sequence[str]) -> list[str]:
    """What the labels' names say, as texts: `card_arrival` is "card arrival".

    None where a name says nothing, as `3` does, or two say the same, as `class 1` and `class 2` do.
    """
    texts = [" ".join(WORD.findall(HUMP.sub(" ", name))) for name in names]
    said = {"".join(filter(str.isalpha, text)).casefold() for text in texts}
    tell_apart = len(said) == len(texts) and all(len(word) > 1 or not word.isascii() for word in said)
    return texts if tell_apart and "" not in said else []


def number_in(cell: str) -> float | None:
    """The number a cell holds, None where it holds none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def refuse_separator_without_sets(kind: AnswerKind | None, separator: str | None) -> None:
    """Raises DataError where a separator is given and one label or a number is asked for."""
    if separator is not None and kind in ("single", "score"):
        raise DataError(
            f"is {separator!r}, and task_answer is {kind}: nothing is divided.",
            where="data.label_separator",
            fix="Leave one of the two out.",
        )


def _array(cell: str) -> list[str] | None:
    """The texts of a cell that is an array, as JSON, Python or NumPy prints it; None for any other cell.

    Numbers stay as JSON spells them, and so do true and false; null is no label.
    """
    if cell.lstrip()[:1] != "[":
        return None
    value: Any = None
    try:
        value = json.loads(cell, parse_int=str, parse_float=str, parse_constant=str)
        spelled = {True: "true", False: "false"}
    except (ValueError, RecursionError):
        value = as_printed(cell)
        spelled = {True: "True", False: "False"}
    items = [item for item in value if item is not None] if isinstance(value, list) else [value]
    if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in items):
        return None
    return [spelled[item] if isinstance(item, bool) else str(item) for item in items]


def _unused_separator(found: Iterable[Sequence[str]]) -> str:
    """What can stand between these labels when they are written; empty where each mark is part of some."""
    labels = {label for labels in found for label in labels}
    return next((mark for mark in (";", "|", ",") if not any(mark in label for label in labels)), "")


def _divides(mark: str, cells: Sequence[str]) -> bool:
    """Whether a mark joins labels: the parts around it are short, and stand in several different cells."""
    distinct = {cell: [part.strip() for part in cell.split(mark)] for cell in set(cells)}
    joined = {cell: parts for cell, parts in distinct.items() if len(parts) > 1}
    if sum(cell in joined for cell in cells) < max(2, FEWEST_JOINED * len(cells)):
        return False
    parts = [part for found in joined.values() for part in found if part]
    if max(map(len, parts), default=LONGEST_LABEL + 1) > LONGEST_LABEL:
        return False
    if mark == "," and all(number_in(part) is not None for part in parts):
        return False  # 1,200 or 3,5
    seen_in = Counter(part for found in distinct.values() for part in set(found))
    return sum(seen_in[part] > 1 for part in parts) >= REPEATED * len(parts)
