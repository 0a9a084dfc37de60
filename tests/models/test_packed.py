"""Texts laid end to end give what transformers gives, and every text the same bits wherever it lies."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2ForSequenceClassification

from gptailor.launch import Precision
from gptailor.models import packed
from gptailor.models.approach import adapt_lora
from gptailor.models.cores import on_cores
from gptailor.models.forward import compute_features
from gptailor.models.packed import ROWS_PER_PASS, PackedGPT2, packed_gpt2, share_passes
from gptailor.models.rows import used_rows_only

CONTEXT = 1200  # texts can be longer than a pass


def build(**settings: Any) -> Any:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=300, n_positions=CONTEXT, n_embd=64, n_layer=3, n_head=2, num_labels=5, **settings
    )
    model: Any = GPT2ForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # biases, too, so that each of them counts
            weight.normal_(0, 0.2 if name.endswith("bias") else 0.1)
        model.score.weight.normal_()
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return build()


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def reader(request: pytest.FixtureRequest, model: Any) -> PackedGPT2:
    found = packed_gpt2(model, model.score, precision=request.param)
    assert found is not None
    return found


def random_sequences(seed: int, lengths: Any) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 300, length).tolist() for length in lengths]


def their_features(model: Any, sequences: list[list[int]]) -> Any:
    with torch.inference_mode():
        last = [model.transformer(torch.tensor([ids])).last_hidden_state[0, -1] for ids in sequences]
        return torch.stack(last)


def theirs(model: Any, sequences: list[list[int]]) -> Any:
    with torch.inference_mode():
        return model.score(their_features(model, sequences)).numpy()


def test_logits_are_those_of_transformers(model: Any) -> None:
    reader = packed_gpt2(model, model.score)
    assert reader is not None
    sequences = random_sequences(0, (1, 2, 15, 16, 17, 61, 200, 1100))
    expected = theirs(model, sequences)
    assert expected.std() > 1
    np.testing.assert_allclose(reader.logits(sequences), expected, rtol=0, atol=2e-4)


def test_bf16_is_near(model: Any) -> None:
    reader = packed_gpt2(model, model.score, precision="bf16")
    assert reader is not None
    sequences = random_sequences(0, (1, 16, 61, 200, 1100))
    expected = theirs(model, sequences)
    difference = np.abs(reader.logits(sequences) - expected).max()
    assert 1e-3 < difference < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(("precision", "bar"), [("fp32", 1e-4), ("bf16", 0.15)])
def test_features_are_those_of_transformers_without_a_head(
    model: Any, precision: Precision, bar: float
) -> None:
    sequences = random_sequences(0, (1, 2, 15, 16, 17, 61, 200, 1100))
    expected = their_features(model, sequences).numpy()
    assert expected.std() > 0.1
    found = compute_features(model, sequences, pad_id=0, precision=precision)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bar * np.abs(expected).max())
    if precision == "bf16":
        assert np.abs(found - expected).max() > 1e-3 * np.abs(expected).max()


def test_every_text_has_the_same_bits_alone_and_in_any_company(reader: PackedGPT2) -> None:
    draw = np.random.default_rng(2)
    sequences = random_sequences(3, [*draw.integers(1, 90, 40), 400, 1100])
    together = reader.logits(sequences)
    order = draw.permutation(len(sequences))
    assert (reader.logits([sequences[place] for place in order]) == together[order]).all()
    for place in (0, 7, 19, 40, 41):
        assert (reader.logits([sequences[place]])[0] == together[place]).all()
        assert (reader.logits([sequences[place]] * 9) == together[place]).all()


def test_bits_do_not_depend_on_the_number_of_threads(reader: PackedGPT2) -> None:
    sequences = random_sequences(4, range(1, 60, 3))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(reader.logits(sequences))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


def test_each_piece_is_computed_on_one_core() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = threading.Barrier(2)

        def look(piece: int) -> tuple[int, int]:
            together.wait(30)  # both at once, or this never ends
            return piece, torch.get_num_threads()

        assert on_cores(look, [5, 6]) == [(5, 1), (6, 1)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_copy_answers_the_same(reader: PackedGPT2) -> None:
    sequences = random_sequences(5, (3, 30))
    expected = reader.logits(sequences)
    for twin in (copy.deepcopy(reader), pickle.loads(pickle.dumps(reader))):
        assert (twin.logits(sequences) == expected).all()


def test_a_size_with_other_bits_is_not_used(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = packed.PackedLinear.__call__

    def shaky(self: Any, x: Any, residual: Any = None) -> Any:
        found = honest(self, x, residual)
        if len(x) == 64:
            found = found.clone()
            found[-1] += 1e-6
        return found

    monkeypatch.setattr(packed.PackedLinear, "__call__", shaky)
    reader = packed_gpt2(model, model.score)
    assert reader is not None
    assert 64 not in reader.sizes
    assert {32, 96} <= set(reader.sizes)
    monkeypatch.setattr(packed, "SIZES", (32, 64))
    monkeypatch.setattr(packed, "ROWS_PER_PASS", 64)
    assert packed_gpt2(model, model.score) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_function": "relu"},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
    ids=str,
)
def test_another_gpt2_is_left_to_transformers(settings: dict[str, Any]) -> None:
    other = build(**settings)
    assert packed_gpt2(other, other.score) is None


@pytest.mark.parametrize("targets", [["c_proj"], ["c_attn", "c_fc", "c_proj"]])
def test_adapters_are_merged(targets: list[str]) -> None:
    other = build()
    sequences = random_sequences(0, (1, 2, 61, 200))
    before = theirs(other, sequences)
    adapted = adapt_lora(other, rank=2, alpha=4, dropout=0.1, targets=targets, seed=0)
    with torch.no_grad():
        for name, weight in adapted.trained.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.4)
    adapted.trained.eval()
    reader = packed_gpt2(other, other.score, exact=False)
    assert reader is not None
    expected = theirs(other, sequences)
    assert np.abs(expected - before).max() > 1
    np.testing.assert_allclose(reader.logits(sequences), expected, rtol=0, atol=5e-4)


def test_in_training_it_reads_the_rows_that_moved_and_those_that_stayed() -> None:
    model, whole = build(), build()
    moved = np.arange(0, 300, 3)
    with used_rows_only(model, moved), torch.no_grad():
        model.transformer.wte.weight.add_(0.1)
        whole.transformer.wte.weight[moved] += 0.1
        reader = packed_gpt2(model, model.score, exact=False)
        assert reader is not None
        sequences = random_sequences(0, (1, 40))  # of both
        np.testing.assert_allclose(reader.logits(sequences), theirs(whole, sequences), rtol=0, atol=2e-4)


def test_another_architecture_is_left_to_transformers(tiny_bases: dict[str, Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    llama = AutoModelForSequenceClassification.from_pretrained(tiny_bases["llama"])
    assert packed_gpt2(llama, llama.score) is None


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 50))
def test_texts_share_passes_and_none_is_lost(lengths: list[int], most: int) -> None:
    passes = share_passes(lengths, most=most)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    for rows in passes:
        assert len(rows) == 1 or sum(lengths[row] for row in rows) <= most


def test_passes_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(10, 100, 500).tolist()
    passes = share_passes(lengths, most=ROWS_PER_PASS)
    assert len(passes) <= -(-sum(lengths) // ROWS_PER_PASS) + 1
