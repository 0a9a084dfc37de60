"""A rehearsal without a model: scores are a function of the recipe, so a search takes no time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gptailor.pipeline.rehearse import Gap, Look, Rehearsal, Repeat, Settled
from gptailor.recipe import Recipe, build_recipe
from gptailor.report.words import HELD_OUT


def recipe_with(**values: Any) -> Recipe:
    return build_recipe({"data": {"train": "news.csv"}, "task": "classification", **values})


def rehearsal_of(
    score_of: Callable[[Recipe], float],
    *,
    looks: int = 6,
    seconds: float = 0.0,
    repeat: Callable[[Recipe, int, Settled | None], Repeat] | None = None,
    ran: list[Recipe] | None = None,
    takes_dropout: bool = True,
) -> Rehearsal:
    """Every look comes a share nearer to the score."""

    def trial(recipe: Recipe) -> Iterator[Look]:
        if ran is not None:
            ran.append(recipe)
        for look in range(1, looks + 1):
            time.sleep(seconds)
            last = look == looks
            settled = Settled("full", steps=look, learning_rate=3e-4) if last else None
            yield Look(look, score_of(recipe) * look / looks, last=last, settled=settled)

    def gap(ours: Any, theirs: Any) -> Gap:
        differences = np.array([a.score - b.score for a, b in zip(ours, theirs, strict=True)])
        error = float(differences.std()) + 0.01
        mean = float(differences.mean())
        return Gap(mean, mean - 2 * error, mean + 2 * error, error)

    return Rehearsal(
        metric="macro_f1",
        told=lambda score: score,
        approaches=("frozen", "full", "lora"),
        usual_rates={"full": 3e-4, "lora": 1e-3, "scratch": 1e-3},
        num_rows=850,
        trainings=1,
        last_fit=1.0,
        one_label=True,
        uneven=True,
        takes_dropout=takes_dropout,
        judged_on=HELD_OUT,
        trial=trial,
        repeat=repeat or (lambda recipe, *_: Repeat(score_of(recipe))),
        gap=gap,
    )
