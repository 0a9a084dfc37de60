"""From files to rows: any common file of text, every value still text, every bad row counted.

Values are never taken for numbers, dates or missing: "NA", "null", "007" and "1e5" are text, and come
out byte for byte as they stand in the file. What can't be decided strictly is decided once for a
file and said in `notes`.
"""

from __future__ import annotations

import gc
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from gptailor.data.folders import hash_folder, read_folder
from gptailor.data.formats import decode_whole, read_json
from gptailor.data.hub import read_hub
from gptailor.data.layout import ASSUMED, Layout, Row, find_layout, is_tabular, looks_like_csv
from gptailor.data.ledger import LABEL_COLUMNS, PREDICTED_COLUMNS, WRITTEN_COLUMNS, undo_defusing
from gptailor.data.lines import (
    Item,
    Tally,
    always_empty,
    read_delimited,
    read_json_lines,
    read_lines,
)
from gptailor.data.parquet import read_parquet
from gptailor.data.roles import Roles, infer_roles
from gptailor.data.source import (
    GUESSED,
    Kind,
    Source,
    find_encoding,
    find_source,
    first_object,
    is_stream,
    sample_text,
)
from gptailor.data.store import StoredRows, store_rows
from gptailor.data.values import BadValueError, parse_json
from gptailor.data.views import each
from gptailor.errors import DataError, number_of
from gptailor.types import RawExample, RejectedRow

__all__ = [
    "ReadResult",
    "Roles",
    "doubts",
    "infer_roles",
    "is_doubt",
    "iterate_rows",
    "other_names",
    "read_rows",
]

DELIMITED_SUFFIXES = {".csv", ".tsv", ".tab", ".psv"}
TEXT_SUFFIXES = {".txt", ".text", ".md"}
# How a file of labels begins: as nobody else writes it, and as Excel saves it.
LABEL_FILES = (",".join(f'"{name}"' for name in LABEL_COLUMNS) + "\n", ",".join(LABEL_COLUMNS) + "\r\n")
FEW_ROWS = 10  # below this many, bad rows never condemn a file


OTHER_NAMES = "the training file has other names"


@dataclass(frozen=True, slots=True)
class ReadResult:
    """All rows of a file or folder."""

    rows: Sequence[RawExample]
    rejected: list[RejectedRow]  # reason "unreadable"
    columns: tuple[str, ...]
    notes: tuple[str, ...]  # what was decided, in words
    sha256: str  # of the raw bytes; for a folder, of names and bytes in order


@dataclass(frozen=True, slots=True)
class _Opened:
    """A location whose layout is known and whose rows are still to be read."""

    columns: list[str]  # JSON lines add to it while they are read
    notes: Callable[[], list[str]]  # complete once all rows were read
    items: Iterator[Item]


def read_rows(location: str, *, columns: str | None = None) -> ReadResult:
    """Reads all rows of a file, a folder, `hub:owner/name` or standard input ("-").

    Args:
        location: CSV, TSV, JSON, JSON lines, Parquet or plain text, also gzipped; a folder of text
            files, or of subfolders of text files named by their label. A plain text is one row.
        columns: Names for the columns of a CSV or TSV file, in order, instead of its header:
            `label,text+text` (a plus joins two columns with a space). One name for a plain text
            makes every line of it a row.

    Raises:
        DataError: nothing can be read, most rows are bad, or the file is a decompression bomb.
    """
    if is_stream(location):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "stream"
            with (
                nullcontext(sys.stdin.buffer) if location == "-" else Path(location).open("rb") as stream,
                copy.open("wb") as file,
            ):
                shutil.copyfileobj(stream, file)
            try:
                source = replace(find_source(str(copy)), name=location, suffix="")
            except DataError as error:
                raise DataError(error.what, where=location, fix=error.fix) from None
            return _collect(location, _open_source(source, columns), _hash_file(copy))
    if location.startswith("hub:"):
        return _collect(location, _open_hub(location, columns, streaming=False), "")
    path = Path(location)
    if path.is_dir():
        return _collect(location, _open(location, columns), hash_folder(path))
    return _collect(location, _open(location, columns), _hash_file(path))


def iterate_rows(
    location: str, *, columns: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Iterator[RawExample | RejectedRow]:
    """The rows of a location in file order, good and bad, in constant memory.

    Arguments as for `read_rows`. CSV, TSV, JSON lines, Parquet, and texts read by line are never held
    whole; other JSON is. The location is looked at right away, so errors about it come at once.
    However many rows are bad, all are handed out. What was assumed and could be wrong is said.
    """
    opened = _open(location, columns)
    for note in doubts(location, opened.notes()):
        say(note)
    return opened.items


def doubts(location: str, notes: Iterable[str]) -> list[str]:
    """What was assumed of a file and could be wrong, out of its notes."""
    return [f"{location}: {note}" for note in notes if is_doubt(note)]


def other_names(roles: Roles) -> str:
    """The note that a file was read by other columns than training was."""
    named = {"text": roles.text, "label": roles.label}
    read = ", ".join(f"{role} is {column!r}" for role, column in named.items() if column is not None)
    return f"columns: {read}; {OTHER_NAMES}"


def is_doubt(note: str) -> bool:
    """Whether a note tells what was assumed of a file and could be wrong."""
    return note.endswith((ASSUMED, GUESSED, OTHER_NAMES))


def _collect(location: str, opened: _Opened, sha256: str) -> ReadResult:
    rejected: list[RejectedRow] = []

    def good() -> Iterator[RawExample]:
        for item in opened.items:
            if type(item) is RawExample:
                yield item
            elif isinstance(item, RejectedRow):
                rejected.append(item)

    with collector_paused():
        rows = store_rows(good())
    columns = opened.columns
    refuse_if_mostly_bad(location, len(rows), rejected)
    rows = _widened(rows, columns)
    return ReadResult(rows, rejected, tuple(columns), tuple(opened.notes()), sha256 or _hash_rows(rows))


def _widened(rows: Sequence[RawExample], columns: Sequence[str]) -> Sequence[RawExample]:
    """The rows with every column, also those from before the first line that has it."""
    widths = map(len, rows.layouts) if isinstance(rows, StoredRows) else (len(row.fields) for row in rows)
    if all(width == len(columns) for width in widths):
        return rows

    def widen(row: RawExample) -> RawExample:
        if len(row.fields) == len(columns):
            return row
        return replace(row, fields={name: row.fields.get(name, "") for name in columns})

    return each(rows, widen)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Rows hold no cycles; not looking for any makes reading a third faster."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def refuse_if_mostly_bad(location: str, good: int, rejected: Sequence[RejectedRow]) -> None:
    total = good + len(rejected)
    if good and (total < FEW_ROWS or 2 * len(rejected) <= total):
        return
    examples = "\n".join(f"  {bad.source}:{bad.row}: {bad.detail}" for bad in rejected[:5])
    if not rejected:
        raise DataError(
            "holds no rows, at most a header.", where=location, fix="Give a file that holds rows."
        )
    raise DataError(
        f"{len(rejected):,} of {number_of(total, 'row')} can't be read:\n{examples}",
        where=location,
        fix="Mend these rows, or check that the file is what its name says.",
    )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_rows(rows: Sequence[RawExample]) -> str:
    """For rows of the hub, where there is no file to hash."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(sorted(row.fields.items())).encode())
    return digest.hexdigest()


def _open_hub(location: str, columns: str | None, *, streaming: bool) -> _Opened:
    names, notes, items = read_hub(location, streaming=streaming)
    return _Opened(names, lambda: _with(notes, columns), items)


def _open(location: str, columns: str | None) -> _Opened:
    if location.startswith("hub:"):
        return _open_hub(location, columns, streaming=True)
    if location != "-" and Path(location).is_dir():
        names, notes, items = read_folder(Path(location))
        return _Opened(names, lambda: _with(notes, columns), items)
    return _open_source(find_source(location), columns)


def _open_source(source: Source, columns: str | None) -> _Opened:
    with _told(source):
        return _opened(source, columns)


def _opened(source: Source, columns: str | None) -> _Opened:
    if source.sample.startswith(b"PAR1"):
        names, notes, items = read_parquet(source)
        return _Opened(names, lambda: _with(notes, columns), guarded(source, items))
    encoding, note = find_encoding(source)
    text = sample_text(source, encoding)
    kind = find_kind(source, text, columns)
    if kind == "delimited":
        return _open_delimited(source, encoding, text, columns, note)
    if kind == "jsonl":
        tally = Tally([])
        items = read_json_lines(source, encoding, tally)
        return _Opened(
            tally.columns, lambda: _with([note, "format: JSON lines"], columns), guarded(source, items)
        )
    if kind == "json":
        names, notes, items = read_json(source, encoding)
        return _Opened(names, lambda: _with([note, "format: JSON", *notes], columns), items)
    name = (columns or "text").strip()
    if kind == "lines":
        items = guarded(source, read_lines(source, encoding, name))
        return _Opened([name], lambda: [note, "format: plain text, every line is a row"], items)
    document = RawExample({name: decode_whole(source, encoding)}, source.name, 1)
    notes = [note, "format: plain text, the file is one row (name its column to make every line a row)"]
    return _Opened([name], lambda: notes, iter([document]))


def _with(notes: list[str], columns: str | None) -> list[str]:
    return (
        notes
        if columns is None
        else [*notes, "columns: the names given are not used; this format has its own"]
    )


def find_kind(source: Source, text: str, columns: str | None) -> Kind:
    """What kind of text a source holds, by its content where that is plain, else by its suffix.

    Raises:
        DataError: the suffix promises JSON and the content isn't.
    """
    start = text.lstrip("\ufeff \t\r\n")
    first, _, rest = start.partition("\n")
    objects = first_object(first) and first_object(rest.partition("\n")[0])
    if objects or (start.startswith("{") and source.suffix not in TEXT_SUFFIXES):
        if source.suffix in {".jsonl", ".ndjson"}:
            return "jsonl"
        if first_object(first) and (rest.strip() or source.suffix != ".json"):
            return "jsonl"
        if source.suffix == ".json" or first.rstrip() == "{":
            return "json"
    if source.suffix in {".json", ".jsonl", ".ndjson"}:
        if start.startswith("[") and (source.suffix == ".json" or not _is_whole(first, rest)):
            return "json"
        if source.suffix == ".json":
            raise DataError(
                "is not JSON.", where=source.name, fix="Name it by what it is, such as .csv or .txt."
            )
        return "jsonl"
    if (
        start.startswith("[")
        and source.suffix not in TEXT_SUFFIXES | DELIMITED_SUFFIXES
        and '"' in start[:1000]
    ):
        return "json"
    if source.suffix in DELIMITED_SUFFIXES or (columns is None and is_tabular(text)):
        return "delimited"
    if columns is not None and ("," in columns or "+" in columns):
        return "delimited"  # whoever names two columns says that there are two
    if columns is None and source.suffix not in TEXT_SUFFIXES and looks_like_csv(text):
        return "delimited"
    return "lines" if columns or source.name == "-" else "document"


def _is_whole(first: str, rest: str) -> bool:
    """Whether a first line is a JSON value by itself, and more lines come."""
    try:
        parse_json(first)
    except BadValueError:
        return False
    return bool(rest.strip())


def _open_delimited(source: Source, encoding: str, text: str, columns: str | None, note: str) -> _Opened:
    layout = find_layout(text, suffix=source.suffix, columns=columns, where=source.name)
    empty = always_empty(source, encoding, layout)
    outputs = _outputs(layout, columns, empty)
    notes = [note, *layout.notes]
    if empty:
        dropped = ", ".join(str(i + 1) for i in sorted(empty))
        notes.append(f"columns: {dropped} dropped (no name, always empty)")
    tally = Tally(list(outputs))
    make = _maker(outputs)
    ours = any(layout.names[: len(known)] == known for known in (PREDICTED_COLUMNS, WRITTEN_COLUMNS))
    if ours or text.startswith(LABEL_FILES):
        verb = "predict" if ours else "label"
        notes.append(f"format: a file of `gptailor {verb}`, read without its apostrophes before formulas")
        make = _undone(make)
    items = read_delimited(source, encoding, layout, make, tally)
    return _Opened(tally.columns, lambda: notes + tally.notes(), guarded(source, items))


def _outputs(layout: Layout, columns: str | None, empty: frozenset[int]) -> dict[str, tuple[int, ...]]:
    """Each column's name, and the cells that make it."""
    if columns is None:
        return {name: (i,) for i, name in enumerate(layout.names) if i not in empty}
    outputs: dict[str, tuple[int, ...]] = {}
    place = 0
    for given in columns.split(","):
        size = given.count("+") + 1
        names = layout.names[place : place + size]
        name = names[0] if len(set(names)) == 1 else "+".join(names)
        if name in outputs:
            raise DataError(
                f"the name {name!r} is given twice.", fix="Join neighbours with a plus: text+text."
            )
        outputs[name] = tuple(range(place, place + size))
        place += size
    return outputs


def _maker(outputs: dict[str, tuple[int, ...]]) -> Callable[[Row], dict[str, str]]:
    names = tuple(outputs)
    if list(outputs.values()) == [(i,) for i in range(len(outputs))]:
        # Any cells beyond these belong to dropped columns.
        return lambda cells: dict(zip(names, cells, strict=False))
    places = tuple(outputs.items())
    return lambda cells: {name: " ".join([cells[i] for i in where]) for name, where in places}


def _undone(make: Callable[[Row], dict[str, str]]) -> Callable[[Row], dict[str, str]]:
    return lambda cells: {name: undo_defusing(cell) for name, cell in make(cells).items()}


def guarded(source: Source, items: Iterator[Item]) -> Iterator[Item]:
    with _told(source):
        yield from items


@contextmanager
def _told(source: Source) -> Iterator[None]:
    """Turns what the disk and the memory may do to us into a message."""
    try:
        yield
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror or error}.", where=source.name) from None
    except MemoryError:
        raise DataError("needs more memory than there is.", where=source.name) from None
