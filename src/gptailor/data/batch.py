"""From tokenized examples to batches: which rows a step sees, and how they lie in a tensor.

The order is a pure function of (seed, epoch, step), so a resumed run can't skip or repeat a row.
Rows of like length travel together: an epoch is shuffled, cut into windows of up to fifty batches, and
each window is sorted by length before it is cut into batches, whose order is shuffled again.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gptailor.types import Batch, IntArray, TokenizedExample

WINDOW = 50  # batches; large enough that little padding is left
FEWEST_WINDOWS = 4  # an epoch sorted as one window would bring the same rows together every time


@dataclass(frozen=True, slots=True)
class Order:
    """Which rows each optimizer step sees. `lengths` (N,) tokens of each row."""

    lengths: IntArray
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)


def epoch_batches(order: Order, epoch: int) -> list[IntArray]:
    """The row indices of every step of one epoch; each row exactly once."""
    generator = np.random.default_rng((order.seed, epoch))
    shuffled = generator.permutation(len(order.lengths))
    # The short batch is drawn before any sorting, or it would always hold a window's longest rows.
    full, short = np.split(shuffled, [len(shuffled) - len(shuffled) % order.batch_size])
    per_window = min(WINDOW, -(-len(full) // (order.batch_size * FEWEST_WINDOWS)))
    span = max(1, per_window) * order.batch_size
    batches: list[IntArray] = [short] if len(short) else []
    for start in range(0, len(full), span):
        window = full[start : start + span]
        window = window[np.argsort(order.lengths[window], kind="stable")]
        batches.extend(window[at : at + order.batch_size] for at in range(0, len(window), order.batch_size))
    return [batches[place] for place in generator.permutation(len(batches))]


class StepRows:
    """Looks up the rows of a step; remembers the epoch it is in, and nothing else."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._epoch = -1
        self._batches: list[IntArray] = []

    def __call__(self, step: int) -> IntArray:
        """Row indices of a step, counted from 1, longest first so that memory peaks early."""
        epoch, place = divmod(step - 1, self._order.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, epoch_batches(self._order, epoch)
        rows = self._batches[place]
        return rows[np.argsort(-self._order.lengths[rows], kind="stable")]


def collate(examples: Sequence[TokenizedExample], *, pad_id: int, pad_to: int | None = None) -> Batch:
    """Classification rows side by side, padded on the right.

    No attention mask is made: under causal attention no real token can see a pad that follows it.
    """
    lengths = [len(example.token_ids) for example in examples]
    input_ids = np.full((len(examples), pad_to or max(lengths)), pad_id, np.int64)
    for place, example in enumerate(examples):
        input_ids[place, : lengths[place]] = example.token_ids
    labels = [-1 if example.label is None else example.label for example in examples]
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        last=torch.tensor([length - 1 for length in lengths]),
        num_targets=len(examples),
        num_tokens=sum(lengths),
        rows=tuple(f"{example.source}:{example.row}" for example in examples),
        labels=torch.from_numpy(np.array(labels)),  # numbers in float64: they aren't standardized yet
    )


def collate_texts(rows: Sequence[Sequence[TokenizedExample]], *, pad_to: int | None = None) -> Batch:
    """Text examples as one batch; each row holds one example, or several packed side by side.

    Positions start again at each example of a row, so that examples of a row never meet. Only the tokens
    marked as learned are targets; an example's first token has nothing before it and is never one.
    """
    width = pad_to or max(sum(len(e.token_ids) for e in row) for row in rows)
    input_ids = np.zeros((len(rows), width), np.int64)
    positions = np.tile(np.arange(width), (len(rows), 1))
    learned: list[npt.NDArray[np.int64]] = []
    targets: list[npt.NDArray[np.int64]] = []
    last = []
    for place, row in enumerate(rows):
        start = 0
        for example in row:
            size = len(example.token_ids)
            input_ids[place, start : start + size] = example.token_ids
            positions[place, start:] = np.arange(width - start)
            wanted = np.flatnonzero(example.learn[1:]) + 1
            learned.append(place * width + start + wanted - 1)
            targets.append(example.token_ids[wanted].astype(np.int64))
            start += size
        last.append(start - 1)
    chosen = np.concatenate(targets)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        last=torch.tensor(last),
        num_targets=len(chosen),
        num_tokens=sum(last) + len(last),
        rows=tuple(f"{example.source}:{example.row}" for row in rows for example in row),
        targets=torch.from_numpy(chosen),
        learned=torch.from_numpy(np.concatenate(learned)),
        positions=torch.from_numpy(positions) if any(len(row) > 1 for row in rows) else None,
    )


def pack(lengths: IntArray, *, capacity: int) -> list[list[int]]:
    """Rows of examples that fit `capacity` tokens each: longest first, each where the least room is left.

    Best-fit decreasing; no example is cut, and one longer than the capacity has a row of its own.
    """
    rooms: list[tuple[int, int]] = []  # (room, row), sorted
    rows: list[list[int]] = []
    for example in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[example])
        place = bisect.bisect_left(rooms, (size, -1))
        if place == len(rooms):
            rows.append([example])
            room, row = capacity - size, len(rows) - 1
        else:
            room, row = rooms.pop(place)
            rows[row].append(example)
            room -= size
        if room > 0:
            bisect.insort(rooms, (room, row))
    return rows


def split_step(
    lengths: Sequence[int], *, micro_batch_size: int, workers: int = 1, padded: bool = True
) -> list[slice]:
    """How the rows of one optimizer step, longest first, are cut into micro-batches.

    Each `micro_batch_size` rows, all that is computed at a time, are cut once more, into a part for every
    worker: so that none computes much longer than the others. `padded`: all of it sees padding, else only
    attention does, whose work grows with the square of a part's width.
    """
    cuts: list[slice] = []
    for start in range(0, len(lengths), micro_batch_size):
        end = min(start + micro_batch_size, len(lengths))
        sizes = _even_parts(lengths[start:end], workers, padded=padded)
        for size in sizes:
            cuts.append(slice(start, start + size))
            start += size
    return cuts


def row_cost(length: int, *, width: int, padded: bool) -> int:
    """What a row of a part costs, in tokens. Attention over 1,024 columns costs about as much as all else."""
    return width if padded else length + width * width // 1024


def _even_parts(lengths: Sequence[int], parts: int, *, padded: bool) -> list[int]:
    """Sizes of at most so many runs of rows, so that the largest run costs least."""

    def fill(most: int) -> list[int]:
        sizes: list[int] = []
        room = width = 0
        for length in lengths:
            if not sizes or room < row_cost(length, width=width, padded=padded):
                sizes.append(0)
                room, width = most, length  # longest first: a run is as wide as its first row
            sizes[-1] += 1
            room -= row_cost(length, width=width, padded=padded)
        return sizes

    parts = min(parts, len(lengths))
    widest = row_cost(lengths[0], width=lengths[0], padded=padded)
    low, high = widest, len(lengths) * widest
    while low < high:
        middle = (low + high) // 2
        if len(fill(middle)) <= parts:
            high = middle
        else:
            low = middle + 1
    return fill(low)


def length_buckets(lengths: IntArray, *, max_tokens_per_batch: int) -> list[IntArray]:
    """Row indices in batches of like length, longest first, for passes without gradients."""
    order = np.argsort(-lengths, kind="stable")
    buckets: list[IntArray] = []
    start = 0
    while start < len(order):
        rows = max(1, max_tokens_per_batch // int(lengths[order[start]]))
        buckets.append(order[start : start + rows])
        start += rows
    return buckets


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on the model's device."""
    if device.type == "cpu":
        return batch
    moved: dict[str, Any] = {
        field.name: value.to(device)
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    }
    return dataclasses.replace(batch, **moved)
