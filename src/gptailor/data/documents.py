"""Documents for language modeling: any location as a stream of pieces, never held whole.

A document is a text file (also each of a folder), a row's text, or what lies between two separator lines. It
comes in pieces of a few kilobytes cut between lines, so that a file larger than memory can be read, and a
single long document can still be divided into parts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from gptailor.data.folders import read_tree
from gptailor.data.lines import LineFeed
from gptailor.data.read import doubts, find_kind, infer_roles, iterate_rows
from gptailor.data.source import Source, find_encoding, find_source, is_stream, sample_text
from gptailor.errors import DataError
from gptailor.types import RawExample, RejectedRow

PIECE = 4096  # characters; a document is divided between pieces, never inside one
LOOK_AHEAD = 200  # rows to find the text column by
# Where a tokenizer would part two words anyway: before the white space that follows a word.
BREAK = re.compile(r"(?<=\S)(?=[\r\n])")
BLANK = re.compile(r"(?<=\S)(?=\s)")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a document; `begins` marks a document's first one."""

    text: str
    source: str
    row: int
    begins: bool
    group: str = ""  # of a table's row, where a column is named for it
    time: str = ""


def is_prose(location: str, columns: str | None = None) -> bool:
    """Whether a location is texts as they are: a plain text, or a folder of them. Others have rows."""
    return _is_folder(location) or (columns is None and _plain_source(location) is not None)


def columns_of(location: str, columns: str | None = None) -> list[str]:
    """The columns of a location's first rows; a plain text has none."""
    if is_prose(location, columns):
        return []
    rows = itertools.islice(iterate_rows(location, columns=columns), LOOK_AHEAD)
    return list(dict.fromkeys(name for row in rows if isinstance(row, RawExample) for name in row.fields))


def iterate_pieces(
    location: str,
    *,
    text: str | None = None,
    columns: str | None = None,
    separator: str | None = None,
    group: str | None = None,
    time: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Piece | RejectedRow]:
    """The documents of a location in order, in pieces; rows that can't be read come as they are.

    Args:
        location: What `read_rows` reads: a text file is one document, a table one per row, a folder one for
            each text file in it and in its subfolders.
        text: The column of the text, where there are several.
        columns: Names for a headerless file's columns. One name for a plain text makes every line a
            document. Not used for a folder.
        separator: A line that divides a plain text into documents, such as `<|endoftext|>`.
        group: The column of a table whose value each piece carries.
        time: The column of a table that says when a row happened.
        say: Told what was assumed of the location and could be wrong.

    Raises:
        DataError: the location can't be read or the text column isn't plain.
    """
    if _is_folder(location):
        yield from _folder_pieces(Path(location), separator, say)
        return
    if columns is None and (plain := _plain_source(location)) is not None:
        source, encoding, note = plain
        for line in doubts(location, [note]):
            say(line)
        yield from _plain_pieces(source, encoding, separator)
        return
    rows = iterate_rows(location, columns=columns, say=say)
    held: list[RawExample | RejectedRow] = []
    good: list[RawExample] = []
    column = None
    for item in rows:
        held.append(item)
        if isinstance(item, RawExample):
            good.append(item)
        if good and len(held) >= LOOK_AHEAD:
            break
    if good:
        names = list(dict.fromkeys(name for row in good for name in row.fields))
        column = infer_roles(names, good, text=text, label=None, need_label=False).text
    for item in itertools.chain(held, rows):
        if isinstance(item, RejectedRow):
            yield item
            continue
        parts = (column or "text").split("+")
        whole = item.fields.get(column or "") or " ".join(v for n in parts if (v := item.fields.get(n, "")))
        pieces = _pieces_of(whole, item.source, item.row)
        marks = (item.fields.get(group or "", "").strip(), item.fields.get(time or "", "").strip())
        yield from (
            (replace(piece, group=marks[0], time=marks[1]) for piece in pieces) if any(marks) else pieces
        )


def cut_pieces(text: str, size: int = PIECE) -> list[str]:
    """Cuts a text before white space, if it can between lines, into pieces of about `size` characters."""
    pieces, start = [], 0
    while len(text) - start > size * 3 // 2:
        near = start + size
        found = BREAK.search(text, near, near + size // 2) or BLANK.search(text, near, near + size // 2)
        end = found.start() if found else near
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces


def _pieces_of(text: str, source: str, row: int) -> Iterator[Piece]:
    for place, piece in enumerate(cut_pieces(text)):
        yield Piece(piece, source, row, begins=place == 0)


def _is_folder(location: str) -> bool:
    return location != "-" and Path(location).is_dir()


def _plain_source(location: str) -> tuple[Source, str, str] | None:
    """A plain text, its encoding and the sentence that says why; None for what has rows."""
    if is_stream(location) or location.startswith("hub:"):
        return None
    source = find_source(location)
    if source.sample.startswith(b"PAR1"):
        return None
    encoding, note = find_encoding(source)
    is_plain = find_kind(source, sample_text(source, encoding), None) == "document"
    return (source, encoding, note) if is_plain else None


def _folder_pieces(
    folder: Path, separator: str | None, say: Callable[[str], None]
) -> Iterator[Piece | RejectedRow]:
    """Each text file in turn. One that can't be read to its end is left out whole."""
    guessed = False
    for path in read_tree(folder)[0]:
        try:
            source = find_source(str(path))
            encoding, note = find_encoding(source)
            for _ in _lines(source, encoding):
                pass
        except DataError as error:
            yield RejectedRow(str(path), 1, "unreadable", error.what)
            continue
        for line in [] if guessed else doubts(str(path), [note]):  # of many files, the first
            say(line)
            guessed = True
        yield from _plain_pieces(source, encoding, separator)


def _lines(source: Source, encoding: str) -> Generator[tuple[int, str], None, None]:
    """The lines of a plain text, numbered from 1.

    Raises:
        DataError: one of them can't be used.
    """
    with closing(LineFeed(source, encoding)) as feed:
        for number, line in enumerate(feed, start=1):
            feed.taken.clear()
            if fault := feed.faults.get(number):
                fix = "Break it into several lines." if "longer" in fault else "Save the file as UTF-8 text."
                raise DataError(f"line {number:,}: {fault}.", where=source.name, fix=fix)
            yield number, line


def _plain_pieces(source: Source, encoding: str, separator: str | None) -> Iterator[Piece | RejectedRow]:
    """A plain text line by line. A row is a document: numbered by the line it begins in."""
    held: list[str] = []
    size, row, begins = 0, 1, True
    mark = None if separator is None else separator.strip()
    with closing(_lines(source, encoding)) as lines:
        for number, line in lines:
            if mark is not None and line.strip() == mark:
                yield from _flush(held, source.name, row, begins)
                held, size, row, begins = [], 0, number + 1, True
                continue
            held.append(line)
            size += len(line)
            if size > 2 * PIECE:
                *ready, rest = cut_pieces("".join(held))
                yield from _flush(ready, source.name, row, begins, joined=False)
                begins = begins and not ready
                held, size = [rest], len(rest)
    yield from _flush(held, source.name, row, begins)


def _flush(held: list[str], name: str, row: int, begins: bool, *, joined: bool = True) -> Iterator[Piece]:
    for place, text in enumerate(cut_pieces("".join(held)) if joined and held else held):
        yield Piece(text, name, row, begins=begins and place == 0)
