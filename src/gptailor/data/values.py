"""Values as text, without guessing at types: what stands in the file is what comes out."""

from __future__ import annotations

import json
from math import isnan
from typing import Any

from gptailor.data.source import MAX_VALUE_BYTES

MAX_DEPTH = 100  # levels of nested JSON; messages with tool calls need about ten


class BadValueError(ValueError):
    """A value or row can't be used; the message says why."""


class TooDeepError(BadValueError):
    """JSON is nested too deeply."""


class JsonNumber(str):
    """A JSON number as it is spelled in the file."""

    __slots__ = ()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadValueError(f"the key {twice!r} stands twice in one object")
    return found


def _constant(name: str) -> JsonNumber | None:
    """Python writes a missing number of pandas as NaN, which is no JSON; nobody's text is meant by it."""
    return None if name == "NaN" else JsonNumber(name)


DECODER = json.JSONDecoder(
    parse_int=JsonNumber, parse_float=JsonNumber, parse_constant=_constant, object_pairs_hook=_unique_keys
)
_encode = json.JSONEncoder(ensure_ascii=False).encode


def parse_json(text: str) -> Any:
    """JSON with its numbers as `JsonNumber`.

    Raises:
        BadValueError: it isn't JSON, has a key twice, or is nested too deeply.
    """
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"character {error.pos + 1}" if error.lineno == 1 else f"line {error.lineno}"
        raise BadValueError(f"not JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise TooDeepError(f"JSON nested more than {MAX_DEPTH} levels deep") from None


def parse_object(text: str) -> dict[str, str]:
    """One JSON object as fields."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise BadValueError(f"{json_kind(value)}, not an object with named values")
    return as_fields(value)


def as_fields(value: dict[str, Any]) -> dict[str, str]:
    """An object's values as text.

    Raises:
        BadValueError: a value is too long, nested too deeply, or holds half of a surrogate pair.
    """
    return {as_text(key): as_text(item) for key, item in value.items()}


def as_text(value: Any) -> str:
    """A value as text: strings as they are, null as nothing, numbers as spelled, nested values as JSON."""
    if isinstance(value, str):
        text = value if type(value) is str else str(value)
    elif value is None or (isinstance(value, float) and isnan(value)):  # so a table writes what is missing
        return ""
    elif isinstance(value, bool):
        return "true" if value else "false"
    elif isinstance(value, bytes):
        text = _decode(value)
    elif isinstance(value, (dict, list)):
        text = compact_json(value)
    else:
        text = str(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadValueError(
                f"half of a surrogate pair at character {error.start + 1} of a value"
            ) from None
    if len(text) > MAX_VALUE_BYTES:
        raise BadValueError(f"a value is longer than {MAX_VALUE_BYTES:,} characters")
    return text


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadValueError(f"byte {error.start + 1} of a value is not UTF-8") from None


def compact_json(value: Any) -> str:
    """JSON text without blanks, numbers as they were spelled."""
    pieces: list[str] = []
    _write(value, pieces, 1)
    return "".join(pieces)


def _write(value: Any, pieces: list[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TooDeepError(f"JSON nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for count, (key, item) in enumerate(value.items()):
            pieces.append(("," if count else "{") + _encode(str(key)) + ":")
            _write(item, pieces, depth + 1)
        pieces.append("}" if value else "{}")
    elif isinstance(value, list):
        for count, item in enumerate(value):
            pieces.append("," if count else "[")
            _write(item, pieces, depth + 1)
        pieces.append("]" if value else "[]")
    elif isinstance(value, JsonNumber):
        pieces.append(value)
    elif value is None or isinstance(value, (str, bool, int, float)):
        missing = isinstance(value, float) and isnan(value)
        pieces.append(_encode(None if missing else value))
    else:
        pieces.append(_encode(as_text(value)))


def json_kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, JsonNumber):
        return "a number"
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a value")
