"""Rows on the disk are the rows that a list would hold."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.data import store
from gptailor.data.clean import clean_rows
from gptailor.data.read import read_rows
from gptailor.data.spill import Spill, scratch
from gptailor.data.store import StoredRows, store_rows
from gptailor.data.views import chained, each, picked
from gptailor.errors import DataError
from gptailor.recipe import CleanSettings
from gptailor.types import RawExample

any_text = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates, too
any_row = st.builds(
    RawExample,
    st.dictionaries(st.sampled_from(["text", "label", "more"]), any_text),
    st.sampled_from(["a.csv", "b.csv"]),
    st.integers(1, 10**9),
)


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MANY_ROWS", 3)


@given(st.lists(any_row, min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_stored_rows_are_the_rows(rows: list[RawExample]) -> None:
    stored = StoredRows(rows[:1], iter(rows[1:]))
    assert list(stored) == rows
    assert len(stored) == len(rows)
    assert [stored[i] for i in range(-len(rows), len(rows))] == rows * 2
    assert stored[1:] == rows[1:]
    assert [list(row.fields) for row in stored] == [list(row.fields) for row in rows]  # and their order
    assert set(stored.layouts) == {tuple(row.fields) for row in rows}
    with pytest.raises(IndexError):
        stored[len(rows)]


def test_few_rows_stay_a_list_and_many_do_not(few_are_many: None) -> None:
    rows = [RawExample({"text": str(i)}, "a.csv", i) for i in range(4)]
    assert store_rows(iter(rows[:2])) == rows[:2]
    stored = store_rows(iter(rows))
    assert isinstance(stored, StoredRows)
    assert list(stored) == rows


def test_views_are_what_lists_would_be() -> None:
    rows = [RawExample({"text": str(i)}, "a.csv", i) for i in range(6)]
    stored = StoredRows(rows[:2], rows[2:])
    places = np.array([5, 0, 3])

    def double(row: RawExample) -> str:
        return row.fields["text"] * 2

    for few, many in (
        (each(rows, double), each(stored, double)),
        (picked(rows, places), picked(stored, places)),
        (each(picked(rows, places), double), each(picked(stored, places), double)),
        (picked(each(rows, double), places), picked(each(stored, double), places)),
        (picked(picked(rows, places), places[1:2]), picked(picked(stored, places), places[1:2])),
        (chained(rows, rows[:1]), chained(stored, rows[:1])),
    ):
        assert isinstance(few, list)
        assert not isinstance(many, list)
        assert list(many) == few
        assert len(many) == len(few)
        assert many[0] == few[0]
        assert many[-1] == few[-1]
        assert many[1:] == few[1:]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_file_of_many_rows_reads_as_one_of_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    rows = [{"text": f"row {i}, é", "label": "ab"[i % 2]} for i in range(9)]
    rows[5]["more"] = "a column that earlier lines lack"
    lines = {
        "rows.csv": ["text,label", *(f'"{row["text"]}",{row["label"]}' for row in rows), "a,b,c,d"],
        "rows.jsonl": [*map(json.dumps, rows), "{broken"],
    }
    path.write_text("\n".join(lines[name]), encoding="utf-8")
    few = read_rows(str(path))
    monkeypatch.setattr(store, "MANY_ROWS", 3)
    many = read_rows(str(path))
    assert isinstance(few.rows, list)
    assert not isinstance(many.rows, list)
    assert list(many.rows) == few.rows
    assert (many.rejected, many.columns, many.notes) == (few.rejected, few.columns, few.notes)
    assert len(many.rejected) == 1


@pytest.mark.parametrize("kind", ["single", "multiple", "score"])
def test_many_rows_are_cleaned_as_few(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    texts = [
        "one",
        "two  words",
        "",
        "one",
        "caf\u00c3\u00a9",
        "three",
        "two words",
        "four",
        "five",
        "two words",
    ]
    labels = {"single": "aBbcaabbab", "multiple": ['["a"]', '["b", "rare"]'] * 5, "score": "1234567890"}
    rows = [
        RawExample({"text": text, "label": label}, "a.csv", i)
        for i, (text, label) in enumerate(zip(texts, labels[kind], strict=True))
    ]
    chosen = CleanSettings(minimum_class_size=2)
    few = clean_rows(rows, settings=chosen, kind=kind)
    monkeypatch.setattr(store, "MANY_ROWS", 3)
    many = clean_rows(rows, settings=chosen, kind=kind)
    assert list(many.rows) == few.rows
    assert many.rejected == few.rejected
    reasons = {row.reason for row in few.rejected}
    assert "no_text" in reasons
    assert reasons & {"duplicate", "conflict"}
    assert (many.repaired, many.label_merges, many.examples) == (
        few.repaired,
        few.label_merges,
        few.examples,
    )


def test_memory_of_many_rows_is_a_few_bytes_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MANY_ROWS", 100)
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{'word ' * 20}{i},a\n" for i in range(10_000)))
    read_rows(str(path))  # imports and caches
    tracemalloc.start()
    try:
        found = read_rows(str(path))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.rows) == 10_000
    assert grown < 10_000 * 16 + 100_000


def test_spilled_numbers_come_back() -> None:
    with Spill(np.int32) as spill:
        assert spill.read().size == 0
        spill.append(np.arange(3, dtype=np.int32))
        spill.append(np.arange(4, dtype=np.int32)[::2])
        found = spill.read()
    assert found.tolist() == [0, 1, 2, 0, 2]
    array = scratch((2, 3), np.float32)
    array[1] = 7
    assert array.tolist() == [[0, 0, 0], [7, 7, 7]]
    assert scratch((0, 3), np.float32).shape == (0, 3)


def test_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr("gptailor.data.spill.tempfile.TemporaryFile", Full)
    with Spill(np.int32) as spill, pytest.raises(DataError, match="No space left"):
        spill.append(np.zeros(3, np.int32))
