"""One real step on the longest batch: does it fit, and how long does it take."""

from __future__ import annotations

import dataclasses
import time
from functools import partial

import numpy as np
import torch

from gptailor.errors import ModelError
from gptailor.launch import precision_context
from gptailor.models.approach import Adapted
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.training import Plan
from gptailor.train.loop import accumulate


def measure_plan(adapted: Adapted, objective: Objective, plan: Plan) -> tuple[Plan, float]:
    """The plan with a micro-batch that fits memory, and the seconds its training will take at most.

    Halves the micro-batch, never the effective batch, until the longest batch fits.

    Raises:
        ModelError: not even one row fits.
    """
    while True:
        try:
            seconds, num_tokens = measure_step(adapted, objective, plan)
            break
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            adapted.trained.zero_grad(set_to_none=True)
            if plan.micro_batch_size == 1:
                raise ModelError(
                    "not even one row of the longest length fits in memory.",
                    where="the longest batch",
                    fix="Lower data.max_tokens, set train.gradient_checkpointing=true, or use approach lora.",
                ) from None
            plan = dataclasses.replace(plan, micro_batch_size=-(-plan.micro_batch_size // 2))
    return plan, seconds * plan.steps * float(objective.lengths.mean()) * plan.batch_size / num_tokens


def measure_step(adapted: Adapted, objective: Objective, plan: Plan) -> tuple[float, int]:
    """Seconds of one forward and backward over the longest batch (the second try), and its tokens."""
    longest = np.argsort(-objective.lengths, kind="stable")[: plan.batch_size]
    batches = objective.batches(longest.tolist(), plan.micro_batch_size)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        accumulate(
            batches,
            objective.loss,
            precision=partial(precision_context, plan.precision, adapted.plain.device.type),
        )
        seconds = time.perf_counter() - began
        adapted.trained.zero_grad(set_to_none=True)
    return seconds, sum(batch.num_tokens for batch in batches)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
