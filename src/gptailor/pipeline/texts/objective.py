"""The objectives of the text tasks: what the answers' tokens cost, and one of two answers made likelier."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptailor.data.batch import collate_texts, length_buckets, pack, to_device
from gptailor.errors import Interrupted
from gptailor.evaluate.language import PieceNats
from gptailor.evaluate.preference import ranking_score, right_shares
from gptailor.evaluate.resampling import Resampling
from gptailor.launch import Precision, StopRequest, choose_precision, precision_context, sync
from gptailor.models.approach import Adapted
from gptailor.models.forward import keeps_documents_apart, learned_states, target_nats
from gptailor.models.lean import is_lean
from gptailor.pipeline.objective import Objective, Rates, Validation, usual_rates
from gptailor.pipeline.texts.rows import documents_of
from gptailor.pipeline.texts.shop import TextShop
from gptailor.pipeline.texts.tokens import TokenizedRow
from gptailor.recipe import PreferenceSettings
from gptailor.tasks.completion_form import CompletionForm
from gptailor.tasks.presets import PRESETS
from gptailor.train.loss import answer_log_likelihoods, language_loss, preference_loss
from gptailor.types import Batch, FloatArray, IntArray, TokenizedExample

VALIDATED = 512  # validation rows looked at during training; the end looks at all
TOKENS_PER_PASS = 4096
REFERRED = 256  # pairs whose likelihoods are computed before they are saved, and signals looked at
# Preferences move a model that writes well already; at the usual rates it forgets how.
PREFERENCE_RATES = {"full": 3e-5, "lora": 1e-4, "scratch": 1e-4}
LEAST_SAVED = 0.8  # pack where it leaves at most this share of the padded size: a packed row needs a mask


def answer_objective(shop: TextShop, adapted: Adapted) -> Objective:
    """Cross-entropy of the answers' tokens; rows of a micro-batch are packed where that saves enough."""
    device = adapted.plain.device
    sequences = [one for row in shop.tokens.rows["train"] for one in row.sequences]
    looked_at = spread(shop.tokens.rows["validation"], VALIDATED)

    beside = packed if keeps_documents_apart(adapted.plain) else one_by_one

    def batch(chosen: Sequence[int]) -> Batch:
        return to_device(collate_texts(beside([sequences[row] for row in chosen])), device)

    def loss(batch: Batch) -> tuple[Tensor, int]:
        return language_loss(adapted.plain, adapted.head, batch), batch.num_targets

    def validate(precision: Precision) -> Validation:
        found = row_nats(adapted, looked_at, shop, precision=precision)
        return Validation(found.loss, -found.loss, {"bits_per_byte": found.bits_per_byte})

    return Objective(lengths_of(sequences), batch, loss, validate, rates=rates_of(shop), new_head=False)


def rates_of(shop: TextShop) -> Rates:
    """Peak learning rates of the task, where the recipe leaves them open."""
    if shop.recipe.task == "preference":
        return lambda _: PREFERENCE_RATES
    form = shop.form
    new_form = isinstance(form, CompletionForm) and PRESETS[form.roles.preset].is_new_form
    return partial(usual_rates, new_form=new_form)


def preference_objective(
    shop: TextShop, adapted: Adapted, folder: Path | None, *, stop: StopRequest | None = None
) -> Objective:
    """How far the chosen answers are ahead of the rejected ones, against the base as it came.

    Args:
        shop: The rows and the settings.
        adapted: The model, not trained yet.
        folder: Keeps the base's likelihoods; None where a step is only timed, which needs none.
        stop: Looked at while they are computed.

    Raises:
        Interrupted: a signal came; what was computed is kept.
    """
    device = adapted.plain.device
    settings = resolve_preference(shop.recipe.preference)
    rows = shop.tokens.rows["train"]
    looked_at = spread(shop.tokens.rows["validation"], VALIDATED)
    needed = settings.loss != "simpo"
    # As in training: what rounds both alike, most of all in bf16, is no difference between them.
    weights = adapted.plain.num_parameters()
    precision = choose_precision(shop.recipe.train.precision, num_weights=weights)

    def refer(rows: Sequence[TokenizedRow], name: str) -> FloatArray | None:
        if not needed or folder is None:
            return np.zeros((len(rows), 2)) if needed else None
        path = folder / f"{name}.{precision}.npy"  # trials of a search may differ by it
        return reference_of(adapted, rows, path, precision=precision, stop=stop or StopRequest())

    train_reference, seen_reference = refer(rows, "train"), refer(looked_at, "validation")

    def collated(pairs: Sequence[TokenizedRow], reference: FloatArray | None) -> Batch:
        batch = collate_pairs(pairs)
        if reference is not None:
            batch = replace(batch, reference=torch.from_numpy(reference.T.reshape(-1)).float())
        return to_device(batch, device)

    def batch(chosen: Sequence[int]) -> Batch:
        known = None if train_reference is None else train_reference[list(chosen)]
        return collated([rows[row] for row in chosen], known)

    def loss(batch: Batch) -> tuple[Tensor, int]:
        chosen, rejected = preference_scores(adapted, batch, settings)
        return pair_loss(chosen, rejected, settings), len(chosen)

    longest = max((len(one.token_ids) for row in looked_at for one in row.sequences), default=1)
    at_once = max(1, min(8, TOKENS_PER_PASS // (2 * longest)))

    def validate(precision: Precision) -> Validation:
        was_training = adapted.trained.training
        adapted.trained.eval()
        total, margins = 0.0, []
        with torch.inference_mode(), precision_context(precision, device.type):
            for start in range(0, len(looked_at), at_once):
                piece = looked_at[start : start + at_once]
                known = None if seen_reference is None else seen_reference[start : start + at_once]
                chosen, rejected = preference_scores(adapted, collated(piece, known), settings)
                total += float(pair_loss(chosen, rejected, settings))
                margins += (chosen - rejected).tolist()
        adapted.trained.train(was_training)
        mean = total / len(looked_at)
        shown = {"preference_accuracy": float(right_shares(margins).mean())}
        return Validation(mean, -mean, shown, compared=ranking_score(margins))

    pairs = np.array([[len(one.token_ids) for one in row.sequences] for row in rows], np.int64)
    # Where padding is computed, the shorter answer costs as much as the longer.
    lengths = pairs.sum(axis=1) if is_lean(adapted.plain) else 2 * pairs.max(axis=1)
    return Objective(lengths, batch, loss, validate, rates=rates_of(shop), new_head=False)


def resolve_preference(settings: PreferenceSettings) -> PreferenceSettings:
    """The settings with the usual strength of the loss."""
    beta = settings.beta or (2.0 if settings.loss == "simpo" else 0.1)
    return settings.model_copy(update={"beta": beta})


def preference_scores(adapted: Adapted, batch: Batch, settings: PreferenceSettings) -> tuple[Tensor, Tensor]:
    """(P,) of the chosen and of the rejected answers: what the loss compares."""
    found = answer_log_likelihoods(adapted.plain, adapted.head, batch)
    if batch.reference is not None:
        found = found - batch.reference
    if settings.loss != "dpo":
        assert batch.learned is not None
        counts = torch.bincount(batch.learned // batch.input_ids.shape[1], minlength=len(found))
        found = found / counts
    half = len(found) // 2
    return found[:half], found[half:]


def pair_loss(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """The sum over pairs."""
    assert settings.beta is not None
    margin = settings.margin if settings.loss == "simpo" else 0.0
    return preference_loss(chosen, rejected, kind=settings.loss, beta=settings.beta, margin=margin)


def collate_pairs(pairs: Sequence[TokenizedRow]) -> Batch:
    """The chosen answers of all pairs, then the rejected ones, one to a row. The target is the pair."""
    batch = collate_texts([[row.sequences[side]] for side in (0, 1) for row in pairs])
    return replace(batch, num_targets=len(pairs))


def reference_of(
    adapted: Adapted, rows: Sequence[TokenizedRow], path: Path, *, precision: Precision, stop: StopRequest
) -> FloatArray:
    """(N, 2) log-likelihoods of both answers under the weights before training; computed once and kept.

    Raises:
        Interrupted: a signal came; what was computed is kept, and the rest of the file is NaN.
    """
    found = np.full((len(rows), 2), np.nan)
    with contextlib.suppress(OSError, ValueError, EOFError):  # cut short, or not there yet
        kept = np.load(path, allow_pickle=False)
        found = kept if kept.shape == found.shape else found
    path.parent.mkdir(parents=True, exist_ok=True)
    missing = np.flatnonzero(np.isnan(found[:, 0]))
    for start in range(0, len(missing), REFERRED):
        places = missing[start : start + REFERRED]
        found[places] = log_likelihoods(adapted, [rows[place] for place in places], precision=precision)
        partial_path = path.with_suffix(f".{os.getpid()}.npy")  # processes of one search may do the same
        np.save(partial_path, found)
        sync(partial_path)
        partial_path.replace(path)
        if stop.name is not None:
            raise Interrupted(
                f"stopped by {stop.name}; the base's likelihoods so far are kept.",
                fix="Run the same command again to go on.",
            )
    return found


def log_likelihoods(
    adapted: Adapted, rows: Sequence[TokenizedRow], *, precision: Precision = "fp32"
) -> FloatArray:
    """(N, 2) nats, below zero, of the chosen and the rejected answer of each row."""
    sequences = [row.sequences[side] for row in rows for side in (0, 1)]
    nats, _ = sequence_nats(adapted, sequences, precision=precision)
    return -nats.reshape(-1, 2)


def by_token(likelihoods: FloatArray, rows: Sequence[TokenizedRow]) -> FloatArray:
    """(N,) how much likelier the chosen answer is, by token."""
    counts = [[max(1, int(one.learn[1:].sum())) for one in row.sequences] for row in rows]
    each: FloatArray = likelihoods / np.array(counts)
    margins: FloatArray = each[:, 0] - each[:, 1]
    return margins


def margins_as_trained(
    loss: str, ours: FloatArray, theirs: FloatArray | None, rows: Sequence[TokenizedRow]
) -> FloatArray:
    """(N,) how far the chosen answers are ahead, as the loss compares them. `theirs` is the reference's."""
    if theirs is None or loss == "simpo":
        return by_token(ours, rows)
    gained = ours - theirs
    margins: FloatArray = by_token(gained, rows) if loss == "ipo" else gained[:, 0] - gained[:, 1]
    return margins


def row_nats(
    adapted: Adapted, rows: Sequence[TokenizedRow], shop: TextShop, *, precision: Precision = "fp32"
) -> PieceNats:
    """What the right answers of each row cost: nats, tokens and bytes. Rows of one group are one document,
    for what is alike in them, such as a context, was drawn once.
    """
    sequences = [one for row in rows for one in row.right]
    owner = np.repeat(np.arange(len(rows)), [len(row.right) for row in rows])
    nats, tokens = sequence_nats(adapted, sequences, precision=precision)
    sizes = [shop.answer_bytes(one.token_ids[one.learn].tolist()) for one in sequences]
    return PieceNats(
        nats=np.bincount(owner, nats, minlength=len(rows)).astype(np.float64),
        tokens=np.bincount(owner, tokens, minlength=len(rows)).astype(np.int64),
        bytes=np.bincount(owner, sizes, minlength=len(rows)).astype(np.int64),
        documents=documents_of([row.row for row in rows]),
    )


def resampling_of(shop: TextShop, rows: Sequence[TokenizedRow]) -> Resampling:
    """How intervals over these rows are drawn."""
    evaluate = shop.recipe.evaluate
    return Resampling(evaluate.resamples, shop.recipe.seed, documents_of([row.row for row in rows]))


def sequence_nats(
    adapted: Adapted, sequences: Sequence[TokenizedExample], *, precision: Precision = "fp32"
) -> tuple[FloatArray, IntArray]:
    """(S,) nats and (S,) counts of the learned tokens of each sequence, without gradients."""
    nats, tokens = np.zeros(len(sequences)), np.zeros(len(sequences), np.int64)
    was_training = adapted.trained.training
    adapted.trained.eval()
    model = adapted.plain
    with torch.inference_mode(), precision_context(precision, model.device.type):
        for chosen in length_buckets(lengths_of(sequences), max_tokens_per_batch=TOKENS_PER_PASS):
            batch = to_device(collate_texts([[sequences[row]] for row in chosen]), model.device)
            assert batch.targets is not None
            assert batch.learned is not None
            found = target_nats(learned_states(model, batch), adapted.head, batch.targets)
            rows = (batch.learned // batch.input_ids.shape[1]).cpu().numpy()
            nats[chosen] = np.bincount(rows, found.double().cpu().numpy(), minlength=len(chosen))
            tokens[chosen] = np.bincount(rows, minlength=len(chosen))
    adapted.trained.train(was_training)
    return nats, tokens


def packed(examples: Sequence[TokenizedExample]) -> list[list[TokenizedExample]]:
    """Rows of examples side by side, where they then take clearly less room than one below the other."""
    lengths = lengths_of(examples)
    rows = pack(lengths, capacity=int(lengths.max()))
    if len(rows) > LEAST_SAVED * len(examples):
        return one_by_one(examples)
    return [[examples[place] for place in row] for row in rows]


def one_by_one(examples: Sequence[TokenizedExample]) -> list[list[TokenizedExample]]:
    """A row for each."""
    return [[example] for example in examples]


def lengths_of(sequences: Sequence[TokenizedExample]) -> IntArray:
    """(S,) tokens of each."""
    return np.array([len(one.token_ids) for one in sequences], np.int64)


def spread(rows: Sequence[TokenizedRow], most: int) -> list[TokenizedRow]:
    """At most so many rows, evenly from first to last."""
    if len(rows) <= most:
        return list(rows)
    places: Any = np.linspace(0, len(rows) - 1, most).round().astype(int)
    return [rows[place] for place in places.tolist()]
