"""The ledger: one line per input row, saying where it went and why.

And CSV files that are safe to open in a spreadsheet.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from gptailor.errors import RunError
from gptailor.types import Part, Reason

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
PLAIN_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]+)*\.?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?%?")
LABEL_COLUMNS = ("source", "row", "text", "label")  # of the file that `gptailor label` writes
# How files of `gptailor predict` begin: of labels, and of written answers.
PREDICTED_COLUMNS = ("source", "row", "text", "label", "probability", "abstained", "truncated", "rejected")
WRITTEN_COLUMNS = ("source", "row", "prompt", "answer", "ended", "tokens", "truncated", "rejected")
INVISIBLE = " \n\v\f\xa0\u200b\u2060\u3000\ufeff"  # what a spreadsheet may skip before it sees a formula


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """What became of one input row. `trained`, `context` and `cut` count tokens."""

    source: str
    row: int
    outcome: Literal["used", "dropped"]
    part: Part | None  # of a used row
    reason: Reason | None  # of a dropped row
    detail: str
    trained: int
    context: int
    cut: int


def write_ledger(path: Path, lines: Iterable[LedgerLine]) -> None:
    """Writes one JSON object per line; the file appears whole or not at all.

    Raises:
        RunError: The file can't be written.
    """
    with _written_whole(path) as file:
        for line in lines:
            file.write(json.dumps(_as_object(line), ensure_ascii=False) + "\n")


def read_ledger(path: Path) -> Iterator[LedgerLine]:
    """The lines that `write_ledger` wrote."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for text in file:
            fields = json.loads(text)
            yield LedgerLine(**fields.pop("tokens"), **fields)


def summarize(lines: Iterable[LedgerLine], *, read: int) -> dict[str, Any]:
    """Adds up the ledger and makes sure that no row is missing.

    Args:
        lines: The ledger.
        read: The rows that were read.

    Returns:
        `{"read", "train", "validation", "test", "dropped": {reason: n}, "tokens": {"trained", "context",
        "cut"}}`.

    Raises:
        AssertionError: A row is unaccounted for, which is our fault and not the person's.
    """
    parts: Counter[Part] = Counter()
    dropped: Counter[Reason] = Counter()
    tokens = {"trained": 0, "context": 0, "cut": 0}
    for line in lines:
        if line.outcome == "used" and line.part is not None and line.reason is None:
            parts[line.part] += 1
        elif line.outcome == "dropped" and line.part is None and line.reason is not None:
            dropped[line.reason] += 1
        else:
            raise AssertionError(f"the ledger contradicts itself: {line}")
        tokens["trained"] += line.trained
        tokens["context"] += line.context
        tokens["cut"] += line.cut
    if read != parts.total() + dropped.total():
        raise AssertionError(f"{read} rows were read, but {parts.total()} used and {dropped.total()} dropped")
    return {
        "read": read,
        **{part: parts[part] for part in get_args(Part)},
        "dropped": {reason: dropped[reason] for reason in get_args(Reason) if dropped[reason]},
        "tokens": tokens,
    }


def write_csv_safely(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
    """Writes a CSV file for people's spreadsheets in which no text can run as a formula.

    Every text is quoted, so that a spreadsheet that splits at semicolons can't cut a formula out of one.

    Returns:
        The number of cells that were defused.

    Raises:
        RunError: The file can't be written.
    """
    defused = 0

    def safe(cell: object) -> object:
        nonlocal defused
        if cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool)):
            return cell
        text = str(cell)
        result = defuse(text)
        defused += result != text
        return result

    with _written_whole(path) as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow([safe(name) for name in header])
        for row in rows:
            writer.writerow([safe(cell) for cell in row])
    return defused


def defuse(cell: str) -> str:
    """The cell with a leading apostrophe if a spreadsheet could run it; plain numbers stay numbers."""
    if cell.lstrip(INVISIBLE).startswith(FORMULA_STARTS) and not PLAIN_NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def undo_defusing(cell: str) -> str:
    """The cell that `defuse` made this one of. One that had the apostrophe before loses it, too."""
    return cell[1:] if cell.startswith("'") and defuse(cell[1:]) == cell else cell


def _as_object(line: LedgerLine) -> dict[str, Any]:
    return {
        "source": line.source,
        "row": line.row,
        "outcome": line.outcome,
        "part": line.part,
        "reason": line.reason,
        "detail": line.detail,
        "tokens": {"trained": line.trained, "context": line.context, "cut": line.cut},
    }


@contextmanager
def _written_whole(path: Path) -> Iterator[TextIO]:
    """A file that takes its name only when all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.temporary")
    try:
        # Names of files may hold bytes that are no UTF-8; the escape is what JSON would write.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"can't be written: {error.strerror or error}",
            where=str(path),
            fix="Free some space, or choose a folder you may write to.",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows can't open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
