"""Rehearsals of classification: one trial on the run's own split, and repeats on other splits and seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.models.approach import Adapted
from gptailor.models.load import head_name
from gptailor.models.readout import decide, probabilities_of
from gptailor.pipeline.causal import estimate_weights
from gptailor.pipeline.classify import by_text, classify_rows
from gptailor.pipeline.fit import LONGEST_AUTO_SECONDS, open_workshop
from gptailor.pipeline.frozen import features_of, run_frozen
from gptailor.pipeline.objective import usual_rates
from gptailor.pipeline.place import Listener
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.rehearse import Gap, Look, Rehearsal, Repeat, rehearse
from gptailor.pipeline.trained import Measured, Trainable, adapt, objective_of, rehearsed_plan
from gptailor.pipeline.workshop import FOLDS, Workshop, few_rows, folds_of
from gptailor.recipe import AutoApproach, FrozenApproach, FullApproach, Recipe
from gptailor.types import FloatArray, IntArray, TokenizedExample

Rows = Sequence[TokenizedExample]


@dataclass(frozen=True, slots=True)
class Seen:
    """Logits of a recipe on rows that chose something (validation) and on rows that chose nothing."""

    score: float  # on validation
    validation: FloatArray  # (M, C)
    validation_answers: Any
    outside: FloatArray  # (K, C)


def rehearse_classification(recipe: Recipe, folder: Path, listener: Listener) -> Rehearsal:
    """Reads, cleans, splits and tokenizes once. The folder keeps what is measured of the machine."""
    shop = without_test(open_workshop(recipe, prepare(recipe, listener.say), folder, listener))
    kind = shop.kind
    different = num_judged(shop, recipe)
    measured: Measured = {}  # once for all trials and repeats

    def gap(ours: Sequence[Repeat], theirs: Sequence[Repeat]) -> Gap:
        answers, mine, others = (
            np.concatenate([getattr(repeat, name) for repeat in repeats])
            for repeats, name in ((ours, "answers"), (ours, "predictions"), (theirs, "predictions"))
        )
        found = kind.difference(
            answers,
            mine,
            others,
            label_names=shop.label_names,
            resamples=recipe.evaluate.resamples,
            seed=recipe.seed,
        )
        # Rows that were asked several times tell no more than once: their resamples spread too little.
        of_rows = math.sqrt(max(1.0, len(ours) / different)) * (found.high - found.low) / (2 * 1.96)
        error = math.hypot(of_rows, error_of_fits(ours, theirs))
        wider = 2 * 1.96 * error / (found.high - found.low) if found.high > found.low else 1.0
        low, high = (found.value + wider * (end - found.value) for end in (found.low, found.high))
        if kind.higher_is_better:
            return Gap(found.value, low, high, error)
        return Gap(-found.value, -high, -low, error)

    return Rehearsal(
        metric=kind.metric,
        told=kind.told,
        approaches=("frozen", "full", "lora"),
        usual_rates=usual_rates(estimate_weights(shop.base, writes=False)),
        num_rows=len(shop.tokens.rows["train"]),
        one_label=kind.form.kind == "single",
        trial=lambda tried: rehearse_trial(dataclasses.replace(shop, recipe=tried), measured),
        repeat=lambda tried, number: repeat_elsewhere(shop, tried, number, measured),
        gap=gap,
    )


def error_of_fits(ours: Sequence[Repeat], theirs: Sequence[Repeat]) -> float:
    """The standard error of the mean difference over repeats: another seed and split gives another one."""
    gaps = [one.score - other.score for one, other in zip(ours, theirs, strict=True)]
    return float(np.std(gaps, ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else 0.0


def without_test(shop: Workshop) -> Workshop:
    """The workshop without the sealed rows, so that no search can come to see them."""
    tokens = shop.tokens
    sealed = dataclasses.replace(
        tokens, rows={**tokens.rows, "test": []}, examples={**tokens.examples, "test": []}
    )
    return dataclasses.replace(shop, tokens=sealed)


def rehearse_trial(shop: Workshop, measured: Measured) -> Iterator[Look]:
    """The looks of the recipe's approach; `auto` is the better of frozen and full, as in a fit.

    Under 200 training rows they are those of five folds, one after the other; a score is the folds' mean.
    """
    (frozen, trainable, longest), fallback = parts_of(shop.recipe), -math.inf
    if frozen is not None:
        fallback = run_frozen(shop, frozen).score
        yield Look(0, -math.inf, fallback=fallback)
    if trainable is None:
        return
    finished: list[float] = []
    number = 0
    splits = splits_of(shop)
    for train_rows, validation_rows in splits:
        score = -math.inf
        adapted = adapt(shop, trainable)
        looks = train_on(
            shop, adapted, train_rows, validation_rows, approach=trainable.kind, measured=measured
        )
        for look in looks:
            if look.forecast * len(splits) > longest:
                return
            number += 1
            score = look.score
            mean = float(np.mean([*finished, score]))
            last = look.last and len(finished) + 1 == len(splits)
            yield Look(number, mean, look.forecast * len(splits), last, fallback)
        finished.append(score)


def parts_of(recipe: Recipe) -> tuple[FrozenApproach | None, Trainable | None, float]:
    """What the recipe's approach fits: a head on the frozen body, a training, and the seconds that this may
    take before it is left out.
    """
    approach = recipe.approach
    if isinstance(approach, AutoApproach):
        return FrozenApproach(), FullApproach(), LONGEST_AUTO_SECONDS
    if isinstance(approach, FrozenApproach):
        return approach, None, math.inf
    return None, approach, math.inf


def splits_of(shop: Workshop) -> list[tuple[Rows, Rows]]:
    """The run's own training and validation rows, or folds where there are few."""
    rows = shop.tokens.rows
    if not few_rows(shop):
        return [(rows["train"], rows["validation"])]
    pool = [*rows["train"], *rows["validation"]]
    folds = folds_of(pool, seed=shop.recipe.seed, strata=shop.kind.strata)
    return [(chosen(pool, inside), chosen(pool, outside)) for inside, outside in folds]


def train_on(
    shop: Workshop,
    adapted: Adapted,
    train_rows: Rows,
    validation_rows: Rows,
    *,
    approach: str,
    measured: Measured,
    keep_best: bool = False,
) -> Iterator[Look]:
    """Rehearses one training of the model on these rows."""
    settings = shop.recipe.train
    objective = objective_of(shop, adapted, train_rows, validation_rows)
    seed = shop.recipe.seed
    plan, seconds = rehearsed_plan(
        settings, adapted, objective, approach=approach, seed=seed, measured=measured
    )
    yield from rehearse(
        adapted,
        objective,
        plan=plan,
        settings=settings,
        seed=seed,
        forecast=seconds,
        keep_best=keep_best,
    )


def repeat_elsewhere(shop: Workshop, recipe: Recipe, number: int, measured: Measured) -> Repeat:
    """Fits the recipe on another split with another seed, and asks it rows that it has not seen.

    The validation rows teach nothing, whatever the approach: with a refit a repeat would take twice as long.
    Where a person gave them, or the split follows time, the split stays.
    """
    train = recipe.train.model_copy(update={"refit": False})
    settings = {"seed": recipe.seed + 1 + number, "train": train}
    shop = dataclasses.replace(shop, recipe=recipe.model_copy(update=settings))
    rows, outside = elsewhere(shop, recipe, number)
    part = with_rows(shop, *rows)
    found: list[Seen] = []
    frozen, trainable, longest = parts_of(recipe)
    if frozen is not None:
        found.append(_see_frozen(part, frozen, outside))
    if trainable is not None:
        seen = _see_trained(part, trainable, outside, measured, longest=longest)
        found += [seen] if seen is not None else []
    best = max(found, key=lambda seen: seen.score)
    kind = shop.kind
    logits, answers = by_text(best.outside, outside)
    form, temperature, _ = kind.settle(best.validation, best.validation_answers)
    predictions = decide(probabilities_of(logits, form, temperature=temperature), form)
    return Repeat(kind.score(logits, answers), answers, predictions)


def asked_are_fixed(recipe: Recipe) -> bool:
    """Whether the rows that judge are the same however often one asks."""
    return recipe.data.validation is not None or recipe.data.split.time is not None


def num_judged(shop: Workshop, recipe: Recipe) -> int:
    """How many repeats ask other rows than the ones before them.

    Raises:
        NoFoldsError: no finalist could be repeated, which is better known before the first trial.
    """
    if asked_are_fixed(recipe):
        return 1
    elsewhere(shop, recipe, 0)
    return len(other_folds(shop, recipe, 0))


def other_folds(shop: Workshop, recipe: Recipe, deal: int) -> list[tuple[IntArray, IntArray]]:
    """Folds of training and validation rows that are not the fit's own; others for another deal."""
    rows = shop.tokens.rows
    pool = [*rows["train"], *rows["validation"]]
    return folds_of(pool, seed=recipe.seed + 1 + deal, strata=shop.kind.strata)


def elsewhere(shop: Workshop, recipe: Recipe, number: int) -> tuple[tuple[Rows, Rows], Rows]:
    """Training and validation rows, and rows outside both; the same ones for the same number."""
    rows = shop.tokens.rows
    if asked_are_fixed(recipe):
        return (rows["train"], rows["validation"]), rows["validation"]
    pool = [*rows["train"], *rows["validation"]]
    strata = shop.kind.strata
    deal, fold = divmod(number, FOLDS)
    folds = other_folds(shop, recipe, deal)
    inside, outside = folds[fold % len(folds)]
    inner = chosen(pool, inside)
    train, validation = folds_of(inner, seed=recipe.seed + 1 + deal, strata=strata)[0]
    return (chosen(inner, train), chosen(inner, validation)), chosen(pool, outside)


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


def chosen(rows: Rows, places: Any) -> list[TokenizedExample]:
    """The rows at these places."""
    return [rows[place] for place in places.tolist()]


def _see_frozen(shop: Workshop, settings: FrozenApproach, outside: Rows) -> Seen:
    candidate = run_frozen(shop, settings)
    model: Any = candidate.model
    weights = getattr(model, head_name(model)).weight.detach().double().numpy()
    logits = features_of(shop, model, outside) @ weights.T
    return Seen(candidate.score, candidate.validation_logits, candidate.validation_answers, logits)


def _see_trained(
    shop: Workshop, settings: Trainable, outside: Rows, measured: Measured, *, longest: float
) -> Seen | None:
    """None where it would take too long, as in a trial and in a fit."""
    adapted, rows, pad_id = adapt(shop, settings), shop.tokens.rows, shop.encoder.pad_id
    known: Any = {"approach": settings.kind, "measured": measured}
    for look in train_on(shop, adapted, rows["train"], rows["validation"], keep_best=True, **known):
        if look.forecast > longest:
            return None
    logits = classify_rows(adapted, rows["validation"], pad_id=pad_id)
    validation, answers = by_text(logits, rows["validation"])
    score = shop.kind.score(validation, answers)
    return Seen(score, validation, answers, classify_rows(adapted, outside, pad_id=pad_id))
