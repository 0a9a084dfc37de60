"""A training run that leaves nothing behind: trials are many, and few of them are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from gptailor.models.approach import Adapted
from gptailor.models.rows import used_rows_only
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.place import Progress
from gptailor.pipeline.training import Plan, judge, optimizer_of, steps_of
from gptailor.recipe import Recipe, TrainSettings


@dataclass(frozen=True, slots=True)
class Look:
    """How a rehearsal does at one of its validations. Who has seen enough stops asking for the next."""

    number: int  # of the validation, from 1; 0: there was nothing to train
    score: float  # of the best weights so far of what is trained; higher is better
    forecast: float = 0.0  # seconds that the whole rehearsal takes at most
    last: bool = False  # there is nothing left to save by giving up
    fallback: float = -math.inf  # the score of what was reached without training, if anything

    @property
    def result(self) -> float:
        """What the recipe has reached so far, one way or the other."""
        return max(self.score, self.fallback)


@dataclass(frozen=True, slots=True)
class Repeat:
    """What one recipe reached once more, on rows that neither its weights nor its settings have seen."""

    score: float  # higher is better
    answers: Any = None  # of the rows, where they can be paired one by one
    predictions: Any = None


@dataclass(frozen=True, slots=True)
class Gap:
    """How far one recipe is ahead of another over all repeats; above zero is better."""

    value: float
    low: float
    high: float
    error: float  # the standard error of the value


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a search asks of a task. The data is read, split and tokenized; the test rows aren't in it."""

    metric: str  # decides; its key in the report
    told: Callable[[float], float]  # a score as people read it
    approaches: tuple[str, ...]  # that `auto` may stand for
    usual_rates: Mapping[str, float]  # by approach
    num_rows: int  # that train
    one_label: bool  # one label a row: only then there are class weights and label smoothing
    trial: Callable[[Recipe], Iterator[Look]]
    repeat: Callable[[Recipe, int], Repeat]
    gap: Callable[[Sequence[Repeat], Sequence[Repeat]], Gap]


def rehearse(
    adapted: Adapted,
    objective: Objective,
    *,
    plan: Plan,
    settings: TrainSettings,
    seed: int,
    forecast: float = 0.0,
    keep_best: bool = False,
) -> Iterator[Look]:
    """Trains as `train` does, with the same steps and the same judgement, and writes nothing.

    With `keep_best` the model holds its best weights when the last look was taken.

    Raises:
        NonFiniteError: loss or gradient is not a number.
    """
    with used_rows_only(adapted.plain, objective.used):
        optimizer = optimizer_of(adapted, objective, plan=plan, settings=settings)
        steps = steps_of(
            adapted,
            objective,
            optimizer,
            plan=plan,
            settings=settings,
            seed=seed,
            steps=range(1, plan.steps + 1),
        )
        progress, best, number, score = Progress(), {}, 0, -math.inf
        with closing(steps):
            for result in steps:
                if result.step != plan.steps and result.step % plan.validate_every != 0:
                    continue
                number += 1
                validation = objective.validate(plan.precision)
                progress = judge(progress, validation, result.step, plan=plan, settings=settings)
                if progress.best_step == result.step:
                    score = validation.score if validation.compared is None else validation.compared
                    best = weights_of(adapted) if keep_best else {}
                yield Look(number, score, forecast, last=bool(progress.stopped))
                if progress.stopped:
                    break
        put_weights(adapted, best)
    adapted.trained.eval()


def weights_of(adapted: Adapted) -> dict[str, torch.Tensor]:
    """A copy of the weights that may change."""
    return {
        name: parameter.detach().clone()
        for name, parameter in adapted.trained.named_parameters()
        if parameter.requires_grad
    }


def put_weights(adapted: Adapted, weights: dict[str, torch.Tensor]) -> None:
    """Puts copied weights back."""
    with torch.no_grad():
        for name, parameter in adapted.trained.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
