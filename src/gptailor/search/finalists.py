"""The best trials against the recipe's own settings, fitted again on other splits and seeds.

A search over a few hundred validation rows finds luck as well as skill, so what it calls best has to be
better once more: with other seeds, and wherever rows can be dealt anew, on rows that chose nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from gptailor.cache import content_key
from gptailor.errors import NonFiniteError
from gptailor.launch import write_atomically
from gptailor.pipeline.folder import as_fitted
from gptailor.pipeline.rehearse import Gap, Rehearsal, Repeat, Settled
from gptailor.recipe import Recipe, identity_of
from gptailor.search.study import Tried

# Standard errors that the winner is ahead of the recipe's own: odds of two to one. Who loses by it loses as
# little as who wins gains, so being surer would only mean to pass over what is probably better.
AHEAD = 0.5
HOPE = 0.05  # a smaller chance of getting there isn't worth another repeat


@dataclass(frozen=True, slots=True)
class Finalist:
    """One of the best trials, or that of the recipe's own, and how it did when it was fitted again."""

    trial: Tried
    recipe: Recipe
    scores: list[float] = field(default_factory=list)  # by repeat; higher is better
    gap: Gap | None = None  # ahead of the recipe's own

    @property
    def lead(self) -> float:
        """How far it is ahead; zero before it was compared."""
        return self.gap.value if self.gap is not None else 0.0

    @property
    def is_ahead(self) -> bool:
        """Whether it is ahead by enough standard errors to win."""
        return self.gap is not None and self.gap.value > max(0.0, AHEAD * self.gap.error)


@dataclass(frozen=True, slots=True)
class Final:
    """Who was compared, and who won; None: the recipe's own settings stay."""

    own_scores: list[float]
    finalists: list[Finalist]
    winner: Finalist | None


def choose_finalists(
    trials: Sequence[Tried], recipes: Callable[[Tried], Recipe], *, most: int
) -> list[Finalist]:
    """The best trials that reached at least what the recipe's own settings reached, all different."""
    own = own_trial(trials)
    rivals = [
        one
        for one in trials
        if one.state == "complete"
        and not one.own
        and one.number != own.same_as
        and one.same_as is None
        and one.score is not None
    ]
    best = sorted(rivals, key=lambda one: (-(one.score or 0.0), one.number))[:most]
    assert own.score is not None
    return [Finalist(one, recipes(one)) for one in best if one.score is not None and one.score >= own.score]


def nothing_else(trials: Sequence[Tried]) -> bool:
    """Whether no trial was of other settings than the recipe's own."""
    return all(one.own or one.same_as is not None for one in trials)


def own_trial(trials: Sequence[Tried]) -> Tried:
    """The trial of the recipe's own settings that came to its end."""
    return next(one for one in trials if one.own and one.state == "complete")


def compare_finalists(
    rehearsal: Rehearsal,
    own: Finalist,
    finalists: Sequence[Finalist],
    *,
    repeats: int,
    folder: Path,
    say: Callable[[str], None],
) -> Final:
    """Fits everybody again, repeat by repeat; after each the better half goes on, if it isn't behind."""
    kept = Repeats(rehearsal, folder)
    own_repeats: list[Repeat] = []
    found: dict[int, list[Repeat]] = {finalist.trial.number: [] for finalist in finalists}
    running = list(finalists)
    for number in range(repeats):
        if not running:
            break
        say(f"comparing again, {number + 1} of {repeats}: the recipe's own and {_numbers(running)}")
        try:
            own_repeats.append(kept.take(own, number))
        except NonFiniteError:
            say("the recipe's own settings diverged with this seed: nobody is compared by it")
            continue
        still, last = [], number == repeats - 1
        for finalist in running:
            mine = found[finalist.trial.number]
            try:
                mine.append(kept.take(finalist, number))
            except NonFiniteError:
                say(f"trial {finalist.trial.number} diverged and is left out")
                continue
            gap = rehearsal.gap(mine, own_repeats)
            finalist = dataclasses.replace(
                finalist, gap=gap, scores=[rehearsal.told(repeat.score) for repeat in mine]
            )
            if last or hope(gap, share=(number + 1) / repeats) >= HOPE:
                still.append(finalist)
            finalists = [finalist if f.trial.number == finalist.trial.number else f for f in finalists]
        most = len(running) if last else num_going_on(len(running))
        running = sorted(still, key=lambda finalist: finalist.lead, reverse=True)[:most]
    whole = [finalist for finalist in running if len(finalist.scores) == len(own_repeats)]
    ahead = [finalist for finalist in whole if finalist.is_ahead]
    winner = max(ahead, key=lambda finalist: finalist.lead, default=None)
    return Final([rehearsal.told(repeat.score) for repeat in own_repeats], list(finalists), winner)


def num_going_on(asked: int) -> int:
    """How many of the finalists that a repeat asked the next one asks at most: the better half."""
    return max(1, asked // 2)


def hope(gap: Gap, *, share: float) -> float:
    """The chance to be far enough ahead after all repeats, if things go on as in this share of them (< 1).

    The lead in standard errors grows with the root of the share where settings differ, and strays as a random
    walk does (conditional power under the trend so far).
    """
    if gap.error == 0:
        return float(gap.value > 0)
    trend = gap.value / gap.error / math.sqrt(share)
    return NormalDist().cdf((trend - AHEAD) / math.sqrt(1 - share))


@dataclass(frozen=True, slots=True)
class Repeats:
    """Repeats that were made, kept in a folder so that none is made twice."""

    rehearsal: Rehearsal
    folder: Path

    def take(self, finalist: Finalist, number: int) -> Repeat:
        """A repeat of a trial's recipe, from the folder or made now."""
        trial, recipe = finalist.trial, finalist.recipe
        # By what is fitted: another database numbers other settings.
        key = content_key(identity_of(as_fitted(recipe)), json.dumps(trial.settled, sort_keys=True))[:8]
        path = self.folder / f"trial-{trial.number}-{number + 1}-{key}.json"
        if path.exists():
            return _read(path)
        settled = None if trial.settled is None else Settled(**trial.settled)
        repeat = self.rehearsal.repeat(recipe, number, settled)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**dataclasses.asdict(repeat), **_plain(repeat)}))
        return repeat


def _plain(repeat: Repeat) -> dict[str, Any]:
    named = {"answers": repeat.answers, "predictions": repeat.predictions}
    return {name: None if values is None else values.tolist() for name, values in named.items()}


def _read(path: Path) -> Repeat:
    values = json.loads(path.read_text(encoding="utf-8"))
    answers, predictions = (
        None if values[name] is None else np.array(values[name]) for name in ("answers", "predictions")
    )
    drawn_with = (tuple(key) if isinstance(key, list) else key for key in values["drawn_with"])
    return Repeat(values["score"], answers, predictions, tuple(drawn_with))


def _numbers(finalists: Sequence[Finalist]) -> str:
    numbers = [str(finalist.trial.number) for finalist in finalists]
    return f"trial{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}"
