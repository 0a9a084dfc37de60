"""The plan of a training: how many steps, at which rates, in which pieces."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from gptailor.launch import Precision, choose_micro_batch, choose_precision
from gptailor.models.approach import Adapted
from gptailor.pipeline.objective import Objective, Rates, usual_rates
from gptailor.recipe import TrainSettings, duration
from gptailor.train.workers import choose_workers

EPOCHS, MOST_EPOCHS = 5, 15  # where the recipe leaves the length open
ENOUGH = 1000  # steps; a new head gets more epochs than five up to here, where rows are few
SHORTEST, LONGEST = 200, 20_000  # steps, where the recipe leaves the length open
# Validations of an epoch, and of a training at most, where the recipe leaves them open.
VALIDATIONS_PER_EPOCH, VALIDATIONS = 5, 25
FEWEST_VALIDATIONS = 5  # of a training that is cut to the minutes it may take
STEPPING = 0.85  # share of the time that steps take; validation and checkpoints take the rest


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
    workers: int = 1  # micro-batches at a time
    compiled: bool = False
    in_time: bool = False  # fewer steps than asked for, by train.minutes


def plan_for(settings: TrainSettings, adapted: Adapted, objective: Objective, approach: str) -> Plan:
    """Resolves lengths, rates, precision and the micro-batch, which is still to be tried."""
    config: Any = adapted.plain.config
    weights = sum(parameter.numel() for parameter in adapted.plain.parameters())
    learned = sum(one.numel() for one in adapted.trained.parameters() if one.requires_grad)
    micro = settings.micro_batch_size or choose_micro_batch(
        settings.batch_size,
        max_tokens=int(objective.lengths.max()),
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        weights=learned + weights // 8,  # gradients, moments and updates of some; a bf16 copy of all
    )
    return resolve_plan(
        settings,
        approach=approach,
        num_weights=weights,
        num_rows=len(objective.lengths),
        micro_batch_size=int(micro),
        precision=choose_precision(settings.precision, num_weights=weights),
        workers=choose_workers(torch.get_num_threads(), adapted.plain.device.type),
        new_head=objective.new_head,
        rates=objective.rates,
    )


def resolve_plan(
    settings: TrainSettings,
    *,
    approach: str,
    num_weights: int,
    num_rows: int,
    micro_batch_size: int,
    precision: Precision,
    workers: int = 1,
    new_head: bool = True,
    rates: Rates = usual_rates,
) -> Plan:
    """Turns lengths into steps and fills in the rates (docs/decisions/0010-default-settings.md)."""
    batch_size = min(settings.batch_size, num_rows)
    per_epoch = -(-num_rows // batch_size)
    validate_every = -(-per_epoch // (settings.validations_per_epoch or VALIDATIONS_PER_EPOCH))
    if settings.length is not None:
        amount, unit = duration(settings.length)
        steps = max(1, round(amount * per_epoch if unit == "epochs" else amount))
    else:
        steps = usual_steps(per_epoch, approach=approach, new_head=new_head)
    if settings.validations_per_epoch is None:
        validate_every = max(validate_every, -(-steps // VALIDATIONS))
    validate_every = min(validate_every, steps)
    save_every = validate_every
    if settings.save_every:
        amount, unit = duration(settings.save_every)
        save_every = max(1, round(amount * per_epoch if unit == "epochs" else amount))
    asked = settings.learning_rate
    rate = rates(num_weights)[approach] if asked is None or asked == "find" else asked
    return Plan(
        steps=steps,
        validate_every=validate_every,
        save_every=save_every,
        batch_size=batch_size,
        micro_batch_size=min(micro_batch_size, batch_size),
        learning_rate=rate,
        head_learning_rate=settings.head_learning_rate or max(1e-3, rate),
        precision=precision,
        workers=workers,
    )


def usual_steps(per_epoch: int, *, approach: str, new_head: bool) -> int:
    """How long to train, where the recipe leaves it open."""
    steps = EPOCHS * per_epoch
    if approach == "scratch":
        steps = MOST_EPOCHS * per_epoch
    elif new_head:
        steps = max(steps, min(MOST_EPOCHS * per_epoch, ENOUGH))
    return min(max(steps, SHORTEST), LONGEST)


def shortened(plan: Plan, steps: int) -> Plan:
    """The plan with so many steps at most, and still a few validations."""
    if steps == plan.steps:
        return plan
    every = min(plan.validate_every, -(-steps // FEWEST_VALIDATIONS))
    return dataclasses.replace(
        plan, steps=steps, validate_every=every, save_every=min(plan.save_every, every), in_time=True
    )


def with_rate(settings: TrainSettings, plan: Plan, rate: float) -> Plan:
    """The plan with another peak rate; a head without one of its own is never slower than 1e-3."""
    head = settings.head_learning_rate or max(1e-3, rate)
    return dataclasses.replace(plan, learning_rate=rate, head_learning_rate=head)


def steps_within(minutes: float | None, plan: Plan, seconds: float) -> int:
    """How many of the plan's steps fit into the minutes, where all of them take so many seconds."""
    if minutes is None or seconds <= 0:
        return plan.steps
    return max(1, min(plan.steps, int(plan.steps * STEPPING * minutes * 60 / seconds)))
