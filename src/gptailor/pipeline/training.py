"""One training run from the first step (or the last checkpoint) to the best weights.

The consumer of `training_steps`: it logs, validates, saves, stops early and can be killed at any moment.
Everything it decides is keyed to steps, never to seconds, so a resumed run decides the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptailor.data.batch import Order, StepRows, collate, length_buckets, split_step
from gptailor.errors import Interrupted, NonFiniteError, RunError
from gptailor.evaluate.run import macro_f1
from gptailor.launch import Precision, StopRequest, precision_context
from gptailor.models.approach import Adapted
from gptailor.recipe import TrainSettings, duration
from gptailor.train.checkpoint import (
    checkpoint_path,
    clear_errors,
    load_optimizer,
    load_weights,
    newest_verified,
    prune,
    read_state,
    refuse_too_little_space,
    save_checkpoint,
)
from gptailor.train.loop import training_steps
from gptailor.train.loss import (
    balanced_weights,
    classification_logits,
    classification_loss,
    normalized_weights,
)
from gptailor.train.optimize import build_optimizer, rate_factor
from gptailor.types import Batch, FloatArray, IntArray, StepResult, TokenizedExample

EVALUATION_TOKENS = 4096  # per pass without gradients
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


@dataclass(frozen=True, slots=True)
class Progress:
    """The part of the state that a checkpoint carries beside weights and optimizer."""

    best_step: int = 0
    score: float = -1.0  # macro-F1 of the best
    best_loss: float = math.inf  # lowest validation loss so far
    stale: int = 0  # validations without gain
    stopped: str = ""
    log_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """How a training run ended; the model holds the best weights."""

    curves: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    best_step: int = 0
    stopped: str = "length"
    validation_macro_f1: float = 0.0
    seconds: float = 0.0
    tokens: int = 0


def resolve_plan(
    settings: TrainSettings,
    *,
    approach: str,
    num_weights: int,
    num_rows: int,
    micro_batch_size: int,
    precision: Precision,
) -> Plan:
    """Turns lengths into steps and fills in the rates (decisions in docs/decisions/defaults.md)."""
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


@dataclass(slots=True)
class TrainingPlace:
    """Where a training run writes: its checkpoints and its log. State that outlives a call."""

    folder: Path  # of the checkpoints
    log: Path  # metrics.jsonl
    seed: int
    environment: Mapping[str, Any]
    stop: StopRequest
    show: Callable[[Mapping[str, Any]], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None

    def resume(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Progress]:
        """The last committed step (0: none) and its progress; the log is cut back to that commit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        newest, passed_over = newest_verified(self.folder)
        for fault in passed_over:
            self.say(f"damaged checkpoint passed over: {fault}")
        if newest is None:
            self.log.write_bytes(b"")
            return 0, Progress()
        state = read_state(newest.path)
        progress = Progress(**state["progress"])
        if not self.log.exists() or self.log.stat().st_size < progress.log_bytes:
            raise RunError(
                f"is missing or shorter than it was at step {newest.step}.",
                where=str(self.log),
                fix="Put it back, or use --overwrite (the old run is moved aside).",
            )
        load_weights(newest.path, model)
        load_optimizer(newest.path, model, optimizer)
        with self.log.open("r+b") as log:
            log.truncate(progress.log_bytes)
        self.say(f"going on after step {newest.step}")
        return newest.step, progress

    def inside(self, name: str) -> TrainingPlace:
        """A place of its own under this one, for one fold; its log lies with its checkpoints."""
        folder = self.folder / name
        return dataclasses.replace(self, folder=folder, log=folder / "metrics.jsonl")

    def log_step(self, result: StepResult) -> None:
        self.write({"kind": "step", **dataclasses.asdict(result)})

    def write(self, line: Mapping[str, float | str]) -> None:
        """Appends one line to the log."""
        text = json.dumps(line) + "\n"
        with clear_errors(self.log, needed=len(text)), self.log.open("a", encoding="utf-8") as log:
            log.write(text)
        self.show(line)

    def save(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, step: int, progress: Progress
    ) -> None:
        """Commits a checkpoint (the log before it), then removes those that aren't needed any more."""
        with clear_errors(self.log, needed=0), self.log.open("rb") as log:
            os.fsync(log.fileno())
        progress = dataclasses.replace(progress, log_bytes=self.log.stat().st_size)
        save_checkpoint(
            self.folder,
            step=step,
            model=model,
            optimizer=optimizer,
            state={
                "progress": dataclasses.asdict(progress),
                "score": progress.score,
                "best_step": progress.best_step,
            },
            environment=self.environment,
        )
        prune(self.folder, keep={progress.best_step, step})

    def summary(self, progress: Progress) -> Trained:
        lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        steps = [line for line in lines if line["kind"] == "step"]
        return Trained(
            curves=curves_from(lines),
            steps=len(steps),
            best_step=progress.best_step,
            stopped=progress.stopped or "length",
            validation_macro_f1=progress.score,
            seconds=sum(line["seconds"] for line in steps),
            tokens=sum(line["num_tokens"] for line in steps),
        )


def curves_from(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One point per validation: the training loss is the mean over the steps since the last one."""
    curves, since = [], []
    for line in lines:
        if line["kind"] == "step":
            since.append(line)
            continue
        count = sum(step["num_targets"] for step in since) or 1
        curves.append(
            {
                "step": line["step"],
                "train_loss": sum(s["loss"] * s["num_targets"] for s in since) / count,
                "validation_loss": line["loss"],
                "validation_macro_f1": line["macro_f1"],
                "learning_rate": since[-1]["learning_rate"] if since else 0.0,
            }
        )
        since = []
    return curves


def classify_rows(
    adapted: Adapted, rows: Sequence[TokenizedExample], *, pad_id: int, precision: Precision = "fp32"
) -> FloatArray:
    """(N, C) logits of tokenized rows, without gradients; bucketed by length, never held as hidden states."""
    lengths = np.array([len(row.token_ids) for row in rows])
    logits = np.empty((len(rows), int(adapted.plain.config.num_labels or 0)), np.float64)
    device = adapted.plain.device
    was_training = adapted.trained.training
    adapted.trained.eval()
    with torch.inference_mode(), precision_context(precision, device.type):
        for bucket in length_buckets(lengths, max_tokens_per_batch=EVALUATION_TOKENS):
            batch = to_device(collate([rows[int(row)] for row in bucket], pad_id=pad_id), device)
            logits[bucket] = classification_logits(adapted.plain, adapted.head, batch).double().cpu().numpy()
    adapted.trained.train(was_training)
    return logits


def by_text(logits: FloatArray, rows: Sequence[TokenizedExample]) -> tuple[FloatArray, IntArray]:
    """Averages the windows of a text; returns its (M, C) logits and (M,) answers."""
    keys = [(row.source, row.row) for row in rows]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    index = np.array([places[key] for key in keys])
    sums = np.zeros((len(places), logits.shape[1]))
    np.add.at(sums, index, logits)
    answers = np.zeros(len(places), np.int64)
    answers[index] = [-1 if row.label is None else row.label for row in rows]
    return sums / np.bincount(index)[:, None], answers


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on the model's device."""
    if device.type == "cpu":
        return batch
    return dataclasses.replace(
        batch,
        input_ids=batch.input_ids.to(device),
        last=batch.last.to(device),
        labels=None if batch.labels is None else batch.labels.to(device),
    )


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
    weights = torch.tensor([settings.class_weights.get(name, 1.0) for name in label_names])
    return normalized_weights(weights, labels)


def _head_name_in(adapted: Adapted) -> str:
    names = [name for name, module in adapted.plain.named_children() if module is adapted.head]
    return names[0] if names else ""
