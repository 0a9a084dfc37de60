"""Five hundred damaged files: each is read in part or refused with a message, and no row is counted twice.

The damage is random with fixed seeds, so a failure names the case that repeats it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptailor.data.read import infer_roles, iterate_rows, read_rows
from gptailor.errors import DataError
from gptailor.types import RawExample, RejectedRow

WORDS = ["naïve", "café", '"quoted"', "comma,", "tab\tend", "007", "NA", "null", "😀", "it's", "fine\nnew"]
WORDS += ["line;", "bar|", "€5", "<b>", "\\", "plain", "words", "here"]
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "txt", "csv.gz")
CASES_PER_FORMAT = 72


def good_file(kind: str, dice: random.Random) -> bytes:
    rows = [
        {
            "id": str(i),
            "text": " ".join(dice.choices(WORDS, k=dice.randint(3, 12))),
            "label": dice.choice("abc"),
        }
        for i in range(dice.randint(12, 40))
    ]
    if kind in {"csv", "tsv", "csv.gz"}:
        out = io.StringIO(newline="")
        writer = csv.DictWriter(
            out, ["id", "text", "label"], dialect="excel-tab" if kind == "tsv" else "excel"
        )
        writer.writeheader()
        writer.writerows(rows)
        data = out.getvalue().encode()
        return gzip.compress(data) if kind == "csv.gz" else data
    if kind == "json":
        return json.dumps(rows, ensure_ascii=dice.random() < 0.5).encode()
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(
            pa.Table.from_pylist(rows), buffer, compression=dice.choice(["snappy", "zstd", "none"])
        )
        return buffer.getvalue()
    return "\n".join(row["text"] for row in rows).encode()


def flip_bytes(data: bytes, dice: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(dice.choice([1, 1, 3, 10])):
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
    return bytes(damaged)


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


def cut_out(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    return data[:start] + data[start + dice.randint(1, 300) :]


def change_encoding(data: bytes, dice: random.Random) -> bytes:
    codec = dice.choice(["cp1252", "utf-16", "utf-16-le", "utf-32", "cp1251", "utf-8-sig"])
    return data.decode(errors="replace").encode(codec, errors="replace")


def mix_encodings(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data))
    return data[:place] + change_encoding(data[place:], dice)


def shuffle_columns(data: bytes, dice: random.Random) -> bytes:
    lines = data.split(b"\n")
    for index, line in enumerate(lines):
        cells = line.split(b",")
        dice.shuffle(cells)
        lines[index] = b",".join(cells) if dice.random() < 0.3 else line
    return b"\n".join(lines)


def insert(*pieces: bytes) -> Callable[[bytes, random.Random], bytes]:
    def inserted(data: bytes, dice: random.Random) -> bytes:
        for _ in range(dice.randint(1, 5)):
            place = dice.randrange(len(data) + 1)
            data = data[:place] + dice.choice(pieces) + data[place:]
        return data

    return inserted


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": flip_bytes,
    "cut": cut,
    "cut out": cut_out,
    "encoding": change_encoding,
    "two encodings": mix_encodings,
    "columns": shuffle_columns,
    "quotes": insert(b'"', b"'", b'""', b'\n"', b',"'),
    "zeros": insert(b"\0", b"\0\0\0\0", b"\xff", b"\x1a"),
    "structure": insert(b"\n", b"\r", b",", b"\t", b"{", b"}", b"[", b"]", b"\\", b"\xed\xa0\x80"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_read_in_part_or_refused(kind: str, tmp_path: Path) -> None:
    refused = 0
    for case in range(CASES_PER_FORMAT):
        dice = random.Random(f"{kind} {case}")
        name = list(DAMAGES)[case % len(DAMAGES)]
        path = tmp_path / f"{case}.{kind}"
        path.write_bytes(DAMAGES[name](good_file(kind, dice), dice))
        columns = dice.choice([None, None, "text"]) if kind == "txt" else None
        try:
            result = read_rows(str(path), columns=columns)
        except DataError:
            refused += 1
            continue
        except Exception as error:
            pytest.fail(f"case {case} ({name}) of {kind} raised {error!r}")
        check_accounting(path, columns, kept=result.rows, rejected=result.rejected)
        assert all(set(row.fields) == set(result.columns) for row in result.rows)
        "".join(value for row in result.rows for value in row.fields.values()).encode()  # no half characters
        with suppress(DataError):
            infer_roles(result.columns, result.rows, text=None, label=None)
    assert refused < CASES_PER_FORMAT, "every damage was fatal, so nothing was tested"


def check_accounting(
    path: Path, columns: str | None, *, kept: list[RawExample], rejected: list[RejectedRow]
) -> None:
    """Every row stands once, in order, and streaming sees what reading at once sees."""
    items = list(iterate_rows(str(path), columns=columns))
    numbers = [item.row for item in items]
    assert numbers == sorted(set(numbers)), path.name
    assert numbers == sorted([row.row for row in kept] + [row.row for row in rejected]), path.name
    assert all(bad.reason == "unreadable" and bad.detail for bad in rejected)


def test_undamaged_files_lose_nothing(tmp_path: Path) -> None:
    """The control: without damage the same files come back whole."""
    for kind in FORMATS:
        dice = random.Random(kind)
        path = tmp_path / f"good.{kind}"
        path.write_bytes(good_file(kind, dice))
        result = read_rows(str(path))
        assert result.rejected == []
        if kind == "txt":
            assert len(result.rows) == 1
            continue
        count = random.Random(kind).randint(12, 40)  # the first that was drawn
        assert [row.fields["id"] for row in result.rows] == [str(place) for place in range(count)]
