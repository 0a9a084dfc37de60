"""What a fit would cost here, measured by one real step on the longest batch."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gptailor.data.tokenize import build_encoder
from gptailor.launch import available_memory, describe_machine
from gptailor.models.approach import Adapted
from gptailor.models.forward import compute_features
from gptailor.models.load import load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.pipeline.folder import default_folder
from gptailor.pipeline.frozen import base_classifier, features_precision
from gptailor.pipeline.kinds import kind_of
from gptailor.pipeline.measure import trained_bytes
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.plan import plan_for, steps_within
from gptailor.pipeline.prepare import Prepared
from gptailor.pipeline.settle import timed_plan
from gptailor.pipeline.tokens import TokenizedParts, sequences_of
from gptailor.pipeline.trained import adapt, objective_of, trainings_of
from gptailor.pipeline.workshop import Workshop, few_rows, folds_of, pool_of
from gptailor.recipe import AutoApproach, FrozenApproach, FullApproach, Recipe
from gptailor.train.checkpoint import refuse_too_little_space
from gptailor.types import PARTS

KEPT_CHECKPOINTS = 3  # the best, the last, and the one being written; each of weights and two moments
MEASURED_TOKENS = 4096  # that frozen features are timed on


def forecast_fit(recipe: Recipe, prepared: Prepared, tokens: TokenizedParts) -> dict[str, Any]:
    """Seconds and memory of the recipe's approach (auto: of the full fine-tune, its dearer half)."""
    base = resolve_base(recipe.base, revision=recipe.revision)
    tokenizer: Any = load_tokenizer(base)
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=tokenizer.pad_token_id)
    kind, machine = kind_of(prepared.form), describe_machine()
    shop = Workshop(recipe, base, tokenizer, encoder, tokens, prepared.label_names, machine, kind)
    if few_rows(shop):
        folds_of(pool_of(shop), seed=recipe.seed, strata=kind.strata)  # which can't be had of any rows
    approach = recipe.approach
    if isinstance(approach, FrozenApproach):
        return _forecast_features(shop)
    if isinstance(approach, AutoApproach):
        approach = FullApproach()
    adapted = adapt(shop, approach)
    objective = objective_of(shop, adapted, tokens.rows["train"], tokens.rows["validation"])
    return forecast_training(adapted, objective, recipe, approach.kind, trainings=trainings_of(shop))


def _forecast_features(shop: Workshop) -> dict[str, Any]:
    """One pass over the longest rows, and what follows from it for all of them."""
    model = base_classifier(shop)
    rows = [row for part in PARTS for row in shop.tokens.rows[part]]
    lengths = np.array([len(row.token_ids) for row in rows])
    order = np.argsort(-lengths, kind="stable")
    longest = order[: 1 + int(np.searchsorted(lengths[order].cumsum(), MEASURED_TOKENS))]
    sequences = sequences_of([rows[place] for place in longest.tolist()])
    settings: Any = {"pad_id": shop.encoder.pad_id, "precision": features_precision(shop, model)}
    compute_features(model, sequences[-1:], **settings)  # what the first pass takes beside is no row's
    began = time.perf_counter()
    compute_features(model, sequences, **settings)
    seconds = (time.perf_counter() - began) * float(lengths.sum() / lengths[longest].sum())
    memory = {"memory_bytes": psutil.Process().memory_info().rss, "memory_spare_bytes": available_memory()}
    return {"approach": "frozen", "seconds": seconds, **memory, "disk_free_bytes": _disk_free(shop.recipe)}


def forecast_training(
    adapted: Adapted, objective: Objective, recipe: Recipe, approach: str, *, trainings: int = 1
) -> dict[str, Any]:
    """One real step on the longest batch, and what follows from it for time, memory and disk.

    Args:
        adapted: The model, ready to train.
        objective: What its batches and its loss are.
        recipe: How it is trained, and where its run will lie.
        approach: full, lora or scratch.
        trainings: How many of this length share the time.

    Raises:
        CheckpointError: the checkpoints don't fit on the disk.
    """
    refuse_too_little_space(_disk(recipe), adapted.trained)
    settings = recipe.train
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
        "disk_free_bytes": _disk_free(recipe),
    }


def _disk(recipe: Recipe) -> Path:
    """The folder that there is already, of those the run will lie in."""
    folder = Path(recipe.out or default_folder(recipe)).absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _disk_free(recipe: Recipe) -> int:
    return shutil.disk_usage(_disk(recipe)).free
