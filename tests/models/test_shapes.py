"""Shapes are used only where a trial gave the bits of the smallest."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

import tiny
from gptailor.models import shapes
from gptailor.models.shapes import Shapes, find_shapes
from gptailor.models.slots import SlotCache
from gptailor.types import FloatArray


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(shapes, "_found", WeakKeyDictionary())
    size = {"n_positions": 2048, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50}
    return AutoModelForCausalLM.from_config(GPT2Config(**size)).eval()


def test_the_smallest_shape_that_holds_all_is_taken() -> None:
    found = Shapes(rows=(8, 16, 32), windows=(64, 256))
    assert [found.rows_for(count) for count in (1, 8, 9, 17, 32)] == [8, 8, 16, 32, 32]
    assert [found.window_for(columns) for columns in (2, 64, 65, 256)] == [64, 64, 256, 256]


def test_a_shape_with_other_bits_is_not_used(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose products come out differently for 16 rows and for 96 columns."""
    compute = SlotCache.compute

    def differently(self: SlotCache, token_ids: list[int], *, window: int) -> FloatArray:
        logits = compute(self, token_ids, window=window)
        wrong: FloatArray = np.nextafter(logits, np.float32(9))
        if len(token_ids) == 16:
            logits[-1] = wrong[-1]
        if window == 96:
            logits[1] = wrong[1]
        return logits

    monkeypatch.setattr(SlotCache, "compute", differently)
    found = find_shapes(model, capacity=256)
    assert 16 not in found.rows
    assert 96 not in found.windows
    assert (found.rows[0], found.windows[-1]) == (8, 256)


def test_a_machine_without_any_equal_shapes_has_the_one(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(0)

    def by_chance(self: SlotCache, token_ids: list[int], *, window: int) -> FloatArray:
        rows: FloatArray = drawn.normal(size=(len(token_ids), 50))
        return rows

    monkeypatch.setattr(SlotCache, "compute", by_chance)
    assert find_shapes(model, capacity=256) == Shapes((8,), (256,))


@pytest.mark.parametrize(
    ("capacity", "fewest", "most"), [(2, 8, 32), (256, 8, 32), (512, 8, 16), (1024, 8, 8), (2048, 4, 4)]
)
def test_memory_bounds_the_rows(model: Any, capacity: int, fewest: int, most: int) -> None:
    found = find_shapes(model, capacity=capacity)
    assert found.rows[0] == fewest
    assert found.rows[-1] <= most
    assert found.windows[-1] == capacity


SIZE: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "sliding_window": 8}
SIZE |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "mistral"])
def test_a_smaller_window_sees_the_same(tiny_bases: dict[str, Path], family: str) -> None:
    """Local and sliding attention too, which count columns."""
    torch.manual_seed(0)
    model: Any = (
        AutoModelForCausalLM.from_pretrained(tiny_bases[family])
        if family in tiny_bases
        else AutoModelForCausalLM.from_config(MistralConfig(**SIZE))
    )
    cache = SlotCache(model.eval(), capacity=64)
    cache.grow(8)
    for token in range(1, 20):
        wide = cache.compute([token] * 8, window=64)
        for window in (24, 32, 48):
            slim = cache.compute([token] * 8, window=window)
            np.testing.assert_allclose(slim, wide, rtol=0, atol=1e-5)
        cache.advance(8)


def test_a_model_is_tried_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_shapes(model, capacity=64)
    monkeypatch.setattr(SlotCache, "compute", None)
    assert find_shapes(model, capacity=64) is found
