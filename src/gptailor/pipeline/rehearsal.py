"""Rehearsals of classification: one trial on the run's own split, and repeats on other splits and seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.evaluate.resampling import Resampling
from gptailor.models.approach import Adapted
from gptailor.models.load import head_name, load_config, takes_dropout
from gptailor.models.readout import decide, probabilities_of
from gptailor.pipeline.causal import estimate_weights
from gptailor.pipeline.classify import by_text, classify_rows
from gptailor.pipeline.fit import LONGEST_AUTO_SECONDS, open_workshop
from gptailor.pipeline.frozen import features_of, run_frozen
from gptailor.pipeline.handover import Ended, Handover
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.objective import usual_rates
from gptailor.pipeline.place import Listener
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.rehearsal_rows import (
    Rows,
    asked_are_fixed,
    elsewhere,
    few_folds,
    key_of,
    refuse_unrepeatable,
    splits_of,
    with_rows,
)
from gptailor.pipeline.rehearse import Gap, Look, Rehearsal, Repeat, Settled, rehearse, teach
from gptailor.pipeline.settle import Measured
from gptailor.pipeline.trained import (
    Trainable,
    adapt,
    objective_of,
    refit_steps,
    steps_after_folds,
    trainings_of,
)
from gptailor.pipeline.workshop import (
    Candidate,
    Workshop,
    few_rows,
    group_of,
    may_refit,
    num_taught,
    pool_of,
    refits,
)
from gptailor.recipe import AutoApproach, FrozenApproach, FullApproach, Recipe
from gptailor.report.words import HELD_OUT, WHAT_CHOSE
from gptailor.types import AnswerForm, FloatArray, IntArray

UNEVEN = 1.5  # times the rows of the rarest label: less is hardly felt by a loss with class weights


@dataclass(frozen=True, slots=True)
class Seen:
    """Logits of a repeat on rows that chose nothing, and how they become answers."""

    outside: FloatArray  # (K, C)
    form: AnswerForm
    temperature: float


def rehearse_classification(recipe: Recipe, folder: Path, listener: Listener) -> Rehearsal:
    """Reads, cleans, splits and tokenizes once. The folder keeps what is measured of the machine."""
    prepared = prepare(recipe, listener.say)
    shop = without_test(open_workshop(recipe, prepared, folder, listener))
    kind = shop.kind
    one_label = kind.form.kind == "single"
    refuse_unrepeatable(shop)
    measured: Measured = {}  # once for all trials and repeats
    leave = partial(Handover(folder).leave, shop.environment, prepared.data_hash, listener.say)

    def gap(ours: Sequence[Repeat], theirs: Sequence[Repeat]) -> Gap:
        answers, mine, others = (
            np.concatenate([getattr(repeat, name) for repeat in repeats])
            for repeats, name in ((ours, "answers"), (ours, "predictions"), (theirs, "predictions"))
        )
        ids: dict[object, int] = {}
        groups = np.array([ids.setdefault(key, len(ids)) for one in ours for key in one.drawn_with])
        drawn = Resampling(recipe.evaluate.resamples, recipe.seed, groups)
        found = kind.difference(answers, mine, others, label_names=shop.label_names, resampling=drawn)
        # Rows that were asked several times, or are alike, tell no more than once. Where there are too few
        # to be drawn together, resamples spread too little.
        too_little = math.sqrt(drawn.num_units(len(groups)) / len(ids))
        of_rows = too_little * (found.high - found.low) / (2 * 1.96)
        of_fits = error_of_fits(ours, theirs)
        # Repeats that ask other rows differ by these, too: what they differ by holds both (docs/log.md).
        asked_again = len(ids) < sum(len(set(one.drawn_with)) for one in ours)
        error = math.hypot(of_rows, of_fits) if asked_again else max(of_rows, of_fits)
        wider = 2 * 1.96 * error / (found.high - found.low) if found.high > found.low else 1.0
        low, high = (found.value + wider * (end - found.value) for end in (found.low, found.high))
        if kind.higher_is_better:
            return Gap(found.value, low, high, error)
        return Gap(-found.value, -high, -low, error)

    def repeat(tried: Recipe, number: int, settled: Settled | None) -> Repeat:
        assert settled is not None  # by a trial that came to its end
        return repeat_elsewhere(shop, tried, number, settled, measured)

    return Rehearsal(
        metric=kind.metric,
        told=kind.told,
        approaches=("frozen", "full", "lora"),
        usual_rates=usual_rates(estimate_weights(shop.base, writes=False)),
        num_rows=len(shop.tokens.rows["train"]),
        trainings=len(splits_of(shop)),
        last_fit=last_fit_of(shop),
        one_label=one_label,
        uneven=one_label and are_uneven(answers_of(shop.tokens.rows["train"])),
        takes_dropout=takes_dropout(load_config(shop.base)),
        judged_on=WHAT_CHOSE if asked_are_fixed(recipe) else HELD_OUT,
        trial=lambda tried: rehearse_trial(
            dataclasses.replace(shop, recipe=tried), measured, partial(leave, tried)
        ),
        repeat=repeat,
        gap=gap,
    )


def are_uneven(answers: IntArray) -> bool:
    """Whether the most frequent label has more than half as many rows again as the rarest."""
    counts = np.bincount(answers)
    return bool(counts.max() > UNEVEN * counts[counts > 0].min())


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


def last_fit_of(shop: Workshop) -> float:
    """Times a trial that the last fit takes: a refit at most, or all folds of few rows and one on all."""
    return trainings_of(shop) / len(splits_of(shop)) if few_rows(shop) else float(may_refit(shop))


def rehearse_trial(
    shop: Workshop, measured: Measured, leave: Callable[[Adapted, Ended], None]
) -> Iterator[Look]:
    """The looks of the recipe's approach; `auto` is the better of frozen and full, as in a fit.

    Under 200 training rows they are those of the folds that may choose, one after the other: a score is the
    folds' mean, and the last one that of all their answers together. Of more rows the training is left to the
    last fit.
    """
    (frozen, trainable, longest), fallback = parts_of(shop.recipe), -math.inf
    if frozen is not None:
        fallback = frozen_score(shop, run_frozen(shop, frozen))
        yield Look(0, -math.inf, fallback=fallback, settled=Settled(frozen.kind))
    if trainable is None:
        return
    splits, trainings, kind = splits_of(shop), trainings_of(shop), shop.kind
    asks_best = len(splits) > 1 or kind.form.kind == "multiple"  # the best weights are asked at the end
    finished: list[Look] = []
    answered: list[tuple[FloatArray, Any]] = []
    number = 0
    for train_rows, validation_rows in splits:
        adapted = adapt(shop, trainable)
        looks = rehearse(
            shop.recipe,
            adapted,
            objective_of(shop, adapted, train_rows, validation_rows),
            approach=trainable.kind,
            measured=measured,
            trainings=trainings,
            keep_best=asks_best,
            leave=None if few_rows(shop) else partial(leave, adapted),
        )
        for look in looks:
            if look.forecast * trainings > longest:
                return
            number += 1
            score = float(np.mean([*(one.score for one in finished), look.score]))
            forecast = look.forecast * len(splits)
            if look.last:
                finished.append(look)
            else:
                yield Look(number, score, forecast, fallback=fallback, learning_rate=look.learning_rate)
        if asks_best:
            logits = classify_rows(adapted, validation_rows, pad_id=shop.encoder.pad_id)
            answered.append(by_text(logits, validation_rows))
        last = len(finished) == len(splits)
        settled = None
        if last:
            asked = [np.concatenate(parts) for parts in zip(*answered, strict=True)]
            score = kind.score(*asked) if len(splits) > 1 else score
            settled = Settled(frozen.kind) if frozen is not None and score <= fallback else None
            settled = settled or settle(shop, trainable, splits, finished, asked)
        rate = look.learning_rate
        yield Look(number, score, forecast, last, fallback, learning_rate=rate, settled=settled)


def settle(
    shop: Workshop,
    approach: Trainable,
    splits: Sequence[tuple[Rows, Rows]],
    finished: Sequence[Look],
    asked: Sequence[Any],
) -> Settled:
    """What a training settled at its last looks, one of each split; `asked`: logits and answers, if any."""
    first, best_steps = finished[0], [look.best_step for look in finished]
    if few_rows(shop):
        steps = steps_after_folds(best_steps, [len(rows) for rows, _ in splits], shop, longest=first.longest)
    else:
        steps = refit_steps(shop, best_step=first.best_step, step=first.step, longest=first.longest)
    rate = float(np.median([look.learning_rate for look in finished]))
    if not asked:
        return Settled(approach.kind, steps, rate)
    form, temperature, _ = shop.kind.settle(*asked)
    return Settled(approach.kind, steps, rate, form.cutoff, temperature)


def frozen_score(shop: Workshop, candidate: Candidate) -> float:
    """What a frozen head scores on the rows that may choose; under 200 training rows not all of them."""
    if not few_rows(shop):
        return candidate.score
    pool = pool_of(shop)
    places = {key: place for place, key in enumerate(dict.fromkeys(key_of(row) for row in pool))}
    choosing, _ = few_folds(shop)
    asked = sorted({places[key_of(pool[place])] for _, outside in choosing for place in outside.tolist()})
    return shop.kind.score(candidate.validation_logits[asked], candidate.validation_answers[asked])


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


def repeat_elsewhere(
    shop: Workshop, recipe: Recipe, number: int, settled: Settled, measured: Measured
) -> Repeat:
    """What the fit would keep after a trial that settled this, made from other rows with another seed, and
    asked rows that it has not seen.

    Where the validation rows were given, or the split follows time, the split stays.
    """
    (train, validation), outside = elsewhere(shop, number)
    fixed = asked_are_fixed(shop.recipe)
    part = with_rows(
        dataclasses.replace(shop, recipe=recipe.model_copy(update={"seed": recipe.seed + 1 + number})),
        train,
        validation,
    )
    frozen, trainable, _ = parts_of(recipe)
    if frozen is not None and settled.approach == frozen.kind:
        # What is asked in a fixed split must not have taught, as it does in a fit.
        seen = _see_frozen(_without_refit(part) if fixed else part, frozen, outside)
    elif settled.steps and (refits(part) or not fixed):  # in a fixed split all stop early, or none does
        assert trainable is not None
        rows = train if fixed else [*train, *validation]
        everything = num_taught(shop, len(pool_of(shop)))
        steps = max(1, round(settled.steps * num_taught(shop, len(rows)) / everything))
        seen = _see_refitted(part, trainable, settled, rows, outside, measured, steps=steps)
    else:
        assert trainable is not None
        seen = _see_trained(part, trainable, outside, measured)
    logits, answers = by_text(seen.outside, outside)
    predictions = decide(probabilities_of(logits, seen.form, temperature=seen.temperature), seen.form)
    asked = {key_of(row): group_of(row) for row in outside}  # the text that several rows are windows of
    kind = shop.kind
    scores = kind.measure(answers, predictions, label_names=shop.label_names, resampling=Resampling(1))
    return Repeat(kind.told(scores[kind.metric].value), answers, predictions, tuple(asked.values()))


def _without_refit(shop: Workshop) -> Workshop:
    train = shop.recipe.train.model_copy(update={"refit": False})
    return dataclasses.replace(shop, recipe=shop.recipe.model_copy(update={"train": train}))


def _see_frozen(shop: Workshop, settings: FrozenApproach, outside: Rows) -> Seen:
    candidate = run_frozen(shop, settings)
    model: Any = candidate.model
    weights = getattr(model, head_name(model)).weight.detach().double().numpy()
    logits = features_of(shop, model, outside) @ weights.T
    form, temperature, _ = shop.kind.settle(candidate.validation_logits, candidate.validation_answers)
    return Seen(logits, form, temperature)


def _see_refitted(
    shop: Workshop,
    settings: Trainable,
    settled: Settled,
    rows: Rows,
    outside: Rows,
    measured: Measured,
    *,
    steps: int,
) -> Seen:
    adapted, pad_id = adapt(shop, settings), shop.encoder.pad_id
    objective = objective_of(shop, adapted, rows, [])
    teach(shop.recipe, adapted, objective, settled, measured=measured, steps=steps)
    form = dataclasses.replace(shop.kind.form, cutoff=settled.cutoff)
    return Seen(classify_rows(adapted, outside, pad_id=pad_id), form, settled.temperature)


def _see_trained(shop: Workshop, settings: Trainable, outside: Rows, measured: Measured) -> Seen:
    """By early stopping: with many rows, a fit keeps the weights that validation chose."""
    adapted, rows, pad_id = adapt(shop, settings), shop.tokens.rows, shop.encoder.pad_id
    objective = objective_of(shop, adapted, rows["train"], rows["validation"])
    approach = settings.kind
    for _ in rehearse(shop.recipe, adapted, objective, approach=approach, measured=measured, keep_best=True):
        pass
    form, temperature, _ = shop.kind.settle(
        *by_text(classify_rows(adapted, rows["validation"], pad_id=pad_id), rows["validation"])
    )
    return Seen(classify_rows(adapted, outside, pad_id=pad_id), form, temperature)
