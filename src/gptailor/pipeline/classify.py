"""Classification as the trainer sees it: batches, loss, validation; logits by sequence and by text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gptailor.data.batch import collate, length_buckets, split_step, to_device
from gptailor.evaluate.run import macro_f1
from gptailor.launch import Precision, precision_context
from gptailor.models.approach import Adapted
from gptailor.pipeline.objective import Objective, Validation
from gptailor.recipe import TrainSettings
from gptailor.tasks.classification import weights_by_label
from gptailor.train.loss import (
    balanced_weights,
    classification_logits,
    classification_loss,
    normalized_weights,
)
from gptailor.types import Batch, FloatArray, IntArray, TokenizedExample

EVALUATION_TOKENS = 4096  # per pass without gradients


def classify_rows(
    adapted: Adapted, rows: Sequence[TokenizedExample], *, pad_id: int, precision: Precision = "fp32"
) -> FloatArray:
    """(N, C) logits of tokenized rows, without gradients; bucketed by length, never held as hidden states."""
    lengths = np.array([len(row.token_ids) for row in rows])
    logits = np.empty((len(rows), int(adapted.plain.config.num_labels or 0)), np.float64)
    device = adapted.plain.device
    was_training = adapted.trained.training
    adapted.trained.eval()
    with torch.inference_mode(), precision_context(precision, device.type):
        for bucket in length_buckets(lengths, max_tokens_per_batch=EVALUATION_TOKENS):
            batch = to_device(collate([rows[int(row)] for row in bucket], pad_id=pad_id), device)
            logits[bucket] = classification_logits(adapted.plain, adapted.head, batch).double().cpu().numpy()
    adapted.trained.train(was_training)
    return logits


def by_text(logits: FloatArray, rows: Sequence[TokenizedExample]) -> tuple[FloatArray, IntArray]:
    """Averages the windows of a text; returns its (M, C) logits and (M,) answers."""
    keys = [(row.source, row.row) for row in rows]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    index = np.array([places[key] for key in keys])
    sums = np.zeros((len(places), logits.shape[1]))
    np.add.at(sums, index, logits)
    answers = np.zeros(len(places), np.int64)
    answers[index] = [-1 if row.label is None else row.label for row in rows]
    return sums / np.bincount(index)[:, None], answers


def classification_objective(
    adapted: Adapted,
    rows: Sequence[TokenizedExample],
    validation_rows: Sequence[TokenizedExample],
    *,
    settings: TrainSettings,
    label_names: Sequence[str],
    pad_id: int,
) -> Objective:
    """Cross-entropy over the labels; the score is macro-F1 by text."""
    device = adapted.plain.device
    weights = _class_weights(settings, rows, label_names)
    class_weights = None if weights is None else weights.to(device)

    def batches(chosen: Sequence[int], micro_batch_size: int) -> list[Batch]:
        examples = [rows[row] for row in chosen]
        made = split_step(examples, micro_batch_size=micro_batch_size, pad_id=pad_id)
        return [to_device(batch, device) for batch in made]

    def loss(batch: Batch) -> tuple[Tensor, int]:
        assert batch.labels is not None
        logits = classification_logits(adapted.plain, adapted.head, batch)
        total = classification_loss(
            logits, batch.labels, class_weights=class_weights, label_smoothing=settings.label_smoothing
        )
        return total, batch.num_targets

    def validate(precision: Precision) -> Validation:
        logits = classify_rows(adapted, validation_rows, pad_id=pad_id, precision=precision)
        by_texts, answers = by_text(logits, validation_rows)
        total = classification_loss(torch.from_numpy(by_texts), torch.from_numpy(answers)).item()
        score = macro_f1(answers, by_texts.argmax(axis=1), num_labels=logits.shape[1])
        return Validation(total / len(answers), score, {"macro_f1": score})

    lengths = np.array([len(row.token_ids) for row in rows])
    return Objective(lengths, batches, loss, validate)


def _class_weights(
    settings: TrainSettings, rows: Sequence[TokenizedExample], label_names: Sequence[str]
) -> Tensor | None:
    labels = torch.tensor([row.label for row in rows])
    if settings.class_weights == "none":
        return None
    if settings.class_weights == "balanced":
        return balanced_weights(labels, len(label_names))
    weights = torch.tensor(weights_by_label(settings.class_weights, label_names))
    return normalized_weights(weights, labels)
