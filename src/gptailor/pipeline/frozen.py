"""The frozen approach: features once, kept on disk, and a logistic head on them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from gptailor.cache import cached_array, content_key
from gptailor.launch import Precision, choose_precision
from gptailor.models.approach import set_head
from gptailor.models.forward import compute_features
from gptailor.models.load import load_classifier
from gptailor.pipeline.classify import by_text
from gptailor.pipeline.kinds import Kind
from gptailor.pipeline.labels import answers_of
from gptailor.pipeline.tokens import sequences_of
from gptailor.pipeline.workshop import Candidate, Workshop, few_rows, folds_of, may_refit, pool_of
from gptailor.recipe import FrozenApproach
from gptailor.types import FloatArray, TokenizedExample

FEATURES_VERSION = "3"  # raise it when the forward pass changes


@dataclass(frozen=True, slots=True)
class FrozenFit:
    """A logistic head and the search that chose its strength."""

    weights: FloatArray
    strength: float
    strengths: list[dict[str, float]]
    logits: FloatArray  # (M, C) on validation
    answers: Any


def run_frozen(shop: Workshop, settings: FrozenApproach) -> Candidate:
    """Features once, then a logistic head whose strength is chosen on validation."""
    began = time.perf_counter()
    model = base_classifier(shop)
    fit = fit_frozen(shop, model, settings)
    set_head(model, fit.weights)
    return Candidate(
        approach="frozen",
        model=model.eval(),
        validation_logits=fit.logits,
        validation_answers=fit.answers,
        score=shop.kind.score(fit.logits, fit.answers),
        seconds=time.perf_counter() - began,
        precision=features_precision(shop, model),
        strengths=fit.strengths,
    )


def features_precision(shop: Workshop, model: PreTrainedModel) -> Precision:
    """What features are computed in."""
    return choose_precision(shop.recipe.train.precision, num_weights=model.num_parameters())


def base_classifier(shop: Workshop) -> PreTrainedModel:
    """The base with an untrained head for the workshop's labels: what features are computed with."""
    return load_classifier(
        shop.base,
        shop.tokenizer,
        label_names=shop.label_names,
        seed=shop.recipe.seed,
        kind=shop.kind.form.kind,
    )


def fit_frozen(shop: Workshop, model: PreTrainedModel, settings: FrozenApproach) -> FrozenFit:
    """Chooses the strength on validation, or by five folds under 200 training rows, and fits the head.

    The head that is kept has seen the validation rows, too, where they may teach (`may_refit`): what
    validation says was measured before, on a head that had not.
    """
    count, everything = len(shop.tokens.rows["train"]), pool_of(shop)
    held = np.arange(len(everything)) >= count
    features, names = features_of(shop, model, everything), features_of_names(shop, model)
    return fit_best_head(shop, features, everything, held, settings.strengths, names=names)


def fit_best_head(
    shop: Workshop,
    features: FloatArray,
    rows: Sequence[TokenizedExample],
    held: Any,
    strengths: Sequence[float],
    *,
    names: FloatArray,
) -> FrozenFit:
    """The head of the strength that the held rows like best; of equal scores the smaller loss.

    Args:
        features: (N, H) of the rows.
        rows: Training and validation rows.
        held: (N,) which of them validate.
        strengths: What is tried.
        names: Features of the labels' names, which teach, too.
    """
    kind, labels = shop.kind, answers_of(rows)
    if few_rows(shop):
        splits = folds_of(rows, seed=shop.recipe.seed, strata=kind.strata)
    else:
        splits = [(np.flatnonzero(~held), np.flatnonzero(held))]
    held_out = np.sort(np.concatenate([test for _, test in splits]))
    held_rows = [rows[int(place)] for place in held_out]
    searched: list[dict[str, float]] = []
    best: tuple[float, float, float, FloatArray, Any] | None = None
    heads: list[FloatArray | None] = [None] * len(splits)
    for strength in sorted(strengths):
        logits = np.empty((len(labels), len(shop.label_names)))
        for place, (inside, outside) in enumerate(splits):
            begin = heads[place]
            weights = fit_head(shop, features[inside], labels[inside], strength, names=names, start=begin)
            logits[outside] = features[outside] @ weights.T
            heads[place] = weights
        text_logits, answers = by_text(logits[held_out], held_rows)
        score, loss = kind.score(text_logits, answers), kind.mean_loss(text_logits, answers)
        searched.append(
            {"strength": strength, kind.validation_key: kind.told(score), "validation_loss": loss}
        )
        if best is None or (score, -loss) > (best[0], -best[1]):
            best = (score, loss, strength, text_logits, answers)
    assert best is not None
    _, _, strength, text_logits, answers = best
    chosen = slice(None) if may_refit(shop) else ~held
    weights = fit_head(shop, features[chosen], labels[chosen], strength, names=names)
    return FrozenFit(weights, strength, searched, text_logits, answers)


def best_strength_of(candidate: Candidate, kind: Kind) -> float:
    """The strength that the search of a frozen candidate chose."""
    sign = 1 if kind.higher_is_better else -1
    chosen = max(
        candidate.strengths, key=lambda one: (sign * one[kind.validation_key], -one["validation_loss"])
    )
    return float(chosen["strength"])


def features_of(shop: Workshop, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> FloatArray:
    """(N, H) features, from the cache where the same rows met the same weights before."""
    sequences = sequences_of(rows)
    precision = features_precision(shop, model)
    flat = np.concatenate([row.token_ids for row in rows])
    lengths = np.array([len(sequence) for sequence in sequences])
    key = content_key(
        FEATURES_VERSION,
        shop.base.revision,
        *(torch.__version__, transformers.__version__, torch.backends.cpu.get_cpu_capability()),
        str(torch.get_num_threads()),
        str(model.device.type),
        precision,
        flat,
        lengths,
    )
    stored = cached_array(
        "features",
        key,
        lambda: compute_features(model, sequences, pad_id=shop.encoder.pad_id, precision=precision).astype(
            np.float32
        ),
    )
    return stored.astype(np.float64)


def features_of_names(shop: Workshop, model: PreTrainedModel) -> FloatArray:
    """(C, H) features of the labels' names, in their order; (0, H) where these don't teach."""
    names = shop.tokens.names
    return features_of(shop, model, names) if names else np.empty((0, model.config.hidden_size))


def fit_head(
    shop: Workshop,
    features: FloatArray,
    labels: Any,
    strength: float,
    *,
    names: FloatArray,
    start: FloatArray | None = None,
) -> FloatArray:
    """(C, H) weights of the kind's head on (N, H) features and their answers, as the recipe weighs them.

    `names`: features of the labels' names, which teach, too. `start`: where to begin, if the kind's way has
    a beginning.
    """
    from sklearn.exceptions import ConvergenceWarning

    if len(names):
        features = np.concatenate([features, names])
        labels = np.concatenate([labels, np.arange(len(names))])
    with warnings.catch_warnings():
        # At a huge strength separable rows have no finite optimum; validation judges what came out.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return shop.kind.fit_head(
            features,
            labels,
            label_names=shop.label_names,
            strength=strength,
            settings=shop.recipe.train,
            start=start,
        )
