"""Which texts taught a run, as hashes: they are known again in another file, and where a run is a base."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptailor.data.shingles import key_of, words_of
from gptailor.errors import ModelError, number_of
from gptailor.models.bundle import BUNDLE_FILE, read_bundle
from gptailor.models.names import Base
from gptailor.pipeline.folder import TAUGHT

Hashes = NDArray[np.uint64]
NONE: Hashes = np.empty(0, dtype=np.uint64)


def hashes_of(texts: Iterable[str]) -> Hashes:
    """(N,) hashes; texts with the same letters and digits, case folded, have the same one."""
    keys = (key_of(text, words_of(text)).encode(errors="surrogatepass") for text in texts)
    digests = (hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    return np.fromiter((int.from_bytes(digest, "little") for digest in digests), dtype=np.uint64)


def taught_by(folder: Path) -> tuple[Hashes, Hashes]:
    """The texts of a run's own, and those of its base; empty where it didn't write that down."""
    return _read(folder, "own"), _read(folder, "base")


def _read(folder: Path, name: str) -> Hashes:
    """`folder` is the run's, or that of its model."""
    for run in (folder, folder.resolve().parent):
        if (run / TAUGHT).is_file():
            try:
                with np.load(run / TAUGHT, allow_pickle=False) as found:
                    hashes: Hashes = found[name]
                    return hashes
            except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
                break
    return NONE


def in_weights(base: Base, approach: str) -> Hashes:
    """The texts that the weights which an approach takes from a base have learned.

    From scratch none are taken; and of a frozen run only the head learned, which a new task leaves behind.
    """
    if approach == "scratch" or not (base.path / BUNDLE_FILE).is_file():
        return NONE
    own, before = taught_by(base.path)
    try:
        frozen = read_bundle(base.path).approach == "frozen"
    except ModelError:
        frozen = False
    return before if frozen else np.union1d(own, before)


def keep_taught(
    folder: Path, texts: Iterable[str], base: Base, approach: str, *, tested: Iterable[str]
) -> None:
    """Writes down which texts teach a run, or choose among its weights, and which test it."""
    hashes = {"own": np.unique(hashes_of(texts)), "test": np.unique(hashes_of(tested))}
    np.savez(folder / TAUGHT, **hashes, base=in_weights(base, approach))  # type: ignore[arg-type]


def holds_the_test(folder: Path, texts: Sequence[str]) -> bool:
    """Whether most of a run's sealed test rows are among these, whatever the file is called."""
    sealed = _read(folder, "test")
    return len(sealed) > 0 and 2 * int(np.isin(sealed, hashes_of(texts)).sum()) >= len(sealed)


def taught_before(
    base: Base, approach: str, held_out: Mapping[str, Sequence[str]]
) -> tuple[dict[str, int], str]:
    """How many texts of each held-out part taught the run that is the base; and that in words, if any did."""
    known = in_weights(base, approach)
    counts = {part: int(np.isin(hashes_of(texts), known).sum()) for part, texts in held_out.items()}
    if not any(counts.values()):
        return {}, ""
    told = " and ".join(
        f"{count:,} of {number_of(len(held_out[part]), f'{part} row')}"
        for part, count in counts.items()
        if count
    )
    return counts, f"{told} taught the base {base.name}, or chose among its weights: scores on them flatter."


def already_taught(folder: Path, texts: Sequence[str]) -> str:
    """What to say of a file that a run is scored on, where rows of it taught the run; else nothing."""
    count = int(np.isin(hashes_of(texts), np.union1d(*taught_by(folder))).sum())
    if not count:
        return ""
    rows = number_of(len(texts), "row")
    return f"{count:,} of {rows} taught this run, or chose among its weights: scores on them flatter."
