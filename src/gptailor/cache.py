"""What was computed once and needn't be again: features and measurements, keyed by content.

The folder is `$GPTAILOR_CACHE`, else the platform's user cache folder. Entries carry a checksum; a
damaged one is thrown away and computed again. The least recently used go when it grows past 5 GB.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_path

LIMIT_BYTES = 5 * 10**9


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
    try:
        _write(path, array)
        _evict()
    except OSError:
        return array
    return array


def clear_cache() -> int:
    """Removes every entry; returns the bytes freed."""
    size = sum(path.stat().st_size for path in _entries())
    shutil.rmtree(cache_folder(), ignore_errors=True)
    return size


def _checksum(array: npt.NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _read(path: Path) -> npt.NDArray[np.float32] | None:
    try:
        array: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
        if _checksum(array) != path.with_suffix(".sha256").read_text():
            return None
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    return array


def _write(path: Path, array: npt.NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(partial, array, allow_pickle=False)
    path.with_suffix(".sha256").write_text(_checksum(array))
    partial.replace(path)


def _entries() -> Iterable[Path]:
    return [path for path in cache_folder().rglob("*") if path.is_file()]


def _evict() -> None:
    entries = sorted(((p.stat().st_mtime, p.stat().st_size, p) for p in _entries()), key=lambda e: e[0])
    excess = sum(size for _, size, _ in entries) - LIMIT_BYTES
    for _, size, path in entries:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
