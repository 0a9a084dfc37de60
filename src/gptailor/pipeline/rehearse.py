"""A training run that writes nothing as it goes: trials are many, and few of them come to their end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gptailor.models.approach import Adapted, put_weights, weights_of
from gptailor.models.rows import used_rows_only
from gptailor.pipeline.handover import Ended
from gptailor.pipeline.objective import Objective
from gptailor.pipeline.place import Progress, line_of
from gptailor.pipeline.plan import Plan, plan_for, with_rate
from gptailor.pipeline.settle import Measured, choices_of, measured_plan, timed_plan
from gptailor.pipeline.training import judge, optimizer_of, steps_of
from gptailor.recipe import Recipe
from gptailor.types import StepResult


@dataclass(frozen=True, slots=True)
class Settled:
    """What the validation rows settled in a trial, as they do in a fit of the same recipe.

    A repeat goes on from it as the fit does, so that what is compared is what will be kept.
    """

    approach: str
    steps: int = 0  # of training anew, on the validation rows, too; 0: the weights that validation chose stay
    learning_rate: float = 0.0  # of the training
    cutoff: float = 0.5  # from which a label of several is given
    temperature: float = 1.0  # of the probabilities that it cuts


@dataclass(frozen=True, slots=True)
class Look:
    """How a rehearsal does at one of its validations. Who has seen enough stops asking for the next."""

    number: int  # of the validation, from 1; 0: there was nothing to train
    score: float  # of the best weights so far of what is trained; higher is better
    forecast: float = 0.0  # seconds that the whole rehearsal takes at most
    last: bool = False  # there is nothing left to save by giving up
    fallback: float = -math.inf  # the score of what was reached without training, if anything
    step: int = 0
    best_step: int = 0
    longest: int = 0  # steps that are planned
    learning_rate: float = 0.0
    settled: Settled | None = None  # what a fit would go on with, if this look is the last

    @property
    def result(self) -> float:
        """What the recipe has reached so far, one way or the other."""
        return max(self.score, self.fallback)


@dataclass(frozen=True, slots=True)
class Repeat:
    """What one recipe reached when it was fitted once more, on the rows that `Rehearsal.judged_on` names."""

    score: float  # higher is better
    answers: Any = None  # of the rows, where they can be paired one by one
    predictions: Any = None
    drawn_with: Sequence[object] = ()  # what each row is, or is alike with: the same in every repeat


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
    trainings: int  # of a trial: by folds where there are few rows
    last_fit: float  # times a trial that the last fit of a recipe takes, after that of its trial
    one_label: bool  # one label a row: only then there are class weights and label smoothing
    uneven: bool  # whether some labels have so many more rows than others that class weights change much
    takes_dropout: bool  # whether the base has any outside attention
    judged_on: str  # HELD_OUT or WHAT_CHOSE of report/words.py: what rows judge repeats
    trial: Callable[[Recipe], Iterator[Look]]
    repeat: Callable[[Recipe, int, Settled | None], Repeat]
    gap: Callable[[Sequence[Repeat], Sequence[Repeat]], Gap]
    own_approach: str = ""  # of the recipe, where no trial has to settle it
    fewest_repeats: int = 1  # that can tell a winner


def rehearse(
    recipe: Recipe,
    adapted: Adapted,
    objective: Objective,
    *,
    approach: str,
    measured: Measured,
    trainings: int = 1,
    keep_best: bool = False,
    leave: Callable[[Ended], None] | None = None,
) -> Iterator[Look]:
    """Trains as `train` does, with the same steps and the same judgement, and writes nothing itself.

    `trainings` is how many of this length a fit takes, which share its minutes. With `keep_best` the model
    holds its best weights after the last look; with `leave` too, which is told how the training ended.

    Raises:
        NonFiniteError: loss or gradient is not a number.
    """
    settings = recipe.train
    plan, forecast, memory = measured_plan(
        settings,
        adapted,
        objective,
        approach=approach,
        seed=recipe.seed,
        measured=measured,
        trainings=trainings,
    )
    choices = {} if leave is None else choices_of(settings, plan, forecast, memory)
    keep_best = keep_best or leave is not None
    progress, number, score = Progress(), 0, -math.inf
    best: dict[str, torch.Tensor] = {}
    lines: list[Mapping[str, Any]] = []
    with _stepping(recipe, adapted, objective, plan) as steps:
        for result in steps:
            lines.append(line_of(result))
            if result.step != plan.steps and result.step % plan.validate_every != 0:
                continue
            number += 1
            validation = objective.validate(plan.precision)
            lines.append(validation.line(result.step))
            progress = judge(progress, validation, result.step, plan=plan, settings=settings)
            if progress.best_step == result.step:
                score = validation.score if validation.compared is None else validation.compared
                best = weights_of(adapted, best) if keep_best else {}
            yield Look(
                number,
                score,
                forecast,
                last=bool(progress.stopped),
                step=result.step,
                best_step=progress.best_step,
                longest=plan.steps,
                learning_rate=plan.learning_rate,
            )
            if progress.stopped:
                break
        put_weights(adapted, best)
        if leave is not None:
            leave(Ended(progress, lines, choices))
    adapted.trained.eval()


def teach(
    recipe: Recipe,
    adapted: Adapted,
    objective: Objective,
    settled: Settled,
    *,
    measured: Measured,
    steps: int,
) -> None:
    """Trains so many steps as a refit does: nothing is validated, and the last weights stay.

    Raises:
        NonFiniteError: loss or gradient is not a number.
    """
    settings = recipe.train
    plan = plan_for(settings, adapted, objective, settled.approach)
    plan, _, _ = timed_plan(settings, adapted, objective, plan, measured=measured)
    plan = dataclasses.replace(with_rate(settings, plan, settled.learning_rate), steps=steps)
    with _stepping(recipe, adapted, objective, plan) as stepping:
        for _ in stepping:
            pass
    adapted.trained.eval()


@contextmanager
def _stepping(
    recipe: Recipe, adapted: Adapted, objective: Objective, plan: Plan
) -> Iterator[Generator[StepResult, None, None]]:
    """All steps of a plan, from the first."""
    settings = recipe.train
    with used_rows_only(adapted.plain, objective.used):
        optimizer = optimizer_of(adapted, objective, plan=plan, settings=settings)
        steps = steps_of(
            adapted,
            objective,
            optimizer,
            plan=plan,
            settings=settings,
            seed=recipe.seed,
            steps=range(1, plan.steps + 1),
        )
        with closing(steps):
            yield steps
