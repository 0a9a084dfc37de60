"""The training loop: a generator of steps, in plain sight.

Whoever consumes it logs, validates, saves and stops; see `pipeline`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from gptailor.errors import NonFiniteError
from gptailor.models.dropout import stream
from gptailor.models.lean import LeanBody
from gptailor.train.loss import LossFunction
from gptailor.train.optimize import clip_gradients, set_rates
from gptailor.train.workers import Workers
from gptailor.types import Batch, StepResult

ALONE = Workers(1)


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
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    workers: Workers = ALONE,
    lean: LeanBody | None = None,
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
        workers: Compute micro-batches side by side.
        lean: The body's copies of the weights, where it keeps any.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; the weights of this step did not move.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = lean.gradients_to_keep() if lean is not None else {}
    model.train()
    clear_gradients(parameters, kept)
    for step in steps:
        began = time.perf_counter()
        torch.manual_seed(step_seed(seed, step))
        micro_batches = batches(step)
        total = accumulate(
            micro_batches,
            loss,
            weights=parameters,
            precision=precision,
            seed=step_seed(seed, step),
            workers=workers,
            lean=lean,
        )
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        refuse_non_finite(total, norm, step, micro_batches)
        clip_gradients(optimizer, parameters, norm, clip)
        learning_rate = set_rates(optimizer, rate(step))
        optimizer.step()
        clear_gradients(parameters, kept)
        if lean is not None:
            lean.refresh()
        yield StepResult(
            step=step,
            loss=total.item(),
            grad_norm=norm.item(),
            learning_rate=learning_rate,
            num_targets=sum(batch.num_targets for batch in micro_batches),
            num_tokens=sum(batch.num_tokens for batch in micro_batches),
            seconds=time.perf_counter() - began,
        )


def clear_gradients(parameters: Sequence[nn.Parameter], kept: Mapping[nn.Parameter, Tensor]) -> None:
    """No gradients, but zeros in the memory of those that are kept."""
    for parameter in parameters:
        parameter.grad = kept[parameter].zero_() if parameter in kept else None


def accumulate(
    micro_batches: Sequence[Batch],
    loss: LossFunction,
    *,
    weights: Sequence[nn.Parameter],
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    seed: int = 0,
    workers: Workers = ALONE,
    lean: LeanBody | None = None,
) -> Tensor:
    """The gradients of a step's micro-batches into `weights`; returns the mean loss over all its targets.

    Every micro-batch is divided by the count of the whole step, so 1 x 8 equals 8 x 1. Sums are made in a
    fixed order, whichever worker ends first.
    """
    count = sum(batch.num_targets for batch in micro_batches)
    leaves = [(weight, weight) for weight in weights] + (lean.leaves() if lean is not None else [])

    def compute(share: Sequence[tuple[int, Batch]]) -> tuple[list[Tensor | None], Tensor]:
        sums: list[Tensor | None] = [None] * len(leaves)
        total = torch.zeros(())
        for place, batch in share:
            with stream(seed * 10_007 % 2**63 + place), precision():
                value = loss(batch)[0] / count
            found = torch.autograd.grad(value, [leaf for _, leaf in leaves], allow_unused=True)
            sums = [_add(one, more) for one, more in zip(sums, found, strict=True)]
            total = total + value.detach().cpu()
        return sums, total

    new = lean is not None and lean.takes_turns()
    results = workers.run(compute, list(enumerate(micro_batches)), one_by_one=new)
    for place, (weight, _) in enumerate(leaves):
        for sums, _ in results:
            weight.grad = _add(weight.grad, sums[place], like=weight)
            sums[place] = None  # not both in memory longer than needed
    total: Tensor = sum((total for _, total in results), torch.zeros(()))
    return total


def _add(total: Tensor | None, more: Tensor | None, *, like: Tensor | None = None) -> Tensor | None:
    """The sum, in at least fp32 as soon as there is one; with `like` as dense and of its type."""
    if more is None:
        return total
    if total is None:
        return more if like is None else (more.to_dense() if more.is_sparse else more).to(like.dtype)
    if total.is_sparse and not more.is_sparse:  # only a dense one can be added to
        total, more = more, total
    return total.to(torch.promote_types(total.dtype, torch.float32)).add_(more)


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
