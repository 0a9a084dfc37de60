"""Lines of a source as text, and the rows of delimited files, JSON lines and plain text made of them.

Everything here streams: memory doesn't grow with the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from gptailor.data.layout import Layout, Row
from gptailor.data.source import BAD_BYTES, MAX_VALUE_BYTES, Source, length_in_bytes, sample_text
from gptailor.data.values import BadValueError, parse_object
from gptailor.errors import DataError, number_of
from gptailor.types import RawExample, RejectedRow

LONG_LINES = 1000  # a record of more is noted: two stray quotes could have made it
MAX_RECORD_LINES, MAX_RECORD_CHARACTERS = 200_000, 4 * MAX_VALUE_BYTES  # what is held of an open quote
MAX_COLUMNS = 1000  # different keys in a file of JSON lines
Item = RawExample | RejectedRow
Maker = Callable[[Row], dict[str, str]]


class _OpenQuoteError(Exception):
    """A quoted value doesn't end."""


class LineFeed:
    """The lines of a source, which can be taken back, and what is wrong with some of them.

    `taken` holds the lines handed out since the caller last cleared it, `faults` the line numbers
    (from 1) that can't be used and why.
    """

    def __init__(self, source: Source, encoding: str, *, ends: str = "") -> None:
        """`ends` is what lines end with; without it any of the three."""
        self.taken: list[str] = []
        self.faults: dict[int, str] = {}
        self._held = 0  # characters of the lines taken, where they are several
        self._returned: list[str] = []  # last one first
        self._encoding, self._ends = encoding.removesuffix("-sig"), ends or "\r\n"
        self._text = io.TextIOWrapper(source.open(), encoding, errors=BAD_BYTES, newline=ends)
        self._fresh = self._decode()

    def close(self) -> None:
        self._text.close()

    def give_back(self, lines: list[str]) -> None:
        self._returned.extend(reversed(lines))

    def __iter__(self) -> Iterator[str]:
        taken, returned = self.taken, self._returned
        while returned:
            taken.append(returned.pop())
            yield taken[-1]
            if taken:
                self._refuse_endless()
        for line in self._fresh:
            taken.append(line)
            yield line
            if taken:
                self._refuse_endless()

    def _refuse_endless(self) -> None:
        """Raises if the lines of one record are more than any record has."""
        taken = self.taken
        self._held = len(taken[-1]) + (self._held if len(taken) > 1 else 0)
        if len(taken) > MAX_RECORD_LINES or self._held > MAX_RECORD_CHARACTERS:
            raise _OpenQuoteError

    def _decode(self) -> Iterator[str]:
        # A little room, so that a value of the greatest size can still stand beside others.
        limit = MAX_VALUE_BYTES + 2**16
        readline = partial(self._text.readline, limit)
        for number, line in enumerate(iter(readline, ""), start=1):
            if len(line) == limit and line[-1] not in self._ends:
                self.faults[number] = f"the line is longer than {MAX_VALUE_BYTES:,} characters"
                while (more := readline()) and more[-1] not in self._ends:
                    pass
                yield "\n"
                continue
            if "\0" in line:
                self.faults[number] = f"a NUL byte at character {line.index(chr(0)) + 1} of line {number}"
            elif not line.isascii():
                try:
                    line.encode()
                except UnicodeEncodeError as error:
                    offset = length_in_bytes(line[: error.start], self._encoding)
                    self.faults[number] = (
                        f"byte {offset + 1} of line {number} is not {self._encoding.upper()}"
                    )
            yield line


@dataclass(slots=True)
class Tally:
    """What a streaming reader finds out on its way."""

    columns: list[str]
    quotes_as_text: int = 0
    long_records: list[int] = field(default_factory=list)  # the lines they begin at

    def notes(self) -> list[str]:
        notes = []
        if self.quotes_as_text:
            strays = number_of(self.quotes_as_text, "stray opening quote")
            notes.append(f"quotes: {strays} read as part of the text")
        if self.long_records:
            rows = number_of(len(self.long_records), "row")
            notes.append(
                f"quotes: {rows} of more than {LONG_LINES:,} lines (line {self.long_records[0]:,}): "
                "look whether a quote is missing there"
            )
        return notes


def read_delimited(
    source: Source, encoding: str, layout: Layout, make: Maker, tally: Tally
) -> Iterator[Item]:
    """The records of a CSV or TSV file. `make` turns the cells of one into fields.

    Quotes are read strictly. A quote that opens a value and swallows the records below it is taken as
    text, and reading goes on with the next line, so that one stray quote costs at most one row.
    """
    csv.field_size_limit(MAX_VALUE_BYTES)
    name, width, header = source.name, len(layout.names), list(layout.header or ())
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE
    with closing(LineFeed(source, encoding)) as feed:
        taken, faults, line, in_header = feed.taken, feed.faults, 1, bool(header)
        announced = layout.announced
        while True:
            reader = csv.reader(iter(feed), delimiter=layout.delimiter, quoting=quoting, strict=True)
            try:
                for cells in reader:
                    if len(taken) > 1:
                        _refuse_swallowed(taken, layout)
                        if len(taken) > LONG_LINES:
                            tally.long_records.append(line)
                    first, line = line, line + len(taken)
                    taken.clear()
                    if announced:
                        announced = False
                    elif in_header and cells == header:
                        in_header = False
                    elif faults and (fault := _fault(faults, first, line)):
                        yield RejectedRow(name, first, "unreadable", fault)
                    elif len(cells) == width and cells != header:
                        yield RawExample(make(cells), name, first)
                    elif cells:
                        if (fault := _ragged(cells, width, header)) is None:
                            yield RawExample(make(cells), name, first)
                        else:
                            where = f" (lines {first:,} to {line - 1:,})" if line - first > 1 else ""
                            yield RejectedRow(name, first, "unreadable", f"{fault}{where}")
            except (csv.Error, _OpenQuoteError) as error:
                yield from _after_fault(feed, layout, error, line=line, name=name, make=make, tally=tally)
                line += 1
            else:
                return


def _after_fault(
    feed: LineFeed, layout: Layout, error: Exception, *, line: int, name: str, make: Maker, tally: Tally
) -> Iterator[Item]:
    """Gives up on one line only: as text if its quote never closed, else as a rejected row."""
    lines = feed.taken[:]
    feed.taken.clear()
    feed.give_back(lines[1:])
    never_closed = len(lines) > 1 or "unexpected end" in str(error)
    cells = _as_text(lines[0], layout.delimiter) if never_closed else []
    if fault := _fault(feed.faults, line, line + 1):
        yield RejectedRow(name, line, "unreadable", fault)
    elif len(cells) == len(layout.names):
        tally.quotes_as_text += 1
        yield RawExample(make(cells), name, line)
    elif never_closed:
        fault = "a quote opens and does not close; what follows is read from the next line on"
        yield RejectedRow(name, line, "unreadable", fault)
    else:
        fault = (
            "a quote inside a quoted value is not doubled" if "expected after" in str(error) else str(error)
        )
        yield RejectedRow(name, line, "unreadable", fault)


def _as_text(line: str, delimiter: str) -> Row:
    try:
        return next(csv.reader([line], delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
    except csv.Error:
        return []


def _fault(faults: dict[int, str], first: int, end: int) -> str | None:
    return next((faults[line] for line in range(first, end) if line in faults), None)


def _ragged(cells: Row, width: int, header: Row) -> str | None:
    """What is wrong with a row's width; cells that are missing nothing but emptiness are cut off."""
    if header and cells == header:
        return "repeats the header"
    if len(cells) > width and not any(cells[width:]):
        del cells[width:]
        return None
    return f"{number_of(len(cells), 'cell')}, but the file has {number_of(width, 'column')}"


def _refuse_swallowed(lines: list[str], layout: Layout) -> None:
    """Raises if a quoted value that spans lines is really several records and two stray quotes.

    Then its first and its last line look like whole rows whose labels are known ones, and so do most between
    them; in a proper record a cell begins on the first line and ends on the last, so one of the two has too
    few cells. Where no column has labels, that is asked of long records only.
    """
    if not layout.categories and (len(lines) <= LONG_LINES or len(layout.names) < 2):
        return
    alike = []
    for line in lines:
        cells = _as_text(line, layout.delimiter)
        whole = len(cells) == len(layout.names)
        alike.append(whole and all(cells[i] in values for i, values in layout.categories.items()))
    if alike[0] and alike[-1] and 2 * sum(alike) > len(alike):
        raise _OpenQuoteError


def always_empty(source: Source, encoding: str, layout: Layout) -> frozenset[int]:
    """Columns without a name that are empty in every row; reads on only until each had a value."""
    empty = set(layout.unnamed)

    def make(cells: Row) -> dict[str, str]:
        empty.difference_update([i for i in empty if cells[i].strip()])
        return {}

    if empty and source.repeatable:
        for _ in read_delimited(source, encoding, layout, make, Tally([])):
            if not empty:
                break
        return frozenset(empty)
    return frozenset()


def read_json_lines(source: Source, encoding: str, tally: Tally) -> Iterator[Item]:
    """One object a line. Keys that a line lacks and others had before it are empty."""
    columns, known = tally.columns, set(tally.columns)
    with closing(LineFeed(source, encoding)) as feed:
        for number, line in enumerate(feed, start=1):
            feed.taken.clear()
            if number not in feed.faults and not line.strip():
                continue
            if fault := feed.faults.get(number):
                yield RejectedRow(source.name, number, "unreadable", fault)
                continue
            try:
                fields = parse_object(line)
            except BadValueError as error:
                yield RejectedRow(source.name, number, "unreadable", str(error))
                continue
            if fields.keys() != known:
                new = [key for key in fields if key not in known]
                columns += new
                known.update(new)
                if len(columns) > MAX_COLUMNS:
                    raise DataError(
                        f"has more than {MAX_COLUMNS:,} different keys.",
                        where=f"{source.name}:{number}",
                        fix="Give every line the same few keys.",
                    )
                fields = {column: fields.get(column, "") for column in columns}
            yield RawExample(fields, source.name, number)


def read_lines(source: Source, encoding: str, column: str) -> Iterator[Item]:
    """Every line of a plain text is a row, empty ones too, so that rows and lines keep step.

    A carriage return inside of a line ends none, or the lines of another file would belong to others.
    """
    text = sample_text(source, encoding)
    alone = text.count("\r") - text.count("\r\n")
    ends = "\n" if text.count("\n") > alone else ""  # of old Macs, lines end with a carriage return
    with closing(LineFeed(source, encoding, ends=ends)) as feed:
        for number, line in enumerate(feed, start=1):
            feed.taken.clear()
            if fault := feed.faults.get(number):
                yield RejectedRow(source.name, number, "unreadable", fault)
            else:
                yield RawExample({column: line.rstrip("\r\n")}, source.name, number)
