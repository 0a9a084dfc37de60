"""What a fit would cost here, measured by one real step on the longest batch."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from gptailor.data.batch import split_step
from gptailor.launch import describe_machine
from gptailor.models.load import load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.pipeline.candidates import Workshop, adapt, plan_for
from gptailor.pipeline.prepare import Prepared
from gptailor.pipeline.tokens import TokenizedParts
from gptailor.pipeline.training import Plan
from gptailor.recipe import AutoApproach, FrozenApproach, FullApproach, Recipe
from gptailor.train.loop import accumulate
from gptailor.train.loss import classification_logits, classification_loss
from gptailor.types import Batch


def forecast_fit(recipe: Recipe, prepared: Prepared, tokens: TokenizedParts) -> dict[str, Any]:
    """Seconds and memory of the recipe's approach (auto: of the full fine-tune, its dearer half)."""
    from gptailor.data.tokenize import build_encoder

    base = resolve_base(recipe.base, revision=recipe.revision)
    tokenizer: Any = load_tokenizer(base)
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=tokenizer.pad_token_id)
    shop = Workshop(recipe, base, tokenizer, encoder, tokens, prepared.label_names, describe_machine())
    approach = recipe.approach
    if isinstance(approach, AutoApproach | FrozenApproach):
        approach = FullApproach()
    before = psutil.Process().memory_info().rss
    adapted = adapt(shop, approach)
    plan = plan_for(shop, adapted, approach.kind)
    seconds, tokens_in_step = measure_step(shop, adapted, plan)
    mean = float(np.mean([len(row.token_ids) for row in tokens.rows["train"]])) * plan.batch_size
    weights = sum(parameter.nbytes for parameter in adapted.plain.parameters())
    peak = psutil.Process().memory_info().rss - before + 2 * weights  # AdamW's moments come on top
    if isinstance(recipe.approach, FrozenApproach):
        forward = seconds / 3 * (len(tokens.rows["train"]) / plan.batch_size) * mean / tokens_in_step
        return {"approach": "frozen", "seconds": forward, "memory_bytes": peak, **_free()}
    return {
        "approach": approach.kind,
        "steps": plan.steps,
        "seconds": seconds * plan.steps * mean / tokens_in_step,
        "seconds_per_longest_step": seconds,
        "batch_size": plan.batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "precision": plan.precision,
        "memory_bytes": peak,
        "checkpoint_bytes": 2 * 3 * weights,
        **_free(),
    }


def measure_step(shop: Workshop, adapted: Any, plan: Plan) -> tuple[float, int]:
    """Seconds of one forward and backward over the longest batch (the second try), and its tokens."""
    rows = sorted(shop.tokens.rows["train"], key=lambda row: -len(row.token_ids))[: plan.batch_size]
    batches = split_step(rows, micro_batch_size=plan.micro_batch_size, pad_id=shop.encoder.pad_id)

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


def _free() -> dict[str, int]:
    return {
        "memory_free_bytes": psutil.virtual_memory().available,
        "disk_free_bytes": psutil.disk_usage(str(Path(tempfile.gettempdir()))).free,
    }
