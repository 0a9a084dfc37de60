"""Where the bytes come from, and what they are: compression, encoding, kind. Nothing is parsed here."""

from __future__ import annotations

import codecs
import io
import json
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from gptailor.data.streams import Prefixed, Unpacked
from gptailor.errors import DataError, did_you_mean, number_of

Kind = Literal["delimited", "jsonl", "json", "document", "lines"]

SAMPLE_BYTES = 2**20  # what deciding about a file may look at
MAX_DOCUMENT_BYTES = 2 * 10**9  # a JSON document or a text is read whole
MAX_VALUE_BYTES = 10 * 10**6  # of one value or one line

BINARY_KINDS = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"%PDF": "a PDF",
    b"BZh91AY": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x1f\x8b": "compressed twice",
    b"SQLite format 3": "a SQLite database",
    b"\x80\x02": "a pickle, which is never opened because it can run code",
    b"\x80\x03": "a pickle, which is never opened because it can run code",
    b"\x80\x04": "a pickle, which is never opened because it can run code",
    b"\x80\x05": "a pickle, which is never opened because it can run code",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
HIGH_WORD = re.compile(rb"[A-Za-z]*[\x80-\xff][A-Za-z\x80-\xff]*")
IN_A_WORD = re.compile(rb"(?<=[A-Za-z])[\x80-\xff]+(?=[A-Za-z])")
NO_LETTERS = set(b"\xb3\xb9\xbe\xbf")  # of Windows-1252, but of 1250: inside of Polish and Slovak words
GUESSED = "where that reads wrong, save the file as UTF-8"
BAD_BYTES = "gptailor-bad-bytes"


def _mark_bad_bytes(error: UnicodeError) -> tuple[str, int]:
    """Puts a lone surrogate in place of each byte that can't be decoded; no valid text holds one."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff" * (error.end - error.start), error.end


codecs.register_error(BAD_BYTES, _mark_bad_bytes)


@dataclass(frozen=True, slots=True)
class Source:
    """A file or stream. `open` gives its bytes from the start, unpacked; a stream's only once."""

    name: str  # as the person gave it
    suffix: str  # ".csv", without ".gz"
    open: Callable[[], BinaryIO]
    sample: bytes  # the first bytes, unpacked
    whole: bool  # the sample is all there is
    size: int  # of the file as stored, in bytes; 0 for a stream
    repeatable: bool  # `open` may be called again


def is_stream(location: str) -> bool:
    """Whether a location can be read once only: standard input, or a pipe such as a shell's <(...)."""
    if location == "-":
        return True
    path = Path(location)
    return path.exists() and not path.is_file() and not path.is_dir()


def find_source(location: str) -> Source:
    """A file, named pipe or "-" (standard input), with a first look at its bytes.

    Raises:
        DataError: it is missing, empty, unreadable, or of a kind that isn't text.
    """
    if location == "-":
        return _from_stream(location, sys.stdin.buffer)
    path = Path(location)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return _from_stream(location, path.open("rb"))
        return _from_file(location, path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise missing(location) from None
    except OSError as error:
        raise DataError(f"can't be opened: {error.strerror or error}.", where=location) from None


def missing(location: str) -> DataError:
    """The error for a path that isn't there; names what it may have meant."""
    try:
        parent = Path(location).parent
        names = sorted(entry.name for entry in parent.iterdir())[:10_000]
        hint = did_you_mean(Path(location).name, names)
        if not hint and names:
            hint = f" {parent} holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
    except (OSError, ValueError):
        hint = ""
    return DataError(
        f"there is no such file or folder.{hint}",
        where=location,
        fix="Check the path, or give hub:owner/name.",
    )


def _from_file(location: str, path: Path) -> Source:
    def open_bytes() -> BinaryIO:
        raw = path.open("rb")
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        return cast(BinaryIO, io.BufferedReader(Unpacked(raw, location), 2**17)) if packed else raw

    with closing(open_bytes()) as stream:
        sample = stream.read(SAMPLE_BYTES + 1)
    return _checked(
        Source(
            location,
            _suffix(path),
            open_bytes,
            sample,
            len(sample) <= SAMPLE_BYTES,
            path.stat().st_size,
            True,
        )
    )


def _from_stream(location: str, raw: BinaryIO) -> Source:
    head = raw.read(SAMPLE_BYTES + 1)
    joined = cast(BinaryIO, io.BufferedReader(Prefixed(head, raw, ours=location != "-"), 2**17))
    if head[:2] == b"\x1f\x8b":
        joined = cast(BinaryIO, io.BufferedReader(Unpacked(joined, location), 2**17))
        head = joined.read(SAMPLE_BYTES + 1)
        joined = cast(BinaryIO, io.BufferedReader(Prefixed(head, joined, ours=True), 2**17))
    return _checked(Source(location, "", lambda: joined, head, len(head) <= SAMPLE_BYTES, 0, False))


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _checked(source: Source) -> Source:
    """Refuses what is empty or surely not text."""
    if not source.sample.strip(b" \t\r\n\xef\xbb\xbf\xff\xfe"):
        raise DataError("is empty.", where=source.name, fix="Give a file that holds rows.")
    for magic, what in BINARY_KINDS.items():
        if source.sample.startswith(magic):
            raise DataError(
                f"is {what}, not text.",
                where=source.name,
                fix="Save it as CSV (UTF-8), JSON lines or Parquet.",
            )
    return source


def read_whole(source: Source) -> bytes:
    """All bytes of a source, which must fit memory."""
    with closing(source.open()) as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"is larger than {MAX_DOCUMENT_BYTES:,} bytes and can't be read piece by piece.",
            where=source.name,
            fix="Save it as JSON lines, CSV or Parquet.",
        )
    return data


def find_encoding(source: Source) -> tuple[str, str]:
    """The codec to read a source with, and the sentence that says why.

    Strict UTF-8 unless a byte-order mark, the zero bytes of UTF-16, or most of the lines with other
    than ASCII bytes say otherwise. A few lines that aren't UTF-8 don't change a file's encoding.
    """
    sample = source.sample
    for mark, codec in BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return codec, f"encoding: {codec.removesuffix('-sig').upper()} (byte-order mark)"
    zeros = [sample[parity::2].count(0) / max(len(sample) // 2, 1) for parity in (0, 1)]
    if max(zeros) > 0.4 and min(zeros) < 0.1:
        codec = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        letters = sample[:8192].decode(codec, errors=BAD_BYTES)
        odd = sum(not (letter.isprintable() or letter.isspace()) for letter in letters)
        if odd < 0.05 * len(letters):
            return codec, f"encoding: {codec.upper()} (no byte-order mark; recognized by its zero bytes)"
    if max(zeros) > 0.1:
        raise DataError("is binary, not text.", where=source.name, fix="Save it as CSV (UTF-8) or Parquet.")
    good, bad, lines, examples = _count_utf8(source)
    isnt = "is" if bad == 1 else "are"
    if bad > good and (bad >= 3 or bad * 4 >= lines) and _looks_like_cp1252(examples):
        words = (word for line in examples for word in HIGH_WORD.findall(line))
        word = max(words, key=lambda word: sum(byte > 127 for byte in word))[:30].decode("cp1252", "replace")
        others = "other" if good == 1 else "others"
        counts = f"{number_of(bad, 'line')} {isnt} not UTF-8, {good:,} {others} would be"
        return "cp1252", f"encoding: Windows-1252 ({counts}), such as {word!r}; {GUESSED}"
    if bad:
        return "utf-8", f"encoding: UTF-8, with {number_of(bad, 'line')} that {isnt} not"
    return "utf-8", "encoding: UTF-8"


def _count_utf8(source: Source) -> tuple[int, int, int, list[bytes]]:
    """Lines with other than ASCII bytes that are UTF-8, those that aren't, all lines, and some bad ones."""
    good = bad = lines = 0
    examples: list[bytes] = []
    for block in _blocks(source):
        lines += block.count(b"\n") + 1
        if block.isascii():
            continue
        for line in block.split(b"\n"):
            if line.isascii():
                continue
            try:
                line.decode()
                good += 1
            except UnicodeDecodeError:
                bad += 1
                if len(examples) < 1000:
                    examples.append(line[:10_000])
    return good, bad, lines, examples


def _blocks(source: Source) -> Iterator[bytes]:
    """The bytes in blocks that end where lines end (where lines have a sane length)."""
    if source.whole or not source.repeatable:
        cut = len(source.sample) if source.whole else source.sample.rfind(b"\n") + 1
        yield source.sample[:cut]
        return
    with closing(source.open()) as stream:
        while block := stream.read(2**20):
            yield block + stream.readline(MAX_VALUE_BYTES)


def _looks_like_cp1252(lines: list[bytes]) -> bool:
    """Whether the bytes that aren't ASCII could be Western European letters and signs.

    There they stand alone or in twos; Cyrillic, Chinese and the like come in longer runs, and
    reading those as Windows-1252 would turn every word into noise without a complaint.
    """
    runs = [run for line in lines for run in HIGH_BYTES.findall(line)]
    short = sum(len(run) <= 2 for run in runs)
    text = b"".join(runs).decode("cp1252", errors="replace")
    plausible = sum(letter not in "\ufffdÿ" for letter in text)
    alone = sum(not _is_utf8(run) for run in runs)  # a long line of UTF-8 with one bad byte has few
    inside = [run for line in lines for run in IN_A_WORD.findall(line)]
    signs = sum(not NO_LETTERS.isdisjoint(run) for run in inside)
    return (
        short >= 0.7 * len(runs)
        and plausible >= 0.9 * len(text)
        and 2 * alone > len(runs)
        and signs <= 0.1 * len(inside)
    )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def length_in_bytes(text: str, encoding: str) -> int:
    """How many bytes a text takes in a file, a byte-order mark not counted."""
    codec = encoding.removesuffix("-sig")
    return len(text.encode(f"{codec}-le" if codec in {"utf-16", "utf-32"} else codec))


def sample_text(source: Source, encoding: str) -> str:
    """The sample as text, cut at the end of its last whole line."""
    text = source.sample.decode(encoding, errors=BAD_BYTES)
    if source.whole:
        return text
    cut = max(text.rfind("\n"), text.rfind("\r"))
    return text[: cut + 1] if cut >= 0 else text


def first_object(line: str) -> bool:
    """Whether a line is one whole JSON object."""
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
