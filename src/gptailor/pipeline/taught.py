"""Which texts taught a run, as hashes: they are known again in another file, and where a run is a base."""

from __future__ import annotations

import hashlib
import io
import zipfile
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptailor.data.shingles import key_of, words_of
from gptailor.errors import ModelError, number_of
from gptailor.launch import write_atomically
from gptailor.models.bundle import BUNDLE_FILE, read_bundle
from gptailor.models.names import Base
from gptailor.pipeline.folder import TAUGHT
from gptailor.types import BoolArray, IntArray, Part

Hashes = NDArray[np.uint64]
NONE: Hashes = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Marks:
    """What rows, or documents piece by piece, are known again by: texts with the same letters and digits,
    case folded, have the same hash.
    """

    hashes: Hashes  # (N,)
    owner: IntArray  # (N,) the row or document that each text is of

    def __len__(self) -> int:
        return len(np.unique(self.owner))

    def where(self, chosen: BoolArray) -> Marks:
        """Of some of the texts."""
        return Marks(self.hashes[chosen], self.owner[chosen])

    def count_in(self, known: Hashes) -> int:
        """How many rows or documents are known, or a piece of them is."""
        return len(np.unique(self.owner[np.isin(self.hashes, known)]))


NO_MARKS = Marks(NONE, np.empty(0, np.int64))


def marks_of(texts: Iterable[tuple[int, str]]) -> Marks:
    """`texts` come with the number of the row or document they are of."""
    hashes, owner = array("Q"), array("q")
    for number, text in texts:
        key = key_of(text, words_of(text)).encode(errors="surrogatepass")
        hashes.append(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))
        owner.append(number)
    return Marks(np.array(hashes, np.uint64), np.array(owner, np.int64))


def taught_by(folder: Path) -> tuple[Hashes, Hashes]:
    """The texts of a run's own, and those of its base; empty where it didn't write that down."""
    found = _read(folder) or {}
    return found.get("own", NONE), found.get("base", NONE)


def is_written(folder: Path) -> bool:
    """Whether a run's file of them is there, and whole."""
    return bool(_read(folder))


def _read(folder: Path) -> dict[str, Hashes] | None:
    """What is in the file; nothing where there is none, None where it is damaged.

    `folder` is the run's, or that of its model.
    """
    for run in (folder, folder.resolve().parent):
        if (run / TAUGHT).is_file():
            try:
                with (run / TAUGHT).open("rb") as file, np.load(file, allow_pickle=False) as found:
                    return {name: found[name] for name in ("own", "base", "test")}
            except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
                return None
    return {}


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


def keep_taught(folder: Path, parts: Mapping[Part, Marks], base: Base, approach: str) -> None:
    """Writes down which texts teach a run, or choose among its weights, and which test it."""
    own, test = np.union1d(parts["train"].hashes, parts["validation"].hashes), np.unique(parts["test"].hashes)
    packed = io.BytesIO()
    np.savez(packed, own=own, test=test, base=in_weights(base, approach))
    write_atomically(folder / TAUGHT, packed.getvalue())


def holds_the_test(folder: Path, asked: Marks) -> bool:
    """Whether most of a run's sealed test texts are among these, whatever the file is called."""
    sealed = (_read(folder) or {}).get("test", NONE)
    return len(sealed) > 0 and 2 * int(np.isin(sealed, asked.hashes).sum()) >= len(sealed)


def taught_before(
    base: Base, approach: str, parts: Mapping[Part, Marks], *, one: str = "row"
) -> tuple[dict[str, int], str]:
    """How much of each held-out part taught the run that is the base; and that in words, if any did.

    `one` is what a part is counted in.
    """
    known = in_weights(base, approach)
    held_out: dict[str, Marks] = {"validation": parts["validation"], "test": parts["test"]}
    counts = {part: marks.count_in(known) for part, marks in held_out.items()}
    if not any(counts.values()):
        return {}, ""
    told = " and ".join(
        f"{count:,} of {number_of(len(held_out[part]), f'{part} {one}')}"
        for part, count in counts.items()
        if count
    )
    return counts, f"{told} taught the base {base.name}, or chose among its weights: scores on them flatter."


def already_taught(folder: Path, asked: Marks, *, one: str = "row") -> str:
    """What to say of a file that a run is scored on, where some of it taught the run; else nothing."""
    found = _read(folder)
    if found is None:
        return f"{TAUGHT} is damaged: whether some of this taught the run, nobody can tell."
    count = asked.count_in(np.union1d(found.get("own", NONE), found.get("base", NONE)))
    if not count:
        return ""
    told = number_of(len(asked), one)
    return f"{count:,} of {told} taught this run, or chose among its weights: scores on them flatter."
