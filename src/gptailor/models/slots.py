"""A key-value cache of fixed shape for requests that come and go.

Every slot's newest token stands in the last column, so to the model the slots are a batch padded on the
left: positions and mask per row, any architecture that transformers can generate with, none of its code
touched. (GPT-Neo's local layers count columns back from the last; a cache filled from the left would be
wrong for it.) Shapes never change, whoever is in the other slots: a row's bits depend on itself alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from gptailor.types import FloatArray


class SlotCache:
    """Keys and values of `slots` sequences of up to `capacity` tokens.

    The columns the model sees are a window that moves on by one each step over a longer buffer, so that
    nothing is copied until the buffer's end is reached.
    """

    def __init__(self, model: PreTrainedModel, *, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.columns = capacity + max(16, capacity // 4)
        self.newest = capacity - 1  # the column that the next token is written to
        self.past = np.zeros(slots, np.int64)  # tokens in each slot
        self._model: Any = model
        self._layers = [_SlotLayer(self) for _ in range(int(model.config.num_hidden_layers))]
        self._cache = Cache(layers=list(self._layers))

    def load(self, slot: int, prefilled: Cache | None, num_tokens: int) -> None:
        """Puts the first `num_tokens` tokens of a one-row cache into a slot; 0 only empties the slot."""
        self.past[slot] = num_tokens
        for place, layer in enumerate(self._layers):
            if prefilled is not None:
                source: Any = prefilled.layers[place]
                layer.make_room(source.keys, source.values)
            if layer.keys is None or layer.values is None:
                continue  # made by the first step, full of zeros
            for mine, theirs in ((layer.keys, "keys"), (layer.values, "values")):
                mine[slot] = 0  # masked, but a NaN left by another would still spread
                if prefilled is not None:
                    tokens = getattr(prefilled.layers[place], theirs)[0, :, :num_tokens]
                    mine[slot, :, self.newest - num_tokens : self.newest] = tokens

    def step(self, token_ids: list[int]) -> FloatArray:
        """(slots, V) logits after one more token for every slot, in fp32 on the CPU.

        The caller then adds to `past` what is to stay.
        """
        device = self._model.device
        past = torch.from_numpy(self.past).to(device)
        seen = torch.arange(self.capacity, device=device) >= self.capacity - 1 - past[:, None]
        with _row_by_row(device):
            logits: Tensor = self._model(
                input_ids=torch.tensor(token_ids, device=device)[:, None],
                attention_mask=seen,
                position_ids=past[:, None],
                past_key_values=self._cache,
                use_cache=True,
            ).logits[:, -1]
        self._move_on()
        found: FloatArray = logits.float().cpu().numpy()
        return found

    def _move_on(self) -> None:
        self.newest += 1
        if self.newest < self.columns:
            return
        keep = self.capacity - 1
        for layer in self._layers:
            for tensor in (layer.keys, layer.values):
                assert tensor is not None
                tensor[:, :, :keep] = tensor[:, :, -keep:].clone()
        self.newest = keep


class _SlotLayer(CacheLayerMixin):
    """One layer's part, as transformers asks for it."""

    is_sliding = False

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner = owner

    def make_room(self, keys: Tensor, values: Tensor) -> None:
        """Sets aside the buffers, zeroed, by the shape and type of some keys and values (B, H, T, D)."""
        if self.keys is None:
            slots, columns = self._owner.slots, self._owner.columns
            self.keys = keys.new_zeros(slots, keys.shape[1], columns, keys.shape[3])
            self.values = values.new_zeros(slots, values.shape[1], columns, values.shape[3])
            self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.make_room(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes the newest column; returns the window that ends with it."""
        self.make_room(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        newest = self._owner.newest
        window = slice(newest - self._owner.capacity + 1, newest + 1)
        self.keys[:, :, newest : newest + 1] = key_states
        self.values[:, :, newest : newest + 1] = value_states
        return self.keys[:, :, window], self.values[:, :, window]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner.capacity - 1 + query_length, 0

    def get_seq_length(self) -> int:
        return self._owner.capacity - 1

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
