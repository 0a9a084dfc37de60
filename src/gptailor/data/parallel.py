"""Two texts that keep step line by line, such as a text and its translation, as rows of two columns."""

from __future__ import annotations

import hashlib
from itertools import zip_longest

from gptailor.data.lines import Item, read_lines
from gptailor.data.read import ReadResult
from gptailor.data.source import Source, find_encoding, find_source, read_whole
from gptailor.errors import DataError
from gptailor.types import RawExample, RejectedRow

COLUMNS = ("source", "target")


def read_parallel(source: str, target: str) -> ReadResult:
    """Reads two plain texts, also gzipped: line n of one belongs to line n of the other.

    Empty lines are rows too, so that nothing slips. A row carries the name of the source file.

    Args:
        source: The file of the column `source`.
        target: The file of the column `target`.

    Raises:
        DataError: a file can't be read, or they don't have equally many lines.
    """
    opened = [find_source(location) for location in (source, target)]
    encodings = [_encoding(one) for one in opened]
    columns = [
        list(read_lines(one, encoding, name))
        for one, (encoding, _), name in zip(opened, encodings, COLUMNS, strict=True)
    ]
    counts = [len(column) for column in columns]
    if counts[0] != counts[1]:
        raise DataError(
            f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}; "
            "line by line they must belong together.",
            fix=_hint(columns),
        )
    rows: list[RawExample] = []
    rejected: list[RejectedRow] = []
    for left, right in zip(*columns, strict=True):
        bad = next((item for item in (left, right) if isinstance(item, RejectedRow)), None)
        if bad is not None:
            rejected.append(RejectedRow(source, bad.row, bad.reason, f"{bad.source}: {bad.detail}"))
        elif isinstance(left, RawExample) and isinstance(right, RawExample):
            rows.append(RawExample({**left.fields, **right.fields}, source, left.row))
    digest = hashlib.sha256()
    for one in opened:
        digest.update(hashlib.sha256(read_whole(one)).digest())
    notes = [f"{one.name}: {note}" for one, (_, note) in zip(opened, encodings, strict=True)]
    return ReadResult(
        rows, rejected, COLUMNS, (*notes, "format: two texts, line by line"), digest.hexdigest()
    )


def _encoding(source: Source) -> tuple[str, str]:
    if not source.repeatable:
        raise DataError("can't be read twice.", where=source.name, fix="Give a file.")
    if source.sample.startswith(b"PAR1"):
        raise DataError("is Parquet, not a plain text.", where=source.name, fix="Give it alone, as DATA.")
    return find_encoding(source)


def _hint(columns: list[list[Item]]) -> str:
    """Where they may have slipped: an empty line in one only, if there is one early on."""
    for number, pair in enumerate(zip_longest(*columns), start=1):
        blank = [isinstance(item, RawExample) and not "".join(item.fields.values()).strip() for item in pair]
        if None not in pair and blank[0] != blank[1]:
            return f"Look at line {number:,}: it is empty in one of the two files only."
    return "Mend the files so that line n of one is line n of the other."
