"""What a fit would cost here, measured by one real step on the longest batch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import psutil

from gptailor.data.tokenize import build_encoder
from gptailor.launch import available_memory, describe_machine
from gptailor.models.approach import Adapted
from gptailor.models.load import load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.pipeline.kinds import kind_of
from gptailor.pipeline.measure import measure_plan
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.prepare import Prepared
from gptailor.pipeline.tokens import TokenizedParts
from gptailor.pipeline.trained import adapt, objective_of, plan_for
from gptailor.pipeline.workshop import Workshop
from gptailor.recipe import AutoApproach, FrozenApproach, FullApproach, Recipe, TrainSettings


def forecast_fit(recipe: Recipe, prepared: Prepared, tokens: TokenizedParts) -> dict[str, Any]:
    """Seconds and memory of the recipe's approach (auto: of the full fine-tune, its dearer half)."""
    base = resolve_base(recipe.base, revision=recipe.revision)
    tokenizer: Any = load_tokenizer(base)
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=tokenizer.pad_token_id)
    kind, machine = kind_of(prepared.form), describe_machine()
    shop = Workshop(recipe, base, tokenizer, encoder, tokens, prepared.label_names, machine, kind)
    approach = recipe.approach
    if isinstance(approach, AutoApproach | FrozenApproach):
        approach = FullApproach()
    before = memory_now()
    adapted = adapt(shop, approach)
    objective = objective_of(shop, adapted, tokens.rows["train"], tokens.rows["validation"])
    found = forecast_training(adapted, objective, recipe.train, approach.kind, memory_before=before)
    if isinstance(recipe.approach, FrozenApproach):
        epochs = found["steps"] * found["batch_size"] / len(tokens.rows["train"])
        forward = found["seconds"] / 3 / epochs  # one pass over the rows, and no backward
        kept = {name: found[name] for name in ("memory_bytes", *free_resources())}
        return {"approach": "frozen", "seconds": forward, **kept}
    return found


def forecast_training(
    adapted: Adapted, objective: Objective, settings: TrainSettings, approach: str, *, memory_before: int
) -> dict[str, Any]:
    """One real step on the longest batch, and what follows from it for time and memory.

    Args:
        adapted: The model, ready to train.
        objective: What its batches and its loss are.
        settings: How it is trained.
        approach: full, lora or scratch.
        memory_before: Bytes that the process had before the model was loaded.
    """
    plan, seconds = measure_plan(adapted, objective, plan_for(settings, adapted, objective, approach))
    weights = sum(parameter.nbytes for parameter in adapted.plain.parameters())
    peak = memory_now() - memory_before + 2 * weights  # AdamW's moments come on top
    return {
        "approach": approach,
        "steps": plan.steps,
        "seconds": seconds,
        "batch_size": plan.batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "precision": plan.precision,
        "memory_bytes": peak,
        "checkpoint_bytes": 3 * 3 * weights,
        **free_resources(),
    }


def memory_now() -> int:
    """Bytes that this process has in memory."""
    return int(psutil.Process().memory_info().rss)


def free_resources() -> dict[str, int]:
    """Memory and disk that nobody uses now, in bytes."""
    return {
        "memory_free_bytes": available_memory(),
        "disk_free_bytes": psutil.disk_usage(str(Path(tempfile.gettempdir()))).free,
    }
