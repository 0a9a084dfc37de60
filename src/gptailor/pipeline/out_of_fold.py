"""Out-of-fold probabilities of every labelled row: judged by models that were fitted without it.

The average of two models that see different things: logistic regression on the base's frozen features, and on
TF-IDF. Together they find more wrong labels than either (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from gptailor.errors import DataError
from gptailor.evaluate.baselines import tfidf_probabilities
from gptailor.evaluate.calibrate import softmax
from gptailor.models.approach import fit_frozen_head
from gptailor.models.names import resolve_base
from gptailor.pipeline.classify import by_text
from gptailor.pipeline.fixes import refuse_to_lose_corrections
from gptailor.pipeline.frozen import base_classifier, features_of
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.suspects import (
    Suspect,
    merge_suspects,
    suspects_in_data,
    suspects_out_of_fold,
    write_suspects,
)
from gptailor.pipeline.task import settle_task
from gptailor.pipeline.workshop import Workshop, fold_numbers, folds_of, pool_of, tokenized_workshop
from gptailor.recipe import Recipe
from gptailor.types import Example, FloatArray, Part, TokenizedExample

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the head; weak ones, since it must not believe every label
RUN_ROWS_TIMES_CLASSES = 50_000  # more n-gram models than that would take a run too long; the verb fits them


def rank_suspects(
    recipe: Recipe, *, top: int | None = None, out: Path, say: Callable[[str], None] = lambda _: None
) -> list[Suspect]:
    """Ranks all labelled rows of a file, most suspect first, and writes them. No row is held back for a test.

    Raises:
        GptailorError: the file can't be used, has not one label a row, or `out` holds corrections.
    """
    refuse_to_lose_corrections(out)
    recipe = settle_task(recipe)
    if recipe.task != "classification":
        raise DataError(
            f"is for {recipe.task}; only rows with one label each can be ranked.",
            where=recipe.data.train,
            fix="Name the column of the label with --label COLUMN.",
        )
    prepared = prepare(recipe, say)
    if prepared.form.kind != "single":
        carried = "several labels a row" if prepared.form.kind == "multiple" else "numbers"
        raise DataError(
            f"carries {carried}; only rows with one label each can be ranked.",
            where=recipe.data.train,
            fix="`gptailor fit` lists the suspects it finds in data/suspects.csv.",
        )
    base = resolve_base(recipe.base, revision=recipe.revision)
    shop = tokenized_workshop(recipe, prepared, base)
    tokens = shop.tokens
    say("computing features")
    model = base_classifier(shop)
    parts: tuple[Part, ...] = ("train", "validation", "test")
    rows = [row for part in parts for row in tokens.rows[part]]
    examples = [example for part in parts for example in tokens.examples[part]]
    say("fitting models to folds of the rows, each judged by one that never saw it")
    probabilities = (frozen_probabilities(shop, model, rows) + ngram_probabilities(shop, examples)) / 2
    ranked = suspects_out_of_fold(examples, probabilities, prepared, top=top)
    suspects = merge_suspects([*suspects_in_data(prepared), *ranked])
    write_suspects(out, suspects)
    return suspects


def run_probabilities(shop: Workshop, frozen_model: PreTrainedModel) -> tuple[list[Example], FloatArray]:
    """The training and validation rows of a run, and their (N, C); n-grams where they cost little."""
    examples = shop.tokens.examples
    chosen = [*examples["train"], *examples["validation"]]
    probabilities = frozen_probabilities(shop, frozen_model, pool_of(shop))
    affordable = len(chosen) * len(shop.label_names) <= RUN_ROWS_TIMES_CLASSES
    if affordable and shop.recipe.evaluate.baselines != "none":
        probabilities = (probabilities + ngram_probabilities(shop, chosen)) / 2
    return chosen, probabilities


def frozen_probabilities(
    shop: Workshop, model: PreTrainedModel, rows: Sequence[TokenizedExample]
) -> FloatArray:
    """(N, C) of N texts by heads on the base's features; the strength is what the first fold likes best.

    Args:
        model: The base, or a frozen candidate; never one whose body was trained.
    """
    features, labels = features_of(shop, model, rows), answers_of(rows)
    folds = folds_of(rows, seed=shop.recipe.seed, strata=shop.kind.strata)

    def logits_of(fold: int, strength: float) -> FloatArray:
        inside, outside = folds[fold]
        weights = fit_frozen_head(
            features[inside], labels[inside], num_labels=len(shop.label_names), strength=strength
        )
        found: FloatArray = features[outside] @ weights.T
        return found

    judged = labels[folds[0][1]]
    first = {strength: logits_of(0, strength) for strength in STRENGTHS}
    strength = min(STRENGTHS, key=lambda strength: shop.kind.mean_loss(first[strength], judged))
    logits = np.empty((len(labels), len(shop.label_names)))
    for number, (_, outside) in enumerate(folds):
        logits[outside] = first[strength] if number == 0 else logits_of(number, strength)
    return softmax(by_text(logits, rows)[0], 1.0)


def ngram_probabilities(shop: Workshop, examples: Sequence[Example]) -> FloatArray:
    """(N, C) of N texts by TF-IDF and logistic regression."""
    texts = [example.text for example in examples]
    return tfidf_probabilities(
        texts,
        answers_of(examples),
        num_labels=len(shop.label_names),
        folds=fold_numbers(examples, seed=shop.recipe.seed, strata=shop.kind.strata),
        seed=shop.recipe.seed,
    )
