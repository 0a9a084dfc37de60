"""One real step on the longest batch: does it fit, and how long does it take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import torch

from gptailor.data.batch import split_step
from gptailor.errors import ModelError
from gptailor.models.approach import Adapted
from gptailor.pipeline.classify import to_device
from gptailor.pipeline.training import Plan
from gptailor.train.loop import accumulate
from gptailor.train.loss import classification_logits, classification_loss
from gptailor.types import Batch, TokenizedExample


def measure_plan(
    adapted: Adapted, rows: Sequence[TokenizedExample], plan: Plan, *, pad_id: int
) -> tuple[Plan, float]:
    """The plan with a micro-batch that fits memory, and the seconds its training will take at most.

    Halves the micro-batch, never the effective batch, until the longest batch fits.

    Raises:
        ModelError: not even one row fits.
    """
    while True:
        try:
            seconds, num_tokens = measure_step(adapted, rows, plan, pad_id=pad_id)
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
    mean_tokens = float(np.mean([len(row.token_ids) for row in rows])) * plan.batch_size
    return plan, seconds * plan.steps * mean_tokens / num_tokens


def measure_step(
    adapted: Adapted, rows: Sequence[TokenizedExample], plan: Plan, *, pad_id: int
) -> tuple[float, int]:
    """Seconds of one forward and backward over the longest batch (the second try), and its tokens."""
    longest = sorted(rows, key=lambda row: -len(row.token_ids))[: plan.batch_size]
    device = adapted.plain.device
    batches = [
        to_device(batch, device)
        for batch in split_step(longest, micro_batch_size=plan.micro_batch_size, pad_id=pad_id)
    ]

    def loss(batch: Batch) -> tuple[torch.Tensor, int]:
        assert batch.labels is not None
        logits = classification_logits(adapted.plain, adapted.head, batch)
        return classification_loss(logits, batch.labels), batch.num_targets

    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        accumulate(batches, loss)
        seconds = time.perf_counter() - began
        adapted.trained.zero_grad(set_to_none=True)
    return seconds, sum(batch.num_tokens for batch in batches)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
