"""Our loss over the vocabulary, made in chunks with its own gradients, is the one of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

import tiny
from gptailor.launch import precision_context
from gptailor.models.load import load_tokenizer, load_trainable_language_model, output_layer
from gptailor.models.names import resolve_base
from gptailor.train import loss
from gptailor.train.loss import language_loss
from gptailor.types import Batch

ROWS, LENGTH = 3, 24
BARS = {torch.float64: 1e-10, torch.float32: 1e-5}
each_family = pytest.mark.parametrize("family", tiny.FAMILIES)
each_precision = pytest.mark.parametrize("dtype", BARS, ids=str)
Gradients = dict[str, Tensor]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest, tiny_bases: dict[str, Path]) -> PreTrainedModel:
    return load(tiny_bases[request.param])


@pytest.fixture(autouse=True)
def clean_model(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "model" in request.fixturenames:
        used: PreTrainedModel = request.getfixturevalue("model")
        used.float().requires_grad_(True).zero_grad()


def load(folder: Path) -> PreTrainedModel:
    base = resolve_base(str(folder))
    model = load_trainable_language_model(base, load_tokenizer(base))
    with torch.no_grad():  # random bases are almost indifferent; losses that differ make a bar mean something
        output_layer(model).weight.mul_(20)
    return model.eval()


def build_batch(model: PreTrainedModel, *, learned: Tensor | None = None, seed: int = 0) -> Batch:
    """Rows of random tokens; every token but the last of a row has a next one."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, int(model.config.vocab_size), (ROWS, LENGTH), generator=generator)
    if learned is None:
        learned = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)[:, :-1].flatten()
    return Batch(
        input_ids=ids,
        last=torch.full((ROWS,), LENGTH - 1),
        num_targets=len(learned),
        num_tokens=ROWS * LENGTH,
        rows=("a", "b", "c"),
        targets=ids.flatten()[learned + 1],
        learned=learned,
        positions=torch.arange(LENGTH).repeat(ROWS, 1),
    )


@dataclass(frozen=True)
class Found:
    loss: Tensor
    gradients: Gradients


def measured(model: PreTrainedModel, value: Tensor) -> Found:
    """The loss and every gradient. Divided first, as the loop does, so that the incoming slope isn't 1."""
    (value / 7).backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return Found(value.detach(), gradients)


def ours(model: PreTrainedModel, batch: Batch) -> Found:
    return measured(model, language_loss(model, output_layer(model), batch))


def plainly(model: PreTrainedModel, batch: Batch) -> Found:
    """Cross-entropy over all the logits that transformers gives."""
    assert batch.learned is not None
    assert batch.targets is not None
    logits = model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.learned]
    return measured(model, functional.cross_entropy(logits, batch.targets, reduction="sum"))


def assert_equal(found: Found, expected: Found, bar: float) -> None:
    torch.testing.assert_close(found.loss, expected.loss, rtol=bar, atol=0)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found.gradients[name], gradient, rtol=0, atol=bar * max(scale, 1e-3))


@each_precision
def test_equals_the_cross_entropy_of_all_logits(model: PreTrainedModel, dtype: torch.dtype) -> None:
    model.to(dtype)
    batch = build_batch(model)
    expected = plainly(model, batch)
    assert expected.loss / batch.num_targets > 3
    assert min(float(g.abs().max()) for g in expected.gradients.values()) > 0
    assert len(expected.gradients) == len(list(model.parameters()))
    assert_equal(ours(model, batch), expected, BARS[dtype])


def test_equals_the_loss_of_transformers_itself(model: PreTrainedModel) -> None:
    """It gives the mean over the targets, always in fp32."""
    batch = build_batch(model)
    theirs = model(input_ids=batch.input_ids, labels=batch.input_ids, use_cache=False).loss
    assert_equal(ours(model, batch), measured(model, theirs * batch.num_targets), BARS[torch.float32])


@each_precision
@pytest.mark.parametrize("rows", [1, 5, 23, 69, 70])
def test_chunks_change_nothing(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int
) -> None:
    model.to(dtype)
    batch = build_batch(model)
    expected = plainly(model, batch)
    monkeypatch.setattr(loss, "HEAD_ROWS", rows)
    assert_equal(ours(model, batch), expected, BARS[dtype])


@pytest.mark.parametrize("few", [0, 1, 9, 69, 70])
def test_how_many_logits_are_in_fp32_changes_nothing(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Of `few` tokens at a time; one, should not even one fit."""
    model.double()
    batch = build_batch(model)
    expected = plainly(model, batch)
    monkeypatch.setattr(loss, "IN_CACHE", few * model.config.vocab_size)
    monkeypatch.setattr(loss, "HEAD_ROWS", 50)
    assert_equal(ours(model, batch), expected, BARS[torch.float64])


def test_only_the_learned_tokens_count(model: PreTrainedModel) -> None:
    model.double()
    batch = build_batch(model, learned=torch.tensor([0, 3, 22, LENGTH, 2 * LENGTH + 5]))
    assert_equal(ours(model, batch), plainly(model, batch), BARS[torch.float64])


def test_no_more_logits_at_once_than_a_chunk(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_bases["llama"])
    head, linear, seen = output_layer(model), functional.linear, []

    def watching(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is head.weight:
            seen.append(given.shape.numel() // given.shape[-1])
        return linear(given, weight, bias)

    monkeypatch.setattr(loss, "HEAD_ROWS", 10)
    monkeypatch.setattr(functional, "linear", watching)
    ours(model, build_batch(model))
    assert seen == [10] * 6 + [9]


@each_family
@pytest.mark.parametrize("tied", [True, False])
def test_weights_tied_to_the_embedding_get_both_gradients(tmp_path: Path, family: str, tied: bool) -> None:
    tokenizer = tiny.build_tokenizer(family)
    config = tiny.build_config(family, len(tokenizer))
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).double().eval()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embedding is head) is tied
    batch = build_batch(model)
    found = ours(model, batch)
    assert_equal(found, plainly(model, batch), BARS[torch.float64])
    assert len(found.gradients) == len(list(model.parameters()))


def test_a_frozen_head_gets_no_gradient_and_passes_the_others_on(model: PreTrainedModel) -> None:
    model.double()
    batch = build_batch(model)
    head: Any = output_layer(model)
    head.weight.requires_grad_(False)
    expected = plainly(model, batch)
    found = ours(model, batch)
    assert head.weight.grad is None
    assert found.gradients
    assert_equal(found, expected, BARS[torch.float64])


def test_a_head_with_a_bias(tiny_bases: dict[str, Path]) -> None:
    model = load(tiny_bases["gpt2"]).double()
    vocabulary, width = output_layer(model).weight.shape  # type: ignore[misc]
    head = torch.nn.Linear(width, vocabulary, bias=True, dtype=torch.float64)
    model.set_output_embeddings(head)
    batch = build_batch(model)
    found = ours(model, batch)
    assert_equal(found, plainly(model, batch), BARS[torch.float64])
    assert float(found.gradients["lm_head.bias"].abs().max()) > 0
    head.bias.requires_grad_(False)
    assert "lm_head.bias" not in ours(model, batch).gradients


def test_bf16_is_finite_and_near(model: PreTrainedModel) -> None:
    batch = build_batch(model)
    expected = ours(model, batch)
    with precision_context("bf16", "cpu"):
        value = language_loss(model, output_layer(model), batch)
    assert value.dtype == torch.float32
    found = measured(model, value)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=0.01)
    for name, gradient in expected.gradients.items():
        near = found.gradients[name]
        assert near.dtype == torch.float32
        assert torch.isfinite(near).all()
        assert functional.cosine_similarity(near.flatten(), gradient.flatten(), dim=0) > 0.98, name


def test_sure_and_wrong_is_a_finite_loss() -> None:
    """Logits so far apart that a probability is 0 in fp32."""
    states = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[300.0, 0.0], [-300.0, 0.0]], requires_grad=True)
    value: Tensor = loss._HeadLoss.apply(states, weight, None, torch.tensor([1]))  # type: ignore[no-untyped-call]
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 600
    assert weight.grad is not None
    np.testing.assert_allclose(weight.grad.numpy(), [[1, 0], [-1, 0]])


class Casts(TorchDispatchMode):
    """Counts how often a tensor of a shape is given another type."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += function is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        return function(*args, **(kwargs or {}))


def test_a_frozen_output_layer_is_cast_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "IN_CACHE", 10 * 50)
    states = torch.randn(100, 8, requires_grad=True)
    weight = torch.randn(50, 8)  # as LoRA leaves it: autocast remembers the casts of what learns alone
    with precision_context("bf16", "cpu"), Casts(weight.shape) as casts:
        loss._HeadLoss.apply(states, weight, None, torch.zeros(100, dtype=torch.long))  # type: ignore[no-untyped-call]
    assert casts.count == 1
