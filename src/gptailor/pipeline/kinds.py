"""The kinds of answer on the classification road, and all in which they differ.

One label a row, several, or a number: everything else (reading, splitting, training, saving, serving, the
report's shape) is one road, which asks its `Kind`. Answers are (N,) classes, (N, C) 0 and 1, or (N,) numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptailor.evaluate import label_sets, metrics, numbers
from gptailor.evaluate.baselines import BaselineResult, majority, mean_number, tfidf
from gptailor.evaluate.calibrate import choose_threshold, fit_temperature, softmax
from gptailor.evaluate.run import evaluate_logits, evaluation_details, macro_f1
from gptailor.evaluate.targets import CLASSES, LABEL_SETS, NUMBERS, Target, weighted_classes
from gptailor.models.approach import fit_frozen_head, fit_frozen_label_heads, fit_frozen_number_head
from gptailor.models.readout import decide, sigmoid
from gptailor.pipeline.labels import refuse_of_classes
from gptailor.recipe import TrainSettings
from gptailor.tasks.classification import weights_by_label
from gptailor.train.loss import (
    balanced_weights,
    classification_loss,
    label_set_loss,
    normalized_weights,
    number_loss,
)
from gptailor.types import AnswerForm, EvalReport, FloatArray, IntArray, Score

FEWEST_OF_A_LABEL = 5  # rows, for a label to have a share of every fold

RowLoss = Callable[[Tensor, Tensor], Tensor]  # the sum over rows, of logits (B, C) and answers
Parts = Mapping[Any, Any]  # part -> something of its rows


@dataclass(frozen=True, slots=True)
class Kind:
    """What the road asks of a kind of answer."""

    form: AnswerForm
    metric: str  # decides; its key in the report
    metric_name: str  # within a sentence
    beside: str  # the score shown next to it
    printed: tuple[str, ...]  # what `evaluate` prints
    higher_is_better: bool
    loss: Callable[[TrainSettings, Any, Sequence[str]], RowLoss]  # of the training rows' answers and names
    mean_loss: Callable[[FloatArray, Any], float]
    score: Callable[[FloatArray, Any], float]  # of logits and answers; higher is better
    fit_head: Callable[..., FloatArray]  # of features and answers: (C, H) weights
    strata: Callable[[Any], IntArray]  # (N,) what folds deal out evenly
    settle: Callable[
        [FloatArray, Any], tuple[AnswerForm, float, float | None]
    ]  # form, temperature, threshold
    evaluate: Callable[..., EvalReport]
    details: Callable[..., dict[str, Any]]
    measure: Callable[..., dict[str, Any]]  # scores of answers and predictions
    difference: Callable[..., Score]  # of our metric and theirs on the same rows
    verdict: Callable[..., dict[str, Any]]
    target: Callable[[TrainSettings, Sequence[str]], Target]  # what the n-gram baseline is fitted to
    baselines: Callable[..., list[BaselineResult]]  # see `climb`
    errors: Callable[[FloatArray, Any], FloatArray]  # (N,) how wrong each answer is; 0: right
    settle_baseline: Callable[[BaselineResult, Any], BaselineResult] = lambda result, _: result
    loss_unit: str = "nats"
    doubt: str = ""  # what a sure wrong answer says of the label; empty: nothing

    @property
    def validation_key(self) -> str:
        """The validation score's key in reports and logs."""
        return f"validation_{self.metric}"

    def told(self, score: float) -> float:
        """A score as people read it: an error isn't negative."""
        return score if self.higher_is_better else -score


def kind_of(form: AnswerForm) -> Kind:
    """The kind with its form."""
    return {"single": _single, "multiple": _multiple, "score": _score}[form.kind](form)


# --- one label a row -------------------------------------------------------------------------------


def _single(form: AnswerForm) -> Kind:
    return Kind(
        form=form,
        metric="macro_f1",
        metric_name="macro-F1",
        beside="accuracy",
        printed=("accuracy", "macro_f1", "balanced_accuracy", "weighted_f1", "calibration_error"),
        higher_is_better=True,
        loss=_class_loss,
        mean_loss=lambda logits, answers: (
            classification_loss(torch.from_numpy(logits), torch.from_numpy(answers)).item() / len(answers)
        ),
        score=lambda logits, answers: macro_f1(answers, logits.argmax(axis=1), num_labels=logits.shape[1]),
        fit_head=_fit_class_head,
        strata=lambda answers: answers,
        settle=lambda logits, answers: _settle_classes(form, logits, answers),
        evaluate=evaluate_logits,
        details=evaluation_details,
        measure=metrics.classification_scores,
        difference=lambda answers, ours, theirs, *, label_names, **settings: metrics.paired_difference(
            answers, ours, theirs, num_labels=len(label_names), **settings
        ),
        verdict=metrics.verdict,
        target=_class_target,
        baselines=_label_baselines,
        errors=_class_errors,
        doubt="another label",
    )


def _class_loss(settings: TrainSettings, answers: IntArray, label_names: Sequence[str]) -> RowLoss:
    labels, weights = torch.from_numpy(answers), None
    if settings.class_weights == "balanced":
        weights = balanced_weights(labels, len(label_names))
    elif settings.class_weights != "none":
        named = torch.tensor(weights_by_label(settings.class_weights, label_names))
        weights = normalized_weights(named, labels)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        moved = None if weights is None else weights.to(logits.device)
        return classification_loss(
            logits, labels, class_weights=moved, label_smoothing=settings.label_smoothing
        )

    return loss


def _fit_class_head(
    features: FloatArray,
    answers: IntArray,
    *,
    label_names: Sequence[str],
    strength: float,
    settings: TrainSettings,
    start: FloatArray | None,
) -> FloatArray:
    return fit_frozen_head(
        features,
        answers,
        num_labels=len(label_names),
        strength=strength,
        class_weight=_weights_of(settings, label_names),
        start=start,
    )


def _settle_classes(
    form: AnswerForm, logits: FloatArray, answers: IntArray
) -> tuple[AnswerForm, float, float | None]:
    temperature = fit_temperature(logits, answers)
    return form, temperature, choose_threshold(softmax(logits, temperature), answers)


def _label_baselines(texts: Parts, answers: Parts, **known: Any) -> list[BaselineResult]:
    """The most frequent answer, and TF-IDF: its classes, or its probabilities of each label."""
    return [_most_frequent(answers), _tfidf(texts, answers, **known)]


def _class_target(settings: TrainSettings, label_names: Sequence[str]) -> Target:
    """Classes, with the weights that the model has."""
    weights = _weights_of(settings, label_names)
    return CLASSES if weights is None else weighted_classes(weights)


def _weights_of(settings: TrainSettings, label_names: Sequence[str]) -> Any:
    """As scikit-learn takes them: None, "balanced", or by class."""
    given = settings.class_weights
    if isinstance(given, str):
        return None if given == "none" else given
    return dict(enumerate(weights_by_label(given, label_names)))


def _tfidf(
    texts: Parts,
    answers: Parts,
    *,
    folds: IntArray | None,
    refit: bool,
    seed: int,
    target: Target,
    names: Sequence[str],
) -> BaselineResult:
    """TF-IDF; with `refit` the validation rows teach what answers the test rows, as they do elsewhere."""
    return tfidf(
        texts["train"],
        answers["train"],
        texts["validation"],
        texts["test"],
        validation_labels=answers["validation"] if refit else None,
        names=names,
        folds=folds,
        seed=seed,
        target=target,
    )


def _most_frequent(answers: Parts) -> BaselineResult:
    sizes = {f"num_{part}": len(answers[part]) for part in ("validation", "test")}
    return majority(answers["train"], **sizes)


def _class_errors(probabilities: FloatArray, answers: IntArray) -> FloatArray:
    """How sure the model is of a wrong class."""
    wrong: FloatArray = np.where(probabilities.argmax(axis=1) != answers, probabilities.max(axis=1), 0.0)
    return wrong


# --- several labels a row --------------------------------------------------------------------------


def _multiple(form: AnswerForm) -> Kind:
    return Kind(
        form=form,
        metric="micro_f1",
        metric_name="micro-F1",
        beside="macro_f1",
        printed=("micro_f1", "macro_f1", "subset_accuracy", "hamming_loss", "calibration_error"),
        higher_is_better=True,
        loss=lambda settings, *_: _plain(settings, label_set_loss),
        mean_loss=label_sets.mean_nats,
        score=label_sets.score_logits,
        fit_head=lambda features, answers, *, strength, settings, **_: fit_frozen_label_heads(
            features, _plain(settings, answers), strength=strength
        ),
        strata=partial(label_sets.rarest_label, fewest=FEWEST_OF_A_LABEL),
        settle=lambda logits, answers: _settle_label_sets(form, logits, answers),
        evaluate=partial(label_sets.evaluate_label_sets, form=form),
        details=lambda logits, answers, *, label_names, temperature, **_: label_sets.label_set_details(
            logits, answers, form=form, label_names=label_names, temperature=temperature
        ),
        measure=label_sets.label_set_scores,
        difference=lambda answers, ours, theirs, *, resampling, **_: label_sets.paired_label_set_difference(
            answers, ours, theirs, resampling=resampling
        ),
        verdict=partial(metrics.verdict, metric_name="micro-F1"),
        target=lambda *_: LABEL_SETS,
        baselines=_label_baselines,
        settle_baseline=_with_cutoff,
        errors=partial(_label_set_errors, form=form),
        doubt="other labels",
    )


def _settle_label_sets(
    form: AnswerForm, logits: FloatArray, answers: IntArray
) -> tuple[AnswerForm, float, float | None]:
    temperature = label_sets.fit_label_temperature(logits, answers)
    cutoff, _ = label_sets.best_cutoff(sigmoid(logits / temperature), answers)
    return dataclasses.replace(form, cutoff=cutoff), temperature, None


def _with_cutoff(guessed: BaselineResult, answers: IntArray) -> BaselineResult:
    """Probabilities as sets, by a cutoff of their own that is chosen on validation as ours is."""
    if guessed.name == "majority":
        return guessed
    cutoff, _ = label_sets.best_cutoff(guessed.validation, answers)
    return dataclasses.replace(
        guessed,
        validation=(guessed.validation >= cutoff).astype(np.int64),
        test=(guessed.test >= cutoff).astype(np.int64),
        note=f"{guessed.note}; cutoff {cutoff:.2f}",
    )


def _label_set_errors(probabilities: FloatArray, answers: IntArray, *, form: AnswerForm) -> FloatArray:
    """How sure the model is of its surest wrong decision; 0 where the whole set is right."""
    sure = np.where(answers == 1, 1 - probabilities, probabilities)
    wrong: FloatArray = np.where(decide(probabilities, form) != answers, sure, 0.0).max(axis=1)
    return wrong


# --- a number --------------------------------------------------------------------------------------


def _score(form: AnswerForm) -> Kind:
    def error(logits: FloatArray, answers: FloatArray) -> float:
        return numbers.root_mean_square_error(answers, _numbers(logits, form))

    return Kind(
        form=form,
        metric="rmse",
        metric_name="root mean square error",
        beside="mae",
        printed=("rmse", "mae", "pearson", "spearman"),
        higher_is_better=False,
        loss=lambda settings, *_: _plain(
            settings, partial(number_loss, mean=form.mean, deviation=form.deviation)
        ),
        mean_loss=lambda logits, answers: (error(logits, answers) / form.deviation) ** 2,
        score=lambda logits, answers: -error(logits, answers),
        fit_head=lambda features, answers, *, strength, settings, **_: fit_frozen_number_head(
            features, _plain(settings, (answers - form.mean) / form.deviation), strength=strength
        ),
        strata=numbers.quantile_bins,
        settle=lambda *_: (form, 1.0, None),
        evaluate=lambda logits, answers, *, split, resampling, **_: numbers.evaluate_numbers(
            _numbers(logits, form), answers, split=split, resampling=resampling
        ),
        details=lambda logits, answers, **_: {
            **numbers.number_details(_numbers(logits, form), answers),
            "mean": form.mean,
            "deviation": form.deviation,
        },
        measure=lambda answers, predictions, *, resampling, **_: numbers.number_scores(
            answers, predictions, resampling=resampling
        ),
        difference=lambda answers, ours, theirs, *, resampling, **_: numbers.paired_error_difference(
            answers, ours, theirs, resampling=resampling
        ),
        verdict=numbers.number_verdict,
        target=lambda *_: NUMBERS,
        baselines=_number_baselines,
        errors=lambda probabilities, answers: np.abs(probabilities[:, 0] - answers),
        loss_unit="squared deviations",
    )


def _numbers(logits: FloatArray, form: AnswerForm) -> FloatArray:
    found: FloatArray = form.mean + form.deviation * logits[:, 0]
    return found


def _number_baselines(texts: Parts, answers: Parts, **known: Any) -> list[BaselineResult]:
    sizes = {f"num_{part}": len(answers[part]) for part in ("validation", "test")}
    ridge = _tfidf(texts, answers, **known)
    return [mean_number(answers["train"], **sizes), dataclasses.replace(ridge, name="tfidf_ridge")]


def _plain(settings: TrainSettings, value: Any) -> Any:
    """The value, once it is sure that nothing is set which only classes can have."""
    refuse_of_classes(settings)
    return value
