"""Losses as sums and counts: whoever knows the whole step divides, once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

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
