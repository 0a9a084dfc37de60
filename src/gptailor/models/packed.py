"""GPT-2's forward pass over texts that lie end to end, for answers, features and validation.

Every step of it but attention treats a token by itself, so the tokens of several texts form one matrix
without any padding between them; attention takes the texts one by one, at their own lengths. In the last
block only keys and values are needed of every token: the head reads each text's last.

A text must get the same bits wherever it lies and whoever lies beside it. Libraries don't promise that of
their matrix products, so it is tried on this machine with the model's own weights (`find_sizes`): only
numbers of rows are used in which every row comes out the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Model, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gptailor.launch import Precision
from gptailor.models.cores import cores, on_cores
from gptailor.models.lean import is_plain_gpt2, linears_of
from gptailor.types import FloatArray

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Rows of a pass. Many steps, so that little is filled up; oneDNN prepares itself once for each.
SIZES = (16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
ROWS_PER_PASS = SIZES[-1]  # the weights come from memory once a pass; twice as many rows gain nothing more
ROWS_PER_RUN = 512  # tokens that a server computes at once: full speed, and nobody waits long
TILE = 16
WRITTEN_OUT = 1024  # tokens of a text up to which bf16 attention is written out, at heads times square memory
_ONEDNN: Any = torch.ops.mkldnn if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]


class PackedLinear:
    """y = activation(x W^T + b) + residual with the weights laid out for oneDNN, where PyTorch has it.

    Its fp32 products use all that a processor has; those that PyTorch takes by default don't on every
    make. Where PyTorch has no oneDNN, its usual product is used.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        """`weight` is (out, in), in the precision of the product."""
        self.bias, self.gelu, self.dtype = bias, gelu, weight.dtype
        self.out, self.width = weight.shape
        self.packed = hasattr(_ONEDNN, "_linear_pointwise")
        self.weight: Tensor = _ONEDNN._reorder_linear_weight(weight, None) if self.packed else weight

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(M, in) to (M, out)."""
        if self.packed:
            product: Any = _ONEDNN._linear_pointwise
            if residual is not None:
                return product.binary(x, residual, self.weight, self.bias, "add")  # type: ignore[no-any-return]
            name, form = ("gelu", "tanh") if self.gelu else ("none", "")
            return product(x, self.weight, self.bias, name, [], form)  # type: ignore[no-any-return]
        y = functional.linear(x, self.weight, self.bias)
        y = functional.gelu(y, approximate="tanh") if self.gelu else y
        return y if residual is None else residual + y

    def __reduce__(self) -> Any:
        return _unpickled, (self.weight.to_dense() if self.packed else self.weight, self.bias, self.gelu)


def _unpickled(weight: Tensor, bias: Tensor | None, gelu: bool) -> PackedLinear:
    return PackedLinear(weight, bias, gelu=gelu)


class Norm:
    """A layer norm; weights stay fp32."""

    def __init__(self, module: Any) -> None:
        self.weight, self.bias, self.epsilon = module.weight.detach(), module.bias.detach(), module.eps

    def __call__(self, x: Tensor) -> Tensor:
        """(M, H) to (M, H)."""
        return functional.layer_norm(x, x.shape[1:], self.weight, self.bias, self.epsilon)


class Block:
    """One block of GPT-2."""

    def __init__(self, module: Any, *, dtype: torch.dtype, last: bool) -> None:
        def pack(conv: Any, *, gelu: bool = False, part: slice = slice(None)) -> PackedLinear:
            weight, bias = merged_weight(conv).T[part], conv.bias.detach()[part]
            return PackedLinear(weight.to(dtype).contiguous(), bias.to(dtype), gelu=gelu)

        attention, width = module.attn, module.attn.embed_dim
        self.heads, self.width, self.dtype = attention.num_heads, width, dtype
        self.scale = attention.head_dim**-0.5
        self.norm_1, self.norm_2 = Norm(module.ln_1), Norm(module.ln_2)
        # The last block asks for fewer tokens than it reads.
        parts = (slice(0, width), slice(width, None)) if last else (slice(None),)
        self.into = [pack(attention.c_attn, part=part) for part in parts]
        self.out = pack(attention.c_proj)
        self.up, self.down = pack(module.mlp.c_fc, gelu=True), pack(module.mlp.c_proj)

    def __call__(self, x: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """(M, H) to (M, H); `spans` are the rows of each text."""
        mixed = self.into[0](self.norm_1(x)).view(len(x), 3, self.heads, -1)
        found = [
            self._attend(*mixed[begin : begin + whole_tiles(end - begin)].unbind(1))[: end - begin]
            for begin, end in spans
        ]
        rest = mixed.new_zeros(len(x) - spans[-1][1], self.width)  # rows that only fill the pass up
        return self.finish(x, torch.cat([*found, rest]))

    def at_ends(self, x: Tensor, spans: Sequence[tuple[int, int]], size: int) -> Tensor:
        """(M, H) to (size, H): only each text's last row."""
        normed = self.norm_1(x)
        ends = torch.tensor([end - 1 for _, end in spans] + [0] * (size - len(spans)))
        asked = self.into[0](normed[ends]).view(size, self.heads, -1)
        mixed = self.into[1](normed).view(len(x), 2, self.heads, -1)
        found = [
            self._ask(asked[place], *mixed[begin:end].unbind(1)) for place, (begin, end) in enumerate(spans)
        ]
        return self.finish(x[ends], torch.cat([*found, x.new_zeros(size - len(spans), self.width)]))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(L, H) of one text; query, key and value are (L, heads, H / heads). What lies behind a text up to
        a whole tile is read, too, but not by the text's tokens: they see what stands before them.
        """
        length = len(query)
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        if self.dtype == torch.bfloat16 and length <= WRITTEN_OUT:  # three times as fast as the fused kernel
            scores = torch.baddbmm(_mask(length), query, key.mT, alpha=self.scale)
            found = scores.softmax(-1) @ value
        else:
            found = functional.scaled_dot_product_attention(
                query[None], key[None], value[None], is_causal=True
            )[0]
        return found.transpose(0, 1).reshape(length, self.width)

    def _ask(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(1, H) of a text's last token; `query` is (heads, H / heads), key and value as above."""
        found = functional.scaled_dot_product_attention(
            query[None, :, None], key.transpose(0, 1)[None], value.transpose(0, 1)[None]
        )
        return found.reshape(1, self.width)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """What follows attention, token by token: (M, H) and (M, H) to (M, H)."""
        x = self.out(mixed, residual=x)
        return self.down(self.up(self.norm_2(x)), residual=x)


def merged_weight(layer: Any) -> Tensor:
    """(in, out) of a linear layer; what peft's adapter adds to it is in it."""
    weight: Tensor = layer.weight.detach()
    if not hasattr(layer, "base_layer"):
        return weight
    (name,) = layer.active_adapters
    added: Tensor = layer.get_delta_weight(name).detach()
    return weight + added


def whole_tiles(length: int) -> int:
    """A text's rows as attention takes them: the kernels lose much on a rest."""
    return -(-length // TILE) * TILE


@cache
def _mask(length: int) -> Tensor:
    return torch.full((length, length), -torch.inf, dtype=torch.bfloat16).triu(1)


class PackedGPT2:
    """A GPT-2 that gives (N, C) logits of texts, or (N, H) features. Immutable; used by one thread at a time.

    It keeps no weight of the model it is made of, but the embeddings.
    """

    def __init__(
        self,
        model: GPT2Model,
        head: torch.nn.Linear | None,
        *,
        precision: Precision = "fp32",
        exact: bool = True,
    ) -> None:
        """`exact`: a text's bits depend on nothing but the text; finding out how takes a second or so."""
        dtype = DTYPES[precision]
        self.tokens, self.positions = model.wte, model.wpe
        self.dtype = dtype
        last = len(model.h) - 1
        self.blocks = [Block(block, dtype=dtype, last=place == last) for place, block in enumerate(model.h)]
        self.norm = Norm(model.ln_f)
        self.head: PackedLinear | None = None
        if head is not None:
            bias = None if head.bias is None else head.bias.detach().to(dtype)
            self.head = PackedLinear(head.weight.detach().to(dtype).contiguous(), bias)
        self.sizes = self._find_sizes() if exact else SIZES

    def logits(self, sequences: Sequence[Sequence[int]]) -> FloatArray:
        """(N, C) logits of every sequence, in order."""
        assert self.head is not None
        return self._compute(sequences, self.head, width=self.head.out)

    def features(self, sequences: Sequence[Sequence[int]]) -> FloatArray:
        """(N, H) final-norm hidden states at every sequence's last token, in order."""
        return self._compute(sequences, lambda x: x, width=len(self.norm.weight))

    def _compute(
        self, sequences: Sequence[Sequence[int]], read: Callable[[Tensor], Tensor], *, width: int
    ) -> FloatArray:
        """(N, width) of what is read off the final-norm hidden states, (M, H) to (M, width)."""
        values = np.empty((len(sequences), width), np.float64)
        lengths = [len(sequence) for sequence in sequences]
        most = min(ROWS_PER_PASS - TILE, -(-sum(lengths) // cores()))
        passes = share_passes(lengths, most=most)
        found = on_cores(lambda rows: self._pass([sequences[row] for row in rows], read), passes)
        for rows, values_of_pass in zip(passes, found, strict=True):
            values[rows] = values_of_pass
        return values

    def place(self, lengths: Sequence[int]) -> tuple[int, tuple[int, int]]:
        """How many rows sequences of these lengths take, and of what shape: a row is a token."""
        return sum(lengths), (ROWS_PER_RUN, 1)

    def _pass(self, sequences: Sequence[Sequence[int]], read: Callable[[Tensor], Tensor]) -> FloatArray:
        lengths = [len(sequence) for sequence in sequences]
        ends = np.cumsum(lengths).tolist()
        spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        rows = self._size(spans[-1][0] + whole_tiles(lengths[-1]))
        ids, places = np.zeros((2, rows), np.int64)
        for (begin, end), sequence in zip(spans, sequences, strict=True):
            ids[begin:end] = sequence
            places[begin:end] = np.arange(end - begin)
        with torch.inference_mode():
            x = (self.tokens(torch.from_numpy(ids)) + self.positions(torch.from_numpy(places))).to(self.dtype)
            for block in self.blocks[:-1]:
                x = block(x, spans)
            x = self.blocks[-1].at_ends(x, spans, self._size(len(spans)))
            values: FloatArray = read(self.norm(x))[: len(spans)].double().numpy()
        return values

    def _size(self, rows: int) -> int:
        return next((size for size in self.sizes if size >= rows), -(-rows // 64) * 64)

    def _find_sizes(self) -> tuple[int, ...]:
        """The numbers of rows in which every row of a pass has the bits it has in the largest."""
        generator = torch.Generator().manual_seed(0)
        row = torch.randn(1, self.norm.weight.shape[0], generator=generator).to(self.dtype)

        def compute(size: int) -> list[Tensor]:
            x = row.repeat(size, 1)
            with torch.inference_mode():
                first, last = self.blocks[0], self.blocks[-1]
                normed = first.norm_1(x)
                linears = [*first.into, *last.into, *([self.head] if self.head else [])]
                found = [linear(normed) for linear in linears]
                found.append(first.finish(x, normed))
            return found

        computed = on_cores(compute, SIZES[::-1])
        wanted = [rows[0] for rows in computed[0]]
        good = [
            size
            for size, found in zip(SIZES[::-1], computed, strict=True)
            if all(bool((rows == one).all()) for rows, one in zip(found, wanted, strict=True))
        ]
        return tuple(sorted(good))


def packed_gpt2(
    model: PreTrainedModel,
    head: torch.nn.Linear | None,
    *,
    precision: Precision = "fp32",
    exact: bool = True,
) -> PackedGPT2 | None:
    """The model, which is in evaluation mode, packed, adapters merged; or None where it is no plain GPT-2 or,
    where it is to be exact, this machine doesn't keep its rows' bits.
    """
    body: Any = model.base_model
    if not is_plain_gpt2(model):
        return None
    layers = (getattr(layer, "base_layer", layer) for block in body.h for layer in linears_of(block))
    if any(type(layer) is not Conv1D for layer in layers):
        return None
    packed = PackedGPT2(body, head, precision=precision, exact=exact)
    return packed if packed.sizes and packed.sizes[-1] == ROWS_PER_PASS else None


def share_passes(lengths: Sequence[int], *, most: int) -> list[list[int]]:
    """Which texts share a pass of at most `most` tokens; longer ones are alone. The longest come first.

    A pass is begun with the longest texts that are left and filled up with the shortest.
    """
    waiting = deque(sorted(range(len(lengths)), key=lambda place: -lengths[place]))
    passes = []
    while waiting:
        rows = [waiting.popleft()]
        room = most - lengths[rows[0]]
        while waiting and min(lengths[waiting[0]], lengths[waiting[-1]]) <= room:
            take = waiting.popleft if lengths[waiting[0]] <= room else waiting.pop
            rows.append(take())
            room -= lengths[rows[-1]]
        passes.append(rows)
    return passes
