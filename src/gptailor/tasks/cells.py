"""What stands in a cell: text, or JSON that the reader handed over as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

Mend = Callable[[str], str]  # repairs one text; must not see JSON, whose quotes it could break

EMPTY = frozenset(["", "null", "[]", "{}"])


def parse_nested(cell: str) -> Any:
    """A cell that holds a JSON array or object as such; any other cell as the text it is."""
    if cell.lstrip()[:1] not in {"[", "{"}:
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    kinds = {dict: "an object", list: "an array", str: "text", type(None): "null"}
    return kinds.get(type(value), "a value")


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, "", [] or {}, also as the text of a cell."""
    return value is None or value in ("", [], {}) or (isinstance(value, str) and value.strip() in EMPTY)


def holds_lists(cells: Iterable[str], answers: bool) -> bool:
    """Whether every filled cell of a column holds an array of texts, or for answers SQuAD's array of them."""
    found = [cell for cell in cells if cell.strip()]
    return bool(found) and all(_texts_in(cell, answers) is not None for cell in found)


def answers_in(cell: str) -> tuple[str, ...]:
    """All the answers a cell holds, each once: a text, an array of texts, or SQuAD's answers in any spelling.

    SQuAD's own files hold `[{"text": ...}]`; its tables hold `{"text": [...]}`.
    """
    texts = _texts_in(cell, answers=True)
    texts = [cell] if texts is None else texts
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def _texts_in(cell: str, answers: bool) -> list[str] | None:
    """The texts of an array; None for a cell that is none."""
    value = parse_nested(cell)
    if answers and isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, list):
        return None
    texts = [item.get("text") if answers and isinstance(item, dict) else item for item in value]
    return [str(text) for text in texts] if all(isinstance(text, str) for text in texts) else None
