"""What a search may try: settings by dotted path, and the recipes that come of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptailor.errors import GptailorError, Problem, RecipeError, did_you_mean, raise_together
from gptailor.pipeline.plan import MOST_EPOCHS, usual_steps
from gptailor.pipeline.rehearse import Rehearsal
from gptailor.pipeline.task import READ_BY, READ_BY_FROZEN
from gptailor.pipeline.texts.objective import resolve_preference
from gptailor.recipe import APPROACHES, Recipe, SearchRange, build_recipe, describe_settings, duration

Value = bool | int | float | str | None
CONDITION = re.compile(r"\[(\w+)\]")  # approach[lora].rank, train.learning_rate[lora]: only for this approach
SEARCHED = ("approach", "train.", "preference.")  # what may differ between trials that share their data
LENGTHS = (0.3, 0.6, 1.6)  # of the recipe's own


@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting to try: one of `choices`, or a number from `low` to `high`."""

    name: str  # as written, with its condition
    path: str  # the setting
    only: str | None = None  # the approach it belongs to
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False  # whether the setting takes whole numbers only

    def holds(self, value: Value) -> bool:
        """Whether the value is one of those that are tried."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def belongs_to(self, approach: str) -> bool:
        """Whether a recipe with this approach reads the setting."""
        if self.only not in (None, approach):
            return False
        return approach != "frozen" or not self.path.startswith("train.") or self.path in READ_BY_FROZEN


def build_space(recipe: Recipe, rehearsal: Rehearsal) -> list[Dimension]:
    """The recipe's own space, or the usual one for its task; the approach comes first.

    Raises:
        RecipeError: a key is no setting, can't be searched, or a value isn't one of the setting's.
    """
    if not recipe.tune.space:
        return default_space(recipe, rehearsal)
    problems: list[Problem] = []
    space = []
    for name, entry in recipe.tune.space.items():
        try:
            space.append(_dimension(name, entry, recipe, rehearsal))
        except GptailorError as error:
            problems.append(Problem(f"tune.space.{name}", error.what.replace("\n", " ")))
    raise_together(
        problems,
        error=RecipeError,
        summary="this space can't be searched:",
        fix="docs/tune.md shows how a space is written; docs/recipe.md lists every setting.",
    )
    return sorted(space, key=lambda dimension: dimension.path != "approach")


def default_space(recipe: Recipe, rehearsal: Rehearsal) -> list[Dimension]:
    """What is usually worth trying, around the usual values.

    Raises:
        RecipeError: the approach has nothing to try.
    """
    given = recipe.approach.kind
    approaches = list(rehearsal.approaches) if given == "auto" else [given]
    space = [Dimension("approach", "approach", choices=tuple(approaches))] if len(approaches) > 1 else []
    for kind in approaches:
        if kind == "frozen":
            continue
        rate = rehearsal.usual_rates[kind]
        name = f"train.learning_rate[{kind}]"
        space.append(Dimension(name, "train.learning_rate", kind, low=rate / 3, high=rate * 4, log=True))
    if "lora" in approaches:
        space.append(Dimension("approach[lora].rank", "approach.rank", "lora", choices=(4, 8, 16, 32)))
    tried: dict[str, tuple[Value, ...]] = {
        "train.length": _lengths(recipe, rehearsal, scratch=given == "scratch"),
        "train.batch_size": (8, 16, 32),
        "train.schedule": ("cosine", "linear"),  # of a constant rate, a refit keeps weights that never cooled
        "train.warmup": (0.0, 0.06, 0.15),
        "train.weight_decay": (0.0, 0.01, 0.1),
    }
    if rehearsal.takes_dropout and recipe.task != "preference":  # it drowns what is compared
        tried["train.dropout"] = (0.0, 0.1, 0.2)
    if rehearsal.one_label:
        tried["train.label_smoothing"] = (0.0, 0.1)
    if rehearsal.uneven:
        tried["train.class_weights"] = ("none", "balanced")
    if recipe.task == "preference":
        tried["preference.beta"] = _strengths(recipe)
    shared = [Dimension(path, path, choices=values) for path, values in tried.items()]
    space += [one for one in shared if any(map(one.belongs_to, approaches))]
    if not space:
        raise RecipeError(
            "there is nothing to search: a head on a frozen body finds its one setting by itself.",
            where="approach",
            fix="Search with another approach (--approach auto tries them all), or run `gptailor fit`.",
        )
    return space


def recipe_of(recipe: Recipe, space: Sequence[Dimension], values: Mapping[str, Value]) -> Recipe:
    """The recipe with the values of a trial, by the names of their dimensions.

    Raises:
        RecipeError: a value isn't one of the setting's.
    """
    tree = recipe.model_dump(mode="json")
    kind = values.get("approach", recipe.approach.kind)
    if kind != recipe.approach.kind:
        tree["approach"] = {"kind": kind}
    paths = {dimension.name: dimension.path for dimension in space}
    for name, value in values.items():
        if paths[name] != "approach":
            _put(tree, paths[name], value)
    return build_recipe(tree, where="tune.space")


def place_of(recipe: Recipe, space: Sequence[Dimension], *, approach: str, rate: float) -> dict[str, Value]:
    """Where a recipe lies in the space, once its approach and its learning rate are settled: values by the
    dimensions' names.

    A dimension that doesn't hold the recipe's value is left out.
    """
    tree = recipe.model_dump(mode="json")
    if recipe.approach.kind != approach:
        tree["approach"] = APPROACHES[approach]().model_dump(mode="json")
    found: dict[str, Value] = {}
    for dimension in space:
        if not dimension.belongs_to(approach):
            continue
        value = approach if dimension.path == "approach" else _get(tree, dimension.path)
        if dimension.path == "train.learning_rate" and not isinstance(value, float):
            value = rate
        if dimension.holds(value):
            found[dimension.name] = value
    return found


def as_taken(dimension: Dimension, value: Value) -> Value:
    """A drawn value as a recipe takes it: a number with three digits, on a logarithm with two."""
    if dimension.choices or not isinstance(value, float):
        return value
    return float(f"{value:.{2 if dimension.log else 3}g}")


def in_words(values: Mapping[str, Value]) -> str:
    """`full, learning rate 0.0004, batch size 32`."""
    told = []
    for name, value in values.items():
        plain = CONDITION.sub("", name).rpartition(".")[2].replace("_", " ")
        if plain == "length":
            told.append("the usual length" if value is None else str(value))
        else:
            told.append(str(value) if name == "approach" else f"{plain} {value}")
    return ", ".join(told)


def _dimension(name: str, entry: Any, recipe: Recipe, rehearsal: Rehearsal) -> Dimension:
    only, path = _read_name(name)
    readers = READ_BY.get(path)
    if readers is not None and recipe.task not in (None, *readers):
        raise RecipeError(f"{path} is for {', '.join(readers)}; the task is {recipe.task}")
    if path in ("train.label_smoothing", "train.class_weights") and not rehearsal.one_label:
        raise RecipeError("is for one label a row")
    if path == "approach":
        _refuse_other_approaches(entry, rehearsal)
        return Dimension(name, path, choices=tuple(entry))
    if only is not None and only not in rehearsal.approaches and only != "scratch":
        raise RecipeError(f"{only} is no approach of this task")
    tried = recipe.tune.space.get("approach", [recipe.approach.kind])
    if only is not None and isinstance(tried, list) and only not in tried:
        raise RecipeError(f"no trial has approach {only}: name it under tune.space.approach, or as approach")
    if isinstance(entry, SearchRange):
        whole = not _takes(recipe, path, only, entry.low + 0.5 * (entry.high - entry.low) / 7.3)
        for said, number in (("low", entry.low), ("high", entry.high), ("step", entry.step or 1)):
            if whole and number != int(number):
                raise RecipeError(f"{said} is {number}, and the setting takes whole numbers")
        dimension = Dimension(
            name,
            path,
            only,
            low=entry.low,
            high=entry.high,
            log=entry.log,
            step=entry.step,
            whole=whole,
        )
        ends: tuple[Value, ...] = (entry.low, entry.high)
        if whole:
            ends = (int(entry.low), int(entry.high))
    else:
        dimension = Dimension(name, path, only, choices=tuple(entry))
        ends = tuple(entry)
    for value in ends:
        _try(recipe, path, only, value)
    if not any(dimension.belongs_to(str(kind)) for kind in tried if isinstance(tried, list)):
        raise RecipeError("no trial reads it: a head on a frozen body has no such setting")
    return dimension


def _read_name(name: str) -> tuple[str | None, str]:
    """The approach a key is meant for, and the setting's path.

    Raises:
        RecipeError: it is no setting, or one that all trials share.
    """
    found = CONDITION.findall(name)
    path = CONDITION.sub("", name)
    only = found[0] if found else None
    if only is not None and only not in APPROACHES:
        raise RecipeError(f"{only!r} is no approach.{did_you_mean(only, APPROACHES)}")
    known = {CONDITION.sub("", key) for key, _, _ in describe_settings()}
    if path not in known:
        raise RecipeError(f"there is no such setting.{did_you_mean(path, known)}")
    if path == "train.refit":
        raise RecipeError("can't be searched: it decides which rows may choose, which all trials share")
    if not path.startswith(SEARCHED) or path == "approach.vocabulary":
        raise RecipeError("can't be searched: all trials share it (approach, train. and preference. can)")
    if path.startswith("approach.") and only is None:
        kinds = [key for key, settings in APPROACHES.items() if path[9:] in settings.model_fields]
        raise RecipeError(f"belongs to one approach: write approach[{kinds[0]}]{path[8:]}")
    return only, path


def _refuse_other_approaches(entry: Any, rehearsal: Rehearsal) -> None:
    allowed = {*rehearsal.approaches, *(("auto", "scratch") if "frozen" in rehearsal.approaches else ())}
    wrong = [str(one) for one in entry if one not in allowed] if isinstance(entry, list) else ["a range"]
    if wrong:
        raise RecipeError(f"{', '.join(wrong)}: choose from {', '.join(sorted(allowed))}")


def _takes(recipe: Recipe, path: str, only: str | None, value: Value) -> bool:
    try:
        _try(recipe, path, only, value)
    except RecipeError:
        return False
    return True


def _try(recipe: Recipe, path: str, only: str | None, value: Value) -> None:
    """Builds a recipe with the value, so that a wrong one is told before anything is trained."""
    tree = recipe.model_dump(mode="json")
    if only is not None and only != recipe.approach.kind:
        tree["approach"] = {"kind": only}
    _put(tree, path, value)
    build_recipe(tree)


def _put(tree: dict[str, Any], path: str, value: Value) -> None:
    *branches, leaf = path.split(".")
    for branch in branches:
        tree = tree[branch]
    tree[leaf] = value


def _get(tree: Mapping[str, Any], path: str) -> Any:
    value: Any = tree
    for part in path.split("."):
        value = value[part]
    return value


def _strengths(recipe: Recipe) -> tuple[Value, ...]:
    """Around the beta of the recipe, or else what is usual for its loss, with two digits."""
    usual = resolve_preference(recipe.preference).beta
    assert usual is not None
    return tuple(float(f"{usual * factor:.2g}") for factor in (0.3, 1, 3))


def _lengths(recipe: Recipe, rehearsal: Rehearsal, *, scratch: bool) -> tuple[Value, ...]:
    """The recipe's own length and, in epochs, some around it; none is longer than any usual training."""
    per_epoch = -(-rehearsal.num_rows // max(1, min(recipe.train.batch_size, rehearsal.num_rows)))
    if recipe.train.length is not None:
        amount, unit = duration(recipe.train.length)
        own = amount if unit == "epochs" else amount / per_epoch
        longest = math.inf
    else:
        approach = "scratch" if scratch else "full"
        own = usual_steps(per_epoch, approach=approach, new_head=recipe.task == "classification") / per_epoch
        longest = max(own, MOST_EPOCHS)
    others = {max(1, round(own * factor)) for factor in LENGTHS} - {own}
    found = [f"{epochs} epochs" for epochs in sorted(others) if epochs <= longest]
    return *found, recipe.train.length
