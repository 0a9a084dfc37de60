"""One training run from the first step (or the last checkpoint) to the best weights.

The consumer of `training_steps`: it logs, validates, saves, stops early and can be killed at any moment.
Everything it decides is keyed to steps, never to seconds, so a resumed run decides the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from gptailor.data.batch import Order, StepRows
from gptailor.errors import Interrupted, NonFiniteError
from gptailor.launch import Precision, precision_context
from gptailor.models.approach import Adapted
from gptailor.pipeline.objective import Objective, Validation
from gptailor.pipeline.place import Progress, Trained, TrainingPlace
from gptailor.recipe import TrainSettings, duration
from gptailor.train.checkpoint import (
    checkpoint_path,
    load_weights,
    refuse_too_little_space,
)
from gptailor.train.loop import training_steps
from gptailor.train.optimize import build_optimizer, rate_factor
from gptailor.types import StepResult

DEFAULT_EPOCHS = {"scratch": 15}
SHORTEST, LONGEST = 200, 20_000  # steps, where the recipe leaves the length open
VALIDATIONS = 25  # at most, where the recipe leaves the length open


@dataclass(frozen=True, slots=True)
class Plan:
    """What was resolved about a training run, in steps."""

    steps: int
    validate_every: int
    save_every: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    head_learning_rate: float
    precision: Precision


def resolve_plan(
    settings: TrainSettings,
    *,
    approach: str,
    num_weights: int,
    num_rows: int,
    micro_batch_size: int,
    precision: Precision,
) -> Plan:
    """Turns lengths into steps and fills in the rates (docs/decisions/0010-default-settings.md)."""
    batch_size = min(settings.batch_size, num_rows)
    per_epoch = -(-num_rows // batch_size)
    amount, unit = (
        duration(settings.length) if settings.length else (DEFAULT_EPOCHS.get(approach, 5), "epochs")
    )
    steps = max(1, round(amount * per_epoch if unit == "epochs" else amount))
    validate_every = -(-per_epoch // settings.validations_per_epoch)
    if settings.length is None:
        steps = min(max(steps, SHORTEST), LONGEST)
        validate_every = max(validate_every, -(-steps // VALIDATIONS))
    validate_every = min(validate_every, steps)
    save_every = validate_every
    if settings.save_every:
        amount, unit = duration(settings.save_every)
        save_every = max(1, round(amount * per_epoch if unit == "epochs" else amount))
    asked = settings.learning_rate
    rate = usual_rates(num_weights)[approach] if asked is None or asked == "find" else asked
    return Plan(
        steps=steps,
        validate_every=validate_every,
        save_every=save_every,
        batch_size=batch_size,
        micro_batch_size=min(micro_batch_size, batch_size),
        learning_rate=rate,
        head_learning_rate=settings.head_learning_rate or max(1e-3, rate),
        precision=precision,
    )


def usual_rates(num_weights: int) -> dict[str, float]:
    """Peak learning rates by approach, where the recipe leaves them open."""
    small = num_weights <= 50_000_000
    return {"full": 3e-4 if small else 5e-5, "lora": 1e-3 if small else 2e-4, "scratch": 1e-3}


def train(
    adapted: Adapted,
    objective: Objective,
    *,
    plan: Plan,
    settings: TrainSettings,
    place: TrainingPlace,
    end_at: int | None = None,
) -> Trained:
    """Trains, resuming by itself from the newest whole checkpoint, and loads the best weights at the end.

    With `end_at` nothing is validated: the weights of that step are the result (a refit on all rows).

    Raises:
        Interrupted: a signal came; the state is saved.
        NonFiniteError: loss or gradient is not a number; the last checkpoint is whole.
        CheckpointError: the disk is full or failing.
    """
    optimizer = optimizer_of(adapted, objective, plan=plan, settings=settings)
    first, progress = place.resume(adapted.trained, optimizer)
    if first == 0:
        refuse_too_little_space(place.folder, adapted.trained)
    steps = steps_of(
        adapted,
        objective,
        optimizer,
        plan=plan,
        settings=settings,
        seed=place.seed,
        steps=range(first + 1, (end_at or plan.steps) + 1) if not progress.stopped else range(0),
    )
    place.show({"kind": "plan", "steps": end_at or plan.steps, "first": first})
    for result in steps:
        place.log_step(result)
        last = result.step == (end_at or plan.steps)
        if end_at is None and (last or result.step % plan.validate_every == 0):
            validation = objective.validate(plan.precision)
            progress = judge(progress, validation, result.step, plan=plan, settings=settings)
            where = {"step": result.step, "loss": validation.loss}
            place.write({"kind": "validation", **where, **validation.shown})
            commit = True
        else:
            commit = last or result.step % plan.save_every == 0
        if end_at is not None and last:
            progress = dataclasses.replace(progress, best_step=end_at, stopped="length")
        if commit or place.stop.name is not None:
            place.save(adapted.trained, optimizer, step=result.step, progress=progress)
        if progress.stopped:
            break
        if place.stop.name is not None:
            raise Interrupted(
                f"stopped by {place.stop.name} at step {result.step} of {plan.steps}; the state is saved.",
                fix="Run the same command again to go on.",
            )
    load_weights(checkpoint_path(place.folder, progress.best_step), adapted.trained)
    adapted.trained.eval()
    return place.summary(progress)


def optimizer_of(
    adapted: Adapted, objective: Objective, *, plan: Plan, settings: TrainSettings
) -> torch.optim.AdamW:
    """The optimizer of a plan: a new head has a rate of its own."""
    return build_optimizer(
        adapted.trained,
        learning_rate=plan.learning_rate,
        head_learning_rate=plan.head_learning_rate,
        weight_decay=settings.weight_decay,
        head=_head_name_in(adapted) if objective.new_head else "",
    )


def steps_of(
    adapted: Adapted,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    plan: Plan,
    settings: TrainSettings,
    seed: int,
    steps: range,
) -> Iterator[StepResult]:
    """The steps of a plan, one by one; whoever consumes them decides what is kept and when it ends."""
    rows_of = StepRows(Order(objective.lengths, batch_size=plan.batch_size, seed=seed))
    return training_steps(
        adapted.trained,
        optimizer,
        batches=lambda step: objective.batches(rows_of(step).tolist(), plan.micro_batch_size),
        loss=objective.loss,
        rate=partial(
            rate_factor,
            total=plan.steps,
            schedule=settings.schedule,
            warmup=settings.warmup,
            decay=settings.decay,
        ),
        steps=steps,
        clip=settings.clip,
        seed=seed,
        precision=partial(precision_context, plan.precision, adapted.plain.device.type),
    )


def judge(
    progress: Progress, validation: Validation, step: int, *, plan: Plan, settings: TrainSettings
) -> Progress:
    """Decides what a validation means: a new best, one more without gain, or the end.

    Raises:
        NonFiniteError: the validation loss is not a number.
    """
    loss, score = validation.loss, validation.score
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the validation loss became {loss} at step {step}.",
            fix="Lower train.learning_rate, or use train.precision=fp32; the last checkpoint is whole.",
        )
    better = score > progress.score or (score == progress.score and loss < progress.best_loss)
    gained = better or loss < progress.best_loss
    stale = 0 if gained else progress.stale + 1
    stopped = "early" if settings.patience and stale >= settings.patience else ""
    return dataclasses.replace(
        progress,
        best_step=step if better else progress.best_step,
        score=max(score, progress.score),
        best_loss=min(loss, progress.best_loss),
        stale=stale,
        stopped="length" if step == plan.steps else stopped,
    )


def _head_name_in(adapted: Adapted) -> str:
    names = [name for name, module in adapted.plain.named_children() if module is adapted.head]
    return names[0] if names else ""
