"""Gradient accumulation: however a step is cut into micro-batches, its loss and gradients are the same.

Sums are divided once, by the count of the whole step. Every cut is compared with the whole step at once,
and the whole step with the mean of rows that were computed one by one through transformers alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from gptailor.models.load import head_name, load_classifier, load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.train.loop import accumulate
from gptailor.train.loss import balanced_weights, classification_logits, classification_loss
from gptailor.types import Batch, TokenizedExample

LABELS = ("business", "health", "sports")
# (class weights?, label smoothing)
LOSSES = {"plain": (False, 0.0), "weights": (True, 0.0), "smoothing": (False, 0.1), "both": (True, 0.1)}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
# A whole step of eight rows, and the last step of an epoch, which has five.
CUTS = {8: (1, 2, 4, 3), 5: (1, 2, 4)}


def random_rows(count: int) -> list[TokenizedExample]:
    """Rows of uneven lengths and uneven labels, so that a mean of means would be wrong."""
    rng = np.random.default_rng(11)
    labels = rng.choice(3, count, p=(0.6, 0.3, 0.1))
    rows = []
    for row in range(count):
        ids = rng.integers(1, 250, rng.integers(3, 30)).astype(np.int32)
        learn = np.zeros(len(ids), np.bool_)
        learn[-1] = True
        rows.append(TokenizedExample(ids, learn, "rows.csv", row + 1, label=int(labels[row])))
    return rows


def classifier(base: Path, dtype: torch.dtype) -> PreTrainedModel:
    found = resolve_base(str(base))
    model = load_classifier(found, load_tokenizer(found), label_names=LABELS, seed=3, dropout=0.0)
    with torch.no_grad():  # a head that has an opinion, else all losses are log 3
        getattr(model, head_name(model)).weight.mul_(20)
    return model.to(dtype)


def step(
    model: PreTrainedModel,
    rows: list[TokenizedExample],
    *,
    micro_batch: int,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one optimizer step cut into micro-batches."""
    model.zero_grad()
    head = getattr(model, head_name(model))
    pad_id: Any = model.config.pad_token_id

    def loss(batch: Batch) -> tuple[Tensor, int]:
        assert batch.labels is not None
        logits = classification_logits(model, head, batch)
        total = classification_loss(
            logits, batch.labels, class_weights=class_weights, label_smoothing=label_smoothing
        )
        return total, batch.num_targets

    total = accumulate(
        tiny.micro_batches(rows, size=micro_batch, pad_id=pad_id), loss, weights=list(model.parameters())
    )
    return total, gradients_of(model)


def gradients_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def settings_of(loss: str, rows: list[TokenizedExample], dtype: torch.dtype) -> dict[str, Any]:
    weighted, label_smoothing = LOSSES[loss]
    labels = torch.tensor([row.label for row in rows])
    weights = balanced_weights(labels, len(LABELS)).to(dtype) if weighted else None
    return {"class_weights": weights, "label_smoothing": label_smoothing}


def assert_same(
    one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]], tolerance: float
) -> None:
    """Relative to each tensor's own largest value; one that is all rounding is measured against 1e-3."""
    torch.testing.assert_close(one[0], other[0], rtol=tolerance, atol=0, check_dtype=False)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        scale = max(other[1][name].abs().max().item(), 1e-3)
        difference = (gradient - other[1][name]).abs().max().item() / scale
        assert difference <= tolerance, f"{name}: {difference:.2g}"


def loss_of_row(
    logits: Tensor, label: int, *, class_weights: Tensor | None, label_smoothing: float
) -> Tensor:
    """One row's loss, written out: the target keeps 1 - s, and s is spread over all classes."""
    weights = torch.ones_like(logits) if class_weights is None else class_weights
    losses = -logits.log_softmax(0) * weights
    return (1 - label_smoothing) * losses[label] + label_smoothing * losses.mean()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_cut_of_a_step_gives_the_same_loss_and_gradients(
    tiny_bases: dict[str, Path], family: str, dtype: torch.dtype, loss: str
) -> None:
    tolerance = TOLERANCES[dtype]
    if dtype == torch.float64 and family == "gpt_neo":
        tolerance = 1e-6  # transformers computes its attention in fp32, whatever the weights are
    model = classifier(tiny_bases[family], dtype)
    for size, cuts in CUTS.items():
        rows = random_rows(size)
        settings = settings_of(loss, rows, dtype)
        whole = step(model, rows, micro_batch=size, **settings)
        for micro_batch in cuts:
            assert_same(step(model, rows, micro_batch=micro_batch, **settings), whole, tolerance)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_step_is_the_mean_over_its_rows(tiny_bases: dict[str, Path], family: str, loss: str) -> None:
    """Against transformers' own forward, row by row, and the loss written out."""
    rows = random_rows(5)
    model = classifier(tiny_bases[family], torch.float32)
    settings = settings_of(loss, rows, torch.float32)
    ours = step(model, rows, micro_batch=2, **settings)
    model.zero_grad()
    losses = []
    for row in rows:
        assert row.label is not None
        logits = model(input_ids=torch.from_numpy(row.token_ids).long()[None]).logits[0]
        losses.append(loss_of_row(logits, row.label, **settings))
    mean = torch.stack(losses).mean()
    mean.backward()
    assert_same(ours, (mean.detach(), gradients_of(model)), 1e-5)


def test_the_check_would_see_a_mean_of_means(tiny_bases: dict[str, Path]) -> None:
    """The control: the fault of other tools, on the same rows, is far over the bar."""
    rows = random_rows(5)
    model = classifier(tiny_bases["gpt2"], torch.float32)
    whole, _ = step(model, rows, micro_batch=5)
    parts = [step(model, rows[start : start + 2], micro_batch=2)[0] for start in range(0, 5, 2)]
    assert abs(torch.stack(parts).mean() - whole) > 1e-2 * whole
