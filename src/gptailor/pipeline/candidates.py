"""An approach carried through: from tokenized parts to a model with its validation answers."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptailor.cache import cached_array, content_key
from gptailor.data.tokenize import Encoder
from gptailor.evaluate.run import macro_f1
from gptailor.launch import choose_micro_batch, choose_precision, remember
from gptailor.models.approach import (
    Adapted,
    adapt_full,
    adapt_lora,
    adapter_state,
    fit_frozen_head,
    merge_lora,
    set_head,
)
from gptailor.models.forward import compute_features
from gptailor.models.load import build_scratch, load_classifier
from gptailor.models.names import Base
from gptailor.pipeline.tokens import TokenizedParts, sequences_of
from gptailor.pipeline.training import (
    Plan,
    Trained,
    TrainingPlace,
    by_text,
    classify_rows,
    resolve_plan,
    train,
)
from gptailor.recipe import (
    FrozenApproach,
    FullApproach,
    LoraApproach,
    Recipe,
    ScratchApproach,
    TrainSettings,
)
from gptailor.types import FloatArray, IntArray, TokenizedExample

FEATURES_VERSION = "2"  # raise it when the forward pass changes
FEW_ROWS = 200  # fewer training rows than this: settings by folds, then a refit on all
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every approach works with."""

    recipe: Recipe
    base: Base
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    tokens: TokenizedParts
    label_names: Sequence[str]
    environment: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained classifier and how it did on validation."""

    approach: str
    model: PreTrainedModel
    validation_logits: FloatArray  # (M, C); out of fold where there were few rows
    validation_answers: IntArray  # (M,)
    macro_f1: float
    seconds: float
    trained: Trained = field(default_factory=Trained)
    strengths: Sequence[Mapping[str, float]] = ()
    parity: Mapping[str, float] = field(default_factory=dict)
    adapter: Any = None  # peft's wrapper state to save beside the merged model


@dataclass(frozen=True, slots=True)
class FrozenFit:
    """A logistic head and the search that chose its strength."""

    weights: FloatArray
    strength: float
    strengths: list[dict[str, float]]
    logits: FloatArray  # (M, C) on validation
    answers: IntArray


def run_frozen(shop: Workshop, settings: FrozenApproach) -> Candidate:
    """Features once, then a logistic head whose strength is chosen on validation."""
    began = time.perf_counter()
    model = load_classifier(shop.base, shop.tokenizer, label_names=shop.label_names, seed=shop.recipe.seed)
    fit = fit_frozen(shop, model, settings)
    set_head(model, fit.weights)
    return Candidate(
        approach="frozen",
        model=model.eval(),
        validation_logits=fit.logits,
        validation_answers=fit.answers,
        macro_f1=_score(fit.logits, fit.answers),
        seconds=time.perf_counter() - began,
        strengths=fit.strengths,
    )


def fit_frozen(shop: Workshop, model: PreTrainedModel, settings: FrozenApproach) -> FrozenFit:
    """Chooses the strength on validation, or by five folds under 200 training rows, and fits the head."""
    rows = shop.tokens.rows
    parts = [rows["train"], rows["validation"]]
    features = features_of(shop, model, [*parts[0], *parts[1]])
    labels = np.array([row.label for part in parts for row in part])
    weight = shop.recipe.train.class_weights
    class_weight: Any = (
        None
        if weight == "none"
        else weight
        if weight == "balanced"
        else {place: weight.get(name, 1.0) for place, name in enumerate(shop.label_names)}
    )
    count = len(parts[0])
    everything = [*parts[0], *parts[1]]
    if count < FEW_ROWS:
        splits = _folds(everything, seed=shop.recipe.seed)
    else:
        splits = [(np.arange(count), np.arange(count, len(labels)))]
    held_out = np.concatenate([test for _, test in splits])
    held_rows = [everything[int(place)] for place in held_out]
    searched: list[dict[str, float]] = []
    best: tuple[float, float, float, FloatArray, IntArray] | None = None
    for strength in sorted(settings.strengths):
        logits = np.concatenate(
            [
                features[test]
                @ _quietly_fit(features[train_], labels[train_], shop.label_names, strength, class_weight).T
                for train_, test in splits
            ]
        )
        text_logits, answers = by_text(logits, held_rows)
        score, loss = _score(text_logits, answers), _loss(text_logits, answers)
        searched.append({"strength": strength, "validation_macro_f1": score, "validation_loss": loss})
        if best is None or (score, -loss) > (best[0], -best[1]):
            best = (score, loss, strength, text_logits, answers)
    assert best is not None
    _, _, strength, text_logits, answers = best
    chosen = slice(None) if count < FEW_ROWS else slice(0, count)
    weights = _quietly_fit(features[chosen], labels[chosen], shop.label_names, strength, class_weight)
    return FrozenFit(weights, strength, searched, text_logits, answers)


def features_of(shop: Workshop, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> FloatArray:
    """(N, H) features, from the cache where the same rows met the same weights before."""
    sequences = sequences_of(rows)
    flat = np.concatenate([row.token_ids for row in rows])
    lengths = np.array([len(sequence) for sequence in sequences])
    key = content_key(
        FEATURES_VERSION,
        shop.base.revision,
        str(torch.get_num_threads()),
        str(model.device.type),
        flat,
        lengths,
    )
    stored = cached_array(
        "features",
        key,
        lambda: compute_features(model, sequences, pad_id=shop.encoder.pad_id).astype(np.float32),
    )
    return stored.astype(np.float64)


def run_trained(
    shop: Workshop, settings: FullApproach | LoraApproach | ScratchApproach, place: TrainingPlace
) -> Candidate:
    """Trains by gradient descent and returns the best weights, LoRA merged."""
    adapted = adapt(shop, settings)
    plan = plan_for(shop, adapted, settings.kind)
    choices = {"micro_batch_size": plan.micro_batch_size, "precision": plan.precision}
    first_made: dict[str, Any] = remember(place.folder.parent / "environment.json", choices)
    shop.environment.update(first_made)
    plan = dataclasses.replace(plan, **first_made)
    rows = shop.tokens.rows
    outcome = train(
        adapted,
        rows["train"],
        rows["validation"],
        plan=plan,
        settings=shop.recipe.train,
        place=place,
        label_names=shop.label_names,
    )
    pad_id = shop.encoder.pad_id
    logits = classify_rows(adapted, rows["validation"], pad_id=pad_id)
    model, parity, adapter = adapted.plain, dict[str, float](), None
    if isinstance(settings, LoraApproach):
        adapter = adapter_state(adapted)
        model = merge_lora(adapted)
        merged = classify_rows(adapt_full(model), rows["validation"], pad_id=pad_id)
        parity["merge"] = float(np.abs(merged - logits).max())
        logits = merged
    text_logits, answers = by_text(logits, rows["validation"])
    return Candidate(
        approach=settings.kind,
        model=model.eval(),
        validation_logits=text_logits,
        validation_answers=answers,
        macro_f1=_score(text_logits, answers),
        seconds=outcome.seconds,
        trained=outcome,
        parity=parity,
        adapter=adapter,
    )


def adapt(shop: Workshop, settings: FullApproach | LoraApproach | ScratchApproach) -> Adapted:
    """Loads or builds the model and chooses the weights that may change."""
    recipe = shop.recipe
    dropout = recipe.train.dropout
    if isinstance(settings, ScratchApproach):
        model = build_scratch(
            shop.base,
            shop.tokenizer,
            label_names=shop.label_names,
            seed=recipe.seed,
            dropout=dropout,
            layers=settings.layers,
            width=settings.width,
            heads=settings.heads,
        )
    else:
        model = load_classifier(
            shop.base, shop.tokenizer, label_names=shop.label_names, seed=recipe.seed, dropout=dropout
        )
    model.to(shop.environment["device"])
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if isinstance(settings, LoraApproach):
        return adapt_lora(
            model,
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            targets=settings.targets,
            seed=recipe.seed,
        )
    return adapt_full(model)


def plan_for(shop: Workshop, adapted: Adapted, approach: str) -> Plan:
    """Resolves lengths, rates, precision and the micro-batch; measured choices come from the environment."""
    settings: TrainSettings = shop.recipe.train
    config: Any = adapted.plain.config
    weights = sum(parameter.numel() for parameter in adapted.plain.parameters())
    measured = shop.environment.get("micro_batch_size")
    micro = settings.micro_batch_size or measured
    if micro is None:
        micro = choose_micro_batch(
            settings.batch_size,
            max_tokens=shop.tokens.max_tokens,
            layers=int(config.num_hidden_layers),
            width=int(config.hidden_size),
            weights=weights,
        )
    return resolve_plan(
        settings,
        approach=approach,
        num_weights=weights,
        num_rows=len(shop.tokens.rows["train"]),
        micro_batch_size=int(micro),
        precision=choose_precision(settings.precision, num_weights=weights),
    )


def _score(logits: FloatArray, answers: IntArray) -> float:
    return macro_f1(answers, logits.argmax(axis=1), num_labels=logits.shape[1])


def _loss(logits: FloatArray, answers: IntArray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_probabilities[np.arange(len(answers)), answers].mean())


def _quietly_fit(
    features: FloatArray, labels: IntArray, label_names: Sequence[str], strength: float, class_weight: Any
) -> FloatArray:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # At a huge strength separable rows have no finite optimum; validation judges what came out.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit_frozen_head(
            features, labels, num_labels=len(label_names), strength=strength, class_weight=class_weight
        )


def _folds(rows: Sequence[TokenizedExample], *, seed: int) -> list[tuple[IntArray, IntArray]]:
    """Stratified folds over texts: the windows of a text stay together."""
    from sklearn.model_selection import StratifiedKFold

    keys = list(dict.fromkeys((row.source, row.row) for row in rows))
    text_of = {key: place for place, key in enumerate(keys)}
    texts = np.array([text_of[row.source, row.row] for row in rows])
    labels = np.zeros(len(keys), np.int64)
    labels[texts] = np.array([row.label for row in rows])
    folds = max(2, min(FOLDS, int(np.bincount(labels)[np.unique(labels)].min())))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return [
        (np.flatnonzero(~np.isin(texts, held)), np.flatnonzero(np.isin(texts, held)))
        for _, held in splitter.split(np.zeros(len(keys)), labels)
    ]
