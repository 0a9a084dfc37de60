from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.data.ledger import (
    LedgerLine,
    defuse,
    read_ledger,
    summarize,
    undo_defusing,
    write_csv_safely,
    write_ledger,
)
from gptailor.errors import RunError

USED = LedgerLine("news.csv", 2, "used", "train", None, "", trained=3, context=20, cut=5)
DROPPED = LedgerLine(
    "news.csv", 3, "dropped", None, "duplicate", "same as row 2", trained=0, context=0, cut=0
)


def test_ledger_is_one_object_per_row_as_the_contract_says(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, [USED, DROPPED])
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert first == {
        "source": "news.csv",
        "row": 2,
        "outcome": "used",
        "part": "train",
        "reason": None,
        "detail": "",
        "tokens": {"trained": 3, "context": 20, "cut": 5},
    }
    assert (second["part"], second["reason"]) == (None, "duplicate")
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.jsonl"]


def test_ledger_reads_back_whatever_stands_in_it(tmp_path: Path) -> None:
    lines = [replace(DROPPED, source=name, detail='a\n"b"\u2028é') for name in ("a\udc80.csv", "ü 👍.csv")]
    write_ledger(tmp_path / "l.jsonl", lines)
    assert list(read_ledger(tmp_path / "l.jsonl")) == lines


def test_broken_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, [USED])
    before = path.read_bytes()

    def failing() -> Iterator[LedgerLine]:
        yield DROPPED
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_ledger(path, failing())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.jsonl"]


def test_folder_that_is_not_there_is_told_to_the_person(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="can't be written") as caught:
        write_ledger(tmp_path / "no" / "ledger.jsonl", [USED])
    assert caught.value.fix is not None


def test_summary_adds_up() -> None:
    lines = [
        USED,
        replace(USED, part="validation"),
        replace(USED, part="test", cut=0),
        replace(USED, part="test"),
        DROPPED,
        replace(DROPPED, reason="no_text"),
    ]
    assert summarize(iter(lines), read=6) == {
        "read": 6,
        "train": 1,
        "validation": 1,
        "test": 2,
        "dropped": {"no_text": 1, "duplicate": 1},
        "tokens": {"trained": 12, "context": 80, "cut": 15},
    }


def test_missing_row_is_an_error_of_ours() -> None:
    with pytest.raises(AssertionError, match="3 rows were read, but 1 used and 1 dropped"):
        summarize([USED, DROPPED], read=3)


@pytest.mark.parametrize(
    "line", [replace(USED, part=None), replace(USED, reason="no_text"), replace(DROPPED, reason=None)]
)
def test_line_that_contradicts_itself_is_an_error_of_ours(line: LedgerLine) -> None:
    with pytest.raises(AssertionError, match="contradicts"):
        summarize([line], read=1)


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "＋1", "－A", "＠x", "  =1", "\n=1", "-",
     "-1-1", "+1 234", "--1", "\ufeff=1", "=", "-1;=2"],
)  # fmt: skip
def test_formulas_are_defused(cell: str) -> None:
    assert defuse(cell) == f"'{cell}"


@pytest.mark.parametrize(
    "cell", ["", "a=b", "-1", "+1.5", "-.5", "-1e-5", "-12%", "1,234", "-1,234.5", "x@y", "'=1"]
)
def test_numbers_and_plain_texts_stay(cell: str) -> None:
    assert defuse(cell) == cell


@given(st.text(alphabet="=+-@＝ \t\r\n'1a;,\"\ufeff", max_size=8))
def test_no_cell_begins_a_formula(cell: str) -> None:
    safe = defuse(cell)
    assert safe in (cell, f"'{cell}")
    assert defuse(safe) == safe
    assert undo_defusing(safe) == cell or undo_defusing(cell) != cell
    if safe[:1] in "=@\t\r＝":
        assert safe == ""


def test_csv_counts_what_it_defuses_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    rows: list[list[object]] = [["=1+1", -0.5, None, 3], ['say "x", y;=2', float("-inf"), True, "-3"]]
    assert write_csv_safely(path, ["text", "@p", "none", "n"], rows) == 2
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["text", "'@p", "none", "n"],
            ["'=1+1", "-0.5", "", "3"],
            ['say "x", y;=2', "-inf", "True", "-3"],
        ]
    assert '"say ""x"", y;=2"' in path.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["predictions.csv"]
