"""Rows by the million: a few in a list, many in an unnamed file, each read when it is looked at."""

from __future__ import annotations

import marshal
import mmap
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import overload

from gptailor.data.spill import told
from gptailor.types import RawExample

MANY_ROWS = 50_000  # from so many on they lie in a file


def store_rows(rows: Iterable[RawExample]) -> Sequence[RawExample]:
    """The rows as a list, or where they are many, in a file; the same rows either way.

    Raises:
        DataError: the temporary folder is full.
    """
    few: list[RawExample] = []
    feed = iter(rows)
    for row in feed:
        few.append(row)
        if len(few) >= MANY_ROWS:
            return StoredRows(few, feed)
    return few


class StoredRows(Sequence[RawExample]):
    """Rows in an unnamed file, which goes with them. In memory each takes the eight bytes of its place."""

    def __init__(self, first: list[RawExample], more: Iterable[RawExample]) -> None:
        self._sources: dict[str, int] = {}
        self._layouts: dict[tuple[str, ...], int] = {}
        self._ends = array("q", [0])
        with told(), tempfile.TemporaryFile() as file:
            for row in chain(first, more):
                self._ends.append(self._ends[-1] + file.write(self._packed(row)))
            file.flush()
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._names = list(self._sources)
        self._columns = list(self._layouts)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[RawExample]:
        for start, end in pairwise(self._ends):
            yield self._unpacked(start, end)

    @overload
    def __getitem__(self, index: int) -> RawExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[RawExample]: ...
    def __getitem__(self, index: int | slice) -> RawExample | list[RawExample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._unpacked(self._ends[place], self._ends[place + 1])

    @property
    def layouts(self) -> Sequence[tuple[str, ...]]:
        """Every order of columns that a row has."""
        return self._columns

    def _packed(self, row: RawExample) -> bytes:
        layout = self._layouts.setdefault(tuple(row.fields), len(self._layouts))
        source = self._sources.setdefault(row.source, len(self._sources))
        # Marshal takes any text, lone surrogates too; nobody but this process sees the file.
        return marshal.dumps((layout, source, row.row, tuple(row.fields.values())))

    def _unpacked(self, start: int, end: int) -> RawExample:
        layout, source, row, values = marshal.loads(self._bytes[start:end])
        return RawExample(dict(zip(self._columns[layout], values, strict=True)), self._names[source], row)
