"""What a fit would cost here, measured by one real step on the longest batch."""

from __future__ import annotations

import tempfile
from typing import Any

import psutil

from gptailor.data.tokenize import build_encoder
from gptailor.launch import describe_machine
from gptailor.models.approach import Adapted
from gptailor.models.load import load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.pipeline.kinds import kind_of
from gptailor.pipeline.measure import trained_bytes
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.plan import plan_for, steps_within
from gptailor.pipeline.prepare import Prepared
from gptailor.pipeline.settle import timed_plan
from gptailor.pipeline.tokens import TokenizedParts
from gptailor.pipeline.trained import adapt, objective_of, trainings_of
from gptailor.pipeline.workshop import Workshop
from gptailor.recipe import AutoApproach, FrozenApproach, FullApproach, Recipe, TrainSettings

KEPT_CHECKPOINTS = 3  # the best, the last, and the one being written; each of weights and two moments
RESOURCES = ("memory_bytes", "memory_spare_bytes", "disk_free_bytes")


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
    adapted = adapt(shop, approach)
    objective = objective_of(shop, adapted, tokens.rows["train"], tokens.rows["validation"])
    if isinstance(recipe.approach, FrozenApproach):
        whole = recipe.train.model_copy(update={"minutes": None})
        found = forecast_training(adapted, objective, whole, approach.kind)
        epochs = found["steps"] * found["batch_size"] / len(objective.lengths)
        forward = found["seconds"] / 3 / epochs  # one pass over the rows, and no backward
        return {"approach": "frozen", "seconds": forward, **{name: found[name] for name in RESOURCES}}
    trainings = trainings_of(shop)
    return forecast_training(adapted, objective, recipe.train, approach.kind, trainings=trainings)


def forecast_training(
    adapted: Adapted, objective: Objective, settings: TrainSettings, approach: str, *, trainings: int = 1
) -> dict[str, Any]:
    """One real step on the longest batch, and what follows from it for time and memory.

    Args:
        adapted: The model, ready to train.
        objective: What its batches and its loss are.
        settings: How it is trained.
        approach: full, lora or scratch.
        trainings: How many of this length share the time.
    """
    plan = plan_for(settings, adapted, objective, approach)
    plan, seconds, (peak, spare) = timed_plan(settings, adapted, objective, plan)
    steps = steps_within(settings.minutes, plan, seconds * trainings)
    return {
        "approach": approach,
        "steps": steps,
        "trainings": trainings,
        "seconds": seconds * trainings * steps / plan.steps,
        "batch_size": plan.batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "precision": plan.precision,
        "compiled": plan.compiled,
        "memory_bytes": peak,
        "memory_spare_bytes": spare,
        "checkpoint_bytes": KEPT_CHECKPOINTS * 3 * trained_bytes(adapted),
        "disk_free_bytes": psutil.disk_usage(tempfile.gettempdir()).free,
    }
