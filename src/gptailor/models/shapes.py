"""In which shapes a step of generation may be computed so that every answer keeps its bits.

The last bits of a product can depend on its shape: on the number of rows, on the columns that attention
adds up (masked ones add zeros). With most processors and libraries they don't, from a few rows on. So it is
tried on this machine with the model itself, once. Where a shape gives other bits, it is not used.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from gptailor.models.forward import LENGTHS
from gptailor.models.slots import SlotCache

FEWEST_ROWS = 8  # of two rows a product can depend on which row is which; of four or eight it doesn't
FEWEST_ROWS_LONG = 4  # above LONG tokens: the cache's memory is slots times capacity
LONG = 1024
MOST_ROWS = 32  # a row costs as much among 64
MOST_TOKENS = 8192  # slots times capacity, where that isn't fewer than the fewest rows
FEWEST_COLUMNS = 64

_found: WeakKeyDictionary[PreTrainedModel, dict[tuple[object, ...], Shapes]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Shapes:
    """Numbers of rows and of columns that a step may have, the smallest first."""

    rows: tuple[int, ...]
    windows: tuple[int, ...]

    def rows_for(self, slots: int) -> int:
        """The fewest that hold so many slots."""
        return self.rows[bisect_left(self.rows, slots)]

    def window_for(self, columns: int) -> int:
        """The smallest that holds so many columns."""
        return self.windows[bisect_left(self.windows, columns)]


def one_shape(model: PreTrainedModel, *, capacity: int) -> Shapes:
    """The shape for slots of a capacity that needs no trial."""
    fewest = FEWEST_ROWS if capacity <= LONG else FEWEST_ROWS_LONG
    # On a GPU a step takes as long for many rows as for few.
    return Shapes((fewest if model.device.type == "cpu" else _most_rows(fewest, capacity),), (capacity,))


def find_shapes(model: PreTrainedModel, *, capacity: int) -> Shapes:
    """All shapes for slots of a capacity that give the bits of `one_shape`; some ten steps, once a model."""
    found = _found.setdefault(model, {})
    key = (capacity, model.dtype, model.device, torch.get_num_threads())
    if key not in found:
        found[key] = _try_shapes(model, capacity)
    return found[key]


def _try_shapes(model: PreTrainedModel, capacity: int) -> Shapes:
    one = one_shape(model, capacity=capacity)
    if model.device.type != "cpu":
        return one
    (fewest,) = one.rows
    most = _most_rows(fewest, capacity)
    narrow = min(FEWEST_COLUMNS, capacity)
    windows = [length for length in LENGTHS if narrow <= length < capacity]
    cache = _fill_alike(model, most, narrow)
    sizes = [fewest << times for times in range(most.bit_length()) if fewest << times <= most]
    computed = [cache.compute([0] * size, window=narrow) for size in sizes]
    rows = [size for size, logits in zip(sizes, computed, strict=True) if (logits == computed[0][0]).all()]
    if windows:
        cache = _fill_alike(model, fewest, capacity)
        cache.past[:] = np.resize(windows, fewest) - 2  # every row another part of the columns
        widest = cache.compute([0] * fewest, window=capacity)
    kept = []
    for window in windows:
        inside = cache.past < window - 1
        if (cache.compute([0] * fewest, window=window) == widest)[inside].all():
            kept.append(window)
    return Shapes(tuple(rows) or (fewest,), (*kept, capacity))


def _most_rows(fewest: int, capacity: int) -> int:
    return max(fewest, min(MOST_ROWS, MOST_TOKENS // capacity))


def _fill_alike(model: Any, slots: int, capacity: int) -> SlotCache:
    """Slots that all hold the same random keys and values, so that all rows should come out the same."""
    with torch.inference_mode():
        one: Any = DynamicCache()
        model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=one, use_cache=True)
        generator = torch.Generator().manual_seed(0)
        for layer in one.layers:
            shape = (1, layer.keys.shape[1], capacity, layer.keys.shape[3])
            layer.keys, layer.values = (
                torch.randn(shape, generator=generator).to(layer.keys.dtype) for _ in range(2)
            )
    cache = SlotCache(model, capacity=capacity)
    cache.grow(slots)
    for slot in range(slots):
        cache.load(slot, one, capacity - 2)
    return cache
