"""What stands in a cell: text, or JSON that the reader handed over as text."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

Mend = Callable[[str], str]  # repairs one text; must not see JSON, whose quotes it could break

EMPTY = frozenset(["", "null", "[]", "{}"])
NUMPY_ITEM = r"""'[^']*'|"[^"]*"|-?\d+(?:\.\d*)?(?:e[+-]?\d+)?"""
# Without commas, as pandas writes a column of arrays; read as Python two texts would be one.
NUMPY = re.compile(rf"\[\s*(?:{NUMPY_ITEM})(?:\s+(?:{NUMPY_ITEM}))+\s*\]")
LONGEST_PRINTED = 100_000  # characters; longer ones only as JSON


def parse_nested(cell: str) -> Any:
    """A cell that holds an array or object as such, as JSON, Python or NumPy writes it; else its text."""
    if cell.lstrip()[:1] not in {"[", "{"}:
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        found = as_printed(cell)
        return cell if found is None else found


def as_printed(cell: str) -> list[Any] | dict[Any, Any] | None:
    """The array or object that Python or NumPy printed into a cell; None where it is none.

    Tables that went through pandas hold these.
    """
    cell = cell.strip()
    if len(cell) > LONGEST_PRINTED:
        return None
    if NUMPY.fullmatch(cell):
        return [item[1:-1] if item[0] in "'\"" else item for item in re.findall(NUMPY_ITEM, cell)]
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # of a text's backslashes
            value = ast.literal_eval(_WithoutArrays().visit(ast.parse(cell, mode="eval")))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list | dict) else None


class _WithoutArrays(ast.NodeTransformer):
    """`array([...], dtype=object)`, as NumPy prints an array in an object, is its list."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and len(node.args) == 1
        return node.args[0] if is_array else node


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
