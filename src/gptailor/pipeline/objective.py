"""What a task asks of training: its rows as batches, its loss, and how it does on validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gptailor.launch import Precision
from gptailor.train.loss import LossFunction
from gptailor.types import Batch, IntArray


@dataclass(frozen=True, slots=True)
class Validation:
    """One look at the validation rows. A higher `score` is better; `shown` goes into the log."""

    loss: float  # nats per target
    score: float
    shown: Mapping[str, float]
    compared: float | None = None  # where settings scale the loss: comparable in a search; higher is better


@dataclass(frozen=True, slots=True)
class Objective:
    """Everything the trainer needs to know about a task."""

    lengths: IntArray  # (N,) tokens of each training row
    batch: Callable[[Sequence[int]], Batch]  # of row numbers; one forward and backward
    loss: LossFunction
    validate: Callable[[Precision], Validation]
    used: IntArray | None = None  # ids of all tokens in its rows, where only these have gradients
    new_head: bool = True  # whether the head is untrained and has a rate of its own
