"""Which rows choose among trials, and which judge the finalists: none does both, if that can be helped."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gptailor.pipeline.workshop import FOLDS, Workshop, few_rows, folds_of, pool_of
from gptailor.recipe import Recipe
from gptailor.types import IntArray, TokenizedExample

FEWEST_JUDGING = 3  # folds

Rows = Sequence[TokenizedExample]
Fold = tuple[IntArray, IntArray]  # places inside and outside


def splits_of(shop: Workshop) -> list[tuple[Rows, Rows]]:
    """The run's own training and validation rows, or the folds that may choose where there are few."""
    rows = shop.tokens.rows
    if not few_rows(shop):
        return [(rows["train"], rows["validation"])]
    pool = pool_of(shop)
    choosing, _ = few_folds(shop)
    return [(chosen(pool, inside), chosen(pool, outside)) for inside, outside in choosing]


def few_folds(shop: Workshop) -> tuple[list[Fold], list[Fold]]:
    """Folds of few rows: those whose rows choose among trials, and those kept to judge the finalists."""
    folds = folds_of(pool_of(shop), seed=shop.recipe.seed, strata=shop.kind.strata)
    half = (len(folds) + 1) // 2
    return folds[:half], folds[half:]


def asked_are_fixed(recipe: Recipe) -> bool:
    """Whether the rows that judge are the same however often one asks."""
    return recipe.data.validation is not None or recipe.data.split.time is not None


def refuse_unrepeatable(shop: Workshop) -> None:
    """Raises NoFoldsError where some finalist could not be repeated, which is better known at the start."""
    if not asked_are_fixed(shop.recipe):
        for number in range(shop.recipe.tune.seeds):
            elsewhere(shop, number)


def judging_folds(shop: Workshop, deal: int) -> tuple[Rows, list[Fold]]:
    """Rows, and folds of them whose rows have chosen nothing: of the training rows, dealt anew for another
    deal, or, where there are few rows, those kept from the trials.
    """
    if few_rows(shop):
        return pool_of(shop), few_folds(shop)[1]
    rows, seed = shop.tokens.rows["train"], shop.recipe.seed + 1 + deal
    return rows, folds_of(rows, seed=seed, strata=shop.kind.strata, most=num_judging(shop.recipe))


def num_judging(recipe: Recipe) -> int:
    """Folds that judge: one for each repeat, so that every row judges once, and two thirds or more teach."""
    return min(FOLDS, max(FEWEST_JUDGING, recipe.tune.seeds))


def elsewhere(shop: Workshop, number: int) -> tuple[tuple[Rows, Rows], Rows]:
    """Training and validation rows, and rows outside both that chose nothing; the same for the same number.

    The validation rows chose the trial, so they may teach and choose the steps, but judge no more.
    """
    own = shop.tokens.rows
    if asked_are_fixed(shop.recipe):
        return (own["train"], own["validation"]), own["validation"]
    deal, fold = divmod(number, num_judging(shop.recipe))
    rows, folds = judging_folds(shop, deal)
    inside, outside = folds[fold % len(folds)]
    inner = chosen(rows, inside) + ([] if few_rows(shop) else list(own["validation"]))
    seed = shop.recipe.seed + 1 + number
    train, validation = folds_of(inner, seed=seed, strata=shop.kind.strata)[0]
    return (chosen(inner, train), chosen(inner, validation)), chosen(rows, outside)


def with_rows(shop: Workshop, train: Rows, validation: Rows) -> Workshop:
    """The workshop with other rows in its parts."""
    known = {(e.source, e.row): e for part in shop.tokens.examples.values() for e in part}
    examples: dict[Any, Any] = {
        part: [known[key] for key in dict.fromkeys((row.source, row.row) for row in rows)]
        for part, rows in (("train", train), ("validation", validation))
    }
    tokens = dataclasses.replace(
        shop.tokens,
        rows={"train": list(train), "validation": list(validation), "test": []},
        examples={**examples, "test": []},
    )
    return dataclasses.replace(shop, tokens=tokens)


def key_of(row: TokenizedExample) -> tuple[str, int]:
    """The text that a row is, or is a window of."""
    return row.source, row.row


def chosen(rows: Rows, places: Any) -> list[TokenizedExample]:
    """The rows at these places."""
    return [rows[place] for place in places.tolist()]
