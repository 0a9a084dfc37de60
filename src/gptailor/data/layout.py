"""How a delimited file is laid out: delimiter, quotes, header or not, names of the columns."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gptailor.data.roles import LABEL_NAMES, TEXT_NAMES
from gptailor.data.source import MAX_VALUE_BYTES
from gptailor.errors import DataError, number_of

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
USUAL_DELIMITER = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
SAMPLE_RECORDS = 1000
KNOWN_NAMES = TEXT_NAMES | LABEL_NAMES | {"id", "index", "author", "user", "date", "source", "name", "score"}

ANNOUNCED = re.compile(r'"?sep=([,;|\t])"?[,;|\t]*(?:\r\n|\r|\n)', re.IGNORECASE)

Row = list[str]
# What has to be said aloud: a first row that isn't a header would be lost.
ASSUMED = "the first row is taken for names, though it looks like the rest; --columns NAMES keeps it a row"


@dataclass(frozen=True, slots=True)
class Layout:
    """What was decided about a delimited file from its first mebibyte."""

    delimiter: str
    quoted: bool  # a double quote around a value is CSV's, not the person's
    header: tuple[str, ...] | None  # the cells of the first record, if it names the columns
    names: tuple[str, ...]  # one for each column of the file
    unnamed: frozenset[int]  # columns whose header is empty
    categories: dict[int, frozenset[str]]  # columns with few values, and these
    notes: tuple[str, ...]
    announced: bool = False  # the first line says `sep=;`, as Excel has it, and is no row


def find_layout(text: str, *, suffix: str = "", columns: str | None = None, where: str = "") -> Layout:
    """Decides from the first lines of a delimited file.

    Args:
        text: The first lines, whole.
        suffix: The file's, such as ".tsv"; the usual delimiter wins where several fit.
        columns: The person's names for the columns, comma between; they stand for the header.
        where: The file, for error messages.
    """
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    expected = None if names is None else sum(name.count("+") + 1 for name in names)
    line = ANNOUNCED.match(text)
    rest = text[line.end() :] if line else text
    delimiter, quoted, records = _find_delimiter(rest, suffix, expected, said=line[1] if line else None)
    first, body = records[0], records[1:]
    notes = [f"delimiter: {DELIMITERS[delimiter]}" if len(first) > 1 else "delimiter: none, a single column"]
    if line:
        notes[0] += ", as the first line says"
    if not quoted:
        notes.append("quotes: part of the text")
    nothing_tells = _votes(first, body) == 0 and not any(
        cell.strip().lower() in KNOWN_NAMES for cell in first
    )
    # Who names the columns needs no header: without a sign of one no row is to be lost.
    has_header = is_header(first, body) and not (nothing_tells and names is not None)
    header = tuple(first) if has_header else None
    width = len(first) if has_header else _usual_width(records)
    unnamed: frozenset[int] = frozenset()
    if names is not None:
        physical = _names_given(names, width, first=first, where=where)
        notes.append(f"columns: as given{', the header is skipped' if has_header else ', no header'}")
    elif header is None:
        physical = [f"column_{i}" for i in range(1, width + 1)]
        notes.append("header: none, the first row looks like the rows below it")
    else:
        physical, unnamed, more = _names_from_header(header, body)
        said = ASSUMED if nothing_tells else "the first row names the columns"
        notes += [f"header: {said}", *more]
    categories = _categories([row for row in body if len(row) == len(physical)])
    return Layout(
        delimiter, quoted, header, tuple(physical), unnamed, categories, tuple(notes), announced=bool(line)
    )


def read_records(text: str, delimiter: str, *, quoted: bool, limit: int = SAMPLE_RECORDS) -> list[Row]:
    """The first records of a text, as forgiving as the csv module can be; blank lines left out."""
    csv.field_size_limit(MAX_VALUE_BYTES)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    records: list[Row] = []
    try:
        for row in reader:
            if row:
                records.append(row)
            if len(records) >= limit:
                break
    except csv.Error:
        pass  # the rows before it are sample enough; the real reading says what is wrong
    return records


def uses_quotes(text: str, delimiter: str) -> bool:
    """Whether double quotes wrap values, as CSV has it, or are the person's own.

    A writer that quotes doubles every quote inside; so values wrapped properly are held against quotes
    of any other kind. With commas only those at the start of a value count: there others do no harm.
    """
    mark = re.escape(delimiter)
    wrapped = re.compile(rf'(?:(?<={mark})|^)"(?:[^"]++|"")*+"(?={mark}|[\r\n]|\Z)', re.MULTILINE)
    rest, proper = wrapped.subn("", text)
    if delimiter != "\t":
        return proper >= len(re.findall(rf'(?:(?<={mark})|^)"', rest, re.MULTILINE))
    loose = sum('"' in line for line in rest.split("\n")) if '"' in rest else 0
    return proper > loose or proper + loose == 0


def is_tabular(text: str) -> bool:
    """Whether a plain text is a table in disguise: every line has the same number of tabs."""
    records = read_records(text, "\t", quoted=uses_quotes(text, "\t"))
    return len(records) >= 3 and {len(row) for row in records} == {len(records[0])} and len(records[0]) > 1


def looks_like_csv(text: str) -> bool:
    """Whether a text of unknown kind starts with a header that names known columns."""
    _, _, records = _find_delimiter(text, "", None)
    known = [cell.strip().lower() in KNOWN_NAMES for cell in records[0]]
    same_width = sum(len(row) == len(records[0]) for row in records) >= 0.9 * len(records)
    return (
        same_width and (any(known) if len(known) > 1 else all(known)) and is_header(records[0], records[1:])
    )


def is_header(first: Row, body: Sequence[Row]) -> bool:
    """Whether the first row names the columns, judged by whether it looks like the rows below it."""
    known = sum(cell.strip().lower() in KNOWN_NAMES for cell in first)
    if known and known == sum(bool(cell.strip()) for cell in first):
        return True
    votes = _votes(first, body)
    # A column by itself whose first cell could be any of the others is a text: none is to be lost.
    return (votes > 0 if len(first) == 1 else votes >= 0) and any(cell.strip() for cell in first)


def _votes(first: Row, body: Sequence[Row]) -> int:
    """How much says that the first row names the columns: 0 where nothing tells it from the others."""
    votes = 2 * sum(cell.strip().lower() in KNOWN_NAMES for cell in first)
    for index, cell in enumerate(first):
        values = [row[index] for row in body if len(row) == len(first) and row[index].strip()]
        votes += _header_vote(cell.strip(), values)
    return votes


def _header_vote(cell: str, values: Sequence[str]) -> int:
    """How much one column says that `cell` is its name: positive for, negative against."""
    if not values or not cell:
        return 0
    counts = Counter(value.strip() for value in values)
    if cell in counts:
        return -3
    if all(_is_number(value) for value in values):
        return -2 if _is_number(cell) else 3
    if _is_number(cell):
        return -1  # a name is rarely a number
    if len(counts) <= 0.3 * len(values):
        return 2  # few values, repeated, and this is none of them
    lengths = sorted(map(len, values))
    if len(cell) > 30 and len(cell.split()) > 4:
        return -2  # a sentence
    middle = lengths[len(lengths) // 2]
    return 1 if middle > 20 and len(cell) < lengths[len(lengths) // 20] else 0


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _find_delimiter(
    text: str, suffix: str, expected: int | None, *, said: str | None = None
) -> tuple[str, bool, list[Row]]:
    best: tuple[tuple[float, int], str, bool, list[Row]] | None = None
    usual = USUAL_DELIMITER.get(suffix, ",")
    for delimiter in [said] if said else sorted(DELIMITERS, key=lambda d: d != usual):
        quoted = uses_quotes(text, delimiter)
        records = read_records(text, delimiter, quoted=quoted)
        if not records:
            continue
        width = _usual_width(records)
        share = sum(len(row) == width for row in records) / len(records) if width > 1 else 0.0
        bonus = 0.1 * (delimiter == usual and share > 0) + 0.5 * (width == expected)
        # The header knows best: a file whose first line has no such delimiter isn't delimited by it.
        score = (round(share + bonus, 2) if len(records[0]) > 1 else 0.0, width)
        if best is None or score > best[0]:
            best = score, delimiter, quoted, records
    if best is None:
        return said or usual, True, [[text.strip()]]
    return best[1:]


def _usual_width(records: Sequence[Row]) -> int:
    return Counter(map(len, records)).most_common(1)[0][0]


def _names_given(names: list[str], width: int, *, first: Row, where: str) -> list[str]:
    """One name for each column; in `label,text+text` the plus stands between two columns."""
    physical = [part.strip() for name in names for part in name.split("+")]
    if len(physical) != width:
        raise DataError(
            f"has {number_of(width, 'column')}, but {number_of(len(physical), 'name')} given.",
            where=where,
            fix=f"The first row is {first!r}; name each column in order, such as label,text+text "
            "(a plus joins two columns).",
        )
    return [name or f"column_{i}" for i, name in enumerate(physical, start=1)]


def _names_from_header(
    header: Sequence[str], body: Sequence[Row]
) -> tuple[list[str], frozenset[int], list[str]]:
    cells = [_clean_name(cell) for cell in header]
    notes: list[str] = []
    unnamed = frozenset(i for i, cell in enumerate(cells) if not cell)
    if body and _usual_width(body) == len(cells) + 1 and _counts_rows([row[0] for row in body if row]):
        cells.insert(0, "")  # R writes the row names without a name of their own
        notes.append("header: has one name less than the rows have cells; the first column is row names")
    return unique_names(cells, notes), unnamed, notes


def _clean_name(cell: str) -> str:
    """A name without blanks around it; what couldn't be decoded becomes a replacement character."""
    return re.sub("[\ud800-\udfff]", "\ufffd", cell).replace("\0", "").strip()


def _counts_rows(values: Sequence[str]) -> bool:
    return (
        len(values) > 1
        and len(set(values)) == len(values)
        and all(value.strip().isdigit() for value in values)
    )


def unique_names(cells: Sequence[str], notes: list[str]) -> list[str]:
    """Names that are neither empty nor equal: `column_3`, `text_2`; what was renamed goes to `notes`."""
    names: dict[str, None] = {}
    given, numbers = set(cells), dict.fromkeys(cells, 2)
    for index, cell in enumerate(cells, start=1):
        name = base = cell or f"column_{index}"
        while name in names or (name != cell and name in given):
            number = numbers.get(base, 2)
            name, numbers[base] = f"{base}_{number}", number + 1
        if cell and name != cell:
            notes.append(f"header: column {index} is a second {cell!r}; it is called {name!r}")
        names[name] = None
    return list(names)


def _categories(rows: Sequence[Row]) -> dict[int, frozenset[str]]:
    """Columns with few values that repeat; used to notice records that were swallowed by a stray quote."""
    if len(rows) < 10:
        return {}
    found = {}
    for index, values in enumerate(zip(*rows, strict=True)):
        distinct = set(values) - {""}
        if distinct and len(distinct) * 5 <= len(rows):
            found[index] = frozenset(distinct)
    return found
