"""Rehearsals of the tasks whose answer is text: the run's own split, repeated with other seeds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as students_t

from gptailor.evaluate.preference import ranked_share
from gptailor.launch import StopRequest
from gptailor.models.approach import Adapted
from gptailor.models.load import load_config, takes_dropout
from gptailor.models.names import Base
from gptailor.pipeline.causal import adapt_causal, choose_text_approach, estimate_weights
from gptailor.pipeline.documents import prepare_documents
from gptailor.pipeline.handover import Handover, Leave
from gptailor.pipeline.language import language_objective, open_language_shop
from gptailor.pipeline.language import write_data as write_language_data
from gptailor.pipeline.objective import Objective, usual_rates
from gptailor.pipeline.place import Listener, TrainingPlace
from gptailor.pipeline.rehearse import Gap, Look, Rehearsal, Repeat, Settled, rehearse
from gptailor.pipeline.settle import Measured
from gptailor.pipeline.task import refuse_frozen
from gptailor.pipeline.texts.objective import VALIDATED, rates_of
from gptailor.pipeline.texts.road import objective_of
from gptailor.pipeline.texts.shop import open_text_shop
from gptailor.recipe import Recipe, ScratchApproach
from gptailor.report.words import WHAT_CHOSE
from gptailor.types import Part


class Built(NamedTuple):
    """What a recipe trains."""

    approach: str
    adapted: Adapted
    objective: Objective


def rehearse_texts(recipe: Recipe, folder: Path, listener: Listener) -> Rehearsal:
    """Completion, chat and preference: reads, splits and tokenizes once."""
    refuse_frozen(recipe)
    shop = open_text_shop(recipe, folder, listener)
    shop = dataclasses.replace(
        shop, tokens=dataclasses.replace(shop.tokens, rows={**shop.tokens.rows, "test": []})
    )
    # Nothing is written there; a reference lies beside its checkpoints.
    place = TrainingPlace.of_run(
        folder, seed=recipe.seed, environment=shop.environment, stop=StopRequest(), listener=listener
    )

    def build(tried: Recipe) -> Built:
        approach = choose_text_approach(tried, shop.base)
        adapted = adapt_causal(
            tried, shop.base, shop.text.tokenizer, approach, device=shop.environment["device"]
        )
        mine = dataclasses.replace(shop, recipe=tried)
        return Built(approach.kind, adapted, objective_of(mine, adapted, place))

    rehearsal = text_rehearsal(
        build,
        partial(Handover(folder).leave, shop.environment, shop.prepared.data_hash, listener.say),
        metric="loss",
        allowed=("full", "lora"),
        rates=rates_of(shop)(estimate_weights(shop.base, writes=True)),
        num_rows=len(shop.tokens.rows["train"]),
        own=choose_text_approach(recipe, shop.base).kind,
        base=shop.base,
    )
    if recipe.task != "preference":
        return rehearsal
    # What is searched scales the loss: IPO's begins at 1 / (4 beta²), so a large beta would win untrained.
    pairs = min(VALIDATED, len(shop.tokens.rows["validation"]))
    told = partial(ranked_share, pairs=pairs)
    return dataclasses.replace(rehearsal, metric="preference_accuracy", told=told)


def rehearse_language(recipe: Recipe, folder: Path, listener: Listener) -> Rehearsal:
    """Language modeling: reads and tokenizes to disk once; a vocabulary of one's own stays as it is."""
    refuse_frozen(recipe)
    prepared = prepare_documents(recipe, listener.say)
    _forget_other_data(folder, prepared.data_hash)
    shop = open_language_shop(recipe, prepared, folder, listener)
    write_language_data(folder, prepared, shop, taught_before={})
    seen: tuple[Part, ...] = ("train", "validation")
    shop = dataclasses.replace(shop, stores={part: shop.stores[part] for part in seen})

    def build(tried: Recipe) -> Built:
        approach = choose_text_approach(tried, shop.base)
        adapted = adapt_causal(tried, shop.base, shop.tokenizer, approach, device=shop.environment["device"])
        return Built(
            approach.kind, adapted, language_objective(dataclasses.replace(shop, recipe=tried), adapted)
        )

    return text_rehearsal(
        build,
        partial(Handover(folder).leave, shop.environment, prepared.data_hash, listener.say),
        metric="loss",
        allowed=("scratch",) if isinstance(recipe.approach, ScratchApproach) else ("full", "lora"),
        rates=usual_rates(estimate_weights(shop.base, writes=True)),
        num_rows=len(shop.stores["train"].tokens) // shop.block,
        own=choose_text_approach(recipe, shop.base).kind,
        base=shop.base,
    )


def text_rehearsal(
    build: Callable[[Recipe], Built],
    leave: Leave,
    *,
    metric: str,
    allowed: tuple[str, ...],
    rates: Mapping[str, float],
    num_rows: int,
    own: str,
    base: Base,
) -> Rehearsal:
    """What a search asks, where a repeat is another seed and a score, mostly, minus the validation loss.

    `build` gives what a recipe trains; a trial's training is left for the last fit.
    """
    measured: Measured = {}  # once for all trials and repeats

    def train(tried: Recipe, *, kept: bool) -> Iterator[Look]:
        built = build(tried)
        return rehearse(
            tried,
            built.adapted,
            built.objective,
            approach=built.approach,
            measured=measured,
            leave=partial(leave, tried, built.adapted) if kept else None,
        )

    def repeat(recipe: Recipe, number: int, _: Settled | None) -> Repeat:
        score = -math.inf
        for look in train(recipe.model_copy(update={"seed": recipe.seed + 1 + number}), kept=False):
            score = look.score
        return Repeat(score)

    return Rehearsal(
        metric=metric,
        told=lambda score: -score,
        approaches=allowed,
        usual_rates=rates,
        num_rows=num_rows,
        trainings=1,
        last_fit=0.0,
        one_label=False,
        uneven=False,
        takes_dropout=takes_dropout(load_config(base)),
        judged_on=WHAT_CHOSE,
        trial=partial(train, kept=True),
        repeat=repeat,
        gap=gap_of_seeds,
        own_approach=own,
        fewest_repeats=2,
    )


def gap_of_seeds(ours: Sequence[Repeat], theirs: Sequence[Repeat]) -> Gap:
    """The mean of the differences seed by seed, with Student's interval; one seed says nothing of it."""
    differences = np.array([a.score - b.score for a, b in zip(ours, theirs, strict=True)])
    value = float(differences.mean())
    if len(differences) < 2:
        return Gap(value, -math.inf, math.inf, math.inf)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    half = float(students_t.ppf(0.975, len(differences) - 1)) * error
    return Gap(value, value - half, value + half, error)


def _forget_other_data(folder: Path, data_hash: str) -> None:
    """Takes away the summary of other data, so that the tokens beside it are written anew."""
    path = folder / "data" / "summary.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("data_hash") != data_hash:
        path.unlink()
