"""Completion, chat and preference, from rows to a finished run: the straight line of the text tasks."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from gptailor.data.ledger import summarize, write_ledger
from gptailor.evaluate.language import PieceNats
from gptailor.launch import StopRequest, write_atomically
from gptailor.models.approach import Adapted
from gptailor.pipeline.causal import (
    TrainableText,
    adapt_causal,
    choose_text_approach,
    estimate_weights,
    refuse_frozen,
)
from gptailor.pipeline.folder import refuse_other_data
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.place import Listener, Trained, TrainingPlace
from gptailor.pipeline.texts.objective import answer_objective, preference_objective, row_nats
from gptailor.pipeline.texts.shop import TextShop, open_text_shop
from gptailor.pipeline.texts.tokens import ledger_lines
from gptailor.pipeline.trained import settle_plan
from gptailor.pipeline.training import train, usual_rates
from gptailor.recipe import Recipe, TrainSettings
from gptailor.report.terminal import duration_text
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.presets import PRESETS

# Preferences move a model that writes well already; at the usual rates it forgets how.
PREFERENCE_RATES = {"full": 3e-5, "lora": 1e-4, "scratch": 1e-4}


@dataclass(frozen=True, slots=True)
class TextResult:
    """A trained model and what the validation answers cost it."""

    approach: TrainableText
    adapted: Adapted
    trained: Trained
    validation: PieceNats


def fit_texts(recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest) -> None:
    """Rows to a finished run folder; resumes what was begun there.

    Raises:
        GptailorError: something the person can mend; the message says what.
    """
    from gptailor.pipeline.texts.story import finish_texts

    began = time.perf_counter()
    refuse_frozen(recipe)
    shop = open_text_shop(recipe, folder, listener)
    refuse_other_data(folder, shop.prepared.data_hash)
    write_data(folder, shop)
    place = TrainingPlace.of_run(
        folder, seed=recipe.seed, environment=shop.environment, stop=stop, listener=listener
    )
    with stop.deferred():
        result = train_texts(shop, place)
    finish_texts(folder, shop, result, say=listener.say, began=began)


def train_texts(shop: TextShop, place: TrainingPlace) -> TextResult:
    """Adapts, trains and returns the best weights on validation, adapters still in place."""
    approach = choose_text_approach(shop.recipe, shop.base)
    adapted = adapt_causal(
        shop.recipe, shop.base, shop.text.tokenizer, approach, device=shop.environment["device"]
    )
    settings = train_settings(shop, approach)
    objective = objective_of(shop, adapted, place)
    plan = settle_plan(settings, shop.environment, adapted, objective, approach.kind, place)
    forecast = duration_text(shop.environment["forecast_seconds"])
    place.say(f"{approach.kind}: training, about {forecast} at most")
    trained = train(adapted, objective, plan=plan, settings=settings, place=place)
    validation = row_nats(adapted, shop.tokens.rows["validation"], shop)
    return TextResult(approach, adapted, trained, validation)


def objective_of(shop: TextShop, adapted: Adapted, place: TrainingPlace) -> Objective:
    """What the task asks of training."""
    if shop.recipe.task == "preference":
        place.say("the base's own likelihood of every answer, once")
        return preference_objective(shop, adapted, place.folder.parent / "data" / "reference")
    return answer_objective(shop, adapted)


def train_settings(shop: TextShop, approach: TrainableText) -> TrainSettings:
    """The recipe's, with the rate that the task asks for where the recipe leaves it open."""
    settings = shop.recipe.train
    if settings.learning_rate is not None:
        return settings
    return settings.model_copy(update={"learning_rate": text_rates(shop)[approach.kind]})


def text_rates(shop: TextShop) -> dict[str, float]:
    """Peak learning rates by approach, where the recipe leaves them open."""
    if shop.recipe.task == "preference":
        return PREFERENCE_RATES
    form = shop.form
    new_form = isinstance(form, CompletionForm) and PRESETS[form.roles.preset].is_new_form
    return usual_rates(estimate_weights(shop.base), new_form=new_form)


def write_data(folder: Path, shop: TextShop) -> None:
    """The ledger: one line per input row, and its sums, which come out."""
    (folder / "data").mkdir(exist_ok=True)
    lines = ledger_lines(shop.prepared, shop.tokens)
    write_ledger(folder / "data" / "ledger.jsonl", lines)
    summary = summarize(lines, read=shop.prepared.read)
    summary["data_hash"] = shop.prepared.data_hash
    write_atomically(folder / "data" / "summary.json", json.dumps(summary, indent=1))
