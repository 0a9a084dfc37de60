"""The page of a search: what twelve trials come to is drawn and told."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gptailor.report.tune_page import render_tune
from gptailor.report.words import HELD_OUT, WHAT_CHOSE

SPACE = ["train.learning_rate[full]", "train.dropout", "train.weight_decay", "train.batch_size", "approach",
         "train.warmup", "train.schedule"]  # fmt: skip


def trial(number: int) -> dict[str, Any]:
    """Trial 0 is the person's own; every fourth is given up early."""
    drawn = [1e-4 * (number + 1), number % 3 / 10, 0.01 * number, 8 * (1 + number % 2), "full", 0.1 * number,
             ("cosine", "linear")[number % 2]]  # fmt: skip
    return {
        "trial": number,
        "state": "pruned" if number % 4 == 3 else "complete",
        "own": number == 0,
        "settings": {} if number == 0 else dict(zip(SPACE, drawn, strict=True)),
        "score": 0.5 + 0.02 * number,
        "seconds": 12.5,
        "validations": 5,
        "same_as": 5 if number == 9 else None,
        "note": "",
    }


@pytest.fixture
def result() -> dict[str, Any]:
    gap = {"value": 0.031, "low": 0.012, "high": 0.05}
    return {
        "version": 1,
        "task": "classification",
        "metric": "macro_f1",
        "higher_is_better": True,
        "data": "folder/news.csv",
        "judged_on": HELD_OUT,
        "seconds": 480.0,
        "trials": [trial(number) for number in range(12)],
        "importance": {name: round(0.4 / (place + 1), 3) for place, name in enumerate(SPACE)},
        "default": {"trial": 0, "validation": 0.5, "repeats": [0.5, 0.52, 0.51]},
        "finalists": [
            {"trial": 10, "repeats": [0.55, 0.54, 0.56], "ahead": gap, "won": True},
            {"trial": 8, "repeats": [0.52, 0.5, 0.53], "ahead": {**gap, "low": -0.01}, "won": False},
        ],
        "winner": {"trial": 10, "settings": trial(10)["settings"], "validation": 0.7},
        "test": {"winner": gap, "default": gap, "difference": gap},
        "says": "Trial 10 wins.",
    }


def test_history_importance_and_settings_side_by_side_are_drawn(result: dict[str, Any]) -> None:
    page = render_tune(result)
    assert "Better settings found" in page
    assert "Which settings mattered" in page
    names = re.findall(r'<span class="name"><bdi>(.*?)</bdi>', page)
    assert names[:3] == ["learning rate (full)", "dropout", "weight decay"], "by importance"
    history, parallel = re.findall(r"<svg[^>]*role=.*?</svg>", page, flags=re.DOTALL)[-2:]
    assert history.count("bubble-a") == 9
    assert history.count("bubble-b") == 3
    finished = [one for one in result["trials"] if one["state"] == "complete" and one["settings"]]
    assert len(re.findall(r"<path[^>]*line-[ab]", parallel)) == len(finished)
    assert len(re.findall(r"<path[^>]*line-b", parallel)) == 1, "the winner's stands out"
    assert "0.031" in page
    assert "3 given up early; 1 the same as an earlier one" in page


def test_few_trials_draw_no_more_than_they_tell(result: dict[str, Any]) -> None:
    few = {**result, "trials": result["trials"][:3], "importance": {}}
    page = render_tune(few)
    assert "Which settings mattered" not in page
    assert "Settings side by side" not in page


def test_a_winner_that_lost_the_test_is_told(result: dict[str, Any]) -> None:
    behind = {"value": -0.04, "low": -0.06, "high": -0.01}
    page = render_tune({**result, "test": {**result["test"], "difference": behind}})
    assert "Ahead in the search, behind on the test set" in page
    open_ = {"value": 0.004, "low": -0.017, "high": 0.025}
    page = render_tune({**result, "test": {**result["test"], "difference": open_}})
    assert "the test set can&#39;t tell" in page
    assert "Better settings found" not in page
    error = {**result, "metric": "rmse", "higher_is_better": False}
    page = render_tune({**error, "test": {**result["test"], "difference": behind}})
    assert "Better settings found" in page, "an error that fell is a gain"


def test_a_winner_that_only_other_seeds_have_judged_is_told_as_such(result: dict[str, Any]) -> None:
    """Texts: the repeats ask the validation rows again, and the default never sees the test rows."""
    result |= {"judged_on": WHAT_CHOSE, "test": {**result["test"], "default": None, "difference": None}}
    page = render_tune(result)
    assert "Better settings found" not in page
    assert "Ahead in the search" in page
    assert "rows that chose nothing" not in page
    assert "which chose these trials, too" in page
