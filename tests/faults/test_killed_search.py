"""A whole search, killed among its trials and again among its repeats: nothing that was finished is lost."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny

TRIALS, REPEATS = 4, 2
LONGEST = 240  # seconds that a slow machine may take up to a kill


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("searches")
    tiny.build_base(folder / "base")
    tiny.write_news(folder / "news.csv", rows=300)
    recipe = {
        "data": {"train": str(folder / "news.csv")},
        "base": str(folder / "base"),
        "approach": "full",
        "train": {"length": "12 steps", "learning_rate": 1e-7, "head_learning_rate": 1e-7},
        "evaluate": {"baselines": "none", "resamples": 100},
        "tune": {
            "trials": TRIALS,
            "finalists": 1,
            "seeds": REPEATS,
            "pruner": "none",
            "space": {"train.learning_rate": {"low": 0.001, "high": 0.02, "log": True}},
        },
        "out": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return [sys.executable, "-m", "gptailor", "tune", str(folder / "recipe.yaml"), "--json"]


def finished_trials(folder: Path) -> dict[int, str]:
    """When each trial ended, by number: a trial that ran again ended again."""
    try:
        with sqlite3.connect(f"file:{folder / 'tune' / 'trials.sqlite3'}?mode=ro", uri=True) as connection:
            rows = connection.execute(
                "select number, datetime_complete from trials where state = 'COMPLETE'"
            ).fetchall()
    except sqlite3.OperationalError:
        return {}
    return dict(rows)


def repeats(folder: Path) -> dict[str, int]:
    """When each repeat was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "tune" / "repeats").glob("trial-*.json")}


def kill_when(command: list[str], ready: Callable[[], bool]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + LONGEST
    while not ready():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_twice_it_goes_on(command: list[str]) -> None:
    folder = Path(command[-2]).parent / "run"
    kill_when(command, lambda: len(finished_trials(folder)) >= 2)
    first = finished_trials(folder)
    assert 2 <= len(first) < TRIALS
    kill_when(command, lambda: len(repeats(folder)) >= 2)  # the recipe's own, and one to compare with it
    trials, taken = finished_trials(folder), repeats(folder)
    assert first.items() <= trials.items()
    assert len(trials) == TRIALS
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(ended.stdout)
    assert finished_trials(folder) == trials
    assert taken.items() <= repeats(folder).items()
    assert len(repeats(folder)) == 2 * REPEATS
    assert sum(one["state"] == "complete" for one in result["trials"]) == TRIALS
    assert (folder / "model").is_dir()
    assert len((folder / "openings.jsonl").read_text(encoding="utf-8").splitlines()) == 1
