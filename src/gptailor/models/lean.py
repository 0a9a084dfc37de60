"""GPT-2's body for training, written out over transformers' own weights.

The same function as `GPT2Model`: `tests/parity/test_lean.py` compares hidden states and gradients. It is
faster on processors: what stands before and after attention can be compiled, once for all layers; copies of
the weights in bf16 are kept beside them instead of being made in every pass; attention with dropout is no
slower than without; only attention sees padding; and the last block computes what is asked for.
Without gradients, and for all other architectures, transformers' own code runs.
"""

from __future__ import annotations

import importlib
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Model, PreTrainedModel

from gptailor.launch import Precision
from gptailor.models.dropout import draw_seeds, drop
from gptailor.models.rows import only_looks_up
from gptailor.types import Batch

SEEDS = 7  # of a block: three dropouts, and one before each of four adapters
SPARSE_FROM = 4  # so many times the tokens of a batch must be in the vocabulary
LARGE = 32 * 2**20  # bytes
WRITTEN_OUT = 256  # tokens; longer rows without attention dropout use torch's fused attention

# (weight (in, out), bias, and of LoRA: the maps down and up, their scale, the dropout before them)
Adapter = tuple[Tensor, Tensor, float, float]
Linear = tuple[Tensor, Tensor, Adapter | None]
# Scale and bias of the two norms, then attention in, attention out, up, down.
Weights = tuple[tuple[Tensor, ...], tuple[Linear, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a block is made of besides its weights."""

    heads: int
    epsilon: float
    dropout: float
    attention_dropout: float


@dataclass(slots=True)
class LeanBody:
    """State that outlives a call: the copies of the weights, and the functions around attention."""

    body: GPT2Model
    shape: Shape
    dtype: torch.dtype
    mix: Callable[..., Tensor]  # `mixed_in`, or compiled
    close: Callable[..., Tensor]  # `mixed_out`, or compiled
    to_compile: bool = False
    is_tied: bool = False  # the output layer has the embedding's weights
    copies: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def states(
        self, input_ids: Tensor, position_ids: Tensor | None, lengths: Tensor, wanted: Tensor
    ) -> Tensor:
        """(K, H) hidden states of some tokens.

        Args:
            input_ids: (B, T).
            position_ids: (B, T) where rows are packed, else None.
            lengths: (B,) real tokens of each row; what follows is padding.
            wanted: (K,) flat places in (B, T); padding has no state.
        """
        body: Any = self.body
        length = input_ids.shape[1]
        grid = grid_of(lengths, length)
        places = torch.arange(length).expand_as(input_ids) if position_ids is None else position_ids
        ids, places = (each.flatten()[grid.places] for each in (input_ids, places))
        wanted = torch.searchsorted(grid.places, wanted)
        seeds = draw_seeds(1 + SEEDS * len(body.h))
        with torch.autocast("cpu", enabled=False):
            x = drop(self._look_up(ids) + body.wpe(places), body.drop.p, seeds[0])
            fused = self._fused(length, position_ids)
            mask = None if fused else attention_mask(length, position_ids).to(self.dtype)
            run: Callable[..., Tensor] = self._run_block
            if body.is_activation_checkpointing:  # run again in the backward pass: dropout follows its seeds
                run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
            for layer, block in enumerate(body.h):
                of_layer = seeds[1 + SEEDS * layer :][:SEEDS]
                last = layer == len(body.h) - 1
                x = run(x, grid, mask, of_layer, self.weights_of(block), wanted if last else None)
            width, norm = x.shape[-1], body.ln_f
            return functional.layer_norm(x, (width,), norm.weight, norm.bias, self.shape.epsilon)

    def _run_block(
        self,
        x: Tensor,
        grid: Grid,
        mask: Tensor | None,
        seeds: Tensor,
        weights: Weights,
        wanted: Tensor | None,
    ) -> Tensor:
        """The residual stream (N, H) after a block; of the last only the rows that are wanted, (K, H)."""
        mixed = spread(self.mix(x, seeds, weights, self.shape, self.dtype), grid)
        parts = mixed.view(*grid.token.shape, 3, self.shape.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind()  # three selections would each make a gradient of all three
        read = gather(attend(query, key, value, mask, seeds[0], self.shape).transpose(1, 2).flatten(2), grid)
        if wanted is not None:
            x, read = x[wanted], read[wanted]
        return self.close(x, read, seeds, weights, self.shape, self.dtype)

    def _look_up(self, ids: Tensor) -> Tensor:
        """(N,) ids to (N, H). Where a batch has few of the vocabulary's tokens, the gradient is sparse."""
        embedding: Any = self.body.wte
        if not self._looks_up_alone() or SPARSE_FROM * len(ids) > embedding.num_embeddings:
            found: Tensor = embedding(ids)
            return found
        return functional.embedding(ids, embedding.weight, sparse=True)

    def weights_of(self, block: Any) -> Weights:
        """A block's weights as they are computed with."""
        norms = (block.ln_1.weight, block.ln_1.bias, block.ln_2.weight, block.ln_2.bias)
        return norms, tuple(self._linear(layer) for layer in linears_of(block))

    def leaves(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The copies that gradients are taken of, each with the weight it is a copy of."""
        return [(weight, copy) for weight, copy in self.copies.items() if weight.requires_grad]

    def gradients_to_keep(self) -> dict[nn.Parameter, Tensor]:
        """The vocabulary's, where it is sparse and added to a dense one: made in every step anew, that is too
        large for any hole in memory.
        """
        weight: Any = self.body.wte.weight
        sparse = self._looks_up_alone() and weight.requires_grad
        return {weight: torch.zeros_like(weight)} if sparse and weight.nbytes >= LARGE else {}

    def _looks_up_alone(self) -> bool:
        """Whether nothing else is computed with the embedding's weight; an output layer may have its copy."""
        weight: Any = self.body.wte.weight
        return only_looks_up(self.body.wte) and (not self.is_tied or weight in self.copies)

    def takes_turns(self) -> bool:
        """Whether the compiler has its work still to do, which is not for two threads at a time; once."""
        still, self.to_compile = self.to_compile, False
        return still

    def refresh(self) -> None:
        """After the weights moved: the copies follow."""
        with torch.no_grad():
            for weight, copy in self.leaves():
                copy.copy_(weight)

    def _linear(self, layer: Any) -> Linear:
        adapter = None
        plain = layer
        if hasattr(layer, "base_layer"):  # peft's wrapper
            plain = layer.base_layer
            (name,) = layer.active_adapters
            drops = getattr(layer.lora_dropout[name], "p", 0.0)
            adapter = (layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], drops)
        return self.copy_of(plain.weight), self.copy_of(plain.bias), adapter

    def copy_of(self, weight: nn.Parameter) -> Tensor:
        """The weight as it is computed with, made where there is none yet."""
        if weight.dtype == self.dtype:
            return weight
        if weight not in self.copies:
            self.copies[weight] = weight.detach().to(self.dtype).requires_grad_(weight.requires_grad)
        return self.copies[weight]

    def _fused(self, length: int, position_ids: Tensor | None) -> bool:
        return length > WRITTEN_OUT and self.shape.attention_dropout == 0 and position_ids is None


class Grid(NamedTuple):
    """Where the N tokens that are computed lie in (B, T): all real ones, and nearly no padding."""

    places: Tensor  # (N,) the flat place of each, in rising order
    token: Tensor  # (B, T) which of the N stands there; some other one in the place of other padding
    is_computed: Tensor  # (B, T, 1)


def grid_of(lengths: Tensor, width: int) -> Grid:
    """The grid of rows with (B,) real tokens each, padded on the right.

    Some of the padding is computed, so that the number of tokens is one of few: a matrix product of a new
    size costs milliseconds and half a megabyte of code made for it.
    """
    is_computed = torch.arange(width) < lengths[:, None]
    flat = is_computed.view(-1)
    count = int(flat.sum())
    flat[(~flat).nonzero()[: -count % coarseness(count), 0]] = True
    token = (flat.cumsum(0) - 1).view(is_computed.shape)
    return Grid(flat.nonzero()[:, 0], token, is_computed[:, :, None])


def coarseness(count: int) -> int:
    """What a number of tokens is rounded up to a multiple of: 1 up to 31, 2 up to 63, then 4, 8, 16 ..."""
    return 1 << max(0, count.bit_length() - 5)


def spread(x: Tensor, grid: Grid) -> Tensor:
    """(N, H) to (B, T, H). What stands in the place of padding is nobody's: no real token looks at it."""
    rows: Tensor = _Spread.apply(x, grid.places, grid.token)  # type: ignore[no-untyped-call]
    return rows


def gather(x: Tensor, grid: Grid) -> Tensor:
    """(B, T, H) to (N, H)."""
    tokens: Tensor = _Gather.apply(x, *grid)  # type: ignore[no-untyped-call]
    return tokens


# The gradients of both are copies; torch's own would add, number by number, where there is nothing to add to.


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, token: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x[token]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return slopes[0].flatten(0, 1)[places], None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, token: Tensor, is_computed: Tensor) -> Tensor:
        ctx.save_for_backward(token, is_computed)
        return x.flatten(0, 1)[places]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        token, is_computed = ctx.saved_tensors
        return torch.where(is_computed, slopes[0][token], 0), None, None, None


def mixed_in(x: Tensor, seeds: Tensor, weights: Weights, shape: Shape, dtype: torch.dtype) -> Tensor:
    """(N, H) to the queries, keys and values of a block, (N, 3 H)."""
    (scale, bias, _, _), (mix, _, _, _) = weights
    return linear(functional.layer_norm(x, scale.shape, scale, bias, shape.epsilon).to(dtype), mix, seeds[3])


def mixed_out(
    x: Tensor, read: Tensor, seeds: Tensor, weights: Weights, shape: Shape, dtype: torch.dtype
) -> Tensor:
    """The residual stream after a block, (N, H), of what it was and what attention has read, (N, H) each."""
    (_, _, scale, bias), (_, out, up, down) = weights
    x = x + drop(linear(read, out, seeds[4]), shape.dropout, seeds[1])
    y = functional.layer_norm(x, scale.shape, scale, bias, shape.epsilon).to(dtype)
    y = functional.gelu(linear(y, up, seeds[5]), approximate="tanh")
    return x + drop(linear(y, down, seeds[6]), shape.dropout, seeds[2])


def linear(x: Tensor, layer: Linear, seed: Tensor) -> Tensor:
    """(N, in) to (N, out), with LoRA's low-rank way beside it where there is one (Hu et al. 2021)."""
    weight, bias, adapter = layer
    y = torch.addmm(bias, x, weight)
    if adapter is None:
        return y
    down, up, scale, dropout = adapter
    low = drop(x, dropout, seed) @ down.to(x.dtype).T
    return y.addmm_(low, up.to(x.dtype).T, alpha=scale)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, seed: Tensor, shape: Shape
) -> Tensor:
    """(B, heads, T, D) each. Written out where a mask is given: torch's fused attention has a slow backward
    for short rows and none with dropout.
    """
    if mask is None:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    scores = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).add_(mask)
    shares = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return drop(shares, shape.attention_dropout, seed).to(value.dtype) @ value


def attention_mask(length: int, position_ids: Tensor | None) -> Tensor:
    """(T, T) or, for packed rows, (B, 1, T, T): 0 where a token may look, else -inf."""
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    if position_ids is None:
        return torch.zeros(length, length).masked_fill(later, -math.inf)
    document = (position_ids == 0).cumsum(1)
    hidden = later | (document[:, None, :, None] != document[:, None, None, :])
    return torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)


@contextmanager
def lean_training(
    model: PreTrainedModel, *, precision: Precision, compiled: bool = False
) -> Iterator[LeanBody | None]:
    """While inside, the model's body trains as above; None, and nothing changes, where `is_lean` is false.

    Args:
        model: Plain, or with peft's LoRA layers in it.
        precision: Of the matrix products.
        compiled: Whether all but attention is compiled; needs what `can_compile` asks for.
    """
    if not is_lean(model):
        yield None
        return
    body: Any = model.base_model
    config: Any = model.config
    shape = Shape(config.n_head, config.layer_norm_epsilon, config.resid_pdrop, config.attn_pdrop)
    dtype = torch.bfloat16 if precision == "bf16" else body.wpe.weight.dtype
    mix, close = compile_halves() if compiled else (mixed_in, mixed_out)
    output: Any = model.get_output_embeddings()
    tied = output is not None and output.weight is body.wte.weight
    lean = LeanBody(body, shape, dtype, mix, close, to_compile=compiled, is_tied=tied)
    for block in body.h:  # the copies are made here: later, threads would make them twice
        lean.weights_of(block)
    if output is not None:
        lean.copy_of(output.weight)
    body.lean = lean
    try:
        yield lean
    finally:
        del body.lean
        body.wte.weight.grad = None  # the one that was kept


def states_at(model: PreTrainedModel, batch: Batch, wanted: Tensor) -> Tensor:
    """(K, H) final-norm hidden states of some tokens of a batch. Documents of a packed row don't meet:
    transformers keeps them apart where positions start again and there is no mask.

    Args:
        model: Of any architecture; inside `lean_training` its body learns as above.
        batch: Padded on the right.
        wanted: (K,) flat places in (B, T); padding has no state.
    """
    body: Any = model.base_model
    lean: LeanBody | None = getattr(body, "lean", None)
    if lean is not None and body.training and torch.is_grad_enabled():
        return lean.states(batch.input_ids, batch.positions, batch.last + 1, wanted)
    known = {} if batch.positions is None else {"position_ids": batch.positions}
    hidden: Tensor = body(input_ids=batch.input_ids, use_cache=False, **known).last_hidden_state
    return hidden.flatten(0, 1)[wanted]


def output_weight(model: PreTrainedModel, head: nn.Module) -> Tensor:
    """(V, H) the head's weight as it is computed with: inside `lean_training` a copy, where it keeps one."""
    lean: LeanBody | None = getattr(model.base_model, "lean", None)
    weight: Any = head.weight
    found: Tensor = weight if lean is None or not torch.is_grad_enabled() else lean.copies.get(weight, weight)
    return found


def is_lean(model: PreTrainedModel) -> bool:
    """Whether the model's body can train as above."""
    config: Any = model.config
    return is_plain_gpt2(model) and not config.reorder_and_upcast_attn


def linears_of(block: Any) -> tuple[Any, ...]:
    """A block's linear layers: attention in and out, up, down; peft's wrappers where it put any."""
    return block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj


def is_plain_gpt2(model: PreTrainedModel) -> bool:
    """Whether the model's body is a GPT-2 as its paper has it, on a processor."""
    config: Any = model.config
    return (
        type(model.base_model) is GPT2Model
        and model.device.type == "cpu"
        and config.activation_function == "gelu_new"
        and config.scale_attn_weights
        and not config.scale_attn_by_inverse_layer_idx
        and not config.add_cross_attention
    )


def can_compile() -> bool:
    """Whether there is what torch's compiler needs on a processor."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def compile_halves() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """`mixed_in` and `mixed_out`, compiled for any number of tokens.

    Called from C++, compiled code gives the interpreter's lock back, so that micro-batches run side by side;
    each keeps to the threads it was given.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler uses what torch retires
        importlib.import_module("torch._inductor.compile_fx")
    options: dict[str, Any] = {"cpp_wrapper": True, "cpp.threads": torch.get_num_threads()}

    def for_any_number(half: Callable[..., Tensor], streams: int) -> Callable[..., Tensor]:
        """`streams`: of how many arguments the first size is the number of tokens."""
        fast = torch.compile(half, dynamic=True, options=options)

        def run(*arguments: Any) -> Tensor:
            if len(arguments[0]) == 1:  # to the compiler a kind of its own
                return half(*arguments)
            for stream in arguments[:streams]:  # should it equal another size at first, that means nothing
                torch._dynamo.maybe_mark_dynamic(stream, 0)
            found: Tensor = fast(*arguments)
            return found

        return run

    return for_any_number(mixed_in, 1), for_any_number(mixed_out, 2)
