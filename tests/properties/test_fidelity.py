"""What a writer put into a file comes out of it, byte for byte, whatever it looks like."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gptailor.data.read import read_rows

TRICKY = [
    "NA", "null", "None", "nan", "007", "1e5", "1.0", "-0", "true", "TRUE", "2020-01-01", "0x10", "inf",
    '"', '""', "'", "it's", 'say "hi"', '"quoted"', "line\nend", "carriage\rreturn", "both\r\n", "\n",
    "tab\there", "1,000",
    " blanks ", ",", ";", "|", "\\n", "\\", "<|endoftext|>", "=1+1", "😀", "👩‍👩‍👧", "é", "e\u0301",
    "\u2028", "\ufeff",
    "\x0b\x0c\x1c\x85", "ÿþ", "한국어", "{}", "[1]", '{"a": 1}', "#", "text", "label",
]  # fmt: skip
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
VALUES = st.one_of(st.sampled_from(TRICKY), st.text(LETTERS, max_size=30))
ROWS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12).filter(
    lambda rows: ("text", "label") not in rows
)
ALL_TRICKY = [pair for pair in pairwise(TRICKY) if pair != ("text", "label")]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Rows = list[tuple[str, str]]


def assert_comes_back(path: Path, rows: Rows) -> None:
    result = read_rows(str(path))
    assert result.rejected == []
    assert result.columns == ("text", "label")
    assert [(row.fields["text"], row.fields["label"]) for row in result.rows] == rows


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@given(rows=ROWS)
@example(rows=ALL_TRICKY)
@QUICK
def test_csv(tmp_path: Path, delimiter: str, line_end: str, rows: Rows) -> None:
    path = tmp_path / ("a.tsv" if delimiter == "\t" else "a.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    assert_comes_back(path, rows)


@given(rows=ROWS)
@example(rows=ALL_TRICKY)
@QUICK
def test_csv_with_the_fewest_quotes(tmp_path: Path, rows: Rows) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    assert_comes_back(path, rows)


@pytest.mark.parametrize("ascii_only", [False, True])
@given(rows=ROWS)
@example(rows=ALL_TRICKY)
@QUICK
def test_json_lines_and_array(tmp_path: Path, ascii_only: bool, rows: Rows) -> None:
    objects = [{"text": text, "label": label} for text, label in rows]
    lines, array = tmp_path / "a.jsonl", tmp_path / "a.json"
    texts = [json.dumps(item, ensure_ascii=ascii_only) for item in objects]
    lines.write_bytes("\n".join(texts).encode())
    array.write_bytes(json.dumps(objects, ensure_ascii=ascii_only, indent=1).encode())
    assert_comes_back(lines, rows)
    assert_comes_back(array, rows)


@given(rows=ROWS)
@example(rows=ALL_TRICKY)
@QUICK
def test_parquet(tmp_path: Path, rows: Rows) -> None:
    path = tmp_path / "a.parquet"
    columns = [pa.array(cells, pa.string()) for cells in zip(*rows, strict=True)]
    pq.write_table(pa.table(columns, names=["text", "label"]), path)
    assert_comes_back(path, rows)


@given(
    numbers=st.lists(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1)
)
@QUICK
def test_json_numbers_keep_their_spelling(tmp_path: Path, numbers: list[float]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"n": n, "deep": [n]}) + "\n" for n in numbers))
    fields = [row.fields for row in read_rows(str(path)).rows]
    assert [(f["n"], f["deep"]) for f in fields] == [(json.dumps(n), f"[{json.dumps(n)}]") for n in numbers]


@given(lines=st.lists(st.text(LETTERS.filter(lambda c: c not in "\r\n"), max_size=30), min_size=1))
@QUICK
def test_lines_of_a_text(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "a.txt"
    lines = ["first", *lines, "with a\ttab"]
    path.write_bytes(("\n".join(lines) + "\n").encode())
    assert [row.fields["text"] for row in read_rows(str(path), columns="text").rows] == lines
