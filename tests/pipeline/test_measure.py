"""What the measured step decides: compiled only where training is long enough to gain by it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptailor import launch
from gptailor.errors import ModelError
from gptailor.models.approach import adapt_full, adapt_lora
from gptailor.models.load import load_tokenizer, load_trainable_language_model
from gptailor.models.names import resolve_base
from gptailor.pipeline import measure, plan
from gptailor.pipeline.plan import Plan
from gptailor.recipe import TrainSettings

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

    def look_for_a_slash(_: object) -> None:  # as Windows does, in what is no name
        raise TypeError("argument of type 'NoneType' is not iterable")

    monkeypatch.setattr(ctypes, "CDLL", look_for_a_slash)
    launch.keep_freed_memory()


def test_weights_that_do_not_move_leave_room_for_rows(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA keeps gradients and moments of its own weights alone."""
    base = resolve_base(str(tiny_bases["gpt2"]))
    objective: Any = SimpleNamespace(lengths=np.full(40, 8), new_head=False, rates=lambda _: {})
    found = {}
    monkeypatch.setattr(plan, "resolve_plan", lambda *_, **settings: settings["micro_batch_size"])
    for approach in ("full", "lora"):
        model = load_trainable_language_model(base, load_tokenizer(base))
        weights = sum(one.numel() for one in model.parameters())
        monkeypatch.setattr(launch, "available_memory", lambda weights=weights: 36 * weights)
        adapted = adapt_full(model)
        if approach == "lora":
            adapted = adapt_lora(model, rank=1, alpha=2, dropout=0.0, targets=(), seed=0)
        found[approach] = plan.plan_for(TrainSettings(), adapted, objective, approach)
    assert found["full"] < found["lora"]


def test_the_micro_batch_is_halved_until_it_fits_and_the_batch_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory can't hold changes how a step is computed, never what it learns from."""
    fits, tried = 3, []

    def step(_adapted: Any, _objective: Any, plan: Plan) -> tuple[float, int]:
        tried.append(plan.micro_batch_size)
        if plan.micro_batch_size > fits:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return 1.0, 100

    monkeypatch.setattr(measure, "measure_step", step)
    adapted: Any = SimpleNamespace(trained=SimpleNamespace(zero_grad=lambda **_: None))
    objective: Any = SimpleNamespace(lengths=np.full(40, 8))
    found, _ = measure.measure_plan(adapted, objective, PLAN)
    assert tried == [16, 8, 4, 2]
    assert found == dataclasses.replace(PLAN, micro_batch_size=2)
    fits = 0
    with pytest.raises(ModelError, match="not even one row"):
        measure.measure_plan(adapted, objective, PLAN)

    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(measure, "measure_step", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        measure.measure_plan(adapted, objective, PLAN)
