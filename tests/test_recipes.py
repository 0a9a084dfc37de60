"""The recipes that we ship load, resolve, and say what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptailor.recipe import build_recipe, dump_recipe, load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_round_trips(path: Path) -> None:
    import yaml

    recipe = load_recipe(path)
    assert build_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 5
