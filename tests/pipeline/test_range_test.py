"""A learning-rate range test: what it proposes, that it leaves no trace, that a fit takes its word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from gptailor.pipeline.fit import fit_recipe
from gptailor.pipeline.place import Listener
from gptailor.pipeline.range_test import STEPS, RatePoint, curve_in_words, propose_rate
from gptailor.recipe import build_recipe

RATES = np.geomspace(1e-6, 1.0, STEPS)


def curve_with(fall: float, *, end: int = STEPS) -> list[RatePoint]:
    """A loss that falls from 2 to 1 around a rate."""
    losses = 1 + 1 / (1 + (RATES / fall) ** 2)
    return [RatePoint(float(rate), float(loss)) for rate, loss in zip(RATES, losses, strict=True)][:end]


@pytest.mark.parametrize("fall", [1e-4, 3e-3])
def test_the_rate_of_the_steepest_fall_is_proposed(fall: float) -> None:
    rate = propose_rate(curve_with(fall))
    assert rate is not None
    assert fall / 3 < rate < fall * 3
    assert rate == float(f"{rate:.1e}")


def test_a_tenth_of_the_turn_bounds_it() -> None:
    curve = curve_with(3e-2, end=66)
    lowest = min(point.loss for point in curve)
    risen = [*curve, RatePoint(float(RATES[66]), lowest * 1.6)]
    rate = propose_rate(risen)
    assert rate == pytest.approx(curve[-1].rate / 10, rel=0.1)


def test_nothing_is_proposed_where_it_never_fell_or_is_too_short() -> None:
    rising = [RatePoint(float(rate), 1 + place / 50) for place, rate in enumerate(RATES)]
    assert propose_rate(rising) is None
    assert propose_rate(curve_with(1e-3, end=5)) is None


def test_the_curve_in_words() -> None:
    words = curve_in_words(curve_with(1e-3), 8e-4, usual=3e-4)
    assert "taken: 0.0008 (usual: 0.0003)" in words
    assert "1e-06: 2.000" in words
    assert "does not diverge" in words


def test_a_fit_finds_its_rate_once_and_writes_it_down(tmp_path: Path) -> None:
    base, data = tiny.build_base(tmp_path / "base"), tiny.write_news(tmp_path / "news.csv", rows=240)
    values = {
        "data": {"train": str(data)},
        "base": str(base),
        "approach": "full",
        "train": {"length": "6 steps", "learning_rate": "find"},
        "evaluate": {"baselines": "none", "resamples": 100},
        "out": str(tmp_path / "run"),
    }
    said: list[str] = []
    run = fit_recipe(build_recipe(values), listener=Listener(say=said.append))
    environment = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
    found = environment["learning_rate"]
    assert 1e-6 <= found <= 1.0
    assert any(f"taken: {found:g}" in line for line in said)
    peak = max(
        line["learning_rate"]
        for line in map(json.loads, (run.folder / "metrics.jsonl").read_text("utf-8").splitlines())
        if line["kind"] == "step"
    )
    assert peak <= found
    # The test left no trace: the same rate given as a number takes the same steps.
    values["train"] = {"length": "6 steps", "learning_rate": found}
    values["out"] = str(tmp_path / "given")
    given = fit_recipe(build_recipe(values))
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        for folder in (run.folder, given.folder)
    ]
    assert losses[0] == losses[1]
