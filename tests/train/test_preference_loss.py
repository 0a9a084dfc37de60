"""Whole answers compared: their log-likelihoods with gradients, and the losses made of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny
from gptailor.data.batch import collate_texts
from gptailor.launch import precision_context
from gptailor.models.lean import lean_training
from gptailor.models.load import load_tokenizer, load_trainable_language_model, output_layer
from gptailor.models.names import resolve_base
from gptailor.train import loss
from gptailor.train.loss import answer_log_likelihoods, preference_loss
from gptailor.types import TokenizedExample


def example(ids: list[int], learned: int) -> TokenizedExample:
    """Token ids of which the last `learned` are an answer."""
    learn = np.arange(len(ids)) >= len(ids) - learned
    return TokenizedExample(np.array(ids, np.int32), learn, "file", 1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_likelihoods_of_answers_and_their_gradients_are_the_plain_ones(
    family: str, tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "HEAD_ROWS", 3)
    base = resolve_base(str(tiny_bases[family]))
    model: Any = load_trainable_language_model(base, load_tokenizer(base)).double().eval()
    rows = [example([5, 9, 12, 7, 20, 3], 3), example([8, 4, 30], 1), example([6, 6, 11, 2, 17], 4)]
    batch = collate_texts([[row] for row in rows])
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    ours = answer_log_likelihoods(model, output_layer(model), batch)
    (ours * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    theirs = []
    for row in rows:
        ids = torch.from_numpy(row.token_ids.astype(np.int64))
        table = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        chosen = table.gather(1, ids[1:, None])[:, 0]
        theirs.append(chosen[torch.from_numpy(row.learn[1:])].sum())
    (torch.stack(theirs) * weights).sum().backward()

    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-10, atol=1e-10)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "margin", "expected"),
    [
        ("dpo", 0.0, -math.log(1 / (1 + math.exp(-0.2 * 3))) - math.log(1 / (1 + math.exp(0.2 * 1)))),
        ("simpo", 0.5, math.log1p(math.exp(-(0.2 * 3 - 0.5))) + math.log1p(math.exp(0.2 * 1 + 0.5))),
        ("ipo", 0.0, (3 - 2.5) ** 2 + (-1 - 2.5) ** 2),
    ],
)
def test_losses_by_hand(kind: Literal["dpo", "ipo", "simpo"], margin: float, expected: float) -> None:
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 1.0])
    total = preference_loss(chosen, rejected, kind=kind, beta=0.2, margin=margin)
    assert total.item() == pytest.approx(expected, rel=1e-6)


def test_an_answer_far_ahead_or_behind_stays_finite() -> None:
    far = torch.tensor([1e4, -1e4])
    total = preference_loss(far, -far, kind="dpo", beta=1.0)
    assert torch.isfinite(total)
    assert total.item() == pytest.approx(2e4)


def test_a_head_that_may_not_change_gets_no_gradient(tiny_bases: dict[str, Path]) -> None:
    base = resolve_base(str(tiny_bases["llama"]))
    model: Any = load_trainable_language_model(base, load_tokenizer(base)).eval()
    head = output_layer(model)
    head.weight.requires_grad_(False)
    batch = collate_texts([[example([5, 9, 12, 7], 2)]])
    answer_log_likelihoods(model, head, batch).sum().backward()
    assert head.weight.grad is None
    assert any(
        p.grad is not None and functional.normalize(p.grad.flatten(), dim=0).any() for p in model.parameters()
    )


def test_bf16_as_in_training_is_near_fp32(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is made outside the forward pass' precision, from the copies that training keeps."""
    monkeypatch.setattr(loss, "HEAD_ROWS", 3)
    base = resolve_base(str(tiny_bases["gpt2"]))
    model: Any = load_trainable_language_model(base, load_tokenizer(base)).eval()
    rows = [example([5, 9, 12, 7, 20, 3], 3), example([6, 6, 11, 2, 17], 4)]
    batch = collate_texts([[row] for row in rows])
    found = {}
    for precision in ("fp32", "bf16"):
        model.zero_grad()
        with lean_training(model, precision=precision):  # type: ignore[arg-type]
            with precision_context(precision, "cpu"):  # type: ignore[arg-type]
                likelihoods = answer_log_likelihoods(model, output_layer(model), batch)
            leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
            (likelihoods * torch.tensor([1.0, -1.0])).sum().backward()
        found[precision] = (likelihoods.detach(), leaves["transformer.ln_f.weight"].grad)
    for ours, theirs in zip(found["bf16"], found["fp32"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
