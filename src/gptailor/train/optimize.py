"""AdamW with the right decay groups, and learning-rate schedules that move at step 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

Schedule = Literal["constant", "linear", "cosine", "warmup-stable-decay"]


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    head_learning_rate: float,
    weight_decay: float,
    head: str = "",
) -> torch.optim.AdamW:
    """AdamW over the weights that may change: matrices decay, biases and norms don't.

    `head` names the part that has its own rate; each group remembers its peak. The moments are there already.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_head = bool(head) and head in name.split(".")
            groups.setdefault((is_head, parameter.ndim >= 2), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": head_learning_rate if is_head else learning_rate,
                "peak": head_learning_rate if is_head else learning_rate,
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (is_head, decays), parameters in groups.items()
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )
    _make_moments(optimizer)
    return optimizer


def _make_moments(optimizer: torch.optim.AdamW) -> None:
    """What torch would make in the first step, between gradients: freed, they would leave holes in memory."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def clip_gradients(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], norm: torch.Tensor, largest: float
) -> None:
    """Scales the gradients down to a norm of `largest`, now or while the optimizer reads them; 0 for never.

    torch's fused AdamW divides by `grad_scale` on its way, which spares a pass over all gradients.
    """
    optimizer.grad_scale = optimizer.found_inf = None  # type: ignore[attr-defined]
    if largest <= 0 or norm <= largest:
        return
    if optimizer.defaults.get("fused") and norm.dtype == torch.float32:
        optimizer.grad_scale = norm / largest  # type: ignore[attr-defined]
        optimizer.found_inf = torch.zeros((), device=norm.device)  # type: ignore[attr-defined]
    else:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)


def rate_factor(step: int, total: int, *, schedule: Schedule, warmup: float, decay: float = 0.2) -> float:
    """The share of the peak rate at a step counted from 1 to `total`; never 0, so every step moves.

    `warmup` and `decay` are shares of the total.
    """
    warmup_steps = math.ceil(warmup * total)
    if step <= warmup_steps:
        return step / (warmup_steps + 1)
    left = (total - step + 1) / (total - warmup_steps)  # from 1 to just above 0
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    if schedule == "warmup-stable-decay":
        decay_steps = max(1, math.ceil(decay * total))
        return min(1.0, (total - step + 1) / decay_steps)
    return 1.0


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to its peak times the factor; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return float(optimizer.param_groups[0]["lr"])
