"""Formats that are read whole: JSON documents and plain texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gptailor.data.lines import MAX_COLUMNS, Item
from gptailor.data.source import BAD_BYTES, BYTE_ORDER_MARKS, Source, length_in_bytes, read_whole
from gptailor.data.squad import flatten_squad, is_squad
from gptailor.data.values import (
    DECODER,
    BadValueError,
    TooDeepError,
    as_fields,
    as_text,
    json_kind,
    parse_json,
)
from gptailor.errors import DataError
from gptailor.types import RawExample, RejectedRow

NEXT_OBJECT = re.compile(r"\}\s*,\s*(?=\{)")
NOT_BLANK = re.compile(r"[^ \t\r\n,]")


def decode_whole(source: Source, encoding: str) -> str:
    """All of a source as text; any byte that can't be decoded is an error that names its place."""
    data = read_whole(source)
    text = data.decode(encoding, errors=BAD_BYTES)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[: error.start]
        name = encoding.removesuffix("-sig")
        mark = next((len(mark) for mark, codec in BYTE_ORDER_MARKS if codec == encoding), 0)
        offset = mark + length_in_bytes(before, encoding)
        raise DataError(
            f"byte {offset + 1} (line {before.count(chr(10)) + 1}) is not {name.upper()}.",
            where=source.name,
            fix="Save the file as UTF-8.",
        ) from None
    return text


def read_json(source: Source, encoding: str) -> tuple[list[str], list[str], Iterator[Item]]:
    """Columns, notes and rows of a JSON document.

    It may be an array of objects (or of texts), an object that holds one array, or a table as pandas
    writes it, by column, row or "split". A damaged array gives the objects that are whole.
    """
    text = decode_whole(source, encoding)
    notes: list[str] = []
    try:
        value = parse_json(text)
    except BadValueError as error:
        if not text.lstrip().startswith("[") or isinstance(error, TooDeepError):
            raise _unusable(source, str(error)) from None
        items: list[Any] = list(_salvage(text))
        notes.append(f"damaged: {error}; the objects that are whole were read")
    else:
        try:
            items, note = _table(value)
        except BadValueError as error:
            raise _unusable(source, str(error)) from None
        notes.append(note)
    parsed = [_fields(item) for item in items]
    columns = list(dict.fromkeys(key for fields in parsed if isinstance(fields, dict) for key in fields))
    if len(columns) > MAX_COLUMNS:
        raise _unusable(source, f"more than {MAX_COLUMNS:,} different keys")
    return columns, notes, _items(parsed, columns, source.name)


def _unusable(source: Source, why: str) -> DataError:
    return DataError(
        f"can't be used as JSON: {why}.",
        where=source.name,
        fix='Write an array of objects, such as [{"text": "...", "label": "..."}], or one object a line.',
    )


def _fields(item: Any) -> dict[str, str] | str:
    """An item of the array as fields, or what is wrong with it."""
    try:
        if isinstance(item, BadValueError):
            return str(item)
        if isinstance(item, dict):
            return as_fields(item)
        if isinstance(item, str):
            return {"text": as_text(item)}
        return f"{json_kind(item)}, not an object with named values"
    except BadValueError as error:
        return str(error)


def _items(parsed: list[dict[str, str] | str], columns: list[str], name: str) -> Iterator[Item]:
    for row, fields in enumerate(parsed, start=1):
        if isinstance(fields, str):
            yield RejectedRow(name, row, "unreadable", fields)
        elif len(fields) == len(columns):
            yield RawExample(fields, name, row)
        else:
            yield RawExample({column: fields.get(column, "") for column in columns}, name, row)


def _table(value: Any) -> tuple[list[Any], str]:
    """The rows of a document, whichever of the common layouts it has."""
    if isinstance(value, list):
        return _unnested(value, "layout: an array")
    if not isinstance(value, dict):
        raise BadValueError(f"it holds {json_kind(value)}")
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        names = [as_text(name) for name in value["columns"]]
        return [_zipped(names, cells) for cells in value["data"]], "layout: pandas' split"
    kinds = {json_kind(item) for item in value.values()}
    if kinds == {"an object"}:
        return _by_column(value)
    arrays = {key: item for key, item in value.items() if isinstance(item, list)}
    if len(arrays) == 1:
        [(key, items)] = arrays.items()
        return _unnested(items, f"layout: an object whose array {key!r} holds the rows")
    if arrays and len(arrays) == len(value) and len(set(map(len, arrays.values()))) == 1:
        rows = [dict(zip(arrays, cells, strict=True)) for cells in zip(*arrays.values(), strict=True)]
        return rows, "layout: an array for each column"
    if arrays:
        raise BadValueError(
            f"it holds {len(arrays)} arrays ({', '.join(map(repr, list(arrays)[:8]))}); keep one"
        )
    raise BadValueError("it holds no array of rows")


def _unnested(items: list[Any], note: str) -> tuple[list[Any], str]:
    if is_squad(items):
        return flatten_squad(items), "layout: SQuAD's, one row for each question"
    return items, note


def _zipped(names: list[str], cells: Any) -> Any:
    if isinstance(cells, list) and len(cells) == len(names):
        return dict(zip(names, cells, strict=True))
    return BadValueError(f"{json_kind(cells)} that doesn't fit the {len(names)} columns")


def _by_column(value: dict[str, dict[str, Any]]) -> tuple[list[Any], str]:
    """pandas' default, {column: {index: value}}, or its "index" layout, {index: {column: value}}."""
    inner = list(dict.fromkeys(key for item in value.values() for key in item))
    by_row = all(key.isdigit() for key in value) and not all(key.isdigit() for key in inner)
    if by_row or (len(value) > 2 * len(inner) and not any(key.isdigit() for key in inner)):
        return list(value.values()), "layout: an object for each row, as pandas' index"
    if len(value) > MAX_COLUMNS:
        raise BadValueError(f"more than {MAX_COLUMNS:,} columns")
    rows = [{column: item.get(index) for column, item in value.items()} for index in inner]
    return rows, "layout: by column, as pandas writes it"


def _salvage(text: str) -> Iterator[Any]:
    """The items of a damaged array, one by one; after a broken one it goes on at the next object like those
    before it, since what lies inside the broken one looks like objects, too. Arrays may follow one another.
    """
    place, line, counted = text.index("[") + 1, 1, 0
    known: set[str] = set()  # keys of the whole rows
    while True:
        place = _after_blanks(text, place)
        if place >= len(text):
            yield BadValueError("the array ends without its closing bracket")
            return
        if text[place] == "]":
            after = _after_blanks(text, place + 1)
            if after >= len(text):
                return
            if text[after] == "[":
                place = after + 1
                continue
            yield BadValueError(f"{len(text) - after:,} characters behind the array's end")
            following = _next_like(text, after, known)
        else:
            try:
                item, place = DECODER.raw_decode(text, place)
            except (ValueError, RecursionError) as error:
                line, counted = line + text.count("\n", counted, place), place
                yield BadValueError(f"a broken object from line {line}: {error}")
                following = _next_like(text, place + 1, known)
            else:
                known |= item.keys() if isinstance(item, dict) else set()
                yield item
                continue
        if following is None:
            return
        place = following


def _after_blanks(text: str, place: int) -> int:
    """The next place that isn't a blank or a comma."""
    found = NOT_BLANK.search(text, place)
    return len(text) if found is None else found.start()


def _next_like(text: str, place: int, known: set[str]) -> int | None:
    """Where the next object begins that has no other keys than the rows before, or that is broken itself."""
    while following := NEXT_OBJECT.search(text, place):
        place = following.end()
        try:
            item, end = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            return place
        if not known or item.keys() <= known:
            return place
        place = end - 1  # its own brace may be the one before the next object
    return None
