"""How well a model predicts text: nats by piece, and the scores made of them.

Bits per byte is what a text costs, whatever the tokenizer: two models with different vocabularies can be
compared by it. Perplexity is per token, and comparable only where the tokens are the same.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gptailor.data.batch import to_device
from gptailor.data.blocks import TokenStore, collate_blocks, num_blocks, target_pieces, targets_by_piece
from gptailor.errors import number_of
from gptailor.evaluate.metrics import interval, interval_in_words
from gptailor.evaluate.resampling import FEWEST_GROUPS, Resampling
from gptailor.models.forward import learned_states, target_nats
from gptailor.types import FloatArray, IntArray, Score

TOKENS_PER_PASS = 4096
NOTICED = 0.005  # of the bits that a baseline needs: nobody notices it when less is saved
COMPRESSED_CONTEXT = 4_000_000  # characters of training text the compressor has read


@dataclass(frozen=True, slots=True)
class PieceNats:
    """What each piece of a text costs a model. Shapes: all (P,)."""

    nats: FloatArray
    tokens: IntArray  # targets, the ends of documents among them
    bytes: IntArray
    documents: IntArray  # what the intervals are over, where they are enough

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / max(1, self.tokens.sum()))

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / max(1, self.bytes.sum()) / math.log(2))


def piece_nats(
    model: PreTrainedModel, head: torch.nn.Module, store: TokenStore, *, length: int, blocks: Sequence[int]
) -> PieceNats:
    """What the pieces in the chosen blocks cost, each token seeing at most its block.

    Bytes count as far as the tokens of a piece lie in the chosen blocks.
    """
    size = len(store.piece_starts)
    nats, tokens = np.zeros(size), np.zeros(size, np.int64)
    rows = max(1, TOKENS_PER_PASS // length)
    with torch.inference_mode():
        for start in range(0, len(blocks), rows):
            chosen = list(blocks[start : start + rows])
            batch = collate_blocks(store, chosen, length=length, where="evaluation")
            moved = to_device(batch, model.device)
            assert moved.targets is not None
            found = target_nats(learned_states(model, moved), head, moved.targets)
            pieces = target_pieces(store, chosen, length=length)
            nats += np.bincount(pieces, found.double().cpu().numpy(), minlength=size)
            tokens += np.bincount(pieces, minlength=size)
    return _seen(store, nats, tokens)


def unigram_nats(train: TokenStore, store: TokenStore, *, vocabulary: int, length: int) -> PieceNats:
    """What the pieces cost one who knows only how often each token stands in the training text."""
    counts = np.ones(vocabulary)
    for start in range(0, len(train.tokens), 2**22):
        counts += np.bincount(np.asarray(train.tokens[start : start + 2**22]), minlength=vocabulary)
    cost = -np.log(counts / counts.sum())
    size = len(store.piece_starts)
    nats, tokens = np.zeros(size), np.zeros(size, np.int64)
    for block in range(num_blocks(store, length)):
        batch = collate_blocks(store, [block], length=length, where="evaluation")
        assert batch.targets is not None
        pieces = target_pieces(store, [block], length=length)
        nats += np.bincount(pieces, cost[batch.targets.numpy()], minlength=size)
        tokens += np.bincount(pieces, minlength=size)
    return _seen(store, nats, tokens)


def compressed_bits_per_byte(train_text: str, text: str) -> float:
    """What xz needs for a text after it has read the end of the training text."""
    before = train_text[-COMPRESSED_CONTEXT:].encode(errors="replace")
    data = text.encode(errors="replace")
    settings: Any = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "preset": 6}]}
    alone, both = (len(lzma.compress(part, **settings)) for part in (before, before + data))
    return 8 * (both - alone) / max(1, len(data))


def text_scores(pieces: PieceNats, *, resampling: Resampling) -> dict[str, Score]:
    """Bits per byte, perplexity and loss with bootstrap intervals over documents (few: over pieces)."""
    rows = np.stack([pieces.nats, pieces.tokens, pieces.bytes], axis=1).astype(np.float64)
    nats, tokens, size = _by_document(resampling, pieces).sums(rows).T
    loss = (nats / np.maximum(1, tokens))[1:]
    bits = (nats / np.maximum(1, size) / math.log(2))[1:]
    return {
        "bits_per_byte": interval(pieces.bits_per_byte, bits),
        "perplexity": interval(math.exp(pieces.loss), np.exp(loss)),
        "loss": interval(pieces.loss, loss),
    }


def bits_difference(ours: PieceNats, theirs: PieceNats, *, resampling: Resampling) -> Score:
    """Our bits per byte minus theirs on the same pieces, with the interval of a paired bootstrap."""
    return _mean_gap((ours.nats - theirs.nats) / math.log(2), ours.bytes, _by_document(resampling, ours))


def saves_enough(gap: Score, theirs: PieceNats) -> bool:
    """Whether what is saved is sure, and enough to be noticed."""
    return gap.high < 0 and -gap.value >= NOTICED * theirs.bits_per_byte


def saving_in_words(gap: Score, theirs: PieceNats, *, name: str) -> str:
    """A sentence about bits that are surely saved, and whether that is worth it."""
    turned = Score(-gap.value, -gap.high, -gap.low)
    saved = f"The model needs {turned.value:.3f} bits per byte less than {name}"
    saved += interval_in_words(turned, "{:.3f}".format)
    if saves_enough(gap, theirs):
        return f"{saved}: worth it."
    return f"{saved}, under {NOTICED:.1%} of its {theirs.bits_per_byte:.3f}: hardly worth it."


def loss_difference(ours: PieceNats, theirs: PieceNats, *, resampling: Resampling) -> Score:
    """Our nats per token minus theirs on the same tokens, with the interval of a paired bootstrap."""
    return _mean_gap(ours.nats - theirs.nats, ours.tokens, _by_document(resampling, ours))


def at_constant_cost(pieces: PieceNats, bits_per_byte: float) -> PieceNats:
    """The same pieces, each byte at one price: what a method costs that is known only as a whole."""
    nats = pieces.bytes.astype(np.float64) * (bits_per_byte * math.log(2))
    return PieceNats(nats, pieces.tokens, pieces.bytes, pieces.documents)


def num_units(pieces: PieceNats) -> int:
    """How many things the intervals are over: documents, or pieces where there are few documents."""
    return _by_document(Resampling(), pieces).num_units(len(pieces.nats))


def of_how_few(pieces: PieceNats) -> str:
    """What to know of an interval over the pieces of few documents, or of few groups of them; else empty."""
    count = len(np.unique(pieces.documents))
    if count >= FEWEST_GROUPS or 2 * count > len(pieces.documents):
        return ""
    documents = number_of(count, "document or group of them", "documents or groups of them")
    return f" The held-out text is of {documents} only: the interval is of these, not of others."


def _by_document(resampling: Resampling, pieces: PieceNats) -> Resampling:
    return replace(resampling, groups=pieces.documents)


def _mean_gap(gap: FloatArray, size: IntArray, resampling: Resampling) -> Score:
    sums, sizes = resampling.sums(np.stack([gap, size.astype(np.float64)], axis=1)).T
    found = sums / np.maximum(1, sizes)
    return interval(float(found[0]), found[1:])


def _seen(store: TokenStore, nats: FloatArray, tokens: IntArray) -> PieceNats:
    """The pieces that had targets; a piece that was looked at in part counts that part of its bytes."""
    whole = targets_by_piece(store)
    size = np.round(store.piece_bytes * (tokens / np.maximum(1, whole))).astype(np.int64)
    kept = tokens > 0
    return PieceNats(nats[kept], tokens[kept], size[kept], store.piece_documents[kept])
