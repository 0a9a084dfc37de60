"""`check` on text tasks, and the bound on training time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import tiny
from gptailor.pipeline.check import check_recipe
from gptailor.pipeline.plan import STEPPING, steps_within
from gptailor.recipe import build_recipe
from gptailor.report.checked import print_check


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


def test_odd_conversations_and_cut_ones_are_told_with_their_rows(tmp_path: Path, base: str) -> None:
    odd = [{"role": "system", "content": "you guard boats"}, {"role": "assistant", "content": "all moored"}]
    long = [*chat(40), chat(41)[0], {"role": "assistant", "content": "to harbour and back " * 100}]
    chats = [*(chat(n) for n in range(30)), odd, long, [{**odd[0], "content": "you sail"}, odd[1]]]
    chats.append([chat(42)[0], long[-1]])
    recipe = build_recipe({"data": {"train": write_chats(tmp_path / "chats.jsonl", chats)}, "base": base})
    summary = check_recipe(recipe, estimate=False).summary
    assert (
        "2 conversations with no user turn: the assistant answers nothing (rows 31, 33)" in summary["notes"]
    )
    assert [place.rsplit(":", 1)[1] for place in summary["cut"]] == ["32"], "its first answer is learned"
    assert summary["dropped"] == {"too_long": 1}, "of the last nothing is"
    with Console(width=200, record=True) as console:
        print_check(console, {**summary, "faults": [f"a:{n}: bad" for n in range(11)]}, rendered=())
    told = console.export_text()
    assert "1 text is longer and loses" in told
    assert "chats.jsonl:32)" in told
    assert "a:7: bad" in told
    assert "a:8: bad" not in told
    assert "and 3 more" in told


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
