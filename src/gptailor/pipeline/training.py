"""One training run from the first step (or the last checkpoint) to the best weights.

The consumer of `training_steps`: it logs, validates, saves, stops early and can be killed at any moment.
Everything it decides is keyed to steps, never to seconds, so a resumed run decides the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gptailor.data.batch import Order, StepRows, split_step
from gptailor.errors import Interrupted, NonFiniteError
from gptailor.evaluate.run import macro_f1
from gptailor.launch import Precision, precision_context
from gptailor.models.approach import Adapted
from gptailor.pipeline.classify import by_text, classify_rows, to_device
from gptailor.pipeline.place import Progress, Trained, TrainingPlace
from gptailor.recipe import TrainSettings, duration
from gptailor.tasks.classification import weights_by_label
from gptailor.train.checkpoint import (
    checkpoint_path,
    load_weights,
    refuse_too_little_space,
)
from gptailor.train.loop import training_steps
from gptailor.train.loss import (
    balanced_weights,
    classification_logits,
    classification_loss,
    normalized_weights,
)
from gptailor.train.optimize import build_optimizer, rate_factor
from gptailor.types import Batch, StepResult, TokenizedExample

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
    small = num_weights <= 50_000_000
    rates = {"full": 3e-4 if small else 5e-5, "lora": 1e-3 if small else 2e-4, "scratch": 1e-3}
    rate = settings.learning_rate or rates[approach]
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


def train(
    adapted: Adapted,
    train_rows: Sequence[TokenizedExample],
    validation_rows: Sequence[TokenizedExample],
    *,
    plan: Plan,
    settings: TrainSettings,
    place: TrainingPlace,
    label_names: Sequence[str],
    end_at: int | None = None,
) -> Trained:
    """Trains, resuming by itself from the newest whole checkpoint, and loads the best weights at the end.

    With `end_at` nothing is validated: the weights of that step are the result (a refit on all rows).

    Raises:
        Interrupted: a signal came; the state is saved.
        NonFiniteError: loss or gradient is not a number; the last checkpoint is whole.
        CheckpointError: the disk is full or failing.
    """
    optimizer = build_optimizer(
        adapted.trained,
        learning_rate=plan.learning_rate,
        head_learning_rate=plan.head_learning_rate,
        weight_decay=settings.weight_decay,
        head=_head_name_in(adapted),
    )
    first, progress = place.resume(adapted.trained, optimizer)
    if first == 0:
        refuse_too_little_space(place.folder, adapted.trained)
    rows_of = StepRows(
        Order(np.array([len(r.token_ids) for r in train_rows]), batch_size=plan.batch_size, seed=place.seed)
    )
    device = adapted.plain.device
    pad_id = int(adapted.plain.config.pad_token_id)

    def batches(step: int) -> list[Batch]:
        chosen = [train_rows[int(row)] for row in rows_of(step)]
        made = split_step(chosen, micro_batch_size=plan.micro_batch_size, pad_id=pad_id)
        return [to_device(batch, device) for batch in made]

    class_weights = _class_weights(settings, train_rows, label_names)

    def loss(batch: Batch) -> tuple[Tensor, int]:
        logits = classification_logits(adapted.plain, adapted.head, batch)
        assert batch.labels is not None
        weights = None if class_weights is None else class_weights.to(logits.device)
        total = classification_loss(
            logits, batch.labels, class_weights=weights, label_smoothing=settings.label_smoothing
        )
        return total, batch.num_targets

    steps = training_steps(
        adapted.trained,
        optimizer,
        batches=batches,
        loss=loss,
        rate=partial(
            rate_factor,
            total=plan.steps,
            schedule=settings.schedule,
            warmup=settings.warmup,
            decay=settings.decay,
        ),
        steps=range(first + 1, (end_at or plan.steps) + 1) if not progress.stopped else range(0),
        clip=settings.clip,
        seed=place.seed,
        precision=partial(precision_context, plan.precision, device.type),
    )
    place.show({"kind": "plan", "steps": end_at or plan.steps, "first": first})
    validate = partial(_validate, adapted, validation_rows, plan=plan, pad_id=pad_id)
    for result in steps:
        place.log_step(result)
        last = result.step == (end_at or plan.steps)
        if end_at is None and (last or result.step % plan.validate_every == 0):
            progress = _judge(progress, validate(), result, plan=plan, settings=settings, place=place)
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


def _validate(
    adapted: Adapted, rows: Sequence[TokenizedExample], *, plan: Plan, pad_id: int
) -> tuple[float, float]:
    """Validation (loss in nats per text, macro-F1)."""
    logits, answers = by_text(classify_rows(adapted, rows, pad_id=pad_id, precision=plan.precision), rows)
    loss = classification_loss(torch.from_numpy(logits), torch.from_numpy(answers)).item() / len(answers)
    return loss, macro_f1(answers, logits.argmax(axis=1), num_labels=logits.shape[1])


def _judge(
    progress: Progress,
    validation: tuple[float, float],
    result: StepResult,
    *,
    plan: Plan,
    settings: TrainSettings,
    place: TrainingPlace,
) -> Progress:
    """Logs a validation and decides what it means: a new best, one more without gain, or the end."""
    loss, score = validation
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the validation loss became {loss} at step {result.step}.",
            fix="Lower train.learning_rate, or use train.precision=fp32; the last checkpoint is whole.",
        )
    place.write({"kind": "validation", "step": result.step, "loss": loss, "macro_f1": score})
    better = score > progress.score or (score == progress.score and loss < progress.best_loss)
    gained = better or loss < progress.best_loss
    stale = 0 if gained else progress.stale + 1
    stopped = "early" if settings.patience and stale >= settings.patience else ""
    return dataclasses.replace(
        progress,
        best_step=result.step if better else progress.best_step,
        score=max(score, progress.score),
        best_loss=min(loss, progress.best_loss),
        stale=stale,
        stopped="length" if result.step == plan.steps else stopped,
    )


def _class_weights(
    settings: TrainSettings, rows: Sequence[TokenizedExample], label_names: Sequence[str]
) -> Tensor | None:
    labels = torch.tensor([row.label for row in rows])
    if settings.class_weights == "none":
        return None
    if settings.class_weights == "balanced":
        return balanced_weights(labels, len(label_names))
    weights = torch.tensor(weights_by_label(settings.class_weights, label_names))
    return normalized_weights(weights, labels)


def _head_name_in(adapted: Adapted) -> str:
    names = [name for name, module in adapted.plain.named_children() if module is adapted.head]
    return names[0] if names else ""
