"""Classification as the trainer sees it: batches, loss, validation; logits by sequence and by text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptailor.data.batch import collate, length_buckets, to_device
from gptailor.launch import Precision, precision_context
from gptailor.models.approach import Adapted
from gptailor.models.packed import packed_gpt2
from gptailor.pipeline.kinds import Kind
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.objective import Objective, Validation
from gptailor.pipeline.tokens import sequences_of
from gptailor.recipe import TrainSettings
from gptailor.train.loss import classification_logits
from gptailor.types import Batch, FloatArray, TokenizedExample

EVALUATION_TOKENS = 4096  # per pass without gradients


def classify_rows(
    adapted: Adapted,
    rows: Sequence[TokenizedExample],
    *,
    pad_id: int,
    precision: Precision = "fp32",
    merged: bool = True,
) -> FloatArray:
    """(N, C) logits of tokenized rows, without gradients, for choosing and not for serving: a row's last bits
    may depend on its neighbors. `merged`: adapters may be added into the weights, which is faster.
    """
    was_training = adapted.trained.training
    adapted.trained.eval()
    head: Any = adapted.head
    may_pack = merged or adapted.trained is adapted.plain
    packed = packed_gpt2(adapted.plain, head, precision=precision, exact=False) if may_pack else None
    if packed is not None:
        logits = packed.logits(sequences_of(rows))
    else:
        logits = _logits_in_buckets(adapted, rows, pad_id=pad_id, precision=precision)
    adapted.trained.train(was_training)
    return logits


def _logits_in_buckets(
    adapted: Adapted, rows: Sequence[TokenizedExample], *, pad_id: int, precision: Precision
) -> FloatArray:
    """Rows of like length together, padded."""
    lengths = np.array([len(row.token_ids) for row in rows])
    logits = np.empty((len(rows), int(adapted.plain.config.num_labels or 0)), np.float64)
    device = adapted.plain.device
    with torch.inference_mode(), precision_context(precision, device.type):
        for bucket in length_buckets(lengths, max_tokens_per_batch=EVALUATION_TOKENS):
            batch = to_device(collate([rows[int(row)] for row in bucket], pad_id=pad_id), device)
            logits[bucket] = classification_logits(adapted.plain, adapted.head, batch).double().cpu().numpy()
    return logits


def by_text(logits: FloatArray, rows: Sequence[TokenizedExample]) -> tuple[FloatArray, Any]:
    """Averages the windows of a text; returns its (M, C) logits and the M answers."""
    keys = [(row.source, row.row) for row in rows]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    index = np.array([places[key] for key in keys])
    sums = np.zeros((len(places), logits.shape[1]))
    np.add.at(sums, index, logits)
    first = np.unique(index, return_index=True)[1]
    return sums / np.bincount(index)[:, None], answers_of([rows[place] for place in first.tolist()])


def classification_objective(
    adapted: Adapted,
    rows: Sequence[TokenizedExample],
    validation_rows: Sequence[TokenizedExample],
    *,
    settings: TrainSettings,
    label_names: Sequence[str],
    pad_id: int,
    kind: Kind,
) -> Objective:
    """The kind's loss over its answers, and its score by text."""
    device = adapted.plain.device
    row_loss = kind.loss(settings, answers_of(rows), label_names)

    def batch(chosen: Sequence[int]) -> Batch:
        return to_device(collate([rows[row] for row in chosen], pad_id=pad_id), device)

    def loss(batch: Batch) -> tuple[Tensor, int]:
        assert batch.labels is not None
        logits = classification_logits(adapted.plain, adapted.head, batch)
        return row_loss(logits, batch.labels), batch.num_targets

    def validate(precision: Precision) -> Validation:
        logits = classify_rows(adapted, validation_rows, pad_id=pad_id, precision=precision)
        by_texts, answers = by_text(logits, validation_rows)
        score = kind.score(by_texts, answers)
        return Validation(kind.mean_loss(by_texts, answers), score, {kind.metric: kind.told(score)})

    lengths = np.empty(len(rows), np.int64)
    used = np.zeros(int(adapted.plain.config.vocab_size or 0), np.bool_)
    for place, row in enumerate(rows):
        lengths[place] = len(row.token_ids)
        used[row.token_ids] = True
    return Objective(lengths, batch, loss, validate, used=np.flatnonzero(used))
