"""Logits of tokenized rows, by sequence and by text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from gptailor.data.batch import collate, length_buckets
from gptailor.launch import Precision, precision_context
from gptailor.models.approach import Adapted
from gptailor.train.loss import classification_logits
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


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on the model's device."""
    if device.type == "cpu":
        return batch
    return dataclasses.replace(
        batch,
        input_ids=batch.input_ids.to(device),
        last=batch.last.to(device),
        labels=None if batch.labels is None else batch.labels.to(device),
    )
