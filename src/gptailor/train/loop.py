"""The training loop: a generator of steps, in plain sight.

Whoever consumes it logs, validates, saves and stops; see `pipeline`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from gptailor.errors import NonFiniteError
from gptailor.train.loss import LossFunction
from gptailor.train.optimize import set_rates
from gptailor.types import Batch, StepResult

Precision = AbstractContextManager[object]


def training_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batches: Callable[[int], Sequence[Batch]],
    loss: LossFunction,
    rate: Callable[[int], float],
    steps: range,
    clip: float = 1.0,
    seed: int = 0,
    precision: Callable[[], Precision] = nullcontext,
) -> Iterator[StepResult]:
    """Trains one optimizer step at a time and yields what happened.

    Args:
        model: Its weights with `requires_grad` are trained.
        optimizer: Moves them.
        batches: The micro-batches of a step, by its number (from 1).
        loss: Sum and count of one micro-batch.
        rate: Factor of the peak learning rate at a step.
        steps: The steps to take; a resumed run starts later.
        clip: Largest gradient norm; 0 for none.
        seed: Dropout's stream at a step is a function of (seed, step), so nothing need be saved of it.
        precision: Context of the forward pass.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; the weights of this step did not move.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    for step in steps:
        began = time.perf_counter()
        torch.manual_seed(step_seed(seed, step))
        micro_batches = batches(step)
        total = accumulate(micro_batches, loss, precision=precision)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        refuse_non_finite(total, norm, step, micro_batches)
        if clip > 0:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        learning_rate = set_rates(optimizer, rate(step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield StepResult(
            step=step,
            loss=total.item(),
            grad_norm=norm.item(),
            learning_rate=learning_rate,
            num_targets=sum(batch.num_targets for batch in micro_batches),
            num_tokens=sum(batch.num_tokens for batch in micro_batches),
            seconds=time.perf_counter() - began,
        )


def accumulate(
    micro_batches: Sequence[Batch], loss: LossFunction, *, precision: Callable[[], Precision] = nullcontext
) -> torch.Tensor:
    """Backward over a step's micro-batches; returns the mean loss over all its targets.

    Every micro-batch is divided by the count of the whole step, so 1 x 8 equals 8 x 1.
    """
    count = sum(batch.num_targets for batch in micro_batches)
    total = torch.zeros(())
    for batch in micro_batches:
        with precision():
            sum_of_losses, _ = loss(batch)
        share = sum_of_losses / count
        share.backward()  # type: ignore[no-untyped-call]
        total = total + share.detach()
    return total


def refuse_non_finite(
    loss: torch.Tensor, norm: torch.Tensor, step: int, micro_batches: Sequence[Batch]
) -> None:
    """Stops before the weights move, and names the rows of the guilty step."""
    if torch.isfinite(loss) and torch.isfinite(norm):
        return
    rows = [row for batch in micro_batches for row in batch.rows]
    what = "loss" if not torch.isfinite(loss) else "gradient"
    raise NonFiniteError(
        f"the {what} became {(loss if what == 'loss' else norm).item()} at step {step}; "
        "the weights were not moved.",
        where=f"rows {', '.join(rows[:16])}{' ...' if len(rows) > 16 else ''}",
        fix="Lower train.learning_rate, or use train.precision=fp32; the last checkpoint is whole.",
    )


def step_seed(seed: int, step: int) -> int:
    """A seed for everything random in one step."""
    return (seed * 1_000_003 + step) % 2**63
