"""A batch gives what its rows give one by one, and what lies in the padding can't matter.

Training batches agree within the bar; the fixed shapes in which predictions are computed agree bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from gptailor.data.batch import collate
from gptailor.models.forward import compute_features, compute_logits, head_logits, hidden_at_end
from gptailor.models.load import build_scratch, head_name, load_classifier, load_tokenizer
from gptailor.models.names import resolve_base
from gptailor.train.loss import classification_logits
from gptailor.types import TokenizedExample

LABELS = ("business", "health", "sports", "world", "film")
CONTEXT = 64  # of the tiny bases
BAR = 1e-5  # fp32 logits, batch against one by one
LENGTHS = (3, 41, 8, 64, 17, 1, 30, 9)


@dataclass(frozen=True)
class Classifier:
    model: PreTrainedModel
    head: torch.nn.Module
    pad_id: int

    def logits(self, rows: list[TokenizedExample], *, pad_to: int | None = None) -> Tensor:
        with torch.inference_mode():
            batch = collate(rows, pad_id=self.pad_id, pad_to=pad_to)
            return classification_logits(self.model, self.head, batch)

    def all_logits(self, sequences: list[list[int]]) -> Any:
        return compute_logits(self.model, self.head, sequences, max_tokens=CONTEXT, pad_id=self.pad_id)

    def in_shape(self, sequences: list[list[int]], shape: tuple[int, int]) -> Tensor:
        hidden = hidden_at_end(self.model, sequences, shape, pad_id=self.pad_id)
        return head_logits(self.head, hidden)


def wrap(model: PreTrainedModel) -> Classifier:
    head = getattr(model, head_name(model))
    with torch.no_grad():  # logits of the size that trained models have, so that the bar means something
        head.weight.mul_(20)
    pad_id: Any = model.config.pad_token_id
    return Classifier(model.eval(), head, int(pad_id))


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def classifier(request: pytest.FixtureRequest, tiny_bases: dict[str, Path]) -> Classifier:
    base = resolve_base(str(tiny_bases[request.param]))
    return wrap(load_classifier(base, load_tokenizer(base), label_names=LABELS, seed=3))


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def wider(request: pytest.FixtureRequest, tiny_bases: dict[str, Path]) -> Classifier:
    """Wide enough that the matrix products go through their usual kernels."""
    base = resolve_base(str(tiny_bases[request.param]))
    return wrap(build_scratch(base, load_tokenizer(base), label_names=LABELS, seed=3, width=64))


def random_sequences(rng: np.random.Generator, lengths: Any) -> list[list[int]]:
    return [rng.integers(1, 250, length).tolist() for length in lengths]


def rows_of(sequences: list[list[int]]) -> list[TokenizedExample]:
    return [
        TokenizedExample(np.array(ids, np.int32), np.zeros(len(ids), np.bool_), "rows.csv", row, label=0)
        for row, ids in enumerate(sequences, 1)
    ]


def test_batch_gives_what_its_rows_give_one_by_one(classifier: Classifier) -> None:
    rows = rows_of(random_sequences(np.random.default_rng(0), LENGTHS))
    together = classifier.logits(rows)
    alone = torch.cat([classifier.logits([row]) for row in rows])
    assert together.dtype == torch.float32
    assert alone.std() > 0.1
    torch.testing.assert_close(together, alone, rtol=0, atol=BAR)


def test_batch_without_a_mask_gives_what_transformers_gives_with_one(classifier: Classifier) -> None:
    rows = rows_of(random_sequences(np.random.default_rng(1), LENGTHS))
    batch = collate(rows, pad_id=classifier.pad_id)
    mask = torch.arange(batch.input_ids.shape[1])[None] <= batch.last[:, None]
    with torch.inference_mode():
        theirs = classifier.model(input_ids=batch.input_ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(classifier.logits(rows), theirs, rtol=0, atol=BAR)


def test_more_padding_changes_nothing(classifier: Classifier) -> None:
    rows = rows_of(random_sequences(np.random.default_rng(2), (3, 9, 17)))
    torch.testing.assert_close(
        classifier.logits(rows), classifier.logits(rows, pad_to=CONTEXT), rtol=0, atol=BAR
    )


def test_what_lies_in_the_padding_changes_no_bit(classifier: Classifier) -> None:
    rng = np.random.default_rng(3)
    rows = rows_of(random_sequences(rng, LENGTHS))
    batch = collate(rows, pad_id=classifier.pad_id)
    padding = torch.arange(batch.input_ids.shape[1])[None] > batch.last[:, None]
    assert padding.sum() > 100
    expected = classifier.logits(rows)
    for _ in range(10):
        noise = torch.from_numpy(rng.integers(0, 250, batch.input_ids.shape))
        noisy = replace(batch, input_ids=torch.where(padding, noise, batch.input_ids))
        with torch.inference_mode():
            assert torch.equal(classification_logits(classifier.model, classifier.head, noisy), expected)


def test_tokens_of_one_row_change_no_bit_of_another(classifier: Classifier) -> None:
    rng = np.random.default_rng(4)
    sequences = random_sequences(rng, LENGTHS)
    expected = classifier.logits(rows_of(sequences))
    for row in range(len(sequences)):
        changed = list(sequences)
        changed[row] = random_sequences(rng, [LENGTHS[row]])[0]
        others = [place for place in range(len(sequences)) if place != row]
        assert torch.equal(classifier.logits(rows_of(changed))[others], expected[others])


@pytest.mark.parametrize("shape", [(64, 8), (21, 24), (8, 64), (5, 40)], ids=str)
def test_text_has_the_same_bits_in_every_slot_of_its_shape(wider: Classifier, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    slots, length = shape
    (text,) = random_sequences(rng, [length - 3])
    (expected,) = wider.in_shape([text], shape)
    seen = np.zeros(slots, np.int64)
    for trial in range(25):
        count = int(rng.integers(1, slots + 1)) if trial % 2 else slots
        mine = rng.random(count) < 0.5
        neighbors = random_sequences(rng, rng.integers(1, length + 1, count))
        logits = wider.in_shape(
            [text if here else other for here, other in zip(mine, neighbors, strict=True)], shape
        )
        assert all(torch.equal(logits[slot], expected) for slot in np.flatnonzero(mine))
        seen[:count] += mine
    assert (seen > 0).all()


def test_text_has_the_same_bits_alone_and_among_a_hundred(wider: Classifier) -> None:
    rng = np.random.default_rng(6)
    sequences = random_sequences(rng, rng.integers(1, CONTEXT + 1, 100))
    together = wider.all_logits(sequences)
    shuffled = rng.permutation(100)
    assert (wider.all_logits([sequences[place] for place in shuffled]) == together[shuffled]).all()
    for place in range(0, 100, 4):
        assert (wider.all_logits([sequences[place]])[0] == together[place]).all()


def test_fixed_shapes_give_what_training_batches_give(classifier: Classifier) -> None:
    sequences = random_sequences(np.random.default_rng(7), LENGTHS)
    trained = classifier.logits(rows_of(sequences)).numpy()
    np.testing.assert_allclose(classifier.all_logits(sequences), trained, rtol=0, atol=BAR)


def test_features_of_many_are_the_features_of_each(classifier: Classifier) -> None:
    sequences = random_sequences(np.random.default_rng(8), LENGTHS)
    together = compute_features(classifier.model, sequences, pad_id=classifier.pad_id)
    alone = [compute_features(classifier.model, [s], pad_id=classifier.pad_id)[0] for s in sequences]
    np.testing.assert_allclose(together, np.array(alone), rtol=0, atol=BAR)
    head = classifier.head.weight.detach().numpy()
    np.testing.assert_allclose(together @ head.T, classifier.all_logits(sequences), rtol=0, atol=BAR)


def test_the_head_gives_a_row_the_same_bits_in_every_place() -> None:
    """With two threads and many labels a product of several rows doesn't."""
    torch.manual_seed(0)
    head = torch.nn.Linear(48, 77, bias=False)
    row = torch.randn(48)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        logits = head_logits(head, torch.stack([row] * 10))
    finally:
        torch.set_num_threads(threads)
    assert (logits == logits[0]).all()
