"""Losses are sums in nats, class weights average to 1 over the rows, the head reads the last real token."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

import tiny
from gptailor.data.batch import collate
from gptailor.models.load import load_classifier, load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.train.loss import (
    balanced_weights,
    classification_logits,
    classification_loss,
    label_set_loss,
    normalized_weights,
    number_loss,
)
from gptailor.types import AnswerKind, TokenizedExample


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Labels of which some classes may be absent, and the number of classes."""
    classes = draw(st.integers(2, 6))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=40))
    return torch.tensor(labels), classes


def random_logits(rows: int, classes: int) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def test_loss_is_a_sum_in_nats() -> None:
    even = classification_loss(torch.zeros(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]))
    assert even.item() == pytest.approx(6 * math.log(4))
    sure = classification_loss(torch.tensor([[0.0, 50.0]]), torch.tensor([0]))
    assert sure.item() == pytest.approx(50)


@given(labelled(), st.floats(0, 1))
@settings(deadline=None)
def test_loss_written_out(rows: tuple[Tensor, int], smoothing: float) -> None:
    labels, classes = rows
    logits = random_logits(len(labels), classes)
    weights = torch.linspace(0.5, 2, classes, dtype=torch.float64)
    expected = 0.0
    for row, label in zip(logits, labels, strict=True):
        losses = -(row - row.exp().sum().log()) * weights
        expected += (1 - smoothing) * losses[label].item() + smoothing * losses.mean().item()
    found = classification_loss(logits, labels, class_weights=weights, label_smoothing=smoothing)
    assert found.item() == pytest.approx(expected)


@given(labelled(), st.integers(1, 39), st.floats(0, 0.5))
@settings(deadline=None)
def test_sums_over_parts_add_up(rows: tuple[Tensor, int], cut: int, smoothing: float) -> None:
    labels, classes = rows
    logits = random_logits(len(labels), classes)
    weights = balanced_weights(labels, classes).double()
    options: dict[str, Any] = {"class_weights": weights, "label_smoothing": smoothing}
    parts = sum(
        classification_loss(logits[part], labels[part], **options)
        for part in (slice(0, cut), slice(cut, None))
        if len(labels[part])
    )
    torch.testing.assert_close(parts, classification_loss(logits, labels, **options), rtol=1e-12, atol=0)


@given(labelled())
@settings(deadline=None)
def test_balanced_weights_are_scikit_learns_and_average_to_one(rows: tuple[Tensor, int]) -> None:
    labels, classes = rows
    weights = balanced_weights(labels, classes)
    assert weights.shape == (classes,)
    assert torch.isfinite(weights).all()
    assert (weights > 0).all()
    assert weights[labels].mean().item() == pytest.approx(1)
    present = np.unique(labels.numpy())
    theirs = compute_class_weight("balanced", classes=present, y=labels.numpy())
    ratio = weights.numpy()[present] / theirs
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)  # absent classes only change the scale
    if len(present) == classes:
        np.testing.assert_allclose(weights.numpy(), theirs, rtol=1e-5)


@given(labelled(), st.floats(0.01, 100))
@settings(deadline=None)
def test_given_weights_average_to_one_whatever_their_scale(rows: tuple[Tensor, int], scale: float) -> None:
    labels, classes = rows
    given_weights = torch.linspace(1, 3, classes)
    found = normalized_weights(given_weights * scale, labels)
    assert found[labels].mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(found / found[0], given_weights / given_weights[0])


def test_balanced_weights_give_every_class_the_same_pull() -> None:
    """With equal losses the sum over each class's rows is the same."""
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    logits = torch.zeros(100, 3)
    weights = balanced_weights(labels, 3)
    pulls = [
        classification_loss(logits[labels == c], labels[labels == c], class_weights=weights).item()
        for c in range(3)
    ]
    assert pulls == pytest.approx([pulls[0]] * 3)
    assert sum(pulls) == pytest.approx(100 * math.log(3), rel=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_are_the_heads_at_the_last_real_token(tiny_bases: dict[str, Path], family: str) -> None:
    base = resolve_base(str(tiny_bases[family]))
    tokenizer = load_tokenizer(base)
    model = load_classifier(base, tokenizer, label_names=["a", "b", "c"], seed=0).eval()
    pad_id: Any = tokenizer.pad_token_id
    rows = [
        TokenizedExample(np.arange(5, 5 + n, dtype=np.int32), np.zeros(n, np.bool_), "r", n, label=0)
        for n in (4, 9, 1)
    ]
    batch = collate(rows, pad_id=pad_id)
    head = model.get_submodule("score")
    found = classification_logits(model, head, batch)
    hidden = model.base_model(input_ids=batch.input_ids).last_hidden_state
    expected = torch.stack([hidden[0, 3], hidden[1, 8], hidden[2, 0]]) @ head.weight.T
    torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert classification_logits(model, head, batch).dtype == torch.float32
    double = model.double()
    assert classification_logits(double, head, batch).dtype == torch.float64


def test_loss_of_bf16_logits_is_summed_in_fp32() -> None:
    """What the loop relies on: a sum over many rows in bf16 would lose them."""
    labels = torch.zeros(5000, dtype=torch.int64)
    logits = torch.zeros(5000, 2, dtype=torch.bfloat16)
    exact = classification_loss(logits.float(), labels).item()
    assert exact == pytest.approx(5000 * math.log(2))
    assert functional.cross_entropy(logits, labels, reduction="sum").item() != pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("kind", ["multiple", "score"])
def test_loss_is_that_of_transformers_own_head(tiny_bases: dict[str, Path], kind: AnswerKind) -> None:
    """Ours is the sum over rows; theirs the mean, of sets over the labels, too. The gradients then agree."""
    base = resolve_base(str(tiny_bases["gpt2"]))
    tokenizer = load_tokenizer(base)
    names = ["a", "b", "c"] if kind == "multiple" else ["stars"]
    model = load_classifier(base, tokenizer, label_names=names, seed=0, kind=kind).eval()
    answers: list[Any] = [(1, 0, 1), (0, 0, 0), (0, 1, 0)] if kind == "multiple" else [1.5, -2.0, 4.0]
    rows = [
        TokenizedExample(np.arange(5, 5 + n, dtype=np.int32), np.zeros(n, np.bool_), "r", n, label=answer)
        for n, answer in zip((4, 9, 2), answers, strict=True)
    ]
    pad_id: Any = tokenizer.pad_token_id
    batch = collate(rows, pad_id=pad_id)
    assert batch.labels is not None
    mask = torch.arange(9) <= batch.last[:, None]
    theirs = model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels.float()).loss
    theirs.backward()
    head = model.get_submodule("score")
    expected = head.weight.grad.clone()
    model.zero_grad()
    logits = classification_logits(model, head, batch)
    if kind == "multiple":
        ours = label_set_loss(logits, batch.labels) / (3 * len(names))
    else:
        ours = number_loss(logits, batch.labels, mean=0.0, deviation=1.0) / 3
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(head.weight.grad, expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 99))
def test_sets_and_numbers_are_summed_over_any_micro_batches(size: int, seed: int) -> None:
    """The parts of a step add up to the whole, however it is divided."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    sets = torch.randint(0, 2, (6, 3), generator=generator)
    numbers = torch.randn(6, generator=generator, dtype=torch.float64)
    scaled = partial(number_loss, mean=0.3, deviation=2.0)
    for loss, values, answers in ((label_set_loss, logits, sets), (scaled, logits[:, :1], numbers)):
        parts = zip(values.split(size), answers.split(size), strict=True)
        total = sum(loss(part, answer).item() for part, answer in parts)
        assert total == pytest.approx(loss(values, answers).item(), rel=1e-12)


def test_large_numbers_keep_their_small_differences() -> None:
    """Timestamps that are half a minute apart: as fp32 they are all one of two numbers."""
    times = [1.7e9 + 30 * place for place in range(5)]
    rows = [
        TokenizedExample(np.array([place], np.int32), np.zeros(1, np.bool_), "r", place, label=time)
        for place, time in enumerate(times)
    ]
    batch = collate(rows, pad_id=0)
    assert batch.labels is not None
    expected = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]])
    assert number_loss(expected, batch.labels, mean=times[2], deviation=30.0).item() == 0


def test_a_number_is_learned_in_deviations_from_the_mean() -> None:
    logits = torch.tensor([[1.0], [-1.0]])
    assert number_loss(logits, torch.tensor([12.0, 8.0]), mean=10.0, deviation=2.0).item() == 0
    assert number_loss(logits, torch.tensor([14.0, 8.0]), mean=10.0, deviation=2.0).item() == 1
