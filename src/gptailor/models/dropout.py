"""Dropout whose random numbers belong to a micro-batch, not to the process.

Micro-batches of a step run side by side. Each draws from a stream of its own, seeded by what it is, so the
masks are the same whichever thread comes first, and a resumed run draws them again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

_OF_THIS_THREAD = threading.local()


@contextmanager
def stream(seed: int) -> Iterator[None]:
    """While inside, this thread's dropout draws from a stream with this seed."""
    before = getattr(_OF_THIS_THREAD, "generator", None)
    _OF_THIS_THREAD.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        _OF_THIS_THREAD.generator = before


def draw_seeds(count: int) -> Tensor:
    """(count,) int32 numbers of this thread's stream."""
    generator = getattr(_OF_THIS_THREAD, "generator", None)
    return torch.randint(-(2**31), 2**31, (count,), generator=generator, dtype=torch.int64).int()


def drop(x: Tensor, share: float, seed: Tensor) -> Tensor:
    """Sets a share of the numbers to zero and scales up the rest.

    Where it is being compiled, the mask is a hash of each number's place and the seed: it is fused into
    what stands around it and made again in the backward pass, so that no mask is kept.

    Args:
        x: Any shape, up to 2**31 numbers.
        share: What is dropped, from 0 to less than 1.
        seed: () int32.
    """
    if share == 0:
        return x
    if torch.compiler.is_compiling():
        kept = hashed(x.shape, seed) >= int(share * 2**32) - 2**31
        return torch.where(kept, x * (1 / (1 - share)), 0)
    return _masked(x, share, torch.Generator().manual_seed(int(seed)))


def _masked(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    # Four numbers of 16 bits from each draw: `bernoulli_` takes a draw for every one.
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    level = min(round(share * 2**16), 2**16 - 1)
    kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= level - 2**15
    return (x * kept).mul_(2**16 / (2**16 - level))


def hashed(shape: torch.Size, seed: Tensor) -> Tensor:
    """int32 numbers that look random, a function of place and seed: the finalizer `lowbias32` of
    C. Wellons' hash prospector, in the arithmetic of signed numbers, which wrap around.
    """
    x = torch.arange(shape.numel(), dtype=torch.int32) + seed
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return (x ^ ((x >> 16) & 0xFFFF)).view(shape)


class Dropout(nn.Module):
    """torch's Dropout, drawing from the stream of its thread where there is one."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        generator = getattr(_OF_THIS_THREAD, "generator", None)
        if not self.training or self.p == 0 or generator is None or x.device.type != "cpu":
            return functional.dropout(x, self.p, self.training)
        return _masked(x, self.p, generator)


def draws_from_the_process(model: nn.Module, settings: Mapping[str, object]) -> bool:
    """Whether some dropout isn't a layer, so that it draws from the process's own stream.

    Attention draws in a fused operation of torch's; some families (BLOOM, Falcon, OPT) call a function for
    the rest. Threads side by side would then draw in an order that nobody can repeat.

    Args:
        model: With its layers as they are trained.
        settings: Of its configuration.
    """
    shares = {name: share for name, share in settings.items() if "drop" in name and isinstance(share, float)}
    if any(share > 0 for name, share in shares.items() if "att" in name):
        return True
    layers = [
        module.p
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout | Dropout) and "lora" not in name
    ]
    return any(share > 0 for share in shares.values()) and not any(share > 0 for share in layers)


def use_streams(model: nn.Module) -> None:
    """Every dropout layer of the model draws from its thread's stream from now on."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
