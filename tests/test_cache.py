"""The cache: computed once, never wrong, never in the way, and nobody else's files are touched."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptailor import cache
from gptailor.cache import cache_bytes, cache_folder, cached_array, clear_cache, content_key

ARRAY = np.arange(24, dtype=np.float32).reshape(4, 6) / 7


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTAILOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never() -> Any:
    pytest.fail("it was computed again")


def counting(array: Any = ARRAY) -> tuple[list[int], Callable[[], Any]]:
    """A computation, and a list that grows each time it runs."""
    calls: list[int] = []

    def compute() -> Any:
        calls.append(1)
        return array.copy()

    return calls, compute


def key_of(name: str) -> str:
    return content_key(name)


def test_an_array_is_computed_once_and_comes_back_bit_for_bit(folder: Path) -> None:
    calls, compute = counting()
    first = cached_array("features", key_of("a"), compute)
    again = cached_array("features", key_of("a"), never)
    assert calls == [1]
    assert first.tobytes() == again.tobytes() == ARRAY.tobytes()
    assert (again.dtype, again.shape) == (np.float32, (4, 6))
    assert {path.name for path in (folder / "features").iterdir()} == {
        f"{key_of('a')}.npy",
        f"{key_of('a')}.sha256",
    }


def test_another_key_and_another_kind_are_other_entries() -> None:
    cached_array("features", key_of("a"), lambda: ARRAY)
    for kind, name in (("features", "b"), ("others", "a")):
        calls, compute = counting(ARRAY + 1)
        assert (cached_array(kind, key_of(name), compute) == ARRAY + 1).all()
        assert calls == [1]


# Damage.


def test_any_flipped_bit_and_any_lost_end_is_computed_again(folder: Path) -> None:
    key = key_of("a")
    cached_array("features", key, lambda: ARRAY)
    path = folder / "features" / f"{key}.npy"
    whole = path.read_bytes()
    damaged = [whole[:end] for end in range(0, len(whole), 16)]
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        damaged.append(bytes(changed))
    for data in damaged:
        path.write_bytes(data)
        calls, compute = counting()
        assert (cached_array("features", key, compute) == ARRAY).all()
        assert calls == [1]
        assert path.read_bytes() == whole, "the damaged entry was not replaced"


@pytest.mark.parametrize("checksum", [b"", b"\xff\xfe", b"0" * 64])
def test_a_damaged_checksum_is_computed_again(folder: Path, checksum: bytes) -> None:
    key = key_of("a")
    cached_array("features", key, lambda: ARRAY)
    (folder / "features" / f"{key}.sha256").write_bytes(checksum)
    calls, compute = counting()
    cached_array("features", key, compute)
    cached_array("features", key, never)
    assert calls == [1]


def test_a_lost_checksum_is_computed_again(folder: Path) -> None:
    key = key_of("a")
    cached_array("features", key, lambda: ARRAY)
    (folder / "features" / f"{key}.sha256").unlink()
    calls, compute = counting()
    cached_array("features", key, compute)
    assert calls == [1]


def test_a_pickle_is_never_opened(folder: Path) -> None:
    key = key_of("a")
    path = folder / "features" / f"{key}.npy"
    path.parent.mkdir(parents=True)

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "ran"),)

    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    path.with_suffix(".sha256").write_text(cache._checksum(path))
    calls, compute = counting()
    assert (cached_array("features", key, compute) == ARRAY).all()
    assert calls == [1]
    assert not (folder / "ran").exists()


# A cache that can't be written.


def test_a_file_in_its_place_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("GPTAILOR_CACHE", str(tmp_path / "file"))
    calls, compute = counting()
    for _ in range(2):
        assert (cached_array("features", key_of("a"), compute) == ARRAY).all()
    assert calls == [1, 1]
    assert (cache_bytes(), clear_cache()) == (0, 0)
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("function", ["save", "load"])
def test_a_disk_that_fails_costs_time_and_leaves_nothing(
    function: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if function == "load":
        cached_array("features", key_of("a"), lambda: ARRAY)
    monkeypatch.setattr(np, function, full)
    calls, compute = counting()
    assert (cached_array("features", key_of("a"), compute) == ARRAY).all()
    assert calls == [1]
    assert not list(folder.glob("*/.*")), "a partial file was left"


def test_somebody_elses_cache_is_read_though_it_can_not_be_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_array("features", key_of("a"), lambda: ARRAY)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refused)
    assert (cached_array("features", key_of("a"), never) == ARRAY).all()


# Eviction.


def fill(folder: Path, names: str) -> None:
    """One entry a name, each a second older than the next."""
    for age, name in enumerate(reversed(names)):
        cached_array("features", key_of(name), lambda: ARRAY)
        for suffix in ("npy", "sha256"):
            path = folder / "features" / f"{key_of(name)}.{suffix}"
            os.utime(path, (1_000_000 - age, 1_000_000 - age))


def stored(folder: Path) -> set[str]:
    return {name for name in "abcdefgh" if (folder / "features" / f"{key_of(name)}.npy").exists()}


def test_the_least_recently_read_go_first_with_their_checksums(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, "abcde")
    size = cache_bytes() // 5
    cached_array("features", key_of("a"), never)  # the oldest, and now the newest
    monkeypatch.setattr(cache, "LIMIT_BYTES", 4 * size)
    cached_array("features", key_of("f"), lambda: ARRAY)
    assert stored(folder) == {"a", "d", "e", "f"}
    assert cache_bytes() == 4 * size
    assert len(list((folder / "features").iterdir())) == 8
    for name in "adef":
        cached_array("features", key_of(name), never)


def test_an_array_larger_than_the_limit_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 10)
    assert (cached_array("features", key_of("a"), lambda: ARRAY) == ARRAY).all()
    assert cache_bytes() == 0


def test_clearing_removes_entries_and_leftovers_and_nothing_else(folder: Path) -> None:
    fill(folder, "abc")
    leftover = folder / "features" / f".{key_of('x')}.123.npy"
    leftover.write_bytes(b"half")
    others = [folder / "thesis.npy", folder / "features" / "notes.txt", folder / "photos" / "cat.npy"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    size = cache_bytes()
    assert clear_cache() == size > 3 * ARRAY.nbytes
    assert cache_bytes() == 0
    assert not leftover.exists()
    assert all(path.read_bytes() == b"mine" for path in others)
    calls, compute = counting()
    cached_array("features", key_of("a"), compute)
    assert calls == [1]


# Several at once.


def test_many_writers_of_one_entry_all_get_the_array() -> None:
    start = threading.Barrier(8)
    got: list[Any] = []

    def work() -> None:
        start.wait(10)
        got.append(cached_array("features", key_of("a"), lambda: ARRAY))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert all((array == ARRAY).all() for array in got)


# Keys and places.


def test_a_key_is_the_content_with_its_borders() -> None:
    parts = ["ab", b"c", np.array([1, 2], np.int32)]
    assert content_key(*parts) == content_key("ab", "c", np.array([1, 2], np.int32))
    assert len(content_key()) == 64
    others = [
        ["a", "bc", parts[2]],
        ["ab", "c"],
        ["abc", parts[2]],
        ["ab", "c", np.array([2, 1], np.int32)],
        ["ab", "", "c", parts[2]],
    ]
    assert len({content_key(*other) for other in [parts, *others]}) == len(others) + 1


def test_the_folder_is_the_variable_else_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTAILOR_CACHE", "here")
    assert cache_folder() == Path("here")
    for value in ("", None):
        monkeypatch.delenv("GPTAILOR_CACHE") if value is None else monkeypatch.setenv("GPTAILOR_CACHE", value)
        assert "gptailor" in str(cache_folder())
        assert cache_folder().is_absolute()
