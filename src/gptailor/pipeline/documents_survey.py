"""The first reading of documents: what there is, in a few numbers for each document and piece."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gptailor.data.documents import Piece, is_prose, iterate_pieces
from gptailor.data.folders import read_tree
from gptailor.data.overlap import NgramSet, shares_a_run, shares_across
from gptailor.data.source import is_stream
from gptailor.errors import DataError, number_of
from gptailor.recipe import DataSettings
from gptailor.types import RejectedRow

# How corpora of many texts mark the end of each.
MARKER = re.compile(r"^(<\|endoftext\|>|<\|end_of_text\|>|</s>)[ \t\r]*$", re.MULTILINE)


@dataclass(slots=True)
class Documents:
    """What the first reading found in one location: a few numbers for each document and piece."""

    location: str
    columns: str | None = None  # names for a headerless file
    sources: list[str] = field(default_factory=list)
    source_of: array[int] = field(default_factory=lambda: array("q"))  # for each document
    row_of: array[int] = field(default_factory=lambda: array("q"))
    digests: list[bytes] = field(default_factory=list)
    piece_bytes: array[int] = field(default_factory=lambda: array("q"))  # for each piece
    piece_document: array[int] = field(default_factory=lambda: array("q"))
    overlapping: set[int] = field(default_factory=set)  # pieces that stand in a held-out file
    rejected: list[RejectedRow] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)  # for each document, where a column is named for them
    times: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was left out, and what could be meant otherwise

    def place(self, document: int) -> tuple[str, int]:
        return self.sources[self.source_of[document]], self.row_of[document]


def survey(
    location: str, settings: DataSettings, *, columns: str | None = None, held_out: NgramSet | None = None
) -> Documents:
    """The first reading. Pieces that share a run of words with `held_out` are marked."""
    found = Documents(location, columns)
    names: dict[str, int] = {}
    digest = hashlib.blake2b(digest_size=16)
    before = ""
    refuse_stream(location)
    if Path(location).is_dir():
        found.notes += [f"{location}: {note}" for note in read_tree(Path(location))[1]]
    markers: Counter[str] = Counter()
    pieces = iterate_pieces(
        location,
        text=settings.text,
        columns=columns,
        separator=settings.separator,
        group=settings.split.group,
        time=settings.split.time,
        say=found.notes.append,
    )
    for item in pieces:
        if isinstance(item, RejectedRow):
            found.rejected.append(item)
            continue
        if item.begins:
            if found.row_of:
                found.digests.append(digest.digest())
            digest = hashlib.blake2b(digest_size=16)
            found.source_of.append(names.setdefault(item.source, len(names)))
            found.row_of.append(item.row)
            if settings.split.group is not None:
                found.groups.append(item.group)
            if settings.split.time is not None:
                found.times.append(item.time)
        digest.update(item.text.encode(errors="surrogateescape"))
        if settings.separator is None:
            markers.update(MARKER.findall(item.text))
        if held_out is not None:
            number = len(found.piece_bytes)
            if shares_a_run(item.text, held_out):
                found.overlapping.add(number)
            if not item.begins and shares_across(before, item.text, held_out):
                found.overlapping |= {number - 1, number}
            before = item.text
        found.piece_bytes.append(len(item.text.encode(errors="surrogateescape")) if item.text.strip() else 0)
        found.piece_document.append(len(found.row_of) - 1)
    if found.row_of:
        found.digests.append(digest.digest())
    found.sources = list(names)
    if markers and is_prose(location, columns):  # rows have no separator
        found.notes += _read_as_text(location, markers)
    return found


def _read_as_text(location: str, markers: Counter[str]) -> list[str]:
    """What to say of lines that may have been meant to divide documents."""
    return [
        f"{location}: {number_of(count, 'line')} {marker!r} read as text. If they divide documents, say "
        f"--set data.separator={marker!r}."
        for marker, count in sorted(markers.items())
    ]


def pieces_of(documents: Documents, settings: DataSettings) -> Iterator[Piece]:
    """The pieces once more, in the order in which they were surveyed."""
    for item in iterate_pieces(
        documents.location, text=settings.text, columns=documents.columns, separator=settings.separator
    ):
        if isinstance(item, Piece):
            yield item


def refuse_stream(location: str) -> None:
    """Raises DataError for what can be read only once."""
    if is_stream(location):
        raise DataError(
            "standard input, or a pipe, can't be read twice, and texts are.",
            fix="Write it to a file and give that.",
        )
