"""Documents come as pieces that give back the text, whatever the text is, and are never held whole."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptailor.data import documents
from gptailor.data.documents import PIECE, Piece, cut_pieces, iterate_pieces
from gptailor.data.folders import hash_folder, read_tree
from gptailor.errors import DataError
from gptailor.types import RejectedRow

LONGEST = PIECE * 3 // 2
SEPARATOR = "<|endoftext|>"
FIRST_LINE = "Once upon a time there was a text, plainly one.\n"  # no BOM, no table, no JSON

words = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=30)
blanks = st.sampled_from([" ", "\n", "\n\n", "\r\n", "\r", "  ", "\t", "\n  ", "\u2003", "\u2028", "\x0c"])
any_text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60)


@st.composite
def prose(draw: st.DrawFn) -> str:
    """Words and blanks of every kind, from nothing to some hundred kilobytes."""
    unit = "".join(draw(st.lists(st.builds(str.__add__, words, blanks), max_size=12)))
    return unit * draw(st.sampled_from([1, 1, 40, 400]))


@st.composite
def wild(draw: st.DrawFn) -> str:
    """Prose, and lines of any length and content."""
    lines = draw(st.lists(st.one_of(prose(), any_text, st.just(" " * 9000)), max_size=5))
    unit = draw(st.sampled_from(["\n", "\r\n", ""])).join(lines)
    return unit + draw(st.sampled_from(["", "x" * 13_001, "ä\u0301" * 5000]))


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    folder = tmp_path_factory.mktemp("documents")

    def write(content: str | bytes, name: str = "book.txt") -> str:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def pieces_of(location: str, **given: Any) -> list[Piece]:
    items = list(iterate_pieces(location, **given))
    assert all(isinstance(item, Piece) for item in items), items
    return items  # type: ignore[return-value]


def join(pieces: list[Piece]) -> list[tuple[int, str]]:
    """(row, text) of each document."""
    found: list[tuple[int, str]] = []
    for piece in pieces:
        if piece.begins:
            found.append((piece.row, piece.text))
        else:
            row, before = found[-1]
            assert piece.row == row
            found[-1] = (row, before + piece.text)
    return found


@given(wild(), st.one_of(st.integers(1, 50), st.just(PIECE)))
@settings(deadline=None, max_examples=60)
def test_cut_pieces_give_back_the_text(text: str, size: int) -> None:
    pieces = cut_pieces(text, size)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= size * 3 // 2
    assert all(pieces) or text == ""
    assert all(len(piece) >= size for piece in pieces[:-1])


@given(prose())
@settings(deadline=None, max_examples=30)
def test_a_cut_is_where_a_word_ended(text: str) -> None:
    pieces = cut_pieces(text, 100)  # words are shorter than the fifty characters that are searched
    for left, right in itertools.pairwise(pieces):
        assert not left[-1].isspace()
        assert right[0].isspace()


def test_a_cut_is_between_lines_where_it_can_be() -> None:
    line = "some words of a line that goes on for a while, as lines do in books"
    for end in ("\n", "\r\n"):
        pieces = cut_pieces((line + end) * 1000)
        assert len(pieces) > 10
        assert {piece.strip()[-len(line) :] for piece in pieces} == {line}
        assert all(piece.startswith(end) for piece in pieces[1:])


@given(wild())
@settings(deadline=None, max_examples=60)
def test_the_pieces_of_a_plain_text_give_it_back(write: Callable[..., str], text: str) -> None:
    text = FIRST_LINE + text
    pieces = pieces_of(write(text))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert {piece.row for piece in pieces} == {1}
    assert max(len(piece.text) for piece in pieces) <= LONGEST


@given(st.lists(wild(), min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]))
@settings(deadline=None, max_examples=40)
def test_separators_divide_and_rows_are_lines(write: Callable[..., str], texts: list[str], end: str) -> None:
    """A document ends with a line's end, or the separator would not stand on a line of its own."""
    texts = [text + "\n" if text else "" for text in [FIRST_LINE, *texts]]
    whole = f" {SEPARATOR}{end}".join(texts)
    expected, row = [], 1
    for text in texts:
        lines = list(io.StringIO(text, newline=""))
        assume(SEPARATOR not in map(str.strip, lines))
        if text:  # nothing between two separators is no document
            expected.append((row, text))
        row += len(lines) + 1
    pieces = pieces_of(write(whole), separator=SEPARATOR)
    assert join(pieces) == expected
    assert max(len(piece.text) for piece in pieces) <= LONGEST


def test_without_a_separator_its_lines_are_text(write: Callable[..., str]) -> None:
    text = f"{FIRST_LINE}{SEPARATOR}\nmore\n"
    assert join(pieces_of(write(text))) == [(1, text)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_other_encodings(write: Callable[..., str], encoding: str) -> None:
    text = "Ein Märchen über Bären\n" * 1000
    assert "".join(p.text for p in pieces_of(write(text.encode(encoding)))) == text


def test_gzip_is_as_the_text_itself(write: Callable[..., str]) -> None:
    text = f"{FIRST_LINE * 500}{SEPARATOR}\nthe end\n"
    plain = pieces_of(write(text), separator=SEPARATOR)
    packed = pieces_of(write(gzip.compress(text.encode()), "book.txt.gz"), separator=SEPARATOR)
    assert [(p.text, p.row, p.begins) for p in packed] == [(p.text, p.row, p.begins) for p in plain]
    assert [row for row, _ in join(plain)] == [1, 502]


def test_one_document_a_line(write: Callable[..., str]) -> None:
    found = pieces_of(write("one document\nanother, with a comma\n\nthe last\n"), columns="text")
    assert [(p.row, p.text, p.begins) for p in found] == [
        (1, "one document", True),
        (2, "another, with a comma", True),
        (3, "", True),  # an empty line is a document without text: told, not passed over
        (4, "the last", True),
    ]


def test_one_document_a_file_of_a_folder(tmp_path: Path) -> None:
    long, parted = FIRST_LINE * 300, f"{SEPARATOR}\nfirst\n{SEPARATOR}\n{SEPARATOR}\nsecond\n{SEPARATOR}\n"
    for name, text in (("b.txt", long), ("a.txt", parted), (".hidden", "no")):
        (tmp_path / name).write_text(text)
    whole = pieces_of(str(tmp_path))
    assert [text for _, text in join(whole)] == [parted, long]
    assert [Path(piece.source).name for piece in whole if piece.begins] == ["a.txt", "b.txt"]
    divided = pieces_of(str(tmp_path), separator=SEPARATOR)
    assert [text for _, text in join(divided)] == ["first\n", "second\n", long]


def test_a_folder_is_read_to_its_depth_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    """Files beside subfolders, and files two folders down, are documents like any other."""
    names = ("top.txt", "a/one.txt", "a/deep/two.txt", "b/three.md")
    for name in (*names, "b/.hidden", ".git/four.txt", "b/table.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{name} {FIRST_LINE}")
    (tmp_path / "b" / "bad.txt").write_bytes(b"good\n" * 9000 + b"\xff\n")
    found = list(iterate_pieces(str(tmp_path)))
    read = [Path(item.source).relative_to(tmp_path).as_posix() for item in found if isinstance(item, Piece)]
    assert read == list(names)
    (bad,) = [item for item in found if isinstance(item, RejectedRow)]
    assert (Path(bad.source).name, bad.reason) == ("bad.txt", "unreadable")
    assert "line 9,001" in bad.detail
    notes = read_tree(tmp_path)[1]
    assert notes[0] == "folder: 5 text files, 4 of them in its subfolders"
    assert "1 data file left out (table.csv ...)" in notes[1]
    assert len(notes) == 2
    (tmp_path / "a" / "elsewhere").symlink_to(tmp_path / "b", target_is_directory=True)
    assert read_tree(tmp_path)[1][2:] == ["folder: 1 linked folder not entered (a/elsewhere ...)"]
    before = hash_folder(tmp_path, tree=True)
    (tmp_path / "a" / "deep" / "two.txt").write_text("other")
    assert hash_folder(tmp_path, tree=True) != before


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rows.csv").write_text("text\nx\n")
    with pytest.raises(DataError, match=r"rows\.csv"):
        list(iterate_pieces(str(tmp_path)))


TABLE = [
    {"id": "1", "story": "A dog ran home, it was late.", "by": "Ann"},
    {"id": "2", "story": "Two\nlines.\r\n\r\n  And a third.", "by": "Bo"},
    {"id": "3", "story": "word " * 3000, "by": "Cy"},
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "csv.gz"])
def test_one_document_a_row_of_a_table(tmp_path: Path, kind: str) -> None:
    import csv
    import json

    path = tmp_path / f"stories.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TABLE), path)
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(TABLE[0]))
        writer.writeheader()
        writer.writerows(TABLE)
        data = text.getvalue().encode()
        path.write_bytes(gzip.compress(data) if kind == "csv.gz" else data)
    for named in ({}, {"text": "story"}):
        pieces = pieces_of(str(path), **named)
        assert [text for _, text in join(pieces)] == [row["story"] for row in TABLE]
        assert max(len(piece.text) for piece in pieces) <= LONGEST
    (first, *_) = pieces_of(str(path), text="by+story")
    assert first.text == "Ann A dog ran home, it was late."
    with pytest.raises(DataError, match="storey"):
        pieces_of(str(path), text="storey")


def test_a_row_that_cannot_be_read_comes_as_it_is(write: Callable[..., str]) -> None:
    lines = ['{"text": "good"}', "{broken", '{"text": "good, too"}']
    found = list(iterate_pieces(write("\n".join(lines), "rows.jsonl")))
    assert [type(item) for item in found] == [Piece, RejectedRow, Piece]
    assert [item.row for item in found] == [1, 2, 3]


def test_the_column_is_found_behind_any_number_of_bad_rows(write: Callable[..., str]) -> None:
    lines = ['["no object"]'] * 250 + [f'{{"id": {n}, "body": "text {n}"}}' for n in range(3)]
    path = write("\n".join(lines), "late.jsonl")
    found = [item for item in iterate_pieces(path, text="body") if isinstance(item, Piece)]
    assert [piece.text for piece in found] == ["text 0", "text 1", "text 2"]
    with pytest.raises(DataError, match="bodi"):
        list(iterate_pieces(path, text="bodi"))


def test_blanks_around_a_separator_do_not_count(write: Callable[..., str]) -> None:
    path = write("one\n --- \ntwo\n")
    assert len(pieces_of(path, separator=" ---")) == len(pieces_of(path, separator="---")) == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"a NUL \0 byte\n", r"line 777: a NUL byte at character 7"),
        (b"half \xc3 a letter\n", r"line 777: byte 6"),
    ],
)
def test_bytes_that_are_no_text_are_told_with_their_line(
    write: Callable[..., str], bad: bytes, said: str
) -> None:
    lines = ["ein schöner Satz\n".encode()] * 1000
    lines[776] = bad
    location = write(b"".join(lines))
    with pytest.raises(DataError, match=said) as caught:
        pieces_of(location)
    assert caught.value.where == location
    assert caught.value.fix


def test_an_endless_line_is_told_and_not_swallowed(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.data.lines.MAX_VALUE_BYTES", 100_000)
    with pytest.raises(DataError, match="line 2: the line is longer than 100,000 characters"):
        pieces_of(write(FIRST_LINE + "word " * 60_000 + "\nmore\n"))


@pytest.mark.parametrize("content", [b"", b" \n\n\t\n"])
def test_a_file_without_text_is_refused(write: Callable[..., str], content: bytes) -> None:
    with pytest.raises(DataError, match="is empty"):
        pieces_of(write(content))


@pytest.mark.parametrize("columns", [None, "text"])
def test_memory_does_not_grow_with_the_file(write: Callable[..., str], columns: str | None) -> None:
    """Thirty megabytes go through, and less than three are held after the first look."""
    lines = 15_000
    location = write((b"word " * 400 + b"\n") * lines, "long.txt")
    tracemalloc.start()
    try:
        stream = iterate_pieces(location, columns=columns)
        first = next(stream)  # finding out what a file is may look at a megabyte, in several ways
        assert tracemalloc.get_traced_memory()[1] < 12e6
        assert isinstance(first, Piece)
        read = len(first.text)
        tracemalloc.reset_peak()
        for piece in stream:
            assert isinstance(piece, Piece)
            read += len(piece.text)
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()
    assert read == lines * (2000 if columns else 2001)


def test_lines_are_looked_at_a_few_times_at_most(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0
    cut = documents.cut_pieces

    def counting(text: str, size: int = PIECE) -> list[str]:
        nonlocal seen
        seen += len(text)
        return cut(text, size)

    monkeypatch.setattr(documents, "cut_pieces", counting)
    rng = random.Random(0)
    text = FIRST_LINE + "".join("w" * rng.randint(0, 300) + "\n" for _ in range(5000))
    assert join(pieces_of(write(text))) == [(1, text)]
    assert seen < 4 * len(text)


def test_a_guess_at_the_letters_is_said_once(tmp_path: Path) -> None:
    """Turkish in the encoding of old Windows reads as Western letters."""
    text = "bu \xe7ok \xfdl\xfdk bir g\xfcn\n" * 40
    (tmp_path / "texts").mkdir()
    for name in ("one.txt", "texts/one.txt", "texts/two.txt"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    for place in ("one.txt", "texts"):
        said: list[str] = []
        assert list(iterate_pieces(str(tmp_path / place), say=said.append))
        assert len(said) == 1
        assert "one.txt: encoding: Windows-1252" in said[0]
