"""The recipes that we ship load, say what they are for, and do what they say with data of their layout."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
import tiny_texts as texts
from gptailor.pipeline.check import check_recipe
from gptailor.recipe import build_recipe, dump_recipe, load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build_base(tmp_path_factory.mktemp("base"), "gpt2"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_round_trips(path: Path) -> None:
    recipe = load_recipe(path)
    assert build_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert path.read_text(encoding="utf-8").startswith("# ")


def rows_with(**columns: Callable[[int], str]) -> Callable[[Path], None]:
    """Writes the news with more columns, each made from the row's number."""

    def write(path: Path) -> None:
        tiny.write_news(path, rows=90)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        texts.write_csv(
            path, [{**row, **{k: make(n) for k, make in columns.items()}} for n, row in enumerate(rows)]
        )

    return write


def table(*names: str) -> Callable[[Path], None]:
    """Writes pairs of texts under these names."""
    prompt, answer = names

    def write(path: Path) -> None:
        rows = [{prompt: pair["prompt"], answer: pair["completion"]} for pair in texts.pairs(60)]
        (texts.write_jsonl if path.suffix == ".jsonl" else texts.write_csv)(path, rows)

    return write


def lines(path: Path) -> None:
    texts.write_lines(path, [texts.words(seed, 12) for seed in range(200)])


def folder(path: Path) -> None:
    path.mkdir()
    for number in range(30):
        (path / f"{number}.txt").write_text("\n".join(texts.words(50 * number + n, 12) for n in range(12)))


# What each recipe's data look like, and the task that it comes to.
LAYOUTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    **dict.fromkeys(
        ("quick", "full", "lora", "imbalanced", "long-texts", "tune"), (rows_with(), "classification")
    ),
    "grouped": (rows_with(customer=lambda n: f"c{n // 3}"), "classification"),
    "several-labels": (rows_with(topics=lambda n: ("[]", "wheat", "wheat;corn")[n % 3]), "classification"),
    "numbers": (rows_with(rating=lambda n: str(n % 7 / 2)), "classification"),
    "translate": (lines, "completion"),
    "summarize": (table("document", "summary"), "completion"),
    "records-to-text": (table("mr", "ref"), "completion"),
    "instructions": (table("instruction", "output"), "completion"),
    "answer-questions": (lambda path: path.write_text(json.dumps(texts.squad(12))), "completion"),
    "chat": (lambda path: texts.write_jsonl(path, texts.chats(60)), "chat"),
    "preferences": (lambda path: texts.write_jsonl(path, texts.preferences(60)), "preference"),
    "language": (folder, "language"),
    "from-scratch": (lines, "language"),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_does_what_it_says(
    path: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files have the names that the recipe gives them; the base is a tiny one."""
    write, task = LAYOUTS[path.stem]
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    for place in (recipe.data.train, recipe.data.target):
        if place is not None:
            write(tmp_path / place)
    longest = None if recipe.data.max_tokens is None else 32
    data = recipe.data.model_copy(update={"max_tokens": longest, "max_new_tokens": None})
    found = check_recipe(recipe.model_copy(update={"base": base, "data": data}), estimate=False)
    assert found.summary.get("task", "classification") == task
    assert found.summary["train"] >= found.summary["test"] > 0
    assert found.rendered
