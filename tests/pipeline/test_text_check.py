"""`check` on text tasks, and the bound on training time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from gptailor.pipeline.check import check_recipe
from gptailor.pipeline.trained import STEPPING, steps_within
from gptailor.recipe import build_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build_base(tmp_path_factory.mktemp("base"), "gpt2"))


def write_chats(path: Path, chats: list[Any]) -> str:
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return str(path)


def chat(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"where does boat number {number} go today"},
        {"role": "assistant", "content": f"to harbour {number % 7}, and back before dark"},
    ]


def test_check_marks_the_answers_and_tells_faults(tmp_path: Path, base: str) -> None:
    bad = [{"role": "user", "content": "hello there"}, {"role": "robot", "content": "beep"}]
    train = write_chats(tmp_path / "chats.jsonl", [*(chat(n) for n in range(30)), bad])
    found = check_recipe(build_recipe({"data": {"train": train}, "base": base}), estimate=False)
    assert found.summary["task"] == "chat"
    assert found.summary["read"] == 31
    assert found.summary["dropped"]["unreadable"] == 1
    assert any("robot" in fault and ":31:" in fault for fault in found.summary["faults"])
    learned = "".join(text for text, learned in found.rendered[0].pieces if learned)
    unlearned = "".join(text for text, learned in found.rendered[0].pieces if not learned)
    assert "harbour" in learned
    assert "boat" not in learned
    assert "boat" in unlearned


def test_check_measures_what_a_fit_would_cost(tmp_path: Path, base: str) -> None:
    train = write_chats(tmp_path / "chats.jsonl", [chat(n) for n in range(30)])
    recipe = build_recipe({"data": {"train": train}, "base": base, "train": {"length": "7 steps"}})
    estimate = check_recipe(recipe).estimate
    assert estimate is not None
    assert estimate["steps"] == 7
    assert estimate["seconds"] > 0


@pytest.mark.parametrize(
    ("minutes", "seconds", "steps"),
    [(None, 1e6, 100), (10.0, 60.0, 100), (1.0, 600.0, int(10 * STEPPING)), (0.001, 600.0, 1)],
)
def test_minutes_bound_the_steps(minutes: float | None, seconds: float, steps: int) -> None:
    plan: Any = SimpleNamespace(steps=100)
    assert steps_within(minutes, plan, seconds) == steps
