"""GPT-2's body for training, written out over transformers' own weights.

The same function as `GPT2Model`: `tests/parity/test_lean.py` compares hidden states and gradients. It is
faster on processors: a block is one function that can be compiled once and used for every layer, copies of
the weights in bf16 are kept beside them instead of being made in every pass, and attention with dropout
is no slower than without. Without gradients, and for all other architectures, transformers' own code runs.
"""

from __future__ import annotations

import importlib
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Model, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from gptailor.launch import Precision
from gptailor.models.dropout import draw_seeds, drop
from gptailor.types import Batch

SEEDS = 7  # of a block: three dropouts, and one before each of four adapters
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
    """State that outlives a call: the copies of the weights, and which block function runs."""

    body: GPT2Model
    shape: Shape
    dtype: torch.dtype
    block: Callable[..., Tensor]
    compiled: bool = False
    copies: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    seen: set[tuple[bool, ...]] = field(default_factory=set)

    def __call__(self, input_ids: Tensor, position_ids: Tensor | None = None, **_: object) -> BaseModelOutput:
        """Token ids (B, T) and, for packed rows, positions (B, T) to hidden states (B, T, H)."""
        body: Any = self.body
        length = input_ids.shape[1]
        places = body.wpe.weight[:length] if position_ids is None else body.wpe(position_ids)
        seeds = draw_seeds(1 + SEEDS * len(body.h))
        with torch.autocast("cpu", enabled=False):
            x = drop(body.wte(input_ids) + places, body.drop.p, seeds[0])
            mask = None if self._fused(length, position_ids) else attention_mask(length, position_ids)
            for layer, block in enumerate(body.h):
                chosen = seeds[1 + SEEDS * layer :][:SEEDS]
                run = self._recomputed if body.is_activation_checkpointing else self.block
                x = run(x, mask, chosen, self.weights_of(block), self.shape, self.dtype)
            x = functional.layer_norm(x, (x.shape[-1],), body.ln_f.weight, body.ln_f.bias, self.shape.epsilon)
        return BaseModelOutput(last_hidden_state=x)

    def weights_of(self, block: Any) -> Weights:
        """A block's weights as they are computed with."""
        norms = (block.ln_1.weight, block.ln_1.bias, block.ln_2.weight, block.ln_2.bias)
        layers = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        return norms, tuple(self._linear(layer) for layer in layers)

    def leaves(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The copies that gradients are taken of, each with the weight it is a copy of."""
        return [(weight, copy) for weight, copy in self.copies.items() if weight.requires_grad]

    def is_new(self, batches: Sequence[Batch]) -> bool:
        """Whether one of them makes the compiler work, which is not for two threads at a time. Asked once."""
        if not self.compiled:
            return False
        kinds = {
            (len(b.input_ids) == 1, self._fused(b.input_ids.shape[1], b.positions), b.positions is None)
            for b in batches
        }
        new = not kinds <= self.seen
        self.seen |= kinds
        return new

    def refresh(self) -> None:
        """After the weights moved: the copies follow."""
        with torch.no_grad():
            for weight, copy in self.leaves():
                copy.copy_(weight)

    def _recomputed(self, *arguments: Any) -> Tensor:
        """The block, run again in the backward pass: its dropout is a function of its seeds."""
        x: Tensor = checkpoint(self.block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return x

    def _linear(self, layer: Any) -> Linear:
        adapter = None
        plain = layer
        if hasattr(layer, "base_layer"):  # peft's wrapper
            plain = layer.base_layer
            (name,) = layer.active_adapters
            drops = getattr(layer.lora_dropout[name], "p", 0.0)
            adapter = (layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], drops)
        return self._copy(plain.weight), self._copy(plain.bias), adapter

    def _copy(self, weight: nn.Parameter) -> Tensor:
        if weight.dtype == self.dtype:
            return weight
        if weight not in self.copies:
            self.copies[weight] = weight.detach().to(self.dtype).requires_grad_(weight.requires_grad)
        return self.copies[weight]

    def _fused(self, length: int, position_ids: Tensor | None) -> bool:
        return length > WRITTEN_OUT and self.shape.attention_dropout == 0 and position_ids is None


def run_block(
    x: Tensor, mask: Tensor | None, seeds: Tensor, weights: Weights, shape: Shape, dtype: torch.dtype
) -> Tensor:
    """One block of GPT-2.

    Args:
        x: (B, T, H) the residual stream, fp32 or finer.
        mask: What is added to the attention scores; None: causal, by torch's fused attention.
        seeds: (7,) int32, of the dropouts.
        weights: As `LeanBody.weights_of` gives them.
        shape: Of the block.
        dtype: Of the matrix products.
    """
    (scale_1, bias_1, scale_2, bias_2), (mix, out, up, down) = weights
    rows, length, width = x.shape
    y = functional.layer_norm(x, (width,), scale_1, bias_1, shape.epsilon).to(dtype)
    parts = linear(y, mix, seeds[3]).view(rows, length, 3, shape.heads, -1).permute(2, 0, 3, 1, 4)
    read = attend(parts[0], parts[1], parts[2], mask, seeds[0], shape)
    read = read.transpose(1, 2).reshape(rows, length, width)
    x = x + drop(linear(read, out, seeds[4]), shape.dropout, seeds[1])
    y = functional.layer_norm(x, (width,), scale_2, bias_2, shape.epsilon).to(dtype)
    y = functional.gelu(linear(y, up, seeds[5]), approximate="tanh")
    return x + drop(linear(y, down, seeds[6]), shape.dropout, seeds[2])


def linear(x: Tensor, layer: Linear, seed: Tensor) -> Tensor:
    """(B, T, in) to (B, T, out), with LoRA's low-rank way beside it where there is one (Hu et al. 2021)."""
    weight, bias, adapter = layer
    flat = x.flatten(0, 1)
    y = torch.addmm(bias, flat, weight)
    if adapter is not None:
        down, up, scale, dropout = adapter
        low = drop(flat, dropout, seed) @ down.to(flat.dtype).T
        y = torch.addmm(y, low, up.to(flat.dtype).T, alpha=scale)
    return y.view(*x.shape[:2], -1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, seed: Tensor, shape: Shape
) -> Tensor:
    """(B, heads, T, D) each. Written out where a mask is given: torch's fused attention has a slow backward
    for short rows and none with dropout.
    """
    if mask is None:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + mask
    return drop(torch.softmax(scores, -1), shape.attention_dropout, seed).to(value.dtype) @ value


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
        compiled: Whether blocks are compiled; needs what `can_compile` asks for.
    """
    if not is_lean(model):
        yield None
        return
    body: Any = model.base_model
    config: Any = model.config
    shape = Shape(config.n_head, config.layer_norm_epsilon, config.resid_pdrop, config.attn_pdrop)
    dtype = torch.bfloat16 if precision == "bf16" else body.wpe.weight.dtype
    lean = LeanBody(body, shape, dtype, compile_block() if compiled else run_block, compiled)
    for block in body.h:  # the copies are made here: later, threads would make them twice
        lean.weights_of(block)
    original = body.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        learns = body.training and torch.is_grad_enabled()
        return lean(*args, **kwargs) if learns else original(*args, **kwargs)

    body.forward = forward
    try:
        yield lean
    finally:
        del body.forward


def is_lean(model: PreTrainedModel) -> bool:
    """Whether the model's body can train as above."""
    config: Any = model.config
    return is_plain_gpt2(model) and not config.reorder_and_upcast_attn


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


def compile_block() -> Callable[..., Tensor]:
    """`run_block`, compiled for any number of rows and tokens.

    Called from C++, compiled code gives the interpreter's lock back, so that micro-batches run side by side;
    each keeps to the threads it was given.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler uses what torch retires
        importlib.import_module("torch._inductor.compile_fx")
    options: dict[str, Any] = {"cpp_wrapper": True, "cpp.threads": torch.get_num_threads()}
    return torch.compile(run_block, dynamic=True, options=options)
