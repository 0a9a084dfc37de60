"""A key-value cache for requests that come and go.

Every slot's newest token stands in the last column, so to the model the slots are a batch padded on the
left: positions and mask per row, any architecture that transformers can generate with, none of its code
touched. (GPT-Neo's local layers count columns back from the last; a cache filled from the left would be
wrong for it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from gptailor.types import FloatArray


class SlotCache:
    """Keys and values of sequences of up to `capacity` tokens; there can be more slots any time.

    Computed are the first slots and the last columns, as many of each as a step needs. The last column
    moves on by one each step over a longer buffer, so that nothing is copied until the buffer's end.
    """

    def __init__(self, model: PreTrainedModel, *, capacity: int) -> None:
        self.capacity = capacity
        self.columns = capacity + max(16, capacity // 4)
        self.newest = capacity - 1  # the column that the next token is written to
        self.past = np.zeros(0, np.int64)  # tokens in each slot
        self.rows, self.window = 0, capacity  # slots and columns that are being computed
        self._model: Any = model
        self._layers = [_SlotLayer(self) for _ in range(int(model.config.num_hidden_layers))]
        self._cache = Cache(layers=list(self._layers))

    def grow(self, slots: int) -> None:
        """Empty slots, until there are so many in all."""
        self.past = np.append(self.past, np.zeros(max(0, slots - len(self.past)), np.int64))

    @torch.inference_mode()
    def load(self, slot: int, prefilled: Cache | None, num_tokens: int) -> None:
        """Puts the first `num_tokens` tokens of a one-row cache into a slot.

        What an earlier sequence left in the slot is masked: finite, or its logits had been refused.
        """
        self.past[slot] = num_tokens
        for place, layer in enumerate(self._layers if prefilled is not None else []):
            source: Any = prefilled.layers[place]  # type: ignore[union-attr]
            layer.make_room(source.keys, source.values)
            for mine, theirs in zip(layer.buffers, (source.keys, source.values), strict=True):
                mine[slot, :, self.newest - num_tokens : self.newest] = theirs[0, :, :num_tokens]

    @torch.inference_mode()
    def move(self, slot: int, to: int) -> None:
        """Puts what one slot holds into another."""
        self.past[to] = self.past[slot]
        for layer in self._layers:
            for tensor in layer.buffers:
                tensor[to] = tensor[slot]

    @torch.inference_mode()
    def copy(self, slot: int) -> Cache:
        """What a slot holds, as `load` takes it: the same bits."""
        begin, found = self.newest - int(self.past[slot]), DynamicCache()
        for place, layer in enumerate(self._layers):
            keys, values = (tensor[slot : slot + 1, :, begin : self.newest] for tensor in layer.buffers)
            found.update(keys.clone(), values.clone(), place)
        return found

    @torch.inference_mode()
    def compute(self, token_ids: Sequence[int], *, window: int) -> FloatArray:
        """(n, V) logits after one more token for each of the first n slots, in fp32 on the CPU.

        Args:
            token_ids: One for each of the n slots.
            window: How many columns the model sees: more than any of these slots has tokens with its new
                one. Where no column is masked, transformers leaves out the mask, and attention without one
                can take another way.
        """
        device = self._model.device
        self.rows, self.window = len(token_ids), window
        past = torch.from_numpy(self.past[: self.rows]).to(device)
        seen = torch.arange(window, device=device) >= window - 1 - past[:, None]
        with _row_by_row(device):
            logits: Tensor = self._model(
                input_ids=torch.tensor(token_ids, device=device)[:, None],
                attention_mask=seen,
                position_ids=past[:, None],
                past_key_values=self._cache,
                use_cache=True,
            ).logits[:, -1]
        found: FloatArray = logits.float().cpu().numpy()
        return found

    @torch.inference_mode()
    def advance(self, count: int) -> None:
        """The first `count` slots keep the token that was just computed; the others forget it."""
        self.past[:count] += 1
        self.newest += 1
        if self.newest == self.columns:
            self.newest = self.capacity - 1
            for layer in self._layers:
                for tensor in layer.buffers:
                    tensor[:, :, : self.newest] = tensor[:, :, -self.newest :].clone()


class _SlotLayer(CacheLayerMixin):
    """One layer's part, as transformers asks for it."""

    is_sliding = False

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner = owner

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """Keys and values (slots, H, columns, D), once there are any."""
        return () if self.keys is None or self.values is None else (self.keys, self.values)

    def make_room(self, keys: Tensor, values: Tensor) -> None:
        """Zeroed buffers for all slots, by the shape and type of some keys and values (B, H, T, D)."""
        missing = len(self._owner.past) - (0 if self.keys is None else len(self.keys))
        if missing:
            fresh = [
                like.new_zeros(missing, like.shape[1], self._owner.columns, like.shape[3])
                for like in (keys, values)
            ]
            for place, old in enumerate(self.buffers):
                fresh[place] = torch.cat((old, fresh[place]))
            self.keys, self.values = fresh
            self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.make_room(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes the newest column; returns the window that ends with it."""
        self.make_room(key_states, value_states)
        rows, end = self._owner.rows, self._owner.newest + 1
        keys, values = (tensor[:rows] for tensor in self.buffers)
        keys[:, :, end - 1 : end] = key_states
        values[:, :, end - 1 : end] = value_states
        begin = end - self._owner.window
        return keys[:, :, begin:end], values[:, :, begin:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner.window - 1 + query_length, 0

    def get_seq_length(self) -> int:
        return self._owner.window - 1

    def get_max_length(self) -> int:
        return self._owner.capacity


def _row_by_row(device: torch.device) -> AbstractContextManager[Any]:
    """Attention whose bits don't depend on which row is which.

    PyTorch's fused attention on the CPU gives every thread a piece of one buffer, whose alignment differs
    from thread to thread, and with it the last bits of a single query's products (seen in 2.13, with two
    threads and more). The switch is the process's, so no other thread may compute at that time.
    """
    if device.type != "cpu":
        return nullcontext()
    choice: AbstractContextManager[Any] = sdpa_kernel(SDPBackend.MATH)
    return choice
