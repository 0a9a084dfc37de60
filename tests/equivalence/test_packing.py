"""Documents that share a block don't meet: packed gives what each gives alone, in value and in gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from gptailor.data.blocks import TokenStore, TokenWriter, collate_blocks, num_blocks, open_store
from gptailor.evaluate.language import piece_nats
from gptailor.models.forward import learned_states, target_nats
from gptailor.models.load import (
    load_tokenizer,
    load_trainable_language_model,
    output_layer,
    recompute_activations,
)
from gptailor.models.names import resolve_base
from gptailor.train.loop import accumulate
from gptailor.train.loss import language_loss
from gptailor.types import Batch

CONTEXT = 64  # of the tiny bases
BAR = 1e-5  # fp32
BEGIN, END = 0, 1
LENGTHS = (9, 1, 17, 4, 23)  # together with their ends they fill most of one block
Documents = list[list[int]]
each_ends = pytest.mark.parametrize("ends", [(BEGIN, BEGIN), (BEGIN, END)], ids=["shared", "apart"])


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest, tiny_bases: dict[str, Path]) -> PreTrainedModel:
    base = resolve_base(str(tiny_bases[request.param]))
    model = load_trainable_language_model(base, load_tokenizer(base))
    with torch.no_grad():  # attention that cares, so that what it must not see would show
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "emb" not in name and "wte" not in name and "wpe" not in name:
                weight.mul_(5)
    return model.eval()


def random_documents(seed: int, lengths: Sequence[int] = LENGTHS) -> Documents:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 250, length).tolist() for length in lengths]


def write(folder: Path, documents: Documents, ends: tuple[int, int]) -> TokenStore:
    writer = TokenWriter(folder, vocabulary=400, ends=ends)
    for number, ids in enumerate(documents):
        writer.add(ids, document=number, num_bytes=4 * len(ids), begins=True)
        writer.end(whole=True)
    writer.finish()
    return open_store(folder)


def batch_of(store: TokenStore, blocks: Sequence[int], length: int = CONTEXT) -> Batch:
    return collate_blocks(store, blocks, length=length, where="store")


def alone(ids: list[int], ends: tuple[int, int]) -> Batch:
    """One document by itself, made without a store and without positions that start again."""
    given = torch.tensor([[ends[0], *ids]])
    return Batch(
        input_ids=given,
        last=torch.tensor([len(ids)]),
        num_targets=len(ids) + 1,
        num_tokens=len(ids) + 1,
        rows=("alone",),
        targets=torch.tensor([*ids, ends[1]]),
        learned=torch.arange(len(ids) + 1),
        positions=None,
    )


def states_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return learned_states(model, batch)


def nats_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    assert batch.targets is not None
    with torch.inference_mode():
        return target_nats(learned_states(model, batch), output_layer(model), batch.targets)


def gradients(model: PreTrainedModel, batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = accumulate(
        batches,
        lambda b: (language_loss(model, output_layer(model), b), b.num_targets),
        weights=list(model.parameters()),
    )
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), found


def assert_same_step(
    found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=BAR)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        bar = BAR * max(float(gradient.abs().max()), 1e-2)
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=bar, msg=name)


def parts_of(values: Tensor, lengths: Sequence[int] = LENGTHS) -> tuple[Tensor, ...]:
    return values.split([length + 1 for length in lengths])


@each_ends
def test_packed_gives_what_each_gives_alone(
    model: PreTrainedModel, tmp_path: Path, ends: tuple[int, int]
) -> None:
    documents = random_documents(0)
    batch = batch_of(write(tmp_path, documents, ends), [0])
    states, nats = parts_of(states_of(model, batch)), parts_of(nats_of(model, batch))
    assert float(torch.cat(nats).std()) > 0.05
    for ids, packed, cost in zip(documents, states, nats, strict=True):
        one = alone(ids, ends)
        torch.testing.assert_close(packed, states_of(model, one), rtol=0, atol=BAR)
        torch.testing.assert_close(cost, nats_of(model, one), rtol=0, atol=BAR * 10)


def test_the_control_packing_without_positions_is_not_that(model: PreTrainedModel, tmp_path: Path) -> None:
    """What would be missed if positions didn't start again: documents that see each other."""
    documents = random_documents(0)
    batch = batch_of(write(tmp_path, documents, (BEGIN, END)), [0])
    mixed = parts_of(states_of(model, replace(batch, positions=None)))
    gaps = [
        float((packed - states_of(model, alone(ids, (BEGIN, END)))).abs().max())
        for ids, packed in zip(documents, mixed, strict=True)
    ]
    assert gaps[0] < BAR
    assert min(gaps[1:]) > 0.1


@each_ends
@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_a_document_moves_no_bit_of_another(
    model: PreTrainedModel, tmp_path: Path, ends: tuple[int, int], changed: int
) -> None:
    documents = random_documents(1)
    before = parts_of(states_of(model, batch_of(write(tmp_path / "before", documents, ends), [0])))
    documents[changed] = random_documents(2)[changed]
    after = parts_of(states_of(model, batch_of(write(tmp_path / "after", documents, ends), [0])))
    for number, (left, right) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(left, right) is (number != changed), number


@each_ends
def test_gradients_of_a_packed_block_are_those_of_its_documents(
    model: PreTrainedModel, tmp_path: Path, ends: tuple[int, int]
) -> None:
    documents = random_documents(3)
    packed = gradients(model, [batch_of(write(tmp_path, documents, ends), [0])])
    assert_same_step(packed, gradients(model, [alone(ids, ends) for ids in documents]))


def test_with_the_settings_of_training_too(model: PreTrainedModel, tmp_path: Path) -> None:
    """Training mode and recomputed activations go through other branches of transformers."""
    store = write(tmp_path, random_documents(4), (BEGIN, BEGIN))
    expected = gradients(model, [batch_of(store, [0])])
    own = copy.deepcopy(model).train()
    assert_same_step(gradients(own, [batch_of(store, [0])]), expected)
    recompute_activations(own)
    assert_same_step(gradients(own, [batch_of(store, [0])]), expected)


@each_ends
def test_one_batch_of_eight_blocks_is_eight_of_one(
    model: PreTrainedModel, tmp_path: Path, ends: tuple[int, int]
) -> None:
    rng = np.random.default_rng(5)
    store = write(tmp_path, random_documents(5, rng.integers(1, 80, 12).tolist()), ends)
    length = -(-(len(store.tokens) - 1) // 8)
    blocks = list(range(num_blocks(store, length)))
    assert len(blocks) == 8
    assert length <= CONTEXT + 8
    length = min(length, CONTEXT)
    together = gradients(model, [batch_of(store, blocks, length)])
    assert_same_step(gradients(model, [batch_of(store, [block], length) for block in blocks]), together)
    pairs = [batch_of(store, blocks[start : start + 2], length) for start in range(0, 8, 2)]
    assert_same_step(gradients(model, pairs), together)
    one = torch.cat([nats_of(model, batch_of(store, [block], length)) for block in blocks])
    torch.testing.assert_close(nats_of(model, batch_of(store, blocks, length)), one, rtol=0, atol=BAR * 10)


@each_ends
def test_bits_per_byte_do_not_depend_on_who_shares_a_block(
    model: PreTrainedModel, tmp_path: Path, ends: tuple[int, int]
) -> None:
    """Documents of sixteen tokens, ends included: blocks of 16, 32 or 64 cut none of them."""
    filling = 15 if ends == (BEGIN, BEGIN) else 14
    store = write(tmp_path, random_documents(6, [filling] * 13), ends)
    found = [
        piece_nats(model, output_layer(model), store, length=n, blocks=range(num_blocks(store, n)))
        for n in (16, 32, 64)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.nats, found[0].nats, rtol=BAR)
        assert other.tokens.tolist() == found[0].tokens.tolist() == [filling + 1] * 13
        assert other.bits_per_byte == pytest.approx(found[0].bits_per_byte, rel=BAR)
    cut = piece_nats(model, output_layer(model), store, length=24, blocks=range(num_blocks(store, 24)))
    assert abs(cut.bits_per_byte / found[0].bits_per_byte - 1) > 10 * BAR, "a border would show"
