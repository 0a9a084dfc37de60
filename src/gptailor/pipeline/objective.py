"""What a task asks of training: its rows as batches, its loss, and how it does on validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gptailor.launch import Precision
from gptailor.train.loss import LossFunction
from gptailor.types import Batch, IntArray

NEW_FORM = 1e-3  # peak rate of a small base that learns to write what it has hardly seen
Rates = Callable[[int], Mapping[str, float]]  # peak learning rates by approach, of so many weights


def usual_rates(num_weights: int, *, new_form: bool = False) -> dict[str, float]:
    """Peak learning rates by approach, where the recipe leaves them open.

    A small base learns a language or a form that is new to it best at a higher rate (docs/log.md).
    """
    small = num_weights <= 50_000_000
    full = (NEW_FORM if new_form else 5e-4) if small else 5e-5
    return {"full": full, "lora": 3e-3 if small else 2e-4, "scratch": 1e-3}


@dataclass(frozen=True, slots=True)
class Validation:
    """One look at the validation rows. A higher `score` is better; `shown` goes into the log."""

    loss: float  # nats per target
    score: float
    shown: Mapping[str, float]
    compared: float | None = None  # where settings scale the loss: comparable in a search; higher is better

    def line(self, step: int) -> dict[str, float | str]:
        """Its line in metrics.jsonl."""
        return {"kind": "validation", "step": step, "loss": self.loss, **self.shown}


@dataclass(frozen=True, slots=True)
class Objective:
    """Everything the trainer needs to know about a task."""

    lengths: IntArray  # (N,) tokens of each training row
    batch: Callable[[Sequence[int]], Batch]  # of row numbers; one forward and backward
    loss: LossFunction
    validate: Callable[[Precision], Validation]
    used: IntArray | None = None  # ids of all tokens in its rows, where only these have gradients
    rates: Rates = usual_rates
    new_head: bool = True  # whether the head is untrained and has a rate of its own
