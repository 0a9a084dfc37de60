"""One training run from the first step (or the last checkpoint) to the best weights.

The consumer of `training_steps`: it logs, validates, saves, stops early and can be killed at any moment.
Everything it decides is keyed to steps, never to seconds, so a resumed run decides the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch

from gptailor.data.batch import Order, StepRows, split_step
from gptailor.errors import Interrupted, NonFiniteError
from gptailor.launch import keep_freed_memory, precision_context
from gptailor.models.approach import Adapted
from gptailor.models.dropout import draws_from_the_process, use_streams
from gptailor.models.lean import LeanBody, is_lean, lean_training
from gptailor.models.rows import used_rows_only
from gptailor.pipeline.objective import Objective, Validation
from gptailor.pipeline.place import Progress, Trained, TrainingPlace, line_of
from gptailor.pipeline.plan import Plan
from gptailor.recipe import TrainSettings
from gptailor.train.checkpoint import (
    checkpoint_path,
    load_weights,
    refuse_too_little_space,
)
from gptailor.train.loop import training_steps
from gptailor.train.optimize import build_optimizer, rate_factor
from gptailor.train.workers import Workers
from gptailor.types import Batch, IntArray, StepResult


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
    with used_rows_only(adapted.plain, objective.used):
        bring_into_memory(adapted)
        optimizer = optimizer_of(adapted, objective, plan=plan, settings=settings)
        first, progress = place.resume(adapted.trained, optimizer)
        if first == 0:
            refuse_too_little_space(place.folder, adapted.trained)
        last = end_at or plan.steps
        place.show({"kind": "plan", "steps": last, "first": first})
        steps = steps_of(
            adapted,
            objective,
            optimizer,
            plan=plan,
            settings=settings,
            seed=place.seed,
            steps=range(first + 1, last + 1) if not progress.stopped else range(0),
        )
        with closing(steps):
            for result in steps:
                place.write(line_of(result))
                at_end = result.step == last
                validates = end_at is None and (at_end or result.step % plan.validate_every == 0)
                if validates:
                    validation = objective.validate(plan.precision)
                    progress = judge(progress, validation, result.step, plan=plan, settings=settings)
                    place.write(validation.line(result.step))
                elif at_end:
                    stopped = "time" if plan.in_time else "length"
                    progress = dataclasses.replace(progress, best_step=last, stopped=stopped)
                if validates or at_end or result.step % plan.save_every == 0 or place.stop.name is not None:
                    place.save(adapted.trained, optimizer, step=result.step, progress=progress)
                if progress.stopped:
                    break
                if place.stop.name is not None:
                    raise Interrupted(
                        f"stopped by {place.stop.name} at step {result.step} of {plan.steps}; "
                        "the state is saved.",
                        fix="Run the same command again to go on.",
                    )
        load_weights(checkpoint_path(place.folder, progress.best_step), adapted.trained)
    adapted.trained.eval()
    return place.summary(progress)


def bring_into_memory(adapted: Adapted) -> None:
    """Weights that will move become the process's own: read from a file, they are pages of that file, which
    are copied one by one when they first move, and keep all of it in memory.
    """
    keep_freed_memory()
    for weight in adapted.trained.parameters():
        if weight.requires_grad and weight.device.type == "cpu":
            weight.data = weight.detach().clone()


@contextmanager
def engine(adapted: Adapted, plan: Plan) -> Iterator[tuple[Workers, LeanBody | None]]:
    """What computes a step: workers side by side, and the lean body where the base is a GPT-2."""
    model: Any = adapted.plain.base_model
    # torch draws dropout again where it recomputes, and knows only the process's own stream.
    alone = not is_lean(adapted.plain) and (
        model.is_activation_checkpointing or draws_from_the_process(adapted.trained, model.config.to_dict())
    )
    if not alone:
        use_streams(adapted.trained)
    keep_freed_memory()
    with lean_training(adapted.plain, precision=plan.precision, compiled=plan.compiled) as lean:
        yield Workers(1 if alone else plan.workers), lean


def micro_batches(objective: Objective, rows: IntArray, plan: Plan, *, padded: bool) -> list[Batch]:
    """The rows of a step, longest first, as micro-batches; `padded`: padding is computed, too."""
    cuts = split_step(
        objective.lengths[rows].tolist(),
        micro_batch_size=plan.micro_batch_size,
        workers=plan.workers,
        padded=padded,
    )
    return [objective.batch(rows[cut].tolist()) for cut in cuts]


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
) -> Generator[StepResult, None, None]:
    """The steps of a plan, one by one; whoever consumes them decides what is kept and when it ends.

    The weights are read anew at the first step: a resumed run has put them there by then.
    """
    rows_of = StepRows(Order(objective.lengths, batch_size=plan.batch_size, seed=seed))
    with engine(adapted, plan) as (workers, lean):
        yield from training_steps(
            adapted.trained,
            optimizer,
            batches=lambda step: micro_batches(objective, rows_of(step), plan, padded=lean is None),
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
            workers=workers,
            lean=lean,
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
        stopped=("time" if plan.in_time else "length") if step == plan.steps else stopped,
    )


def _head_name_in(adapted: Adapted) -> str:
    names = [name for name, module in adapted.plain.named_children() if module is adapted.head]
    return names[0] if names else ""
