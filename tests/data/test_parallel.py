"""Two texts line by line: in step or refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from gptailor.data import store
from gptailor.data.parallel import read_parallel
from gptailor.errors import DataError

REAL = Path(__file__).resolve().parents[2] / "../shared/data/multi30k"


def write(path: Path, text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def test_line_n_belongs_to_line_n(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", 'one\n\nthree, "3"\n<|endoftext|>')
    target = write(tmp_path / "a.de.gz", "eins\nzwei\ndrei\tüber\r\nvier\n")
    result = read_parallel(source, target)
    assert result.columns == ("source", "target")
    assert [(row.row, row.fields["source"], row.fields["target"]) for row in result.rows] == [
        (1, "one", "eins"),
        (2, "", "zwei"),
        (3, 'three, "3"', "drei\tüber"),
        (4, "<|endoftext|>", "vier"),
    ]
    assert {row.source for row in result.rows} == {source}
    assert "format: two texts, line by line" in result.notes


def test_unequal_lengths_are_refused_with_both_counts(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", "a\nb\nc\nd\n")
    target = write(tmp_path / "a.de", "a\n\nb\nc\nd\n")
    with pytest.raises(DataError, match=r"a.en has 4 lines and .*a.de has 5") as caught:
        read_parallel(source, target)
    assert "line 2: it is empty in one of the two files only" in str(caught.value)
    longer = write(tmp_path / "b.de", "a\nb\n")
    with pytest.raises(DataError, match=r"has 4 lines and .* has 2"):
        read_parallel(source, longer)


def test_a_stray_carriage_return_ends_no_line(tmp_path: Path) -> None:
    """Each file would have a line more, and the lines between the two would belong to others."""
    lines = [f"source {number}" for number in range(8)]
    one = write(tmp_path / "one.txt", "\n".join([*lines[:2], "so\rurce 2", *lines[3:]]) + "\n")
    two = write(
        tmp_path / "two.txt",
        "\r\n".join(f"target {number}" for number in range(8)).replace("t 6", "t\r6") + "\r\n",
    )
    pairs = [(row.fields["source"], row.fields["target"]) for row in read_parallel(one, two).rows]
    assert pairs[2] == ("so\rurce 2", "target 2")
    assert pairs[3:6] == [(f"source {number}", f"target {number}") for number in (3, 4, 5)]
    assert pairs[6:] == [("source 6", "target\r6"), ("source 7", "target 7")]


def test_many_lines_are_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MANY_ROWS", 10)
    one, two = (
        write(tmp_path / name, "".join(f"{name} {number}\n" for number in range(25))) for name in ("a", "b")
    )
    rows = read_parallel(one, two).rows
    assert isinstance(rows, store.StoredRows)
    assert (rows[24].fields, rows[24].row) == ({"source": "a 24", "target": "b 24"}, 25)


def test_a_bad_line_costs_its_row_only(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", "\n".join(f"line {n} caf\u00e9" for n in range(20)).encode())
    lines = [f"Zeile {n} \u00fcber".encode() for n in range(20)]
    lines[4] = b"Zeile \xff"
    target = write(tmp_path / "a.de", b"\n".join(lines))
    result = read_parallel(source, target)
    assert len(result.rows) == 19
    (bad,) = result.rejected
    assert (bad.source, bad.row, bad.reason) == (source, 5, "unreadable")
    assert bad.detail.startswith(f"{target}: byte 7 of line 5 is not UTF-8")
    assert result.rows[4].row == 6


def test_files_of_which_most_can_not_be_read_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.zh", "\n".join(f"你好 {n}" for n in range(30)).encode("gbk"))
    target = write(tmp_path / "a.en", "\n".join(f"hello {n}" for n in range(30)))
    with pytest.raises(DataError, match="30 of 30 rows can't be read"):
        read_parallel(source, target)


def test_the_hash_is_of_both_files_in_order(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", "a\n"), write(tmp_path / "b", "b\n")
    packed = write(tmp_path / "a.gz", "a\n")
    assert read_parallel(one, other).sha256 == read_parallel(packed, other).sha256
    assert read_parallel(one, other).sha256 != read_parallel(other, one).sha256


@pytest.mark.parametrize("name", ["missing.de", "empty.de"])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "a.en", "a\n")
    write(tmp_path / "empty.de", "")
    with pytest.raises(DataError, match=name):
        read_parallel(source, str(tmp_path / name))


@pytest.mark.real_data
@pytest.mark.parametrize("language", ["de", "fr"])
def test_real_files(language: str) -> None:
    if not REAL.is_dir():
        pytest.skip("the development data is not here")
    result = read_parallel(str(REAL / "val.en.gz"), str(REAL / f"val.{language}.gz"))
    assert (len(result.rows), result.rejected) == (1014, [])
    with pytest.raises(DataError, match=r"1,014 lines and .* has 1,000"):
        read_parallel(str(REAL / "val.en.gz"), str(REAL / f"test_2016_flickr.{language}.gz"))
