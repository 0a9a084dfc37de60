"""What the measured step decides: compiled only where training is long enough to gain by it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gptailor import launch
from gptailor.errors import ModelError
from gptailor.pipeline import measure
from gptailor.pipeline.training import Plan

PLAN = Plan(
    steps=100,
    validate_every=10,
    save_every=10,
    batch_size=16,
    micro_batch_size=16,
    learning_rate=1e-3,
    head_learning_rate=1e-3,
    precision="bf16",
)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that were measured; a compiled one is said to take 290 seconds."""
    plans: list[Plan] = []

    def measured(_model: Any, _objective: Any, plan: Plan) -> tuple[Plan, float]:
        plans.append(plan)
        return plan, 290.0

    monkeypatch.setattr(measure, "measure_plan", measured)
    monkeypatch.setattr(measure, "is_lean", lambda _: True)
    monkeypatch.setattr(measure, "can_compile", lambda: True)
    return plans


def choose(seconds: float, *, wanted: str = "auto", minutes: float | None = None) -> tuple[Plan, float]:
    model: Any = type("Adapted", (), {"plain": None})
    return measure.choose_compiled(model, model, PLAN, seconds, wanted=wanted, minutes=minutes)


def test_a_long_training_is_compiled_where_that_is_faster(tried: list[Plan]) -> None:
    assert choose(400.0) == (dataclasses.replace(PLAN, compiled=True), 290.0)
    assert [plan.compiled for plan in tried] == [True]
    assert choose(310.0) == (PLAN, 310.0), "hardly faster: not worth its trouble"
    assert choose(310.0, wanted="off") == (PLAN, 310.0)


@pytest.mark.parametrize(
    ("seconds", "minutes"), [(measure.COMPILE_PAYS_FROM - 1.0, None), (9000.0, 4.9), (1.0, 60.0)]
)
def test_a_short_training_is_not_even_tried(seconds: float, minutes: float | None, tried: list[Plan]) -> None:
    assert choose(seconds, minutes=minutes) == (PLAN, seconds)
    assert tried == []


def test_what_is_wanted_is_done_or_refused(tried: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(1.0, wanted="on")[0].compiled, "however short"
    assert len(tried) == 1
    monkeypatch.setattr(measure, "can_compile", lambda: False)
    assert choose(9000.0) == (PLAN, 9000.0)
    with pytest.raises(ModelError, match="can't be compiled"):
        choose(9000.0, wanted="on")


def test_another_c_library_keeps_its_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a C library lacks, and a system that gives no handle of it, are passed over."""
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    launch.keep_freed_memory()

    def refuse(_: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    launch.keep_freed_memory()
