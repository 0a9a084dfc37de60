"""The approaches that train by gradient descent: full, lora, scratch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from gptailor.models.approach import Adapted, adapt_full, adapter_state, merge_lora
from gptailor.models.load import build_scratch, load_classifier
from gptailor.models.saved import within_tolerance
from gptailor.pipeline.causal import choose_weights
from gptailor.pipeline.classify import by_text, classification_objective, classify_rows
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.place import Trained, TrainingPlace
from gptailor.pipeline.plan import Plan
from gptailor.pipeline.settle import settle_plan, tell_cost
from gptailor.pipeline.training import train
from gptailor.pipeline.workshop import (
    FOLDS,
    Candidate,
    Workshop,
    few_rows,
    folds_of,
    may_refit,
    num_taught,
    pool_of,
    refits,
    taught,
)
from gptailor.recipe import FullApproach, LoraApproach, ScratchApproach, TrainSettings
from gptailor.types import TokenizedExample

COOLING = 1.5  # times the best step that a refit takes, with a rate that falls to zero (docs/log.md)

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
    tell_cost(place, settings.kind, shop.environment, trainings=trainings)
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


def refit_steps(shop: Workshop, *, best_step: float, step: int, longest: int) -> int:
    """How long to train anew on training and validation rows; 0: not at all.

    With few rows it is always worth its time, with many if stopping early, at `step`, saved as much.
    """
    if not may_refit(shop):
        return 0
    more = num_taught(shop, len(pool_of(shop))) / num_taught(shop, len(shop.tokens.rows["train"]))
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
    more = num_taught(shop, len(pool_of(shop))) / num_taught(shop, float(np.mean(sizes)))
    settings, middle = shop.recipe.train, float(np.median(best_steps))
    steps = cooled_steps(settings, middle, longest=longest, more=more)
    return steps if settings.minutes is None else min(steps, longest)


def finish(
    adapted: Adapted, settings: Trainable, rows: Sequence[TokenizedExample], *, pad_id: int
) -> tuple[PreTrainedModel, dict[str, float], Any]:
    """The plain model in eval mode; for LoRA the merged one, its parity number and the adapter.

    Raises:
        ModelError: merging changed what the model says.
    """
    if not isinstance(settings, LoraApproach):
        return adapted.plain.eval(), {}, None
    logits = classify_rows(adapted, rows, pad_id=pad_id, merged=False)
    adapter = adapter_state(adapted)
    model = merge_lora(adapted)
    merged = classify_rows(adapt_full(model), rows, pad_id=pad_id)
    difference, largest = float(np.abs(merged - logits).max()), float(np.abs(logits).max())
    parity = within_tolerance(difference, "the logits with LoRA merged", largest=largest)
    return model.eval(), {"merge": parity}, adapter


def objective_of(
    shop: Workshop,
    adapted: Adapted,
    rows: Sequence[TokenizedExample],
    validation_rows: Sequence[TokenizedExample],
) -> Objective:
    """What classification asks of training, with the recipe's settings; the labels' names teach, too."""
    return classification_objective(
        adapted,
        taught(shop, rows),
        validation_rows,
        settings=shop.recipe.train,
        label_names=shop.label_names,
        pad_id=shop.encoder.pad_id,
        kind=shop.kind,
    )


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
