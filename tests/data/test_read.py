"""Reading: each format, each decision about a file, each way a row or a file is turned away."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptailor.data import lines as lines_module
from gptailor.data.ledger import PREDICTED_COLUMNS, WRITTEN_COLUMNS, write_csv_safely
from gptailor.data.read import ReadResult, Roles, doubts, infer_roles, iterate_rows, read_rows
from gptailor.data.source import find_source
from gptailor.errors import DataError, MissingExtraError
from gptailor.pipeline.task import first_rows
from gptailor.types import RawExample, RejectedRow

REAL = Path(__file__).resolve().parents[2] / "../shared/data"
WORDS = [
    "a fine day out",
    "not my kind of thing",
    "the plot is thin, sadly",
    "I would go again",
    "it was all right",
]

Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


def table(result: ReadResult) -> list[tuple[str, ...]]:
    return [tuple(row.fields[name] for name in result.columns) for row in result.rows]


def reviews(count: int, *, delimiter: str = ",", header: str = "text,label") -> str:
    lines = [f'"{WORDS[i % 5]} {i}"{delimiter}{"good" if i % 2 else "bad"}' for i in range(count)]
    return "\n".join(([header.replace(",", delimiter)] if header else []) + lines) + "\n"


# Formats


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nNA,null\n007,1e5\n"),
        ("a.tsv", "text\tlabel\nNA\tnull\n007\t1e5\n"),
        ("semicolons.csv", "text;label\nNA;null\n007;1e5\n"),
        ("excel.csv", "sep=;\r\ntext;label\r\nNA;null\r\n007;1e5\r\n"),
        ("bars.csv", "text|label\nNA|null\n007|1e5\n"),
        ("a.jsonl", '{"text": "NA", "label": "null"}\n\n{"text": "007", "label": 1e5}\n'),
        ("lines.json", '{"text": "NA", "label": "null"}\n{"text": "007", "label": 1e5}\n'),
        ("a.json", '[{"text": "NA", "label": "null"}, {"text": "007", "label": 1e5}]'),
        (
            "one_array.json",
            '{"version": 2, "rows": [{"text":"NA","label":"null"},{"text":"007","label":1e5}]}',
        ),
        ("pandas.json", '{"text": {"0": "NA", "1": "007"}, "label": {"0": "null", "1": 1e5}}'),
        ("index.json", '{"0": {"text": "NA", "label": "null"}, "1": {"text": "007", "label": 1e5}}'),
        ("list.json", '{"text": ["NA", "007"], "label": ["null", 1e5]}'),
        ("split.json", '{"columns": ["text","label"], "index": [0,1], "data": [["NA","null"],["007",1e5]]}'),
    ],
)
def test_values_are_text_in_every_format(write: Write, name: str, content: str, packed: bool) -> None:
    data = gzip.compress(content.encode()) if packed else content.encode()
    path = write(name + ".gz" if packed else name, data)
    result = read_rows(path)
    assert result.columns == ("text", "label")
    assert table(result) == [("NA", "null"), ("007", "1e5")]
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert [item for item in iterate_rows(path) if isinstance(item, RawExample)] == result.rows
    assert all(row.source == path for row in result.rows)


def test_the_line_of_excel_that_names_the_delimiter_is_no_row_and_rows_keep_their_lines(write: Write) -> None:
    """Each row holds more commas than bars; the line has the last word."""
    rows = "".join(f"one, two, three {n}|{'ab'[n % 2]}\n" for n in range(30))
    result = read_rows(write("bars.csv", f'"sep=|"\n{rows}'), columns="text,label")
    assert len(result.rows) == 30
    assert (result.rows[0].row, result.rows[0].fields) == (2, {"text": "one, two, three 0", "label": "a"})
    assert "delimiter: bar, as the first line says" in result.notes


def test_parquet_values_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "text": pa.array(["NA", None, "007"]).dictionary_encode(),
        "number": pa.array([1, 2, None]),
        "yes": pa.array([True, False, None]),
        "turns": pa.array([[{"role": "user"}], [], None]),
    }
    pq.write_table(pa.table(columns), path)
    result = read_rows(str(path))
    assert table(result) == [
        ("NA", "1", "true", '[{"role":"user"}]'),
        ("", "2", "false", "[]"),
        ("007", "", "", ""),
    ]
    assert [row.row for row in result.rows] == [1, 2, 3]


def test_parquet_rejects_a_value_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([b"good", b"b\xffd", b"fine"])}), path)
    result = read_rows(str(path))
    assert [row.row for row in result.rows] == [1, 3]
    assert [(bad.row, bad.reason) for bad in result.rejected] == [(2, "unreadable")]


def test_json_keeps_numbers_and_nested_values_as_spelled(write: Write) -> None:
    line = (
        '{"n": 1.50, "big": 12345678901234567890, "yes": true, "none": null, "deep": {"a": [1.0, "é", null]}}'
    )
    fields = read_rows(write("a.jsonl", line + "\n")).rows[0].fields
    assert fields == {
        "n": "1.50",
        "big": "12345678901234567890",
        "yes": "true",
        "none": "",
        "deep": '{"a":[1.0,"é",null]}',
    }


def test_json_lines_with_different_keys_have_all_columns(write: Write) -> None:
    result = read_rows(write("a.jsonl", '{"a": "1"}\n{"b": "2", "a": "3"}\n{"a": "4"}\n'))
    assert result.columns == ("a", "b")
    assert table(result) == [("1", ""), ("3", "2"), ("4", "")]


def test_a_text_is_one_row_unless_its_lines_are_asked_for(write: Write) -> None:
    path = write("a.txt", "one, two\n\nthree\n")
    assert read_rows(path).rows == [RawExample({"text": "one, two\n\nthree\n"}, path, 1)]
    lines = read_rows(path, columns="source")
    assert lines.columns == ("source",)
    assert [(row.row, row.fields["source"]) for row in lines.rows] == [(1, "one, two"), (2, ""), (3, "three")]


def test_a_text_file_that_is_a_table_is_read_as_one(write: Write) -> None:
    result = read_rows(write("a.txt", "0\tanger\n1\tjoy\n2\tcalm\n0\tanger\n"))
    assert table(result)[1] == ("1", "joy")


def test_a_text_file_of_json_lines_is_read_as_such(write: Write) -> None:
    result = read_rows(write("a.txt", '{"text": "a"}\n{"text": "b"}\n'))
    assert table(result) == [("a",), ("b",)]
    assert len(read_rows(write("b.txt", '{"text": "a"}\nis how it starts\n')).rows) == 1


def test_one_name_makes_lines_even_of_a_table(write: Write) -> None:
    assert len(read_rows(write("a.txt", "a\tb\nc\td\ne\tf\n"), columns="text").rows) == 3


def test_folder_with_a_subfolder_for_each_label(write: Write, tmp_path: Path) -> None:
    for name in ("neg/b.txt", "neg/a.txt", "pos/a.txt", "pos/.hidden", "README.md"):
        write(name, f"words of {name}")
    write("pos/bad.txt", b"caf\xff\xfe\xff\x00")
    result = read_rows(str(tmp_path))
    assert table(result) == [
        ("words of neg/a.txt", "neg"),
        ("words of neg/b.txt", "neg"),
        ("words of pos/a.txt", "pos"),
    ]
    assert [bad.source.rsplit("/", 1)[1] for bad in result.rejected] == ["bad.txt"]
    assert [row.row for row in result.rows] == [1, 2, 3]
    assert any("beside" in note for note in result.notes)
    before = result.sha256
    (tmp_path / "pos/a.txt").rename(tmp_path / "pos/c.txt")
    assert read_rows(str(tmp_path)).sha256 != before


def test_folder_of_texts_and_folder_of_tables(write: Write, tmp_path: Path) -> None:
    write("texts/1.txt", "one")
    write("texts/2.txt.gz", gzip.compress(b"two"))
    write("tables/train.csv", "text,label\na,b\n")
    (tmp_path / "nothing").mkdir()
    assert table(read_rows(str(tmp_path / "texts"))) == [("one",), ("two",)]
    with pytest.raises(DataError, match=r"train\.csv"):
        read_rows(str(tmp_path / "tables"))
    with pytest.raises(DataError, match="empty folder"):
        read_rows(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a", "label": "x"}\n', [("a", "x")]),
        (b"text,label\na,x\nb,y\n", [("a", "x"), ("b", "y")]),
        (b"Hello, you\nHow are you, then, friend\n", [("Hello, you",), ("How are you, then, friend",)]),
        (b"[sic] he said\n", [("[sic] he said",)]),
        (gzip.compress(b"one line\n", mtime=0), [("one line",)]),
    ],
)
def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, content: bytes, expected: list[tuple[str, ...]]
) -> None:
    def stdin() -> Any:
        return types.SimpleNamespace(buffer=io.BytesIO(content))

    monkeypatch.setattr(sys, "stdin", stdin())
    items = list(iterate_rows("-"))
    monkeypatch.setattr(sys, "stdin", stdin())
    result = read_rows("-")
    assert table(result) == expected
    assert items == result.rows
    assert items[0].source == "-"


def test_hub_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"gptailor\[hub\]"):
        read_rows("hub:someone/something")


def test_hub_rows_have_names_for_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Data(list[dict[str, Any]]):
        features = {  # noqa: RUF012
            "text": object(),
            "label": types.SimpleNamespace(names=["bad", "good"]),
            "tags": types.SimpleNamespace(feature=types.SimpleNamespace(names=["joy", "love", "fear"])),
        }

    asked: list[tuple[Any, ...]] = []

    def load(name: str, configuration: str | None, *, split: str, streaming: bool) -> Data:
        asked.append((name, configuration, split, streaming))
        return Data([{"text": "NA", "label": 1, "tags": [2, 0]}, {"text": None, "label": -1, "tags": []}])

    config = types.SimpleNamespace(HF_UPDATE_DOWNLOAD_COUNTS=True)
    fake = types.SimpleNamespace(load_dataset=load, config=config)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    result = read_rows("hub:someone/something:validation")
    assert table(result) == [("NA", "good", '["fear","joy"]'), ("", "", "[]")]
    assert not config.HF_UPDATE_DOWNLOAD_COUNTS, "it would tell another host"
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
    assert len(list(iterate_rows("hub:someone/something"))) == 2
    read_rows("hub:someone/something/small:test")
    assert asked == [
        ("someone/something", None, "validation", False),
        ("someone/something", None, "train", True),
        ("someone/something", "small", "test", False),
    ]


def test_a_hub_that_goes_away_between_rows_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Data:
        features: ClassVar = {"text": object()}

        def __iter__(self) -> Iterator[dict[str, Any]]:
            yield {"text": "one"}
            raise ConnectionError("the network is gone")

    fake = types.SimpleNamespace(load_dataset=lambda *_, **__: Data(), config=types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(DataError, match="can't be read on after 1 row: the network is gone") as caught:
        read_rows("hub:someone/something")
    assert caught.value.where == "hub:someone/something"


@pytest.mark.parametrize("columns", [PREDICTED_COLUMNS, WRITTEN_COLUMNS])
def test_a_file_that_predict_wrote_is_read_as_the_texts_were(
    tmp_path: Path, columns: tuple[str, ...]
) -> None:
    """Labelled in a spreadsheet, which may have taken the quotes away, it teaches no apostrophes."""
    texts = ["@united thanks", "- a list", "plain", "'tis", "=1+1"]
    rows = [["a.csv", row, text, *([""] * (len(columns) - 3)), 0.5] for row, text in enumerate(texts, 2)]
    write_csv_safely(tmp_path / "a.csv", [*columns, "p(x)"], rows)
    for quotes in ('"', ""):
        (tmp_path / "b.csv").write_text((tmp_path / "a.csv").read_text().replace('"', quotes))
        result = read_rows(str(tmp_path / "b.csv"))
        assert [row.fields[columns[2]] for row in result.rows] == texts
        assert any("gptailor predict" in note for note in result.notes)
    write_csv_safely(tmp_path / "c.csv", ["id", *columns[1:]], rows and [row[:-1] for row in rows])
    assert read_rows(str(tmp_path / "c.csv")).rows[0].fields[columns[2]] == "'@united thanks"


# Encodings


def test_one_bad_byte_of_a_long_line_is_no_other_encoding(write: Write) -> None:
    """JSON on one line: all of it is one line that isn't UTF-8, and its runs are as short as cp1252's."""
    rows = [{"text": f"Le café était très bon {i}", "label": "bon"} for i in range(60)]
    data = json.dumps(rows, ensure_ascii=False).encode().replace(b"bon 30", b"b\xe9n 30")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_rows(write("a.json", data))


@pytest.mark.parametrize(
    "codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_encodings_are_found(write: Write, codec: str) -> None:
    text = "text,label\n" + "".join(f"{i} café – naïve “quoted” €5,good\n{i} plain,bad\n" for i in range(20))
    result = read_rows(write("a.csv", text.encode(codec)))
    assert result.columns == ("text", "label")
    assert table(result)[2] == ("1 café – naïve “quoted” €5", "good")
    assert (result.rows[0].row, result.rows[-1].row, result.rejected) == (2, 41, [])


def test_a_few_bad_bytes_cost_their_rows_only(write: Write) -> None:
    rows = [f"{i} café,good".encode() for i in range(30)]
    rows[7] = b"caf\xe9,good"
    rows[20] = b"\xff\xfe,bad"
    result = read_rows(write("a.csv", b"text,label\n" + b"\n".join(rows)))
    assert len(result.rows) == 28
    assert [(bad.row, bad.detail) for bad in result.rejected] == [
        (9, "byte 4 of line 9 is not UTF-8"),
        (22, "byte 1 of line 22 is not UTF-8"),
    ]


def test_other_alphabets_are_not_read_as_western(write: Write) -> None:
    lines = "".join(f"{i} Привет как дела,хорошо\n" for i in range(20))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_rows(write("a.csv", ("text,label\n" + lines).encode("cp1251")))


def test_a_central_european_file_is_not_read_as_western(write: Write) -> None:
    """Polish from a spreadsheet: as Western letters it teaches nothing that the model is ever asked."""
    lines = "".join(f"{i} Książka była żółta,dobra\n" for i in range(20))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_rows(write("a.csv", ("text,label\n" + lines).encode("cp1250")))


def test_a_guessed_encoding_is_said_aloud_with_a_word_to_judge_it_by(write: Write) -> None:
    lines = "".join(f"{i} ılık güzel,a\n" for i in range(20))
    result = read_rows(write("a.csv", ("text,label\n" + lines).encode("cp1254")))
    (said,) = doubts("a.csv", result.notes)
    assert "'ýlýk'" in said
    assert "save the file as UTF-8" in said


def test_a_stream_that_cannot_be_read_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(DataError) as caught:
        read_rows("-")
    assert caught.value.where == "-"


def test_a_missing_number_of_pandas_is_no_label(write: Write) -> None:
    rows = ['{"text": "a", "label": NaN, "list": [1.50, NaN]}', '{"text": "b", "label": "NaN"}']
    result = read_rows(write("a.jsonl", "\n".join(rows)))
    assert [row.fields["label"] for row in result.rows] == ["", "NaN"]
    assert result.rows[0].fields["list"] == "[1.50,null]"


def test_a_document_with_a_bad_byte_names_it(write: Write) -> None:
    with pytest.raises(DataError, match=r"byte 18 \(line 3\) is not UTF-8"):
        read_rows(write("a.txt", "été\nété\nété".encode() + b"\xff"))


def test_a_cut_utf16_file_loses_its_last_row_only(write: Write) -> None:
    data = ("text,label\n" + "".join(f"row {i},good\n" for i in range(20))).encode("utf-16") + b"x"
    result = read_rows(write("a.csv", data))
    assert (len(result.rows), [bad.row for bad in result.rejected]) == (20, [22])


# Quotes, raggedness and other faults of rows


def test_bad_rows_are_counted_with_their_line(write: Write) -> None:
    lines = reviews(20).splitlines()
    lines[3] = "too,many,cells"
    lines[5] = "one"
    lines[7] = "has a \0 byte,good"
    lines[9] = '"wrong" quote,good'
    lines[11] = '"two\nlines",good'
    lines[13] = "text,label"
    lines[15] = "trailing,good,,"
    result = read_rows(write("a.csv", "\n".join(lines)))
    assert [bad.row for bad in result.rejected] == [4, 6, 8, 10, 15]
    assert [bad.detail.split()[0] for bad in result.rejected] == ["3", "1", "a", "a", "repeats"]
    assert {row.row for row in result.rows} == set(range(2, 23)) - {4, 6, 8, 10, 13, 15}
    assert {row.row: row.fields["text"] for row in result.rows}[12] == "two\nlines"


@pytest.mark.parametrize("count", [30, 3000])
def test_an_opening_quote_does_not_swallow_the_file(write: Write, count: int) -> None:
    lines = [f"plain words {i},good" for i in range(count)]
    lines[2], lines[4] = '"quoted, too",good', '"he said,bad'
    result = read_rows(write("a.csv", "text,label\n" + "\n".join(lines)))
    assert len(result.rows) == count
    assert result.rows[4].fields["text"] == '"he said'
    assert any("1 stray opening quote" in note for note in result.notes)


def test_two_stray_quotes_do_not_swallow_the_rows_between(write: Write) -> None:
    lines = [f"plain words {i},{'good' if i % 2 else 'bad'}" for i in range(40)]
    lines[4], lines[9] = '"he said,bad', 'and left",good'
    result = read_rows(write("a.csv", "text,label\n" + "\n".join(lines)))
    assert [row.row for row in result.rows] == list(range(2, 42))


def test_two_stray_quotes_do_not_swallow_thousands_of_rows(write: Write) -> None:
    lines = [f"plain words {i},{'good' if i % 2 else 'bad'}" for i in range(3000)]
    lines[4], lines[1909] = '"he said,bad', 'and left",good'
    result = read_rows(write("a.csv", "text,label\n" + "\n".join(lines)))
    assert [row.row for row in result.rows] == list(range(2, 3002))


def test_nor_where_no_column_has_labels(write: Write) -> None:
    lines = [f"what is {i} and {i},it is {2 * i}" for i in range(3000)]
    lines[4], lines[1909] = '"what is he,it is she', 'how wide,size 15"'
    lines.append('"two, quoted","and, more"')
    result = read_rows(write("a.csv", "prompt,response\n" + "\n".join(lines)))
    assert [row.row for row in result.rows] == list(range(2, 3003))
    assert result.rows[4].fields == {"prompt": '"what is he', "response": "it is she"}
    letter = [f"{line}\n" for line in lines[:4]] + [f'"{LETTER}",is read\n'] + ["plain,more\n"] * 9
    result = read_rows(write("b.csv", "prompt,response\n" + "".join(letter)))
    assert result.rows[4].fields == {"prompt": LETTER, "response": "is read"}


@pytest.mark.parametrize("cells", ["{cell},sport", "{cell},7,sport", "7,sport,{cell}"])
@pytest.mark.parametrize("inside", [1, 2, 30])
def test_a_quoted_value_whose_lines_look_like_rows_is_one_row(write: Write, cells: str, inside: int) -> None:
    """A mail that quotes a table: only the ends of the record tell that it isn't several rows."""
    header = {"{cell},sport": "text,label", "{cell},7,sport": "text,id,label"}.get(cells, "id,label,text")
    looks = cells.format(cell="the cup").replace("sport", "news")
    value = "\n".join(["They sent us", *[looks] * inside, "and no more"])
    before = [cells.format(cell=f"words {i}").replace("sport", ["sport", "news"][i % 2]) for i in range(30)]
    lines = [header, *before, cells.format(cell=f'"{value}"'), *before]
    result = read_rows(write("a.csv", "\n".join(lines) + "\n"))
    assert (len(result.rows), result.rejected) == (61, [])
    assert result.rows[30].fields["text"] == value
    assert result.rows[30].fields["label"] == "sport"


LETTER = "Dear all\n" + "\n".join(f"line {k}, and more" for k in range(1200))


def test_a_quoted_value_of_many_lines_is_one_row(write: Write) -> None:
    before, after = (
        [f"short text {name} {i},{'good' if i % 2 else 'bad'}\n" for i in range(20)] for name in "ab"
    )
    text = "".join(["text,label\n", *before, f'"{LETTER}",bad\n', *after])
    result = read_rows(write("a.csv", text))
    assert (len(result.rows), len(result.rejected)) == (41, 0)
    assert (result.rows[20].row, result.rows[20].fields) == (22, {"text": LETTER, "label": "bad"})
    assert result.rows[21].row == 22 + 1201
    assert any("1 row of more than 1,000 lines (line 22)" in note for note in result.notes)
    result = read_rows(write("b.csv", text.replace('",bad', '",bad,bad')))
    assert [(bad.row, bad.detail) for bad in result.rejected] == [
        (22, "3 cells, but the file has 2 columns (lines 22 to 1,222)")
    ]
    assert len(result.rows) == 40


def test_only_so_much_of_an_open_quote_is_held(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.csv", "text,label\n" + '"he said,good\n' + "plain words,good\n" * 3000)
    for name, limit, most in (("LINES", 100, 101), ("CHARACTERS", 1000, 60)):
        with monkeypatch.context() as patch:
            patch.setattr(lines_module, f"MAX_RECORD_{name}", limit)
            feed = lines_module.LineFeed(find_source(path), "utf-8")
            with pytest.raises(lines_module._OpenQuoteError):
                list(feed)
            assert len(feed.taken) == most
            feed.close()
            assert len(read_rows(path).rows) == 3001


def test_quotes_of_a_tsv_stay_text(write: Write) -> None:
    lines = [f'"the cave" is number {i}\t{i % 2}' for i in range(20)]
    lines[3] = '"unbalanced\t0'
    result = read_rows(write("a.tsv", "\n".join(lines)))
    assert (len(result.rows), result.rows[3].fields["column_1"]) == (20, '"unbalanced')
    assert result.rows[0].fields["column_1"] == '"the cave" is number 0'
    assert "quotes: part of the text" in result.notes


def test_a_quoted_tsv_is_unquoted(write: Write) -> None:
    lines = [f'"say ""hi"" {i}"\tgood' for i in range(10)]
    assert table(read_rows(write("a.tsv", "text\tlabel\n" + "\n".join(lines))))[0] == ('say "hi" 0', "good")


def test_bad_json_lines(write: Write) -> None:
    lines = [json.dumps({"text": f"row {i}"}) for i in range(20)]
    lines[1], lines[3], lines[5] = '{"text": "cut', "[1, 2]", '{"text": "a", "text": "b"}'
    lines[7], lines[9] = '{"text": "\\ud800"}', '{"text": ' + "[" * 5000 + "]" * 5000 + "}"
    result = read_rows(write("a.jsonl", "\n".join(lines)))
    assert [bad.row for bad in result.rejected] == [2, 4, 6, 8, 10]
    assert [row.row for row in result.rows] == [1, 3, 5, 7, 9, *range(11, 21)]
    assert "twice" in result.rejected[2].detail
    assert "levels deep" in result.rejected[4].detail


def test_a_damaged_json_array_gives_its_whole_objects(write: Write) -> None:
    text = json.dumps([{"text": f"row {i}"} for i in range(20)]).replace('"row 5"', '"row 5', 1)
    result = read_rows(write("a.json", text[:-15]))
    assert len(result.rows) == 18
    assert [bad.row for bad in result.rejected] == [6, 20]


def test_what_a_key_is_called_decides_nothing(write: Write) -> None:
    """Too deep nesting is refused whole; a key that sounds like it costs its own object alone."""
    rows = [json.dumps({"text": f"row {i}"}) for i in range(20)]
    for key in ("text", "nested"):
        result = read_rows(write("a.json", f'[{", ".join([*rows, f"""{{"{key}": 1, "{key}": 2}}"""])}]'))
        assert len(result.rows) == 20


def test_names_given_for_a_folder_are_said_to_be_unused(tmp_path: Path) -> None:
    for label in ("good", "bad"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "one.txt").write_text(f"a {label} text")
    assert any("names given are not used" in note for note in read_rows(str(tmp_path), columns="a,b").notes)
    assert not any("names given" in note for note in read_rows(str(tmp_path)).notes)


def test_a_time_that_python_cannot_hold_costs_no_row(tmp_path: Path) -> None:
    kinds = {
        "nano": pa.timestamp("ns"),
        "long": pa.duration("ns"),
        "far": pa.timestamp("us"),
        "day": pa.date32(),
    }
    numbers = {"nano": [1_700_000_000_123_456_789, None], "long": [5, 6], "far": [2**60, 0], "day": [0, 1]}
    columns = {name: pa.array(numbers[name], pa.int32() if name == "day" else pa.int64()).cast(kind)
               for name, kind in kinds.items()}  # fmt: skip
    pq.write_table(pa.table({"text": ["a", "b"], **columns}), tmp_path / "a.parquet")
    first, second = (row.fields for row in read_rows(str(tmp_path / "a.parquet")).rows)
    assert first["nano"] == "2023-11-14 22:13:20.123456789"
    assert (second["nano"], second["long"], second["day"]) == ("", "6", "1970-01-02")
    assert second["far"].startswith("1970-01-01")


def test_a_pipe_is_read_once_and_whole(tmp_path: Path) -> None:
    """`fit <(zcat rows.csv.gz)`: whoever took a look first would have eaten the beginning."""
    lines = [f"words {i},{'ab'[i % 2]}" for i in range(3000)]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("text,label\n" + "\n".join(lines)))
    writer.start()
    assert first_rows(str(pipe), None) == ([], [])
    result = read_rows(str(pipe))
    writer.join()
    assert len(result.rows) == 3000
    assert result.rows[0].fields["text"] == "words 0"


def test_the_first_of_texts_by_themselves_is_no_header(write: Write) -> None:
    texts = ["Where is my order?", "I want a refund", "It never came", "Thanks a lot", "What now?"]
    assert len(read_rows(write("a.csv", "\n".join(texts))).rows) == 5
    assert len(read_rows(write("b.csv", "\n".join(["text", *texts]))).rows) == 5


def test_no_label_of_a_folder_is_left_out_in_silence(tmp_path: Path) -> None:
    for name in ("pos/a.txt", "neg/b.txt", "neg/2024/c.txt", "neg/d.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("some words\n")
    result = read_rows(str(tmp_path))
    assert len(result.rows) == 2
    assert any("2 files of 'neg' left out" in note for note in result.notes)
    (tmp_path / "neg" / "b.txt").unlink()
    with pytest.raises(DataError, match="no text of 'neg' would be read"):
        read_rows(str(tmp_path))


def test_a_damaged_object_costs_no_other_row(write: Write) -> None:
    """What lies inside it looks like objects and like the array's end, too."""
    chats = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
             for i in range(50)]  # fmt: skip
    text = json.dumps(chats).replace('"content": "q20"', 'oops "content": "q20"', 1)
    result = read_rows(write("a.json", text))
    assert len(result.rows) == 49
    assert [bad.row for bad in result.rejected] == [21]
    assert result.columns == ("messages",)
    assert "a49" in result.rows[-1].fields["messages"]


def test_arrays_one_behind_the_other_are_all_read(write: Write) -> None:
    """`cat a.json b.json > all.json`."""
    both = "".join(json.dumps([{"text": f"{name} {i}"} for i in range(30)]) for name in "ab")
    result = read_rows(write("a.json", both))
    assert len(result.rows) == 60
    assert not result.rejected
    result = read_rows(write("b.json", json.dumps([{"text": "a"}] * 9) + " and so on"))
    assert len(result.rows) == 9
    assert "behind the array's end" in result.rejected[0].detail


def test_a_line_that_is_an_array_is_rejected_and_no_other_is_lost(write: Write) -> None:
    turns = [json.dumps([{"role": "user", "content": f"q{i}"}]) for i in range(20)]
    with pytest.raises(DataError, match="an array"):
        read_rows(write("a.jsonl", "\n".join(turns)))
    rows = [json.dumps({"text": f"row {i}"}) for i in range(40)]
    result = read_rows(write("b.jsonl", "\n".join([turns[0], *rows])))
    assert (len(result.rows), [bad.row for bad in result.rejected]) == (40, [1])


def test_an_object_for_each_row_is_read_by_row(write: Write) -> None:
    rows = {f"id{i}": {"text": f"row {i}", "label": "a"} for i in range(30)}
    result = read_rows(write("a.json", json.dumps(rows)))
    assert result.columns == ("text", "label")
    assert len(result.rows) == 30


def test_huge_values_cost_their_rows_only(write: Write) -> None:
    rows = "".join(f"words {i},good\n" for i in range(5))
    big = "x" * 11_000_000
    result = read_rows(write("a.csv", f"text,label\n{rows}{big},good\n{rows}"))
    assert [bad.row for bad in result.rejected] == [7]
    assert (len(result.rows), result.rows[-1].row) == (10, 12)
    result = read_rows(write("a.jsonl", '{"text": "a"}\n{"text": "' + big + '"}\n{"text": "b"}\n'))
    assert [bad.row for bad in result.rejected] == [2]


def test_mostly_bad_files_are_refused_with_examples(write: Write) -> None:
    good, bad = "{}\n".replace("{}", '{"text": "a"}'), "not json\n"
    with pytest.raises(DataError, match=r"11 of 20 rows can't be read") as caught:
        read_rows(write("a.jsonl", good * 9 + bad * 11))
    assert ":10: not JSON" in str(caught.value)
    assert len(read_rows(write("b.jsonl", good * 10 + bad * 10)).rows) == 10
    assert len(read_rows(write("c.jsonl", good + bad * 8)).rows) == 1
    assert (
        sum(isinstance(item, RejectedRow) for item in iterate_rows(write("d.jsonl", good + bad * 19))) == 19
    )


def test_old_mac_line_ends(write: Write) -> None:
    result = read_rows(write("a.csv", "text,label\ra,good\rb,bad\r"))
    assert [(row.row, row.fields["text"]) for row in result.rows] == [(2, "a"), (3, "b")]


# Headers and columns


@pytest.mark.parametrize(
    ("lines", "columns"),
    [
        (
            ["v1,v2", *(f"{'ham' if i % 3 else 'spam'},some words of message {i} here" for i in range(20))],
            ("v1", "v2"),
        ),
        ([f"some words of message {i} here,{i % 2}" for i in range(20)], ("column_1", "column_2")),
        ([f"{'ham' if i % 3 else 'spam'},words {i}" for i in range(20)], ("column_1", "column_2")),
        (["good film,1", "bad film,0"], ("column_1", "column_2")),
        (["text,label", "hello there,pos"], ("text", "label")),
        (["mr,ref", "name[x],it is x", "name[y],it is y"], ("mr", "ref")),
        (["text, label", "a,b"], ("text", "label")),
        ([",text,text", "0,a,b", "1,c,d"], ("column_1", "text", "text_2")),
        (["text,label", "0,a,b", "1,c,d", "2,e,f"], ("column_1", "text", "label")),
    ],
)
def test_header_or_none(write: Write, lines: list[str], columns: tuple[str, ...]) -> None:
    result = read_rows(write("a.csv", "\n".join(lines)))
    assert result.columns == columns
    assert len(result.rows) == len(lines) - (columns[0] != "column_1" or columns != ("column_1", "column_2"))
    assert any(note.startswith("header: ") for note in result.notes)


def test_columns_name_a_headerless_file_and_override_a_header(write: Write) -> None:
    rows = "".join(f'"{1 + i % 4}","Title {i}","Words of the story {i}"\n' for i in range(10))
    path = write("a.csv", rows)
    result = read_rows(path, columns="label,text+text")
    assert table(result)[0] == ("1", "Title 0 Words of the story 0")
    assert len(result.rows) == 10
    named = read_rows(write("b.csv", "class,title,description\n" + rows), columns="label,title+body")
    assert named.columns == ("label", "title+body")
    assert table(named)[0] == ("1", "Title 0 Words of the story 0")
    assert len(named.rows) == 10
    with pytest.raises(DataError, match="has 3 columns, but 2 names"):
        read_rows(path, columns="label,text")
    with pytest.raises(DataError, match="given twice"):
        read_rows(path, columns="text,label,text")


def test_nameless_columns_go_only_if_always_empty(write: Write) -> None:
    path = write("a.csv", "text,label,,\n" + "".join(f"words {i},good,,\n" for i in range(10)))
    assert read_rows(path).columns == ("text", "label")
    assert next(dict(item.fields) for item in iterate_rows(path) if isinstance(item, RawExample)) == {
        "text": "words 0",
        "label": "good",
    }
    late = write(
        "b.csv", "text,label,,\n" + "".join(f"words {i},good,,\n" for i in range(99)) + "a,b,more,\n"
    )
    assert read_rows(late).columns == ("text", "label", "column_3")


# Whole files that are refused


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\xef\xbb\xbf \n\n", "is empty"),
        ("a.csv", b"text,label\n", "holds no rows"),
        ("a.csv", b"PK\x03\x04rest", "Excel"),
        ("a.bin", bytes(range(256)) * 9 + b"\0\x01\0\x02" * 999, "binary"),
        ("a.json", b"text,label\na,b\n", "not JSON"),
        ("a.json", b'{"train": [{"a": 1}], "test": [{"a": 1}, {"a": 2}]}', "2 arrays"),
        ("a.json", b'{"a": 1}', "no array"),
        ("a.json", b"[" * 5000 + b"]" * 5000, "levels deep"),
        ("a.parquet", b"PAR1" + b"\0" * 50 + b"PAR1", "damaged"),
        ("a.csv.gz", gzip.compress(reviews(100).encode(), mtime=0)[:-20], "damaged gzip"),
        ("a.pkl", b"\x80\x04\x95whatever", "pickle"),
    ],
)
def test_files_that_are_refused(write: Write, name: str, content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_rows(write(name, content))


def test_a_missing_file_suggests_its_neighbours(write: Write, tmp_path: Path) -> None:
    write("train.csv", "text,label\na,b\n")
    with pytest.raises(DataError, match=r"Did you mean 'train\.csv'"):
        read_rows(str(tmp_path / "trian.csv"))
    with pytest.raises(DataError, match=r"holds train\.csv"):
        iterate_rows(str(tmp_path / "zzz"))
    with pytest.raises(DataError, match="no such file"):
        read_rows("bad\0name")


def test_bombs_are_refused_quickly(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.csv.gz"
    with gzip.open(bomb, "wb") as file:
        file.write(b"text,label\n")
        for _ in range(40):
            file.write(b"aaa,b\n" * 170_000)
    many = tmp_path / "many.parquet"
    pq.write_table(pa.table({"text": pa.array([0] * 3_000_000, pa.int8())}), many)
    wide = tmp_path / "wide.parquet"
    wide_column = pa.DictionaryArray.from_arrays(
        pa.array([0] * 50_000, pa.int32()), pa.array(["x" * 100_000])
    )
    pq.write_table(pa.table({"text": wide_column}), wide)
    same, twice = tmp_path / "same.csv", tmp_path / "twice.jsonl"
    same.write_text("a," * 20_000 + "\n" + "b," * 20_000 + "\n")
    keys = [f'"{number}": 1' for number in range(200_000)]
    twice.write_text("{" + ", ".join([*keys, keys[-1]]) + "}\n")
    start = time.thread_time()
    assert len(read_rows(str(same)).columns) == 20_000
    with pytest.raises(DataError, match="199999' stands twice"):
        read_rows(str(twice))
    assert time.thread_time() - start < 5
    for path in (bomb, many, wide):
        start = time.thread_time()
        with pytest.raises(DataError, match="bomb"):
            read_rows(str(path))
        assert time.thread_time() - start < 5


# Roles


CLASSES, OTHERS = ["x", "y"] * 10, ["x", "x", "y", "z"] * 5
SENTENCES, IDS = [f"{WORDS[i % 5]} {i}" for i in range(20)], [str(i) for i in range(20)]


def roles(columns: dict[str, list[str]], **asked: Any) -> Roles:
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    examples = [RawExample(fields, "file", row) for row, fields in enumerate(rows, start=1)]
    return infer_roles(list(columns), examples, **{"text": None, "label": None, **asked})


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"Tweet": SENTENCES, "Sentiment": CLASSES}, Roles("Tweet", "Sentiment")),
        ({"v1": CLASSES, "v2": SENTENCES, "rest": [""] * 20}, Roles("v2", "v1")),
        (
            {"id": IDS, "text": SENTENCES, "target": ["0", "1"] * 10, "place": CLASSES},
            Roles("text", "target"),
        ),
        ({"text": SENTENCES, "label_int": ["0", "1"] * 10, "label": CLASSES}, Roles("text", "label")),
        ({"names": [f"name{i}" for i in range(20)], "label": CLASSES}, Roles("names", "label")),
        ({"a": SENTENCES, "target": SENTENCES, "b": CLASSES}, None),
    ],
)
def test_roles_by_name_and_by_shape(columns: dict[str, list[str]], expected: Roles | None) -> None:
    if expected is None:
        with pytest.raises(DataError, match="--text a or --text target"):
            roles(columns)
    else:
        assert roles(columns) == expected


def test_no_label_is_looked_for_where_none_is_needed() -> None:
    columns = {"id": IDS, "text": SENTENCES, "label": CLASSES}
    assert roles(columns, need_label=False) == Roles("text", None)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": SENTENCES, "label": CLASSES, "gt": OTHERS}, "--label label or --label gt"),
        ({"text": SENTENCES, "label": CLASSES, "gt": OTHERS}, r"gt \(20 values, 3 distinct\): 'x', 'y'"),
        ({"title": SENTENCES, "body": SENTENCES[::-1], "label": CLASSES}, r"--text title\+body"),
        ({"text": SENTENCES}, "no column looks like a label"),
        ({"label": CLASSES}, "no column looks like the text"),
    ],
)
def test_roles_that_are_not_plain_are_asked_for(columns: dict[str, list[str]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        roles(columns)


def test_the_persons_names_win() -> None:
    columns = {"title": SENTENCES, "body": SENTENCES, "label": CLASSES, "gt": OTHERS}
    assert roles(columns, text="title+body", label="gt") == Roles("title+body", "gt")
    with pytest.raises(DataError, match=r"no column 'titel'. Did you mean 'title'"):
        roles(columns, text="titel+body", label="gt")
    with pytest.raises(DataError, match=r"Columns are: title, body, label, gt. Choose with --label"):
        roles(columns, text="title", label="class")
    assert roles({"a+b": SENTENCES, "y": CLASSES}, text="a+b", label="y") == Roles("a+b", "y")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "given", "rows", "expected"),
    [
        ("sms_spam/spam.csv", {}, 5572, Roles("v2", "v1")),
        ("sms_spam/sms.tsv", {}, 5574, Roles("column_2", "column_1")),
        ("messy/disaster_tweets.csv", {}, 7613, Roles("text", "target")),
        ("messy/text_emotion.csv", {}, 40000, Roles("content", "sentiment")),
        ("ag_news/noisyag_val10000.csv", {"label": "gt"}, 10000, Roles("text", "gt")),
        (
            "ag_news/openai_samples2000.csv",
            {"text": "title+description"},
            2000,
            Roles("title+description", "label"),
        ),
        ("ag_news/test.csv", {"text": "column_2+column_3"}, 7600, Roles("column_2+column_3", "column_1")),
        ("sst2/train.tsv", {}, 6920, Roles("column_1", "column_2")),
        ("sst2/dev.tsv", {}, 872, Roles("column_1", "column_2")),
        ("banking77/train.csv", {}, 10003, Roles("text", "category")),
    ],
)
def test_real_files(name: str, given: dict[str, str], rows: int, expected: Roles) -> None:
    if not (REAL / name).is_file():
        pytest.skip("the development data is not here")
    result = read_rows(str(REAL / name))
    assert (len(result.rows), result.rejected) == (rows, [])
    chosen: dict[str, str | None] = {"text": None, "label": None, **given}
    assert infer_roles(result.columns, result.rows, text=chosen["text"], label=chosen["label"]) == expected


NOTHING_TELLS = ["ant,bee", "cow,dog", "elk,fox", "gnu,hen"]


def test_a_header_that_nothing_tells_is_assumed_aloud_and_none_where_columns_are_named(write: Write) -> None:
    path = write("pairs.csv", "\n".join(NOTHING_TELLS))
    found = read_rows(path)
    assert found.columns == ("ant", "bee")
    (doubt,) = doubts(path, found.notes)
    assert "taken for names" in doubt
    assert "--columns" in doubt
    said: list[str] = []
    assert len(list(iterate_rows(path, say=said.append))) == 3
    assert said == [doubt]
    named = read_rows(path, columns="one,two")
    assert [tuple(row.fields.values()) for row in named.rows] == [tuple(x.split(",")) for x in NOTHING_TELLS]
    assert doubts(path, named.notes) == []
    plain = write("plain.csv", "text,label\n" + "\n".join(NOTHING_TELLS))
    assert doubts(plain, read_rows(plain).notes) == []


def test_old_line_ends_with_one_new_one_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_bytes(b"one\rtwo\rthree\rfour\n")
    assert [row.fields["text"] for row in read_rows(str(path), columns="text").rows] == [
        *("one", "two", "three", "four")
    ]
    path.write_bytes(b"one\rand on\ntwo\n")
    assert [row.fields["text"] for row in read_rows(str(path), columns="text").rows] == ["one\rand on", "two"]


def test_a_missing_number_in_a_list_is_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [[1.5, float("nan")], [2.5]]}), tmp_path / "sets.parquet")
    found = [row.fields["label"] for row in read_rows(str(tmp_path / "sets.parquet")).rows]
    assert found == ["[1.5,null]", "[2.5]"]


def test_a_folder_of_texts_says_what_it_took_the_letters_for(tmp_path: Path) -> None:
    for label in ("yes", "no"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}.txt").write_bytes("\xfdl\xfdk bir g\xfcn\n".encode("latin-1") * 9)
    notes = doubts("texts", read_rows(str(tmp_path)).notes)
    assert len(notes) == 1
    assert "Windows-1252" in notes[0]
