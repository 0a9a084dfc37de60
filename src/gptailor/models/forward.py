"""Forward passes without gradients, in a fixed table of (batch, length) shapes.

A matrix product's last bits can depend on its shape. So every answer is computed in a shape that depends
on its own length alone: missing neighbors are filled in. The same text gets the same bits alone, in a
file, in any batch and over HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from gptailor.data.batch import length_buckets
from gptailor.errors import ModelError, NonFiniteError
from gptailor.launch import Precision, precision_context
from gptailor.models.lean import states_at
from gptailor.models.packed import packed_gpt2
from gptailor.types import Batch, FloatArray

LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
FITTING_TOKENS_PER_PASS = 8192
HEAD_ROWS = 1024  # tokens whose logits over the vocabulary are in memory at a time


def tokens_per_pass(model: PreTrainedModel) -> int:
    """How many tokens a pass computes: many keep the cores busy, few keep one short text quick.

    A function of the model's size alone, so that a model's shapes never change.
    """
    return 1024 if model.num_parameters() < 50_000_000 else 256


def shape_for(num_tokens: int, *, max_tokens: int, per_pass: int) -> tuple[int, int]:
    """The (batch, length) shape in which a text of this many tokens is computed."""
    length = next((length for length in LENGTHS if length >= num_tokens), num_tokens)
    length = max(num_tokens, min(length, max_tokens))
    return max(1, per_pass // length), length


def hidden_at_end(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], shape: tuple[int, int], *, pad_id: int
) -> Tensor:
    """(n, H) final-norm hidden states at the last real token of up to shape[0] sequences."""
    batch, length = shape
    ids = np.full((batch, length), pad_id, np.int64)
    ids[len(sequences) :, 0] = 0  # fill-ins: one token and padding
    for place, sequence in enumerate(sequences):
        ids[place, : len(sequence)] = sequence
    device = model.device
    last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=device)
    with torch.inference_mode():
        hidden = model.base_model(
            input_ids=torch.from_numpy(ids).to(device), use_cache=False
        ).last_hidden_state
        picked: Tensor = hidden[torch.arange(len(sequences), device=device), last]
    return picked


def head_logits(head: torch.nn.Module, hidden: Tensor) -> Tensor:
    """(n, C) logits, row by row: with many labels a product of several rows gives each place other bits."""
    with torch.inference_mode():
        return torch.cat([head(row) for row in torch.split(hidden, 1)])


def refuse_looking_ahead(model: PreTrainedModel, name: str) -> None:
    """Raises ModelError where a token's hidden state depends on later tokens.

    Everything here pads on the right and asks for the state of the last real token, without a mask: that is
    exact for a causal model only.
    """
    device = model.device
    ids = torch.arange(8, device=device).repeat(2, 1)
    ids[1, 4:] += 4  # the same beginning, another end
    model.eval()
    with torch.inference_mode():
        first, second = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :4].float()
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ModelError(
            "a token of it sees the tokens after it, so it isn't a causal language model.",
            where=f"base {name!r}",
            fix="Use a base of the GPT family: GPT-2, GPT-Neo, Llama, Qwen, Mistral and their kin.",
        )


def keeps_documents_apart(model: PreTrainedModel) -> bool:
    """Whether documents in one row, whose positions start again, don't see each other.

    transformers does that for most families where it is given positions and no mask; some take no notice.
    """
    ids = torch.arange(8, device=model.device)[None]
    places = torch.arange(4, device=model.device).repeat(2)[None]
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        alone = model.base_model(input_ids=ids[:, 4:], use_cache=False).last_hidden_state.float()
        try:
            row = model.base_model(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state
        except TypeError:  # it takes no positions
            return False
        finally:
            model.train(was_training)
    return torch.allclose(row[:, 4:].float(), alone, rtol=1e-3, atol=1e-4, equal_nan=True)


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether it keeps keys and values of every layer of what it read: written answers go on from them."""
    cache = DynamicCache()
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            ids = torch.arange(2, device=model.device)[None]
            model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    except Exception:  # families with another memory each raise their own
        return False
    finally:
        model.train(was_training)
    kept = [getattr(layer, "keys", None) is not None for layer in cache.layers]
    return len(kept) == int(model.config.num_hidden_layers) and all(kept)


def in_shapes(
    sequences: Sequence[Sequence[int]], *, max_tokens: int, per_pass: int
) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Yields (shape, row indices) so that every row lies in its shape, whatever came with it."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for row, sequence in enumerate(sequences):
        shape = shape_for(len(sequence), max_tokens=max_tokens, per_pass=per_pass)
        by_shape.setdefault(shape, []).append(row)
    for shape, rows in sorted(by_shape.items()):
        for start in range(0, len(rows), shape[0]):
            yield shape, rows[start : start + shape[0]]


def compute_features(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    pad_id: int,
    precision: Precision = "fp32",
) -> FloatArray:
    """(N, H) features of every sequence, in order.

    For fitting, not for serving: a row's last bits may depend on its neighbors.

    Raises:
        NonFiniteError: a feature is NaN or infinite.
    """
    model.eval()
    packed = packed_gpt2(model, None, precision=precision, exact=False)
    if packed is not None:
        features = packed.features(sequences)
    else:
        features = np.empty((len(sequences), 0))  # as wide as the last hidden state, whatever is inside
        lengths = np.array([len(sequence) for sequence in sequences])
        with precision_context(precision, model.device.type):
            for rows in length_buckets(lengths, max_tokens_per_batch=FITTING_TOKENS_PER_PASS):
                chosen = [sequences[row] for row in rows.tolist()]
                shape = (len(chosen), int(lengths[rows[0]]))
                found = hidden_at_end(model, chosen, shape, pad_id=pad_id).double().cpu().numpy()
                if features.shape[1] == 0:
                    features = np.empty((len(sequences), found.shape[1]))
                features[rows] = found
    if not np.isfinite(features).all():
        raise NonFiniteError(
            f"the base's features of {int((~np.isfinite(features)).any(axis=1).sum()):,} of "
            f"{len(features):,} texts are not numbers.",
            where=model.config.name_or_path or None,
            fix="Its weights are damaged or overflow; get the base's files again, or use another base.",
        )
    return features


def compute_logits(
    model: PreTrainedModel,
    head: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    pad_id: int,
) -> FloatArray:
    """(N, C) logits of every sequence, in order."""
    logits = np.empty((len(sequences), int(model.config.num_labels or 0)), np.float64)
    model.eval()
    shapes = in_shapes(sequences, max_tokens=max_tokens, per_pass=tokens_per_pass(model))
    for shape, rows in shapes:
        hidden = hidden_at_end(model, [sequences[row] for row in rows], shape, pad_id=pad_id)
        logits[rows] = head_logits(head, hidden).float().cpu().numpy()
    return logits


@dataclass(frozen=True, slots=True)
class FixedShapes:
    """A classifier of any causal architecture that gives (N, C) logits in the table's shapes."""

    model: PreTrainedModel
    head: torch.nn.Module
    max_tokens: int
    pad_id: int
    per_pass: int

    def logits(self, sequences: Sequence[Sequence[int]]) -> FloatArray:
        """(N, C) logits of every sequence, in order."""
        return compute_logits(
            self.model, self.head, sequences, max_tokens=self.max_tokens, pad_id=self.pad_id
        )

    def place(self, lengths: Sequence[int]) -> tuple[int, tuple[int, int]]:
        """How many rows sequences of these lengths take, and of what shape: that of the first."""
        shape = shape_for(lengths[0], max_tokens=self.max_tokens, per_pass=self.per_pass)
        return len(lengths), shape


def learned_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(L, H) final-norm hidden states at the learned positions; see `states_at`."""
    assert batch.learned is not None
    return states_at(model, batch, batch.learned)


def target_nats(hidden: Tensor, head: torch.nn.Module, targets: Tensor) -> Tensor:
    """(L,) nats of each target, without gradients."""
    found = []
    for start in range(0, len(hidden), HEAD_ROWS):
        logits = head(hidden[start : start + HEAD_ROWS])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        found.append(functional.cross_entropy(logits, targets[start : start + HEAD_ROWS], reduction="none"))
    return torch.cat(found)
