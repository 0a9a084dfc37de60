"""One real step on the longest batch: does it fit, and how long does it take."""

from __future__ import annotations

import dataclasses
import time
from functools import partial

import numpy as np
import psutil
import torch

from gptailor.errors import ModelError
from gptailor.launch import available_memory, precision_context
from gptailor.models.approach import Adapted
from gptailor.models.lean import can_compile, is_lean
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.plan import Plan
from gptailor.pipeline.training import engine, micro_batches
from gptailor.train.loop import accumulate

COMPILE_PAYS_FROM = 300  # seconds of training; compiling takes 10 to 25 on two cores, on a busy machine more
COMPILED_GAIN = 1.1  # times as fast it must be, or it isn't worth its trouble


def choose_compiled(
    adapted: Adapted, objective: Objective, plan: Plan, seconds: float, *, wanted: str, minutes: float | None
) -> tuple[Plan, float]:
    """The plan with compiled blocks where that pays, and the seconds its training will take at most.

    It pays where training is long; `minutes` is what it may take.

    Raises:
        ModelError: it is wanted, and can't be had.
    """
    short = min(seconds, 60 * minutes if minutes else seconds) < COMPILE_PAYS_FROM
    possible = is_lean(adapted.plain) and can_compile()
    if wanted == "on" and not possible:
        raise ModelError(
            "can't be compiled: that takes a GPT-2 on a processor and a C++ compiler (g++ or clang++).",
            where="train.compile",
            fix="Install a compiler, or leave train.compile at auto.",
        )
    if wanted == "off" or not possible or (wanted == "auto" and short):
        return plan, seconds
    compiled = dataclasses.replace(plan, compiled=True)
    faster = measure_plan(adapted, objective, compiled)[1]
    keep = wanted == "on" or faster * COMPILED_GAIN < seconds
    return (compiled, faster) if keep else (plan, seconds)


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
    """Seconds of one forward and backward over the longest batch (the third try), and its tokens.

    The first two fill fresh memory: whatever is measured after something else would seem faster than it is.
    """
    longest = np.argsort(-objective.lengths, kind="stable")[: plan.batch_size]
    adapted.trained.train()
    seconds = 0.0
    weights = [weight for weight in adapted.trained.parameters() if weight.requires_grad]
    on_gpu = adapted.plain.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()  # of what was trained before in this process
    # What AdamW will hold from the first step on; a GPU has no room to lend where that doesn't fit.
    moments = [torch.empty_like(weight) for weight in weights for _ in range(2)] if on_gpu else []
    with engine(adapted, plan) as (workers, lean):
        batches = micro_batches(objective, longest, plan, padded=lean is None)
        for _ in range(3):
            began = time.perf_counter()
            accumulate(
                batches,
                objective.loss,
                weights=weights,
                precision=partial(precision_context, plan.precision, adapted.plain.device.type),
                workers=workers,
                lean=lean,
            )
            seconds = time.perf_counter() - began
            adapted.trained.zero_grad(set_to_none=True)
    del moments
    return seconds, int(objective.lengths[longest].sum())  # counted as the mean it is compared with


def memory_in_training(adapted: Adapted) -> tuple[int, int]:
    """After a measured step: bytes that training takes with AdamW's moments, and bytes that stay free then.

    Of a GPU its own memory, else that of this process.
    """
    if adapted.plain.device.type == "cuda":  # the moments were there when the step was measured
        return torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[0]
    moments = 2 * trained_bytes(adapted)
    return int(psutil.Process().memory_info().rss) + moments, max(0, available_memory() - moments)


def trained_bytes(adapted: Adapted) -> int:
    """Bytes of the weights that training changes."""
    return sum(weight.nbytes for weight in adapted.trained.parameters() if weight.requires_grad)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
