"""Completion, chat and preference, from rows to a finished run: the straight line of the text tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
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
)
from gptailor.pipeline.folder import REFERENCE, file_hashes, refuse_other_data
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.place import Listener, Trained, TrainingPlace
from gptailor.pipeline.settle import settle_plan, tell_cost
from gptailor.pipeline.task import refuse_frozen
from gptailor.pipeline.taught import keep_taught, marks_of, taught_before
from gptailor.pipeline.texts.objective import answer_objective, preference_objective, row_nats
from gptailor.pipeline.texts.rows import as_taught
from gptailor.pipeline.texts.shop import TextShop, open_text_shop
from gptailor.pipeline.texts.tokens import ledger_lines
from gptailor.pipeline.training import train
from gptailor.recipe import Recipe
from gptailor.types import PARTS


@dataclass(frozen=True, slots=True)
class TextResult:
    """A trained model and what the validation answers cost it."""

    approach: TrainableText
    adapted: Adapted
    trained: Trained
    validation: PieceNats


def fit_texts(
    recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest, rival: Path | None
) -> None:
    """Rows to a finished run folder; resumes what was begun there.

    Raises:
        GptailorError: something the person can mend; the message says what.
    """
    from gptailor.pipeline.texts.story import finish_texts

    began = time.perf_counter()
    shop, result = open_and_train(recipe, folder, listener, stop)
    finish_texts(folder, shop, result, say=listener.say, began=began, rival=rival)


def seal_texts(recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest) -> None:
    """Rows to a model that is saved and proven; the test rows stay sealed."""
    from gptailor.pipeline.texts.story import seal

    seal(folder, *open_and_train(recipe, folder, listener, stop))


def open_and_train(
    recipe: Recipe, folder: Path, listener: Listener, stop: StopRequest
) -> tuple[TextShop, TextResult]:
    """Reads, splits, tokenizes, writes what became of every row, and trains."""
    refuse_frozen(recipe)
    shop = open_text_shop(recipe, folder, listener)
    refuse_other_data(folder, shop.prepared.data_hash)
    open_for_teaching(folder, shop, listener)
    place = TrainingPlace.of_run(
        folder, seed=recipe.seed, environment=shop.environment, stop=stop, listener=listener
    )
    with stop.deferred():
        return shop, train_texts(shop, place)


def train_texts(shop: TextShop, place: TrainingPlace) -> TextResult:
    """Adapts, trains and returns the best weights on validation, adapters still in place."""
    approach = choose_text_approach(shop.recipe, shop.base)
    adapted = adapt_causal(
        shop.recipe, shop.base, shop.text.tokenizer, approach, device=shop.environment["device"]
    )
    settings = shop.recipe.train
    objective = objective_of(shop, adapted, place)
    plan = settle_plan(settings, shop.environment, adapted, objective, approach.kind, place)
    tell_cost(place, approach.kind, shop.environment)
    trained = train(adapted, objective, plan=plan, settings=settings, place=place)
    validation = row_nats(adapted, shop.tokens.rows["validation"], shop)
    return TextResult(approach, adapted, trained, validation)


def objective_of(shop: TextShop, adapted: Adapted, place: TrainingPlace) -> Objective:
    """What the task asks of training."""
    if shop.recipe.task == "preference":
        folder = place.folder.parent / REFERENCE
        if shop.recipe.preference.loss != "simpo" and not folder.exists():
            place.say("the base's own likelihood of every answer, once")
        return preference_objective(shop, adapted, folder, stop=place.stop)
    return answer_objective(shop, adapted)


def open_for_teaching(folder: Path, shop: TextShop, listener: Listener) -> None:
    """Writes what became of every row, and which rows teach; says which taught the base already."""
    rows, approach = shop.tokens.rows, shop.recipe.approach.kind
    marks = {part: marks_of(enumerate(as_taught(one.row) for one in rows[part])) for part in PARTS}
    before, told = taught_before(shop.base, approach, marks)
    if told:
        listener.say(told)
        shop.prepared.notes.append(told)
    write_data(folder, shop, taught_before=before)
    keep_taught(folder, marks, shop.base, approach)


def write_data(folder: Path, shop: TextShop, *, taught_before: Mapping[str, int]) -> None:
    """The ledger: one line per input row, and its sums, which come out."""
    (folder / "data").mkdir(exist_ok=True)
    lines = ledger_lines(shop.prepared, shop.tokens)
    write_ledger(folder / "data" / "ledger.jsonl", lines)
    summary = summarize(lines, read=shop.prepared.read)
    summary["data_hash"] = shop.prepared.data_hash
    summary["files"] = file_hashes(shop.recipe) or {}
    if taught_before:
        summary["taught_before"] = taught_before
    write_atomically(folder / "data" / "summary.json", json.dumps(summary, indent=1))
