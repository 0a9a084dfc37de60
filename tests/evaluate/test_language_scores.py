"""What a text costs, written out by hand on tiny stores."""

from __future__ import annotations

import itertools
import lzma
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from gptailor.data.blocks import TokenStore, TokenWriter, num_blocks, open_store
from gptailor.evaluate import language
from gptailor.evaluate.language import (
    PieceNats,
    at_constant_cost,
    bits_difference,
    compressed_bits_per_byte,
    piece_nats,
    saving_in_words,
    text_scores,
    unigram_nats,
)
from gptailor.evaluate.metrics import as_json
from gptailor.evaluate.resampling import FEWEST_GROUPS, FEWEST_UNITS, Resampling
from gptailor.models.load import load_saved_language_model, output_layer

BIT = math.log(2)  # nats
SETTINGS = {"resampling": Resampling(400, 0)}
# Document, ids and bytes of each piece; two pieces of document 0, one of document 1, one of document 2.
PIECES = [(0, [5, 6, 7], 11), (0, [8], 2), (1, [9, 10, 11, 12, 13], 20), (2, [14, 15], 7)]


def write(folder: Path, pieces: Sequence[tuple[int, list[int], int]], ends: tuple[int, int]) -> TokenStore:
    writer = TokenWriter(folder, vocabulary=400, ends=ends)
    for place, (document, ids, num_bytes) in enumerate(pieces):
        first = place == 0 or pieces[place - 1][0] != document
        if first and place:
            writer.end(whole=True)
        writer.add(ids, document=document, num_bytes=num_bytes, begins=first)
    writer.end(whole=True)
    writer.finish()
    return open_store(folder)


def every_block(store: TokenStore, length: int) -> range:
    return range(num_blocks(store, length))


def pieces_of(nats: Any, tokens: Any, size: Any, documents: Any) -> PieceNats:
    whole = [np.asarray(column, np.int64) for column in (tokens, size, documents)]
    return PieceNats(np.asarray(nats, np.float64), *whole)


def random_pieces(count: int, documents: int, seed: int = 0) -> PieceNats:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(50, 200, count)
    size = tokens * rng.integers(3, 6, count)
    return pieces_of(tokens * rng.normal(4, 0.5, count), tokens, size, np.arange(count) * documents // count)


@pytest.fixture(scope="module")
def model(tiny_bases: dict[str, Path]) -> PreTrainedModel:
    return load_saved_language_model(tiny_bases["gpt2"])


@pytest.mark.parametrize("ends", [(0, 0), (0, 1)], ids=["shared", "apart"])
def test_bits_per_byte_by_hand(model: PreTrainedModel, tmp_path: Path, ends: tuple[int, int]) -> None:
    """Each document read by itself with transformers; its end counts for its last piece."""
    store = write(tmp_path, PIECES, ends)
    costs: list[float] = []
    for document in range(3):
        parts = [ids for owner, ids, _ in PIECES if owner == document]
        text = [token for ids in parts for token in ids]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[ends[0], *text]])).logits[0].double()
        each = -logits.log_softmax(-1)[torch.arange(len(text) + 1), torch.tensor([*text, ends[1]])]
        bounds = np.cumsum([0, *map(len, parts)])
        bounds[-1] += 1
        costs += [float(each[low:high].sum()) for low, high in itertools.pairwise(bounds)]
    found = piece_nats(model, output_layer(model), store, length=64, blocks=[0])
    np.testing.assert_allclose(found.nats, costs, rtol=1e-5)
    assert found.tokens.tolist() == [3, 2, 6, 3]
    assert found.bytes.tolist() == [11, 2, 20, 7]
    assert found.documents.tolist() == [0, 0, 1, 2]
    assert found.bits_per_byte == pytest.approx(sum(costs) / BIT / 40, rel=1e-5)
    assert found.loss == pytest.approx(sum(costs) / 14, rel=1e-5)


def test_a_long_text_in_many_passes_is_as_in_one(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pieces = [(n // 3, rng.integers(2, 200, 30).tolist(), 100) for n in range(24)]
    store = write(tmp_path, pieces, (0, 0))
    settings: Any = {"length": 16, "blocks": every_block(store, 16)}
    expected = piece_nats(model, output_layer(model), store, **settings)
    monkeypatch.setattr(language, "TOKENS_PER_PASS", 40)
    found = piece_nats(model, output_layer(model), store, **settings)
    np.testing.assert_allclose(found.nats, expected.nats, rtol=1e-5)
    assert found.tokens.sum() == store.num_targets == 24 * 30 + 8
    assert found.bytes.sum() == 2400


def test_a_piece_seen_in_part_counts_that_part_of_its_bytes(model: PreTrainedModel, tmp_path: Path) -> None:
    """Of blocks of five tokens the second holds five of the third piece's six targets."""
    store = write(tmp_path, PIECES, (0, 0))
    assert store.tokens.tolist() == [0, 5, 6, 7, 8, 0, 9, 10, 11, 12, 13, 0, 14, 15, 0]
    found = piece_nats(model, output_layer(model), store, length=5, blocks=[1])
    assert found.tokens.tolist() == [5], "its end, at place 11, lies in the next block"
    assert found.bytes.tolist() == [round(20 * 5 / 6)]
    assert found.documents.tolist() == [1]
    both = piece_nats(model, output_layer(model), store, length=5, blocks=[0, 1])
    assert both.tokens.tolist() == [3, 2, 5]
    assert both.bytes.tolist() == [11, 2, 17]


@pytest.mark.parametrize("ends", [(0, 0), (0, 1)], ids=["shared", "apart"])
def test_token_frequencies_by_hand(tmp_path: Path, ends: tuple[int, int]) -> None:
    """Each token of the training store counts once more than it stands there."""
    train = write(tmp_path / "train", [(0, [5, 5, 6], 5), (1, [7], 1)], ends)
    store = write(tmp_path / "test", [(0, [5, 6], 4), (0, [9], 3)], ends)
    counts = dict.fromkeys(range(20), 1)
    for token in train.tokens.tolist():
        counts[token] += 1
    total = sum(counts.values())
    assert counts[5] == 3
    assert counts[9] == 1

    def cost(*tokens: int) -> float:
        return -sum(math.log(counts[token] / total) for token in tokens)

    for length in (2, 50):
        found = unigram_nats(train, store, vocabulary=20, length=length)
        np.testing.assert_allclose(found.nats, [cost(5, 6), cost(9, ends[1])])
        assert found.tokens.tolist() == [2, 2]
        assert found.bytes.tolist() == [4, 3]


def test_scores_by_hand() -> None:
    pieces = pieces_of([10, 20, 33] * 2, [4, 5, 12] * 2, [8, 16, 30] * 2, range(6))
    scores = text_scores(pieces, **SETTINGS)
    assert scores["loss"].value == pytest.approx(63 / 21)
    assert scores["perplexity"].value == pytest.approx(math.exp(3))
    assert scores["bits_per_byte"].value == pytest.approx(63 / 54 / BIT)
    ratios = [10 / 4, 20 / 5, 33 / 12]
    assert min(ratios) - 1e-9 <= scores["loss"].low < 3 < scores["loss"].high <= max(ratios) + 1e-9


def test_of_five_pieces_nobody_knows_how_the_next_would_differ() -> None:
    """A bootstrap of one has no width at all, and of two it is far too narrow."""
    few, enough = (random_pieces(count, count) for count in (FEWEST_UNITS - 1, FEWEST_UNITS))
    for score in text_scores(few, **SETTINGS).values():
        assert as_json(score) == {"value": round(score.value, 6), "low": None, "high": None}
    for score in text_scores(enough, **SETTINGS).values():
        assert score.low < score.value < score.high
    gap = bits_difference(few, at_constant_cost(few, 9.0), **SETTINGS)
    assert gap.value < 0
    assert saving_in_words(gap, few, name="nothing").count("interval") == 0


@pytest.mark.parametrize("documents", [1, 5, FEWEST_GROUPS, 60])
def test_an_interval_holds_its_value_and_narrows_with_more_text(documents: int) -> None:
    widths = []
    for count in (60, 6000):
        for seed in range(5):
            found = text_scores(random_pieces(count, documents, seed), **SETTINGS)
            for score in found.values():
                assert score.low < score.value < score.high
            assert math.log(found["perplexity"].low) == pytest.approx(found["loss"].low)
        widths.append(found["bits_per_byte"].high - found["bits_per_byte"].low)
    assert widths[1] < widths[0] / (2 if documents >= FEWEST_GROUPS else 5)


def test_the_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    """Texts of forty pieces from a source whose mean is known; 200 of them."""
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        pieces = pieces_of(100 * rng.normal(4, 1, 40), [100] * 40, [300] * 40, range(40))
        score = text_scores(pieces, resampling=Resampling(200, seed))["loss"]
        inside += score.low <= 4 <= score.high
    assert 176 <= inside <= 199


def test_with_many_documents_they_are_drawn_and_not_their_pieces() -> None:
    """All documents cost the same, whatever their pieces cost: then nothing is left to chance."""
    nats, size = [1, 9] * FEWEST_GROUPS, [10] * (2 * FEWEST_GROUPS)
    owners = np.repeat(np.arange(FEWEST_GROUPS), 2)
    many = text_scores(pieces_of(nats, size, size, owners), **SETTINGS)["loss"]
    assert many.low == many.high == many.value
    owners[-2:] = 0  # one document fewer: pieces are drawn
    few = text_scores(pieces_of(nats, size, size, owners), **SETTINGS)["loss"]
    assert few.high - few.low > 0.1


@pytest.mark.parametrize("documents", [3, 50])
def test_the_difference_is_paired(documents: int) -> None:
    """What makes a piece dear for both is no doubt about which is better."""
    ours = random_pieces(200, documents)
    theirs = PieceNats(ours.nats + 0.1 * BIT * ours.bytes, ours.tokens, ours.bytes, ours.documents)
    gap = bits_difference(ours, theirs, **SETTINGS)
    assert gap.value == pytest.approx(-0.1)
    assert gap.high - gap.low < 1e-9
    alone = text_scores(ours, **SETTINGS)["bits_per_byte"]
    assert alone.high - alone.low > 0.01
    back = bits_difference(theirs, ours, **SETTINGS)
    assert back.value == pytest.approx(0.1)


def test_a_difference_by_hand_and_one_that_is_none() -> None:
    ours = pieces_of([10, 20, 30] * 2, [5] * 6, [10, 10, 20] * 2, range(6))
    theirs = pieces_of([13, 19, 31] * 2, [6] * 6, [10, 10, 20] * 2, range(6))
    gap = bits_difference(ours, theirs, **SETTINGS)
    assert gap.value == pytest.approx(-3 / 40 / BIT)
    assert gap.low < gap.value < 0 < gap.high
    same = bits_difference(ours, ours, **SETTINGS)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_seed_draws_the_resamples() -> None:
    pieces = random_pieces(40, 40)
    one, again, other = (text_scores(pieces, resampling=Resampling(200, seed)) for seed in (0, 0, 1))
    assert one == again
    assert one["loss"].low != other["loss"].low
    assert one["loss"].value == other["loss"].value


def test_the_compressor_by_hand() -> None:
    """No model, no tokenizer: two texts, and what xz needs for the second once it has read the first."""
    rng = random.Random(0)
    letters = "".join(rng.choices("abcdefghijklmnop", k=20_000))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]

    def size(text: str) -> int:
        return len(lzma.compress(text.encode(), format=lzma.FORMAT_RAW, filters=filters))

    train, text = letters[:12_000], letters[12_000:]
    found = compressed_bits_per_byte(train, text)
    assert found == pytest.approx(8 * (size(train + text) - size(train)) / len(text))
    assert 4 < found < 4.6, "sixteen letters at random hold four bits each"
    assert compressed_bits_per_byte(train, train[1000:9000]) < 0.1, "what was read before is almost free"
    accents = compressed_bits_per_byte("", "äöü" * 4000)
    assert accents == pytest.approx(8 * size("äöü" * 4000) / 24_000, abs=0.01), "by byte, not by letter"


def test_the_compressor_reads_only_the_end_of_a_long_training_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "COMPRESSED_CONTEXT", 100)
    rng = random.Random(1)
    text, filling = ("".join(rng.choices("abcdefghijklmnop", k=5000)) for _ in range(2))
    far, near = compressed_bits_per_byte(text + filling, text), compressed_bits_per_byte(text, text)
    assert far > 4
    assert near > 3.9, "a hundred letters help little"
    assert far == pytest.approx(near, abs=0.2)


def test_a_price_for_each_byte() -> None:
    pieces = random_pieces(30, 30)
    priced = at_constant_cost(pieces, 1.7)
    assert priced.bits_per_byte == pytest.approx(1.7)
    assert priced.tokens is pieces.tokens
    gap = bits_difference(pieces, priced, **SETTINGS)
    assert gap.value == pytest.approx(pieces.bits_per_byte - 1.7)
