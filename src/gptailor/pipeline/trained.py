"""The approaches that train by gradient descent: full, lora, scratch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gptailor.launch import choose_micro_batch, choose_precision, remember
from gptailor.models.approach import Adapted, adapt_full, adapter_state, merge_lora
from gptailor.models.load import build_scratch, load_classifier, takes_dropout
from gptailor.pipeline.causal import choose_weights
from gptailor.pipeline.classify import by_text, classification_objective, classify_rows
from gptailor.pipeline.measure import choose_compiled, measure_plan, memory_in_training, trained_bytes
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.place import Trained, TrainingPlace
from gptailor.pipeline.range_test import curve_in_words, propose_rate, range_test
from gptailor.pipeline.training import Plan, resolve_plan, shortened, train
from gptailor.pipeline.workshop import (
    FOLDS,
    Candidate,
    Workshop,
    few_rows,
    folds_of,
    may_refit,
    pool_of,
    refits,
)
from gptailor.recipe import FullApproach, LoraApproach, ScratchApproach, TrainSettings
from gptailor.report.terminal import bytes_text, duration_text
from gptailor.train.workers import choose_workers
from gptailor.types import TokenizedExample

COOLING = 1.5  # times the best step that a refit takes, with a rate that falls to zero (docs/log.md)
STEPPING = 0.85  # share of the time that steps take; validation and checkpoints take the rest

# By what a step's cost depends on: the micro-batch that fits, and the seconds of a token.
Measured = dict[tuple[object, ...], tuple[int, float]]

Trainable = FullApproach | LoraApproach | ScratchApproach


def run_trained(
    shop: Workshop,
    settings: Trainable,
    place: TrainingPlace,
    *,
    longest_seconds: float | None = None,
    rival: float = -math.inf,
) -> Candidate | None:
    """Trains and returns the best weights on validation, LoRA merged; None if it would take too long here.

    Validation chooses the number of steps; where that is worth it (`refit_steps`) and the score is above
    `rival`, the result is a refit on its rows, too. Under 200 training rows five folds choose the number
    and give out-of-fold answers.
    """
    adapted = adapt(shop, settings)
    rows = shop.tokens.rows
    objective = objective_of(shop, adapted, rows["train"], rows["validation"])
    trainings = trainings_of(shop)
    plan = settle_plan(
        shop.recipe.train, shop.environment, adapted, objective, settings.kind, place, trainings=trainings
    )
    forecast = float(shop.environment["forecast_seconds"]) * trainings
    if longest_seconds is not None and forecast > longest_seconds:
        place.say(
            f"{settings.kind}: left out, it would take about {forecast / 60:.0f} minutes here "
            f"(--approach {settings.kind} runs it anyway)"
        )
        return None
    place.say(cost_in_words(settings.kind, shop.environment, trainings=trainings))
    if few_rows(shop):
        return _refit_on_all(shop, settings, adapted, plan=plan, place=place)
    outcome = train(adapted, objective, plan=plan, settings=shop.recipe.train, place=place)
    logits = classify_rows(adapted, rows["validation"], pad_id=shop.encoder.pad_id)
    text_logits, answers = by_text(logits, rows["validation"])
    score = shop.kind.score(text_logits, answers)
    again = Trained()
    steps = refit_steps(shop, best_step=outcome.best_step, step=outcome.steps, longest=plan.steps)
    if steps and score > rival:
        adapted, again = _refit(shop, settings, plan=plan, steps=steps, place=place)
    model, parity, adapter = finish(adapted, settings, rows["validation"], pad_id=shop.encoder.pad_id)
    return Candidate(
        approach=settings.kind,
        model=model,
        validation_logits=text_logits,
        validation_answers=answers,
        score=score,
        seconds=outcome.seconds + again.seconds,
        refit_steps=again.steps,
        trained=outcome,
        parity=parity,
        adapter=adapter,
    )


def trainings_of(shop: Workshop) -> int:
    """How many trainings of one length a fit may take: the folds of few rows and that on all, or a refit."""
    return 1 + FOLDS if few_rows(shop) else 2 if refits(shop) else 1


def cost_in_words(kind: str, environment: Mapping[str, Any], *, trainings: int = 1) -> str:
    """What is said before step 1, of the step that was measured when the run began."""
    told = f"{kind}: training, about {duration_text(environment['forecast_seconds'] * trainings)} at most"
    if "memory_bytes" not in environment:  # begun by an older version
        return told
    peak, spare = (bytes_text(environment[key]) for key in ("memory_bytes", "memory_spare_bytes"))
    return f"{told}, {peak} of memory ({spare} to spare)"


def refit_steps(shop: Workshop, *, best_step: float, step: int, longest: int) -> int:
    """How long to train anew on training and validation rows; 0: not at all.

    With few rows it is always worth its time, with many if stopping early, at `step`, saved as much.
    """
    if not may_refit(shop):
        return 0
    more = len(pool_of(shop)) / len(shop.tokens.rows["train"])
    steps = cooled_steps(shop.recipe.train, best_step, longest=longest, more=more)
    return steps if refits(shop) or steps <= longest - step else 0


def cooled_steps(settings: TrainSettings, best_step: float, *, longest: int, more: float) -> int:
    """The steps of a refit on so many times as many rows: as many as to the best step and half as many, per
    row. The rate falls to zero over them, where before it stood near its peak when the best step came. A
    constant rate falls nowhere: then as many as to the best step.
    """
    cooling = 1.0 if settings.schedule == "constant" else COOLING
    return max(1, round(min(cooling * best_step, longest) * more))


def _refit(
    shop: Workshop, settings: Trainable, *, plan: Plan, steps: int, place: TrainingPlace
) -> tuple[Adapted, Trained]:
    """Trains anew on training and validation rows."""
    place.say("refitting on training and validation rows")
    adapted = adapt(shop, settings)
    return adapted, _train_on_all(shop, adapted, plan=plan, steps=steps, place=place.inside("refit"))


def _train_on_all(
    shop: Workshop, adapted: Adapted, *, plan: Plan, steps: int, place: TrainingPlace
) -> Trained:
    """So many steps on training and validation rows: nothing is left that could say when to stop."""
    return train(
        adapted,
        objective_of(shop, adapted, pool_of(shop), []),
        plan=dataclasses.replace(plan, steps=steps),
        settings=shop.recipe.train,
        place=place,
        end_at=steps,
    )


def _refit_on_all(
    shop: Workshop, settings: Trainable, adapted: Adapted, *, plan: Plan, place: TrainingPlace
) -> Candidate:
    """Five folds for the length of training and for honest validation answers, then all rows."""
    rows = pool_of(shop)
    pad_id = shop.encoder.pad_id
    logits = np.empty((len(rows), len(shop.label_names)))
    best_steps, seconds = [], 0.0
    folds = folds_of(rows, seed=shop.recipe.seed, strata=shop.kind.strata)
    for number, (inside, outside) in enumerate(folds, 1):
        place.say(f"few rows: fold {number} of {len(folds)}")
        fold = adapt(shop, settings)
        held_out = [rows[row] for row in outside.tolist()]
        objective = objective_of(shop, fold, [rows[row] for row in inside.tolist()], held_out)
        fold_place = place.inside(f"fold-{number}")
        outcome = train(fold, objective, plan=plan, settings=shop.recipe.train, place=fold_place)
        logits[outside] = classify_rows(fold, held_out, pad_id=pad_id)
        best_steps.append(outcome.best_step)
        seconds += outcome.seconds
    steps = steps_after_folds(best_steps, [len(inside) for inside, _ in folds], shop, longest=plan.steps)
    place.say(f"refitting on all rows: {steps} steps (the folds' best: {', '.join(map(str, best_steps))})")
    outcome = _train_on_all(shop, adapted, plan=plan, steps=steps, place=place)
    model, parity, adapter = finish(adapted, settings, rows, pad_id=pad_id)
    text_logits, answers = by_text(logits, rows)
    return Candidate(
        approach=settings.kind,
        model=model,
        validation_logits=text_logits,
        validation_answers=answers,
        score=shop.kind.score(text_logits, answers),
        seconds=seconds + outcome.seconds,
        refit_steps=steps,
        trained=dataclasses.replace(outcome, best_step=int(np.median(best_steps))),
        parity=parity,
        adapter=adapter,
    )


def steps_after_folds(
    best_steps: Sequence[int], sizes: Sequence[int], shop: Workshop, *, longest: int
) -> int:
    """How long to train on all of few rows, after folds of these sizes were best at these steps."""
    more = len(pool_of(shop)) / float(np.mean(sizes))
    settings, middle = shop.recipe.train, float(np.median(best_steps))
    steps = cooled_steps(settings, middle, longest=longest, more=more)
    return steps if settings.minutes is None else min(steps, longest)


def finish(
    adapted: Adapted, settings: Trainable, rows: Sequence[TokenizedExample], *, pad_id: int
) -> tuple[PreTrainedModel, dict[str, float], Any]:
    """The plain model in eval mode; for LoRA the merged one, its parity number and the adapter."""
    if not isinstance(settings, LoraApproach):
        return adapted.plain.eval(), {}, None
    logits = classify_rows(adapted, rows, pad_id=pad_id, merged=False)
    adapter = adapter_state(adapted)
    model = merge_lora(adapted)
    merged = classify_rows(adapt_full(model), rows, pad_id=pad_id)
    return model.eval(), {"merge": float(np.abs(merged - logits).max())}, adapter


def objective_of(
    shop: Workshop,
    adapted: Adapted,
    rows: Sequence[TokenizedExample],
    validation_rows: Sequence[TokenizedExample],
) -> Objective:
    """What classification asks of training, with the recipe's settings."""
    return classification_objective(
        adapted,
        rows,
        validation_rows,
        settings=shop.recipe.train,
        label_names=shop.label_names,
        pad_id=shop.encoder.pad_id,
        kind=shop.kind,
    )


def settle_plan(
    settings: TrainSettings,
    environment: dict[str, Any],
    adapted: Adapted,
    objective: Objective,
    approach: str,
    place: TrainingPlace,
    *,
    trainings: int = 1,
) -> Plan:
    """The plan with what is measured on this machine: once, before step 1; a resumed run reads it.

    `trainings` of this length share the minutes.
    """
    path = place.folder.parent / "environment.json"
    plan = plan_for(settings, adapted, objective, approach)
    if "micro_batch_size" not in environment:
        if settings.dropout != TrainSettings().dropout and not takes_dropout(adapted.plain.config):
            place.say("this base has no dropout outside attention: train.dropout changes nothing")
        plan, seconds = measured_plan(settings, adapted, objective, plan, seed=place.seed, say=place.say)
        steps = steps_within(settings.minutes, plan, seconds * trainings)
        peak, spare = memory_in_training(adapted)
        choices = {
            "micro_batch_size": plan.micro_batch_size,
            "precision": plan.precision,
            "workers": plan.workers,
            "compiled": plan.compiled,
            **({"learning_rate": plan.learning_rate} if settings.learning_rate == "find" else {}),
            **({"steps": steps} if settings.minutes else {}),
            "forecast_seconds": round(seconds * steps / plan.steps, 1),
            "memory_bytes": peak,
            "memory_spare_bytes": spare,
        }
        environment.update(remember(path, choices))
    plan = with_rate(settings, plan, float(environment.get("learning_rate", plan.learning_rate)))
    return dataclasses.replace(
        shortened(plan, int(environment.get("steps", plan.steps))),
        micro_batch_size=min(environment["micro_batch_size"], plan.batch_size),
        precision=environment["precision"],
        workers=environment["workers"],
        compiled=environment["compiled"],
    )


def rehearsed_plan(
    settings: TrainSettings,
    adapted: Adapted,
    objective: Objective,
    *,
    approach: str,
    seed: int,
    measured: Measured,
    trainings: int = 1,
) -> tuple[Plan, float]:
    """The plan of a trial and its seconds at most; what is in `measured` isn't measured again.

    `trainings` of this length share the minutes.
    """
    plan = plan_for(settings, adapted, objective, approach)
    plan, seconds = measured_plan(settings, adapted, objective, plan, seed=seed, measured=measured)
    steps = steps_within(settings.minutes, plan, seconds * trainings)
    return shortened(plan, steps), seconds * steps / plan.steps


def measured_plan(
    settings: TrainSettings,
    adapted: Adapted,
    objective: Objective,
    plan: Plan,
    *,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
    measured: Measured | None = None,
) -> tuple[Plan, float]:
    """The plan with what is tried on this machine, and the seconds its training will take at most."""
    plan, seconds = timed_plan(settings, adapted, objective, plan, measured=measured)
    return found_plan(settings, adapted, objective, plan, seed=seed, say=say), seconds


def timed_plan(
    settings: TrainSettings,
    adapted: Adapted,
    objective: Objective,
    plan: Plan,
    *,
    measured: Measured | None = None,
) -> tuple[Plan, float]:
    """The plan with a micro-batch that fits and blocks compiled where that pays; and its seconds at most."""
    known: Measured = {} if measured is None else measured
    tokens = plan.steps * plan.batch_size * float(objective.lengths.mean())
    sizes = (trained_bytes(adapted), plan.batch_size, plan.micro_batch_size, plan.precision)
    key = (*sizes, settings.dropout, settings.attention_dropout, settings.gradient_checkpointing)
    if key not in known:
        tried, seconds = measure_plan(adapted, objective, plan)
        known[key] = tried.micro_batch_size, seconds / tokens
    micro, seconds_of_token = known[key]
    plan, seconds = dataclasses.replace(plan, micro_batch_size=micro), seconds_of_token * tokens
    return choose_compiled(
        adapted, objective, plan, seconds, wanted=settings.compile, minutes=settings.minutes
    )


def found_plan(
    settings: TrainSettings,
    adapted: Adapted,
    objective: Objective,
    plan: Plan,
    *,
    seed: int,
    say: Callable[[str], None],
) -> Plan:
    """The plan, with the learning rate of a range test where the recipe says `find`."""
    if settings.learning_rate != "find":
        return plan
    say("learning rate: looking for it (rates rise until the loss diverges)")
    curve = range_test(adapted, objective, plan, settings=settings, seed=seed)
    rate = propose_rate(curve)
    say(curve_in_words(curve, rate, usual=plan.learning_rate))
    return plan if rate is None else with_rate(settings, plan, rate)


def with_rate(settings: TrainSettings, plan: Plan, rate: float) -> Plan:
    """The plan with another peak rate; a head without one of its own is never slower than 1e-3."""
    head = settings.head_learning_rate or max(1e-3, rate)
    return dataclasses.replace(plan, learning_rate=rate, head_learning_rate=head)


def steps_within(minutes: float | None, plan: Plan, seconds: float) -> int:
    """How many of the plan's steps fit into the minutes, where all of them take so many seconds."""
    if minutes is None or seconds <= 0:
        return plan.steps
    return max(1, min(plan.steps, int(plan.steps * STEPPING * minutes * 60 / seconds)))


def adapt(shop: Workshop, settings: Trainable) -> Adapted:
    """Loads or builds the model and chooses the weights that may change."""
    recipe = shop.recipe
    dropouts = {"dropout": recipe.train.dropout, "attention_dropout": recipe.train.attention_dropout}
    if isinstance(settings, ScratchApproach):
        model = build_scratch(
            shop.base,
            shop.tokenizer,
            label_names=shop.label_names,
            seed=recipe.seed,
            **dropouts,
            layers=settings.layers,
            width=settings.width,
            heads=settings.heads,
            kind=shop.kind.form.kind,
        )
    else:
        model = load_classifier(
            shop.base,
            shop.tokenizer,
            label_names=shop.label_names,
            seed=recipe.seed,
            **dropouts,
            kind=shop.kind.form.kind,
        )
    return choose_weights(recipe, model, settings, device=shop.environment["device"])


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
