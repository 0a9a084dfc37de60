"""The verb `curve`: how many more labels, for a data file, a recipe or a run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptailor.errors import InputError, RecipeError, RunError, number_of
from gptailor.pipeline.curve import FEWEST_TEXTS, has_curve, learning_curve
from gptailor.pipeline.fit import open_workshop
from gptailor.pipeline.folder import refuse_other_data
from gptailor.pipeline.frozen import base_classifier
from gptailor.pipeline.place import Listener
from gptailor.pipeline.prepare import prepare
from gptailor.pipeline.task import settle_task
from gptailor.pipeline.workshop import Workshop
from gptailor.recipe import Recipe, load_recipe
from gptailor.report.page import render_page


def curve_of(
    place: Recipe | Path, *, more: Sequence[int] = (), say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The learning curve of a recipe's data, or of a run's.

    Measured with a head on frozen features, whatever a run was trained with: that costs one forward pass a
    row. The sealed test set stays closed.

    Args:
        place: A recipe, or a run folder.
        more: How many more rows to forecast for; nothing: as many again, and four times as many.
        say: Hears the steps.

    Raises:
        GptailorError: the data, the base or `more` can't be used; the message says why.
    """
    run = None if isinstance(place, Recipe) else place
    recipe = settle_task(place if isinstance(place, Recipe) else _recipe_of_run(place))
    if recipe.task != "classification":
        raise RecipeError(
            f"a curve is for classification; this is {recipe.task}.",
            where="task",
            fix="Compare runs on fewer and on more rows instead.",
        )
    prepared = prepare(recipe, say)
    if run is not None:
        refuse_other_data(run, prepared.data_hash, fix="Give the data file instead.")
    with tempfile.TemporaryDirectory() as folder:  # nothing is kept of the environment
        shop = open_workshop(recipe, prepared, Path(folder), Listener(say=say))
    _refuse_what_has_no_curve(shop)
    say("computing features, fitting heads on fewer and fewer rows")
    model = base_classifier(shop)
    approach = recipe.approach.kind if run is None else _approach_of(run)
    return learning_curve(shop, model, approach=approach, more=more)


def curve_page(curve: Mapping[str, Any], *, title: str) -> str:
    """A self-contained page that holds the curve alone."""
    return render_page({"task": "classification", "curve": curve}, {"title": title})


def _refuse_what_has_no_curve(shop: Workshop) -> None:
    if has_curve(shop):
        return
    if shop.kind.form.kind == "score":
        raise InputError(
            "a curve is for labels, and these are numbers.",
            fix="If they are classes, leave task_answer=score out.",
        )
    texts = number_of(len(shop.tokens.examples["train"]), "training row")
    raise InputError(f"there are only {texts}; a curve needs {FEWEST_TEXTS}.", fix="Label more rows.")


def _recipe_of_run(run: Path) -> Recipe:
    path = run / "recipe.yaml"
    if not path.exists():
        raise RunError("has no recipe.yaml.", where=str(run), fix="Give a run folder, or the data file.")
    return load_recipe(path)


def _approach_of(run: Path) -> str:
    try:
        return str(json.loads((run / "report.json").read_text(encoding="utf-8"))["approach"])
    except (OSError, ValueError, KeyError):
        return "frozen"
