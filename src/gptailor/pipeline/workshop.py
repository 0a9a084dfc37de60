"""What every approach works with, and what it comes back with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptailor.data.tokenize import Encoder, build_encoder
from gptailor.data.views import chained
from gptailor.errors import DataError
from gptailor.evaluate.resampling import Resampling
from gptailor.launch import Precision
from gptailor.models.load import load_config, load_tokenizer
from gptailor.models.names import Base, context_length
from gptailor.pipeline.held_out import NEAR
from gptailor.pipeline.kinds import Kind, kind_of
from gptailor.pipeline.place import Trained
from gptailor.pipeline.prepare import Prepared
from gptailor.pipeline.tokens import TokenizedParts, tokenize_parts
from gptailor.recipe import Recipe
from gptailor.types import Example, FloatArray, IntArray, TokenizedExample

FEW_ROWS = 200  # fewer training rows than this: settings by folds, then a refit on all
FOLDS = 5
MOST_DEALT = 2_000  # groups of several labels that are dealt out by all of their rows, which takes time
REFIT_ROWS = 20_000  # fewer than this: the validation rows teach, too, once they chose the length


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every approach works with."""

    recipe: Recipe
    base: Base
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    tokens: TokenizedParts
    label_names: Sequence[str]
    environment: dict[str, Any]
    kind: Kind


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained classifier and how it did on validation."""

    approach: str
    model: PreTrainedModel
    validation_logits: FloatArray  # (M, C); out of fold where there were few rows
    validation_answers: Any  # (M,), of sets (M, C)
    score: float  # on validation, higher is better
    seconds: float
    precision: Precision | None = None  # of a frozen one's features; a training's stands in its plan
    refit_steps: int = 0  # with the validation rows among the training rows; 0: there was no refit
    trained: Trained = field(default_factory=Trained)
    strengths: Sequence[Mapping[str, float]] = ()
    parity: Mapping[str, float] = field(default_factory=dict)
    adapter: Any = None  # peft's wrapper state to save beside the merged model


def tokenized_workshop(recipe: Recipe, prepared: Prepared, base: Base) -> Workshop:
    """The data as the base's tokenizer reads them; the environment is still to be settled."""
    tokenizer: Any = load_tokenizer(base)
    encoder = build_encoder(tokenizer.backend_tokenizer, pad_id=tokenizer.pad_token_id)
    context = context_length(load_config(base, classifies=True))
    tokens = tokenize_parts(prepared, encoder, recipe.data, context=context)
    kind = kind_of(prepared.form)
    return Workshop(recipe, base, tokenizer, encoder, tokens, prepared.label_names, {}, kind)


def pool_of(shop: Workshop) -> list[TokenizedExample]:
    """Training and validation rows."""
    return [*shop.tokens.rows["train"], *shop.tokens.rows["validation"]]


def taught(shop: Workshop, rows: Sequence[TokenizedExample]) -> Sequence[TokenizedExample]:
    """What teaches where these rows do: they, and the labels' names."""
    return chained(rows, shop.tokens.names) if shop.tokens.names else rows


def num_taught(shop: Workshop, num_rows: float) -> float:
    """How many texts teach where so many rows do."""
    return num_rows + len(shop.tokens.names)


def few_rows(shop: Workshop) -> bool:
    """Whether there are too few training rows to give some away for choosing settings: folds choose them.

    Not where the rows that choose are fixed: given as a file, or the newest.
    """
    few = len(shop.tokens.examples["train"]) < FEW_ROWS
    return few and may_refit(shop) and shop.recipe.data.split.time is None


def may_refit(shop: Workshop) -> bool:
    """Whether the validation rows may teach, once they chose the settings.

    Not where they are a file of their own: whoever gives one may need it untouched.
    """
    return shop.recipe.train.refit and shop.recipe.data.validation is None


def refits(shop: Workshop) -> bool:
    """Whether training is done twice in any case: the validation rows are many beside the others."""
    few = len(shop.tokens.examples["train"]) < REFIT_ROWS
    return may_refit(shop) and few and shop.recipe.train.minutes is None


def groups_of(rows: Sequence[Example | TokenizedExample], *, near: bool = True) -> IntArray:
    """(N,) ids, numbered from 0: alike for rows that no fold may tell apart.

    Windows of one text, rows of one value of `data.split.group`, and with `near` near-duplicates.
    """
    ids: dict[object, int] = {}
    return np.array([ids.setdefault(group_of(row, near=near), len(ids)) for row in rows])


def group_of(row: Example | TokenizedExample, *, near: bool = True) -> object:
    """What the row stays together with, or the row itself; see `groups_of`."""
    grouped = row.group and (near or not row.group.startswith(NEAR))
    return row.group if grouped else (row.source, row.row)


def resampling_of(shop: Workshop, rows: Sequence[Example]) -> Resampling:
    """How intervals over these rows are drawn."""
    return Resampling(shop.recipe.evaluate.resamples, shop.recipe.seed, groups_of(rows))


class NoFoldsError(DataError):
    """The rows can't be divided so that each part leaves two labels to tell apart."""


def folds_of(
    rows: Sequence[Example] | Sequence[TokenizedExample],
    *,
    seed: int,
    strata: Callable[[Any], IntArray] = lambda answers: answers,
    most: int = FOLDS,
) -> list[tuple[IntArray, IntArray]]:
    """Stratified folds as (inside, outside) row indices; `groups_of` says which rows stay together.

    `strata` says from the answers what is dealt out evenly: the classes themselves, or a stand-in; `most` is
    how many folds there are, or fewer where two labels don't allow so many.

    Raises:
        NoFoldsError: in every division some fold would have one label only to learn from.
    """
    labels = strata(np.array([row.label for row in rows]))
    # Texts of one pattern a label: folds that tell nothing apart are worth less than whole near-duplicates.
    for near in (True, False):
        folds = _whole_folds(labels, groups_of(rows, near=near), seed=seed, most=most)
        if folds and all(len(np.unique(labels[inside])) > 1 for inside, _ in folds):
            return folds
    raise NoFoldsError(
        "fewer than two labels have two texts (or groups of them) or more for training and validation.",
        fix="Add rows of the rarer labels.",
    )


def fold_numbers(
    rows: Sequence[Example] | Sequence[TokenizedExample], *, seed: int, strata: Callable[[Any], IntArray]
) -> IntArray | None:
    """(N,) which of `folds_of` holds each row out; None where there are none."""
    try:
        folds = folds_of(rows, seed=seed, strata=strata)
    except NoFoldsError:
        return None
    numbers = np.empty(len(rows), np.int64)
    for number, (_, outside) in enumerate(folds):
        numbers[outside] = number
    return numbers


def _whole_folds(
    labels: IntArray, groups: IntArray, *, seed: int, most: int
) -> list[tuple[IntArray, IntArray]]:
    """As many folds of whole groups as two labels allow, so many at most; none where that isn't two."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    held = np.unique(np.stack([groups, labels]), axis=1)  # every label of every group, by group
    sizes = np.sort(np.unique(held[1], return_counts=True)[1])  # groups that hold a label
    count = min(most, *sizes[-2:-1].tolist(), int(groups.max(initial=-1)) + 1)
    if len(sizes) < 2 or count < 2:
        return []
    settings: dict[str, Any] = {"n_splits": count, "shuffle": True, "random_state": seed}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # it is held out where it comes
        if held.shape[1] == groups.max() + 1 or groups.max() > MOST_DEALT:  # groups can be dealt as rows
            _, first = np.unique(groups, return_index=True)
            dealt = StratifiedKFold(**settings).split(np.zeros(len(first)), labels[first])
            outside = [np.flatnonzero(np.isin(groups, chosen)) for _, chosen in dealt]
        else:
            dealt = StratifiedGroupKFold(**settings).split(np.zeros(len(labels)), labels, groups)
            outside = [chosen for _, chosen in dealt if len(chosen)]
    everything = np.arange(len(labels))
    return [(np.setdiff1d(everything, chosen), chosen) for chosen in outside]
