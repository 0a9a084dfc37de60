"""Training some rows of an embedding is training all of it, where the others have no gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gptailor.models.load import load_classifier, load_tokenizer, load_trainable_language_model
from gptailor.models.names import resolve_base
from gptailor.models.rows import UsedRows, used_rows_only
from gptailor.train.optimize import build_optimizer

USED = np.array([0, 3, 5, 8, 13])
IDS = torch.tensor([[3, 5, 5, 8], [13, 3, 8, 0]])


def classifier(base: Path) -> Any:
    found = resolve_base(str(base))
    return load_classifier(found, load_tokenizer(found), label_names=("a", "b"), seed=0).train()


def train(model: Any, steps: int = 3) -> None:
    optimizer = build_optimizer(model, learning_rate=0.01, head_learning_rate=0.01, weight_decay=0.0)
    for _ in range(steps):
        model.base_model(input_ids=IDS).last_hidden_state.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_whole_embedding_would_have_learned_the_same(tiny_bases: dict[str, Path], family: str) -> None:
    whole, some = classifier(tiny_bases[family]), classifier(tiny_bases[family])
    train(whole)
    names = [name for name, _ in some.named_parameters()]
    with used_rows_only(some, USED):
        assert isinstance(some.get_input_embeddings(), UsedRows)
        assert [name for name, _ in some.named_parameters()] == names
        assert len(some.get_input_embeddings().weight) == len(USED)
        train(some)
    for (name, one), other in zip(some.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7, msg=name)


def test_tokens_that_nobody_trained_are_read_where_they_were(tiny_bases: dict[str, Path]) -> None:
    model = classifier(tiny_bases["gpt2"]).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = model(input_ids=ids).logits
    with used_rows_only(model, USED):
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_rows_go_back_when_training_is_interrupted(tiny_bases: dict[str, Path]) -> None:
    model = classifier(tiny_bases["gpt2"])
    before = model.get_input_embeddings().weight.detach().clone()

    def interrupted() -> None:
        with used_rows_only(model, USED):
            train(model, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = model.get_input_embeddings().weight
    changed = (after != before).any(1).nonzero().flatten().tolist()
    assert changed == USED.tolist()


def test_nothing_changes_where_nothing_is_gained(tiny_bases: dict[str, Path]) -> None:
    model = classifier(tiny_bases["gpt2"])
    embedding = model.get_input_embeddings()
    vocabulary = np.arange(embedding.num_embeddings)
    for used in (None, vocabulary):
        with used_rows_only(model, used):
            assert model.get_input_embeddings() is embedding
    embedding.weight.requires_grad_(False)
    with used_rows_only(model, USED):
        assert model.get_input_embeddings() is embedding


def test_an_embedding_that_is_the_output_layer_too_stays_whole(tiny_bases: dict[str, Path]) -> None:
    found = resolve_base(str(tiny_bases["gpt2"]))
    model: Any = load_trainable_language_model(found, load_tokenizer(found))
    embedding = model.get_input_embeddings()
    with used_rows_only(model, USED):
        assert model.get_input_embeddings() is embedding


class Scaled(nn.Embedding):
    """Twice what stands in the table, as Gemma's embedding scales."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_an_embedding_that_does_more_than_look_up_stays_whole(tiny_bases: dict[str, Path]) -> None:
    model = classifier(tiny_bases["gpt2"])
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda *_: None)
    with used_rows_only(model, USED):
        assert model.get_input_embeddings() is embedding
    hook.remove()
    scaled = Scaled(embedding.num_embeddings, embedding.embedding_dim)
    model.set_input_embeddings(scaled)
    with used_rows_only(model, USED):
        assert model.get_input_embeddings() is scaled
