"""Losses as sums and counts: whoever knows the whole step divides, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from gptailor.models.forward import HEAD_ROWS, learned_states
from gptailor.models.lean import output_weight, states_at
from gptailor.types import Batch

IN_CACHE = 4 * 2**20  # logits that a processor has in fp32 at a time
# Takes a batch, returns (the sum of the losses of its targets, the number of targets).
LossFunction = Callable[[Batch], tuple[Tensor, int]]


def classification_logits(model: PreTrainedModel, head: torch.nn.Module, batch: Batch) -> Tensor:
    """(B, C) logits, fp32 or finer: the head on the final-norm hidden state at each row's last real token.

    The same numbers as `AutoModelForSequenceClassification` gives, without the head's work on all
    other positions and without a mask (see `data.batch.collate`).
    """
    rows, length = batch.input_ids.shape
    ends = torch.arange(rows, device=batch.last.device) * length + batch.last
    logits: Tensor = head(states_at(model, batch, ends))
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


def label_set_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the binary cross-entropies of all (B, C) labels, each 0 or 1, in nats.

    A row is one target: its C terms are added, and whoever knows the whole step divides by its rows.
    transformers' `multi_label_classification` divides by C as well.
    """
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")


def number_loss(logits: Tensor, numbers: Tensor, *, mean: float, deviation: float) -> Tensor:
    """The sum of the squared errors of (B, 1) logits against (B,) numbers, in deviations."""
    standardized = (numbers - mean) / deviation  # as fine as they come: in fp32 timestamps are all alike
    return functional.mse_loss(logits[:, 0], standardized.to(logits.dtype), reduction="sum")


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
    weight = output_weight(model, head)
    total: Tensor = _HeadLoss.apply(states, weight, head.bias, batch.targets)  # type: ignore[no-untyped-call]
    return total


def answer_log_likelihoods(model: PreTrainedModel, head: torch.nn.Module, batch: Batch) -> Tensor:
    """(B,) sums of the log-probabilities of each row's learned tokens, in nats, with gradients.

    For objectives that compare whole answers; one example a row, not packed. Logits are made some rows at a
    time, and once more for the gradient, so that all of them are never in memory.
    """
    assert batch.targets is not None
    assert batch.learned is not None
    states = learned_states(model, batch)
    weight = output_weight(model, head)
    nats: Tensor = _TargetNats.apply(states, weight, head.bias, batch.targets)  # type: ignore[no-untyped-call]
    rows, width = batch.input_ids.shape
    sums = torch.zeros(rows, dtype=nats.dtype, device=nats.device)
    return sums.index_add(0, batch.learned // width, -nats)


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    kind: Literal["dpo", "ipo", "simpo"],
    beta: float,
    margin: float = 0.0,
) -> Tensor:
    """The sum over pairs of how far the chosen answer is from being preferred.

    Args:
        chosen: (P,) what the model gives the chosen answers: log-likelihood less the reference's (dpo), both
            by token (ipo), or the model's own by token (simpo).
        rejected: (P,) the same of the rejected answers.
        kind: `dpo` (Rafailov et al. 2023, equation 7), `ipo` (Azar et al. 2023, equation 17) or `simpo`
            (Meng et al. 2024, equation 6).
        beta: How strongly preferences pull.
        margin: SimPO's gamma: how far ahead the chosen answer should be.
    """
    gap = chosen - rejected
    if kind == "ipo":
        return ((gap - 1 / (2 * beta)) ** 2).sum()
    return -functional.logsigmoid(beta * gap - margin).sum()


class _HeadLoss(torch.autograd.Function):
    """Linear map and cross-entropy in one; the gradients are made on the way.

    Only some rows' logits are in memory at a time, and of these only a few in fp32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        of_hidden = torch.empty_like(hidden)
        of_weight: Tensor | None = None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        weight = _as_computed(weight)
        at_once = max(1, IN_CACHE // len(weight)) if hidden.device.type == "cpu" else HEAD_ROWS
        for start in range(0, len(hidden), HEAD_ROWS):
            rows, wanted = hidden[start : start + HEAD_ROWS], targets[start : start + HEAD_ROWS]
            slopes = []
            for few, of_few in zip(torch.split(rows, at_once), torch.split(wanted, at_once), strict=True):
                product = functional.linear(few, weight, bias)
                log_probabilities = functional.log_softmax(product, dim=-1, dtype=wide)
                total -= log_probabilities.gather(1, of_few[:, None]).sum()
                slope = log_probabilities.exp_()  # probabilities, less one at the target
                slope[torch.arange(len(of_few), device=of_few.device), of_few] -= 1
                slopes.append(slope.to(product.dtype))
                if of_bias is not None:
                    of_bias += slope.sum(0)
            narrow = torch.cat(slopes)
            of_hidden[start : start + HEAD_ROWS] = narrow @ weight.to(narrow.dtype)
            if ctx.needs_input_grad[1]:
                more = narrow.T @ rows.to(narrow.dtype)
                of_weight = more if of_weight is None else of_weight.to(wide).add_(more)
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


def _as_computed(weight: Tensor) -> Tensor:
    """The weight in autocast's precision, which would cast a frozen one anew for every few rows."""
    kind = weight.device.type
    return weight.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else weight


class _TargetNats(torch.autograd.Function):
    """Nats of each target; the logits are made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        found, cast = [], _as_computed(weight)
        for start in range(0, len(hidden), HEAD_ROWS):
            product = functional.linear(hidden[start : start + HEAD_ROWS], cast, bias)
            wanted = targets[start : start + HEAD_ROWS]
            found.append(functional.cross_entropy(product.to(wide), wanted, reduction="none"))
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.dtype = product.dtype
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        wide = slopes[0].dtype
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        # The precision of the forward pass ends with it.
        weight, bias = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        for start in range(0, len(hidden), HEAD_ROWS):
            rows, wanted = hidden[start : start + HEAD_ROWS], targets[start : start + HEAD_ROWS]
            rows = rows.to(ctx.dtype)
            product = functional.linear(rows, weight, bias)
            slope = torch.softmax(product.to(wide), dim=-1)
            slope[torch.arange(len(wanted), device=wanted.device), wanted] -= 1
            slope *= slopes[0][start : start + HEAD_ROWS, None]
            narrow = slope.to(ctx.dtype)
            of_hidden[start : start + HEAD_ROWS] = narrow @ weight
            if of_weight is not None:
                of_weight += narrow.T @ rows
            if of_bias is not None:
                of_bias += slope.sum(0)
        return of_hidden, of_weight, of_bias, None
