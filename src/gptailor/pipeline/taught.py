"""Which texts taught a run, as hashes: they are known again in another file, and where a run is a base."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gptailor.data.shingles import key_of, words_of
from gptailor.errors import number_of

if TYPE_CHECKING:  # it loads transformers
    from gptailor.models.names import Base

FILE = "taught.npy"
Hashes = NDArray[np.uint64]


def hashes_of(texts: Iterable[str]) -> Hashes:
    """(N,) hashes; texts with the same letters and digits, case folded, have the same one."""
    keys = (key_of(text, words_of(text)).encode(errors="surrogatepass") for text in texts)
    digests = (hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    return np.fromiter((int.from_bytes(digest, "little") for digest in digests), dtype=np.uint64)


def taught_by(folder: Path) -> Hashes | None:
    """What taught a run, its base's rows included; None where it didn't write that down."""
    try:
        found: Hashes = np.load(folder / "data" / FILE, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found


def keep_taught(folder: Path, texts: Iterable[str], base: Base) -> None:
    """Writes down which texts teach a run, or choose among its weights."""
    before = taught_by(base.path.parent) if base.kind == "run" else None
    hashes = hashes_of(texts)
    hashes = np.unique(hashes if before is None else np.concatenate([before, hashes]))
    np.save(folder / "data" / FILE, hashes, allow_pickle=False)


def taught_before(base: Base, held_out: Mapping[str, Sequence[str]]) -> tuple[dict[str, int], str]:
    """How many texts of each held-out part taught the run that is the base; and that in words, if any did."""
    known = taught_by(base.path.parent) if base.kind == "run" else None
    if known is None:
        return {}, ""
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
    known = taught_by(folder)
    count = 0 if known is None else int(np.isin(hashes_of(texts), known).sum())
    if not count:
        return ""
    rows = number_of(len(texts), "row")
    return f"{count:,} of {rows} taught this run, or chose among its weights: scores on them flatter."
