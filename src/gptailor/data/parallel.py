"""Two texts that keep step line by line, such as a text and its translation, as rows of two columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from itertools import zip_longest

from gptailor.data.lines import Item, read_lines
from gptailor.data.read import ReadResult, guarded, refuse_if_mostly_bad
from gptailor.data.source import Source, find_encoding, find_source
from gptailor.data.store import store_rows
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
    counts, slipped = [0, 0], [0]  # lines of each; the first one that is empty in one of the two only
    rejected: list[RejectedRow] = []

    def joined() -> Iterator[RawExample]:
        lines = [
            guarded(one, read_lines(one, encoding, name))
            for one, (encoding, _), name in zip(opened, encodings, COLUMNS, strict=True)
        ]
        for number, (left, right) in enumerate(zip_longest(*lines), start=1):
            counts[0] += left is not None
            counts[1] += right is not None
            if left is None or right is None:
                continue
            if not slipped[0] and _is_blank(left) != _is_blank(right):
                slipped[0] = number
            bad = next((item for item in (left, right) if isinstance(item, RejectedRow)), None)
            if bad is not None:
                rejected.append(RejectedRow(source, bad.row, bad.reason, f"{bad.source}: {bad.detail}"))
            elif isinstance(left, RawExample) and isinstance(right, RawExample):
                yield RawExample({**left.fields, **right.fields}, source, left.row)

    rows = store_rows(joined())
    if counts[0] != counts[1]:
        raise DataError(
            f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}; "
            "line by line they must belong together.",
            fix=f"Look at line {slipped[0]:,}: it is empty in one of the two files only."
            if slipped[0]
            else "Mend the files so that line n of one is line n of the other.",
        )
    refuse_if_mostly_bad(source, len(rows), rejected)
    digest = hashlib.sha256()
    for one in opened:
        with closing(one.open()) as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())  # type: ignore[arg-type]
    notes = [f"{one.name}: {note}" for one, (_, note) in zip(opened, encodings, strict=True)]
    return ReadResult(
        rows, rejected, COLUMNS, (*notes, "format: two texts, line by line"), digest.hexdigest()
    )


def _is_blank(item: Item) -> bool:
    return isinstance(item, RawExample) and not "".join(item.fields.values()).strip()


def _encoding(source: Source) -> tuple[str, str]:
    if not source.repeatable:
        raise DataError("can't be read twice.", where=source.name, fix="Give a file.")
    if source.sample.startswith(b"PAR1"):
        raise DataError("is Parquet, not a plain text.", where=source.name, fix="Give it alone, as DATA.")
    return find_encoding(source)
