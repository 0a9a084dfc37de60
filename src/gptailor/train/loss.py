"""Losses as sums and counts: whoever knows the whole step divides, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from gptailor.models.forward import HEAD_ROWS, learned_states
from gptailor.types import Batch

# Takes a batch, returns (the sum of the losses of its targets, the number of targets).
LossFunction = Callable[[Batch], tuple[Tensor, int]]


def classification_logits(model: PreTrainedModel, head: torch.nn.Module, batch: Batch) -> Tensor:
    """(B, C) logits, fp32 or finer: the head on the final-norm hidden state at each row's last real token.

    The same numbers as `AutoModelForSequenceClassification` gives, without the head's work on all
    other positions and without a mask (see `data.batch.collate`).
    """
    hidden = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    rows = torch.arange(len(batch.last), device=hidden.device)
    logits: Tensor = head(hidden[rows, batch.last])
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def classification_loss(
    logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """The sum of the cross-entropies, in nats.

    Class weights are scaled by the caller so that their mean over the training rows is 1; the count
    then stays the number of rows, and accumulation stays exact.
    """
    return functional.cross_entropy(
        logits, labels, weight=class_weights, label_smoothing=label_smoothing, reduction="sum"
    )


def balanced_weights(labels: Tensor, num_labels: int) -> Tensor:
    """(C,) weights inverse to each class's frequency, with mean 1 over the rows.

    The rule of scikit-learn's `class_weight="balanced"`: N / (C * n_c).
    """
    counts = torch.bincount(labels, minlength=num_labels).clamp(min=1)
    return normalized_weights(len(labels) / (num_labels * counts.float()), labels)


def normalized_weights(weights: Tensor, labels: Tensor) -> Tensor:
    """Scales (C,) weights so that their mean over the rows is 1."""
    return weights / weights[labels].mean()


def language_loss(model: PreTrainedModel, head: torch.nn.Module, batch: Batch) -> Tensor:
    """The sum of the cross-entropies of the learned tokens of a text batch, in nats.

    Only their logits are ever computed, some at a time, and with them their gradients, so that the memory
    for (positions x vocabulary) is never needed at once.
    """
    assert batch.targets is not None
    states = learned_states(model, batch)
    total: Tensor = _HeadLoss.apply(states, head.weight, head.bias, batch.targets)  # type: ignore[no-untyped-call]
    return total


class _HeadLoss(torch.autograd.Function):
    """Linear map and cross-entropy in one, some rows at a time; the gradients are made on the way."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(hidden), HEAD_ROWS):
            rows, wanted = hidden[start : start + HEAD_ROWS], targets[start : start + HEAD_ROWS]
            product = functional.linear(rows, weight, bias)
            log_probabilities = functional.log_softmax(product.to(wide), dim=-1)
            total -= log_probabilities.gather(1, wanted[:, None]).sum()
            slope = log_probabilities.exp_()  # probabilities, less one at the target
            slope[torch.arange(len(wanted), device=wanted.device), wanted] -= 1
            narrow = slope.to(product.dtype)
            of_hidden[start : start + HEAD_ROWS] = narrow @ weight.to(product.dtype)
            if of_weight is not None:
                of_weight += narrow.T @ rows.to(product.dtype)
            if of_bias is not None:
                of_bias += slope.sum(0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight, of_bias = ctx.saved_tensors
        return (
            of_hidden * slopes[0],
            None if of_weight is None else of_weight * slopes[0],
            None if of_bias is None else of_bias * slopes[0],
            None,
        )
