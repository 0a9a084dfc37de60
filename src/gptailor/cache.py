"""What was computed once and needn't be again: features and measurements, keyed by content.

The folder is `$GPTAILOR_CACHE`, else the platform's user cache folder. Entries carry a checksum; a
damaged one is thrown away and computed again. The least recently used go when it grows past 5 GB.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_path

LIMIT_BYTES = 5 * 10**9
ENTRY = re.compile(r"\.?[0-9a-f]{64}(\.\d+)?\.(npy|sha256)")


def cache_folder() -> Path:
    """Where entries live; it need not exist yet."""
    return Path(os.environ.get("GPTAILOR_CACHE") or user_cache_path("gptailor"))


def content_key(*parts: bytes | str | npt.NDArray[np.generic]) -> str:
    """One hash over the parts, their borders included."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            raw = part.tobytes()
        else:
            raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def cached_array(
    kind: str, key: str, compute: Callable[[], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """The array stored under (kind, key), computed and stored if it isn't there or is damaged.

    A cache that can't be written costs time, never the run.
    """
    path = cache_folder() / kind / f"{key}.npy"
    stored = _read(path)
    if stored is not None:
        return stored
    array = compute()
    with contextlib.suppress(OSError):
        _write(path, array)
        _evict()
    return array


def clear_cache() -> int:
    """Removes every entry, and nothing else that may lie in the folder; returns the bytes freed."""
    freed = 0
    for path in _files():
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def cache_bytes() -> int:
    """What the entries take on the disk."""
    return sum(path.stat().st_size for path in _files())


def _files() -> list[Path]:
    """The arrays, their checksums, and what a killed writer left of them."""
    return [path for path in cache_folder().glob("*/*") if ENTRY.fullmatch(path.name)]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> npt.NDArray[np.float32] | None:
    """The array, if every byte is as it was written: damaged bytes are never parsed."""
    try:
        if _checksum(path) != path.with_suffix(".sha256").read_text(encoding="ascii"):
            return None
        array: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):  # somebody else's cache is good to read, too
        os.utime(path)
    return array


def _write(path: Path, array: npt.NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{threading.get_ident()}.npy")
    try:
        np.save(partial, array, allow_pickle=False)
        path.with_suffix(".sha256").write_text(_checksum(partial), encoding="ascii")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _evict() -> None:
    """The least recently read arrays go first, with their checksums."""
    arrays = sorted(
        (path for path in _files() if path.suffix == ".npy"), key=lambda path: path.stat().st_mtime_ns
    )
    excess = cache_bytes() - LIMIT_BYTES
    for path in arrays:
        if excess <= 0:
            return
        for part in (path, path.with_suffix(".sha256")):
            if part.exists():
                excess -= part.stat().st_size
                part.unlink(missing_ok=True)
