"""Documents as one stream of tokens in a memory-mapped file, cut into blocks of equal length.

Every document begins with the begin token and ends with the end token, so that each of its tokens is
predicted once. In a block several documents lie side by side; positions start again at each, and no token
sees another document (the models read that from the positions).

Where begin and end are the same token (GPT-2's `<|endoftext|>`), one stands between two documents: it ends
the first as a target and begins the second as an input.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptailor.types import Batch, IntArray

FILES = ("tokens.bin", "index.npz")
INDEX = ("begins", "unlearned", "piece_starts", "piece_bytes", "piece_documents")


@dataclass(frozen=True, slots=True)
class TokenStore:
    """The tokens of one part.

    Shapes: `tokens` (N,) on disk; `begins` (S,) where a document, or a stretch of one, begins;
    `unlearned` (U,) positions whose next token is no target; `piece_starts`, `piece_bytes`,
    `piece_documents` (P,) for every piece its first token, its UTF-8 bytes and the number of its document.
    """

    tokens: npt.NDArray[np.unsignedinteger[Any]]
    begins: IntArray
    unlearned: IntArray
    piece_starts: IntArray
    piece_bytes: IntArray
    piece_documents: IntArray

    @property
    def num_targets(self) -> int:
        return max(0, len(self.tokens) - 1 - len(self.unlearned))


class TokenWriter:
    """Writes a store piece by piece; only the index is held in memory."""

    def __init__(self, folder: Path, *, vocabulary: int, ends: tuple[int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, (self._begin, self._end) = folder, ends
        self._type = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
        self._file = (folder / "tokens.bin").open("wb")
        self._size = 0
        self._open = self._ended = False
        self._lists = {name: array("q") for name in INDEX}

    def add(self, ids: Sequence[int], *, document: int, num_bytes: int, begins: bool) -> None:
        """Appends a piece; `begins` where nothing of its document stands before it."""
        if begins:
            if self._open:
                self.end(whole=False)
            if self._size and (self._begin != self._end or not self._ended):
                self._lists["unlearned"].append(self._size - 1)
            self._lists["begins"].append(self._size)
            self._write([self._begin])
            self._open = True
        self._lists["piece_starts"].append(self._size)
        self._lists["piece_bytes"].append(num_bytes)
        self._lists["piece_documents"].append(document)
        self._write(ids)

    def end(self, *, whole: bool) -> None:
        """Closes a document; `whole` where its true end is here, which is worth predicting."""
        if self._open and whole and self._begin != self._end:
            self._write([self._end])
        self._open, self._ended = False, whole

    def finish(self) -> None:
        """Writes the index. The end of the last document is a target, too."""
        if self._open:
            self.end(whole=False)
        if self._size and self._ended and self._begin == self._end:
            self._write([self._end])
        with self._file as tokens, (self._folder / "index.npz").open("wb") as index:
            np.savez(index, **{n: np.array(v, np.int64) for n, v in self._lists.items()})  # type: ignore[arg-type]
            for file in (tokens, index):
                file.flush()
                os.fsync(file.fileno())
        sizes = {name: (self._folder / name).stat().st_size for name in FILES}
        values = {"type": self._type.name, "tokens": self._size, "bytes": sizes}
        (self._folder / "tokens.json").write_text(json.dumps(values), encoding="utf-8")  # makes it whole

    def _write(self, ids: Sequence[int]) -> None:
        np.asarray(ids, self._type).tofile(self._file)
        self._size += len(ids)


def is_whole(folder: Path) -> bool:
    """Whether `TokenWriter` wrote a store here to its end."""
    try:
        sizes = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))["bytes"]
        return bool({name: (folder / name).stat().st_size for name in FILES} == sizes)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_store(folder: Path) -> TokenStore:
    """Maps a store that `TokenWriter` wrote; its tokens stay on disk until they are read."""
    values = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    size = int(values["tokens"])
    tokens: Any = (
        np.memmap(folder / "tokens.bin", np.dtype(values["type"]), "r", shape=(size,))
        if size
        else np.empty(0, np.dtype(values["type"]))
    )
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        return TokenStore(tokens, *(index[name] for name in INDEX))


def num_blocks(store: TokenStore, length: int) -> int:
    """Blocks of `length` inputs that hold every token that has a next one."""
    return max(0, -(-(len(store.tokens) - 1) // length))


def block_lengths(store: TokenStore, length: int) -> IntArray:
    """(blocks,) inputs of each block; the last may be short."""
    lengths = np.full(num_blocks(store, length), length, np.int64)
    if len(lengths):
        lengths[-1] = len(store.tokens) - 1 - (len(lengths) - 1) * length
    return lengths


def collate_blocks(store: TokenStore, blocks: Sequence[int], *, length: int, where: str) -> Batch:
    """The chosen blocks as one batch. `where` names the data in error messages."""
    import torch

    rows = len(blocks)
    ids = np.zeros((rows, length), np.int64)
    positions = np.zeros((rows, length), np.int64)
    learned: list[IntArray] = []
    targets: list[IntArray] = []
    last = np.zeros(rows, np.int64)
    for row, block in enumerate(blocks):
        first = block * length
        size = min(length, len(store.tokens) - 1 - first)
        both = np.asarray(store.tokens[first : first + size + 1]).astype(np.int64)
        ids[row, :size] = both[:-1]
        last[row] = size - 1
        positions[row] = np.arange(length)
        low, high = np.searchsorted(store.begins, (first, first + size))
        for begin in store.begins[low:high] - first:
            positions[row, begin:] = np.arange(length - begin)
        keep = np.ones(size, np.bool_)
        low, high = np.searchsorted(store.unlearned, (first, first + size))
        keep[store.unlearned[low:high] - first] = False
        learned.append(np.flatnonzero(keep) + row * length)
        targets.append(both[1:][keep])
    chosen = np.concatenate(targets)
    return Batch(
        input_ids=torch.from_numpy(ids),
        last=torch.from_numpy(last),
        num_targets=len(chosen),
        num_tokens=int((last + 1).sum()),
        rows=tuple(f"{where} block {block}" for block in blocks),
        targets=torch.from_numpy(chosen),
        learned=torch.from_numpy(np.concatenate(learned)),
        positions=torch.from_numpy(positions),
    )


def target_pieces(store: TokenStore, blocks: Sequence[int], *, length: int) -> IntArray:
    """(targets,) the piece that each target of these blocks belongs to; a document's end to its last one."""
    found = []
    for block in blocks:
        first = block * length
        size = min(length, len(store.tokens) - 1 - first)
        places = np.arange(first, first + size)
        low, high = np.searchsorted(store.unlearned, (first, first + size))
        places = np.delete(places, store.unlearned[low:high] - first)
        found.append(np.searchsorted(store.piece_starts, places + 1, side="right") - 1)
    return np.maximum(np.concatenate(found), 0)


def targets_by_piece(store: TokenStore) -> IntArray:
    """(P,) how many targets each piece has in all."""
    whole = np.append(store.piece_starts[1:], len(store.tokens)) - store.piece_starts
    lost = np.searchsorted(store.piece_starts, store.unlearned + 1, side="right") - 1
    counts: IntArray = whole - np.bincount(np.maximum(lost, 0), minlength=len(whole))
    return counts
